//! Copies within the cluster: inline data goes into the new row, blocks get references of the new version.
//!
//! No data moves and 2 R (references, row; inline: 1), unless another checksum is asked for than the source has:
//! then the data is read through this gateway once, to compute it. The ETag and the part sizes stay the source's.

use super::digest::{DigestTask, Digesting, Digests};
use super::objects::{NewVersion, owner};
use super::read::{self, pieces};
use super::receive::{Content, Referred};
use super::{CopyObject, DomainError, Gateway, ObjectHead, PutDone, check_key};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use hayloft_common::schema::{BlockEntry, ChecksumAlgorithm, ObjectData, ObjectDetail};
use hayloft_common::stamp::Stamp;
use std::ops::Range;
use std::sync::Arc;

pub(super) fn detail(source: &ObjectHead) -> Result<&ObjectDetail, DomainError> {
    source
        .version
        .detail
        .as_deref()
        .ok_or_else(|| DomainError::Internal("a source without its detail".into()))
}

impl Gateway {
    /// Copies a source opened with `head` or `open(..).head`.
    pub async fn copy(
        self: &Arc<Self>,
        source: &ObjectHead,
        copy: CopyObject,
    ) -> Result<PutDone, DomainError> {
        check_key(&copy.key)?;
        let from = detail(source)?;
        let checksum = match copy.checksum {
            Some(algorithm) if from.checksum.as_ref().is_none_or(|c| c.algorithm != algorithm) => {
                self.digest(source, 0..source.version.size, Some(algorithm)).await?.checksum
            }
            _ => from.checksum.clone(),
        };
        let version = self.new_version();
        let content = match &from.data {
            ObjectData::Inline(bytes) => Content::Inline(bytes.clone()),
            data => {
                let blocks = self.all_blocks(source, data).await?;
                let since = self.adopt(version, &owner(&copy.bucket, &copy.key), &blocks).await?;
                Content::Blocks(Referred { blocks, since })
            }
        };
        let new = NewVersion {
            bucket: copy.bucket,
            key: copy.key,
            version,
            headers: copy.headers.unwrap_or_else(|| from.headers.clone()),
            size: source.version.size,
            etag: source.version.etag.clone(),
            checksum,
            parts: from.parts.clone(),
            content,
        };
        self.commit(new, Stamp::ZERO, || self.new_version(), |_| Vec::new()).await
    }

    async fn all_blocks(
        self: &Arc<Self>,
        source: &ObjectHead,
        data: &ObjectData,
    ) -> Result<Vec<BlockEntry>, DomainError> {
        let all = match data {
            ObjectData::Manifest { chunk_offsets, .. } => {
                return self.read_manifests(source.version.id, chunk_offsets.len() as u32).await;
            }
            data => pieces(self, source.version.id, data, 0..source.version.size).await?,
        };
        Ok(all.into_iter().map(|piece| piece.entry).collect())
    }

    /// The bytes of a range of a source.
    pub(super) fn read_source(
        self: &Arc<Self>,
        source: &ObjectHead,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, DomainError>>, DomainError> {
        Ok(read::read(self.clone(), source.version.id, &detail(source)?.data, range, None))
    }

    /// Digests of a range of a source, by reading it.
    pub(super) async fn digest(
        self: &Arc<Self>,
        source: &ObjectHead,
        range: Range<u64>,
        algorithm: Option<ChecksumAlgorithm>,
    ) -> Result<Digests, DomainError> {
        let mut bytes = self.read_source(source, range)?;
        let task = DigestTask::start(self, Digesting::new(algorithm));
        while let Some(piece) = bytes.next().await {
            task.push(piece?).await?;
        }
        task.finish().await
    }
}
