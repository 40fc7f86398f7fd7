//! Objects: put, open, head, delete.
//!
//! Round trips (R, clock not behind, no layout change): put inline 1 (the row); put of blocks 2 behind the last byte
//! (blocks, row); open 1, with the first block on its way after the first reply, so first byte in 1 R for any size;
//! head 1; delete 1; delete of many 1 for each index shard, all at once.
//! A put that replicas call outdated takes another round trip for an inline object, two for one of blocks: the retry
//! is a version with an id of its own and new references, since a replica that took the first try and then saw
//! the newer row has begun to remove that version's references.

use super::moment::Moment;
use super::read::{self, Fetch, data_of};
use super::receive::{Content, Referred, Target, receive};
use super::rows::decode;
use super::store::{Wrote, place_of, row_bytes};
use super::{
    Body, Bucket, DeleteOutcome, DomainError, Gateway, ObjectHead, PartView, PutDone, PutObject, check_key,
};
use crate::limits::MAX_OUTDATED_TRIES;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::BoxStream;
use hayloft_common::id::VersionId;
use hayloft_common::schema::{
    BlockEntry, BlockOwner, Checksum, Headers, ObjectData, ObjectDetail, ObjectRow, ObjectState,
    ObjectVersion, PartEntry, Row as _, Slot, TableId, index_partition_key,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{ReadRow, RowBytes, WriteMode};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// An object opened for reading: its head, and then any range of its bytes.
pub struct OpenObject {
    pub head: ObjectHead,
    gateway: Arc<Gateway>,
    prefetched: Option<Fetch>,
}

impl OpenObject {
    /// The bytes of `range` (of the whole object; cut at its size), verified. Fails only when every copy of a block
    /// is missing, damaged or out of reach; then the stream ends with the error.
    pub fn read(self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, DomainError>> {
        let range = range.start..range.end.min(self.head.version.size);
        match &self.head.version.detail {
            Some(detail) => {
                read::read(self.gateway, self.head.version.id, &detail.data, range, self.prefetched)
            }
            None => Box::pin(futures::stream::empty()),
        }
    }
}

/// A version about to be committed.
pub(super) struct NewVersion {
    pub(super) bucket: Arc<Bucket>,
    pub(super) key: String,
    pub(super) version: VersionId,
    pub(super) headers: Headers,
    pub(super) size: u64,
    pub(super) etag: String,
    pub(super) checksum: Option<Checksum>,
    pub(super) parts: Vec<PartEntry>,
    pub(super) content: Content,
}

pub(super) fn owner(bucket: &Bucket, key: &str) -> BlockOwner {
    BlockOwner::Object { bucket: bucket.id(), shard: bucket.shard_of(key), key: key.to_owned() }
}

pub(super) fn read_object(bucket: &Bucket, key: &str) -> ReadRow {
    ReadRow {
        table: TableId::Object,
        partition_key: index_partition_key(&bucket.id(), bucket.shard_of(key)),
        sort_key: ObjectRow::sort_key_of(key, Slot::Null),
    }
}

/// References of an upload could not be kept fresh.
pub(super) fn not_fresh() -> DomainError {
    let detail = "references of blocks could not be renewed in time; the upload has to start over".into();
    DomainError::Unavailable { detail }
}

fn object_row(bucket: &Bucket, key: &str, stamp: Stamp, state: ObjectState) -> ObjectRow {
    let shard = bucket.shard_of(key);
    ObjectRow { bucket: bucket.id(), shard, key: key.to_owned(), slot: Slot::Null, stamp, state }
}

/// Part `number` of an object: its place in it.
fn part_view(version: &ObjectVersion, number: u16) -> Result<PartView, DomainError> {
    let parts = version.detail.as_ref().map_or(&[][..], |d| &d.parts);
    if parts.is_empty() && number == 1 {
        return Ok(PartView { number, count: 0, offset: 0, size: version.size });
    }
    let mut offset = 0;
    for part in parts {
        if part.number == number {
            return Ok(PartView { number, count: parts.len() as u16, offset, size: part.size });
        }
        offset += part.size;
    }
    Err(DomainError::NoSuchPart { number })
}

fn head_of(row: Option<ObjectRow>, key: &str, part: Option<u16>) -> Result<ObjectHead, DomainError> {
    let missing = || DomainError::NoSuchKey { key: key.to_owned() };
    let row = row.ok_or_else(missing)?;
    let ObjectState::Live(version) = row.state else { return Err(missing()) };
    let part = part.map(|number| part_view(&version, number)).transpose()?;
    Ok(ObjectHead { version: *version, stamp: row.stamp, part })
}

impl Gateway {
    pub(super) fn new_version(&self) -> VersionId {
        VersionId(self.env.random_bytes())
    }

    /// Stores an object. Nothing is visible of it, and the previous one stays, unless this answers success (or the
    /// outcome is unknown: `Unavailable`).
    pub async fn put(self: &Arc<Self>, put: PutObject, body: Body) -> Result<PutDone, DomainError> {
        check_key(&put.key)?;
        let target = Target {
            version: self.new_version(),
            owner: owner(&put.bucket, &put.key),
            inline_max: self.config.inline_max.min(self.config.block_size),
            algorithm: put.checks.checksum.as_ref().map(|c| c.algorithm),
        };
        let received = receive(self, &target, &put.checks, body).await?;
        let new = NewVersion {
            bucket: put.bucket,
            key: put.key,
            version: target.version,
            headers: put.headers,
            size: received.size,
            etag: hex::encode(received.digests.md5),
            checksum: received.digests.checksum,
            parts: Vec::new(),
            content: received.content,
        };
        self.commit(new, Stamp::ZERO, || self.new_version(), |_| Vec::new()).await
    }

    /// Writes a version's row, with `others` (made for its stamp) in the same transaction. `fresh` makes the version
    /// id of a retry. A version whose references are not fresh is not committed but given a new id and new ones: the
    /// old ones may be deleted at any moment (see the decision on references of uncommitted versions).
    #[tracing::instrument(level = "debug", name = "object insert", skip_all)]
    pub(super) async fn commit(
        self: &Arc<Self>,
        new: NewVersion,
        floor: Stamp,
        fresh: impl Fn() -> VersionId + Send,
        others: impl Fn(Stamp) -> Vec<RowBytes> + Send,
    ) -> Result<PutDone, DomainError> {
        let NewVersion { bucket, key, version, headers, size, etag, checksum, parts, content } = new;
        let (data, mut referred) = match content {
            Content::Inline(bytes) => (ObjectData::Inline(bytes), None),
            Content::Blocks(referred) => (data_of(referred.blocks.clone()), Some(referred)),
        };
        let owner = owner(&bucket, &key);
        let modified_ms = self.env.wall_millis();
        let detail = ObjectDetail { headers, checksum: checksum.clone(), parts, data };
        let mut state = ObjectVersion {
            id: version,
            modified_ms,
            size,
            etag: etag.clone(),
            checksum: checksum.as_ref().map(|c| (c.algorithm, c.kind)),
            detail: Some(Box::new(detail)),
        };
        let mut floor = floor;
        let mut burnt = false;
        for attempt in 0..MAX_OUTDATED_TRIES {
            if burnt || referred.as_ref().is_some_and(|r| !r.is_fresh(&self.env)) {
                state.id = fresh();
                if let Some(referred) = &mut referred {
                    self.adopt_again(state.id, &owner, referred).await?;
                }
            }
            let stamp = self.clock.above(floor);
            let row = object_row(&bucket, &key, stamp, ObjectState::Live(Box::new(state.clone())));
            let place = place_of(&row.partition_key());
            let mut rows = vec![row_bytes(&row)];
            rows.extend(others(stamp));
            match self.store.write_rows(place, WriteMode::Put, rows).await? {
                Wrote::Done => return Ok(PutDone { etag, checksum, modified_ms, size }),
                Wrote::Outdated(newest) => floor = floor.max(newest),
            }
            self.back_off(attempt).await;
            burnt = true;
        }
        Err(DomainError::Contention)
    }

    /// Makes blocks belong to `version` as well: references, and manifest rows if they are many. 1 R. Answers since
    /// when the references are fresh.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        version: VersionId,
        owner: &BlockOwner,
        blocks: &[BlockEntry],
    ) -> Result<Moment, DomainError> {
        let manifest = async {
            if blocks.len() > hayloft_common::limits::MAX_ROW_BLOCKS {
                self.write_manifest(version, blocks).await?;
            }
            Ok(())
        };
        let (since, ()) = tokio::try_join!(self.refer(version, owner, blocks), manifest)?;
        Ok(since)
    }

    /// As [`Gateway::adopt`], for a version about to be committed instead of another one.
    pub(super) async fn adopt_again(
        self: &Arc<Self>,
        version: VersionId,
        owner: &BlockOwner,
        referred: &mut Referred,
    ) -> Result<(), DomainError> {
        referred.since = self.adopt(version, owner, &referred.blocks).await?;
        if referred.is_fresh(&self.env) { Ok(()) } else { Err(not_fresh()) }
    }

    /// As [`Gateway::open_at`] for a reader that begins at the first byte (of the part).
    pub async fn open(
        self: &Arc<Self>,
        bucket: &Bucket,
        key: &str,
        part: Option<u16>,
    ) -> Result<OpenObject, DomainError> {
        self.open_at(bucket, key, part, Some(0)).await
    }

    /// For GET: reads the row by quorum and, on the strength of the first reply, begins to fetch the block of byte
    /// `first` (counted from the part's start if a part is asked for). `None`: not known; nothing is fetched early.
    pub async fn open_at(
        self: &Arc<Self>,
        bucket: &Bucket,
        key: &str,
        part: Option<u16>,
        first: Option<u64>,
    ) -> Result<OpenObject, DomainError> {
        check_key(key)?;
        let asked = Moment::now(&self.env);
        let mut early = self.store.read_row_early(read_object(bucket, key));
        let guess = early.first().await?;
        let prefetched = first.and_then(|at| self.prefetch(guess.as_deref()?, part, at));
        let row = self.settle(bucket.reading(), asked, &early.quorum().await?).await?;
        let head = head_of(row, key, part)?;
        // A block is named by its hash: if the guess was stale, reading takes the prefetched one only if it is right.
        Ok(OpenObject { head, gateway: self.clone(), prefetched })
    }

    fn prefetch(self: &Arc<Self>, row: &[u8], part: Option<u16>, at: u64) -> Option<Fetch> {
        let row: ObjectRow = decode(row).ok()?;
        let version = row.live()?;
        let start = part.map_or(Ok(0), |n| part_view(version, n).map(|p| p.offset)).ok()?;
        let entry = read::block_at(&version.detail.as_ref()?.data, start.checked_add(at)?)?;
        let claim = self.download_memory.try_claim(entry.len as usize)?;
        Some(Fetch::start(self, entry, claim))
    }

    /// For HEAD: fetches no data.
    pub async fn head(
        self: &Arc<Self>,
        bucket: &Bucket,
        key: &str,
        part: Option<u16>,
    ) -> Result<ObjectHead, DomainError> {
        check_key(key)?;
        let ReadRow { partition_key, sort_key, .. } = read_object(bucket, key);
        head_of(self.read_as(bucket.reading(), partition_key, sort_key).await?, key, part)
    }

    /// Opens what [`Gateway::head`] found, for reading.
    pub fn open_head(self: &Arc<Self>, head: ObjectHead) -> OpenObject {
        OpenObject { head, gateway: self.clone(), prefetched: None }
    }

    /// Succeeds also when there is nothing.
    pub async fn delete(self: &Arc<Self>, bucket: &Bucket, key: &str) -> Result<(), DomainError> {
        check_key(key)?;
        self.delete_keys(bucket, bucket.shard_of(key), &[key]).await
    }

    /// Writes tombstones for keys of one shard in one transaction.
    async fn delete_keys(&self, bucket: &Bucket, shard: u16, keys: &[&str]) -> Result<(), DomainError> {
        let place = place_of(&index_partition_key(&bucket.id(), shard));
        let tombstones = |stamp| {
            keys.iter()
                .map(|key| row_bytes(&object_row(bucket, key, stamp, ObjectState::Tombstone)))
                .collect()
        };
        self.write_put(place, Stamp::ZERO, tombstones).await?;
        Ok(())
    }

    /// One outcome for each key, in order.
    pub async fn delete_many(self: &Arc<Self>, bucket: &Bucket, keys: Vec<String>) -> Vec<DeleteOutcome> {
        let mut shards: BTreeMap<u16, std::collections::BTreeSet<&str>> = BTreeMap::new();
        for key in keys.iter().filter(|key| check_key(key).is_ok()) {
            shards.entry(bucket.shard_of(key)).or_default().insert(key);
        }
        let calls = shards.into_iter().map(|(shard, keys)| async move {
            let keys: Vec<&str> = keys.into_iter().collect();
            (shard, self.delete_keys(bucket, shard, &keys).await)
        });
        let results: BTreeMap<u16, Result<(), DomainError>> = join_all(calls).await.into_iter().collect();
        keys.into_iter()
            .map(|key| {
                let done = results.get(&bucket.shard_of(&key)).cloned().unwrap_or(Ok(()));
                let result = check_key(&key).and(done);
                DeleteOutcome { key, result }
            })
            .collect()
    }
}
