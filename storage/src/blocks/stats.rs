//! What is known of each disk, for operators and metrics.

use super::Absent;
use super::health::Health;
use super::index::DiskId;
use super::volume::Volume;
use serde::Serialize;
use std::sync::atomic::Ordering;

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

pub(super) fn volume_stats(volume: &Volume) -> DiskStats {
    // A disk that hangs is not asked.
    let asked = if volume.health() == Health::Hanging { None } else { volume.refresh() };
    let (space, available) = asked.unwrap_or_default();
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

pub(super) fn absent_stats(absent: &Absent) -> DiskStats {
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
