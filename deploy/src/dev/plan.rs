//! What a dev cluster consists of: decided once for a directory, kept in `state.json`, and written out as
//! configuration files and secrets.
//!
//! Configuration files are written only if they are missing: what a person changes in one stays.

use super::{Options, write_if_missing};
use crate::cluster_file::write_private;
use anyhow::Context as _;
use hayloft_common::env::Env;
use hayloft_common::limits::REPLICATION_FACTORS;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

/// The form of `state.json` that this program writes and reads.
const FORMAT: u32 = 1;
/// The region of a dev cluster.
const REGION: &str = "hayloft";
/// The bucket that is made.
const BUCKET: &str = "dev";
/// What each storage node offers, in bytes.
pub(super) const CAPACITY: u64 = 10 << 30;
/// Ports are drawn from here: below those that systems give to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The two kinds of daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    Storage,
    Gateway,
}

impl Role {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Gateway => "gateway",
        }
    }

    /// The name of its program.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Storage => "hayloft-storage",
            Self::Gateway => "hayloft-gateway",
        }
    }
}

/// One daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) zone: String,
    /// Storage: for peers. Gateway: for S3.
    pub(super) port: u16,
    pub(super) admin_port: u16,
    /// Storage: where others are told to reach it. Something else must listen there and pass everything on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) front: Option<u16>,
    /// Storage: it runs, but has no role in the first layout.
    #[serde(default)]
    pub(super) spare: bool,
}

impl Node {
    pub(super) fn config(&self, dir: &Path) -> PathBuf {
        dir.join(&self.name).join("config.toml")
    }

    pub(super) fn log(&self, dir: &Path) -> PathBuf {
        dir.join(&self.name).join("log")
    }

    /// Where others reach it.
    pub(super) fn public_port(&self) -> u16 {
        self.front.unwrap_or(self.port)
    }
}

/// The key that was made.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) secret: String,
}

/// Everything that a second start must find again.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct State {
    format: u32,
    pub(super) zones: usize,
    pub(super) replication: usize,
    /// Data directories of each storage node.
    #[serde(default = "one")]
    pub(super) disks: usize,
    pub(super) region: String,
    pub(super) bucket: String,
    pub(super) nodes: Vec<Node>,
    pub(super) key: Option<Key>,
    /// The bucket is there and the key may use it.
    pub(super) bucket_made: bool,
    #[serde(skip)]
    pub(super) admin_token: String,
}

fn one() -> usize {
    1
}

