//! The block envelope: how a plain block is wrapped for the wire and for the disk.
//!
//! One kind byte (raw or zstd), then the payload. The gateway seals and opens; a storage node keeps what
//! it was given and opens it only to check it. A block is named by the blake3 hash of its *plain* bytes,
//! so raw and compressed envelopes of one block may replace each other.
//!
//! Guarantees: [`open`] returns bytes only if they hash to the expected name, and never allocates more
//! than the caller's bound, whatever the envelope claims. Opening a raw envelope copies nothing.

use crate::hash::Hash;
use bytes::Bytes;
use std::cell::RefCell;
use std::io::Cursor;
use zstd::bulk::{Compressor, Decompressor};

/// Kind byte of a payload that is the plain block itself.
pub const RAW: u8 = 0;
/// Kind byte of a payload that is one zstd frame with its content size recorded.
pub const ZSTD: u8 = 1;

/// Lowest zstd level that may be configured (the fastest).
pub const MIN_LEVEL: i32 = -99;
/// Highest zstd level that may be configured (the smallest).
pub const MAX_LEVEL: i32 = 22;

/// Bytes an envelope adds to a block that does not compress.
pub const OVERHEAD: usize = 1;

/// Below this size nothing is gained on disk or on the wire.
const MIN_COMPRESS: usize = 128;
/// From this size on a sample is tried before the whole block.
const SAMPLE_FROM: usize = 64 << 10;
/// Three pieces of this size make the sample: start, middle and end.
const SAMPLE_PIECE: usize = 4 << 10;

/// Why an envelope cannot be opened. Every case means: this copy is useless, take another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the block envelope is empty")]
    Empty,
    #[error(
        "block envelope of kind {0} is not known to this program (it knows 0 = raw, 1 = zstd); upgrade it"
    )]
    UnknownKind(u8),
    #[error("the block expands to {size} bytes, more than the {max} allowed")]
    TooLarge { size: u64, max: usize },
    #[error("the block's compressed payload is damaged: {0}")]
    Damaged(String),
    #[error("the block's bytes hash to {found}, not to {expected}")]
    WrongHash { expected: Hash, found: Hash },
}

/// A parsed envelope, not yet checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope<'a> {
    Raw(&'a [u8]),
    Zstd(&'a [u8]),
}

impl<'a> Envelope<'a> {
    /// Splits the kind byte from the payload.
    pub fn parse(envelope: &'a [u8]) -> Result<Self, EnvelopeError> {
        match envelope.split_first() {
            None => Err(EnvelopeError::Empty),
            Some((&RAW, payload)) => Ok(Self::Raw(payload)),
            Some((&ZSTD, payload)) => Ok(Self::Zstd(payload)),
            Some((&kind, _)) => Err(EnvelopeError::UnknownKind(kind)),
        }
    }

    /// The size of the plain block as the envelope claims it, in bytes; not to be trusted before `open`.
    pub fn plain_size(&self) -> Result<u64, EnvelopeError> {
        match self {
            Self::Raw(payload) => Ok(payload.len() as u64),
            Self::Zstd(frame) => zstd::zstd_safe::get_frame_content_size(frame)
                .map_err(|_| EnvelopeError::Damaged("not a zstd frame".into()))?
                .ok_or_else(|| EnvelopeError::Damaged("the frame does not record its size".into())),
        }
    }
}

thread_local! {
    // A zstd context costs more to make than a small block costs to compress: one per thread, kept.
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Wraps a plain block. With a level (clamped to −99..=22; 0 is zstd's default) it is compressed when
/// that saves at least 1/32; with `None`, or when it does not pay, it is stored raw. Data that does not
/// compress is recognised from a sample, so a high level costs little on it.
pub fn seal(plain: &[u8], level: Option<i32>) -> Bytes {
    level
        .filter(|_| plain.len() >= MIN_COMPRESS)
        .map(|level| level.clamp(MIN_LEVEL, MAX_LEVEL))
        .filter(|&level| looks_compressible(plain, level))
        .and_then(|level| compress(plain, level, plain.len() - plain.len() / 32))
        .unwrap_or_else(|| {
            let mut envelope = Vec::with_capacity(plain.len() + OVERHEAD);
            envelope.push(RAW);
            envelope.extend_from_slice(plain);
            envelope.into()
        })
}

/// Unwraps an envelope: the plain block, whose hash is `expect` and whose size is at most `max_size`.
pub fn open(envelope: &Bytes, expect: &Hash, max_size: usize) -> Result<Bytes, EnvelopeError> {
    let parsed = Envelope::parse(envelope)?;
    let size = parsed.plain_size()?;
    if size > max_size as u64 {
        return Err(EnvelopeError::TooLarge { size, max: max_size });
    }
    let plain = match parsed {
        Envelope::Raw(_) => envelope.slice(1..),
        // The size fits: it is at most `max_size`, a usize.
        Envelope::Zstd(frame) => Bytes::from(decompress(frame, size as usize)?),
    };
    let found = Hash::of(&plain);
    if found == *expect { Ok(plain) } else { Err(EnvelopeError::WrongHash { expected: *expect, found }) }
}

/// Judges from three pieces, at a level no dearer than 1, whether compressing may save anything.
fn looks_compressible(plain: &[u8], level: i32) -> bool {
    if plain.len() < SAMPLE_FROM {
        return true;
    }
    let middle = plain.len() / 2;
    let sample =
        [&plain[..SAMPLE_PIECE], &plain[middle..middle + SAMPLE_PIECE], &plain[plain.len() - SAMPLE_PIECE..]]
            .concat();
    compress(&sample, level.min(1), sample.len() - sample.len() / 64).is_some()
}

/// One zstd envelope whose payload is at most `limit` bytes; `None` if it would be longer.
fn compress(plain: &[u8], level: i32, limit: usize) -> Option<Bytes> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(kept, _)| *kept != level) {
            // Fails only when memory is short: then the block is stored raw, which is always right.
            *slot = Some((level, Compressor::new(level).ok()?));
        }
        let (_, compressor) = slot.as_mut()?;
        let mut envelope = vec![ZSTD];
        envelope.reserve_exact(limit);
        let mut out = Cursor::new(envelope);
        out.set_position(1);
        // The one expected failure: the result does not fit, so it does not pay.
        compressor.compress_to_buffer(plain, &mut out).ok()?;
        let mut envelope = out.into_inner();
        // `reserve_exact` may round up; the promise about the length is ours.
        if envelope.len() > limit + 1 {
            return None;
        }
        envelope.shrink_to_fit();
        Some(envelope.into())
    })
}

