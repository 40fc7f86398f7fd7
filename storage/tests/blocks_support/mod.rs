//! What the tests of the block store share.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod cluster;

use bytes::Bytes;
use hayloft_common::block;
use hayloft_common::env::{BlockingJob, Env, RealTasks, TaskFuture, TaskHandle, Tasks};
use hayloft_common::hash::Hash;
use hayloft_common::id::{ClusterId, NodeId};
use hayloft_storage::blocks::{
    BlockConfig, BlockIndex, BlockStore, DiskConfig, Identity, MemoryIndex, OpenError, ScanDepth, ScanItem,
};
use hayloft_storage::disk::MemoryDisk;
use std::sync::Arc;

pub(crate) const IDENTITY: Identity = Identity { cluster: ClusterId([1; 16]), node: NodeId([2; 32]) };

/// Runs blocking work on the spot, as the simulator does.
struct Inline;

impl Tasks for Inline {
    fn spawn(&self, name: &'static str, task: TaskFuture) -> TaskHandle {
        RealTasks.spawn(name, task)
    }

    fn run_blocking(&self, job: BlockingJob) {
        job();
    }
}

pub(crate) fn inline_env() -> Env {
    Env { tasks: Arc::new(Inline), ..Env::real() }
}

/// Small sizes, so that tests cross every boundary: 1 KiB and more is plain, segments hold some records.
pub(crate) fn small() -> BlockConfig {
    BlockConfig { pack_below: 1024, segment_size: 4096, disk_reserve: 0, ..BlockConfig::default() }
}

pub(crate) fn memory(disk: &MemoryDisk) -> DiskConfig {
    DiskConfig::disk(Arc::new(disk.clone()))
}

pub(crate) fn open(disks: &[&MemoryDisk], index: &MemoryIndex) -> BlockStore {
    try_open(disks.iter().map(|disk| memory(disk)).collect(), index).unwrap()
}

pub(crate) fn try_open(disks: Vec<DiskConfig>, index: &MemoryIndex) -> Result<BlockStore, OpenError> {
    BlockStore::open(disks, IDENTITY, small(), inline_env(), index)
}

/// A block of `len` bytes that `seed` chooses, incompressible, with its name and envelope.
pub(crate) fn block(seed: u64, len: usize) -> (Hash, Bytes) {
    let mut plain = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut plain);
    (Hash::of(&plain), block::seal(&plain, None))
}

/// Puts a block and commits its location, as the daemon does.
pub(crate) async fn put(store: &BlockStore, index: &MemoryIndex, seed: u64, len: usize) -> Hash {
    let (hash, envelope) = block(seed, len);
    let location = store.put(hash, envelope).await.unwrap();
    index.insert(hash, location);
    hash
}

pub(crate) async fn get(store: &BlockStore, index: &MemoryIndex, hash: &Hash) -> Bytes {
    store.get(hash, &index.get(hash).unwrap()).await.unwrap()
}

/// What a scan finds, the last find of a block counting, and how often it met damage.
pub(crate) fn rebuild(store: &BlockStore) -> (MemoryIndex, usize) {
    let index = MemoryIndex::default();
    let mut damaged = 0;
    for item in store.scan(ScanDepth::Full) {
        match item {
            ScanItem::Block { hash, location } => drop(index.insert(hash, location)),
            ScanItem::Damaged { .. } => damaged += 1,
        }
    }
    (index, damaged)
}
