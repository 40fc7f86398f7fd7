//! How fast blocks are released and fetched again, measured. Ignored: they take long and prove nothing about right or
//! wrong. Run optimised: `cargo test --release -p hayloft-storage --test blocks_rates -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::cluster::*;
use futures::stream::{self, StreamExt as _};
use hayloft_common::hash::Hash;
use hayloft_storage::blocks::{BlockConfig, DiskConfig};
use hayloft_storage::daemon::Running;
use std::time::{Duration, Instant};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn machines(dirs: &[tempfile::TempDir]) -> Vec<Machine> {
    let machine = |dir: &tempfile::TempDir| {
        let mut machine = Machine::new(vec![DiskConfig::path(dir.path().join("data"))]);
        machine.blocks = BlockConfig { disk_reserve: 0, ..BlockConfig::default() };
        machine
    };
    dirs.iter().map(machine).collect()
}

async fn put_many(running: &[Running], count: u64, len: usize) -> Vec<Hash> {
    let puts = stream::iter(0..count).map(|seed| put_on_all(running, seed, len));
    puts.buffer_unordered(64).collect().await
}

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn now() -> Instant {
    Instant::now()
}

async fn all_gone(running: &Running, hashes: &[Hash]) -> bool {
    for hash in hashes.iter().rev() {
        if running.node.locate(*hash).await.unwrap().is_some() {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn releases() {
    let dirs = [tempfile::tempdir().unwrap()];
    let mut machines = machines(&dirs);
    machines[0].settings.block_grace = Duration::from_mins(10);
    let count = number("BLOCKS", 100_000);
    let running = start_all(&machines).await;
    let hashes = put_many(&running, count, 4096).await;
    let drops = stream::iter(&hashes).map(|hash| drop_reference(&running[0].node, *hash));
    drops.buffer_unordered(256).collect::<()>().await;
    // All of them become due at once.
    for one in running {
        one.stop().await;
    }
    machines[0].metadata.crash(0);
    machines[0].settings.block_grace = Duration::ZERO;
    let running = start_all(&machines).await;
    let began = now();
    while !all_gone(&running[0], &hashes).await {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{count} blocks released in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn fetches_after_a_directory_was_deleted() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (megabytes, len) = (number("MEGABYTES", 512), number("LENGTH", 65_536));
    let running = start_all(&machines(&dirs)).await;
    let hashes = put_many(&running, megabytes * 1_048_576 / len, len as usize).await;
    let node = &running[0].node;
    let before = node.blocks.readable_disks();
    remove(&dirs[0].path().join("data"));
    let began = now();
    until("the loss is noticed", async || {
        let disks = node.blocks.readable_disks();
        !disks.is_empty() && disks != before
    })
    .await;
    let noticed = began.elapsed();
    let count = hashes.len() as u64;
    loop {
        let stats = node.blocks.stats().await.unwrap();
        if stats.iter().map(|disk| disk.blocks).sum::<u64>() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = began.elapsed().saturating_sub(noticed);
    let rate = megabytes as f64 / took.as_secs_f64();
    println!(
        "noticed after {noticed:?}; {megabytes} MiB in blocks of {len} fetched in {took:?}: {rate:.0} MiB/s"
    );
}
