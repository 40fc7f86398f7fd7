//! Multipart uploads.
use super::{
    Body, BodyChecks, CompleteUpload, CreateUpload, DomainError, Gateway, ObjectHead, PartDone, PartListing,
    PutDone, UploadRef,
};
use hayloft_common::id::UploadId;
use std::ops::Range;
use std::sync::Arc;

impl Gateway {
    pub async fn create_upload(self: &Arc<Self>, _create: CreateUpload) -> Result<UploadId, DomainError> {
        unimplemented!()
    }
    pub async fn put_part(
        self: &Arc<Self>,
        _upload: UploadRef,
        _number: u32,
        _checks: BodyChecks,
        _body: Body,
    ) -> Result<PartDone, DomainError> {
        unimplemented!()
    }
    /// A part from a range of an existing object (`None`: all of it).
    pub async fn copy_part(
        self: &Arc<Self>,
        _upload: UploadRef,
        _number: u32,
        _source: &ObjectHead,
        _range: Option<Range<u64>>,
    ) -> Result<PartDone, DomainError> {
        unimplemented!()
    }
    /// Parts behind number `after` (0: all), at most `max` (up to 1,000).
    pub async fn list_parts(
        self: &Arc<Self>,
        _upload: &UploadRef,
        _after: u16,
        _max: usize,
    ) -> Result<PartListing, DomainError> {
        unimplemented!()
    }
    /// Answering success to a repeat of a complete that went through.
    pub async fn complete_upload(
        self: &Arc<Self>,
        _complete: CompleteUpload,
    ) -> Result<PutDone, DomainError> {
        unimplemented!()
    }
    pub async fn abort_upload(self: &Arc<Self>, _upload: &UploadRef) -> Result<(), DomainError> {
        unimplemented!()
    }
}
