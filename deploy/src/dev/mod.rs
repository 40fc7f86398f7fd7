//! `hayloft dev`: a whole cluster on this machine, as separate processes on loopback ports.
//!
//! Everything is kept in one directory: secrets, configuration, data, logs, and `cluster.json`, which says how
//! to reach the cluster. A second start on the same directory finds its data and its ports again. A daemon
//! that ends is reported, never restarted: tests kill daemons and start them again from their configuration.
//! Ctrl-C, SIGTERM or SIGHUP stop everything. If this process itself is killed with SIGKILL the daemons go on;
//! the next start on the directory stops them first.

mod plan;
mod process;
mod provision;
mod settings;

use crate::cluster_file::{AdminAccess, ClusterFile, Front, Process, S3Access, write_private};
use anyhow::Context as _;
use clap::Args;
use hayloft_common::env::Env;
use plan::{Node, Role, State};
use process::Fleet;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Options of `hayloft dev`. The numbers hold for a new directory; later they must be the same or left out.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// Directory of the cluster: data, configuration, secrets, logs
    #[arg(long, default_value = "./hayloft-dev", value_name = "DIR")]
    pub dir: PathBuf,
    /// Storage nodes [default: 3]
    #[arg(long, value_name = "N")]
    pub storage: Option<usize>,
    /// Zones that the storage nodes are spread over [default: 3, or the number of storage nodes if less]
    #[arg(long, value_name = "Z")]
    pub zones: Option<usize>,
    /// Storage nodes more, which run without a role in the first layout [default: 0]
    #[arg(long, value_name = "K")]
    pub spares: Option<usize>,
    /// Data directories of each storage node, as if each were a disk [default: 1]
    #[arg(long, value_name = "D")]
    pub disks: Option<usize>,
    /// Let storage nodes be reached through ports of their own, where another program must listen and pass
    /// everything on (so it can cut links): DIR/fronts.json names them before the daemons start
    #[arg(long)]
    pub fronts: bool,
    /// File added to the configuration of each storage node, such as shorter delays; for a new directory
    #[arg(long, value_name = "FILE")]
    pub storage_toml: Vec<PathBuf>,
    /// File added to the configuration of each gateway; for a new directory
    #[arg(long, value_name = "FILE")]
    pub gateway_toml: Vec<PathBuf>,
    /// Gateways [default: 1]
    #[arg(long, value_name = "G")]
    pub gateways: Option<usize>,
    /// Copies of each datum: 1, 2, 3 or 5 [default: 3, or as many as there are storage nodes if less]
    #[arg(long, value_name = "R")]
    pub replication: Option<usize>,
    /// Write how to reach the cluster to this file too, once it is ready (always: DIR/cluster.json)
    // The id is that of the global option: see `ctl::Connection`.
    #[arg(id = "json", long = "json", value_name = "FILE")]
    pub json: Option<String>,
    /// S3 port of the first gateway; the next gateways take the following ports [default: any free ports]
    #[arg(long, value_name = "PORT")]
    pub s3_port: Option<u16>,
    /// Log level or filter of the daemons, such as debug or info,hayloft_proto=debug; for this run
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Let the clock of a daemon be wrong, as NAME=MILLISECONDS (gateway1=-5000); may be repeated; for this run
    #[arg(long = "clock-offset-ms", value_name = "NAME=MS", value_parser = parse_offset)]
    pub clock_offsets: Vec<(String, i64)>,
}

fn parse_offset(text: &str) -> Result<(String, i64), String> {
    let (name, ms) = text.split_once('=').ok_or("write NAME=MILLISECONDS, such as gateway1=-5000")?;
    let ms = ms.parse().map_err(|_| format!("`{ms}` is not a number of milliseconds"))?;
    Ok((name.to_owned(), ms))
}

/// The signals that end the cluster.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self { signals: [interrupt?, terminate?, hangup?] })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        // Biased: any of them ends the wait, the order does not matter.
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Runs the cluster until a signal comes.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let env = Env::real();
    let dir = prepare_dir(&options.dir)?;
    let _lock = lock(&dir)?;
    process::stop_leftovers(&dir).await?;
    let file = options.json.as_ref().map(std::path::absolute).transpose().context("--json")?;
    for stale in file.iter().chain([&dir.join("cluster.json")]) {
        remove_if_there(stale)?;
    }
    let mut state = State::open(&dir, options, &env)?;
    for (name, _) in &options.clock_offsets {
        anyhow::ensure!(
            state.nodes.iter().any(|node| node.name == *name),
            "--clock-offset-ms: there is no daemon `{name}`"
        );
    }
    let mut stop = Stop::new()?;
    let mut fleet = Fleet::new(&env, &dir);
    // Biased: a signal comes first; `serve` is dropped, which leaves the daemons to `stop`.
    let outcome = tokio::select! {
        biased;
        () = stop.wait() => Ok(()),
        outcome = serve(&mut fleet, &mut state, options, &dir, file.as_deref()) => outcome,
    };
    eprintln!("Stopping the cluster; its data stays in {}.", dir.display());
    let stopped = fleet.stop().await;
    for stale in file.iter().chain([&dir.join("cluster.json")]) {
        remove_if_there(stale)?;
    }
    outcome.and(stopped)
}

