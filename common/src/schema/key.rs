//! Access keys: who may do what. Format 1.
//!
//! Rights stand in the key's row alone, so that a request is authorised from one cached row.

use super::{Row, RowError, TableId, control_partition_key, rule};
use crate::codec::Format;
use crate::crdt::{Crdt, Lww, LwwMap};
use crate::env::Env;
use crate::id::BucketId;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The public half of an access key, such as `HK0123456789abcdef01234567`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub String);

impl KeyId {
    /// A new random id.
    pub fn generate(env: &Env) -> Self {
        Self(format!("HK{}", hex::encode(env.random_bytes::<12>())))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key's rights on one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Permissions {
    pub read: bool,
    pub write: bool,
    pub owner: bool,
}

impl Permissions {
    /// All rights.
    pub const ALL: Self = Self { read: true, write: true, owner: true };

    /// Whether any right is given.
    pub fn any(self) -> bool {
        self.read || self.write || self.owner
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    pub id: KeyId,
    /// Fixed when the key is made. Never logged.
    pub secret: String,
    pub created_ms: u64,
    pub deleted: bool,
    pub name: Lww<String>,
    /// Milliseconds since the epoch; `None` never.
    pub expires_ms: Lww<Option<u64>>,
    pub create_bucket: Lww<bool>,
    pub buckets: LwwMap<BucketId, Permissions>,
    /// Names that only this key sees.
    pub local_aliases: LwwMap<String, Option<BucketId>>,
}

impl fmt::Debug for KeyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRow").field("id", &self.id).field("deleted", &self.deleted).finish_non_exhaustive()
    }
}

impl Format for KeyRow {
    const NAME: &'static str = "key row";
}

impl Row for KeyRow {
    const TABLE: TableId = TableId::Key;

    fn partition_key(&self) -> Vec<u8> {
        control_partition_key(Self::TABLE)
    }

    fn sort_key(&self) -> Vec<u8> {
        self.id.0.as_bytes().to_vec()
    }

    fn merge(&mut self, other: &Self) {
        // Fixed at creation; the rules only keep the merge a merge for any input.
        if other.secret > self.secret {
            self.secret.clone_from(&other.secret);
        }
        self.created_ms = self.created_ms.max(other.created_ms);
        self.deleted |= other.deleted;
        self.name.merge(&other.name);
        self.expires_ms.merge(&other.expires_ms);
        self.create_bucket.merge(&other.create_bucket);
        Crdt::merge(&mut self.buckets, &other.buckets);
        Crdt::merge(&mut self.local_aliases, &other.local_aliases);
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn is_live(&self) -> bool {
        !self.deleted
    }

    fn validate(&self) -> Result<(), RowError> {
        let t = Self::TABLE;
        rule(
            t,
            !self.id.0.is_empty() && self.id.0.len() <= 128 && self.secret.len() <= 256,
            "length of key",
        )?;
        let fields = [self.name.stamp, self.expires_ms.stamp, self.create_bucket.stamp];
        let maps = self.buckets.values().map(|b| b.stamp).chain(self.local_aliases.values().map(|a| a.stamp));
        rule(t, fields.into_iter().chain(maps).all(|s| s.is_valid()), "stamp too far in the future")
    }
}
