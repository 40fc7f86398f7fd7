//! One version of the layout: partition → nodes.
//!
//! A value read back or received is checked before anyone sees it: every partition has exactly
//! `replication_factor` different nodes, all of which have a role, in as many zones as asked for.
//! The encoded form holds each node id once and one or two bytes a copy.

use super::error::{InvalidLayout, LookupError};
use super::partition::{Partition, partition_of, partition_of_key};
use super::role::{Parameters, Role};
use crate::codec::{Format, encode};
use crate::hash::Hash;
use crate::id::NodeId;
use crate::limits::MAX_PARTITION_BITS;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One version of the layout. Made by [`super::compute`], [`Layout::empty`] or decoding, which check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Layout {
    /// Counts the layouts that were applied; 0 means that none was.
    pub version: u64,
    /// There are `2^bits` partitions; fixed at cluster creation.
    pub bits: u8,
    pub parameters: Parameters,
    pub roles: BTreeMap<NodeId, Role>,
    /// The nodes of `roles`, in order.
    pub nodes: Vec<NodeId>,
    /// For each partition the indexes into `nodes` of its copies, ascending.
    pub assignment: Vec<Vec<u16>>,
    /// Bytes that every partition may take before some node is full.
    pub partition_size: u64,
    /// Drawn at random by whoever applies it, so that of two who apply the same at once only one finds that the
    /// layout in force is theirs; 0 until then.
    pub applied_by: u64,
}

impl Layout {
    /// Version 0: no node has a role yet, and every look-up fails with [`LookupError::NoLayout`].
    pub fn empty(parameters: Parameters, bits: u8) -> Self {
        Self {
            version: 0,
            bits,
            parameters,
            roles: BTreeMap::new(),
            nodes: Vec::new(),
            assignment: Vec::new(),
            partition_size: 0,
            applied_by: 0,
        }
    }

    /// Whether no layout was applied yet.
    pub fn is_empty(&self) -> bool {
        self.version == 0
    }

    /// The number of partitions.
    pub fn partitions(&self) -> usize {
        1 << self.bits.min(MAX_PARTITION_BITS)
    }

    /// The partition of what is named by `hash`.
    pub fn partition_of(&self, hash: &Hash) -> Partition {
        partition_of(hash, self.bits)
    }

    /// The partition of the rows under partition key `pk`.
    pub fn partition_of_key(&self, pk: &[u8]) -> Partition {
        partition_of_key(pk, self.bits)
    }

    /// The nodes that hold `partition`, as many as the replication factor, in order of id.
    pub fn nodes_of(&self, partition: Partition) -> Result<Vec<NodeId>, LookupError> {
        if self.is_empty() {
            return Err(LookupError::NoLayout);
        }
        let copies = self.assignment.get(usize::from(partition.0)).ok_or(LookupError::NoSuchPartition {
            partition: partition.0,
            partitions: self.assignment.len(),
        })?;
        Ok(copies.iter().filter_map(|&i| self.nodes.get(usize::from(i)).copied()).collect())
    }

    /// Whether `node` is one of those that hold `partition`.
    pub fn holds(&self, node: NodeId, partition: Partition) -> bool {
        let copies = self.assignment.get(usize::from(partition.0));
        let index = self.nodes.binary_search(&node).ok();
        copies.zip(index).is_some_and(|(copies, index)| copies.contains(&(index as u16)))
    }

    /// All nodes with a role, in order of id; some may hold no partition.
    pub fn storage_nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The partitions that `node` holds, ascending; none for a node without a role.
    pub fn partitions_of(&self, node: NodeId) -> Vec<Partition> {
        let Ok(index) = self.nodes.binary_search(&node) else { return Vec::new() };
        let index = index as u16;
        let holds = |copies: &Vec<u16>| copies.contains(&index);
        (0..).zip(&self.assignment).filter(|(_, copies)| holds(copies)).map(|(p, _)| Partition(p)).collect()
    }

    /// The zone of `node`, if it has a role.
    pub fn zone_of(&self, node: NodeId) -> Option<&str> {
        self.roles.get(&node).map(|role| role.zone.as_str())
    }

    /// Names this layout: two layouts with one digest are equal.
    pub fn digest(&self) -> Hash {
        Hash::of(&encode(self))
    }

