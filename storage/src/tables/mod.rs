//! The replicated tables of design §4, as one node keeps them.
//!
//! Rows come in encoded, are merged with what is stored, and go out as entries of one batch together with
//! all that follows from the change: counters, fingerprints, queued work. Nothing here waits, and nothing
//! here writes to the engine: `commit.rs`, the one owner of writes, calls [`Tables::apply`] for each request
//! in turn over an [`Overlay`] and commits the lot. Reading is in [`read`] and [`list`], on any view.
//!
//! Guarantees, whatever the order and grouping in which rows arrive:
//! - the stored row is the merge of all rows applied; a tombstone is a row like any other;
//! - counters equal a recount of the live rows, fingerprints equal a recomputation over all rows;
//! - in mode `Put` a row that lost to a newer one changes nothing and names the newer one's stamp.
//!
//! It knows nothing of blocks on disk, of peers or of layouts: the partition comes from the key's hash.

mod apply;
pub mod compare;
pub mod counters;
pub mod fingerprint;
pub mod key;
pub mod list;
mod overlay;
pub mod queue;
pub mod reaction;
pub mod read;
pub mod recount;
mod remove;
pub mod stored;

pub use apply::Applied;
pub use key::RowKey;
pub use overlay::Overlay;

use crate::meta::MetaError;
use hayloft_common::limits::{MAX_PARTITION_BITS, MAX_ROW_SIZE};
use hayloft_common::schema::{RowError, TableId};

/// Calls a generic function with the row type of a table: `with_row!(table, R => f::<R>(…))`.
macro_rules! with_row {
    ($table:expr, $row:ident => $call:expr) => {{
        use hayloft_common::schema as rows;
        use hayloft_common::schema::TableId as Id;
        match $table {
            Id::Key => {
                type $row = rows::KeyRow;
                $call
            }
            Id::Bucket => {
                type $row = rows::BucketRow;
                $call
            }
            Id::Alias => {
                type $row = rows::AliasRow;
                $call
            }
            Id::Object => {
                type $row = rows::ObjectRow;
                $call
            }
            Id::Upload => {
                type $row = rows::UploadRow;
                $call
            }
            Id::Part => {
                type $row = rows::PartRow;
                $call
            }
            Id::Manifest => {
                type $row = rows::ManifestRow;
                $call
            }
            Id::BlockRef => {
                type $row = rows::BlockRefRow;
                $call
            }
            Id::Floor => {
                type $row = rows::FloorRow;
                $call
            }
        }
    }};
}
pub(crate) use with_row;

/// Why rows could not be applied or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TablesError {
    /// The sender's fault; nothing of its request is written.
    #[error(transparent)]
    Row(#[from] RowError),
    #[error("{} row refused: {len} bytes, at most {MAX_ROW_SIZE} are taken", table.name())]
    TooLarge { table: TableId, len: usize },
    #[error(
        "{} row with key {key}: the stored form is damaged: {reason}; the row has to come from another replica",
        table.name()
    )]
    Damaged { table: TableId, key: String, reason: String },
    #[error("{what} is damaged: {reason}")]
    DamagedEntry { what: &'static str, reason: String },
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl TablesError {
    pub(crate) fn damaged(table: TableId, key: &[u8], reason: impl ToString) -> Self {
        Self::Damaged { table, key: hex::encode(key), reason: reason.to_string() }
    }
}

/// The tables' rules on one node: how keys are made. Cheap to copy; holds no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    partition_bits: u8,
}

impl Tables {
    /// For a cluster of 2^`partition_bits` partitions (at most 16 bits; more are taken as 16).
    pub fn new(partition_bits: u8) -> Self {
        Self { partition_bits: partition_bits.min(MAX_PARTITION_BITS) }
    }

    /// The partition that a partition key belongs to.
    pub fn partition(&self, partition_key: &[u8]) -> u16 {
        key::partition(partition_key, self.partition_bits)
    }

    /// The key under which a row is stored.
    pub fn key(&self, partition_key: &[u8], sort_key: &[u8]) -> RowKey {
        RowKey::new(self.partition(partition_key), partition_key, sort_key)
    }
}
