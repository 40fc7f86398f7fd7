//! What a replica remembers of one row besides the row itself: promises, and how rows followed one another.
//!
//! Invariants:
//! - a promise is never lowered, except by its own proposer, who never used it and never will ([`Acceptor::release`]);
//! - nothing below the promise is taken from a writer: neither another accept nor a plain write ([`Acceptor::admits`]).
//!   Copies of rows from other replicas are taken whatever was promised: they acknowledge nothing;
//! - it is forgotten only when what is stored of the row refuses all that the promise refuses ([`Acceptor::forget`]).

use super::lineage::{Lineage, Step};
use crate::codec::Format;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

/// Promises that can be released one by one; older ones beyond that stay until something higher is stored.
const MAX_OPEN: usize = 16;

/// What is stored of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// A row with this stamp; it may be a tombstone.
    Row(Stamp),
    /// Nothing. Tombstones up to this stamp may have been collected.
    Absent { floor: Stamp },
}

impl Standing {
    /// The highest stamp that is known here: a write must be above it.
    pub fn stamp(self) -> Stamp {
        match self {
            Self::Row(stamp) | Self::Absent { floor: stamp } => stamp,
        }
    }

    /// What two replicas know together.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Row(a), Self::Row(b)) => Self::Row(a.max(b)),
            (Self::Absent { floor: a }, Self::Absent { floor: b }) => Self::Absent { floor: a.max(b) },
            (row @ Self::Row(_), Self::Absent { .. }) | (Self::Absent { .. }, row @ Self::Row(_)) => row,
        }
    }
}

/// The answer to *prepare*. `settled`: the row was written here, by a plain write or an accept; it is not a copy. What a write
/// quorum holds so stays until something is judged on it, or replaces it unconditionally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prepared {
    /// Nothing below the ballot is taken from now on.
    Promised { settled: bool },
    /// The row stored here fails the condition already, so nothing is promised.
    Declined { settled: bool },
    /// Try again above this stamp. Nothing is changed.
    Refused { above: Stamp },
}

/// The answer to *accept*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AcceptReply {
    /// The row is stored.
    Accepted,
    /// Nothing is changed; start over above this stamp.
    Refused { above: Stamp },
}

/// Whether an acceptor that nobody needs any more can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// What is stored says it all.
    Now,
    /// There is no row: once the floor is this high.
    WithFloor(Stamp),
    /// There is a row, and a promise above it: no, until something above the promise is stored.
    Keep,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Acceptor {
    /// A promise that stays.
    pinned: Stamp,
    /// Promises that may be released, all above `pinned`, ascending.
    open: Vec<Stamp>,
    lineage: Lineage,
}

impl Format for Acceptor {
    const NAME: &'static str = "promises of a row";
}

impl Acceptor {
    /// Nothing below is taken.
    pub fn promised(&self) -> Stamp {
        self.open.last().copied().unwrap_or(self.pinned)
    }

    /// How rows accepted here followed one another.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// First phase. Asked twice, it is promised twice. `direct`: the row is not a copy. `fails`: the condition fails on it.
    pub fn prepare(&mut self, ballot: Stamp, standing: Standing, direct: bool, fails: bool) -> Prepared {
        let settled = direct || matches!(standing, Standing::Absent { .. });
        if fails {
            return Prepared::Declined { settled };
        }
        let again = self.open.last() == Some(&ballot);
        let above = standing.stamp().max(self.promised());
        if standing.stamp() >= ballot || (self.promised() >= ballot && !again) {
            return Prepared::Refused { above };
        }
        self.open.retain(|open| *open != ballot && *open > standing.stamp());
        self.open.push(ballot);
        if self.open.len() > MAX_OPEN {
            self.pinned = self.pinned.max(self.open.remove(0));
        }
        Prepared::Promised { settled }
    }

