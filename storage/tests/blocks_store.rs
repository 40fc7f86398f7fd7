//! The block store in normal use, and its answers to damage, full disks and mixed-up directories.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::*;
use bytes::Bytes;
use hayloft_common::block;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::{ClusterId, NodeId};
use hayloft_storage::blocks::{
    BlockConfig, BlockError, BlockIndex, BlockStore, DiskConfig, Health, Identity, MARKER, MemoryIndex,
    OpenError, Place,
};
use hayloft_storage::disk::{Access, Disk, MemoryDisk};
use std::sync::Arc;

#[tokio::test]
async fn blocks_of_all_sizes_come_back_from_real_disks_after_a_restart() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let index = MemoryIndex::default();
    let open = || {
        let disks = dirs.iter().map(|dir| DiskConfig::path(dir.path())).collect();
        BlockStore::open(disks, IDENTITY, small(), Env::real(), &index).unwrap()
    };
    let mut store = open();
    let mut hashes = Vec::new();
    for (seed, len) in [0, 1, 63, 64, 1000, 1022, 1023, 1024, 5000, 200_000, 1 << 20].into_iter().enumerate()
    {
        hashes.push(put(&store, &index, seed as u64, len).await);
        for _ in 0..2 {
            for (seed, hash) in hashes.iter().enumerate() {
                let envelope = get(&store, &index, hash).await;
                assert_eq!(
                    block::open(&envelope, hash, 1 << 20).unwrap().len(),
                    envelope.len() - 1,
                    "{seed}"
                );
            }
            store = open();
        }
    }
    let packed = |h: &Hash| matches!(index.get(h).unwrap().place, Place::Packed { .. });
    assert_eq!(hashes.iter().filter(|h| packed(h)).count(), 6);
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.iter().map(|disk| disk.blocks).sum::<u64>(), 11);
    assert!(stats.iter().all(|disk| disk.health == Health::Healthy && disk.dead_bytes < 4096));
    // Deleting frees files, and counts dead bytes in segments.
    for hash in &hashes {
        let location = index.remove(hash).unwrap();
        store.delete(hash, &location).await.unwrap();
        store.delete(hash, &location).await.unwrap();
        if location.place == Place::Plain {
            assert!(matches!(store.get(hash, &location).await, Err(BlockError::Missing { .. })));
        }
    }
    let stats = store.stats().await.unwrap();
    assert!(stats.iter().all(|disk| disk.blocks == 0 && disk.live_bytes == 0));
    assert!(stats.iter().map(|disk| disk.dead_bytes).sum::<u64>() > 2700);
}

#[tokio::test]
async fn compressed_and_raw_envelopes_of_one_block_replace_each_other() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let store = open(&[&disk], &index);
    let plain = vec![5; 100_000];
    let hash = Hash::of(&plain);
    for (first, second) in [(None, None), (None, Some(-1)), (Some(-1), None)] {
        let old = store.put(hash, block::seal(&plain, first)).await.unwrap();
        let new = store.put(hash, block::seal(&plain, second)).await.unwrap();
        for location in [old, new] {
            let envelope = store.get(&hash, &location).await.unwrap();
            assert_eq!(block::open(&envelope, &hash, 1 << 20).unwrap(), plain);
        }
        assert_eq!(old.same_place(&new), first.is_none() && second.is_none());
    }
}

#[tokio::test]
async fn a_put_whose_bytes_do_not_match_its_hash_is_refused() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let store = open(&[&disk], &index);
    let before = disk.operations();
    let (_, envelope) = block(1, 500);
    let (hash, large) = block(2, 100_000);
    for wrong in [envelope, large.slice(..large.len() - 1), Bytes::new(), Bytes::from_static(&[9, 9])] {
        assert!(matches!(store.put(hash, wrong).await, Err(BlockError::Refused { .. })));
    }
    assert!(matches!(
        store.put(hash, vec![0; (16 << 20) + 2].into()).await,
        Err(BlockError::TooLarge { .. })
    ));
    assert_eq!(disk.operations(), before);
}

