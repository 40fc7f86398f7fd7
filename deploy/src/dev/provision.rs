//! Makes a started cluster usable: waits for its daemons, applies the first layout, makes a key and a bucket.
//!
//! Every step looks first at what is there, so that a start that was interrupted is continued by the next.

use super::plan::{CAPACITY, Key, Node, State};
use super::process::{Fleet, daemon, program};
use crate::client::{Client, ClientError, read};
use anyhow::Context as _;
use hayloft_common::config::Secret;
use hayloft_common::id::NodeId;
use hayloft_proto::admin::{
    ApplyClusterLayout, BucketInfo, BucketKeyPermissions, BucketPermissions, ClusterStatus, CreateBucket,
    Endpoint, KeyInfo, KeyPermissions, KeySettings, LayoutParameters, NodeRole, RoleChange,
    UpdateClusterLayout, ZoneRedundancy,
};
use std::path::Path;
use std::time::Duration;

/// How long each step may take.
const STEP_TIMEOUT: Duration = Duration::from_mins(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// The name of the key.
const KEY_NAME: &str = "dev";

/// The id of each storage node, in order; identities are made if they are missing.
pub(super) async fn node_ids(state: &State, dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for node in state.storage() {
        let path = program(node.role.program())?;
        let output = daemon(&path, &node.config(dir))
            .arg("--print-node-id")
            .output()
            .await
            .with_context(|| format!("cannot start {}", path.display()))?;
        anyhow::ensure!(
            output.status.success(),
            "{} cannot start:\n{}",
            node.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let id: NodeId = text.parse().with_context(|| format!("{} did not tell its id", path.display()))?;
        ids.push(id.to_string());
    }
    Ok(ids)
}

/// Brings the cluster to where clients can use it, and notes key and bucket in the state.
pub(super) async fn make_ready(
    fleet: &mut Fleet,
    state: &mut State,
    ids: &[String],
    dir: &Path,
) -> anyhow::Result<()> {
    eprintln!(
        "Starting the cluster in {}: {} storage, {} gateway …",
        dir.display(),
        ids.len(),
        state.gateways().count()
    );
    for node in &state.nodes {
        let client = Client::new(&admin_url(node), None)?;
        wait(fleet, &format!("{} to answer (see {})", node.name, node.log(dir).display()), async || {
            client.health().await.map(|_| ()).map_err(anyhow::Error::new)
        })
        .await?;
    }
    let gateway = state.gateways().next().context("the cluster has no gateway")?;
    let client = Client::new(&admin_url(gateway), Some(&Secret::new(state.admin_token.as_str())))?;
    let mut version = 0;
    wait(fleet, "all storage nodes to be seen by the gateway", async || {
        version = all_up(&client, ids).await?;
        Ok(())
    })
    .await?;
    if version == 0 {
        wait(fleet, "the layout to be applied", async || apply_layout(&client, state, ids).await).await?;
    }
    for node in state.gateways() {
        let client = Client::new(&admin_url(node), None)?;
        wait(fleet, &format!("{} to have a quorum", node.name), async || {
            let status = client.health().await?;
            anyhow::ensure!(status.is_success(), "GET /health answers {status}");
            Ok(())
        })
        .await?;
    }
    if state.key.is_none() {
        let mut key = None;
        wait(fleet, "a key to be made", async || {
            key = Some(make_key(&client).await?);
            Ok(())
        })
        .await?;
        state.key = key;
        state.save(dir)?;
    }
    if let (false, Some(key)) = (state.bucket_made, &state.key) {
        wait(fleet, "a bucket to be made", async || make_bucket(&client, &state.bucket, &key.id).await)
            .await?;
        state.bucket_made = true;
        state.save(dir)?;
    }
    Ok(())
}

fn admin_url(node: &Node) -> String {
    format!("http://127.0.0.1:{}", node.admin_port)
}

/// Tries `step` until it succeeds; fails if a daemon ends, or in the end with the step's last error.
async fn wait(
    fleet: &mut Fleet,
    what: &str,
    mut step: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut last = None;
    let attempts = async {
        loop {
            fleet.check()?;
            match step().await {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    if let Ok(result) = tokio::time::timeout(STEP_TIMEOUT, attempts).await {
        return result;
    }
    let error = last.unwrap_or_else(|| anyhow::anyhow!("no answer"));
    Err(error.context(format!("waited {} s for {what}", STEP_TIMEOUT.as_secs())))
}

/// The version of the layout, once every node is up.
async fn all_up(client: &Client, ids: &[String]) -> anyhow::Result<u64> {
    let json = client.get(Endpoint::GetClusterStatus, &[]).await?;
    let status: ClusterStatus = read(Endpoint::GetClusterStatus, &json)?;
    let down: Vec<&str> = ids
        .iter()
        .filter(|id| !status.nodes.iter().any(|node| node.is_up && node.id.to_string() == **id))
        .map(|id| &id[..16])
        .collect();
    anyhow::ensure!(down.is_empty(), "not up: {}", down.join(", "));
    Ok(status.layout_version)
}

async fn apply_layout(client: &Client, state: &State, ids: &[String]) -> anyhow::Result<()> {
    let mut roles = Vec::new();
    for (node, id) in state.storage().zip(ids).filter(|(node, _)| !node.spare) {
        let role =
            NodeRole { zone: node.zone.clone(), capacity: Some(CAPACITY), tags: vec![node.name.clone()] };
        roles.push(RoleChange::Assign { id: id.parse()?, role });
    }
    let parameters = LayoutParameters {
        zone_redundancy: Some(ZoneRedundancy::Maximum),
        replication_factor: Some(state.replication),
        partition_bits: None,
    };
    let update = UpdateClusterLayout { roles, parameters: Some(parameters) };
    client.post(Endpoint::UpdateClusterLayout, &[], &update).await?;
    match client.post(Endpoint::ApplyClusterLayout, &[], &ApplyClusterLayout { version: 1 }).await {
        Ok(_) => Ok(()),
        // An earlier attempt went through without our hearing of it.
        Err(error) if error.is_conflict() && all_up(client, ids).await? > 0 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn make_key(client: &Client) -> anyhow::Result<Key> {
    let allow = Some(KeyPermissions { create_bucket: true });
    let settings = KeySettings { name: Some(KEY_NAME.into()), allow, ..KeySettings::default() };
    let json = client.post(Endpoint::CreateKey, &[], &settings).await?;
    let key: KeyInfo = read(Endpoint::CreateKey, &json)?;
    let secret = key.secret_access_key.context("the answer to CreateKey holds no secret")?;
    Ok(Key { id: key.access_key_id, secret })
}

async fn make_bucket(client: &Client, name: &str, key: &str) -> anyhow::Result<()> {
    let create = CreateBucket { global_alias: Some(name.to_owned()), local_alias: None };
    let bucket: Result<BucketInfo, ClientError> =
        match client.post(Endpoint::CreateBucket, &[], &create).await {
            Ok(json) => read(Endpoint::CreateBucket, &json),
            Err(error) if error.is_conflict() => {
                let json = client.get(Endpoint::GetBucketInfo, &[("globalAlias", name)]).await?;
                read(Endpoint::GetBucketInfo, &json)
            }
            Err(error) => Err(error),
        };
    let permissions = BucketPermissions { read: true, write: true, owner: true };
    let allow = BucketKeyPermissions { bucket_id: bucket?.id, access_key_id: key.to_owned(), permissions };
    client.post(Endpoint::AllowBucketKey, &[], &allow).await?;
    Ok(())
}
