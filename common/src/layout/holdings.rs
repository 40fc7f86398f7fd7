//! What a storage node holds of each partition, across layouts: pure; the node stores it with the layout it
//! follows from, in one write.
//!
//! ```text
//! none ──given──► member ──taken──► leftover ──rows dropped──► none, or member if it was given again
//!                   └──this node went back in time──► lost ──dropped and filled again──► member
//! ```
//!
//! - *Leftover*: rows from an earlier membership. They may lack deletions whose tombstones the others have
//!   collected since, so they are never served, never pushed, never counted; they stay until others have all.
//! - *Lost*: this node may lack what it acknowledged. Its answers could make up a quorum that misses a write,
//!   so it gives none until it has dropped what it has and pulled everything from [`ActiveLayout::sources`],
//!   itself left out.
//!
//! A node that was out of the set of a partition and is in it again, without having seen either, knows from
//! [`ActiveLayout::set_since`]: an unchanged set had no gap.

use super::active::{ActiveLayout, Phase};
use super::partition::Partition;
use crate::codec::Format;
use crate::id::NodeId;
use serde::{Deserialize, Serialize};

/// What a node holds of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartitionState {
    /// Nothing.
    None,
    /// It takes writes, and answers reads.
    Member,
    /// Rows to be dropped.
    Leftover,
    /// Rows to be dropped, and to be pulled again from others.
    Lost,
}

impl PartitionState {
    fn byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Member => 1,
            Self::Leftover => 2,
            Self::Lost => 3,
        }
    }

    /// Anything unknown counts as lost: never trusted.
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::None,
            1 => Self::Member,
            2 => Self::Leftover,
            _ => Self::Lost,
        }
    }
}

/// Why a node may not say that it has everything of a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSynced {
    #[error("version {asked} is not the current one, which is {current}")]
    Version { asked: u64, current: u64 },
    #[error("{partitions} partitions have rows that are still to be dropped or to be filled again")]
    Incomplete { partitions: usize },
}

/// The states of all partitions on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// One byte a partition; empty before the first layout.
    #[serde(with = "serde_bytes")]
    states: Vec<u8>,
    /// The newest version of which this node has everything; 0 if of none.
    synced: u64,
    /// This node went back in time and has not caught up: it can't tell what it held in between.
    forgetful: bool,
}

impl Format for Holdings {
    const NAME: &'static str = "the partitions held";
}

impl Holdings {
    /// What a node has that kept `active` with a release which never moved data.
    pub fn before_moves(me: NodeId, active: &ActiveLayout) -> Self {
        let mut holdings = Self::default();
        if !active.is_empty() {
            let state = |p| if active.holds(me, p) { PartitionState::Member } else { PartitionState::None };
            holdings.states = partitions(active).map(|p| state(p).byte()).collect();
            holdings.synced = active.current.version;
        }
        holdings
    }

    /// What this node holds of `partition`.
    pub fn state(&self, partition: Partition) -> PartitionState {
        self.states
            .get(usize::from(partition.0))
            .map_or(PartitionState::None, |b| PartitionState::from_byte(*b))
    }

    /// The newest version of which this node has everything; 0 if of none.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// The partitions in that state, ascending.
    pub fn all_in(&self, state: PartitionState) -> Vec<Partition> {
        let all = (0..self.states.len()).map(|p| Partition(p as u16));
        all.filter(|p| self.state(*p) == state).collect()
    }

    fn set(&mut self, partition: Partition, state: PartitionState) {
        if let Some(byte) = self.states.get_mut(usize::from(partition.0)) {
            *byte = state.byte();
        }
    }

