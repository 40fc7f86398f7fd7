//! Finding blocks without the index: every record of every disk, in the order they were written.
//!
//! For rebuilding a lost index, and for finding bytes that no index entry names. Packed records are
//! checked payload and all; of large blocks the header and length (their files get their names only
//! once whole), or all with [`ScanDepth::Full`].
//!
//! A block may be found more than once (it was deleted and put again, or lies on two disks): the last
//! find on a disk is the newest. Blocks that were deleted but not yet compacted are found too; they have
//! no reference and are deleted again.

use super::format::{BLOCKS, FormatError, HEADER, RecordHeader, aligned, plain_hash, segment_path};
use super::index::{DiskId, Location, Place};
use super::pack::list_segments;
use super::volume::Volume;
use crate::disk::{Access, DiskFile};
use hayloft_common::hash::Hash;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// How much of large blocks is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanDepth {
    Headers,
    Full,
}

/// One thing a scan comes across.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanItem {
    Block {
        hash: Hash,
        location: Location,
    },
    /// Bytes that are no block: what a torn write or a failing disk leaves. `bytes` of them were skipped.
    Damaged {
        disk: DiskId,
        path: String,
        offset: u64,
        bytes: u64,
        reason: String,
    },
}

/// An iterator over everything on the disks. Blocks its thread; reads at most one block at a time.
pub struct Scan {
    work: VecDeque<Work>,
    ready: VecDeque<ScanItem>,
    depth: ScanDepth,
    max_stored: usize,
    /// Files up to this path are passed over.
    after: Option<String>,
}

/// What is still to be looked at, in order.
enum Work {
    Volume(Arc<Volume>),
    /// A segment that is not open yet.
    Range(Arc<Volume>, u32, Range<u64>),
    Segment(Arc<Volume>, SegmentScan),
    Directory(Arc<Volume>, String),
    Plain(Arc<Volume>, String, String),
}

struct SegmentScan {
    path: String,
    segment: u32,
    window: Window,
    offset: u64,
    /// Where the damage being skipped began, and why.
    damage: Option<(u64, String)>,
}

impl Scan {
    pub(super) fn new(
        volumes: impl IntoIterator<Item = Arc<Volume>>,
        depth: ScanDepth,
        max_stored: usize,
    ) -> Self {
        let work = volumes.into_iter().map(Work::Volume).collect();
        Self { work, ready: VecDeque::new(), depth, max_stored, after: None }
    }

    /// The records in a range of one segment.
    pub(super) fn segment_of(
        volume: Arc<Volume>,
        segment: u32,
        range: Range<u64>,
        max_stored: usize,
    ) -> Self {
        let work = VecDeque::from([Work::Range(volume, segment, range)]);
        Self { work, ready: VecDeque::new(), depth: ScanDepth::Full, max_stored, after: None }
    }

    /// The files of one directory.
    pub(super) fn directory_of(
        volume: Arc<Volume>,
        dir: String,
        depth: ScanDepth,
        max_stored: usize,
    ) -> Self {
        let work = VecDeque::from([Work::Directory(volume, dir)]);
        Self { work, ready: VecDeque::new(), depth, max_stored, after: None }
    }

    /// Passes over the files up to this path.
    pub(super) fn after(self, after: Option<String>) -> Self {
        Self { after, ..self }
    }

    fn step(&mut self, work: Work) {
        let (disk, path) = match &work {
            Work::Volume(volume) => (volume.id, String::new()),
            Work::Range(volume, segment, _) => (volume.id, segment_path(*segment)),
            Work::Segment(volume, scan) => (volume.id, scan.path.clone()),
            Work::Directory(volume, dir) => (volume.id, dir.clone()),
            Work::Plain(volume, dir, name) => (volume.id, format!("{dir}/{name}")),
        };
        let done = match work {
            Work::Volume(volume) => self.volume(&volume),
            Work::Range(volume, segment, range) => self.open_segment(volume, segment, range),
            Work::Segment(volume, scan) => self.segment(volume, scan),
            Work::Directory(volume, dir) => self.directory(&volume, &dir),
            Work::Plain(volume, dir, name) => self.plain(&volume, &dir, &name),
        };
        if let Err(error) = done {
            let reason = error.to_string();
            self.ready.push_back(ScanItem::Damaged { disk, path, offset: 0, bytes: 0, reason });
        }
    }

    fn volume(&mut self, volume: &Arc<Volume>) -> io::Result<()> {
        let mut next = VecDeque::new();
        for segment in list_segments(&*volume.disk)? {
            next.push_back(Work::Range(volume.clone(), segment, HEADER as u64..u64::MAX));
        }
        for entry in volume.disk.list(BLOCKS)?.into_iter().filter(|entry| entry.is_dir) {
            next.push_back(Work::Directory(volume.clone(), format!("{BLOCKS}/{}", entry.name)));
        }
        next.append(&mut self.work);
        self.work = next;
        Ok(())
    }

