//! Work that follows from a change of rows and outlives the process: written in the row's own batch, done
//! later by a worker, then deleted.
//!
//! Entries are idempotent and may be stale: each replica of a row queues what it saw superseded, and a version
//! that one replica saw superseded may come back (its writer was told `Outdated` elsewhere and re-issued it
//! with a higher stamp). So before a worker drops a version it must ask a read quorum whether the owner still
//! has it, and only after the longest time a writer may take to re-issue.

use super::{Overlay, TablesError};
use crate::meta::{Batch, Direction, KeyRange, Space, Step, View};
use bytes::Bytes;
use hayloft_common::codec::{self, Format};
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, UploadId, VersionId};
use hayloft_common::schema::BlockOwner;
use serde::{Deserialize, Serialize};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// A version of an object or part was superseded or deleted: its references and manifest rows may go.
    DropVersion {
        version: VersionId,
        owner: BlockOwner,
        /// Each block once; empty if they stand in manifest rows.
        blocks: Vec<Hash>,
        /// Manifest rows 0, 1, … of the version; 0 if the blocks are listed here.
        manifest_chunks: u32,
    },
    /// An upload was completed or aborted: its part rows may go.
    DropParts { bucket: BucketId, shard: u16, key: String, upload: UploadId },
}

impl Work {
    /// Part of the key; never reused for another kind.
    fn kind(&self) -> u8 {
        match self {
            Self::DropVersion { .. } => 1,
            Self::DropParts { .. } => 2,
        }
    }

    fn id(&self) -> &[u8] {
        match self {
            Self::DropVersion { version, .. } => version.as_bytes(),
            Self::DropParts { upload, .. } => upload.as_bytes(),
        }
    }
}

/// A piece of work as it stands in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was queued, in milliseconds by this node's wall clock.
    pub queued_ms: u64,
    pub work: Work,
}

impl Format for Entry {
    const NAME: &'static str = "queue entry";
}

/// Queues `work` that arose in `partition`; queuing it again only renews its date.
pub(crate) fn add(overlay: &mut Overlay<'_>, partition: u16, work: Work, now_ms: u64) {
    let mut key = partition.to_be_bytes().to_vec();
    key.push(work.kind());
    key.extend_from_slice(work.id());
    overlay.put(Space::Queue, key, codec::encode(&Entry { queued_ms: now_ms, work }));
}

/// Up to `limit` entries from key `from` (included) on, with their keys, in order of partition.
pub fn read(view: &dyn View, from: &[u8], limit: usize) -> Result<Vec<(Bytes, Entry)>, TablesError> {
    let mut out = Vec::new();
    let mut failed = None;
    let range = KeyRange { from: from.to_vec(), to: None };
    view.scan(Space::Queue, &range, Direction::Forward, &mut |key, value| {
        if out.len() >= limit {
            return Step::Stop;
        }
        match codec::decode(value) {
            Ok(entry) => out.push((key.clone(), entry)),
            Err(e) => {
                failed = Some(TablesError::DamagedEntry { what: "a queue entry", reason: e.to_string() });
                return Step::Stop;
            }
        }
        Step::Next
    })?;
    failed.map_or(Ok(out), Err)
}

/// The entries of a batch that takes the work at these keys off the queue; for `commit::Job::entries`.
pub fn done(keys: impl IntoIterator<Item = Bytes>) -> Batch {
    let mut batch = Batch::new();
    for key in keys {
        batch.delete(Space::Queue, key);
    }
    batch
}
