//! Whether what rows claim of other rows is so, asked of the nodes that hold those; and whether replicas are equal.

use super::rows::{Claim, Page};
use super::{Found, WorkerError};
use crate::meta::Space;
use crate::serve::Node;
use crate::tables::fingerprint::Leaves;
use crate::tables::queue::Work;
use futures::stream::{self, StreamExt as _};
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::{NodeId, VersionId};
use hayloft_common::layout::Partition;
use hayloft_common::schema::{
    BlockOwner, BlockRefRow, ObjectRow, PartRow, Row, Slot, TableId, UploadRow, index_partition_key,
};
use hayloft_proto::body::Body;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::fanout;
use hayloft_proto::message::sync::{AreQueued, AreQueuedReply, ReadTotals, RowSum};
use hayloft_proto::message::table::ReadRow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Questions under way at once.
const AT_ONCE: usize = 64;
/// Looks at two replicas before they count as different, and the pause between.
const LOOKS: usize = 6;
const PAUSE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(20);

type Wrong = Option<(&'static str, String, Verdict)>;

enum Verdict {
    Wrong,
    Pending,
}

/// Judges a page's claims.
pub(super) async fn claims(node: &Arc<Node>, page: Page, found: &mut Found) -> Result<(), WorkerError> {
    found.rows += page.rows;
    *found.pending.entry("tombstone").or_default() += page.tombstones;
    found.pending.retain(|_, count| *count > 0);
    for damaged in page.damaged {
        found.wrong("damaged row", damaged);
    }
    let first = is_first(node, page.partition);
    let references = page.claims.iter().filter(|claim| matches!(claim, Claim::Reference(_))).count();
    found.references += references as u64;
    let judged = page.claims.into_iter().map(|claim| {
        let node = node.clone();
        async move { judge(&node, claim, first).await }
    });
    let mut judged = stream::iter(judged).buffered(AT_ONCE);
    while let Some(result) = judged.next().await {
        for (kind, what, verdict) in result? {
            match verdict {
                Verdict::Wrong => found.wrong(kind, what),
                Verdict::Pending => found.pending(kind),
            }
        }
    }
    Ok(())
}

/// Whether this node asks the questions that concern several nodes.
fn is_first(node: &Node, partition: Partition) -> bool {
    let layout = node.cluster.layout();
    layout.current.nodes_of(partition).is_ok_and(|set| set.iter().min() == Some(&node.id))
}

async fn judge(
    node: &Arc<Node>,
    claim: Claim,
    first: bool,
) -> Result<Vec<(&'static str, String, Verdict)>, WorkerError> {
    let mut wrong = Vec::new();
    match claim {
        Claim::Version { owner, version, blocks, manifests } if first => {
            wrong.extend(version_has_references(node, &owner, version, &blocks, manifests).await?);
        }
        Claim::Part(part) if first => wrong.extend(part_has_upload(node, &part).await?),
        Claim::Manifest { version, chunk, block: Some(block) } if first => {
            let referred = has_reference(node, block, version).await?;
            let what = || format!("manifest row {chunk} of version {version}");
            wrong.extend((!referred).then(|| ("manifest without reference", what(), Verdict::Wrong)));
        }
        Claim::Reference(reference) => {
            wrong.extend(reference_has_block(node, &reference).await?);
            if first {
                wrong.extend(reference_has_version(node, &reference).await?);
            }
        }
        _ => {}
    }
    Ok(wrong)
}

/// A row as a read quorum knows it.
async fn read<R: Row>(
    node: &Arc<Node>,
    partition_key: Vec<u8>,
    sort_key: Vec<u8>,
) -> Result<Option<R>, WorkerError> {
    let place = Hash::of(&partition_key);
    let ask = ReadRow { table: R::TABLE, partition_key, sort_key };
    let replies = fanout::read(&node.cluster, place, ask).await;
    let replies = replies.map_err(|e| WorkerError::Other(e.to_string()))?;
    let mut merged: Option<R> = None;
    for (_, reply) in replies {
        let Some(bytes) = reply.row else { continue };
        let row: R = codec::decode(&bytes).map_err(|e| WorkerError::Other(e.to_string()))?;
        match &mut merged {
            Some(have) => have.merge(&row),
            None => merged = Some(row),
        }
    }
    Ok(merged)
}

async fn has_reference(node: &Arc<Node>, block: Hash, version: VersionId) -> Result<bool, WorkerError> {
    let row: Option<BlockRefRow> = read(node, block.0.to_vec(), version.0.to_vec()).await?;
    Ok(row.is_some_and(|row| row.is_live()))
}

/// Whether the row that decides over a version still has it.
async fn is_wanted(node: &Arc<Node>, owner: &BlockOwner, version: VersionId) -> Result<bool, WorkerError> {
    match owner {
        BlockOwner::Object { bucket, shard, key } => {
            let sort_key = ObjectRow::sort_key_of(key, Slot::Null);
            let row: Option<ObjectRow> = read(node, index_partition_key(bucket, *shard), sort_key).await?;
            Ok(row.is_some_and(|row| row.live().is_some_and(|v| v.id == version)))
        }
        BlockOwner::Part { bucket, shard, key, upload, number } => {
            let base = index_partition_key(bucket, *shard);
            let sort_key = PartRow::sort_key_of(key, upload, *number);
            let part: Option<PartRow> = read(node, base.clone(), sort_key).await?;
            if part.is_none_or(|row| row.live().is_none_or(|v| v.id != version)) {
                return Ok(false);
            }
            let upload: Option<UploadRow> = read(node, base, UploadRow::sort_key_of(key, upload)).await?;
            Ok(upload.is_some_and(|row| row.is_live()))
        }
    }
}

/// The partition key of an owner's row.
fn place_of(owner: &BlockOwner) -> Vec<u8> {
    let (BlockOwner::Object { bucket, shard, .. } | BlockOwner::Part { bucket, shard, .. }) = owner;
    index_partition_key(bucket, *shard)
}

/// Whether some node of a partition key's set has one of these pieces of work queued.
async fn is_queued(node: &Arc<Node>, partition_key: &[u8], work: &[Work]) -> Result<bool, WorkerError> {
    let layout = node.cluster.layout();
    let partition = layout.partition_of_key(partition_key);
    let keys = work.iter().map(|work| serde_bytes::ByteBuf::from(work.key(partition.0))).collect();
    let ask = AreQueued { partition, keys };
    for peer in layout.current.nodes_of(partition).unwrap_or_default() {
        let answer = if peer == node.id {
            Ok(node.are_queued(&ask).await?)
        } else {
            node.cluster.call(peer, &ask, Body::empty(), DEADLINE).await.map(|(reply, _)| reply)
        };
        // A node that is down can't say; another one has the same work.
        if answer.is_ok_and(|reply| reply.queued.contains(&true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn version_has_references(
    node: &Arc<Node>,
    owner: &BlockOwner,
    version: VersionId,
    blocks: &[Hash],
    manifests: u32,
) -> Result<Wrong, WorkerError> {
    let mut missing = None;
    for block in blocks {
        if !has_reference(node, *block, version).await? {
            missing = Some(format!("block {block}"));
            break;
        }
    }
    for chunk in 0..manifests {
        use hayloft_common::schema::ManifestRow;
        let key = chunk.to_be_bytes().to_vec();
        let row: Option<ManifestRow> = read(node, version.0.to_vec(), key).await?;
        let Some(row) = row.filter(Row::is_live) else {
            missing = Some(format!("manifest row {chunk}"));
            break;
        };
        for block in &row.blocks {
            if !has_reference(node, block.hash, version).await? {
                missing = Some(format!("block {}", block.hash));
                break;
            }
        }
    }
    let Some(missing) = missing else { return Ok(None) };
    // It may have been overwritten or deleted since the page was read.
    if !is_wanted(node, owner, version).await? {
        return Ok(None);
    }
    let what = format!("version {version} of {owner:?} has no reference to {missing}");
    Ok(Some(("version without its reference", what, Verdict::Wrong)))
}

async fn part_has_upload(node: &Arc<Node>, part: &PartRow) -> Result<Wrong, WorkerError> {
    let base = index_partition_key(&part.bucket, part.shard);
    let upload: Option<UploadRow> =
        read(node, base.clone(), UploadRow::sort_key_of(&part.key, &part.upload)).await?;
    if upload.is_some_and(|row| row.is_live()) {
        return Ok(None);
    }
    let (bucket, shard, key) = (part.bucket, part.shard, part.key.clone());
    let work = Work::DropParts { bucket, shard, key, upload: part.upload };
    let verdict = if is_queued(node, &base, &[work]).await? { Verdict::Pending } else { Verdict::Wrong };
    let what = format!("part {} of upload {} of {:?}", part.number, part.upload, part.key);
    Ok(Some(("part of a closed upload", what, verdict)))
}

async fn reference_has_block(node: &Arc<Node>, reference: &BlockRefRow) -> Result<Wrong, WorkerError> {
    let block = reference.block;
    if node.locate(block).await?.is_some_and(|location| node.blocks.is_readable(&location)) {
        return Ok(None);
    }
    let queued = is_queued_here(node, &Work::CheckBlock { block }, &block.0).await?;
    let verdict = if queued { Verdict::Pending } else { Verdict::Wrong };
    Ok(Some(("missing block", format!("{block}"), verdict)))
}

async fn is_queued_here(node: &Arc<Node>, work: &Work, partition_key: &[u8]) -> Result<bool, WorkerError> {
    let key = work.key(node.plane()?.tables.partition(partition_key));
    let found = node
        .blocking(move |node| node.engine.get(Space::Queue, &key).map_err(|e| crate::serve::meta_error(&e)));
    Ok(found.await?.is_some())
}

async fn reference_has_version(node: &Arc<Node>, reference: &BlockRefRow) -> Result<Wrong, WorkerError> {
    let BlockRefRow { block, version, owner, .. } = reference;
    if is_wanted(node, owner, *version).await? {
        return Ok(None);
    }
    let what = format!("block {block}, version {version} of {owner:?}");
    let check = Work::CheckRef { block: *block, version: *version };
    if is_queued(node, &block.0, &[check]).await? {
        return Ok(Some(("reference of an uncommitted version", what, Verdict::Pending)));
    }
    let mut work = vec![Work::DropVersion {
        version: *version,
        owner: owner.clone(),
        blocks: Vec::new(),
        manifest_chunks: 0,
    }];
    if let BlockOwner::Part { bucket, shard, key, upload, .. } = owner {
        let (bucket, shard, key, upload) = (*bucket, *shard, key.clone(), *upload);
        work.push(Work::DropParts { bucket, shard, key, upload });
    }
    if is_queued(node, &place_of(owner), &work).await? {
        return Ok(Some(("reference of a superseded version", what, Verdict::Pending)));
    }
    // The work may have been done between the two questions.
    if !has_reference(node, *block, *version).await? || is_wanted(node, owner, *version).await? {
        return Ok(None);
    }
    Ok(Some(("reference without a version", what, Verdict::Wrong)))
}

/// Compares the fingerprints of a partition with the other replicas'.
pub(super) async fn replicas(
    node: &Arc<Node>,
    partition: Partition,
    found: &mut Found,
) -> Result<(), WorkerError> {
    if !is_first(node, partition) {
        return Ok(());
    }
    let peers = node.cluster.layout().current.nodes_of(partition).unwrap_or_default();
    for peer in peers.into_iter().filter(|peer| *peer != node.id) {
        let mut last = Ok(Vec::new());
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            last = differing_tables(node, peer, partition).await;
            if last.as_ref().is_ok_and(Vec::is_empty) {
                break;
            }
        }
        match last {
            Ok(tables) => {
                for table in tables {
                    let what =
                        format!("table {} partition {} on {}", table.name(), partition.0, peer.short());
                    found.wrong("replicas differ", what);
                }
            }
            Err(error) => {
                found.wrong(
                    "replica unreachable",
                    format!("partition {} on {}: {error}", partition.0, peer.short()),
                );
            }
        }
    }
    Ok(())
}

async fn differing_tables(
    node: &Arc<Node>,
    peer: NodeId,
    partition: Partition,
) -> Result<Vec<TableId>, WorkerError> {
    let ask = ReadTotals { partitions: vec![partition] };
    let (theirs, _) = node.cluster.call(peer, &ask, Body::empty(), DEADLINE).await?;
    let ours = node.blocking(move |node| {
        let view = node.engine.snapshot();
        let mut sums = BTreeMap::new();
        for table in TableId::ALL {
            let leaves = Leaves::read(&*view, table, partition.0);
            let total = leaves.map_err(|e| crate::serve::tables_error(&e))?.total();
            sums.insert(table, RowSum { sum: total.sum.to_le_bytes(), rows: total.rows });
        }
        Ok(sums)
    });
    let ours = ours.await?;
    let theirs: BTreeMap<TableId, RowSum> =
        theirs.totals.into_iter().map(|(table, _, sum)| (table, sum)).collect();
    let of = |sums: &BTreeMap<TableId, RowSum>, table| sums.get(&table).copied().unwrap_or_default();
    Ok(TableId::ALL.into_iter().filter(|table| of(&ours, *table) != of(&theirs, *table)).collect())
}

impl Node {
    /// Which of these pieces of work are queued here.
    pub(crate) async fn are_queued(self: &Arc<Self>, ask: &AreQueued) -> Result<AreQueuedReply, RpcError> {
        let keys = ask.keys.clone();
        if keys.len() > 1000 {
            return Err(RpcError::remote(RemoteCode::BadRequest, "more than 1000 keys"));
        }
        let queued = self.blocking(move |node| {
            let view = node.engine.snapshot();
            let has = |key: &serde_bytes::ByteBuf| view.get(Space::Queue, key).map(|found| found.is_some());
            keys.iter().map(has).collect::<Result<Vec<_>, _>>().map_err(|e| crate::serve::meta_error(&e))
        });
        Ok(AreQueuedReply { queued: queued.await? })
    }
}
