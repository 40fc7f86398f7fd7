//! Which directories a block store uses, and how it works.

use super::error::OpenError;
use super::index::DiskId;
use crate::disk::{Disk, RealDisk};
use crate::limits;
use std::path::PathBuf;
use std::sync::Arc;

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
    pub(super) fn check(&self) -> Result<(), OpenError> {
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
