//! Copies of the metadata to go back to when all else is lost: `hayloft meta snapshot`, and timed.
//!
//! A snapshot is a directory with a database of its own (`db`, to be put in the place of the node's) and the node's key.
//! It is one state of the engine, taken while the node works; it gets its name only when it is complete and synced. The
//! engine offers no way to share files between two databases, so each snapshot is a whole copy; the last two are kept.
//!
//! A node that starts on a snapshot finds a mark in it: what it holds may lack what it acknowledged since. It then takes no
//! part in a partition until it has pulled the rows anew from a quorum of others, if there are others; if they are lost as
//! well, an operator says that what is here is to be taken for all there is (`hayloft meta trust`).
//!
//! For clusters with several copies a snapshot is the *last* way back: a node that lost its metadata fills an empty
//! database from the other replicas, which know everything up to now (see the README, "Ways back").

use crate::meta::fjall::{self, FjallEngine};
use crate::meta::{Batch, Direction, Engine, KeyRange, MetaError, Space, Step, View};
use crate::workers::{Next, Report, Worker, WorkerError};
use async_trait::async_trait;
use hayloft_common::env::Env;
use hayloft_proto::message::operate::SnapshotTaken;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Snapshots kept; older ones are removed when a new one is complete.
const KEPT: usize = 2;
/// Bytes written to the copy at once.
const BATCH: usize = 4 << 20;
/// What an unfinished snapshot's name ends with.
const UNFINISHED: &str = ".unfinished";
/// The entry that tells a node that its database is a snapshot which was put back, and of when.
const RESTORED: &[u8] = b"restored";
/// Between two looks whether a timed snapshot is due.
const LOOK: Duration = Duration::from_mins(1);

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("a snapshot is being taken already")]
    Busy,
    #[error("{what} {path}: {source}; check its permissions and free space")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("the node is stopping")]
    Stopping,
}

/// Where snapshots go.
pub struct Snapshots {
    dir: PathBuf,
    /// The node's key, copied along.
    key: PathBuf,
    turn: tokio::sync::Mutex<()>,
}

impl Snapshots {
    /// Snapshots in `dir` (made when the first is taken), with a copy of the node's key file.
    pub fn new(dir: PathBuf, key: PathBuf) -> Arc<Self> {
        Arc::new(Self { dir, key, turn: tokio::sync::Mutex::new(()) })
    }

    /// Takes one now. Its name is the wall clock's date in milliseconds.
    pub async fn take(
        self: &Arc<Self>,
        env: &Env,
        engine: &Arc<dyn Engine>,
    ) -> Result<SnapshotTaken, SnapshotError> {
        let _turn = self.turn.try_lock().map_err(|_| SnapshotError::Busy)?;
        let (this, engine, name) = (self.clone(), engine.clone(), env.wall_millis().to_string());
        let taken = env.run_blocking(move || this.write(&*engine, &name)).await;
        taken.map_err(|_| SnapshotError::Stopping)?
    }

    fn write(&self, engine: &dyn Engine, name: &str) -> Result<SnapshotTaken, SnapshotError> {
        let unfinished = self.dir.join(format!("{name}{UNFINISHED}"));
        self.remove_unfinished()?;
        make_dir(&unfinished)?;
        let view = engine.snapshot();
        let copy = FjallEngine::open_unclaimed(&fjall::Config::new(unfinished.join("db")))?;
        let entries = copy_all(&*view, &copy)?;
        let mut mark = Batch::new();
        mark.put(Space::Node, RESTORED, name.to_owned());
        copy.commit(mark, true)?;
        drop(copy);
        let key = unfinished.join("node_key.pem");
        if self.key.exists() {
            std::fs::copy(&self.key, &key).map_err(io("cannot copy the node's key to", &key))?;
        }
        let path = self.dir.join(name);
        std::fs::rename(&unfinished, &path).map_err(io("cannot name the snapshot", &path))?;
        sync_dir(&self.dir).map_err(io("cannot sync", &self.dir))?;
        self.remove_old()?;
        let bytes = size_of(&path).map_err(io("cannot read", &path))?;
        Ok(SnapshotTaken { path: path.display().to_string(), bytes, entries })
    }

    /// Complete snapshots, oldest first, with their dates in milliseconds.
    fn complete(&self) -> Result<Vec<(u64, PathBuf)>, SnapshotError> {
        let mut found = Vec::new();
        for path in self.list()? {
            let date = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            found.extend(date.map(|date: u64| (date, path)));
        }
        found.sort();
        Ok(found)
    }

    fn list(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        match std::fs::read_dir(&self.dir) {
            Ok(entries) => {
                let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
                paths.map_err(io("cannot list", &self.dir))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io("cannot list", &self.dir)(error)),
        }
    }

    fn remove_unfinished(&self) -> Result<(), SnapshotError> {
        let unfinished = |path: &PathBuf| path.to_string_lossy().ends_with(UNFINISHED);
        for path in self.list()?.into_iter().filter(unfinished) {
            std::fs::remove_dir_all(&path).map_err(io("cannot remove", &path))?;
        }
        Ok(())
    }

