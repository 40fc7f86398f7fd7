//! Letting go of what a version held: references to blocks, manifest rows. And telling the other replicas that it is done.
//!
//! References of many versions go in few writes: all that lie in one partition travel together. They are written as
//! deleted on a write quorum; the reaction of each node to that queues the block to be looked at. A manifest row goes only
//! after the references it lists: whoever has to begin again still finds what is left to do.

use super::WorkerError;
use super::members::members;
use super::versions::{Subject, no_quorum, write_merge};
use crate::commit::Job;
use crate::serve::Node;
use crate::tables::queue::{self, Entry};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::{NodeId, VersionId};
use hayloft_common::layout::Partition;
use hayloft_common::schema::{BlockRefRow, ManifestRow, Row, TableId};
use hayloft_proto::body::Body;
use hayloft_proto::fanout;
use hayloft_proto::message::sync::{MAX_WORK_DONE, WorkDone};
use hayloft_proto::message::table::{ReadRange, RowBytes};
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// References in one write, and bytes.
const BATCH_ROWS: usize = 1000;
const BATCH_BYTES: usize = 512 << 10;
/// Writes under way at once.
const PARALLEL: usize = 16;
/// Manifest rows read at once: some 36 KiB each.
const MANIFEST_PAGE: u32 = 8;
/// Telling others that work is done is worth this much waiting.
const TELL_DEADLINE: Duration = Duration::from_secs(5);

/// A write of references of one partition, and whose they are (indexes of the caller's).
struct References {
    place: Hash,
    rows: Vec<RowBytes>,
    of: BTreeSet<usize>,
}

fn batches(partition_of: impl Fn(&Hash) -> u16, dropped: &[(Subject, Vec<Hash>)]) -> Vec<References> {
    let mut groups: BTreeMap<u16, Vec<(usize, Hash)>> = BTreeMap::new();
    for (index, (_, blocks)) in dropped.iter().enumerate() {
        for block in blocks.iter().collect::<BTreeSet<_>>() {
            groups.entry(partition_of(block)).or_default().push((index, *block));
        }
    }
    let mut out = Vec::new();
    for references in groups.into_values() {
        let mut batch: Option<(References, usize)> = None;
        for (index, block) in references {
            let Subject { version, owner } = dropped[index].0.clone();
            let row = BlockRefRow { block, version, created_ms: 0, owner, deleted: true };
            let bytes = codec::encode(&row);
            if batch.as_ref().is_some_and(|(b, len)| b.rows.len() >= BATCH_ROWS || *len >= BATCH_BYTES) {
                out.extend(batch.take().map(|(batch, _)| batch));
            }
            let empty = || {
                let place = Hash::of(block.as_bytes());
                (References { place, rows: Vec::new(), of: BTreeSet::new() }, 0)
            };
            let (batch, len) = batch.get_or_insert_with(empty);
            *len += bytes.len();
            batch.of.insert(index);
            batch.rows.push(RowBytes { table: TableId::BlockRef, bytes });
        }
        out.extend(batch.map(|(batch, _)| batch));
    }
    out
}

/// Deletes the references of versions to blocks. For each version, in order: whether all are deleted; and the last error.
pub(super) async fn drop_references(
    node: &Arc<Node>,
    dropped: &[(Subject, Vec<Hash>)],
) -> Result<(Vec<bool>, Option<WorkerError>), WorkerError> {
    let tables = node.plane()?.tables;
    let batches = batches(|block| tables.partition(block.as_bytes()), dropped);
    let writes = batches.into_iter().map(|References { place, rows, of }| async move {
        let done = write_merge(node, place, rows).await;
        (of, done)
    });
    let writes: Vec<_> = stream::iter(writes.collect::<Vec<_>>()).buffer_unordered(PARALLEL).collect().await;
    let (mut done, mut failed) = (vec![true; dropped.len()], None);
    for (of, result) in writes {
        if let Err(error) = result {
            for index in of {
                done[index] = false;
            }
            failed = Some(error);
        }
    }
    Ok((done, failed))
}

