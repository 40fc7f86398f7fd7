//! The one owner of writes: group commit.
//!
//! Every write of the node goes through one queue. The owner takes all that waits (bounded by number and
//! bytes), applies the jobs in order over an overlay (a later job sees the earlier ones' rows), makes one
//! atomic batch, syncs once and answers all. So read-merge-write never interleaves for a row, without locks,
//! and an fsync is shared by all who wait for it.
//!
//! Guarantees:
//! - an answer is given only when the job's writes are durable (with `fsync` off: handed to the system);
//! - a job is applied entirely or not at all, also if its caller went away;
//! - a job that fails on its own account does not touch the others of its batch;
//! - after a failed write or sync every waiting and later job gets a typed error at once.
//!
//! - a job admitted under a layout epoch is refused if the node has left that epoch when its turn comes. So once a job
//!   that was queued after the change of epoch is answered ([`CommitQueue::barrier`]), nothing of the old epoch follows.
//!
//! Conditions on what is stored (a live reference, a tombstone's hash, where a block lies) are judged here, in the same
//! step as the write that depends on them: there is no other place where they could not change in between.
//!
//! Memory is bounded: jobs hold a permit for their bytes from before they are queued until they are answered.

use crate::meta::{Batch, Engine, MetaError, Space};
use crate::tables::queue::{self, Entry, Work};
use crate::tables::recount::Correction;
use crate::tables::{Overlay, Tables, TablesError};
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::schema::TableId;
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode, WriteRows};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// How much is gathered and kept waiting.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sync before answering (`metadata_fsync`). Off, a power cut may take the last seconds of every node it hits.
    pub fsync: bool,
    /// Jobs that may wait.
    pub queue: usize,
    /// Bytes of all jobs that wait or are being written.
    pub queue_bytes: usize,
    /// Jobs in one batch, at most.
    pub batch_jobs: usize,
    /// Bytes of jobs in one batch; one job may exceed it alone.
    pub batch_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { fsync: true, queue: 1024, queue_bytes: 16 << 20, batch_jobs: 256, batch_bytes: 4 << 20 }
    }
}

/// What to write, as one: rows, entries of keyspaces that hold no rows, and a step with a condition.
#[derive(Clone, Debug)]
pub struct Job {
    mode: WriteMode,
    rows: Vec<RowBytes>,
    entries: Batch,
    step: Option<Step>,
    /// Refuse the whole job if one of its live references is deleted here.
    refuse_deleted: bool,
    epoch: Option<u64>,
}

/// Something that depends on what is stored when the job's turn comes.
#[derive(Clone, Debug)]
enum Step {
    /// Remove the index entry of a block that no live reference names.
    Release { block: Hash, regardless: bool },
    /// Remove tombstones that are stored just so.
    Collect(Vec<(TableId, Bytes, u128)>),
    /// Replace a block's index entry, if it is still the first one.
    Relocate { block: Hash, from: Bytes, to: Option<Bytes> },
    /// Remove up to `limit` entries of a partition.
    Forget { partition: u16, limit: usize },
    /// Take entries off the queue that were not queued again since they were read.
    Done(Vec<(Bytes, Entry)>),
    /// Put right what a recount found wrong.
    Correct(Correction),
}

impl Job {
    /// Rows of any tables.
    pub fn rows(request: WriteRows) -> Self {
        Self::new(request.mode, request.rows, Batch::new())
    }

    fn new(mode: WriteMode, rows: Vec<RowBytes>, entries: Batch) -> Self {
        Self { mode, rows, entries, step: None, refuse_deleted: false, epoch: None }
    }

    fn step(step: Step) -> Self {
        Self { step: Some(step), ..Self::new(WriteMode::Merge, Vec::new(), Batch::new()) }
    }

    /// A block that has been stored: its references, and the entries that say where it lies. If one of the references
    /// is deleted here nothing is written, and [`Outcome::refused`] says so.
    pub fn block(references: Vec<RowBytes>, index: Batch) -> Self {
        Self { refuse_deleted: true, ..Self::new(WriteMode::Merge, references, index) }
    }

    /// Entries of the node's own keyspaces: layout, block index, finished queue entries.
    pub fn entries(entries: Batch) -> Self {
        Self::new(WriteMode::Merge, Vec::new(), entries)
    }

    /// Removes the index entry of `block` if no live reference names it; [`Outcome::released`] is the entry. Its bytes
    /// may be deleted once the job is answered.
    pub fn release(block: Hash) -> Self {
        Self::step(Step::Release { block, regardless: false })
    }