impl State {
    /// The state of `dir`, made if it is new; configuration and secrets are written, ports checked.
    pub(super) fn open(dir: &Path, options: &Options, env: &Env) -> anyhow::Result<Self> {
        let path = dir.join("state.json");
        let mut state = match std::fs::read(&path) {
            Ok(text) => {
                let state: Self = serde_json::from_slice(&text).with_context(|| {
                    format!("{} is not understood: was it made by another version?", path.display())
                })?;
                anyhow::ensure!(
                    state.format == FORMAT,
                    "{} has format {}, this program knows {FORMAT}: choose another --dir",
                    path.display(),
                    state.format
                );
                state.check_options(options)?;
                state.check_ports()?;
                state
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::new(options, env)?,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        for name in ["rpc_secret", "admin_token"] {
            write_if_missing(&dir.join(name), hex::encode(env.random_bytes::<32>()).as_bytes())?;
        }
        let token = dir.join("admin_token");
        let text =
            std::fs::read_to_string(&token).with_context(|| format!("cannot read {}", token.display()))?;
        text.trim().clone_into(&mut state.admin_token);
        for node in &state.nodes {
            let home = dir.join(&node.name);
            std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
            let more = match node.role {
                Role::Storage => &options.storage_toml,
                Role::Gateway => &options.gateway_toml,
            };
            write_if_missing(&node.config(dir), state.config_text(node, dir, more)?.as_bytes())?;
        }
        state.save(dir)?;
        Ok(state)
    }

    /// Writes `state.json`.
    pub(super) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        write_private(&dir.join("state.json"), &serde_json::to_vec_pretty(self)?)
    }

    fn new(options: &Options, env: &Env) -> anyhow::Result<Self> {
        let storage = options.storage.unwrap_or(3);
        let gateways = options.gateways.unwrap_or(1);
        let spares = options.spares.unwrap_or(0);
        let disks = options.disks.unwrap_or(1);
        let zones = options.zones.unwrap_or_else(|| storage.min(3));
        let fitting = |factor: &&usize| **factor <= storage.min(3);
        let replication =
            options.replication.or_else(|| REPLICATION_FACTORS.iter().rfind(fitting).copied()).unwrap_or(1);
        anyhow::ensure!((1..=100).contains(&storage), "--storage must be 1 to 100");
        anyhow::ensure!((1..=100).contains(&gateways), "--gateways must be 1 to 100");
        anyhow::ensure!((0..=100).contains(&spares), "--spares must be at most 100");
        anyhow::ensure!((1..=16).contains(&disks), "--disks must be 1 to 16");
        anyhow::ensure!(
            (1..=storage).contains(&zones),
            "--zones must be 1 to the number of storage nodes ({storage})"
        );
        anyhow::ensure!(
            REPLICATION_FACTORS.contains(&replication) && replication <= storage,
            "--replication must be one of {REPLICATION_FACTORS:?} and at most the number of storage nodes ({storage})"
        );
        let mut ports = Ports { held: Vec::new(), next: env.random_u64() };
        let mut nodes = Vec::new();
        for i in 0..storage + spares {
            let (port, admin_port) = (ports.any()?, ports.any()?);
            nodes.push(Node {
                role: Role::Storage,
                name: format!("storage{}", i + 1),
                zone: format!("zone{}", i % zones + 1),
                port,
                admin_port,
                front: if options.fronts { Some(ports.any()?) } else { None },
                spare: i >= storage,
            });
        }
        for i in 0..gateways {
            let port = match options.s3_port {
                Some(first) => ports.exactly(u16::try_from(i).ok().and_then(|i| first.checked_add(i)))?,
                None => ports.any()?,
            };
            nodes.push(Node {
                role: Role::Gateway,
                name: format!("gateway{}", i + 1),
                zone: format!("zone{}", i % zones + 1),
                port,
                admin_port: ports.any()?,
                front: None,
                spare: false,
            });
        }
        Ok(Self {
            format: FORMAT,
            zones,
            replication,
            disks,
            region: REGION.into(),
            bucket: BUCKET.into(),
            nodes,
            key: None,
            bucket_made: false,
            admin_token: String::new(),
        })
    }

    pub(super) fn storage(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role == Role::Storage)
    }

    /// The storage nodes that have a role in the first layout.
    pub(super) fn members(&self) -> impl Iterator<Item = &Node> {
        self.storage().filter(|node| !node.spare)
    }

