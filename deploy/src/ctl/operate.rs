//! `hayloft repair`, `worker`, `block`, `meta`, `verify`: what concerns nodes from inside, on one of them or on all.

use super::table::Table;
use super::{Report, ago, confirm};
use crate::client::{Client, read};
use clap::{Args, Subcommand, ValueEnum};
use hayloft_common::config::size::human_size;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::schema::BlockOwner;
use hayloft_proto::admin::{
    BlockDetails, BlockError, Endpoint, GetBlockInfo, GetWorkerVariable, LaunchRepairOperation,
    ListWorkersRequest, PerNode, PurgedBlocks, RepairType, Retried, RetryBlockResync, ScrubCommand,
    SetWorkerVariable, Snapshot, Verification, Worker, WorkerState,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Between two looks at a verification that runs.
const PAUSE: Duration = Duration::from_millis(500);

/// Which nodes a command is about.
#[derive(Args, Debug, Clone)]
pub struct OnNodes {
    /// Only this storage node: its hostname, id, or unique beginning of an id; all nodes if left out
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

/// Repairs, started in the background of the nodes; see `hayloft worker list` for how far they are.
#[derive(Args, Debug)]
pub struct Repair {
    /// What to repair
    #[arg(value_enum)]
    what: What,
    /// For `scrub`: what to do with it
    #[arg(value_enum, default_value_t = Scrub::Start)]
    scrub: Scrub,
    #[command(flatten)]
    on: OnNodes,
}

/// What to repair.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Compare all rows with all replicas now, and fetch what is missing
    Tables,
    /// Compare references with the blocks that are here; fetch what is missing, release what nothing needs
    Blocks,
    /// Ask of every reference to a block whether its version is there
    Refs,
    /// Count objects, bytes and fingerprints anew
    Counters,
    /// Move blocks to the disks that should have them
    Rebalance,
    /// Rewrite files of packed blocks that hold dead bytes
    Compact,
    /// Read and verify every block
    Scrub,
}

/// What to do with the scrub.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scrub {
    /// Begin now
    Start,
    /// Stop until resumed
    Pause,
    /// Go on
    Resume,
    /// Give up this round
    Cancel,
}

