//! What a node does by itself: background workers, and the registry through which an operator sees and steers them.
//!
//! A [`Worker`] does one bounded piece of work per [`Worker::step`] and says when it wants the next turn; all waiting,
//! pausing, slowing down (tranquility) and counting of errors is here. A worker keeps what must outlive the process in
//! the metadata engine, never in itself: it may be stopped between any two awaits.

mod block_copies;
pub mod block_scan;
pub mod block_work;
pub mod check_refs;
pub mod clock_watch;
pub mod compact;
pub mod compact_metadata;
pub mod drop_versions;
pub mod forget;
pub mod layout_driver;
pub mod layout_sync;
mod members;
pub mod needed;
pub mod pull;
mod queue_reader;
pub mod rebalance;
pub mod recount;
pub mod reference_scan;
mod references;
pub mod resync;
pub mod scrub;
pub mod settings;
pub mod table_sync;
pub mod tombstones;
pub mod verify;
mod versions;

pub use settings::{MESSAGE_LIFETIME, Settings};

use crate::serve::Node;
use async_trait::async_trait;
use hayloft_proto::error::RpcError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Longest wait after errors in a row; the first is a second, each further one twice as long.
const MAX_BACK_OFF: Duration = Duration::from_mins(1);
/// Highest tranquility: sleep this many times as long as the work took.
pub const MAX_TRANQUILITY: u32 = 100;

/// When a worker wants its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Now: there is more to do.
    Again,
    /// After this long, or when it is woken.
    After(Duration),
}

/// A failed step. It is counted, shown, and tried again after a pause.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error(transparent)]
    Tables(#[from] crate::tables::TablesError),
    #[error(transparent)]
    Meta(#[from] crate::meta::MetaError),
    #[error(transparent)]
    Commit(#[from] crate::commit::CommitError),
    #[error(transparent)]
    Block(#[from] crate::blocks::BlockError),
    #[error("no other node that should hold the block has a good copy")]
    NoCopyElsewhere,
    #[error("{0}")]
    Other(String),
}

/// One kind of background work on one node.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Its name for the operator; unique on a node. Its tranquility is the variable `NAME-tranquility`.
    fn name(&self) -> &'static str;

    /// How many times as long as it worked it rests between two steps, unless set otherwise.
    fn tranquility(&self) -> u32 {
        0
    }

    /// A bounded piece of work.
    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError>;
}

/// What a worker says of itself while it works.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Done and all of the present round, in the worker's own unit (blocks, partitions, bytes).
    pub progress: Option<(u64, u64)>,
    /// Waiting to be done, if known.
    pub queue: Option<u64>,
    /// Items and bytes done since the node started.
    pub items: u64,
    pub bytes: u64,
    /// When the present round began, by the node's monotonic clock; with `progress` it gives rate and ETA.
    pub round_began: Option<Duration>,
    /// Lines for the operator.
    pub notes: Vec<String>,
    pub errors: u64,
    pub errors_in_a_row: u32,
    /// The last error and when, by the node's monotonic clock.
    pub last_error: Option<(String, Duration)>,
    pub busy: bool,
}

/// A worker's way to say how far it is.
#[derive(Clone, Default)]
pub struct Report(Arc<Mutex<Status>>);

impl Report {
    /// `done` of `all` of the present round.
    pub fn progress(&self, done: u64, all: u64) {
        self.0.lock().progress = Some((done, all));
    }

    /// A new round begins at `now`.
    pub fn begin(&self, now: Duration, all: u64) {
        let mut status = self.0.lock();
        status.progress = Some((0, all));
        status.round_began = Some(now);
    }

    /// Items and bytes done just now.
    pub fn count(&self, items: u64, bytes: u64) {
        let mut status = self.0.lock();
        status.items += items;
        status.bytes += bytes;
    }

    /// How much is waiting.
    pub fn queue(&self, waiting: u64) {
        self.0.lock().queue = Some(waiting);
    }

    /// Replaces the lines shown to the operator.
    pub fn notes(&self, notes: Vec<String>) {
        self.0.lock().notes = notes;
    }

    /// An error that did not end the step.
    pub fn error(&self, now: Duration, error: &impl ToString) {
        let mut status = self.0.lock();
        status.errors += 1;
        status.last_error = Some((error.to_string(), now));
    }

    /// A copy of what is known.
    pub fn status(&self) -> Status {
        self.0.lock().clone()
    }
}

/// A started worker.
pub struct Slot {
    pub name: &'static str,
    pub report: Report,
    tranquility: AtomicU32,
    paused: AtomicBool,
    wake: Notify,
}

impl Slot {
    pub fn tranquility(&self) -> u32 {
        self.tranquility.load(Ordering::Relaxed)
    }

    pub fn set_tranquility(&self, times: u32) {
        self.tranquility.store(times.min(MAX_TRANQUILITY), Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Gives the worker a turn now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

/// The workers of a node.
#[derive(Default)]
pub struct Workers(Mutex<BTreeMap<&'static str, Arc<Slot>>>);

impl Workers {
    /// All of them, in order of name.
    pub fn list(&self) -> Vec<Arc<Slot>> {
        self.0.lock().values().cloned().collect()
    }

    pub fn get(&self, name: &str) -> Option<Arc<Slot>> {
        self.0.lock().get(name).cloned()
    }

    /// Gives a worker a turn now; nothing if there is none of that name.
    pub fn wake(&self, name: &str) {
        if let Some(slot) = self.get(name) {
            slot.wake();
        }
    }

    /// Starts a worker; it ends with the node's tasks.
    pub fn start(&self, node: &Arc<Node>, worker: impl Worker) {
        let slot = Arc::new(Slot {
            name: worker.name(),
            report: Report::default(),
            tranquility: AtomicU32::new(worker.tranquility()),
            paused: AtomicBool::new(false),
            wake: Notify::new(),
        });
        self.0.lock().insert(slot.name, slot.clone());
        let env = node.env.clone();
        env.spawn(slot.name, run(node.clone(), worker, slot));
    }
}

async fn run(node: Arc<Node>, worker: impl Worker, slot: Arc<Slot>) {
    loop {
        while slot.is_paused() {
            slot.wake.notified().await;
        }
        let began = node.env.now();
        slot.report.0.lock().busy = true;
        let done = worker.step(&node, &slot.report).await;
        let now = node.env.now();
        let pause = {
            let mut status = slot.report.0.lock();
            let pause = match &done {
                Ok(Next::Again) => now.saturating_sub(began) * slot.tranquility(),
                Ok(Next::After(pause)) => *pause,
                Err(_) => {
                    let doublings = status.errors_in_a_row.min(6);
                    (Duration::from_secs(1) * (1 << doublings)).min(MAX_BACK_OFF)
                }
            };
            status.busy = matches!(done, Ok(Next::Again));
            match &done {
                Ok(_) => status.errors_in_a_row = 0,
                Err(error) => {
                    status.errors += 1;
                    status.errors_in_a_row = status.errors_in_a_row.saturating_add(1);
                    status.last_error = Some((error.to_string(), now));
                }
            }
            pause
        };
        if let Err(error) = &done {
            tracing::warn!(worker = slot.name, %error, "background work failed; it is tried again");
        }
        match done {
            // Others get a turn even if this worker never waits for anything.
            Ok(Next::Again) if pause.is_zero() => tokio::task::yield_now().await,
            Ok(Next::Again) => tokio::time::sleep(pause).await,
            // Woken early or not: both lead to the next step.
            _ => drop(tokio::time::timeout(pause, slot.wake.notified()).await),
        }
    }
}
