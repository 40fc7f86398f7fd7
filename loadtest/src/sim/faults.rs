//! What goes wrong, and when: drawn from the seed.
//!
//! Fault model. Injected: links cut one way or both (a host, a zone, a pair), hosts that crash with or without a word
//! and come back with what their disks had synced, disks that stop in the middle of an operation before such a
//! crash, power cuts of the whole cluster, gateways that crash, wall clocks that jump by up to ten years, slow disks.
//! Out of scope here: bit rot, lost disks, full disks (the block store's own tests have them).

use super::knobs::{Knobs, clock_offset, rng};
use super::log::FAULT;
use super::net::{HostId, Link};
use super::world::World;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use std::time::Duration;

/// Faults go on until this is dropped or aborted; each repairs itself after a while.
pub(super) async fn inject(world: World, seed: u64, until: Duration) {
    let mut random = rng(seed, "faults");
    let Some(every) = Knobs::clone(&world.knobs).fault_every else { return };
    loop {
        let pause = every.mul_f64(random.random_range(0.2..1.8));
        tokio::time::sleep(pause).await;
        if world.log.now() >= until {
            return;
        }
        one(&world, &mut random);
    }
}

fn hold(random: &mut StdRng) -> Duration {
    let most = [300, 3_000, 15_000][random.random_range(0..3)];
    Duration::from_millis(random.random_range(50..most))
}

fn any(random: &mut StdRng, of: std::ops::Range<HostId>) -> HostId {
    random.random_range(of)
}

fn one(world: &World, random: &mut StdRng) {
    let storage = world.storage_hosts();
    match random.random_range(0..100) {
        0..20 => cut_host(world, random),
        20..30 => cut_pair(world, random),
        30..35 => cut_zone(world, random),
        35..55 => {
            let host = any(random, storage);
            crash(world, random, host);
        }
        55..65 => crash_in_the_middle(world, random),
        65..72 => {
            let host = any(random, storage.end..world.hosts().end);
            crash(world, random, host);
        }
        72..75 => {
            world.log.event(FAULT, "power cut of all storage nodes");
            for host in storage {
                crash(world, random, host);
            }
        }
        75..88 => {
            let host = any(random, world.hosts());
            let offset = clock_offset(random);
            world.log.event(FAULT, format!("{}'s clock jumps to {offset} us off", world.name(host)));
            world.set_clock(host, offset);
        }
        _ => slow_disks(world, random),
    }
}

/// Cuts links for a while.
fn cut(world: &World, random: &mut StdRng, links: Vec<Link>, what: String) {
    let hold = hold(random);
    world.log.event(FAULT, format!("{what} for {hold:?}"));
    world.network.cut(&links);
    let this = world.clone();
    world.tester.spawn("heal", async move {
        tokio::time::sleep(hold).await;
        this.network.heal(&links);
        this.log.event(FAULT, format!("healed: {what}"));
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

fn cut_host(world: &World, random: &mut StdRng) {
    let host = any(random, world.hosts());
    let (links, way) = links_around(world, random, |other| other == host);
    cut(world, random, links, format!("cut everything {way} {}", world.name(host)));
}

fn cut_zone(world: &World, random: &mut StdRng) {
    let zone = random.random_range(0..super::knobs::ZONES);
    let (links, way) = links_around(world, random, |host| world.zone(host) == zone);
    cut(world, random, links, format!("cut everything {way} zone z{zone}"));
}

fn cut_pair(world: &World, random: &mut StdRng) {
    let (a, b) = (any(random, world.hosts()), any(random, world.hosts()));
    if a != b {
        let what = format!("cut {} to {}", world.name(a), world.name(b));
        cut(world, random, vec![(a, b)], what);
    }
}

/// Crashes a host and starts it again later.
fn crash(world: &World, random: &mut StdRng, host: HostId) {
    let (told, seed, hold) = (random.random_bool(0.5), random.next_u64(), hold(random));
    let how = if told { "crashes" } else { "falls silent" };
    world.log.event(FAULT, format!("{} {how} for {hold:?}", world.name(host)));
    world.crash(host, told, seed);
    let this = world.clone();
    world.tester.spawn("restart", async move {
        tokio::time::sleep(hold).await;
        this.start(host);
    });
}

/// Stops a disk in the middle of its work, and soon after the host.
fn crash_in_the_middle(world: &World, random: &mut StdRng) {
    let host = any(random, world.storage_hosts());
    if !world.is_up(host) {
        return;
    }
    let (disk, operations) = (random.random_range(0..world.knobs.disks), random.random_range(0..40));
    world
        .log
        .event(FAULT, format!("disk {disk} of {} stops after {operations} operations", world.name(host)));
    world.crash_disk_after(host, disk, operations);
    let (told, seed) = (random.random_bool(0.5), random.next_u64());
    let (delay, hold) = (Duration::from_millis(random.random_range(1..500)), hold(random));
    let this = world.clone();
    world.tester.spawn("restart", async move {
        tokio::time::sleep(delay).await;
        this.log.event(FAULT, format!("{} crashes for {hold:?}", this.name(host)));
        this.crash(host, told, seed);
        tokio::time::sleep(hold).await;
        this.start(host);
    });
}

fn slow_disks(world: &World, random: &mut StdRng) {
    let host = any(random, world.hosts());
    let (times, hold) = (random.random_range(10..1_000), hold(random));
    world.log.event(FAULT, format!("{} is {times} times slower for {hold:?}", world.name(host)));
    world.set_slowness(host, times);
    let this = world.clone();
    world.tester.spawn("fast again", async move {
        tokio::time::sleep(hold).await;
        this.set_slowness(host, 1);
    });
}

/// Ends all faults: links heal, disks are fast, whoever is down starts.
pub(super) fn heal(world: &World) {
    world.log.event(FAULT, "everything is healed");
    world.network.heal_all();
    for host in world.hosts() {
        world.set_slowness(host, 1);
        world.start(host);
    }
}
