//! Small blocks: packed in append-only segment files, many writers sharing one sync.
//!
//! Puts join a queue; one leader at a time, in a blocking thread, takes what waits, writes it with one
//! call, syncs once and answers all. While it syncs, the next batch gathers.
//!
//! **Never over a synced record**: after a restart, writing goes on behind the end of the last segment's
//! file (rounded up to the record alignment), never inside it. What a torn write left there stays as dead
//! bytes and is passed over by scans. Within a run, a batch whose write failed is overwritten by the
//! next: nobody was told of it.

use super::format::{
    HEADER, RecordHeader, SEGMENTS, SegmentHeader, aligned, record_size, segment_number, segment_path,
};
use super::index::{DiskId, Location, Place};
use super::plain::WriteError;
use crate::disk::{Access, Disk, DiskFile};
use crate::limits::MAX_PACK_BATCH;
use bytes::Bytes;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Blocks that wait to be packed, of which the leader takes batches.
pub(super) struct PackQueue<T> {
    waiting: VecDeque<Pending<T>>,
    led: bool,
}

/// A block that waits to be packed, and what is needed to answer its put.
pub(super) struct Pending<T> {
    pub(super) hash: Hash,
    pub(super) payload: Bytes,
    pub(super) ticket: T,
}

impl<T> Default for PackQueue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), led: false }
    }
}

impl<T> PackQueue<T> {
    /// Adds a block; true if the caller must start a leader.
    pub(super) fn push(&mut self, pending: Pending<T>) -> bool {
        self.waiting.push_back(pending);
        !std::mem::replace(&mut self.led, true)
    }

    /// The next batch for the leader; when it is empty the leader's work is over.
    pub(super) fn take(&mut self) -> Vec<Pending<T>> {
        let mut batch: Vec<Pending<T>> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            bytes += record_size(next.payload.len()) as usize;
            if bytes > MAX_PACK_BATCH && !batch.is_empty() {
                break;
            }
            batch.extend(self.waiting.pop_front());
        }
        self.led = !batch.is_empty();
        batch
    }

    /// The leader is gone without finishing: all that waits is given up.
    pub(super) fn abandon(&mut self) -> VecDeque<Pending<T>> {
        self.led = false;
        std::mem::take(&mut self.waiting)
    }
}

/// The end of the last segment of a disk. Used by one thread at a time.
pub(super) struct PackWriter {
    node: NodeId,
    disk: DiskId,
    segment_size: u64,
    /// The number of the next new segment.
    next: u32,
    current: Option<Current>,
}

struct Current {
    segment: u32,
    file: Arc<dyn DiskFile>,
    tail: u64,
    /// Whether the file's name is known to be durable.
    named: bool,
}

/// Where a batch was written, and the new length of its segment.
pub(super) struct Packed {
    pub(super) locations: Vec<Location>,
    pub(super) segment: u32,
    pub(super) file_bytes: u64,
}

impl PackWriter {
    /// A writer that starts with a new segment, numbered above all in `segments`.
    pub(super) fn new(node: NodeId, disk: DiskId, segment_size: u64, segments: &[u32]) -> Self {
        let next = segments.iter().max().map_or(1, |last| last.saturating_add(1));
        Self { node, disk, segment_size, next, current: None }
    }

    /// Continues the last segment if there is room and it is one of ours. It is synced first: bytes that
    /// only a killed process wrote are visible now, and must not vanish once a scan has found them.
    pub(super) fn resume(&mut self, disk: &dyn Disk, fsync: bool) -> io::Result<()> {
        let Some(segment) = self.next.checked_sub(1).filter(|last| *last > 0) else { return Ok(()) };
        let path = segment_path(segment);
        if !disk.exists(&path)? {
            return Ok(());
        }
        let file = disk.open(&path, Access::Write)?;
        if fsync {
            file.sync()?;
            disk.sync_dir(SEGMENTS)?;
        }
        let tail = aligned(file.len()?);
        if tail < self.segment_size && read_header(&*file, self.node, self.disk, segment)? {
            self.current = Some(Current { segment, file, tail, named: fsync });
        }
        Ok(())
    }

