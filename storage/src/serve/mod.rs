//! What a storage node answers: one match from message number to function.
//!
//! Every data request is checked against the layout before anything is read or written (design §3): an epoch
//! older than this node's is refused with the layout attached, so that a stale gateway corrects itself; a newer
//! one is refused as not ready, and the newer layout is fetched; a partition that is not ours is refused.

pub mod block;
mod collect;
mod membership;
mod operate;
mod sync;
mod table;

use crate::blocks::BlockStore;
use crate::commit::{CommitError, CommitQueue, Job, Outcome};
use crate::layout_store::LayoutStore;
use crate::meta::{Engine, MetaError};
use crate::snapshot::Snapshots;
use crate::space::MetadataSpace;
use crate::tables::{Tables, TablesError};
use crate::workers::block_work::BlockWork;
use crate::workers::clock_watch::ClockWatch;
use crate::workers::compact_metadata;
use crate::workers::pull::SyncState;
use crate::workers::verify::Verification;
use crate::workers::{Settings, Workers};
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{Partition, PartitionState};
use hayloft_proto::body::Body;
use hayloft_proto::cluster::Cluster;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::membership::Membership;
use hayloft_proto::message::block::{GetBlock, PutBlock, ReferBlocks, ReportBlock};
use hayloft_proto::message::membership::{
    AcceptLayout, Exchange, LearnLayout, PrepareLayout, ReadInventory, ReadStatus, StageChanges,
};
use hayloft_proto::message::operate::{
    LaunchRepair, ListBlockErrors, ListWorkers, ReadBlockInfo, ReadFindings, ReadVariables, RetryBlocks,
    SetVariable, TakeSnapshot,
};
use hayloft_proto::message::sync::{AreQueued, HaveBlocks, ReadLeaves, ReadTotals, SyncRows};
use hayloft_proto::message::sync::{CollectTombstones, HoldTombstones, ReadHeads, ReadRenewals, WorkDone};
use hayloft_proto::message::table::{ListKeys, ReadCounters, ReadRange, ReadRow, WriteRows};
use hayloft_proto::message::{self, Head, Message};
use hayloft_proto::server::{Handler, Incoming};
use hayloft_proto::trace;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::Instrument as _;

/// What exists once the number of partitions is known, that is with the first layout.
pub struct DataPlane {
    pub tables: Tables,
    pub commit: CommitQueue,
}

/// A storage node: all that its handlers need.
pub struct Node {
    pub env: Env,
    pub id: NodeId,
    pub engine: Arc<dyn Engine>,
    pub blocks: BlockStore,
    pub cluster: Arc<Cluster>,
    pub membership: Arc<Membership>,
    pub layout_store: Arc<LayoutStore>,
    pub metadata_space: MetadataSpace,
    pub started: Duration,
    pub commit_config: crate::commit::Config,
    pub plane: OnceLock<DataPlane>,
    pub workers: Workers,
    pub clock_watch: ClockWatch,
    pub settings: Settings,
    pub verification: Verification,
    pub compaction_asked: compact_metadata::Asked,
    pub sync: SyncState,
    /// Where copies of the metadata go; none for a node without files.
    pub snapshots: Option<Arc<Snapshots>>,
    /// Keep the bytes of a block from being deleted between their being put and their index entry being committed.
    pub block_locks: BlockLocks,
    /// What the workers that look after blocks share.
    pub block_work: BlockWork,
    pub sabotage: Sabotage,
}

/// Ways to break a node on purpose, so that the simulator can show that it would find them. All off in a daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// Take requests of any layout epoch.
    pub skip_epoch_check: bool,
    /// Release blocks at once and without asking whether they are referred to.
    pub release_early: bool,
}

/// A lock for each of many groups of blocks: shared by those who put, exclusive for who deletes.
pub struct BlockLocks(Vec<tokio::sync::RwLock<()>>);

impl Default for BlockLocks {
    fn default() -> Self {
        Self((0..1024).map(|_| tokio::sync::RwLock::new(())).collect())
    }
}

impl BlockLocks {
    /// The lock of a block's group.
    pub fn of(&self, block: &Hash) -> &tokio::sync::RwLock<()> {
        let tail = u16::from_le_bytes([block.0[30], block.0[31]]);
        &self.0[usize::from(tail) % self.0.len()]
    }

    /// All of them, one after the other.
    pub fn all(&self) -> impl Iterator<Item = &tokio::sync::RwLock<()>> {
        self.0.iter()
    }
}

/// A request and the layout epoch at which it was admitted.
struct At<M> {
    epoch: u64,
    message: M,
}

/// A handler's answer: the encoded reply and its body.
type Answer = Result<(Bytes, Body), RpcError>;

