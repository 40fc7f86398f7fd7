//! Status, health and the layout.

use super::{Admin, AdminError};
use crate::layout::{ApplyError, LayoutManager};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, Layout, Parameters, Partition, QuorumState, Role, StagedChanges, Tracker,
};
use hayloft_common::limits::REPLICATION_FACTORS;
use hayloft_proto::admin::{
    AppliedLayout, ApplyClusterLayout, ClusterHealth, ClusterLayout, ClusterStatus, DiskSpace, HealthStatus,
    LayoutNode, LayoutParameters, LayoutPreview, Node, NodeRole, RoleChange, UpdateClusterLayout,
};
use hayloft_proto::body::Body;
use hayloft_proto::message::membership::{NodeStatus, ReadStatus};
use std::collections::{BTreeMap, BTreeSet};
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
        let quorum = cluster.write_quorum(&layout).max(cluster.read_quorum(&layout));
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

    pub(super) async fn cluster_layout(&self) -> Result<ClusterLayout, AdminError> {
        let (layout, staged) = self.layout.current().await?;
        Ok(shown(&layout.current, &staged))
    }

    pub(super) async fn update_layout(
        &self,
        request: UpdateClusterLayout,
    ) -> Result<ClusterLayout, AdminError> {
        let (before, staged) = self.layout.current().await?;
        let mut roles: Vec<(NodeId, Option<Role>)> = Vec::new();
        for change in request.roles {
            roles.push(check_change(&before, &staged, change)?);
        }
        let parameters = match request.parameters {
            Some(wanted) => Some(check_parameters(&before, staged.parameters_for(&before.current), wanted)?),
            None => None,
        };
        let (layout, staged) = self
            .layout
            .stage(|staged, stamp| {
                for (node, role) in roles {
                    staged.stage_role(node, role, stamp);
                }
                if let Some(parameters) = parameters {
                    staged.stage_parameters(parameters, stamp);
                }
            })
            .await?;
        Ok(shown(&layout.current, &staged))
    }

    pub(super) async fn preview_layout(&self) -> Result<LayoutPreview, AdminError> {
        let (layout, staged) = self.layout.current().await?;
        match LayoutManager::plan(&layout, &staged, layout.current.bits) {
            Ok(plan) => Ok(LayoutPreview::Possible {
                message: plan.explanation.lines,
                new_layout: Box::new(shown(&plan.layout, &StagedChanges::default())),
                statistics: Some(Box::new(plan.explanation.statistics)),
            }),
            Err(error) => Ok(LayoutPreview::Impossible { error: error.to_string() }),
        }
    }

    pub(super) async fn apply_layout(
        &self,
        request: ApplyClusterLayout,
    ) -> Result<AppliedLayout, AdminError> {
        let applied = self.layout.apply(request.version).await?;
        Ok(AppliedLayout {
            message: applied.explanation.lines,
            layout: shown(&applied.layout.current, &self.membership.staged()),
            statistics: Some(applied.explanation.statistics),
        })
    }

    pub(super) async fn revert_layout(&self) -> Result<ClusterLayout, AdminError> {
        let (layout, staged) = self.layout.stage(StagedChanges::clear).await?;
        Ok(shown(&layout.current, &staged))
    }
}

fn node_role(role: &Role) -> NodeRole {
    NodeRole { zone: role.zone.clone(), capacity: Some(role.capacity), tags: role.tags.clone() }
}

/// A node must be of the layout, staged, or given whole; a role needs a zone and a capacity.
fn check_change(
    layout: &ActiveLayout,
    staged: &StagedChanges,
    change: RoleChange,
) -> Result<(NodeId, Option<Role>), ApplyError> {
    match change {
        RoleChange::Remove { id } => {
            let known = layout.current.roles.contains_key(&id) || staged.roles().any(|(node, _)| node == id);
            if known {
                return Ok((id, None));
            }
            Err(ApplyError::BadRequest(format!("node {id} has no role that could be removed")))
        }
        RoleChange::Assign { id, role } => {
            let Some(capacity) = role.capacity.filter(|capacity| *capacity > 0) else {
                let text = format!("node {id}: give a capacity above zero; gateways need no role here");
                return Err(ApplyError::BadRequest(text));
            };
            if role.zone.is_empty() {
                return Err(ApplyError::BadRequest(format!("node {id}: the zone's name is empty")));
            }
            Ok((id, Some(Role { zone: role.zone, capacity, tags: role.tags })))
        }
    }
}

fn check_parameters(
    layout: &ActiveLayout,
    now: Parameters,
    wanted: LayoutParameters,
) -> Result<Parameters, ApplyError> {
    let replication_factor = wanted.replication_factor.unwrap_or(now.replication_factor);
    if !REPLICATION_FACTORS.contains(&replication_factor) {
        let text = format!("the replication factor must be one of {REPLICATION_FACTORS:?}");
        return Err(ApplyError::BadRequest(text));
    }
    if wanted.partition_bits.is_some_and(|bits| bits != layout.current.bits) {
        let text = format!("the number of partitions is 2^{} and cannot be changed", layout.current.bits);
        return Err(ApplyError::BadRequest(text));
    }
    let zone_redundancy = wanted.zone_redundancy.unwrap_or(now.zone_redundancy);
    Ok(Parameters { replication_factor, zone_redundancy })
}

/// A layout with staged changes, in the interface's shape.
fn shown(layout: &Layout, staged: &StagedChanges) -> ClusterLayout {
    let mut stored: BTreeMap<NodeId, usize> = BTreeMap::new();
    for nodes in &layout.assignment {
        for index in nodes {
            if let Some(node) = layout.nodes.get(usize::from(*index)) {
                *stored.entry(*node).or_default() += 1;
            }
        }
    }
    let roles = layout.roles.iter().map(|(id, role)| {
        let partitions = stored.get(id).copied().unwrap_or(0);
        LayoutNode {
            id: *id,
            zone: role.zone.clone(),
            tags: role.tags.clone(),
            capacity: Some(role.capacity),
            stored_partitions: Some(partitions),
            usable_capacity: Some(partitions as u64 * layout.partition_size),
        }
    });
    ClusterLayout {
        version: layout.version,
        roles: roles.collect(),
        parameters: parameters(&layout.parameters, layout.bits),
        partition_size: layout.partition_size,
        staged_role_changes: staged
            .roles()
            .map(|(id, role)| match role {
                Some(role) => RoleChange::Assign { id, role: node_role(role) },
                None => RoleChange::Remove { id },
            })
            .collect(),
        staged_parameters: staged.parameters().map(|p| parameters(p, layout.bits)),
    }
}

fn parameters(parameters: &Parameters, bits: u8) -> LayoutParameters {
    LayoutParameters {
        zone_redundancy: Some(parameters.zone_redundancy),
        replication_factor: Some(parameters.replication_factor),
        partition_bits: Some(bits),
    }
}
