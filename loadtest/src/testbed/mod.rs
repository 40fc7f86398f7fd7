//! A cluster of real processes to be mistreated: found or started, with clients, the operator's commands, links that
//! can be cut, and a judgement of everything that was stored.

mod converge;
mod dev;
mod disks;
mod load;
mod operator;
mod verify;

pub use converge::{Findings, findings};
pub use dev::Shape;
pub use disks::{collect_files, data_dirs, delete_dir, give_back_disks, metadata_dir, take_other_disks};
pub use load::{Load, Reader, delete_keys, fill, read_keys};
pub use operator::{Applied, Operator, number};
pub use verify::{Verified, judge, no_failures, no_refusals, verify};

use crate::client::{Payload, S3};
use crate::cluster::{Daemon, Links, Processes};
use crate::workload::Site;
use anyhow::{Context as _, Result, bail};
use dev::{Dev, LOOK};
use hayloft_common::env::Env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where programs are; `None`: beside this one, else in PATH.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    pub hayloft: Option<PathBuf>,
    pub gateway: Option<PathBuf>,
    pub storage: Option<PathBuf>,
}

/// Everything that a test on real processes works with.
pub struct Testbed {
    pub env: Env,
    pub processes: Processes,
    /// Speaks to all gateways in turn.
    pub s3: S3,
    pub seed: u64,
    pub operator: Operator,
    recovery_limit: Duration,
    dev: Option<Dev>,
}

impl Testbed {
    /// Takes the cluster of `file`, which someone else started.
    pub fn adopt(env: &Env, file: &Path, programs: &Programs, seed: u64, limit: Duration) -> Result<Self> {
        let processes = Processes::new(file, programs.gateway.clone(), programs.storage.clone())?;
        let s3 = S3::new(env.clone(), &processes.cluster.settings(Duration::from_mins(1)))?;
        let operator = Operator::new(env, &programs.hayloft(), file, &processes.cluster);
        Ok(Self { env: env.clone(), processes, s3, seed, operator, recovery_limit: limit, dev: None })
    }

    /// Starts a cluster of our own, in `dir` or in a temporary directory, and waits until it serves.
    pub async fn start(
        env: &Env,
        programs: &Programs,
        dir: Option<&Path>,
        shape: &Shape,
        seed: u64,
        limit: Duration,
    ) -> Result<Self> {
        let dev = Dev::start(env, &programs.hayloft(), dir, shape).await?;
        let mut bed = Self::adopt(env, &dev.file, programs, seed, limit)?;
        bed.processes.own();
        bed.dev = Some(dev);
        bed.healthy().await?;
        Ok(bed)
    }

    /// The links between the daemons, if the cluster was started with them.
    pub fn links(&self) -> Option<&Links> {
        self.dev.as_ref()?.links.as_ref()
    }

    /// The directory of the cluster that we started.
    pub fn dir(&self) -> Option<&Path> {
        Some(&self.dev.as_ref()?.dir)
    }

    /// A new history, under a prefix that no run used before.
    pub fn site(&self, name: &str) -> (Site, String) {
        let prefix = format!("test-{name}-{:x}/", self.env.random_u64());
        (Site::new(self.env.clone(), self.s3.clone()), prefix)
    }

    /// Starts daemons from their configuration, with more arguments.
    pub fn restart(&mut self, daemons: &[Daemon], arguments: &[String]) -> Result<()> {
        daemons.iter().try_for_each(|daemon| self.processes.start(*daemon, arguments))
    }

    /// Waits until every gateway writes, reads and lists; returns how long that took.
    pub async fn healthy(&self) -> Result<Duration> {
        let start = self.env.now();
        for gateway in 0..self.s3.endpoints() {
            self.healthy_through(&self.s3.pinned(gateway)).await?;
        }
        Ok(self.env.now().saturating_sub(start))
    }

    /// Waits until this client can write, read and list.
    pub async fn healthy_through(&self, s3: &S3) -> Result<()> {
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
    pub async fn listening(&self, daemon: Daemon) -> Result<()> {
        let member = self.processes.member(daemon)?;
        let start = self.env.now();
        while self.env.net.dial(&member.addr).await.is_err() {
            if !crate::cluster::is_running(member.pid) {
                bail!("{} ended by itself when it was started; see {}", member.name, member.log.display());
            }
            if self.env.now().saturating_sub(start) > self.recovery_limit {
                bail!("nothing listens on {} after {:?}", member.addr, self.recovery_limit);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Makes sure that there are `count` gateways and that they serve.
    pub async fn gateways(&self, count: usize) -> Result<()> {
        let there = self.processes.cluster.gateways.len();
        if there < count {
            bail!("needs {count} gateways, there are {there}: run `hayloft dev --gateways {count}`");
        }
        self.healthy().await.map(|_| ())
    }

    /// SIGKILLs a storage node and starts it again, with these arguments; waits until it listens.
    pub async fn bounce(&mut self, daemon: Daemon, arguments: &[String]) -> Result<()> {
        self.processes.kill(&[daemon]).await?;
        self.restart(&[daemon], arguments)?;
        self.listening(daemon).await
    }

    /// The id of a storage node in the layout.
    pub fn node_id(&self, daemon: Daemon) -> Result<String> {
        let member = self.processes.member(daemon)?;
        member.node_id.clone().with_context(|| format!("{} has no id", member.name))
    }

    /// Stops what we started; removes a temporary directory if all went well.
    pub async fn finish(mut self, passed: bool) -> Result<()> {
        // A cluster that is not ours goes on.
        let Some(dev) = self.dev.take() else { return Ok(()) };
        if let Some(links) = &dev.links {
            links.heal();
        }
        for daemon in self.processes.all() {
            self.processes.pause(daemon, false)?;
            self.processes.stop(daemon).await?;
        }
        dev.stop(passed).await
    }
}

impl Programs {
    fn hayloft(&self) -> PathBuf {
        self.hayloft.clone().unwrap_or_else(|| crate::cluster::beside("hayloft"))
    }
}
