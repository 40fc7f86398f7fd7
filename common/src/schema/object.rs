//! Objects: one row per key and version slot, and the block lists too long for it.
//!
//! Format 1. The null slot is a last-writer-wins register (a bucket without versioning has nothing
//! else); named slots are written once and may only turn into a tombstone. The detail (headers, inline
//! data, block list) is stored apart, so that a listing reads short rows.

use super::{Row, RowError, TableId, rule, sort_key};
use crate::codec::{self, CodecError, Format};
use crate::crdt::wins;
use crate::hash::Hash;
use crate::id::{BucketId, VersionId};
use crate::limits;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

/// Content headers and user metadata (`x-amz-meta-…`), names in lower case, in the order given.
pub type Headers = Vec<(String, String)>;

/// The partition key of one index shard of a bucket: objects, uploads and parts live under it.
pub fn index_partition_key(bucket: &BucketId, shard: u16) -> Vec<u8> {
    let mut key = bucket.0.to_vec();
    key.extend_from_slice(&shard.to_be_bytes());
    key
}

/// The index shard of an object key in a bucket with `shards` shards (a power of two).
pub fn index_shard(key: &str, shards: u16) -> u16 {
    Hash::of(key.as_bytes()).top16() & (shards.max(1) - 1)
}

/// Which version of a key a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// The version with id `null`: what buckets without versioning write.
    Null,
    /// A version of a versioned bucket, newest first within the key.
    Named { stamp: Stamp, version: VersionId },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRow {
    pub bucket: BucketId,
    pub shard: u16,
    pub key: String,
    pub slot: Slot,
    pub stamp: Stamp,
    pub state: ObjectState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectState {
    Tombstone,
    Live(Box<ObjectVersion>),
}

/// What a listing shows of an object; the rest is in the detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectVersion {
    pub id: VersionId,
    /// `Last-Modified`: milliseconds since the epoch by the writer's wall clock. Plays no part in ordering.
    pub modified_ms: u64,
    /// Bytes of the whole object.
    pub size: u64,
    /// Without quotes: 32 hex digits, with `-N` behind for N parts.
    pub etag: String,
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    /// `None` in rows read without it.
    pub detail: Option<Box<ObjectDetail>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectDetail {
    pub headers: Headers,
    pub checksum: Option<Checksum>,
    /// The parts of a completed multipart upload, in order; empty for a single PUT.
    pub parts: Vec<PartEntry>,
    pub data: ObjectData,
}

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectData {
    /// Here.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In these blocks, in order; at most [`limits::MAX_ROW_BLOCKS`].
    Blocks(Vec<BlockEntry>),
    /// In the blocks of the manifest rows 0, 1, … of this version. Entry `i` is the offset in the object
    /// of the first byte of row `i`; `first` repeats the first blocks, so that reading can start at once.
    Manifest { chunk_offsets: Vec<u64>, first: Vec<BlockEntry> },
}

/// One block of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockEntry {
    /// Hash of the plain block.
    pub hash: Hash,
    /// Plain bytes in the block.
    pub len: u32,
}

/// One part of a completed multipart object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    pub number: u16,
    pub size: u64,
    pub checksum: Option<serde_bytes::ByteBuf>,
}

/// The checksums S3 knows besides the ETag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

/// Over all bytes, or over the checksums of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChecksumKind {
    FullObject,
    Composite,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub algorithm: ChecksumAlgorithm,
    pub kind: ChecksumKind,
    /// The raw digest.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

impl Format for ObjectDetail {
    const NAME: &'static str = "object detail";
}

impl Format for ObjectRow {
    const NAME: &'static str = "object row";
}

impl ObjectRow {
    /// The version, unless the row is a tombstone.
    pub fn live(&self) -> Option<&ObjectVersion> {
        match &self.state {
            ObjectState::Live(version) => Some(version),
            ObjectState::Tombstone => None,
        }
    }

