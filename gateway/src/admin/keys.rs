//! Access keys.

use super::{Admin, AdminError, Call};
use crate::domain::{KeyChange, NewKey};
use crate::http::date;
use hayloft_common::id::BucketId;
use hayloft_common::schema::{BucketRow, KeyId, KeyRow, Permissions};
use hayloft_proto::admin::{
    BucketPermissions, ImportKey, KeyBucket, KeyInfo, KeyListItem, KeyPermissions, KeySettings,
};
use std::collections::BTreeMap;

/// Longest imported id and secret, in characters, and the shortest.
const IMPORT_LENGTH: (usize, usize) = (3, 128);

impl Admin {
    pub(super) async fn list_keys(&self, call: &Call) -> Result<Vec<KeyListItem>, AdminError> {
        let keys = self.gateway.list_keys().await?;
        let items = keys.iter().map(|row| KeyListItem {
            id: row.id.to_string(),
            name: row.name.value.clone(),
            expired: self.gateway.is_expired(row),
            created: Some(date::iso(row.created_ms)),
            expiration: row.expires_ms.value.map(date::iso),
        });
        paged(call, items.collect())
    }

    pub(super) async fn key_info(&self, call: &Call) -> Result<KeyInfo, AdminError> {
        let show = call.query.get("showSecretKey") == Some("true");
        let id = match (call.query.get("id"), call.query.get("search")) {
            (Some(id), None) => KeyId(id.to_owned()),
            (None, Some(text)) => self.find_key(text).await?,
            _ => return Err(AdminError::bad("give either `id` or `search`")),
        };
        let row = self.gateway.key_info(&id).await?;
        self.shown_key(&row, show).await
    }

    /// The one key whose id begins with `text` or whose name contains it.
    async fn find_key(&self, text: &str) -> Result<KeyId, AdminError> {
        let keys = self.gateway.list_keys().await?;
        if let Some(exact) = keys.iter().find(|k| k.id.0 == text || k.name.value == text) {
            return Ok(exact.id.clone());
        }
        let found: Vec<&KeyRow> =
            keys.iter().filter(|k| k.id.0.starts_with(text) || k.name.value.contains(text)).collect();
        match found[..] {
            [one] => Ok(one.id.clone()),
            [] => Err(AdminError::not_found("NoSuchAccessKey", format!("no key matches `{text}`"))),
            _ => Err(AdminError::bad(format!("{} keys match `{text}`: give more of it", found.len()))),
        }
    }

    pub(super) async fn create_key(&self, settings: KeySettings) -> Result<KeyInfo, AdminError> {
        let new = NewKey {
            name: settings.name.clone().unwrap_or_default(),
            expires_ms: expiration(&settings)?.flatten(),
            create_bucket: settings.allow.is_some_and(|allow| allow.create_bucket),
        };
        let row = self.gateway.create_key(new).await?;
        self.shown_key(&row, true).await
    }

    pub(super) async fn import_key(&self, import: ImportKey) -> Result<KeyInfo, AdminError> {
        for (what, text) in
            [("accessKeyId", &import.access_key_id), ("secretAccessKey", &import.secret_access_key)]
        {
            let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-+/=.".contains(c));
            if !(IMPORT_LENGTH.0..=IMPORT_LENGTH.1).contains(&text.len()) || !plain {
                return Err(AdminError::bad(format!("`{what}` must be 3 to 128 letters, digits or _-+/=.")));
            }
        }
        let new = NewKey { name: import.name.unwrap_or_default(), ..NewKey::default() };
        let row = self.gateway.import_key(KeyId(import.access_key_id), import.secret_access_key, new).await?;
        self.shown_key(&row, true).await
    }

    pub(super) async fn update_key(&self, id: &str, settings: KeySettings) -> Result<KeyInfo, AdminError> {
        let create_bucket = match (settings.allow, settings.deny) {
            (_, Some(KeyPermissions { create_bucket: true })) => Some(false),
            (Some(KeyPermissions { create_bucket: true }), _) => Some(true),
            _ => None,
        };
        let change = KeyChange { expires_ms: expiration(&settings)?, name: settings.name, create_bucket };
        let row = self.gateway.update_key(&KeyId(id.to_owned()), change).await?;
        self.shown_key(&row, false).await
    }

    pub(super) async fn delete_key(&self, id: &str) -> Result<(), AdminError> {
        Ok(self.gateway.delete_key(&KeyId(id.to_owned())).await?)
    }

    async fn shown_key(&self, row: &KeyRow, show_secret: bool) -> Result<KeyInfo, AdminError> {
        let buckets = self.gateway.list_buckets().await?;
        let buckets: BTreeMap<BucketId, BucketRow> = buckets.into_iter().map(|b| (b.id, b)).collect();
        let mut entries: BTreeMap<BucketId, KeyBucket> = BTreeMap::new();
        let entry = |id: &BucketId| {
            buckets.get(id).map(|bucket| KeyBucket {
                id: *id,
                global_aliases: bucket.names(),
                local_aliases: Vec::new(),
                permissions: BucketPermissions::default(),
            })
        };
        for (id, rights) in row.buckets.iter().filter(|(_, rights)| rights.value.any()) {
            if let Some(shown) = entry(id) {
                entries.entry(*id).or_insert(shown).permissions = permissions(rights.value);
            }
        }
        for (alias, target) in &row.local_aliases {
            if let Some(id) = target.value
                && let Some(shown) = entry(&id)
            {
                entries.entry(id).or_insert(shown).local_aliases.push(alias.clone());
            }
        }
        Ok(KeyInfo {
            access_key_id: row.id.to_string(),
            secret_access_key: show_secret.then(|| row.secret.clone()),
            name: row.name.value.clone(),
            created: Some(date::iso(row.created_ms)),
            expiration: row.expires_ms.value.map(date::iso),
            expired: self.gateway.is_expired(row),
            permissions: KeyPermissions { create_bucket: row.create_bucket.value },
            buckets: entries.into_values().collect(),
        })
    }
}

/// `None`: leave as it is.
#[expect(clippy::option_option, reason = "leave it, remove it, or set it")]
fn expiration(settings: &KeySettings) -> Result<Option<Option<u64>>, AdminError> {
    match (&settings.expiration, settings.never_expires) {
        (Some(_), true) => Err(AdminError::bad("`expiration` and `neverExpires` exclude each other")),
        (None, true) => Ok(Some(None)),
        (None, false) => Ok(None),
        (Some(text), false) => {
            let at: jiff::Timestamp = text.parse().map_err(|_| {
                AdminError::bad(format!("`{text}` is not a date such as 2027-01-31T00:00:00Z"))
            })?;
            Ok(Some(Some(u64::try_from(at.as_millisecond()).unwrap_or(0))))
        }
    }
}

pub(super) fn permissions(rights: Permissions) -> BucketPermissions {
    BucketPermissions { read: rights.read, write: rights.write, owner: rights.owner }
}

/// The part of a list that `offset` and `limit` ask for.
pub(super) fn paged<T>(call: &Call, items: Vec<T>) -> Result<Vec<T>, AdminError> {
    let number = |name: &str, default: usize| match call.query.get(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| AdminError::bad(format!("`{name}` is not a number"))),
    };
    let (offset, limit) = (number("offset", 0)?, number("limit", usize::MAX)?);
    Ok(items.into_iter().skip(offset).take(limit).collect())
}
