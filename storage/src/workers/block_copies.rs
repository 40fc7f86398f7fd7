//! What may be done with one copy of one block: store it, move it, give it up, release it.
//!
//! Invariant B8: whoever removes or replaces a copy holds the block's lock exclusively from looking at the index to the
//! last change on disk, while a put holds it shared from its first byte to its commit. So no index entry ever names
//! bytes that were removed, and of two copies exactly one stays counted.

use super::WorkerError;
use super::block_work::{Stray, StrayBytes};
use super::pull::reading;
use crate::blocks::{BlockError, DiskId, Location, Place};
use crate::commit::Job;
use crate::meta::{Direction, KeyRange, Space, Step};
use crate::serve::Node;
use crate::serve::block::index_entry;
use crate::tables::queue::Work;
use bytes::Bytes;
use hayloft_common::hash::Hash;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::RwLockWriteGuard;

/// How long to wait for puts of the same group of blocks; while somebody waits, no new one begins.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a disk may take to store a block before it is left alone. The bytes may come later: see [`Stray`].
const PUT_PATIENCE: Duration = Duration::from_secs(30);

/// Index entries read at once.
const INDEX_PAGE: usize = 65_536;

/// Keeps all puts of a block out.
pub(super) async fn lock<'a>(
    node: &'a Arc<Node>,
    block: &Hash,
) -> Result<RwLockWriteGuard<'a, ()>, WorkerError> {
    let lock = node.block_locks.of(block).write();
    tokio::time::timeout(LOCK_PATIENCE, lock)
        .await
        .map_err(|_| WorkerError::Other("blocks of the same group are being stored for too long".into()))
}

/// Waits until every put that was under way has had its index entry committed, or has failed.
pub(super) async fn wait_for_puts(node: &Arc<Node>) -> Result<(), WorkerError> {
    for lock in node.block_locks.all() {
        let waited = tokio::time::timeout(LOCK_PATIENCE, lock.write()).await;
        drop(waited.map_err(|_| WorkerError::Other("blocks are being stored for too long".into()))?);
    }
    // A put whose caller went away has left its lock, but perhaps a job in the queue.
    Ok(node.plane()?.commit.barrier().await?)
}

async fn in_time<T>(put: impl Future<Output = Result<T, BlockError>>) -> Result<T, WorkerError> {
    match tokio::time::timeout(PUT_PATIENCE, put).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(WorkerError::Other("the disk takes too long to store the block".into())),
    }
}

/// Stores a block that was fetched from another node (checked already), unless there is a copy by now that can be read:
/// another one than `unreadable`. Returns the bytes written.
pub(super) async fn store(
    node: &Arc<Node>,
    block: Hash,
    envelope: Bytes,
    unreadable: Option<Location>,
) -> Result<u64, WorkerError> {
    let _alone = lock(node, &block).await?;
    let old = node.locate(block).await?;
    if old.is_some_and(|old| node.blocks.is_readable(&old) && Some(old) != unreadable) {
        return Ok(0);
    }
    let len = envelope.len() as u64;
    let mut stray = Stray::new(node, block);
    let new = in_time(node.blocks.put_verified(block, envelope)).await?;
    stray.lies_at(new);
    node.plane()?.commit.submit(Job::entries(index_entry(block, &new))).await?;
    stray.is_committed();
    if let Some(old) = old.filter(|old| !old.same_place(&new)) {
        free(node, &block, &old).await;
    }
    Ok(len)
}

/// Frees bytes that no index entry names any more. A disk that can't do it now keeps them until it is scrubbed.
async fn free(node: &Arc<Node>, block: &Hash, location: &Location) {
    if let Err(error) = node.blocks.delete(block, location).await {
        tracing::debug!(%block, %error, "the bytes of a block stay where they are for now");
    }
}

/// What became of a block that was to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes lie elsewhere now.
    Bytes(u64),
    /// The index names another place by now: nothing to do.
    NotThere,
    /// Its bytes are bad: the entry is gone, and the block is queued to be fetched.
    Lost,
}

/// Copies a block from `from` to the disk `to`, which may be its own, and frees it at `from`.
pub(super) async fn relocate(
    node: &Arc<Node>,
    block: Hash,
    from: &Location,
    to: DiskId,
) -> Result<Moved, WorkerError> {
    let _alone = lock(node, &block).await?;
    if node.locate(block).await?.as_ref() != Some(from) {
        return Ok(Moved::NotThere);
    }
    let envelope = match node.blocks.get(&block, from).await {
        Err(error) if error.is_lost_copy() => {
            node.blocks.refresh().await?;
            if !node.blocks.is_readable(from) {
                return Err(error.into());
            }
            give_up_locked(node, block, from, &error).await?;
            return Ok(Moved::Lost);
        }
        read => read?,
    };
    let len = envelope.len() as u64;
    let mut stray = Stray::new(node, block);
    let new = in_time(node.blocks.put_to(to, block, envelope, to == from.disk)).await?;
    if new.same_place(from) {
        stray.is_committed();
        return Ok(Moved::NotThere);
    }
    stray.lies_at(new);
    let job = Job::relocate(block, from.encode().into(), Some(new.encode().into()));
    let done = node.plane()?.commit.submit(job).await?;
    if done.done.first() != Some(&true) {
        return Ok(Moved::NotThere);
    }
    stray.is_committed();
    free(node, &block, from).await;
    Ok(Moved::Bytes(len))
}

