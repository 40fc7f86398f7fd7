//! Workloads: clients that run operations against a bucket and record them in a history.
//!
//! A workload is a function of a [`Site`] (client, history, seams, stop signal) and a seed; it knows nothing of
//! processes, faults or emulated networks, so the same one runs against real clusters and inside a simulation.
//! Objects carry their generation as user metadata: a reader checks the bytes against what the object claims to
//! be, and the checker checks whether it may be that.

mod keys;
mod mixed;
mod object;

pub use keys::Keys;
pub use mixed::{Mix, mixed};
pub use object::{Observed, observe};

use crate::check::{Fault, Violation};
use crate::client::S3;
use crate::history::History;
use hayloft_common::env::Env;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Failed requests of one kind.
#[derive(Clone, Default)]
pub struct Failure {
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} times, first: {}", self.count, self.first)
    }
}

/// What every client of a workload shares; cheap to clone.
#[derive(Clone)]
pub struct Site {
    pub env: Env,
    pub s3: S3,
    pub history: Arc<History>,
    /// Wrong bytes seen while running.
    pub violations: Arc<Mutex<Vec<Violation>>>,
    /// Failed requests by operation and kind.
    pub failures: Arc<Mutex<BTreeMap<String, Failure>>>,
    /// Requests that succeeded.
    pub done: Arc<AtomicU64>,
    /// How often a read whose connection broke is tried again: 0 unless gateways are killed.
    pub read_retries: u32,
    stop: Arc<AtomicBool>,
}

impl Site {
    /// A site with an empty history.
    pub fn new(env: Env, s3: S3) -> Self {
        Self {
            env,
            s3,
            history: Arc::new(History::new()),
            violations: Arc::default(),
            failures: Arc::default(),
            done: Arc::default(),
            read_retries: 0,
            stop: Arc::default(),
        }
    }

    /// The same history and counts, seen through another client, with a stop signal of its own.
    pub fn through(&self, s3: S3) -> Self {
        Self { s3, stop: Arc::default(), ..self.clone() }
    }

    /// Asks the clients to end after their current operation.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether clients should end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counts a failed request.
    pub fn failed(&self, operation: &str, error: &crate::client::Error) {
        let mut failures = self.failures.lock();
        let failure = failures.entry(format!("{operation}: {}", error.kind())).or_default();
        if failure.count == 0 {
            failure.first = error.to_string();
        }
        failure.count += 1;
    }

    /// Notes wrong content.
    pub fn wrong_content(&self, key: &str, what: String) {
        self.violations.lock().push(Violation { key: key.to_owned(), what: Fault::Content(what) });
    }

    /// Counts a successful request.
    pub fn succeeded(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs futures as tasks of their own, side by side, and returns their results in order. `None` stands for a task
/// that did not end (it panicked, or its node was crashed).
pub async fn together<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    env: &Env,
    name: &'static str,
    work: impl IntoIterator<Item = F>,
) -> Vec<Option<T>> {
    let results: Vec<_> = work
        .into_iter()
        .map(|future| {
            let (send, receive) = tokio::sync::oneshot::channel();
            env.spawn(name, async move {
                // The receiver is gone only if nobody waits any more.
                let _ = send.send(future.await);
            });
            receive
        })
        .collect();
    futures::future::join_all(results).await.into_iter().map(Result::ok).collect()
}
