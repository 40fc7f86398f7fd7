//! References to blocks: which version needs which block. Format 1.
//!
//! Placed by the block's hash, so on the nodes that hold the block. A reference is present, then deleted
//! for good (two-phase): a version id never needs a block again once it is gone.

use super::{Row, RowError, TableId, rule};
use crate::codec::Format;
use crate::hash::Hash;
use crate::id::{BucketId, UploadId, VersionId};
use crate::limits;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRefRow {
    pub block: Hash,
    pub version: VersionId,
    /// When the reference was made, in milliseconds by the writer's wall clock: uncommitted versions are
    /// looked for by age.
    pub created_ms: u64,
    /// Whom to ask whether the version is still wanted.
    pub owner: BlockOwner,
    pub deleted: bool,
}

/// The row that decides whether a version lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlockOwner {
    Object { bucket: BucketId, shard: u16, key: String },
    Part { bucket: BucketId, shard: u16, key: String, upload: UploadId, number: u16 },
}

impl Format for BlockRefRow {
    const NAME: &'static str = "block reference row";
}

impl Row for BlockRefRow {
    const TABLE: TableId = TableId::BlockRef;

    fn partition_key(&self) -> Vec<u8> {
        self.block.0.to_vec()
    }

    fn sort_key(&self) -> Vec<u8> {
        self.version.0.to_vec()
    }

    fn merge(&mut self, other: &Self) {
        self.deleted |= other.deleted;
        self.created_ms = self.created_ms.max(other.created_ms);
        if other.owner > self.owner {
            self.owner = other.owner.clone();
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn is_live(&self) -> bool {
        !self.deleted
    }

    fn validate(&self) -> Result<(), RowError> {
        let (BlockOwner::Object { key, .. } | BlockOwner::Part { key, .. }) = &self.owner;
        rule(Self::TABLE, key.len() <= limits::MAX_OBJECT_KEY, "owner's key length")
    }
}
