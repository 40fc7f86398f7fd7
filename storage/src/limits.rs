//! Sizes and counts of the storage node, and how they relate (checked when compiled).

use hayloft_common::block;
use hayloft_common::limits::MAX_BLOCK_SIZE;

/// Longest envelope a block store accepts, in bytes: an incompressible block of the largest size.
pub const MAX_STORED_BLOCK: usize = MAX_BLOCK_SIZE + block::OVERHEAD;
/// Envelopes shorter than this are packed into segments, by default; longer ones get a file each.
pub const DEFAULT_PACK_BELOW: usize = 256 << 10;
/// A segment takes no more records once it is this long, by default.
pub const DEFAULT_SEGMENT_SIZE: u64 = 256 << 20;
/// Largest segment size that may be configured: offsets in a segment are 32 bits.
pub const MAX_SEGMENT_SIZE: u64 = 2 << 30;
/// Records are written (and synced) together up to this many bytes.
pub const MAX_PACK_BATCH: usize = 8 << 20;
/// A disk with less free space than this takes no new blocks, by default.
pub const DEFAULT_DISK_RESERVE: u64 = 1 << 30;
/// Reads of one disk that may run side by side, by default.
pub const DEFAULT_READS_PER_DISK: usize = 16;
/// Large blocks of one disk that may be written side by side, by default.
pub const DEFAULT_WRITES_PER_DISK: usize = 8;
/// Bytes of blocks waiting to be written to one disk, by default; further puts wait for room.
pub const DEFAULT_WRITE_QUEUE: usize = 64 << 20;
/// Puts that may wait for room in one disk's queue; further ones are refused at once.
pub const MAX_WAITING_PUTS: usize = 4096;
/// Open segment files kept per disk for reading.
pub const OPEN_SEGMENTS_PER_DISK: usize = 128;
/// Read errors in a row after which a disk is set aside.
pub const MAX_READ_ERRORS: u32 = 16;
/// Looks at a disk in a row that were due while an earlier one was not answered, after which it counts as hanging.
pub const HANGING_LOOKS: u32 = 8;
/// Blocks expanding to at most this many bytes are checked on the spot; larger ones in a blocking thread.
pub const INLINE_CHECK: u64 = 64 << 10;

const _: () = assert!(DEFAULT_PACK_BELOW < MAX_PACK_BATCH);
const _: () = assert!(MAX_PACK_BATCH as u64 <= DEFAULT_SEGMENT_SIZE);
const _: () = assert!(DEFAULT_SEGMENT_SIZE <= MAX_SEGMENT_SIZE);
// A segment may exceed its size by one batch, and one record may exceed a batch.
const _: () = assert!(MAX_SEGMENT_SIZE + (MAX_PACK_BATCH + 2 * MAX_STORED_BLOCK) as u64 <= u32::MAX as u64);
const _: () = assert!(MAX_STORED_BLOCK <= DEFAULT_WRITE_QUEUE);
