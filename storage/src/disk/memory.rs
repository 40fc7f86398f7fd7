//! A data disk in memory, for tests and the simulator.
//!
//! Fault model. Injected, and to be survived:
//! - a **crash** ([`MemoryDisk::crash`], or after a chosen number of operations): what was synced stays;
//!   of what was not, each 4 KiB page of each write survives or not on its own, the last surviving page
//!   may be torn anywhere, the length may be kept while bytes in it are lost (they read as zeros), and
//!   each directory entry that was not synced is either the old one or the new one
//!   ([`MemoryDisk::lose_power`]: nothing unsynced survives);
//! - a **kill** of the process ([`MemoryDisk::kill`]): all stays visible, but no more durable than before;
//! - **failed syncs**: an error, after which the pending writes can no longer be made durable, though
//!   they still read back until the crash (as Linux does);
//! - **bit rot**, truncation and loss of files at rest, by call;
//! - a **full** disk (writes stop part-way), a **read-only** one, **failing reads**;
//! - a **lost** disk: unplugged ([`MemoryDisk::unplug`]: every operation fails), or its directory removed under
//!   a running node ([`MemoryDisk::wipe`]: open files live on until they are closed, as on Unix).
//!
//! Out of scope: misdirected writes, synced data that silently vanishes, slowness (the simulator's
//! blocking pool models time).
//!
//! Everything random is drawn from seeds given by the caller.

mod model;

use super::{Access, Disk, DiskFile, Entry, Space};
use model::{Change, Dice, Inode, Node, State, children, fault, not_found, parent};
use parking_lot::Mutex;
use std::io::{self, ErrorKind};
use std::sync::Arc;

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
    _open: Arc<()>,
}

impl MemoryDisk {
    /// An empty disk of 1 TiB, called `name` in messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), state: Arc::new(Mutex::new(State::new(1 << 40))) }
    }

    /// Crashes the machine now and starts it again: unsynced changes survive as `seed` decides, handles
    /// opened before are dead. Other faults stay as they are.
    pub fn crash(&self, seed: u64) {
        let mut dice = Dice(seed);
        // Half of the crashes are mixed; a quarter lose all that was not synced, a quarter nothing.
        let mode = dice.below(4);
        self.state.lock().crash(mode, &mut dice);
    }

    /// A crash that loses all that was not synced.
    pub fn lose_power(&self) {
        self.state.lock().crash(0, &mut Dice(0));
    }

    /// Kills the process and not the machine: handles are dead, unsynced changes stay visible and
    /// unsynced, a planned crash is over.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.run += 1;
        state.crashed = false;
        state.faults.crash_after = None;
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

    /// The device is gone: from now on every operation fails.
    pub fn unplug(&self) {
        self.state.lock().unplugged = true;
    }

    /// The device is back as it was; what was not synced is lost, and files that were open cannot be used any more.
    pub fn plug_in(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.unplugged) {
            let planned = state.faults.crash_after;
            state.crash(0, &mut Dice(0));
            state.faults.crash_after = planned;
        }
    }

    /// Removes everything, durably, as `rm -rf` of the directory's content: whoever has a file open keeps it.
    pub fn wipe(&self) {
        let mut state = self.state.lock();
        state.current.clear();
        state.durable.clear();
        state.collect();
    }

    /// From now on an empty directory of another file system is seen, as when the disk is unmounted.
    pub fn unmount(&self) {
        self.wipe();
        self.state.lock().file_system += 1;
    }

    /// Bytes in all files that have a name.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    fn handle(&self, state: &State, inode: u64, writable: bool) -> io::Result<Arc<dyn DiskFile>> {
        let open = state.inodes.get(&inode).ok_or_else(|| not_found("a removed file"))?.open.clone();
        let run = state.run;
        Ok(Arc::new(MemoryFile { state: self.state.clone(), inode, run, writable, _open: open }))
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
        self.rot_among(seed, &|_| true)
    }

    /// As [`MemoryDisk::rot`], among the files whose path `may` allows.
    pub fn rot_among(&self, seed: u64, may: &dyn Fn(&str) -> bool) -> Option<String> {
        let mut dice = Dice(seed);
        let files: Vec<(String, usize)> = {
            let mut state = self.state.lock();
            let paths: Vec<String> = state.current.keys().filter(|path| may(path)).cloned().collect();
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
            Some(&Node::File(inode)) => self.handle(&state, inode, writable),
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
        self.handle(&state, inode, true)
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
        let mut entries: Vec<Entry> = children(&state.current, dir)
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
        let gone: Vec<String> = children(durable, dir)
            .filter(|(path, _)| !current.contains_key(*path))
            .map(|(path, _)| path.clone())
            .collect();
        for path in &gone {
            durable.remove(path);
        }
        for (path, node) in children(current, dir) {
            durable.insert(path.clone(), *node);
        }
        if !gone.is_empty() {
            state.collect();
        }
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

    fn file_system(&self) -> io::Result<Option<u64>> {
        let mut state = self.state.lock();
        state.step()?;
        Ok(Some(state.file_system))
    }
}

impl MemoryFile {
    fn inode<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Inode> {
        if state.run != self.run {
            return Err(fault(ErrorKind::Other, "the file was opened before the crash"));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_directory_is_empty_and_open_files_live_on() {
        let disk = MemoryDisk::new("d");
        let file = disk.create("f").unwrap();
        file.write_at(b"abc", 0).unwrap();
        disk.wipe();
        assert!(disk.files().is_empty() && disk.open("f", Access::Read).is_err());
        assert_eq!(file.len().unwrap(), 3);
        disk.crash(1);
        assert!(disk.files().is_empty() && disk.exists("").unwrap());
    }

    #[test]
    fn an_unplugged_disk_does_nothing_any_more() {
        let disk = MemoryDisk::new("d");
        let file = disk.create("f").unwrap();
        disk.unplug();
        assert!(file.write_at(b"a", 0).is_err() && file.sync().is_err() && disk.list("").is_err());
        disk.crash(1);
        assert!(disk.create("g").is_err());
        disk.plug_in();
        assert!(disk.create("g").is_ok() && file.len().is_err());
    }
}
