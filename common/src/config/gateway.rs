//! The file of a gateway. Keys that Garage has too keep its names and meaning.

use super::size::{de_duration, de_usize, format_duration, format_size};
use super::{
    Check, ConfigError, File, Known, LogConfig, Peer, Problem, RpcSecret, Secret, Source, TraceConfig, load,
    parse, process_env,
};
use crate::layout::ConsistencyMode;
use crate::limits::{DEFAULT_BLOCK_SIZE, DEFAULT_INLINE_MAX, MAX_BLOCK_SIZE, MAX_INLINE};
use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a gateway needs to know. It keeps no state: two gateways may have the same file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// The zone (site) it stands in: copies there are preferred. None: the nearest by round trip.
    #[serde(default)]
    pub zone: Option<String>,
    /// Storage nodes to dial at start; the rest is learned from them. At least one.
    pub storage_peers: Vec<Peer>,
    /// The cluster's secret as 64 hexadecimal digits; better in a file of its own.
    rpc_secret: Option<Secret>,
    /// A file that holds the secret.
    rpc_secret_file: Option<PathBuf>,
    /// Where the gateway keeps its key, so that its id stays the same. None: a new one at each start.
    #[serde(default)]
    pub identity_file: Option<PathBuf>,
    /// Bytes of a block of new objects, before compression: 64 KiB to 16 MiB.
    #[serde(default = "default_block_size", deserialize_with = "de_usize")]
    pub block_size: usize,
    /// Objects up to this many bytes travel inside their metadata row: 0 to 256 KiB, at most a block.
    #[serde(default = "default_inline_max", deserialize_with = "de_usize")]
    pub inline_max: usize,
    /// Compression of blocks of new objects.
    #[serde(default)]
    pub compression_level: Compression,
    /// Bytes of blocks in memory for all requests together; uploads and downloads wait beyond it.
    /// At least 8 blocks.
    #[serde(default = "default_block_ram", deserialize_with = "de_usize")]
    pub block_ram_buffer_max: usize,
    /// How many copies must answer.
    #[serde(default)]
    pub consistency_mode: ConsistencyMode,
    /// Accept secrets in files that other users of this machine can read.
    #[serde(default)]
    pub allow_world_readable_secrets: bool,
    /// The S3 port.
    #[serde(default)]
    pub s3_api: S3ApiConfig,
    /// The admin port.
    #[serde(default)]
    pub admin: GatewayAdmin,
    /// Bounds on what clients can ask for, on every HTTP port.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Caches.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Log lines.
    #[serde(default)]
    pub log: LogConfig,
    /// Export of traces.
    #[serde(default)]
    pub trace: TraceConfig,
    #[serde(skip)]
    resolved_rpc_secret: Option<RpcSecret>,
}

/// The S3 port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3ApiConfig {
    /// The address.
    pub api_bind_addr: String,
    /// The region that signatures name.
    pub s3_region: String,
    /// Other regions that signatures may name.
    pub extra_regions: Vec<String>,
    /// `.s3.example.org`: a host `BUCKET.s3.example.org` names a bucket. None: only paths name buckets.
    pub root_domain: Option<String>,
    /// PEM file of the certificate chain; the files are read again when they change. None: plain HTTP.
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its private key.
    pub tls_key: Option<PathBuf>,
}

impl Default for S3ApiConfig {
    fn default() -> Self {
        Self {
            api_bind_addr: "[::]:3900".into(),
            s3_region: "hayloft".into(),
            extra_regions: vec!["us-east-1".into()],
            root_domain: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}

/// The admin port: health, metrics, and the admin interface that the CLI uses.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayAdmin {
    /// The address; none: no such port.
    pub api_bind_addr: Option<String>,
    /// The master token: full rights. None: only tokens made through the interface work.
    admin_token: Option<Secret>,
    /// A file that holds it.
    admin_token_file: Option<PathBuf>,
    /// Who may read `/metrics`.
    metrics_token: Option<Secret>,
    /// A file that holds it.
    metrics_token_file: Option<PathBuf>,
    /// Refuse `/metrics` when no token is set.
    pub metrics_require_token: bool,
    #[serde(skip)]
    resolved_admin_token: Option<Secret>,
    #[serde(skip)]
    resolved_metrics_token: Option<Secret>,
}

impl Default for GatewayAdmin {
    fn default() -> Self {
        Self {
            api_bind_addr: Some("127.0.0.1:3903".into()),
            admin_token: None,
            admin_token_file: None,
            metrics_token: None,
            metrics_token_file: None,
            metrics_require_token: false,
            resolved_admin_token: None,
            resolved_metrics_token: None,
        }
    }
}

impl GatewayAdmin {
    /// The master token, if one is set.
    pub fn admin_token(&self) -> Option<&Secret> {
        self.resolved_admin_token.as_ref()
    }

