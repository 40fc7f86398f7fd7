//! The file of a storage node. Keys that Garage has too keep its names and meaning.

use super::size::{de_option_size, de_size, format_size};
use super::{
    Check, ConfigError, File, Known, LogConfig, Peer, Problem, RpcSecret, Secret, Source, TraceConfig,
    WorkerSettings, load, parse, peer, process_env,
};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};

/// What a storage node needs to know. The capacity and zone of a node belong to the layout.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// The directory of the metadata engine, the node's identity and its copy of the layout.
    pub metadata_dir: PathBuf,
    /// The directories of blocks, one for each disk; at least one can be written.
    #[serde(deserialize_with = "de_data_dirs")]
    pub data_dir: Vec<DataDir>,
    /// Metadata writes are on stable storage before they are acknowledged. Off: a power cut may lose
    /// acknowledged writes.
    #[serde(default = "yes")]
    pub metadata_fsync: bool,
    /// The same for blocks.
    #[serde(default = "yes")]
    pub data_fsync: bool,
    /// Memory for cached metadata, in bytes: 8 MiB to 1 TiB.
    #[serde(default = "default_meta_cache", deserialize_with = "de_size")]
    pub meta_cache_size: u64,
    /// The cluster's secret as 64 hexadecimal digits; better in a file of its own.
    rpc_secret: Option<Secret>,
    /// A file that holds the secret.
    rpc_secret_file: Option<PathBuf>,
    /// The address for peers and gateways.
    #[serde(default = "default_rpc_bind")]
    pub rpc_bind_addr: String,
    /// `host:port` at which others reach this node; may be a DNS name. None: the bind address, if it is
    /// not a wildcard.
    #[serde(default)]
    pub rpc_public_addr: Option<String>,
    /// Nodes to dial at start; the rest is learned from them.
    #[serde(default)]
    pub bootstrap_peers: Vec<Peer>,
    /// Accept secrets in files that other users of this machine can read.
    #[serde(default)]
    pub allow_world_readable_secrets: bool,
    /// Health and metrics.
    #[serde(default)]
    pub admin: StorageAdmin,
    /// Background work.
    #[serde(default)]
    pub workers: WorkerSettings,
    /// Where metadata snapshots go; `snapshots` under `metadata_dir` if not given.
    #[serde(default)]
    pub metadata_snapshots_dir: Option<PathBuf>,
    /// Log lines.
    #[serde(default)]
    pub log: LogConfig,
    /// Export of traces.
    #[serde(default)]
    pub trace: TraceConfig,
    /// The secret, wherever it came from.
    #[serde(skip)]
    resolved_rpc_secret: Option<RpcSecret>,
}

/// One directory of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataDir {
    /// The directory, on a disk of its own.
    pub path: PathBuf,
    /// Bytes to use; weighs the disks of a node against each other. `None` only for a single directory
    /// or a read-only one.
    #[serde(default, deserialize_with = "de_option_size")]
    pub capacity: Option<u64>,
    /// Its blocks are read and moved away; nothing is written.
    #[serde(default)]
    pub read_only: bool,
}

/// The HTTP port for health and metrics.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageAdmin {
    /// The address; none: no such port.
    pub api_bind_addr: Option<String>,
    /// Who may read `/metrics`.
    metrics_token: Option<Secret>,
    /// A file that holds it.
    metrics_token_file: Option<PathBuf>,
    /// Refuse `/metrics` when no token is set.
    pub metrics_require_token: bool,
    #[serde(skip)]
    resolved_metrics_token: Option<Secret>,
}

impl Default for StorageAdmin {
    fn default() -> Self {
        Self {
            api_bind_addr: Some("127.0.0.1:3905".into()),
            metrics_token: None,
            metrics_token_file: None,
            metrics_require_token: false,
            resolved_metrics_token: None,
        }
    }
}

impl StorageAdmin {
    /// The token for `/metrics`, if one is set.
    pub fn metrics_token(&self) -> Option<&Secret> {
        self.resolved_metrics_token.as_ref()
    }
}

pub(super) fn yes() -> bool {
    true
}

fn default_meta_cache() -> u64 {
    32 << 20
}

fn default_rpc_bind() -> String {
    "[::]:3901".into()
}

/// A path, or a list of tables.
fn de_data_dirs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<DataDir>, D::Error> {
    struct Dirs;
    impl<'de> serde::de::Visitor<'de> for Dirs {
        type Value = Vec<DataDir>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a path, or a list of { path = …, capacity = … } or { path = …, read_only = true }")
        }

        fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Self::Value, E> {
            Ok(vec![DataDir { path: path.into(), capacity: None, read_only: false }])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
        }
    }
    d.deserialize_any(Dirs)
}

