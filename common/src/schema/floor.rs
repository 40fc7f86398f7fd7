//! How new the tombstones were that have been removed for good. Format 1.
//!
//! A tombstone keeps older writes of its row out. Once it is removed on some replicas (they never do it in the same
//! moment), a plain write with an older stamp could be acknowledged by those and then lose to the tombstone that is left
//! on another. So a replica that removes tombstones remembers the newest of their stamps for each partition key, and
//! calls a write of a row that it does not have `Outdated` if its stamp is not above that. The floor is a row like any
//! other, so that nodes which get the partition later know it too.

use super::{Row, RowError, TableId, rule};
use crate::codec::Format;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorRow {
    /// The table of the rows that were removed; one whose rows are registers with a stamp.
    pub of: TableId,
    /// The partition key of those rows, and of this one.
    #[serde(with = "serde_bytes")]
    pub partition_key: Vec<u8>,
    /// The highest stamp of a tombstone removed.
    pub stamp: Stamp,
}

impl FloorRow {
    /// The sort key of the floor of a table's rows.
    pub fn sort_key_of(of: TableId) -> Vec<u8> {
        vec![of.into()]
    }
}

impl Format for FloorRow {
    const NAME: &'static str = "floor row";
}

impl Row for FloorRow {
    const TABLE: TableId = TableId::Floor;

    fn partition_key(&self) -> Vec<u8> {
        self.partition_key.clone()
    }

    fn sort_key(&self) -> Vec<u8> {
        Self::sort_key_of(self.of)
    }

    fn merge(&mut self, other: &Self) {
        self.stamp = self.stamp.max(other.stamp);
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn is_live(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), RowError> {
        rule(Self::TABLE, self.partition_key.len() <= 1024, "partition key length")?;
        rule(Self::TABLE, self.stamp.is_valid(), "stamp too far in the future")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_floor_only_rises_and_reads_back() {
        let floor = |micros, writer| FloorRow {
            of: TableId::Object,
            partition_key: vec![7; 18],
            stamp: Stamp { micros, writer },
        };
        let mut merged = floor(3, 1);
        merged.merge(&floor(2, 9));
        assert_eq!(merged, floor(3, 1));
        merged.merge(&floor(3, 2));
        assert_eq!(merged, floor(3, 2));
        let bytes = codec::encode(&merged);
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex.join(" "),
            "01 93 05 c4 12 07 07 07 07 07 07 07 07 07 07 07 07 07 07 07 07 07 07 92 03 02"
        );
        assert_eq!(codec::decode::<FloorRow>(&bytes).unwrap(), merged);
        assert!(floor(u64::MAX, 0).validate().is_err());
    }
}
