//! What follows from a row's change on the node that holds it, as data. Pure: the row before, the row
//! after, and out come effects.
//!
//! Effects must not depend on the path by which a row came to its state: counts are differences of a
//! function of the row alone. Queue entries do depend on it (each replica notes what it saw superseded), so
//! whoever works them off must first ask a quorum whether the version is still wanted.

use super::queue::Work;
use hayloft_common::hash::Hash;
use hayloft_common::schema::{
    AliasRow, BlockOwner, BlockRefRow, BucketRow, KeyRow, ManifestRow, ObjectData, ObjectRow, PartRow, Row,
    UploadRow,
};

/// A change of what an index shard counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub objects: i64,
    pub bytes: i64,
    pub uploads: i64,
    pub parts: i64,
    pub part_bytes: i64,
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            objects: self.objects - other.objects,
            bytes: self.bytes - other.bytes,
            uploads: self.uploads - other.uploads,
            parts: self.parts - other.parts,
            part_bytes: self.part_bytes - other.part_bytes,
        }
    }
}

/// What follows from a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Added to the counters of the row's partition key.
    pub counts: Counts,
    pub queue: Vec<Work>,
}

/// A row that a node reacts to.
pub trait React: Row {
    /// What this row adds to the counters of its partition key.
    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// Work that follows when `self` becomes `new`.
    fn work_after(&self, _new: &Self) -> Vec<Work> {
        Vec::new()
    }

    /// Work that follows from the arrival of `self`, also when it changes nothing: what a heart-beat renews.
    fn work_on_arrival(&self) -> Option<Work> {
        None
    }

    /// All effects of the change.
    fn react(old: Option<&Self>, new: &Self) -> Effects {
        Effects {
            counts: new.counts() - old.map(Self::counts).unwrap_or_default(),
            queue: old.map(|old| old.work_after(new)).unwrap_or_default(),
        }
    }
}

impl React for ObjectRow {
    fn counts(&self) -> Counts {
        self.live().map_or_else(Counts::default, |v| Counts {
            objects: 1,
            bytes: v.size as i64,
            ..Counts::default()
        })
    }

    fn work_after(&self, new: &Self) -> Vec<Work> {
        let Some(gone) = self.live().filter(|v| new.live().is_none_or(|n| n.id != v.id)) else {
            return Vec::new();
        };
        let Some(detail) = &gone.detail else { return Vec::new() };
        let (blocks, manifest_chunks) = match &detail.data {
            ObjectData::Inline(_) => return Vec::new(),
            ObjectData::Blocks(blocks) => (distinct(blocks.iter().map(|b| b.hash)), 0),
            ObjectData::Manifest { chunk_offsets, .. } => (Vec::new(), chunk_offsets.len() as u32),
        };
        let owner = BlockOwner::Object { bucket: self.bucket, shard: self.shard, key: self.key.clone() };
        vec![Work::DropVersion { version: gone.id, owner, blocks, manifest_chunks }]
    }
}

impl React for PartRow {
    fn counts(&self) -> Counts {
        self.live().map_or_else(Counts::default, |v| Counts {
            parts: 1,
            part_bytes: v.size as i64,
            ..Counts::default()
        })
    }

    fn work_after(&self, new: &Self) -> Vec<Work> {
        let Some(gone) = self.live().filter(|v| new.live().is_none_or(|n| n.id != v.id)) else {
            return Vec::new();
        };
        if gone.blocks.is_empty() && gone.manifest_chunks == 0 {
            return Vec::new();
        }
        vec![Work::DropVersion {
            version: gone.id,
            owner: BlockOwner::Part {
                bucket: self.bucket,
                shard: self.shard,
                key: self.key.clone(),
                upload: self.upload,
                number: self.number,
            },
            blocks: distinct(gone.blocks.iter().map(|b| b.hash)),
            manifest_chunks: gone.manifest_chunks,
        }]
    }
}

impl React for UploadRow {
    fn counts(&self) -> Counts {
        Counts { uploads: i64::from(self.is_live()), ..Counts::default() }
    }

    fn work_after(&self, new: &Self) -> Vec<Work> {
        if !self.is_live() || new.is_live() {
            return Vec::new();
        }
        let (bucket, shard, key) = (self.bucket, self.shard, self.key.clone());
        vec![Work::DropParts { bucket, shard, key, upload: self.upload }]
    }
}

impl React for KeyRow {}
impl React for BucketRow {}
impl React for AliasRow {}
impl React for ManifestRow {}

impl React for BlockRefRow {
    fn work_after(&self, new: &Self) -> Vec<Work> {
        if self.is_live() && !new.is_live() {
            vec![Work::CheckBlock { block: self.block }]
        } else {
            Vec::new()
        }
    }

    fn work_on_arrival(&self) -> Option<Work> {
        self.is_live().then_some(Work::CheckRef { block: self.block, version: self.version })
    }
}

/// Each block once, in order of first appearance's hash.
fn distinct(blocks: impl Iterator<Item = Hash>) -> Vec<Hash> {
    let mut out: Vec<Hash> = blocks.collect();
    out.sort_unstable();
    out.dedup();
    out
}
