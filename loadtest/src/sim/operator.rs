//! The operator: changes the layout while clients work and faults strike. Nodes are added, removed, replaced, moved to
//! other zones and resized, the replication factor goes to five and back, two operators apply at once, and nodes that
//! are gone for good are skipped.
//!
//! What is kept, so that the promises can be kept: as many nodes and zones as copies need; in runs with a healthy core
//! every zone keeps a node, and labels of zones stay where the nodes stand. A node goes for good only when the layout
//! no longer has it, or (one of them, and that counts as a lost copy) when it is dead and has to be skipped.

use super::faults::ledger::Ledger;
use super::knobs::{ZONES, rng};
use super::log::FAULT;
use super::net::HostId;
use super::world::{Front, World, role};
use hayloft_common::layout::{Layout, Parameters, Phase, Role, StagedChanges, ZoneRedundancy};
use hayloft_common::stamp::Stamp;
use hayloft_gateway::layout::ApplyError;
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For one command of an operator.
const PATIENCE: Duration = Duration::from_secs(40);

/// A change of the layout, by host.
#[derive(Clone, Debug)]
enum Change {
    Assign(HostId, usize, u64),
    Remove(HostId),
    Replace { old: HostId, new: HostId, zone: usize },
    Copies(usize),
}

/// Roles by host, as the newest layout has them.
struct Now {
    roles: BTreeMap<HostId, Role>,
    copies: usize,
}

impl Now {
    fn of(world: &World, layout: &Layout) -> Self {
        let role = |host| layout.roles.get(&world.id(host)).map(|role| (host, role.clone()));
        let copies = layout.parameters.replication_factor;
        Self { roles: world.storage_hosts().filter_map(role).collect(), copies }
    }

    fn zones(&self) -> BTreeSet<String> {
        self.roles.values().map(|role| role.zone.clone()).collect()
    }

    /// Nodes with a role that are not gone.
    fn there(&self, world: &World) -> usize {
        self.roles.keys().filter(|host| !world.is_gone(**host)).count()
    }

    /// Whether copies and zones still find their place without `host`.
    fn can_spare(&self, world: &World, host: HostId) -> bool {
        let stays = |other: HostId| other != host && !world.is_gone(other);
        let rest = || self.roles.iter().filter(|(other, _)| stays(**other)).map(|(_, role)| &role.zone);
        rest().count() >= self.copies && rest().collect::<BTreeSet<_>>().len() == self.zones().len()
    }
}

fn stage(world: &World, staged: &mut StagedChanges, stamp: Stamp, change: &Change) {
    let mut set = |host: HostId, role: Option<Role>| staged.stage_role(world.id(host), role, stamp);
    match *change {
        Change::Assign(host, zone, capacity) => set(host, Some(role(zone, capacity))),
        Change::Remove(host) => set(host, None),
        Change::Replace { old, new, zone } => {
            set(old, None);
            set(new, Some(role(zone, 1 << 40)));
        }
        Change::Copies(replication_factor) => {
            let zone_redundancy = ZoneRedundancy::Maximum;
            staged.stage_parameters(Parameters { replication_factor, zone_redundancy }, stamp);
        }
    }
}

/// One of these.
fn one<T: Clone>(random: &mut StdRng, of: &[T]) -> Option<T> {
    (!of.is_empty()).then(|| of[random.random_range(0..of.len())].clone())
}

/// Replaces as many nodes as there are free ones, each by one of its zone: sets move as a whole.
fn shuffle(world: &World, now: &Now) -> Vec<Change> {
    let mut held: BTreeMap<HostId, &Role> = now.roles.iter().map(|(host, role)| (*host, role)).collect();
    let mut changes = Vec::new();
    for new in free(world, now) {
        let zone = world.zone(new);
        let old = held.iter().find(|(_, role)| role.zone == format!("z{zone}")).map(|(host, _)| *host);
        if let Some(old) = old {
            held.remove(&old);
            changes.push(Change::Replace { old, new, zone });
        }
    }
    changes
}

/// Nodes that run and have no role.
fn free(world: &World, now: &Now) -> Vec<HostId> {
    world
        .storage_hosts()
        .filter(|host| !now.roles.contains_key(host) && !world.is_gone(*host) && world.is_up(*host))
        .collect()
}

