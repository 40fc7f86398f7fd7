//! A crash at every step of a workload loses no acknowledged block, serves no torn one, and leaves a
//! disk that opens, scans and goes on.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::*;
use hayloft_common::hash::Hash;
use hayloft_storage::blocks::{BlockIndex, BlockStore, DiskConfig, MemoryIndex};
use hayloft_storage::disk::MemoryDisk;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Puts and deletes until something fails. `live` gets what was acknowledged and not deleted; a block
/// whose deletion was begun may be there or not.
async fn work(store: &BlockStore, index: &MemoryIndex, live: &mut BTreeMap<Hash, (u64, usize)>, from: u64) {
    for seed in from..from + 8 {
        // Packed, packed over several pages, plain.
        for (kind, len) in [(0, 300), (1, 1000), (2, 9000)] {
            let seed = seed * 3 + kind;
            let (hash, envelope) = block(seed, len);
            let Ok(location) = store.put(hash, envelope).await else { return };
            index.insert(hash, location);
            live.insert(hash, (seed, len));
        }
        let oldest = live.iter().min_by_key(|(_, (seed, _))| *seed).map(|(hash, _)| *hash);
        if let Some(hash) = oldest.filter(|_| seed % 2 == 0) {
            live.remove(&hash);
            let location = index.remove(&hash).unwrap();
            if store.delete(&hash, &location).await.is_err() {
                return;
            }
        }
    }
}

async fn check(store: &BlockStore, index: &MemoryIndex, live: &BTreeMap<Hash, (u64, usize)>) {
    for (hash, (seed, len)) in live {
        let read = store.get(hash, &index.get(hash).unwrap()).await.unwrap();
        assert_eq!(read, block(*seed, *len).1);
    }
    let (rebuilt, _) = rebuild(store);
    for (hash, (seed, len)) in live {
        let location = rebuilt.get(hash).expect("a scan finds every acknowledged block");
        assert_eq!(store.get(hash, &location).await.unwrap(), block(*seed, *len).1);
    }
    // What a scan finds beyond them is whole, too.
    for (hash, location) in rebuilt.entries() {
        store.get(&hash, &location).await.unwrap();
    }
}

/// Crashes after `step` operations, then in each of some further `rounds`.
async fn crash_at(step: u64, seed: u64, rounds: u64) -> bool {
    let (disk, index, mut live) = (MemoryDisk::new("a"), MemoryIndex::default(), BTreeMap::new());
    disk.crash_after(step);
    if let Ok(store) = try_open(vec![memory(&disk)], &index) {
        work(&store, &index, &mut live, 0).await;
    }
    let crashed = disk.has_crashed();
    disk.crash(seed);
    // Recovery leaves a state from which recovery works, and so does a crash during it.
    for again in 1..=rounds {
        let store = open(&[&disk], &index);
        check(&store, &index, &live).await;
        disk.crash_after(seed % 97 + 20);
        work(&store, &index, &mut live, again * 100).await;
        drop(store);
        disk.crash(seed + again);
    }
    let store = open(&[&disk], &index);
    check(&store, &index, &live).await;
    let stats = store.stats().await.unwrap();
    assert_eq!(stats[0].blocks, index.entries().len() as u64);
    crashed
}

#[tokio::test]
async fn no_acknowledged_block_is_lost_at_any_step() {
    // The first hundreds of steps create the directories of the disk: not each of them, here.
    let mut step = 0;
    while crash_at(step, step * 31, 0).await {
        step += if step < 500 { 13 } else { 1 };
    }
    assert!(step > 600, "the workload takes {step} steps");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn nor_by_any_way_the_rest_is_torn(step in 0_u64..1100, seed: u32) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(crash_at(step, u64::from(seed), 3));
    }
}

/// A crash of the process alone: what it wrote is visible, but not all of it durable. What a scan then
/// finds and puts in the index must survive a power cut.
#[tokio::test]
async fn what_a_scan_finds_after_a_kill_stays_found() {
    for step in (530..760).step_by(3) {
        let (disk, index, mut live) = (MemoryDisk::new("a"), MemoryIndex::default(), BTreeMap::new());
        disk.crash_after(step);
        let store = open(&[&disk], &index);
        work(&store, &index, &mut live, 0).await;
        drop(store);
        disk.kill();
        let store = open(&[&disk], &index);
        let (found, _) = rebuild(&store);
        disk.lose_power();
        let store = open(&[&disk], &found);
        for (hash, location) in found.entries() {
            store.get(&hash, &location).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_disk_that_was_lost_costs_its_own_blocks_only() {
    let disks = [MemoryDisk::new("a"), MemoryDisk::new("b")];
    let (index, mut live) = (MemoryIndex::default(), BTreeMap::new());
    let store = open(&[&disks[0], &disks[1]], &index);
    let ids: Vec<_> = store.stats().await.unwrap().iter().map(|disk| disk.id).collect();
    work(&store, &index, &mut live, 0).await;
    let kept = store.stats().await.unwrap()[0].path.clone();
    let kept = disks.iter().find(|disk| hayloft_storage::disk::Disk::name(*disk) == kept).unwrap();
    let gone = DiskConfig { known_as: ids[1], ..memory(&MemoryDisk::new("new and empty")) };
    let store = try_open(vec![memory(kept), gone], &index).unwrap();
    let mut lost = 0;
    for hash in live.keys() {
        let location = index.get(hash).unwrap();
        assert_eq!(store.is_readable(&location), Some(location.disk) == ids[0]);
        match store.get(hash, &location).await {
            Ok(_) => assert_eq!(Some(location.disk), ids[0]),
            Err(error) => {
                assert!(error.is_lost_copy() && Some(location.disk) == ids[1]);
                lost += 1;
            }
        }
    }
    assert!(lost > 0 && lost < live.len());
}
