//! Scanning: the index can be rebuilt from the disks alone, and damage hides only what it hit.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::*;
use hayloft_common::block as envelope;
use hayloft_common::hash::Hash;
use hayloft_storage::blocks::{BlockIndex, MemoryIndex, ScanDepth, ScanItem};
use hayloft_storage::disk::{Access, Disk, MemoryDisk};

#[tokio::test]
async fn a_rebuilt_index_equals_the_lost_one() {
    let (a, b, index) = (MemoryDisk::new("a"), MemoryDisk::new("b"), MemoryIndex::default());
    let store = open(&[&a, &b], &index);
    for seed in 0..60 {
        put(&store, &index, seed, 200).await;
        put(&store, &index, 100 + seed, 1500).await;
    }
    let store = open(&[&a, &b], &MemoryIndex::default());
    for depth in [ScanDepth::Headers, ScanDepth::Full] {
        let found = MemoryIndex::default();
        for item in store.scan(depth) {
            let ScanItem::Block { hash, location } = item else { panic!("{item:?}") };
            found.insert(hash, location);
        }
        assert_eq!(found.entries(), index.entries());
    }
    assert_eq!(store.stats().await.unwrap()[0].blocks, 0);
    store.recount(&index);
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.iter().map(|disk| disk.blocks).sum::<u64>(), 120);
    // How the blocks fall on the two disks is drawn with the disks' ids; together they fill several segments.
    let segments: Vec<_> =
        stats.iter().flat_map(|disk| store.segments(disk.id.unwrap()).into_values()).collect();
    assert!(segments.len() > 4 && segments.iter().all(|s| s.dead_bytes() == 64), "{segments:?}");
}

#[tokio::test]
async fn damage_hides_only_the_blocks_it_hit() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let store = open(&[&disk], &index);
    for seed in 0..40 {
        put(&store, &index, seed, 400).await;
        put(&store, &index, 100 + seed, 1500).await;
    }
    let all = index.entries().len();
    for path in disk.files().iter().filter(|path| path.contains('/')) {
        let len = disk.open(path, Access::Read).unwrap().len().unwrap();
        // A bit in some header or payload (not of a segment's own header, nor in padding).
        let bit = if path.starts_with("segments") { (64 + 20) * 8 } else { len * 4 };
        disk.flip_bit(path, bit);
        let (found, damaged) = rebuild(&store);
        assert_eq!((found.entries().len(), damaged), (all - 1, 1), "{path}");
        disk.flip_bit(path, bit);
    }
    assert_eq!(rebuild(&store).0.entries(), index.entries());
    // Files that do not belong there are reported, not taken for blocks.
    disk.create("blocks/00/notes.txt").unwrap();
    assert_eq!(rebuild(&store).1, 1);
}

/// Someone stores a copy of a segment as an object: its records must not be taken for records, even when
/// damage makes the scan look inside the block.
#[tokio::test]
async fn records_inside_a_block_are_not_taken_for_records() {
    let (disk, index) = (MemoryDisk::new("a"), MemoryIndex::default());
    let store = open(&[&disk], &index);
    let inner = put(&store, &index, 1, 100).await;
    let path = "segments/00000001.seg";
    let mut copy = vec![0; 300];
    let len = disk.open(path, Access::Read).unwrap().read_at(&mut copy, 0).unwrap();
    // One byte of envelope stands before the plain block: pad so that records in it are aligned.
    let plain = [vec![0; 63], copy[..len].to_vec()].concat();
    let hash = Hash::of(&plain);
    let location = store.put(hash, envelope::seal(&plain, None)).await.unwrap();
    index.insert(hash, location);
    assert_eq!(rebuild(&store).0.entries(), index.entries());
    // Damage the outer record's header.
    assert!(disk.flip_bit(path, (len as u64 + 8) * 8));
    let (found, damaged) = rebuild(&store);
    assert_eq!(found.entries(), [(inner, index.get(&inner).unwrap())]);
    assert_eq!(damaged, 1);
}