/// Gives up a copy whose bytes are bad or gone: queues the block to be fetched, removes its index entry, frees what is
/// left. Nothing happens if the index names another place by now.
pub(super) async fn give_up(
    node: &Arc<Node>,
    block: Hash,
    location: &Location,
    why: &BlockError,
) -> Result<bool, WorkerError> {
    let _alone = lock(node, &block).await?;
    if node.locate(block).await?.as_ref() != Some(location) {
        return Ok(false);
    }
    // Once more: what a bad cable garbled is good the next time.
    match node.blocks.get(&block, location).await {
        Err(error) if error.is_lost_copy() => {}
        _ => return Ok(false),
    }
    // Nor is a block lost whose disk was unmounted a second ago.
    node.blocks.refresh().await?;
    if !node.blocks.is_readable(location) {
        return Ok(false);
    }
    give_up_locked(node, block, location, why).await?;
    Ok(true)
}

/// Reads a copy; gives it up if it is bad, and queues the block if it can't be read. Says whether all was not well.
pub(super) async fn verify(node: &Arc<Node>, block: Hash, location: &Location) -> Result<bool, WorkerError> {
    match node.blocks.get(&block, location).await {
        Err(error) if error.is_lost_copy() => give_up(node, block, location, &error).await,
        Err(BlockError::Io { .. }) => {
            node.check_blocks(&not_queued(node, vec![block]).await?).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The blocks whose index entries name a place in one segment. Reads the whole index, a page at a time.
pub(super) async fn entries_in_segment(
    node: &Arc<Node>,
    disk: DiskId,
    segment: u32,
) -> Result<Vec<(Hash, Location)>, WorkerError> {
    let mut found = Vec::new();
    let mut from = Some(Vec::new());
    while let Some(start) = from {
        let read = reading(node, move |node| {
            let (mut page, mut seen, mut next) = (Vec::new(), 0, None);
            let range = KeyRange { from: start, to: None };
            node.engine.scan(Space::BlockIndex, &range, Direction::Forward, &mut |key, value| {
                if seen >= INDEX_PAGE {
                    next = Some(key.to_vec());
                    return Step::Stop;
                }
                seen += 1;
                if let (Ok(hash), Ok(location)) = (<[u8; 32]>::try_from(&key[..]), Location::decode(value))
                    && lies_in(&location, disk, segment)
                {
                    page.push((Hash(hash), location));
                }
                Step::Next
            })?;
            Ok((page, next))
        });
        let (page, next) = read.await?;
        found.extend(page);
        from = next;
    }
    Ok(found)
}

/// Whether a location is in a segment.
pub(super) fn lies_in(location: &Location, disk: DiskId, segment: u32) -> bool {
    location.disk == disk && matches!(location.place, Place::Packed { segment: at, .. } if at == segment)
}

async fn give_up_locked(
    node: &Arc<Node>,
    block: Hash,
    location: &Location,
    why: &BlockError,
) -> Result<(), WorkerError> {
    tracing::warn!(%block, error = %why, "this node's copy of a block is lost; another is fetched");
    node.check_blocks(&[block]).await?;
    let job = Job::relocate(block, location.encode().into(), None);
    let done = node.plane()?.commit.submit(job).await?;
    if done.done.first() == Some(&true) {
        free(node, &block, location).await;
    }
    Ok(())
}

/// Removes the index entry of a block that no live reference names, and its bytes. Says whether the block is gone;
/// if not, it is referred to again.
pub(super) async fn release(node: &Arc<Node>, block: Hash, regardless: bool) -> Result<bool, WorkerError> {
    let _alone = lock(node, &block).await?;
    let had = node.has_entry(block).await?;
    let job = if regardless { Job::release_regardless(block) } else { Job::release(block) };
    let Some(entry) = node.plane()?.commit.submit(job).await?.released else { return Ok(!had) };
    match Location::decode(&entry) {
        Ok(location) => free(node, &block, &location).await,
        Err(error) => tracing::error!(%block, %error, "a released block lies at an unreadable place"),
    }
    Ok(true)
}

/// Frees the bytes of a put that came to nothing, if no index entry names them.
pub(super) async fn tidy(node: &Arc<Node>, stray: &StrayBytes) -> Result<(), WorkerError> {
    let block = stray.block;
    let _alone = lock(node, &block).await?;
    node.plane()?.commit.barrier().await?;
    let entry = node.locate(block).await?;
    match stray.location {
        Some(location) if entry.is_some_and(|entry| entry.same_place(&location)) => {}
        Some(location) => free(node, &block, &location).await,
        None => {
            for disk in node.blocks.disks().into_iter().filter(|disk| disk.writable) {
                let named = entry.is_some_and(|at| at.disk == disk.disk && at.place == Place::Plain);
                if !named {
                    node.blocks.remove_orphan(disk.disk, block).await?;
                }
            }
        }
    }
    Ok(())
}

/// Removes the file of a block on a disk if no index entry names it; for files found on a disk. Says whether.
pub(super) async fn remove_unnamed(node: &Arc<Node>, block: Hash, disk: DiskId) -> Result<bool, WorkerError> {
    let _alone = lock(node, &block).await?;
    node.plane()?.commit.barrier().await?;
    let entry = node.locate(block).await?;
    if entry.is_some_and(|at| at.disk == disk && at.place == Place::Plain) {
        return Ok(false);
    }
    Ok(node.blocks.remove_orphan(disk, block).await?)
}

/// Those of the blocks that are not queued to be looked at: queuing the others again would put off their release.
pub(super) async fn not_queued(node: &Arc<Node>, blocks: Vec<Hash>) -> Result<Vec<Hash>, WorkerError> {
    let tables = node.plane()?.tables;
    reading(node, move |node| {
        let view = node.engine.snapshot();
        let mut wanted = Vec::new();
        for block in blocks {
            let key = Work::CheckBlock { block }.key(tables.partition(block.as_bytes()));
            if view.get(Space::Queue, &key)?.is_none() {
                wanted.push(block);
            }
        }
        Ok(wanted)
    })
    .await
}