impl Node {
    /// The tables, once there is a layout.
    pub fn plane(&self) -> Result<&DataPlane, RpcError> {
        let layout = self.cluster.layout();
        if layout.is_empty() {
            return Err(RpcError::remote(RemoteCode::NotReady, "this node knows of no layout yet"));
        }
        Ok(self.plane.get_or_init(|| {
            let tables = Tables::new(layout.current.bits);
            let cluster = self.cluster.clone();
            let epoch = Arc::new(move || cluster.layout().epoch);
            let (engine, config) = (self.engine.clone(), self.commit_config.clone());
            let commit = CommitQueue::start(&self.env, engine, tables, config, epoch);
            DataPlane { tables, commit }
        }))
    }

    /// Refuses a data request that was made under another epoch.
    fn check_epoch(&self, epoch: u64) -> Result<(), RpcError> {
        let layout = self.cluster.layout();
        if self.sabotage.skip_epoch_check {
            return Ok(());
        }
        if epoch < layout.epoch {
            return Err(RpcError::StaleEpoch { layout: codec::encode(&*layout).into() });
        }
        if epoch > layout.epoch {
            self.membership.hurry();
            let text = format!("this node is at layout epoch {}, the request at {epoch}", layout.epoch);
            return Err(RpcError::remote(RemoteCode::NotReady, text));
        }
        Ok(())
    }

    /// Refuses what is placed on other nodes, and what this node does not serve now: leftovers, and partitions of
    /// which it may lack what it acknowledged.
    fn check_place(&self, place: &Hash) -> Result<(), RpcError> {
        let layout = self.cluster.layout();
        let partition = layout.partition_of(place);
        let text = if !layout.holds(self.id, partition) {
            "this node does not hold that partition"
        } else if self.layout_store.state(partition) != PartitionState::Member {
            "this node is fetching that partition again"
        } else if self.membership.outlived().is_some() {
            "this node's metadata is older than what others know of it"
        } else {
            return Ok(());
        };
        Err(RpcError::remote(RemoteCode::NotReady, text))
    }

    /// Whether this node has a complete copy of the partition, as far as its own writes go: what `check_place`
    /// serves.
    pub fn is_member(&self, partition: Partition) -> bool {
        self.cluster.layout().holds(self.id, partition)
            && self.layout_store.state(partition) == PartitionState::Member
            && self.membership.outlived().is_none()
    }

    async fn dispatch(self: Arc<Self>, call: Incoming) -> Answer {
        match call.method {
            WriteRows::METHOD => self.write_rows(self.read_at(&call)?).await,
            ReadRow::METHOD => self.read_row(self.read(&call)?).await,
            ReadRange::METHOD => self.read_range(self.read(&call)?).await,
            ListKeys::METHOD => self.list_keys(self.read(&call)?).await,
            ReadCounters::METHOD => self.read_counters(self.read(&call)?).await,
            PutBlock::METHOD => self.put_block(self.read_at(&call)?, call.body).await,
            ReferBlocks::METHOD => self.refer_blocks(self.read_at(&call)?).await,
            GetBlock::METHOD => self.get_block(self.read(&call)?).await,
            ReportBlock::METHOD => self.report_block(self.read(&call)?).await,
            HaveBlocks::METHOD => self.have_blocks(self.read(&call)?).await,
            ReadTotals::METHOD => self.read_totals(self.read(&call)?).await,
            ReadLeaves::METHOD => self.read_leaves(self.read(&call)?).await,
            SyncRows::METHOD => self.sync_rows(self.read(&call)?).await,
            HoldTombstones::METHOD => self.hold_tombstones(self.read_at(&call)?).await,
            CollectTombstones::METHOD => self.collect_tombstones(self.read_at(&call)?).await,
            WorkDone::METHOD => self.work_done(self.read(&call)?).await,
            ReadHeads::METHOD => self.read_heads(self.read(&call)?).await,
            ReadRenewals::METHOD => self.read_renewals(self.read(&call)?).await,
            AreQueued::METHOD => reply(&self.are_queued(&self.read(&call)?).await?),
            ListWorkers::METHOD => self.list_workers(self.read(&call)?),
            ReadVariables::METHOD => self.variables(self.read(&call)?).await,
            SetVariable::METHOD => self.set_variable(self.read(&call)?).await,
            LaunchRepair::METHOD => self.launch_repair(self.read(&call)?).await,
            ListBlockErrors::METHOD => self.list_block_errors(self.read(&call)?).await,
            ReadBlockInfo::METHOD => self.block_info(self.read(&call)?).await,
            RetryBlocks::METHOD => self.retry_blocks(self.read(&call)?).await,
            TakeSnapshot::METHOD => self.take_snapshot(self.read(&call)?).await,
            ReadFindings::METHOD => self.findings(self.read(&call)?),
            Exchange::METHOD => self.exchange(self.read(&call)?),
            StageChanges::METHOD => self.stage_changes(self.read(&call)?).await,
            PrepareLayout::METHOD => self.prepare_layout(self.read(&call)?).await,
            AcceptLayout::METHOD => self.accept_layout(self.read(&call)?).await,
            LearnLayout::METHOD => self.learn_layout(self.read(&call)?).await,
            ReadInventory::METHOD => self.inventory(self.read(&call)?).await,
            ReadStatus::METHOD => self.status(self.read(&call)?).await,
            other => Err(RpcError::remote(RemoteCode::Unsupported, format!("no message has number {other}"))),
        }
    }

