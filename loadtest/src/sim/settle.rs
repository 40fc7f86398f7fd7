//! After all faults have ended: the cluster must come to rest by itself within a bounded time, and then hold exactly
//! what the objects need, everywhere where it should be ([`crate::check::replicas`], [`crate::check::copies`],
//! [`crate::check::leaks`]).

use super::faults::ledger::Ledger;
use super::inspect;
use super::log::FAULT;
use super::operator;
use super::world::World;
use crate::check;
use std::time::Duration;

/// For the layout to come to rest.
const LAYOUT_WITHIN: Duration = Duration::from_mins(10);
/// Before the second look; before each further one twice as long, up to the longest.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(1));
/// Lines of what is wrong that are shown.
const SHOWN: usize = 12;

/// Waits until the cluster is at rest; what is still wrong when the time is over is a fault of the run.
pub(super) async fn settle(world: &World, ledger: &Ledger) {
    let start = world.log.now();
    if !operator::finish(world, LAYOUT_WITHIN).await {
        let state = inspect::cluster(world, false).await.err().map(|error| error.to_string());
        return world.fault(format!("the layout does not come to rest: {}", state.unwrap_or_default()));
    }
    let at_rest = world.log.now();
    world.log.event(FAULT, format!("the layout is at rest after {:.0?}", at_rest.saturating_sub(start)));
    let end = at_rest + world.knobs.settles_within();
    let mut pause = LOOK_AGAIN.0;
    let wrong = loop {
        let wrong = wrong(world).await;
        if wrong.is_empty() {
            world.log.event(FAULT, format!("converged after {:.0?}", world.log.now().saturating_sub(start)));
            if !world.storage_hosts().any(|host| world.may_be_rotten(host)) {
                ledger.whole();
            }
            return;
        }
        if world.log.now() >= end {
            break wrong;
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LOOK_AGAIN.1);
    };
    let all = wrong.len();
    for line in wrong.into_iter().take(SHOWN) {
        world.fault(format!("not at rest after {:.0?}: {line}", world.log.now().saturating_sub(start)));
    }
    if all > SHOWN {
        world.fault(format!("and {} more that is not at rest", all - SHOWN));
    }
}

/// What is wrong now. Blocks are read only when all else is right.
async fn wrong(world: &World) -> Vec<String> {
    for with_blocks in [false, true] {
        let view = match inspect::cluster(world, with_blocks).await {
            Ok(view) => view,
            Err(error) => return vec![format!("{error:#}")],
        };
        let mut found = check::replicas(&view);
        found.extend(check::copies(&view));
        found.extend(check::leaks(&view, world.knobs.waits_for_uncommitted()));
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}
