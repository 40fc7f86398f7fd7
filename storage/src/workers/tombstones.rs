//! "tombstones": removes rows that say only that something was deleted, once nobody can need them any more.
//!
//! A tombstone goes when every node that takes part in its partition said that it holds just this row, said so again after
//! a while in which all that was under way came to its end, and the layout did not move from the first question to the
//! last removal. One node that does not answer keeps it. Why no deleted row can come back:
//! `decisions/2026-11-21-when-a-tombstone-may-go.md`.
//!
//! Tombstones between the two questions are remembered in memory: a process that starts anew asks anew.

use super::drop_versions::note;
use super::members::{ask_all, members};
use super::queue_reader::{Most, QueueReader, Turn};
use super::{Next, Report, Worker, WorkerError, pull};
use crate::commit::Job;
use crate::meta::Space;
use crate::serve::Node;
use crate::tables::queue::{Entry, Kind, Work};
use crate::tables::stored::Stored;
use crate::tables::with_row;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use hayloft_common::id::NodeId;
use hayloft_common::layout::Partition;
use hayloft_common::schema::{Row, TableId};
use hayloft_proto::message::sync::{CollectTombstones, HoldTombstones, MAX_TOMBSTONES, RowHash};
use parking_lot::Mutex;
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "tombstones";

/// Tombstones looked at in one step.
const STEP: Most = Most { entries: 2048, bytes: 1 << 20 };
/// Bytes of rows in one question.
const BATCH_BYTES: usize = 1 << 20;
/// Questions, or removals, under way at once.
const PARALLEL: usize = 8;
/// Tombstones that may wait between the two questions: some 20 MiB.
const MAX_WAITING: usize = 50_000;
/// A partition that could not be seen to is tried again so much later, twice as long each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(10));

/// See the module's head.
pub struct Tombstones {
    reader: tokio::sync::Mutex<QueueReader>,
    state: Mutex<State>,
}

impl Default for Tombstones {
    fn default() -> Self {
        Self { reader: tokio::sync::Mutex::new(QueueReader::new(Kind::Collect)), state: Mutex::default() }
    }
}

#[derive(Default)]
struct State {
    /// Held by all once; in order of time.
    waiting: VecDeque<Batch>,
    /// The queue keys of what is in `waiting`.
    known: BTreeSet<Bytes>,
    /// Partitions that are left in peace until then, and how often they failed in a row.
    put_off: BTreeMap<Partition, (Duration, u32)>,
    /// Who could not be reached, and for how many partitions.
    missed: BTreeMap<NodeId, u64>,
}

impl State {
    fn put_off(&mut self, partition: Partition, now: Duration) {
        let (until, failures) = self.put_off.entry(partition).or_default();
        if *until > now {
            return;
        }
        *until = now + (RETRY.0 * (1 << (*failures).min(16))).min(RETRY.1);
        *failures += 1;
    }

    fn forget(&mut self, batch: &Batch) {
        for tombstone in &batch.tombstones {
            self.known.remove(&tombstone.queued.0);
        }
    }
}

/// A tombstone as it is stored here.
#[derive(Clone)]
struct Tombstone {
    queued: (Bytes, Entry),
    key: Vec<u8>,
    hash: u128,
}

/// Tombstones of one table and partition that go together.
struct Batch {
    table: TableId,
    partition: Partition,
    /// The layout under which all of its nodes were asked.
    epoch: u64,
    /// When they may be asked again.
    due: Duration,
    tombstones: Vec<Tombstone>,
}

#[async_trait]
impl Worker for Tombstones {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tranquility(&self) -> u32 {
        1
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let (delay, settle) = (node.settings.tombstone_delay, node.settings.tombstone_settle);
        // Who comes later leaves the others time for both questions.
        let turn = Turn { delay, each: node.settings.takeover_delay + 2 * settle };
        let look = turn.look().min(Turn { delay: settle, each: settle }.look());
        if node.cluster.layout().is_empty() {
            return Ok(Next::After(look));
        }
        self.ask_again(node, report).await?;
        let mut reader = self.reader.lock().await;
        let is_last = if self.state.lock().known.len() < MAX_WAITING {
            let put_off = self.put_off(node.env.now());
            let ripe = reader.next(node, report, turn, STEP, move |p| !put_off.contains(&p)).await?;
            self.ask_first(node, report, ripe.entries).await?;
            ripe.is_last
        } else {
            true
        };
        self.tell(report);
        if !is_last {
            return Ok(Next::Again);
        }
        let due = self.state.lock().waiting.front().map(|batch| batch.due.saturating_sub(node.env.now()));
        match due {
            Some(due) if due.is_zero() => Ok(Next::Again),
            due => Ok(Next::After(due.unwrap_or(look).min(look))),
        }
    }
}

