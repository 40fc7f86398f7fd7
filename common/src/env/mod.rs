//! The seams to the outside world: clock, randomness, tasks and network (design §10).
//!
//! Every daemon receives one [`Env`] and touches the world only through it, so that the simulator can
//! run the whole stack in one thread with a clock, a network and a random generator of its own.
//! The lint `disallowed-methods` keeps direct calls out of the other crates.
//!
//! Timers (`tokio::time::sleep`, `timeout`) are allowed everywhere: they follow tokio's clock, which the
//! simulator pauses. `select!` must be `biased`: without it tokio draws a random branch.

mod clock;
mod entropy;
mod net;
mod tasks;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use clock::{Clock, RealClock};
pub use entropy::{Entropy, RealEntropy};
pub use net::{BoxStream, ByteStream, Listener, Net, RealNet};
pub use tasks::{BlockingJob, RealTasks, TaskFuture, TaskHandle, Tasks};

/// All the seams of one node, cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub tasks: Arc<dyn Tasks>,
    pub net: Arc<dyn Net>,
}

/// Blocking work did not finish: the node is shutting down, or the work panicked.
#[derive(Debug, thiserror::Error)]
#[error("blocking work was dropped: the node is stopping or the work panicked")]
pub struct Dropped;

impl Env {
    /// The operating system's clock, randomness, tokio tasks and TCP.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(RealClock::new(0)),
            entropy: Arc::new(RealEntropy),
            tasks: Arc::new(RealTasks),
            net: Arc::new(RealNet),
        }
    }

    /// As [`Env::real`], with a wall clock that is wrong by `offset_ms` (a test aid: see the daemons'
    /// `--clock-offset-ms`).
    pub fn real_with_clock_offset(offset_ms: i64) -> Self {
        Self { clock: Arc::new(RealClock::new(offset_ms)), ..Self::real() }
    }

    /// Microseconds since the Unix epoch, as this node believes; may be wrong by years and may jump.
    pub fn wall_micros(&self) -> u64 {
        self.clock.wall_micros()
    }

    /// Milliseconds since the Unix epoch, as this node believes.
    pub fn wall_millis(&self) -> u64 {
        self.clock.wall_micros() / 1000
    }

    /// Monotonic time since some fixed point in this process; for durations only.
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// A random `u64`.
    pub fn random_u64(&self) -> u64 {
        u64::from_le_bytes(self.random_bytes())
    }

    /// `N` random bytes, fit for identifiers and secrets.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// Starts a task that belongs to this node and dies with it. `name` is for people.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle {
        self.tasks.spawn(name, Box::pin(task))
    }

    /// Runs `work` where it may block (a thread pool; inline in the simulator) and returns its result.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Dropped> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.tasks.run_blocking(Box::new(move || {
            // The caller may have given up: then nobody wants the result.
            let _ = tx.send(work());
        }));
        rx.await.map_err(|_| Dropped)
    }
}

/// Ready at SIGTERM or Ctrl-C.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    // Biased: both mean the same.
    tokio::select! { biased;
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
}
