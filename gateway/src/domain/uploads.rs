//! Multipart uploads as a whole: create, look up, abort.
//!
//! Round trips: create 1; abort 2 (look, then close). An abort leaves the parts to the storage nodes, which drop what
//! a closed upload held. Aborting an upload while it is being completed may come too late or win; either way the
//! object is whole or not there, since a complete makes references of its own before it commits.

use super::digest::combines;
use super::settle::Reading;
use super::store::{place_of, row_bytes};
use super::{CreateUpload, DomainError, Gateway, UploadRef, check_key};
use hayloft_common::id::UploadId;
use hayloft_common::schema::ChecksumAlgorithm;
use hayloft_common::schema::{ChecksumKind, Headers, Row as _, UploadRow, UploadState, index_partition_key};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::RowBytes;

/// An upload that is open.
pub(super) struct OpenUpload {
    pub(super) row: UploadRow,
    pub(super) headers: Headers,
    pub(super) checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
}

impl UploadRef {
    pub(super) fn shard(&self) -> u16 {
        self.bucket.shard_of(&self.key)
    }

    pub(super) fn partition_key(&self) -> Vec<u8> {
        index_partition_key(&self.bucket.id(), self.shard())
    }

    pub(super) fn missing(&self) -> DomainError {
        DomainError::NoSuchUpload { upload: self.upload.to_string() }
    }
}

/// The row that closes an upload for good; `completed`: the stamp of the object's row that goes with it.
pub(super) fn closed(row: &UploadRow, completed: Option<Stamp>) -> RowBytes {
    row_bytes(&UploadRow { state: UploadState::Closed, completed, ..row.clone() })
}

impl Gateway {
    pub async fn create_upload(&self, create: CreateUpload) -> Result<UploadId, DomainError> {
        check_key(&create.key)?;
        if let Some((algorithm, ChecksumKind::FullObject)) = create.checksum
            && !combines(algorithm)
        {
            let reason = format!("{algorithm:?} of parts can't be combined to one of the full object");
            return Err(DomainError::InvalidArgument { reason });
        }
        let upload = UploadId(self.env.random_bytes());
        let row = UploadRow {
            bucket: create.bucket.id(),
            shard: create.bucket.shard_of(&create.key),
            key: create.key,
            upload,
            created_ms: self.env.wall_millis(),
            state: UploadState::Open { headers: create.headers, checksum: create.checksum },
            completed: None,
        };
        self.write_put(place_of(&row.partition_key()), Stamp::ZERO, |_| vec![row_bytes(&row)]).await?;
        self.upload_sums.put(self.env.now(), upload, create.checksum);
        Ok(upload)
    }

    /// The upload, if it is open. 1 R.
    pub(super) async fn open_upload(&self, upload: &UploadRef) -> Result<OpenUpload, DomainError> {
        self.open_upload_as(Reading::Plain, upload).await
    }

    pub(super) async fn open_upload_as(
        &self,
        reading: Reading,
        upload: &UploadRef,
    ) -> Result<OpenUpload, DomainError> {
        let row = self.upload_row(reading, upload).await?.ok_or_else(|| upload.missing())?;
        self.opened(upload, row)
    }

    /// The upload's row, open or closed. 1 R.
    pub(super) async fn upload_row(
        &self,
        reading: Reading,
        upload: &UploadRef,
    ) -> Result<Option<UploadRow>, DomainError> {
        check_key(&upload.key)?;
        let sort_key = UploadRow::sort_key_of(&upload.key, &upload.upload);
        self.read_as(reading, upload.partition_key(), sort_key).await
    }

    /// The upload of that row, if it is open.
    pub(super) fn opened(&self, upload: &UploadRef, row: UploadRow) -> Result<OpenUpload, DomainError> {
        match row.state.clone() {
            UploadState::Open { headers, checksum } => {
                self.upload_sums.put(self.env.now(), upload.upload, checksum);
                Ok(OpenUpload { row, headers, checksum })
            }
            UploadState::Closed => Err(upload.missing()),
        }
    }

    pub async fn abort_upload(&self, upload: &UploadRef) -> Result<(), DomainError> {
        let open = self.open_upload(upload).await?;
        let place = place_of(&upload.partition_key());
        self.write_put(place, Stamp::ZERO, |_| vec![closed(&open.row, None)]).await?;
        Ok(())
    }
}
