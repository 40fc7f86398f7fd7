//! The rows of every replicated table: fields, keys, merge and stored form, one row kind per file.
//!
//! A row is placed by the hash of its partition key and ordered by its sort key within it. Its merge is a
//! CRDT's. Reactions to a change (counters, queues) belong to the storage node, not here.
//! To add a row kind: a file here, a number in [`TableId`] that is never reused, law tests, golden bytes.

mod block_ref;
mod bucket;
mod floor;
mod key;
mod object;
mod part;
pub mod sort_key;
mod upload;

pub use block_ref::{BlockOwner, BlockRefRow};
pub use bucket::{AliasRow, BucketRow};
pub use floor::FloorRow;
pub use key::{KeyId, KeyRow, Permissions};
pub use object::{
    BlockEntry, Checksum, ChecksumAlgorithm, ChecksumKind, Headers, ManifestRow, ObjectData, ObjectDetail,
    ObjectRow, ObjectState, ObjectVersion, PartEntry, Slot, index_partition_key, index_shard,
};
pub use part::{PartRow, PartState, PartVersion};
pub use upload::{UploadRow, UploadState};

use crate::codec::{CodecError, Format};
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

/// The tables, by the numbers that name them on disk and on the wire. Never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum TableId {
    Key = 1,
    Bucket = 2,
    Alias = 3,
    Object = 5,
    Upload = 6,
    Part = 7,
    Manifest = 8,
    BlockRef = 9,
    Floor = 13,
}

impl TableId {
    /// Every table.
    pub const ALL: [Self; 9] = [
        Self::Key,
        Self::Bucket,
        Self::Alias,
        Self::Object,
        Self::Upload,
        Self::Part,
        Self::Manifest,
        Self::BlockRef,
        Self::Floor,
    ];

    /// The name used in metrics, logs and as keyspace name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Bucket => "bucket",
            Self::Alias => "alias",
            Self::Object => "object",
            Self::Upload => "upload",
            Self::Part => "part",
            Self::Manifest => "manifest",
            Self::BlockRef => "block_ref",
            Self::Floor => "floor",
        }
    }
}

impl From<TableId> for u8 {
    fn from(id: TableId) -> u8 {
        id as u8
    }
}

impl TryFrom<u8> for TableId {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|t| *t as u8 == number)
            .ok_or_else(|| format!("no table has number {number}"))
    }
}

/// A row that a peer sent breaks a rule of its kind.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RowError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("{table} row refused: {rule}")]
    Rule { table: &'static str, rule: &'static str },
}

/// A row of a replicated table.
pub trait Row: Format + Clone + PartialEq + Send + Sync + 'static {
    const TABLE: TableId;

    /// Decides which nodes hold the row.
    fn partition_key(&self) -> Vec<u8>;

    /// The row's place among the rows of its partition key, ordered by bytes.
    fn sort_key(&self) -> Vec<u8>;

    /// Takes in what `other`, a row with the same keys, knows. Associative, commutative, idempotent.
    fn merge(&mut self, other: &Self);

    /// The stamp that a plain write must exceed, for rows that are one register (design §4, `Outdated`).
    /// `None` for rows whose merge keeps what both sides know.
    fn stamp(&self) -> Option<Stamp>;

    /// False for a tombstone.
    fn is_live(&self) -> bool;

    /// Takes out the part that listings never read, to be stored apart. Default: nothing.
    fn detach(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Puts back what [`Row::detach`] took out.
    fn attach(&mut self, _detail: &[u8]) -> Result<(), CodecError> {
        Ok(())
    }

    /// Refuses what no honest peer writes: keys too long, stamps beyond reason.
    fn validate(&self) -> Result<(), RowError>;
}

/// The partition key of the tables that hold control records: their own name, so that each can be listed.
pub fn control_partition_key(table: TableId) -> Vec<u8> {
    table.name().as_bytes().to_vec()
}

/// `Err` with the broken rule unless `ok`.
fn rule(table: TableId, ok: bool, rule: &'static str) -> Result<(), RowError> {
    if ok { Ok(()) } else { Err(RowError::Rule { table: table.name(), rule }) }
}

#[cfg(test)]
mod tests;