#[tokio::test]
async fn every_kind_of_damage_is_an_error_and_never_other_bytes() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let store = open(&[&disk], &index);
    let hashes = [put(&store, &index, 1, 700).await, put(&store, &index, 2, 3000).await];
    let lost = async |hash: &Hash| {
        let error = store.get(hash, &index.get(hash).unwrap()).await.unwrap_err();
        assert!(error.is_lost_copy(), "{error}");
    };
    let files: Vec<String> = disk.files().into_iter().filter(|path| path != MARKER).collect();
    assert_eq!(files.len(), 2);
    for path in &files {
        let len = disk.open(path, Access::Read).unwrap().len().unwrap();
        let hash = &hashes[usize::from(path.starts_with("blocks"))];
        // Behind the segment header, which is checked once, when the segment is opened, and padding.
        let from = if path.starts_with("segments") { 64 } else { 0 };
        let to = if path.starts_with("segments") { 64 + 64 + 701 } else { len };
        for bit in (from * 8..to * 8).step_by(13) {
            assert!(disk.flip_bit(path, bit));
            lost(hash).await;
            assert!(disk.flip_bit(path, bit));
        }
        assert_eq!(get(&store, &index, hash).await.len() % 100, 1);
    }
    for (path, hash) in files.iter().rev().zip(&hashes) {
        let len = disk.open(path, Access::Read).unwrap().len().unwrap();
        for cut in (0..len - 64).rev().step_by(97) {
            assert!(disk.cut(path, cut));
            lost(hash).await;
        }
        disk.remove(path).unwrap();
        lost(hash).await;
    }
    let stats = store.stats().await.unwrap();
    assert!(stats[0].corrupt > 100);
    assert_eq!(stats[0].health, Health::Healthy, "damage to a block is not a failure of the disk");
    // Putting it again repairs it.
    for (seed, len) in [(1, 700), (2, 3000)] {
        let hash = put(&store, &index, seed, len).await;
        assert_eq!(get(&store, &index, &hash).await, block(seed, len).1);
    }
}

#[tokio::test]
async fn a_full_disk_is_passed_over_until_there_is_room() {
    let (a, b, index) = (MemoryDisk::new("a"), MemoryDisk::new("b"), MemoryIndex::default());
    let store = open(&[&a, &b], &index);
    a.set_capacity(20_000);
    b.set_capacity(60_000);
    let mut hashes = Vec::new();
    let error = loop {
        let (hash, envelope) = block(hashes.len() as u64, 3000);
        match store.put(hash, envelope).await {
            Ok(location) => drop(index.insert(hash, location)),
            Err(error) => break error,
        }
        hashes.push(hash);
    };
    assert!(matches!(error, BlockError::NoSpace | BlockError::Io { .. }), "{error}");
    assert!((24..=26).contains(&hashes.len()), "{}", hashes.len());
    let (hash, envelope) = block(1000, 500);
    // What little is left may take small blocks, until nothing does.
    for seed in 2000..2200 {
        let (hash, envelope) = block(seed, 900);
        let _ = store.put(hash, envelope).await;
    }
    assert!(matches!(store.put(hash, envelope.clone()).await, Err(BlockError::NoSpace)));
    for hash in &hashes {
        get(&store, &index, hash).await;
    }
    let gone = hashes[0];
    store.delete(&gone, &index.remove(&gone).unwrap()).await.unwrap();
    store.put(hash, envelope).await.unwrap();
}

#[tokio::test]
async fn the_configured_capacity_and_the_reserve_are_kept() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let limited = DiskConfig { capacity: Some(10_000), ..memory(&disk) };
    let store = try_open(vec![limited], &index).unwrap();
    let mut count = 0;
    while store.put(block(count, 2000).0, block(count, 2000).1).await.is_ok() {
        count += 1;
    }
    assert_eq!(count, 5, "the capacity may be exceeded by one block, not by two");
    let config = BlockConfig { disk_reserve: 1 << 41, ..small() };
    let disk = memory(&MemoryDisk::new("b"));
    let store = BlockStore::open(vec![disk], IDENTITY, config, inline_env(), &index).unwrap();
    assert!(matches!(store.put(block(1, 10).0, block(1, 10).1).await, Err(BlockError::NoSpace)));
}

