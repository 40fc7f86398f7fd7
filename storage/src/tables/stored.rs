//! How a row stands in the engine: 16 bytes of row hash, one byte of flags, then the encoded row without
//! its detail. Directory format 1.
//!
//! The hash is kept so that a change of the row can be taken out of the fingerprint, and rows compared with
//! another replica's, without reading the detail. It depends on the row's content alone, so replicas that
//! hold equal rows hold equal hashes.

use super::{Overlay, RowKey, TablesError};
use crate::meta::{MetaError, Space, View};
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::schema::{Row, TableId};

const HASH: usize = 16;
const HEAD: usize = HASH + 1;
const HAS_DETAIL: u8 = 1;
const LIVE: u8 = 2;

/// The parts of a stored row, not decoded.
#[derive(Clone, Debug)]
pub struct Stored {
    pub hash: u128,
    pub has_detail: bool,
    /// False for a tombstone.
    pub live: bool,
    /// The encoded row without its detail.
    pub short: Bytes,
}

/// A row taken apart for storing.
pub(crate) struct Parts {
    pub(crate) value: Vec<u8>,
    pub(crate) hash: u128,
    pub(crate) detail: Option<Vec<u8>>,
}

/// The hash of a row: its table, key, and content.
fn row_hash(table: TableId, key: &[u8], short: &[u8], detail: Option<&[u8]>) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::from(table)]);
    for part in [key, short] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.update(detail.unwrap_or_default());
    let mut out = [0; HASH];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..HASH]);
    u128::from_le_bytes(out)
}

/// Takes a row apart.
pub(crate) fn take_apart<R: Row>(row: &R, key: &RowKey) -> Parts {
    let mut short = row.clone();
    let detail = short.detach();
    let bytes = codec::encode(&short);
    let hash = row_hash(R::TABLE, key.as_bytes(), &bytes, detail.as_deref());
    let flags = if detail.is_some() { HAS_DETAIL } else { 0 } | if row.is_live() { LIVE } else { 0 };
    let mut value = Vec::with_capacity(HEAD + bytes.len());
    value.extend_from_slice(&hash.to_le_bytes());
    value.push(flags);
    value.extend_from_slice(&bytes);
    Parts { value, hash, detail }
}

impl Stored {
    /// Reads the head of a stored value.
    pub fn parse(table: TableId, key: &[u8], value: &Bytes) -> Result<Self, TablesError> {
        let (Some(hash), Some(&flags)) = (value.first_chunk::<HASH>(), value.get(HASH)) else {
            return Err(TablesError::damaged(table, key, "shorter than its head"));
        };
        Ok(Self {
            hash: u128::from_le_bytes(*hash),
            has_detail: flags & HAS_DETAIL != 0,
            live: flags & LIVE != 0,
            short: value.slice(HEAD..),
        })
    }

    /// The row without its detail.
    pub fn decode_short<R: Row>(&self, key: &[u8]) -> Result<R, TablesError> {
        codec::decode(&self.short).map_err(|e| TablesError::damaged(R::TABLE, key, e))
    }

    /// The row with `detail`, which must be given if it has one.
    fn decode<R: Row>(&self, key: &[u8], detail: Option<Bytes>) -> Result<R, TablesError> {
        let mut row: R = self.decode_short(key)?;
        if self.has_detail {
            let detail =
                detail.ok_or_else(|| TablesError::damaged(R::TABLE, key, "its detail is missing"))?;
            row.attach(&detail).map_err(|e| TablesError::damaged(R::TABLE, key, e))?;
        }
        Ok(row)
    }
}

/// What a row can be loaded from.
pub(crate) trait Source {
    fn value(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError>;
}

impl Source for dyn View + '_ {
    fn value(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        self.get(space, key)
    }
}

impl Source for Overlay<'_> {
    fn value(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        self.get(space, key)
    }
}

/// The row at `key` with its detail, and its stored parts.
pub(crate) fn load<R: Row>(
    source: &(impl Source + ?Sized),
    key: &[u8],
) -> Result<Option<(R, Stored)>, TablesError> {
    let Some(value) = source.value(Space::Table(R::TABLE), key)? else { return Ok(None) };
    let stored = Stored::parse(R::TABLE, key, &value)?;
    let detail = if stored.has_detail {
        source.value(Space::Detail, &super::key::detail_key(R::TABLE, key))?
    } else {
        None
    };
    Ok(Some((stored.decode(key, detail)?, stored)))
}
