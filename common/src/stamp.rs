//! Order of writes: a hybrid logical timestamp, then a random writer number (design §4).
//!
//! A [`Stamp`] orders writes of one row. It need not be near real time: a replica that holds something
//! newer answers `Outdated(stamp)` and the writer re-issues its write right above. So correctness never
//! depends on clocks; they only make the first try succeed.

use crate::env::Env;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The largest time a stamp may carry, in microseconds (some 146,000 years): leaves room to go above any
/// stamp ever accepted, however wrong the clock that made it.
pub const MAX_MICROS: u64 = u64::MAX / 4;

/// The place of a write in the total order of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// Hybrid logical time: microseconds since the Unix epoch, moved up when needed.
    pub micros: u64,
    /// Random per write operation: two operations never share a stamp. Even for plain writes, odd for conditional ones
    /// ([`crate::cas::ballot`]); any number in rows of earlier releases.
    pub writer: u64,
}

impl Stamp {
    /// Below every stamp that a clock makes.
    pub const ZERO: Self = Self { micros: 0, writer: 0 };

    /// Whether a peer may send this stamp.
    pub fn is_valid(&self) -> bool {
        self.micros <= MAX_MICROS
    }
}

/// A node's hybrid clock: strictly increasing within the process, close to the wall clock.
///
/// It does not follow the stamps of others: one gateway ten years ahead must not carry all others with
/// it. A write that has to go above a given stamp says so ([`HybridClock::above`]).
#[derive(Clone)]
pub struct HybridClock {
    env: Env,
    last: Arc<Mutex<u64>>,
}

impl HybridClock {
    pub fn new(env: Env) -> Self {
        Self { env, last: Arc::new(Mutex::new(0)) }
    }

    /// A new stamp for a plain write, above all that this clock gave before.
    pub fn next(&self) -> Stamp {
        let wall = self.env.wall_micros().min(MAX_MICROS / 2);
        let mut last = self.last.lock();
        *last = wall.max(*last + 1);
        Stamp { micros: *last, writer: self.env.random_u64() & !1 }
    }

    /// A new stamp that is also above `floor`.
    pub fn above(&self, floor: Stamp) -> Stamp {
        let next = self.next();
        Stamp { micros: next.micros.max(floor.micros + 1), writer: next.writer }
    }
}
