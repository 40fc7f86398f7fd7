//! The cluster under test: found or started, with a client, and stopped at the end if it is ours.

use super::CrashArgs;
use crate::client::{Payload, S3};
use crate::cluster::{Cluster, Daemon, Processes, is_running, terminate};
use crate::workload::Site;
use anyhow::{Context as _, Result, bail};
use hayloft_common::env::Env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Everything that a scenario works with.
pub(super) struct Setup {
    pub(super) env: Env,
    pub(super) processes: Processes,
    /// Speaks to all gateways in turn.
    pub(super) s3: S3,
    pub(super) seed: u64,
    recovery_limit: Duration,
    dev: Option<Dev>,
}

/// A cluster that we started ourselves.
struct Dev {
    child: Child,
    dir: PathBuf,
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

/// How long to wait between two looks at something that is coming up.
const LOOK: Duration = Duration::from_millis(50);

impl Setup {
    /// Finds the cluster, or starts one, and waits until it serves.
    pub(super) async fn start(env: &Env, args: &CrashArgs, seed: u64) -> Result<Self> {
        let (file, dev) = match (&args.cluster, &args.dev_bin) {
            (Some(file), _) => (file.clone(), None),
            (None, Some(binary)) => {
                let (file, dev) = start_dev(env, binary, args.dir.as_deref()).await?;
                (file, Some(dev))
            }
            (None, None) => bail!("give --cluster or --dev-bin"),
        };
        let processes = Processes::new(&file, args.gateway_bin.clone(), args.storage_bin.clone())?;
        let s3 = S3::new(env.clone(), &processes.cluster.settings(Duration::from_mins(1)))?;
        let recovery_limit = Duration::from_secs(args.recovery_limit);
        let setup = Self { env: env.clone(), processes, s3, seed, recovery_limit, dev };
        setup.healthy().await?;
        Ok(setup)
    }

    /// A new history, under a prefix that no run used before.
    pub(super) fn site(&self, name: &str) -> (Site, String) {
        let prefix = format!("crash-{name}-{:x}/", self.env.random_u64());
        (Site::new(self.env.clone(), self.s3.clone()), prefix)
    }

    /// Starts daemons from their configuration, with more arguments.
    pub(super) fn restart(&mut self, daemons: &[Daemon], arguments: &[String]) -> Result<()> {
        daemons.iter().try_for_each(|daemon| self.processes.start(*daemon, arguments))
    }

    /// Waits until every gateway writes, reads and lists; returns how long that took.
    pub(super) async fn healthy(&self) -> Result<Duration> {
        let start = self.env.now();
        for gateway in 0..self.s3.endpoints() {
            self.healthy_through(&self.s3.pinned(gateway)).await?;
        }
        Ok(self.env.now().saturating_sub(start))
    }

    /// Waits until this client can write, read and list.
    pub(super) async fn healthy_through(&self, s3: &S3) -> Result<()> {
        let start = self.env.now();
        let s3 = s3.with_timeout(Duration::from_secs(10));
        loop {
            let probe = async {
                s3.put("crash-probe", Payload::Bytes("probe".into()), &[]).await?;
                s3.get("crash-probe", |_| Ok(None)).await?;
                s3.list_page("crash-probe", None, None, 1).await
            };
            let Err(error) = probe.await else { return Ok(()) };
            if let Some(member) = self.processes.missing() {
                bail!(
                    "{} (process {}) is not running: it ended by itself; see {}",
                    member.name,
                    member.pid,
                    member.log.display()
                );
            }
            if self.env.now().saturating_sub(start) > self.recovery_limit {
                bail!("not healthy after {:?}: {error}", self.recovery_limit);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until a daemon accepts connections again.
    pub(super) async fn listening(&self, daemon: Daemon) -> Result<()> {
        let address = &self.processes.member(daemon)?.addr;
        let start = self.env.now();
        while self.env.net.dial(address).await.is_err() {
            if self.env.now().saturating_sub(start) > self.recovery_limit {
                bail!("nothing listens on {address} after {:?}", self.recovery_limit);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Makes sure that there are two gateways and that they serve.
    pub(super) async fn two_gateways(&self) -> Result<()> {
        if self.processes.cluster.gateways.len() < 2 {
            bail!("needs two gateways: run `hayloft dev --gateways 2`");
        }
        self.healthy().await.map(|_| ())
    }

    /// Stops what we started; removes a temporary directory if all went well.
    pub(super) async fn finish(mut self, passed: bool) -> Result<()> {
        // A cluster that is not ours goes on.
        let Some(mut dev) = self.dev.take() else { return Ok(()) };
        for daemon in self.processes.all() {
            self.processes.stop(daemon).await?;
        }
        terminate(dev.child.id())?;
        let mut waited = Duration::ZERO;
        while is_running(dev.child.id()) && waited < Duration::from_mins(1) {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
        dev.child.kill().context("cannot stop `hayloft dev`")?;
        dev.child.wait()?;
        dev.reaped = true;
        if dev.temporary && passed {
            std::fs::remove_dir_all(&dev.dir)?;
        } else {
            println!("the cluster's data stays in {}", dev.dir.display());
        }
        Ok(())
    }
}

async fn start_dev(env: &Env, binary: &Path, dir: Option<&Path>) -> Result<(PathBuf, Dev)> {
    let temporary = dir.is_none();
    let dir = dir.map_or_else(
        || std::env::temp_dir().join(format!("hayloft-crash-{:x}", env.random_u64())),
        Path::to_owned,
    );
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let file = dir.join("cluster.json");
    if file.exists() {
        // Left by an earlier run: it would be taken for the new one.
        std::fs::remove_file(&file)?;
    }
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("dev.log"))?;
    println!("starting a cluster in {}", dir.display());
    let mut child = Command::new(binary)
        .arg("dev")
        .arg("--dir")
        .arg(dir.join("data"))
        .args(["--gateways", "2"])
        .arg("--json")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let mut waited = Duration::ZERO;
    while Cluster::read(&file).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("`hayloft dev` ended with {status}; see {}", dir.join("dev.log").display());
        }
        if waited > Duration::from_mins(2) {
            child.kill()?;
            child.wait()?;
            let why = Cluster::read(&file).err();
            bail!("`hayloft dev` wrote no usable {} within 2 minutes: {why:?}", file.display());
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
    Ok((file, Dev { child, dir, temporary, reaped: false }))
}
