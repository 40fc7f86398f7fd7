//! Random faults on a cluster of real processes, during a mixed load and layout changes, judged by the same checkers
//! as the simulation.
//!
//! Fault model: SIGKILL, SIGSTOP, cut (both ways, one way) and slow links, wrong clocks, a full disk, a deleted data
//! directory, a node destroyed with all it had, all daemons killed at once, and changes of the layout. What is destroyed
//! stays within the promise: nothing more is destroyed before the cluster says it is whole again. What may happen:
//! requests fail. What may not: a stale or wrong read, a listing that is not the set of objects, a lost write, a deleted
//! object that comes back, or a cluster that does not become whole once it is left alone.
//!
//! Work goes in rounds. Clients stop at the end of each, and the history so far is judged and forgotten.

mod faults;
mod membership;
mod small_disk;

use crate::check;
use crate::testbed::{Load, Programs, Shape, Testbed, judge, read_keys, verify};
use crate::workload::{Keys, Mix, Site};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use faults::Chaos;
use hayloft_common::env::Env;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Rounds that use the same keys: what earlier ones wrote is read, overwritten and deleted by later ones.
const ROUNDS_PER_SET: u64 = 3;
/// Settings of the nodes: short, but with the delays that protect against messages that links hold back.
const SETTINGS: &str = "[workers]
anti_entropy_interval = \"15s\"
drop_delay = \"1s\"
takeover_delay = \"10s\"
block_grace = \"20s\"
tombstone_delay = \"20s\"
tombstone_settle = \"1m\"
uncommitted_age = \"40m\"
down_after = \"15s\"
";

/// Options of `chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// How long faults are injected, such as 30 or 0.5; making everything whole again at the end comes on top.
    #[arg(long, default_value_t = 10.0, value_parser = parse_minutes)]
    minutes: f64,
    /// Seed of everything that is drawn; drawn itself, and printed, if not given. It does not repeat how processes
    /// interleave.
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds of load and faults in a round.
    #[arg(long, default_value_t = 45)]
    round_seconds: u64,
    /// The `hayloft` binary; by default the one beside this program, else the one in PATH.
    #[arg(long)]
    dev_bin: Option<PathBuf>,
    /// The `hayloft-gateway` binary; likewise.
    #[arg(long)]
    gateway_bin: Option<PathBuf>,
    /// The `hayloft-storage` binary; likewise.
    #[arg(long)]
    storage_bin: Option<PathBuf>,
    /// Directory of the cluster; by default a fresh one among the temporary files, removed if all is well.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Clients at a time.
    #[arg(long, default_value_t = 12)]
    clients: u64,
    /// Keys that the clients share.
    #[arg(long, default_value_t = 300)]
    keys: u32,
    /// Only these faults, by name (as the report lists them); by default all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Not these faults.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Minutes that the cluster may take to be whole again.
    #[arg(long, default_value_t = 30)]
    limit_minutes: u64,
    /// Also demand that reads never go back (for buckets with monotonic reads).
    #[arg(long)]
    monotonic: bool,
}

fn parse_minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes.is_finite() && (0.0..100_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("give a number of minutes, such as 30 or 0.5".into()),
    }
}

/// What happened, for the report.
#[derive(Default)]
struct Tally {
    rounds: u64,
    writes: usize,
    reads: usize,
    sets: Vec<Keys>,
}

