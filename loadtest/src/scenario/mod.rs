//! Named scenarios on clusters of real processes: each starts a cluster of its own, does what operators and bad luck
//! do to it, and proves that nothing was lost. They tell figures: how long it took, what was moved, what had to be.
//!
//! Everything is done with the operator's documented commands (the program `hayloft`). What is proven with: every
//! object read through every gateway and judged against the history, `hayloft verify`, and where it matters reads
//! from one node with the disks of all others taken away.

mod collect;
mod disaster;
mod disk;
mod layout;
mod offline;

use crate::report::duration_text;
use crate::testbed::{Programs, Shape, Testbed};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use hayloft_common::env::Env;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Grow from 3 to 5 nodes, remove one, move one to another zone, replace one, RF 3 to 5 to 3: under load and kills.
    Layout,
    /// A disk's directory is deleted under a running node, while everything is read.
    LostDisk,
    /// A node is down while objects are overwritten and deleted, then comes back.
    Offline,
    /// Objects are written and deleted: the space comes back.
    Collect,
    /// A node is lost for good; a spare replaces it.
    DeadNode,
    /// A node loses its metadata and keeps its disks of data.
    LostMetadata,
    /// Every node of a zone is lost for good.
    LostZone,
    /// All nodes lose power at once.
    PowerCut,
    /// A disk is taken out of a node's configuration because it died.
    DeadDisk,
    /// All of these, one after another.
    All,
}

/// Options of `scenario`.
#[derive(Debug, Args)]
pub struct ScenarioArgs {
    /// What happens.
    #[arg(value_enum, required = true)]
    names: Vec<Name>,
    /// The `hayloft` binary; by default the one beside this program, else the one in PATH.
    #[arg(long)]
    dev_bin: Option<PathBuf>,
    /// The `hayloft-gateway` binary; likewise.
    #[arg(long)]
    gateway_bin: Option<PathBuf>,
    /// The `hayloft-storage` binary; likewise.
    #[arg(long)]
    storage_bin: Option<PathBuf>,
    /// Directory of the clusters; by default fresh ones among the temporary files, removed if all is well.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Objects of `offline` and `collect` (100,000 by default).
    #[arg(long)]
    objects: Option<u32>,
    /// MiB of data in `lost-disk` and `dead-disk` (2048 by default) and in the others (256 by default).
    #[arg(long)]
    mib: Option<u64>,
    /// Small sizes for everything that is not given: a smoke test.
    #[arg(long)]
    small: bool,
    /// Clients of the background load.
    #[arg(long, default_value_t = 12)]
    clients: u64,
    /// Seed of everything that is drawn; drawn itself, and printed, if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Minutes that a cluster may take to be whole again after each event.
    #[arg(long, default_value_t = 30)]
    limit_minutes: u64,
    /// Write the figures of all scenarios to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl ScenarioArgs {
    fn limit(&self) -> Duration {
        Duration::from_mins(self.limit_minutes)
    }

    fn objects(&self) -> u32 {
        self.objects.unwrap_or(if self.small { 1_000 } else { 100_000 })
    }

    fn mib(&self, default: u64) -> u64 {
        self.mib.unwrap_or(if self.small { 8 } else { default })
    }
}

/// What a scenario measured, in order: name, value, unit.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<(String, f64, &'static str)>);

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        println!("  {name}: {value:.2} {unit}");
        self.0.push((name, value, unit));
    }

    fn mib(&mut self, name: impl Into<String>, bytes: u64) {
        self.add(name, bytes as f64 / f64::from(1 << 20), "MiB");
    }

    fn seconds(&mut self, name: impl Into<String>, time: Duration) {
        self.add(name, time.as_secs_f64(), "s");
    }
}

/// What scenarios share.
struct Context<'a> {
    env: &'a Env,
    args: &'a ScenarioArgs,
    seed: u64,
    figures: Figures,
}

/// Short delays of background work, safe as long as no message is late: nothing here holds messages back.
const QUICK: &str = "[workers]
anti_entropy_interval = \"20s\"
drop_delay = \"1s\"
takeover_delay = \"10s\"
block_grace = \"5s\"
tombstone_delay = \"5s\"
tombstone_settle = \"5s\"
uncommitted_age = \"1m\"
down_after = \"10s\"
";

impl Context<'_> {
    /// A cluster with three gateways, links that are counted, and short delays; then more of `shape`.
    async fn cluster(&self, shape: Shape) -> Result<Testbed> {
        let programs = Programs {
            hayloft: self.args.dev_bin.clone(),
            gateway: self.args.gateway_bin.clone(),
            storage: self.args.storage_bin.clone(),
        };
        let mut shape = Shape { gateways: 3, links: true, ..shape };
        if shape.storage_toml.is_empty() {
            shape.storage_toml = QUICK.into();
        }
        let dir = self.args.dir.as_ref().map(|dir| dir.join(format!("{:x}", self.env.random_u64())));
        Testbed::start(self.env, &programs, dir.as_deref(), &shape, self.seed, Duration::from_mins(2)).await
    }
}

/// Ends a scenario: stops its cluster, keeping the data if it failed.
async fn end<T>(bed: Testbed, result: Result<T>) -> Result<T> {
    let stopped = bed.finish(result.is_ok()).await;
    let value = result?;
    stopped.context("the cluster did not stop")?;
    Ok(value)
}

async fn run_one(name: Name, cx: &mut Context<'_>) -> Result<()> {
    match name {
        Name::Layout => layout::run(cx).await,
        Name::LostDisk => disk::lost(cx).await,
        Name::DeadDisk => disk::dead(cx).await,
        Name::Offline => offline::run(cx).await,
        Name::Collect => collect::run(cx).await,
        Name::DeadNode => disaster::dead_node(cx).await,
        Name::LostMetadata => disaster::lost_metadata(cx).await,
        Name::LostZone => disaster::lost_zone(cx).await,
        Name::PowerCut | Name::All => disaster::power_cut(cx).await,
    }
}

/// Runs the scenarios; fails if one of them did.
pub async fn run(env: &Env, args: &ScenarioArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| env.random_u64() >> 16);
    let names = if args.names.contains(&Name::All) {
        Name::value_variants().iter().copied().filter(|name| *name != Name::All).collect()
    } else {
        args.names.clone()
    };
    let mut all = BTreeMap::new();
    let mut failed = Vec::new();
    for name in names {
        let title = name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!("{title} (seed {seed})");
        let start = env.now();
        let mut cx = Context { env, args, seed, figures: Figures::default() };
        let result = run_one(name, &mut cx).await;
        let took = duration_text(env.now().saturating_sub(start));
        match result {
            Ok(()) => println!("PASS {title} in {took}"),
            Err(error) => {
                println!("FAIL {title} (seed {seed}) after {took}: {error:#}");
                failed.push(title.clone());
            }
        }
        let figures: BTreeMap<_, _> =
            cx.figures.0.into_iter().map(|(name, value, unit)| (format!("{name} [{unit}]"), value)).collect();
        all.insert(title, figures);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if failed.is_empty() {
        println!("PASS: everything held (seed {seed})");
        Ok(())
    } else {
        bail!("FAIL: {} (seed {seed})", failed.join(", "))
    }
}
