//! `hayloft layout`: stage changes, look at what they would do, apply them.

use super::table::Table;
use super::{Report, confirm, fields, progress, resolve_node};
use crate::client::{Client, read};
use clap::{Args, Subcommand};
use hayloft_common::config::size::{human_size, parse_duration, parse_size};
use hayloft_common::id::NodeId;
use hayloft_proto::admin::{
    AppliedLayout, AppliedState, ApplyClusterLayout, ClusterLayout, ClusterStatus, Endpoint,
    LayoutParameters, LayoutPreview, NodeRole, RoleChange, SkipDeadNodes, SkippedDeadNodes,
    UpdateClusterLayout, ZoneRedundancy,
};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// Commands about the layout.
#[derive(Subcommand, Debug)]
pub enum LayoutCommand {
    /// Stage a role for nodes: their zone, capacity and tags. What is left out stays as it is
    Assign(Assign),
    /// Stage the removal of nodes: what they hold moves to the others when it is applied
    Remove {
        /// Ids of nodes, or unique beginnings of ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Stage parameters of the whole cluster
    Config(Config),
    /// Show roles, staged changes, and what applying them would do
    Show,
    /// Apply the staged changes: data starts to move, while reads and writes go on. During a change they queue
    Apply {
        /// Version that the new layout will have, as `hayloft layout show` tells: proof that you have seen what
        /// is replaced. Without it nothing is applied; the outcome is computed and shown
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Drop the staged changes. What was applied is undone by staging the former roles and applying those
    Revert {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Show the versions that are alive, and what a change under way waits for, node by node
    History,
    /// Wait until no change is under way and none is queued, showing progress
    Wait {
        /// Give up (with a failure) after this time, such as 30s or 2h; the change goes on
        #[arg(long, value_parser = parse_timeout, value_name = "TIME")]
        timeout: Option<Duration>,
    },
    /// Let a change go on without the nodes that can't be reached now and are not expected back
    SkipDeadNodes {
        /// Version that is being moved to, as `hayloft layout history` tells
        #[arg(long, value_name = "N")]
        version: u64,
        /// Go on even if acknowledged writes may be lost: when so many copies of a partition are missing that the
        /// others may not have seen every write
        #[arg(long)]
        allow_missing_data: bool,
    },
}

/// A role for nodes.
#[derive(Args, Debug)]
pub struct Assign {
    /// Ids of nodes, or unique beginnings of ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Zone (site) where they stand: nodes of one zone may fail together
    #[arg(short, long)]
    zone: Option<String>,
    /// Space that they offer for data, such as 500G or 2TiB
    #[arg(short, long, value_parser = parse_capacity)]
    capacity: Option<u64>,
    /// Text for people, shown in tables; may be repeated
    #[arg(short, long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A node that they replace: it is removed in the same step; may be repeated
    #[arg(long, value_name = "NODE")]
    replace: Vec<String>,
}

/// Parameters of the cluster.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Config {
    /// In how many zones the copies of each datum must lie: a number, or `maximum` for as many as possible
    #[arg(short = 'r', long, value_parser = parse_redundancy, value_name = "N")]
    zone_redundancy: Option<ZoneRedundancy>,
    /// Copies of each datum: 1, 2, 3 or 5
    #[arg(long, value_name = "N")]
    replication_factor: Option<usize>,
    /// Partitions, as a power of two; only before the first layout is applied
    #[arg(long, value_name = "BITS")]
    partition_bits: Option<u8>,
}

pub(super) fn parse_capacity(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a node without space has no role: use `hayloft layout remove`".into()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn parse_redundancy(text: &str) -> Result<ZoneRedundancy, String> {
    match (text, text.parse::<usize>()) {
        ("max" | "maximum", _) => Ok(ZoneRedundancy::Maximum),
        (_, Ok(n)) if n > 0 => Ok(ZoneRedundancy::AtLeast(n)),
        _ => Err("give a number of zones, or `maximum`".into()),
    }
}

pub(super) async fn run(client: &Client, command: &LayoutCommand) -> anyhow::Result<Report> {
    match command {
        LayoutCommand::Assign(assign) => {
            let (layout, known) = known_nodes(client).await?;
            let update =
                UpdateClusterLayout { roles: assignments(assign, &layout, &known)?, parameters: None };
            staged(client, &update).await
        }
        LayoutCommand::Remove { nodes } => {
            let (_, known) = known_nodes(client).await?;
            let remove = |node: &String| Ok(RoleChange::Remove { id: resolve_node(node, &known)? });
            let roles = nodes.iter().map(remove).collect::<anyhow::Result<_>>()?;
            staged(client, &UpdateClusterLayout { roles, parameters: None }).await
        }
        LayoutCommand::Config(config) => {
            let parameters = LayoutParameters {
                zone_redundancy: config.zone_redundancy,
                replication_factor: config.replication_factor,
                partition_bits: config.partition_bits,
            };
            staged(client, &UpdateClusterLayout { roles: Vec::new(), parameters: Some(parameters) }).await
        }
        LayoutCommand::Show => show_all(client).await,
        LayoutCommand::Apply { version: Some(version) } => apply(client, *version).await,
        LayoutCommand::Apply { version: None } => preview_only(client).await,
        LayoutCommand::Revert { yes } => {
            confirm(*yes, "drop all staged changes")?;
            let json = client.post(Endpoint::RevertClusterLayout, &[], &json!({})).await?;
            let layout: ClusterLayout = read(Endpoint::RevertClusterLayout, &json)?;
            Ok(Report::new(json, format!("No changes are staged; version {} stays.\n", layout.version)))
        }
        LayoutCommand::History => progress::history(client).await,
        LayoutCommand::Wait { timeout } => progress::wait(client, *timeout).await,
        LayoutCommand::SkipDeadNodes { version, allow_missing_data } => {
            let skip = SkipDeadNodes { version: *version, allow_missing_data: *allow_missing_data };
            let json = client.post(Endpoint::ClusterLayoutSkipDeadNodes, &[], &skip).await?;
            let skipped: SkippedDeadNodes = read(Endpoint::ClusterLayoutSkipDeadNodes, &json)?;
            Ok(Report::new(json, lines(&skipped.message)))
        }
    }
}

pub(super) async fn get_layout(client: &Client) -> anyhow::Result<(Value, ClusterLayout)> {
    let json = client.get(Endpoint::GetClusterLayout, &[]).await?;
    let layout = read(Endpoint::GetClusterLayout, &json)?;
    Ok((json, layout))
}

/// The layout, and the ids that a prefix may mean.
async fn known_nodes(client: &Client) -> anyhow::Result<(ClusterLayout, Vec<NodeId>)> {
    let (_, layout) = get_layout(client).await?;
    let json = client.get(Endpoint::GetClusterStatus, &[]).await?;
    let status: ClusterStatus = read(Endpoint::GetClusterStatus, &json)?;
    let mut known: Vec<NodeId> = status.nodes.iter().map(|node| node.id).collect();
    known.extend(layout.roles.iter().map(|role| role.id));
    known.extend(layout.staged_role_changes.iter().map(RoleChange::id));
    Ok((layout, known))
}

/// The role that a node would have if the staged changes were applied.
pub(super) fn role_of(layout: &ClusterLayout, id: NodeId) -> Option<NodeRole> {
    let staged = layout.staged_role_changes.iter().rev().find(|change| change.id() == id);
    match staged {
        Some(RoleChange::Assign { role, .. }) => Some(role.clone()),
        Some(RoleChange::Remove { .. }) => None,
        None => layout.roles.iter().find(|node| node.id == id).map(|node| NodeRole {
            zone: node.zone.clone(),
            capacity: node.capacity,
            tags: node.tags.clone(),
        }),
    }
}

fn assignments(assign: &Assign, layout: &ClusterLayout, known: &[NodeId]) -> anyhow::Result<Vec<RoleChange>> {
    let mut changes = Vec::new();
    let nodes: Vec<NodeId> =
        assign.nodes.iter().map(|node| resolve_node(node, known)).collect::<anyhow::Result<_>>()?;
    for node in &assign.replace {
        let id = resolve_node(node, known)?;
        anyhow::ensure!(!nodes.contains(&id), "node {node} cannot replace itself");
        anyhow::ensure!(
            role_of(layout, id).is_some(),
            "node {node} has no role: there is nothing to replace"
        );
        changes.push(RoleChange::Remove { id });
    }
    for (id, node) in nodes.iter().zip(&assign.nodes) {
        let old = role_of(layout, *id);
        let zone = assign.zone.clone().or_else(|| old.as_ref().map(|role| role.zone.clone()));
        let capacity = assign.capacity.or_else(|| old.as_ref().and_then(|role| role.capacity));
        let (Some(zone), Some(capacity)) = (zone, capacity) else {
            anyhow::bail!("node {node} has no role yet: give its zone (-z) and its capacity (-c)");
        };
        let tags = if assign.tags.is_empty() {
            old.map(|role| role.tags).unwrap_or_default()
        } else {
            assign.tags.clone()
        };
        changes.push(RoleChange::Assign { id: *id, role: NodeRole { zone, capacity: Some(capacity), tags } });
    }
    Ok(changes)
}

pub(super) async fn staged(client: &Client, update: &UpdateClusterLayout) -> anyhow::Result<Report> {
    let json = client.post(Endpoint::UpdateClusterLayout, &[], update).await?;
    let layout: ClusterLayout = read(Endpoint::UpdateClusterLayout, &json)?;
    let text = show_staged(&layout)
        + "\nNothing is applied yet: see `hayloft layout show`, then `hayloft layout apply`.\n";
    Ok(Report::new(json, text))
}

async fn preview(client: &Client) -> anyhow::Result<(Value, LayoutPreview)> {
    let json = client.post(Endpoint::PreviewClusterLayoutChanges, &[], &json!({})).await?;
    let preview = read(Endpoint::PreviewClusterLayoutChanges, &json)?;
    Ok((json, preview))
}

async fn show_all(client: &Client) -> anyhow::Result<Report> {
    let (json, layout) = get_layout(client).await?;
    let mut text = show_current(&layout);
    if has_staged(&layout) {
        text = text
            + "\n"
            + &show_staged(&layout)
            + "\n"
            + &show_preview(&preview(client).await?.1, layout.version);
    } else {
        text += "\nNo changes are staged.\n";
    }
    Ok(Report::new(json, text))
}

pub(super) async fn apply(client: &Client, version: u64) -> anyhow::Result<Report> {
    let json = client.post(Endpoint::ApplyClusterLayout, &[], &ApplyClusterLayout { version }).await?;
    let applied: AppliedLayout = read(Endpoint::ApplyClusterLayout, &json)?;
    let text = lines(&applied.message) + "\n" + &show_current(&applied.layout) + "\n" + outcome(&applied);
    Ok(Report::new(json, text))
}

fn outcome(applied: &AppliedLayout) -> &'static str {
    match applied.state {
        AppliedState::InForce => "The layout is applied.\n",
        AppliedState::Moving => {
            "The layout is applied and data moves to it, while reads and writes go on. To follow: hayloft layout wait\n"
        }
        AppliedState::Queued => {
            "The layout is applied and follows when the change under way is over. To follow: hayloft layout wait\n"
        }
    }
}

async fn preview_only(client: &Client) -> anyhow::Result<Report> {
    let (_, layout) = get_layout(client).await?;
    anyhow::ensure!(
        has_staged(&layout),
        "no changes are staged: there is nothing to apply (stage some with `hayloft layout assign`)"
    );
    let (json, preview) = preview(client).await?;
    let text = show_staged(&layout) + "\n" + &show_preview(&preview, layout.version);
    let refusal = match preview {
        LayoutPreview::Impossible { .. } => {
            "nothing was applied: the staged changes give no layout".to_owned()
        }
        LayoutPreview::Possible { .. } => format!(
            "nothing was applied: if this is what you want, run `hayloft layout apply --version {}`",
            layout.version + 1
        ),
    };
    Ok(Report { json, text, refusal: Some(refusal) })
}

pub(super) fn has_staged(layout: &ClusterLayout) -> bool {
    !layout.staged_role_changes.is_empty() || layout.staged_parameters.is_some()
}

fn lines(message: &[String]) -> String {
    message.iter().fold(String::new(), |text, line| text + line + "\n")
}

fn redundancy(value: ZoneRedundancy) -> String {
    match value {
        ZoneRedundancy::Maximum => "as many zones as possible".into(),
        ZoneRedundancy::AtLeast(n) => format!("at least {n} zones"),
    }
}

fn parameter_fields(parameters: &LayoutParameters) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    if let Some(factor) = parameters.replication_factor {
        pairs.push(("Copies", factor.to_string()));
    }
    if let Some(value) = parameters.zone_redundancy {
        pairs.push(("Spread over", redundancy(value)));
    }
    if let Some(bits) = parameters.partition_bits {
        pairs.push(("Partitions", (1_u64 << bits.min(63)).to_string()));
    }
    pairs
}

