//! How conditionally written rows followed one another: so that who starts over learns what became of earlier tries.
//!
//! An accept that was refused by some replicas may stand on others, and another proposer may have built on it before it
//! was overwritten. Saying "failed", or doing it again, would then be wrong. Each replica therefore remembers, for the
//! last accepted rows, on what they were judged. Plain writes leave no trace here: they are judged on nothing.

use super::acceptor::Standing;
use super::is_ballot;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

/// Steps that are remembered of a row: some 40 bytes each.
pub const MAX_STEPS: usize = 32;

/// A row was accepted with this stamp, judged on what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    pub stamp: Stamp,
    pub base: Standing,
}

/// The last steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lineage {
    /// Ascending by stamp, all above `cut`.
    steps: Vec<Step>,
    /// Steps up to this stamp may have been dropped.
    cut: Stamp,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing was, or will be, built on it, nor told of it: it may be done again, or given up.
    Without,
    /// As `Without`, if it never stood on a quorum; else somebody may have been told of it.
    Unseen,
    /// It is what is there, or something was built on it.
    TookEffect,
    /// Too much has happened since.
    Unknown,
}

impl Lineage {
    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        self.merge(&Self { steps: vec![step], cut: Stamp::ZERO });
    }

    /// Takes in all that `other` knows.
    pub fn merge(&mut self, other: &Self) {
        self.cut = self.cut.max(other.cut);
        for step in &other.steps {
            if let Err(at) = self.steps.binary_search_by_key(&step.stamp, |s| s.stamp) {
                self.steps.insert(at, *step);
            }
        }
        let surplus = self.steps.len().saturating_sub(MAX_STEPS);
        if surplus > 0 {
            self.cut = self.cut.max(self.steps[surplus - 1].stamp);
        }
        let cut = self.cut;
        self.steps.retain(|step| step.stamp > cut);
    }

    /// The highest step up to `stamp`.
    fn up_to(&self, stamp: Stamp) -> Option<&Step> {
        self.steps.iter().rev().find(|step| step.stamp <= stamp)
    }

    /// What became of a write stamped `tried`, which was not acknowledged, if a write quorum of each set holds `now` together, with
    /// this lineage, and has promised to take nothing that is under way. Only final once `now` (or what follows from
    /// it) stands on a write quorum.
    pub fn fate(&self, tried: Stamp, now: Standing) -> Fate {
        if now == Standing::Row(tried) {
            return Fate::TookEffect;
        }
        if now.stamp() < tried {
            return Fate::Without;
        }
        // Follows what is there back to what it was built on, down to where the try would have its place.
        let (mut top, mut is_row) = (now.stamp(), matches!(now, Standing::Row(_)));
        let mut hidden = false;
        while top > tried {
            let step = self.up_to(top);
            // Below a plain write there may be steps that led nowhere: accepted by few, and overwritten unseen.
            hidden |= !(is_row && is_ballot(top));
            if is_row && is_ballot(top) && step.is_none_or(|step| step.stamp != top) {
                // A conditional write of which only the row came here.
                return Fate::Unknown;
            }
            let Some(step) = step.filter(|step| step.stamp > tried) else {
                return if self.cut > tried { Fate::Unknown } else { Fate::Unseen };
            };
            if step.base.stamp() >= step.stamp {
                // No acceptor takes such a step.
                return Fate::Unknown;
            }
            (top, is_row) = match step.base {
                Standing::Row(base) if base == tried && hidden => return Fate::Unknown,
                Standing::Row(base) if base == tried => return Fate::TookEffect,
                Standing::Row(base) => (base, true),
                Standing::Absent { floor } if floor >= tried => return Fate::Unknown,
                Standing::Absent { floor } => (floor, false),
            };
        }
        Fate::Without
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(micros: u64) -> Stamp {
        Stamp { micros, writer: 2 }
    }

    fn conditional(micros: u64) -> Stamp {
        Stamp { micros, writer: 1 }
    }

    fn lineage(steps: &[(Stamp, Stamp)]) -> Lineage {
        let mut lineage = Lineage::default();
        for (stamp, base) in steps {
            lineage.push(Step { stamp: *stamp, base: Standing::Row(*base) });
        }
        lineage
    }

    #[test]
    fn a_try_took_effect_if_something_was_built_on_it() {
        let c = conditional;
        let chain = lineage(&[(c(9), c(7)), (c(7), c(5)), (c(5), plain(1))]);
        let now = Standing::Row(c(9));
        for tried in [c(9), c(7), c(5), plain(1)] {
            assert_eq!(chain.fate(tried, now), Fate::TookEffect);
        }
        for tried in [c(8), c(6), plain(2), c(10)] {
            assert_eq!(chain.fate(tried, now), Fate::Without);
        }
    }

    #[test]
    fn plain_writes_hide_whether_what_was_accepted_before_led_anywhere() {
        let c = conditional;
        let chain = lineage(&[(c(7), c(5)), (c(5), plain(1))]);
        assert_eq!(chain.fate(c(5), Standing::Row(plain(8))), Fate::Unknown);
        assert_eq!(chain.fate(c(6), Standing::Row(plain(8))), Fate::Without);
        assert_eq!(chain.fate(plain(7), Standing::Row(plain(8))), Fate::Unseen);
        assert_eq!(chain.fate(c(7), Standing::Row(plain(8))), Fate::Unseen);
        assert_eq!(chain.fate(plain(3), Standing::Row(plain(8))), Fate::Without);
        assert_eq!(lineage(&[]).fate(plain(3), Standing::Row(plain(8))), Fate::Unseen);
        let above = lineage(&[(c(9), plain(8)), (c(7), c(5)), (c(5), plain(1))]);
        assert_eq!(above.fate(c(5), Standing::Row(c(9))), Fate::Unknown);
        assert_eq!(above.fate(plain(8), Standing::Row(c(9))), Fate::TookEffect);
    }

    #[test]
    fn what_cannot_be_followed_is_unknown() {
        let c = conditional;
        assert_eq!(lineage(&[]).fate(c(5), Standing::Row(c(9))), Fate::Unknown);
        assert_eq!(lineage(&[(c(9), c(7))]).fate(c(5), Standing::Row(c(9))), Fate::Unknown);
        assert_eq!(lineage(&[(c(9), c(7))]).fate(c(8), Standing::Row(c(9))), Fate::Without);
        let mut long = Lineage::default();
        for micros in 10..100 {
            long.push(Step { stamp: c(micros), base: Standing::Row(c(micros - 1)) });
        }
        assert_eq!(long.steps.len(), MAX_STEPS);
        assert_eq!(long.fate(plain(5), Standing::Row(c(99))), Fate::Unknown);
        assert_eq!(long.fate(c(90), Standing::Row(c(99))), Fate::TookEffect);
        assert_eq!(long.fate(plain(90), Standing::Row(c(99))), Fate::Without);
        let mut after_collection = Lineage::default();
        after_collection.push(Step { stamp: c(9), base: Standing::Absent { floor: plain(6) } });
        assert_eq!(after_collection.fate(plain(6), Standing::Row(c(9))), Fate::Unknown);
        assert_eq!(after_collection.fate(plain(7), Standing::Row(c(9))), Fate::Without);
    }
}
