//! Faults of time: slow machines and disks, machines that stand still, clocks that jump.

use super::super::knobs::clock_offset;
use super::super::log::FAULT;
use super::super::world::World;
use super::{any, any_storage, hold, later};
use rand::RngExt as _;
use rand::rngs::StdRng;

fn slow(world: &World, random: &mut StdRng, host: usize, share: f64) {
    let (times, hold) = (random.random_range(10..1_000), hold(random));
    let part = if share < 1.0 { " (one disk)" } else { "" };
    world.log.event(FAULT, format!("{}{part} is {times} times slower for {hold:?}", world.name(host)));
    world.set_slowness(host, times, share);
    later(world, hold, move |world| world.set_slowness(host, 1, 1.0));
}

/// All blocking work of a host is slow.
pub(super) fn host(world: &World, random: &mut StdRng) {
    if let Some(host) = any(random, &world.victims(true, true)) {
        slow(world, random, host, 1.0);
    }
}

/// One of the disks is slow, the metadata's or one with blocks: that share of the work.
pub(super) fn disk(world: &World, random: &mut StdRng) {
    if let Some(host) = any_storage(world, random) {
        slow(world, random, host, 1.0 / (world.knobs.disks + 1) as f64);
    }
}

/// The machine stands still (SIGSTOP, a suspended guest, a laptop's lid), then goes on with all that is queued.
pub(super) fn pause(world: &World, random: &mut StdRng) {
    let Some(host) = any(random, &world.victims(true, true)).filter(|host| world.is_up(*host)) else {
        return;
    };
    let hold = hold(random) * random.random_range(1..4);
    world.log.event(FAULT, format!("{} stands still for {hold:?}", world.name(host)));
    world.pause(host, true);
    later(world, hold, move |world| {
        world.log.event(FAULT, format!("{} goes on", world.name(host)));
        world.pause(host, false);
    });
}

/// A wall clock jumps.
pub(super) fn clock(world: &World, random: &mut StdRng) {
    // A wrong clock is not a failure: it may strike any host.
    let host = random.random_range(world.hosts());
    let offset = clock_offset(random);
    world.log.event(FAULT, format!("{}'s clock jumps to {offset} us off", world.name(host)));
    world.set_clock(host, offset);
}
