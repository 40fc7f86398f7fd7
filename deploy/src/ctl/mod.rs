//! The operator's commands: parse, call the admin interface, print.
//!
//! Each command gives a [`Report`]: the gateway's answer as it came, and the same for people.

mod bucket;
mod key;
mod layout;
mod node;
mod operate;
mod progress;
mod status;
pub mod table;

use crate::client::{Client, ClientError, read};
use crate::cluster_file::ClusterFile;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use hayloft_common::config::{EnvVars, Secret, read_secret_file};
use hayloft_common::id::NodeId;
use hayloft_proto::admin::{BucketInfo, Endpoint, KeyInfo};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where the admin interface is used when nothing says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:3903";

/// How to reach the cluster.
#[derive(Args, Debug, Default)]
pub struct Connection {
    /// Admin interface of a gateway, as http://HOST:PORT [env: HAYLOFT_ADMIN_URL] [default:
    /// http://127.0.0.1:3903]
    #[arg(long, global = true, value_name = "URL")]
    pub admin_url: Option<String>,
    /// Admin token; others on this machine can see it here: prefer a file [env: HAYLOFT_ADMIN_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", conflicts_with = "admin_token_file")]
    pub admin_token: Option<String>,
    /// File that holds the admin token; must not be readable by others [env: HAYLOFT_ADMIN_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// JSON file that `hayloft dev` wrote: take address and token from it
    #[arg(long, global = true, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Print the answer as JSON, in the shape of the admin interface
    // A text and not a flag, as `dev` has an option of this name that takes a file.
    #[arg(long, global = true, num_args = 0, default_missing_value = "stdout")]
    pub json: Option<String>,
}

impl Connection {
    /// A client for what the options say, then the cluster file, then the variables of the environment.
    pub fn client(&self) -> anyhow::Result<Client> {
        let (url, token) =
            self.resolve(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
        Ok(Client::new(&url, token.as_ref())?)
    }

    /// Address and token. The environment comes last: an option of this very call must win.
    fn resolve(&self, env: EnvVars<'_>) -> anyhow::Result<(String, Option<Secret>)> {
        let cluster = self.cluster.as_deref().map(ClusterFile::read).transpose()?;
        let url = self
            .admin_url
            .clone()
            .or_else(|| cluster.as_ref().map(|cluster| cluster.admin.url.clone()))
            .or_else(|| env("HAYLOFT_ADMIN_URL"))
            .unwrap_or_else(|| DEFAULT_URL.to_owned());
        let token = if let Some(token) = &self.admin_token {
            Some(token.trim().to_owned())
        } else if let Some(path) = &self.admin_token_file {
            Some(read_secret_file(path, false)?)
        } else if let Some(cluster) = cluster {
            Some(cluster.admin.token)
        } else if let Some(token) = env("HAYLOFT_ADMIN_TOKEN") {
            Some(token.trim().to_owned())
        } else if let Some(path) = env("HAYLOFT_ADMIN_TOKEN_FILE") {
            Some(read_secret_file(Path::new(&path), false)?)
        } else {
            None
        };
        Ok((url, token.map(Secret::new)))
    }
}

/// The commands that speak to a cluster.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the nodes of the cluster, their roles and the cluster's health
    Status,
    /// Decide where data lives: zones, capacities and the number of copies
    #[command(subcommand)]
    Layout(layout::LayoutCommand),
    /// Replace a node by another
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Start a repair on one node or on all
    Repair(operate::Repair),
    /// Look at background workers and steer them
    #[command(subcommand)]
    Worker(operate::WorkerCommand),
    /// Look at blocks in trouble
    #[command(subcommand)]
    Block(operate::BlockCommand),
    /// Snapshots of the nodes' metadata
    #[command(subcommand)]
    Meta(operate::MetaCommand),
    /// Look through everything the nodes hold for what is missing or should not be there
    Verify(operate::Verify),
    /// Manage access keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Manage buckets, their names and who may use them
    #[command(subcommand)]
    Bucket(bucket::BucketCommand),
}

/// What a command found or did.
#[derive(Debug)]
pub struct Report {
    /// The gateway's answer.
    pub json: Value,
    /// The same for people.
    pub text: String,
    /// Set if nothing was done: what to do instead. The command then fails.
    pub refusal: Option<String>,
}

impl Report {
    fn new(json: Value, text: String) -> Self {
        Self { json, text, refusal: None }
    }
}

/// Runs a command.
pub async fn run(client: &Client, command: &Command) -> anyhow::Result<Report> {
    match command {
        Command::Status => status::run(client).await,
        Command::Layout(command) => layout::run(client, command).await,
        Command::Node(command) => node::run(client, command).await,
        Command::Repair(repair) => operate::repair(client, repair).await,
        Command::Worker(command) => operate::worker(client, command).await,
        Command::Block(command) => operate::block(client, command).await,
        Command::Meta(command) => operate::meta(client, command).await,
        Command::Verify(verify) => operate::verify(client, verify).await,
        Command::Key(command) => key::run(client, command).await,
        Command::Bucket(command) => bucket::run(client, command).await,
    }
}