    /// Follows the step from layout `before` to `after`, both as kept by this node. `remembers`: it is sure that it
    /// never kept another one (its register shows that it took part in agreeing on the first).
    pub fn learn(&mut self, me: NodeId, before: &ActiveLayout, after: &ActiveLayout, remembers: bool) {
        use PartitionState::{Leftover, Lost, Member, None};
        let first = before.is_empty();
        self.states.resize(after.current.partitions(), None.byte());
        for partition in partitions(after) {
            let held = after.holds(me, partition);
            let unsure = self.forgetful || (first && !remembers && counts_on(after, me, partition));
            let state = match (self.state(partition), held) {
                (None, false) => None,
                (None, true) if unsure => Lost,
                (None, true) => Member,
                (Member, true) if !was_away(before, after, me, partition) => Member,
                (Member | Leftover, _) | (Lost, false) => Leftover,
                (Lost, true) => Lost,
            };
            self.set(partition, state);
        }
        if first {
            let complete = after.current.version == 1 && self.all_in(Lost).is_empty();
            self.synced = u64::from(complete);
        }
    }

    /// Others know a later state of this node than it has itself: whatever it holds may lack what it acknowledged.
    pub fn outlive(&mut self, me: NodeId, active: &ActiveLayout) {
        self.forgetful = true;
        self.synced = 0;
        for partition in (0..self.states.len()).map(|p| Partition(p as u16)) {
            if active.holds(me, partition) {
                self.set(partition, PartitionState::Lost);
            } else if self.state(partition) != PartitionState::None {
                self.set(partition, PartitionState::Leftover);
            }
        }
    }

    /// The rows of a leftover are gone, durably. Nothing happens to a partition in another state.
    pub fn dropped(&mut self, me: NodeId, active: &ActiveLayout, partition: Partition) {
        if self.state(partition) == PartitionState::Leftover {
            let held = active.holds(me, partition);
            self.set(partition, if held { PartitionState::Member } else { PartitionState::None });
        }
    }

    /// What was lost was dropped and pulled again. Nothing happens to a partition in another state.
    pub fn refilled(&mut self, partition: Partition) {
        if self.state(partition) == PartitionState::Lost {
            self.set(partition, PartitionState::Member);
        }
    }

    /// This node has everything that it is to hold in `version`: rows and blocks.
    pub fn set_synced(&mut self, me: NodeId, active: &ActiveLayout, version: u64) -> Result<(), NotSynced> {
        let current = active.current.version;
        if version != current {
            return Err(NotSynced::Version { asked: version, current });
        }
        let held = active.current.partitions_of(me);
        let incomplete = held.into_iter().filter(|p| self.state(*p) != PartitionState::Member).count();
        if incomplete > 0 {
            return Err(NotSynced::Incomplete { partitions: incomplete });
        }
        self.synced = version;
        self.forgetful = false;
        Ok(())
    }

    /// The partitions that this node has to pull before it has everything of the current version: those whose sets
    /// changed, if it had everything before; else all that it is to hold.
    pub fn to_sync(&self, me: NodeId, active: &ActiveLayout) -> Vec<Partition> {
        let version = active.current.version;
        if self.synced >= version {
            return Vec::new();
        }
        let held = active.current.partitions_of(me);
        let Some(old) = active.old.as_ref().filter(|_| self.synced.checked_add(1) == Some(version)) else {
            return held;
        };
        held.into_iter().filter(|p| old.nodes_of(*p) != active.current.nodes_of(*p)).collect()
    }
}

fn partitions(active: &ActiveLayout) -> impl Iterator<Item = Partition> + use<> {
    (0..active.current.partitions()).map(|p| Partition(p as u16))
}

/// Whether reads may rely on what a node acknowledged for the partition.
fn counts_on(active: &ActiveLayout, node: NodeId, partition: Partition) -> bool {
    active.old.as_ref().is_some_and(|old| old.holds(node, partition))
        || (active.phase != Phase::Introduced && active.current.holds(node, partition))
}

