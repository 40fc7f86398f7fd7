//! Completing a multipart upload.
//!
//! The object's version id is the upload's id with fresh random last bytes ([`version_of`]): so a complete that is
//! repeated after its answer got lost is recognised by the object it made, and yet each attempt refers to blocks
//! under an id of its own. That matters: references of an attempt that failed may be dropped as abandoned, and a
//! dropped reference never comes back.
//!
//! Order: (1) upload, parts and the present object are read; meanwhile, if this gateway took the parts in, their
//! blocks already get references of the new version. (2) The remaining blocks get theirs, manifest rows are written.
//! (3) One transaction writes the object's row and closes the upload. So 2 R + what (2) needs: nothing more when
//! the parts came through this gateway and no manifest is needed, else 1 R (2 if a part has a manifest of its own).
//! Memory: 36 bytes a block.

use super::digest::{combine, composite, multipart_etag};
use super::moment::Moment;
use super::objects::{NewVersion, owner, read_object};
use super::receive::{Content, Referred};
use super::rows::all;
use super::settle::Reading;
use super::uploads::{OpenUpload, closed};
use super::{CompleteUpload, DomainError, Gateway, NamedPart, PutDone, UploadRef, check_key};
use crate::cache::KnownPart;
use hayloft_common::id::{UploadId, VersionId};
use hayloft_common::limits::{MAX_OBJECT_SIZE, MAX_PARTS, MAX_ROW_BLOCKS, MIN_PART_SIZE};
use hayloft_common::map::HashSet;
use hayloft_common::schema::{
    BlockEntry, Checksum, ChecksumAlgorithm, ChecksumKind, ObjectRow, PartEntry, PartRow, PartVersion,
    Row as _, UploadRow,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::ReadRow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of an upload's id that its object's version id repeats.
const SHARED: usize = 12;

/// A version id for one attempt at completing `upload`.
fn version_of(upload: UploadId, nonce: u64) -> VersionId {
    let mut id = VersionId::from(upload);
    id.0[SHARED..].copy_from_slice(&nonce.to_le_bytes()[..VersionId::LEN - SHARED]);
    id
}

/// Whether `version` is what completing `upload` made.
fn completes(upload: UploadId, version: VersionId) -> bool {
    upload.0[..SHARED] == version.0[..SHARED]
}

/// Parts whose blocks got references already (not before `since`), and under which part id.
struct Early {
    parts: BTreeMap<u16, KnownPart>,
    since: Moment,
}

/// What the parts come to.
struct Assembly {
    size: u64,
    etag: String,
    checksum: Option<Checksum>,
    entries: Vec<PartEntry>,
}

fn check_order(parts: &[NamedPart]) -> Result<Vec<u16>, DomainError> {
    if parts.is_empty() {
        return Err(DomainError::NoParts);
    }
    if !parts.is_sorted_by(|a, b| a.number < b.number) {
        return Err(DomainError::InvalidPartOrder);
    }
    parts
        .iter()
        .map(|p| {
            let number = u16::try_from(p.number).ok().filter(|n| (1..=MAX_PARTS).contains(n));
            number.ok_or(DomainError::PartNumber { number: p.number })
        })
        .collect()
}

/// Checks the parts named against those stored.
fn choose<'a>(
    named: &[NamedPart],
    numbers: &[u16],
    stored: &'a BTreeMap<u16, PartRow>,
) -> Result<Vec<(u16, &'a PartVersion)>, DomainError> {
    let mut chosen = Vec::with_capacity(named.len());
    for (named, &number) in named.iter().zip(numbers) {
        let part = stored
            .get(&number)
            .and_then(PartRow::live)
            .filter(|part| named.etag.eq_ignore_ascii_case(&hex::encode(part.md5)))
            .filter(|part| {
                let have = part.checksum.as_ref().map(|c| &c.value);
                named.checksum.is_none() || named.checksum.as_ref() == have
            })
            .ok_or(DomainError::InvalidPart { number })?;
        chosen.push((number, part));
    }
    let but_last = &chosen[..chosen.len().saturating_sub(1)];
    match but_last.iter().find(|(_, part)| part.size < MIN_PART_SIZE) {
        Some((number, part)) => {
            Err(DomainError::EntityTooSmall { number: *number, size: part.size, min: MIN_PART_SIZE })
        }
        None => Ok(chosen),
    }
}