    /// Second phase: whether the row stamped `ballot`, judged on `base`, may be stored in place of what is stored.
    /// `lineage`: all that the promises told of it.
    pub fn accept(
        &mut self,
        ballot: Stamp,
        base: Standing,
        lineage: &Lineage,
        standing: Standing,
    ) -> AcceptReply {
        let above = standing.stamp().max(self.promised());
        let outdated = match standing {
            // The very row, stored before (a message that came twice, or a copy).
            Standing::Row(stamp) if stamp == ballot => false,
            // Nobody promised to keep this row out, and it cannot have been acknowledged: see the decision record.
            Standing::Row(stamp) => stamp > ballot || stamp > base.stamp(),
            Standing::Absent { floor } => floor >= ballot,
        };
        if ballot < self.promised() || base.stamp() >= ballot || outdated {
            return AcceptReply::Refused { above };
        }
        self.pinned = self.pinned.max(ballot);
        self.open.retain(|open| *open > ballot);
        self.lineage.merge(lineage);
        self.lineage.push(Step { stamp: ballot, base });
        AcceptReply::Accepted
    }

    /// A proposer never sent *accept* with these ballots, and never will. True if something is changed.
    pub fn release(&mut self, ballots: &[Stamp]) -> bool {
        let before = self.open.len();
        self.open.retain(|open| !ballots.contains(open));
        self.open.len() != before
    }

    /// Whether a plain write may be acknowledged here, as far as promises go. If not: above what it would be.
    pub fn admits(&self, stamp: Stamp) -> Result<(), Stamp> {
        if self.promised() > stamp { Err(self.promised()) } else { Ok(()) }
    }

    /// Takes in what another replica promised: from then on this one keeps that promise too. For a replica that is new,
    /// or has lost its own. True if something is changed.
    pub fn adopt(&mut self, other: &Self) -> bool {
        let before = self.clone();
        self.pinned = self.pinned.max(other.promised());
        let pinned = self.pinned;
        self.open.retain(|open| *open > pinned);
        self.lineage.merge(&other.lineage);
        *self != before
    }

