//! A data disk in memory, for tests and the simulator.
//!
//! Fault model. Injected, and to be survived:
//! - a **crash** ([`MemoryDisk::crash`], or after a chosen number of operations): what was synced stays;
//!   of what was not, each 4 KiB page of each write survives or not on its own, the last surviving page
//!   may be torn anywhere, the length may be kept while bytes in it are lost (they read as zeros), and
//!   each directory entry that was not synced is either the old one or the new one;
//! - **failed syncs**: an error, after which the pending writes can no longer be made durable, though
//!   they still read back until the crash (as Linux does);
//! - **bit rot**, truncation and loss of files at rest, by call;
//! - a **full** disk (writes stop part-way), a **read-only** one, **failing reads**.
//!
//! Out of scope: misdirected writes, synced data that silently vanishes, slowness (the simulator's
//! blocking pool models time).
//!
//! Everything random is drawn from seeds given by the caller.

use super::{Access, Disk, DiskFile, Entry, Space};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;

const PAGE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Changes since the last sync, oldest first.
    pending: Vec<Change>,
    /// Pending writes before this one were there when a sync failed: no sync makes them durable.
    doomed: usize,
}

#[derive(Default)]
struct Faults {
    failing_syncs: u64,
    failing_reads: bool,
    failing_writes: bool,
    read_only: bool,
    crash_after: Option<u64>,
}

struct State {
    /// Directory entries as seen now, and as they would be after a crash.
    current: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Counts restarts; handles of an earlier run are dead.
    run: u64,
    crashed: bool,
    capacity: u64,
    faults: Faults,
    operations: u64,
    syncs: u64,
}

/// A simulated data directory. Clones share it.
#[derive(Clone)]
pub struct MemoryDisk {
    name: String,
    state: Arc<Mutex<State>>,
}

struct MemoryFile {
    state: Arc<Mutex<State>>,
    inode: u64,
    run: u64,
    writable: bool,
}

/// splitmix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn fault(kind: ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, format!("simulated fault: {what}"))
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("no such file or directory: {path}"))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl State {
    /// Counts an operation and lets the planned crash happen.
    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.faults.crash_after {
            if *left == 0 {
                self.crashed = true;
            } else {
                *left -= 1;
            }
        }
        if self.crashed {
            return Err(fault(ErrorKind::Other, "the machine has crashed"));
        }
        self.operations += 1;
        Ok(())
    }

    /// As `step`, for operations that change something.
    fn change(&mut self) -> io::Result<()> {
        self.step()?;
        if self.faults.read_only {
            return Err(fault(ErrorKind::ReadOnlyFilesystem, "read-only file system"));
        }
        if self.faults.failing_writes {
            return Err(fault(ErrorKind::Other, "write error"));
        }
        Ok(())
    }

    fn need_dir(&self, dir: &str) -> io::Result<()> {
        match self.current.get(dir) {
            _ if dir.is_empty() => Ok(()),
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::Error::new(ErrorKind::NotADirectory, dir.to_owned())),
            None => Err(not_found(dir)),
        }
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.current.len() as u64).sum()
    }

    fn file(&mut self, path: &str) -> Option<&mut Inode> {
        match self.current.get(path) {
            Some(&Node::File(id)) => self.inodes.get_mut(&id),
            _ => None,
        }
    }

    /// Forgets files that no entry names.
    fn collect(&mut self) {
        let named: BTreeSet<u64> = self
            .current
            .values()
            .chain(self.durable.values())
            .filter_map(|node| match node {
                Node::File(id) => Some(*id),
                Node::Dir => None,
            })
            .collect();
        self.inodes.retain(|id, _| named.contains(id));
    }

    fn crash(&mut self, dice: &mut Dice) {
        // Half of the crashes are mixed; a quarter lose all that was not synced, a quarter nothing.
        let mode = dice.below(4);
        let keep = |dice: &mut Dice| match mode {
            0 => false,
            1 => true,
            _ => dice.below(2) == 0,
        };
        let paths: BTreeSet<String> = self.current.keys().chain(self.durable.keys()).cloned().collect();
        for path in paths {
            let (old, new) = (self.durable.get(&path).copied(), self.current.get(&path).copied());
            if old != new {
                match if keep(dice) { new } else { old } {
                    Some(node) => drop(self.durable.insert(path, node)),
                    None => drop(self.durable.remove(&path)),
                }
            }
        }
        // An entry below a directory that did not survive is gone with it.
        let dirs: BTreeSet<String> =
            self.durable.iter().filter(|(_, n)| **n == Node::Dir).map(|(p, _)| p.clone()).collect();
        self.durable.retain(|path, _| parent(path).is_empty() || dirs.contains(parent(path)));
        self.current = self.durable.clone();
        self.collect();
        for inode in self.inodes.values_mut() {
            inode.crash(&keep, dice);
        }
        self.run += 1;
        self.crashed = false;
        self.faults.crash_after = None;
    }
}

