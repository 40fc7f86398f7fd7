//! `hayloft-loadtest sim` and `meta`.

use super::{Bug, Options, Report, meta, simulate};
use anyhow::{Context as _, bail};
use clap::Args;
use hayloft_common::env::Env;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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
    /// Virtual time during which clients work and faults come; drawn from the seed if not given.
    #[arg(long)]
    seconds: Option<u64>,
    /// Seeds to run at the same time; by default as many as there are cores.
    #[arg(long)]
    jobs: Option<usize>,
    /// Print a line for each seed.
    #[arg(long)]
    each: bool,
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
    #[arg(long)]
    seconds: Option<u64>,
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
        let seconds = self.seconds.map(|seconds| format!(" --seconds {seconds}")).unwrap_or_default();
        let nodes = self.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
        let bug = self.bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
        format!("hayloft-loadtest sim --seed {seed}{seconds}{nodes}{bug}")
    }
}

/// Runs the seeds; an error if one of them fails. Must not be called on a tokio runtime.
pub fn run(args: &SimArgs) -> anyhow::Result<()> {
    if args.verbose > 1 {
        let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false);
        subscriber.with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    }
    let (from, to) = args.seed.map_or(args.seeds, |seed| (seed, seed + 1));
    if args.print_log {
        (from..to).for_each(|seed| print!("{}", simulate(&args.options(seed)).log));
        return Ok(());
    }
    let clock = Env::real();
    let start = clock.now();
    let all =
        All { args, to, next: AtomicU64::new(from), stop: AtomicBool::new(false), done: Mutex::default() };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(cores).clamp(1, (to - from) as usize);
    let progress = progress(to - from, args);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| all.work(&clock, &progress));
        }
    });
    progress.finish_and_clear();
    let done = all.done.into_inner();
    if to - from > 1 {
        let real = clock.now().saturating_sub(start).as_secs_f64();
        println!(
            "{} seeds, {} requests ({} done), {:.1} virtual hours in {real:.1} s on {jobs} threads: {:.1} seeds/s",
            done.seeds,
            done.requests,
            done.good,
            done.took.as_secs_f64() / 3600.0,
            done.seeds as f64 / real
        );
    }
    if args.verbose > 0 {
        done.counts.iter().for_each(|(name, count)| println!("  {count:>8} {name}"));
    }
    let failed = done.failed;
    if failed.is_empty() {
        return Ok(());
    }
    let first = failed.iter().next().copied().unwrap_or_default();
    bail!("{} seeds failed: {failed:?}\nreplay the first with: {}", failed.len(), args.replay(first))
}

/// A line that shows how far the run is; nothing when there is nobody to watch or lines are printed anyway.
fn progress(seeds: u64, args: &SimArgs) -> ProgressBar {
    if args.verbose > 0 || args.each || seeds == 1 {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(seeds);
    if let Ok(style) = ProgressStyle::with_template("{pos}/{len} seeds, {per_sec}, {eta} left {msg}") {
        bar.set_style(style);
    }
    bar
}

/// What the threads share.
struct All<'a> {
    args: &'a SimArgs,
    to: u64,
    next: AtomicU64,
    stop: AtomicBool,
    done: Mutex<Done>,
}

/// What is done so far.
#[derive(Default)]
struct Done {
    seeds: u64,
    requests: u64,
    good: u64,
    took: Duration,
    failed: BTreeSet<u64>,
    counts: BTreeMap<String, u64>,
}

impl All<'_> {
    /// Runs seeds until there are no more.
    fn work(&self, clock: &Env, progress: &ProgressBar) {
        while !self.stop.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.to {
                return;
            }
            let began = clock.now();
            let report = simulate(&self.args.options(seed));
            self.note(seed, &report, clock.now().saturating_sub(began), progress);
        }
    }

    fn note(&self, seed: u64, report: &Report, real: Duration, progress: &ProgressBar) {
        let mut done = self.done.lock();
        let total: u64 = report.counts.values().sum();
        let good: u64 = report.counts.iter().filter(|(name, _)| name.ends_with(": ok")).map(|(_, n)| n).sum();
        done.seeds += 1;
        done.requests += total;
        done.good += good;
        done.took += report.took;
        for (name, count) in &report.counts {
            *done.counts.entry(name.clone()).or_default() += count;
        }
        let verdict = if report.passed() { "ok" } else { "FAILED" };
        let took = report.took.as_secs();
        let line = format!(
            "seed {seed}: {verdict}, {total} requests, {good} done, {took} s in {real:.0?}, log {}",
            &report.hash()[..16]
        );
        if self.args.each || self.args.seed.is_some() || !report.passed() {
            progress.suspend(|| println!("{line}"));
        }
        if let Some(path) = &self.args.log
            && let Err(error) = std::fs::write(path, &report.log)
        {
            progress.suspend(|| eprintln!("cannot write {}: {error}", path.display()));
        }
        if !report.passed() {
            progress.suspend(|| println!("{}replay with: {}\n", report.explain(3), self.args.replay(seed)));
            done.failed.insert(seed);
            progress.set_message(format!("{} failed", done.failed.len()));
            self.stop.fetch_or(!self.args.keep_going, Ordering::Relaxed);
        }
        progress.inc(1);
    }
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