/// A change that is possible now.
fn draw(world: &World, random: &mut StdRng, now: &Now) -> Option<Change> {
    let free = free(world, now);
    let held: Vec<HostId> = now.roles.keys().copied().collect();
    let spared: Vec<HostId> = held.iter().copied().filter(|host| now.can_spare(world, *host)).collect();
    match random.random_range(0..12) {
        0..3 => one(random, &free).map(|host| Change::Assign(host, world.zone(host), 1 << 40)),
        3..6 => one(random, &spared).map(Change::Remove),
        6..8 => {
            let new = one(random, &free)?;
            let zone = world.zone(new);
            // In the old one's zone, so that all zones stay.
            let old: Vec<HostId> =
                held.iter().copied().filter(|host| now.roles[host].zone == format!("z{zone}")).collect();
            one(random, &old).map(|old| Change::Replace { old, new, zone })
        }
        8 => {
            let host = one(random, &spared).filter(|_| world.knobs.victims.is_none())?;
            Some(Change::Assign(host, random.random_range(0..ZONES), now.roles[&host].capacity))
        }
        9 => {
            let host = one(random, &held)?;
            Some(Change::Assign(
                host,
                super::world::zone_of(&now.roles[&host].zone),
                1 << random.random_range(38..42),
            ))
        }
        _ if now.copies == 5 => Some(Change::Copies(3)),
        _ => (now.there(world) >= 5).then_some(Change::Copies(5)),
    }
}

/// A gateway that is up.
fn any_front(world: &World, random: &mut StdRng) -> Option<(usize, Front)> {
    let fronts: Vec<(usize, Front)> = (0..world.knobs.gateways.len())
        .filter_map(|gateway| world.front(gateway).map(|front| (gateway, front)))
        .collect();
    one(random, &fronts)
}

/// Runs an operator's command at a gateway, as a task of it.
async fn command<T: Send + 'static>(
    front: &Front,
    work: impl Future<Output = Result<T, ApplyError>> + Send + 'static,
) -> Result<T, String> {
    let (done, result) = tokio::sync::oneshot::channel();
    front.env.spawn("operator", async move {
        // An operator that gave up needs no answer.
        let _ = done.send(work.await);
    });
    match tokio::time::timeout(PATIENCE, result).await {
        Ok(Ok(result)) => result.map_err(|error| error.to_string()),
        Ok(Err(_)) | Err(_) => Err("no answer".into()),
    }
}

async fn newest(front: &Front) -> Result<Layout, String> {
    let layout = front.layout.clone();
    command(front, async move { layout.current().await.map(|(active, _)| active.newest().clone()) }).await
}

/// Stages and applies.
async fn apply(world: &World, (gateway, front): &(usize, Front), changes: &[Change]) -> Result<(), String> {
    let (manager, this, staged) = (front.layout.clone(), world.clone(), changes.to_vec());
    let version = command(front, async move {
        let edit = |all: &mut StagedChanges, stamp| {
            for change in &staged {
                stage(&this, all, stamp, change);
            }
        };
        manager.stage(edit).await.map(|(active, _)| active.newest().version + 1)
    });
    let version = version.await?;
    let manager = front.layout.clone();
    world.log.event(FAULT, format!("operator at gateway {gateway} applies version {version}: {changes:?}"));
    let applied = command(front, async move { manager.apply(version).await }).await?;
    let (epoch, phase, queued) = (applied.active.epoch, applied.active.phase, applied.active.queued.len());
    world.log.event(FAULT, format!("version {version} is applied: epoch {epoch} {phase:?}, {queued} queued"));
    Ok(())
}

fn tell(world: &World, result: Result<(), String>) -> bool {
    if let Err(reason) = &result {
        world.log.event(FAULT, format!("operator: {reason}"));
    }
    result.is_ok()
}

