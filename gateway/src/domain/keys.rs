//! Access keys: the cache in front of them, and the admin operations on them.
//!
//! A cached row serves for `control_max_age` at most; rows in use are read again each second in the background
//! ([`Gateway::keep_fresh`]), so that a right that is taken away stops working about a second later. What is not in
//! the cache, or would lead to a refusal, is read by quorum: 1 R.
//!
//! A change reads the row by quorum, modifies it above the stamps it found and writes it to a quorum: 2 R. Concurrent
//! changes of different fields (or of rights on different buckets) all hold; of the same, the later.

use super::settle::Reading;
use super::{DomainError, Gateway, KeyChange, NewKey};
use crate::limits::{CONTROL_REFRESH, CONTROL_REFRESH_BATCH};
use futures::future::join_all;
use hayloft_common::crdt::{Lww, LwwMap};
use hayloft_common::schema::{KeyId, KeyRow, Row as _, TableId, control_partition_key};
use std::sync::Arc;
use std::time::Duration;

/// Control records not used for so long are not kept fresh.
const ACTIVE: Duration = Duration::from_mins(1);

impl Gateway {
    fn no_such_key(id: &KeyId) -> DomainError {
        DomainError::NoSuchKeyId { id: id.to_string() }
    }

    /// A live, unexpired key, from the cache if possible; a missing one is always read anew.
    pub async fn key(&self, id: &KeyId) -> Result<Arc<KeyRow>, DomainError> {
        match self.keys.get(self.env.now(), id).filter(|row| self.in_force(row)) {
            Some(row) => Ok(row),
            None => self.key_fresh(id).await,
        }
    }

    /// The same, read by quorum.
    pub async fn key_fresh(&self, id: &KeyId) -> Result<Arc<KeyRow>, DomainError> {
        let row = Arc::new(self.key_info(id).await?);
        if self.in_force(&row) { Ok(row) } else { Err(Self::no_such_key(id)) }
    }

    fn in_force(&self, row: &KeyRow) -> bool {
        !row.deleted && !self.is_expired(row)
    }

    /// Whether the key has expired, by this gateway's clock.
    pub fn is_expired(&self, row: &KeyRow) -> bool {
        row.expires_ms.value.is_some_and(|at| at <= self.env.wall_millis())
    }

    /// The key's row, also when it has expired; `NoSuchKeyId` when deleted. Read by quorum.
    #[tracing::instrument(level = "debug", name = "key get", skip_all)]
    pub async fn key_info(&self, id: &KeyId) -> Result<KeyRow, DomainError> {
        let asked = self.env.now();
        match self.stored_key(id).await? {
            Some(row) if !row.deleted => {
                self.keys.put(asked, id.clone(), Arc::new(row.clone()));
                Ok(row)
            }
            _ => {
                self.keys.remove(id);
                Err(Self::no_such_key(id))
            }
        }
    }

    async fn stored_key(&self, id: &KeyId) -> Result<Option<KeyRow>, DomainError> {
        self.read(control_partition_key(TableId::Key), id.0.as_bytes().to_vec()).await
    }

    /// All keys that are not deleted, in order of their ids.
    pub async fn list_keys(&self) -> Result<Vec<KeyRow>, DomainError> {
        self.control_rows::<KeyRow>().await
    }

    /// All live rows of a control table.
    pub(super) async fn control_rows<R: hayloft_common::schema::Row>(&self) -> Result<Vec<R>, DomainError> {
        let pk = control_partition_key(R::TABLE);
        let (mut from, mut out) = (Vec::new(), Vec::new());
        loop {
            let (rows, next) = self.read_range::<R>(Reading::Plain, &pk, from, None, 1000).await?;
            out.extend(rows.into_iter().filter(R::is_live));
            match next {
                Some(next) => from = next,
                None => return Ok(out),
            }
        }
    }

    pub async fn create_key(&self, new: NewKey) -> Result<KeyRow, DomainError> {
        let (id, secret) = (KeyId::generate(&self.env), hex::encode(self.env.random_bytes::<32>()));
        self.write_new_key(id, secret, new).await
    }

    /// Imports a key made elsewhere; `KeyExists` if its id is or was used.
    pub async fn import_key(&self, id: KeyId, secret: String, new: NewKey) -> Result<KeyRow, DomainError> {
        if self.stored_key(&id).await?.is_some() {
            return Err(DomainError::KeyExists { id: id.to_string() });
        }
        self.write_new_key(id, secret, new).await
    }

    async fn write_new_key(&self, id: KeyId, secret: String, new: NewKey) -> Result<KeyRow, DomainError> {
        let stamp = self.clock.next();
        let row = KeyRow {
            id,
            secret,
            created_ms: self.env.wall_millis(),
            deleted: false,
            name: Lww::new(stamp, new.name),
            expires_ms: Lww::new(stamp, new.expires_ms),
            create_bucket: Lww::new(stamp, new.create_bucket),
            buckets: LwwMap::new(),
            local_aliases: LwwMap::new(),
        };
        row.validate().map_err(|e| DomainError::InvalidArgument { reason: e.to_string() })?;
        self.write_merge(&row).await?;
        Ok(row)
    }

    /// Reads a key, changes it and writes it. 2 R.
    pub(super) async fn change_key(
        &self,
        id: &KeyId,
        change: impl FnOnce(&mut KeyRow) + Send,
    ) -> Result<KeyRow, DomainError> {
        let mut row = self.key_info(id).await?;
        change(&mut row);
        row.validate().map_err(|e| DomainError::InvalidArgument { reason: e.to_string() })?;
        self.write_merge(&row).await?;
        self.keys.put(self.env.now(), id.clone(), Arc::new(row.clone()));
        Ok(row)
    }

    pub async fn update_key(&self, id: &KeyId, change: KeyChange) -> Result<KeyRow, DomainError> {
        self.change_key(id, |row| {
            if let Some(name) = change.name {
                row.name = Lww::new(self.clock.above(row.name.stamp), name);
            }
            if let Some(expires) = change.expires_ms {
                row.expires_ms = Lww::new(self.clock.above(row.expires_ms.stamp), expires);
            }
            if let Some(may) = change.create_bucket {
                row.create_bucket = Lww::new(self.clock.above(row.create_bucket.stamp), may);
            }
        })
        .await
    }

    /// Deletes a key for good: its id can't be used again.
    pub async fn delete_key(&self, id: &KeyId) -> Result<(), DomainError> {
        self.change_key(id, |row| row.deleted = true).await?;
        self.keys.remove(id);
        Ok(())
    }

    /// Starts the task that reads control records in use again. It lives as long as the gateway.
    pub(super) fn keep_fresh(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.env.spawn("control refresh", async move {
            loop {
                tokio::time::sleep(CONTROL_REFRESH).await;
                let Some(gateway) = weak.upgrade() else { return };
                gateway.refresh().await;
            }
        });
    }

    async fn refresh(&self) {
        let now = self.env.now();
        let due = (CONTROL_REFRESH / 2, ACTIVE, CONTROL_REFRESH_BATCH);
        // What can't be read stays until its age ends it; what is gone is taken out by the reads.
        let keys = self.keys.to_refresh(now, due.0, due.1, due.2);
        join_all(keys.iter().map(|id| self.key_info(id))).await;
        let names = self.names.to_refresh(now, due.0, due.1, due.2);
        join_all(names.iter().map(|name| self.read_alias(name))).await;
        let buckets = self.buckets.to_refresh(now, due.0, due.1, due.2);
        join_all(buckets.iter().map(|id| self.bucket_row(*id))).await;
    }
}
