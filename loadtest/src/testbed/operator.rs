//! The operator's commands, as a person would give them: the program `hayloft`, run with `--cluster FILE`.

use crate::cluster::Cluster;
use anyhow::{Context as _, Result, bail};
use hayloft_common::env::Env;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long one command may take that does not wait by its nature.
const LIMIT: Duration = Duration::from_mins(2);
/// Between two tries of a command.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs commands against one cluster; cheap to clone.
#[derive(Clone)]
pub struct Operator {
    env: Env,
    program: PathBuf,
    file: PathBuf,
    /// Admin interfaces of the gateways.
    urls: Vec<String>,
    turn: usize,
}

/// A change of the layout as `layout apply` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub version: u64,
    /// Copies of partitions that nodes must fetch.
    pub moved_partitions: u64,
}

impl Operator {
    pub(super) fn new(env: &Env, program: &Path, file: &Path, cluster: &Cluster) -> Self {
        let urls = cluster.gateways.iter().map(|gateway| format!("http://{}", gateway.admin_addr)).collect();
        Self { env: env.clone(), program: program.into(), file: file.into(), urls, turn: 0 }
    }

    async fn output(&self, arguments: &[&str], limit: Duration) -> Result<std::process::Output> {
        let mut command = Command::new(&self.program);
        command.arg("--cluster").arg(&self.file);
        if let Some(url) = self.urls.get(self.turn % self.urls.len().max(1)) {
            command.args(["--admin-url", url]);
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(limit, command.output())
            .await
            .with_context(|| format!("`hayloft {}` did not end within {limit:?}", arguments.join(" ")))?
            .with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Runs `hayloft ARGUMENTS` and returns what it prints. `limit` bounds it.
    pub async fn run_within(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let output = self.output(arguments, limit).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`hayloft {}` failed: {}\n{}", arguments.join(" "), error.trim(), text.trim())
    }

    /// The JSON that a command prints, also if it ends with a failure.
    pub async fn printed_json(&self, arguments: &[&str], limit: Duration) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.output(&all, limit).await?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("`hayloft {}` did not print JSON: {}", arguments.join(" "), error.trim())
        })
    }

    /// As [`Operator::run_within`], with the limit of commands that do not wait.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_within(arguments, LIMIT).await
    }

    /// Runs a command with `--json` and reads what it prints.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.json_within(arguments, LIMIT).await
    }

    /// As [`Operator::json`], bounded by `limit`.
    pub async fn json_within(&self, arguments: &[&str], limit: Duration) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.run_within(&all, limit).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("`hayloft {}` did not print JSON", arguments.join(" ")))
    }

    /// Repeats a command until it succeeds, for as long as `limit`: a gateway may be down just now. The command must
    /// bear being carried out twice.
    pub async fn insist(&self, arguments: &[&str], limit: Duration) -> Result<Value> {
        let start = self.env.now();
        for turn in 0.. {
            let error = match self.through(turn).json(arguments).await {
                Ok(json) => return Ok(json),
                Err(error) => error,
            };
            if self.env.now().saturating_sub(start) > limit {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("unreachable: the turns do not end")
    }

    /// The same commands through another gateway: the one with number `turn`, modulo their number.
    pub fn through(&self, turn: usize) -> Self {
        Self { turn, ..self.clone() }
    }

    /// Stages a change (a command such as `layout remove NODE`) and applies it.
    pub async fn change_layout(&self, staging: &[&[&str]], patience: Duration) -> Result<Applied> {
        for command in staging {
            self.insist(command, patience).await?;
        }
        let layout = self.insist(&["layout", "show"], patience).await?;
        let version = number(&layout, "/version")? + 1;
        let apply = ["layout", "apply", "--version", &version.to_string()];
        let applied = match self.insist(&apply, patience).await {
            Ok(applied) => applied,
            // The answer to an earlier try was lost on the way.
            Err(error) => {
                let layout = self.insist(&["layout", "show"], patience).await?;
                if number(&layout, "/version")? != version {
                    return Err(error);
                }
                layout
            }
        };
        let moved_partitions = number(&applied, "/statistics/totalMovedPartitions").unwrap_or(0);
        Ok(Applied { version, moved_partitions })
    }

    /// Waits until no change of the layout is under way or queued, and version `least` or a later one is in force.
    /// Fails with what it waits for after `limit`.
    pub async fn layout_settled(&self, least: u64, limit: Duration) -> Result<()> {
        let start = self.env.now();
        for turn in 0.. {
            let history = self.through(turn).json(&["layout", "history"]).await;
            let settled = |history: &Value| {
                let stable = history.get("phase").and_then(Value::as_str) == Some("stable");
                let version = history.get("currentVersion").and_then(Value::as_u64);
                let arrived = version.is_some_and(|version| version >= least);
                arrived && stable && history.get("queued").and_then(Value::as_array).is_none_or(Vec::is_empty)
            };
            if history.as_ref().is_ok_and(settled) {
                return Ok(());
            }
            if self.env.now().saturating_sub(start) > limit {
                let last = history.map_or_else(|error| format!("{error:#}"), |history| history.to_string());
                bail!("the layout still changes after {limit:?}; last seen: {last}");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// A number in an answer, by its JSON pointer.
pub fn number(json: &Value, pointer: &str) -> Result<u64> {
    let found = json.pointer(pointer).and_then(Value::as_u64);
    found.with_context(|| format!("the answer has no number {pointer}: {json}"))
}