/// Deletes the references to all blocks that stand in manifest rows of a version, and those rows. Returns how many
/// references there were.
pub(super) async fn drop_manifests(node: &Arc<Node>, subject: &Subject) -> Result<u64, WorkerError> {
    let partition_key = subject.version.as_bytes().to_vec();
    let place = Hash::of(&partition_key);
    let (mut from, mut dropped) = (Vec::new(), 0);
    loop {
        let ask = ReadRange {
            table: TableId::Manifest,
            partition_key: partition_key.clone(),
            from: from.clone(),
            to: None,
            limit: MANIFEST_PAGE,
        };
        let (rows, next) = read_page::<ManifestRow>(node, place, ask).await?;
        let live: Vec<ManifestRow> = rows.into_iter().filter(Row::is_live).collect();
        let blocks: Vec<Hash> = live.iter().flat_map(|row| &row.blocks).map(|entry| entry.hash).collect();
        dropped += blocks.len() as u64;
        let (_, failed) = drop_references(node, &[(subject.clone(), blocks)]).await?;
        if let Some(error) = failed {
            return Err(error);
        }
        if !live.is_empty() {
            let deleted = live.iter().map(|row| {
                let row = ManifestRow { blocks: Vec::new(), deleted: true, ..row.clone() };
                RowBytes { table: TableId::Manifest, bytes: codec::encode(&row) }
            });
            write_merge(node, place, deleted.collect()).await?;
        }
        match next {
            Some(next) if next > from => from = next,
            _ => return Ok(dropped),
        }
    }
}

/// A page of rows as a read quorum knows them, in order, and where to go on.
pub(super) async fn read_page<R: Row>(
    node: &Arc<Node>,
    place: Hash,
    ask: ReadRange,
) -> Result<(Vec<R>, Option<Vec<u8>>), WorkerError> {
    let replies = fanout::read(&node.cluster, place, ask).await.map_err(no_quorum)?;
    let next = replies.iter().filter_map(|(_, reply)| reply.next.as_ref()).min().map(|next| next.to_vec());
    let mut rows: BTreeMap<Vec<u8>, R> = BTreeMap::new();
    for bytes in replies.iter().flat_map(|(_, reply)| &reply.rows) {
        let row: R = codec::decode(bytes).map_err(|error| WorkerError::Other(error.to_string()))?;
        let key = row.sort_key();
        // Beyond the shortest page not every node has spoken.
        if next.as_ref().is_some_and(|next| key >= *next) {
            continue;
        }
        match rows.get_mut(&key) {
            Some(have) => have.merge(&row),
            None => {
                rows.insert(key, row);
            }
        }
    }
    Ok((rows.into_values().collect(), next))
}

/// Takes finished work off the queue here, and tells the other replicas, which would do it later.
pub(super) async fn finish(node: &Arc<Node>, finished: Vec<(Bytes, Entry)>) -> Result<(), WorkerError> {
    if finished.is_empty() {
        return Ok(());
    }
    let layout = node.cluster.layout();
    let mut tell: BTreeMap<NodeId, Vec<ByteBuf>> = BTreeMap::new();
    for (key, _) in &finished {
        let Some(partition) = queue::partition_of(key) else { continue };
        for member in members(&layout, Partition(partition)).into_iter().filter(|id| *id != node.id) {
            tell.entry(member).or_default().push(ByteBuf::from(key.to_vec()));
        }
    }
    node.plane()?.commit.submit(Job::done(finished)).await?;
    for (member, keys) in tell {
        let this = node.clone();
        node.env.spawn("work done", async move {
            for keys in keys.chunks(MAX_WORK_DONE) {
                let done = WorkDone { keys: keys.to_vec() };
                let told = this.cluster.call(member, &done, Body::empty(), TELL_DEADLINE).await;
                if let Err(error) = told {
                    // It will find out by itself.
                    tracing::debug!(node = %member.short(), %error, "a replica was not told of finished work");
                    return;
                }
            }
        });
    }
    Ok(())
}

/// A version as its owner's work names it.
pub(super) fn subject(version: VersionId, owner: &hayloft_common::schema::BlockOwner) -> Subject {
    Subject { version, owner: owner.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::id::BucketId;
    use hayloft_common::schema::BlockOwner;

    #[test]
    fn references_of_many_versions_travel_by_partition_and_each_block_once() {
        let owner = BlockOwner::Object { bucket: BucketId([1; 16]), shard: 0, key: "k".into() };
        let subject = |n: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            subject(VersionId(id), &owner)
        };
        let block = |n: u8| Hash([n; 32]);
        let dropped: Vec<_> = (0..1500).map(|n| (subject(n), vec![block(1), block(2), block(1)])).collect();
        let batches = batches(|block| u16::from(block.0[0]), &dropped);
        assert_eq!(batches.iter().map(|b| b.rows.len()).collect::<Vec<_>>(), [1000, 500, 1000, 500]);
        assert_eq!(batches[1].of, (1000..1500).collect());
        assert_eq!(batches[2].place, Hash::of(block(2).as_bytes()));
        let row: BlockRefRow = codec::decode(&batches[0].rows[3].bytes).unwrap();
        assert_eq!((row.block, row.version, row.created_ms, row.deleted), (block(1), subject_id(3), 0, true));
    }

    fn subject_id(n: u16) -> VersionId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        VersionId(id)
    }
}
