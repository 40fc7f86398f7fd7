//! Parts of multipart uploads: put, copy, list.
//!
//! A part's blocks are referred to under an id of the part's own, so a part that is uploaded again replaces the old
//! one as a put of an object does, and the old one's blocks can be dropped at once. Completing makes references for
//! the object ([`super::complete`]).
//!
//! Round trips: put 2 behind the last byte (blocks, row), the upload being looked up meanwhile (one more at first if
//! the client names no checksum and this gateway doesn't know the upload's); copy 2 if the source is taken whole and
//! its MD5 is known, else the data is read once through this gateway for the part's MD5, and only blocks that lie
//! across the range's ends are stored anew; list 1 for each 1,000 parts.

use super::copy::detail;
use super::moment::Moment;
use super::read::{Piece, pieces};
use super::receive::{Content, Referred, Target, receive};
use super::settle::Reading;
use super::store::{Wrote, place_of, row_bytes};
use super::{
    Body, BodyChecks, BodyError, BodyFault, ChecksumRequest, DomainError, Expected, Gateway, ObjectHead,
    PartDone, PartInfo, PartListing, UploadRef, uploads::OpenUpload,
};
use crate::cache::KnownPart;
use crate::limits::MAX_OUTDATED_TRIES;
use bytes::Bytes;
use futures::future::{Either, select};
use futures::stream::{self, StreamExt as _};
use hayloft_common::id::VersionId;
use hayloft_common::limits::{MAX_LIST_PAGE, MAX_PARTS, MAX_PUT_SIZE, MAX_ROW_BLOCKS};
use hayloft_common::schema::{
    BlockEntry, BlockOwner, Checksum, ChecksumAlgorithm, ChecksumKind, ObjectData, PartRow, PartState,
    PartVersion, UploadRow, sort_key,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::WriteMode;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

/// A part whose blocks are stored.
struct NewPart {
    id: VersionId,
    size: u64,
    md5: [u8; 16],
    checksum: Option<Checksum>,
    referred: Referred,
}

fn part_number(number: u32) -> Result<u16, DomainError> {
    u16::try_from(number)
        .ok()
        .filter(|n| (1..=MAX_PARTS).contains(n))
        .ok_or(DomainError::PartNumber { number })
}

fn part_owner(upload: &UploadRef, number: u16) -> BlockOwner {
    BlockOwner::Part {
        bucket: upload.bucket.id(),
        shard: upload.shard(),
        key: upload.key.clone(),
        upload: upload.upload,
        number,
    }
}

pub(super) fn part_info(row: &PartRow) -> Option<PartInfo> {
    row.live().map(|part| PartInfo {
        number: row.number,
        etag: hex::encode(part.md5),
        size: part.size,
        modified_ms: part.modified_ms,
        checksum: part.checksum.clone(),
    })
}

/// The part's checksum that the upload asks for.
fn wanted(
    upload: Option<(ChecksumAlgorithm, ChecksumKind)>,
    named: Option<ChecksumAlgorithm>,
) -> Result<Option<ChecksumAlgorithm>, DomainError> {
    match (upload, named) {
        (Some((wanted, _)), Some(named)) if wanted != named => {
            Err(DomainError::ChecksumMismatch { wanted: Some(wanted) })
        }
        (Some((wanted, _)), _) => Ok(Some(wanted)),
        (None, named) => Ok(named),
    }
}

impl Gateway {
    /// Stores a part; in place of an earlier one with the same number.
    pub async fn put_part(
        self: &Arc<Self>,
        upload: UploadRef,
        number: u32,
        mut checks: BodyChecks,
        body: Body,
    ) -> Result<PartDone, DomainError> {
        let number = part_number(number)?;
        let named = checks.checksum.as_ref().map(|c| c.algorithm);
        // Without a checksum of the client's, what to compute must be known before the first byte is digested.
        let known = match named {
            Some(_) => None,
            None => match self.upload_sums.get(self.env.now(), &upload.upload) {
                Some(sum) => Some(sum),
                None => Some(self.open_upload(&upload).await?.checksum),
            },
        };
        let algorithm = wanted(known.flatten(), named)?;
        if let (None, Some(algorithm)) = (&checks.checksum, algorithm) {
            checks.checksum = Some(ChecksumRequest { algorithm, expected: Expected::Unknown });
        }
        let target = Target {
            version: self.new_version(),
            owner: part_owner(&upload, number),
            inline_max: 0,
            algorithm,
        };
        let look = async {
            let open = self.open_upload(&upload).await?;
            wanted(open.checksum, named)
        };
        let (received, _) = tokio::try_join!(receive(self, &target, &checks, body), look)?;
        let part = NewPart {
            id: target.version,
            size: received.size,
            md5: received.digests.md5,
            checksum: received.digests.checksum,
            referred: self.referred(received.content),
        };
        self.commit_part(&upload, number, part).await
    }

    /// What was received as blocks; parts are never kept in their row.
    fn referred(&self, content: Content) -> Referred {
        match content {
            Content::Blocks(referred) => referred,
            Content::Inline(_) => Referred { blocks: Vec::new(), since: Moment::now(&self.env) },
        }
    }

    async fn commit_part(
        self: &Arc<Self>,
        upload: &UploadRef,
        number: u16,
        mut part: NewPart,
    ) -> Result<PartDone, DomainError> {
        let place = place_of(&upload.partition_key());
        let modified_ms = self.env.wall_millis();
        let (mut floor, mut burnt) = (Stamp::ZERO, false);
        for attempt in 0..MAX_OUTDATED_TRIES {
            if burnt || !part.referred.is_fresh(&self.env) {
                // As for objects: an id whose row may have been superseded somewhere, or whose references may be given
                // up, is not used (again).
                part.id = self.new_version();
                self.adopt_again(part.id, &part_owner(upload, number), &mut part.referred).await?;
            }
            let blocks = &part.referred.blocks;
            let in_row = blocks.len() <= MAX_ROW_BLOCKS;
            let chunks = blocks.chunks(hayloft_common::limits::MANIFEST_CHUNK).len() as u32;
            let version = PartVersion {
                id: part.id,
                modified_ms,
                size: part.size,
                md5: part.md5,
                checksum: part.checksum.clone(),
                blocks: if in_row { blocks.clone() } else { Vec::new() },
                manifest_chunks: if in_row { 0 } else { chunks },
            };
            let row = PartRow {
                bucket: upload.bucket.id(),
                shard: upload.shard(),
                key: upload.key.clone(),
                upload: upload.upload,
                number,
                stamp: self.clock.above(floor),
                state: PartState::Live(version),
            };
            match self.store.write_rows(place, WriteMode::Put, vec![row_bytes(&row)]).await? {
                Wrote::Done => {
                    let known = KnownPart { id: part.id, blocks: part.referred.blocks.into() };
                    self.parts.put(upload.upload, number, known);
                    let etag = hex::encode(part.md5);
                    return Ok(PartDone { etag, checksum: part.checksum, modified_ms, size: part.size });
                }
                Wrote::Outdated(newest) => floor = floor.max(newest),
            }
            self.back_off(attempt).await;
            burnt = true;
        }
        Err(DomainError::Contention)
    }

    /// A part from a range of an existing object (`None`: all of it).
    pub async fn copy_part(
        self: &Arc<Self>,
        upload: UploadRef,
        number: u32,
        source: &ObjectHead,
        range: Option<Range<u64>>,
    ) -> Result<PartDone, DomainError> {
        let number = part_number(number)?;
        let total = source.version.size;
        let range = range.unwrap_or(0..total);
        if range.end > total || range.start > range.end {
            let (first, last) = (range.start, range.end.saturating_sub(1));
            return Err(DomainError::InvalidSourceRange { first, last, size: total });
        }
        let size = range.end - range.start;
        if size > MAX_PUT_SIZE {
            return Err(DomainError::EntityTooLarge { size, max: MAX_PUT_SIZE });
        }
        let open: OpenUpload = self.open_upload(&upload).await?;
        let algorithm = open.checksum.map(|(algorithm, _)| algorithm);
        let (id, owner) = (self.new_version(), part_owner(&upload, number));
        let store = async {
            let referred = self.copy_blocks(id, &owner, source, range.clone()).await?;
            if referred.blocks.len() > MAX_ROW_BLOCKS {
                self.write_manifest(id, &referred.blocks).await?;
            }
            Ok::<_, DomainError>(referred)
        };
        let digest = async {
            match known_digests(source, &range, algorithm) {
                Some(digests) => Ok(digests),
                None => self.digest(source, range.clone(), algorithm).await.map(|d| (d.md5, d.checksum)),
            }
        };
        // Side by side; reading a large source through takes long.
        let (referred, (md5, checksum)) = match select(pin!(store), pin!(digest)).await {
            Either::Left((referred, digest)) => {
                let mut referred = referred?;
                let digests = self.while_renewing(id, &owner, &mut referred, digest).await?;
                (referred, digests)
            }
            Either::Right((digests, store)) => (store.await?, digests?),
        };
        self.commit_part(&upload, number, NewPart { id, size, md5, checksum, referred }).await
    }

    /// Makes the bytes of a range belong to `version`: whole blocks by reference, pieces of blocks and inline data
    /// as new blocks.
    async fn copy_blocks(
        self: &Arc<Self>,
        version: VersionId,
        owner: &BlockOwner,
        source: &ObjectHead,
        range: Range<u64>,
    ) -> Result<Referred, DomainError> {
        let data = &detail(source)?.data;
        if let ObjectData::Inline(bytes) = data {
            let bytes = bytes.get(range.start as usize..range.end as usize).unwrap_or_default();
            let bytes = Bytes::copy_from_slice(bytes);
            return self.store_piece(version, owner, stream::iter([Ok(bytes)]).boxed()).await;
        }
        let all = pieces(self, source.version.id, data, range.clone()).await?;
        let whole: Vec<BlockEntry> = all.iter().filter(|p| p.is_whole()).map(|p| p.entry).collect();
        let mut at = range.start;
        let mut blocks = Vec::with_capacity(all.len());
        let refer = self.refer(version, owner, &whole);
        let edges = async {
            let mut since = Moment::now(&self.env);
            for piece in &all {
                let Piece { entry, from, to } = piece;
                let len = (to - from) as u64;
                if piece.is_whole() {
                    blocks.push(*entry);
                } else {
                    let bytes = self.read_source(source, at..at + len)?;
                    let bytes = bytes.map(|piece| {
                        piece.map_err(|e| BodyError { fault: BodyFault::Incomplete, reason: e.to_string() })
                    });
                    let piece = self.store_piece(version, owner, bytes.boxed()).await?;
                    since = since.min(piece.since);
                    blocks.extend(piece.blocks);
                }
                at += len;
            }
            Ok(since)
        };
        let (whole, edges) = tokio::try_join!(refer, edges)?;
        Ok(Referred { blocks, since: whole.min(edges) })
    }

    /// Stores the bytes of part of a block as blocks of their own.
    async fn store_piece(
        self: &Arc<Self>,
        version: VersionId,
        owner: &BlockOwner,
        bytes: Body,
    ) -> Result<Referred, DomainError> {
        let target = Target { version, owner: owner.clone(), inline_max: 0, algorithm: None };
        let received = receive(self, &target, &BodyChecks::default(), bytes).await?;
        Ok(self.referred(received.content))
    }

    /// Parts behind number `after` (0: all), at most `max` (up to 1,000).
    pub async fn list_parts(
        self: &Arc<Self>,
        upload: &UploadRef,
        after: u16,
        max: usize,
    ) -> Result<PartListing, DomainError> {
        let max = max.min(MAX_LIST_PAGE);
        let reading = upload.bucket.reading();
        let read = self.read_parts(reading, upload, after.saturating_add(1)..u16::MAX, max + 1);
        let (open, rows) = tokio::try_join!(self.open_upload_as(reading, upload), read)?;
        let mut parts: Vec<PartInfo> = rows.iter().filter_map(part_info).collect();
        let more = parts.len() > max;
        parts.truncate(max);
        let next = parts.last().filter(|_| more).map(|p| p.number);
        let upload = super::list::upload_entry(&open.row).ok_or_else(|| upload.missing())?;
        Ok(PartListing { parts, next, upload })
    }

    /// Live parts with numbers in `numbers`, in order; stops when it has `enough`.
    pub(super) async fn read_parts(
        &self,
        reading: Reading,
        upload: &UploadRef,
        numbers: Range<u16>,
        enough: usize,
    ) -> Result<Vec<PartRow>, DomainError> {
        let key = |number: u16| PartRow::sort_key_of(&upload.key, &upload.upload, number);
        let end = match numbers.end {
            u16::MAX => sort_key::after_prefix(&UploadRow::sort_key_of(&upload.key, &upload.upload)),
            end => Some(key(end)),
        };
        let (mut from, mut out) = (key(numbers.start), Vec::new());
        loop {
            let want = enough.saturating_sub(out.len()).max(1);
            let (rows, next) =
                self.read_range::<PartRow>(reading, &upload.partition_key(), from, end.clone(), want).await?;
            out.extend(rows.into_iter().filter(hayloft_common::schema::Row::is_live));
            match next {
                Some(next) if out.len() < enough => from = next,
                _ => return Ok(out),
            }
        }
    }

    /// A part's blocks, wherever they stand.
    pub(super) async fn part_blocks(
        self: &Arc<Self>,
        part: &PartVersion,
    ) -> Result<Vec<BlockEntry>, DomainError> {
        if part.manifest_chunks == 0 {
            return Ok(part.blocks.clone());
        }
        self.read_manifests(part.id, part.manifest_chunks).await
    }
}

/// Digests of a whole source that stand in its row: the ETag of a single put is the MD5 of its bytes.
fn known_digests(
    source: &ObjectHead,
    range: &Range<u64>,
    algorithm: Option<ChecksumAlgorithm>,
) -> Option<([u8; 16], Option<Checksum>)> {
    if *range != (0..source.version.size) {
        return None;
    }
    let mut md5 = [0; 16];
    hex::decode_to_slice(&source.version.etag, &mut md5).ok()?;
    let checksum = match algorithm {
        None => None,
        Some(algorithm) => Some(
            source
                .checksum()
                .filter(|c| c.algorithm == algorithm && c.kind == ChecksumKind::FullObject)?
                .clone(),
        ),
    };
    Some((md5, checksum))
}