/// Whether `me` may have been outside all sets of the partition at some time after `before` and up to `after`.
fn was_away(before: &ActiveLayout, after: &ActiveLayout, me: NodeId, partition: Partition) -> bool {
    // Each version was, or will be, the only one for a while; these have been.
    let first = before.current.version;
    let last = match after.phase {
        Phase::Stable => after.current.version,
        _ => after.current.version.saturating_sub(1),
    };
    if first > last {
        return false;
    }
    let known = [Some(&before.current), after.old.as_ref(), Some(&after.current)].into_iter().flatten();
    let (mut seen, mut away) = (std::collections::BTreeSet::new(), false);
    for layout in known.filter(|layout| (first..=last).contains(&layout.version)) {
        seen.insert(layout.version);
        away |= !layout.holds(me, partition);
    }
    let all_seen = seen.len() as u64 == last - first + 1;
    away || (!all_seen && after.set_since(partition) > first)
}

#[cfg(test)]
mod tests {
    use super::super::assignment::Layout;
    use super::super::compute::compute;
    use super::super::role::{Parameters, Role, ZoneRedundancy};
    use super::*;
    use crate::codec::{decode, encode};
    use PartitionState::{Leftover, Lost, Member, None};

    const PARAMETERS: Parameters =
        Parameters { replication_factor: 1, zone_redundancy: ZoneRedundancy::AtLeast(1) };
    const P: Partition = Partition(0);

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    /// One partition on one node.
    fn on(previous: &Layout, holder: u8) -> Layout {
        let role = Role { zone: "z".into(), capacity: 1 << 30, tags: vec![] };
        compute(Some(previous), &[(node(holder), role)].into(), &PARAMETERS, 0).unwrap().0
    }

    /// Every state of a cluster whose only partition is on these nodes in turn.
    fn states(holders: &[u8]) -> Vec<ActiveLayout> {
        let mut all = vec![ActiveLayout::empty(PARAMETERS, 0)];
        for holder in holders {
            let last = all.last().unwrap().clone();
            all.push(last.apply(on(&last.current, *holder)).unwrap());
            while all.last().unwrap().is_changing() {
                all.push(all.last().unwrap().next_phase().unwrap());
            }
        }
        all
    }

    /// The state of the partition on node 1 after it kept those of the states, by epoch.
    fn after(all: &[ActiveLayout], kept: &[usize]) -> (Holdings, PartitionState) {
        let (mut holdings, mut before) = (Holdings::default(), &all[0]);
        for epoch in kept {
            holdings.learn(node(1), before, &all[*epoch], true);
            before = &all[*epoch];
        }
        let read: Holdings = decode(&encode(&holdings)).unwrap();
        assert_eq!(read, holdings);
        (holdings, read.state(P))
    }

    #[test]
    fn a_partition_is_given_taken_and_its_rows_dropped() {
        // Epochs: 1 on node 1; 2, 3, 4 to node 2; 5, 6, 7 back to node 1.
        let all = states(&[1, 2, 1]);
        for (kept, expected) in [
            (vec![1], Member),
            (vec![1, 2], Member),
            (vec![1, 2, 3], Member),
            (vec![1, 2, 3, 4], Leftover),
            (vec![1, 4], Leftover),
            (vec![1, 4, 5], Leftover),
            (vec![1, 5], Leftover),
            (vec![1, 3, 6], Leftover),
            (vec![1, 7], Leftover),
            (vec![5], Member),
            (vec![4], None),
            (vec![4, 5], Member),
            (vec![4, 7], Member),
        ] {
            assert_eq!(after(&all, &kept).1, expected, "{kept:?}");
        }
        let (mut holdings, _) = after(&all, &[1, 4]);
        holdings.dropped(node(1), &all[4], P);
        assert_eq!(holdings.state(P), None);
        let (mut holdings, _) = after(&all, &[1, 5]);
        holdings.refilled(P);
        assert_eq!(holdings.state(P), Leftover, "it was not lost");
        assert!(holdings.set_synced(node(1), &all[5], 3).is_err());
        holdings.dropped(node(1), &all[5], P);
        assert_eq!(holdings.state(P), Member);
        assert_eq!(holdings.to_sync(node(1), &all[5]), [P]);
        holdings.set_synced(node(1), &all[5], 3).unwrap();
        assert_eq!((holdings.synced(), holdings.to_sync(node(1), &all[5])), (3, vec![]));
    }

