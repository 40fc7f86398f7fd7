//! What the storage nodes of a cluster hold, taken from their engines and disks, for the checks of a cluster at rest:
//! [`super::replicas`], [`super::copies`], [`super::leaks`]. Data only; nodes that are gone for good are not in it.

use hayloft_common::hash::Hash;
use hayloft_common::id::{NodeId, VersionId};
use hayloft_common::layout::{ActiveLayout, Partition};
use hayloft_common::schema::TableId;
use std::collections::{BTreeMap, BTreeSet};

/// A row by table and stored key: its partition's number comes first.
pub type RowName = (TableId, Vec<u8>);

/// What is compared of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowState {
    pub hash: u128,
    /// False for a tombstone.
    pub live: bool,
    /// A tombstone that has to stay: its stamp lies in the future of some node's clock.
    pub stays: bool,
}

/// Everything one node holds.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    pub name: String,
    pub id: NodeId,
    pub rows: BTreeMap<RowName, RowState>,
    /// Live references to blocks.
    pub references: BTreeSet<(Hash, VersionId)>,
    /// Versions that are wanted: of live objects, and of the parts of open uploads; with their blocks if the row itself
    /// lists them.
    pub wanted: BTreeMap<VersionId, BTreeSet<Hash>>,
    /// The versions of live manifest rows, with the blocks they list.
    pub manifests: BTreeMap<VersionId, BTreeSet<Hash>>,
    /// Blocks in the index; what is wrong with the copy, if anything.
    pub copies: BTreeMap<Hash, Option<String>>,
    /// Whole blocks on the disks that the index does not know, in files of their own, if they should be gone by now.
    pub strays: Vec<Hash>,
    /// Blocks that are queued to be looked at.
    pub unchecked: BTreeSet<Hash>,
    /// Other work in the queue by kind.
    pub queued: BTreeMap<String, usize>,
    /// Derived entries (fingerprints, counters) that differ from a recount.
    pub miscounts: Vec<String>,
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub layout: ActiveLayout,
    pub nodes: Vec<NodeView>,
}

impl ClusterView {
    /// The nodes that are to hold a partition, as far as they are there.
    pub(super) fn holders(&self, partition: Partition) -> Vec<&NodeView> {
        let set = self.layout.current.nodes_of(partition).unwrap_or_default();
        self.nodes.iter().filter(|node| set.contains(&node.id)).collect()
    }

    /// The nodes that are to hold a block.
    pub(super) fn holders_of(&self, block: &Hash) -> Vec<&NodeView> {
        // Blocks lie where the rows of their references do: by the hash of their name.
        self.holders(self.layout.partition_of_key(&block.0))
    }
}

/// The partition of a stored key.
pub(super) fn partition_of(key: &[u8]) -> Partition {
    Partition(key.first_chunk::<2>().map_or(0, |number| u16::from_be_bytes(*number)))
}

/// A row's name for people.
pub(super) fn show((table, key): &RowName) -> String {
    let text: String = key.get(4..).unwrap_or_default().escape_ascii().to_string();
    format!("{} row {}", table.name(), text.chars().take(120).collect::<String>())
}
