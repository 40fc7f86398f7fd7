//! The simulated clock, randomness and tasks of one host.
//!
//! Time is tokio's paused clock, so a simulated hour costs nothing; a host's wall clock is that time shifted by
//! an offset that may be years and may jump. Blocking work sleeps a modelled time, then runs inline and whole. A
//! crash drops every task of the host, blocking work that has not run among them. A host that stands still (SIGSTOP)
//! polls no task; time goes on, and so does what its kernel does: connections are accepted, bytes queue up.

use hayloft_common::env::{BlockingJob, Clock, Entropy, TaskFuture, TaskHandle, Tasks};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// When every simulation begins, in microseconds since the epoch.
const START_MICROS: u64 = 1_700_000_000_000_000;

/// How long blocking work takes, in microseconds. (tokio's timers tick in milliseconds.)
const BLOCKING_MICROS: std::ops::Range<u64> = 100..3_000;

/// A host's clock.
pub(super) struct SimClock {
    start: Instant,
    offset_micros: AtomicI64,
}

impl SimClock {
    pub(super) fn new(start: Instant, offset_micros: i64) -> Self {
        Self { start, offset_micros: AtomicI64::new(offset_micros) }
    }

    /// Makes the wall clock jump.
    pub(super) fn set_offset(&self, micros: i64) {
        self.offset_micros.store(micros, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn wall_micros(&self) -> u64 {
        let elapsed = self.start.elapsed().as_micros() as u64;
        (START_MICROS + elapsed).saturating_add_signed(self.offset_micros.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A host's randomness, from a seed.
pub(super) struct SimEntropy(Mutex<StdRng>);

impl SimEntropy {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill_bytes(bytes);
    }
}

/// Holds up the tasks of a host that stands still.
#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

/// A task behind its host's gate.
struct Gated {
    gate: Arc<Gate>,
    task: TaskFuture,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.gate.shut.load(Ordering::Relaxed) {
            self.gate.waiting.lock().push(cx.waker().clone());
            return Poll::Pending;
        }
        self.task.as_mut().poll(cx)
    }
}

/// A host's tasks.
#[derive(Clone)]
pub(super) struct SimTasks {
    gate: Arc<Gate>,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    running: Vec<AbortHandle>,
    rng: StdRng,
    dead: bool,
    /// Blocking work takes this many times its usual time,
    slowness: u32,
    /// or this share of it does, chosen at random.
    share: f64,
}

impl SimTasks {
    pub(super) fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let inner = Inner { running: Vec::new(), rng, dead: false, slowness: 1, share: 1.0 };
        Self { gate: Arc::default(), inner: Arc::new(Mutex::new(inner)) }
    }

    /// Makes a share of the blocking work (the disks') `times` as slow as usual.
    pub(super) fn set_slowness(&self, times: u32, share: f64) {
        let mut inner = self.inner.lock();
        (inner.slowness, inner.share) = (times.max(1), share.clamp(0.0, 1.0));
    }

    /// Lets no task run, or all go on.
    pub(super) fn pause(&self, paused: bool) {
        self.gate.shut.store(paused, Ordering::Relaxed);
        if !paused {
            let waiting = std::mem::take(&mut *self.gate.waiting.lock());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Drops every task; nothing can be started afterwards.
    pub(super) fn crash(&self) {
        let running = {
            let mut inner = self.inner.lock();
            inner.dead = true;
            std::mem::take(&mut inner.running)
        };
        running.iter().for_each(AbortHandle::abort);
    }
}

impl Tasks for SimTasks {
    #[expect(clippy::disallowed_methods, reason = "the simulated version of the task seam")]
    fn spawn(&self, _name: &'static str, task: TaskFuture) -> TaskHandle {
        let mut inner = self.inner.lock();
        if inner.dead {
            return TaskHandle::new(|| {});
        }
        let handle = tokio::spawn(Gated { gate: self.gate.clone(), task }).abort_handle();
        if inner.running.len() > 512 {
            inner.running.retain(|task| !task.is_finished());
        }
        inner.running.push(handle.clone());
        TaskHandle::new(move || handle.abort())
    }

    fn run_blocking(&self, job: BlockingJob) {
        let pause = {
            let mut inner = self.inner.lock();
            let usual = Duration::from_micros(inner.rng.random_range(BLOCKING_MICROS));
            let share = inner.share;
            if inner.slowness > 1 && inner.rng.random_bool(share) { usual * inner.slowness } else { usual }
        };
        self.spawn(
            "blocking",
            Box::pin(async move {
                tokio::time::sleep(pause).await;
                job();
            }),
        );
    }
}
