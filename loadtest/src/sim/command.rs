//! `hayloft-loadtest sim` and `meta`.

use super::{Bug, Options, meta, simulate};
use anyhow::{Context as _, bail};
use clap::Args;
use hayloft_common::env::Env;
use std::path::PathBuf;

/// Which seeds to run, and how.
#[derive(Args, Debug)]
pub struct SimArgs {
    /// The only seed to run.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds to run, the last one excluded.
    #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..20")]
    seeds: (u64, u64),
    /// Storage nodes (3 to 6); drawn from the seed if not given.
    #[arg(long, value_parser = clap::value_parser!(u8).range(3..=6))]
    nodes: Option<u8>,
    /// Virtual time during which clients work and faults come.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Write the event log of the (last) run to a file.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Print the event log and nothing else.
    #[arg(long, hide = true)]
    print_log: bool,
    /// Run a broken variant, to see that it is found.
    #[arg(long, hide = true)]
    bug: Option<Bug>,
    /// Go on behind a failing seed.
    #[arg(long)]
    keep_going: bool,
    /// Show events as they come; twice: the nodes' own log lines too.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Which seeds to run twice.
#[derive(Args, Debug)]
pub struct MetaArgs {
    /// Seeds to run, the last one excluded.
    #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..5")]
    seeds: (u64, u64),
    /// Virtual time of each run.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("write a range as A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok((from, to)) } else { Err(format!("{from}..{to} is empty")) }
}

impl SimArgs {
    fn options(&self, seed: u64) -> Options {
        let (nodes, echo) = (self.nodes.map(usize::from), self.verbose > 0);
        Options { seed, nodes, seconds: self.seconds, bug: self.bug, echo }
    }

    fn replay(&self, seed: u64) -> String {
        let nodes = self.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
        let bug = match self.bug {
            None => "",
            Some(Bug::NoFsync) => " --bug no-fsync",
            Some(Bug::Dangerous) => " --bug dangerous",
        };
        format!("hayloft-loadtest sim --seed {seed} --seconds {}{nodes}{bug}", self.seconds)
    }
}

/// Runs the seeds; an error if one of them fails. Must not be called on a tokio runtime.
pub fn run(args: &SimArgs) -> anyhow::Result<()> {
    if args.verbose > 1 {
        let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false);
        subscriber.with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    }
    let (from, to) = args.seed.map_or(args.seeds, |seed| (seed, seed + 1));
    let clock = Env::real();
    let (mut failed, start) = (Vec::new(), clock.now());
    for seed in from..to {
        let began = clock.now();
        let report = simulate(&args.options(seed));
        if let Some(path) = &args.log {
            std::fs::write(path, &report.log).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if args.print_log {
            print!("{}", report.log);
            continue;
        }
        let (took, real) = (report.took.as_secs(), clock.now().saturating_sub(began));
        let total: u64 = report.counts.values().sum();
        let good: u64 = report.counts.iter().filter(|(name, _)| name.ends_with(": ok")).map(|(_, n)| n).sum();
        let verdict = if report.passed() { "ok" } else { "FAILED" };
        println!(
            "seed {seed}: {verdict}, {total} requests, {good} done, {took} s in {real:.0?}, log {}",
            report.hash()
        );
        if args.verbose > 0 {
            report.counts.iter().for_each(|(name, count)| println!("  {count:>6} {name}"));
        }
        if !report.passed() {
            println!("{}replay with: {}", report.explain(3), args.replay(seed));
            failed.push(seed);
            if !args.keep_going {
                break;
            }
        }
    }
    if !args.print_log && to - from > 1 {
        let real = clock.now().saturating_sub(start);
        println!("{} seeds in {real:.1?}, {} failed: {failed:?}", to - from, failed.len());
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} of the seeds failed", failed.len()) }
}

/// Runs seeds twice, in this process and in two others, and compares the logs.
pub fn run_meta(args: &MetaArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("this program does not find itself")?;
    for seed in args.seeds.0..args.seeds.1 {
        let options = Options { seed, seconds: args.seconds, ..Options::default() };
        let here = meta::in_one_process(&options)?;
        let there = meta::in_two_processes(&program, &options)?;
        if here != there {
            bail!("seed {seed}: this process and two others differ: {here} and {there}");
        }
        println!("seed {seed}: four runs, one log {here}");
    }
    Ok(())
}
