//! Blocks. The bytes travel as the call's body: the block's envelope (`common::block`), as stored.

use super::message;
use super::table::RowBytes;
use hayloft_common::hash::Hash;
use serde::{Deserialize, Serialize};

/// Stores the block in the body together with a reference to it; durable when answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBlock {
    pub block: Hash,
    /// A block reference row for this block.
    pub reference: RowBytes,
}

/// Adds references to blocks that the node should hold already (copies, deduplication).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferBlocks {
    /// Block reference rows; at most 1,024.
    pub references: Vec<RowBytes>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferBlocksReply {
    /// Blocks the node doesn't hold: their references are written all the same, and the node owes a fetch.
    pub missing: Vec<Hash>,
}

/// Fetches a block: the reply's body is its envelope. `NotFound` or `Corrupt` if the node has no good copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBlock {
    pub block: Hash,
}

/// Tells a node that its copy was missing or did not match its hash, so that it checks and repairs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportBlock {
    pub block: Hash,
}

message!(PutBlock => (), 20, Bulk, epoch: true);
message!(ReferBlocks => ReferBlocksReply, 21, Small, epoch: true);
message!(GetBlock => (), 22, Bulk, epoch: true);
message!(ReportBlock => (), 23, Small, epoch: true);