fn checksum_of(
    (algorithm, kind): (ChecksumAlgorithm, ChecksumKind),
    parts: &[(u16, &PartVersion)],
) -> Result<Checksum, DomainError> {
    let sums: Vec<(Vec<u8>, u64)> = parts
        .iter()
        .map(|(number, part)| {
            let sum = part.checksum.as_ref().filter(|c| c.algorithm == algorithm);
            sum.map(|c| (c.value.clone(), part.size)).ok_or(DomainError::InvalidPart { number: *number })
        })
        .collect::<Result<_, _>>()?;
    let value = match kind {
        ChecksumKind::Composite => composite(algorithm, sums.iter().map(|(raw, _)| raw.as_slice())),
        ChecksumKind::FullObject => combine(algorithm, &sums)
            .ok_or_else(|| DomainError::Internal(format!("{algorithm:?} does not combine")))?,
    };
    Ok(Checksum { algorithm, kind, value })
}

fn assemble(
    complete: &CompleteUpload,
    open: &OpenUpload,
    parts: &[(u16, &PartVersion)],
) -> Result<Assembly, DomainError> {
    let size: u64 = parts.iter().map(|(_, part)| part.size).sum();
    if size > MAX_OBJECT_SIZE {
        return Err(DomainError::EntityTooLarge { size, max: MAX_OBJECT_SIZE });
    }
    if let Some(expected) = complete.size.filter(|expected| *expected != size) {
        return Err(DomainError::WrongObjectSize { expected, found: size });
    }
    let checksum = open.checksum.map(|wanted| checksum_of(wanted, parts)).transpose()?;
    if let (Some(expected), Some(found)) = (&complete.checksum, &checksum)
        && *expected != found.value
    {
        return Err(DomainError::BadChecksum {
            algorithm: found.algorithm,
            expected: hex::encode(expected),
            found: hex::encode(&found.value),
        });
    }
    let entry = |(number, part): &(u16, &PartVersion)| PartEntry {
        number: *number,
        size: part.size,
        checksum: part.checksum.as_ref().map(|c| serde_bytes::ByteBuf::from(c.value.clone())),
    };
    Ok(Assembly {
        size,
        etag: multipart_etag(parts.iter().map(|(_, part)| &part.md5)),
        checksum,
        entries: parts.iter().map(entry).collect(),
    })
}

impl Gateway {
    /// Makes the object of the parts named; the others are dropped. A repeat of a complete that went through answers
    /// success again, as long as the object is there.
    pub async fn complete_upload(self: &Arc<Self>, complete: CompleteUpload) -> Result<PutDone, DomainError> {
        let target = &complete.target;
        check_key(&target.key)?;
        let numbers = check_order(&complete.parts)?;
        let version = version_of(target.upload, self.env.random_u64());
        let (stored, upload, object, early) = tokio::try_join!(
            self.stored_parts(target, &numbers),
            self.upload_row(Reading::Plain, target),
            self.present(Reading::Plain, target),
            self.refer_known(target, version, &numbers)
        )?;
        let open = match upload {
            Some(row) if row.is_live() => self.opened(target, row)?,
            closed => return self.completed_before(target, closed).await,
        };
        let chosen = choose(&complete.parts, &numbers, &stored)?;
        let assembly = assemble(&complete, &open, &chosen)?;
        let referred = self.gather(target, version, &chosen, &early).await?;
        let new = NewVersion {
            bucket: target.bucket.clone(),
            key: target.key.clone(),
            version,
            headers: open.headers,
            size: assembly.size,
            etag: assembly.etag,
            checksum: assembly.checksum,
            parts: assembly.entries,
            content: Content::Blocks(referred),
        };
        let floor = object.map_or(Stamp::ZERO, |row| row.stamp);
        let fresh = || version_of(target.upload, self.env.random_u64());
        self.commit(new, floor, fresh, |stamp| vec![closed(&open.row, Some(stamp))]).await
    }

    /// The object's row as it is now.
    async fn present(
        self: &Arc<Self>,
        reading: Reading,
        target: &UploadRef,
    ) -> Result<Option<ObjectRow>, DomainError> {
        let ReadRow { partition_key, sort_key, .. } = read_object(&target.bucket, &target.key);
        self.read_as(reading, partition_key, sort_key).await
    }