/// Starts everything, makes it usable, and then reports daemons that end. Returns only on failure.
async fn serve(
    fleet: &mut Fleet,
    state: &mut State,
    options: &Options,
    dir: &Path,
    file: Option<&Path>,
) -> anyhow::Result<()> {
    let ids = provision::node_ids(state, dir).await?;
    announce_fronts(state, dir)?;
    for node in &state.nodes {
        let offset = options.clock_offsets.iter().find(|(name, _)| *name == node.name).map(|(_, ms)| *ms);
        fleet.start(node, options.log.as_deref(), offset)?;
    }
    provision::make_ready(fleet, state, &ids, dir).await?;
    let cluster = describe(fleet, state, &ids, dir)?;
    for path in file.into_iter().chain([dir.join("cluster.json").as_path()]) {
        cluster.write(path)?;
    }
    println!("{}", settings::show(&cluster, dir));
    loop {
        fleet.report_exit().await;
    }
}

/// Says where something must listen for the storage nodes, if they have fronts.
fn announce_fronts(state: &State, dir: &Path) -> anyhow::Result<()> {
    let fronts: Vec<Front> = state
        .storage()
        .filter_map(|node| {
            let front = format!("127.0.0.1:{}", node.front?);
            Some(Front { name: node.name.clone(), front, addr: format!("127.0.0.1:{}", node.port) })
        })
        .collect();
    let path = dir.join("fronts.json");
    if fronts.is_empty() {
        remove_if_there(&path)
    } else {
        write_private(&path, &serde_json::to_vec(&fronts)?)
    }
}

fn describe(fleet: &Fleet, state: &State, ids: &[String], dir: &Path) -> anyhow::Result<ClusterFile> {
    let key = state.key.as_ref().context("no key was made")?;
    let gateways: Vec<&Node> = state.gateways().collect();
    let first = gateways.first().context("the cluster has no gateway")?;
    let mut ids = ids.iter();
    let processes = state.nodes.iter().map(|node| Process {
        role: node.role.word().to_owned(),
        name: node.name.clone(),
        zone: node.zone.clone(),
        pid: fleet.pid(&node.name).unwrap_or(0),
        dir: dir.join(&node.name),
        addr: format!("127.0.0.1:{}", node.port),
        admin_addr: format!("127.0.0.1:{}", node.admin_port),
        node_id: if node.role == Role::Storage { ids.next().cloned() } else { None },
        spare: node.spare,
    });
    Ok(ClusterFile {
        s3: S3Access {
            endpoints: gateways.iter().map(|node| format!("http://127.0.0.1:{}", node.port)).collect(),
            region: state.region.clone(),
            access_key: key.id.clone(),
            secret_key: key.secret.clone(),
            bucket: state.bucket.clone(),
        },
        admin: AdminAccess {
            url: format!("http://127.0.0.1:{}", first.admin_port),
            token: state.admin_token.clone(),
        },
        processes: processes.collect(),
        config: state.nodes.iter().map(|node| (node.name.clone(), node.config(dir))).collect(),
    })
}

fn prepare_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make directory {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("cannot use directory {}", dir.display()))
}

/// Keeps a second `hayloft dev` out of the directory for as long as the file stays open.
fn lock(dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = dir.join("lock");
    write_if_missing(&path, b"")?;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another `hayloft dev` runs on {}: stop it, or choose another --dir", dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn write_if_missing(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if path.try_exists().with_context(|| format!("cannot look at {}", path.display()))? {
        return Ok(());
    }
    write_private(path, content)
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_cluster_is_kept_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("another `hayloft dev`"));
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn clock_offsets_parse() {
        assert_eq!(parse_offset("gateway1=-5000"), Ok(("gateway1".into(), -5000)));
        assert!(parse_offset("gateway1").is_err() && parse_offset("gateway1=soon").is_err());
    }
}
