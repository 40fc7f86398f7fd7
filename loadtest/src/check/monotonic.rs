//! Reads that do not go back: whether reads and writes of a key have one common order in time.
//!
//! For buckets with monotonic reads, and for a store at rest. Each present state is written once, so a history
//! is linearizable iff its zones are compatible (Gibbons and Korach, "Testing shared memories", 1997): a write
//! and the reads of it form a cluster; `f` is the first end in it and `s` the last start; a zone with `f < s`
//! ("forward": the value was certainly there from `f` to `s`) must not overlap another forward zone nor contain
//! a backward zone. Absence may be written many times, so deletes take no part: what this finds is wrong for
//! sure, some wrongs around deletes it does not find.
//!
//! One thing is allowed beyond that: until it is acknowledged, a write may take effect more than once. A gateway that is
//! told of a newer row writes its own again above it, so others may see it, then the newer one, then it again. So a read
//! of a write that is not acknowledged is a zone of its own.

use super::{Fault, Violation};
use crate::history::{KeyHistory, Outcome, State};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy)]
struct Zone {
    state: State,
    first_end: Duration,
    last_start: Duration,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_start
    }

    /// Whether a forward zone overlaps another one, or contains a backward one.
    fn conflicts(&self, other: &Self) -> bool {
        // The same comparison says "overlaps" of a forward zone and "lies within" of a backward one, whose ends
        // are the other way round.
        self.is_forward() && self.first_end < other.last_start && other.first_end < self.last_start
    }
}

/// The zones of a key; see the head.
fn zones(key: &KeyHistory) -> Vec<Zone> {
    let mut zones = Vec::new();
    let mut acknowledged: BTreeMap<State, Zone> = BTreeMap::new();
    for write in &key.writes {
        if let (Outcome::Acked, Some(end)) = (write.outcome, write.end)
            && write.state != State::Absent
        {
            let zone = acknowledged.entry(write.state).or_insert(Zone {
                state: write.state,
                first_end: end,
                last_start: write.start,
            });
            zone.first_end = zone.first_end.min(end);
            zone.last_start = zone.last_start.max(write.start);
        }
    }
    for read in key.reads.iter().filter(|read| read.state != State::Absent) {
        match acknowledged.get_mut(&read.state).filter(|zone| zone.first_end < read.start) {
            Some(zone) => zone.last_start = zone.last_start.max(read.start),
            None => zones.push(Zone { state: read.state, first_end: read.end, last_start: read.start }),
        }
    }
    zones.extend(acknowledged.into_values());
    zones
}

/// Pairs of states of one key whose reads cannot be put in order.
pub fn monotonic(name: &str, key: &KeyHistory) -> Vec<Violation> {
    let zones = zones(key);
    let mut found = Vec::new();
    for (index, zone) in zones.iter().enumerate() {
        let rest = zones.iter().enumerate();
        let others = rest.filter(|(_, candidate)| candidate.state != zone.state);
        let clash = others.into_iter().find(|(other, candidate)| {
            zone.conflicts(candidate) && (!candidate.is_forward() || *other > index)
        });
        if let Some((_, other)) = clash {
            let (newer, older) =
                if zone.last_start >= other.last_start { (other, zone) } else { (zone, other) };
            let what = Fault::WentBack { newer: newer.state, older: older.state };
            found.push(Violation { key: name.to_owned(), what });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Read, Write};

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const fn generation(number: u64) -> State {
        State::Present { generation: number, len: 1 }
    }

    fn judge(writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)]) -> usize {
        let key = KeyHistory {
            writes: writes
                .iter()
                .map(|(number, start, end)| Write {
                    state: generation(*number),
                    start: ms(*start),
                    end: Some(ms(*end)),
                    outcome: Outcome::Acked,
                })
                .collect(),
            reads: reads
                .iter()
                .map(|(number, start, end)| Read {
                    state: generation(*number),
                    start: ms(*start),
                    end: ms(*end),
                })
                .collect(),
            absence_superseded: false,
        };
        monotonic("k", &key).len()
    }

    #[test]
    fn reads_in_order_are_fine() {
        assert_eq!(judge(&[(1, 1, 2), (2, 3, 9)], &[(1, 3, 4), (1, 4, 5), (2, 6, 7), (2, 10, 11)]), 0);
    }

    #[test]
    fn a_read_that_goes_back_during_a_write_is_found() {
        assert_eq!(judge(&[(1, 1, 2), (2, 3, 20)], &[(2, 5, 6), (1, 8, 9)]), 1);
    }

    #[test]
    fn readers_that_disagree_on_two_concurrent_writes_are_found() {
        assert_eq!(judge(&[(1, 1, 5), (2, 1, 5)], &[(1, 6, 7), (2, 8, 9), (1, 10, 11)]), 1);
        assert_eq!(judge(&[(1, 1, 5), (2, 1, 5)], &[(2, 6, 7), (2, 10, 11)]), 0);
    }

    #[test]
    fn a_write_may_be_seen_again_until_it_is_acknowledged_and_not_after_that() {
        assert_eq!(judge(&[(1, 1, 20), (2, 3, 6)], &[(1, 4, 5), (2, 7, 8), (2, 9, 10), (1, 21, 22)]), 0);
        assert_eq!(judge(&[(1, 1, 20), (2, 3, 6)], &[(2, 7, 8), (1, 21, 22), (2, 23, 24), (1, 25, 26)]), 1);
    }

    #[test]
    fn overlapping_reads_may_disagree() {
        assert_eq!(judge(&[(1, 1, 2), (2, 3, 20)], &[(2, 5, 9), (1, 4, 8)]), 0);
    }
}