    /// As [`Job::release`] without asking for references: wrong, for the simulator to find, and for `block purge`.
    pub fn release_regardless(block: Hash) -> Self {
        Self::step(Step::Release { block, regardless: true })
    }

    /// Removes tombstones (table, stored key, row hash) that are stored just so. [`Outcome::done`]: one for each,
    /// whether it is gone.
    pub fn collect(tombstones: Vec<(TableId, Bytes, u128)>) -> Self {
        Self::step(Step::Collect(tombstones))
    }

    /// Puts the index entry of a block at `to` (none: removes it) if it is still at `from`; [`Outcome::done`] says whether.
    pub fn relocate(block: Hash, from: Bytes, to: Option<Bytes>) -> Self {
        Self::step(Step::Relocate { block, from, to })
    }

    /// Removes up to `limit` entries of a partition; [`Outcome::more`] tells whether to go on.
    pub fn forget(partition: u16, limit: usize) -> Self {
        Self::step(Step::Forget { partition, limit })
    }

    /// Takes finished work off the queue, except what was queued again since it was read.
    pub fn done(finished: Vec<(Bytes, Entry)>) -> Self {
        Self::step(Step::Done(finished))
    }

    /// Puts a partition's fingerprints and counters right, as a recount found them. The partition must not have been
    /// forgotten since.
    pub fn correct(correction: Correction) -> Self {
        Self::step(Step::Correct(correction))
    }

    /// Refuses the job if the node is at another layout epoch when its turn comes.
    #[must_use]
    pub fn at_epoch(self, epoch: u64) -> Self {
        Self { epoch: Some(epoch), ..self }
    }

    fn bytes(&self) -> usize {
        let step = match &self.step {
            Some(Step::Collect(tombstones)) => tombstones.iter().map(|(_, key, _)| key.len() + 32).sum(),
            Some(Step::Done(finished)) => finished.iter().map(|(key, _)| key.len() + 64).sum(),
            Some(Step::Forget { limit, .. }) => limit * 64,
            Some(Step::Correct(correction)) => correction.len() * 64,
            Some(Step::Release { .. } | Step::Relocate { .. }) => 128,
            None => 0,
        };
        self.rows.iter().map(|r| r.bytes.len()).sum::<usize>() + self.entries.bytes() + step
    }
}

/// What became of a job: an outcome for each of its rows. If one is `Outdated`, nothing of the job is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub rows: Vec<RowOutcome>,
    /// Blocks of live references in the job for which there is no index entry. They are queued to be fetched.
    pub missing: Vec<Hash>,
    /// [`Job::block`]: blocks whose references are deleted here; then nothing of the job is written.
    pub refused: Vec<Hash>,
    /// [`Job::release`]: the index entry that was removed.
    pub released: Option<Bytes>,
    /// [`Job::collect`], [`Job::relocate`], [`Job::done`]: what was done, in order.
    pub done: Vec<bool>,
    /// [`Job::forget`]: something was removed; there may be more.
    pub more: bool,
}

/// Why a job was not done. After [`CommitError::Engine`] on a write it is unknown whether it will be there
/// after a restart; otherwise nothing of it is written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    #[error(transparent)]
    Tables(TablesError),
    #[error(transparent)]
    Engine(MetaError),
    #[error("entries of `{0}` follow from rows and may not be written directly")]
    Derived(&'static str),
    #[error("the layout moved on while the write was waiting: nothing of it is written")]
    StaleEpoch,
    #[error("the node is stopping: the write was not done, or its outcome is unknown")]
    Stopped,
}

impl From<TablesError> for CommitError {
    fn from(error: TablesError) -> Self {
        match error {
            TablesError::Meta(e) => Self::Engine(e),
            other => Self::Tables(other),
        }
    }
}

/// What the queue did so far.
#[derive(Debug, Default)]
pub struct Stats {
    jobs: AtomicU64,
    batches: AtomicU64,
    syncs: AtomicU64,
    largest: AtomicU64,
    failed: AtomicU64,
}

/// A reading of [`Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsNow {
    /// Jobs answered, well or not.
    pub jobs: u64,
    /// Batches written; `jobs / batches` is the gain of group commit.
    pub batches: u64,
    /// Batches written with a sync.
    pub syncs: u64,
    /// Most jobs in one batch.
    pub largest: u64,
    /// Jobs answered with an error.
    pub failed: u64,
}

struct Waiting {
    job: Job,
    answer: oneshot::Sender<Result<Outcome, CommitError>>,
    permit: OwnedSemaphorePermit,
}

