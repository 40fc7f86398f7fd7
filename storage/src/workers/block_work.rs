//! What the workers that look after blocks share: rounds that go on after a restart, blocks in trouble, puts that came
//! to nothing.
//!
//! A *round* is a pass over everything (a scrub, a rebalance, a scan of the index) in bounded steps. How far it is lies
//! in the metadata engine. Asking for a round, cancelling it and going on with it change one record under one lock, so
//! that none of them undoes another.

use super::WorkerError;
use crate::blocks::{DiskId, Location};
use crate::commit::Job;
use crate::meta::{Batch, Engine, MetaError, Space};
use crate::serve::Node;
use hayloft_common::codec::{self, Format};
use hayloft_common::hash::Hash;
use hayloft_common::map::HashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Blocks in trouble that are remembered one by one; of more only the worker's last error tells.
const MAX_TROUBLES: usize = 100_000;
/// Puts that came to nothing, remembered until somebody has tidied up; of more the next scan of the disks finds the bytes.
const MAX_STRAYS: usize = 10_000;
/// Longest wait before a block is tried again; the first is a second, each further one twice as long.
const MAX_BACK_OFF: Duration = Duration::from_mins(10);

/// See the module's head.
#[derive(Default)]
pub struct BlockWork {
    rounds: tokio::sync::Mutex<BTreeMap<&'static str, Round>>,
    troubles: Mutex<HashMap<Hash, Trouble>>,
    strays: Mutex<Vec<StrayBytes>>,
}

/// How far a kind of round is. Durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Rises with each round that begins.
    pub number: u64,
    /// A round is to begin: as soon as the present one is over, but not before this date (milliseconds, wall clock).
    pub wanted: Option<u64>,
    /// When the present round began, in milliseconds by the wall clock; none: no round is under way.
    pub began_ms: Option<u64>,
    /// Whether somebody asked for the present round: then it does not take its time.
    pub asked: bool,
    /// Where the present round is, in the worker's own form; empty at its start.
    #[serde(with = "serde_bytes")]
    pub cursor: Vec<u8>,
    pub done: u64,
    pub all: u64,
    /// When the last round that was finished began, and when it ended.
    pub last: Option<(u64, u64)>,
    /// Paused by an operator, for as long as nobody says otherwise.
    pub paused: bool,
    /// What the last finished round found wrong.
    pub faults: u64,
    /// The disks that the last finished round knew, each with its share of the blocks.
    pub disks: BTreeMap<DiskId, u64>,
}

impl Format for Round {
    const NAME: &'static str = "round of background work";
}

fn round_key(name: &str) -> Vec<u8> {
    [b"round:", name.as_bytes()].concat()
}

impl Round {
    /// Begins a round at `now_ms`.
    pub fn begin(&mut self, now_ms: u64) {
        self.number += 1;
        self.asked = self.wanted.take().is_some();
        self.began_ms = Some(now_ms);
        self.cursor.clear();
        (self.done, self.all) = (0, 0);
    }

    /// Whether a round was asked for and may begin.
    pub fn is_due(&self, now_ms: u64) -> bool {
        // A date far in the future was set by a clock that was wrong.
        self.wanted.is_some_and(|from| from <= now_ms || from > now_ms + 24 * 3_600_000)
    }

    /// Ends the present round as finished.
    pub fn finish(&mut self, now_ms: u64) {
        if let Some(began) = self.began_ms.take() {
            self.last = Some((began, now_ms));
        }
        self.cursor.clear();
    }
}

/// Asks for a round of a node that is not running yet.
pub fn ask_at_start(engine: &dyn Engine, name: &str, from_ms: u64) -> Result<(), MetaError> {
    let kept = engine.get(Space::Node, &round_key(name))?;
    let mut round: Round = kept.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default();
    round.wanted = Some(round.wanted.map_or(from_ms, |before| before.min(from_ms)));
    let mut batch = Batch::new();
    batch.put(Space::Node, round_key(name), codec::encode(&round));
    engine.commit(batch, true)
}

impl BlockWork {
    /// The record of a kind of round.
    pub async fn round(&self, node: &Arc<Node>, name: &'static str) -> Result<Round, WorkerError> {
        let mut rounds = self.rounds.lock().await;
        Self::load(&mut rounds, node, name).await.cloned()
    }

    /// Changes it, durably.
    pub async fn change_round<T>(
        &self,
        node: &Arc<Node>,
        name: &'static str,
        change: impl FnOnce(&mut Round) -> T,
    ) -> Result<T, WorkerError> {
        let mut rounds = self.rounds.lock().await;
        let round = Self::load(&mut rounds, node, name).await?;
        let mut changed = round.clone();
        let result = change(&mut changed);
        if changed != *round {
            let mut batch = Batch::new();
            batch.put(Space::Node, round_key(name), codec::encode(&changed));
            node.plane()?.commit.submit(Job::entries(batch)).await?;
            *round = changed;
        }
        Ok(result)
    }

    /// As [`BlockWork::change_round`], unless the round `number` is over or was cancelled: then it does nothing.
    pub async fn go_on(
        &self,
        node: &Arc<Node>,
        name: &'static str,
        number: u64,
        change: impl FnOnce(&mut Round),
    ) -> Result<(), WorkerError> {
        self.change_round(node, name, |round| {
            if round.number == number && round.began_ms.is_some() {
                change(round);
            }
        })
        .await
    }