fn decompress(frame: &[u8], size: usize) -> Result<Vec<u8>, EnvelopeError> {
    let damaged = |e: std::io::Error| EnvelopeError::Damaged(e.to_string());
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Decompressor::new().map_err(damaged)?);
        }
        let Some(decompressor) = slot.as_mut() else {
            return Err(EnvelopeError::Damaged("no decompressor".into()));
        };
        let mut plain = Vec::with_capacity(size);
        decompressor.decompress_to_buffer(frame, &mut plain).map_err(damaged)?;
        if plain.len() == size {
            Ok(plain)
        } else {
            Err(EnvelopeError::Damaged(format!("{} bytes where {size} were announced", plain.len())))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 4 << 20;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    fn kind(envelope: &Bytes) -> u8 {
        envelope[0]
    }

    #[test]
    fn text_is_compressed_and_noise_is_not() {
        let text = b"the quick brown fox jumps over the lazy dog; ".repeat(4000);
        for level in [-99, -3, 0, 1, 3, 19, 22, 1000] {
            let sealed = seal(&text, Some(level));
            assert_eq!(kind(&sealed), ZSTD, "level {level}");
            assert!(sealed.len() < text.len() / 2, "level {level}");
            assert_eq!(open(&sealed, &Hash::of(&text), MAX).unwrap(), text);
            assert_eq!(kind(&seal(&noise(200_000), Some(level))), RAW);
        }
        assert_eq!(kind(&seal(&text, None)), RAW);
    }

    #[test]
    fn a_raw_envelope_is_opened_without_a_copy() {
        let sealed = seal(&noise(5000), None);
        let plain = open(&sealed, &Hash::of(&noise(5000)), MAX).unwrap();
        assert_eq!(plain.as_ptr(), sealed[1..].as_ptr());
    }

    #[test]
    fn a_bomb_is_refused_before_anything_is_allocated() {
        let zeros = vec![0; MAX + 1];
        let sealed = seal(&zeros, Some(3));
        assert_eq!(
            open(&sealed, &Hash::of(&zeros), MAX),
            Err(EnvelopeError::TooLarge { size: MAX as u64 + 1, max: MAX })
        );
        // A frame that lies about its size: announce less than there is, by splicing another header.
        let mut double = seal(&vec![1; 50_000], Some(3)).to_vec();
        double.extend_from_slice(&seal(&vec![1; 50_000], Some(3))[1..]);
        assert!(matches!(open(&double.into(), &Hash::default(), MAX), Err(EnvelopeError::Damaged(_))));
    }

    #[test]
    fn unknown_kinds_and_empty_envelopes_are_named() {
        let hash = Hash::of(b"");
        assert_eq!(open(&Bytes::new(), &hash, MAX), Err(EnvelopeError::Empty));
        assert_eq!(open(&Bytes::from_static(&[7, 1]), &hash, MAX), Err(EnvelopeError::UnknownKind(7)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn open_is_the_inverse_of_seal(
            piece in prop::collection::vec(any::<u8>(), 0..2000), times in 1_usize..100,
            level in prop::option::of(-10_i32..6),
        ) {
            let plain = piece.repeat(times);
            let sealed = seal(&plain, level);
            prop_assert!(sealed.len() <= plain.len() + OVERHEAD);
            prop_assert_eq!(open(&sealed, &Hash::of(&plain), MAX).unwrap(), plain);
        }

        #[test]
        fn no_change_to_an_envelope_yields_other_bytes(
            piece in prop::collection::vec(any::<u8>(), 1..500), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let plain = piece.repeat(40);
            let mut sealed = seal(&plain, Some(1)).to_vec();
            let at = at.index(sealed.len());
            sealed[at] ^= 1_u8 << bit;
            // zstd has bits without meaning: a flip may go unnoticed, but never change the plain bytes.
            if let Ok(opened) = open(&sealed.into(), &Hash::of(&plain), MAX) {
                prop_assert_eq!(opened, plain);
            }
        }

        #[test]
        fn any_bytes_can_be_tried(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&bytes.into(), &Hash([0; 32]), 1000).is_err());
        }
    }
}