    /// The token for `/metrics`, if one is set.
    pub fn metrics_token(&self) -> Option<&Secret> {
        self.resolved_metrics_token.as_ref()
    }
}

/// Bounds on what clients can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of a request's line and headers: 8 KiB to 1 MiB.
    #[serde(deserialize_with = "de_usize")]
    pub max_header_size: usize,
    /// From the first byte of a request (or the connection) to the end of its headers.
    #[serde(deserialize_with = "de_duration")]
    pub header_timeout: Duration,
    /// Between two pieces of a request's body.
    #[serde(deserialize_with = "de_duration")]
    pub body_timeout: Duration,
    /// An idle connection is closed.
    #[serde(deserialize_with = "de_duration")]
    pub idle_timeout: Duration,
    /// Requests under way at once; beyond it 503 SlowDown is answered.
    pub max_concurrent_requests: usize,
    /// Connections open at once; beyond it new ones wait.
    pub max_connections: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_header_size: 64 << 10,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_mins(2),
            max_concurrent_requests: 1024,
            max_connections: 4096,
        }
    }
}

/// Caches of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Keys, buckets and aliases kept.
    pub control_entries: usize,
    /// How old one may be before it is read again: up to 60 s, the bound on how long a revoked right can
    /// still work when no word of the change comes through.
    #[serde(deserialize_with = "de_duration")]
    pub control_max_age: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { control_entries: 10_000, control_max_age: Duration::from_secs(30) }
    }
}

/// zstd's level for blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Blocks travel and rest as they are.
    None,
    /// −99 (fast) to 22 (small); 0 is zstd's own choice.
    Level(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Level(1)
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Level;
        impl de::Visitor<'_> for Level {
            type Value = Compression;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a level from -99 to 22, or \"none\"")
            }

            fn visit_i64<E: de::Error>(self, level: i64) -> Result<Compression, E> {
                let out = || E::invalid_value(de::Unexpected::Signed(level), &self);
                i32::try_from(level)
                    .ok()
                    .filter(|level| (-99..=22).contains(level))
                    .map(Compression::Level)
                    .ok_or_else(out)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Compression, E> {
                match text {
                    "none" => Ok(Compression::None),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        d.deserialize_any(Level)
    }
}

fn default_block_size() -> usize {
    DEFAULT_BLOCK_SIZE
}

fn default_inline_max() -> usize {
    DEFAULT_INLINE_MAX
}

fn default_block_ram() -> usize {
    128 << 20
}

impl GatewayConfig {
    /// Reads, checks and completes the file at `path`, with the variables of this process.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load(path, &process_env)
    }

    /// The same from `text`, without a file and without the environment: for simulators and tests.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        parse(text, &|_| None)
    }

    /// The smallest configuration, with every default: for simulators and tests.
    pub fn new(storage_peers: Vec<Peer>, rpc_secret: RpcSecret) -> Self {
        Self {
            zone: None,
            storage_peers,
            rpc_secret: None,
            rpc_secret_file: None,
            identity_file: None,
            block_size: default_block_size(),
            inline_max: default_inline_max(),
            compression_level: Compression::default(),
            block_ram_buffer_max: default_block_ram(),
            consistency_mode: ConsistencyMode::default(),
            allow_world_readable_secrets: false,
            s3_api: S3ApiConfig::default(),
            admin: GatewayAdmin::default(),
            limits: LimitsConfig::default(),
            cache: CacheConfig::default(),
            log: LogConfig::default(),
            trace: TraceConfig::default(),
            resolved_rpc_secret: Some(rpc_secret),
        }
    }

    /// The cluster's secret.
    pub fn rpc_secret(&self) -> &RpcSecret {
        self.resolved_rpc_secret.as_ref().expect("loading refuses a file without a secret")
    }

    fn check_sizes(&self, check: &mut Check<'_>) {
        let show = |bytes: usize| format_size(bytes as u64);
        check.range("block_size", self.block_size, 64 << 10, MAX_BLOCK_SIZE, show);
        check.range("inline_max", self.inline_max, 0, MAX_INLINE.min(self.block_size), show);
        let most = usize::try_from(1_u64 << 40).unwrap_or(usize::MAX);
        check.range("block_ram_buffer_max", self.block_ram_buffer_max, 8 * self.block_size, most, show);
        let limits = &self.limits;
        check.range("limits.max_header_size", limits.max_header_size, 8 << 10, 1 << 20, show);
        for (path, value) in [
            ("limits.max_concurrent_requests", limits.max_concurrent_requests),
            ("limits.max_connections", limits.max_connections),
            ("cache.control_entries", self.cache.control_entries),
        ] {
            check.range(path, value, 1, 10_000_000, |value| value.to_string());
        }
        for (path, value) in [
            ("limits.header_timeout", limits.header_timeout),
            ("limits.body_timeout", limits.body_timeout),
            ("limits.idle_timeout", limits.idle_timeout),
        ] {
            check.range(path, value, Duration::from_secs(1), Duration::from_hours(1), format_duration);
        }
        let (min, max) = (Duration::ZERO, Duration::from_mins(1));
        check.range("cache.control_max_age", self.cache.control_max_age, min, max, format_duration);
    }

    fn check_s3(&self, check: &mut Check<'_>) {
        let s3 = &self.s3_api;
        check.bind_addr("s3_api.api_bind_addr", &s3.api_bind_addr);
        let region_ok = |region: &str| {
            !region.is_empty()
                && region.len() <= 64
                && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !region_ok(&s3.s3_region) {
            check.fail(
                "s3_api.s3_region",
                format!("`{}` is not a region: letters, digits, - and _", s3.s3_region),
            );
        }
        for region in s3.extra_regions.iter().filter(|region| !region_ok(region)) {
            check.fail(
                "s3_api.extra_regions",
                format!("`{region}` is not a region: letters, digits, - and _"),
            );
        }
        if let Some(domain) = &s3.root_domain
            && domain.trim_matches('.').is_empty()
        {
            check.fail(
                "s3_api.root_domain",
                "the domain is empty: leave it out for path-style access only".into(),
            );
        }
        match (&s3.tls_cert, &s3.tls_key) {
            (Some(_), None) => check.fail("s3_api.tls_cert", "`tls_key` is missing: TLS needs both".into()),
            (None, Some(_)) => check.fail("s3_api.tls_key", "`tls_cert` is missing: TLS needs both".into()),
            _ => {}
        }
    }
}

