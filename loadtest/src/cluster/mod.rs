//! A running cluster as `hayloft dev --json FILE` describes it: where it is reached, whose processes it has.
//!
//! The file is read leniently (fields that are not needed are kept, not judged) and process ids are written back
//! when this tool restarts a daemon, so that the next tool finds the right ones.

mod process;
mod usage;

pub use process::{Daemon, Processes, is_running, kill_now, terminate};
pub use usage::{Usage, machine_disk_free, reset_peak, usage_of};

use crate::client::Settings;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which daemon a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Gateway,
    Storage,
}

impl Role {
    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Storage => "storage",
        }
    }
}

/// One process of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    #[serde(default)]
    pub name: String,
    pub pid: u32,
    /// Its configuration file.
    pub config: PathBuf,
    /// S3 address of a gateway: a URL, or `host:port`.
    #[serde(default, alias = "endpoint", alias = "s3_endpoint", alias = "s3_url", alias = "url")]
    pub s3: Option<String>,
    /// Admin address of a gateway: a URL, or `host:port`.
    #[serde(default, alias = "admin_endpoint", alias = "admin_url")]
    pub admin: Option<String>,
}

/// The cluster file.
#[derive(Clone, Debug, Deserialize)]
pub struct Cluster {
    #[serde(default = "default_region")]
    pub region: String,
    pub bucket: String,
    #[serde(alias = "access_key_id", alias = "accessKeyId")]
    pub access_key: String,
    #[serde(alias = "secret_access_key", alias = "secretAccessKey", alias = "secret_key_id")]
    pub secret_key: String,
    pub gateways: Vec<Member>,
    #[serde(alias = "storage_nodes", alias = "nodes")]
    pub storage: Vec<Member>,
}

fn default_region() -> String {
    "hayloft".into()
}

fn url(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

impl Cluster {
    /// Reads a cluster file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the cluster file {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("cluster file {}", path.display()))
    }

    /// Parses a cluster file and fills in names.
    pub fn parse(text: &str) -> Result<Self> {
        let mut cluster: Self = serde_json::from_str(text)?;
        for (role, members) in [("gateway", &mut cluster.gateways), ("storage", &mut cluster.storage)] {
            for (index, member) in members.iter_mut().enumerate() {
                if member.name.is_empty() {
                    member.name = format!("{role}-{}", index + 1);
                }
            }
        }
        if cluster.gateways.is_empty() {
            bail!("it names no gateway");
        }
        if let Some(gateway) = cluster.gateways.iter().find(|gateway| gateway.s3.is_none()) {
            bail!("gateway {} has no \"s3\" address", gateway.name);
        }
        Ok(cluster)
    }

    /// S3 URLs of all gateways, in order.
    pub fn endpoints(&self) -> Vec<String> {
        self.gateways.iter().filter_map(|gateway| gateway.s3.as_deref().map(url)).collect()
    }

    /// Client settings for this cluster.
    pub fn settings(&self, timeout: Duration) -> Settings {
        Settings {
            endpoints: self.endpoints(),
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            region: self.region.clone(),
            bucket: self.bucket.clone(),
            sign_payload: false,
            ca_file: None,
            timeout,
        }
    }

    /// All processes with their role.
    pub fn pids(&self) -> Vec<(Role, u32)> {
        let gateways = self.gateways.iter().map(|member| (Role::Gateway, member.pid));
        gateways.chain(self.storage.iter().map(|member| (Role::Storage, member.pid))).collect()
    }
}

/// Writes the process ids of `cluster` into its file, leaving everything else as it is.
pub fn write_pids(path: &Path, cluster: &Cluster) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    let mut value: serde_json::Value = serde_json::from_str(&text)?;
    let groups: [(&[&str], &[Member]); 2] =
        [(&["gateways"], &cluster.gateways), (&["storage", "storage_nodes", "nodes"], &cluster.storage)];
    for (names, members) in groups {
        let list = names.iter().find(|name| value.get(**name).is_some());
        let list = list.and_then(|name| value.get_mut(*name)).and_then(serde_json::Value::as_array_mut);
        for (entry, member) in list.into_iter().flatten().zip(members) {
            if let Some(fields) = entry.as_object_mut() {
                fields.insert("pid".into(), member.pid.into());
            }
        }
    }
    // A reader never sees half a file.
    let draft = path.with_extension("tmp");
    std::fs::write(&draft, serde_json::to_vec_pretty(&value)?)?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"bucket":"b","access_key_id":"k","secret_access_key":"s","extra":{"x":1},
        "gateways":[{"pid":1,"config":"/g.toml","endpoint":"127.0.0.1:3900"}],
        "nodes":[{"name":"n1","pid":2,"config":"/a.toml","zone":"z"},{"pid":3,"config":"/b.toml"}]}"#;

    #[test]
    fn a_cluster_file_is_read_leniently() {
        let cluster = Cluster::parse(FILE).unwrap();
        assert_eq!(cluster.endpoints(), ["http://127.0.0.1:3900"]);
        assert_eq!(cluster.pids(), [(Role::Gateway, 1), (Role::Storage, 2), (Role::Storage, 3)]);
        assert_eq!(cluster.storage[1].name, "storage-2");
        assert!(Cluster::parse(&FILE.replace("endpoint", "elsewhere")).is_err());
    }

    #[test]
    fn process_ids_are_replaced_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.json");
        std::fs::write(&path, FILE).unwrap();
        let mut cluster = Cluster::read(&path).unwrap();
        cluster.storage[0].pid = 77;
        write_pids(&path, &cluster).unwrap();
        assert_eq!(Cluster::read(&path).unwrap().storage[0].pid, 77);
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"extra\""));
    }
}
