//! What lies on a disk, counted in memory: filled from the index when the store is opened, then kept up
//! with puts and deletions. Bytes are those on disk, headers and padding included.

use super::format::{HEADER, record_size};
use super::index::{Location, Place};
use std::collections::BTreeMap;

/// One segment: what the file takes and what of it is still in the index. The rest is dead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentUsage {
    pub file_bytes: u64,
    pub live_bytes: u64,
    pub live_blocks: u64,
}

impl SegmentUsage {
    /// Bytes that compaction would free.
    pub fn dead_bytes(&self) -> u64 {
        self.file_bytes.saturating_sub(self.live_bytes)
    }
}

/// The counts of one disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    plain_blocks: u64,
    plain_bytes: u64,
    segments: BTreeMap<u32, SegmentUsage>,
}

impl Usage {
    pub(super) fn set_file_bytes(&mut self, segment: u32, bytes: u64) {
        self.segments.entry(segment).or_default().file_bytes = bytes;
    }

    /// Length of a segment's file; `None` if there is no such segment.
    pub(super) fn file_bytes_of(&self, segment: u32) -> Option<u64> {
        self.segments.get(&segment).map(|usage| usage.file_bytes)
    }

    pub(super) fn forget_segment(&mut self, segment: u32) {
        self.segments.remove(&segment);
    }

    /// What a walk through a segment found live in it.
    pub(super) fn set_live(&mut self, segment: u32, live_blocks: u64, live_bytes: u64) {
        if let Some(usage) = self.segments.get_mut(&segment) {
            (usage.live_blocks, usage.live_bytes) = (live_blocks, live_bytes);
        }
    }

    /// Forgets what is live, before counting it again.
    pub(super) fn forget_live(&mut self) {
        (self.plain_blocks, self.plain_bytes) = (0, 0);
        for segment in self.segments.values_mut() {
            (segment.live_bytes, segment.live_blocks) = (0, 0);
        }
    }

    pub(super) fn add(&mut self, location: &Location) {
        match location.place {
            Place::Plain => {
                self.plain_blocks += 1;
                self.plain_bytes += (HEADER + location.len as usize) as u64;
            }
            Place::Packed { segment, .. } => {
                let usage = self.segments.entry(segment).or_default();
                usage.live_blocks += 1;
                usage.live_bytes += record_size(location.len as usize);
            }
        }
    }

    pub(super) fn remove(&mut self, location: &Location) {
        match location.place {
            Place::Plain => {
                self.plain_blocks = self.plain_blocks.saturating_sub(1);
                self.plain_bytes = self.plain_bytes.saturating_sub((HEADER + location.len as usize) as u64);
            }
            Place::Packed { segment, .. } => {
                if let Some(usage) = self.segments.get_mut(&segment) {
                    usage.live_blocks = usage.live_blocks.saturating_sub(1);
                    usage.live_bytes = usage.live_bytes.saturating_sub(record_size(location.len as usize));
                }
            }
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.plain_blocks + self.segments.values().map(|s| s.live_blocks).sum::<u64>()
    }

    /// Bytes of blocks in the index.
    pub(super) fn live_bytes(&self) -> u64 {
        self.plain_bytes + self.segments.values().map(|s| s.live_bytes).sum::<u64>()
    }

    /// Bytes the blocks take on the disk, dead ones included.
    pub(super) fn file_bytes(&self) -> u64 {
        self.plain_bytes + self.segments.values().map(|s| s.file_bytes).sum::<u64>()
    }

    pub(super) fn segments(&self) -> BTreeMap<u32, SegmentUsage> {
        self.segments.clone()
    }
}
