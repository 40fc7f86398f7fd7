//! The JSON file in which `hayloft dev` says how to reach the cluster it runs: for `--cluster`, scripts and
//! tests.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A running cluster. Holds secrets: the file is private.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    pub s3: S3Access,
    pub admin: AdminAccess,
    pub processes: Vec<Process>,
    /// The configuration file of each process, by name.
    pub config: BTreeMap<String, PathBuf>,
}

/// For S3 clients.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Access {
    /// One for each gateway.
    pub endpoints: Vec<String>,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
}

/// For the admin interface.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAccess {
    pub url: String,
    pub token: String,
}

/// A daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `storage` or `gateway`.
    pub role: String,
    pub name: String,
    pub zone: String,
    /// When the file was written.
    pub pid: u32,
    /// Of its data, configuration and log.
    pub dir: PathBuf,
    /// Storage: for peers. Gateway: for S3 clients.
    pub addr: String,
    /// For health, metrics and (gateway) administration.
    pub admin_addr: String,
    /// Storage: its id in the layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Storage: it was started without a role.
    #[serde(default)]
    pub spare: bool,
}

/// An entry of `fronts.json`: what connects to `front` must reach `addr`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Front {
    /// Of the storage node.
    pub name: String,
    /// `host:port` that the node gives out as its own.
    pub front: String,
    /// `host:port` where it listens.
    pub addr: String,
}

impl ClusterFile {
    /// Reads `path`.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| {
            format!("cannot read {}: give the file that `hayloft dev` wrote", path.display())
        })?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a file that `hayloft dev` wrote", path.display()))
    }

    /// Writes `path` in one step, readable by its owner only.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_private(path, &serde_json::to_vec_pretty(self)?)
    }
}

/// Replaces the file at `path` in one step: a reader sees the old content or the new. Mode 0600.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().with_context(|| format!("{} is not a file's name", path.display()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_private_file_is_replaced_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(
            write_private(&dir.path().join("gone/f"), b"").unwrap_err().to_string().contains("cannot write")
        );
    }
}
