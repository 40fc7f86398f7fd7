//! How a change of the layout goes on: which versions are alive, and what the present phase waits for.

use super::{Admin, AdminError};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{Acks, ActiveLayout, Layout, Partition, Phase, risk, waits_for};
use hayloft_proto::admin::{
    ClusterLayoutHistory, LayoutNodeProgress, LayoutTracker, LayoutVersion, LayoutVersionStatus,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Nodes silent for so long are not waited for if no quorum needs them: what storage nodes decide by, unless they are
/// configured otherwise.
const DOWN_AFTER: Duration = Duration::from_mins(1);

impl Admin {
    pub(super) async fn layout_history(&self) -> Result<ClusterLayoutHistory, AdminError> {
        let (layout, _) = self.layout.current().await?;
        let acks = self.membership.progress();
        let ids: Vec<NodeId> = match layout.phase {
            Phase::Stable => Vec::new(),
            Phase::Introduced | Phase::Synced => layout.storage_nodes(),
        };
        let heard: BTreeMap<NodeId, Heard> = ids.iter().map(|id| (*id, self.heard(*id))).collect();
        Ok(history(&layout, &acks, &heard))
    }

    fn heard(&self, node: NodeId) -> Heard {
        let cluster = self.membership.cluster();
        let stats = cluster.pool().peer_stats(node);
        let ago = |at| cluster.env().now().saturating_sub(at).as_secs();
        Heard {
            hostname: self.hostname_of(node),
            is_up: stats.connected,
            is_down: !stats.connected && self.membership.silent_for(node) >= DOWN_AFTER,
            secs_ago: stats.last_heard.map(ago),
        }
    }

    fn hostname_of(&self, node: NodeId) -> Option<String> {
        self.membership.peers().into_iter().find(|info| info.id == node).map(|info| info.hostname)
    }

    /// A node's name for people.
    pub(super) fn name_of(&self, node: NodeId) -> String {
        let id = node.short();
        self.hostname_of(node).map_or(id.clone(), |hostname| format!("{hostname} ({id})"))
    }
}

/// What the gateway itself knows of a node.
#[derive(Clone, Debug, Default)]
struct Heard {
    hostname: Option<String>,
    /// Connected now.
    is_up: bool,
    /// Silent for so long that it is not waited for where it can be done without.
    is_down: bool,
    secs_ago: Option<u64>,
}

/// The answer, from the layout in force, what the nodes tell of themselves, and what was heard of them.
fn history(layout: &ActiveLayout, acks: &Acks, heard: &BTreeMap<NodeId, Heard>) -> ClusterLayoutHistory {
    let trackers: BTreeMap<NodeId, LayoutTracker> =
        heard.keys().map(|node| (*node, tracker(layout, acks, *node))).collect();
    let current = version(&layout.current, LayoutVersionStatus::Current);
    let old = layout.old.iter().map(|old| version(old, LayoutVersionStatus::Draining));
    ClusterLayoutHistory {
        current_version: layout.current.version,
        min_ack: trackers.values().map(|tracker| tracker.ack).min().unwrap_or(layout.current.version),
        versions: if layout.is_empty() { Vec::new() } else { [current].into_iter().chain(old).collect() },
        update_trackers: (layout.phase != Phase::Stable).then_some(trackers),
        epoch: layout.epoch,
        phase: layout.phase,
        queued: layout.queued.iter().map(|queued| version(queued, LayoutVersionStatus::Queued)).collect(),
        nodes: nodes(layout, acks, heard),
    }
}

fn version(layout: &Layout, status: LayoutVersionStatus) -> LayoutVersion {
    LayoutVersion {
        version: layout.version,
        status,
        storage_nodes: layout.nodes.len(),
        gateway_nodes: 0,
        nodes: layout.nodes.clone(),
        replication_factor: layout.parameters.replication_factor,
    }
}

/// A node that is not at this epoch may act upon the old version still.
fn tracker(layout: &ActiveLayout, acks: &Acks, node: NodeId) -> LayoutTracker {
    let progress = acks.get(&node).copied().unwrap_or_default();
    let (old, current) = (layout.current.version.saturating_sub(1), layout.current.version);
    let at_epoch = progress.epoch >= layout.epoch;
    LayoutTracker {
        ack: if at_epoch || layout.phase == Phase::Synced { current } else { old },
        sync: progress.synced.min(current),
        sync_ack: if at_epoch && layout.phase == Phase::Synced { current } else { old },
    }
}

fn nodes(layout: &ActiveLayout, acks: &Acks, heard: &BTreeMap<NodeId, Heard>) -> Vec<LayoutNodeProgress> {
    let waits: BTreeSet<NodeId> = waits_for(layout, acks).into_iter().map(|wait| wait.node).collect();
    let down: BTreeSet<NodeId> =
        heard.iter().filter(|(_, heard)| heard.is_down).map(|(node, _)| *node).collect();
    // Nodes that are down hold a phase up only where a quorum could notice.
    let down_matter = risk(layout, acks, &down) > 0;
    let changed = layout.changed_partitions();
    let to_sync = |node: NodeId| {
        let holds = |partition: &&Partition| layout.current.holds(node, **partition);
        changed.iter().filter(holds).count()
    };
    let row = |(node, heard): (&NodeId, &Heard)| {
        let progress = acks.get(node);
        let synced = progress.is_some_and(|progress| progress.synced >= layout.current.version);
        // What it told before it knew of this change is about another one.
        let told = progress.filter(|progress| progress.epoch >= layout.epoch);
        LayoutNodeProgress {
            id: *node,
            hostname: heard.hostname.clone(),
            is_up: heard.is_up,
            last_seen_secs_ago: heard.secs_ago.filter(|_| !heard.is_up),
            waited_for: waits.contains(node) && (down_matter || !down.contains(node)),
            skipped: layout.skipped.contains(node),
            epoch: progress.map(|progress| progress.epoch),
            synced,
            partitions_to_sync: to_sync(*node),
            partitions_left: told.map(|progress| u64::from(progress.partitions_left)),
            blocks_left: told.map(|progress| progress.blocks_left),
        }
    };
    heard.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::layout::{Parameters, Progress, Role, ZoneRedundancy, compute};

    const PARAMETERS: Parameters =
        Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    fn layout(previous: &Layout, nodes: &[u8]) -> Layout {
        let role = |i: u8| Role { zone: format!("z{i}"), capacity: 1 << 40, tags: vec![] };
        let roles: BTreeMap<NodeId, Role> = nodes.iter().map(|i| (node(*i), role(*i))).collect();
        compute(Some(previous), &roles, &PARAMETERS, 4).unwrap().0
    }

    /// From nodes 1, 2, 3 to 2, 3, 4; and 1, 2, 3 waiting.
    fn moving() -> ActiveLayout {
        let empty = ActiveLayout::empty(PARAMETERS, 4);
        let first = empty.introduce(layout(&empty.current, &[1, 2, 3])).unwrap();
        let second = first.apply(layout(&first.current, &[2, 3, 4])).unwrap();
        second.apply(layout(&second.current, &[1, 2, 3])).unwrap()
    }

    fn up() -> Heard {
        Heard { is_up: true, ..Heard::default() }
    }

    fn down() -> Heard {
        Heard { is_down: true, secs_ago: Some(90), ..Heard::default() }
    }

    fn rows(history: &ClusterLayoutHistory) -> Vec<(bool, bool, Option<u64>)> {
        history.nodes.iter().map(|row| (row.waited_for, row.synced, row.partitions_left)).collect()
    }

    #[test]
    fn each_node_is_shown_with_what_it_has_left() {
        let layout = moving();
        let (epoch, version) = (layout.epoch, layout.current.version);
        let behind = Progress { epoch: epoch - 2, synced: 1, partitions_left: 9, ..Progress::default() };
        let busy = Progress { epoch, synced: 1, partitions_left: 7, blocks_left: 8, ..Progress::default() };
        let done = Progress { epoch, synced: version, ..Progress::default() };
        let acks = Acks::from([(node(1), done), (node(2), done), (node(3), behind), (node(4), busy)]);
        let heard = (1..5).map(|i| (node(i), up())).collect();
        let history = history(&layout, &acks, &heard);
        assert_eq!((history.current_version, history.min_ack, history.queued.len()), (2, 1, 1));
        let expected =
            [(false, true, Some(0)), (false, true, Some(0)), (true, false, None), (true, false, Some(7))];
        assert_eq!(rows(&history), expected, "what was told of an earlier change is left out");
        let to_sync: Vec<usize> = history.nodes.iter().map(|row| row.partitions_to_sync).collect();
        assert_eq!(to_sync, [0, 16, 16, 16]);
        let trackers = history.update_trackers.unwrap();
        assert_eq!(trackers[&node(3)], LayoutTracker { ack: 1, sync: 1, sync_ack: 1 });
        assert_eq!(trackers[&node(2)], LayoutTracker { ack: 2, sync: 2, sync_ack: 1 });
    }

    #[test]
    fn nodes_that_are_down_are_waited_for_only_where_a_quorum_needs_them() {
        let layout = moving();
        let acks = Acks::new();
        let mut heard: BTreeMap<NodeId, Heard> = (1..5).map(|i| (node(i), up())).collect();
        heard.insert(node(3), down());
        let waited = |heard: &BTreeMap<NodeId, Heard>| -> Vec<bool> {
            history(&layout, &acks, heard).nodes.iter().map(|row| row.waited_for).collect()
        };
        assert_eq!(waited(&heard), [true, true, false, true]);
        heard.insert(node(2), down());
        assert_eq!(waited(&heard), [true, true, true, true], "two of three copies");
        let skipped = layout.skip(&BTreeSet::from([node(2)])).unwrap();
        let rows = history(&skipped, &acks, &heard).nodes;
        assert!(rows[1].skipped && !rows[1].waited_for);
    }

    #[test]
    fn at_rest_there_is_nothing_to_wait_for() {
        let empty = ActiveLayout::empty(PARAMETERS, 4);
        let none = history(&empty, &Acks::new(), &BTreeMap::new());
        assert_eq!((none.current_version, none.versions.len(), none.update_trackers), (0, 0, None));
        let stable = empty.introduce(layout(&empty.current, &[1, 2, 3])).unwrap();
        let at_rest = history(&stable, &Acks::new(), &BTreeMap::new());
        assert_eq!((at_rest.min_ack, at_rest.versions.len(), at_rest.nodes.len()), (1, 1, 0));
    }
}
