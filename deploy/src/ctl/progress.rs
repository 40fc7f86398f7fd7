//! How a change of the layout goes on: `hayloft layout history`, `hayloft layout wait`, a line of `hayloft status`.

use super::table::Table;
use super::{Report, ago, fields};
use crate::client::{Client, read};
use hayloft_proto::admin::{
    ClusterLayoutHistory, Endpoint, LayoutNodeProgress, LayoutPhase, LayoutVersion, LayoutVersionStatus,
};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a log that is no terminal gets a line.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Before that, a rate says nothing.
const RATE_AFTER: Duration = Duration::from_secs(5);
/// Width of the bar, in characters.
const BAR: u64 = 20;
/// How many nodes a line names.
const NAMED: usize = 3;

pub(super) async fn get_history(client: &Client) -> anyhow::Result<(Value, ClusterLayoutHistory)> {
    let json = client.get(Endpoint::GetClusterLayoutHistory, &[]).await?;
    let history = read(Endpoint::GetClusterLayoutHistory, &json)?;
    Ok((json, history))
}

pub(super) async fn history(client: &Client) -> anyhow::Result<Report> {
    let (json, history) = get_history(client).await?;
    Ok(Report::new(json, show(&history)))
}

/// Follows the change under way, and those queued behind it, to the end; fails when `timeout` has passed.
pub(super) async fn wait(client: &Client, timeout: Option<Duration>) -> anyhow::Result<Report> {
    let start = Instant::now();
    let mut display = Display::new();
    loop {
        let (json, history) = get_history(client).await?;
        if is_settled(&history) {
            display.clear();
            return Ok(Report::new(json, show(&history)));
        }
        if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            display.clear();
            let seconds = start.elapsed().as_secs();
            let refusal =
                format!("the layout is still changing after {seconds} s; it goes on, watched or not");
            return Ok(Report { json, text: show(&history), refusal: Some(refusal) });
        }
        display.show(&history);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether no change is under way and none is queued.
fn is_settled(history: &ClusterLayoutHistory) -> bool {
    history.phase == LayoutPhase::Stable && history.queued.is_empty()
}

/// Partitions that nodes have to look through in this change, and how many are done.
fn partitions(history: &ClusterLayoutHistory) -> (u64, u64) {
    let total: u64 = history.nodes.iter().map(|node| node.partitions_to_sync as u64).sum();
    let left: u64 = history.nodes.iter().map(left).sum();
    (total.saturating_sub(left), total)
}

/// Partitions that a node has left.
fn left(node: &LayoutNodeProgress) -> u64 {
    let all = node.partitions_to_sync as u64;
    if node.synced { 0 } else { node.partitions_left.unwrap_or(all).min(all) }
}

fn name(node: &LayoutNodeProgress) -> String {
    let id = node.id.to_string()[..16].to_owned();
    node.hostname.as_ref().map_or(id.clone(), |hostname| format!("{hostname} ({})", &id[..8]))
}

/// What a node has left to do, in words.
fn task(node: &LayoutNodeProgress, history: &ClusterLayoutHistory) -> String {
    let mut parts = Vec::new();
    if !node.is_up {
        parts.push(match node.last_seen_secs_ago {
            Some(seconds) => format!("last heard of {}", ago(seconds)),
            None => "never heard of".to_owned(),
        });
    }
    if let Some(epoch) = node.epoch.filter(|epoch| *epoch < history.epoch) {
        parts.push(format!("still at epoch {epoch}"));
    }
    if history.phase == LayoutPhase::Introduced && node.partitions_to_sync > 0 && !node.synced {
        let blocks = match node.blocks_left {
            Some(blocks) if blocks > 0 => format!(" and {blocks} blocks"),
            _ => String::new(),
        };
        parts.push(format!("{} of {} partitions{blocks} left", left(node), node.partitions_to_sync));
    }
    match (parts.is_empty(), node.waited_for, node.skipped) {
        (_, _, true) => parts.insert(0, "skipped".to_owned()),
        (true, true, _) => parts.push("about to tell that it is ready".to_owned()),
        (true, false, _) => parts.push("ready".to_owned()),
        (false, false, _) => parts.push("not waited for".to_owned()),
        (false, true, _) => {}
    }
    parts.join(", ")
}

fn phase(history: &ClusterLayoutHistory) -> String {
    let version = history.current_version;
    let before = version.saturating_sub(1);
    match history.phase {
        LayoutPhase::Stable if version == 0 => "no layout is applied yet".to_owned(),
        LayoutPhase::Stable => format!("version {version} is in force"),
        LayoutPhase::Introduced => {
            format!("moving from version {before} to {version}: new copies are being made")
        }
        LayoutPhase::Synced => {
            format!(
                "moving from version {before} to {version}: every copy is made, the old ones are being left"
            )
        }
    }
}

/// The state in one line; none while nothing changes.
pub(super) fn one_line(history: &ClusterLayoutHistory) -> Option<String> {
    if is_settled(history) {
        return None;
    }
    let mut line = phase(history);
    let (done, total) = partitions(history);
    if history.phase == LayoutPhase::Introduced && total > 0 {
        let _ = write!(line, ", {done} of {total} partitions done");
    }
    let waiting: Vec<String> = history.nodes.iter().filter(|node| node.waited_for).map(name).collect();
    if !waiting.is_empty() {
        let more = match waiting.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let _ = write!(line, "; waits for {}{more}", waiting[..waiting.len().min(NAMED)].join(", "));
    }
    if !history.queued.is_empty() {
        let _ = write!(line, "; {} more queued", history.queued.len());
    }
    Some(line)
}

/// Everything.
fn show(history: &ClusterLayoutHistory) -> String {
    let mut table = Table::new(&[">Version", "State", ">Copies", ">Nodes", "IDs"]);
    for version in history.versions.iter().chain(&history.queued) {
        table.row(version_row(version, history.phase));
    }
    let mut text = if table.is_empty() { String::new() } else { format!("{table}\n") };
    text += &fields(&[("State", phase(history)), ("Epoch", history.epoch.to_string())]);
    if history.phase != LayoutPhase::Stable {
        let mut table = Table::new(&["ID", "Hostname", "Waited for", "State"]);
        for node in &history.nodes {
            table.row([
                node.id.to_string()[..16].to_owned(),
                node.hostname.clone().unwrap_or_default(),
                if node.waited_for { "yes" } else { "" }.to_owned(),
                task(node, history),
            ]);
        }
        let _ = write!(text, "\n{table}");
        if history.nodes.iter().any(|node| node.waited_for && !node.is_up) {
            let _ = writeln!(
                text,
                "\nA node that is gone for good can be left out: hayloft layout skip-dead-nodes --version {}",
                history.current_version
            );
        }
    }
    text
}

fn version_row(version: &LayoutVersion, phase: LayoutPhase) -> [String; 5] {
    let state = match (version.status, phase) {
        (LayoutVersionStatus::Current, LayoutPhase::Stable) => "in force",
        (LayoutVersionStatus::Current, _) => "being moved to",
        (LayoutVersionStatus::Draining, _) => "being left",
        (LayoutVersionStatus::Historical, _) => "over",
        (LayoutVersionStatus::Queued, _) => "queued",
    };
    let ids: Vec<String> = version.nodes.iter().map(|id| id.to_string()[..8].to_owned()).collect();
    [
        version.version.to_string(),
        state.to_owned(),
        version.replication_factor.to_string(),
        version.storage_nodes.to_string(),
        ids.join(" "),
    ]
}

/// `[#####…….] 25%`
fn bar(done: u64, total: u64) -> String {
    let share = |of: u64| (done.min(total) * of).checked_div(total).unwrap_or(of);
    let full = share(BAR) as usize;
    format!("[{}{}] {}%", "#".repeat(full), ".".repeat(BAR as usize - full), share(100))
}

/// Time that is left if the rest goes as fast as what was done since `start`.
fn time_left(done_then: u64, done: u64, total: u64, passed: Duration) -> Option<Duration> {
    let since = done.checked_sub(done_then).filter(|since| *since > 0)?;
    if passed < RATE_AFTER {
        return None;
    }
    let left = total.saturating_sub(done) as f64;
    Duration::try_from_secs_f64(passed.as_secs_f64() / since as f64 * left).ok()
}

/// Shows progress on standard error: one line rewritten on a terminal, a line now and then elsewhere.
struct Display {
    terminal: bool,
    /// Epoch, time and partitions done when the present phase was first seen.
    start: Option<(u64, Instant, u64)>,
    last_line: Option<Instant>,
}

impl Display {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), start: None, last_line: None }
    }

    fn show(&mut self, history: &ClusterLayoutHistory) {
        let (done, total) = partitions(history);
        let fresh = self.start.is_none_or(|(epoch, _, _)| epoch != history.epoch);
        let (_, since, done_then) = match self.start {
            Some(start) if !fresh => start,
            _ => *self.start.insert((history.epoch, Instant::now(), done)),
        };
        let mut line = String::new();
        if self.terminal && history.phase == LayoutPhase::Introduced {
            line = bar(done, total) + " ";
        }
        line += &one_line(history).unwrap_or_default();
        if let Some(left) = time_left(done_then, done, total, since.elapsed()) {
            let _ = write!(line, "; about {} left", duration(left));
        }
        let mut out = std::io::stderr().lock();
        // Progress that can't be shown is no reason to fail.
        if self.terminal {
            let _ = write!(out, "\r\x1b[2K{line}");
            let _ = out.flush();
        } else if fresh || self.last_line.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            let _ = writeln!(out, "{line}");
            self.last_line = Some(Instant::now());
        }
    }

    fn clear(&self) {
        if self.terminal && self.start.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn history() -> ClusterLayoutHistory {
        let id = |byte: &str| byte.repeat(32);
        serde_json::from_value(json!({
            "currentVersion": 4, "minAck": 3, "epoch": 9, "phase": "introduced",
            "versions": [
                {"version": 4, "status": "Current", "storageNodes": 2, "gatewayNodes": 0, "replicationFactor": 2,
                 "nodes": [id("aa"), id("bb")]},
                {"version": 3, "status": "Draining", "storageNodes": 2, "gatewayNodes": 0, "replicationFactor": 2,
                 "nodes": [id("aa"), id("cc")]},
            ],
            "queued": [{"version": 5, "status": "Queued", "storageNodes": 1, "gatewayNodes": 0}],
            "nodes": [
                {"id": id("aa"), "hostname": "home1", "isUp": true, "waitedFor": false, "skipped": false, "epoch": 9,
                 "synced": true, "partitionsToSync": 256},
                {"id": id("bb"), "hostname": "home2", "isUp": true, "waitedFor": true, "skipped": false, "epoch": 9,
                 "synced": false, "partitionsToSync": 256, "partitionsLeft": 192, "blocksLeft": 1234},
                {"id": id("cc"), "isUp": false, "lastSeenSecsAgo": 600, "waitedFor": true, "skipped": false,
                 "epoch": 8, "synced": false, "partitionsToSync": 0},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_change_is_shown_with_versions_and_what_each_node_has_left() {
        let text = show(&history());
        for part in [
            "      4  being moved to       2      2  aaaaaaaa bbbbbbbb\n",
            "      3  being left           2      2  aaaaaaaa cccccccc\n",
            "      5  queued",
            "State: moving from version 3 to 4: new copies are being made\n",
            "aaaaaaaaaaaaaaaa  home1                 ready\n",
            "bbbbbbbbbbbbbbbb  home2     yes         192 of 256 partitions and 1234 blocks left\n",
            "cccccccccccccccc            yes         last heard of 10 min ago, still at epoch 8\n",
            "skip-dead-nodes --version 4\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn one_line_is_there_only_while_something_changes() {
        let line = one_line(&history()).unwrap();
        assert_eq!(
            line,
            "moving from version 3 to 4: new copies are being made, 320 of 512 partitions done; \
             waits for home2 (bbbbbbbb), cccccccccccccccc; 1 more queued"
        );
        let stable = ClusterLayoutHistory {
            phase: LayoutPhase::Stable,
            queued: Vec::new(),
            nodes: Vec::new(),
            ..history()
        };
        assert_eq!(one_line(&stable), None);
        assert!(show(&stable).contains("State: version 4 is in force\n"));
        let queued = ClusterLayoutHistory { queued: history().queued, ..stable };
        assert!(!is_settled(&queued), "a queued version is about to follow");
    }

    #[test]
    fn skipped_nodes_and_older_gateways_are_understood() {
        let mut skipped = history();
        skipped.nodes[2].skipped = true;
        skipped.nodes[2].waited_for = false;
        let text = task(&skipped.nodes[2], &skipped);
        assert_eq!(text, "skipped, last heard of 10 min ago, still at epoch 8");
        let bare = json!({"currentVersion": 1, "minAck": 1, "versions": []});
        let bare: ClusterLayoutHistory = serde_json::from_value(bare).unwrap();
        assert!(is_settled(&bare));
    }

    #[test]
    fn bars_and_estimates_follow_what_is_done() {
        assert_eq!(bar(0, 0), "[####################] 100%");
        assert_eq!(bar(1, 4), "[#####...............] 25%");
        let passed = Duration::from_secs(10);
        assert_eq!(time_left(10, 10, 100, passed), None);
        assert_eq!(time_left(10, 20, 100, Duration::from_secs(1)), None);
        assert_eq!(time_left(10, 20, 100, passed), Some(Duration::from_secs(80)));
        assert_eq!(time_left(30, 20, 100, passed), None, "a new version began");
        assert_eq!(duration(Duration::from_secs(150)), "2 min");
    }
}
