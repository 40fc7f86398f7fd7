//! Large blocks: one file each.
//!
//! Written under a temporary name, synced, renamed to the name of the hash, and the directory synced, so
//! that a file with a final name is whole. Putting a block again replaces its file: that is how a
//! damaged one is repaired.

use super::format::{RecordHeader, TMP, plain_path};
use super::index::{DiskId, Location, Place};
use crate::disk::Disk;
use hayloft_common::hash::Hash;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// What failed: it decides what becomes of the disk.
#[derive(Debug)]
pub(super) enum WriteError {
    Write(io::Error),
    Sync(io::Error),
}

/// Writes large blocks to one disk, several at a time.
#[derive(Default)]
pub(super) struct PlainWriter {
    next_tmp: AtomicU64,
    dirs: DirSync,
}

impl PlainWriter {
    /// Writes a block; when it returns the block is durable (unless `fsync` is off). Blocks.
    pub(super) fn write(
        &self,
        disk: &dyn Disk,
        id: DiskId,
        hash: Hash,
        payload: &[u8],
        fsync: bool,
    ) -> Result<Location, WriteError> {
        let tmp = format!("{TMP}/{}", self.next_tmp.fetch_add(1, Ordering::Relaxed));
        let (dir, path) = plain_path(&hash);
        let written = Self::write_tmp(disk, id, hash, payload, fsync, &tmp)
            .and_then(|()| disk.rename(&tmp, &path).map_err(WriteError::Write));
        if let Err(error) = written {
            // Whatever stays behind is removed when the disk is opened next.
            let _ = disk.remove(&tmp);
            return Err(error);
        }
        if fsync {
            self.dirs.sync(disk, &dir).map_err(WriteError::Sync)?;
        }
        Ok(Location { disk: id, place: Place::Plain, len: payload.len() as u32 })
    }

    fn write_tmp(
        disk: &dyn Disk,
        id: DiskId,
        hash: Hash,
        payload: &[u8],
        fsync: bool,
        tmp: &str,
    ) -> Result<(), WriteError> {
        let header = RecordHeader::new(hash, id, Place::Plain, payload).encode();
        let file = disk.create_filled(tmp, &[&header, payload]).map_err(WriteError::Write)?;
        if fsync { file.sync().map_err(WriteError::Sync) } else { Ok(()) }
    }
}

/// Removes the temporary files of an earlier run.
pub(super) fn clear_tmp(disk: &dyn Disk) -> io::Result<()> {
    for entry in disk.list(TMP)? {
        if !entry.is_dir {
            disk.remove(&format!("{TMP}/{}", entry.name))?;
        }
    }
    Ok(())
}

/// Syncs of directories, shared: those who come while a sync of their directory runs wait for the next
/// one, which serves them all.
#[derive(Default)]
struct DirSync {
    rounds: Mutex<BTreeMap<String, Round>>,
    finished: Condvar,
}

/// Tickets of one directory. It is dropped when nobody waits.
#[derive(Default)]
struct Round {
    waiting: u64,
    last_ticket: u64,
    done: u64,
    syncing: bool,
    failed: Option<(io::ErrorKind, String)>,
}

impl DirSync {
    fn sync(&self, disk: &dyn Disk, dir: &str) -> io::Result<()> {
        let mut rounds = self.rounds.lock();
        let round = rounds.entry(dir.to_owned()).or_default();
        round.waiting += 1;
        round.last_ticket += 1;
        let ticket = round.last_ticket;
        let result = loop {
            let round = rounds.entry(dir.to_owned()).or_default();
            if let Some((kind, text)) = &round.failed {
                break Err(io::Error::new(*kind, text.clone()));
            }
            if round.done >= ticket {
                break Ok(());
            }
            if round.syncing {
                self.finished.wait(&mut rounds);
                continue;
            }
            round.syncing = true;
            let serves = round.last_ticket;
            drop(rounds);
            let result = disk.sync_dir(dir);
            rounds = self.rounds.lock();
            let round = rounds.entry(dir.to_owned()).or_default();
            round.syncing = false;
            match result {
                Ok(()) => round.done = serves,
                Err(error) => round.failed = Some((error.kind(), error.to_string())),
            }
            self.finished.notify_all();
        };
        if let Some(round) = rounds.get_mut(dir) {
            round.waiting -= 1;
            if round.waiting == 0 {
                rounds.remove(dir);
            }
        }
        result
    }
}
