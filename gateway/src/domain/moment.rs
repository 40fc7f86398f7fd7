//! How long ago something was, by two clocks: the larger of what the monotonic and the wall clock say. The one stands
//! still while a machine sleeps or a virtual one is paused, the other may be set back. What must not happen late asks
//! for the age; that a wall clock which jumps forward makes things look older costs a retry.

use hayloft_common::env::Env;
use std::time::Duration;

/// A point in time, for ages within this process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    monotonic: Duration,
    wall_ms: u64,
}

impl Moment {
    pub(super) fn now(env: &Env) -> Self {
        Self { monotonic: env.now(), wall_ms: env.wall_millis() }
    }

    /// The time since, at least.
    pub(super) fn age(&self, env: &Env) -> Duration {
        let wall = Duration::from_millis(env.wall_millis().saturating_sub(self.wall_ms));
        env.now().saturating_sub(self.monotonic).max(wall)
    }

    /// The earlier one, by each clock.
    pub(super) fn min(self, other: Self) -> Self {
        Self { monotonic: self.monotonic.min(other.monotonic), wall_ms: self.wall_ms.min(other.wall_ms) }
    }
}
