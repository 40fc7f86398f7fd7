//! Listings.
use super::{Bucket, DomainError, Gateway, ListRequest, ListUploads, Listing, ObjectEntry, UploadEntry};
use std::sync::Arc;

impl Gateway {
    pub async fn list(
        self: &Arc<Self>,
        _bucket: &Bucket,
        _list: ListRequest,
    ) -> Result<Listing<ObjectEntry>, DomainError> {
        unimplemented!()
    }
    pub async fn list_uploads(
        self: &Arc<Self>,
        _bucket: &Bucket,
        _list: ListUploads,
    ) -> Result<Listing<UploadEntry>, DomainError> {
        unimplemented!()
    }
}
