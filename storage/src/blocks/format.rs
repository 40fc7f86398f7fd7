//! The on-disk form of blocks. Numbers are little-endian; every header is 64 bytes and checksummed.
//!
//! ```text
//! data directory   hayloft-disk                the marker (marker.rs)
//!                  segments/00000001.seg       packed small blocks: segment header, then records
//!                  blocks/ab/abcdef….blk       one large block: a single record, named by its hash
//!                  tmp/                        large blocks being written; emptied when opened
//!
//! segment header   magic "HAYLSEG\n" 8 | format 2 | 0 2 | disk 4 | segment 4 | 0 4 | node 32 | 0 4 | crc 4
//! record header    magic "HBLK" 4 | format 1 | flags 1 | 0 2 | length 4 | payload crc 4 | place 8 | hash 32
//!                  | disk 4 | crc 4
//! record           header, payload of `length` bytes, zeros up to a multiple of 64
//! ```
//!
//! A record says by itself which block it holds and where it belongs (`place` is segment and offset, or
//! `u64::MAX` in a file of its own), so the index can be rebuilt by scanning, and a record that was
//! written to the wrong place, or that is a copy inside some user's data, is not taken for one. After a
//! torn write a scan goes on at the next multiple of 64 where a header checks out.

use super::index::{DiskId, Place};
use crc_fast::{CrcAlgorithm, checksum};
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;

/// Size of a segment header and of a record header, and the alignment of records, in bytes.
pub const HEADER: usize = 64;
/// The format of data directories, segments and records written today.
pub const FORMAT: u8 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"HAYLSEG\n";
const RECORD_MAGIC: &[u8; 4] = b"HBLK";

/// Why a header or record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("cut short: {found} of {needed} bytes")]
    Short { found: usize, needed: usize },
    #[error("no {what} header here")]
    NoMagic { what: &'static str },
    #[error("the {what} header is damaged (checksum)")]
    HeaderDamaged { what: &'static str },
    #[error(
        "{what} format {found} is not known to this program, which reads up to format {FORMAT}; upgrade it"
    )]
    UnknownFormat { what: &'static str, found: u16 },
    #[error("holds another block, {found}")]
    OtherBlock { found: Hash },
    #[error("belongs elsewhere (misplaced or copied)")]
    Misplaced,
    #[error("the payload is damaged (checksum)")]
    PayloadDamaged,
    #[error("payload of {found} bytes, at most {max} are possible")]
    TooLong { found: usize, max: usize },
}

/// crc32c.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Rounds a length up to the record alignment.
pub const fn aligned(len: u64) -> u64 {
    len.next_multiple_of(HEADER as u64)
}

/// Bytes a payload of `len` bytes takes in a segment.
pub const fn record_size(len: usize) -> u64 {
    aligned((HEADER + len) as u64)
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The header's bytes if there are enough of them.
fn header_bytes(bytes: &[u8]) -> Result<&[u8; HEADER], FormatError> {
    bytes.first_chunk().ok_or(FormatError::Short { found: bytes.len(), needed: HEADER })
}

fn seal(header: &mut [u8; HEADER]) {
    let crc = crc32c(&header[..HEADER - 4]);
    header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn check(header: &[u8; HEADER], what: &'static str) -> Result<(), FormatError> {
    if u32_at(header, HEADER - 4) == crc32c(&header[..HEADER - 4]) {
        Ok(())
    } else {
        Err(FormatError::HeaderDamaged { what })
    }
}

/// The start of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub node: NodeId,
    pub disk: DiskId,
    pub segment: u32,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&u16::from(FORMAT).to_le_bytes());
        out[12..16].copy_from_slice(&self.disk.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.segment.to_le_bytes());
        out[24..56].copy_from_slice(&self.node.0);
        seal(&mut out);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "segment";
        let header = header_bytes(bytes)?;
        if &header[..8] != SEGMENT_MAGIC {
            return Err(FormatError::NoMagic { what });
        }
        check(header, what)?;
        let found = u16::from_le_bytes([header[8], header[9]]);
        if found != u16::from(FORMAT) {
            return Err(FormatError::UnknownFormat { what, found });
        }
        let mut node = NodeId::default();
        node.0.copy_from_slice(&header[24..56]);
        Ok(Self { node, disk: DiskId(u32_at(header, 12)), segment: u32_at(header, 16) })
    }
}

/// The start of a record, packed or in a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    pub hash: Hash,
    pub disk: DiskId,
    pub place: Place,
    /// Length of the payload (the envelope) in bytes.
    pub len: u32,
    pub payload_crc: u32,
}

impl RecordHeader {
    /// The header for `payload` at `place`.
    pub fn new(hash: Hash, disk: DiskId, place: Place, payload: &[u8]) -> Self {
        Self { hash, disk, place, len: payload.len() as u32, payload_crc: crc32c(payload) }
    }

    pub fn encode(&self) -> [u8; HEADER] {
        let place = match self.place {
            Place::Packed { segment, offset } => u64::from(segment) << 32 | u64::from(offset),
            Place::Plain => u64::MAX,
        };
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(RECORD_MAGIC);
        out[4] = FORMAT;
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[16..24].copy_from_slice(&place.to_le_bytes());
        out[24..56].copy_from_slice(&self.hash.0);
        out[56..60].copy_from_slice(&self.disk.0.to_le_bytes());
        seal(&mut out);
        out
    }

