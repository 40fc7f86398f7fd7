//! What the workers that look after blocks need of the store: to read a disk piece by piece, to move blocks between
//! disks, to find and remove segments with dead bytes, to free what no index entry names.
//!
//! The store does not know the index: whoever removes something here must have made sure, under the block's lock, that
//! no entry names it, and that none is about to (`workers/compact.rs` says how).

use super::error::BlockError;
use super::format::{BLOCKS, HEADER, plain_path};
use super::index::{DiskId, Location};
use super::usage::SegmentUsage;
use super::{BlockStore, Scan, ScanDepth};
use bytes::Bytes;
use hayloft_common::hash::Hash;
use std::collections::BTreeMap;

/// A disk as placement sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    pub disk: DiskId,
    /// Its share of the blocks; 0 if it takes none.
    pub weight: u64,
    /// Whether it takes writes, now or when there is room again.
    pub writable: bool,
    pub readable: bool,
}

impl BlockStore {
    /// The disks in use, in order of id.
    pub fn disks(&self) -> Vec<DiskUse> {
        let disks = self.0.disks.read();
        disks
            .volumes
            .values()
            .map(|volume| {
                let health = volume.health();
                let writable = health.takes_deletions();
                DiskUse { disk: volume.id, weight: volume.weight, writable, readable: health.takes_reads() }
            })
            .collect()
    }

    /// The disk on which a block should lie: the first that takes writes now.
    pub fn preferred(&self, hash: &Hash) -> Option<DiskId> {
        self.order(hash).first().map(|volume| volume.id)
    }

    /// As [`BlockStore::put`], on one disk and no other. `upkeep`: the block lies on that disk already, and is moved to
    /// free space: then it may use the reserve.
    pub async fn put_to(
        &self,
        disk: DiskId,
        hash: Hash,
        envelope: Bytes,
        upkeep: bool,
    ) -> Result<Location, BlockError> {
        self.verify(hash, &envelope).await?;
        let volume = self.volume_of(disk)?;
        self.put_on(&volume, hash, envelope, upkeep).await
    }

    /// As [`BlockStore::put`], for bytes that the caller has checked against the hash.
    pub async fn put_verified(&self, hash: Hash, envelope: Bytes) -> Result<Location, BlockError> {
        let mut last = None;
        for volume in self.writable(&hash).await? {
            match self.put_on(&volume, hash, envelope.clone(), false).await {
                Err(error) if error.is_of_the_disk() => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or(BlockError::NoSpace))
    }

    /// Whether the file of a location is there and long enough. Blocks its thread; its bytes are not read.
    pub fn is_present(&self, hash: &Hash, location: &Location) -> Result<bool, BlockError> {
        let volume = self.volume(location)?;
        volume.is_present(hash, location).map_err(|error| BlockError::io(&volume.name, "look up", &error))
    }

    /// Counts a location as no longer used, whose bytes stay where they are.
    pub fn forget(&self, location: &Location) {
        if let Ok(volume) = self.volume(location) {
            volume.usage.lock().remove(location);
        }
    }

    /// What each segment of a disk holds; what compaction chooses by.
    pub fn segments(&self, disk: DiskId) -> BTreeMap<u32, SegmentUsage> {
        self.volume_of(disk).map(|volume| volume.usage.lock().segments()).unwrap_or_default()
    }

    /// The segment of a disk that is appended to. May wait for the disk.
    pub async fn appending(&self, disk: DiskId) -> Result<Option<u32>, BlockError> {
        let volume = self.volume_of(disk)?;
        self.blocking(move || Ok(volume.appending())).await
    }

    /// Lets nothing be appended to a segment any more. Puts that are under way may still lie in it.
    pub async fn seal(&self, disk: DiskId, segment: u32) -> Result<(), BlockError> {
        let volume = self.volume_of(disk)?;
        self.blocking(move || {
            volume.seal(segment);
            Ok(())
        })
        .await
    }

    /// Sets what is known to be live in a sealed segment.
    pub fn set_live(&self, disk: DiskId, segment: u32, blocks: u64, bytes: u64) {
        if let Ok(volume) = self.volume_of(disk) {
            volume.usage.lock().set_live(segment, blocks, bytes);
        }
    }

    /// Removes a sealed segment that no index entry names, or will.
    pub async fn remove_segment(&self, disk: DiskId, segment: u32) -> Result<(), BlockError> {
        let volume = self.volume_of(disk)?;
        self.blocking(move || volume.remove_segment(segment)).await
    }

    /// Removes the file of a large block that no index entry names, or will; says whether there was one.
    pub async fn remove_orphan(&self, disk: DiskId, hash: Hash) -> Result<bool, BlockError> {
        let volume = self.volume_of(disk)?;
        self.blocking(move || volume.remove_plain(&hash)).await
    }

    /// The records of one segment from `offset` on, checked, as far as it is known to be complete.
    pub fn scan_segment(&self, disk: DiskId, segment: u32, offset: u64) -> Result<Scan, BlockError> {
        let volume = self.volume_of(disk)?;
        let end = volume.usage.lock().file_bytes_of(segment).unwrap_or_default();
        Ok(Scan::segment_of(volume, segment, offset.max(HEADER as u64)..end, self.0.config.max_stored))
    }

    /// The large blocks of a disk whose hashes begin with the byte `first`.
    pub fn scan_files(&self, disk: DiskId, first: u8, depth: ScanDepth) -> Result<Scan, BlockError> {
        let volume = self.volume_of(disk)?;
        Ok(Scan::directory_of(volume, format!("{BLOCKS}/{first:02x}"), depth, self.0.config.max_stored))
    }

    /// As [`BlockStore::scan_files`], read in full, from the block behind `after` on.
    pub fn scan_files_after(&self, disk: DiskId, first: u8, after: Option<Hash>) -> Result<Scan, BlockError> {
        let volume = self.volume_of(disk)?;
        let dir = format!("{BLOCKS}/{first:02x}");
        let scan = Scan::directory_of(volume, dir, ScanDepth::Full, self.0.config.max_stored);
        Ok(scan.after(after.map(|hash| plain_path(&hash).1)))
    }

    /// Whether any disk holds anything that looks like blocks. Blocks its thread.
    pub fn holds_anything(&self) -> bool {
        let volumes = self.0.disks.read().volumes.clone();
        volumes.values().any(|volume| {
            let packed = volume.usage.lock().segments().values().any(|s| s.file_bytes > HEADER as u64);
            packed
                || (0..=u8::MAX).any(|first| {
                    let files = volume.disk.list(&format!("{BLOCKS}/{first:02x}"));
                    files.is_ok_and(|files| !files.is_empty())
                })
        })
    }
}