fn show_current(layout: &ClusterLayout) -> String {
    if layout.version == 0 {
        return "No layout is applied yet.\n".into();
    }
    let mut table = Table::new(&["ID", "Zone", ">Capacity", ">Usable", ">Partitions", "Tags"]);
    for node in &layout.roles {
        let usable = match (node.usable_capacity, node.capacity) {
            (Some(usable), Some(capacity)) if capacity > 0 => {
                format!("{} ({:.0}%)", human_size(usable), usable as f64 * 100.0 / capacity as f64)
            }
            (usable, _) => usable.map(human_size).unwrap_or_default(),
        };
        table.row([
            node.id.to_string()[..16].to_owned(),
            node.zone.clone(),
            node.capacity.map_or("gateway".into(), human_size),
            usable,
            node.stored_partitions.map(|count| count.to_string()).unwrap_or_default(),
            node.tags.join(", "),
        ]);
    }
    let mut pairs = vec![("Version", layout.version.to_string())];
    pairs.extend(parameter_fields(&layout.parameters));
    pairs.push(("Partition size", human_size(layout.partition_size)));
    format!("{table}\n{}", fields(&pairs))
}

fn show_staged(layout: &ClusterLayout) -> String {
    if !has_staged(layout) {
        return "No changes are staged.\n".into();
    }
    let mut text = "Staged changes:\n".to_owned();
    let mut table = Table::new(&["  ID", "Change", "Zone", ">Capacity", "Tags"]);
    for change in &layout.staged_role_changes {
        let id = format!("  {}", &change.id().to_string()[..16]);
        match change {
            RoleChange::Assign { role, .. } => {
                let known = layout.roles.iter().any(|node| node.id == change.id());
                let word = if known { "change" } else { "new" };
                let capacity = role.capacity.map_or("gateway".into(), human_size);
                table.row([id, word.to_owned(), role.zone.clone(), capacity, role.tags.join(", ")]);
            }
            RoleChange::Remove { .. } => table.row([id, "remove".to_owned()]),
        }
    }
    if !table.is_empty() {
        let _ = write!(text, "{table}");
    }
    for (name, value) in layout.staged_parameters.iter().flat_map(parameter_fields) {
        let _ = writeln!(text, "  {name}: {value}");
    }
    text
}

