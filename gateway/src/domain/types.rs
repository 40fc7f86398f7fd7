//! Requests and results of the domain layer. No HTTP, no XML: an API translates to and from these.

use bytes::Bytes;
use futures::stream::BoxStream;
use hayloft_common::id::{BucketId, UploadId};
use hayloft_common::schema::{
    BucketRow, Checksum, ChecksumAlgorithm, ChecksumKind, Headers, KeyId, ObjectVersion, Permissions,
    index_shard,
};
use hayloft_common::stamp::Stamp;
use std::sync::{Arc, OnceLock};

/// What a client sends, piece by piece. It ends after the last byte; an error ends it too.
pub type Body = BoxStream<'static, Result<Bytes, BodyError>>;

/// What went wrong with a client's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// The client went away or sent less than it announced.
    Incomplete,
    /// The client stopped sending for too long.
    TooSlow,
    /// A signature of a chunk, or the announced SHA-256 of the payload, does not hold.
    BadSignature,
    /// The SHA-256 of the payload (`x-amz-content-sha256`) is another.
    BadPayloadHash,
    /// The chunk encoding is malformed.
    Malformed,
    /// More than was announced or allowed.
    TooLarge,
}

/// A client's body failed. Nothing is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BodyError {
    pub fault: BodyFault,
    pub reason: String,
}

/// What a request needs on a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
    Owner,
}

impl Right {
    /// Whether `given` is enough: an owner may do everything.
    pub fn is_in(self, given: Permissions) -> bool {
        match self {
            Self::Read => given.read,
            Self::Write => given.write,
            Self::Owner => given.owner,
        }
    }
}

/// A bucket as a request found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The name it was found by.
    pub name: String,
    pub row: BucketRow,
}

impl Bucket {
    pub fn id(&self) -> BucketId {
        self.row.id
    }

    /// The index shard that holds `key`.
    pub fn shard_of(&self, key: &str) -> u16 {
        index_shard(key, self.row.index_shards)
    }
}

/// A bucket in a list for a key's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketEntry {
    pub id: BucketId,
    pub name: String,
    pub created_ms: u64,
    /// Rights of the key it was listed for.
    pub permissions: Permissions,
}

/// What is known of a bucket, for the admin interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    pub row: BucketRow,
    pub keys: Vec<BucketKey>,
    pub counters: BucketCounters,
}

/// A key's part in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketKey {
    pub id: KeyId,
    pub name: String,
    pub permissions: Permissions,
    pub local_aliases: Vec<String>,
}

/// Sums over a bucket's index shards; each the highest that a read quorum's nodes count. Not exact under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BucketCounters {
    pub objects: u64,
    pub bytes: u64,
    pub uploads: u64,
    pub parts: u64,
    pub part_bytes: u64,
}

/// A new bucket, from the admin interface or an access key.
#[derive(Clone, Debug, Default)]
pub struct NewBucket {
    pub global_alias: Option<String>,
    pub local_alias: Option<(KeyId, String)>,
    /// Rights to give at once.
    pub allow: Option<(KeyId, Permissions)>,
}

/// A new access key.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    pub name: String,
    pub expires_ms: Option<u64>,
    pub create_bucket: bool,
}

/// Changes to an access key; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    pub name: Option<String>,
    /// `Some(None)`: never expires.
    pub expires_ms: Option<Option<u64>>,
    pub create_bucket: Option<bool>,
}

/// What the extra checksum of a body is compared with.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Nothing: computed, stored and answered.
    Unknown,
    /// The raw digest, known from the headers.
    Value(Vec<u8>),
    /// The raw digest, set by the body stream before it ends (a trailer). Not set by then: `MissingTrailer`.
    Trailer(Arc<OnceLock<Vec<u8>>>),
}

/// An extra checksum that a client wants.
#[derive(Clone, Debug)]
pub struct ChecksumRequest {
    pub algorithm: ChecksumAlgorithm,
    pub expected: Expected,
}

/// What is checked of a body before anything becomes visible.
#[derive(Clone, Debug, Default)]
pub struct BodyChecks {
    /// Announced number of bytes (of the payload, without chunk encoding). Known: memory is claimed tightly.
    pub length: Option<u64>,
    /// `Content-MD5`.
    pub md5: Option<[u8; 16]>,
    /// At most one extra checksum.
    pub checksum: Option<ChecksumRequest>,
}

/// One PUT of an object.
#[derive(Clone, Debug)]
pub struct PutObject {
    pub bucket: Arc<Bucket>,
    pub key: String,
    /// To be given back with the object, names in lower case.
    pub headers: Headers,
    pub checks: BodyChecks,
}

/// What a PUT made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutDone {
    /// Without quotes.
    pub etag: String,
    pub checksum: Option<Checksum>,
    pub modified_ms: u64,
    pub size: u64,
}