/// Tells the layout epoch that the node is at.
pub type EpochSource = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The way to write. Cheap to clone; the owner stops when all clones are gone and the queue is empty.
#[derive(Clone)]
pub struct CommitQueue {
    jobs: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    max_bytes: usize,
    stats: Arc<Stats>,
}

impl CommitQueue {
    /// Starts the owner of writes. There must be no other for this engine.
    pub fn start(
        env: &Env,
        engine: Arc<dyn Engine>,
        tables: Tables,
        config: Config,
        epoch: EpochSource,
    ) -> Self {
        let (jobs, waiting) = mpsc::channel(config.queue.max(1));
        let max_bytes = config.queue_bytes.clamp(1, u32::MAX as usize >> 4);
        let stats = Arc::new(Stats::default());
        let owner = Owner { env: env.clone(), engine, tables, config, epoch, stats: stats.clone() };
        env.spawn("commit", owner.run(waiting));
        Self { jobs, bytes: Arc::new(Semaphore::new(max_bytes)), max_bytes, stats }
    }

    /// Queues `job` and waits until it is durable. Once queued it is carried out even if the caller goes away.
    #[tracing::instrument(level = "debug", name = "commit", skip_all)]
    pub async fn submit(&self, job: Job) -> Result<Outcome, CommitError> {
        // A job larger than the whole budget takes all of it: it goes alone rather than never.
        let bytes = job.bytes().clamp(1, self.max_bytes) as u32;
        let permit = self.bytes.clone().acquire_many_owned(bytes).await.map_err(|_| CommitError::Stopped)?;
        let (answer, outcome) = oneshot::channel();
        let waiting = Waiting { job, answer, permit };
        self.jobs.send(waiting).await.map_err(|_| CommitError::Stopped)?;
        outcome.await.map_err(|_| CommitError::Stopped)?
    }

    /// Waits until every job that is being written now, or was queued before, is durable or refused.
    pub async fn barrier(&self) -> Result<(), CommitError> {
        self.submit(Job::entries(Batch::new())).await.map(drop)
    }

    /// What was done so far.
    pub fn stats(&self) -> StatsNow {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        StatsNow {
            jobs: read(&self.stats.jobs),
            batches: read(&self.stats.batches),
            syncs: read(&self.stats.syncs),
            largest: read(&self.stats.largest),
            failed: read(&self.stats.failed),
        }
    }
}

struct Owner {
    env: Env,
    engine: Arc<dyn Engine>,
    tables: Tables,
    config: Config,
    epoch: EpochSource,
    stats: Arc<Stats>,
}

impl Owner {
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        while let Some(first) = waiting.recv().await {
            let mut bytes = first.job.bytes();
            let mut group = vec![first];
            while group.len() < self.config.batch_jobs && bytes < self.config.batch_bytes {
                let Ok(next) = waiting.try_recv() else { break };
                bytes += next.job.bytes();
                group.push(next);
            }
            let writer = Writer {
                engine: self.engine.clone(),
                tables: self.tables,
                fsync: self.config.fsync,
                now_ms: self.env.wall_millis(),
                epoch: self.epoch.clone(),
                stats: self.stats.clone(),
            };
            // Dropped only when the node stops: then the callers' channels close, which tells them.
            if self.env.run_blocking(move || writer.write(group)).await.is_err() {
                return;
            }
        }
    }
}

/// Writes one group; runs where it may block.
struct Writer {
    engine: Arc<dyn Engine>,
    tables: Tables,
    fsync: bool,
    now_ms: u64,
    epoch: EpochSource,
    stats: Arc<Stats>,
}

impl Writer {
    fn write(self, group: Vec<Waiting>) {
        let snapshot = self.engine.snapshot();
        let mut overlay = Overlay::new(&*snapshot);
        let mut results = Vec::with_capacity(group.len());
        let mut callers = Vec::with_capacity(group.len());
        for Waiting { job, answer, permit } in group {
            results.push(self.apply(&mut overlay, job));
            callers.push((answer, permit));
        }
        let written = self.commit(overlay.into_batch());
        self.stats.jobs.fetch_add(callers.len() as u64, Ordering::Relaxed);
        self.stats.largest.fetch_max(callers.len() as u64, Ordering::Relaxed);
        for (result, (answer, permit)) in results.into_iter().zip(callers) {
            // A job that failed by itself wrote nothing, whatever became of the others.
            let result = match (result, &written) {
                (Ok(_), Err(e)) => Err(CommitError::Engine(e.clone())),
                (result, _) => result,
            };
            if result.is_err() {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
            }
            // The caller may have gone away; the write is done all the same.
            let _ = answer.send(result);
            drop(permit);
        }
    }

