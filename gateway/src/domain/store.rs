//! The storage nodes as the domain sees them: each method is one quorum operation (or one good copy, for blocks).
//!
//! The real version is [`super::ClusterStore`]; [`super::memory::MemoryStore`] is one for tests, with stale and dead
//! replicas. Retries after a layout change and hedging are below this seam; merging of replies is above it.

use super::DomainError;
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::hash::Hash;
use hayloft_common::schema::Row;
use hayloft_common::{codec, stamp::Stamp};
use hayloft_proto::message::table::{
    IndexCounters, ListKeys, ListKeysReply, ReadRange, ReadRangeReply, ReadRow, RowBytes, WriteMode,
};

/// Why a quorum operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Too few nodes answered. A write may have reached some of them.
    #[error("{0}")]
    Unavailable(String),
    /// Nodes have no room.
    #[error("{0}")]
    NoSpace(String),
    /// Every copy asked for is missing or damaged.
    #[error("{0}")]
    Damaged(String),
    /// A node holds a deleted reference of the version written: the version was given up as abandoned and its id must
    /// not be used any more, whatever other nodes accepted.
    #[error("{0}")]
    Conflict(String),
}

impl From<StoreError> for DomainError {
    fn from(error: StoreError) -> Self {
        match error {
            // After a conflict a try with a version id of its own may succeed.
            StoreError::Unavailable(detail) | StoreError::Conflict(detail) => Self::Unavailable { detail },
            StoreError::NoSpace(detail) => Self::NoSpace { detail },
            StoreError::Damaged(detail) => Self::Damaged { detail },
        }
    }
}

/// What became of a write that enough nodes answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// Durable on a write quorum of each set.
    Done,
    /// Mode `Put`: go above this stamp. Some nodes may have taken the rows.
    Outdated(Stamp),
}

/// What a read quorum answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replies<T> {
    pub all: Vec<T>,
    /// Whether what all these replies agree on will be met by every later read: they are those of a write quorum, and
    /// the rows have no other set of nodes. False when in doubt.
    ///
    /// With `n` copies, read quorum `r = ceil(n / 2)` and write quorum `w = n + 1 - r`: for odd `n` both are
    /// `(n + 1) / 2`, so replies that agree are proof. For even `n`, `r = w - 1`: the other `n - r = r` nodes are a read
    /// quorum that may know nothing of it. (`n = 1`: 1, 1. `n = 2`: r 1, w 2. `n = 3`: 2, 2. `n = 5`: 3, 3.) While the
    /// layout changes, reads move from one set of nodes to another, which may not have it yet.
    pub lasting: bool,
}

/// An encoded row of one node; `None` if it never had one.
pub type StoredRow = Option<Vec<u8>>;

/// A quorum read under way.
#[async_trait]
pub trait EarlyRow: Send {
    /// The first reply there is; it may be stale.
    async fn first(&mut self) -> Result<StoredRow, StoreError>;
    /// The replies of a read quorum.
    async fn quorum(self: Box<Self>) -> Result<Replies<StoredRow>, StoreError>;
}

/// See the module's head. `place` is the hash of the rows' partition key.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The partition of a place: references to blocks of one partition may travel together.
    fn partition_of(&self, place: &Hash) -> u16;

    /// Writes rows of one partition in one transaction a node.
    async fn write_rows(
        &self,
        place: Hash,
        mode: WriteMode,
        rows: Vec<RowBytes>,
    ) -> Result<Wrote, StoreError>;

    async fn read_row(&self, read: ReadRow) -> Result<Replies<StoredRow>, StoreError>;

    fn read_row_early(&self, read: ReadRow) -> Box<dyn EarlyRow>;

    async fn read_range(&self, read: ReadRange) -> Result<Replies<ReadRangeReply>, StoreError>;

    async fn list_keys(&self, list: ListKeys) -> Result<Replies<ListKeysReply>, StoreError>;

    async fn read_counters(&self, partition_key: Vec<u8>) -> Result<Vec<IndexCounters>, StoreError>;

    /// Stores an envelope with a reference row on a write quorum. The envelope may live on behind the answer, for
    /// nodes that are late. `Conflict` when any node that answered says so.
    async fn put_block(&self, block: Hash, reference: RowBytes, envelope: Bytes) -> Result<(), StoreError>;

    /// Adds references to blocks of one partition, on a write quorum. Answers the blocks that none of the nodes
    /// that answered holds. `Conflict` when any node that answered says so.
    async fn refer_blocks(&self, place: Hash, references: Vec<RowBytes>) -> Result<Vec<Hash>, StoreError>;

    /// The plain block, checked against its hash, from the nearest node that has a good copy; at most `max` bytes.
    async fn get_block(&self, block: Hash, max: usize) -> Result<Bytes, StoreError>;
}

/// The place of a partition key.
pub fn place_of(partition_key: &[u8]) -> Hash {
    Hash::of(partition_key)
}

/// The place of a block: that of its references, whose partition key is the block's hash. (Not the hash itself:
/// storage nodes place rows by the hash of their partition key, and a block lies with its references.)
pub fn place_of_block(block: &Hash) -> Hash {
    place_of(block.as_bytes())
}

/// Encodes a row for a write.
pub fn row_bytes<R: Row>(row: &R) -> RowBytes {
    RowBytes { table: R::TABLE, bytes: codec::encode(row) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::id::{BucketId, VersionId};
    use hayloft_common::schema::{BlockOwner, BlockRefRow};

    #[test]
    fn a_block_has_the_place_of_its_references() {
        let block = Hash::of(b"some bytes");
        let owner = BlockOwner::Object { bucket: BucketId::default(), shard: 0, key: "k".into() };
        let row = BlockRefRow { block, version: VersionId::default(), created_ms: 0, owner, deleted: false };
        assert_eq!(place_of_block(&block), place_of(&row.partition_key()));
    }
}
