//! The layout: look, stage, preview, apply, follow, unblock.

use super::cluster::node_role;
use super::{Admin, AdminError};
use crate::layout::{ApplyError, LayoutManager};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Layout, Parameters, Role, StagedChanges};
use hayloft_common::limits::REPLICATION_FACTORS;
use hayloft_proto::admin::{
    AppliedLayout, ApplyClusterLayout, ClusterLayout, LayoutNode, LayoutParameters, LayoutPreview, RoleChange,
    UpdateClusterLayout,
};
use std::collections::BTreeMap;

impl Admin {
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
