//! JSON of the admin interface, version 2: what gateways serve and `hayloft` calls.
//!
//! Names and shapes are those that consoles, Terraform providers and operators of this field already speak;
//! fields of our own are marked *ours* and may be left out by clients. Unknown fields are ignored in both
//! directions, so that old and new programs understand each other. Dates are RFC 3339 texts, sizes bytes.

mod layout;
mod operate;

use hayloft_common::id::{BucketId, NodeId};
pub use layout::*;
pub use operate::*;
use serde::{Deserialize, Serialize};

macro_rules! endpoints {
    ($($name:ident $method:ident,)*) => {
        /// An endpoint: `/v2/<name>`. Reads are GET, all else is POST.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Endpoint {
            $(#[doc = concat!(stringify!($method), " /v2/", stringify!($name))] $name,)*
        }

        impl Endpoint {
            /// Every endpoint.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name, as in paths and token scopes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Its HTTP method.
            pub fn method(self) -> &'static str {
                match self { $(Self::$name => stringify!($method),)* }
            }
        }
    };
}

endpoints! {
    GetClusterStatus GET,
    GetClusterHealth GET,
    GetClusterLayout GET,
    GetClusterLayoutHistory GET,
    UpdateClusterLayout POST,
    PreviewClusterLayoutChanges POST,
    ApplyClusterLayout POST,
    RevertClusterLayout POST,
    ClusterLayoutSkipDeadNodes POST,
    ListKeys GET,
    GetKeyInfo GET,
    CreateKey POST,
    ImportKey POST,
    UpdateKey POST,
    DeleteKey POST,
    ListBuckets GET,
    GetBucketInfo GET,
    CreateBucket POST,
    UpdateBucket POST,
    DeleteBucket POST,
    AddBucketAlias POST,
    RemoveBucketAlias POST,
    AllowBucketKey POST,
    DenyBucketKey POST,
    LaunchRepairOperation POST,
    ListWorkers POST,
    GetWorkerInfo POST,
    GetWorkerVariable POST,
    SetWorkerVariable POST,
    ListBlockErrors GET,
    GetBlockInfo POST,
    RetryBlockResync POST,
    PurgeBlocks POST,
    CreateMetadataSnapshot POST,
    GetVerification GET,
}

impl Endpoint {
    /// The endpoint of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|endpoint| endpoint.name() == name)
    }

    /// `/v2/<name>`.
    pub fn path(self) -> String {
        format!("/v2/{}", self.name())
    }
}

/// The body of every answer with a status of 400 or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs, such as `NoSuchBucket`.
    pub code: String,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// The cluster's S3 region.
    pub region: String,
    /// The path of the request.
    pub path: String,
}

// ---- Cluster ----

/// Answer of GetClusterStatus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Of the applied layout; 0 before the first.
    pub layout_version: u64,
    /// Every node that is known or has a role, in order of id.
    pub nodes: Vec<Node>,
}

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub id: NodeId,
    /// Whether the gateway that answers is connected to it.
    pub is_up: bool,
    /// It holds data of an earlier layout that is being moved away.
    pub draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The node's version, under the field name that consoles read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub garage_version: Option<String>,
    /// If it is down, and was ever seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_secs_ago: Option<u64>,
    /// In the applied layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_partition: Option<DiskSpace>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_partition: Option<DiskSpace>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_queue_len: Option<u64>,
}

/// The role of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRole {
    pub zone: String,
    /// `null` for a gateway.
    #[serde(default)]
    pub capacity: Option<u64>,
    pub tags: Vec<String>,
}

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    pub available: u64,
    pub total: u64,
}

/// The whole in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Every storage node is up.
    Healthy,
    /// Every partition has a quorum.
    Degraded,
    /// Some partition has none.
    Unavailable,
}

/// Answer of GetClusterHealth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterHealth {
    pub status: HealthStatus,
    pub known_nodes: usize,
    pub connected_nodes: usize,
    /// With a role in the layout.
    pub storage_nodes: usize,
    pub storage_nodes_up: usize,
    /// The same as `storage_nodes_up`, for clients of 2.0.
    pub storage_nodes_ok: usize,
    pub partitions: usize,
    pub partitions_quorum: usize,
    pub partitions_all_ok: usize,
}

// ---- Keys ----

/// An entry of ListKeys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyListItem {
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub expired: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
}