/// Changes the layout now and then until `until`.
pub(super) async fn run(world: World, ledger: Ledger, until: Duration) {
    let Some(every) = world.knobs.layout_every else { return };
    let mut random = rng(world.seed(), "operator");
    let random = &mut random;
    loop {
        tokio::time::sleep(every.mul_f64(random.random_range(0.2..1.8))).await;
        if world.log.now() >= until {
            return;
        }
        let Some(at) = any_front(&world, random) else { continue };
        let now = match newest(&at.1).await {
            Ok(layout) => Now::of(&world, &layout),
            Err(reason) => {
                tell(&world, Err(reason));
                continue;
            }
        };
        if random.random_bool(0.1) && lose(&world, &ledger, random, &now) {
            continue;
        }
        if random.random_bool(0.2) {
            let changes = shuffle(&world, &now);
            if !changes.is_empty() {
                tell(&world, apply(&world, &at, &changes).await);
                continue;
            }
        }
        let Some(change) = draw(&world, random, &now) else { continue };
        match any_front(&world, random).filter(|_| random.random_bool(0.25)) {
            None => drop(tell(&world, apply(&world, &at, &[change]).await)),
            Some(other) => {
                // Two operators at once: what both have staged comes together, or one of them loses.
                let Some(rival) = draw(&world, random, &now) else { continue };
                if !compatible(&now, &[&change, &rival]) {
                    continue;
                }
                let (changes, rivals) = ([change], [rival]);
                let both =
                    futures::future::join(apply(&world, &at, &changes), apply(&world, &other, &rivals));
                let (one, two) = both.await;
                tell(&world, one);
                tell(&world, two);
            }
        }
    }
}

/// Whether changes may come into force together or in any order.
fn compatible(now: &Now, changes: &[&Change]) -> bool {
    // Two that take a node away might take too much; one that adds can always stand beside.
    let takes = |change: &&&Change| {
        matches!(change, Change::Remove(_) | Change::Replace { .. } | Change::Copies(_))
            || matches!(change, Change::Assign(host, ..) if now.roles.contains_key(host))
    };
    changes.iter().filter(takes).count() < 2
}

/// A node is gone for good, with all its disks: the operator will remove it.
fn lose(world: &World, ledger: &Ledger, random: &mut StdRng, now: &Now) -> bool {
    let candidates: Vec<HostId> = now
        .roles
        .keys()
        .copied()
        .filter(|host| world.knobs.may_fail(*host) && now.can_spare(world, *host) && !world.is_gone(*host))
        .collect();
    let Some(host) = one(random, &candidates).filter(|host| ledger.may_lose(*host)) else { return false };
    world.log.event(FAULT, format!("{} is gone for good", world.name(host)));
    world.crash(host, false, 0);
    world.set_gone(host);
    true
}

/// Brings the layout to rest once all faults have ended: nodes that are gone are removed and not waited for, until the
/// layout is stable with nothing queued. False if that does not come about in time.
pub(super) async fn finish(world: &World, within: Duration) -> bool {
    let random = &mut rng(world.seed(), "operator's end");
    let end = world.log.now() + within;
    loop {
        if let Some(at) = any_front(world, random)
            && step_to_rest(world, &at).await
        {
            return true;
        }
        if world.log.now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Whether the layout is at rest and without nodes that are gone; if not, does what an operator can do about it.
async fn step_to_rest(world: &World, at: &(usize, Front)) -> bool {
    let manager = at.1.layout.clone();
    let active = match command(&at.1, async move { manager.current().await }).await {
        Ok((active, _)) => active,
        Err(reason) => return tell(world, Err(reason)),
    };
    let now = Now::of(world, active.newest());
    let gone: Vec<HostId> = now.roles.keys().copied().filter(|host| world.is_gone(*host)).collect();
    if !gone.is_empty() {
        let mut changes: Vec<Change> = gone.into_iter().map(Change::Remove).collect();
        if now.there(world) < now.copies {
            changes.push(Change::Copies(3));
        }
        tell(world, apply(world, at, &changes).await);
        return false;
    }
    if active.phase == Phase::Stable {
        return active.queued.is_empty();
    }
    let (manager, version) = (at.1.layout.clone(), active.current.version);
    if world.storage_hosts().any(|host| world.is_gone(host)) {
        match command(&at.1, async move { manager.skip_dead(version, false).await }).await {
            Ok(skipped) => {
                world.log.event(FAULT, format!("operator skips {} dead nodes", skipped.nodes.len()));
            }
            // Mostly: nobody dead, or not yet without risk.
            Err(reason) => drop(tell(world, Err(reason))),
        }
    }
    false
}