/// One part of a completed multipart object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartView {
    pub number: u16,
    /// Parts of the whole object; 0 for an object of a single PUT, whose only part is 1.
    pub count: u16,
    /// First byte in the object.
    pub offset: u64,
    pub size: u64,
}

/// What HEAD shows, and GET before its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHead {
    /// With its detail.
    pub version: ObjectVersion,
    pub stamp: Stamp,
    /// The part asked for.
    pub part: Option<PartView>,
}

impl ObjectHead {
    /// Headers given at the upload.
    pub fn headers(&self) -> &[(String, String)] {
        self.version.detail.as_ref().map_or(&[], |d| &d.headers)
    }

    /// The extra checksum of the whole object.
    pub fn checksum(&self) -> Option<&Checksum> {
        self.version.detail.as_ref().and_then(|d| d.checksum.as_ref())
    }
}

/// A copy within the cluster. The source was opened before (so that its conditions could be judged).
#[derive(Clone, Debug)]
pub struct CopyObject {
    pub bucket: Arc<Bucket>,
    pub key: String,
    /// `Some`: replace the source's headers (metadata directive REPLACE).
    pub headers: Option<Headers>,
    /// Ask for another extra checksum than the source's: the data is then read once to compute it.
    pub checksum: Option<ChecksumAlgorithm>,
}

/// Where a listing of objects begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListStart {
    #[default]
    Beginning,
    /// Behind this key or rolled-up prefix (v1 marker, v2 start-after). A rolled-up prefix that contains it
    /// (`a/` for `a/b`) is behind as well.
    After(String),
    /// Where [`Listing::next`] said.
    Token(String),
}

/// A listing of objects or uploads.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    pub prefix: String,
    /// Not empty.
    pub delimiter: Option<String>,
    pub start: ListStart,
    /// Entries and rolled-up prefixes together; at most 1,000. 0 gives an empty, complete page.
    pub max: usize,
}

/// One entry of a listing, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed<T> {
    Entry(T),
    Prefix(String),
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// In order of keys.
    pub entries: Vec<Listed<T>>,
    /// `Some`: truncated; give it back as [`ListStart::Token`]. Printable.
    pub next: Option<String>,
}

impl<T> Listing<T> {
    /// The last key or prefix of the page (v1's `NextMarker`), given how to name an entry.
    pub fn last_name(&self, key: impl Fn(&T) -> &str) -> Option<String> {
        self.entries.last().map(|e| match e {
            Listed::Entry(entry) => key(entry).to_owned(),
            Listed::Prefix(prefix) => prefix.clone(),
        })
    }
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    pub key: String,
    /// Without its detail.
    pub version: ObjectVersion,
}

/// Where a listing of uploads begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UploadStart {
    #[default]
    Beginning,
    /// Behind all uploads of this key (or rolled-up prefix).
    AfterKey(String),
    /// Behind this upload of this key.
    After(String, UploadId),
}

/// A listing of uploads.
#[derive(Clone, Debug, Default)]
pub struct ListUploads {
    pub prefix: String,
    pub delimiter: Option<String>,
    pub start: UploadStart,
    pub max: usize,
}

/// An open upload in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadEntry {
    pub key: String,
    pub upload: UploadId,
    pub created_ms: u64,
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
}

/// A new multipart upload.
#[derive(Clone, Debug)]
pub struct CreateUpload {
    pub bucket: Arc<Bucket>,
    pub key: String,
    pub headers: Headers,
    /// Which checksum the parts carry and how the object's is made of them.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
}

/// Names an upload.
#[derive(Clone, Debug)]
pub struct UploadRef {
    pub bucket: Arc<Bucket>,
    pub key: String,
    pub upload: UploadId,
}

/// What storing a part made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartDone {
    /// MD5 in hex, without quotes.
    pub etag: String,
    pub checksum: Option<Checksum>,
    pub modified_ms: u64,
    pub size: u64,
}

/// One stored part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    pub number: u16,
    pub etag: String,
    pub size: u64,
    pub modified_ms: u64,
    pub checksum: Option<Checksum>,
}

/// A page of parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartListing {
    pub parts: Vec<PartInfo>,
    /// `Some`: truncated, go on behind this number.
    pub next: Option<u16>,
    pub upload: UploadEntry,
}

/// A part that a complete names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPart {
    pub number: u32,
    /// Without quotes.
    pub etag: String,
    /// Raw digest, if the client named one.
    pub checksum: Option<Vec<u8>>,
}

/// Completing an upload.
#[derive(Clone, Debug)]
pub struct CompleteUpload {
    pub target: UploadRef,
    pub parts: Vec<NamedPart>,
    /// Raw digest of the whole object as the client expects it.
    pub checksum: Option<Vec<u8>>,
    /// `x-amz-mp-object-size`.
    pub size: Option<u64>,
}

/// What became of one key of a delete of many.
#[derive(Clone, Debug)]
pub struct DeleteOutcome {
    pub key: String,
    pub result: Result<(), super::DomainError>,
}