    /// Reads a header that stands at `place` of `disk`; one that says otherwise is refused.
    pub fn decode(bytes: &[u8], disk: DiskId, place: Place) -> Result<Self, FormatError> {
        let what = "record";
        let header = header_bytes(bytes)?;
        if &header[..4] != RECORD_MAGIC {
            return Err(FormatError::NoMagic { what });
        }
        check(header, what)?;
        // Flags have no meaning yet: a record that sets one was written by a newer program.
        if header[4] != FORMAT || header[5] != 0 {
            return Err(FormatError::UnknownFormat { what, found: u16::from(header[4]) });
        }
        let mut hash = Hash::default();
        hash.0.copy_from_slice(&header[24..56]);
        let decoded = Self {
            hash,
            disk: DiskId(u32_at(header, 56)),
            place,
            len: u32_at(header, 8),
            payload_crc: u32_at(header, 12),
        };
        // Encoding what was read, at the place where it was read, must give the same bytes back.
        if decoded.disk == disk && decoded.encode() == *header {
            Ok(decoded)
        } else {
            Err(FormatError::Misplaced)
        }
    }

    /// Checks the payload behind this header.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FormatError> {
        if payload.len() != self.len as usize {
            return Err(FormatError::Short { found: payload.len(), needed: self.len as usize });
        }
        if crc32c(payload) == self.payload_crc { Ok(()) } else { Err(FormatError::PayloadDamaged) }
    }
}

/// Checks a whole record that was read where block `hash` should be; the payload is `bytes[HEADER..end]`
/// and `end` is returned.
pub fn check_record(bytes: &[u8], hash: &Hash, disk: DiskId, place: Place) -> Result<usize, FormatError> {
    let header = RecordHeader::decode(bytes, disk, place)?;
    if header.hash != *hash {
        return Err(FormatError::OtherBlock { found: header.hash });
    }
    let end = HEADER + header.len as usize;
    let payload = bytes.get(HEADER..end).ok_or(FormatError::Short { found: bytes.len(), needed: end })?;
    header.check_payload(payload)?;
    Ok(end)
}

/// Name of a segment file in the data directory.
pub fn segment_path(segment: u32) -> String {
    format!("{SEGMENTS}/{segment:08}.seg")
}

/// The number in a segment's file name (without its directory).
pub fn segment_number(name: &str) -> Option<u32> {
    name.strip_suffix(".seg").filter(|digits| digits.len() >= 8)?.parse().ok()
}

/// Directory, and path in the data directory, of a large block's file.
pub fn plain_path(hash: &Hash) -> (String, String) {
    let name = hash.to_string();
    let dir = format!("{BLOCKS}/{}", &name[..2]);
    let path = format!("{dir}/{name}.blk");
    (dir, path)
}

/// The hash in a large block's file name (without its directory).
pub fn plain_hash(name: &str) -> Option<Hash> {
    name.strip_suffix(".blk")?.parse().ok()
}

/// Directory of the packed segments.
pub const SEGMENTS: &str = "segments";
/// Directory of the large blocks; below it one directory per first byte of the hash, in hex.
pub const BLOCKS: &str = "blocks";
/// Directory of the large blocks being written.
pub const TMP: &str = "tmp";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> RecordHeader {
        RecordHeader::new(Hash([0xab; 32]), DiskId(7), Place::Packed { segment: 3, offset: 640 }, b"payload")
    }

    #[test]
    fn headers_round_trip_and_names_parse_back() {
        let segment = SegmentHeader { node: NodeId([5; 32]), disk: DiskId(9), segment: 77 };
        assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(segment));
        for place in [Place::Plain, Place::Packed { segment: 1, offset: 64 }] {
            let record = RecordHeader { place, ..header() };
            assert_eq!(RecordHeader::decode(&record.encode(), DiskId(7), place), Ok(record));
        }
        assert_eq!(segment_number("00000012.seg"), Some(12));
        let (_, path) = plain_path(&Hash([0xab; 32]));
        assert_eq!(plain_hash(path.rsplit('/').next().unwrap()), Some(Hash([0xab; 32])));
    }

    /// The bytes of format 1, which may never change.
    #[test]
    fn the_first_format_stays_readable() {
        let segment = SegmentHeader { node: NodeId([5; 32]), disk: DiskId(9), segment: 77 };
        let golden = "4841594c5345470a01000000090000004d0000000000000005050505050505050505050505050505\
                      050505050505050505050505050505050000000092009e01";
        assert_eq!(hex::encode(segment.encode()), golden);
        let golden = "48424c4b01000000070000007069e3f48002000003000000abababababababababababababababab\
                      abababababababababababababababab07000000e4dcafc9";
        assert_eq!(hex::encode(header().encode()), golden);
    }

    #[test]
    fn a_record_elsewhere_or_of_another_disk_or_format_is_refused() {
        let bytes = header().encode();
        let place = header().place;
        let moved = Place::Packed { segment: 3, offset: 704 };
        assert_eq!(RecordHeader::decode(&bytes, DiskId(7), moved), Err(FormatError::Misplaced));
        assert_eq!(RecordHeader::decode(&bytes, DiskId(8), place), Err(FormatError::Misplaced));
        let mut newer = bytes;
        newer[4] = 2;
        seal(&mut newer);
        let error = RecordHeader::decode(&newer, DiskId(7), place).unwrap_err();
        assert!(error.to_string().contains("format 2 is not known"), "{error}");
    }

    proptest! {
        #[test]
        fn every_flipped_bit_of_a_record_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(),
        ) {
            let hash = Hash::of(&payload);
            let mut bytes = RecordHeader::new(hash, DiskId(1), Place::Plain, &payload).encode().to_vec();
            bytes.extend_from_slice(&payload);
            prop_assert_eq!(check_record(&bytes, &hash, DiskId(1), Place::Plain), Ok(bytes.len()));
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1_u8 << (bit % 8);
            prop_assert!(check_record(&bytes, &hash, DiskId(1), Place::Plain).is_err());
        }
    }
}
