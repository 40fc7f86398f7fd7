//! The layout: look, stage, preview, apply, unblock. What is shown is the newest version, queued or not.

use super::cluster::node_role;
use super::{Admin, AdminError};
use crate::layout::{Applied, ApplyError, LayoutManager};
use hayloft_common::config::size::human_size;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{Explanation, Layout, Parameters, Phase, Role, StagedChanges};
use hayloft_common::limits::REPLICATION_FACTORS;
use hayloft_proto::admin::{
    AppliedLayout, AppliedState, ApplyClusterLayout, ClusterLayout, LayoutNode, LayoutParameters,
    LayoutPreview, RoleChange, SkipDeadNodes, SkippedDeadNodes, UpdateClusterLayout,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest time to count what is stored, for an estimate.
const COUNT_DEADLINE: Duration = Duration::from_secs(5);
/// Buckets counted at once.
const COUNTED_AT_ONCE: usize = 16;

impl Admin {
    pub(super) async fn cluster_layout(&self) -> Result<ClusterLayout, AdminError> {
        let (layout, staged) = self.layout.current().await?;
        Ok(shown(layout.newest(), &staged))
    }

    pub(super) async fn update_layout(
        &self,
        request: UpdateClusterLayout,
    ) -> Result<ClusterLayout, AdminError> {
        let (before, staged) = self.layout.current().await?;
        let newest = before.newest();
        let mut roles: Vec<(NodeId, Option<Role>)> = Vec::new();
        for change in request.roles {
            roles.push(check_change(newest, &staged, change)?);
        }
        let parameters = match request.parameters {
            Some(wanted) => Some(check_parameters(newest, staged.parameters_for(newest), wanted)?),
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
        Ok(shown(layout.newest(), &staged))
    }

    pub(super) async fn preview_layout(&self) -> Result<LayoutPreview, AdminError> {
        let (layout, staged) = self.layout.current().await?;
        match LayoutManager::plan(&layout, &staged) {
            Ok(plan) => Ok(LayoutPreview::Possible {
                message: self.explain(layout.newest(), &plan.layout, &plan.explanation).await,
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
        let Applied { layout, previous, explanation, active } = self.layout.apply(request.version).await?;
        let state = match active.phase {
            _ if active.queued.contains(&layout) => AppliedState::Queued,
            Phase::Stable => AppliedState::InForce,
            Phase::Introduced | Phase::Synced => AppliedState::Moving,
        };
        Ok(AppliedLayout {
            message: self.explain(&previous, &layout, &explanation).await,
            layout: shown(&layout, &self.membership.staged()),
            state,
            statistics: Some(explanation.statistics),
        })
    }

    pub(super) async fn revert_layout(&self) -> Result<ClusterLayout, AdminError> {
        let (layout, staged) = self.layout.stage(StagedChanges::clear).await?;
        Ok(shown(layout.newest(), &staged))
    }

    pub(super) async fn skip_dead_nodes(
        &self,
        request: SkipDeadNodes,
    ) -> Result<SkippedDeadNodes, AdminError> {
        let skipped = self.layout.skip_dead(request.version, request.allow_missing_data).await?;
        let names: Vec<String> = skipped.nodes.iter().map(|node| self.name_of(*node)).collect();
        let mut message = vec![format!(
            "The change to version {} no longer waits for {}.",
            request.version,
            names.join(", ")
        )];
        message.push(match skipped.partitions_at_risk {
            0 => "Every partition keeps enough copies: nothing is risked.".to_owned(),
            n => format!(
                "At risk: {n} partition(s), of which acknowledged writes are lost or missed if they were only on the skipped nodes."
            ),
        });
        message.push("A skipped node that comes back takes part again.".to_owned());
        Ok(SkippedDeadNodes {
            ack_updated: skipped.not_at_epoch,
            sync_updated: skipped.not_synced,
            partitions_at_risk: skipped.partitions_at_risk,
            message,
        })
    }

    /// The computation explained, and what it makes move.
    async fn explain(&self, before: &Layout, next: &Layout, explanation: &Explanation) -> Vec<String> {
        let mut lines = explanation.lines.clone();
        if !before.is_empty() {
            let moved = explanation.statistics.total_moved_partitions.unwrap_or(0);
            let stored = if moved > 0 { self.stored_bytes().await } else { None };
            lines.extend(moves(before, next, moved, stored));
        }
        lines
    }

    /// What all objects and unfinished uploads take, each counted once, as clients count it. None if it can't be told
    /// soon: it is for an estimate only.
    async fn stored_bytes(&self) -> Option<u64> {
        let count = async {
            let mut sum = 0_u64;
            for buckets in self.gateway.list_buckets().await.ok()?.chunks(COUNTED_AT_ONCE) {
                let counters = buckets.iter().map(|row| self.gateway.counters(row));
                for counters in futures::future::try_join_all(counters).await.ok()? {
                    sum = sum.saturating_add(counters.bytes).saturating_add(counters.part_bytes);
                }
            }
            Some(sum)
        };
        tokio::time::timeout(COUNT_DEADLINE, count).await.ok().flatten()
    }
}

/// Lines on the copies that a change makes and drops.
fn moves(before: &Layout, next: &Layout, moved: usize, stored: Option<u64>) -> Vec<String> {
    let mut lines = Vec::new();
    let (was, is) = (before.parameters.replication_factor, next.parameters.replication_factor);
    let partitions = next.partitions();
    let dropped = (before.partitions() * was + moved).saturating_sub(partitions * is);
    if was != is {
        lines.push(format!(
            "Copies of each partition: {was} before, {is} after; {moved} are made and {dropped} dropped. Writes need a \
             quorum of both until the change is over."
        ));
    }
    if let Some(stored) = stored.filter(|stored| moved > 0 && *stored > 0) {
        let bytes =
            u64::try_from(u128::from(stored) * moved as u128 / partitions as u128).unwrap_or(u64::MAX);
        lines.push(format!(
            "Data to copy: about {} at most ({} stored, each byte counted once).",
            human_size(bytes),
            human_size(stored)
        ));
    }
    lines
}

/// A node must be of the layout, staged, or given whole; a role needs a zone and a capacity.
fn check_change(
    newest: &Layout,
    staged: &StagedChanges,
    change: RoleChange,
) -> Result<(NodeId, Option<Role>), ApplyError> {
    match change {
        RoleChange::Remove { id } => {
            let known = newest.roles.contains_key(&id) || staged.roles().any(|(node, _)| node == id);
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
    newest: &Layout,
    now: Parameters,
    wanted: LayoutParameters,
) -> Result<Parameters, ApplyError> {
    let replication_factor = wanted.replication_factor.unwrap_or(now.replication_factor);
    if !REPLICATION_FACTORS.contains(&replication_factor) {
        let text = format!("the replication factor must be one of {REPLICATION_FACTORS:?}");
        return Err(ApplyError::BadRequest(text));
    }
    if wanted.partition_bits.is_some_and(|bits| bits != newest.bits) {
        let text = format!("the number of partitions is 2^{} and cannot be changed", newest.bits);
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

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::layout::{ZoneRedundancy, compute};

    fn layout(previous: Option<&Layout>, nodes: u8, replication_factor: usize) -> (Layout, usize) {
        let parameters = Parameters { replication_factor, zone_redundancy: ZoneRedundancy::Maximum };
        let role = |i: u8| Role { zone: format!("z{i}"), capacity: 1 << 40, tags: Vec::new() };
        let roles: BTreeMap<NodeId, Role> = (0..nodes).map(|i| (NodeId([i; 32]), role(i))).collect();
        let (layout, explanation) = compute(previous, &roles, &parameters, 4).unwrap();
        (layout, explanation.statistics.total_moved_partitions.unwrap_or(0))
    }

    #[test]
    fn a_change_says_what_is_copied_and_dropped() {
        let (three, _) = layout(None, 5, 3);
        let (five, moved) = layout(Some(&three), 5, 5);
        let lines = moves(&three, &five, moved, Some(1_000_000));
        assert!(
            lines[0].starts_with("Copies of each partition: 3 before, 5 after; 32 are made and 0 dropped.")
        );
        assert!(lines[1].starts_with("Data to copy: about 2.0 MB at most (1.0 MB stored"), "{lines:?}");
        let (back, moved) = layout(Some(&five), 5, 3);
        let lines = moves(&five, &back, moved, Some(1_000_000));
        assert!(lines[0].contains("5 before, 3 after; 0 are made and 32 dropped"), "{lines:?}");
        assert_eq!(lines.len(), 1, "nothing is copied");
        assert!(moves(&three, &three, 4, None).is_empty(), "what is not known is not said");
    }
}
