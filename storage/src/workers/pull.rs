//! Getting from one peer the rows of a partition that this node lacks; used by whoever keeps copies equal.
//!
//! Rows are only ever pulled, by the node that is to hold them, and merged at the epoch at which they were asked for: if
//! the layout moves on in between they are dropped. After a partition was pulled from a peer without an error, this node
//! holds (the merge of) every row that the peer held when it was first asked.
//!
//! Two pulls of one partition never run side by side: the second would fetch what the first is fetching.

use super::WorkerError;
use crate::commit::{CommitError, Job};
use crate::serve::Node;
use crate::tables::TablesError;
use crate::tables::compare::{self, Walk};
use hayloft_common::config::MESSAGE_LIFETIME;
use hayloft_common::id::NodeId;
use hayloft_common::layout::Partition;
use hayloft_common::schema::TableId;
use hayloft_proto::body::Body;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::message::Message;
use hayloft_proto::message::sync::{MAX_TOTALS, ReadLeaves, ReadTotals, RowSum};
use hayloft_proto::message::table::{RowBytes, WriteMode, WriteRows};
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::MutexGuard;

/// For one call: a page on a line of 1 Mbit/s.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Rows older than this are not merged any more: a tombstone above them may be on its way out.
const ROWS_LIFETIME: Duration = Duration::from_secs(45);
/// Rows and bytes merged in one job, so that the writes of clients get their turn in between.
const JOB_ROWS: usize = 256;
const JOB_BYTES: usize = 256 << 10;

const _: () = assert!(ROWS_LIFETIME.as_secs() < MESSAGE_LIFETIME.as_secs());

/// What workers that pull share.
#[derive(Default)]
pub struct SyncState {
    partitions: PartitionLocks,
    /// Somebody wants all rows compared now, however short ago that was done.
    compare_now: AtomicBool,
    /// Somebody wants fingerprints and counters counted anew.
    recount: AtomicBool,
}

impl SyncState {
    /// Asks for a comparison of everything with everybody.
    pub(super) fn ask_to_compare(&self) {
        self.compare_now.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for since the last time.
    pub(super) fn was_asked_to_compare(&self) -> bool {
        self.compare_now.swap(false, Ordering::Relaxed)
    }

    /// Asks for a recount of everything.
    pub(super) fn ask_to_recount(&self) {
        self.recount.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for since the last time.
    pub(super) fn was_asked_to_recount(&self) -> bool {
        self.recount.swap(false, Ordering::Relaxed)
    }

    /// Keeps everybody else from pulling, forgetting or recounting a partition.
    pub(super) async fn lock(&self, partition: Partition) -> MutexGuard<'_, ()> {
        self.partitions.of(partition).lock().await
    }
}

/// A lock for each of many groups of partitions.
struct PartitionLocks(Vec<tokio::sync::Mutex<()>>);

impl Default for PartitionLocks {
    fn default() -> Self {
        Self((0..256).map(|_| tokio::sync::Mutex::new(())).collect())
    }
}

impl PartitionLocks {
    fn of(&self, partition: Partition) -> &tokio::sync::Mutex<()> {
        &self.0[usize::from(partition.0) % self.0.len()]
    }
}

/// Whom to pull from, and the epoch at which that was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub peer: NodeId,
    pub epoch: u64,
}

/// What came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    pub rows: u64,
    pub bytes: u64,
}

impl std::ops::AddAssign for Pulled {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}

/// How a peer's partitions compare with this node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Where the peer holds other rows than this node; it may hold fewer.
    pub differing: BTreeMap<Partition, Vec<TableId>>,
    /// Partitions that the peer has no complete copy of.
    pub refused: BTreeSet<Partition>,
}

/// Compares partitions with a peer's, some dozens in one call.
pub async fn compare(
    node: &Arc<Node>,
    source: Source,
    partitions: &[Partition],
) -> Result<Compared, WorkerError> {
    let mut compared = Compared::default();
    for chunk in partitions.chunks(MAX_TOTALS) {
        let theirs = ask(node, source, &ReadTotals { partitions: chunk.to_vec() }).await?;
        compared.refused.extend(theirs.refused);
        let asked = chunk.to_vec();
        let ours: BTreeMap<(TableId, Partition), RowSum> = reading(node, move |node| {
            let view = node.engine.snapshot();
            let mut ours = BTreeMap::new();
            for partition in asked {
                for (table, sum) in compare::totals(&*view, partition)? {
                    ours.insert((table, partition), sum);
                }
            }
            Ok(ours)
        })
        .await?;
        for (table, partition, sum) in theirs.totals {
            if chunk.contains(&partition) && ours.get(&(table, partition)) != Some(&sum) {
                compared.differing.entry(partition).or_default().push(table);
            }
        }
    }
    Ok(compared)
}

/// Pulls what this node lacks of a partition.
pub async fn pull_partition(
    node: &Arc<Node>,
    source: Source,
    partition: Partition,
) -> Result<Pulled, WorkerError> {
    let compared = compare(node, source, &[partition]).await?;
    if compared.refused.contains(&partition) {
        return Err(refused(partition).into());
    }
    let tables = compared.differing.get(&partition).map(Vec::as_slice).unwrap_or_default();
    pull_tables(node, source, partition, tables).await
}

