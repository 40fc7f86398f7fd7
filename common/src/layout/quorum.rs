//! How many answers are enough, and when to stop asking. Pure: the calling is done elsewhere.
//!
//! In the consistent mode `read + write > replication factor`: every read quorum meets every write
//! quorum of the same set.

use crate::id::NodeId;
use serde::{Deserialize, Serialize};

/// What an operator trades between consistency and availability (`consistency_mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsistencyMode {
    /// Reads see every acknowledged write.
    #[default]
    Consistent,
    /// One answer is enough to read: reads may be stale.
    Degraded,
    /// One answer is enough to read and to write: acknowledged writes may be lost with one node.
    Dangerous,
}

/// Answers that make a read of one set of `replication_factor` nodes: half of them, rounded up.
pub fn read_quorum(mode: ConsistencyMode, replication_factor: usize) -> usize {
    match mode {
        ConsistencyMode::Consistent => replication_factor.div_ceil(2).max(1),
        ConsistencyMode::Degraded | ConsistencyMode::Dangerous => 1,
    }
}

/// Answers that make a write to one set of `replication_factor` nodes: the fewest that meet every
/// consistent read.
pub fn write_quorum(mode: ConsistencyMode, replication_factor: usize) -> usize {
    match mode {
        ConsistencyMode::Consistent | ConsistencyMode::Degraded => (replication_factor + 1)
            .saturating_sub(read_quorum(ConsistencyMode::Consistent, replication_factor)),
        ConsistencyMode::Dangerous => 1,
    }
}

/// How an operation over one or several sets stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumState {
    /// Not yet decided: answers are outstanding.
    Pending,
    /// Every set gave its quorum.
    Reached,
    /// Some set can no longer give its quorum, unless a failed node answers after all.
    Impossible,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Answer {
    None,
    Ok,
    Failed,
}

/// A set of nodes as indexes into all of them, and how many of it must answer well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set {
    members: Vec<usize>,
    quorum: usize,
}

/// Follows the answers of the nodes of one or several sets, each of which must give its own quorum: sets
/// of different size, as when the replication factor changes, want different numbers.
/// A node in two sets counts in both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tracker {
    /// All nodes, in the order first seen, with their answers.
    nodes: Vec<(NodeId, Answer)>,
    sets: Vec<Set>,
}

impl Tracker {
    /// A tracker with no answer yet; `quorum` gives the answers wanted of a set of that many nodes. The order
    /// inside the sets is the caller's order of preference. Without any set nothing can be reached.
    pub fn new(sets: &[Vec<NodeId>], quorum: impl Fn(usize) -> usize) -> Self {
        let mut nodes: Vec<(NodeId, Answer)> = Vec::new();
        let mut indexed = Vec::with_capacity(sets.len());
        for set in sets {
            let mut members = Vec::with_capacity(set.len());
            for node in set {
                let index = nodes.iter().position(|(n, _)| n == node).unwrap_or_else(|| {
                    nodes.push((*node, Answer::None));
                    nodes.len() - 1
                });
                if !members.contains(&index) {
                    members.push(index);
                }
            }
            indexed.push(Set { quorum: quorum(set.len()), members });
        }
        Self { nodes, sets: indexed }
    }

    /// The same nodes and sets, with no answer yet.
    #[must_use]
    pub fn fresh(&self) -> Self {
        let nodes = self.nodes.iter().map(|(node, _)| (*node, Answer::None)).collect();
        Self { nodes, sets: self.sets.clone() }
    }

    /// Notes that `node` did what was asked. Wins over an earlier failure (a retry that worked). False
    /// if the node is in no set: the answer does not count.
    pub fn ok(&mut self, node: NodeId) -> bool {
        self.note(node, Answer::Ok)
    }

    /// Notes that `node` failed; ignored if it had already done it. False if the node is in no set.
    pub fn fail(&mut self, node: NodeId) -> bool {
        self.note(node, Answer::Failed)
    }

    fn note(&mut self, node: NodeId, answer: Answer) -> bool {
        let Some((_, known)) = self.nodes.iter_mut().find(|(n, _)| *n == node) else { return false };
        if *known != Answer::Ok {
            *known = answer;
        }
        true
    }

    fn count(&self, set: &Set, answer: Answer) -> usize {
        set.members.iter().filter(|&&index| self.nodes[index].1 == answer).count()
    }

    /// How things stand.
    pub fn state(&self) -> QuorumState {
        if self.sets.is_empty() {
            return QuorumState::Impossible;
        }
        let mut state = QuorumState::Reached;
        for set in &self.sets {
            if set.members.len() - self.count(set, Answer::Failed) < set.quorum {
                return QuorumState::Impossible;
            }
            if self.count(set, Answer::Ok) < set.quorum {
                state = QuorumState::Pending;
            }
        }
        state
    }

