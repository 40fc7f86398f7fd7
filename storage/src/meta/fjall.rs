//! The metadata engine on fjall: an LSM tree per keyspace behind one journal. The only file that knows
//! fjall.
//!
//! A commit is one record of the journal; a durable one ends with fsync of it, which covers all records
//! before. Rows are flushed from memory to tables by fjall's own threads. Details (inline data, block
//! lists) are kept in blob files, apart from the tree, so that compaction does not copy them at each level.
//!
//! Memory: the cache and the write buffers are bounded by [`Config`]. fjall fixes a keyspace's write
//! buffer when the keyspace is created: a changed `memtable_bytes` takes effect in new directories only.

use super::{
    Batch, Direction, Engine, Identity, KeyRange, MetaError, Space, SpaceStats, Stats, Step, View, Visitor,
    format,
};
use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable, Snapshot,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Details below this stay in the tree, in bytes: a blob costs a second read.
const BLOB_MIN: u32 = 2048;
/// How many entries a scan steps over to reach a near key before it starts a new search.
const STEPS_BEFORE_SEEK: usize = 4;
/// What flushing of small buffers may take before tables are compacted; what is late waits for the next time.
const FLUSH_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);
/// fjall's smallest journal limit.
const MIN_JOURNAL: u64 = 64 << 20;

/// How much memory and disk the engine may use.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// Cache of tables' blocks, in bytes.
    pub cache_bytes: u64,
    /// Write buffers of all keyspaces together, in bytes; under heavy writing up to four times as much
    /// until it is flushed.
    pub memtable_bytes: u64,
    /// Journal on disk, in bytes, above which buffers are flushed early; at least 64 MiB.
    pub journal_bytes: u64,
    /// Threads that flush and compact.
    pub workers: usize,
}

impl Config {
    /// Sizes for a storage node that stays under 64 MiB when idle.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache_bytes: 16 << 20,
            memtable_bytes: 24 << 20,
            journal_bytes: 128 << 20,
            workers: 2,
        }
    }

    /// The busy keyspaces share three quarters, the others the rest.
    fn memtable_of(&self, space: Space) -> u64 {
        let busy = Space::ALL.iter().filter(|s| s.is_busy()).count() as u64;
        let others = Space::COUNT as u64 - busy;
        let share = if space.is_busy() {
            self.memtable_bytes * 3 / 4 / busy
        } else {
            self.memtable_bytes / 4 / others
        };
        share.max(64 << 10)
    }
}

/// The engine on a directory. Opening it takes the directory's lock; dropping it gives it back.
pub struct FjallEngine {
    db: Database,
    spaces: Arc<Vec<Keyspace>>,
    poisoned: AtomicBool,
}

impl FjallEngine {
    /// Opens or creates the directory and checks that it is ours (see [`format::claim`]).
    pub fn open(config: &Config, identity: &Identity) -> Result<Self, MetaError> {
        let engine = Self::open_unclaimed(config)?;
        format::claim(&engine, identity)?;
        Ok(engine)
    }

    /// Opens or creates the directory, whoever's it is.
    pub(crate) fn open_unclaimed(config: &Config) -> Result<Self, MetaError> {
        let failed = |e| open_error(&config.path, e);
        let db = Database::builder(&config.path)
            .cache_size(config.cache_bytes)
            .max_journaling_size(config.journal_bytes.max(MIN_JOURNAL))
            .worker_threads(config.workers.max(1))
            .open()
            .map_err(failed)?;
        let mut spaces = Vec::with_capacity(Space::COUNT);
        for space in Space::ALL {
            let options = || {
                let options = KeyspaceCreateOptions::default().max_memtable_size(config.memtable_of(space));
                let blobs = KvSeparationOptions::default().separation_threshold(BLOB_MIN);
                options.with_kv_separation((space == Space::Detail).then_some(blobs))
            };
            spaces.push(db.keyspace(space.name(), options).map_err(failed)?);
        }
        Ok(Self { db, spaces: Arc::new(spaces), poisoned: AtomicBool::new(false) })
    }

    fn space(&self, space: Space) -> &Keyspace {
        &self.spaces[space.index()]
    }

    /// A write that failed leaves the journal in an unknown state: no more are taken.
    fn poison(&self, doing: &'static str, error: fjall::Error) -> MetaError {
        self.poisoned.store(true, Ordering::Release);
        engine_error(doing, error)
    }

    fn check_writable(&self) -> Result<(), MetaError> {
        if self.is_poisoned() { Err(MetaError::Poisoned) } else { Ok(()) }
    }
}

impl View for FjallEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        let value = self.space(space).get(key).map_err(|e| engine_error("a read", e))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), MetaError> {
        self.snapshot().scan(space, range, direction, visit)
    }
}