    /// Opens a segment; one that was removed meanwhile is empty.
    fn open_segment(&mut self, volume: Arc<Volume>, segment: u32, range: Range<u64>) -> io::Result<()> {
        let path = segment_path(segment);
        let file = match volume.disk.open(&path, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let window = Window { len: file.len()?.min(range.end), file, start: 0, bytes: Vec::new() };
        let scan = SegmentScan { path, segment, window, offset: range.start, damage: None };
        self.work.push_front(Work::Segment(volume, scan));
        Ok(())
    }

    /// Goes on to the next record of a segment; puts the segment back if there is more.
    fn segment(&mut self, volume: Arc<Volume>, mut scan: SegmentScan) -> io::Result<()> {
        let disk = volume.id;
        while scan.offset + (HEADER as u64) <= scan.window.len {
            match scan.record(disk, self.max_stored)? {
                Ok((hash, location, next)) => {
                    self.ready.extend(scan.end_damage(disk));
                    scan.offset = next;
                    self.ready.push_back(ScanItem::Block { hash, location });
                    self.work.push_front(Work::Segment(volume, scan));
                    return Ok(());
                }
                Err(reason) => {
                    scan.damage.get_or_insert((scan.offset, reason.to_string()));
                    scan.offset += HEADER as u64;
                }
            }
        }
        scan.offset = scan.window.len;
        self.ready.extend(scan.end_damage(disk));
        Ok(())
    }

    fn directory(&mut self, volume: &Arc<Volume>, dir: &str) -> io::Result<()> {
        if volume.health().takes_deletions() {
            // What only a killed process renamed is visible now, and must not vanish once found.
            volume.disk.sync_dir(dir)?;
        }
        for entry in volume.disk.list(dir)?.into_iter().rev() {
            if self.after.as_ref().is_some_and(|after| format!("{dir}/{}", entry.name) <= *after) {
                break;
            }
            self.work.push_front(Work::Plain(volume.clone(), dir.to_owned(), entry.name));
        }
        Ok(())
    }

    fn plain(&mut self, volume: &Arc<Volume>, dir: &str, name: &str) -> io::Result<()> {
        let disk = volume.id;
        let path = format!("{dir}/{name}");
        let damaged = |reason: String, bytes: u64| ScanItem::Damaged {
            disk,
            path: path.clone(),
            offset: 0,
            bytes,
            reason,
        };
        let Some(hash) = plain_hash(name) else {
            self.ready.push_back(damaged("not the name of a block".into(), 0));
            return Ok(());
        };
        let file = match volume.disk.open(&path, Access::Read) {
            // Deleted while the scan runs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let len = file.len()?;
        match check_plain(&*file, len, &hash, disk, self.depth, self.max_stored)? {
            Ok(len) => {
                let location = Location { disk, place: Place::Plain, len };
                self.ready.push_back(ScanItem::Block { hash, location });
            }
            Err(reason) => self.ready.push_back(damaged(reason.to_string(), len)),
        }
        Ok(())
    }
}

impl Iterator for Scan {
    type Item = ScanItem;

    fn next(&mut self) -> Option<ScanItem> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            let work = self.work.pop_front()?;
            self.step(work);
        }
    }
}

fn check_plain(
    file: &dyn DiskFile,
    len: u64,
    hash: &Hash,
    disk: DiskId,
    depth: ScanDepth,
    max_stored: usize,
) -> io::Result<Result<u32, FormatError>> {
    let mut header = [0; HEADER];
    let read = file.read_at(&mut header, 0)?;
    let header = match RecordHeader::decode(&header[..read], disk, Place::Plain) {
        Ok(header) if header.hash != *hash => {
            return Ok(Err(FormatError::OtherBlock { found: header.hash }));
        }
        Ok(header) => header,
        Err(reason) => return Ok(Err(reason)),
    };
    let size = header.len as usize;
    if size > max_stored {
        return Ok(Err(FormatError::TooLong { found: size, max: max_stored }));
    }
    if len < (HEADER + size) as u64 {
        return Ok(Err(FormatError::Short { found: len as usize, needed: HEADER + size }));
    }
    if depth == ScanDepth::Full {
        let mut payload = vec![0; size];
        let read = file.read_at(&mut payload, HEADER as u64)?;
        payload.truncate(read);
        if let Err(reason) = header.check_payload(&payload) {
            return Ok(Err(reason));
        }
    }
    Ok(Ok(header.len))
}

impl SegmentScan {
    /// The record at the current offset, checked, and where the next one may start.
    fn record(
        &mut self,
        disk: DiskId,
        max_stored: usize,
    ) -> io::Result<Result<(Hash, Location, u64), FormatError>> {
        let Ok(offset) = u32::try_from(self.offset) else {
            return Ok(Err(FormatError::Misplaced));
        };
        let place = Place::Packed { segment: self.segment, offset };
        let header = match RecordHeader::decode(self.window.get(self.offset, HEADER)?, disk, place) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        let size = header.len as usize;
        if size > max_stored {
            return Ok(Err(FormatError::TooLong { found: size, max: max_stored }));
        }
        let payload = self.window.get(self.offset + HEADER as u64, size)?;
        if let Err(reason) = header.check_payload(payload) {
            return Ok(Err(reason));
        }
        let next = aligned(self.offset + (HEADER + size) as u64);
        Ok(Ok((header.hash, Location { disk, place, len: header.len }, next)))
    }

    fn end_damage(&mut self, disk: DiskId) -> Option<ScanItem> {
        let (offset, reason) = self.damage.take()?;
        let bytes = self.offset - offset;
        Some(ScanItem::Damaged { disk, path: self.path.clone(), offset, bytes, reason })
    }
}

/// A view of a file that is read in large steps.
struct Window {
    file: Arc<dyn DiskFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

/// Read at once, in bytes.
const STEP: usize = 512 << 10;

impl Window {
    /// The bytes at `offset`, fewer than `len` only at the end of the file.
    fn get(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let end = offset + len as u64;
        let have = self.start..self.start + self.bytes.len() as u64;
        if !(have.contains(&offset) && end <= have.end) {
            self.bytes.resize(len.max(STEP), 0);
            let read = self.file.read_at(&mut self.bytes, offset)?;
            self.bytes.truncate(read);
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        let rest = self.bytes.get(from..).unwrap_or_default();
        Ok(&rest[..len.min(rest.len())])
    }
}
