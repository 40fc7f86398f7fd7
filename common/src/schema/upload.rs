//! Multipart uploads that are under way. Format 1.
//!
//! An upload is open, then closed for good (completed or aborted): closing wins over everything, so a
//! late replica can't reopen it. The object it completes to has a version id that begins as the upload's id does.

use super::object::{ChecksumAlgorithm, ChecksumKind, Headers, index_partition_key};
use super::{Row, RowError, TableId, rule, sort_key};
use crate::codec::Format;
use crate::id::{BucketId, UploadId};
use crate::limits;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRow {
    pub bucket: BucketId,
    pub shard: u16,
    pub key: String,
    pub upload: UploadId,
    /// When it was begun, in milliseconds by the writer's wall clock.
    pub created_ms: u64,
    pub state: UploadState,
    /// The stamp of the object's row that went with the closing, in one transaction: a complete that got no answer may
    /// have left both on few nodes. `None`: open, or aborted. Later than the other fields of format 1.
    #[serde(default)]
    pub completed: Option<Stamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadState {
    Open { headers: Headers, checksum: Option<(ChecksumAlgorithm, ChecksumKind)> },
    Closed,
}

impl Format for UploadRow {
    const NAME: &'static str = "upload row";
}

impl UploadRow {
    /// The sort key of an upload; part rows of the upload begin with it.
    pub fn sort_key_of(key: &str, upload: &UploadId) -> Vec<u8> {
        let mut out = sort_key::whole(key.as_bytes());
        out.extend_from_slice(&upload.0);
        out
    }
}

impl Row for UploadRow {
    const TABLE: TableId = TableId::Upload;

    fn partition_key(&self) -> Vec<u8> {
        index_partition_key(&self.bucket, self.shard)
    }

    fn sort_key(&self) -> Vec<u8> {
        Self::sort_key_of(&self.key, &self.upload)
    }

    fn merge(&mut self, other: &Self) {
        if other.state == UploadState::Closed {
            self.state = UploadState::Closed;
        }
        self.completed = self.completed.max(other.completed);
        // Written once by one gateway; the rule only keeps the merge a merge for any input.
        self.created_ms = self.created_ms.max(other.created_ms);
        if let (
            UploadState::Open { headers: ours, checksum: our_sum },
            UploadState::Open { headers, checksum },
        ) = (&mut self.state, &other.state)
            && rmp_serde::to_vec(&(headers, checksum)).ok() > rmp_serde::to_vec(&(&*ours, &*our_sum)).ok()
        {
            ours.clone_from(headers);
            *our_sum = *checksum;
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn is_live(&self) -> bool {
        self.state != UploadState::Closed
    }

    fn validate(&self) -> Result<(), RowError> {
        rule(Self::TABLE, !self.key.is_empty() && self.key.len() <= limits::MAX_OBJECT_KEY, "key length")?;
        rule(Self::TABLE, self.shard < limits::MAX_INDEX_SHARDS, "index shard")?;
        rule(Self::TABLE, self.completed.is_none_or(|stamp| stamp.is_valid()), "stamp too far in the future")
    }
}
