//! Sizes and counts of a gateway, and how they relate (checked when compiled). What an operator may set is
//! in `common::config::GatewayConfig`; [`DomainConfig`] is the part of it that the domain layer reads.

use hayloft_common::config::{Compression, GatewayConfig};
use hayloft_common::limits::{DEFAULT_BLOCK_SIZE, DEFAULT_INLINE_MAX, MAX_ROW_BLOCKS};
use std::time::Duration;

/// Blocks of one upload that are on their way to the storage nodes at once.
pub const PUT_BLOCKS_IN_FLIGHT: usize = 3;
/// Blocks of one download that are fetched ahead of the client, the one being sent included. With 1 MiB blocks
/// it fills 160 Mbit/s at 200 ms of round trip for one stream.
pub const GET_BLOCKS_AHEAD: usize = 4;
/// Blocks that may wait for one upload's digests.
pub const DIGEST_QUEUE: usize = 2;
/// Tries of a write that replicas call outdated, each above the newest stamp seen.
pub const MAX_OUTDATED_TRIES: usize = 12;
/// Longest wait for buffer memory before a request is refused with "slow down".
pub const MEMORY_WAIT: Duration = Duration::from_secs(20);
/// An upload of blocks renews its references this often, so that storage nodes never take it for abandoned.
pub const HEARTBEAT: Duration = Duration::from_mins(5);
/// After a renewal that failed the next one is tried so much later.
pub const HEARTBEAT_RETRY: Duration = Duration::from_secs(30);
/// An upload whose references could not be renewed for so long is given up.
pub const RENEWAL_MAX_AGE: Duration = Duration::from_mins(15);
/// No version is committed whose references were written or renewed longer ago. Storage nodes ask after references
/// that are older than an hour by their own clocks; the rest is for clocks that run differently and calls on their way.
pub const COMMIT_MAX_AGE: Duration = Duration::from_mins(30);
/// A merge is not written back when its read began longer ago: tombstones that were not there yet may have been
/// collected, and it would bring back the rows that they removed.
pub const REPAIR_MAX_AGE: Duration = Duration::from_secs(30);
/// Rows, and bytes of rows (about), of one write-back.
pub const WRITE_BACK_ROWS: usize = 500;
pub const WRITE_BACK_BYTES: usize = 512 << 10;
/// References in one message.
pub const REFER_BATCH: usize = 1024;
/// Calls to different partitions under way at once, of one operation on many rows, references or prefixes.
pub const FAN_OUT: usize = 16;
/// Pages a listing reads for one answer when it meets nothing but tombstones; then it answers short.
pub const LIST_MAX_ROUNDS: usize = 256;
/// Fewest entries that a listing asks a node for: behind the last key there may be many tombstones.
pub const LIST_MIN_READ: usize = 100;
/// A used control record is read again this often.
pub const CONTROL_REFRESH: Duration = Duration::from_secs(1);
/// Control records that are kept fresh in one round.
pub const CONTROL_REFRESH_BATCH: usize = 64;
/// Blocks in remembered lists of parts that came through this gateway (36 bytes each; see `domain::complete`).
pub const PART_MEMORY_BLOCKS: usize = 64 << 10;

const _: () = assert!(DIGEST_QUEUE >= 1 && PUT_BLOCKS_IN_FLIGHT >= 1 && GET_BLOCKS_AHEAD >= 1);
const _: () = assert!(HEARTBEAT.as_secs() + HEARTBEAT_RETRY.as_secs() < RENEWAL_MAX_AGE.as_secs());
const _: () = assert!(RENEWAL_MAX_AGE.as_secs() < COMMIT_MAX_AGE.as_secs());
const _: () = assert!(PART_MEMORY_BLOCKS >= MAX_ROW_BLOCKS);

/// What the domain layer reads of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Bytes of a block before compression.
    pub block_size: usize,
    /// Objects up to this many bytes travel inside their row.
    pub inline_max: usize,
    /// zstd's level; `None` never compresses.
    pub compression: Option<i32>,
    /// Bytes of blocks in memory, half for uploads, half for downloads; at least 8 blocks.
    pub block_ram_buffer_max: usize,
    /// Keys and bucket names in the cache.
    pub control_entries: usize,
    /// A control record older than this is never used.
    pub control_max_age: Duration,
    /// Index shards of new buckets (a power of two).
    pub index_shards: u16,
}

impl Default for DomainConfig {
    fn default() -> Self {
        Self {
            block_size: DEFAULT_BLOCK_SIZE,
            inline_max: DEFAULT_INLINE_MAX,
            compression: Some(1),
            block_ram_buffer_max: 128 << 20,
            control_entries: 10_000,
            control_max_age: Duration::from_secs(30),
            index_shards: hayloft_common::limits::DEFAULT_INDEX_SHARDS,
        }
    }
}

impl From<&GatewayConfig> for DomainConfig {
    fn from(config: &GatewayConfig) -> Self {
        Self {
            block_size: config.block_size,
            inline_max: config.inline_max,
            compression: match config.compression_level {
                Compression::None => None,
                Compression::Level(level) => Some(level),
            },
            block_ram_buffer_max: config.block_ram_buffer_max,
            control_entries: config.cache.control_entries,
            control_max_age: config.cache.control_max_age,
            ..Self::default()
        }
    }
}
