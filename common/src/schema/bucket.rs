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
    /// Whether what one read has shown, every later one shows too (design §4). Later than the other fields of format
    /// 1: off in rows written before.
    #[serde(default)]
    pub monotonic_reads: Lww<bool>,
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
        self.monotonic_reads.merge(&other.monotonic_reads);
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
        let mut stamps = self.aliases.values().map(|a| a.stamp).chain([self.monotonic_reads.stamp]);
        rule(Self::TABLE, stamps.all(|stamp| stamp.is_valid()), "stamp too far in the future")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    /// As encoded before `monotonic_reads` was there, and since.
    const WITHOUT: &str =
        "01 95 c4 10 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 07 04 c2 81 a1 6e 92 92 05 06 c3";
    const WITH: &str = "01 96 c4 10 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 07 04 c2 81 a1 6e 92 92 05 06 c3 92 92 08 09 c3";

    fn row(monotonic_reads: Lww<bool>) -> BucketRow {
        let alias = Lww::new(Stamp { micros: 5, writer: 6 }, true);
        BucketRow {
            id: BucketId([1; 16]),
            created_ms: 7,
            index_shards: 4,
            deleted: false,
            aliases: [("n".to_owned(), alias)].into(),
            monotonic_reads,
        }
    }

    fn bytes(text: &str) -> Vec<u8> {
        text.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    }

    #[test]
    fn rows_written_before_reads_could_be_monotonic_are_read() {
        assert_eq!(codec::decode::<BucketRow>(&bytes(WITHOUT)).unwrap(), row(Lww::default()));
        let with = row(Lww::new(Stamp { micros: 8, writer: 9 }, true));
        assert_eq!(codec::encode(&with), bytes(WITH));
        assert_eq!(codec::decode::<BucketRow>(&bytes(WITH)).unwrap(), with);
    }
}