    /// The nodes without an answer whose answer would help, the best first: those that serve more of the
    /// sets still short of their quorum, then in the order of the sets. Empty once the state is decided.
    pub fn missing(&self) -> Vec<NodeId> {
        if self.state() != QuorumState::Pending {
            return Vec::new();
        }
        let short: Vec<&Set> =
            self.sets.iter().filter(|set| self.count(set, Answer::Ok) < set.quorum).collect();
        let mut useful: Vec<(usize, NodeId)> = Vec::new();
        for (index, (node, answer)) in self.nodes.iter().enumerate() {
            let serves = short.iter().filter(|set| set.members.contains(&index)).count();
            if *answer == Answer::None && serves > 0 {
                useful.push((serves, *node));
            }
        }
        useful.sort_by_key(|(serves, _)| std::cmp::Reverse(*serves));
        useful.into_iter().map(|(_, node)| node).collect()
    }

    /// Every node of every set, in the order of the sets, each once.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().map(|(node, _)| *node)
    }

    /// The nodes that did what was asked.
    pub fn done(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, answer)| *answer == Answer::Ok).map(|(node, _)| *node)
    }

    /// The nodes that failed.
    pub fn failed(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, answer)| *answer == Answer::Failed).map(|(node, _)| *node)
    }

    /// The most answers that one of the sets must give.
    pub fn wanted(&self) -> usize {
        self.sets.iter().map(|set| set.quorum).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    #[test]
    fn quorums_are_those_of_the_configuration_manual() {
        let quorums = |mode| [1, 2, 3, 5].map(|rf| (write_quorum(mode, rf), read_quorum(mode, rf)));
        assert_eq!(quorums(ConsistencyMode::Consistent), [(1, 1), (2, 1), (2, 2), (3, 3)]);
        assert_eq!(quorums(ConsistencyMode::Degraded), [(1, 1), (2, 1), (2, 1), (3, 1)]);
        assert_eq!(quorums(ConsistencyMode::Dangerous), [(1, 1); 4]);
        assert_eq!(serde_json::to_string(&ConsistencyMode::Degraded).unwrap(), r#""degraded""#);
    }

    #[test]
    fn both_sets_must_give_their_quorum_and_shared_nodes_count_twice() {
        let mut tracker =
            Tracker::new(&[vec![node(1), node(2), node(3)], vec![node(2), node(3), node(4)]], |_| 2);
        assert_eq!(tracker.missing(), [2, 3, 1, 4].map(node));
        assert!(tracker.ok(node(2)));
        assert!(tracker.ok(node(1)));
        assert_eq!(tracker.state(), QuorumState::Pending);
        assert_eq!(tracker.missing(), [3, 4].map(node));
        assert!(tracker.fail(node(3)));
        assert_eq!(tracker.missing(), [4].map(node));
        assert!(tracker.fail(node(4)));
        assert_eq!(tracker.state(), QuorumState::Impossible);
        assert!(tracker.ok(node(4)));
        assert_eq!(tracker.state(), QuorumState::Reached);
        assert!(!tracker.ok(node(9)));
    }

    #[test]
    fn nothing_is_reached_without_a_set_or_with_too_small_a_set() {
        assert_eq!(Tracker::new(&[], |_| 1).state(), QuorumState::Impossible);
        assert_eq!(Tracker::new(&[vec![node(1), node(1)]], |_| 2).state(), QuorumState::Impossible);
    }

    proptest! {
        /// Compares the tracker with the definition, over random sets and answers.
        #[test]
        fn the_state_is_the_definition(
            sets in prop::collection::vec(prop::collection::btree_set(0u8..6, 1..5), 1..3),
            quorums in prop::collection::vec(1usize..4, 5),
            events in prop::collection::vec((0u8..6, any::<bool>()), 0..12),
        ) {
            let ids: Vec<Vec<NodeId>> = sets.iter().map(|s| s.iter().map(|&i| node(i)).collect()).collect();
            // By the size of the set, as everywhere.
            let mut tracker = Tracker::new(&ids, |size| quorums[size]);
            let (mut ok, mut failed) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
            for (who, good) in events {
                if good { tracker.ok(node(who)); ok.insert(who); failed.remove(&who); }
                else { tracker.fail(node(who)); if !ok.contains(&who) { failed.insert(who); } }
                let possible = sets.iter().all(|s| s.difference(&failed).count() >= quorums[s.len()]);
                let reached = sets.iter().all(|s| s.intersection(&ok).count() >= quorums[s.len()]);
                let expected = if reached { QuorumState::Reached }
                    else if possible { QuorumState::Pending } else { QuorumState::Impossible };
                prop_assert_eq!(tracker.state(), expected);
                prop_assert_eq!(tracker.missing().is_empty(), expected != QuorumState::Pending);
            }
        }
    }
}