    fn remove_old(&self) -> Result<(), SnapshotError> {
        let complete = self.complete()?;
        for (_, path) in complete.iter().rev().skip(KEPT) {
            std::fs::remove_dir_all(path).map_err(io("cannot remove", path))?;
        }
        Ok(())
    }
}

/// The date (milliseconds) of the snapshot that `engine` is, if it was put in the place of the node's database.
pub fn restored(engine: &dyn Engine) -> Result<Option<String>, MetaError> {
    Ok(engine.get(Space::Node, RESTORED)?.map(|date| String::from_utf8_lossy(&date).into_owned()))
}

/// What follows from the database being an old one has been done, durably.
pub fn forget_restored(engine: &dyn Engine) -> Result<(), MetaError> {
    let mut batch = Batch::new();
    batch.delete(Space::Node, RESTORED);
    engine.commit(batch, true)
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { what, path, source }
}

#[expect(
    clippy::disallowed_methods,
    reason = "snapshots are copies beside the engine's files, not data of the node"
)]
fn sync_dir(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

fn make_dir(path: &Path) -> Result<(), SnapshotError> {
    std::fs::create_dir_all(path).map_err(io("cannot create", path))
}

/// Copies every keyspace; how many entries.
fn copy_all(view: &dyn View, copy: &dyn Engine) -> Result<u64, MetaError> {
    let mut entries = 0;
    let mut batch = Batch::new();
    for space in Space::ALL {
        let mut failed = None;
        view.scan(space, &KeyRange::all(), Direction::Forward, &mut |key, value| {
            batch.put(space, key.clone(), value.clone());
            entries += 1;
            if batch.bytes() >= BATCH
                && let Err(error) = copy.commit(std::mem::take(&mut batch), false)
            {
                failed = Some(error);
                return Step::Stop;
            }
            Step::Next
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    copy.commit(batch, false)?;
    Ok(entries)
}

fn size_of(path: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { size_of(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}

/// Takes a snapshot whenever the last one is older than `snapshot_interval`.
pub struct Timed {
    pub snapshots: Arc<Snapshots>,
    pub interval: Duration,
}

#[async_trait]
impl Worker for Timed {
    fn name(&self) -> &'static str {
        "metadata snapshot"
    }

    async fn step(&self, node: &Arc<crate::serve::Node>, report: &Report) -> Result<Next, WorkerError> {
        let failed = |e: SnapshotError| WorkerError::Other(e.to_string());
        let now = node.env.wall_millis();
        let last = self.snapshots.complete().map_err(failed)?.last().map(|(date, _)| *date);
        // A date ahead of the clock is of no use: then it is time for a new one.
        let due = last.is_none_or(|last| last > now || now - last >= self.interval.as_millis() as u64);
        if !due {
            return Ok(Next::After(LOOK));
        }
        let taken = self.snapshots.take(&node.env, &node.engine).await.map_err(failed)?;
        report.count(1, taken.bytes);
        report.notes(vec![format!("last: {} ({} entries)", taken.path, taken.entries)]);
        Ok(Next::After(LOOK))
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::meta::Identity;
    use hayloft_common::id::NodeId;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_snapshot_opens_as_the_database_it_was_taken_of_and_the_last_two_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: hayloft_common::id::ClusterId([3; 16]), node: NodeId([1; 32]) };
        let engine: Arc<dyn Engine> =
            Arc::new(FjallEngine::open(&fjall::Config::new(dir.path().join("db")), &identity).unwrap());
        let put = |value: &str| {
            let mut batch = Batch::new();
            batch.put(Space::Node, "key", value.to_owned());
            batch.put(Space::BlockIndex, "block", vec![7; 5000]);
            engine.commit(batch, true).unwrap();
        };
        std::fs::write(dir.path().join("key.pem"), "the key").unwrap();
        let snapshots = Snapshots::new(dir.path().join("snapshots"), dir.path().join("key.pem"));
        std::fs::create_dir_all(dir.path().join("snapshots/1.unfinished")).unwrap();
        let mut taken = Vec::new();
        for value in ["one", "two", "three"] {
            put(value);
            taken.push(block_on(snapshots.take(&Env::real(), &engine)).unwrap());
            std::thread::sleep(Duration::from_millis(2));
        }
        put("four");
        let left: Vec<String> =
            snapshots.complete().unwrap().into_iter().map(|(_, path)| path.display().to_string()).collect();
        assert_eq!(left, [taken[1].path.clone(), taken[2].path.clone()]);
        assert_eq!(snapshots.list().unwrap().len(), 2, "nothing unfinished is left");
        let last = Path::new(&taken[2].path);
        assert_eq!(std::fs::read_to_string(last.join("node_key.pem")).unwrap(), "the key");
        let copy = FjallEngine::open(&fjall::Config::new(last.join("db")), &identity).unwrap();
        assert_eq!(copy.get(Space::Node, b"key").unwrap().unwrap(), "three");
        assert_eq!(copy.get(Space::BlockIndex, b"block").unwrap().unwrap(), vec![7; 5000]);
        assert_eq!(restored(&copy).unwrap().as_deref(), last.file_name().unwrap().to_str());
        forget_restored(&copy).unwrap();
        assert_eq!((restored(&copy).unwrap(), restored(&*engine).unwrap()), (None, None));
    }
}
