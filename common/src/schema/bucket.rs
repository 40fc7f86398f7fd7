//! Buckets and their global names. Format 1.
//!
//! The alias row is the truth about what a name means; the bucket row repeats its names for display.

use super::{Row, RowError, TableId, control_partition_key, rule};
use crate::codec::Format;
use crate::crdt::{Crdt, Lww, LwwMap};
use crate::id::BucketId;
use crate::limits;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRow {
    pub id: BucketId,
    pub created_ms: u64,
    /// Fixed at creation; a power of two.
    pub index_shards: u16,
    /// Deletion is for good: a name created again is another bucket.
    pub deleted: bool,
    /// Global names, true while the name is the bucket's.
    pub aliases: LwwMap<String, bool>,
}

impl Format for BucketRow {
    const NAME: &'static str = "bucket row";
}

impl BucketRow {
    /// The names that are in force, in order.
    pub fn names(&self) -> Vec<String> {
        self.aliases.iter().filter(|(_, on)| on.value).map(|(name, _)| name.clone()).collect()
    }
}

impl Row for BucketRow {
    const TABLE: TableId = TableId::Bucket;

    fn partition_key(&self) -> Vec<u8> {
        control_partition_key(Self::TABLE)
    }

    fn sort_key(&self) -> Vec<u8> {
        self.id.0.to_vec()
    }

    fn merge(&mut self, other: &Self) {
        self.created_ms = self.created_ms.max(other.created_ms);
        self.index_shards = self.index_shards.max(other.index_shards);
        self.deleted |= other.deleted;
        Crdt::merge(&mut self.aliases, &other.aliases);
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn is_live(&self) -> bool {
        !self.deleted
    }

    fn validate(&self) -> Result<(), RowError> {
        let shards = self.index_shards;
        rule(Self::TABLE, shards.is_power_of_two() && shards <= limits::MAX_INDEX_SHARDS, "index shards")?;
        rule(Self::TABLE, self.aliases.values().all(|a| a.stamp.is_valid()), "stamp too far in the future")
    }
}

/// What a global bucket name means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRow {
    pub name: String,
    pub target: Lww<Option<BucketId>>,
}

impl Format for AliasRow {
    const NAME: &'static str = "alias row";
}

impl Row for AliasRow {
    const TABLE: TableId = TableId::Alias;

    fn partition_key(&self) -> Vec<u8> {
        control_partition_key(Self::TABLE)
    }

    fn sort_key(&self) -> Vec<u8> {
        self.name.as_bytes().to_vec()
    }

    fn merge(&mut self, other: &Self) {
        self.target.merge(&other.target);
    }

    fn stamp(&self) -> Option<Stamp> {
        Some(self.target.stamp)
    }

    fn is_live(&self) -> bool {
        self.target.value.is_some()
    }

    fn validate(&self) -> Result<(), RowError> {
        rule(Self::TABLE, self.target.stamp.is_valid(), "stamp too far in the future")?;
        rule(Self::TABLE, !self.name.is_empty() && self.name.len() <= 255, "name length")
    }
}
