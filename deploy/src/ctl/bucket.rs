//! `hayloft bucket`: buckets, their names, and who may use them.

use super::table::Table;
use super::{Report, confirm, fields, find_bucket, find_key, rights};
use crate::client::{Client, read};
use clap::{Args, Subcommand, ValueEnum};
use hayloft_common::config::size::human_size;
use hayloft_proto::admin::{
    Alias, BucketAlias, BucketInfo, BucketKeyPermissions, BucketListItem, BucketPermissions, CreateBucket,
    Endpoint, UpdateBucket,
};
use serde_json::json;

/// Commands about buckets. BUCKET is a name, an id, or the unique beginning of an id.
#[derive(Subcommand, Debug)]
pub enum BucketCommand {
    /// List all buckets
    List,
    /// Show a bucket: size, names, keys
    Info {
        /// Name or id of the bucket
        bucket: String,
    },
    /// Make a bucket
    Create {
        /// Its name, the same for all keys
        name: String,
    },
    /// Delete an empty bucket
    Delete {
        /// Name or id of the bucket
        bucket: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Give a bucket one more name
    Alias {
        /// Name or id of the bucket
        bucket: String,
        /// The name
        name: String,
        /// Only this key sees the name
        #[arg(long, value_name = "KEY")]
        local: Option<String>,
    },
    /// Take a name from a bucket
    Unalias {
        /// The name
        name: String,
        /// A name that only this key sees
        #[arg(long, value_name = "KEY")]
        local: Option<String>,
    },
    /// Make what one read of a bucket has shown be shown by every later one
    #[command(long_about = "Make what one read of a bucket has shown be shown by every later one.\n\n\
        Off by default: a read shows every write that was answered before it began, but a write that failed, or is \
        still under way, may be seen by one read and missed by the next. On: a read on whose result the nodes differ \
        first makes it last on a write quorum, which costs a round trip, and fails when that can't be done. With an \
        even number of copies, or while the layout changes, every read costs it. Every gateway follows within a \
        minute.")]
    SetMonotonicReads {
        /// Name or id of the bucket
        bucket: String,
        /// Whether they are on
        switch: Switch,
    },
    /// Give a key rights on a bucket
    Allow(Rights),
    /// Take rights on a bucket from a key
    Deny(Rights),
}

/// On or off.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
}

/// Rights of a key on a bucket.
#[derive(Args, Debug)]
pub struct Rights {
    /// Name or id of the bucket
    bucket: String,
    /// Id or name of the key
    #[arg(long)]
    key: String,
    /// List and read objects
    #[arg(long, required_unless_present_any = ["write", "owner"])]
    read: bool,
    /// Write and delete objects
    #[arg(long)]
    write: bool,
    /// Change the bucket's settings and delete it
    #[arg(long)]
    owner: bool,
}

pub(super) async fn run(client: &Client, command: &BucketCommand) -> anyhow::Result<Report> {
    match command {
        BucketCommand::List => {
            let json = client.get(Endpoint::ListBuckets, &[]).await?;
            let buckets: Vec<BucketListItem> = read(Endpoint::ListBuckets, &json)?;
            Ok(Report::new(json, show_list(&buckets)))
        }
        BucketCommand::Info { bucket } => {
            let (json, bucket) = find_bucket(client, bucket).await?;
            Ok(Report::new(json, show(&bucket)))
        }
        BucketCommand::Create { name } => {
            let body = CreateBucket { global_alias: Some(name.clone()), local_alias: None };
            let json = client.post(Endpoint::CreateBucket, &[], &body).await?;
            let bucket: BucketInfo = read(Endpoint::CreateBucket, &json)?;
            let text = format!(
                "Bucket {name} is made (id {}).\nNo key may use it yet: `hayloft bucket allow {name} --read --write --key KEY`.\n",
                bucket.id
            );
            Ok(Report::new(json, text))
        }
        BucketCommand::Delete { bucket, yes } => {
            let (_, info) = find_bucket(client, bucket).await?;
            confirm(*yes, &format!("delete bucket {bucket} (id {})", info.id))?;
            let id = info.id.to_string();
            let json = client.post(Endpoint::DeleteBucket, &[("id", &id)], &json!({})).await?;
            Ok(Report::new(json, format!("Bucket {bucket} is deleted.\n")))
        }
        BucketCommand::Alias { bucket, name, local } => {
            let (_, info) = find_bucket(client, bucket).await?;
            alias(client, Endpoint::AddBucketAlias, &info, name, local.as_deref()).await
        }
        BucketCommand::Unalias { name, local } => {
            let info = match local {
                None => find_bucket(client, name).await?.1,
                Some(key) => local_bucket(client, key, name).await?,
            };
            alias(client, Endpoint::RemoveBucketAlias, &info, name, local.as_deref()).await
        }
        BucketCommand::SetMonotonicReads { bucket, switch } => {
            let (_, info) = find_bucket(client, bucket).await?;
            let id = info.id.to_string();
            let body =
                UpdateBucket { monotonic_reads: Some(*switch == Switch::On), ..UpdateBucket::default() };
            let json = client.post(Endpoint::UpdateBucket, &[("id", &id)], &body).await?;
            let bucket = read(Endpoint::UpdateBucket, &json)?;
            Ok(Report::new(json, show(&bucket)))
        }
        BucketCommand::Allow(rights) => permit(client, Endpoint::AllowBucketKey, rights).await,
        BucketCommand::Deny(rights) => permit(client, Endpoint::DenyBucketKey, rights).await,
    }
}

