//! `hayloft status`: nodes, roles and health.

use super::progress::{get_history, one_line};
use super::table::Table;
use super::{Report, ago, fields};
use crate::client::{Client, read};
use hayloft_common::config::size::human_size;
use hayloft_proto::admin::{
    ClusterHealth, ClusterLayoutHistory, ClusterStatus, Endpoint, HealthStatus, Node,
};
use std::fmt::Write as _;

pub(super) async fn run(client: &Client) -> anyhow::Result<Report> {
    let json = client.get(Endpoint::GetClusterStatus, &[]).await?;
    let health = client.get(Endpoint::GetClusterHealth, &[]).await?;
    let (_, history) = get_history(client).await?;
    let status = read(Endpoint::GetClusterStatus, &json)?;
    let text = show(&status, &read(Endpoint::GetClusterHealth, &health)?, &history);
    Ok(Report::new(json, text))
}

fn state(node: &Node) -> String {
    match (node.is_up, node.last_seen_secs_ago) {
        (true, _) if node.draining => "up, draining".into(),
        (true, _) => "up".into(),
        (false, Some(seconds)) => format!("DOWN, seen {}", ago(seconds)),
        (false, None) => "DOWN, never seen".into(),
    }
}

fn show(status: &ClusterStatus, health: &ClusterHealth, history: &ClusterLayoutHistory) -> String {
    let mut table =
        Table::new(&["ID", "Hostname", "Address", "Zone", ">Capacity", ">Free", "Tags", "State", "Version"]);
    for node in &status.nodes {
        let role = node.role.as_ref();
        let free = node
            .data_partition
            .map(|disk| format!("{} ({}%)", human_size(disk.available), percent(disk.available, disk.total)));
        table.row([
            node.id.to_string()[..16].to_owned(),
            node.hostname.clone().unwrap_or_default(),
            node.addr.clone().unwrap_or_default(),
            role.map_or("no role".into(), |role| role.zone.clone()),
            role.and_then(|role| role.capacity).map(human_size).unwrap_or_default(),
            free.unwrap_or_default(),
            role.map(|role| role.tags.join(", ")).unwrap_or_default(),
            state(node),
            node.garage_version.clone().unwrap_or_default(),
        ]);
    }
    let mut text =
        if table.is_empty() { "No storage node is known yet.\n".to_owned() } else { table.to_string() };
    text.push('\n');
    let word = match health.status {
        HealthStatus::Healthy => "healthy",
        HealthStatus::Degraded => "degraded: everything works, but some storage nodes are down",
        HealthStatus::Unavailable => "UNAVAILABLE: some data has no quorum",
    };
    let mut pairs = vec![
        ("Health", word.to_owned()),
        ("Storage nodes", format!("{} of {} up", health.storage_nodes_up, health.storage_nodes)),
        (
            "Partitions",
            format!(
                "{} in all, {} with a quorum, {} with every copy",
                health.partitions, health.partitions_quorum, health.partitions_all_ok
            ),
        ),
        ("Layout version", status.layout_version.to_string()),
    ];
    pairs.extend(one_line(history).map(|line| ("Layout change", line)));
    text += &fields(&pairs);
    if status.layout_version == 0 {
        let hint = "No layout is applied: give each node a role with `hayloft layout assign`, then `hayloft layout apply`.";
        let _ = writeln!(text, "\n{hint}");
    }
    text
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_are_shown_with_role_and_state() {
        let status = json!({"layoutVersion": 1, "nodes": [
            {"id": "ab".repeat(32), "isUp": true, "draining": false, "hostname": "home1", "addr": "10.0.0.1:3901",
             "garageVersion": "0.1.0", "role": {"zone": "a", "capacity": 10_000_000_000_u64, "tags": ["ssd", "x"]},
             "dataPartition": {"available": 5_000_000_000_u64, "total": 20_000_000_000_u64}},
            {"id": "cd".repeat(32), "isUp": false, "draining": false, "lastSeenSecsAgo": 180},
        ]});
        let health = json!({"status": "degraded", "knownNodes": 2, "connectedNodes": 1, "storageNodes": 2,
            "storageNodesUp": 1, "storageNodesOk": 1, "partitions": 256, "partitionsQuorum": 256, "partitionsAllOk": 3});
        let history = json!({"currentVersion": 1, "minAck": 0, "versions": [], "phase": "synced"});
        let text = show(
            &serde_json::from_value(status).unwrap(),
            &serde_json::from_value(health).unwrap(),
            &serde_json::from_value(history).unwrap(),
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "abababababababab  home1     10.0.0.1:3901  a         10.0 GB  5.0 GB (25%)  ssd, x  up                    0.1.0"
        );
        assert!(
            lines[2].starts_with("cdcdcdcdcdcdcdcd")
                && lines[2].ends_with("no role                                  DOWN, seen 3 min ago"),
            "{text}"
        );
        assert!(text.contains("Health:         degraded"), "{text}");
        assert!(text.contains("Layout change:  moving from version 0 to 1: every copy is made"), "{text}");
        assert!(text.contains("256 in all, 256 with a quorum, 3 with every copy"), "{text}");
    }
}
