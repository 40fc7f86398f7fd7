//! Deterministic object content: seeded pseudo-random bytes that can be made again from any offset.
//!
//! Whoever knows a key, a generation and a length can produce the exact bytes of that object, so content is
//! verified without being stored, ranges included. The bytes do not compress and no two blocks are equal, so
//! neither compression nor deduplication flatters a measurement. Not cryptographic, and not meant to be.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// Bytes produced at a time when content is streamed.
pub const CHUNK: usize = 256 << 10;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sequence of `len` bytes, fixed by its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    seed: u64,
    len: u64,
}

impl Content {
    /// The content of one generation of a key. Different generations share no 8 bytes at any offset, but by
    /// chance.
    pub fn of(key: &str, generation: u64, len: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&generation.to_le_bytes()).update(key.as_bytes());
        let mut seed = [0; 8];
        seed.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self { seed: u64::from_le_bytes(seed), len }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn word(&self, index: u64) -> [u8; 8] {
        // SplitMix64 at a position: any offset costs the same.
        let mut z = self.seed.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// Writes the bytes from `offset` into `out`; `offset + out.len()` is the caller's to keep within the length.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let mut index = offset / 8;
        let skip = (offset % 8) as usize;
        let mut rest = out;
        if skip != 0 {
            let take = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at_mut(take);
            head.copy_from_slice(&self.word(index)[skip..skip + take]);
            rest = tail;
            index += 1;
        }
        let mut words = rest.chunks_exact_mut(8);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.word(index));
            index += 1;
        }
        let last = words.into_remainder();
        let take = last.len();
        last.copy_from_slice(&self.word(index)[..take]);
    }

    /// At most [`CHUNK`] bytes from `offset`; empty at or after `end` (which is capped at the length).
    pub fn chunk(&self, offset: u64, end: u64) -> Bytes {
        let left = end.min(self.len).saturating_sub(offset);
        let mut buffer = vec![0; left.min(CHUNK as u64) as usize];
        self.fill(offset, &mut buffer);
        Bytes::from(buffer)
    }

    /// Where `data`, which claims to stand at `offset`, first differs from this content; `None` when it is right.
    pub fn first_difference(&self, offset: u64, data: &[u8]) -> Option<u64> {
        let mut expected = [0; 4096];
        let mut at = offset;
        for piece in data.chunks(expected.len()) {
            if at + piece.len() as u64 > self.len {
                return Some(self.len.max(offset));
            }
            let expected = &mut expected[..piece.len()];
            self.fill(at, expected);
            if expected != piece {
                let inside = expected.iter().zip(piece).take_while(|(a, b)| a == b).count();
                return Some(at + inside as u64);
            }
            at += piece.len() as u64;
        }
        None
    }

    /// SHA-256 in hex of the bytes from `offset` to `end`, as signed payloads need it.
    pub fn sha256(&self, offset: u64, end: u64) -> String {
        let mut hasher = Sha256::new();
        let mut at = offset;
        loop {
            let chunk = self.chunk(at, end);
            if chunk.is_empty() {
                return hex::encode(hasher.finalize());
            }
            hasher.update(&chunk);
            at += chunk.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_never_changes_between_versions_of_this_program() {
        let mut bytes = [0; 16];
        Content::of("photos/cat", 7, 100).fill(0, &mut bytes);
        assert_eq!(hex::encode(bytes), GOLDEN);
    }
    const GOLDEN: &str = "d079400d062173ddd56b4788c8d7dded";

    #[test]
    fn generations_and_keys_differ() {
        let bytes = |key, generation| Content::of(key, generation, 64).chunk(0, 64);
        assert_eq!(bytes("a", 1), bytes("a", 1));
        assert_ne!(bytes("a", 1), bytes("a", 2));
        assert_ne!(bytes("a", 1), bytes("b", 1));
    }

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let content = Content::of("k", 1, 10_000);
        let mut data = content.chunk(0, 10_000).to_vec();
        assert_eq!(content.first_difference(0, &data), None);
        data[5_001] ^= 1;
        assert_eq!(content.first_difference(0, &data), Some(5_001));
        assert_eq!(content.first_difference(0, &[0; 10_001]), Some(0));
        let longer = [content.chunk(0, 10_000).as_ref(), b"x"].concat();
        assert!(content.first_difference(0, &longer).is_some());
    }

    proptest! {
        #[test]
        fn any_range_equals_the_same_range_of_the_whole(a in 0u64..5_000, b in 0u64..5_000, seed: u64) {
            let content = Content::of("k", seed, 5_000);
            let whole = content.chunk(0, 5_000);
            let (from, to) = (a.min(b), a.max(b));
            prop_assert_eq!(&content.chunk(from, to)[..], &whole[from as usize..to as usize]);
            prop_assert_eq!(content.first_difference(from, &whole[from as usize..to as usize]), None);
        }
    }
}
