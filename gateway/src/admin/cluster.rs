//! Status and health.

use super::{Admin, AdminError};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Partition, QuorumState, Role, Tracker};
use hayloft_proto::admin::{ClusterHealth, ClusterStatus, DiskSpace, HealthStatus, Node, NodeRole};
use hayloft_proto::body::Body;
use hayloft_proto::message::membership::{NodeStatus, ReadStatus};
use std::collections::BTreeSet;
use std::time::Duration;

/// For a node's own account of itself.
const STATUS_DEADLINE: Duration = Duration::from_secs(3);

impl Admin {
    fn is_up(&self, node: NodeId) -> bool {
        self.membership.cluster().pool().peer_stats(node).connected
    }

    /// Nodes known or with a role, in order.
    fn all_nodes(&self, layout: &ActiveLayout) -> BTreeSet<NodeId> {
        layout.storage_nodes().into_iter().chain(self.membership.peers().into_iter().map(|p| p.id)).collect()
    }

    async fn ask_status(&self, node: NodeId) -> Option<NodeStatus> {
        let cluster = self.membership.cluster();
        let answer = cluster.call(node, &ReadStatus {}, Body::empty(), STATUS_DEADLINE).await;
        answer.ok().map(|(status, _)| status)
    }

    pub(super) async fn cluster_status(&self) -> Result<ClusterStatus, AdminError> {
        // Whoever asks wants to know how it is now; if nobody answers, what is known is still worth showing.
        self.membership.round().await;
        let layout = self.membership.cluster().layout();
        let ids = self.all_nodes(&layout);
        let statuses = futures::future::join_all(ids.iter().map(|id| self.ask_status(*id))).await;
        let nodes =
            ids.into_iter().zip(statuses).map(|(id, status)| self.node(&layout, id, status)).collect();
        Ok(ClusterStatus { layout_version: layout.current.version, nodes })
    }

    fn node(&self, layout: &ActiveLayout, id: NodeId, status: Option<NodeStatus>) -> Node {
        let cluster = self.membership.cluster();
        let info = self.membership.peers().into_iter().find(|info| info.id == id);
        let last_heard = cluster.pool().peer_stats(id).last_heard;
        let disks = status.as_ref().map(|s| DiskSpace {
            available: s.disks.iter().map(|d| d.available).sum(),
            total: s.disks.iter().map(|d| d.total).sum(),
        });
        Node {
            id,
            is_up: status.is_some(),
            draining: layout.old.as_ref().is_some_and(|old| old.nodes.contains(&id))
                && !layout.current.nodes.contains(&id),
            addr: info.as_ref().and_then(|info| info.addresses.first().cloned()),
            hostname: info.as_ref().map(|info| info.hostname.clone()),
            garage_version: info.as_ref().map(|info| info.program.clone()),
            last_seen_secs_ago: match (&status, last_heard) {
                (None, Some(at)) => Some((cluster.env().now().saturating_sub(at)).as_secs()),
                _ => None,
            },
            role: layout.current.roles.get(&id).map(node_role),
            data_partition: disks,
            metadata_partition: status.map(|s| DiskSpace { available: s.metadata.0, total: s.metadata.1 }),
            resync_queue_len: None,
        }
    }

    pub(crate) fn cluster_health(&self) -> ClusterHealth {
        let cluster = self.membership.cluster();
        let layout = cluster.layout();
        let known = self.all_nodes(&layout);
        let up: BTreeSet<NodeId> = known.iter().copied().filter(|node| self.is_up(*node)).collect();
        let storage = layout.storage_nodes();
        let storage_up = storage.iter().filter(|node| up.contains(node)).count();
        let quorum = |size| cluster.write_quorum(size).max(cluster.read_quorum(size));
        let (mut with_quorum, mut whole) = (0, 0);
        let partitions = if layout.is_empty() { 0 } else { 1_usize << layout.current.bits };
        for partition in 0..partitions {
            let sets = layout.write_sets(Partition(partition as u16)).unwrap_or_default();
            let mut tracker = Tracker::new(&sets, quorum);
            let down: Vec<NodeId> = tracker.nodes().filter(|node| !up.contains(node)).collect();
            whole += usize::from(down.is_empty());
            for node in down {
                tracker.fail(node);
            }
            with_quorum += usize::from(tracker.state() != QuorumState::Impossible);
        }
        let status = match () {
            () if partitions == 0 || with_quorum < partitions => HealthStatus::Unavailable,
            () if whole < partitions || storage_up < storage.len() => HealthStatus::Degraded,
            () => HealthStatus::Healthy,
        };
        ClusterHealth {
            status,
            known_nodes: known.len(),
            connected_nodes: up.len(),
            storage_nodes: storage.len(),
            storage_nodes_up: storage_up,
            storage_nodes_ok: storage_up,
            partitions,
            partitions_quorum: with_quorum,
            partitions_all_ok: whole,
        }
    }
}

pub(super) fn node_role(role: &Role) -> NodeRole {
    NodeRole { zone: role.zone.clone(), capacity: Some(role.capacity), tags: role.tags.clone() }
}
