//! Names of buckets: global ones (a row each, the truth about what a name means) and those that one key sees.

use super::buckets::no_such_bucket;
use super::store::{place_of, row_bytes};
use super::{DomainError, Gateway};
use hayloft_common::crdt::Lww;
use hayloft_common::id::BucketId;
use hayloft_common::schema::{AliasRow, BucketRow, KeyId, Row as _, TableId, control_partition_key};
use hayloft_common::stamp::Stamp;
use std::sync::Arc;

/// S3's rules for bucket names, as far as they keep DNS and other tools working.
pub(super) fn check_name(name: &str) -> Result<(), DomainError> {
    let bad = |rule| Err(DomainError::InvalidBucketName { name: name.chars().take(100).collect(), rule });
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !(3..=63).contains(&name.len()) {
        return bad("it has 3 to 63 characters");
    }
    if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.') {
        return bad("only lower-case letters, digits, dots and hyphens");
    }
    if !edge(name.chars().next()) || !edge(name.chars().last()) {
        return bad("it begins and ends with a letter or digit");
    }
    if name.contains("..") || name.contains(".-") || name.contains("-.") {
        return bad("a dot stands between letters or digits");
    }
    if name.split('.').count() == 4 && name.split('.').all(|p| p.parse::<u8>().is_ok()) {
        return bad("it does not look like an IP address");
    }
    if name.starts_with("xn--") || name.ends_with("-s3alias") || name.ends_with("--ol-s3") {
        return bad("xn--, -s3alias and --ol-s3 are reserved");
    }
    Ok(())
}

impl Gateway {
    /// What a global name means.
    pub(super) async fn alias_target(
        &self,
        name: &str,
        fresh: bool,
    ) -> Result<Option<BucketId>, DomainError> {
        let cached = if fresh { None } else { self.names.get(self.env.now(), &name.to_owned()) };
        match cached {
            Some(id) => Ok(Some(id)),
            None => Ok(self.read_alias(name).await?.and_then(|row| row.target.value)),
        }
    }

    /// The alias row of a name, by quorum.
    pub(super) async fn read_alias(&self, name: &str) -> Result<Option<AliasRow>, DomainError> {
        let asked = self.env.now();
        let row: Option<AliasRow> =
            self.read(control_partition_key(TableId::Alias), name.as_bytes().to_vec()).await?;
        match row.as_ref().and_then(|r| r.target.value) {
            Some(id) => self.names.put(asked, name.to_owned(), id),
            None => self.names.remove(&name.to_owned()),
        }
        Ok(row)
    }

    /// Refuses names that are no bucket names or are taken. Answers the stamp to go above.
    pub(super) async fn check_free(&self, name: &str) -> Result<Stamp, DomainError> {
        check_name(name)?;
        match self.read_alias(name).await? {
            Some(AliasRow { target: Lww { value: Some(_), .. }, .. }) => {
                Err(DomainError::BucketAlreadyExists { name: name.to_owned() })
            }
            row => Ok(row.map_or(Stamp::ZERO, |r| r.target.stamp)),
        }
    }

    async fn write_alias(
        &self,
        name: &str,
        floor: Stamp,
        target: Option<BucketId>,
    ) -> Result<(), DomainError> {
        let row = |stamp| AliasRow { name: name.to_owned(), target: Lww::new(stamp, target) };
        row(Stamp::ZERO).validate().map_err(|e| DomainError::InvalidArgument { reason: e.to_string() })?;
        let place = place_of(&control_partition_key(TableId::Alias));
        self.write_put(place, floor, |stamp| vec![row_bytes(&row(stamp))]).await?;
        self.names.remove(&name.to_owned());
        Ok(())
    }

