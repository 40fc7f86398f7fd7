//! The data disk seam: one data directory, seen as a small file system.
//!
//! Synchronous and object-safe: the block store calls it from blocking threads. [`RealDisk`] is a
//! directory of the operating system, [`MemoryDisk`] a simulated one that crashes, tears writes, rots,
//! fills up and fails syncs. Both pass the suite in `tests/blocks_disk.rs`.
//!
//! Paths are relative to the data directory, `/`-separated, without `.` or `..`; `""` is the directory
//! itself.
//!
//! What callers may rely on, no more: bytes written before a successful [`DiskFile::sync`] survive a
//! crash; a file or directory created, renamed or removed before a successful [`Disk::sync_dir`] of its
//! directory stays so; a rename replaces its target atomically. All the rest may or may not survive, in
//! any order, in pieces.

mod memory;
mod real;

pub use memory::MemoryDisk;
pub use real::RealDisk;

use std::io;
use std::sync::Arc;

/// What an opened file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: String,
    pub is_dir: bool,
}

/// Space of the file system that holds the directory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    pub total: u64,
    /// What this process may still write.
    pub available: u64,
}

/// A data directory.
pub trait Disk: Send + Sync + 'static {
    /// What people call it: its path.
    fn name(&self) -> String;
    /// Opens an existing file.
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file for reading and writing; it must not exist.
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file that holds `parts`, one behind the other; it must not exist. Not synced. Meant for large
    /// files written once: a disk may keep their bytes out of the page cache.
    fn create_filled(&self, path: &str, parts: &[&[u8]]) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.create(path)?;
        write_parts(&*file, parts)?;
        Ok(file)
    }
    /// Creates a directory in an existing one; says whether it is new. `""` creates the data directory
    /// itself, with its parents.
    fn create_dir(&self, path: &str) -> io::Result<bool>;
    /// Renames a file, replacing the target if there is one.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// The entries of a directory, by name.
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Whether a file or directory is there.
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Total and free space.
    fn space(&self) -> io::Result<Space>;
    /// A number for the file system that the directory is on, or would be on if it were made anew. It tells a directory
    /// that was deleted from one whose disk is not mounted. `None`: not known.
    fn file_system(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

/// Writes `parts` one behind the other from the start of `file`.
fn write_parts(file: &dyn DiskFile, parts: &[&[u8]]) -> io::Result<()> {
    let mut offset = 0;
    for part in parts {
        file.write_at(part, offset)?;
        offset += part.len() as u64;
    }
    Ok(())
}

/// An open file. All offsets are explicit: several threads may use one handle.
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all the bytes at `offset`; a gap before it reads as zeros. On an error any part may be
    /// written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads at `offset` until `buf` is full or the file ends; returns how much was read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// As `read_at`, but only if that needs no waiting for the device; `None` otherwise. May be called
    /// where blocking is forbidden.
    fn read_cached_at(&self, _buf: &mut [u8], _offset: u64) -> Option<usize> {
        None
    }
    /// Makes the file's bytes and length durable (not its name: see [`Disk::sync_dir`]). After an error
    /// nothing written since the last success may be trusted, and no later success changes that.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
}
