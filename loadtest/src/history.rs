//! What a workload did: every operation with its start, its end and what is known of its result.
//!
//! The history is the only memory of a test. It holds no content: a generation and a length name the bytes
//! (see [`crate::client::Content`]). Times are those of one clock, the tester's ([`Duration`] since its start).
//! Judging a history is the business of [`crate::check`].

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A write is named by a number that no other write of the test has.
pub type Generation = u64;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Absent,
    Present { generation: Generation, len: u64 },
}

/// What is known of a write's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Acked,
    /// Surely without effect.
    Refused,
    /// It may have happened, or happen later: up to `end` of the write, if that is given.
    Unknown,
}

/// A put (also a completed multipart upload) or a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// What it makes of the key.
    pub state: State,
    pub start: Duration,
    /// When it ended; `None`: it may still take effect at any time.
    pub end: Option<Duration>,
    pub outcome: Outcome,
}

/// A read that got an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub state: State,
    pub start: Duration,
    pub end: Duration,
}

/// Everything that happened to one key since it was absent, or since its `base`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyHistory {
    /// Writes in the order of their start.
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    /// A write of the past has superseded absence: the key was not new when `writes` begins.
    pub absence_superseded: bool,
}

/// The histories of all keys.
#[derive(Default)]
pub struct History {
    keys: Mutex<BTreeMap<String, KeyHistory>>,
    next_generation: AtomicU64,
}

/// A write that was begun and not yet ended.
#[must_use]
pub struct Pending {
    key: String,
    index: usize,
}

impl History {
    /// A history in which every key is absent.
    pub fn new() -> Self {
        Self::default()
    }

    /// A generation that no other write has; starts at 1.
    pub fn generation(&self) -> Generation {
        self.next_generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Records that a write is about to be sent. Until it is ended it counts as unknown.
    pub fn begin(&self, key: &str, state: State, now: Duration) -> Pending {
        let mut keys = self.keys.lock();
        let history = keys.entry(key.to_owned()).or_default();
        history.writes.push(Write { state, start: now, end: None, outcome: Outcome::Unknown });
        Pending { key: key.to_owned(), index: history.writes.len() - 1 }
    }

    /// Records how a write ended. An unknown one stays open: it may take effect later.
    pub fn end(&self, pending: Pending, outcome: Outcome, now: Duration) {
        if let Some(write) =
            self.keys.lock().get_mut(&pending.key).and_then(|key| key.writes.get_mut(pending.index))
        {
            write.outcome = outcome;
            write.end = (outcome != Outcome::Unknown).then_some(now);
        }
    }

    /// Records a read that got an answer.
    pub fn read(&self, key: &str, state: State, start: Duration, end: Duration) {
        let mut keys = self.keys.lock();
        keys.entry(key.to_owned()).or_default().reads.push(Read { state, start, end });
    }

    /// Every unknown write is over by `now`: all processes that could still carry it out were killed, and the
    /// clocks that stamp writes agree. Call only when no operation is pending.
    pub fn close_unknown(&self, now: Duration) {
        for history in self.keys.lock().values_mut() {
            for write in &mut history.writes {
                write.end.get_or_insert(now);
            }
        }
    }

    /// The histories as they are now.
    pub fn snapshot(&self) -> BTreeMap<String, KeyHistory> {
        self.keys.lock().clone()
    }

    /// The writes, without the reads, of all keys that begin with `prefix`, as they are now.
    pub fn writes_under(&self, prefix: &str) -> BTreeMap<String, KeyHistory> {
        let keys = self.keys.lock();
        let under = keys.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        under
            .map(|(name, key)| {
                let KeyHistory { writes, absence_superseded, .. } = key;
                let writes = writes.clone();
                let absence_superseded = *absence_superseded;
                (name.clone(), KeyHistory { writes, reads: Vec::new(), absence_superseded })
            })
            .collect()
    }

    /// Bytes of the objects under `prefix`, going by the last acknowledged write of each.
    pub fn live_bytes(&self, prefix: &str) -> u64 {
        let keys = self.keys.lock();
        let under = keys.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        let last = |key: &KeyHistory| {
            let acked = key.writes.iter().rev().find(|write| write.outcome == Outcome::Acked);
            acked.map_or(0, |write| match write.state {
                State::Present { len, .. } => len,
                State::Absent => 0,
            })
        };
        under.map(|(_, key)| last(key)).sum()
    }

    /// Puts shortened histories in place (see [`crate::check::forget`]). Call only when no operation is pending.
    pub fn replace(&self, keys: BTreeMap<String, KeyHistory>) {
        *self.keys.lock() = keys;
    }

    /// Operations recorded and not forgotten: writes, reads.
    pub fn counts(&self) -> (usize, usize) {
        let keys = self.keys.lock();
        keys.values().fold((0, 0), |sum, key| (sum.0 + key.writes.len(), sum.1 + key.reads.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn writes_stay_unknown_until_ended_and_open_until_closed() {
        let history = History::new();
        let state = State::Present { generation: history.generation(), len: 3 };
        let first = history.begin("k", state, ms(1));
        let second = history.begin("k", State::Absent, ms(2));
        history.end(first, Outcome::Acked, ms(3));
        history.end(second, Outcome::Unknown, ms(4));
        let writes = history.snapshot()["k"].writes.clone();
        assert_eq!(writes[0], Write { state, start: ms(1), end: Some(ms(3)), outcome: Outcome::Acked });
        assert_eq!((writes[1].end, writes[1].outcome), (None, Outcome::Unknown));
        history.close_unknown(ms(9));
        assert_eq!(history.snapshot()["k"].writes[1].end, Some(ms(9)));
    }
}
