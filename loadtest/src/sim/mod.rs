//! The simulator: real gateways and storage nodes in one thread, on simulated time, network, clocks, randomness and
//! disks, with faults drawn from a seed. The same seed gives the same run, byte for byte.
//!
//! It checks: an acknowledged write is seen by every later read until it is overwritten, also when everything has
//! crashed; bytes are right; listings are the set of objects; nodes start again after every crash; and once all is
//! healed the cluster answers. Requests enter at the gateways' domain layer: HTTP and signatures are not simulated.
//!
//! Imports go downwards only: `net seams secure log knobs` ← `world` ← `faults liveness inspect` ← `clients operator` ←
//! `workload settle` ← this ← `meta` ← `command`.

mod clients;
mod command;
mod faults;
mod inspect;
mod knobs;
mod liveness;
mod log;
mod meta;
mod net;
mod operator;
mod seams;
mod secure;
mod settle;
mod workload;
mod world;

pub use command::{MetaArgs, SimArgs, run, run_meta};

use crate::check::{self, Violation};
use clients::{BUCKET, Site};
use faults::ledger::Ledger;
use hayloft_gateway::domain::{DomainError, NewBucket};
use knobs::Knobs;
use log::{FAULT, Log};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use world::{Front, World};

/// Between the last new fault and the end of all that were begun.
const FAULTS_END: Duration = Duration::from_secs(20);
/// Time to reconnect after everything is healed: the longest back-off and the first calls.
const SETTLE: Duration = Duration::from_secs(15);
/// Once healed, every request must succeed within this.
const ANSWERS_WITHIN: Duration = Duration::from_mins(1);

/// Faults of a run that are shown.
const FAULTS_SHOWN: usize = 20;

/// A deliberately broken variant, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// Storage nodes acknowledge before anything is synced.
    NoFsync,
    /// Gateways take one answer for a quorum.
    Dangerous,
    /// Storage nodes release blocks at once, without asking whether they are referred to.
    EarlyBlockDeletion,
    /// Storage nodes take requests of any layout epoch.
    DroppedEpochCheck,
}

impl Bug {
    /// The name on the command line.
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub seed: u64,
    /// Storage nodes; drawn from the seed if not given.
    pub nodes: Option<usize>,
    /// How long clients work and faults come, in virtual time; drawn from the seed if not given.
    pub seconds: Option<u64>,
    pub bug: Option<Bug>,
    /// Show events as they come, on standard error.
    pub echo: bool,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    pub log: String,
    pub violations: Vec<Violation>,
    /// What went wrong that concerns no single key.
    pub faults: Vec<String>,
    /// Results by operation and kind.
    pub counts: BTreeMap<String, u64>,
    /// Virtual time.
    pub took: Duration,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.faults.is_empty()
    }

    /// The hash that all runs of the same seed share.
    pub fn hash(&self) -> String {
        log::hash(&self.log)
    }

    /// What went wrong, with the history of each key concerned (at most `keys` of them).
    pub fn explain(&self, keys: usize) -> String {
        let mut lines: Vec<String> =
            self.faults.iter().take(FAULTS_SHOWN).map(|fault| format!("  {fault}\n")).collect();
        if self.faults.len() > FAULTS_SHOWN {
            lines.push(format!("  and {} more\n", self.faults.len() - FAULTS_SHOWN));
        }
        let mut by_key: BTreeMap<&str, Vec<&Violation>> = BTreeMap::new();
        for violation in &self.violations {
            by_key.entry(&violation.key).or_default().push(violation);
        }
        for (key, violations) in by_key.into_iter().take(keys) {
            lines.extend(violations.iter().take(3).map(|violation| format!("  {violation}\n")));
            lines.push(format!("history of {key} ({} violations):\n", violations.len()));
            lines.push(log::about(&self.log, key));
        }
        lines.concat()
    }
}

/// Runs one seed. Must not be called on a tokio runtime.
pub fn simulate(options: &Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => runtime.block_on(whole(options)),
        Err(error) => Report {
            log: String::new(),
            violations: Vec::new(),
            faults: vec![format!("the runtime could not be made: {error}")],
            counts: BTreeMap::new(),
            took: Duration::ZERO,
        },
    }
}

async fn whole(options: &Options) -> Report {
    let log = Log::new(Instant::now(), options.echo);
    let knobs = Knobs::draw(options);
    log.event("t", format!("seed {}: {knobs:?}", options.seed));
    let world = World::new(options, knobs, log.clone());
    let site = Site::new(world.clone());
    match set_up(&world).await {
        Ok(()) => rounds(&site).await,
        Err(error) => world.fault(format!("set-up failed: {error:#}")),
    }
    let (writes, bytes, digest) = world.network.digest();
    log.event("t", format!("network: {writes} writes, {bytes} bytes, {digest}"));
    let monotonic = world.knobs.monotonic;
    let mut violations = site.violations.lock().clone();
    for (name, key) in &site.history.snapshot() {
        violations.extend(check::reads(name, key));
        if monotonic {
            violations.extend(check::monotonic(name, key));
        }
    }
    world.end();
    let counts = site.counts.lock().clone();
    Report { log: log.text(), violations, faults: world.faults(), counts, took: log.now() }
}

