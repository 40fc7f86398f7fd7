//! The clock seam. Real time is read here and nowhere else.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a node gets its time from.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since the Unix epoch, as this node believes.
    fn wall_micros(&self) -> u64;
    /// Monotonic time since a fixed point in this process.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks, the wall clock shifted by a fixed offset (0 in production).
pub struct RealClock {
    start: Instant,
    offset_ms: i64,
}

impl RealClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the real clock")]
    pub fn new(offset_ms: i64) -> Self {
        Self { start: Instant::now(), offset_ms }
    }
}

impl Clock for RealClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the real clock")]
    fn wall_micros(&self) -> u64 {
        // A clock before 1970 reads as 0: the hybrid clock still moves forward from there.
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        u64::try_from(micros)
            .unwrap_or(u64::MAX / 2)
            .saturating_add_signed(self.offset_ms.saturating_mul(1000))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