    async fn load<'a>(
        rounds: &'a mut BTreeMap<&'static str, Round>,
        node: &Arc<Node>,
        name: &'static str,
    ) -> Result<&'a mut Round, WorkerError> {
        if !rounds.contains_key(name) {
            let engine = node.engine.clone();
            let read = node.env.run_blocking(move || engine.get(Space::Node, &round_key(name))).await;
            let kept = read.map_err(|e| WorkerError::Other(e.to_string()))??;
            let round = kept.map(|bytes| codec::decode(&bytes)).transpose().unwrap_or_else(|error| {
                tracing::error!(name, %error, "the record of background work is damaged; its round begins anew");
                None
            });
            rounds.insert(name, round.unwrap_or_default());
        }
        rounds.get_mut(name).ok_or_else(|| WorkerError::Other("a round was just put in place".into()))
    }

    /// Asks for a round, not before `from_ms`, and wakes its worker.
    pub async fn ask_for_round(
        &self,
        node: &Arc<Node>,
        name: &'static str,
        from_ms: u64,
    ) -> Result<(), WorkerError> {
        self.change_round(node, name, |round| {
            round.wanted = Some(round.wanted.map_or(from_ms, |before| before.min(from_ms)));
        })
        .await?;
        node.workers.wake(name);
        Ok(())
    }
}

/// A block that could not be fetched, checked or released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Failures in a row.
    pub errors: u32,
    pub last_error: String,
    /// By the node's monotonic clock.
    pub last_try: Duration,
    pub next_try: Duration,
    /// Every other node that should hold the block says that it does not.
    pub lost: bool,
}

impl BlockWork {
    /// Notes a failure. `random` spreads the next tries.
    pub fn fail(&self, block: Hash, error: &impl ToString, lost: bool, now: Duration, random: u64) {
        let mut troubles = self.troubles.lock();
        if troubles.len() >= MAX_TROUBLES && !troubles.contains_key(&block) {
            return;
        }
        let errors = troubles.get(&block).map_or(0, |trouble| trouble.errors).saturating_add(1);
        let wait = (Duration::from_secs(1) * (1 << errors.min(10))).min(MAX_BACK_OFF);
        let wait = wait / 2 + wait.mul_f64((random % 1000) as f64 / 1000.0) / 2;
        let last_error = error.to_string();
        troubles.insert(block, Trouble { errors, last_error, last_try: now, next_try: now + wait, lost });
    }

    pub fn clear(&self, block: &Hash) {
        self.troubles.lock().remove(block);
    }

    /// When a block may be tried again, if it failed before.
    pub fn not_before(&self, block: &Hash) -> Option<Duration> {
        self.troubles.lock().get(block).map(|trouble| trouble.next_try)
    }

    /// Whether every other node that should hold the block said that it does not, when it was tried last.
    pub fn is_lost(&self, block: &Hash) -> bool {
        self.troubles.lock().get(block).is_some_and(|trouble| trouble.lost)
    }

    /// Blocks that failed when they were tried last, in order.
    pub fn troubles(&self) -> BTreeMap<Hash, Trouble> {
        self.troubles.lock().iter().map(|(block, trouble)| (*block, trouble.clone())).collect()
    }

    /// Lets blocks be tried at once.
    pub fn retry(&self, blocks: &BTreeSet<Hash>) {
        for (block, trouble) in self.troubles.lock().iter_mut() {
            if blocks.contains(block) {
                trouble.next_try = Duration::ZERO;
            }
        }
    }
}

/// Bytes on a disk that perhaps no index entry names.
#[derive(Clone, Copy, Debug)]
pub struct StrayBytes {
    pub block: Hash,
    /// `None`: the put was given up before it was answered; it may be anywhere, or come yet.
    pub location: Option<Location>,
    /// By the node's monotonic clock.
    pub since: Duration,
}

impl BlockWork {
    fn stray(&self, stray: StrayBytes) {
        let mut strays = self.strays.lock();
        if strays.len() < MAX_STRAYS {
            strays.push(stray);
        }
    }

    /// Takes the stray bytes that have been lying since before `until`.
    pub fn take_strays(&self, until: Duration) -> Vec<StrayBytes> {
        let mut strays = self.strays.lock();
        let (old, young) = strays.drain(..).partition(|stray| stray.since <= until);
        *strays = young;
        old
    }
}

/// Watches over a put until its index entry is committed: if it is dropped before (the put or the commit failed, the
/// caller gave up), the bytes are looked at later.
pub struct Stray<'a> {
    node: &'a Node,
    bytes: Option<StrayBytes>,
}

impl<'a> Stray<'a> {
    pub fn new(node: &'a Node, block: Hash) -> Self {
        Self { node, bytes: Some(StrayBytes { block, location: None, since: node.env.now() }) }
    }

    pub fn lies_at(&mut self, location: Location) {
        if let Some(bytes) = &mut self.bytes {
            bytes.location = Some(location);
        }
    }

    pub fn is_committed(mut self) {
        self.bytes = None;
    }
}

impl Drop for Stray<'_> {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.node.block_work.stray(StrayBytes { since: self.node.env.now(), ..bytes });
        }
    }
}
