//! The epochs: which layout is read and which are written while one follows another (design §3).
//!
//! stable v → introduced v+1 → synced v+1 → stable v+1, each a higher epoch. A write needs a quorum in
//! every write set, a read a quorum of the read set: so at any two neighbouring epochs each read quorum
//! meets a quorum of every acknowledged write. Senders of different epochs never mix: a node refuses an
//! epoch below its own.

use super::assignment::Layout;
use super::error::{InvalidLayout, LookupError};
use super::partition::Partition;
use super::role::Parameters;
use crate::codec::{Format, encode};
use crate::hash::Hash;
use crate::id::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How far the change to the current layout has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Only the current layout counts.
    Stable,
    /// Writes go to old and current, reads to old.
    Introduced,
    /// Every new copy is complete: writes go to old and current, reads to current.
    Synced,
}

/// The layout as it is in force, with the epoch that every data request carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct ActiveLayout {
    /// Rises by one with every change of layout or phase; 0 while no layout is applied.
    pub epoch: u64,
    pub phase: Phase,
    /// The layout being left; none when stable.
    pub old: Option<Layout>,
    pub current: Layout,
}

#[derive(Deserialize)]
struct Wire {
    epoch: u64,
    phase: Phase,
    old: Option<Layout>,
    current: Layout,
}