impl Inode {
    fn write(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
        let end = offset + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(new);
    }

    fn sync(&mut self) {
        let kept = self.pending.drain(..).skip(self.doomed);
        for change in kept {
            match change {
                Change::Write { offset, bytes } => Self::write(&mut self.durable, offset, &bytes),
                Change::Truncate(len) => self.durable.resize(len, 0),
            }
        }
        self.doomed = 0;
    }

    fn crash(&mut self, keep: &dyn Fn(&mut Dice) -> bool, dice: &mut Dice) {
        for change in self.pending.drain(..) {
            match change {
                Change::Truncate(len) => {
                    if keep(dice) {
                        self.durable.resize(len, 0);
                    }
                }
                Change::Write { offset, bytes } => {
                    if dice.below(4) == 0 && self.durable.len() < offset + bytes.len() && keep(dice) {
                        self.durable.resize(offset + bytes.len(), 0);
                    }
                    let mut at = 0;
                    let mut last = None;
                    while at < bytes.len() {
                        let len = (PAGE - (offset + at) % PAGE).min(bytes.len() - at);
                        if keep(dice) {
                            last = Some((at, len));
                            Self::write(&mut self.durable, offset + at, &bytes[at..at + len]);
                        }
                        at += len;
                    }
                    if let Some((at, len)) = last.filter(|_| dice.below(3) == 0) {
                        // The end of the last surviving page did not make it.
                        let cut = offset + at + dice.below(len);
                        self.durable[cut..offset + at + len].fill(0);
                        if self.durable.len() == offset + at + len {
                            self.durable.truncate(cut);
                        }
                    }
                }
            }
        }
        self.doomed = 0;
        self.current = self.durable.clone();
    }
}

