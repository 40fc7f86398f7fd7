//! From roles and parameters to the next layout version. Deterministic: the same input gives the same
//! layout on every machine.
//!
//! In this order: the largest partition size that the zone redundancy allows; among the assignments of
//! that size, the fewest copies that move from the previous version; among those, moves spread over the
//! nodes by capacity (the last by local search, so good and not always best). See [`super::solve`].

use super::assignment::Layout;
use super::error::{InvalidLayout, LayoutError};
use super::explain::Explanation;
use super::role::{Parameters, Role, ZoneRedundancy};
use super::solve::Problem;
use crate::id::NodeId;
use crate::limits::{MAX_PARTITION_BITS, REPLICATION_FACTORS};
use std::collections::{BTreeMap, BTreeSet};

/// Computes the layout that follows `previous` (none, or version 0, for a new cluster) with `2^bits`
/// partitions, and explains it.
pub fn compute(
    previous: Option<&Layout>,
    roles: &BTreeMap<NodeId, Role>,
    parameters: &Parameters,
    bits: u8,
) -> Result<(Layout, Explanation), LayoutError> {
    check(roles, parameters, bits)?;
    let version = previous.map_or(0, |layout| layout.version);
    let previous = previous.filter(|layout| !layout.is_empty());
    if let Some(previous) = previous.filter(|previous| previous.bits != bits) {
        return Err(LayoutError::PartitionBitsChanged { fixed: previous.bits, asked: bits });
    }
    let problem = Problem::new(roles, parameters, bits);
    let partition_size = problem
        .largest_size()
        .ok_or(LayoutError::CapacityTooSmall { partitions: problem.partitions, copies: problem.copies })?;
    let nodes: Vec<NodeId> = roles.keys().copied().collect();
    let held = held_before(previous, &nodes, problem.partitions);
    let assignment = problem.assign(partition_size, &held).ok_or_else(|| {
        LayoutError::Internal(InvalidLayout("the flow is smaller than its minimum cut".into()))
    })?;
    let layout = Layout {
        version: version.checked_add(1).ok_or(LayoutError::VersionExhausted { version })?,
        bits,
        parameters: *parameters,
        roles: roles.clone(),
        nodes,
        assignment,
        partition_size,
        applied_by: 0,
    };
    layout.validate()?;
    let explanation = Explanation::new(&layout, previous, &problem, &held);
    Ok((layout, explanation))
}

/// For each partition the numbers, in the new order of nodes, of those that hold it now.
fn held_before(previous: Option<&Layout>, nodes: &[NodeId], partitions: usize) -> Vec<Vec<u16>> {
    let Some(previous) = previous else { return vec![Vec::new(); partitions] };
    let renumbered: Vec<Option<u16>> =
        previous.nodes.iter().map(|node| nodes.binary_search(node).ok().map(|i| i as u16)).collect();
    let translate = |old: &u16| renumbered.get(usize::from(*old)).copied().flatten();
    previous.assignment.iter().map(|copies| copies.iter().filter_map(translate).collect()).collect()
}

fn check(roles: &BTreeMap<NodeId, Role>, parameters: &Parameters, bits: u8) -> Result<(), LayoutError> {
    let copies = parameters.replication_factor;
    if bits > MAX_PARTITION_BITS {
        return Err(LayoutError::PartitionBits { bits });
    }
    if !REPLICATION_FACTORS.contains(&copies) {
        return Err(LayoutError::ReplicationFactor { found: copies });
    }
    if let ZoneRedundancy::AtLeast(asked) = parameters.zone_redundancy
        && !(1..=copies).contains(&asked)
    {
        return Err(LayoutError::ZoneRedundancyRange { asked, replication_factor: copies });
    }
    if roles.len() < copies {
        return Err(LayoutError::TooFewNodes { found: roles.len(), needed: copies });
    }
    if roles.len() > usize::from(u16::MAX) + 1 {
        return Err(LayoutError::TooManyNodes { found: roles.len() });
    }
    for (&node, role) in roles {
        if role.capacity == 0 {
            return Err(LayoutError::ZeroCapacity { node });
        }
        if role.zone.is_empty() {
            return Err(LayoutError::NoZone { node });
        }
    }
    let zones = roles.values().map(|role| &role.zone).collect::<BTreeSet<_>>().len();
    let needed = parameters.effective_zone_redundancy(zones);
    if zones < needed {
        return Err(LayoutError::TooFewZones { found: zones, needed });
    }
    Ok(())
}
