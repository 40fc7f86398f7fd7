//! Buckets: what a name means to whom, S3's create, delete and list, and the admin's look at them.
//!
//! A name is resolved through the key's own aliases, then the global alias row, then the bucket's row; all cached
//! (0 R), read anew before anything is refused (2 R). See `keys` for how long a cached row may serve.
//!
//! Creating a name: the alias row is read, written above what was found, and read again, so that of creators who
//! come one after the other the second is told that the name is taken. Two that overlap within that window may both
//! be told they have it, and the later keeps it: to be closed by the compare-and-set of design §4.1.
//! Deleting: refused when a quorum listing shows an object. An object put at the same moment may be lost with the
//! bucket. Open uploads don't keep a bucket; they go with it.

use super::rows::all;
use super::{
    Bucket, BucketCounters, BucketEntry, BucketInfo, BucketKey, DomainError, Gateway, ListRequest, NewBucket,
    Right,
};
use hayloft_common::crdt::{Lww, LwwMap};
use hayloft_common::id::BucketId;
use hayloft_common::schema::{
    BucketRow, KeyId, KeyRow, Permissions, TableId, control_partition_key, index_partition_key,
};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn no_such_bucket(name: impl ToString) -> DomainError {
    DomainError::NoSuchBucket { name: name.to_string() }
}

impl Gateway {
    /// The bucket that `key` means by `name` (its own aliases first), if the key has the right. A refusal is never
    /// given from the cache.
    pub async fn authorize(&self, key: &KeyId, name: &str, need: Right) -> Result<Arc<Bucket>, DomainError> {
        match self.try_authorize(key, name, need, false).await {
            Ok(bucket) => Ok(bucket),
            Err(
                DomainError::AccessDenied { .. }
                | DomainError::NoSuchBucket { .. }
                | DomainError::NoSuchKeyId { .. },
            ) => self.try_authorize(key, name, need, true).await,
            Err(error) => Err(error),
        }
    }

    async fn try_authorize(
        &self,
        key: &KeyId,
        name: &str,
        need: Right,
        fresh: bool,
    ) -> Result<Arc<Bucket>, DomainError> {
        let row = if fresh { self.key_fresh(key).await? } else { self.key(key).await? };
        let id = match row.local_aliases.get(name).and_then(|alias| alias.value) {
            Some(id) => id,
            None => self.alias_target(name, fresh).await?.ok_or_else(|| no_such_bucket(name))?,
        };
        let bucket = self.bucket_of(id, name, fresh).await?;
        let given = row.buckets.get(&id).map(|p| p.value).unwrap_or_default();
        if need.is_in(given) {
            Ok(bucket)
        } else {
            Err(DomainError::AccessDenied { bucket: name.to_owned(), need })
        }
    }

    /// The bucket of a global name, whoever asks. A missing one is read anew.
    pub async fn resolve(&self, name: &str) -> Result<Arc<Bucket>, DomainError> {
        if let Some(id) = self.alias_target(name, false).await?
            && let Ok(bucket) = self.bucket_of(id, name, false).await
        {
            return Ok(bucket);
        }
        let id = self.alias_target(name, true).await?.ok_or_else(|| no_such_bucket(name))?;
        self.bucket_of(id, name, true).await
    }

    async fn bucket_of(&self, id: BucketId, name: &str, fresh: bool) -> Result<Arc<Bucket>, DomainError> {
        let cached = if fresh { None } else { self.buckets.get(self.env.now(), &id) };
        let row = match cached {
            Some(row) => BucketRow::clone(&row),
            None => self.bucket_row(id).await.map_err(|error| match error {
                DomainError::NoSuchBucket { .. } => no_such_bucket(name),
                error => error,
            })?,
        };
        Ok(Arc::new(Bucket { name: name.to_owned(), row }))
    }