impl MemoryDisk {
    /// An empty disk of 1 TiB, called `name` in messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: Arc::new(Mutex::new(State {
                current: BTreeMap::new(),
                durable: BTreeMap::new(),
                inodes: BTreeMap::new(),
                next_inode: 1,
                run: 0,
                crashed: false,
                capacity: 1 << 40,
                faults: Faults::default(),
                operations: 0,
                syncs: 0,
            })),
        }
    }

    /// Crashes the machine now and starts it again: unsynced changes survive as `seed` decides, handles
    /// opened before are dead. Other faults stay as they are.
    pub fn crash(&self, seed: u64) {
        self.state.lock().crash(&mut Dice(seed));
    }

    /// Lets `operations` more operations succeed, then fails all until [`MemoryDisk::crash`] is called.
    pub fn crash_after(&self, operations: u64) {
        self.state.lock().faults.crash_after = Some(operations);
    }

    /// Whether the planned crash has happened.
    pub fn has_crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// The next `count` syncs (of files or directories) fail.
    pub fn fail_syncs(&self, count: u64) {
        self.state.lock().faults.failing_syncs = count;
    }

    /// From now on all reads fail, or none.
    pub fn fail_reads(&self, fail: bool) {
        self.state.lock().faults.failing_reads = fail;
    }

    /// From now on all changes fail with an I/O error, or none.
    pub fn fail_writes(&self, fail: bool) {
        self.state.lock().faults.failing_writes = fail;
    }

    /// From now on the file system is read-only, or not.
    pub fn set_read_only(&self, read_only: bool) {
        self.state.lock().faults.read_only = read_only;
    }

    /// Total bytes the disk can hold.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// How many syncs of files and directories were asked for.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// How many operations succeeded or failed by a fault other than a crash.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// The paths of all files, in order.
    pub fn files(&self) -> Vec<String> {
        let state = self.state.lock();
        state.current.iter().filter(|(_, node)| **node != Node::Dir).map(|(path, _)| path.clone()).collect()
    }

    /// Flips one bit (counted from the start of the file) at rest; false if there is no such bit.
    pub fn flip_bit(&self, path: &str, bit: u64) -> bool {
        let mut state = self.state.lock();
        let Some(inode) = state.file(path) else { return false };
        let (byte, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        let Some(current) = inode.current.get_mut(byte) else { return false };
        *current ^= mask;
        if let Some(durable) = inode.durable.get_mut(byte) {
            *durable ^= mask;
        }
        true
    }

    /// Cuts a file at rest; false if there is none.
    pub fn cut(&self, path: &str, len: u64) -> bool {
        let mut state = self.state.lock();
        let Some(inode) = state.file(path) else { return false };
        inode.current.truncate(len as usize);
        inode.durable.truncate(len as usize);
        inode.pending.clear();
        inode.doomed = 0;
        true
    }

    /// Flips a bit of a file that `seed` chooses; says which file, `None` if all are empty.
    pub fn rot(&self, seed: u64) -> Option<String> {
        let mut dice = Dice(seed);
        let files: Vec<(String, usize)> = {
            let mut state = self.state.lock();
            let paths: Vec<String> = state.current.keys().cloned().collect();
            paths
                .into_iter()
                .filter_map(|path| state.file(&path).map(|inode| inode.current.len()).map(|len| (path, len)))
                .filter(|(_, len)| *len > 0)
                .collect()
        };
        let (path, len) = files.get(dice.below(files.len()))?;
        self.flip_bit(path, dice.below(len * 8) as u64);
        Some(path.clone())
    }
}