/// Answer of GetKeyInfo, CreateKey, ImportKey and UpdateKey.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    pub access_key_id: String,
    /// On creation, or when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    #[serde(default)]
    pub expired: bool,
    pub permissions: KeyPermissions,
    pub buckets: Vec<KeyBucket>,
}

impl std::fmt::Debug for KeyInfo {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyInfo")
            .field("access_key_id", &self.access_key_id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a key may do beyond its buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyPermissions {
    pub create_bucket: bool,
}

/// A bucket that a key has rights on or names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyBucket {
    pub id: BucketId,
    pub global_aliases: Vec<String>,
    pub local_aliases: Vec<String>,
    pub permissions: BucketPermissions,
}

/// What a key may do with a bucket. In AllowBucketKey and DenyBucketKey only flags that are true act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BucketPermissions {
    pub read: bool,
    pub write: bool,
    pub owner: bool,
}

/// Request of CreateKey and UpdateKey (which takes `?id=`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeySettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// Removes the expiration.
    pub never_expires: bool,
    /// Flags that are true are granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<KeyPermissions>,
    /// Flags that are true are taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<KeyPermissions>,
}

/// Request of ImportKey.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportKey {
    pub access_key_id: String,
    pub secret_access_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl std::fmt::Debug for ImportKey {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportKey").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

// ---- Buckets ----

/// An entry of ListBuckets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketListItem {
    pub id: BucketId,
    pub created: String,
    pub global_aliases: Vec<String>,
    pub local_aliases: Vec<LocalAlias>,
}

/// A name that only one key sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalAlias {
    pub access_key_id: String,
    pub alias: String,
}

/// Answer of GetBucketInfo, CreateBucket, UpdateBucket, the alias endpoints and the right endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketInfo {
    pub id: BucketId,
    pub created: String,
    pub global_aliases: Vec<String>,
    pub keys: Vec<BucketKey>,
    pub website_access: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub website_config: Option<WebsiteConfig>,
    /// Rules with the names of S3's XML, in PascalCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors_rules: Option<Vec<serde_json::Value>>,
    /// Rules with the names of S3's XML, in PascalCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle_rules: Option<Vec<serde_json::Value>>,
    pub quotas: Quotas,
    /// *Ours*: what one read has shown, every later one shows too.
    #[serde(default)]
    pub monotonic_reads: bool,
    pub objects: u64,
    pub bytes: u64,
    pub unfinished_uploads: u64,
    pub unfinished_multipart_uploads: u64,
    pub unfinished_multipart_upload_parts: u64,
    pub unfinished_multipart_upload_bytes: u64,
}

/// A key with rights on a bucket, or a name for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketKey {
    pub access_key_id: String,
    pub name: String,
    pub permissions: BucketPermissions,
    pub bucket_local_aliases: Vec<String>,
}

/// A bucket as a website.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebsiteConfig {
    pub index_document: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_document: Option<String>,
    /// Rules with the names of S3's XML, in PascalCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_rules: Option<Vec<serde_json::Value>>,
}

/// Bounds of a bucket; `null` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Quotas {
    pub max_size: Option<u64>,
    pub max_objects: Option<u64>,
}

/// Request of CreateBucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateBucket {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_alias: Option<CreateBucketLocalAlias>,
}

/// A local alias for a new bucket, and rights for its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateBucketLocalAlias {
    pub access_key_id: String,
    pub alias: String,
    #[serde(default)]
    pub allow: BucketPermissions,
}

/// Request of UpdateBucket, which takes `?id=`; what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateBucket {
    /// Of other programs of this field; refused as long as there are no websites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub website_access: Option<serde_json::Value>,
    /// Of other programs of this field; refused as long as there are no quotas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotas: Option<serde_json::Value>,
    /// *Ours*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monotonic_reads: Option<bool>,
}

/// Request of AddBucketAlias and RemoveBucketAlias: `globalAlias`, or `accessKeyId` and `localAlias`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketAlias {
    pub bucket_id: BucketId,
    #[serde(flatten)]
    pub alias: Alias,
}

/// A name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Alias {
    #[serde(rename_all = "camelCase")]
    Global { global_alias: String },
    #[serde(rename_all = "camelCase")]
    Local { access_key_id: String, local_alias: String },
}

/// Request of AllowBucketKey and DenyBucketKey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketKeyPermissions {
    pub bucket_id: BucketId,
    pub access_key_id: String,
    pub permissions: BucketPermissions,
}

#[cfg(test)]
mod tests;