    /// A live bucket's row, read by quorum.
    #[tracing::instrument(level = "debug", name = "bucket get", skip_all)]
    pub async fn bucket_row(&self, id: BucketId) -> Result<BucketRow, DomainError> {
        let asked = self.env.now();
        let row: Option<BucketRow> = self.read(control_partition_key(TableId::Bucket), id.0.to_vec()).await?;
        match row {
            Some(row) if !row.deleted => {
                self.buckets.put(asked, id, Arc::new(row.clone()));
                Ok(row)
            }
            _ => {
                self.buckets.remove(&id);
                Err(no_such_bucket(id))
            }
        }
    }

    /// Buckets that `key` has any right on, with the names it sees, in order of names.
    pub async fn list_buckets_of(&self, key: &KeyRow) -> Result<Vec<BucketEntry>, DomainError> {
        let mut local: BTreeMap<BucketId, Vec<String>> = BTreeMap::new();
        for (name, alias) in &key.local_aliases {
            if let Some(id) = alias.value {
                local.entry(id).or_default().push(name.clone());
            }
        }
        let mine: Vec<(BucketId, Permissions)> =
            key.buckets.iter().filter(|(_, p)| p.value.any()).map(|(id, p)| (*id, p.value)).collect();
        let read = |(id, permissions)| async move {
            match self.bucket_row(id).await {
                Ok(row) => Ok(Some((row, permissions))),
                Err(DomainError::NoSuchBucket { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let rows = all(mine.into_iter().map(read).collect()).await?;
        let mut out = Vec::new();
        for (row, permissions) in rows.into_iter().flatten() {
            let names = row.names().into_iter().chain(local.remove(&row.id).unwrap_or_default());
            out.extend(names.map(|name| BucketEntry {
                id: row.id,
                name,
                created_ms: row.created_ms,
                permissions,
            }));
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    /// S3's CreateBucket: the key must be allowed to, and gets all rights.
    pub async fn create_bucket_as(&self, key: &KeyId, name: &str) -> Result<Arc<Bucket>, DomainError> {
        let mut row = self.key(key).await?;
        if !row.create_bucket.value {
            row = self.key_fresh(key).await?;
        }
        if let Some(id) = self.alias_target(name, true).await? {
            let mine = row.buckets.get(&id).is_some_and(|p| p.value.owner);
            let name = name.to_owned();
            return Err(if mine {
                DomainError::BucketAlreadyOwnedByYou { name }
            } else {
                DomainError::BucketAlreadyExists { name }
            });
        }
        if !row.create_bucket.value {
            return Err(DomainError::MayNotCreateBucket);
        }
        let new = NewBucket {
            global_alias: Some(name.to_owned()),
            allow: Some((key.clone(), Permissions::ALL)),
            local_alias: None,
        };
        let row = self.create_bucket(new).await?;
        Ok(Arc::new(Bucket { name: name.to_owned(), row }))
    }

    /// Makes a bucket with the names and rights given. The name comes last: a failure before leaves a bucket that
    /// nothing leads to but its id.
    pub async fn create_bucket(&self, new: NewBucket) -> Result<BucketRow, DomainError> {
        if let Some(name) = &new.global_alias {
            self.check_free(name).await?;
        }
        let row = BucketRow {
            id: BucketId(self.env.random_bytes()),
            created_ms: self.env.wall_millis(),
            index_shards: self.config.index_shards,
            deleted: false,
            aliases: LwwMap::new(),
            monotonic_reads: Lww::default(),
        };
        self.write_merge(&row).await?;
        if let Some((key, permissions)) = &new.allow {
            self.allow(row.id, key, *permissions).await?;
        }
        if let Some((key, name)) = &new.local_alias {
            self.add_local_alias(row.id, key, name).await?;
        }
        if let Some(name) = &new.global_alias {
            self.add_global_alias(row.id, name).await?;
        }
        self.bucket_row(row.id).await
    }

    /// Turns monotonic reads of a bucket on or off; other gateways follow as their cached record ages. 2 R.
    pub async fn set_monotonic_reads(&self, id: BucketId, on: bool) -> Result<BucketRow, DomainError> {
        let mut row = self.bucket_row(id).await?;
        row.monotonic_reads = Lww::new(self.clock.above(row.monotonic_reads.stamp), on);
        self.write_merge(&row).await?;
        self.buckets.put(self.env.now(), id, Arc::new(row.clone()));
        Ok(row)
    }

    /// Deletes a bucket that holds no object, with all its names.
    pub async fn delete_bucket(&self, bucket: &Bucket) -> Result<(), DomainError> {
        let row = self.bucket_row(bucket.id()).await?;
        let bucket = Bucket { name: bucket.name.clone(), row };
        let page = self.list(&bucket, ListRequest { max: 1, ..ListRequest::default() }).await?;
        if !page.entries.is_empty() {
            return Err(DomainError::BucketNotEmpty { name: bucket.name });
        }
        for name in bucket.row.names() {
            self.release_name(bucket.id(), &name).await?;
        }
        let mut row = bucket.row;
        row.deleted = true;
        self.write_merge(&row).await?;
        self.buckets.remove(&row.id);
        Ok(())
    }

    /// All buckets that are not deleted.
    pub async fn list_buckets(&self) -> Result<Vec<BucketRow>, DomainError> {
        self.control_rows::<BucketRow>().await
    }

    /// A bucket with its keys and counters.
    pub async fn bucket_info(&self, id: BucketId) -> Result<BucketInfo, DomainError> {
        let row = self.bucket_row(id).await?;
        let (keys, counters) = tokio::try_join!(self.list_keys(), self.counters(&row))?;
        let keys = keys.into_iter().filter_map(|key| bucket_key(&key, id)).collect();
        Ok(BucketInfo { row, keys, counters })
    }

    /// A bucket's counters.
    pub async fn counters(&self, row: &BucketRow) -> Result<BucketCounters, DomainError> {
        let read = |shard| self.store.read_counters(index_partition_key(&row.id, shard));
        let shards = all((0..row.index_shards).map(read).collect()).await?;
        let mut sum = BucketCounters::default();
        for replies in shards {
            // A node that lags counts less; one that is ahead counts what will be.
            let most = |f: fn(&hayloft_proto::message::table::IndexCounters) -> u64| {
                replies.iter().map(f).max().unwrap_or(0)
            };
            sum.objects += most(|c| c.objects);
            sum.bytes += most(|c| c.bytes);
            sum.uploads += most(|c| c.uploads);
            sum.parts += most(|c| c.parts);
            sum.part_bytes += most(|c| c.part_bytes);
        }
        Ok(sum)
    }

    /// Gives a key rights on a bucket; only flags that are true act. 3 R.
    pub async fn allow(&self, bucket: BucketId, key: &KeyId, give: Permissions) -> Result<(), DomainError> {
        self.change_rights(bucket, key, |have| Permissions {
            read: have.read || give.read,
            write: have.write || give.write,
            owner: have.owner || give.owner,
        })
        .await
    }

    /// Takes rights from a key; only flags that are true act.
    pub async fn deny(&self, bucket: BucketId, key: &KeyId, take: Permissions) -> Result<(), DomainError> {
        self.change_rights(bucket, key, |have| Permissions {
            read: have.read && !take.read,
            write: have.write && !take.write,
            owner: have.owner && !take.owner,
        })
        .await
    }

    async fn change_rights(
        &self,
        bucket: BucketId,
        key: &KeyId,
        change: impl FnOnce(Permissions) -> Permissions + Send,
    ) -> Result<(), DomainError> {
        self.bucket_row(bucket).await?;
        self.change_key(key, |row| {
            let have = row.buckets.get(&bucket).cloned().unwrap_or_default();
            row.buckets.insert(bucket, Lww::new(self.clock.above(have.stamp), change(have.value)));
        })
        .await?;
        Ok(())
    }
}

fn bucket_key(key: &KeyRow, id: BucketId) -> Option<BucketKey> {
    let permissions = key.buckets.get(&id).map(|p| p.value).unwrap_or_default();
    let local_aliases: Vec<String> = key
        .local_aliases
        .iter()
        .filter(|(_, alias)| alias.value == Some(id))
        .map(|(name, _)| name.clone())
        .collect();
    (permissions.any() || !local_aliases.is_empty()).then(|| BucketKey {
        id: key.id.clone(),
        name: key.name.value.clone(),
        permissions,
        local_aliases,
    })
}