    /// Checks everything that readers rely on.
    pub(super) fn validate(&self) -> Result<(), InvalidLayout> {
        let fail = |why: String| Err(InvalidLayout(why));
        if self.bits > MAX_PARTITION_BITS {
            return fail(format!("2^{} partitions, at most 2^{MAX_PARTITION_BITS} are supported", self.bits));
        }
        let copies = self.parameters.replication_factor;
        if copies == 0 || copies > 255 {
            return fail(format!("replication factor {copies}"));
        }
        if !self.nodes.iter().eq(self.roles.keys()) {
            return fail("its nodes are not those with a role".into());
        }
        if self.is_empty() {
            let bare = self.roles.is_empty() && self.assignment.is_empty() && self.partition_size == 0;
            return if bare { Ok(()) } else { fail("version 0 holds roles or partitions".into()) };
        }
        if self.partition_size == 0 {
            return fail("partition size 0".into());
        }
        if let Some((node, _)) = self.roles.iter().find(|(_, r)| r.capacity == 0 || r.zone.is_empty()) {
            return fail(format!("node {node} has no capacity or no zone"));
        }
        if self.assignment.len() != self.partitions() {
            return fail(format!("{} partitions instead of {}", self.assignment.len(), self.partitions()));
        }
        let zones: Vec<&str> = self.roles.values().map(|role| role.zone.as_str()).collect();
        let zone_count = zones.iter().collect::<BTreeSet<_>>().len();
        let redundancy = self.parameters.effective_zone_redundancy(zone_count);
        for (partition, copies_of) in self.assignment.iter().enumerate() {
            let ordered = copies_of.windows(2).all(|pair| pair[0] < pair[1]);
            if copies_of.len() != copies || !ordered {
                return fail(format!("partition {partition} does not have {copies} different nodes"));
            }
            let mut touched = BTreeSet::new();
            for &index in copies_of {
                let Some(zone) = zones.get(usize::from(index)) else {
                    return fail(format!(
                        "partition {partition} names node number {index} of {}",
                        zones.len()
                    ));
                };
                touched.insert(*zone);
            }
            if touched.len() < redundancy {
                return fail(format!("partition {partition} is in {} of {redundancy} zones", touched.len()));
            }
        }
        Ok(())
    }
}

impl Format for Layout {
    const NAME: &'static str = "layout";
}

/// The stored form: node ids once, copies as one byte each (two when there are more than 256 nodes).
#[derive(Serialize, Deserialize)]
struct Wire {
    version: u64,
    bits: u8,
    parameters: Parameters,
    roles: BTreeMap<NodeId, Role>,
    #[serde(with = "serde_bytes")]
    assignment: Vec<u8>,
    partition_size: u64,
    #[serde(default)]
    applied_by: u64,
}

/// Whether `nodes` nodes need two bytes for a number.
fn is_wide(nodes: usize) -> bool {
    nodes > 256
}

impl From<Layout> for Wire {
    fn from(layout: Layout) -> Self {
        let indexes = layout.assignment.iter().flatten();
        let assignment = if is_wide(layout.nodes.len()) {
            indexes.flat_map(|i| i.to_be_bytes()).collect()
        } else {
            indexes.map(|&i| i as u8).collect()
        };
        let Layout { version, bits, parameters, roles, partition_size, applied_by, .. } = layout;
        Self { version, bits, parameters, roles, assignment, partition_size, applied_by }
    }
}

impl TryFrom<Wire> for Layout {
    type Error = InvalidLayout;

    fn try_from(wire: Wire) -> Result<Self, InvalidLayout> {
        let Wire { version, bits, parameters, roles, assignment, partition_size, applied_by } = wire;
        let nodes: Vec<NodeId> = roles.keys().copied().collect();
        let indexes: Vec<u16> = if is_wide(nodes.len()) {
            let (pairs, rest) = assignment.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(InvalidLayout("its assignment ends in half a number".into()));
            }
            pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect()
        } else {
            assignment.into_iter().map(u16::from).collect()
        };
        let copies = parameters.replication_factor.max(1);
        let assignment = indexes.chunks(copies).map(<[u16]>::to_vec).collect();
        let layout = Self { version, bits, parameters, roles, nodes, assignment, partition_size, applied_by };
        layout.validate()?;
        Ok(layout)
    }
}
