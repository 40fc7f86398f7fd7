//! Buckets, their names, and who may use them.

use super::keys::{paged, permissions};
use super::{Admin, AdminError, Call};
use crate::domain::{self, Bucket, NewBucket};
use crate::http::date;
use hayloft_common::id::BucketId;
use hayloft_common::schema::{BucketRow, KeyId, Permissions};
use hayloft_proto::admin::{
    Alias, BucketAlias, BucketInfo, BucketKey, BucketKeyPermissions, BucketListItem, BucketPermissions,
    CreateBucket, LocalAlias, Quotas, UpdateBucket,
};

fn rights(given: BucketPermissions) -> Permissions {
    Permissions { read: given.read, write: given.write, owner: given.owner }
}

fn no_such_bucket(text: &str) -> AdminError {
    AdminError::not_found("NoSuchBucket", format!("there is no bucket `{text}`"))
}

impl Admin {
    pub(super) async fn list_buckets(&self, call: &Call) -> Result<Vec<BucketListItem>, AdminError> {
        let (buckets, keys) = tokio::try_join!(self.gateway.list_buckets(), self.gateway.list_keys())?;
        let items = buckets.iter().map(|row| BucketListItem {
            id: row.id,
            created: date::iso(row.created_ms),
            global_aliases: row.names(),
            local_aliases: keys
                .iter()
                .flat_map(|key| {
                    let own = key.local_aliases.iter().filter(|(_, target)| target.value == Some(row.id));
                    own.map(|(alias, _)| LocalAlias {
                        access_key_id: key.id.to_string(),
                        alias: alias.clone(),
                    })
                })
                .collect(),
        });
        paged(call, items.collect())
    }

    pub(super) async fn bucket_info(&self, call: &Call) -> Result<BucketInfo, AdminError> {
        let query = &call.query;
        let id = match (query.get("id"), query.get("globalAlias"), query.get("search")) {
            (Some(id), None, None) => bucket_id(id)?,
            (None, Some(name), None) => self.bucket_named(name).await?,
            (None, None, Some(text)) => self.find_bucket(text).await?,
            _ => return Err(AdminError::bad("give one of `id`, `globalAlias` and `search`")),
        };
        self.shown_bucket(id).await
    }

    async fn bucket_named(&self, name: &str) -> Result<BucketId, AdminError> {
        let buckets = self.gateway.list_buckets().await?;
        let found = buckets.iter().find(|row| row.names().iter().any(|n| n == name));
        found.map(|row| row.id).ok_or_else(|| no_such_bucket(name))
    }

    /// The bucket of that name, or the one whose id begins with `text`.
    async fn find_bucket(&self, text: &str) -> Result<BucketId, AdminError> {
        let buckets = self.gateway.list_buckets().await?;
        if let Some(row) = buckets.iter().find(|row| row.names().iter().any(|n| n == text)) {
            return Ok(row.id);
        }
        let found: Vec<&BucketRow> =
            buckets.iter().filter(|row| row.id.to_string().starts_with(text)).collect();
        match found[..] {
            [one] => Ok(one.id),
            [] => Err(no_such_bucket(text)),
            _ => Err(AdminError::bad(format!("{} buckets match `{text}`: give more of it", found.len()))),
        }
    }

    async fn shown_bucket(&self, id: BucketId) -> Result<BucketInfo, AdminError> {
        let domain::BucketInfo { row, keys, counters } = self.gateway.bucket_info(id).await?;
        let keys = keys.into_iter().map(|key| BucketKey {
            access_key_id: key.id.to_string(),
            name: key.name,
            permissions: permissions(key.permissions),
            bucket_local_aliases: key.local_aliases,
        });
        Ok(BucketInfo {
            id: row.id,
            created: date::iso(row.created_ms),
            global_aliases: row.names(),
            keys: keys.collect(),
            website_access: false,
            website_config: None,
            cors_rules: None,
            lifecycle_rules: None,
            quotas: Quotas::default(),
            monotonic_reads: row.monotonic_reads.value,
            objects: counters.objects,
            bytes: counters.bytes,
            unfinished_uploads: counters.uploads,
            unfinished_multipart_uploads: counters.uploads,
            unfinished_multipart_upload_parts: counters.parts,
            unfinished_multipart_upload_bytes: counters.part_bytes,
        })
    }

    pub(super) async fn create_bucket(&self, request: CreateBucket) -> Result<BucketInfo, AdminError> {
        let local =
            request.local_alias.map(|local| (KeyId(local.access_key_id), local.alias, rights(local.allow)));
        let new = NewBucket {
            global_alias: request.global_alias,
            allow: local
                .as_ref()
                .filter(|(_, _, give)| give.any())
                .map(|(key, _, give)| (key.clone(), *give)),
            local_alias: local.map(|(key, alias, _)| (key, alias)),
        };
        let row = self.gateway.create_bucket(new).await?;
        self.shown_bucket(row.id).await
    }

    pub(super) async fn update_bucket(
        &self,
        id: &str,
        request: UpdateBucket,
    ) -> Result<BucketInfo, AdminError> {
        let id = bucket_id(id)?;
        if request.website_access.is_some() || request.quotas.is_some() {
            return Err(AdminError::bad("`websiteAccess` and `quotas` can't be set: only `monotonicReads`"));
        }
        if let Some(on) = request.monotonic_reads {
            self.gateway.set_monotonic_reads(id, on).await?;
        }
        self.shown_bucket(id).await
    }

    pub(super) async fn delete_bucket(&self, id: &str) -> Result<(), AdminError> {
        let row = self.gateway.bucket_row(bucket_id(id)?).await?;
        let name = row.names().into_iter().next().unwrap_or_else(|| row.id.to_string());
        Ok(self.gateway.delete_bucket(&Bucket { name, row }).await?)
    }

    pub(super) async fn add_alias(&self, request: BucketAlias) -> Result<BucketInfo, AdminError> {
        let id = request.bucket_id;
        match request.alias {
            Alias::Global { global_alias } => self.gateway.add_global_alias(id, &global_alias).await?,
            Alias::Local { access_key_id, local_alias } => {
                self.gateway.add_local_alias(id, &KeyId(access_key_id), &local_alias).await?;
            }
        }
        self.shown_bucket(id).await
    }

    pub(super) async fn remove_alias(&self, request: BucketAlias) -> Result<BucketInfo, AdminError> {
        let id = request.bucket_id;
        match request.alias {
            Alias::Global { global_alias } => self.gateway.remove_global_alias(id, &global_alias).await?,
            Alias::Local { access_key_id, local_alias } => {
                self.gateway.remove_local_alias(id, &KeyId(access_key_id), &local_alias).await?;
            }
        }
        self.shown_bucket(id).await
    }

    pub(super) async fn allow(
        &self,
        request: BucketKeyPermissions,
        give: bool,
    ) -> Result<BucketInfo, AdminError> {
        let (id, key) = (request.bucket_id, KeyId(request.access_key_id));
        if give {
            self.gateway.allow(id, &key, rights(request.permissions)).await?;
        } else {
            self.gateway.deny(id, &key, rights(request.permissions)).await?;
        }
        self.shown_bucket(id).await
    }
}

fn bucket_id(text: &str) -> Result<BucketId, AdminError> {
    text.parse().map_err(|_| no_such_bucket(text))
}
