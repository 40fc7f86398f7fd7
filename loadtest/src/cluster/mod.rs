//! A running cluster as `hayloft dev --json FILE` describes it: where it is reached, whose processes it has.
//!
//! Read as `hayloft_deploy::cluster_file` writes it, without a guess. When this tool restarts a daemon it writes the new
//! process id back into the file, so that the next tool finds the right process; everything else in there is kept.

mod links;
mod owner;
mod process;
mod scrape;
mod usage;

pub use links::{Front, Links, Rule};
pub use process::{Daemon, Processes, beside, is_running, kill_now, terminate};
pub use scrape::{Series, scrape};
pub use usage::{Usage, disk_usage, file_lengths, machine_disk_free, reset_peak, usage_of};

use crate::client::Settings;
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which daemon a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Gateway,
    Storage,
}

impl Role {
    /// As in the file and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Storage => "storage",
        }
    }
}

/// One process of the cluster.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    /// 0: we ended it.
    pub pid: u32,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its log, which `hayloft dev` began and restarts add to.
    pub log: PathBuf,
    /// Gateway: for S3 clients. Storage: for peers. `host:port`.
    pub addr: String,
    /// For health, metrics and (gateway) administration. `host:port`.
    pub admin_addr: String,
    pub zone: String,
    /// Storage: its id in the layout.
    pub node_id: Option<String>,
    /// Storage: it was started without a role.
    pub spare: bool,
}

impl Member {
    /// The directory of its data, configuration and log.
    pub fn home(&self) -> &Path {
        self.config.parent().unwrap_or(&self.config)
    }
}

/// The cluster file, sorted by role.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub s3: S3Access,
    /// In the order of `s3.endpoints`.
    pub gateways: Vec<Member>,
    pub storage: Vec<Member>,
}

/// How S3 clients reach the cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct S3Access {
    /// URLs, one for each gateway.
    pub endpoints: Vec<String>,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
}

/// The parts of the file that this tool needs, as they are written.
#[derive(Deserialize)]
struct File {
    s3: S3Access,
    processes: Vec<Process>,
    config: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct Process {
    role: Role,
    name: String,
    pid: u32,
    dir: PathBuf,
    addr: String,
    admin_addr: String,
    zone: String,
    #[serde(default)]
    node_id: Option<String>,
    #[serde(default)]
    spare: bool,
}

impl Cluster {
    /// Reads a cluster file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read {}: give the file that `hayloft dev --json` wrote", path.display())
        })?;
        Self::parse(&text)
            .with_context(|| format!("{} is not a file that `hayloft dev --json` wrote", path.display()))
    }

    /// Parses a cluster file.
    pub fn parse(text: &str) -> Result<Self> {
        let File { s3, processes, mut config } = serde_json::from_str(text)?;
        let (mut gateways, mut storage) = (Vec::new(), Vec::new());
        for process in processes {
            let Process { role, name, pid, dir, addr, admin_addr, zone, node_id, spare } = process;
            let config = config.remove(&name).with_context(|| format!("\"config\" lacks {name}"))?;
            let list = match role {
                Role::Gateway => &mut gateways,
                Role::Storage => &mut storage,
            };
            let log = dir.join("log");
            list.push(Member { name, pid, config, log, addr, admin_addr, zone, node_id, spare });
        }
        ensure!(
            !gateways.is_empty() && gateways.len() == s3.endpoints.len(),
            "it has {} gateways and {} endpoints",
            gateways.len(),
            s3.endpoints.len()
        );
        for (gateway, url) in gateways.iter().zip(&s3.endpoints) {
            ensure!(
                url.strip_prefix("http://") == Some(gateway.addr.as_str()),
                "{} has the address {}, but its endpoint is {url}",
                gateway.name,
                gateway.addr
            );
        }
        Ok(Self { s3, gateways, storage })
    }

    /// Client settings for this cluster.
    pub fn settings(&self, timeout: Duration) -> Settings {
        Settings {
            endpoints: self.s3.endpoints.clone(),
            access_key: self.s3.access_key.clone(),
            secret_key: self.s3.secret_key.clone(),
            region: self.s3.region.clone(),
            bucket: self.s3.bucket.clone(),
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
    let processes = value.get_mut("processes").and_then(serde_json::Value::as_array_mut);
    for process in processes.with_context(|| format!("{} has no processes any more", path.display()))? {
        let name = process.get("name").and_then(serde_json::Value::as_str);
        let member =
            cluster.gateways.iter().chain(&cluster.storage).find(|member| Some(&*member.name) == name);
        if let (Some(member), Some(fields)) = (member, process.as_object_mut()) {
            fields.insert("pid".into(), member.pid.into());
        }
    }
    // A reader never sees half a file; the file holds secrets, so the draft is as private as it is.
    let draft = path.with_extension("tmp");
    std::fs::copy(path, &draft)?;
    std::fs::write(&draft, serde_json::to_vec_pretty(&value)?)?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "s3": {"endpoints": ["http://127.0.0.1:3900"], "region": "hayloft", "access_key": "k", "secret_key": "s",
            "bucket": "dev"},
        "admin": {"url": "http://127.0.0.1:3903", "token": "t"},
        "processes": [
            {"role": "storage", "name": "storage1", "zone": "zone1", "pid": 2, "dir": "/d/storage1",
             "addr": "127.0.0.1:3901", "admin_addr": "127.0.0.1:3902", "node_id": "aa"},
            {"role": "gateway", "name": "gateway1", "zone": "zone1", "pid": 1, "dir": "/d/gateway1",
             "addr": "127.0.0.1:3900", "admin_addr": "127.0.0.1:3903"}],
        "config": {"gateway1": "/d/gateway1/config.toml", "storage1": "/d/storage1/config.toml"}}"#;

    #[test]
    fn a_cluster_file_is_read() {
        let cluster = Cluster::parse(FILE).unwrap();
        assert_eq!(cluster.pids(), [(Role::Gateway, 1), (Role::Storage, 2)]);
        assert_eq!(cluster.storage[0].home(), Path::new("/d/storage1"));
        assert_eq!(cluster.storage[0].log, Path::new("/d/storage1/log"));
        assert_eq!(cluster.gateways[0].config, Path::new("/d/gateway1/config.toml"));
        assert_eq!(cluster.settings(Duration::ZERO).endpoints, ["http://127.0.0.1:3900"]);
    }

    #[test]
    fn a_file_that_contradicts_itself_is_refused() {
        for (from, to) in [
            ("http://127.0.0.1:3900", "http://127.0.0.1:3999"),
            ("\"gateway1\": \"/d", "\"other\": \"/d"),
            ("\"role\": \"gateway\"", "\"role\": \"storage\""),
            ("\"role\": \"gateway\"", "\"role\": \"other\""),
        ] {
            assert!(Cluster::parse(&FILE.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn process_ids_are_replaced_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.json");
        std::fs::write(&path, FILE).unwrap();
        let mut cluster = Cluster::read(&path).unwrap();
        cluster.storage[0].pid = 77;
        write_pids(&path, &cluster).unwrap();
        assert_eq!(Cluster::read(&path).unwrap().pids(), [(Role::Gateway, 1), (Role::Storage, 77)]);
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"token\""));
    }
}
