//! [`Store`] over the real storage nodes: each method one call of `proto::fanout`.

use super::store::{EarlyRow, Replies, Store, StoreError, StoredRow, Wrote, place_of, place_of_block};
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::block;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, ConsistencyMode, write_quorum};
use hayloft_common::stamp::Stamp;
use hayloft_proto::body::Body;
use hayloft_proto::cluster::{CALL_DEADLINE, Cluster};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::fanout::{self, EarlyRead, FanoutError, Verdict};
use hayloft_proto::late::LateCalls;
use hayloft_proto::message::Message;
use hayloft_proto::message::block::{GetBlock, PutBlock, ReferBlocks, ReferBlocksReply, ReportBlock};
use hayloft_proto::message::table::{
    IndexCounters, ListKeys, ListKeysReply, ReadCounters, ReadRange, ReadRangeReply, ReadRow, ReadRowReply,
    RowBytes, RowOutcome, WriteMode, WriteRows, WriteRowsReply,
};
use std::sync::Arc;

/// Bytes of blocks that may be on their way to silent nodes, unless told otherwise.
const LATE_BYTES: usize = 16 << 20;

/// The storage nodes of a cluster.
pub struct ClusterStore {
    cluster: Arc<Cluster>,
    late: Arc<LateCalls>,
}

impl ClusterStore {
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self::with_late_bytes(cluster, LATE_BYTES)
    }

    /// As [`ClusterStore::new`]; blocks on their way to silent nodes may take so many bytes of memory.
    pub fn with_late_bytes(cluster: Arc<Cluster>, bytes: usize) -> Self {
        Self { cluster, late: Arc::new(LateCalls::new(bytes)) }
    }

    /// Tells nodes that their copy of a block is missing or bad.
    fn report(&self, block: Hash, nodes: Vec<NodeId>) {
        for node in nodes {
            let cluster = self.cluster.clone();
            self.cluster.env().spawn("report of a bad block", async move {
                let report = ReportBlock { block };
                if let Err(error) = cluster.call(node, &report, Body::empty(), CALL_DEADLINE).await {
                    tracing::debug!(%block, node = %node.short(), %error, "a bad copy could not be reported");
                }
            });
        }
    }
}

/// A read about to be made: what its replies will be worth is told by the layout before and after.
struct Asked {
    cluster: Arc<Cluster>,
    place: Hash,
    before: Arc<ActiveLayout>,
}

impl Asked {
    fn new(cluster: &Arc<Cluster>, place: Hash) -> Self {
        Self { cluster: cluster.clone(), place, before: cluster.layout() }
    }

    fn replies<R>(&self, all: Vec<R>) -> Replies<R> {
        let lasting = self.is_lasting(all.len());
        Replies { all, lasting }
    }

    /// See [`Replies::lasting`]. The same layout before and after was that of the read.
    fn is_lasting(&self, replies: usize) -> bool {
        let layout = self.cluster.layout();
        let sets = layout.write_sets(layout.partition_of(&self.place)).unwrap_or_default();
        let [set] = &sets[..] else { return false };
        layout.epoch() == self.before.epoch()
            && replies >= write_quorum(ConsistencyMode::Consistent, set.len())
    }
}

fn failed<R>(error: FanoutError<R>) -> StoreError {
    let code = |code: RemoteCode| move |e: &(NodeId, RpcError)| matches!(&e.1, RpcError::Remote { code: c, .. } if *c == code);
    if let FanoutError::NoQuorum { errors, .. } = &error {
        if !errors.is_empty() && errors.iter().all(|(_, e)| e.is_bad_copy()) {
            return StoreError::Damaged(error.to_string());
        }
        if errors.iter().any(code(RemoteCode::Conflict)) {
            return StoreError::Conflict(error.to_string());
        }
        if errors.iter().any(code(RemoteCode::NoSpace)) {
            return StoreError::NoSpace(error.to_string());
        }
    }
    StoreError::Unavailable(error.to_string())
}

fn newest(reply: &WriteRowsReply) -> Option<Stamp> {
    let stamp = |outcome: &RowOutcome| match outcome {
        RowOutcome::Outdated(stamp) => Some(*stamp),
        RowOutcome::Written => None,
    };
    reply.outcomes.iter().filter_map(stamp).max()
}

fn row_of(reply: &ReadRowReply) -> StoredRow {
    reply.row.as_ref().map(|row| row.to_vec())
}

