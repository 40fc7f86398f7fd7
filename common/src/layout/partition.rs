//! From a hash to its partition: the top bits.

use crate::hash::Hash;
use serde::{Deserialize, Serialize};

/// The number of a partition, below `2^bits` of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition(pub u16);

/// The partition of what is named by `hash`, among `2^bits` (`bits` up to
/// [`crate::limits::MAX_PARTITION_BITS`]; more count as that many).
pub fn partition_of(hash: &Hash, bits: u8) -> Partition {
    let bits = u32::from(bits.min(16));
    Partition((u32::from(hash.top16()) >> (16 - bits)) as u16)
}

/// The partition of the rows under partition key `pk`.
pub fn partition_of_key(pk: &[u8], bits: u8) -> Partition {
    partition_of(&Hash::of(pk), bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_the_top_bits() {
        let mut hash = Hash::default();
        hash.0[0] = 0xab;
        hash.0[1] = 0xcd;
        let at = |bits| partition_of(&hash, bits).0;
        assert_eq!((at(0), at(1), at(4), at(8), at(12), at(16)), (0, 1, 0xa, 0xab, 0xabc, 0xabcd));
    }

    #[test]
    fn keys_reach_every_partition() {
        let mut seen = std::collections::BTreeSet::new();
        for key in 0..5000u32 {
            seen.insert(partition_of_key(&key.to_le_bytes(), 8));
        }
        assert_eq!(seen.len(), 256);
    }
}
