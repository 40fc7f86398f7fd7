//! Faults of the network: cuts, resets, and packets that are held up.

use super::super::knobs::ZONES;
use super::super::log::FAULT;
use super::super::net::{HostId, Link};
use super::super::world::World;
use super::{any, hold, later};
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::time::Duration;

/// Cuts links for a while.
fn cut(world: &World, random: &mut StdRng, links: Vec<Link>, what: String) {
    let hold = hold(random);
    world.log.event(FAULT, format!("{what} for {hold:?}"));
    world.network.cut(&links);
    later(world, hold, move |world| {
        world.network.heal(&links);
        world.log.event(FAULT, format!("healed: {what}"));
    });
}

/// Links between hosts of one set and the rest: into it, out of it, or both.
fn links_around(
    world: &World,
    random: &mut StdRng,
    inside: impl Fn(HostId) -> bool,
) -> (Vec<Link>, &'static str) {
    let way = random.random_range(0..4);
    let (into, out) = (way != 0, way != 1);
    let mut links = Vec::new();
    for a in world.hosts().filter(|host| inside(*host)) {
        for b in world.hosts().filter(|host| !inside(*host)) {
            links.extend(into.then_some((b, a)));
            links.extend(out.then_some((a, b)));
        }
    }
    (links, ["from", "to", "to and from", "to and from"][way])
}

pub(super) fn cut_host(world: &World, random: &mut StdRng) {
    let Some(host) = any(random, &world.victims(true, true)) else { return };
    let (links, way) = links_around(world, random, |other| other == host);
    cut(world, random, links, format!("cut everything {way} {}", world.name(host)));
}

pub(super) fn cut_zone(world: &World, random: &mut StdRng) {
    let zone = random.random_range(0..ZONES);
    let victims = world.victims(true, true);
    let struck = |host| world.zone(host) == zone && victims.contains(&host);
    let (links, way) = links_around(world, random, struck);
    if !links.is_empty() {
        cut(world, random, links, format!("cut everything {way} zone z{zone}"));
    }
}

/// A victim and any other host.
fn pair(world: &World, random: &mut StdRng) -> Option<(HostId, HostId)> {
    let a = any(random, &world.victims(true, true))?;
    let b = random.random_range(world.hosts());
    (a != b).then(|| if random.random_bool(0.5) { (a, b) } else { (b, a) })
}

pub(super) fn cut_pair(world: &World, random: &mut StdRng) {
    if let Some((a, b)) = pair(world, random) {
        let what = format!("cut {} to {}", world.name(a), world.name(b));
        cut(world, random, vec![(a, b)], what);
    }
}

/// What is sent on a link from now on arrives seconds later: requests are hedged, retried, and then they all arrive.
pub(super) fn delay(world: &World, random: &mut StdRng) {
    let Some((a, b)) = pair(world, random) else { return };
    let hold = hold(random);
    let extra = Duration::from_millis([100, 1_000, 5_000, 20_000][random.random_range(0..4)]);
    world
        .log
        .event(FAULT, format!("{} to {} takes {extra:?} longer for {hold:?}", world.name(a), world.name(b)));
    world.network.set_extra(a, b, extra);
    later(world, hold, move |world| world.network.set_extra(a, b, Duration::ZERO));
}

/// What a gateway sends takes seconds: the layout may have moved on when it arrives. Nodes differ, so that some get it
/// much later than others.
pub(super) fn delay_gateway(world: &World, random: &mut StdRng) {
    let Some(gateway) = any(random, &world.victims(false, true)) else { return };
    let hold = hold(random);
    let most = [500, 3_000, 8_000][random.random_range(0..3)];
    let extra = Duration::from_millis(random.random_range(most / 4..most));
    world
        .log
        .event(FAULT, format!("{} is heard {extra:?} to {most} ms late for {hold:?}", world.name(gateway)));
    for node in world.storage_hosts() {
        let late = if random.random_bool(0.7) { extra } else { Duration::from_millis(most) };
        world.network.set_extra(gateway, node, late);
    }
    later(world, hold, move |world| {
        for node in world.storage_hosts() {
            world.network.set_extra(gateway, node, Duration::ZERO);
        }
    });
}

/// Ends every connection between two hosts; what was on its way is lost.
pub(super) fn reset(world: &World, random: &mut StdRng) {
    let Some((a, b)) = pair(world, random) else { return };
    world.log.event(FAULT, format!("connections between {} and {} are reset", world.name(a), world.name(b)));
    world.network.reset(a, b);
}