/// Commands about background workers.
#[derive(Subcommand, Debug)]
pub enum WorkerCommand {
    /// List the background workers of all nodes
    List {
        /// Only those that work now
        #[arg(short, long)]
        busy: bool,
        /// Only those with errors
        #[arg(short, long)]
        errors: bool,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Show everything about the workers of one name
    Info {
        /// Its name, such as `block resync`
        name: String,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Show variables: tranquility of each worker, scrub dates
    Get {
        /// Only this one
        variable: Option<String>,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Set a variable (until the node restarts), such as `block-scrub-tranquility`
    Set {
        /// Its name: see `hayloft worker get`
        variable: String,
        /// Its new value
        value: String,
        #[command(flatten)]
        on: OnNodes,
    },
}

/// Commands about single blocks.
#[derive(Subcommand, Debug)]
pub enum BlockCommand {
    /// List blocks that could not be fetched or released
    #[command(visible_alias = "list-errors")]
    Errors {
        #[command(flatten)]
        on: OnNodes,
    },
    /// Show where a block lies and who needs it
    Info {
        /// The block's hash, 64 hexadecimal digits
        hash: Hash,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Try blocks in trouble again now
    #[command(visible_alias = "retry-now")]
    Retry {
        /// All that have errors
        #[arg(long, conflicts_with = "hashes", required_unless_present = "hashes")]
        all: bool,
        /// The blocks' hashes
        hashes: Vec<Hash>,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Give up blocks that are lost on all nodes: deletes every object and aborts every upload that needs one of them
    Purge {
        /// The blocks' hashes
        #[arg(required = true)]
        hashes: Vec<Hash>,
        /// Really do it
        #[arg(long)]
        yes: bool,
    },
}

/// Commands about the nodes' metadata.
#[derive(Subcommand, Debug)]
pub enum MetaCommand {
    /// Write a consistent copy of a node's metadata beside it (the last two are kept)
    Snapshot {
        #[command(flatten)]
        on: OnNodes,
    },
    /// Take what a node holds for complete, after its metadata was lost or put back, when no other node can complete it:
    /// acknowledged writes that only the others held are given up
    Trust {
        /// The storage node: its hostname, id, or unique beginning of an id
        node: String,
        /// Really do it
        #[arg(long)]
        yes: bool,
    },
}

/// Looks through everything the nodes hold, and says what should not be there or is missing; changes nothing.
#[derive(Args, Debug)]
pub struct Verify {
    #[command(flatten)]
    on: OnNodes,
}

async fn get<T: DeserializeOwned>(
    client: &Client,
    endpoint: Endpoint,
    on: &OnNodes,
) -> anyhow::Result<(Value, PerNode<T>)> {
    let node = on.node.as_deref().unwrap_or("*");
    let json = client.get(endpoint, &[("node", node)]).await?;
    let answers = read(endpoint, &json)?;
    Ok((json, answers))
}

async fn post<T: DeserializeOwned>(
    client: &Client,
    endpoint: Endpoint,
    on: &OnNodes,
    body: &(impl Serialize + Sync),
) -> anyhow::Result<(Value, PerNode<T>)> {
    let node = on.node.as_deref().unwrap_or("*");
    let json = client.post(endpoint, &[("node", node)], body).await?;
    let answers = read(endpoint, &json)?;
    Ok((json, answers))
}

/// A report that fails if a node did not answer.
fn report<T>(json: Value, text: String, answers: &PerNode<T>) -> Report {
    let refusal = (!answers.error.is_empty()).then(|| {
        let errors = answers.error.iter().map(|(node, error)| format!("\n  {}: {error}", node.short()));
        format!("not all nodes did it:{}", errors.collect::<String>())
    });
    Report { json, text, refusal }
}

pub(super) async fn repair(client: &Client, repair: &Repair) -> anyhow::Result<Report> {
    anyhow::ensure!(
        repair.what == What::Scrub || repair.scrub == Scrub::Start,
        "only `scrub` can be paused, resumed or cancelled"
    );
    let repair_type = match (repair.what, repair.scrub) {
        (What::Tables, _) => RepairType::Tables,
        (What::Blocks, _) => RepairType::Blocks,
        (What::Refs, _) => RepairType::BlockRefs,
        (What::Counters, _) => RepairType::Counters,
        (What::Rebalance, _) => RepairType::Rebalance,
        (What::Compact, _) => RepairType::Compact,
        (What::Scrub, Scrub::Start) => RepairType::Scrub(ScrubCommand::Start),
        (What::Scrub, Scrub::Pause) => RepairType::Scrub(ScrubCommand::Pause),
        (What::Scrub, Scrub::Resume) => RepairType::Scrub(ScrubCommand::Resume),
        (What::Scrub, Scrub::Cancel) => RepairType::Scrub(ScrubCommand::Cancel),
    };
    let request = LaunchRepairOperation { repair_type };
    let (json, answers) = post::<()>(client, Endpoint::LaunchRepairOperation, &repair.on, &request).await?;
    let text = format!("Started on {} nodes; follow it with `hayloft worker list`.\n", answers.success.len());
    Ok(report(json, text, &answers))
}

pub(super) async fn worker(client: &Client, command: &WorkerCommand) -> anyhow::Result<Report> {
    match command {
        WorkerCommand::List { busy, errors, on } => {
            let request = ListWorkersRequest { busy_only: *busy, error_only: *errors };
            let (json, answers) = post::<Vec<Worker>>(client, Endpoint::ListWorkers, on, &request).await?;
            let mut table = Table::new(&[
                "Node",
                "Worker",
                "State",
                ">Queue",
                "Progress",
                ">Left",
                ">Errors",
                "Last error",
            ]);
            for (node, workers) in &answers.success {
                for worker in workers {
                    table.row(line(&node.short(), worker));
                }
            }
            Ok(report(json, table.to_string(), &answers))
        }
        WorkerCommand::Info { name, on } => {
            let request = ListWorkersRequest::default();
            let (json, answers) = post::<Vec<Worker>>(client, Endpoint::ListWorkers, on, &request).await?;
            let mut text = String::new();
            for (node, workers) in &answers.success {
                for worker in workers.iter().filter(|worker| worker.name == *name) {
                    text += &details(&node.short(), worker);
                }
            }
            anyhow::ensure!(!text.is_empty(), "no node has a worker `{name}`: see `hayloft worker list`");
            Ok(report(json, text, &answers))
        }
        WorkerCommand::Get { variable, on } => {
            let request = GetWorkerVariable { variable: variable.clone() };
            let (json, answers) = post(client, Endpoint::GetWorkerVariable, on, &request).await?;
            Ok(report(json, variables(&answers), &answers))
        }
        WorkerCommand::Set { variable, value, on } => {
            let request = SetWorkerVariable { variable: variable.clone(), value: value.clone() };
            let (json, answers) = post(client, Endpoint::SetWorkerVariable, on, &request).await?;
            Ok(report(json, variables(&answers), &answers))
        }
    }
}

fn state(worker: &Worker) -> &'static str {
    match worker.state {
        WorkerState::Busy => "busy",
        WorkerState::Idle => "idle",
        WorkerState::Paused => "paused",
    }
}

fn line(node: &str, worker: &Worker) -> [String; 8] {
    let last = worker.last_error.as_ref();
    [
        node.to_owned(),
        worker.name.clone(),
        state(worker).into(),
        worker.queue_length.map(|queue| queue.to_string()).unwrap_or_default(),
        worker.progress.clone().unwrap_or_default(),
        worker.eta_secs.map(|secs| format!("{secs} s")).unwrap_or_default(),
        worker.errors.to_string(),
        last.map(|error| format!("{} ({})", error.message, ago(error.secs_ago))).unwrap_or_default(),
    ]
}

fn details(node: &str, worker: &Worker) -> String {
    let mut text = format!("{node}: {}, {}\n", worker.name, state(worker));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  done:        {} items, {}", worker.items, human_size(worker.bytes));
    if let Some(progress) = &worker.progress {
        let left = worker.eta_secs.map(|secs| format!(", {secs} s left")).unwrap_or_default();
        let _ = writeln!(text, "  progress:    {progress}{left}");
    }
    if let Some(queue) = worker.queue_length {
        let _ = writeln!(text, "  queue:       {queue}");
    }
    if let Some(tranquility) = worker.tranquility {
        let _ = writeln!(text, "  tranquility: {tranquility}");
    }
    let _ = writeln!(text, "  errors:      {} ({} in a row)", worker.errors, worker.consecutive_errors);
    if let Some(error) = &worker.last_error {
        let _ = writeln!(text, "  last error:  {}: {}", ago(error.secs_ago), error.message);
    }
    for note in &worker.freeform {
        let _ = writeln!(text, "  {note}");
    }
    text
}

fn variables(answers: &PerNode<BTreeMap<String, String>>) -> String {
    let mut table = Table::new(&["Node", "Variable", "Value"]);
    for (node, values) in &answers.success {
        for (name, value) in values {
            table.row([node.short(), name.clone(), value.clone()]);
        }
    }
    table.to_string()
}

pub(super) async fn block(client: &Client, command: &BlockCommand) -> anyhow::Result<Report> {
    match command {
        BlockCommand::Errors { on } => {
            let (json, answers) = get::<Vec<BlockError>>(client, Endpoint::ListBlockErrors, on).await?;
            let mut table =
                Table::new(&["Node", "Block", ">References", ">Errors", "Last try", ">Next try", "Error"]);
            for (node, errors) in &answers.success {
                for error in errors {
                    table.row([
                        node.short(),
                        error.block_hash.to_string(),
                        error.refcount.to_string(),
                        error.error_count.to_string(),
                        ago(error.last_try_secs_ago),
                        format!("in {} s", error.next_try_in_secs),
                        error.last_error.clone(),
                    ]);
                }
            }
            let text =
                if table.is_empty() { "No block is in trouble.\n".to_owned() } else { table.to_string() };
            Ok(report(json, text, &answers))
        }
        BlockCommand::Info { hash, on } => {
            let request = GetBlockInfo { block_hash: *hash };
            let (json, answers) = post::<BlockDetails>(client, Endpoint::GetBlockInfo, on, &request).await?;
            let mut text = String::new();
            for (node, info) in &answers.success {
                text += &block_details(&node.short(), info);
            }
            Ok(report(json, text, &answers))
        }
        BlockCommand::Retry { all, hashes, on } => {
            let request = RetryBlockResync { all: *all, block_hashes: hashes.clone() };
            let (json, answers) = post::<Retried>(client, Endpoint::RetryBlockResync, on, &request).await?;
            let count: u64 = answers.success.values().map(|retried| retried.count).sum();
            Ok(report(json, format!("{count} blocks are tried again now.\n"), &answers))
        }
        BlockCommand::Purge { hashes, yes } => {
            let what = format!("delete every object that needs one of {} blocks", hashes.len());
            confirm(*yes, &what)?;
            let json = client.post(Endpoint::PurgeBlocks, &[], hashes).await?;
            let done: PurgedBlocks = read(Endpoint::PurgeBlocks, &json)?;
            let text = format!(
                "{} blocks given up: {} objects deleted, {} uploads aborted.\n",
                done.blocks_purged, done.objects_deleted, done.uploads_deleted
            );
            Ok(Report::new(json, text))
        }
    }
}

fn block_details(node: &str, info: &BlockDetails) -> String {
    let place = match &info.disk {
        Some(disk) if info.readable => format!("{} bytes on {disk}", info.stored_bytes),
        Some(disk) => format!("{} bytes on {disk}, which cannot be read", info.stored_bytes),
        None => "no copy".into(),
    };
    let mut text = format!("{node}: {place}; {} live references\n", info.refcount);
    for version in &info.versions {
        let deleted = if version.ref_deleted { " (deleted)" } else { "" };
        let owner = match &version.owner {
            BlockOwner::Object { bucket, key, .. } => format!("object {key} of bucket {bucket}"),
            BlockOwner::Part { bucket, key, upload, number, .. } => {
                format!("part {number} of upload {upload} of {key} in bucket {bucket}")
            }
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  version {}{deleted}: {owner}", version.version_id);
    }
    text
}

pub(super) async fn meta(client: &Client, command: &MetaCommand) -> anyhow::Result<Report> {
    let on = match command {
        MetaCommand::Snapshot { on } => on,
        MetaCommand::Trust { node, yes } => {
            confirm(*yes, &format!("take what {node} holds for complete, whatever it lacks"))?;
            let on = OnNodes { node: Some(node.clone()) };
            let request = LaunchRepairOperation { repair_type: RepairType::TrustLost };
            let (json, answers) = post::<()>(client, Endpoint::LaunchRepairOperation, &on, &request).await?;
            return Ok(report(json, "It serves what it has.\n".into(), &answers));
        }
    };
    let (json, answers) =
        post::<Snapshot>(client, Endpoint::CreateMetadataSnapshot, on, &serde_json::json!({})).await?;
    let mut table = Table::new(&["Node", "Snapshot", ">Size", ">Entries"]);
    for (node, taken) in &answers.success {
        table.row([node.short(), taken.path.clone(), human_size(taken.bytes), taken.entries.to_string()]);
    }
    Ok(report(json, table.to_string(), &answers))
}

pub(super) async fn verify(client: &Client, verify: &Verify) -> anyhow::Result<Report> {
    let before = get::<Verification>(client, Endpoint::GetVerification, &verify.on).await?.1;
    let request = LaunchRepairOperation { repair_type: RepairType::Verify };
    let (json, started) = post::<()>(client, Endpoint::LaunchRepairOperation, &verify.on, &request).await?;
    if !started.error.is_empty() {
        return Ok(report(json, String::new(), &started));
    }
    let round = |node: &NodeId| before.success.get(node).map_or(0, |findings| findings.round);
    loop {
        tokio::time::sleep(PAUSE).await;
        let (json, answers) = get::<Verification>(client, Endpoint::GetVerification, &verify.on).await?;
        let running =
            |(node, findings): (&NodeId, &Verification)| findings.running || findings.round <= round(node);
        if answers.success.iter().any(running) {
            continue;
        }
        let mut report = report(json, found(&answers), &answers);
        let wrong: u64 = answers.success.values().flat_map(|findings| findings.wrong.values()).sum();
        if wrong > 0 && report.refusal.is_none() {
            report.refusal = Some(format!("{wrong} things are wrong; see above"));
        }
        return Ok(report);
    }
}

fn found(answers: &PerNode<Verification>) -> String {
    let mut table = Table::new(&["Node", ">Rows", ">References", ">Blocks", ">Bytes", ">Wrong", ">Pending"]);
    let mut kinds: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut samples = Vec::new();
    for (node, findings) in &answers.success {
        table.row([
            node.short(),
            findings.rows.to_string(),
            findings.references.to_string(),
            findings.blocks.to_string(),
            human_size(findings.block_bytes),
            findings.wrong.values().sum::<u64>().to_string(),
            findings.pending.values().sum::<u64>().to_string(),
        ]);
        for (what, found) in [("wrong", &findings.wrong), ("pending", &findings.pending)] {
            for (kind, count) in found {
                *kinds.entry((what, kind)).or_default() += count;
            }
        }
        samples.extend(findings.samples.iter().map(|sample| format!("  {}: {sample}\n", node.short())));
    }
    let mut text = table.to_string();
    for ((what, kind), count) in kinds {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what}: {kind}: {count}");
    }
    text + &samples.concat()
}
