//! Giving up versions whose blocks are lost for good, at an operator's word (`hayloft block purge`).

use super::store::{Wrote, place_of, row_bytes};
use super::{DomainError, Gateway};
use hayloft_common::id::VersionId;
use hayloft_common::schema::{
    BlockOwner, ObjectRow, ObjectState, PartRow, Row as _, Slot, UploadRow, UploadState, index_partition_key,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::WriteMode;

/// What became of a version that was to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgedVersion {
    /// It was its object's, which is deleted.
    Object,
    /// It was a part's of an open upload, which is aborted.
    Upload,
    /// Nobody had it any more.
    Gone,
}

impl Gateway {
    /// Deletes the object, or aborts the upload, that has `version`; only if it still has it. An object that is
    /// overwritten in this moment stays: the tombstone goes just above the row that was read.
    pub async fn purge_version(
        &self,
        version: VersionId,
        owner: &BlockOwner,
    ) -> Result<PurgedVersion, DomainError> {
        match owner {
            BlockOwner::Object { bucket, shard, key } => {
                let base = index_partition_key(bucket, *shard);
                let place = place_of(&base);
                let row: Option<ObjectRow> = self.read(base, ObjectRow::sort_key_of(key, Slot::Null)).await?;
                let Some(row) = row.filter(|row| row.live().is_some_and(|live| live.id == version)) else {
                    return Ok(PurgedVersion::Gone);
                };
                let stamp = Stamp { micros: row.stamp.micros + 1, ..row.stamp };
                let tombstone = ObjectRow { stamp, state: ObjectState::Tombstone, ..row };
                let rows = vec![row_bytes(&tombstone)];
                match self.store.write_rows(place, WriteMode::Put, rows).await? {
                    Wrote::Done => Ok(PurgedVersion::Object),
                    Wrote::Outdated(_) => Ok(PurgedVersion::Gone),
                }
            }
            BlockOwner::Part { bucket, shard, key, upload, number } => {
                let base = index_partition_key(bucket, *shard);
                let part: Option<PartRow> =
                    self.read(base.clone(), PartRow::sort_key_of(key, upload, *number)).await?;
                let has = part.is_some_and(|row| row.live().is_some_and(|live| live.id == version));
                let row: Option<UploadRow> = self.read(base, UploadRow::sort_key_of(key, upload)).await?;
                let Some(row) = row.filter(|row| has && row.is_live()) else {
                    return Ok(PurgedVersion::Gone);
                };
                self.write_merge(&UploadRow { state: UploadState::Closed, ..row }).await?;
                Ok(PurgedVersion::Upload)
            }
        }
    }
}
