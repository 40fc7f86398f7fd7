//! JSON of the layout's endpoints: look, stage, preview, apply, follow, unblock.
//!
//! While a layout is being moved to, others may queue behind it. GetClusterLayout shows the newest of all, since the
//! next one is computed from it; GetClusterLayoutHistory shows which of them is acted upon.

use super::NodeRole;
use hayloft_common::id::NodeId;
pub use hayloft_common::layout::{
    NodeStatistics, Phase as LayoutPhase, Statistics as LayoutStatistics, ZoneRedundancy, ZoneStatistics,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Answer of GetClusterLayout, UpdateClusterLayout and RevertClusterLayout: the newest version, queued or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLayout {
    /// 0 before the first was applied.
    pub version: u64,
    pub roles: Vec<LayoutNode>,
    pub parameters: LayoutParameters,
    /// Bytes of data that a partition can hold.
    pub partition_size: u64,
    pub staged_role_changes: Vec<RoleChange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged_parameters: Option<LayoutParameters>,
}

/// A node of a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutNode {
    pub id: NodeId,
    pub zone: String,
    pub tags: Vec<String>,
    /// `null` for a gateway.
    #[serde(default)]
    pub capacity: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_partitions: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_capacity: Option<u64>,
}

/// Parameters of a layout. In UpdateClusterLayout, what is left out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LayoutParameters {
    /// `"maximum"` or `{"atLeast": n}`; always there in answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_redundancy: Option<ZoneRedundancy>,
    /// *Ours*: copies of each partition; always there in answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<usize>,
    /// *Ours*: the number of partitions as a power of two; can be chosen before the first layout only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_bits: Option<u8>,
}

/// A staged change of one node: `{id, zone, capacity, tags}` or `{id, remove: true}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRoleChange", into = "RawRoleChange")]
pub enum RoleChange {
    Assign { id: NodeId, role: NodeRole },
    Remove { id: NodeId },
}

#[derive(Serialize, Deserialize)]
struct RawRoleChange {
    id: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remove: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capacity: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<String>>,
}

impl TryFrom<RawRoleChange> for RoleChange {
    type Error = String;

    fn try_from(raw: RawRoleChange) -> Result<Self, String> {
        let id = raw.id;
        match (raw.remove.unwrap_or(false), raw.zone) {
            (true, None) => Ok(Self::Remove { id }),
            (true, Some(_)) => Err(format!("node {id}: `remove` and `zone` exclude each other")),
            (false, Some(zone)) => {
                let role = NodeRole { zone, capacity: raw.capacity, tags: raw.tags.unwrap_or_default() };
                Ok(Self::Assign { id, role })
            }
            (false, None) => Err(format!("node {id}: give `zone`, `capacity` and `tags`, or `remove: true`")),
        }
    }
}

impl From<RoleChange> for RawRoleChange {
    fn from(change: RoleChange) -> Self {
        match change {
            RoleChange::Assign { id, role } => Self {
                id,
                remove: None,
                zone: Some(role.zone),
                capacity: role.capacity,
                tags: Some(role.tags),
            },
            RoleChange::Remove { id } => {
                Self { id, remove: Some(true), zone: None, capacity: None, tags: None }
            }
        }
    }
}

impl RoleChange {
    /// The node it is about.
    pub fn id(&self) -> NodeId {
        match self {
            Self::Assign { id, .. } | Self::Remove { id } => *id,
        }
    }
}

/// Request of UpdateClusterLayout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateClusterLayout {
    pub roles: Vec<RoleChange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<LayoutParameters>,
}

/// Answer of PreviewClusterLayoutChanges: what applying would do, or why it cannot be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LayoutPreview {
    Impossible {
        error: String,
    },
    #[serde(rename_all = "camelCase")]
    Possible {
        /// The computation explained, line by line.
        message: Vec<String>,
        new_layout: Box<ClusterLayout>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        statistics: Option<Box<LayoutStatistics>>,
    },
}

/// Request of ApplyClusterLayout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyClusterLayout {
    /// The newest version plus one: proof that the caller saw what is replaced. Otherwise 409.
    pub version: u64,
}

/// Answer of ApplyClusterLayout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppliedLayout {
    pub message: Vec<String>,
    pub layout: ClusterLayout,
    /// *Ours*: what became of it.
    #[serde(default)]
    pub state: AppliedState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<LayoutStatistics>,
}