/// Runs it, and says in the last line whether everything held.
pub async fn run(env: &Env, args: &ChaosArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| env.random_u64() >> 16);
    println!("chaos for {} minutes, seed {seed}", args.minutes);
    let programs = Programs {
        hayloft: args.dev_bin.clone(),
        gateway: args.gateway_bin.clone(),
        storage: args.storage_bin.clone(),
    };
    let shape = Shape {
        storage: Some(4),
        spares: 2,
        zones: Some(3),
        gateways: 3,
        replication: Some(3),
        disks: Some(2),
        links: true,
        storage_toml: SETTINGS.into(),
        ..Shape::default()
    };
    let bed =
        Testbed::start(env, &programs, args.dir.as_deref(), &shape, seed, Duration::from_mins(3)).await?;
    let (mut site, prefix) = bed.site("chaos");
    site.read_retries = 3;
    let mut chaos = Chaos::new(bed, seed, &args.only, &args.without).await?;
    let mut tally = Tally::default();
    let result = all_rounds(&mut chaos, args, &site, &prefix, seed, &mut tally).await;
    report(&chaos, &site, &tally);
    let passed = result.is_ok();
    let stopped = chaos.finish(passed).await;
    match result {
        Ok(()) => {
            stopped?;
            println!("PASS: nothing lost, stale or wrong (seed {seed})");
            Ok(())
        }
        Err(error) => {
            println!("FAIL (seed {seed}): {error:#}");
            bail!("FAIL: chaos (seed {seed})")
        }
    }
}

async fn all_rounds(
    chaos: &mut Chaos,
    args: &ChaosArgs,
    site: &Site,
    prefix: &str,
    seed: u64,
    tally: &mut Tally,
) -> Result<()> {
    let env = chaos.bed.env.clone();
    let start = env.now();
    let mut random = SmallRng::seed_from_u64(seed);
    while env.now().saturating_sub(start) < Duration::from_secs_f64(args.minutes * 60.0) {
        let round = tally.rounds;
        if round.is_multiple_of(ROUNDS_PER_SET) {
            let set = format!("{prefix}{:03}/", round / ROUNDS_PER_SET);
            tally.sets.push(Keys::new(&set, args.keys));
        }
        let keys = tally.sets.last().context("no keys")?.clone();
        let mix = Mix {
            copy: random.random_range(0..10),
            checked_list: random.random_range(0..3),
            delete: random.random_range(5..25),
            max_size: [64 << 10, 1 << 20, 3 << 20][random.random_range(0..3)],
            ..Mix::default()
        };
        let load = Load::start(site, &keys, mix, args.clients, random.random());
        let faults = chaos.round(Duration::from_secs(args.round_seconds)).await;
        load.stop().await?;
        faults.with_context(|| format!("round {round}"))?;
        let judged = judge(site, args.monotonic).with_context(|| format!("round {round}"))?;
        tally.rounds += 1;
        tally.writes += judged.writes;
        tally.reads += judged.reads;
        println!(
            "round {round}: {} requests so far, {} reads right; {}",
            site.done.load(Ordering::Relaxed),
            judged.reads,
            chaos.last_round()
        );
        if chaos.must_recover() {
            chaos.recover(Duration::from_mins(args.limit_minutes)).await?;
            read_keys(site, &keys).await?;
            judge(site, args.monotonic).with_context(|| format!("after recovery in round {round}"))?;
        }
    }
    println!("faults are over; waiting until the cluster is whole");
    chaos.recover(Duration::from_mins(args.limit_minutes)).await?;
    for keys in &tally.sets {
        let verified = verify(&chaos.bed, site, keys, args.monotonic).await.context("at the end")?;
        tally.reads += verified.reads;
    }
    final_listing(site, prefix).await
}

/// One listing of everything that was ever written.
async fn final_listing(site: &Site, prefix: &str) -> Result<()> {
    let start = site.env.now();
    let listed = site.s3.list_all(prefix).await?;
    let listed: Vec<_> = listed.into_iter().map(|object| (object.key, object.size)).collect();
    let found = check::listing(&site.history.writes_under(prefix), &listed, start, site.env.now());
    match found.first() {
        None => Ok(()),
        Some(first) => bail!("the listing is wrong in {} places, the first: {first}", found.len()),
    }
}

fn report(chaos: &Chaos, site: &Site, tally: &Tally) {
    println!(
        "{} rounds, {} requests served, {} writes and {} reads judged",
        tally.rounds,
        site.done.load(Ordering::Relaxed),
        tally.writes,
        tally.reads
    );
    println!("faults injected:");
    for (name, count) in chaos.injected() {
        println!("  {name}: {count}");
    }
    println!("requests that failed:");
    let failures: BTreeMap<_, _> = site.failures.lock().clone();
    for (kind, failure) in failures {
        println!("  {kind}: {failure:?}");
    }
}
