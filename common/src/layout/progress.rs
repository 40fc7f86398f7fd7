//! How far each node has come with a change of layout, and when a phase may end (design §3).
//!
//! Pure. The rules, for a change from `old` to `current`:
//!
//! - *introduced → synced* (reads move to `current`): every read quorum of every changed set must hold a node
//!   that has all of the partition. So fewer than a read quorum of the set may lack it.
//! - *synced → stable* (writes leave `old`): nobody may still read `old` without noticing. So fewer than a read
//!   quorum of each changed old set may be below this epoch.
//!
//! Within these bounds only nodes that are *down* are not waited for. Nodes that the operator skipped are never
//! waited for, and may break the bounds: [`risk`] tells where they would.

use super::active::{ActiveLayout, Phase};
use super::assignment::Layout;
use super::partition::Partition;
use super::quorum::{ConsistencyMode, read_quorum};
use crate::id::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a storage node says of itself; passed on by gossip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// The node's incarnation when it said so.
    pub incarnation: u64,
    /// Rises with every change within the incarnation.
    pub seq: u64,
    /// The epoch below which it refuses every request.
    pub epoch: u64,
    /// The newest version of which it has everything that it is to hold: rows and blocks; 0 if of none.
    pub synced: u64,
    /// Partitions it still has to pull rows of, and blocks it still has to fetch, for the current version.
    pub partitions_left: u32,
    pub blocks_left: u64,
}

impl Progress {
    /// Whether this was said after `other`, by the same node.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.incarnation, self.seq) > (other.incarnation, other.seq)
    }
}

/// The newest that is known of each storage node.
pub type Acks = BTreeMap<NodeId, Progress>;

/// A node that a phase waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub node: NodeId,
    pub reason: WaitReason,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// The node is not known to have adopted this epoch; the newest it is known to have is `at` (0: none).
    Epoch { at: u64 },
    /// It has copies to complete.
    Copies { partitions_left: u32, blocks_left: u64 },
}

fn knows(acks: &Acks, node: NodeId, epoch: u64) -> bool {
    acks.get(&node).is_some_and(|progress| progress.epoch >= epoch)
}

fn has_all(acks: &Acks, node: NodeId, version: u64) -> bool {
    acks.get(&node).is_some_and(|progress| progress.synced >= version)
}

/// Whom the phase under way waits for, and for what, in order of node: for people. Nodes that are down are
/// listed too, skipped ones are not. Empty when stable.
pub fn waits_for(active: &ActiveLayout, acks: &Acks) -> Vec<Wait> {
    if active.phase == Phase::Stable {
        return Vec::new();
    }
    let wait = |node: NodeId| {
        let progress = acks.get(&node).copied().unwrap_or_default();
        let copies = active.phase == Phase::Introduced && active.current.roles.contains_key(&node);
        let reason = if progress.epoch < active.epoch {
            WaitReason::Epoch { at: progress.epoch }
        } else if copies && progress.synced < active.current.version {
            let Progress { partitions_left, blocks_left, .. } = progress;
            WaitReason::Copies { partitions_left, blocks_left }
        } else {
            return None;
        };
        Some(Wait { node, reason })
    };
    active
        .storage_nodes()
        .into_iter()
        .filter(|node| !active.skipped.contains(node))
        .filter_map(wait)
        .collect()
}

/// Whether the next phase may begin ([`ActiveLayout::next_phase`]); when stable, whether a layout waits. `down`:
/// nodes not heard of for so long that they are not waited for, as long as no quorum can notice.
///
/// Old news is safe: what a node has done stays done.
pub fn may_advance(active: &ActiveLayout, acks: &Acks, down: &BTreeSet<NodeId>) -> bool {
    let waited_for = |wait: &Wait| !down.contains(&wait.node);
    match (active.phase, &active.old) {
        (Phase::Introduced, Some(_)) => {
            !waits_for(active, acks).iter().any(waited_for)
                && bound_holds(active, &active.current, |node| !has_all(acks, node, active.current.version))
        }
        (Phase::Synced, Some(old)) => {
            !waits_for(active, acks).iter().any(waited_for)
                && bound_holds(active, old, |node| !knows(acks, node, active.epoch))
        }
        _ => !active.queued.is_empty(),
    }
}

