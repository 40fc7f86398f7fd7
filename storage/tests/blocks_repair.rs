//! Nodes that lose blocks, disks or their index get them back by themselves, and let go what nothing refers to.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::block;
use blocks_support::cluster::*;
use hayloft_common::hash::Hash;
use hayloft_storage::blocks::{BlockIndex, DiskConfig, MemoryIndex, Place};
use hayloft_storage::data_disks::{self, EngineIndex};
use hayloft_storage::disk::{Disk, MemoryDisk};
use hayloft_storage::meta::{Engine, Space};
use hayloft_storage::workers::{compact, scrub};
use std::sync::Arc;

fn memory(disks: &[MemoryDisk]) -> Vec<DiskConfig> {
    disks.iter().map(|disk| DiskConfig::disk(Arc::new(disk.clone()))).collect()
}

fn disks(names: &[&str]) -> Vec<MemoryDisk> {
    names.iter().map(|name| MemoryDisk::new(*name)).collect()
}

async fn put_some(running: &[hayloft_storage::daemon::Running], count: u64) -> Vec<Hash> {
    let mut hashes = Vec::new();
    for seed in 0..count {
        hashes.push(put_on_all(running, seed, if seed % 3 == 0 { 3000 } else { 300 }).await);
    }
    hashes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_directory_is_made_anew_and_its_blocks_are_fetched_again() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let paths: Vec<_> = dirs.iter().map(|dir| dir.path().join("data")).collect();
    let own = paths.iter().map(DiskConfig::path).collect();
    let machines =
        [Machine::new(own), Machine::new(memory(&disks(&["b"]))), Machine::new(memory(&disks(&["c"])))];
    let running = start_all(&machines).await;
    let hashes = put_some(&running, 60).await;
    let node = &running[0].node;
    let before = node.blocks.readable_disks();
    remove(&paths[0]);
    until("the disk is replaced", async || {
        let now = node.blocks.readable_disks();
        now.len() == 2 && now != before
    })
    .await;
    until_has_all(node, &hashes).await;
    until("both disks are used", async || {
        node.blocks.stats().await.unwrap().iter().all(|disk| disk.blocks > 0)
    })
    .await;
    until_has_all(node, &hashes).await;
    assert!(paths[0].join("hayloft-disk").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_disk_is_left_alone_and_its_blocks_go_to_the_other_one() {
    let own = disks(&["a0", "a1"]);
    let machines = [Machine::new(memory(&own)), Machine::new(memory(&disks(&["b"])))];
    let running = start_all(&machines).await;
    let hashes = put_some(&running, 40).await;
    own[0].unmount();
    let node = &running[0].node;
    until_has_all(node, &hashes).await;
    assert!(own[0].files().is_empty(), "nothing is written below a mount point");
    assert_eq!(node.blocks.readable_disks().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_copies_found_by_a_scrub_are_replaced_and_unneeded_files_removed() {
    let own = disks(&["a"]);
    let machines = [Machine::new(memory(&own)), Machine::new(memory(&disks(&["b"])))];
    let running = start_all(&machines).await;
    let hashes = put_some(&running, 30).await;
    let node = &running[0].node;
    // One packed and two large ones, of which one is gone entirely; and a file that nobody needs.
    let (_, envelope) = block(1000, 5000);
    let stray = node.blocks.put(block(1000, 5000).0, envelope).await.unwrap();
    assert_eq!(stray.place, Place::Plain);
    let mut large = own[0].files().into_iter().filter(|path| path.starts_with("blocks/"));
    assert!(own[0].flip_bit(&large.next().unwrap(), 4000));
    own[0].remove(&large.next().unwrap()).unwrap();
    let segment = own[0].files().into_iter().find(|path| path.starts_with("segments/")).unwrap();
    assert!(own[0].flip_bit(&segment, 8 * 200) && own[0].flip_bit(&segment, 8 * (64 + 384 + 20)));
    scrub::start(node).await.unwrap();
    until("the scrub has ended", async || {
        scrub::variables(node).await.unwrap()["scrub-last-ended"] != "never"
    })
    .await;
    until_has_all(node, &hashes).await;
    assert_eq!(scrub::variables(node).await.unwrap()["scrub-bad-copies"], "3");
    assert!(node.blocks.get(&block(1000, 5000).0, &stray).await.unwrap_err().is_lost_copy());
}

#[tokio::test(flavor = "multi_thread")]
async fn released_blocks_leave_nothing_on_disk() {
    let own = disks(&["a"]);
    let machines = [Machine::new(memory(&own)), Machine::new(memory(&disks(&["b"])))];
    let running = start_all(&machines).await;
    let node = &running[0].node;
    let hashes = put_some(&running, 120).await;
    let kept = &hashes[..10];
    let used = own[0].used();
    for hash in &hashes[10..] {
        drop_reference(node, *hash).await;
    }
    until("unreferred blocks are released", async || {
        let mut gone = true;
        for hash in &hashes[10..] {
            gone &= node.locate(*hash).await.unwrap().is_none();
        }
        gone
    })
    .await;
    compact::start(node).await.unwrap();
    until("space is given back", async || own[0].used() < used / 6).await;
    for hash in kept {
        assert!(has(node, hash).await);
    }
    let stats = node.blocks.stats().await.unwrap();
    assert_eq!(stats[0].blocks, 10);
    assert_eq!(node.blocks.stats().await.unwrap()[0].corrupt, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_disk_ends_up_empty_and_a_new_one_gets_its_share() {
    let own = disks(&["a", "b"]);
    let mut machine = Machine::new(memory(&own[..1]));
    let running = start_all(std::slice::from_ref(&machine)).await;
    let hashes = put_some(&running, 80).await;
    running.into_iter().next().unwrap().stop().await;
    machine.metadata.crash(0);
    machine.disks = memory(&own);
    let running = start_all(std::slice::from_ref(&machine)).await;
    let node = &running[0].node;
    until("the new disk has its share", async || {
        let stats = node.blocks.stats().await.unwrap();
        stats.iter().all(|disk| disk.blocks > 20) && stats.iter().map(|disk| disk.blocks).sum::<u64>() == 80
    })
    .await;
    until_has_all(node, &hashes).await;
    running.into_iter().next().unwrap().stop().await;
    machine.metadata.crash(0);
    machine.disks[0].read_only = true;
    let running = start_all(std::slice::from_ref(&machine)).await;
    let node = &running[0].node;
    until("the old disk is empty", async || {
        let stats = node.blocks.stats().await.unwrap();
        stats.iter().any(|disk| disk.path == "a" && disk.blocks == 0)
            && stats.iter().any(|disk| disk.path == "b" && disk.blocks == 80)
    })
    .await;
    until_has_all(node, &hashes).await;
    for hash in &hashes {
        assert_ne!(node.locate(*hash).await.unwrap().unwrap().disk, stats_id(node, "a").await);
    }
}

async fn stats_id(node: &Arc<hayloft_storage::serve::Node>, path: &str) -> hayloft_storage::blocks::DiskId {
    let stats = node.blocks.stats().await.unwrap();
    stats.iter().find(|disk| disk.path == path).unwrap().id.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_metadata_finds_its_blocks_again() {
    let own = disks(&["a", "b"]);
    let machine = Machine::new(memory(&own));
    let running = start_all(std::slice::from_ref(&machine)).await;
    let hashes = put_some(&running, 50).await;
    running.into_iter().next().unwrap().stop().await;
    machine.metadata.wipe();
    let again = machine.start().await;
    for hash in &hashes {
        assert!(has(&again.node, hash).await);
    }
    assert!(again.node.engine.get(Space::Node, b"block index").unwrap().is_some());
}

#[tokio::test]
async fn the_index_is_rebuilt_from_the_disks_alone_however_often() {
    let (own, machine) = (disks(&["a", "b"]), Machine::new(Vec::new()));
    let index = MemoryIndex::default();
    let store = blocks_support::open(&[&own[0], &own[1]], &index);
    let mut hashes = Vec::new();
    for seed in 0..40 {
        hashes.push(blocks_support::put(&store, &index, seed, if seed % 3 == 0 { 3000 } else { 300 }).await);
    }
    let engine: Arc<dyn Engine> = Arc::new(machine.metadata.open().unwrap());
    for dropped in [0, 40] {
        let env = blocks_support::inline_env();
        let disks = memory(&own);
        let config = blocks_support::small();
        let identity = blocks_support::IDENTITY;
        let mut progress = |_: &data_disks::Rebuilt| {};
        let done = data_disks::rebuild_stopped(&engine, disks, identity, config, &env, &mut progress);
        let found = done.await.unwrap();
        assert_eq!((found.blocks, found.duplicates, found.damaged, found.dropped), (40, 0, 0, dropped));
        let rebuilt = EngineIndex(engine.clone());
        for hash in &hashes {
            assert_eq!(rebuilt.get(hash), index.get(hash));
        }
    }
}

#[tokio::test]
async fn a_replaced_disk_is_taken_once_its_path_was_accepted() {
    let (own, machine) = (disks(&["a", "b"]), Machine::new(Vec::new()));
    let engine: Arc<dyn Engine> = Arc::new(machine.metadata.open().unwrap());
    let open = async || {
        let env = blocks_support::inline_env();
        let config = blocks_support::small();
        let opened = data_disks::open(&engine, memory(&own), blocks_support::IDENTITY, config, &env).await;
        opened.unwrap().readable_disks().len()
    };
    assert_eq!(open().await, 2);
    own[0].wipe();
    assert_eq!(open().await, 1, "an empty directory may be an unmounted disk");
    assert!(data_disks::accept(&*engine, "a".as_ref()).unwrap().is_some());
    assert_eq!(data_disks::accept(&*engine, "a".as_ref()).unwrap(), None);
    assert_eq!(open().await, 2);
}
