//! Where each block lies. The index itself is kept by the daemon in its metadata engine; here are its
//! entries, their bytes, and the lookups the block store needs.
//!
//! Rule for the caller: a block's entry is committed only after `put` returned its location, and removed
//! (durably) before `delete` is called for it. So an entry always names bytes that were synced, and what
//! a crash leaves behind is at worst bytes without an entry, which a scan finds.

use hayloft_common::hash::Hash;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A data directory of this node, drawn at random when it is first used and kept in its marker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskId(pub u32);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Where on a disk a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The record starts at `offset` bytes in the segment file.
    Packed { segment: u32, offset: u32 },
    /// A file of its own, found by its hash.
    Plain,
}

/// Where a block lies and how long its envelope is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub disk: DiskId,
    pub place: Place,
    /// Of a plain file only an indication: it may have been replaced by another envelope of the block.
    pub len: u32,
}

/// Why the bytes of a location cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("block location of form {0} is not known to this program (it knows 1 and 2); upgrade it")]
    UnknownForm(u8),
    #[error("block location of {0} bytes: damaged")]
    Length(usize),
}

/// First byte of an encoded packed location: disk 4, segment 4, offset 4, length 4 follow (little-endian).
const PACKED: u8 = 1;
/// First byte of an encoded plain location: disk 4, length 4 follow.
const PLAIN: u8 = 2;

impl Location {
    /// Nine or seventeen bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17);
        match self.place {
            Place::Packed { segment, offset } => {
                out.push(PACKED);
                out.extend_from_slice(&self.disk.0.to_le_bytes());
                out.extend_from_slice(&segment.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
            }
            Place::Plain => {
                out.push(PLAIN);
                out.extend_from_slice(&self.disk.0.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.len.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, LocationError> {
        let (&form, body) = bytes.split_first().ok_or(LocationError::Length(0))?;
        let (words, rest) = body.as_chunks::<4>();
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        match (form, words.as_slice(), rest) {
            (PACKED, &[disk, segment, offset, len], []) => {
                Ok(Self { disk: DiskId(disk), place: Place::Packed { segment, offset }, len })
            }
            (PLAIN, &[disk, len], []) => Ok(Self { disk: DiskId(disk), place: Place::Plain, len }),
            (PACKED | PLAIN, ..) => Err(LocationError::Length(bytes.len())),
            (form, ..) => Err(LocationError::UnknownForm(form)),
        }
    }

    /// Whether both name the same bytes on disk. When a block was put again and its entry moves from
    /// `old` to `new`, `old` is to be deleted only if this is false.
    pub fn same_place(&self, other: &Self) -> bool {
        self.disk == other.disk && self.place == other.place
    }
}

/// The node's index of blocks.
pub trait BlockIndex: Send + Sync {
    /// Where a block lies, `None` if this node does not have it.
    fn get(&self, hash: &Hash) -> Option<Location>;
    /// Calls `visit` for each entry, in any order.
    fn for_each(&self, visit: &mut dyn FnMut(Hash, Location));
}

/// An index in memory: for tests, and to collect what a rebuild finds.
#[derive(Default)]
pub struct MemoryIndex(RwLock<BTreeMap<Hash, Location>>);

impl MemoryIndex {
    /// Sets the entry of a block; returns the one before.
    pub fn insert(&self, hash: Hash, location: Location) -> Option<Location> {
        self.0.write().insert(hash, location)
    }

    /// Removes the entry of a block and returns it.
    pub fn remove(&self, hash: &Hash) -> Option<Location> {
        self.0.write().remove(hash)
    }

    /// All entries, by hash.
    pub fn entries(&self) -> Vec<(Hash, Location)> {
        self.0.read().iter().map(|(hash, location)| (*hash, *location)).collect()
    }
}

impl BlockIndex for MemoryIndex {
    fn get(&self, hash: &Hash) -> Option<Location> {
        self.0.read().get(hash).copied()
    }

    fn for_each(&self, visit: &mut dyn FnMut(Hash, Location)) {
        for (hash, location) in self.entries() {
            visit(hash, location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn locations_round_trip(disk: u32, packed: Option<(u32, u32)>, len: u32) {
            let place = packed.map_or(Place::Plain, |(segment, offset)| Place::Packed { segment, offset });
            let location = Location { disk: DiskId(disk), place, len };
            prop_assert_eq!(Location::decode(&location.encode()), Ok(location));
        }

        #[test]
        fn any_bytes_can_be_decoded(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(location) = Location::decode(&bytes) {
                prop_assert_eq!(location.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_first_forms_stay_readable() {
        let packed = Location { disk: DiskId(1), place: Place::Packed { segment: 2, offset: 64 }, len: 300 };
        assert_eq!(hex::encode(packed.encode()), "010100000002000000400000002c010000");
        let plain = Location { place: Place::Plain, ..packed };
        assert_eq!(hex::encode(plain.encode()), "02010000002c010000");
        assert_eq!(Location::decode(&[9, 0, 0, 0, 0]), Err(LocationError::UnknownForm(9)));
    }
}
