//! One data directory in use: its state, its writers, its open files, its limits.
//!
//! Everything here blocks, except where noted; the store above calls it from blocking threads.

use super::BlockConfig;
use super::error::BlockError;
use super::format::{BLOCKS, FormatError, HEADER, SEGMENTS, TMP, check_record, plain_path, segment_path};
use super::health::{Event, Health, Monitor};
use super::index::{DiskId, Location, Place};
use super::marker::{self, Identity, MARKER, MarkError};
use super::pack::{PackQueue, PackWriter, Pending, list_segments};
use super::plain::{PlainWriter, WriteError, clear_tmp};
use super::usage::Usage;
use crate::disk::{Access, Disk, DiskFile, Space};
use crate::limits::OPEN_SEGMENTS_PER_DISK;
use bytes::Bytes;
use hayloft_common::hash::Hash;
use lru::LruCache;
use parking_lot::Mutex;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// What a packed put waits for, and the room it holds in the queue.
pub(super) struct Ticket {
    pub(super) reply: oneshot::Sender<Result<Location, BlockError>>,
    pub(super) room: OwnedSemaphorePermit,
    /// It may use the reserve.
    pub(super) upkeep: bool,
}

pub(super) struct Volume {
    pub(super) id: DiskId,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) name: String,
    /// Capacity in bytes: the share of new blocks this disk gets.
    pub(super) weight: u64,
    pub(super) capacity: Option<u64>,
    pub(super) read_only: bool,
    identity: Identity,
    /// The file system that the directory was on when it was opened.
    pub(super) file_system: Option<u64>,
    /// A look at the disk is under way, and how many more were due meanwhile.
    pub(super) looking: AtomicBool,
    pub(super) missed_looks: AtomicU32,
    /// Tries to take the disk back into use since it was gone.
    pub(super) revivals: AtomicU32,
    config: Arc<BlockConfig>,
    monitor: Mutex<Monitor>,
    pub(super) usage: Mutex<Usage>,
    segments: Mutex<LruCache<u32, Arc<dyn DiskFile>>>,
    pub(super) queue: Mutex<PackQueue<Ticket>>,
    packer: Mutex<PackWriter>,
    plain: PlainWriter,
    pub(super) corrupt: AtomicU64,
    /// Permits for reads, for writes of large blocks, and for bytes waiting to be written. They are held by the
    /// work itself, not by who waits for it: a caller that gave up does not free a thread that hangs in the disk.
    pub(super) reads: Arc<Semaphore>,
    pub(super) writes: Arc<Semaphore>,
    pub(super) room: Arc<Semaphore>,
    pub(super) waiting: AtomicUsize,
}