/// Refuses to go on without `--yes`.
fn confirm(yes: bool, what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(yes, "this would {what}: repeat the command with --yes to do it");
    Ok(())
}

/// The only node among `known` whose id starts with `prefix`; a full id need not be known.
fn resolve_node(prefix: &str, known: &[NodeId]) -> anyhow::Result<NodeId> {
    if let Ok(id) = prefix.parse() {
        return Ok(id);
    }
    let prefix = prefix.to_ascii_lowercase();
    let mut found: Vec<NodeId> =
        known.iter().copied().filter(|id| id.to_string().starts_with(&prefix)).collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [] => anyhow::bail!("no node's id starts with `{prefix}`: see `hayloft status`, or give the full id"),
        [id] => Ok(*id),
        several => {
            let ids: Vec<_> = several.iter().map(|id| id.to_string()[..16].to_owned()).collect();
            anyhow::bail!("`{prefix}` could be any of {}: give more digits", ids.join(", "))
        }
    }
}

/// The key that `pattern` (an id, a name, or the start of one) means.
async fn find_key(client: &Client, pattern: &str, show_secret: bool) -> anyhow::Result<(Value, KeyInfo)> {
    let endpoint = Endpoint::GetKeyInfo;
    let show = if show_secret { "true" } else { "false" };
    let value = client
        .get(endpoint, &[("search", pattern), ("showSecretKey", show)])
        .await
        .with_context(|| format!("cannot find key `{pattern}`: see `hayloft key list`"))?;
    let key = read(endpoint, &value)?;
    Ok((value, key))
}

/// The bucket that `name` (a global name, an id, or the start of an id) means.
async fn find_bucket(client: &Client, name: &str) -> anyhow::Result<(Value, BucketInfo)> {
    let endpoint = Endpoint::GetBucketInfo;
    // A full name wins over the start of another bucket's id.
    let exact = client.get(endpoint, &[("globalAlias", name)]).await;
    let value = match exact {
        Err(ClientError::Refused { status, .. }) if status.is_client_error() => {
            client.get(endpoint, &[("search", name)]).await
        }
        other => other,
    }
    .with_context(|| format!("cannot find bucket `{name}`: see `hayloft bucket list`"))?;
    let bucket = read(endpoint, &value)?;
    Ok((value, bucket))
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Lines of `name: value`, aligned.
fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |text, (name, value)| {
        let pad = " ".repeat(width - name.chars().count());
        text + format!("{name}:{pad} {value}").trim_end() + "\n"
    })
}

/// `R`, `W` and `O` for the rights that are there.
fn rights(permissions: hayloft_proto::admin::BucketPermissions) -> String {
    let flags = [(permissions.read, 'R'), (permissions.write, 'W'), (permissions.owner, 'O')];
    flags.iter().map(|(set, letter)| if *set { *letter } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_by_a_unique_prefix() {
        let ids = [NodeId([0x11; 32]), NodeId([0x12; 32]), NodeId([0x12; 32])];
        assert_eq!(resolve_node("12", &ids).unwrap(), ids[1]);
        assert!(
            resolve_node("1", &ids).unwrap_err().to_string().contains("1111111111111111, 1212121212121212")
        );
        assert!(resolve_node("zz", &ids).unwrap_err().to_string().contains("hayloft status"));
        let unknown = "ab".repeat(32);
        assert_eq!(resolve_node(&unknown, &ids).unwrap().to_string(), unknown);
    }

    #[test]
    fn options_come_before_the_cluster_file_and_that_before_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster.json");
        let cluster = serde_json::json!({
            "s3": {"endpoints": [], "region": "r", "access_key": "k", "secret_key": "s", "bucket": "b"},
            "admin": {"url": "http://file:1", "token": "file"}, "processes": [], "config": {},
        });
        std::fs::write(&file, cluster.to_string()).unwrap();
        let env = |name: &str| match name {
            "HAYLOFT_ADMIN_URL" => Some("http://env:1".to_owned()),
            "HAYLOFT_ADMIN_TOKEN" => Some("env".to_owned()),
            _ => None,
        };
        let check = |connection: &Connection, env: EnvVars<'_>, url: &str, token: Option<&str>| {
            let (found_url, found) = connection.resolve(env).unwrap();
            assert_eq!((found_url.as_str(), found.as_ref().map(Secret::expose)), (url, token));
        };
        let mut connection = Connection::default();
        check(&connection, &|_| None, DEFAULT_URL, None);
        check(&connection, &env, "http://env:1", Some("env"));
        connection.cluster = Some(file);
        check(&connection, &env, "http://file:1", Some("file"));
        connection.admin_url = Some("http://option:1".into());
        connection.admin_token = Some("option".into());
        check(&connection, &env, "http://option:1", Some("option"));
    }

    #[test]
    fn without_yes_nothing_is_destroyed() {
        assert!(confirm(true, "delete").is_ok());
        assert!(confirm(false, "delete key a").unwrap_err().to_string().contains("--yes"));
    }
}
