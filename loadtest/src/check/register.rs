//! Read-after-write for one key: a key is a register that starts absent.
//!
//! A read may give what a write made of the key if the write began before the read ended and no acknowledged
//! write lies wholly between the two: begun after the first was over, ended before the read began. Writes whose
//! result is unknown may have happened or not; while they are open they may happen at any later time. Deletes
//! are writes of absence.

use super::{Fault, Violation};
use crate::history::{KeyHistory, Outcome, Read, State, Write};
use std::time::Duration;

/// Whether an acknowledged write of `writes` lies wholly after `end` and before `before`.
fn superseded(writes: &[Write], end: Option<Duration>, before: Duration) -> bool {
    let Some(end) = end else { return false };
    writes.iter().any(|later| {
        later.outcome == Outcome::Acked && later.start > end && later.end.is_some_and(|done| done < before)
    })
}

/// What a read between `start` and `end` may give, without repetition.
pub fn states_at(key: &KeyHistory, start: Duration, end: Duration) -> Vec<State> {
    let mut states = Vec::new();
    let acked_before =
        |write: &Write| write.outcome == Outcome::Acked && write.end.is_some_and(|done| done < start);
    if !key.absence_superseded && !key.writes.iter().any(acked_before) {
        states.push(State::Absent);
    }
    for write in &key.writes {
        if write.outcome != Outcome::Refused
            && write.start < end
            && !superseded(&key.writes, write.end, start)
            && !states.contains(&write.state)
        {
            states.push(write.state);
        }
    }
    states
}

/// Whether a read agrees with the writes of its key.
pub fn allowed(key: &KeyHistory, read: &Read) -> bool {
    states_at(key, read.start, read.end).contains(&read.state)
}

/// All reads of a key that do not agree with its writes.
pub fn reads(name: &str, key: &KeyHistory) -> Vec<Violation> {
    let wrong = key.reads.iter().filter(|read| !allowed(key, read));
    wrong
        .map(|read| Violation {
            key: name.to_owned(),
            what: Fault::Read { read: *read, allowed: states_at(key, read.start, read.end) },
        })
        .collect()
}

/// The history that is left when nothing will be asked any more about times before `now`: without reads, and
/// without writes that no read from `now` on may give.
pub fn forget(key: &KeyHistory, now: Duration) -> KeyHistory {
    let acked = |write: &&Write| write.outcome == Outcome::Acked && write.end.is_some_and(|end| end < now);
    let still_counts =
        |write: &&Write| write.outcome != Outcome::Refused && !superseded(&key.writes, write.end, now);
    KeyHistory {
        writes: key.writes.iter().filter(still_counts).copied().collect(),
        reads: Vec::new(),
        absence_superseded: key.absence_superseded || key.writes.iter().any(|write| acked(&write)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const fn generation(number: u64) -> State {
        State::Present { generation: number, len: 1 }
    }

    fn acked(state: State, start: u64, end: u64) -> Write {
        Write { state, start: ms(start), end: Some(ms(end)), outcome: Outcome::Acked }
    }

    fn unknown(state: State, start: u64, end: Option<u64>) -> Write {
        Write { state, start: ms(start), end: end.map(ms), outcome: Outcome::Unknown }
    }

    fn judge(writes: &[Write], state: State, start: u64, end: u64) -> bool {
        let key = KeyHistory { writes: writes.to_vec(), ..KeyHistory::default() };
        allowed(&key, &Read { state, start: ms(start), end: ms(end) })
    }

    #[test]
    fn an_acknowledged_write_must_be_read() {
        let history = [acked(generation(1), 1, 2)];
        assert!(judge(&history, generation(1), 3, 4));
        assert!(!judge(&history, State::Absent, 3, 4), "lost write");
        assert!(!judge(&history, generation(9), 3, 4), "nobody wrote this");
        assert!(
            !judge(&history, State::Present { generation: 1, len: 2 }, 3, 4),
            "a torn write of another length"
        );
    }

    #[test]
    fn an_overwritten_value_is_stale() {
        let history = [acked(generation(1), 1, 2), acked(generation(2), 3, 4)];
        assert!(judge(&history, generation(2), 5, 6));
        assert!(!judge(&history, generation(1), 5, 6));
        assert!(judge(&history, generation(1), 3, 6), "the read began before the overwrite ended");
    }

    #[test]
    fn a_deleted_object_stays_deleted() {
        let history = [acked(generation(1), 1, 2), acked(State::Absent, 3, 4)];
        assert!(judge(&history, State::Absent, 5, 6));
        assert!(!judge(&history, generation(1), 5, 6), "resurrection");
    }

    #[test]
    fn concurrent_writes_may_win_in_either_order() {
        let history = [acked(generation(1), 1, 5), acked(generation(2), 2, 4)];
        assert!(judge(&history, generation(1), 6, 7) && judge(&history, generation(2), 6, 7));
        assert!(!judge(&history, State::Absent, 6, 7));
    }

    #[test]
    fn an_unknown_write_may_be_there_or_not() {
        let history = [acked(generation(1), 1, 2), unknown(generation(2), 3, None)];
        assert!(judge(&history, generation(1), 5, 6) && judge(&history, generation(2), 5, 6));
        assert!(!judge(&history, State::Absent, 5, 6));
    }

    #[test]
    fn an_open_unknown_write_may_surface_late_but_a_closed_one_may_not() {
        let later = acked(generation(3), 7, 8);
        let open = [acked(generation(1), 1, 2), unknown(generation(2), 3, None), later];
        assert!(judge(&open, generation(2), 9, 10));
        let closed = [acked(generation(1), 1, 2), unknown(generation(2), 3, Some(5)), later];
        assert!(!judge(&closed, generation(2), 9, 10));
    }

    #[test]
    fn a_refused_write_and_a_future_write_are_never_read() {
        let refused = Write { outcome: Outcome::Refused, ..acked(generation(1), 1, 2) };
        assert!(!judge(&[refused], generation(1), 3, 4));
        assert!(!judge(&[acked(generation(1), 5, 6)], generation(1), 3, 4));
    }

    #[test]
    fn all_wrong_reads_are_reported() {
        let read = |state, start| Read { state, start: ms(start), end: ms(start + 1) };
        let key = KeyHistory {
            writes: vec![acked(generation(1), 1, 2)],
            reads: vec![read(generation(1), 3), read(State::Absent, 5), read(generation(2), 7)],
            absence_superseded: false,
        };
        assert_eq!(reads("k", &key).len(), 2);
    }

    proptest! {
        #[test]
        fn forgetting_changes_no_later_judgement(
            writes in prop::collection::vec((0u64..8, 0u64..20, 0u64..8, 0u8..4), 0..8),
            at in 28u64..40,
        ) {
            let mut writes: Vec<_> = writes.into_iter().map(|(number, start, length, kind)| Write {
                state: if number == 0 { State::Absent } else { generation(number) },
                start: ms(start),
                end: (kind != 3).then(|| ms(start + length)),
                outcome: [Outcome::Acked, Outcome::Refused, Outcome::Unknown, Outcome::Unknown][kind as usize],
            }).collect();
            writes.sort_by_key(|write| write.start);
            let key = KeyHistory { writes, ..KeyHistory::default() };
            let short = forget(&key, ms(28));
            let sorted = |key: &KeyHistory| {
                let mut states = states_at(key, ms(at), ms(at + 1));
                states.sort();
                states
            };
            prop_assert_eq!(sorted(&key), sorted(&short));
            prop_assert_eq!(&forget(&short, ms(28)), &short);
            prop_assert!(!sorted(&key).is_empty());
        }
    }
}
