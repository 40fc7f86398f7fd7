//! The block store: several data disks, small blocks packed, large ones in files, all self-describing and
//! checksummed.
//!
//! Guarantees, under the fault model of `disk/memory.rs`:
//! - *durable*: when [`BlockStore::put`] has returned a location, the block survives a crash (unless
//!   `data_fsync` is off);
//! - *never wrong bytes*: [`BlockStore::get`] returns the envelope that was put under that hash, or an
//!   error; a damaged, torn, truncated, misplaced or missing copy is an error;
//! - *bounded*: bytes waiting per disk, operations per disk and open files are limited; a hanging disk
//!   holds up only its own blocks;
//! - *not fatal*: a disk that fails, fills up or is read-only is passed over and reported.
//!
//! The store does not know which blocks are wanted: it keeps no index of its own. `put` returns a
//! location, which the caller commits; `get` and `delete` take it back (rules at the head of `index.rs`).
//! Calls for one hash are harmless together, except that the caller must not delete a location while it
//! puts the same block.
//!
//! All disk work runs in blocking threads. One exception: a packed block that is in the page cache, of a
//! segment already open, is read on the spot (a cached 4 KiB read costs 2 µs, a thread hop several times
//! that); the read asks the kernel not to wait, so a cold disk never blocks the runtime. Opening a large
//! block's file may wait for the disk, so those always go to a thread, one hop for the whole read.

mod error;
pub mod format;
pub mod health;
mod index;
mod marker;
mod pack;
pub mod place;
mod plain;
mod scan;
mod usage;
mod volume;

pub use error::{BlockError, OpenError};
pub use health::Health;
pub use index::{BlockIndex, DiskId, Location, LocationError, MemoryIndex, Place};
pub use marker::{Identity, MARKER};
pub use scan::{Scan, ScanDepth, ScanItem};
pub use usage::SegmentUsage;

use crate::disk::{Disk, RealDisk};
use crate::limits;
use bytes::Bytes;
use hayloft_common::block::{self, Envelope};
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::limits::MAX_BLOCK_SIZE;
use pack::Pending;
use place::Candidate;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use volume::{Found, Ticket, Volume, identify};

/// A data directory to be used.
#[derive(Clone)]
pub struct DiskConfig {
    pub disk: Arc<dyn Disk>,
    /// Bytes of blocks it may hold, and its share of new blocks; by default the size of its file system.
    pub capacity: Option<u64>,
    /// Takes no new blocks and no deletions.
    pub read_only: bool,
    /// The disk this node knew at this path. If the directory then has no marker, the disk is set aside
    /// as not mounted; without this it would be taken for a new one.
    pub known_as: Option<DiskId>,
}

impl DiskConfig {
    /// A directory of the operating system with the defaults.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::disk(Arc::new(RealDisk::new(path)))
    }

    /// Any disk with the defaults.
    pub fn disk(disk: Arc<dyn Disk>) -> Self {
        Self { disk, capacity: None, read_only: false, known_as: None }
    }
}

/// How the store works; sizes in bytes.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// Envelopes shorter than this are packed.
    pub pack_below: usize,
    /// A segment takes no more records once it is this long.
    pub segment_size: u64,
    /// Off: nothing is synced; a crash may lose acknowledged blocks.
    pub data_fsync: bool,
    /// Whether `put` hashes the plain block; lengths and checksums are always dealt with.
    pub verify_on_put: bool,
    /// Free space below which a disk counts as full.
    pub disk_reserve: u64,
    /// Longest envelope accepted.
    pub max_stored: usize,
    pub reads_per_disk: usize,
    pub writes_per_disk: usize,
    /// Bytes waiting to be written to one disk.
    pub write_queue: usize,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self {
            pack_below: limits::DEFAULT_PACK_BELOW,
            segment_size: limits::DEFAULT_SEGMENT_SIZE,
            data_fsync: true,
            verify_on_put: true,
            disk_reserve: limits::DEFAULT_DISK_RESERVE,
            max_stored: limits::MAX_STORED_BLOCK,
            reads_per_disk: limits::DEFAULT_READS_PER_DISK,
            writes_per_disk: limits::DEFAULT_WRITES_PER_DISK,
            write_queue: limits::DEFAULT_WRITE_QUEUE,
        }
    }
}

