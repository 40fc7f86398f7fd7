//! Nodes from inside: workers, repairs, blocks in trouble, snapshots, verification. All take `?node=` (an id, or `*`).

use crate::message::operate::Findings;
use hayloft_common::hash::Hash;
use hayloft_common::id::{NodeId, VersionId};
use hayloft_common::schema::BlockOwner;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One answer a node; what could not be had stands under `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerNode<T> {
    pub success: BTreeMap<NodeId, T>,
    pub error: BTreeMap<NodeId, String>,
}

/// Request of LaunchRepairOperation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchRepairOperation {
    pub repair_type: RepairType,
}

/// What to repair. `versions`, `multipartUploads` and `blockRc` are other names of what is done by `blockRefs` and
/// `blocks` here; `counters`, `compact`, `trustLost` and `verify` are *ours*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RepairType {
    Tables,
    Blocks,
    Versions,
    MultipartUploads,
    BlockRefs,
    BlockRc,
    Rebalance,
    Counters,
    Compact,
    TrustLost,
    Verify,
    Scrub(ScrubCommand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScrubCommand {
    Start,
    Pause,
    Resume,
    Cancel,
}

/// Request of ListWorkers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListWorkersRequest {
    pub busy_only: bool,
    pub error_only: bool,
}

/// Request of GetWorkerInfo: the number that ListWorkers gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetWorkerInfo {
    pub id: u64,
}

/// A worker. `id` is its place among the node's workers in order of name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    pub id: u64,
    pub name: String,
    pub state: WorkerState,
    pub errors: u64,
    pub consecutive_errors: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<WorkerLastError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tranquility: Option<u32>,
    pub freeform: Vec<String>,
    /// *Ours*: done since the node started.
    #[serde(default)]
    pub items: u64,
    #[serde(default)]
    pub bytes: u64,
    /// *Ours*: until the present round is done, at its rate so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_secs: Option<u64>,
}

/// `paused` is *ours*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkerState {
    Busy,
    Idle,
    Paused,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerLastError {
    pub message: String,
    pub secs_ago: u64,
}

/// Request of GetWorkerVariable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GetWorkerVariable {
    /// None: all.
    pub variable: Option<String>,
}

/// Request of SetWorkerVariable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetWorkerVariable {
    pub variable: String,
    pub value: String,
}

/// One of ListBlockErrors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockError {
    pub block_hash: Hash,
    pub refcount: u64,
    pub error_count: u64,
    pub last_try_secs_ago: u64,
    pub next_try_in_secs: u64,
    /// *Ours*.
    #[serde(default)]
    pub last_error: String,
}

/// Request of GetBlockInfo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetBlockInfo {
    pub block_hash: Hash,
}

/// Answer of GetBlockInfo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockDetails {
    pub block_hash: Hash,
    /// Live references.
    pub refcount: u64,
    pub versions: Vec<BlockVersion>,
    /// *Ours*: the disk with this node's copy, the bytes there, and whether that disk can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    #[serde(default)]
    pub stored_bytes: u64,
    #[serde(default)]
    pub readable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockVersion {
    pub version_id: VersionId,
    pub ref_deleted: bool,
    /// *Ours*: the row that decides whether the version lives.
    pub owner: BlockOwner,
}

/// Request of RetryBlockResync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBlockResync {
    pub all: bool,
    pub block_hashes: Vec<Hash>,
}

/// Answer of RetryBlockResync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    pub count: u64,
}

/// Answer of PurgeBlocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgedBlocks {
    pub blocks_purged: u64,
    pub block_refs_purged: u64,
    pub objects_deleted: u64,
    pub uploads_deleted: u64,
    pub versions_deleted: u64,
}

/// Answer of CreateMetadataSnapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub path: String,
    pub bytes: u64,
    pub entries: u64,
}

/// Answer of GetVerification (*ours*), for each node.
pub type Verification = Findings;