/// Whether the nodes that lack something are few enough in every changed set of `layout`, or all skipped.
fn bound_holds(active: &ActiveLayout, layout: &Layout, lacks: impl Fn(NodeId) -> bool) -> bool {
    let lacking: BTreeSet<NodeId> = layout.nodes.iter().copied().filter(|node| lacks(*node)).collect();
    if lacking.is_subset(&active.skipped) {
        return true;
    }
    active.changed_partitions().into_iter().all(|partition| {
        let set = layout.nodes_of(partition).unwrap_or_default();
        let missing: Vec<&NodeId> = set.iter().filter(|node| lacking.contains(node)).collect();
        missing.len() < least_to_notice(set.len()) || missing.iter().all(|node| active.skipped.contains(node))
    })
}

/// So many nodes of a set may answer a read alone.
fn least_to_notice(set: usize) -> usize {
    read_quorum(ConsistencyMode::Consistent, set)
}

/// In how many partitions data may be missing, or read stale, if `nodes` are skipped too and never come back.
pub fn risk(active: &ActiveLayout, acks: &Acks, nodes: &BTreeSet<NodeId>) -> usize {
    let Some(old) = &active.old else { return 0 };
    let gone = |node: &NodeId| nodes.contains(node) || active.skipped.contains(node);
    let introduced = active.phase == Phase::Introduced;
    let at_risk = |partition: &Partition| {
        let lost = |layout: &Layout, lacks: &dyn Fn(NodeId) -> bool| {
            let set = layout.nodes_of(*partition).unwrap_or_default();
            set.iter().filter(|node| gone(node) && lacks(**node)).count() >= least_to_notice(set.len())
        };
        // Before the copies are made, the old nodes are needed for that as well.
        let unread = lost(old, &|node| introduced || !knows(acks, node, active.epoch));
        let incomplete =
            introduced && lost(&active.current, &|node| !has_all(acks, node, active.current.version));
        unread || incomplete
    };
    active.changed_partitions().iter().filter(|partition| at_risk(partition)).count()
}

/// Whether `node` may drop the rows of `partition` that it keeps from an earlier membership: at once if it is to
/// hold the partition anew (the rows may lack deletions), else when all who hold it now have everything.
pub fn may_drop(active: &ActiveLayout, acks: &Acks, node: NodeId, partition: Partition) -> bool {
    if active.holds(node, partition) {
        return true;
    }
    let set = active.current.nodes_of(partition).unwrap_or_default();
    active.phase == Phase::Stable
        && !set.is_empty()
        && set.iter().all(|member| has_all(acks, *member, active.current.version))
}

#[cfg(test)]
mod tests {
    use super::super::compute::compute;
    use super::super::role::{Parameters, Role, ZoneRedundancy};
    use super::*;