impl StorageConfig {
    /// Reads, checks and completes the file at `path`, with the variables of this process.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load(path, &process_env)
    }

    /// The same from `text`, without a file and without the environment: for simulators and tests.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        parse(text, &|_| None)
    }

    /// The smallest configuration, with every default: for simulators and tests.
    pub fn new(metadata_dir: &Path, data_dir: &Path, rpc_secret: RpcSecret) -> Self {
        Self {
            metadata_dir: metadata_dir.into(),
            data_dir: vec![DataDir { path: data_dir.into(), capacity: None, read_only: false }],
            metadata_fsync: true,
            data_fsync: true,
            meta_cache_size: default_meta_cache(),
            rpc_secret: None,
            rpc_secret_file: None,
            rpc_bind_addr: default_rpc_bind(),
            rpc_public_addr: None,
            bootstrap_peers: Vec::new(),
            allow_world_readable_secrets: false,
            admin: StorageAdmin::default(),
            workers: WorkerSettings::default(),
            metadata_snapshots_dir: None,
            log: LogConfig::default(),
            trace: TraceConfig::default(),
            resolved_rpc_secret: Some(rpc_secret),
        }
    }

    /// Where metadata snapshots go.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.metadata_snapshots_dir.clone().unwrap_or_else(|| self.metadata_dir.join("snapshots"))
    }

    /// The cluster's secret.
    pub fn rpc_secret(&self) -> &RpcSecret {
        self.resolved_rpc_secret.as_ref().expect("loading refuses a file without a secret")
    }

    fn check_data_dirs(&self, check: &mut Check<'_>) {
        if self.data_dir.is_empty() {
            check.fail("data_dir", "give at least one directory".into());
        } else if self.data_dir.iter().all(|dir| dir.read_only) {
            check.fail("data_dir", "every directory is read-only: new blocks have no place".into());
        }
        for (i, dir) in self.data_dir.iter().enumerate() {
            let path = dir.path.display();
            if dir.path.as_os_str().is_empty() {
                check.fail("data_dir", "a directory's path is empty".into());
            }
            if self.data_dir[..i].iter().any(|other| other.path == dir.path) {
                check.fail("data_dir", format!("{path} is given twice"));
            }
            if dir.path == self.metadata_dir {
                check.fail("data_dir", format!("{path} is also `metadata_dir`: give each its own directory"));
            }
            if dir.read_only && dir.capacity.is_some() {
                check.fail("data_dir", format!("{path} is read-only: leave its capacity out"));
            }
            if dir.capacity == Some(0) {
                check.fail("data_dir", format!("{path} has capacity 0: say read_only = true to empty it"));
            }
            if self.data_dir.len() > 1 && !dir.read_only && dir.capacity.is_none() {
                check.fail(
                    "data_dir",
                    format!("{path} needs a capacity, since there are several directories"),
                );
            }
        }
    }
}

impl File for StorageConfig {
    fn known() -> Known {
        let mut root = Known::leaf::<Self>();
        root.sections = vec![
            ("data_dir", Known::leaf::<DataDir>()),
            ("admin", Known::leaf::<StorageAdmin>()),
            ("workers", Known::leaf::<WorkerSettings>()),
            ("log", Known::leaf::<LogConfig>()),
            ("trace", Known::leaf::<TraceConfig>()),
        ];
        root
    }

    fn holds_secret(&self) -> bool {
        self.rpc_secret.is_some() || self.admin.metrics_token.is_some()
    }

    fn allow_world_readable(&self) -> bool {
        self.allow_world_readable_secrets
    }

    fn complete(&mut self, check: &mut Check<'_>) {
        if self.metadata_dir.as_os_str().is_empty() {
            check.fail("metadata_dir", "the path is empty".into());
        }
        self.check_data_dirs(check);
        check.range("meta_cache_size", self.meta_cache_size, 8 << 20, 1 << 40, format_size);
        check.bind_addr("rpc_bind_addr", &self.rpc_bind_addr);
        if let Some(addr) = &self.rpc_public_addr
            && !peer::is_host_port(addr)
        {
            check.fail("rpc_public_addr", format!("`{addr}` is not HOST:PORT"));
        }
        if let Some(addr) = &self.admin.api_bind_addr {
            check.bind_addr("admin.api_bind_addr", addr);
        }
        self.workers.check(check);
        self.log.check(check);
        self.trace.check(check);
        self.resolved_rpc_secret =
            check.rpc_secret(self.rpc_secret.as_ref(), self.rpc_secret_file.as_deref());
        let source = Source {
            key: "metrics_token",
            env: "HAYLOFT_METRICS_TOKEN",
            inline: self.admin.metrics_token.as_ref(),
            file: self.admin.metrics_token_file.as_deref(),
        };
        self.admin.resolved_metrics_token = check.secret("admin.metrics_token", &source).map(Secret::new);
    }
}