    pub(super) fn gateways(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role == Role::Gateway)
    }

    /// Refuses options that say something else than the directory.
    fn check_options(&self, options: &Options) -> anyhow::Result<()> {
        let s3_port = self.gateways().next().map_or(0, |node| usize::from(node.port));
        for (name, asked, made) in [
            ("--storage", options.storage, self.members().count()),
            ("--spares", options.spares, self.storage().count() - self.members().count()),
            ("--disks", options.disks, self.disks),
            ("--zones", options.zones, self.zones),
            ("--gateways", options.gateways, self.gateways().count()),
            ("--replication", options.replication, self.replication),
            ("--s3-port", options.s3_port.map(usize::from), s3_port),
        ] {
            if let Some(asked) = asked.filter(|asked| *asked != made) {
                anyhow::bail!(
                    "{name} is {asked}, but this directory was made with {made}: leave it out, or choose another --dir"
                );
            }
        }
        let fronts = self.storage().any(|node| node.front.is_some());
        anyhow::ensure!(
            fronts || !options.fronts,
            "this directory was made without --fronts: leave it out, or choose another --dir"
        );
        Ok(())
    }

    fn check_ports(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            for port in [node.port, node.admin_port] {
                TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                    format!(
                        "port {port} of {} cannot be used: end the process that has it, or choose another --dir",
                        node.name
                    )
                })?;
            }
        }
        Ok(())
    }

    /// The configuration file of `node`, with the files `more` at its end.
    fn config_text(&self, node: &Node, dir: &Path, more: &[PathBuf]) -> anyhow::Result<String> {
        let home = dir.join(&node.name);
        let mut text = "# Written by `hayloft dev`, once: changes stay.\n".to_owned();
        let secret = quote(&dir.join("rpc_secret"))?;
        let peers: Vec<String> = self
            .storage()
            .filter(|peer| peer.name != node.name)
            .map(|peer| format!("\"127.0.0.1:{}\"", peer.public_port()))
            .collect();
        let peers = peers.join(", ");
        match node.role {
            Role::Storage => {
                let _ = writeln!(text, "metadata_dir = {}", quote(&home.join("meta"))?);
                let _ = writeln!(text, "data_dir = {}", self.data_dirs(&home)?);
                let _ = writeln!(text, "rpc_secret_file = {secret}");
                let _ = writeln!(text, "rpc_bind_addr = \"127.0.0.1:{}\"", node.port);
                let _ = writeln!(text, "rpc_public_addr = \"127.0.0.1:{}\"", node.public_port());
                let _ = writeln!(text, "bootstrap_peers = [{peers}]");
                let _ = writeln!(text, "\n[admin]\napi_bind_addr = \"127.0.0.1:{}\"", node.admin_port);
            }
            Role::Gateway => {
                let _ = writeln!(text, "zone = \"{}\"", node.zone);
                let _ = writeln!(text, "storage_peers = [{peers}]");
                let _ = writeln!(text, "rpc_secret_file = {secret}");
                let _ = writeln!(text, "\n[s3_api]\napi_bind_addr = \"127.0.0.1:{}\"", node.port);
                let _ = writeln!(text, "s3_region = \"{}\"", self.region);
                let _ = writeln!(text, "\n[admin]\napi_bind_addr = \"127.0.0.1:{}\"", node.admin_port);
                let _ = writeln!(text, "admin_token_file = {}", quote(&dir.join("admin_token"))?);
            }
        }
        for path in more {
            let added =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let _ = write!(text, "\n{}\n", added.trim_end());
        }
        Ok(text)
    }

    /// One directory as a path, several with their share of the node's capacity.
    fn data_dirs(&self, home: &Path) -> anyhow::Result<String> {
        if self.disks == 1 {
            return quote(&home.join("data"));
        }
        let share = CAPACITY / self.disks as u64;
        let dirs: Vec<String> = (1..=self.disks)
            .map(|i| {
                Ok(format!("{{ path = {}, capacity = {share} }}", quote(&home.join(format!("data{i}")))?))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(format!("[{}]", dirs.join(", ")))
    }
}

/// A path as a TOML text.
fn quote(path: &Path) -> anyhow::Result<String> {
    let text =
        path.to_str().with_context(|| format!("{} is not UTF-8: choose another --dir", path.display()))?;
    Ok(toml::Value::String(text.to_owned()).to_string())
}

/// Draws free ports. They stay bound until all are drawn, so that none is drawn twice.
struct Ports {
    held: Vec<TcpListener>,
    next: u64,
}

impl Ports {
    fn any(&mut self) -> anyhow::Result<u16> {
        let count = u64::from(PORTS.end - PORTS.start);
        for _ in 0..count {
            self.next = self.next.wrapping_add(1);
            let port = PORTS.start + (self.next % count) as u16;
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                self.held.push(listener);
                return Ok(port);
            }
        }
        anyhow::bail!("no port from {} to {} is free on 127.0.0.1", PORTS.start, PORTS.end)
    }

    fn exactly(&mut self, port: Option<u16>) -> anyhow::Result<u16> {
        let port = port.context("--s3-port is too high for that many gateways")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("S3 port {port} cannot be used: choose another --s3-port"))?;
        self.held.push(listener);
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::config::{GatewayConfig, StorageConfig};

    fn open(dir: &Path, options: &Options) -> anyhow::Result<State> {
        State::open(dir, options, &Env::real())
    }

    #[test]
    fn a_second_start_finds_the_same_nodes_ports_and_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { storage: Some(4), zones: Some(2), gateways: Some(2), ..Options::default() };
        let first = open(dir.path(), &options).unwrap();
        let second = open(dir.path(), &Options::default()).unwrap();
        assert_eq!(first.nodes, second.nodes);
        assert_eq!(first.admin_token, second.admin_token);
        assert_eq!(first.admin_token.len(), 64);
        let zones: Vec<_> = first.nodes.iter().map(|node| node.zone.as_str()).collect();
        assert_eq!(zones, ["zone1", "zone2", "zone1", "zone2", "zone1", "zone2"]);
        assert_eq!(first.replication, 3);
        let other = Options { storage: Some(5), ..Options::default() };
        let error = open(dir.path(), &other).err().unwrap().to_string();
        assert!(error.starts_with("--storage is 5, but this directory was made with 4"), "{error}");
    }

    #[test]
    fn the_configuration_files_are_accepted_by_the_daemons_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = open(dir.path(), &Options::default()).unwrap();
        for node in &state.nodes {
            let path = node.config(dir.path());
            match node.role {
                Role::Storage => {
                    let config = StorageConfig::load(&path).unwrap();
                    assert_eq!(config.bootstrap_peers.len(), 2);
                    assert_eq!(config.rpc_public_addr, Some(format!("127.0.0.1:{}", node.port)));
                }
                Role::Gateway => {
                    let config = GatewayConfig::load(&path).unwrap();
                    assert_eq!(config.storage_peers.len(), 3);
                    assert!(config.admin.admin_token().unwrap().matches(&state.admin_token));
                }
            }
        }
        let own = "# mine\n";
        std::fs::write(state.nodes[0].config(dir.path()), own).unwrap();
        open(dir.path(), &Options::default()).unwrap();
        assert_eq!(std::fs::read_to_string(state.nodes[0].config(dir.path())).unwrap(), own);
    }

    #[test]
    fn spares_disks_fronts_and_added_settings_reach_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let more = dir.path().join("more.toml");
        std::fs::write(&more, "[log]\nlevel = \"debug\"\n").unwrap();
        let options = Options {
            spares: Some(2),
            disks: Some(2),
            fronts: true,
            storage_toml: vec![more],
            ..Options::default()
        };
        let state = open(dir.path(), &options).unwrap();
        assert_eq!((state.storage().count(), state.members().count(), state.replication), (5, 3, 3));
        for node in state.storage() {
            let config = StorageConfig::load(&node.config(dir.path())).unwrap();
            assert_eq!((config.data_dir.len(), config.bootstrap_peers.len()), (2, 4));
            assert_eq!(config.data_dir[1].capacity, Some(CAPACITY / 2));
            let front = node.front.unwrap();
            assert_eq!(config.rpc_public_addr, Some(format!("127.0.0.1:{front}")));
            assert!(config.rpc_bind_addr.ends_with(&format!(":{}", node.port)) && front != node.port);
            assert_eq!(config.log.level, "debug");
        }
        let other = Options { spares: Some(1), ..Options::default() };
        assert!(open(dir.path(), &other).err().unwrap().to_string().starts_with("--spares is 1"));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = open(dir.path(), &Options::default()).unwrap();
        let port = state.nodes[1].admin_port;
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let error = open(dir.path(), &Options::default()).err().unwrap().to_string();
        assert!(error.contains(&format!("port {port} of storage2")), "{error}");
        let fresh = tempfile::tempdir().unwrap();
        let options = Options { s3_port: Some(port), ..Options::default() };
        let error = open(fresh.path(), &options).err().unwrap().to_string();
        assert!(error.contains(&format!("S3 port {port}")), "{error}");
    }

    #[test]
    fn impossible_numbers_are_refused_and_small_clusters_get_fitting_defaults() {
        let make = |options: &Options| State::new(options, &Env::real());
        let small = make(&Options { storage: Some(1), ..Options::default() }).unwrap();
        assert_eq!((small.zones, small.replication), (1, 1));
        for options in [
            Options { storage: Some(0), ..Options::default() },
            Options { gateways: Some(0), ..Options::default() },
            Options { zones: Some(4), ..Options::default() },
            Options { replication: Some(4), storage: Some(6), ..Options::default() },
            Options { replication: Some(5), ..Options::default() },
        ] {
            assert!(make(&options).is_err(), "{options:?}");
        }
    }
}