impl BlockConfig {
    fn check(&self) -> Result<(), OpenError> {
        let ranges = [
            ("the packing limit", self.pack_below as u64, 0, limits::MAX_STORED_BLOCK as u64),
            ("the segment size", self.segment_size, 4096, limits::MAX_SEGMENT_SIZE),
            ("the longest envelope", self.max_stored as u64, 1, limits::MAX_STORED_BLOCK as u64),
            ("reads per disk", self.reads_per_disk as u64, 1, 4096),
            ("writes per disk", self.writes_per_disk as u64, 1, 4096),
            ("the write queue", self.write_queue as u64, self.max_stored as u64, 1 << 31),
        ];
        for (what, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(OpenError::BadConfig { what, value, allowed: format!("{low} to {high}") });
            }
        }
        Ok(())
    }
}

/// What is known of one disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskStats {
    /// `None` if the disk could not be identified.
    pub id: Option<DiskId>,
    pub path: String,
    /// Size of the file system; 0 if unknown.
    pub total: u64,
    /// What may still be written before the disk counts as full.
    pub available: u64,
    /// Share of new blocks: the configured capacity, or `total`.
    pub weight: u64,
    /// Blocks in the index.
    pub blocks: u64,
    /// Bytes of them on disk.
    pub live_bytes: u64,
    /// Bytes of deleted packed blocks, freed by compaction.
    pub dead_bytes: u64,
    /// Damaged copies met since the daemon started.
    pub corrupt: u64,
    pub health: Health,
}

/// A configured disk that is not in use.
struct Absent {
    id: Option<DiskId>,
    path: String,
    reason: String,
}

struct Inner {
    env: Env,
    config: BlockConfig,
    volumes: BTreeMap<DiskId, Arc<Volume>>,
    absent: Vec<Absent>,
}

/// The blocks of this node. Cheap to clone.
#[derive(Clone)]
pub struct BlockStore(Arc<Inner>);

impl BlockStore {
    /// Opens the data directories, marks new ones, and counts what `index` says they hold. Blocks its
    /// thread. An error is a mistake in the configuration; disks that merely fail are set aside.
    pub fn open(
        disks: Vec<DiskConfig>,
        identity: Identity,
        config: BlockConfig,
        env: Env,
        index: &dyn BlockIndex,
    ) -> Result<Self, OpenError> {
        config.check()?;
        if disks.is_empty() {
            return Err(OpenError::NoDisks);
        }
        let shared = Arc::new(config.clone());
        let mut volumes: BTreeMap<DiskId, Arc<Volume>> = BTreeMap::new();
        let mut absent = Vec::new();
        for DiskConfig { disk, capacity, read_only, known_as } in disks {
            let may_create = match known_as {
                Some(id) => Err(format!(
                    "it has no `{MARKER}` file, though this node knew it as disk {id}; is it mounted?"
                )),
                None if read_only => Err(format!("it has no `{MARKER}` file, and is configured read-only")),
                None => Ok(new_disk_id(&env, &volumes)),
            };
            let path = disk.name();
            match identify(&*disk, &identity, may_create)? {
                Found::Failed(reason) => {
                    tracing::error!(disk = path, reason, "data disk set aside");
                    absent.push(Absent { id: known_as, path, reason });
                }
                Found::Marked(id) => {
                    if let Some(first) = volumes.get(&id) {
                        return Err(OpenError::SameDisk { first: first.name.clone(), second: path, id });
                    }
                    let volume = Volume::open(disk, id, capacity, read_only, identity, shared.clone());
                    volumes.insert(id, Arc::new(volume));
                }
            }
        }
        let store = Self(Arc::new(Inner { env, config, volumes, absent }));
        store.recount(index);
        Ok(store)
    }

    /// Counts again what the index says the disks hold (after a rebuild). Not while blocks are put or
    /// deleted. Blocks its thread.
    pub fn recount(&self, index: &dyn BlockIndex) {
        for volume in self.0.volumes.values() {
            volume.usage.lock().forget_live();
        }
        index.for_each(&mut |_, location| {
            if let Some(volume) = self.0.volumes.get(&location.disk) {
                volume.usage.lock().add(&location);
            }
        });
        for volume in self.0.volumes.values() {
            volume.refresh();
        }
    }