/// Where a layout stands right after it was applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AppliedState {
    /// In force: there was nothing to move.
    #[default]
    InForce,
    /// Data is moving to it.
    Moving,
    /// It follows when the changes before it are over.
    Queued,
}

/// Answer of GetClusterLayoutHistory: which versions are alive, and what the change from one to the next waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLayoutHistory {
    /// The version in force, or the one that is being moved to; 0 before the first.
    pub current_version: u64,
    /// The lowest version that some node may still act upon.
    pub min_ack: u64,
    /// The versions that are acted upon, the current one first.
    pub versions: Vec<LayoutVersion>,
    /// How far each storage node is; absent when nothing is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_trackers: Option<BTreeMap<NodeId, LayoutTracker>>,
    /// *Ours*: rises with every change of version or phase.
    #[serde(default)]
    pub epoch: u64,
    /// *Ours*.
    #[serde(default = "stable")]
    pub phase: LayoutPhase,
    /// *Ours*: versions that were applied and follow when the change under way is over, the next one first.
    #[serde(default)]
    pub queued: Vec<LayoutVersion>,
    /// *Ours*: the storage nodes of a change under way and what they have left to do; empty when nothing is.
    #[serde(default)]
    pub nodes: Vec<LayoutNodeProgress>,
}

fn stable() -> LayoutPhase {
    LayoutPhase::Stable
}

/// One version of the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutVersion {
    pub version: u64,
    pub status: LayoutVersionStatus,
    /// How many nodes have a role in it.
    pub storage_nodes: usize,
    /// Always 0: gateways have no role in a layout.
    pub gateway_nodes: usize,
    /// *Ours*.
    #[serde(default)]
    pub nodes: Vec<NodeId>,
    /// *Ours*: copies of each partition.
    #[serde(default)]
    pub replication_factor: usize,
}

/// What is done with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayoutVersionStatus {
    /// It is in force or being moved to.
    Current,
    /// It is being left.
    Draining,
    /// It is over. Not shown by this release: nothing of it is kept.
    Historical,
    /// *Ours*, in `queued` only: it was applied and waits for its turn.
    Queued,
}

/// The versions that a storage node has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutTracker {
    /// It knows of this version.
    pub ack: u64,
    /// It holds all that this version gives it.
    pub sync: u64,
    /// It knows that every node holds all of this version.
    pub sync_ack: u64,
}

/// A storage node during a change of the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutNodeProgress {
    pub id: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whether the gateway that answers is connected to it.
    pub is_up: bool,
    /// Since something new was heard of it, from itself or through others; absent if nothing ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_secs_ago: Option<u64>,
    /// Whether the present phase waits for it.
    pub waited_for: bool,
    /// Whether an operator said not to wait for it.
    pub skipped: bool,
    /// Its epoch when last heard of; absent if nothing ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Whether it holds all that the current version gives it.
    pub synced: bool,
    /// Partitions whose nodes the change alters and that the current version gives it: of each it has to make sure
    /// that it lacks nothing.
    pub partitions_to_sync: usize,
    /// Partitions of which it still lacks something; absent while it has not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions_left: Option<u64>,
    /// Blocks that it still lacks, as far as it knows yet; absent while it has not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_left: Option<u64>,
}

/// Request of ClusterLayoutSkipDeadNodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkipDeadNodes {
    /// The version that is being moved to: proof that the caller saw which change is meant. Otherwise 409.
    pub version: u64,
    /// Go on even if acknowledged writes may be lost by it.
    #[serde(default)]
    pub allow_missing_data: bool,
}

/// Answer of ClusterLayoutSkipDeadNodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkippedDeadNodes {
    /// Nodes that are no longer waited for though they may not know of the version.
    pub ack_updated: Vec<NodeId>,
    /// Nodes that are no longer waited for though they may lack data of the version.
    pub sync_updated: Vec<NodeId>,
    /// *Ours*: partitions of which acknowledged writes may be lost or missed by it.
    #[serde(default)]
    pub partitions_at_risk: usize,
    /// *Ours*: what was done and what is risked, line by line.
    #[serde(default)]
    pub message: Vec<String>,
}
