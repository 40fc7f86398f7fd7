//! `hayloft node`: what concerns one node. Replacing stages a node in another's place.

use super::Report;
use super::layout::{apply, get_layout, has_staged, parse_capacity, role_of, staged};
use super::resolve_node;
use crate::client::{Client, read};
use clap::{Args, Subcommand};
use hayloft_common::id::NodeId;
use hayloft_proto::admin::{
    ClusterLayout, ClusterStatus, Endpoint, NodeRole, RoleChange, UpdateClusterLayout,
};

/// Commands about nodes.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Stage a node in another's place: it takes over zone, capacity and tags, and the other one loses its role
    Replace(Replace),
}

/// One node for another.
#[derive(Args, Debug)]
pub struct Replace {
    /// The node to be replaced, up or down: its hostname, id, or unique beginning of an id
    old: String,
    /// The node that takes its place, connected and without a role: its hostname, id, or unique beginning of an id
    new: String,
    /// Space that the new node offers, such as 2TiB; that of the old one if left out
    #[arg(short, long, value_parser = parse_capacity)]
    capacity: Option<u64>,
    /// Apply it at once, instead of only staging it
    #[arg(long)]
    apply: bool,
}

pub(super) async fn run(client: &Client, command: &NodeCommand) -> anyhow::Result<Report> {
    match command {
        NodeCommand::Replace(replace) => run_replace(client, replace).await,
    }
}

async fn run_replace(client: &Client, replace: &Replace) -> anyhow::Result<Report> {
    let (_, layout) = get_layout(client).await?;
    let json = client.get(Endpoint::GetClusterStatus, &[]).await?;
    let status: ClusterStatus = read(Endpoint::GetClusterStatus, &json)?;
    anyhow::ensure!(
        !replace.apply || !has_staged(&layout),
        "other changes are staged, which --apply would apply as well: see `hayloft layout show`, apply or revert them first"
    );
    let update = UpdateClusterLayout { roles: changes(replace, &layout, &status)?, parameters: None };
    let report = staged(client, &update).await?;
    if replace.apply { apply(client, layout.version.saturating_add(1)).await } else { Ok(report) }
}

/// The changes to stage, or why the node can't be replaced.
fn changes(
    replace: &Replace,
    layout: &ClusterLayout,
    status: &ClusterStatus,
) -> anyhow::Result<Vec<RoleChange>> {
    let old = find(&replace.old, layout, status)?;
    let new = find(&replace.new, layout, status)?;
    anyhow::ensure!(old != new, "a node cannot replace itself: name two different nodes");
    let Some(role) = role_of(layout, old) else {
        anyhow::bail!(
            "node {} has no role: there is nothing to replace (give {} a role with `hayloft layout assign`)",
            replace.old,
            replace.new
        );
    };
    if role_of(layout, new).is_some() || layout.roles.iter().any(|node| node.id == new) {
        anyhow::bail!(
            "node {} has a role already: a node that takes another's place must have none (to drop {} and spread its data over the others: `hayloft layout remove`)",
            replace.new,
            replace.old
        );
    }
    anyhow::ensure!(
        status.nodes.iter().any(|node| node.id == new && node.is_up),
        "node {} is not connected to the gateway: start it with this cluster's rpc_secret and `storage_peers`, and look at `hayloft status`",
        replace.new
    );
    let capacity = replace.capacity.or(role.capacity);
    Ok(vec![
        RoleChange::Remove { id: old },
        RoleChange::Assign { id: new, role: NodeRole { capacity, ..role } },
    ])
}

/// The node of that hostname, id or beginning of an id.
fn find(text: &str, layout: &ClusterLayout, status: &ClusterStatus) -> anyhow::Result<NodeId> {
    let named: Vec<NodeId> = status
        .nodes
        .iter()
        .filter(|node| node.hostname.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(text)))
        .map(|node| node.id)
        .collect();
    match named.as_slice() {
        [id] => return Ok(*id),
        [] => {}
        several => {
            let ids: Vec<String> = several.iter().map(|id| id.to_string()[..16].to_owned()).collect();
            anyhow::bail!("{} nodes run on `{text}`: name one by its id: {}", several.len(), ids.join(", "));
        }
    }
    let mut known: Vec<NodeId> = status.nodes.iter().map(|node| node.id).collect();
    known.extend(layout.roles.iter().map(|node| node.id));
    known.extend(layout.staged_role_changes.iter().map(RoleChange::id));
    resolve_node(text, &known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    fn layout() -> ClusterLayout {
        serde_json::from_value(json!({
            "version": 3,
            "roles": [
                {"id": id(0xaa), "zone": "paris", "tags": ["ssd"], "capacity": 10},
                {"id": id(0xbb), "zone": "lyon", "tags": [], "capacity": 20},
            ],
            "parameters": {}, "partitionSize": 1, "stagedRoleChanges": [],
        }))
        .unwrap()
    }

    fn status() -> ClusterStatus {
        let node = |byte, hostname: &str, up| json!({"id": id(byte), "isUp": up, "draining": false, "hostname": hostname});
        let nodes = [
            json!({"id": id(0xaa), "isUp": false, "draining": false}),
            node(0xbb, "nas", true),
            node(0xcc, "nas2", true),
            node(0xdd, "cellar", false),
            node(0xee, "twin", true),
            node(0xef, "twin", true),
        ];
        serde_json::from_value(json!({"layoutVersion": 3, "nodes": nodes})).unwrap()
    }

    fn replaced(old: &str, new: &str, capacity: Option<u64>) -> anyhow::Result<Vec<RoleChange>> {
        let replace = Replace { old: old.into(), new: new.into(), capacity, apply: false };
        changes(&replace, &layout(), &status())
    }

    #[test]
    fn the_new_node_takes_the_role_of_the_old_one() {
        let role = NodeRole { zone: "paris".into(), capacity: Some(10), tags: vec!["ssd".into()] };
        let expected = |capacity| {
            let role = NodeRole { capacity: Some(capacity), ..role.clone() };
            [RoleChange::Remove { id: id(0xaa) }, RoleChange::Assign { id: id(0xcc), role }]
        };
        assert_eq!(
            replaced("aa", "NAS2", None).unwrap(),
            expected(10),
            "a node that is gone can be replaced"
        );
        assert_eq!(replaced("aaaa", "cc", Some(7)).unwrap(), expected(7));
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_with_the_reason() {
        for (old, new, reason) in [
            ("99", "cc", "no node's id starts with `99`"),
            ("cc", "nas", "node cc has no role"),
            ("aa", "nas", "has a role already"),
            ("aa", "cellar", "not connected"),
            ("aa", &"12".repeat(32), "not connected"),
            ("aa", "aa", "cannot replace itself"),
            ("aa", "twin", "eeeeeeeeeeeeeeee, efefefefefefefef"),
        ] {
            let error = replaced(old, new, None).unwrap_err().to_string();
            assert!(error.contains(reason), "{old} {new}: {error}");
        }
    }
}
