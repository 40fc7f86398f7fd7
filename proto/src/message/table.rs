//! Rows: write, read, list, count.

use super::message;
use hayloft_common::schema::TableId;
use hayloft_common::stamp::Stamp;
use serde::{Deserialize, Serialize};

/// An encoded row (`common::codec::encode`) of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowBytes {
    pub table: TableId,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// What a node does with a row that is not newer than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteMode {
    /// A client's write: answer `Outdated`, change nothing (design §4).
    Put,
    /// Anti-entropy, read repair: merge.
    Merge,
}

/// Writes rows in one local transaction, durably, in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRows {
    pub mode: WriteMode,
    pub rows: Vec<RowBytes>,
}

/// What became of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowOutcome {
    /// It is, or already was, part of the stored row, and is durable.
    Written,
    /// Mode `Put`: the stored row is newer; go above this stamp. Then none of the request's rows is written.
    Outdated(Stamp),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRowsReply {
    /// One for each row, in order.
    pub outcomes: Vec<RowOutcome>,
}

/// One row with its detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRow {
    pub table: TableId,
    #[serde(with = "serde_bytes")]
    pub partition_key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub sort_key: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRowReply {
    /// The encoded row, tombstones included; `None` if there never was one.
    pub row: Option<serde_bytes::ByteBuf>,
}

/// Rows of one partition key in order of their sort keys, tombstones included, without details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRange {
    pub table: TableId,
    #[serde(with = "serde_bytes")]
    pub partition_key: Vec<u8>,
    /// First sort key, included.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
    /// End, excluded; `None` for the end of the partition key.
    pub to: Option<serde_bytes::ByteBuf>,
    /// Most rows to answer with; the node may answer with fewer and `next`.
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRangeReply {
    pub rows: Vec<serde_bytes::ByteBuf>,
    /// The sort key to go on from; `None` when the range is exhausted.
    pub next: Option<serde_bytes::ByteBuf>,
}

/// A page of keys, for tables whose sort key begins with an escaped object key (object, upload), with what
/// follows a delimiter rolled up on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListKeys {
    pub table: TableId,
    #[serde(with = "serde_bytes")]
    pub partition_key: Vec<u8>,
    /// Plain, not escaped. Only keys that begin with it.
    pub prefix: String,
    /// Not empty.
    pub delimiter: Option<String>,
    /// First sort key, included (escaped form); empty for the beginning.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
    /// Most entries to answer with.
    pub limit: u32,
    /// Also give, one by one, the tombstones behind a delimiter that come before the prefix's first live row (all, if
    /// it has none): they say why a prefix is not there.
    #[serde(default)]
    pub tombstones: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListEntry {
    /// A row without its detail; may be a tombstone, which wins over a live row of another node.
    Row(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Every key that begins with `prefix` (plain; it ends with the delimiter), of which at least one is live here:
    /// the first is `witness`, a row without its detail.
    Prefix {
        prefix: String,
        #[serde(with = "serde_bytes")]
        witness: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListKeysReply {
    /// In order.
    pub entries: Vec<ListEntry>,
    /// The page is complete below this sort key; `None`: to the end. Go on from it.
    pub next: Option<serde_bytes::ByteBuf>,
}

/// What a node counts of one index shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexCounters {
    pub objects: u64,
    pub bytes: u64,
    pub uploads: u64,
    pub parts: u64,
    pub part_bytes: u64,
}

/// The counters of one index shard of a bucket (its partition key in the object table).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCounters {
    #[serde(with = "serde_bytes")]
    pub partition_key: Vec<u8>,
}

message!(WriteRows => WriteRowsReply, 1, Small, epoch: true);
message!(ReadRow => ReadRowReply, 2, Small, epoch: true);
message!(ReadRange => ReadRangeReply, 3, Small, epoch: true);
message!(ListKeys => ListKeysReply, 4, Small, epoch: true);
message!(ReadCounters => IndexCounters, 5, Small, epoch: true);