    /// What it takes to remove this, if nobody needs the lineage any more (no write older than an hour goes on).
    pub fn forget(&self, standing: Standing) -> Forget {
        if standing.stamp() >= self.promised() {
            return Forget::Now;
        }
        match standing {
            Standing::Row(_) => Forget::Keep,
            Standing::Absent { .. } => Forget::WithFloor(self.promised()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn at(micros: u64) -> Stamp {
        Stamp { micros, writer: 1 }
    }

    const NOTHING: Standing = Standing::Absent { floor: Stamp::ZERO };

    fn prepare(acceptor: &mut Acceptor, ballot: u64, standing: Standing) -> Prepared {
        acceptor.prepare(at(ballot), standing, true, false)
    }

    #[test]
    fn a_promise_keeps_out_what_is_below() {
        let mut acceptor = Acceptor::default();
        assert_eq!(prepare(&mut acceptor, 5, NOTHING), Prepared::Promised { settled: true });
        assert_eq!(prepare(&mut acceptor, 5, NOTHING), Prepared::Promised { settled: true });
        assert_eq!(prepare(&mut acceptor, 4, NOTHING), Prepared::Refused { above: at(5) });
        assert_eq!(acceptor.admits(at(4)), Err(at(5)));
        assert_eq!(acceptor.admits(at(6)), Ok(()));
        let none = Lineage::default();
        assert_eq!(acceptor.accept(at(4), NOTHING, &none, NOTHING), AcceptReply::Refused { above: at(5) });
        assert_eq!(acceptor.accept(at(5), NOTHING, &none, NOTHING), AcceptReply::Accepted);
        let row = Standing::Row(at(5));
        assert_eq!(acceptor.accept(at(5), NOTHING, &none, row), AcceptReply::Accepted, "a message twice");
        assert_eq!(prepare(&mut acceptor, 5, row), Prepared::Refused { above: at(5) });
        assert_eq!(prepare(&mut acceptor, 6, row), Prepared::Promised { settled: true });
        assert_eq!(prepare(&mut acceptor, 7, row), Prepared::Promised { settled: true });
        assert_eq!(acceptor.prepare(at(8), row, false, false), Prepared::Promised { settled: false });
    }

    #[test]
    fn a_row_that_fails_the_condition_costs_no_promise() {
        let mut acceptor = Acceptor::default();
        let row = Standing::Row(at(3));
        assert_eq!(acceptor.prepare(at(1), row, true, true), Prepared::Declined { settled: true });
        assert_eq!(acceptor.prepare(at(4), row, false, true), Prepared::Declined { settled: false });
        assert_eq!(acceptor, Acceptor::default());
    }

    #[test]
    fn a_newer_row_or_floor_refuses() {
        let mut acceptor = Acceptor::default();
        let (base, none) = (Standing::Row(at(3)), Lineage::default());
        for standing in [Standing::Row(at(4)), Standing::Row(at(9)), Standing::Absent { floor: at(8) }] {
            let reply = acceptor.accept(at(7), base, &none, standing);
            assert_eq!(reply, AcceptReply::Refused { above: standing.stamp() });
        }
        assert_eq!(acceptor, Acceptor::default());
        let refused = prepare(&mut acceptor, 7, Standing::Absent { floor: at(7) });
        assert_eq!(refused, Prepared::Refused { above: at(7) });
        let collected = Standing::Absent { floor: at(3) };
        assert_eq!(acceptor.accept(at(7), collected, &none, base), AcceptReply::Accepted);
    }

    #[test]
    fn a_copy_of_the_row_counts_only_if_nothing_higher_was_promised() {
        let mut acceptor = Acceptor::default();
        prepare(&mut acceptor, 9, NOTHING);
        let reply = acceptor.accept(at(5), NOTHING, &Lineage::default(), Standing::Row(at(5)));
        assert_eq!(reply, AcceptReply::Refused { above: at(9) });
    }

    #[test]
    fn only_promises_that_were_never_used_are_released() {
        let mut acceptor = Acceptor::default();
        for ballot in 1..=20 {
            prepare(&mut acceptor, ballot, NOTHING);
        }
        assert!(acceptor.release(&[at(20), at(18)]));
        assert_eq!(acceptor.promised(), at(19));
        acceptor.release(&(1..=20).map(at).collect::<Vec<_>>());
        assert_eq!(acceptor.promised(), at(4), "too many were open");
        acceptor.accept(at(30), NOTHING, &Lineage::default(), NOTHING);
        assert!(!acceptor.release(&[at(30)]));
        assert_eq!(acceptor.promised(), at(30));
    }

    #[test]
    fn it_is_forgotten_when_what_is_stored_refuses_the_same() {
        let mut acceptor = Acceptor::default();
        prepare(&mut acceptor, 5, NOTHING);
        assert_eq!(acceptor.forget(NOTHING), Forget::WithFloor(at(5)));
        assert_eq!(acceptor.forget(Standing::Absent { floor: at(5) }), Forget::Now);
        assert_eq!(acceptor.forget(Standing::Row(at(4))), Forget::Keep);
        assert_eq!(acceptor.forget(Standing::Row(at(5))), Forget::Now);
    }

    #[test]
    fn an_adopted_promise_is_kept_and_the_stored_form_does_not_change() {
        let (mut ours, mut theirs) = (Acceptor::default(), Acceptor::default());
        prepare(&mut ours, 2, NOTHING);
        theirs.accept(at(4), Standing::Row(at(1)), &Lineage::default(), NOTHING);
        prepare(&mut theirs, 5, Standing::Row(at(4)));
        assert!(ours.adopt(&theirs) && !ours.clone().adopt(&theirs));
        assert!(!ours.release(&[at(5)]));
        assert_eq!((ours.promised(), ours.lineage()), (at(5), theirs.lineage()));
        let bytes = codec::encode(&theirs);
        assert_eq!(
            hex::encode(&bytes),
            "0193920401919205019291929204018\
             1a3526f77920101920000"
        );
        assert_eq!(codec::decode::<Acceptor>(&bytes).unwrap(), theirs);
    }
}
