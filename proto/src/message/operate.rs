//! What an operator asks of one storage node, through a gateway: its workers, repairs, blocks in trouble, snapshots,
//! and whether everything it holds is as it should be.

use super::message;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::schema::BlockOwner;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All background workers of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWorkers {}

/// A background worker; times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    pub name: String,
    pub state: WorkerState,
    pub errors: u64,
    pub errors_in_a_row: u32,
    /// The last error, and how long ago.
    pub last_error: Option<(String, u64)>,
    /// Done and all of the present round.
    pub progress: Option<(u64, u64)>,
    /// What is left of the round at its rate so far.
    pub eta_secs: Option<u64>,
    /// Waiting to be done.
    pub queue: Option<u64>,
    /// Items and bytes since the node started.
    pub items: u64,
    pub bytes: u64,
    pub tranquility: u32,
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    Busy,
    Idle,
    Paused,
}

/// The worker variables of the node: tranquility of each, scrub dates, what else can be read or set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadVariables {}

/// By name, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variables {
    pub values: BTreeMap<String, String>,
}

/// Sets one variable; answers all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetVariable {
    pub name: String,
    pub value: String,
}

/// Starts a repair in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRepair {
    pub repair: Repair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Repair {
    /// Compare all rows with all replicas now.
    Tables,
    /// Compare references with the block index, both ways, and queue what differs.
    Blocks,
    /// Ask of every reference whether its version is there.
    Refs,
    /// Count fingerprints and counters anew.
    Counters,
    /// Move blocks to the disks that should have them.
    Rebalance,
    /// Compact every file of packed blocks with dead bytes, and the metadata engine.
    Compact,
    ScrubStart,
    ScrubPause,
    ScrubResume,
    ScrubCancel,
    /// Take the partitions that this node lost (its metadata was lost or put back) for complete as they are here. For when
    /// no other node can complete them: what only those others held is given up.
    TrustLost,
    /// Look for what no row and no block needs or is missing; see [`ReadFindings`].
    Verify,
}

/// Blocks that could not be fetched or released lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListBlockErrors {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockErrors {
    /// At most 10,000.
    pub errors: Vec<BlockErrorInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockErrorInfo {
    pub block: Hash,
    /// Live references.
    pub references: u64,
    /// Failures in a row.
    pub errors: u64,
    pub last_error: String,
    pub last_try_secs_ago: u64,
    pub next_try_in_secs: u64,
}

/// What the node knows of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadBlockInfo {
    pub block: Hash,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    pub block: Hash,
    /// Path of the disk and bytes there; none: no copy here.
    pub location: Option<(String, u32)>,
    /// Whether that disk can be read.
    pub readable: bool,
    pub references: Vec<ReferenceInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceInfo {
    pub version: VersionId,
    pub deleted: bool,
    pub owner: BlockOwner,
}

/// Tries blocks again now; all that failed, or these. Answers how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryBlocks {
    pub all: bool,
    pub blocks: Vec<Hash>,
}

/// Writes a consistent copy of the metadata beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeSnapshot {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// Directory on the node.
    pub path: String,
    pub bytes: u64,
    pub entries: u64,
}

/// What the last [`Repair::Verify`] of this node found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFindings {}

/// Counts by kind of finding. *Pending* is what a worker is known to have queued: it goes away by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Rises with each verification that was begun.
    pub round: u64,
    pub running: bool,
    /// Partitions looked through, and all.
    pub progress: (u64, u64),
    /// Rows, live references, blocks in the index, bytes of blocks looked at.
    pub rows: u64,
    pub references: u64,
    pub blocks: u64,
    pub block_bytes: u64,
    /// What is wrong, by kind.
    pub wrong: BTreeMap<String, u64>,
    /// What is on its way, by kind.
    pub pending: BTreeMap<String, u64>,
    /// The first few wrong things, for people.
    pub samples: Vec<String>,
}

message!(ListWorkers => Vec<WorkerInfo>, 80, Small, epoch: false);
message!(ReadVariables => Variables, 81, Small, epoch: false);
message!(SetVariable => Variables, 82, Small, epoch: false);
message!(LaunchRepair => (), 83, Small, epoch: false);
message!(ListBlockErrors => BlockErrors, 84, Small, epoch: false);
message!(ReadBlockInfo => BlockInfo, 85, Small, epoch: false);
message!(RetryBlocks => u64, 86, Small, epoch: false);
message!(TakeSnapshot => SnapshotTaken, 87, Small, epoch: false);
message!(ReadFindings => Findings, 88, Small, epoch: false);