/// The bucket that `key` alone calls `name`.
async fn local_bucket(client: &Client, key: &str, name: &str) -> anyhow::Result<BucketInfo> {
    let (_, key) = find_key(client, key, false).await?;
    let Some(bucket) =
        key.buckets.iter().find(|bucket| bucket.local_aliases.iter().any(|alias| alias == name))
    else {
        anyhow::bail!("key {} has no name `{name}` of its own: see `hayloft key info`", key.access_key_id);
    };
    let id = bucket.id.to_string();
    let json = client.get(Endpoint::GetBucketInfo, &[("id", &id)]).await?;
    Ok(read(Endpoint::GetBucketInfo, &json)?)
}

async fn alias(
    client: &Client,
    endpoint: Endpoint,
    bucket: &BucketInfo,
    name: &str,
    local: Option<&str>,
) -> anyhow::Result<Report> {
    let alias = match local {
        None => Alias::Global { global_alias: name.to_owned() },
        Some(key) => {
            let (_, key) = find_key(client, key, false).await?;
            Alias::Local { access_key_id: key.access_key_id, local_alias: name.to_owned() }
        }
    };
    let json = client.post(endpoint, &[], &BucketAlias { bucket_id: bucket.id, alias }).await?;
    let bucket = read(endpoint, &json)?;
    Ok(Report::new(json, show(&bucket)))
}

async fn permit(client: &Client, endpoint: Endpoint, rights: &Rights) -> anyhow::Result<Report> {
    let (_, bucket) = find_bucket(client, &rights.bucket).await?;
    let (_, key) = find_key(client, &rights.key, false).await?;
    let permissions = BucketPermissions { read: rights.read, write: rights.write, owner: rights.owner };
    let body = BucketKeyPermissions { bucket_id: bucket.id, access_key_id: key.access_key_id, permissions };
    let json = client.post(endpoint, &[], &body).await?;
    let bucket = read(endpoint, &json)?;
    Ok(Report::new(json, show(&bucket)))
}

fn show_list(buckets: &[BucketListItem]) -> String {
    if buckets.is_empty() {
        return "There are no buckets: make one with `hayloft bucket create NAME`.\n".into();
    }
    let mut table = Table::new(&["ID", "Created", "Names", "Names for one key"]);
    for bucket in buckets {
        let local: Vec<_> = bucket
            .local_aliases
            .iter()
            .map(|local| format!("{}:{}", local.access_key_id, local.alias))
            .collect();
        table.row([
            bucket.id.to_string()[..16].to_owned(),
            bucket.created.clone(),
            bucket.global_aliases.join(", "),
            local.join(", "),
        ]);
    }
    table.to_string()
}

fn show(bucket: &BucketInfo) -> String {
    let quota = |value: Option<u64>, show: fn(u64) -> String| value.map_or("none".into(), show);
    let mut text = fields(&[
        ("Bucket id", bucket.id.to_string()),
        ("Names", bucket.global_aliases.join(", ")),
        ("Created", bucket.created.clone()),
        ("Objects", bucket.objects.to_string()),
        ("Size", format!("{} ({} bytes)", human_size(bucket.bytes), bucket.bytes)),
        (
            "Unfinished uploads",
            format!(
                "{} ({} multipart, {} parts, {})",
                bucket.unfinished_uploads,
                bucket.unfinished_multipart_uploads,
                bucket.unfinished_multipart_upload_parts,
                human_size(bucket.unfinished_multipart_upload_bytes)
            ),
        ),
        ("Website", if bucket.website_access { "yes" } else { "no" }.into()),
        ("Most bytes", quota(bucket.quotas.max_size, human_size)),
        ("Monotonic reads", if bucket.monotonic_reads { "on" } else { "off" }.into()),
        ("Most objects", quota(bucket.quotas.max_objects, |value| value.to_string())),
    ]);
    if bucket.keys.is_empty() {
        return text + "\nNo key may use it: `hayloft bucket allow`.\n";
    }
    let mut table = Table::new(&["Rights", "Key", "Name", "Calls it"]);
    for key in &bucket.keys {
        table.row([
            rights(key.permissions),
            key.access_key_id.clone(),
            key.name.clone(),
            key.bucket_local_aliases.join(", "),
        ]);
    }
    text += "\n";
    text + &table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_shown_with_size_and_keys() {
        let bucket = json!({
            "id": "cd".repeat(16), "created": "2030-01-01T00:00:00Z", "globalAliases": ["photos"], "keys": [
                {"accessKeyId": "GK1", "name": "app", "bucketLocalAliases": ["pics"],
                 "permissions": {"read": true, "write": true, "owner": false}}],
            "websiteAccess": false, "quotas": {"maxSize": 1000, "maxObjects": null}, "objects": 2, "bytes": 1500,
            "monotonicReads": true,
            "unfinishedUploads": 0, "unfinishedMultipartUploads": 0, "unfinishedMultipartUploadParts": 0,
            "unfinishedMultipartUploadBytes": 0,
        });
        let text = show(&serde_json::from_value(bucket).unwrap());
        assert!(text.contains("Size:               1.5 kB (1500 bytes)\n"), "{text}");
        assert!(text.contains("Most bytes:         1.0 kB\n"), "{text}");
        assert!(text.contains("Most objects:       none\n"), "{text}");
        assert!(text.contains("Monotonic reads:    on\n"), "{text}");
        assert!(text.contains("RW-     GK1  app   pics\n"), "{text}");
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(show_list(&[]).contains("hayloft bucket create"));
    }
}