    /// Writes a block and returns where it lies, once that is durable. A disk that fails or is full is
    /// passed over for the next.
    pub async fn put(&self, hash: Hash, envelope: Bytes) -> Result<Location, BlockError> {
        let (len, max) = (envelope.len(), self.0.config.max_stored);
        if len > max {
            return Err(BlockError::TooLarge { len, max });
        }
        self.verify(hash, &envelope).await?;
        let mut last = None;
        for volume in self.writable(&hash).await? {
            match self.put_on(&volume, hash, envelope.clone()).await {
                Err(error) if error.is_of_the_disk() => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or(BlockError::NoSpace))
    }

    /// Reads a block's envelope from where the index says it lies.
    pub async fn get(&self, hash: &Hash, location: &Location) -> Result<Bytes, BlockError> {
        let volume = self.volume(location)?;
        let health = volume.health();
        if !health.takes_reads() {
            let (disk, reason) = (volume.name.clone(), health.to_string());
            return Err(BlockError::DiskFailed { disk, reason });
        }
        if location.len as usize > limits::MAX_STORED_BLOCK {
            let max = limits::MAX_STORED_BLOCK;
            return Err(BlockError::TooLarge { len: location.len as usize, max });
        }
        if let Some(read) = volume.read_cached(hash, location) {
            return read;
        }
        let permit = volume.reads.clone().acquire_owned().await.map_err(|_| BlockError::Stopping)?;
        let (on, hash, location) = (volume.clone(), *hash, *location);
        self.blocking(move || {
            let _permit = permit;
            on.read(&hash, &location)
        })
        .await
    }

    /// Whether the disk of a location is in use and may be read; asks no disk. A put may be answered from an
    /// existing entry only if so: an entry on a lost or failed disk is no copy.
    pub fn is_readable(&self, location: &Location) -> bool {
        self.volume(location).is_ok_and(|volume| volume.health().takes_reads())
    }

    /// Frees a block. Its index entry must be gone, durably, and no other entry may name the same place
    /// (see [`Location::same_place`]). Not durable itself: after a crash the bytes may be back, without
    /// an entry. A block that is not there is no error. Once for each location: packed blocks are counted.
    pub async fn delete(&self, hash: &Hash, location: &Location) -> Result<(), BlockError> {
        let volume = self.volume(location)?;
        let (hash, location) = (*hash, *location);
        self.blocking(move || volume.delete(&hash, &location)).await
    }

    /// Looks at the free space of all disks again; to be called every some seconds, so that a disk which
    /// someone else filled or freed is noticed.
    pub async fn refresh(&self) -> Result<(), BlockError> {
        let volumes: Vec<Arc<Volume>> = self.0.volumes.values().cloned().collect();
        self.blocking(move || {
            for volume in volumes {
                volume.refresh();
            }
            Ok(())
        })
        .await
    }

    /// The state of every configured disk.
    pub async fn stats(&self) -> Result<Vec<DiskStats>, BlockError> {
        let inner = self.0.clone();
        self.blocking(move || {
            let used = inner.volumes.values().map(|volume| volume_stats(volume));
            let absent = inner.absent.iter().map(absent_stats);
            Ok(used.chain(absent).collect())
        })
        .await
    }

    /// What each segment of a disk holds; what compaction chooses by.
    pub fn segments(&self, disk: DiskId) -> BTreeMap<u32, SegmentUsage> {
        self.0.volumes.get(&disk).map(|volume| volume.usage.lock().segments()).unwrap_or_default()
    }

    /// Everything that lies on the disks (for rebuilding the index). The iterator blocks its thread.
    pub fn scan(&self, depth: ScanDepth) -> Scan {
        let readable = self.0.volumes.values().filter(|volume| volume.health().takes_reads()).cloned();
        Scan::new(readable, depth, self.0.config.max_stored)
    }

    fn volume(&self, location: &Location) -> Result<Arc<Volume>, BlockError> {
        let disk = location.disk;
        self.0.volumes.get(&disk).cloned().ok_or(BlockError::UnknownDisk { disk })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BlockError> + Send + 'static,
    ) -> Result<T, BlockError> {
        self.0.env.run_blocking(work).await.map_err(|_| BlockError::Stopping)?
    }

    /// Refuses bytes that do not belong to the hash: a node must never hold them under that name.
    async fn verify(&self, hash: Hash, envelope: &Bytes) -> Result<(), BlockError> {
        if !self.0.config.verify_on_put {
            return Ok(());
        }
        let check = |envelope: &Bytes| block::open(envelope, &hash, MAX_BLOCK_SIZE).map(drop);
        let size = Envelope::parse(envelope).and_then(|parsed| parsed.plain_size());
        let checked = match size {
            Err(reason) => Err(reason),
            Ok(size) if size <= limits::INLINE_CHECK => check(envelope),
            Ok(_) => {
                let envelope = envelope.clone();
                self.blocking(move || Ok(block::open(&envelope, &hash, MAX_BLOCK_SIZE).map(drop))).await?
            }
        };
        checked.map_err(|reason| BlockError::Refused { hash, reason })
    }

    /// The disks that take this block, best first.
    async fn writable(&self, hash: &Hash) -> Result<Vec<Arc<Volume>>, BlockError> {
        let mut order = self.order(hash);
        if order.is_empty() {
            // A full disk may have been freed by others.
            self.refresh().await?;
            order = self.order(hash);
        }
        if !order.is_empty() {
            return Ok(order);
        }
        let volumes = self.0.volumes.values();
        let states: Vec<(String, Health)> = volumes.map(|v| (v.name.clone(), v.health())).collect();
        if states.iter().any(|(_, health)| *health == Health::Full) {
            return Err(BlockError::NoSpace);
        }
        let absent = self.0.absent.iter().map(|absent| format!("{}: {}", absent.path, absent.reason));
        let states = states.iter().map(|(name, health)| format!("{name}: {health}")).chain(absent);
        Err(BlockError::ReadOnly { states: states.collect::<Vec<_>>().join("; ") })
    }

    fn order(&self, hash: &Hash) -> Vec<Arc<Volume>> {
        let candidates: Vec<Candidate> = self
            .0
            .volumes
            .values()
            .filter(|volume| volume.health().takes_writes())
            .map(|volume| Candidate { disk: volume.id, weight: volume.weight })
            .collect();
        place::order(hash, &candidates).iter().filter_map(|disk| self.0.volumes.get(disk).cloned()).collect()
    }

    async fn put_on(
        &self,
        volume: &Arc<Volume>,
        hash: Hash,
        envelope: Bytes,
    ) -> Result<Location, BlockError> {
        let room = claim_room(volume, envelope.len()).await?;
        if envelope.len() < self.0.config.pack_below {
            return self.put_packed(volume, hash, envelope, room).await;
        }
        let permit = volume.writes.clone().acquire_owned().await.map_err(|_| BlockError::Stopping)?;
        let on = volume.clone();
        self.blocking(move || {
            let (_room, _permit) = (room, permit);
            on.write_plain(hash, &envelope)
        })
        .await
    }

    async fn put_packed(
        &self,
        volume: &Arc<Volume>,
        hash: Hash,
        payload: Bytes,
        room: OwnedSemaphorePermit,
    ) -> Result<Location, BlockError> {
        let (reply, answer) = oneshot::channel();
        let lead = volume.queue.lock().push(Pending { hash, payload, ticket: Ticket { reply, room } });
        if lead {
            let leader = Leader { volume: volume.clone(), finished: false };
            self.0.env.tasks.run_blocking(Box::new(move || leader.run()));
        }
        answer.await.map_err(|_| BlockError::Stopping)?
    }
}

/// The one who packs what waits on a disk. Should it be dropped before or while it runs (the node stops,
/// or the work panics), those who wait are told.
struct Leader {
    volume: Arc<Volume>,
    finished: bool,
}

impl Leader {
    fn run(mut self) {
        self.volume.pack_all();
        self.finished = true;
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.finished {
            let abandoned = self.volume.queue.lock().abandon();
            drop(abandoned);
        }
    }
}

/// Claims room for a block in the queue of a disk; waits when it is full, up to a number of waiters.
async fn claim_room(volume: &Arc<Volume>, len: usize) -> Result<OwnedSemaphorePermit, BlockError> {
    struct Waiting<'a>(&'a AtomicUsize);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    if volume.waiting.fetch_add(1, Ordering::Relaxed) >= limits::MAX_WAITING_PUTS {
        drop(Waiting(&volume.waiting));
        return Err(BlockError::Busy { disk: volume.name.clone() });
    }
    let _waiting = Waiting(&volume.waiting);
    volume.room.clone().acquire_many_owned(len as u32).await.map_err(|_| BlockError::Stopping)
}

