//! What storage nodes say to one another to stay equal: fingerprints, rows that one of them lacks, tombstones that all
//! hold, blocks that others hold, and work that one of them has done for all.

use super::message;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::layout::Partition;
use hayloft_common::schema::TableId;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Sum and number of a set of rows (`storage::tables::fingerprint`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSum {
    #[serde(with = "serde_bytes")]
    pub sum: [u8; 16],
    pub rows: u64,
}

/// The fingerprints of whole partitions. Answered only after all writes of earlier epochs are done (a commit barrier).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadTotals {
    /// At most [`MAX_TOTALS`].
    pub partitions: Vec<Partition>,
}

/// Partitions that one [`ReadTotals`] may name: reading their leaves then takes milliseconds.
pub const MAX_TOTALS: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// One for each table and partition asked for that holds rows.
    pub totals: Vec<(TableId, Partition, RowSum)>,
    /// Partitions that this node holds no complete copy of, or none: nothing is said of them.
    pub refused: Vec<Partition>,
}

/// The fingerprints of the leaves of one table's partition; barrier as for [`ReadTotals`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLeaves {
    pub table: TableId,
    pub partition: Partition,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavesReply {
    pub leaves: Vec<(u16, RowSum)>,
}

/// Rows of some leaves, in a range of keys, that the asker lacks: those whose hash begins with none of `have`. Barrier as
/// for [`ReadTotals`].
///
/// The asker walks its own rows in order of key and names some thousands of them at a time, so that both sides read
/// their rows once, however many there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRows {
    pub table: TableId,
    pub partition: Partition,
    /// At most all 1,024.
    pub leaves: Vec<u16>,
    /// The first 8 bytes (little-endian) of the hashes of the asker's rows in those leaves and between those keys.
    /// At most [`MAX_HAVE`].
    pub have: Vec<u64>,
    /// Stored keys from this one on (`None`: from the first), up to `to` (excluded; `None`: to the last).
    pub from: Option<ByteBuf>,
    pub to: Option<ByteBuf>,
}

/// Hashes that one [`SyncRows`] may name: 9 bytes each on the wire.
pub const MAX_HAVE: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRowsReply {
    /// Encoded rows with their details.
    pub rows: Vec<ByteBuf>,
    /// The stored key to go on from; `None`: that was all of the range.
    pub next: Option<ByteBuf>,
}

/// Which of these blocks the node has a readable copy of. At most 4,096.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveBlocks {
    pub blocks: Vec<Hash>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveBlocksReply {
    /// One for each block, in order.
    pub have: Vec<bool>,
}

/// Merges tombstones (encoded rows of one table and partition), durably, and says which of them is exactly what is
/// stored then. At most [`MAX_TOMBSTONES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTombstones {
    pub table: TableId,
    pub partition: Partition,
    pub rows: Vec<ByteBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTombstonesReply {
    /// One for each row, in order.
    pub held: Vec<bool>,
}

/// Most rows of one [`HoldTombstones`] or [`CollectTombstones`].
pub const MAX_TOMBSTONES: usize = 256;

/// Removes tombstones that every replica holds: stored key and row hash. At most [`MAX_TOMBSTONES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectTombstones {
    pub table: TableId,
    pub partition: Partition,
    pub rows: Vec<(ByteBuf, RowHash)>,
}

/// The hash of a stored row, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowHash(#[serde(with = "serde_bytes")] pub [u8; 16]);

/// Work that the sender has done for all replicas: entries with these keys may be taken off the queue, unless they were
/// queued again within the last minute (new work under the same name). Keys as in `storage::tables::queue`; at most
/// [`MAX_WORK_DONE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkDone {
    pub keys: Vec<ByteBuf>,
}

/// Most keys of one [`WorkDone`].
pub const MAX_WORK_DONE: usize = 4096;

/// Whether pieces of work are queued on the node; keys as in `storage::tables::queue`. At most 1,000.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreQueued {
    pub partition: Partition,
    pub keys: Vec<ByteBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreQueuedReply {
    /// One for each key, in order.
    pub queued: Vec<bool>,
}

/// Rows of one partition key without their details. At most [`MAX_READ_HEADS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadHeads {
    pub table: TableId,
    #[serde(with = "serde_bytes")]
    pub partition_key: Vec<u8>,
    pub sort_keys: Vec<ByteBuf>,
}

/// Most rows of one [`ReadHeads`]: a part's row may take some 4 KiB without being whole otherwise.
pub const MAX_READ_HEADS: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadHeadsReply {
    /// One for each sort key, in order: the encoded row without its detail, tombstones included; `None` if there is none.
    pub rows: Vec<Option<ByteBuf>>,
}

/// How long ago these references arrived (were made or renewed) last on the node. All of one partition, at most
/// [`MAX_REFERENCES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRenewals {
    pub references: Vec<(Hash, VersionId)>,
}

/// Most references of one [`ReadRenewals`].
pub const MAX_REFERENCES: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRenewalsReply {
    /// One for each reference, in order, in milliseconds by a clock that does not jump: at least so long ago. `None`: it
    /// is not waiting to be looked at there.
    pub ages_ms: Vec<Option<u64>>,
}

message!(ReadTotals => Totals, 60, Small, epoch: true);
message!(ReadLeaves => LeavesReply, 61, Small, epoch: true);
message!(SyncRows => SyncRowsReply, 62, Bulk, epoch: true);
message!(HaveBlocks => HaveBlocksReply, 63, Small, epoch: true);
message!(HoldTombstones => HoldTombstonesReply, 64, Small, epoch: true);
message!(CollectTombstones => (), 65, Small, epoch: true);
message!(WorkDone => (), 66, Small, epoch: true);
message!(AreQueued => AreQueuedReply, 67, Small, epoch: true);
message!(ReadHeads => ReadHeadsReply, 68, Small, epoch: true);
message!(ReadRenewals => ReadRenewalsReply, 69, Small, epoch: true);