/// What applying would do; `version` is the current one.
fn show_preview(preview: &LayoutPreview, version: u64) -> String {
    match preview {
        LayoutPreview::Impossible { error } => {
            format!(
                "These changes cannot be applied:\n  {error}\nStage others, or drop them with `hayloft layout revert --yes`.\n"
            )
        }
        LayoutPreview::Possible { message, new_layout, .. } => format!(
            "If applied:\n{}\n{}\nTo apply: hayloft layout apply --version {}\nTo drop:  hayloft layout revert --yes\n",
            lines(message),
            show_current(new_layout),
            version + 1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    fn layout() -> ClusterLayout {
        serde_json::from_value(json!({
            "version": 3,
            "roles": [{"id": id(0xaa), "zone": "paris", "tags": ["ssd"], "capacity": 10_000_000_000_u64,
                       "storedPartitions": 256, "usableCapacity": 5_000_000_000_u64}],
            "parameters": {"zoneRedundancy": {"atLeast": 2}, "replicationFactor": 3},
            "partitionSize": 19_500_000,
            "stagedRoleChanges": [
                {"id": id(0xbb), "zone": "lyon", "capacity": 2_000_000_000_u64, "tags": []},
                {"id": id(0xaa), "remove": true},
            ],
            "stagedParameters": {"zoneRedundancy": "maximum"},
        }))
        .unwrap()
    }

    fn assign(nodes: &[&str]) -> Assign {
        let nodes = nodes.iter().map(ToString::to_string).collect();
        Assign { nodes, zone: None, capacity: None, tags: Vec::new(), replace: Vec::new() }
    }

    #[test]
    fn what_is_not_given_is_taken_from_the_role_that_is_staged_or_applied() {
        let layout = layout();
        let known = [id(0xaa), id(0xbb), id(0xcc)];
        let changed = Assign { capacity: Some(7), ..assign(&["bb"]) };
        let role = NodeRole { zone: "lyon".into(), capacity: Some(7), tags: Vec::new() };
        assert_eq!(
            assignments(&changed, &layout, &known).unwrap(),
            [RoleChange::Assign { id: id(0xbb), role: role.clone() }]
        );
        let error = assignments(&assign(&["aa"]), &layout, &known).unwrap_err().to_string();
        assert!(error.contains("no role yet"), "its removal is staged: {error}");
        let replacing = Assign {
            zone: Some("lyon".into()),
            capacity: Some(7),
            replace: vec!["bb".into()],
            ..assign(&["cc"])
        };
        assert_eq!(
            assignments(&replacing, &layout, &known).unwrap(),
            [RoleChange::Remove { id: id(0xbb) }, RoleChange::Assign { id: id(0xcc), role }]
        );
    }

    #[test]
    fn a_layout_is_shown_with_roles_and_staged_changes() {
        let text = show_current(&layout()) + &show_staged(&layout());
        assert!(
            text.contains("aaaaaaaaaaaaaaaa  paris   10.0 GB  5.0 GB (50%)         256  ssd\n"),
            "{text}"
        );
        assert!(text.contains("Spread over:    at least 2 zones\n"), "{text}");
        assert!(text.contains("  bbbbbbbbbbbbbbbb  new     lyon    2.0 GB\n"), "{text}");
        assert!(text.contains("  aaaaaaaaaaaaaaaa  remove\n"), "{text}");
        assert!(text.contains("  Spread over: as many zones as possible\n"), "{text}");
    }

    #[test]
    fn a_preview_says_what_to_pass_or_why_not() {
        let possible = LayoutPreview::Possible {
            message: vec!["moves nothing".into()],
            new_layout: Box::new(layout()),
            statistics: None,
        };
        let text = show_preview(&possible, 3);
        assert!(
            text.contains("moves nothing\n") && text.contains("hayloft layout apply --version 4\n"),
            "{text}"
        );
        let text = show_preview(&LayoutPreview::Impossible { error: "too few nodes".into() }, 3);
        assert!(text.contains("too few nodes") && !text.contains("--version"), "{text}");
    }

    #[test]
    fn values_of_options_are_checked() {
        assert_eq!(parse_capacity("1T"), Ok(1_000_000_000_000));
        assert!(parse_capacity("0").is_err() && parse_capacity("x").is_err());
        assert_eq!(parse_redundancy("max"), Ok(ZoneRedundancy::Maximum));
        assert_eq!(parse_redundancy("2"), Ok(ZoneRedundancy::AtLeast(2)));
        assert!(parse_redundancy("0").is_err() && parse_redundancy("many").is_err());
    }
}