/// A quorum's replies to `message`, whose partition key has this place.
async fn read<M: Message>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
) -> Result<Replies<M::Reply>, StoreError> {
    let asked = Asked::new(cluster, place);
    let replies = fanout::read(cluster, place, message).await.map_err(failed)?;
    Ok(asked.replies(replies.into_iter().map(|(_, reply)| reply).collect()))
}

struct Early {
    asked: Asked,
    read: EarlyRead<ReadRow>,
}

#[async_trait]
impl EarlyRow for Early {
    async fn first(&mut self) -> Result<StoredRow, StoreError> {
        let (_, reply) = self.read.first().await.map_err(failed)?;
        Ok(row_of(reply))
    }

    async fn quorum(self: Box<Self>) -> Result<Replies<StoredRow>, StoreError> {
        let replies = self.read.quorum().await.map_err(failed)?;
        Ok(self.asked.replies(replies.iter().map(|(_, reply)| row_of(reply)).collect()))
    }
}

#[async_trait]
impl Store for ClusterStore {
    fn partition_of(&self, place: &Hash) -> u16 {
        self.cluster.layout().partition_of(place).0
    }

    async fn write_rows(
        &self,
        place: Hash,
        mode: WriteMode,
        rows: Vec<RowBytes>,
    ) -> Result<Wrote, StoreError> {
        let judge = |reply: &WriteRowsReply| match newest(reply) {
            Some(_) => Verdict::Reject,
            None => Verdict::Accept,
        };
        match fanout::write(&self.cluster, place, WriteRows { mode, rows }, Bytes::new(), judge).await {
            Ok(_) => Ok(Wrote::Done),
            Err(FanoutError::Rejected { replies }) => {
                Ok(Wrote::Outdated(replies.iter().filter_map(newest).max().unwrap_or_default()))
            }
            Err(error) => Err(failed(error)),
        }
    }

    async fn read_row(&self, ask: ReadRow) -> Result<Replies<StoredRow>, StoreError> {
        let Replies { all, lasting } = read(&self.cluster, place_of(&ask.partition_key), ask).await?;
        Ok(Replies { all: all.iter().map(row_of).collect(), lasting })
    }

    fn read_row_early(&self, ask: ReadRow) -> Box<dyn EarlyRow> {
        let place = place_of(&ask.partition_key);
        let asked = Asked::new(&self.cluster, place);
        Box::new(Early { asked, read: fanout::read_early(&self.cluster, place, ask) })
    }

    async fn read_range(&self, ask: ReadRange) -> Result<Replies<ReadRangeReply>, StoreError> {
        read(&self.cluster, place_of(&ask.partition_key), ask).await
    }

    async fn list_keys(&self, ask: ListKeys) -> Result<Replies<ListKeysReply>, StoreError> {
        read(&self.cluster, place_of(&ask.partition_key), ask).await
    }

    async fn read_counters(&self, partition_key: Vec<u8>) -> Result<Vec<IndexCounters>, StoreError> {
        let place = place_of(&partition_key);
        Ok(read(&self.cluster, place, ReadCounters { partition_key }).await?.all)
    }

    async fn put_block(&self, block: Hash, reference: RowBytes, envelope: Bytes) -> Result<(), StoreError> {
        let put = PutBlock { block, reference };
        let (place, accept) = (place_of_block(&block), |(): &()| Verdict::Accept);
        fanout::write_bounded(&self.cluster, place, put, envelope, accept, Some(&self.late))
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn refer_blocks(&self, place: Hash, references: Vec<RowBytes>) -> Result<Vec<Hash>, StoreError> {
        let refer = ReferBlocks { references };
        let accept = |_: &ReferBlocksReply| Verdict::Accept;
        let replies =
            fanout::write(&self.cluster, place, refer, Bytes::new(), accept).await.map_err(failed)?;
        let mut replies = replies.into_iter();
        let mut missing = replies.next().map(|reply| reply.missing).unwrap_or_default();
        for reply in replies {
            missing.retain(|hash| reply.missing.contains(hash));
        }
        Ok(missing)
    }

    async fn get_block(&self, block: Hash, max: usize) -> Result<Bytes, StoreError> {
        let check = |(): &(), envelope: Bytes| {
            block::open(&envelope, &block, max)
                .map_err(|e| RpcError::remote(RemoteCode::Corrupt, e.to_string()))
        };
        let place = place_of_block(&block);
        let most = max + block::OVERHEAD;
        let found =
            fanout::any(&self.cluster, place, GetBlock { block }, most, check).await.map_err(failed)?;
        self.report(block, found.bad);
        Ok(found.value)
    }
}
