//! Who is there, which layout is in force, and how the next one is agreed on.

use super::message;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    AcceptReply, Acks, ActiveLayout, Ballot, Partition, PrepareReply, StagedChanges,
};
use serde::{Deserialize, Serialize};

/// What is known of a storage node, passed on by gossip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    pub id: NodeId,
    /// `host:port`, the best first; names are resolved at each dial.
    pub addresses: Vec<String>,
    pub hostname: String,
    /// Version of the program.
    pub program: String,
    /// Rises at every start of the node and whenever it changes what it says of itself: the higher one holds.
    pub incarnation: u64,
}

/// One round of gossip: what the sender knows, for what the receiver knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Storage nodes known to the sender, itself among them if it is one.
    pub peers: Vec<PeerInfo>,
    pub epoch: u64,
    /// Blake3 of the staged changes: they are sent back only if they differ.
    #[serde(with = "serde_bytes")]
    pub staged_digest: Vec<u8>,
    /// How far the storage nodes are with the change of layout, as far as the sender knows.
    #[serde(default)]
    pub progress: Acks,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeReply {
    pub peers: Vec<PeerInfo>,
    /// If the replier's epoch is higher.
    pub layout: Option<ActiveLayout>,
    /// The replier's epoch.
    pub epoch: u64,
    /// If they differ.
    pub staged: Option<StagedChanges>,
    /// The replier's wall clock, in milliseconds since the epoch: the median of all is the cluster's time.
    #[serde(default)]
    pub wall_ms: u64,
    /// As in [`Exchange`].
    #[serde(default)]
    pub progress: Acks,
}

/// Merges staged changes into the receiver's, durably, and answers with the merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageChanges {
    pub staged: StagedChanges,
}

/// Phase one of agreeing on the layout of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareLayout {
    pub epoch: u64,
    pub ballot: Ballot,
}

/// Phase two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptLayout {
    pub ballot: Ballot,
    pub layout: ActiveLayout,
}

/// A layout that has been agreed on: adopt it, durably, unless a later one is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnLayout {
    pub layout: ActiveLayout,
}

/// Which partitions hold rows or blocks here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadInventory {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub partitions: Vec<Partition>,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadStatus {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub info: PeerInfo,
    pub epoch: u64,
    pub uptime_secs: u64,
    /// Bytes on the metadata file system: available, total.
    pub metadata: (u64, u64),
    pub disks: Vec<DiskStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    pub path: String,
    /// Bytes.
    pub available: u64,
    pub total: u64,
    /// `healthy`, or what is wrong.
    pub health: String,
    pub healthy: bool,
}

message!(Exchange => ExchangeReply, 40, Small, epoch: false);
message!(StageChanges => StagedChanges, 41, Small, epoch: false);
message!(PrepareLayout => PrepareReply, 42, Small, epoch: false);
message!(AcceptLayout => AcceptReply, 43, Small, epoch: false);
message!(LearnLayout => (), 44, Small, epoch: false);
message!(ReadInventory => Inventory, 45, Small, epoch: false);
message!(ReadStatus => NodeStatus, 46, Small, epoch: false);
