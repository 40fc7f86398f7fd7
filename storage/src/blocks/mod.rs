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

mod config;
mod error;
pub mod format;
pub mod health;
mod index;
mod marker;
mod pack;
pub mod place;
mod plain;
mod scan;
mod stats;
mod upkeep;
mod usage;
mod volume;
mod watch;

pub use config::{BlockConfig, DiskConfig};
pub use error::{BlockError, OpenError};
pub use health::Health;
pub use index::{BlockIndex, DiskId, Location, LocationError, MemoryIndex, Place};
pub use marker::{Identity, MARKER};
pub use scan::{Scan, ScanDepth, ScanItem};
pub use stats::DiskStats;
pub use upkeep::DiskUse;
pub use usage::SegmentUsage;

use crate::disk::Disk;
use crate::limits;
use bytes::Bytes;
use hayloft_common::block::{self, Envelope};
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::limits::MAX_BLOCK_SIZE;
use pack::Pending;
use parking_lot::RwLock;
use place::Candidate;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use volume::{Found, Ticket, Volume, identify};

/// A configured disk that is not in use.
#[derive(Clone)]
struct Absent {
    disk: Arc<dyn Disk>,
    capacity: Option<u64>,
    read_only: bool,
    id: Option<DiskId>,
    path: String,
    reason: String,
}

type Volumes = BTreeMap<DiskId, Arc<Volume>>;

/// The disks as they are; changed only by `watch.rs`.
struct Disks {
    volumes: Volumes,
    absent: Vec<Absent>,
}

struct Inner {
    env: Env,
    config: Arc<BlockConfig>,
    identity: Identity,
    disks: RwLock<Disks>,
    /// How often a directory of which parts were gone was opened again under its old name.
    reopened: AtomicU64,
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
        let config = Arc::new(config);
        let mut volumes = Volumes::new();
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
            match identify(&*disk, &identity, may_create, known_as)? {
                Found::Failed(reason) => {
                    tracing::error!(disk = path, reason, "data disk set aside");
                    absent.push(Absent { disk, capacity, read_only, id: known_as, path, reason });
                }
                Found::Marked(id) => {
                    if let Some(first) = volumes.get(&id) {
                        return Err(OpenError::SameDisk { first: first.name.clone(), second: path, id });
                    }
                    let volume = Volume::open(disk, id, capacity, read_only, identity, config.clone());
                    volumes.insert(id, Arc::new(volume));
                }
            }
        }
        let disks = RwLock::new(Disks { volumes, absent });
        let reopened = AtomicU64::new(0);
        let store = Self(Arc::new(Inner { env, config, identity, disks, reopened }));
        store.recount(index);
        Ok(store)
    }

    /// Counts again what the index says the disks hold (after a rebuild). Not while blocks are put or
    /// deleted. Blocks its thread.
    pub fn recount(&self, index: &dyn BlockIndex) {
        let volumes = self.0.disks.read().volumes.clone();
        for volume in volumes.values() {
            volume.usage.lock().forget_live();
        }
        index.for_each(&mut |_, location| {
            if let Some(volume) = volumes.get(&location.disk) {
                volume.usage.lock().add(&location);
            }
        });
        for volume in volumes.values() {
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
        self.put_verified(hash, envelope).await
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
        volume.usage.lock().remove(location);
        if location.place != Place::Plain {
            return volume.need_deletable();
        }
        let hash = *hash;
        self.blocking(move || volume.remove_plain(&hash).map(drop)).await
    }

    /// The state of every configured disk.
    pub async fn stats(&self) -> Result<Vec<DiskStats>, BlockError> {
        let (volumes, absent) = {
            let disks = self.0.disks.read();
            (disks.volumes.clone(), disks.absent.clone())
        };
        self.blocking(move || {
            let used = volumes.values().map(|volume| stats::volume_stats(volume));
            let absent = absent.iter().map(stats::absent_stats);
            Ok(used.chain(absent).collect())
        })
        .await
    }

    /// Everything that lies on the disks (for rebuilding the index). The iterator blocks its thread.
    pub fn scan(&self, depth: ScanDepth) -> Scan {
        let volumes = self.0.disks.read().volumes.clone();
        let readable = volumes.into_values().filter(|volume| volume.health().takes_reads());
        Scan::new(readable, depth, self.0.config.max_stored)
    }

    fn volume(&self, location: &Location) -> Result<Arc<Volume>, BlockError> {
        self.volume_of(location.disk)
    }

    fn volume_of(&self, disk: DiskId) -> Result<Arc<Volume>, BlockError> {
        self.0.disks.read().volumes.get(&disk).cloned().ok_or(BlockError::UnknownDisk { disk })
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
        let disks = self.0.disks.read();
        let volumes = disks.volumes.values();
        let states: Vec<(String, Health)> = volumes.map(|v| (v.name.clone(), v.health())).collect();
        if states.iter().any(|(_, health)| *health == Health::Full) {
            return Err(BlockError::NoSpace);
        }
        let absent = disks.absent.iter().map(|absent| format!("{}: {}", absent.path, absent.reason));
        let states = states.iter().map(|(name, health)| format!("{name}: {health}")).chain(absent);
        Err(BlockError::ReadOnly { states: states.collect::<Vec<_>>().join("; ") })
    }

    fn order(&self, hash: &Hash) -> Vec<Arc<Volume>> {
        let disks = self.0.disks.read();
        let candidates: Vec<Candidate> = disks
            .volumes
            .values()
            .filter(|volume| volume.health().takes_writes())
            .map(|volume| Candidate { disk: volume.id, weight: volume.weight })
            .collect();
        place::order(hash, &candidates).iter().filter_map(|disk| disks.volumes.get(disk).cloned()).collect()
    }

    /// `upkeep`: the block lies on this disk already and is moved to free space; it may use the reserve.
    async fn put_on(
        &self,
        volume: &Arc<Volume>,
        hash: Hash,
        envelope: Bytes,
        upkeep: bool,
    ) -> Result<Location, BlockError> {
        let room = claim_room(volume, envelope.len()).await?;
        if envelope.len() < self.0.config.pack_below {
            return self.put_packed(volume, hash, envelope, room, upkeep).await;
        }
        let permit = volume.writes.clone().acquire_owned().await.map_err(|_| BlockError::Stopping)?;
        let on = volume.clone();
        self.blocking(move || {
            let (_room, _permit) = (room, permit);
            on.write_plain(hash, &envelope, upkeep)
        })
        .await
    }

    async fn put_packed(
        &self,
        volume: &Arc<Volume>,
        hash: Hash,
        payload: Bytes,
        room: OwnedSemaphorePermit,
        upkeep: bool,
    ) -> Result<Location, BlockError> {
        let (reply, answer) = oneshot::channel();
        let lead =
            volume.queue.lock().push(Pending { hash, payload, ticket: Ticket { reply, room, upkeep } });
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
fn new_disk_id(env: &Env, volumes: &Volumes) -> DiskId {
    loop {
        let id = DiskId(u32::from_le_bytes(env.random_bytes()));
        if !volumes.contains_key(&id) {
            return id;
        }
    }
}
