//! Looking after the disks while the store runs: whether each still answers and is all there, and taking one back into
//! use that was gone.
//!
//! Each disk is looked at in a job of its own, so that one which hangs holds up nobody. A directory that was deleted is
//! made anew only if it would lie on the file system it was on: else its disk is not mounted, and what would be written
//! there would disappear behind the mounted disk. A new directory is a new disk: nothing that the index says of the
//! old one holds for it.

use super::error::BlockError;
use super::health::{Event, Health};
use super::index::{BlockIndex, DiskId};
use super::marker::{self, MarkError};
use super::volume::Volume;
use super::{Absent, BlockStore, Inner, new_disk_id};
use crate::limits::HANGING_LOOKS;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long to wait for the disks to be looked at; a slow one goes on by itself.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

impl BlockStore {
    /// Looks at all disks again; to be called every some seconds, so that a disk which someone filled, freed, unmounted
    /// or deleted is noticed. Does not wait for long for a disk that hangs.
    pub async fn refresh(&self) -> Result<(), BlockError> {
        let volumes: Vec<Arc<Volume>> = self.0.disks.read().volumes.values().cloned().collect();
        let looks = join_all(volumes.into_iter().map(|volume| self.look(volume)));
        match tokio::time::timeout(LOOK_PATIENCE, looks).await {
            Ok(looks) => looks.into_iter().collect(),
            Err(_) => Ok(()),
        }
    }

    async fn look(&self, volume: Arc<Volume>) -> Result<(), BlockError> {
        if volume.looking.swap(true, Ordering::Relaxed) {
            // Counted in looks, not in time: a process that was stopped for an hour has not waited for its disks.
            if volume.missed_looks.fetch_add(1, Ordering::Relaxed) + 1 >= HANGING_LOOKS {
                volume.event(Event::Hangs);
            }
            return Ok(());
        }
        self.blocking(move || {
            volume.look();
            volume.missed_looks.store(0, Ordering::Relaxed);
            volume.looking.store(false, Ordering::Relaxed);
            volume.event(Event::Answers);
            Ok(())
        })
        .await
    }

    /// The disks that can be read now.
    pub fn readable_disks(&self) -> BTreeSet<DiskId> {
        let disks = self.0.disks.read();
        let readable = disks.volumes.values().filter(|volume| volume.health().takes_reads());
        readable.map(|volume| volume.id).collect()
    }

    /// Counts how often a directory of which parts had been deleted was opened again under its name: blocks on it may
    /// be missing then.
    pub fn reopened(&self) -> u64 {
        self.0.reopened.load(Ordering::Relaxed)
    }

    /// Whether some disk is gone, so that [`BlockStore::revive`] is worth a try.
    pub fn has_gone(&self) -> bool {
        let disks = self.0.disks.read();
        !disks.absent.is_empty() || disks.volumes.values().any(|volume| volume.is_gone())
    }

    /// Takes disks back into use that were gone: mounted again, or deleted on a file system that is still there (then
    /// as a new, empty disk). Returns whether anything changed. Blocks its thread.
    pub fn revive(&self, index: &dyn BlockIndex) -> bool {
        let (gone, absent) = {
            let disks = self.0.disks.read();
            let gone: Vec<Arc<Volume>> = disks.volumes.values().filter(|v| v.is_gone()).cloned().collect();
            (gone, disks.absent.clone())
        };
        let mut changed = false;
        for old in gone {
            // Not at once: whoever is deleting the directory should come to an end.
            if old.revivals.fetch_add(1, Ordering::Relaxed) < 2 {
                continue;
            }
            if let Some(new) = self.0.reopen(&old) {
                count(&new, index);
                if new.id == old.id {
                    self.0.reopened.fetch_add(1, Ordering::Relaxed);
                }
                let mut disks = self.0.disks.write();
                disks.volumes.remove(&old.id);
                disks.volumes.insert(new.id, new);
                changed = true;
            }
        }
        for absent in absent {
            if let Some(new) = self.0.mounted(&absent) {
                count(&new, index);
                let mut disks = self.0.disks.write();
                disks.absent.retain(|other| other.path != absent.path);
                disks.volumes.insert(new.id, new);
                changed = true;
            }
        }
        changed
    }
}

/// Counts what the index says that a disk holds, before it is in use.
fn count(volume: &Volume, index: &dyn BlockIndex) {
    index.for_each(&mut |_, location| {
        if location.disk == volume.id {
            volume.usage.lock().add(&location);
        }
    });
    volume.refresh();
}

fn same_file_system(old: &Volume) -> bool {
    old.file_system.is_some() && old.disk.file_system().is_ok_and(|now| now == old.file_system)
}

impl Inner {
    /// Opens a directory that was gone, if that may be done now.
    fn reopen(&self, old: &Volume) -> Option<Arc<Volume>> {
        let disk = &*old.disk;
        let id = match marker::read(disk, &self.identity) {
            Ok(Some(id)) if id == old.id => {
                // Only parts of it were deleted; what is left can be used.
                if !old.read_only {
                    marker::make_dirs(disk).ok()?;
                }
                tracing::error!(disk = old.name, %id, "a data disk that was gone, or parts of it, is used again; \
                    its blocks are checked");
                id
            }
            Ok(Some(id)) if !self.disks.read().volumes.contains_key(&id) => {
                tracing::error!(disk = old.name, was = %old.id, now = %id, "another data disk of this node is \
                    mounted where one was gone; it is used");
                id
            }
            Ok(None) if !old.read_only && same_file_system(old) => {
                let id = new_disk_id(&self.env, &self.disks.read().volumes);
                if let Err(error) = marker::create(disk, &self.identity, id) {
                    let reason = match error {
                        MarkError::Refused(error) => error.to_string(),
                        MarkError::Failed(reason) | MarkError::Damaged(reason) => reason,
                    };
                    tracing::debug!(
                        disk = old.name,
                        reason,
                        "a deleted data directory can't be made anew yet"
                    );
                    return None;
                }
                tracing::error!(disk = old.name, was = %old.id, now = %id, "a data directory was deleted; it is made \
                    anew, empty, and its blocks are fetched from other nodes");
                id
            }
            _ => return None,
        };
        Some(self.open_volume(old.disk.clone(), id, old.capacity, old.read_only))
            .filter(|new| new.health() != Health::Hanging && !matches!(new.health(), Health::Failed { .. }))
    }

    /// Opens a disk that was not there at the start, once its marker is.
    fn mounted(&self, absent: &Absent) -> Option<Arc<Volume>> {
        let known = absent.id?;
        let id = marker::read(&*absent.disk, &self.identity).ok()??;
        if id != known || self.disks.read().volumes.contains_key(&id) {
            return None;
        }
        let volume = self.open_volume(absent.disk.clone(), id, absent.capacity, absent.read_only);
        if !volume.health().takes_reads() {
            return None;
        }
        tracing::info!(disk = absent.path, %id, "a data disk is there again");
        Some(volume)
    }

    fn open_volume(
        &self,
        disk: Arc<dyn crate::disk::Disk>,
        id: DiskId,
        capacity: Option<u64>,
        read_only: bool,
    ) -> Arc<Volume> {
        Arc::new(Volume::open(disk, id, capacity, read_only, self.identity, self.config.clone()))
    }
}