impl Engine for FjallEngine {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), MetaError> {
        self.check_writable()?;
        if batch.is_empty() {
            return if durable { self.sync() } else { Ok(()) };
        }
        let mode = if durable { PersistMode::SyncAll } else { PersistMode::Buffer };
        let mut write = self.db.batch().durability(Some(mode));
        for (space, key, value) in batch.into_ops() {
            match value {
                Some(value) => write.insert(self.space(space), key, value),
                None => write.remove(self.space(space), key),
            }
        }
        write.commit().map_err(|e| self.poison("a write or its sync", e))
    }

    fn sync(&self) -> Result<(), MetaError> {
        self.check_writable()?;
        self.db.persist(PersistMode::SyncAll).map_err(|e| self.poison("a sync", e))
    }

    fn snapshot(&self) -> Arc<dyn View> {
        Arc::new(FjallView { snapshot: self.db.snapshot(), spaces: self.spaces.clone() })
    }

    fn compact(&self) -> Result<(), MetaError> {
        for space in Space::ALL {
            // Marks of removals in memory would outlive a compaction of the tables alone.
            self.space(space).rotate_memtable().map_err(|e| engine_error("a flush", e))?;
        }
        std::thread::sleep(FLUSH_PAUSE);
        for space in Space::ALL {
            self.space(space).major_compact().map_err(|e| engine_error("a compaction", e))?;
        }
        Ok(())
    }

    fn stats(&self) -> Stats {
        let spaces = Space::ALL
            .into_iter()
            .map(|space| SpaceStats {
                space,
                entries: self.space(space).approximate_len() as u64,
                bytes: self.space(space).disk_space(),
            })
            .collect();
        // The size of the journal is only for display: an unreadable file shows as 0 and in the logs.
        let journal_bytes = self.db.journal_disk_space().unwrap_or(0);
        Stats { spaces, journal_bytes, memtable_bytes: self.db.write_buffer_size() }
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }
}

struct FjallView {
    snapshot: Snapshot,
    spaces: Arc<Vec<Keyspace>>,
}

impl View for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        let value =
            self.snapshot.get(&self.spaces[space.index()], key).map_err(|e| engine_error("a read", e))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), MetaError> {
        let keyspace = &self.spaces[space.index()];
        let mut range = range.clone();
        let mut target: Option<Vec<u8>> = None;
        while !range.is_empty() {
            let mut entries = match &range.to {
                Some(to) => self.snapshot.range(keyspace, range.from.as_slice()..to.as_slice()),
                None => self.snapshot.range(keyspace, range.from.as_slice()..),
            };
            let mut skipped = 0;
            loop {
                let entry = match direction {
                    Direction::Forward => entries.next(),
                    Direction::Reverse => entries.next_back(),
                };
                let Some(entry) = entry else { return Ok(()) };
                let reached = |key: &[u8]| match (&target, direction) {
                    (None, _) => true,
                    (Some(target), Direction::Forward) => *key >= **target,
                    (Some(target), Direction::Reverse) => *key < **target,
                };
                let (key, value) =
                    entry.into_inner_if(|key| reached(key)).map_err(|e| engine_error("a scan", e))?;
                let Some(value) = value.filter(|_| reached(&key)) else {
                    skipped += 1;
                    if skipped < STEPS_BEFORE_SEEK {
                        continue;
                    }
                    break;
                };
                target = None;
                match visit(&Bytes::from(key), &Bytes::from(value)) {
                    Step::Next => {}
                    Step::Seek(key) => (target, skipped) = (Some(key), 0),
                    Step::Stop => return Ok(()),
                }
            }
            // Only a target that lies far ahead leaves the loop.
            if let Some(key) = target.take() {
                range = range.narrowed(key, direction);
            }
        }
        Ok(())
    }
}

fn open_error(path: &Path, error: fjall::Error) -> MetaError {
    match error {
        fjall::Error::Locked => MetaError::Locked { path: path.to_owned() },
        fjall::Error::InvalidVersion(found) => MetaError::UnknownEngineFormat {
            path: path.to_owned(),
            found: found.map_or_else(|| "unknown".to_owned(), |v| format!("{v:?}")),
        },
        other => engine_error("opening the directory", other),
    }
}

fn engine_error(doing: &'static str, error: fjall::Error) -> MetaError {
    use fjall::Error;
    match error {
        Error::Poisoned => MetaError::Poisoned,
        Error::Io(e) => MetaError::Io { doing, reason: e.to_string() },
        Error::Storage(e) => match std::error::Error::source(&e) {
            Some(io) => MetaError::Io { doing, reason: io.to_string() },
            None => MetaError::corrupt("a table file", e),
        },
        Error::KeyspaceDeleted => MetaError::Closed,
        other => MetaError::corrupt("the journal", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::conformance;
    use hayloft_common::id::{ClusterId, NodeId};

    fn small(path: &Path) -> Config {
        Config { cache_bytes: 1 << 20, workers: 1, ..Config::new(path) }
    }

    #[test]
    fn fjall_passes_the_conformance_suite() {
        conformance::run(|| {
            let dir = tempfile::tempdir().unwrap();
            let reopen =
                move || Box::new(FjallEngine::open_unclaimed(&small(dir.path())).unwrap()) as Box<dyn Engine>;
            Box::new(reopen)
        });
    }

    #[test]
    fn a_second_opening_and_another_node_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Identity { cluster: ClusterId([1; 16]), node: NodeId([2; 32]) };
        let engine = FjallEngine::open(&small(dir.path()), &ours).unwrap();
        assert!(matches!(FjallEngine::open(&small(dir.path()), &ours), Err(MetaError::Locked { .. })));
        drop(engine);
        let other = Identity { node: NodeId([3; 32]), ..ours };
        assert!(matches!(FjallEngine::open(&small(dir.path()), &other), Err(MetaError::OtherNode { .. })));
        FjallEngine::open(&small(dir.path()), &ours).unwrap();
    }

    #[test]
    fn a_directory_of_another_engine_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(FjallEngine::open_unclaimed(&small(dir.path())).unwrap());
        std::fs::write(dir.path().join("version"), b"FJL\x09").unwrap();
        assert!(matches!(
            FjallEngine::open_unclaimed(&small(dir.path())),
            Err(MetaError::UnknownEngineFormat { .. })
        ));
    }
}