impl Disk for MemoryDisk {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.step()?;
        let writable = access == Access::Write;
        if writable && state.faults.read_only {
            return Err(fault(ErrorKind::ReadOnlyFilesystem, "read-only file system"));
        }
        match state.current.get(path) {
            Some(&Node::File(inode)) => {
                Ok(Arc::new(MemoryFile { state: self.state.clone(), inode, run: state.run, writable }))
            }
            Some(Node::Dir) => Err(io::Error::new(ErrorKind::IsADirectory, path.to_owned())),
            None => Err(not_found(path)),
        }
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.change()?;
        state.need_dir(parent(path))?;
        if state.current.contains_key(path) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, path.to_owned()));
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.current.insert(path.to_owned(), Node::File(inode));
        Ok(Arc::new(MemoryFile { state: self.state.clone(), inode, run: state.run, writable: true }))
    }

    fn create_dir(&self, path: &str) -> io::Result<bool> {
        let mut state = self.state.lock();
        state.change()?;
        if path.is_empty() {
            return Ok(false);
        }
        state.need_dir(parent(path))?;
        match state.current.get(path) {
            Some(Node::Dir) => Ok(false),
            Some(Node::File(_)) => Err(io::Error::new(ErrorKind::AlreadyExists, path.to_owned())),
            None => {
                state.current.insert(path.to_owned(), Node::Dir);
                Ok(true)
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.need_dir(parent(to))?;
        match state.current.get(from) {
            Some(&node @ Node::File(_)) if state.current.get(to) != Some(&Node::Dir) => {
                state.current.remove(from);
                state.current.insert(to.to_owned(), node);
                state.collect();
                Ok(())
            }
            Some(_) => Err(io::Error::new(ErrorKind::IsADirectory, from.to_owned())),
            None => Err(not_found(from)),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        match state.current.get(path) {
            Some(Node::File(_)) => {
                state.current.remove(path);
                state.collect();
                Ok(())
            }
            Some(Node::Dir) => Err(io::Error::new(ErrorKind::IsADirectory, path.to_owned())),
            None => Err(not_found(path)),
        }
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut state = self.state.lock();
        state.step()?;
        if state.faults.failing_reads {
            return Err(fault(ErrorKind::Other, "read error"));
        }
        state.need_dir(dir)?;
        let mut entries: Vec<Entry> = state
            .current
            .iter()
            .filter(|(path, _)| parent(path) == dir)
            .map(|(path, node)| Entry {
                name: path.rsplit('/').next().unwrap_or(path).to_owned(),
                is_dir: *node == Node::Dir,
            })
            .collect();
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.need_dir(dir)?;
        state.syncs += 1;
        if state.faults.failing_syncs > 0 {
            state.faults.failing_syncs -= 1;
            return Err(fault(ErrorKind::Other, "sync failed"));
        }
        let State { current, durable, .. } = &mut *state;
        durable.retain(|path, _| parent(path) != dir || current.contains_key(path));
        for (path, node) in current.iter().filter(|(path, _)| parent(path) == dir) {
            durable.insert(path.clone(), *node);
        }
        state.collect();
        Ok(())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let mut state = self.state.lock();
        state.step()?;
        Ok(path.is_empty() || state.current.contains_key(path))
    }

    fn space(&self) -> io::Result<Space> {
        let mut state = self.state.lock();
        state.step()?;
        Ok(Space { total: state.capacity, available: state.capacity.saturating_sub(state.used()) })
    }
}

impl MemoryFile {
    fn inode<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Inode> {
        if state.run != self.run {
            return Err(fault(ErrorKind::Other, "the file was opened before the crash"));
        }
        // A removed file stays usable through its handles on a real disk; here nobody needs that.
        state.inodes.get_mut(&self.inode).ok_or_else(|| not_found("a removed file"))
    }

    fn need_writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(io::Error::new(ErrorKind::PermissionDenied, "opened for reading only"))
        }
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.need_writable()?;
        let mut state = self.state.lock();
        state.change()?;
        let room = state.capacity.saturating_sub(state.used());
        let inode = self.inode(&mut state)?;
        let offset = offset as usize;
        let grows = (offset + bytes.len()).saturating_sub(inode.current.len()) as u64;
        let fits = bytes.len().saturating_sub(grows.saturating_sub(room) as usize);
        Inode::write(&mut inode.current, offset, &bytes[..fits]);
        inode.pending.push(Change::Write { offset, bytes: bytes[..fits].to_vec() });
        if fits < bytes.len() { Err(fault(ErrorKind::StorageFull, "no space left")) } else { Ok(()) }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.step()?;
        if state.faults.failing_reads {
            return Err(fault(ErrorKind::Other, "read error"));
        }
        let inode = self.inode(&mut state)?;
        let rest = inode.current.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.syncs += 1;
        let fails = state.faults.failing_syncs > 0;
        if fails {
            state.faults.failing_syncs -= 1;
        }
        let inode = self.inode(&mut state)?;
        if fails {
            inode.doomed = inode.pending.len();
            return Err(fault(ErrorKind::Other, "sync failed"));
        }
        inode.sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.step()?;
        Ok(self.inode(&mut state)?.current.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.need_writable()?;
        let mut state = self.state.lock();
        state.change()?;
        let inode = self.inode(&mut state)?;
        inode.current.resize(len as usize, 0);
        inode.pending.push(Change::Truncate(len as usize));
        Ok(())
    }
}