/// Starts everything, applies a layout, makes the bucket, and lets every gateway see it: without faults.
async fn set_up(world: &World) -> anyhow::Result<()> {
    for host in world.hosts() {
        world.start(host);
    }
    world.apply_layout().await?;
    let mut tries = 0;
    for gateway in 0..world.knobs.gateways.len() {
        loop {
            let front = world.front(gateway).ok_or_else(|| anyhow::anyhow!("a gateway is down"))?;
            let new = NewBucket { global_alias: Some(BUCKET.into()), ..NewBucket::default() };
            let done = match gateway {
                0 => make_bucket(world, &front, new).await,
                _ => front.gateway.resolve(BUCKET).await.map(drop),
            };
            match done {
                Ok(()) => break,
                Err(error) if tries < 40 => world.log.event("t", format!("no bucket yet: {error}")),
                Err(error) => return Err(error.into()),
            }
            tries += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(())
}

async fn make_bucket(world: &World, front: &Front, new: NewBucket) -> Result<(), DomainError> {
    if front.gateway.resolve(BUCKET).await.is_err() {
        front.gateway.create_bucket(new).await?;
    }
    if world.knobs.monotonic {
        let bucket = front.gateway.resolve(BUCKET).await?;
        front.gateway.set_monotonic_reads(bucket.id(), true).await?;
    }
    Ok(())
}

/// Clients and faults, then peace, then everything is read; maybe more than once.
async fn rounds(site: &Site) {
    let world = &site.world;
    // Three copies, of which two make a quorum.
    let ledger = Ledger::new(1);
    world.tester.spawn("network digest", digests(world.clone()));
    for _ in 0..world.knobs.rounds {
        let until = world.log.now() + Duration::from_secs(world.knobs.seconds);
        world.tester.spawn("faults", faults::inject(world.clone(), ledger.clone(), until));
        world.tester.spawn("operator", operator::run(world.clone(), ledger.clone(), until));
        let clients = (0..world.knobs.clients).map(|client| workload::run(site.clone(), client, until));
        crate::workload::together(&world.tester, "client", clients).await;
        tokio::time::sleep((until + FAULTS_END).saturating_sub(world.log.now())).await;
        faults::heal(world);
        tokio::time::sleep(SETTLE).await;
        answers(site).await;
        settle::settle(world, &ledger).await;
        at_rest(site).await;
        if !world.faults().is_empty() {
            return;
        }
    }
}

/// A line each second, so that two runs that differ show where they began to.
async fn digests(world: World) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (writes, _, digest) = world.network.digest();
        world.log.event("net", format!("{writes} writes, {digest}"));
    }
}

/// Every gateway must take a write and give every key, within a bounded time.
async fn answers(site: &Site) {
    let world = &site.world;
    for gateway in 0..world.knobs.gateways.len() {
        let start = world.log.now();
        while !site.put("t", gateway, "probe", 100, 0).await {
            if world.log.now() > start + ANSWERS_WITHIN {
                return world.fault(format!("gateway {gateway} takes no write though all is healed"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for key in site.keys() {
            while let Err(failure) = site.get("t", gateway, &key, None).await {
                if world.log.now() > start + ANSWERS_WITHIN {
                    world.fault(format!(
                        "gateway {gateway} cannot read [{key}] though all is healed: {failure}"
                    ));
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Nothing changes any more: each request must succeed at once, and reads and listings be right.
async fn at_rest(site: &Site) {
    let world = &site.world;
    world.log.event(FAULT, "at rest");
    for gateway in 0..world.knobs.gateways.len() {
        for failed in site.every_write(gateway).await {
            world.fault(format!("gateway {gateway}: {failed} failed at rest"));
        }
        for key in site.history.snapshot().keys() {
            if let Err(failure) = site.get("t", gateway, key, None).await {
                world.fault(format!("gateway {gateway} cannot read [{key}] at rest: {failure}"));
            }
        }
        for page in [1, 1000] {
            if let Err(failure) = site.list("t", gateway, page).await {
                world.fault(format!("gateway {gateway} cannot list at rest: {failure}"));
            }
        }
        if let Err(failure) = site.list_rolled_up("t", gateway).await {
            world.fault(format!("gateway {gateway} cannot list rolled up at rest: {failure}"));
        }
    }
}