/// A disk id that no disk in use has.
fn new_disk_id(env: &Env, volumes: &BTreeMap<DiskId, Arc<Volume>>) -> DiskId {
    loop {
        let id = DiskId(u32::from_le_bytes(env.random_bytes()));
        if !volumes.contains_key(&id) {
            return id;
        }
    }
}

fn volume_stats(volume: &Volume) -> DiskStats {
    let (space, available) = volume.refresh().unwrap_or_default();
    let usage = volume.usage.lock().clone();
    DiskStats {
        id: Some(volume.id),
        path: volume.name.clone(),
        total: space.total,
        available,
        weight: volume.weight,
        blocks: usage.blocks(),
        live_bytes: usage.live_bytes(),
        dead_bytes: usage.file_bytes().saturating_sub(usage.live_bytes()),
        corrupt: volume.corrupt.load(Ordering::Relaxed),
        health: volume.health(),
    }
}

fn absent_stats(absent: &Absent) -> DiskStats {
    DiskStats {
        id: absent.id,
        path: absent.path.clone(),
        total: 0,
        available: 0,
        weight: 0,
        blocks: 0,
        live_bytes: 0,
        dead_bytes: 0,
        corrupt: 0,
        health: Health::Failed { reason: absent.reason.clone() },
    }
}
