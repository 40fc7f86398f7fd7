//! What follows from a row's change on the node that holds it, as data. Pure: the row before, the row
//! after, and out come effects.
//!
//! Effects must not depend on the path by which a row came to its state: counts are differences of a
//! function of the row alone. Queue entries do depend on it (each replica notes what it saw superseded), so
//! whoever works them off must first ask a quorum whether the version is still wanted.

use super::queue::Work;
use hayloft_common::hash::Hash;
use hayloft_common::schema::{
    AliasRow, BlockOwner, BlockRefRow, BucketRow, FloorRow, KeyRow, ManifestRow, ObjectData, ObjectRow,
    PartRow, Row, TableId, UploadRow,
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

impl std::ops::Add for Counts {
    type Output = Self;

    /// Wraps: sizes are checked row by row, see `counters`.
    fn add(self, other: Self) -> Self {
        Self {
            objects: self.objects.wrapping_add(other.objects),
            bytes: self.bytes.wrapping_add(other.bytes),
            uploads: self.uploads.wrapping_add(other.uploads),
            parts: self.parts.wrapping_add(other.parts),
            part_bytes: self.part_bytes.wrapping_add(other.part_bytes),
        }
    }
}

impl std::ops::Sub for Counts {
    type Output = Self;

    /// Wraps, as the sum does.
    fn sub(self, other: Self) -> Self {
        Self {
            objects: self.objects.wrapping_sub(other.objects),
            bytes: self.bytes.wrapping_sub(other.bytes),
            uploads: self.uploads.wrapping_sub(other.uploads),
            parts: self.parts.wrapping_sub(other.parts),
            part_bytes: self.part_bytes.wrapping_sub(other.part_bytes),
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

    /// Work that follows when the row becomes `new`. `old`: what it was, if there was one.
    fn work(_old: Option<&Self>, _new: &Self) -> Vec<Work> {
        Vec::new()
    }

    /// Work that follows from the arrival of `self`, also when it changes nothing: what a heart-beat renews.
    fn work_on_arrival(&self) -> Option<Work> {
        None
    }

    /// The row of the same partition key that gives this one its meaning, by table and sort key, and the work that
    /// follows if this row is live and that one is not.
    fn parent(&self) -> Option<(TableId, Vec<u8>, Work)> {
        None
    }

    /// All effects of the change.
    fn react(old: Option<&Self>, new: &Self) -> Effects {
        Effects {
            counts: new.counts() - old.map(Self::counts).unwrap_or_default(),
            queue: Self::work(old, new),
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

    fn work(old: Option<&Self>, new: &Self) -> Vec<Work> {
        let gone = old.and_then(Self::live).filter(|v| new.live().is_none_or(|n| n.id != v.id));
        let Some(gone) = gone else { return Vec::new() };
        let Some(detail) = &gone.detail else { return Vec::new() };
        let (blocks, manifest_chunks) = match &detail.data {
            ObjectData::Inline(_) => return Vec::new(),
            ObjectData::Blocks(blocks) => (distinct(blocks.iter().map(|b| b.hash)), 0),
            ObjectData::Manifest { chunk_offsets, .. } => (Vec::new(), chunk_offsets.len() as u32),
        };
        let owner = BlockOwner::Object { bucket: new.bucket, shard: new.shard, key: new.key.clone() };
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

    fn work(old: Option<&Self>, new: &Self) -> Vec<Work> {
        let gone = old.and_then(Self::live).filter(|v| new.live().is_none_or(|n| n.id != v.id));
        let Some(gone) = gone else { return Vec::new() };
        if gone.blocks.is_empty() && gone.manifest_chunks == 0 {
            return Vec::new();
        }
        vec![Work::DropVersion {
            version: gone.id,
            owner: BlockOwner::Part {
                bucket: new.bucket,
                shard: new.shard,
                key: new.key.clone(),
                upload: new.upload,
                number: new.number,
            },
            blocks: distinct(gone.blocks.iter().map(|b| b.hash)),
            manifest_chunks: gone.manifest_chunks,
        }]
    }

    /// A part that comes after its upload was closed (or before this node hears of the upload).
    fn parent(&self) -> Option<(TableId, Vec<u8>, Work)> {
        let (bucket, shard, key, upload) = (self.bucket, self.shard, self.key.clone(), self.upload);
        let sort_key = UploadRow::sort_key_of(&key, &upload);
        Some((TableId::Upload, sort_key, Work::DropParts { bucket, shard, key, upload }))
    }
}

impl React for UploadRow {
    fn counts(&self) -> Counts {
        Counts { uploads: i64::from(self.is_live()), ..Counts::default() }
    }

    fn work(old: Option<&Self>, new: &Self) -> Vec<Work> {
        if new.is_live() || old.is_some_and(|old| !old.is_live()) {
            return Vec::new();
        }
        let (bucket, shard, key) = (new.bucket, new.shard, new.key.clone());
        vec![Work::DropParts { bucket, shard, key, upload: new.upload }]
    }
}

impl React for KeyRow {}
impl React for BucketRow {}
impl React for AliasRow {}
impl React for ManifestRow {}
impl React for FloorRow {}

impl React for BlockRefRow {
    fn work(old: Option<&Self>, new: &Self) -> Vec<Work> {
        if old.is_some_and(Self::is_live) && !new.is_live() {
            vec![Work::CheckBlock { block: new.block }]
        } else {
            Vec::new()
        }
    }

    fn work_on_arrival(&self) -> Option<Work> {
        self.is_live().then_some(Work::CheckRef { block: self.block, version: self.version })
    }
}

/// Each block once.
fn distinct(blocks: impl Iterator<Item = Hash>) -> Vec<Hash> {
    let mut out: Vec<Hash> = blocks.collect();
    out.sort_unstable();
    out.dedup();
    out
}
