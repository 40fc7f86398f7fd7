//! Objects.
use super::{Body, Bucket, CopyObject, DeleteOutcome, DomainError, Gateway, ObjectHead, PutDone, PutObject};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::ops::Range;
use std::sync::Arc;

/// An object opened for reading: its head, and then any range of its bytes.
pub struct OpenObject {
    pub head: ObjectHead,
}

impl OpenObject {
    /// The bytes of `range` (of the whole object; at most its size), verified. Fails only when every copy of a
    /// block is missing, damaged or out of reach.
    pub fn read(self, _range: Range<u64>) -> BoxStream<'static, Result<Bytes, DomainError>> {
        unimplemented!()
    }
}

impl Gateway {
    pub async fn put(self: &Arc<Self>, _put: PutObject, _body: Body) -> Result<PutDone, DomainError> {
        unimplemented!()
    }
    /// For GET; begins to fetch the first block at once.
    pub async fn open(
        self: &Arc<Self>,
        _bucket: &Bucket,
        _key: &str,
        _part: Option<u16>,
    ) -> Result<OpenObject, DomainError> {
        unimplemented!()
    }
    /// For HEAD: fetches no data.
    pub async fn head(
        self: &Arc<Self>,
        _bucket: &Bucket,
        _key: &str,
        _part: Option<u16>,
    ) -> Result<ObjectHead, DomainError> {
        unimplemented!()
    }
    /// Succeeds also when there is nothing.
    pub async fn delete(self: &Arc<Self>, _bucket: &Bucket, _key: &str) -> Result<(), DomainError> {
        unimplemented!()
    }
    /// One outcome for each key, in order.
    pub async fn delete_many(self: &Arc<Self>, _bucket: &Bucket, _keys: Vec<String>) -> Vec<DeleteOutcome> {
        unimplemented!()
    }
    /// Copies a source opened with `head` or `open(..).head`.
    pub async fn copy(
        self: &Arc<Self>,
        _source: &ObjectHead,
        _copy: CopyObject,
    ) -> Result<PutDone, DomainError> {
        unimplemented!()
    }
}
