//! Faults of stored data: rotten bits, disks lost and full, metadata full and lost.

use super::super::log::FAULT;
use super::super::world::World;
use super::ledger::Ledger;
use super::{any_storage, hold, later};
use hayloft_storage::blocks::MARKER;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use std::time::Duration;

/// Flips a few bits in files of blocks. (A disk whose marker rots is as lost.)
pub(super) fn rot(world: &World, ledger: &Ledger, random: &mut StdRng) {
    let Some(host) = any_storage(world, random).filter(|host| ledger.may_lose(*host)) else { return };
    let disk = random.random_range(0..world.knobs.disks);
    world.note_rot(host);
    for _ in 0..random.random_range(1..4) {
        if let Some(file) = world.disk(host, disk).rot_among(random.next_u64(), &|path| path != MARKER) {
            world.log.event(FAULT, format!("a bit of {file} on disk {disk} of {} rots", world.name(host)));
        }
    }
}

/// A disk is unplugged, or its directory removed, while the node runs. Later the operator puts an empty one in its
/// place and starts the node again.
pub(super) fn disk_lost(world: &World, ledger: &Ledger, random: &mut StdRng) {
    let Some(host) = any_storage(world, random).filter(|host| ledger.may_lose(*host)) else { return };
    let (disk, removed) = (random.random_range(0..world.knobs.disks), random.random_bool(0.5));
    let how = if removed { "removed" } else { "unplugged" };
    world.log.event(FAULT, format!("disk {disk} of {} is {how}", world.name(host)));
    let lost = world.disk(host, disk);
    if removed {
        lost.wipe();
    } else {
        lost.unplug();
    }
    world.note_restart(host);
    let hold = hold(random);
    let seed = random.next_u64();
    later(world, hold, move |world| {
        world.log.event(FAULT, format!("{} stops and gets a new disk {disk}", world.name(host)));
        world.crash(host, true, seed);
        world.new_disk(host, disk);
        later(world, Duration::from_millis(seed % 2_000), move |world| world.start(host));
    });
}

/// A disk's cable comes off, and is plugged in again later: nothing is lost. Whether the node takes it back at once or
/// when it is started again is its business.
pub(super) fn disk_away(world: &World, random: &mut StdRng) {
    let Some(host) = any_storage(world, random) else { return };
    let (disk, hold) = (random.random_range(0..world.knobs.disks), hold(random));
    world.log.event(FAULT, format!("disk {disk} of {} is away for {hold:?}", world.name(host)));
    let away = world.disk(host, disk);
    away.unplug();
    world.note_restart(host);
    later(world, hold, move |world| {
        world.log.event(FAULT, format!("disk {disk} of {} is back", world.name(host)));
        away.plug_in();
    });
}

/// A disk has little or no room for a while.
pub(super) fn disk_full(world: &World, random: &mut StdRng) {
    let Some(host) = any_storage(world, random) else { return };
    let disk = random.random_range(0..world.knobs.disks);
    let (left, hold) = (random.random_range(0..64 << 10), hold(random));
    // Sometimes the node sees it coming: less is left than its reserve.
    let seen = random.random_bool(0.5);
    let reserve = world.knobs.blocks.disk_reserve;
    world
        .log
        .event(FAULT, format!("disk {disk} of {} is full (seen: {seen}) for {hold:?}", world.name(host)));
    let full = world.disk(host, disk);
    full.set_capacity(full.used() + left + if seen { reserve / 2 } else { 0 });
    later(world, hold, move |world| world.make_room(host));
}

/// The metadata's file system is full: seen in time, so that writes are refused, or all at once.
pub(super) fn metadata_full(world: &World, random: &mut StdRng) {
    let Some(host) = any_storage(world, random).filter(|host| world.is_up(*host)) else { return };
    let (seen, hold) = (random.random_bool(0.6), hold(random));
    world.log.event(FAULT, format!("metadata of {} is full (seen: {seen}) for {hold:?}", world.name(host)));
    world.fill_metadata(host, seen);
    let seed = random.next_u64();
    later(world, hold, move |world| {
        world.make_room(host);
        if !seen {
            // Its engine takes no more writes until it is opened again.
            world.log.event(FAULT, format!("{} has room again and is restarted", world.name(host)));
            world.crash(host, true, seed);
            world.start(host);
        }
    });
}

/// A node that is down loses its metadata, and starts with none.
pub(super) fn metadata_lost(world: &World, ledger: &Ledger, random: &mut StdRng) {
    let Some(host) = any_storage(world, random).filter(|host| ledger.may_lose(*host)) else { return };
    let (seed, hold) = (random.next_u64(), hold(random));
    world.log.event(FAULT, format!("{} crashes for {hold:?} and loses its metadata", world.name(host)));
    world.crash(host, true, seed);
    world.metadata(host).wipe();
    later(world, hold, move |world| world.start(host));
}
