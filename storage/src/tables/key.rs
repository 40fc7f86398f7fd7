//! Where a row lies in its keyspace: partition (2 bytes), length of the partition key (2 bytes), partition
//! key, sort key.
//!
//! So a partition is one range (synced and dropped as one), and so is a partition key within it, in the
//! order of its sort keys. The detail of a row has the same key in its own keyspace, behind the table's number.

use hayloft_common::hash::Hash;
use hayloft_common::schema::TableId;

const HEAD: usize = 4;

/// The partition of a partition key: the top bits of its hash.
pub fn partition(partition_key: &[u8], bits: u8) -> u16 {
    let shift = 16 - u32::from(bits.min(16));
    Hash::of(partition_key).top16().checked_shr(shift).unwrap_or(0)
}

/// A row's key, which knows its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowKey {
    bytes: Vec<u8>,
    /// Where the sort key begins.
    sort_at: usize,
}

impl RowKey {
    pub(crate) fn new(partition: u16, partition_key: &[u8], sort_key: &[u8]) -> Self {
        let sort_at = HEAD + partition_key.len();
        let mut bytes = Vec::with_capacity(sort_at + sort_key.len());
        bytes.extend_from_slice(&partition.to_be_bytes());
        // Every partition key is far shorter than 65,536 bytes; see `common::schema`.
        bytes.extend_from_slice(&(partition_key.len() as u16).to_be_bytes());
        bytes.extend_from_slice(partition_key);
        bytes.extend_from_slice(sort_key);
        Self { bytes, sort_at }
    }

    /// The whole key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What all rows of the partition key begin with.
    pub fn base(&self) -> &[u8] {
        &self.bytes[..self.sort_at]
    }

    pub fn partition(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The key of the row's detail.
    pub fn detail(&self, table: TableId) -> Vec<u8> {
        detail_key(table, &self.bytes)
    }
}

/// The key of the detail of the row at `row_key`.
pub(crate) fn detail_key(table: TableId, row_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + row_key.len());
    out.push(u8::from(table));
    out.extend_from_slice(row_key);
    out
}

/// Splits a stored key into partition key and sort key. `None` if it was not made by [`RowKey`].
pub fn split(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u16::from_be_bytes([*key.get(2)?, *key.get(3)?]) as usize;
    key.get(HEAD..)?.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_again_and_partitions_are_the_top_bits() {
        let key = RowKey::new(0x0102, b"pk", b"sk");
        assert_eq!(split(key.as_bytes()), Some((&b"pk"[..], &b"sk"[..])));
        assert_eq!((key.base(), key.partition()), (&[1, 2, 0, 2, b'p', b'k'][..], 0x0102));
        assert_eq!(split(&[0, 0, 0, 9, 1]), None);
        assert_eq!(split(&[0]), None);
        let top = Hash::of(b"x").top16();
        assert_eq!((partition(b"x", 16), partition(b"x", 8), partition(b"x", 0)), (top, top >> 8, 0));
    }
}
