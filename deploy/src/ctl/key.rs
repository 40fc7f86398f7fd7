//! `hayloft key`: access keys.

use super::table::Table;
use super::{Report, confirm, fields, find_key, rights};
use crate::client::{Client, read};
use clap::Subcommand;
use hayloft_proto::admin::{Endpoint, ImportKey, KeyInfo, KeyListItem, KeyPermissions, KeySettings};
use serde_json::json;

/// Commands about keys. KEY is an id, a name, or the unique beginning of one.
#[derive(Subcommand, Debug)]
pub enum KeyCommand {
    /// List all keys
    List,
    /// Show a key, its rights and its buckets
    Info {
        /// Id or name of the key
        key: String,
        /// Show the secret too
        #[arg(long)]
        show_secret: bool,
    },
    /// Make a key; its secret is shown
    Create {
        /// Name, for people
        name: String,
        /// It may create buckets
        #[arg(long)]
        allow_create_bucket: bool,
    },
    /// Change a key's name
    Rename {
        /// Id or name of the key
        key: String,
        /// Its new name
        name: String,
    },
    /// Delete a key: clients that use it are refused from then on
    Delete {
        /// Id or name of the key
        key: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Take over a key that was made elsewhere
    Import {
        /// Its id
        id: String,
        /// Its secret
        secret: String,
        /// Name, for people
        #[arg(short, long)]
        name: Option<String>,
        /// Accepted for scripts; changes nothing
        #[arg(long, hide = true)]
        yes: bool,
    },
    /// Allow a key to do things that no bucket grants
    Allow {
        /// Id or name of the key
        key: String,
        /// Create buckets
        #[arg(long, required = true)]
        create_bucket: bool,
    },
    /// Take away what `allow` gave
    Deny {
        /// Id or name of the key
        key: String,
        /// Create buckets
        #[arg(long, required = true)]
        create_bucket: bool,
    },
}

pub(super) async fn run(client: &Client, command: &KeyCommand) -> anyhow::Result<Report> {
    match command {
        KeyCommand::List => {
            let json = client.get(Endpoint::ListKeys, &[]).await?;
            let keys: Vec<KeyListItem> = read(Endpoint::ListKeys, &json)?;
            Ok(Report::new(json, show_list(&keys)))
        }
        KeyCommand::Info { key, show_secret } => {
            let (json, key) = find_key(client, key, *show_secret).await?;
            Ok(Report::new(json, show(&key)))
        }
        KeyCommand::Create { name, allow_create_bucket } => {
            let allow = allow_create_bucket.then_some(KeyPermissions { create_bucket: true });
            let body = KeySettings { name: Some(name.clone()), allow, ..KeySettings::default() };
            let json = client.post(Endpoint::CreateKey, &[], &body).await?;
            let key = read(Endpoint::CreateKey, &json)?;
            Ok(Report::new(json, show(&key)))
        }
        KeyCommand::Rename { key, name } => {
            update(client, key, KeySettings { name: Some(name.clone()), ..KeySettings::default() }).await
        }
        KeyCommand::Delete { key, yes } => {
            let (_, info) = find_key(client, key, false).await?;
            confirm(*yes, &format!("delete key {} ({})", info.access_key_id, info.name))?;
            let query = [("id", info.access_key_id.as_str())];
            let json = client.post(Endpoint::DeleteKey, &query, &json!({})).await?;
            Ok(Report::new(json, format!("Key {} is deleted.\n", info.access_key_id)))
        }
        KeyCommand::Import { id, secret, name, yes: _ } => {
            let body = ImportKey {
                access_key_id: id.clone(),
                secret_access_key: secret.clone(),
                name: name.clone(),
            };
            let json = client.post(Endpoint::ImportKey, &[], &body).await?;
            let key = read(Endpoint::ImportKey, &json)?;
            Ok(Report::new(json, show(&key)))
        }
        KeyCommand::Allow { key, create_bucket } => {
            let allow = Some(KeyPermissions { create_bucket: *create_bucket });
            update(client, key, KeySettings { allow, ..KeySettings::default() }).await
        }
        KeyCommand::Deny { key, create_bucket } => {
            let deny = Some(KeyPermissions { create_bucket: *create_bucket });
            update(client, key, KeySettings { deny, ..KeySettings::default() }).await
        }
    }
}

async fn update(client: &Client, key: &str, settings: KeySettings) -> anyhow::Result<Report> {
    let (_, info) = find_key(client, key, false).await?;
    let query = [("id", info.access_key_id.as_str())];
    let json = client.post(Endpoint::UpdateKey, &query, &settings).await?;
    let key = read(Endpoint::UpdateKey, &json)?;
    Ok(Report::new(json, show(&key)))
}

fn show_list(keys: &[KeyListItem]) -> String {
    if keys.is_empty() {
        return "There are no keys: make one with `hayloft key create NAME`.\n".into();
    }
    let mut table = Table::new(&["ID", "Name", "Created", "Expires"]);
    for key in keys {
        let expires = match (&key.expiration, key.expired) {
            (Some(date), true) => format!("{date} (EXPIRED)"),
            (Some(date), false) => date.clone(),
            (None, _) => "never".into(),
        };
        table.row([key.id.clone(), key.name.clone(), key.created.clone().unwrap_or_default(), expires]);
    }
    table.to_string()
}

fn show(key: &KeyInfo) -> String {
    let mut pairs = vec![("Key id", key.access_key_id.clone()), ("Name", key.name.clone())];
    pairs.push((
        "Secret",
        key.secret_access_key.clone().unwrap_or_else(|| "(shown with --show-secret)".into()),
    ));
    if let Some(created) = &key.created {
        pairs.push(("Created", created.clone()));
    }
    let expired = if key.expired { " (EXPIRED)" } else { "" };
    pairs.push(("Expires", key.expiration.clone().unwrap_or_else(|| "never".into()) + expired));
    pairs.push(("May create buckets", if key.permissions.create_bucket { "yes" } else { "no" }.into()));
    let mut text = fields(&pairs);
    if key.buckets.is_empty() {
        return text + "\nIt has no rights on buckets.\n";
    }
    let mut table = Table::new(&["Rights", "Bucket", "Names", "Names for this key"]);
    for bucket in &key.buckets {
        table.row([
            rights(bucket.permissions),
            bucket.id.to_string()[..16].to_owned(),
            bucket.global_aliases.join(", "),
            bucket.local_aliases.join(", "),
        ]);
    }
    text += "\n";
    text + &table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_with_its_buckets_and_without_its_secret() {
        let mut key = json!({"accessKeyId": "GK1", "name": "app", "permissions": {"createBucket": true}, "buckets": [
            {"id": "cd".repeat(16), "globalAliases": ["photos", "pics"], "localAliases": [],
             "permissions": {"read": true, "write": false, "owner": true}}]});
        let text = show(&serde_json::from_value(key.clone()).unwrap());
        assert!(text.contains("Secret:             (shown with --show-secret)\n"), "{text}");
        assert!(text.contains("May create buckets: yes\n"), "{text}");
        assert!(text.contains("R-O     cdcdcdcdcdcdcdcd  photos, pics\n"), "{text}");
        key["secretAccessKey"] = json!("s3cr3t");
        assert!(show(&serde_json::from_value(key).unwrap()).contains("s3cr3t"));
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(show_list(&[]).contains("hayloft key create"));
    }
}
