//! What goes wrong, and when: drawn from the seed.
//!
//! Fault model, one file for each kind of thing that breaks:
//! - [`links`]: links cut one way or both (a host, a zone, a pair), connections reset, packets held up for seconds;
//! - [`crash`]: hosts that crash with or without a word and come back with what their disks had synced, disks that stop
//!   in the middle of an operation before such a crash, failed syncs, power cuts of the whole cluster;
//! - [`slow`]: slow machines and disks, machines that stand still and go on, wall clocks that jump by up to ten years;
//! - [`data`]: disks lost, away for a while, full and rotten, metadata full and lost.
//!
//! Which kinds a run has, and how often each strikes, is part of the seed ([`mix`]). What destroys data durably asks
//! the [`ledger`] first: never more copies than the promise allows.

mod crash;
mod data;
pub(super) mod ledger;
mod links;
pub(super) mod mix;
mod slow;

use super::knobs::rng;
use super::log::FAULT;
use super::net::HostId;
use super::world::World;
use ledger::Ledger;
use mix::Kind;
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::time::Duration;

/// Faults go on until `until`; each repairs itself after a while.
pub(super) async fn inject(world: World, ledger: Ledger, until: Duration) {
    let mut random = rng(world.seed(), "faults");
    let Some(every) = world.knobs.fault_every else { return };
    loop {
        let pause = every.mul_f64(random.random_range(0.2..1.8));
        tokio::time::sleep(pause).await;
        if world.log.now() >= until {
            return;
        }
        let Some(kind) = world.knobs.mix.draw(&mut random) else { return };
        one(&world, &ledger, &mut random, kind);
    }
}

fn one(world: &World, ledger: &Ledger, random: &mut StdRng, kind: Kind) {
    match kind {
        Kind::CutHost => links::cut_host(world, random),
        Kind::CutPair => links::cut_pair(world, random),
        Kind::CutZone => links::cut_zone(world, random),
        Kind::Delay => links::delay(world, random),
        Kind::DelayGateway => links::delay_gateway(world, random),
        Kind::Reset => links::reset(world, random),
        Kind::Crash => crash::storage(world, random),
        Kind::CrashInTheMiddle => crash::in_the_middle(world, random),
        Kind::FailedSync => crash::failed_sync(world, random),
        Kind::CrashGateway => crash::gateway(world, random),
        Kind::PowerCut => crash::power_cut(world, random),
        Kind::Clock => slow::clock(world, random),
        Kind::SlowHost => slow::host(world, random),
        Kind::SlowDisk => slow::disk(world, random),
        Kind::Pause => slow::pause(world, random),
        Kind::Rot => data::rot(world, ledger, random),
        Kind::DiskLost => data::disk_lost(world, ledger, random),
        Kind::DiskAway => data::disk_away(world, random),
        Kind::DiskFull => data::disk_full(world, random),
        Kind::MetadataFull => data::metadata_full(world, random),
        Kind::MetadataLost => data::metadata_lost(world, ledger, random),
    }
}

/// How long a fault lasts.
fn hold(random: &mut StdRng) -> Duration {
    let most = [300, 3_000, 15_000][random.random_range(0..3)];
    Duration::from_millis(random.random_range(50..most))
}

/// One of these hosts.
fn any(random: &mut StdRng, of: &[HostId]) -> Option<HostId> {
    (!of.is_empty()).then(|| of[random.random_range(0..of.len())])
}

/// A storage node that faults may strike.
fn any_storage(world: &World, random: &mut StdRng) -> Option<HostId> {
    any(random, &world.victims(true, false))
}

/// Does `then` after a while.
fn later(world: &World, after: Duration, then: impl FnOnce(&World) + Send + 'static) {
    let this = world.clone();
    world.tester.spawn("fault's end", async move {
        tokio::time::sleep(after).await;
        then(&this);
    });
}

/// Ends all faults: links heal, disks are fast and have room, whoever stands still or is down goes on.
pub(super) fn heal(world: &World) {
    world.log.event(FAULT, "everything is healed");
    world.network.heal_all();
    for host in world.hosts() {
        world.set_slowness(host, 1, 1.0);
        world.pause(host, false);
        world.make_room(host);
        world.start(host);
    }
    for host in world.storage_hosts() {
        // A disk that failed stays set aside until its node starts again, and so does a poisoned engine.
        if world.needs_restart(host) {
            world.crash(host, true, 0);
            world.start(host);
        }
    }
}