impl Volume {
    /// Opens a data directory that is marked as `id`. A disk that fails here is set aside, not refused.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        id: DiskId,
        capacity: Option<u64>,
        read_only: bool,
        identity: Identity,
        config: Arc<BlockConfig>,
    ) -> Self {
        let name = disk.name();
        let mut monitor = Monitor::new(read_only);
        let segments = Self::list(&*disk, &name, &mut monitor);
        let mut packer = PackWriter::new(identity.node, id, config.segment_size, &segments);
        if monitor.health().takes_deletions() {
            let fsync = config.data_fsync;
            let ready = marker::make_dirs(&*disk)
                .and_then(|()| clear_tmp(&*disk))
                .and_then(|()| packer.resume(&*disk, fsync));
            if let Err(error) = ready {
                note(&name, &mut monitor, Event::WriteFailed(&error));
            }
        }
        let mut usage = Usage::default();
        for segment in segments {
            let len = disk.open(&segment_path(segment), Access::Read).and_then(|file| file.len());
            match len {
                Ok(len) => usage.set_file_bytes(segment, len),
                Err(error) => note(&name, &mut monitor, Event::ReadFailed(&error)),
            }
        }
        let total = disk.space().map_or(0, |space| space.total);
        let file_system = disk.file_system().ok().flatten();
        let volume = Self {
            id,
            name,
            weight: capacity.unwrap_or(total),
            capacity,
            read_only,
            identity,
            file_system,
            looking: AtomicBool::new(false),
            missed_looks: AtomicU32::new(0),
            revivals: AtomicU32::new(0),
            monitor: Mutex::new(monitor),
            usage: Mutex::new(usage),
            segments: Mutex::new(LruCache::new(
                NonZeroUsize::new(OPEN_SEGMENTS_PER_DISK).unwrap_or(NonZeroUsize::MIN),
            )),
            queue: Mutex::default(),
            packer: Mutex::new(packer),
            plain: PlainWriter::default(),
            corrupt: AtomicU64::new(0),
            reads: Arc::new(Semaphore::new(config.reads_per_disk)),
            writes: Arc::new(Semaphore::new(config.writes_per_disk)),
            room: Arc::new(Semaphore::new(config.write_queue)),
            waiting: AtomicUsize::new(0),
            disk,
            config,
        };
        volume.refresh();
        volume
    }

    fn list(disk: &dyn Disk, name: &str, monitor: &mut Monitor) -> Vec<u32> {
        // A marked directory is complete: one without its parts is damaged or half mounted.
        match disk.list(BLOCKS).and_then(|_| list_segments(disk)) {
            Ok(segments) => segments,
            Err(error) => {
                let reason = format!("its directories cannot be listed: {error}");
                let missing = error.kind() == io::ErrorKind::NotFound;
                note(name, monitor, if missing { Event::Gone(reason) } else { Event::Unusable(reason) });
                Vec::new()
            }
        }
    }

    pub(super) fn health(&self) -> Health {
        self.monitor.lock().health()
    }

    /// Whether the disk failed because its directory is not there.
    pub(super) fn is_gone(&self) -> bool {
        self.monitor.lock().is_gone()
    }

    /// Looks whether the directory is still there and whole, and at its free space.
    pub(super) fn look(&self) {
        if matches!(self.health(), Health::Failed { .. }) {
            return;
        }
        match self.find_fault() {
            Ok(None) => {}
            Ok(Some(reason)) => return self.event(Event::Gone(reason)),
            Err(error) => return self.event(Event::ReadFailed(&error)),
        }
        self.refresh();
    }

    /// What is missing of the directory.
    fn find_fault(&self) -> io::Result<Option<String>> {
        match marker::read(&*self.disk, &self.identity) {
            Ok(Some(id)) if id == self.id => {}
            Ok(Some(other)) => return Ok(Some(format!("disk {other} is in its place"))),
            Ok(None) => {
                let text =
                    "its marker is gone: the directory was deleted, or the disk is not mounted any more";
                return Ok(Some(text.into()));
            }
            Err(MarkError::Damaged(reason)) => {
                tracing::error!(
                    disk = self.name,
                    reason,
                    "the marker of a data disk is damaged; writing it anew"
                );
                if !self.read_only && marker::write(&*self.disk, &self.identity, self.id).is_err() {
                    return Err(io::Error::other("its marker is damaged and can't be written anew"));
                }
            }
            Err(MarkError::Failed(reason)) => return Err(io::Error::other(reason)),
            Err(MarkError::Refused(error)) => return Ok(Some(error.to_string())),
        }
        for dir in [SEGMENTS, BLOCKS, TMP] {
            if !self.disk.exists(dir)? {
                return Ok(Some(format!("its directory `{dir}` is gone")));
            }
        }
        // Who goes on writing to an open file without a name loses all of it.
        let current = self.packer.try_lock().and_then(|packer| packer.current());
        if let Some(path) = current.map(segment_path)
            && !self.disk.exists(&path)?
        {
            return Ok(Some(format!("its file `{path}` was deleted")));
        }
        Ok(None)
    }

    /// Takes an event in and reports a change of state, once.
    pub(super) fn event(&self, event: Event<'_>) {
        note(&self.name, &mut self.monitor.lock(), event);
    }

    /// Space left for blocks: what the file system has above the reserve, and the capacity allows.
    fn available(&self, space: Space) -> u64 {
        let allowed = self.capacity.map(|capacity| capacity.saturating_sub(self.usage.lock().file_bytes()));
        let free = space.available.saturating_sub(self.config.disk_reserve);
        allowed.map_or(free, |allowed| allowed.min(free))
    }

    /// Looks at the free space again; returns it with what is left for blocks.
    pub(super) fn refresh(&self) -> Option<(Space, u64)> {
        let space = self.disk.space().ok()?;
        let available = self.available(space);
        self.event(Event::Space { available, reserve: 0 });
        Some((space, available))
    }

    /// The error to give when the disk does not take writes (any more).
    fn need_writable(&self, upkeep: bool) -> Result<(), BlockError> {
        match self.health() {
            Health::Healthy => Ok(()),
            Health::Full if upkeep => Ok(()),
            Health::Full => Err(BlockError::NoSpace),
            other => Err(BlockError::DiskFailed { disk: self.name.clone(), reason: other.to_string() }),
        }
    }

    fn write_failed(&self, error: &WriteError) -> BlockError {
        match error {
            WriteError::Write(error) => {
                match error.kind() {
                    io::ErrorKind::NotFound => {
                        self.event(Event::Gone(format!("a directory is gone: {error}")));
                    }
                    _ => self.event(Event::WriteFailed(error)),
                }
                BlockError::io(&self.name, "write", error)
            }
            WriteError::Sync(error) => {
                self.event(Event::SyncFailed(error));
                BlockError::io(&self.name, "sync", error)
            }
        }
    }

    pub(super) fn write_plain(
        &self,
        hash: Hash,
        payload: &Bytes,
        upkeep: bool,
    ) -> Result<Location, BlockError> {
        self.refresh();
        self.need_writable(upkeep)?;
        let existed = self.disk.exists(&plain_path(&hash).1).unwrap_or(false);
        let location = self
            .plain
            .write(&*self.disk, self.id, hash, payload, self.config.data_fsync)
            .map_err(|error| self.write_failed(&error))?;
        // A failed sync of another writer ends trust in this write too.
        self.need_trust()?;
        if !existed {
            self.usage.lock().add(&location);
        }
        Ok(location)
    }

    /// Packs what waits, batch by batch, until nothing does.
    pub(super) fn pack_all(&self) {
        loop {
            let batch = self.queue.lock().take();
            if batch.is_empty() {
                return;
            }
            self.pack(batch);
        }
    }

    fn pack(&self, batch: Vec<Pending<Ticket>>) {
        self.refresh();
        let mut allowed = Vec::with_capacity(batch.len());
        for Pending { hash, payload, ticket } in batch {
            match self.need_writable(ticket.upkeep) {
                Ok(()) => allowed.push(Pending { hash, payload, ticket }),
                Err(error) => {
                    drop(ticket.room);
                    let _ = ticket.reply.send(Err(error));
                }
            }
        }
        if !allowed.is_empty() {
            self.append(allowed);
        }
    }

    fn append(&self, batch: Vec<Pending<Ticket>>) {
        let written = self
            .packer
            .lock()
            .append(&*self.disk, &batch, self.config.data_fsync)
            .map_err(|error| self.write_failed(&error));
        let written = written.and_then(|packed| self.need_trust().map(|()| packed));
        match written {
            Ok(packed) => {
                self.usage.lock().set_file_bytes(packed.segment, packed.file_bytes);
                for (Pending { ticket, .. }, location) in batch.into_iter().zip(packed.locations) {
                    self.usage.lock().add(&location);
                    drop(ticket.room);
                    if ticket.reply.send(Ok(location)).is_err() {
                        // The caller gave up: the block will never be in the index, it is dead.
                        self.usage.lock().remove(&location);
                    }
                }
            }
            Err(error) => {
                for Pending { ticket, .. } in batch {
                    drop(ticket.room);
                    let _ = ticket.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// After a write: an error if the disk was set aside meanwhile. Full is no reason to doubt.
    fn need_trust(&self) -> Result<(), BlockError> {
        match self.health() {
            Health::Healthy | Health::Full => Ok(()),
            other => Err(BlockError::DiskFailed { disk: self.name.clone(), reason: other.to_string() }),
        }
    }

    /// The block's envelope, checked.
    pub(super) fn read(&self, hash: &Hash, location: &Location) -> Result<Bytes, BlockError> {
        let read = match location.place {
            Place::Plain => self.read_plain(hash),
            Place::Packed { segment, offset } => self.read_packed(location, segment, offset),
        };
        match read {
            Ok(bytes) => {
                self.event(Event::ReadWorked);
                self.check(hash, location.place, bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BlockError::Missing { hash: *hash, disk: self.name.clone() })
            }
            Err(error) => {
                self.event(Event::ReadFailed(&error));
                Err(BlockError::io(&self.name, "read", &error))
            }
        }
    }

    /// As `read`, for a packed block whose bytes are in memory and whose segment is open; never blocks.
    pub(super) fn read_cached(&self, hash: &Hash, location: &Location) -> Option<Result<Bytes, BlockError>> {
        let Place::Packed { segment, offset } = location.place else { return None };
        let file = self.segments.lock().get(&segment).cloned()?;
        let mut bytes = vec![0; HEADER + location.len as usize];
        file.read_cached_at(&mut bytes, u64::from(offset)).filter(|read| *read == bytes.len())?;
        Some(self.check(hash, location.place, bytes))
    }

    fn check(&self, hash: &Hash, place: Place, bytes: Vec<u8>) -> Result<Bytes, BlockError> {
        match check_record(&bytes, hash, self.id, place) {
            Ok(end) => Ok(Bytes::from(bytes).slice(HEADER..end)),
            Err(reason) => Err(self.corrupt(hash, reason)),
        }
    }

    fn corrupt(&self, hash: &Hash, reason: FormatError) -> BlockError {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
        BlockError::Corrupt { hash: *hash, disk: self.name.clone(), reason }
    }

    fn read_plain(&self, hash: &Hash) -> io::Result<Vec<u8>> {
        let file = self.disk.open(&plain_path(hash).1, Access::Read)?;
        // A longer file is damaged: what is read of it does not check out.
        let longest = (HEADER + self.config.max_stored) as u64;
        let mut bytes = vec![0; file.len()?.min(longest) as usize];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn read_packed(&self, location: &Location, segment: u32, offset: u32) -> io::Result<Vec<u8>> {
        let file = self.segment(segment)?;
        let mut bytes = vec![0; HEADER + location.len as usize];
        let read = file.read_at(&mut bytes, u64::from(offset))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The open segment. Its header is not asked: each record says where it belongs, so a damaged segment
    /// header costs no block.
    fn segment(&self, segment: u32) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.segments.lock().get(&segment) {
            return Ok(file.clone());
        }
        let file = self.disk.open(&segment_path(segment), Access::Read)?;
        self.segments.lock().put(segment, file.clone());
        Ok(file)
    }

    /// The error to give when the disk takes no deletions.
    pub(super) fn need_deletable(&self) -> Result<(), BlockError> {
        let health = self.health();
        if health.takes_deletions() {
            return Ok(());
        }
        Err(BlockError::ReadOnly { states: format!("{}: {health}", self.name) })
    }

    /// Removes the file of a large block; says whether there was one.
    pub(super) fn remove_plain(&self, hash: &Hash) -> Result<bool, BlockError> {
        self.need_deletable()?;
        match self.disk.remove(&plain_path(hash).1) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.write_failed(&WriteError::Write(error))),
        }
        self.refresh();
        Ok(true)
    }

    /// The segment that is appended to, if there is one.
    pub(super) fn appending(&self) -> Option<u32> {
        self.packer.lock().current()
    }

    /// Makes sure that nothing is appended to a segment any more.
    pub(super) fn seal(&self, segment: u32) {
        self.packer.lock().seal(segment);
    }

    /// Removes a sealed segment of which nothing is needed any more.
    pub(super) fn remove_segment(&self, segment: u32) -> Result<(), BlockError> {
        self.need_deletable()?;
        self.segments.lock().pop(&segment);
        match self.disk.remove(&segment_path(segment)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.write_failed(&WriteError::Write(error))),
        }
        self.segments.lock().pop(&segment);
        self.usage.lock().forget_segment(segment);
        self.refresh();
        Ok(())
    }

    /// Whether the file of a location is there and long enough; its bytes are not read.
    pub(super) fn is_present(&self, hash: &Hash, location: &Location) -> io::Result<bool> {
        match location.place {
            Place::Plain => self.disk.exists(&plain_path(hash).1),
            Place::Packed { segment, offset } => {
                let end = u64::from(offset) + (HEADER + location.len as usize) as u64;
                Ok(self.usage.lock().file_bytes_of(segment).is_some_and(|bytes| end <= bytes))
            }
        }
    }
}

/// Applies an event and logs a change of state: the one place where a disk's trouble is reported.
fn note(name: &str, monitor: &mut Monitor, event: Event<'_>) {
    match monitor.apply(event) {
        Some(Health::Healthy) => tracing::info!(disk = name, "data disk takes writes again"),
        Some(state @ Health::Full) => tracing::warn!(disk = name, %state, "data disk takes no new blocks"),
        Some(state) => tracing::error!(disk = name, %state, "data disk set aside"),
        None => {}
    }
}

/// A data directory as found when the store is opened.
pub(super) enum Found {
    Marked(DiskId),
    /// It cannot be used; the reason.
    Failed(String),
}

/// Reads the marker of a data directory, or marks it if it is new and may be.
pub(super) fn identify(
    disk: &dyn Disk,
    identity: &Identity,
    may_create: Result<DiskId, String>,
    known_as: Option<DiskId>,
) -> Result<Found, super::error::OpenError> {
    let marked = marker::read(disk, identity).and_then(|found| match (found, may_create) {
        (Some(id), _) => Ok(id),
        (None, Err(reason)) => Err(MarkError::Failed(reason)),
        (None, Ok(id)) => marker::create(disk, identity, id).map(|()| id),
    });
    match marked {
        Ok(id) => Ok(Found::Marked(id)),
        Err(MarkError::Damaged(reason)) => match known_as {
            // It is the disk that this node knows by that path. Were it another one, none of its records would check out.
            Some(id) => {
                tracing::error!(
                    disk = disk.name(),
                    reason,
                    "the marker of a data disk is damaged; writing it anew"
                );
                Ok(match marker::write(disk, identity, id) {
                    Ok(()) => Found::Marked(id),
                    Err(_) => Found::Failed(format!("its `{MARKER}` file is damaged: {reason}; restore it")),
                })
            }
            None => Ok(Found::Failed(format!("its `{MARKER}` file is damaged: {reason}; restore it"))),
        },
        Err(MarkError::Failed(reason)) => Ok(Found::Failed(reason)),
        Err(MarkError::Refused(error)) => Err(error),
    }
}
