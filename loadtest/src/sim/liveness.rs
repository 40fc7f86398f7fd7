//! A healthy core must go on serving: in runs whose faults strike the nodes of one zone only, a quorum of every set is
//! up, connected and quick, so requests through gateways that no fault strikes must succeed within a bound.
//!
//! The bound: a silent node costs one hedge delay and is then passed over, a lost connection one more try; each of the
//! steps of a request may meet that once, and blocks go three at a time. Nothing may wait for the time-out of a call.

use super::world::World;
use hayloft_gateway::domain::DomainError;
use std::time::Duration;

/// For a request without blocks.
const BASE: Duration = Duration::from_secs(15);
/// More for each block that is read or written.
const PER_BLOCK: Duration = Duration::from_secs(1);

/// Whether a request through a gateway must be served, whatever goes wrong in this run.
fn is_due(world: &World, gateway: usize) -> bool {
    world.knobs.victims.is_some() && !world.knobs.may_fail(world.knobs.storage.len() + gateway)
}

/// Notes it if a request that was due was not served, or too late. `bytes` is what it moves.
pub(super) fn judge(
    world: &World,
    gateway: usize,
    operation: &str,
    bytes: u64,
    took: Duration,
    error: Option<&DomainError>,
) {
    if !is_due(world, gateway) {
        return;
    }
    let blocks = bytes / world.knobs.domain.block_size as u64 + 1;
    let bound = BASE + PER_BLOCK * u32::try_from(blocks).unwrap_or(u32::MAX);
    let failed = error.filter(|error| {
        // Contention is up to the other clients, and too much at once up to this one's small limits.
        let own = matches!(error, DomainError::Contention | DomainError::Overloaded { .. });
        !own && (error.is_retryable() || matches!(error, DomainError::Damaged { .. }))
    });
    if let Some(error) = failed {
        world.fault(format!(
            "{operation} through gateway {gateway} failed though a quorum is healthy: {error}"
        ));
    } else if took > bound {
        world.fault(format!(
            "{operation} through gateway {gateway} took {took:.1?} though a quorum is healthy (bound {bound:?})"
        ));
    }
}