    /// The sort key of `key`'s version in `slot`.
    pub fn sort_key_of(key: &str, slot: Slot) -> Vec<u8> {
        let mut out = sort_key::whole(key.as_bytes());
        match slot {
            Slot::Null => out.push(0),
            Slot::Named { stamp, version } => {
                out.push(1);
                // Inverted, so that the newest comes first.
                out.extend_from_slice(&(!stamp.micros).to_be_bytes());
                out.extend_from_slice(&(!stamp.writer).to_be_bytes());
                out.extend_from_slice(&version.0);
            }
        }
        out
    }
}

impl Row for ObjectRow {
    const TABLE: TableId = TableId::Object;

    fn partition_key(&self) -> Vec<u8> {
        index_partition_key(&self.bucket, self.shard)
    }

    fn sort_key(&self) -> Vec<u8> {
        Self::sort_key_of(&self.key, self.slot)
    }

    fn merge(&mut self, other: &Self) {
        if wins(other.stamp, &other.state, self.stamp, &self.state) {
            self.stamp = other.stamp;
            self.state = other.state.clone();
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        Some(self.stamp)
    }

    fn is_live(&self) -> bool {
        self.live().is_some()
    }

    fn detach(&mut self) -> Option<Vec<u8>> {
        match &mut self.state {
            ObjectState::Live(version) => version.detail.take().map(|detail| codec::encode(&*detail)),
            ObjectState::Tombstone => None,
        }
    }

    fn attach(&mut self, detail: &[u8]) -> Result<(), CodecError> {
        if let ObjectState::Live(version) = &mut self.state {
            version.detail = Some(Box::new(codec::decode(detail)?));
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), RowError> {
        let t = Self::TABLE;
        rule(t, self.stamp.is_valid(), "stamp too far in the future")?;
        rule(t, !self.key.is_empty() && self.key.len() <= limits::MAX_OBJECT_KEY, "key length")?;
        rule(t, self.shard < limits::MAX_INDEX_SHARDS, "index shard")?;
        let Some(version) = self.live() else { return Ok(()) };
        rule(t, version.size <= limits::MAX_OBJECT_SIZE, "object size")?;
        let detail =
            version.detail.as_ref().ok_or(RowError::Rule { table: t.name(), rule: "detail missing" })?;
        match &detail.data {
            ObjectData::Inline(data) => rule(
                t,
                data.len() <= limits::MAX_INLINE && data.len() as u64 == version.size,
                "inline length",
            ),
            ObjectData::Blocks(blocks) => rule(
                t,
                blocks.len() <= limits::MAX_ROW_BLOCKS
                    && blocks.iter().map(|b| u64::from(b.len)).sum::<u64>() == version.size,
                "block list",
            ),
            ObjectData::Manifest { chunk_offsets, .. } => {
                rule(t, !chunk_offsets.is_empty(), "empty manifest")
            }
        }
    }
}

/// A piece of a version's block list, when it is too long for the row. Written once; then only deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRow {
    pub version: VersionId,
    pub chunk: u32,
    pub blocks: Vec<BlockEntry>,
    pub deleted: bool,
}

impl Format for ManifestRow {
    const NAME: &'static str = "manifest row";
}

impl Row for ManifestRow {
    const TABLE: TableId = TableId::Manifest;

    fn partition_key(&self) -> Vec<u8> {
        self.version.0.to_vec()
    }

    fn sort_key(&self) -> Vec<u8> {
        self.chunk.to_be_bytes().to_vec()
    }

    fn merge(&mut self, other: &Self) {
        self.deleted |= other.deleted;
        if self.deleted {
            self.blocks.clear();
        } else if other.blocks.len() > self.blocks.len() {
            self.blocks.clone_from(&other.blocks);
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn is_live(&self) -> bool {
        !self.deleted
    }

    fn validate(&self) -> Result<(), RowError> {
        rule(Self::TABLE, self.blocks.len() <= limits::MANIFEST_CHUNK, "too many blocks in a manifest row")?;
        rule(Self::TABLE, !self.deleted || self.blocks.is_empty(), "a deleted manifest row lists blocks")
    }
}