    /// The segment that is appended to, if there is one.
    pub(super) fn current(&self) -> Option<u32> {
        self.current.as_ref().map(|current| current.segment)
    }

    /// Appends no more to `segment`: the next batch begins a new one.
    pub(super) fn seal(&mut self, segment: u32) {
        self.current.take_if(|current| current.segment == segment);
    }

    /// Appends a batch; when it returns all of it is durable (unless `fsync` is off). Blocks.
    pub(super) fn append<T>(
        &mut self,
        disk: &dyn Disk,
        batch: &[Pending<T>],
        fsync: bool,
    ) -> Result<Packed, WriteError> {
        let mut current = match self.current.take().filter(|current| current.tail < self.segment_size) {
            Some(current) => current,
            None => self.roll(disk).map_err(WriteError::Write)?,
        };
        let size = batch.iter().map(|p| record_size(p.payload.len()) as usize).sum();
        let mut buffer = Vec::with_capacity(size);
        let mut locations = Vec::with_capacity(batch.len());
        for Pending { hash, payload, .. } in batch {
            // Fits in 32 bits: see the relations in limits.rs.
            let offset = (current.tail + buffer.len() as u64) as u32;
            let place = Place::Packed { segment: current.segment, offset };
            buffer.extend_from_slice(&RecordHeader::new(*hash, self.disk, place, payload).encode());
            buffer.extend_from_slice(payload);
            buffer.resize(aligned(buffer.len() as u64) as usize, 0);
            locations.push(Location { disk: self.disk, place, len: payload.len() as u32 });
        }
        let written = write_and_sync(disk, &mut current, &buffer, fsync);
        if written.is_ok() {
            current.tail += buffer.len() as u64;
        }
        let packed = Packed { locations, segment: current.segment, file_bytes: current.tail };
        self.current = Some(current);
        written.map(|()| packed)
    }

    fn roll(&mut self, disk: &dyn Disk) -> io::Result<Current> {
        let segment = self.next;
        self.next = segment.checked_add(1).ok_or_else(|| io::Error::other("segment numbers are used up"))?;
        let path = segment_path(segment);
        let file = disk.create(&path)?;
        let header = SegmentHeader { node: self.node, disk: self.disk, segment }.encode();
        if let Err(error) = file.write_at(&header, 0) {
            // An empty segment does no harm if it stays.
            let _ = disk.remove(&path);
            return Err(error);
        }
        Ok(Current { segment, file, tail: HEADER as u64, named: false })
    }
}

fn write_and_sync(
    disk: &dyn Disk,
    current: &mut Current,
    buffer: &[u8],
    fsync: bool,
) -> Result<(), WriteError> {
    current.file.write_at(buffer, current.tail).map_err(WriteError::Write)?;
    if fsync {
        current.file.sync().map_err(WriteError::Sync)?;
        if !current.named {
            disk.sync_dir(SEGMENTS).map_err(WriteError::Sync)?;
            current.named = true;
        }
    }
    Ok(())
}

/// Whether a file starts with the header of this segment.
fn read_header(file: &dyn DiskFile, node: NodeId, disk: DiskId, segment: u32) -> io::Result<bool> {
    let mut bytes = [0; HEADER];
    let len = file.read_at(&mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes[..len]) == Ok(SegmentHeader { node, disk, segment }))
}

/// The numbers of the segments on a disk, ascending.
pub(super) fn list_segments(disk: &dyn Disk) -> io::Result<Vec<u32>> {
    let mut numbers: Vec<u32> = disk
        .list(SEGMENTS)?
        .iter()
        .filter(|entry| !entry.is_dir)
        .filter_map(|entry| segment_number(&entry.name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}