    /// Reads a request and checks its epoch, if its kind asks for that.
    fn read<M: Message>(&self, call: &Incoming) -> Result<M, RpcError> {
        self.read_at(call).map(|At { message, .. }| message)
    }

    /// As [`Node::read`], with the epoch at which it was admitted: what it writes must be written at that epoch.
    fn read_at<M: Message>(&self, call: &Incoming) -> Result<At<M>, RpcError> {
        let Head { epoch, message } = message::decode_request::<M>(&call.head)?;
        if M::CHECKS_EPOCH {
            self.check_epoch(epoch)?;
        }
        Ok(At { epoch, message })
    }

    /// Writes a job that was admitted at `epoch`, and durably.
    async fn submit_at(&self, epoch: u64, job: Job) -> Result<Outcome, RpcError> {
        let job = if self.sabotage.skip_epoch_check { job } else { job.at_epoch(epoch) };
        match self.plane()?.commit.submit(job).await {
            Err(CommitError::StaleEpoch) => {
                Err(RpcError::StaleEpoch { layout: codec::encode(&*self.cluster.layout()).into() })
            }
            done => done.map_err(|e| commit_error(&e)),
        }
    }

    /// Reads the engine where it may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, RpcError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let this = self.clone();
        let done = self.env.run_blocking(move || work(&this)).await;
        done.map_err(|_| RpcError::remote(RemoteCode::ShuttingDown, "the node is stopping"))?
    }
}

/// Answers with an encoded reply and no body.
#[expect(clippy::unnecessary_wraps, reason = "the last expression of every handler")]
fn reply<T: serde::Serialize>(value: &T) -> Answer {
    Ok((message::encode(value), Body::empty()))
}

/// The node behind the transport.
pub struct NodeHandler(pub Arc<Node>);

#[async_trait]
impl Handler for NodeHandler {
    async fn handle(&self, call: Incoming) -> Answer {
        let span = tracing::debug_span!("serve", message = name_of(call.method), peer = %call.peer.short());
        if let Some(context) = &call.trace {
            trace::follow(&span, context);
        }
        self.0.clone().dispatch(call).instrument(span).await
    }
}

/// A message's name, for spans.
fn name_of(method: u16) -> &'static str {
    macro_rules! names {
        ($($message:ty),*) => { match method { $(<$message>::METHOD => <$message>::NAME,)* _ => "unknown" } };
    }
    names!(
        WriteRows,
        ReadRow,
        ReadRange,
        ListKeys,
        ReadCounters,
        PutBlock,
        ReferBlocks,
        GetBlock,
        ReportBlock,
        HaveBlocks,
        ReadTotals,
        ReadLeaves,
        SyncRows,
        HoldTombstones,
        CollectTombstones,
        WorkDone,
        ReadHeads,
        ReadRenewals,
        AreQueued,
        ListWorkers,
        ReadVariables,
        SetVariable,
        LaunchRepair,
        ListBlockErrors,
        ReadBlockInfo,
        RetryBlocks,
        TakeSnapshot,
        ReadFindings,
        Exchange,
        StageChanges,
        PrepareLayout,
        AcceptLayout,
        LearnLayout,
        ReadInventory,
        ReadStatus
    )
}

/// How the metadata engine's failures look to a peer.
pub fn meta_error(error: &MetaError) -> RpcError {
    RpcError::remote(RemoteCode::Io, error.to_string())
}

/// How failed reads of rows look to a peer.
pub fn tables_error(error: &TablesError) -> RpcError {
    match error {
        TablesError::Row(_) | TablesError::TooLarge { .. } => RpcError::bad_request(error.to_string()),
        TablesError::Damaged { .. } | TablesError::DamagedEntry { .. } => {
            RpcError::remote(RemoteCode::Corrupt, error.to_string())
        }
        TablesError::Meta(error) => meta_error(error),
    }
}

/// How failed writes look to a peer.
pub fn commit_error(error: &CommitError) -> RpcError {
    match error {
        CommitError::Tables(error) => tables_error(error),
        CommitError::Engine(error) => meta_error(error),
        CommitError::Derived(_) => RpcError::internal(error.to_string()),
        CommitError::StaleEpoch => RpcError::remote(RemoteCode::NotReady, error.to_string()),
        CommitError::Stopped => RpcError::remote(RemoteCode::ShuttingDown, error.to_string()),
    }
}