impl File for GatewayConfig {
    fn known() -> Known {
        let mut root = Known::leaf::<Self>();
        root.sections = vec![
            ("s3_api", Known::leaf::<S3ApiConfig>()),
            ("admin", Known::leaf::<GatewayAdmin>()),
            ("limits", Known::leaf::<LimitsConfig>()),
            ("cache", Known::leaf::<CacheConfig>()),
            ("log", Known::leaf::<LogConfig>()),
            ("trace", Known::leaf::<TraceConfig>()),
        ];
        root
    }

    fn holds_secret(&self) -> bool {
        self.rpc_secret.is_some() || self.admin.admin_token.is_some() || self.admin.metrics_token.is_some()
    }

    fn allow_world_readable(&self) -> bool {
        self.allow_world_readable_secrets
    }

    fn complete(&mut self, check: &mut Check<'_>) {
        if self.zone.as_deref().is_some_and(|zone| zone.trim().is_empty()) {
            check.fail("zone", "the name is empty: leave it out to prefer the nearest copy".into());
        }
        if self.storage_peers.is_empty() {
            check.fail("storage_peers", "give at least one storage node, as \"HOST:PORT\"".into());
        }
        self.check_sizes(check);
        self.check_s3(check);
        if let Some(addr) = &self.admin.api_bind_addr {
            check.bind_addr("admin.api_bind_addr", addr);
        }
        self.log.check(check);
        self.trace.check(check);
        self.resolved_rpc_secret =
            check.rpc_secret(self.rpc_secret.as_ref(), self.rpc_secret_file.as_deref());
        let admin = &mut self.admin;
        let source = Source {
            key: "admin_token",
            env: "HAYLOFT_ADMIN_TOKEN",
            inline: admin.admin_token.as_ref(),
            file: admin.admin_token_file.as_deref(),
        };
        admin.resolved_admin_token = check.secret("admin.admin_token", &source).map(Secret::new);
        let source = Source {
            key: "metrics_token",
            env: "HAYLOFT_METRICS_TOKEN",
            inline: admin.metrics_token.as_ref(),
            file: admin.metrics_token_file.as_deref(),
        };
        admin.resolved_metrics_token = check.secret("admin.metrics_token", &source).map(Secret::new);
    }
}
