//! A cluster that we start ourselves with `hayloft dev`, and stop again.

use crate::cluster::{Cluster, Front, Links, is_running, terminate};
use anyhow::{Context as _, Result, bail};
use hayloft_common::env::Env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long to wait between two looks at something that is coming up.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How long a cluster may take to come up.
const START_LIMIT: Duration = Duration::from_mins(3);

/// What kind of cluster to start; the defaults are those of `hayloft dev`.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub storage: Option<usize>,
    pub spares: usize,
    pub zones: Option<usize>,
    pub gateways: usize,
    pub replication: Option<usize>,
    /// Data directories of each storage node.
    pub disks: Option<usize>,
    /// Lead all connections to storage nodes through [`Links`].
    pub links: bool,
    /// Added to the configuration of storage nodes.
    pub storage_toml: String,
    /// Added to the configuration of gateways.
    pub gateway_toml: String,
}

impl Shape {
    fn arguments(&self, dir: &Path) -> Result<Vec<String>> {
        let mut arguments = vec!["--gateways".to_owned(), self.gateways.max(1).to_string()];
        let mut give = |name: &str, value: Option<usize>| {
            arguments.extend(value.map(|value| [name.to_owned(), value.to_string()]).into_iter().flatten());
        };
        give("--storage", self.storage);
        give("--spares", Some(self.spares).filter(|count| *count > 0));
        give("--zones", self.zones);
        give("--replication", self.replication);
        give("--disks", self.disks);
        if self.links {
            arguments.push("--fronts".into());
        }
        for (name, text) in [("storage", &self.storage_toml), ("gateway", &self.gateway_toml)] {
            if !text.is_empty() {
                let path = dir.join(format!("{name}.toml"));
                std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
                arguments.extend([format!("--{name}-toml"), path.display().to_string()]);
            }
        }
        Ok(arguments)
    }
}

/// The cluster and the process that started it.
pub(super) struct Dev {
    child: Child,
    pub(super) dir: PathBuf,
    pub(super) file: PathBuf,
    pub(super) links: Option<Links>,
    temporary: bool,
    /// Ended and reaped: its process id may belong to another by now.
    reaped: bool,
}

impl Drop for Dev {
    /// A cluster of ours does not outlive a failed start; it stops its daemons itself.
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        if let Err(error) = terminate(self.child.id()) {
            eprintln!("warning: the cluster in {} may still run: {error:#}", self.dir.display());
        }
    }
}

impl Dev {
    /// Starts a cluster with the program `hayloft`, in `dir` or in a temporary directory.
    pub(super) async fn start(env: &Env, hayloft: &Path, dir: Option<&Path>, shape: &Shape) -> Result<Self> {
        let temporary = dir.is_none();
        let name = || std::env::temp_dir().join(format!("hayloft-test-{:x}", env.random_u64()));
        let dir = dir.map_or_else(name, Path::to_owned);
        let data = dir.join("data");
        std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        let (file, fronts) = (dir.join("cluster.json"), data.join("fronts.json"));
        for stale in [&file, &fronts] {
            // Left by an earlier run: it would be taken for the new one.
            if stale.exists() {
                std::fs::remove_file(stale)?;
            }
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("dev.log"))?;
        println!("starting a cluster in {}", dir.display());
        let child = Command::new(hayloft)
            .arg("dev")
            .arg("--dir")
            .arg(&data)
            .args(shape.arguments(&dir)?)
            .arg("--json")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}: name it with --dev-bin", hayloft.display()))?;
        let mut dev = Self { child, dir, file, links: None, temporary, reaped: false };
        if shape.links {
            dev.wait("names its fronts", || fronts.exists()).await?;
            let fronts: Vec<Front> = serde_json::from_slice(&std::fs::read(&fronts)?)?;
            dev.links = Some(Links::start(env, &data, &fronts).await?);
        }
        let file = dev.file.clone();
        dev.wait("is ready", || Cluster::read(&file).is_ok()).await?;
        Ok(dev)
    }

    async fn wait(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let mut waited = Duration::ZERO;
        let log = self.dir.join("dev.log");
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                self.reaped = true;
                bail!("`hayloft dev` ended with {status}; see {}", log.display());
            }
            if waited > START_LIMIT {
                bail!("waited {START_LIMIT:?} until `hayloft dev` {what}; see {}", log.display());
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
        Ok(())
    }

    /// Stops `hayloft dev` and the daemons it still watches; removes a temporary directory if all went well.
    pub(super) async fn stop(mut self, passed: bool) -> Result<()> {
        terminate(self.child.id())?;
        let mut waited = Duration::ZERO;
        while is_running(self.child.id()) && waited < Duration::from_mins(1) {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
        self.child.kill().context("cannot stop `hayloft dev`")?;
        self.child.wait()?;
        self.reaped = true;
        if self.temporary && passed {
            std::fs::remove_dir_all(&self.dir)?;
        } else {
            println!("the cluster's data stays in {}", self.dir.display());
        }
        Ok(())
    }
}
