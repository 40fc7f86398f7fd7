//! What an operation can end with when it does not succeed: one typed enum, which each API maps to its own codes
//! in one function. Nothing here knows HTTP.

use super::types::{BodyError, Right};
use hayloft_common::schema::ChecksumAlgorithm;

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DomainError {
    #[error("access key {id} does not exist, was deleted or has expired")]
    NoSuchKeyId { id: String },
    #[error("access key {id} exists already")]
    KeyExists { id: String },
    #[error("the access key has no right to {need:?} on bucket {bucket}")]
    AccessDenied { bucket: String, need: Right },
    #[error("the access key may not create buckets")]
    MayNotCreateBucket,

    #[error("bucket {name} does not exist")]
    NoSuchBucket { name: String },
    #[error("bucket {name} exists and belongs to someone else")]
    BucketAlreadyExists { name: String },
    #[error("bucket {name} exists and is yours")]
    BucketAlreadyOwnedByYou { name: String },
    #[error("bucket {name} is not empty")]
    BucketNotEmpty { name: String },
    #[error("`{name}` is not a bucket name: {rule}")]
    InvalidBucketName { name: String, rule: &'static str },
    /// Removing the last name a bucket is known by.
    #[error("{name} is the bucket's only name: give it another one first, or delete the bucket")]
    LastAlias { name: String },

    #[error("object {key} does not exist")]
    NoSuchKey { key: String },
    #[error("an object key has 1 to 1024 bytes, this one {len}")]
    KeyLength { len: usize },
    #[error("upload {upload} does not exist; it may have been completed or aborted")]
    NoSuchUpload { upload: String },
    #[error("the object has no part {number}")]
    NoSuchPart { number: u16 },
    #[error("a part number is 1 to 10000, not {number}")]
    PartNumber { number: u32 },
    #[error("the range {first}..={last} is not inside the source of {size} bytes")]
    InvalidSourceRange { first: u64, last: u64, size: u64 },

    #[error("the body's MD5 is not the one announced")]
    BadDigest,
    #[error("the body's {algorithm:?} is {found}, not {expected}")]
    BadChecksum { algorithm: ChecksumAlgorithm, expected: String, found: String },
    #[error("the upload wants {wanted:?} checksums")]
    ChecksumMismatch { wanted: Option<ChecksumAlgorithm> },
    #[error("the trailer that was announced with the checksum did not come")]
    MissingTrailer,
    #[error("the body ended after {got} of {want} bytes")]
    IncompleteBody { got: u64, want: u64 },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("{size} bytes are more than the {max} allowed")]
    EntityTooLarge { size: u64, max: u64 },
    #[error("part {number} has {size} bytes; all but the last need at least {min}")]
    EntityTooSmall { number: u16, size: u64, min: u64 },
    #[error("part {number} was not uploaded, or its ETag or checksum is not the one named")]
    InvalidPart { number: u16 },
    #[error("the parts named are not in ascending order")]
    InvalidPartOrder,
    #[error("the list of parts is empty")]
    NoParts,
    #[error("the completed object would have {found} bytes, not the {expected} announced")]
    WrongObjectSize { expected: u64, found: u64 },
    /// The request makes no sense for a reason that needs no type of its own.
    #[error("{reason}")]
    InvalidArgument { reason: String },

    /// Not enough storage nodes answered. A retry is safe.
    #[error("not enough storage nodes answer: {detail}")]
    Unavailable { detail: String },
    /// Storage nodes have no room left.
    #[error("the storage nodes have no space left: {detail}")]
    NoSpace { detail: String },
    /// This gateway is at a limit of its own: the client should slow down.
    #[error("too much at once: {what}")]
    Overloaded { what: &'static str },
    /// Other writers of the same row kept winning.
    #[error("other writers of the same key kept coming first; try again")]
    Contention,
    /// All copies of data that should be there are missing or damaged.
    #[error("data is damaged: {detail}")]
    Damaged { detail: String },
    #[error("internal error: {0}")]
    Internal(String),
}

impl DomainError {
    /// Whether the same request may succeed later, with nothing changed by the client.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::NoSpace { .. } | Self::Overloaded { .. } | Self::Contention
        )
    }
}

impl From<hayloft_common::env::Dropped> for DomainError {
    fn from(error: hayloft_common::env::Dropped) -> Self {
        Self::Internal(error.to_string())
    }
}