/// Pulls what this node lacks of some tables of a partition.
pub async fn pull_tables(
    node: &Arc<Node>,
    source: Source,
    partition: Partition,
    tables: &[TableId],
) -> Result<Pulled, WorkerError> {
    let _alone = node.sync.lock(partition).await;
    let mut pulled = Pulled::default();
    for table in tables {
        pulled += pull_table(node, source, *table, partition).await?;
    }
    Ok(pulled)
}

async fn pull_table(
    node: &Arc<Node>,
    source: Source,
    table: TableId,
    partition: Partition,
) -> Result<Pulled, WorkerError> {
    let theirs = ask(node, source, &ReadLeaves { table, partition }).await?.leaves;
    let leaves = reading(node, move |node| {
        let ours = compare::leaves(&*node.engine.snapshot(), table, partition)?;
        Ok(compare::wanted(&ours, &theirs))
    })
    .await?;
    let mut pulled = Pulled::default();
    if leaves.is_empty() {
        return Ok(pulled);
    }
    let mut walk = Walk::new(table, partition, leaves);
    loop {
        let (request, walked) = reading(node, move |node| {
            let request = walk.ask(&*node.engine.snapshot())?;
            Ok((request, walk))
        })
        .await?;
        walk = walked;
        let asked = node.env.now();
        let reply = ask(node, source, &request).await?;
        pulled += merge(node, source.epoch, table, reply.rows, asked).await?;
        match walk.answered(reply.next) {
            Some(true) => {}
            Some(false) => return Ok(pulled),
            None => {
                let text = format!("{} answers rows in circles", source.peer.short());
                return Err(WorkerError::Other(text));
            }
        }
    }
}

/// Merges rows that were asked for at `asked`.
async fn merge(
    node: &Arc<Node>,
    epoch: u64,
    table: TableId,
    rows: Vec<ByteBuf>,
    asked: Duration,
) -> Result<Pulled, WorkerError> {
    let mut pulled = Pulled::default();
    let plane = node.plane()?;
    let mut missing = false;
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let (mut job, mut bytes) = (Vec::new(), 0);
        while job.len() < JOB_ROWS && bytes < JOB_BYTES {
            let Some(row) = rows.next() else { break };
            bytes += row.len();
            job.push(RowBytes { table, bytes: row.into_vec() });
        }
        node.metadata_space.check()?;
        if node.env.now().saturating_sub(asked) > ROWS_LIFETIME {
            return Err(RpcError::Timeout.into());
        }
        let count = job.len() as u64;
        let job = Job::rows(WriteRows { mode: WriteMode::Merge, rows: job }).at_epoch(epoch);
        let done = plane.commit.submit(job).await?;
        missing |= !done.missing.is_empty();
        pulled += Pulled { rows: count, bytes: bytes as u64 };
    }
    if missing {
        node.workers.wake("block resync");
    }
    Ok(pulled)
}

/// Asks a peer, at the epoch of the decision to ask it.
pub(super) async fn ask<M: Message>(
    node: &Arc<Node>,
    source: Source,
    request: &M,
) -> Result<M::Reply, WorkerError> {
    let call = node.cluster.call_at(source.epoch, source.peer, request, Body::empty(), CALL_DEADLINE);
    match call.await {
        Ok((reply, _)) => Ok(reply),
        Err(error) => {
            if let RpcError::StaleEpoch { layout } = &error {
                node.cluster.learn_encoded(layout).await;
            }
            Err(error.into())
        }
    }
}

/// The error for a partition that a peer has no complete copy of.
pub(super) fn refused(partition: Partition) -> RpcError {
    let text = format!("the peer has no complete copy of partition {}", partition.0);
    RpcError::remote(RemoteCode::NotReady, text)
}

/// Whether an error only says that the layout moves, or that a peer is not there: it passes by itself.
pub(super) fn is_passing(error: &WorkerError) -> bool {
    match error {
        WorkerError::Commit(CommitError::StaleEpoch | CommitError::Stopped) => true,
        WorkerError::Rpc(error) => matches!(
            error,
            RpcError::StaleEpoch { .. }
                | RpcError::Unreachable { .. }
                | RpcError::Timeout
                | RpcError::Overloaded { .. }
                | RpcError::Remote { code: RemoteCode::NotReady | RemoteCode::ShuttingDown, .. }
        ),
        _ => false,
    }
}

/// Reads the engine where it may block.
pub(super) async fn reading<T: Send + 'static>(
    node: &Arc<Node>,
    work: impl FnOnce(&Node) -> Result<T, TablesError> + Send + 'static,
) -> Result<T, WorkerError> {
    let this = node.clone();
    let done = node.env.run_blocking(move || work(&this)).await;
    let stopped = |_| RpcError::remote(RemoteCode::ShuttingDown, "the node is stopping");
    Ok(done.map_err(stopped)??)
}
