//! The real data disk: a directory of the operating system.
//!
//! Small writes are buffered and followed by fdatasync. Files that are written once and whole go around the page
//! cache (`O_DIRECT`): for 1 MiB blocks that was measured at a third of the CPU, most of which is the kernel's copying
//! into fresh pages. A file system that can't do it is noticed at the first file and written the ordinary way.

use super::{Access, Disk, DiskFile, Entry, Space, write_parts};
use parking_lot::Mutex;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What `O_DIRECT` asks of addresses, offsets and lengths: the largest logical block in use.
const ALIGNMENT: usize = 4096;
/// Aligned buffers kept for the next file.
const KEPT_BUFFERS: usize = 8;
/// Larger buffers are not kept.
const KEPT_SIZE: usize = 2 << 20;

/// A data directory on a file system.
pub struct RealDisk {
    root: PathBuf,
    /// Whether the file system takes `O_DIRECT`, as far as is known.
    direct: AtomicBool,
    buffers: Mutex<Vec<Vec<u8>>>,
}

struct RealFile(File);

impl RealDisk {
    /// The directory at `root`; nothing is touched before the first operation.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            direct: AtomicBool::new(cfg!(target_os = "linux")),
            buffers: Mutex::default(),
        }
    }

    /// Writes a whole file around the page cache. `None`: the file system can't do that.
    #[cfg(target_os = "linux")]
    fn create_direct(&self, path: &str, parts: &[&[u8]]) -> io::Result<Option<Arc<dyn DiskFile>>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.at(path);
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let opened =
            OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                // Some kernels create the file before they refuse the flag.
                let _ = fs::remove_file(&path);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let padded = len.next_multiple_of(ALIGNMENT);
        let mut buffer = self.buffers.lock().pop().unwrap_or_default();
        buffer.resize(buffer.len().max(padded + ALIGNMENT), 0);
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let window = &mut buffer[start..start + padded];
        let mut at = 0;
        for part in parts {
            window[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        window[at..].fill(0);
        let written = file.write_all_at(window, 0).and_then(|()| file.set_len(len as u64));
        if buffer.len() <= KEPT_SIZE && self.buffers.lock().len() < KEPT_BUFFERS {
            self.buffers.lock().push(buffer);
        }
        written.map(|()| Some(Arc::new(RealFile(file)) as Arc<dyn DiskFile>))
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that opens data directories")]
fn open_dir(path: &Path) -> io::Result<File> {
    File::open(path)
}

impl Disk for RealDisk {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(self.at(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.at(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    #[cfg(target_os = "linux")]
    fn create_filled(&self, path: &str, parts: &[&[u8]]) -> io::Result<Arc<dyn DiskFile>> {
        if self.direct.load(Ordering::Relaxed) {
            if let Some(file) = self.create_direct(path, parts)? {
                return Ok(file);
            }
            self.direct.store(false, Ordering::Relaxed);
        }
        let file = self.create(path)?;
        write_parts(&*file, parts)?;
        Ok(file)
    }

    fn create_dir(&self, path: &str) -> io::Result<bool> {
        if path.is_empty() {
            return create_root(&self.root);
        }
        match fs::create_dir(self.at(path)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.at(path).is_dir() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut entries = fs::read_dir(self.at(dir))?
            .map(|entry| {
                let entry = entry?;
                Ok(Entry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    is_dir: entry.file_type()?.is_dir(),
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        open_dir(&self.at(dir))?.sync_all()
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.at(path).try_exists()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn file_system(&self) -> io::Result<Option<u64>> {
        use std::os::unix::fs::MetadataExt as _;
        for path in self.root.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            match fs::metadata(path) {
                Ok(metadata) => return Ok(Some(metadata.dev())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(fs::metadata(".")?.dev()))
    }
}

/// Creates the data directory and what is missing above it, each name made durable in its parent.
fn create_root(root: &Path) -> io::Result<bool> {
    if root.is_dir() {
        return Ok(false);
    }
    let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_root(parent)?;
    match fs::create_dir(root) {
        Ok(()) => open_dir(parent)?.sync_all().map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && root.is_dir() => Ok(false),
        Err(e) => Err(e),
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    #[cfg(target_os = "linux")]
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        // Any error (not in the page cache, not supported here, a real fault) means: ask the slow way,
        // which reports real faults.
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let read = rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(buf)], offset, flags).ok()?;
        (read == buf.len()).then_some(read)
    }

    fn sync(&self) -> io::Result<()> {
        // fdatasync: it also makes the length durable, which is all that is needed to read back.
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_written_around_the_page_cache_read_back_at_every_length() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        for (i, len) in [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 77].into_iter().enumerate() {
            let body: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let name = format!("f{i}");
            let file = disk.create_filled(&name, &[b"head", &body]).unwrap();
            file.sync().unwrap();
            assert_eq!(file.len().unwrap(), 4 + len as u64);
            assert_eq!(fs::read(dir.path().join(&name)).unwrap(), [b"head", &body[..]].concat());
            assert!(disk.create_filled(&name, &[b"again"]).is_err(), "an existing file is not overwritten");
        }
    }

    #[test]
    fn a_file_system_without_direct_writes_is_written_the_ordinary_way() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        disk.direct.store(false, Ordering::Relaxed);
        disk.create_filled("f", &[b"ab", b"cd"]).unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"abcd");
    }
}