    const PARAMETERS: Parameters =
        Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::AtLeast(1) };

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    fn nodes(ids: &[u8]) -> BTreeSet<NodeId> {
        ids.iter().map(|i| node(*i)).collect()
    }

    fn layout(before: &ActiveLayout, ids: &[u8]) -> Layout {
        let role = |i: &u8| (node(*i), Role { zone: format!("z{i}"), capacity: 1 << 30, tags: vec![] });
        compute(Some(before.newest()), &ids.iter().map(role).collect(), &PARAMETERS, 1).unwrap().0
    }

    /// From nodes 1, 2, 3 to 1, 4, 5.
    fn introduced() -> ActiveLayout {
        let empty = ActiveLayout::empty(PARAMETERS, 1);
        let first = empty.apply(layout(&empty, &[1, 2, 3])).unwrap();
        first.apply(layout(&first, &[1, 4, 5])).unwrap()
    }

    /// `(node, epoch, synced)`.
    fn acks(told: &[(u8, u64, u64)]) -> Acks {
        let ack = |&(i, epoch, synced): &(u8, u64, u64)| {
            (node(i), Progress { epoch, synced, partitions_left: 7, blocks_left: 9, ..Progress::default() })
        };
        told.iter().map(ack).collect()
    }

    #[test]
    fn a_phase_waits_for_every_node_that_lives() {
        let active = introduced();
        let told = acks(&[(1, 2, 2), (2, 2, 1), (4, 2, 1), (5, 1, 0)]);
        let at = |i, at| Wait { node: node(i), reason: WaitReason::Epoch { at } };
        let copies = WaitReason::Copies { partitions_left: 7, blocks_left: 9 };
        assert_eq!(waits_for(&active, &told), [at(3, 0), Wait { node: node(4), reason: copies }, at(5, 1)]);
        assert!(!may_advance(&active, &told, &nodes(&[])));
        let all = acks(&[(1, 2, 2), (2, 2, 1), (3, 2, 1), (4, 2, 2), (5, 3, 2)]);
        assert!(may_advance(&active, &all, &nodes(&[])));
        assert!(waits_for(&active.synced().unwrap(), &all).iter().all(|wait| wait.node != node(5)));
    }

    #[test]
    fn down_nodes_are_not_waited_for_while_no_quorum_can_notice() {
        let active = introduced();
        let down = nodes(&[2, 3, 4, 5]);
        // One copy in three may be missing, and any number of the old that made it.
        let one_missing = acks(&[(1, 2, 2), (4, 2, 2)]);
        assert!(may_advance(&active, &one_missing, &down));
        assert!(!may_advance(&active, &one_missing, &nodes(&[5])), "nodes 2 and 3 live and do not know");
        assert!(!may_advance(&active, &acks(&[(1, 2, 2)]), &down));
        let synced = active.synced().unwrap();
        // Nodes 2 and 3 could answer a read of the old set by themselves.
        assert!(!may_advance(&synced, &acks(&[(1, 3, 2), (4, 3, 2), (5, 3, 2)]), &down));
        assert!(may_advance(&synced, &acks(&[(1, 3, 2), (3, 3, 2)]), &down));
    }

    #[test]
    fn skipped_nodes_are_never_waited_for_and_the_risk_is_told() {
        let active = introduced();
        let told = acks(&[(1, 2, 2), (2, 2, 1), (3, 2, 1), (4, 2, 1)]);
        assert_eq!(risk(&active, &told, &nodes(&[5])), 0);
        assert_eq!(risk(&active, &told, &nodes(&[4, 5])), 2);
        assert_eq!(risk(&active, &told, &nodes(&[2, 3])), 2);
        let one = active.skip(&nodes(&[5])).unwrap();
        assert_eq!(risk(&one, &told, &nodes(&[4])), 2, "with those skipped before");
        let now = acks(&[(1, 3, 2), (2, 3, 1), (3, 3, 1), (4, 3, 1)]);
        assert!(!may_advance(&one, &now, &nodes(&[4])), "skipped and down nodes count together");
        let both = one.skip(&nodes(&[4])).unwrap();
        let now = acks(&[(1, 4, 2), (2, 4, 1), (3, 4, 1)]);
        assert!(waits_for(&both, &now).is_empty() && may_advance(&both, &now, &nodes(&[])));
    }

    #[test]
    fn leftovers_stay_until_all_members_have_everything() {
        let stable = introduced().synced().unwrap().finish().unwrap();
        let p = Partition(0);
        assert!(!may_drop(&introduced(), &acks(&[(1, 4, 2), (4, 4, 2), (5, 4, 2)]), node(9), p));
        assert!(!may_drop(&stable, &acks(&[(1, 4, 2), (4, 4, 2), (5, 4, 1)]), node(2), p));
        assert!(may_drop(&stable, &acks(&[(1, 4, 2), (4, 4, 2), (5, 4, 2)]), node(2), p));
        assert!(may_drop(&introduced(), &Acks::new(), node(4), p), "given again");
    }

    #[test]
    fn when_stable_only_the_queue_moves_on() {
        let stable = introduced().synced().unwrap().finish().unwrap();
        assert!(
            !may_advance(&stable, &Acks::new(), &nodes(&[])) && waits_for(&stable, &Acks::new()).is_empty()
        );
        let waiting = introduced().queue(layout(&introduced(), &[1, 2, 3])).unwrap();
        let waiting = waiting.synced().unwrap().finish().unwrap();
        assert!(may_advance(&waiting, &Acks::new(), &nodes(&[])));
    }
}
