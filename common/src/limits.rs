//! Cluster-wide sizes and counts, and how they relate (checked when compiled).

/// Longest object key, in bytes of UTF-8 (S3's limit).
pub const MAX_OBJECT_KEY: usize = 1024;
/// Largest object of one PUT, and largest part: 5 GiB (S3's limit).
pub const MAX_PUT_SIZE: u64 = 5 << 30;
/// Largest completed object: 5 TiB (S3's limit).
pub const MAX_OBJECT_SIZE: u64 = 5 << 40;
/// Most parts of an upload, and the highest part number (S3's limit).
pub const MAX_PARTS: u16 = 10_000;
/// Smallest part but the last, in bytes (S3's limit).
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Most entries of one listing page, and most keys of one DeleteObjects (S3's limit).
pub const MAX_LIST_PAGE: usize = 1000;
/// User metadata of one object, names and values together, in bytes (S3's limit).
pub const MAX_USER_METADATA: usize = 2048;

/// Size of a block before compression, by default.
pub const DEFAULT_BLOCK_SIZE: usize = 1 << 20;
/// Largest block size that may be configured; bounds what a node accepts and what expands from zstd.
pub const MAX_BLOCK_SIZE: usize = 16 << 20;
/// Objects up to this many bytes travel inside their row, by default.
pub const DEFAULT_INLINE_MAX: usize = 16 << 10;
/// Largest inline limit that may be configured.
pub const MAX_INLINE: usize = 256 << 10;
/// Block lists up to this long stand in the object row; longer ones go to manifest rows.
pub const MAX_ROW_BLOCKS: usize = 64;
/// Blocks in one manifest row.
pub const MANIFEST_CHUNK: usize = 1024;
/// Largest encoded row, in bytes: an object of 10,000 parts with checksums fits.
pub const MAX_ROW_SIZE: usize = 2 << 20;

/// Partitions of a new cluster, as a power of two.
pub const DEFAULT_PARTITION_BITS: u8 = 8;
/// Most partitions, as a power of two.
pub const MAX_PARTITION_BITS: u8 = 16;
/// Replication factors that can be chosen.
pub const REPLICATION_FACTORS: [usize; 4] = [1, 2, 3, 5];
/// Index shards of a new bucket.
pub const DEFAULT_INDEX_SHARDS: u16 = 1;
/// Most index shards of a bucket (a power of two).
pub const MAX_INDEX_SHARDS: u16 = 256;

const _: () = assert!(DEFAULT_BLOCK_SIZE <= MAX_BLOCK_SIZE);
const _: () = assert!(DEFAULT_INLINE_MAX <= MAX_INLINE && MAX_INLINE < MAX_ROW_SIZE);
const _: () = assert!(MAX_PUT_SIZE <= MAX_OBJECT_SIZE);
const _: () = assert!(DEFAULT_PARTITION_BITS <= MAX_PARTITION_BITS && MAX_PARTITION_BITS <= 16);
