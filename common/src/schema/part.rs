//! Parts of multipart uploads. Format 1.
//!
//! A part may be uploaded again: the row is a last-writer-wins register. Parts of a closed upload mean
//! nothing any more; completing copies the block lists of the chosen ones into the object.

use super::object::{BlockEntry, Checksum, index_partition_key};
use super::{Row, RowError, TableId, UploadRow, rule};
use crate::codec::Format;
use crate::crdt::wins;
use crate::id::{BucketId, UploadId, VersionId};
use crate::limits;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRow {
    pub bucket: BucketId,
    pub shard: u16,
    pub key: String,
    pub upload: UploadId,
    /// 1 to 10,000.
    pub number: u16,
    pub stamp: Stamp,
    pub state: PartState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartState {
    Tombstone,
    Live(PartVersion),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartVersion {
    /// Names the part's blocks in reference rows, and its manifest rows.
    pub id: VersionId,
    pub modified_ms: u64,
    pub size: u64,
    /// MD5 of the part's bytes.
    pub md5: [u8; 16],
    pub checksum: Option<Checksum>,
    /// All its blocks, unless `manifest_chunks` says that they stand in that many manifest rows.
    pub blocks: Vec<BlockEntry>,
    pub manifest_chunks: u32,
}

impl Format for PartRow {
    const NAME: &'static str = "part row";
}

impl PartRow {
    /// The sort key of a part of an upload.
    pub fn sort_key_of(key: &str, upload: &UploadId, number: u16) -> Vec<u8> {
        let mut out = UploadRow::sort_key_of(key, upload);
        out.extend_from_slice(&number.to_be_bytes());
        out
    }

    /// The part, unless the row is a tombstone.
    pub fn live(&self) -> Option<&PartVersion> {
        match &self.state {
            PartState::Live(version) => Some(version),
            PartState::Tombstone => None,
        }
    }
}

impl Row for PartRow {
    const TABLE: TableId = TableId::Part;

    fn partition_key(&self) -> Vec<u8> {
        index_partition_key(&self.bucket, self.shard)
    }

    fn sort_key(&self) -> Vec<u8> {
        Self::sort_key_of(&self.key, &self.upload, self.number)
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

    fn validate(&self) -> Result<(), RowError> {
        let t = Self::TABLE;
        rule(t, self.stamp.is_valid(), "stamp too far in the future")?;
        rule(t, !self.key.is_empty() && self.key.len() <= limits::MAX_OBJECT_KEY, "key length")?;
        rule(t, self.shard < limits::MAX_INDEX_SHARDS, "index shard")?;
        rule(t, (1..=limits::MAX_PARTS).contains(&self.number), "part number")?;
        let Some(version) = self.live() else { return Ok(()) };
        rule(t, version.size <= limits::MAX_PUT_SIZE, "part size")?;
        rule(t, version.blocks.len() <= limits::MAX_ROW_BLOCKS, "too many blocks in a part row")
    }
}