    /// The answer to a complete of an upload that is closed: what an earlier complete made, if it is still there.
    ///
    /// The earlier one may have had no answer because only few nodes took what it wrote. The closed row may then
    /// come (or be carried by repairs) to this read's quorum without the object's row, which still is the winner once
    /// it spreads. The closed row tells its stamp: while the object is older, the outcome is not known.
    async fn completed_before(
        self: &Arc<Self>,
        target: &UploadRef,
        closed: Option<UploadRow>,
    ) -> Result<PutDone, DomainError> {
        // Read again: the first read may have come before the commit that closed the upload. What success is answered
        // for must be on a write quorum.
        let object = self.present(Reading::Monotonic, target).await?;
        let stamp = object.as_ref().map(|row| row.stamp);
        let made = object.as_ref().and_then(ObjectRow::live).filter(|v| completes(target.upload, v.id));
        if let Some(version) = made {
            return Ok(PutDone {
                etag: version.etag.clone(),
                checksum: version.detail.as_ref().and_then(|detail| detail.checksum.clone()),
                modified_ms: version.modified_ms,
                size: version.size,
            });
        }
        match closed.and_then(|row| row.completed) {
            Some(completed) if stamp < Some(completed) => Err(DomainError::Unavailable {
                detail: "an earlier complete of this upload reached too few nodes; its object may still come"
                    .into(),
            }),
            _ => Err(target.missing()),
        }
    }

    /// The stored parts among `numbers` (ascending). 1 R: ranges of numbers are read side by side.
    async fn stored_parts(
        &self,
        target: &UploadRef,
        numbers: &[u16],
    ) -> Result<BTreeMap<u16, PartRow>, DomainError> {
        let ranges: Vec<_> = numbers.chunks(500).map(|c| c[0]..c[c.len() - 1] + 1).collect();
        let read = |range: Range<u16>| {
            let most = range.len();
            self.read_parts(Reading::Plain, target, range, most)
        };
        let rows = all(ranges.into_iter().map(read).collect()).await?;
        Ok(rows.into_iter().flatten().map(|row| (row.number, row)).collect())
    }

    /// Refers to the blocks of parts that this gateway remembers, before it is known that they are the stored ones.
    async fn refer_known(
        &self,
        target: &UploadRef,
        version: VersionId,
        numbers: &[u16],
    ) -> Result<Early, DomainError> {
        let now = Moment::now(&self.env);
        let parts: BTreeMap<_, _> =
            numbers.iter().filter_map(|n| Some((*n, self.parts.take(target.upload, *n)?))).collect();
        let blocks: Vec<BlockEntry> =
            parts.values().flat_map(|part: &KnownPart| part.blocks.iter().copied()).collect();
        match self.refer(version, &owner(&target.bucket, &target.key), &blocks).await {
            Ok(since) => Ok(Early { parts, since }),
            // What was remembered may be gone by now; what is stored decides.
            Err(DomainError::Damaged { .. }) => Ok(Early { parts: BTreeMap::new(), since: now }),
            Err(error) => Err(error),
        }
    }

    /// All blocks in order, each with a reference of `version`; manifest rows written if needed.
    async fn gather(
        self: &Arc<Self>,
        target: &UploadRef,
        version: VersionId,
        parts: &[(u16, &PartVersion)],
        early: &Early,
    ) -> Result<Referred, DomainError> {
        let known = |number: &u16, part: &PartVersion| early.parts.get(number).filter(|k| k.id == part.id);
        let mut calls = Vec::with_capacity(parts.len());
        for (number, part) in parts {
            calls.push(async move {
                match known(number, part) {
                    Some(known) => Ok::<_, DomainError>(known.blocks.to_vec()),
                    None => self.part_blocks(part).await,
                }
            });
        }
        let lists = all(calls).await?;
        let have: HashSet<_> = parts
            .iter()
            .filter_map(|(number, part)| known(number, part))
            .flat_map(|part| part.blocks.iter().map(|b| b.hash))
            .collect();
        let blocks = lists.concat();
        let rest: Vec<BlockEntry> = blocks.iter().filter(|b| !have.contains(&b.hash)).copied().collect();
        let owner = owner(&target.bucket, &target.key);
        let manifest = async {
            if blocks.len() > MAX_ROW_BLOCKS {
                self.write_manifest(version, &blocks).await?;
            }
            Ok(())
        };
        let (since, ()) = tokio::try_join!(self.refer(version, &owner, &rest), manifest)?;
        Ok(Referred { blocks, since: since.min(early.since) })
    }
}
