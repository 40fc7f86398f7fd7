//! Conflict-free replicated data types: values whose merge is associative, commutative and idempotent
//! (Shapiro et al., "Conflict-free Replicated Data Types", 2011). [`laws`] checks any of them.

use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A value with a merge that obeys the three laws.
pub trait Crdt: Clone + PartialEq {
    /// Takes in all that `other` knows.
    fn merge(&mut self, other: &Self);
}

/// A last-writer-wins register. Equal stamps (never made by two honest writers) fall back to the order
/// of the encoded values, so that the merge stays commutative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Lww<T> {
    pub stamp: Stamp,
    pub value: T,
}

impl<T> Lww<T> {
    pub fn new(stamp: Stamp, value: T) -> Self {
        Self { stamp, value }
    }
}

impl<T: Clone + PartialEq + Serialize> Crdt for Lww<T> {
    fn merge(&mut self, other: &Self) {
        if wins(other.stamp, &other.value, self.stamp, &self.value) {
            *self = other.clone();
        }
    }
}

/// Whether value `a` at stamp `sa` replaces `b` at `sb`.
pub fn wins<T: Serialize + PartialEq>(sa: Stamp, a: &T, sb: Stamp, b: &T) -> bool {
    match sa.cmp(&sb) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => a != b && rmp_serde::to_vec(a).ok() > rmp_serde::to_vec(b).ok(),
    }
}

/// A map of last-writer-wins registers; removal is a register with an empty value (`V = Option<_>`).
pub type LwwMap<K, V> = BTreeMap<K, Lww<V>>;

impl<K: Ord + Clone, V: Clone + PartialEq + Serialize> Crdt for LwwMap<K, V> {
    fn merge(&mut self, other: &Self) {
        for (key, theirs) in other {
            match self.get_mut(key) {
                Some(ours) => ours.merge(theirs),
                None => {
                    self.insert(key.clone(), theirs.clone());
                }
            }
        }
    }
}

/// The laws every [`Crdt`] must obey, for property tests.
pub mod laws {
    use super::Crdt;
    use std::fmt::Debug;

    fn merged<T: Crdt>(a: &T, b: &T) -> T {
        let mut out = a.clone();
        out.merge(b);
        out
    }

    /// Panics with the values that break a law.
    #[allow(clippy::missing_panics_doc, reason = "panicking is its purpose")]
    pub fn check<T: Crdt + Debug>(a: &T, b: &T, c: &T) {
        assert_eq!(merged(a, a), *a, "merge is not idempotent");
        assert_eq!(merged(a, b), merged(b, a), "merge is not commutative");
        assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)), "merge is not associative");
    }
}