    /// Notes in the bucket's row that it has a name, or no longer.
    async fn note_name(&self, bucket: BucketId, name: &str, on: bool) -> Result<(), DomainError> {
        let mut row: BucketRow = self.bucket_row(bucket).await?;
        let above = row.aliases.get(name).map_or(Stamp::ZERO, |a| a.stamp);
        row.aliases.insert(name.to_owned(), Lww::new(self.clock.above(above), on));
        self.write_merge(&row).await?;
        self.buckets.put(self.env.now(), bucket, Arc::new(row));
        Ok(())
    }

    /// Gives a bucket a global name. The alias row is what counts; it is read again to see that it was won.
    pub async fn add_global_alias(&self, bucket: BucketId, name: &str) -> Result<(), DomainError> {
        self.bucket_row(bucket).await?;
        if self.alias_target(name, true).await? == Some(bucket) {
            return self.note_name(bucket, name, true).await;
        }
        let floor = self.check_free(name).await?;
        self.write_alias(name, floor, Some(bucket)).await?;
        if self.alias_target(name, true).await? != Some(bucket) {
            return Err(DomainError::BucketAlreadyExists { name: name.to_owned() });
        }
        self.note_name(bucket, name, true).await
    }

    /// Takes a global name from a bucket; not its last one.
    pub async fn remove_global_alias(&self, bucket: BucketId, name: &str) -> Result<(), DomainError> {
        let row = self.bucket_row(bucket).await?;
        if self.alias_target(name, true).await? != Some(bucket) {
            return Err(no_such_bucket(name));
        }
        if row.names().iter().all(|n| n == name) && !self.has_local_alias(bucket).await? {
            return Err(DomainError::LastAlias { name: name.to_owned() });
        }
        self.release_name(bucket, name).await?;
        self.note_name(bucket, name, false).await
    }

    async fn has_local_alias(&self, bucket: BucketId) -> Result<bool, DomainError> {
        let keys = self.list_keys().await?;
        Ok(keys.iter().any(|key| key.local_aliases.values().any(|alias| alias.value == Some(bucket))))
    }

    /// Frees a name, if it is still the bucket's.
    pub(super) async fn release_name(&self, bucket: BucketId, name: &str) -> Result<(), DomainError> {
        match self.read_alias(name).await? {
            Some(row) if row.target.value == Some(bucket) => {
                self.write_alias(name, row.target.stamp, None).await
            }
            _ => Ok(()),
        }
    }

    /// Gives a bucket a name that only `key` sees.
    pub async fn add_local_alias(
        &self,
        bucket: BucketId,
        key: &KeyId,
        name: &str,
    ) -> Result<(), DomainError> {
        check_name(name)?;
        self.bucket_row(bucket).await?;
        let row = self.key_info(key).await?;
        if row.local_aliases.get(name).and_then(|a| a.value).is_some_and(|b| b != bucket) {
            return Err(DomainError::BucketAlreadyExists { name: name.to_owned() });
        }
        self.set_local_alias(key, name, Some(bucket)).await
    }

    /// Takes a name that only `key` sees from a bucket.
    pub async fn remove_local_alias(
        &self,
        bucket: BucketId,
        key: &KeyId,
        name: &str,
    ) -> Result<(), DomainError> {
        let row = self.key_info(key).await?;
        if row.local_aliases.get(name).and_then(|a| a.value) != Some(bucket) {
            return Err(no_such_bucket(name));
        }
        self.set_local_alias(key, name, None).await
    }

    async fn set_local_alias(
        &self,
        key: &KeyId,
        name: &str,
        target: Option<BucketId>,
    ) -> Result<(), DomainError> {
        self.change_key(key, |row| {
            let above = row.local_aliases.get(name).map_or(Stamp::ZERO, |a| a.stamp);
            row.local_aliases.insert(name.to_owned(), Lww::new(self.clock.above(above), target));
        })
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn bucket_names_follow_the_rules_of_s3() {
        for good in ["abc", "my-bucket", "a.b.c", "1-2", "photos.example.org"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in
            ["ab", &long, "Abc", "a_b", "-ab", "ab-", "a..b", "a.-b", "10.0.0.1", "xn--abc", "x-s3alias"]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
