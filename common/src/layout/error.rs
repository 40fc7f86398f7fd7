//! Why a layout cannot be computed, read or asked, and what to do about it.

/// Why no layout can be computed from the roles and parameters given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("replication factor {found} is not supported: choose one of 1, 2, 3 or 5")]
    ReplicationFactor { found: usize },
    #[error("2^{bits} partitions is not supported: at most 2^16")]
    PartitionBits { bits: u8 },
    #[error("the number of partitions is fixed when the cluster is created: it is 2^{fixed}, not 2^{asked}")]
    PartitionBitsChanged { fixed: u8, asked: u8 },
    #[error(
        "zone redundancy {asked} is out of range: with {replication_factor} copies choose 1 to \
         {replication_factor}, or `maximum`"
    )]
    ZoneRedundancyRange { asked: usize, replication_factor: usize },
    #[error(
        "{found} storage node(s) with a role, but {needed} copies of everything are asked for: assign a \
         role to at least {} more node(s)", needed - found
    )]
    TooFewNodes { found: usize, needed: usize },
    #[error("{found} storage nodes are more than a layout can hold: at most 65536")]
    TooManyNodes { found: usize },
    #[error(
        "{found} zone(s) with storage nodes, but the zone redundancy asks for copies in {needed}: add nodes \
         in {} more zone(s), or lower the zone redundancy (`layout config -r`)", needed - found
    )]
    TooFewZones { found: usize, needed: usize },
    #[error("node {node} has capacity 0: give it a capacity above zero, or remove its role")]
    ZeroCapacity { node: crate::id::NodeId },
    #[error("node {node} has no zone: give it the name of its site (`layout assign -z`)")]
    NoZone { node: crate::id::NodeId },
    #[error(
        "the capacities are too small to store {copies} copies of {partitions} partitions under the zone \
         redundancy: raise them (a node's capacity is in bytes; were units forgotten?)"
    )]
    CapacityTooSmall { partitions: usize, copies: usize },
    #[error("layout version {version} cannot be followed by another")]
    VersionExhausted { version: u64 },
    #[error("the computed layout breaks its own rules ({0}): a bug; please report it with the roles")]
    Internal(#[from] InvalidLayout),
}

/// What is wrong with a layout that was read, received or built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid layout: {0}")]
pub struct InvalidLayout(pub(super) String);

/// Why the layout cannot say where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("no layout applied: give the storage nodes their roles (`layout assign`), then `layout apply`")]
    NoLayout,
    #[error("partition {partition} does not exist: the layout has {partitions}")]
    NoSuchPartition { partition: u16, partitions: usize },
}
