//! The configuration of the daemons: one TOML file each, read once at start.
//!
//! [`StorageConfig::load`] and [`GatewayConfig::load`] read, check and complete a file: unknown keys are
//! refused by name with the nearest known key and their line, limits are checked, secrets are fetched from
//! where the file or the environment says. All problems of a file are reported at once. What must be equal
//! on the whole cluster (replication factor, partitions) is not here: it belongs to the layout.
//!
//! `deploy/config/*.example.toml` documents every key; a test keeps it equal to the defaults here.

mod gateway;
mod keys;
mod peer;
mod secret;
pub mod size;
mod storage;
mod workers;

pub use gateway::{CacheConfig, Compression, GatewayAdmin, GatewayConfig, LimitsConfig, S3ApiConfig};
pub use keys::{Known, fields};
pub use peer::{Peer, PeerError};
pub use secret::{EnvVars, RpcSecret, Secret, SecretError, read_file as read_secret_file};
pub use storage::{DataDir, StorageAdmin, StorageConfig};
pub use workers::{MESSAGE_LIFETIME, WorkerSettings};

use secret::Source;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::DeTable;

/// One thing wrong in a configuration file.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, if it stands on one.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub text: String,
}

/// Why a daemon does not start with this file: every problem found, one a line.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.path.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Log lines on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// A level (`error warn info debug trace`), or a filter by module such as `info,hayloft_proto=debug`.
    /// The variable `RUST_LOG` overrides it.
    pub level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info,fjall=warn,lsm_tree=warn".into() }
    }
}

/// Export of traces (OpenTelemetry over HTTP).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// The collector, such as `http://127.0.0.1:4318` (plain HTTP; `/v1/traces` is added). None: no export.
    pub otlp_endpoint: Option<String>,
    /// The part of traces that are exported, from 0 to 1. A trace that a peer began follows the peer's choice.
    pub sample_ratio: f64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 1.0 }
    }
}

impl LogConfig {
    fn check(&self, check: &mut Check<'_>) {
        use tracing_subscriber::EnvFilter;
        if let Err(error) = EnvFilter::builder().parse(&self.level) {
            check.fail("log.level", format!("`{}` is not a log filter: {error}", self.level));
        }
    }
}

impl TraceConfig {
    fn check(&self, check: &mut Check<'_>) {
        if let Some(url) = &self.otlp_endpoint
            && (!url.starts_with("http://") || url.len() <= "http://".len())
        {
            let text = format!(
                "`{url}` cannot be used: give http://HOST:PORT of a collector (put a local one in front for TLS)"
            );
            check.fail("trace.otlp_endpoint", text);
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            check.fail("trace.sample_ratio", format!("{} is not between 0 and 1", self.sample_ratio));
        }
    }
}

/// A configuration file of one of the daemons.
trait File: DeserializeOwned {
    /// Its keys.
    fn known() -> Known;
    /// Whether the file itself holds a secret, so that it must be private.
    fn holds_secret(&self) -> bool;
    /// Its own wish about files that others can read.
    fn allow_world_readable(&self) -> bool;
    /// Checks limits and fetches secrets.
    fn complete(&mut self, check: &mut Check<'_>);
}

/// What completing a file needs, and the problems it found.
struct Check<'a> {
    text: &'a str,
    table: &'a Spanned<DeTable<'a>>,
    env: EnvVars<'a>,
    allow_world_readable: bool,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Notes a problem with the key at `path`.
    fn fail(&mut self, path: &str, text: String) {
        let line = keys::find_line(self.table, self.text, path);
        self.problems.push(Problem { line, text: format!("`{path}`: {text}") });
    }

    /// A number within bounds, both allowed; `show` prints it.
    fn range<T: PartialOrd + Copy>(
        &mut self,
        path: &str,
        value: T,
        min: T,
        max: T,
        show: impl Fn(T) -> String,
    ) {
        if value < min || value > max {
            let text = format!("{} is out of range: from {} to {}", show(value), show(min), show(max));
            self.fail(path, text);
        }
    }

    /// An address to listen on.
    fn bind_addr(&mut self, path: &str, addr: &str) {
        if addr.parse::<std::net::SocketAddr>().is_err() {
            let text = format!(
                "`{addr}` is not an address to listen on: write IP:PORT, such as \"[::]:3900\" or \"127.0.0.1:3900\""
            );
            self.fail(path, text);
        }
    }

    /// Fetches a secret; problems are noted.
    fn secret(&mut self, path: &str, source: &Source<'_>) -> Option<String> {
        match source.resolve(self.env, self.allow_world_readable) {
            Ok(secret) => secret,
            Err(error) => {
                self.fail(path, error.to_string());
                None
            }
        }
    }

    /// Fetches the RPC secret, which must be there.
    fn rpc_secret(&mut self, inline: Option<&Secret>, file: Option<&Path>) -> Option<RpcSecret> {
        let before = self.problems.len();
        let source = Source { key: "rpc_secret", env: "HAYLOFT_RPC_SECRET", inline, file };
        let Some(text) = self.secret("rpc_secret", &source) else {
            if self.problems.len() == before {
                let text = "no secret is set: give `rpc_secret_file`, `rpc_secret`, HAYLOFT_RPC_SECRET_FILE or HAYLOFT_RPC_SECRET (64 hexadecimal digits, the same on every node; `openssl rand -hex 32`)";
                self.fail("rpc_secret", text.into());
            }
            return None;
        };
        RpcSecret::from_hex(&text).map_err(|error| self.fail("rpc_secret", error.to_string())).ok()
    }
}

/// Reads and completes the file at `path`.
fn load<T: File>(path: &Path, env: EnvVars<'_>) -> Result<T, ConfigError> {
    let fail = |problems| ConfigError { path: path.into(), problems };
    let text = std::fs::read_to_string(path).map_err(|error| {
        fail(vec![Problem { line: None, text: format!("cannot read this file: {error}") }])
    })?;
    let config: T = parse(&text, env).map_err(fail)?;
    let allowed = config.allow_world_readable() || env_allows(env);
    if config.holds_secret() && !allowed {
        secret::check_mode(path)
            .map_err(|error| fail(vec![Problem { line: None, text: error.to_string() }]))?;
    }
    Ok(config)
}

fn env_allows(env: EnvVars<'_>) -> bool {
    env("HAYLOFT_ALLOW_WORLD_READABLE_SECRETS").is_some_and(|value| value == "true" || value == "1")
}

/// Parses and completes the `text` of a file.
fn parse<T: File>(text: &str, env: EnvVars<'_>) -> Result<T, Vec<Problem>> {
    let syntax = |error: toml::de::Error| {
        let line = error.span().map(|span| keys::line_of(text, span.start));
        vec![Problem { line, text: error.message().trim().to_owned() }]
    };
    let table = DeTable::parse(text).map_err(syntax)?;
    let mut problems = Vec::new();
    keys::unknown(table.get_ref(), &T::known(), text, "", &mut problems);
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line);
        return Err(problems);
    }
    let mut config: T = toml::from_str(text).map_err(syntax)?;
    let allow_world_readable = config.allow_world_readable() || env_allows(env);
    let mut check = Check { text, table: &table, env, allow_world_readable, problems };
    config.complete(&mut check);
    if check.problems.is_empty() { Ok(config) } else { Err(check.problems) }
}

/// The variables of this process.
fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests;