    fn apply(&self, overlay: &mut Overlay<'_>, job: Job) -> Result<Outcome, CommitError> {
        let derived = job.entries.iter().find(|(space, _, _)| is_derived(*space));
        if let Some((space, _, _)) = derived {
            return Err(CommitError::Derived(space.name()));
        }
        if job.epoch.is_some_and(|epoch| epoch != (self.epoch)()) {
            return Err(CommitError::StaleEpoch);
        }
        let applied = self.tables.apply(overlay, job.mode, &job.rows, self.now_ms)?;
        let mut outcome = Outcome { rows: applied.outcomes, ..Outcome::default() };
        if job.refuse_deleted && !applied.refused.is_empty() {
            overlay.discard();
            return Ok(Outcome { refused: applied.refused, ..outcome });
        }
        if !applied.kept {
            return Ok(outcome);
        }
        overlay.extend(job.entries);
        let done = self.missing(overlay, applied.referred).and_then(|missing| {
            outcome.missing = missing;
            job.step.map_or(Ok(()), |step| self.step(overlay, step, &mut outcome))
        });
        match done {
            Ok(()) => overlay.keep(),
            Err(error) => {
                overlay.discard();
                return Err(error.into());
            }
        }
        Ok(outcome)
    }

    /// Which of the blocks referred to have no index entry; they are queued to be fetched.
    fn missing(&self, overlay: &mut Overlay<'_>, referred: Vec<Hash>) -> Result<Vec<Hash>, TablesError> {
        let mut missing = Vec::new();
        for block in referred {
            if overlay.get(Space::BlockIndex, block.as_bytes())?.is_none() {
                let partition = self.tables.partition(block.as_bytes());
                queue::add(overlay, partition, Work::CheckBlock { block }, self.now_ms);
                missing.push(block);
            }
        }
        Ok(missing)
    }

    fn step(&self, overlay: &mut Overlay<'_>, step: Step, outcome: &mut Outcome) -> Result<(), TablesError> {
        match step {
            Step::Release { block, regardless } => {
                if regardless || !self.tables.is_referred(overlay, &block)? {
                    outcome.released = overlay.get(Space::BlockIndex, block.as_bytes())?;
                    overlay.delete(Space::BlockIndex, block.as_bytes().to_vec());
                }
            }
            Step::Collect(tombstones) => {
                for (table, key, hash) in tombstones {
                    outcome.done.push(self.tables.collect(overlay, table, &key, hash, self.now_ms)?);
                }
            }
            Step::Relocate { block, from, to } => {
                let there = overlay.get(Space::BlockIndex, block.as_bytes())?.is_some_and(|at| at == from);
                if there {
                    match to {
                        Some(to) => overlay.put(Space::BlockIndex, block.as_bytes().to_vec(), to),
                        None => overlay.delete(Space::BlockIndex, block.as_bytes().to_vec()),
                    }
                }
                outcome.done.push(there);
            }
            Step::Forget { partition, limit } => {
                outcome.more = self.tables.forget(overlay, partition, limit, self.now_ms)?;
            }
            Step::Correct(correction) => self.tables.correct(overlay, &correction)?,
            Step::Done(finished) => {
                for (key, entry) in finished {
                    let same =
                        overlay.get(Space::Queue, &key)?.is_some_and(|now| now == codec::encode(&entry));
                    if same {
                        overlay.delete(Space::Queue, key);
                    }
                    outcome.done.push(same);
                }
            }
        }
        Ok(())
    }

    /// Nothing new to write still needs a healthy engine: what was found must be durable.
    fn commit(&self, batch: Batch) -> Result<(), MetaError> {
        if batch.is_empty() {
            return if self.engine.is_poisoned() { Err(MetaError::Poisoned) } else { Ok(()) };
        }
        let span = tracing::debug_span!("fsync", keys = batch.len(), bytes = batch.bytes());
        span.in_scope(|| self.engine.commit(batch, self.fsync))?;
        self.stats.batches.fetch_add(1, Ordering::Relaxed);
        self.stats.syncs.fetch_add(u64::from(self.fsync), Ordering::Relaxed);
        Ok(())
    }
}

/// Keyspaces whose entries only `tables` may make.
fn is_derived(space: Space) -> bool {
    matches!(space, Space::Table(_) | Space::Detail | Space::Counters | Space::Fingerprint)
}
