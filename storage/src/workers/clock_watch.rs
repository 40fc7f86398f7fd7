//! How long the wall clock has run evenly: what dates by it are worth.
//!
//! Dates in the queue are by the wall clock, which may be put forward by years in a moment (a board without a battery
//! after a power cut). What may only be done after a while must not be done early for that: the age of a date is trusted
//! only as far back as the wall clock ran as the monotonic clock does, at most to the start of the process.

use hayloft_common::env::Env;
use parking_lot::Mutex;
use std::time::Duration;

/// Clocks may differ by this much between two looks, and by a hundredth of the time between them.
const TOLERANCE: Duration = Duration::from_secs(1);

/// See the module's head.
#[derive(Default)]
pub struct ClockWatch(Mutex<Option<Watched>>);

#[derive(Clone, Copy)]
struct Watched {
    now: Duration,
    wall_ms: u64,
    even_since: Duration,
}

impl ClockWatch {
    /// Looks at both clocks: for how long they have run evenly, as far as is known.
    pub fn even_for(&self, env: &Env) -> Duration {
        self.look(env.now(), env.wall_millis())
    }

    /// The age of a date by the wall clock, as far as it can be trusted.
    pub fn age(&self, env: &Env, date_ms: u64) -> Duration {
        let even = self.even_for(env);
        Duration::from_millis(env.wall_millis().saturating_sub(date_ms)).min(even)
    }

    fn look(&self, now: Duration, wall_ms: u64) -> Duration {
        let mut seen = self.0.lock();
        let before = seen.unwrap_or(Watched { now, wall_ms, even_since: now });
        let passed = now.saturating_sub(before.now);
        let by_wall = i128::from(wall_ms) - i128::from(before.wall_ms);
        let off = (by_wall - passed.as_millis() as i128).unsigned_abs();
        let even = off <= (TOLERANCE + passed / 100).as_millis();
        let even_since = if even { before.even_since } else { now };
        *seen = Some(Watched { now, wall_ms, even_since });
        now.saturating_sub(even_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_either_way_starts_the_count_anew_and_slow_clocks_do_not() {
        let watch = ClockWatch::default();
        let at = |seconds: u64, wall_ms: u64| watch.look(Duration::from_secs(seconds), wall_ms).as_secs();
        assert_eq!(at(100, 5_000_000), 0);
        assert_eq!(at(160, 5_060_300), 60, "a little fast");
        assert_eq!(at(220, 5_120_000), 120);
        assert_eq!(at(280, 9_999_999_999), 0, "put forward");
        assert_eq!(at(340, 10_000_059_999), 60);
        assert_eq!(at(400, 5_000_000), 0, "put back");
        assert_eq!(at(4000, 5_000_000 + 3_600_000), 3600);
    }
}