#[tokio::test]
async fn a_failed_sync_ends_trust_in_a_disk_until_restart() {
    for len in [500, 5000] {
        let (a, b, index) = (MemoryDisk::new("a"), MemoryDisk::new("b"), MemoryIndex::default());
        let store = open(&[&a, &b], &index);
        let old = put(&store, &index, 1, len).await;
        a.fail_syncs(1);
        // Every put succeeds on the other disk; none is answered from the one whose sync failed.
        for seed in 2..20 {
            put(&store, &index, seed, len).await;
        }
        let health = |stats: Vec<hayloft_storage::blocks::DiskStats>| {
            stats.iter().find(|disk| disk.path == "a").unwrap().health.clone()
        };
        let state = health(store.stats().await.unwrap());
        assert!(state.to_string().contains("a sync failed"), "{state}");
        get(&store, &index, &old).await;
        let (a_before, seed) = (a.files(), 99);
        put(&store, &index, seed, len).await;
        assert_eq!(a.files(), a_before);
        drop(store);
        a.crash(7);
        b.crash(8);
        let store = open(&[&a, &b], &index);
        assert_eq!(health(store.stats().await.unwrap()), Health::Healthy);
        for (hash, _) in index.entries() {
            get(&store, &index, &hash).await;
        }
    }
}

#[tokio::test]
async fn read_only_and_failing_disks_are_set_aside_not_fatal() {
    let (a, b, index) = (MemoryDisk::new("a"), MemoryDisk::new("b"), MemoryIndex::default());
    let store = open(&[&a], &index);
    let hash = put(&store, &index, 1, 500).await;
    drop(store);
    let drained = DiskConfig { read_only: true, ..memory(&a) };
    let store = try_open(vec![drained.clone()], &index).unwrap();
    get(&store, &index, &hash).await;
    let (new, envelope) = block(2, 500);
    let error = store.put(new, envelope.clone()).await.unwrap_err();
    assert!(error.to_string().contains("read-only: configured"), "{error}");
    assert!(matches!(
        store.delete(&hash, &index.get(&hash).unwrap()).await,
        Err(BlockError::ReadOnly { .. })
    ));
    let store = try_open(vec![drained, memory(&b)], &index).unwrap();
    store.put(new, envelope.clone()).await.unwrap();
    // A file system that turned read-only, then reads that fail.
    b.set_read_only(true);
    assert!(store.put(new, envelope).await.is_err());
    let stats = store.stats().await.unwrap();
    assert!(stats.iter().all(|disk| disk.health.word() == "read-only"));
    a.fail_reads(true);
    for _ in 0..16 {
        assert!(matches!(store.get(&hash, &index.get(&hash).unwrap()).await, Err(BlockError::Io { .. })));
    }
    let error = store.get(&hash, &index.get(&hash).unwrap()).await.unwrap_err();
    assert!(matches!(error, BlockError::DiskFailed { .. }), "{error}");
    assert!(!store.is_readable(&index.get(&hash).unwrap()));
    // It does not even open: the store does, and says so.
    let store = open(&[&a, &b], &index);
    let stats = store.stats().await.unwrap();
    let failed = stats.iter().find(|disk| disk.path == "a").unwrap();
    assert!(failed.health.to_string().contains("read error"), "{}", failed.health);
}

