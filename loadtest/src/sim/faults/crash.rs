//! Faults of machines: crashes, power cuts, and syncs that fail before one.

use super::super::log::FAULT;
use super::super::net::HostId;
use super::super::world::World;
use super::{any, any_storage, hold, later};
use hayloft_storage::meta;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use std::time::Duration;

/// Crashes a host and starts it again later.
pub(super) fn crash(world: &World, random: &mut StdRng, host: HostId) {
    let (told, seed, hold) = (random.random_bool(0.5), random.next_u64(), hold(random));
    let how = if told { "crashes" } else { "falls silent" };
    world.log.event(FAULT, format!("{} {how} for {hold:?}", world.name(host)));
    world.crash(host, told, seed);
    later(world, hold, move |world| world.start(host));
}

pub(super) fn storage(world: &World, random: &mut StdRng) {
    if let Some(host) = any_storage(world, random) {
        crash(world, random, host);
    }
}

pub(super) fn gateway(world: &World, random: &mut StdRng) {
    if let Some(host) = any(random, &world.victims(false, true)) {
        crash(world, random, host);
    }
}

pub(super) fn power_cut(world: &World, random: &mut StdRng) {
    world.log.event(FAULT, "power cut of all storage nodes that may be struck");
    for host in world.victims(true, false) {
        crash(world, random, host);
    }
}

/// Crashes a host soon, and starts it again later.
fn crash_soon(world: &World, random: &mut StdRng, host: HostId) {
    let (told, seed) = (random.random_bool(0.5), random.next_u64());
    let (delay, hold) = (Duration::from_millis(random.random_range(1..500)), hold(random));
    later(world, delay, move |world| {
        world.log.event(FAULT, format!("{} crashes for {hold:?}", world.name(host)));
        world.crash(host, told, seed);
        later(world, hold, move |world| world.start(host));
    });
}

/// Stops a disk in the middle of its work, and soon after the host.
pub(super) fn in_the_middle(world: &World, random: &mut StdRng) {
    let Some(host) = any_storage(world, random).filter(|host| world.is_up(*host)) else { return };
    let (disk, operations) = (random.random_range(0..world.knobs.disks), random.random_range(0..40));
    world
        .log
        .event(FAULT, format!("disk {disk} of {} stops after {operations} operations", world.name(host)));
    world.disk(host, disk).crash_after(operations);
    crash_soon(world, random, host);
}

/// Lets syncs of the data or the metadata fail; the host does not live long then.
pub(super) fn failed_sync(world: &World, random: &mut StdRng) {
    let Some(host) = any_storage(world, random).filter(|host| world.is_up(*host)) else { return };
    if random.random_bool(0.5) {
        let disk = random.random_range(0..world.knobs.disks);
        world.log.event(FAULT, format!("syncs of disk {disk} of {} fail", world.name(host)));
        world.disk(host, disk).fail_syncs(random.random_range(1..4));
    } else {
        let kind = [meta::memory::Fault::Sync, meta::memory::Fault::Write][random.random_range(0..2)];
        world.log.event(FAULT, format!("metadata of {}: {kind:?} fails", world.name(host)));
        world.metadata(host).inject(kind, random.random_range(0..10));
    }
    crash_soon(world, random, host);
}