impl Tombstones {
    /// The partitions to be left in peace now.
    fn put_off(&self, now: Duration) -> BTreeSet<Partition> {
        let state = self.state.lock();
        state.put_off.iter().filter(|(_, (until, _))| *until > now).map(|(partition, _)| *partition).collect()
    }

    fn tell(&self, report: &Report) {
        let mut state = self.state.lock();
        let missed = std::mem::take(&mut state.missed);
        if !missed.is_empty() {
            let who: Vec<String> = missed.keys().map(NodeId::short).collect();
            report.notes(vec![format!("tombstones are kept: no answer from {}", who.join(", "))]);
        } else if state.put_off.is_empty() {
            report.notes(Vec::new());
        }
    }

    /// The first question, for tombstones that are old enough.
    async fn ask_first(
        &self,
        node: &Arc<Node>,
        report: &Report,
        entries: Vec<(Bytes, Entry)>,
    ) -> Result<(), WorkerError> {
        let new: Vec<_> = {
            let state = self.state.lock();
            entries.into_iter().filter(|(key, _)| !state.known.contains(key)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let (found, idle) = look_up(node, new).await?;
        if !idle.is_empty() {
            node.plane()?.commit.submit(Job::done(idle)).await?;
        }
        let asked = batches(found).into_iter().map(|(table, partition, tombstones)| async move {
            let epoch = node.cluster.layout().epoch;
            let batch = Batch { table, partition, epoch, due: Duration::ZERO, tombstones };
            self.held_by_all(node, report, batch).await
        });
        let asked: Vec<_> =
            stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(PARALLEL).collect().await;
        let due = node.env.now() + node.settings.tombstone_settle;
        let mut state = self.state.lock();
        for batch in asked.into_iter().flatten() {
            let keys: Vec<Bytes> = batch.tombstones.iter().map(|t| t.queued.0.clone()).collect();
            state.known.extend(keys);
            state.waiting.push_back(Batch { due, ..batch });
        }
        Ok(())
    }

    /// The second question, and the removal, for batches whose time has come.
    async fn ask_again(&self, node: &Arc<Node>, report: &Report) -> Result<(), WorkerError> {
        let due: Vec<Batch> = {
            let mut state = self.state.lock();
            let now = node.env.now();
            let mut due = Vec::new();
            while due.len() < PARALLEL && state.waiting.front().is_some_and(|batch| batch.due <= now) {
                let Some(batch) = state.waiting.pop_front() else { break };
                state.forget(&batch);
                due.push(batch);
            }
            due
        };
        let removed = due.into_iter().map(|batch| async move {
            // The layout moved on: the nodes asked are not those of now.
            if node.cluster.layout().epoch != batch.epoch {
                return 0;
            }
            match self.held_by_all(node, report, batch).await {
                Some(batch) => self.remove(node, report, batch).await,
                None => 0,
            }
        });
        let removed: Vec<u64> =
            stream::iter(removed.collect::<Vec<_>>()).buffer_unordered(PARALLEL).collect().await;
        report.count(removed.into_iter().sum(), 0);
        Ok(())
    }

    /// Asks all nodes, at the batch's epoch, to hold what is stored here. What all of them hold; `None` if nothing is.
    async fn held_by_all(&self, node: &Arc<Node>, report: &Report, batch: Batch) -> Option<Batch> {
        let now = node.env.now();
        let layout = node.cluster.layout();
        let nodes = members(&layout, batch.partition);
        let missed: Vec<NodeId> =
            nodes.iter().copied().filter(|id| !node.cluster.pool().peer_stats(*id).connected).collect();
        if layout.epoch != batch.epoch || nodes.is_empty() || !missed.is_empty() {
            let mut state = self.state.lock();
            state.put_off(batch.partition, now);
            for id in missed {
                *state.missed.entry(id).or_default() += 1;
            }
            return None;
        }
        let (table, partition) = (batch.table, batch.partition);
        let (batch, rows) = match rows_of(node, batch).await {
            Ok(read) => read,
            Err(error) => {
                note(node, report, Some(error));
                return None;
            }
        };
        if rows.is_empty() {
            return None;
        }
        let ask = HoldTombstones { table, partition, rows };
        let replies = ask_all(node, batch.epoch, &nodes, &ask).await;
        let mut state = self.state.lock();
        let replies = match replies {
            Ok(replies) => replies,
            Err(error) => {
                state.put_off(partition, now);
                drop(state);
                note(node, report, Some(error.into()));
                return None;
            }
        };
        let held = |index: usize| replies.iter().all(|reply| reply.held.get(index) == Some(&true));
        let all = batch.tombstones.len();
        let tombstones: Vec<Tombstone> =
            batch.tombstones.into_iter().enumerate().filter(|(i, _)| held(*i)).map(|(_, t)| t).collect();
        if tombstones.len() == all {
            state.put_off.remove(&partition);
        } else {
            // Somebody holds something newer, which comes here by and by.
            state.put_off(partition, now);
        }
        (!tombstones.is_empty()).then_some(Batch { tombstones, ..batch })
    }

    /// Has all nodes remove a batch; this one last, so that it begins anew if one of them did not.
    async fn remove(&self, node: &Arc<Node>, report: &Report, batch: Batch) -> u64 {
        let nodes = members(&node.cluster.layout(), batch.partition);
        let row = |t: &Tombstone| (ByteBuf::from(t.key.clone()), RowHash(t.hash.to_le_bytes()));
        let rows: Vec<_> = batch.tombstones.iter().map(row).collect();
        let count = rows.len() as u64;
        let collect = CollectTombstones { table: batch.table, partition: batch.partition, rows };
        let (own, others): (Vec<NodeId>, Vec<NodeId>) = nodes.into_iter().partition(|id| *id == node.id);
        for nodes in [others, own] {
            if let Err(error) = ask_all(node, batch.epoch, &nodes, &collect).await {
                self.state.lock().put_off(batch.partition, node.env.now());
                note(node, report, Some(error.into()));
                return 0;
            }
        }
        count
    }
}

/// The tombstones that are stored here, by table and partition; and the entries of those that are not (any more).
async fn look_up(
    node: &Arc<Node>,
    entries: Vec<(Bytes, Entry)>,
) -> Result<(BTreeMap<(TableId, Partition), Vec<Tombstone>>, Vec<(Bytes, Entry)>), WorkerError> {
    let now_us = node.env.wall_micros();
    pull::reading(node, move |node| {
        let view = node.engine.snapshot();
        let (mut found, mut idle) = (BTreeMap::<_, Vec<Tombstone>>::new(), Vec::new());
        for queued in entries {
            let Work::Collect { table, key } = queued.1.work.clone() else { continue };
            let value = view.get(Space::Table(table), &key)?;
            let stored = value.map(|value| Stored::parse(table, &key, &value)).transpose()?;
            let partition = key.first_chunk::<2>().map(|p| Partition(u16::from_be_bytes(*p)));
            let (Some(stored), Some(partition)) = (stored.filter(|stored| !stored.live), partition) else {
                idle.push(queued);
                continue;
            };
            let stamp = with_row!(table, R => stored.decode_short::<R>(&key)?.stamp());
            // Removed, it would make every plain write of another row go above it.
            if stamp.is_some_and(|stamp| stamp.micros > now_us) {
                continue;
            }
            let tombstone = Tombstone { queued, key, hash: stored.hash };
            found.entry((table, partition)).or_default().push(tombstone);
        }
        Ok((found, idle))
    })
    .await
}

/// Cuts what was found into questions.
fn batches(
    found: BTreeMap<(TableId, Partition), Vec<Tombstone>>,
) -> Vec<(TableId, Partition, Vec<Tombstone>)> {
    let cut = |((table, partition), tombstones): ((TableId, Partition), Vec<Tombstone>)| {
        let chunks = tombstones.chunks(MAX_TOMBSTONES).map(<[_]>::to_vec).collect::<Vec<_>>();
        chunks.into_iter().map(move |chunk| (table, partition, chunk))
    };
    found.into_iter().flat_map(cut).collect()
}

/// The rows of a batch as they are stored, as far as they are still the same and fit in one question.
async fn rows_of(node: &Arc<Node>, batch: Batch) -> Result<(Batch, Vec<ByteBuf>), WorkerError> {
    pull::reading(node, move |node| {
        let view = node.engine.snapshot();
        let (mut kept, mut rows, mut bytes) = (Vec::new(), Vec::new(), 0);
        for tombstone in batch.tombstones {
            let Some(value) = view.get(Space::Table(batch.table), &tombstone.key)? else { continue };
            let stored = Stored::parse(batch.table, &tombstone.key, &value)?;
            if stored.live || stored.has_detail || stored.hash != tombstone.hash || bytes >= BATCH_BYTES {
                continue;
            }
            bytes += stored.short.len();
            rows.push(ByteBuf::from(stored.short.to_vec()));
            kept.push(tombstone);
        }
        Ok((Batch { tombstones: kept, ..batch }, rows))
    })
    .await
}