#[tokio::test]
async fn foreign_and_mixed_up_directories_are_refused_by_name() {
    let index = MemoryIndex::default();
    let refused = |disk: &MemoryDisk, identity: Identity| {
        BlockStore::open(vec![memory(disk)], identity, small(), inline_env(), &index)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    let disk = MemoryDisk::new("/data/one");
    let store = open(&[&disk], &index);
    put(&store, &index, 1, 500).await;
    let other_node = Identity { node: NodeId([9; 32]), ..IDENTITY };
    let other_cluster = Identity { cluster: ClusterId([9; 16]), ..IDENTITY };
    assert!(refused(&disk, other_node).contains("/data/one belongs to node 0202"));
    assert!(refused(&disk, other_cluster).contains("/data/one belongs to cluster 0101"));
    assert!(matches!(try_open(vec![memory(&disk), memory(&disk)], &index), Err(OpenError::SameDisk { .. })));
    assert!(matches!(try_open(vec![], &index), Err(OpenError::NoDisks)));

    let marker = disk.open(MARKER, Access::Write).unwrap();
    let mut text = vec![0; marker.len().unwrap() as usize];
    marker.read_at(&mut text, 0).unwrap();
    let ours = String::from_utf8(text.clone()).unwrap();
    let newer = ours.replace("\"format\": 1", "\"format\": 2").replace("\"crc\": ", "\"crc\": 1");
    marker.write_at(newer.as_bytes(), 0).unwrap();
    assert!(refused(&disk, IDENTITY).contains("format 2, this program knows formats up to 1"));
    // With the checksum of the first format it is that one, with a flipped bit: the disk is set aside, or mended if known.
    let flipped = format!("{} ", ours.replace("\"format\": 1", "\"format\": 3"));
    marker.write_at(flipped.as_bytes(), 0).unwrap();
    let id = store.stats().await.unwrap()[0].id;
    let health = try_open(vec![memory(&disk)], &index).unwrap().stats().await.unwrap()[0].health.to_string();
    assert!(health.contains("damaged"), "{health}");
    let known = DiskConfig { known_as: id, ..memory(&disk) };
    assert_eq!(try_open(vec![known], &index).unwrap().stats().await.unwrap()[0].health, Health::Healthy);
    assert_eq!(try_open(vec![memory(&disk)], &index).unwrap().stats().await.unwrap()[0].id, id);
    disk.remove(MARKER).unwrap();
    assert!(refused(&disk, IDENTITY).contains("restore that file"));

    let used = MemoryDisk::new("/home");
    used.create("letter.txt").unwrap();
    assert!(refused(&used, IDENTITY).contains("`letter.txt`"));
    assert_eq!(used.files(), ["letter.txt"]);
}

#[tokio::test]
async fn an_unmounted_disk_is_not_taken_for_a_new_one() {
    let index = MemoryIndex::default();
    let disk = MemoryDisk::new("/mnt/a");
    let id = open(&[&disk], &index).stats().await.unwrap()[0].id;
    let empty = MemoryDisk::new("/mnt/a");
    let known = DiskConfig { known_as: id, ..memory(&empty) };
    let store = try_open(vec![known], &index).unwrap();
    let stats = store.stats().await.unwrap();
    assert_eq!(stats[0].id, id);
    assert!(stats[0].health.to_string().contains("is it mounted?"));
    assert_eq!(empty.files(), Vec::<String>::new());
    // The same disk at another path is the same disk.
    let store = try_open(vec![DiskConfig { known_as: None, ..memory(&disk) }], &index).unwrap();
    assert_eq!(store.stats().await.unwrap()[0].id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_puts_share_syncs_and_concurrent_puts_of_one_hash_are_harmless() {
    let (disk, index) = (MemoryDisk::new("a"), Arc::new(MemoryIndex::default()));
    let config = BlockConfig { segment_size: 1 << 20, ..small() };
    let store = BlockStore::open(vec![memory(&disk)], IDENTITY, config, Env::real(), &*index).unwrap();
    let before = disk.syncs();
    // Polled together, so that all but the first are in the queue before the leader's first sync ends.
    let puts = (0..2000_u64).map(|i| {
        let (store, index) = (store.clone(), index.clone());
        async move {
            let (hash, envelope) = block(i / 2, 500);
            let location = store.put(hash, envelope.clone()).await.unwrap();
            index.insert(hash, location);
            assert_eq!(store.get(&hash, &location).await.unwrap(), envelope);
        }
    });
    futures::future::join_all(puts).await;
    let syncs = disk.syncs() - before;
    assert!(syncs < 1000, "{syncs} syncs for 2000 puts");
    assert_eq!(index.entries().len(), 1000);
    for (hash, _) in index.entries() {
        get(&store, &index, &hash).await;
    }
    let large = (0..200_u64).map(|i| {
        let store = store.clone();
        async move {
            let (hash, envelope) = block(i / 20, 5000);
            let location = store.put(hash, envelope.clone()).await.unwrap();
            assert_eq!(store.get(&hash, &location).await.unwrap(), envelope);
        }
    });
    futures::future::join_all(large).await;
    let plain = disk.files().iter().filter(|path| path.starts_with("blocks/")).count();
    assert_eq!(plain, 10);
}

#[tokio::test]
async fn without_fsync_nothing_is_synced() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let config = BlockConfig { data_fsync: false, ..small() };
    let store = BlockStore::open(vec![memory(&disk)], IDENTITY, config, inline_env(), &index).unwrap();
    let before = disk.syncs();
    for seed in 0..20 {
        put(&store, &index, seed, 500).await;
        put(&store, &index, 100 + seed, 5000).await;
    }
    assert_eq!(disk.syncs(), before);
}