impl ActiveLayout {
    /// Epoch 0: no layout applied.
    pub fn empty(parameters: Parameters, bits: u8) -> Self {
        Self { epoch: 0, phase: Phase::Stable, old: None, current: Layout::empty(parameters, bits) }
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether no layout was applied yet.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// The sets of nodes that must each give a write quorum: one, or old and current when they differ.
    pub fn write_sets(&self, partition: Partition) -> Result<Vec<Vec<NodeId>>, LookupError> {
        let current = self.current.nodes_of(partition)?;
        let mut sets = Vec::with_capacity(2);
        if let Some(old) = &self.old {
            let old = old.nodes_of(partition)?;
            if old != current {
                sets.push(old);
            }
        }
        sets.push(current);
        Ok(sets)
    }

    /// The set of nodes that must give a read quorum.
    pub fn read_set(&self, partition: Partition) -> Result<Vec<NodeId>, LookupError> {
        match (self.phase, &self.old) {
            (Phase::Introduced, Some(old)) => old.nodes_of(partition),
            _ => self.current.nodes_of(partition),
        }
    }

    /// The partition of what is named by `hash`; the same in every live layout.
    pub fn partition_of(&self, hash: &Hash) -> Partition {
        self.current.partition_of(hash)
    }

    /// The partition of the rows under partition key `pk`; the same in every live layout.
    pub fn partition_of_key(&self, pk: &[u8]) -> Partition {
        self.current.partition_of_key(pk)
    }

    /// Every node with a role in a live layout, in order of id.
    pub fn storage_nodes(&self) -> Vec<NodeId> {
        let old = self.old.iter().flat_map(|old| &old.nodes);
        self.current.nodes.iter().chain(old).copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a node holds `partition` in any live layout: it accepts writes for it.
    pub fn holds(&self, node: NodeId, partition: Partition) -> bool {
        let in_layout = |layout: &Layout| layout.nodes_of(partition).is_ok_and(|set| set.contains(&node));
        in_layout(&self.current) || self.old.as_ref().is_some_and(in_layout)
    }

    /// The next epoch with `next` in force at once, no copy being waited for. Right only for the first
    /// layout of a cluster, or when no data need follow; [`ActiveLayout::introduce`] otherwise.
    pub fn replace(&self, next: Layout) -> Result<Self, InvalidLayout> {
        Self { epoch: self.epoch.saturating_add(1), phase: Phase::Stable, old: None, current: next }
            .following(self)
    }

    /// The next epoch, in which `next` is being moved to. From version 0 there is nothing to move.
    pub fn introduce(&self, next: Layout) -> Result<Self, InvalidLayout> {
        if self.is_empty() {
            return self.replace(next);
        }
        let old = Some(self.current.clone());
        Self { epoch: self.epoch.saturating_add(1), phase: Phase::Introduced, old, current: next }
            .following(self)
    }

    /// The next epoch, once every new copy is complete.
    pub fn synced(&self) -> Result<Self, InvalidLayout> {
        Self { epoch: self.epoch.saturating_add(1), phase: Phase::Synced, ..self.clone() }.following(self)
    }

    /// The next epoch, once every node of both layouts knows that all is synced: the old one is dropped.
    pub fn finish(&self) -> Result<Self, InvalidLayout> {
        let current = self.current.clone();
        Self { epoch: self.epoch.saturating_add(1), phase: Phase::Stable, old: None, current }.following(self)
    }

    fn following(self, before: &Self) -> Result<Self, InvalidLayout> {
        self.check_follows(before)?;
        Ok(self)
    }

    /// Checks that this may be the very next epoch after `before`.
    pub fn check_follows(&self, before: &Self) -> Result<(), InvalidLayout> {
        let fail = |why: String| Err(InvalidLayout(why));
        self.validate()?;
        if before.epoch.checked_add(1) != Some(self.epoch) {
            return fail(format!("epoch {} does not follow epoch {}", self.epoch, before.epoch));
        }
        if !before.is_empty() && before.current.bits != self.current.bits {
            return fail("the number of partitions cannot change".into());
        }
        let next_version = before.current.version.checked_add(1) == Some(self.current.version);
        let same = self.current == before.current;
        let right = match (before.phase, self.phase) {
            (Phase::Stable, Phase::Stable) => next_version,
            (Phase::Stable, Phase::Introduced) => next_version && self.old.as_ref() == Some(&before.current),
            (Phase::Introduced, Phase::Synced) => same && self.old == before.old,
            (Phase::Synced, Phase::Stable) => same,
            _ => false,
        };
        if right {
            return Ok(());
        }
        fail(format!(
            "version {} ({:?}) cannot follow version {} ({:?})",
            self.current.version, self.phase, before.current.version, before.phase
        ))
    }

    /// Names this state: two with one digest are equal.
    pub fn digest(&self) -> Hash {
        Hash::of(&encode(self))
    }

    fn validate(&self) -> Result<(), InvalidLayout> {
        let fail = |why: &str| Err(InvalidLayout(why.into()));
        if (self.epoch == 0) != self.is_empty() {
            return fail("epoch 0 stands for version 0, and for nothing else");
        }
        match (&self.old, self.phase) {
            (None, Phase::Stable) => Ok(()),
            (Some(_), Phase::Stable) => fail("a stable layout has no old one"),
            (None, _) => fail("a layout that is changing names no old one"),
            (Some(old), _) if old.is_empty() => fail("version 0 holds no data to move"),
            (Some(old), _) if old.bits != self.current.bits => fail("the number of partitions changes"),
            (Some(old), _) if old.version.checked_add(1) != Some(self.current.version) => {
                fail("the old layout is not the version before the current one")
            }
            _ => Ok(()),
        }
    }
}

impl TryFrom<Wire> for ActiveLayout {
    type Error = InvalidLayout;

    fn try_from(wire: Wire) -> Result<Self, InvalidLayout> {
        let Wire { epoch, phase, old, current } = wire;
        let active = Self { epoch, phase, old, current };
        active.validate()?;
        Ok(active)
    }
}

impl Format for ActiveLayout {
    const NAME: &'static str = "active layout";
}

#[cfg(test)]
mod tests {
    use super::super::compute::compute;
    use super::super::role::{Role, ZoneRedundancy};
    use super::*;
    use crate::codec::decode;
    use std::collections::BTreeMap;

    const PARAMETERS: Parameters =
        Parameters { replication_factor: 2, zone_redundancy: ZoneRedundancy::Maximum };

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    fn layout(previous: &Layout, nodes: &[u8]) -> Layout {
        let role = |i: u8| Role { zone: format!("z{i}"), capacity: 1 << 40, tags: vec![] };
        let roles: BTreeMap<NodeId, Role> = nodes.iter().map(|&i| (node(i), role(i))).collect();
        compute(Some(previous), &roles, &PARAMETERS, 4).unwrap().0
    }

    fn first() -> ActiveLayout {
        let empty = ActiveLayout::empty(PARAMETERS, 4);
        empty.introduce(layout(&empty.current, &[1, 2])).unwrap()
    }

    #[test]
    fn without_a_layout_nothing_is_written_or_read() {
        let empty = ActiveLayout::empty(PARAMETERS, 4);
        assert_eq!(empty.write_sets(Partition(0)), Err(LookupError::NoLayout));
        assert_eq!(empty.read_set(Partition(0)), Err(LookupError::NoLayout));
        assert!(LookupError::NoLayout.to_string().starts_with("no layout applied"));
    }

    #[test]
    fn the_sets_of_each_phase_are_those_of_the_design() {
        let (old, new) = (vec![node(1), node(2)], vec![node(2), node(3)]);
        let stable = first();
        assert_eq!((stable.epoch(), stable.phase), (1, Phase::Stable));
        let introduced = stable.introduce(layout(&stable.current, &[2, 3])).unwrap();
        let synced = introduced.synced().unwrap();
        let finished = synced.finish().unwrap();
        let both = vec![old.clone(), new.clone()];
        for (active, epoch, write, read) in [
            (&stable, 1, vec![old.clone()], &old),
            (&introduced, 2, both.clone(), &old),
            (&synced, 3, both, &new),
            (&finished, 4, vec![new.clone()], &new),
        ] {
            assert_eq!(active.epoch(), epoch);
            assert_eq!(active.write_sets(Partition(3)).unwrap(), write);
            assert_eq!(&active.read_set(Partition(3)).unwrap(), read);
            assert_eq!(decode::<ActiveLayout>(&encode(active)).unwrap(), *active);
        }
        assert_eq!(introduced.storage_nodes(), [1, 2, 3].map(node));
        assert!(introduced.holds(node(1), Partition(0)) && !finished.holds(node(1), Partition(0)));
    }

    #[test]
    fn phases_cannot_be_skipped_or_repeated() {
        let stable = first();
        assert!(stable.synced().is_err() && stable.finish().is_err());
        let next = layout(&stable.current, &[2, 3]);
        let introduced = stable.introduce(next.clone()).unwrap();
        assert!(introduced.finish().is_err() && introduced.introduce(next.clone()).is_err());
        assert!(introduced.replace(layout(&next, &[1, 2])).is_err());
        assert!(introduced.synced().unwrap().synced().is_err());
        assert!(stable.replace(stable.current.clone()).is_err(), "the version must rise");
        assert!(introduced.check_follows(&introduced).is_err());
    }

    #[test]
    fn a_partition_that_does_not_move_is_written_once() {
        let stable = first();
        let mut next = layout(&stable.current, &[1, 2]);
        next.partition_size -= 1;
        let introduced = stable.introduce(next).unwrap();
        assert_eq!(introduced.write_sets(Partition(0)).unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let broken = ActiveLayout { old: Some(first().current), ..first() };
        assert!(decode::<ActiveLayout>(&encode(&broken)).is_err());
    }
}
