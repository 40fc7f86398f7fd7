//! The state behind [`super::MemoryDisk`]: names and bytes as seen and as durable, and what a crash makes
//! of the difference. The fault model stands at the head of the parent module.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;

const PAGE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

pub(super) enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Default)]
pub(super) struct Inode {
    pub(super) durable: Vec<u8>,
    pub(super) current: Vec<u8>,
    /// Changes since the last sync, oldest first.
    pub(super) pending: Vec<Change>,
    /// Pending writes before this one were there when a sync failed: no sync makes them durable.
    pub(super) doomed: usize,
    /// Shared with each handle: a removed file lives as long as it is open.
    pub(super) open: Arc<()>,
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) failing_syncs: u64,
    pub(super) failing_reads: bool,
    pub(super) failing_writes: bool,
    pub(super) read_only: bool,
    pub(super) crash_after: Option<u64>,
}

pub(super) struct State {
    /// Directory entries as seen now, and as they would be after a crash.
    pub(super) current: BTreeMap<String, Node>,
    pub(super) durable: BTreeMap<String, Node>,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) next_inode: u64,
    /// Counts restarts; handles of an earlier run are dead.
    pub(super) run: u64,
    pub(super) crashed: bool,
    pub(super) unplugged: bool,
    pub(super) capacity: u64,
    /// See `Disk::file_system`.
    pub(super) file_system: u64,
    pub(super) faults: Faults,
    pub(super) operations: u64,
    pub(super) syncs: u64,
}

/// splitmix64: small, and the same everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

pub(super) fn fault(kind: ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, format!("simulated fault: {what}"))
}

pub(super) fn not_found(path: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("no such file or directory: {path}"))
}

/// The entries of one directory.
pub(super) fn children<'a>(
    names: &'a BTreeMap<String, Node>,
    dir: &'a str,
) -> impl Iterator<Item = (&'a String, &'a Node)> {
    // `0` follows `/`: the range holds all that lies below the directory, at any depth.
    let range = if dir.is_empty() {
        names.range::<str, _>(..)
    } else {
        names.range(format!("{dir}/")..format!("{dir}0"))
    };
    range.filter(move |(path, _)| parent(path) == dir)
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl State {
    /// An empty disk.
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            inodes: BTreeMap::new(),
            next_inode: 1,
            run: 0,
            crashed: false,
            unplugged: false,
            capacity,
            file_system: 1,
            faults: Faults::default(),
            operations: 0,
            syncs: 0,
        }
    }

    /// Counts an operation and lets the planned crash happen.
    pub(super) fn step(&mut self) -> io::Result<()> {
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
        if self.unplugged {
            return Err(fault(ErrorKind::Other, "no such device"));
        }
        self.operations += 1;
        Ok(())
    }

    /// As `step`, for operations that change something.
    pub(super) fn change(&mut self) -> io::Result<()> {
        self.step()?;
        if self.faults.read_only {
            return Err(fault(ErrorKind::ReadOnlyFilesystem, "read-only file system"));
        }
        if self.faults.failing_writes {
            return Err(fault(ErrorKind::Other, "write error"));
        }
        Ok(())
    }

    pub(super) fn need_dir(&self, dir: &str) -> io::Result<()> {
        match self.current.get(dir) {
            _ if dir.is_empty() => Ok(()),
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::Error::new(ErrorKind::NotADirectory, dir.to_owned())),
            None => Err(not_found(dir)),
        }
    }

    pub(super) fn used(&self) -> u64 {
        let files = self.current.values().filter_map(|node| match node {
            Node::File(id) => self.inodes.get(id),
            Node::Dir => None,
        });
        files.map(|inode| inode.current.len() as u64).sum()
    }

    pub(super) fn file(&mut self, path: &str) -> Option<&mut Inode> {
        match self.current.get(path) {
            Some(&Node::File(id)) => self.inodes.get_mut(&id),
            _ => None,
        }
    }

    /// Forgets files that no entry names and nobody has open.
    pub(super) fn collect(&mut self) {
        let named: BTreeSet<u64> = self
            .current
            .values()
            .chain(self.durable.values())
            .filter_map(|node| match node {
                Node::File(id) => Some(*id),
                Node::Dir => None,
            })
            .collect();
        self.inodes.retain(|id, inode| named.contains(id) || Arc::strong_count(&inode.open) > 1);
    }

    pub(super) fn crash(&mut self, mode: usize, dice: &mut Dice) {
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
    pub(super) fn write(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
        let end = offset + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(new);
    }

    pub(super) fn sync(&mut self) {
        let kept = self.pending.drain(..).skip(self.doomed);
        for change in kept {
            match change {
                Change::Write { offset, bytes } => Self::write(&mut self.durable, offset, &bytes),
                Change::Truncate(len) => self.durable.resize(len, 0),
            }
        }
        self.doomed = 0;
    }

    pub(super) fn crash(&mut self, keep: &dyn Fn(&mut Dice) -> bool, dice: &mut Dice) {
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
