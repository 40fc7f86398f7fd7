//! Buckets.
use super::{Bucket, BucketEntry, BucketInfo, DomainError, Gateway, NewBucket, Right};
use hayloft_common::id::BucketId;
use hayloft_common::schema::{BucketRow, KeyId, KeyRow, Permissions};
use std::sync::Arc;

impl Gateway {
    /// The bucket that `key` means by `name` (its own aliases first), if the key has the right. A refusal is never
    /// given from the cache.
    pub async fn authorize(
        &self,
        _key: &KeyId,
        _name: &str,
        _need: Right,
    ) -> Result<Arc<Bucket>, DomainError> {
        unimplemented!()
    }
    /// The bucket of a global name, whoever asks.
    pub async fn resolve(&self, _name: &str) -> Result<Arc<Bucket>, DomainError> {
        unimplemented!()
    }
    /// Buckets that `key` has any right on, with the names it sees, in order of names.
    pub async fn list_buckets_of(&self, _key: &KeyRow) -> Result<Vec<BucketEntry>, DomainError> {
        unimplemented!()
    }
    /// S3's CreateBucket.
    pub async fn create_bucket_as(&self, _key: &KeyId, _name: &str) -> Result<Arc<Bucket>, DomainError> {
        unimplemented!()
    }
    /// S3's DeleteBucket: only when it holds no object. Open uploads don't count (they are lost).
    pub async fn delete_bucket(&self, _bucket: &Bucket) -> Result<(), DomainError> {
        unimplemented!()
    }

    pub async fn create_bucket(&self, _new: NewBucket) -> Result<BucketRow, DomainError> {
        unimplemented!()
    }
    pub async fn list_buckets(&self) -> Result<Vec<BucketRow>, DomainError> {
        unimplemented!()
    }
    pub async fn bucket_row(&self, _id: BucketId) -> Result<BucketRow, DomainError> {
        unimplemented!()
    }
    pub async fn bucket_info(&self, _id: BucketId) -> Result<BucketInfo, DomainError> {
        unimplemented!()
    }
    /// Only flags that are true act.
    pub async fn allow(
        &self,
        _bucket: BucketId,
        _key: &KeyId,
        _give: Permissions,
    ) -> Result<(), DomainError> {
        unimplemented!()
    }
    pub async fn deny(&self, _bucket: BucketId, _key: &KeyId, _take: Permissions) -> Result<(), DomainError> {
        unimplemented!()
    }
    pub async fn add_global_alias(&self, _bucket: BucketId, _name: &str) -> Result<(), DomainError> {
        unimplemented!()
    }
    pub async fn remove_global_alias(&self, _bucket: BucketId, _name: &str) -> Result<(), DomainError> {
        unimplemented!()
    }
    pub async fn add_local_alias(
        &self,
        _bucket: BucketId,
        _key: &KeyId,
        _name: &str,
    ) -> Result<(), DomainError> {
        unimplemented!()
    }
    pub async fn remove_local_alias(
        &self,
        _bucket: BucketId,
        _key: &KeyId,
        _name: &str,
    ) -> Result<(), DomainError> {
        unimplemented!()
    }
}
