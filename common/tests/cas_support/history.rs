//! What clients saw, and whether it is linearizable: a search over all orders, after Wing and Gong ("Testing and Verifying
//! Concurrent Objects", 1993), for histories of a dozen operations on one register.

use std::collections::BTreeSet;

/// A value; `None`: nothing is there.
pub(crate) type Value = Option<u8>;

/// What an operation asks of what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum If {
    Always,
    Absent,
    Is(u8),
    /// Never holds: a linearizable read.
    Never,
}

impl If {
    pub(crate) fn holds(self, value: Value) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => value.is_none(),
            Self::Is(wanted) => value == Some(wanted),
            Self::Never => false,
        }
    }
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Done,
    /// The condition failed on this.
    Failed(Value),
    /// Nothing: it may have happened, or may happen at any later time, or never.
    Unknown,
}

/// Sets the value to `new` if the condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) when: If,
    pub(crate) new: Value,
    pub(crate) invoked: usize,
    pub(crate) returned: usize,
    pub(crate) outcome: Outcome,
}

/// Whether there is an order of the operations, each at a moment between its invocation and its return, that explains all
/// outcomes, starting from nothing.
pub(crate) fn is_linearizable(history: &[Seen]) -> bool {
    assert!(history.len() < 32);
    search(history, 0, None, &mut BTreeSet::new())
}

fn search(history: &[Seen], done: u32, value: Value, known: &mut BTreeSet<(u32, Value)>) -> bool {
    let left = |i: &usize| done & (1 << i) == 0;
    if (0..history.len()).filter(left).all(|i| history[i].outcome == Outcome::Unknown) {
        return true;
    }
    if !known.insert((done, value)) {
        return false;
    }
    let ends =
        |i: usize| if history[i].outcome == Outcome::Unknown { usize::MAX } else { history[i].returned };
    let first_end = (0..history.len()).filter(left).map(ends).min().unwrap_or(usize::MAX);
    (0..history.len()).filter(left).filter(|i| history[*i].invoked < first_end).any(|i| {
        let op = &history[i];
        let after = match op.outcome {
            // That an unknown one never happens is covered by leaving it to the end.
            Outcome::Done | Outcome::Unknown if op.when.holds(value) => op.new,
            Outcome::Failed(saw) if saw == value && !op.when.holds(value) => value,
            _ => return false,
        };
        search(history, done | 1 << i, after, known)
    })
}

#[test]
fn known_histories_are_judged_rightly() {
    let op = |when, new, invoked, returned, outcome| Seen { when, new, invoked, returned, outcome };
    let put = |v, a, b| op(If::Always, Some(v), a, b, Outcome::Done);
    let read = |saw, a, b| op(If::Never, None, a, b, Outcome::Failed(saw));
    let cas = |old, new, a, b| op(If::Is(old), Some(new), a, b, Outcome::Done);
    let create = |v, a, b| op(If::Absent, Some(v), a, b, Outcome::Done);
    let lost = |when, v, a| op(when, Some(v), a, a, Outcome::Unknown);
    let delete = |a, b| op(If::Always, None, a, b, Outcome::Done);
    for good in [
        vec![put(1, 0, 1), read(Some(1), 2, 3)],
        vec![put(1, 0, 5), read(None, 1, 2), read(Some(1), 3, 4)],
        vec![put(1, 0, 1), cas(1, 2, 2, 5), cas(2, 3, 3, 6), read(Some(3), 7, 8)],
        vec![create(1, 0, 9), delete(1, 8), create(2, 2, 7), read(Some(2), 10, 11)],
        vec![lost(If::Always, 1, 0), read(None, 1, 2), read(Some(1), 3, 4)],
        vec![lost(If::Absent, 1, 0), put(2, 1, 2), read(Some(2), 3, 4)],
    ] {
        assert!(is_linearizable(&good), "{good:?}");
    }
    for bad in [
        vec![put(1, 0, 1), read(None, 2, 3)],
        vec![put(1, 0, 5), read(Some(1), 1, 2), read(None, 3, 4)],
        vec![put(1, 0, 1), cas(1, 2, 2, 5), cas(1, 3, 3, 6)],
        vec![create(1, 0, 9), create(2, 1, 8)],
        // A create that overwrites: nobody deleted what was there.
        vec![put(2, 0, 1), lost(If::Absent, 1, 2), read(Some(1), 3, 4)],
        vec![lost(If::Absent, 1, 0), put(2, 1, 2), read(Some(2), 3, 4), read(Some(1), 5, 6)],
        // A delete that is done twice.
        vec![
            delete(0, 9),
            create(1, 1, 2),
            create(2, 3, 4),
            delete(5, 6),
            create(3, 7, 8),
            read(None, 10, 11),
        ],
        // Done, although it was said to have failed.
        vec![op(If::Absent, Some(1), 0, 3, Outcome::Failed(Some(2))), cas(1, 2, 1, 2)],
    ] {
        assert!(!is_linearizable(&bad), "{bad:?}");
    }
}
