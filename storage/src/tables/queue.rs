//! Work that follows from a change of rows and outlives the process: written in the row's own batch, done
//! later by a worker, then deleted.
//!
//! A key is kind, partition, id: a worker reads its kind alone, a partition that leaves takes its entries along. Queuing
//! the same work again renews its date, and nothing else.
//!
//! Entries are hints and may be stale: each replica of a row queues what it saw superseded, so before a worker drops a
//! version it must ask a read quorum whether the owner still has it. Dates are of this node's wall clock: they may only delay.

use super::{Overlay, TablesError};
use crate::meta::{Batch, Direction, KeyRange, Space, Step, View};
use bytes::Bytes;
use hayloft_common::codec::{self, Format};
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, UploadId, VersionId};
use hayloft_common::schema::{BlockOwner, TableId};
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
    /// Look whether this node should hold the block and does: to be fetched, or to be released.
    CheckBlock { block: Hash },
    /// A live reference arrived: look after a while whether its version was committed.
    CheckRef { block: Hash, version: VersionId },
    /// A row is a tombstone: once all replicas hold it, it may go. `key` is the stored key.
    Collect {
        table: TableId,
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
}

/// The kinds of work, by the first byte of their keys; never reused for another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    DropVersion = 1,
    DropParts = 2,
    CheckBlock = 3,
    CheckRef = 4,
    Collect = 5,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::DropVersion, Self::DropParts, Self::CheckBlock, Self::CheckRef, Self::Collect];

    /// All entries of the kind.
    pub fn range(self) -> KeyRange {
        KeyRange::prefix(&[self as u8])
    }

    /// The entries of the kind that arose in a partition.
    pub fn in_partition(self, partition: u16) -> KeyRange {
        let [high, low] = partition.to_be_bytes();
        KeyRange::prefix(&[self as u8, high, low])
    }
}

impl Work {
    pub fn kind(&self) -> Kind {
        match self {
            Self::DropVersion { .. } => Kind::DropVersion,
            Self::DropParts { .. } => Kind::DropParts,
            Self::CheckBlock { .. } => Kind::CheckBlock,
            Self::CheckRef { .. } => Kind::CheckRef,
            Self::Collect { .. } => Kind::Collect,
        }
    }

    fn id(&self) -> Vec<u8> {
        match self {
            Self::DropVersion { version, .. } => version.as_bytes().to_vec(),
            Self::DropParts { upload, .. } => upload.as_bytes().to_vec(),
            Self::CheckBlock { block } => block.as_bytes().to_vec(),
            Self::CheckRef { block, version } => [&block.0[..], version.as_bytes()].concat(),
            Self::Collect { table, key } => {
                let mut id = vec![u8::from(*table)];
                id.extend_from_slice(&Hash::of(key).0[..16]);
                id
            }
        }
    }

    /// The key under which the work is queued, when it arose in `partition`.
    pub fn key(&self, partition: u16) -> Vec<u8> {
        let mut key = vec![self.kind() as u8];
        key.extend_from_slice(&partition.to_be_bytes());
        key.extend_from_slice(&self.id());
        key
    }
}

/// The partition of a queue key.
pub fn partition_of(key: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*key.get(1)?, *key.get(2)?]))
}

/// A piece of work as it stands in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was queued last, in milliseconds by this node's wall clock.
    pub queued_ms: u64,
    pub work: Work,
}

impl Format for Entry {
    const NAME: &'static str = "queue entry";
}

/// Queues `work` that arose in `partition`; queuing it again only renews its date.
pub(crate) fn add(overlay: &mut Overlay<'_>, partition: u16, work: Work, now_ms: u64) {
    overlay.put(Space::Queue, work.key(partition), codec::encode(&Entry { queued_ms: now_ms, work }));
}

/// The entries of a batch that queues work from outside of a row's change; for `commit::Job::entries`.
pub fn entries(work: impl IntoIterator<Item = (u16, Work)>, now_ms: u64) -> Batch {
    let mut batch = Batch::new();
    for (partition, work) in work {
        batch.put(Space::Queue, work.key(partition), codec::encode(&Entry { queued_ms: now_ms, work }));
    }
    batch
}

/// Up to `limit` entries of `range` in order, with their keys.
pub fn read(view: &dyn View, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Entry)>, TablesError> {
    let mut out = Vec::new();
    let mut failed = None;
    view.scan(Space::Queue, range, Direction::Forward, &mut |key, value| {
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

/// The entries of a batch that takes the work at these keys off the queue; for `commit::Job::entries`. Work that was
/// queued again since it was read is taken off too: use `commit::Job::done` where that matters.
pub fn done(keys: impl IntoIterator<Item = Bytes>) -> Batch {
    let mut batch = Batch::new();
    for key in keys {
        batch.delete(Space::Queue, key);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_kind_and_partition_lie_together() {
        let block = Hash::of(b"block");
        let check = Work::CheckBlock { block };
        let reference = Work::CheckRef { block, version: VersionId([7; 16]) };
        assert!(Kind::CheckBlock.in_partition(3).contains(&check.key(3)));
        assert!(!Kind::CheckBlock.in_partition(3).contains(&check.key(4)));
        assert!(!Kind::CheckBlock.range().contains(&reference.key(3)));
        assert_eq!(partition_of(&reference.key(259)), Some(259));
    }
}