    #[test]
    fn missed_versions_make_a_leftover_only_where_the_set_changed() {
        let stays = states(&[1, 1, 1, 1]);
        assert_eq!(after(&stays, &[1, 10]).1, Member);
        let leaves = states(&[1, 2, 1, 1]);
        assert_eq!(after(&leaves, &[1, 10]).1, Leftover);
        // It was away and can't know: two versions are missing.
        assert_eq!(leaves[10].set_since(P), 3);
        // The set has not changed since version 3, which it knows.
        assert_eq!(after(&leaves, &[5, 10]).1, Member);
    }

    #[test]
    fn the_first_layout_is_synced_at_once_and_later_ones_when_said() {
        let all = states(&[1, 2, 1]);
        assert_eq!(after(&all, &[1]).0.synced(), 1);
        assert_eq!(after(&all, &[1, 2, 3, 4]).0.synced(), 1);
        assert_eq!(after(&all, &[7]).0.synced(), 0);
        let (mut holdings, _) = after(&all, &[4, 5]);
        assert_eq!(
            holdings.set_synced(node(1), &all[5], 2),
            Err(NotSynced::Version { asked: 2, current: 3 })
        );
    }

    #[test]
    fn a_node_that_was_emptied_serves_nothing_that_others_count_on() {
        let all = states(&[1, 2, 1]);
        let forgot = |epoch: usize| {
            let mut holdings = Holdings::default();
            holdings.learn(node(1), &all[0], &all[epoch], false);
            (holdings.state(P), holdings.synced())
        };
        // Without a trace of having agreed on it, the first layout can't be the first it knew.
        assert_eq!([forgot(1), forgot(2), forgot(7)], [(Lost, 0); 3]);
        // New to the partition, or not in it: nobody counts on it yet.
        assert_eq!([forgot(5), forgot(4)], [(Member, 0), (None, 0)]);
    }

    #[test]
    fn a_node_that_went_back_in_time_fills_all_it_is_to_hold() {
        let all = states(&[2, 1, 2, 1]);
        // Epochs: 1 on node 2; 4 on node 1; 7 on node 2; 8, 9, 10 back to node 1.
        let (mut holdings, _) = after(&all, &[1]);
        holdings.outlive(node(1), &all[1]);
        assert_eq!((holdings.state(P), holdings.synced()), (None, 0));
        // It can't know that it never held this.
        holdings.learn(node(1), &all[1], &all[4], true);
        assert_eq!(holdings.state(P), Lost);
        holdings.dropped(node(1), &all[4], P);
        assert_eq!(holdings.state(P), Lost, "dropping is not enough");
        assert!(holdings.set_synced(node(1), &all[4], 2).is_err());
        let mut taken = holdings.clone();
        taken.learn(node(1), &all[4], &all[7], true);
        taken.refilled(P);
        assert_eq!(taken.state(P), Leftover);
        holdings.refilled(P);
        holdings.set_synced(node(1), &all[4], 2).unwrap();
        assert_eq!(holdings.state(P), Member);
        // It has caught up: what comes now is new to it.
        holdings.learn(node(1), &all[4], &all[7], true);
        holdings.dropped(node(1), &all[7], P);
        holdings.learn(node(1), &all[7], &all[8], true);
        assert_eq!(holdings.state(P), Member);
        holdings.outlive(node(1), &all[8]);
        assert_eq!(holdings.state(P), Lost);
    }

    #[test]
    fn what_a_release_without_moves_kept_is_complete() {
        let all = states(&[1, 2]);
        let holdings = Holdings::before_moves(node(1), &all[1]);
        assert_eq!((holdings.state(P), holdings.synced()), (Member, 1));
        assert_eq!(Holdings::before_moves(node(2), &all[1]).state(P), None);
        assert_eq!(Holdings::before_moves(node(1), &all[0]), Holdings::default());
    }
}
