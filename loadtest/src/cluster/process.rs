//! Killing and starting the daemons of a cluster as real processes.
//!
//! A process that this tool started is its child and is reaped here; one that `hayloft dev` started is reaped
//! there. Either way a zombie counts as dead.

use super::{Cluster, Member, Role, write_pids};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Names one process of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub role: Role,
    pub index: usize,
}

/// A cluster and the means to kill and start its daemons.
pub struct Processes {
    pub cluster: Cluster,
    file: PathBuf,
    gateway_bin: PathBuf,
    storage_bin: PathBuf,
    children: Vec<Child>,
    /// Whether the cluster ends with us.
    owned: bool,
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("0 is not a process id")?;
    match rustix::process::kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error).context("cannot signal the process"),
    }
}

/// SIGKILL; a process that is gone already is fine.
pub fn kill_now(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

/// SIGTERM; a process that is gone already is fine.
pub fn terminate(pid: u32) -> Result<()> {
    signal(pid, Signal::TERM)
}

/// Whether the process runs (a zombie does not).
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

impl Processes {
    /// Takes the cluster of `file`. Binaries that are not given are looked for beside this program, then in PATH.
    pub fn new(file: &Path, gateway_bin: Option<PathBuf>, storage_bin: Option<PathBuf>) -> Result<Self> {
        Ok(Self {
            cluster: Cluster::read(file)?,
            file: file.to_owned(),
            gateway_bin: gateway_bin.unwrap_or_else(|| beside("hayloft-gateway")),
            storage_bin: storage_bin.unwrap_or_else(|| beside("hayloft-storage")),
            children: Vec::new(),
            owned: false,
        })
    }

    /// The cluster is ours: what we start in it ends with this value.
    pub fn own(&mut self) {
        self.owned = true;
    }

    /// Every daemon, gateways first.
    pub fn all(&self) -> Vec<Daemon> {
        let list = |role, count| (0..count).map(move |index| Daemon { role, index });
        list(Role::Gateway, self.cluster.gateways.len())
            .chain(list(Role::Storage, self.cluster.storage.len()))
            .collect()
    }

    /// What the cluster file says of a daemon.
    pub fn member(&self, daemon: Daemon) -> Result<&Member> {
        let list = match daemon.role {
            Role::Gateway => &self.cluster.gateways,
            Role::Storage => &self.cluster.storage,
        };
        list.get(daemon.index)
            .with_context(|| format!("the cluster has no {} number {}", daemon.role.name(), daemon.index + 1))
    }

    /// SIGKILLs those of the given daemons that run, at once, and waits until they are gone.
    pub async fn kill(&mut self, daemons: &[Daemon]) -> Result<()> {
        let pids = self.pids_of(daemons)?;
        for pid in &pids {
            kill_now(*pid)?;
        }
        self.wait_gone(&pids, Duration::from_secs(30)).await?;
        self.forget(daemons)
    }

    /// Asks a daemon to stop, if it runs, and waits until it is gone.
    pub async fn stop(&mut self, daemon: Daemon) -> Result<()> {
        let pids = self.pids_of(&[daemon])?;
        for pid in &pids {
            terminate(*pid)?;
        }
        self.wait_gone(&pids, Duration::from_mins(1)).await?;
        self.forget(&[daemon])
    }

    /// SIGSTOP or SIGCONT for a daemon, if it runs.
    pub fn pause(&self, daemon: Daemon, paused: bool) -> Result<()> {
        let kind = if paused { Signal::STOP } else { Signal::CONT };
        self.pids_of(&[daemon])?.into_iter().try_for_each(|pid| signal(pid, kind))
    }

    /// Whether we have not ended the daemon.
    pub fn is_up(&self, daemon: Daemon) -> bool {
        self.member(daemon).is_ok_and(|member| member.pid != 0)
    }

    fn pids_of(&self, daemons: &[Daemon]) -> Result<Vec<u32>> {
        let pids = daemons.iter().map(|daemon| Ok(self.member(*daemon)?.pid));
        // 0: ended by us. Its id may belong to another process by now.
        pids.filter(|pid| !matches!(pid, Ok(0))).collect()
    }

    fn forget(&mut self, daemons: &[Daemon]) -> Result<()> {
        for daemon in daemons {
            self.member(*daemon)?;
            self.members_mut(daemon.role)[daemon.index].pid = 0;
        }
        Ok(())
    }

    fn members_mut(&mut self, role: Role) -> &mut Vec<Member> {
        match role {
            Role::Gateway => &mut self.cluster.gateways,
            Role::Storage => &mut self.cluster.storage,
        }
    }

    async fn wait_gone(&mut self, pids: &[u32], limit: Duration) -> Result<()> {
        let step = Duration::from_millis(2);
        let mut waited = Duration::ZERO;
        loop {
            // Reaps our own children; the state of others is in /proc.
            self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
            match pids.iter().find(|pid| is_running(**pid)) {
                None => return Ok(()),
                Some(pid) if waited >= limit => bail!("process {pid} did not end within {limit:?}"),
                Some(_) => tokio::time::sleep(step).await,
            }
            waited += step;
        }
    }

    /// Every storage node.
    pub fn storage(&self) -> Vec<Daemon> {
        self.all().into_iter().filter(|daemon| daemon.role == Role::Storage).collect()
    }

    /// A storage node has another id from now on.
    pub fn renamed(&mut self, daemon: Daemon, id: &str) {
        if let Some(node) = self.cluster.storage.get_mut(daemon.index) {
            node.node_id = Some(id.to_owned());
        }
    }

    /// Runs a storage node's program on its configuration, with more arguments, to its end; gives what it prints.
    pub fn run_storage(&self, daemon: Daemon, arguments: &[&str]) -> Result<String> {
        let config = &self.member(daemon)?.config;
        let mut command = Command::new(&self.storage_bin);
        command.arg("--config").arg(config).args(arguments).stdin(Stdio::null());
        let output =
            command.output().with_context(|| format!("cannot start {}", self.storage_bin.display()))?;
        let error = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("`hayloft-storage --config {} {}` failed: {error}", config.display(), arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The daemon of that name.
    pub fn named(&self, name: &str) -> Result<Daemon> {
        let found = self.all().into_iter().find(|daemon| self.member(*daemon).is_ok_and(|m| m.name == name));
        found.with_context(|| format!("the cluster has no daemon {name}"))
    }

    /// Starts a daemon from its configuration file, with more arguments, and notes its process id. Its output is
    /// added to its log.
    pub fn start(&mut self, daemon: Daemon, arguments: &[String]) -> Result<()> {
        let binary = match daemon.role {
            Role::Gateway => self.gateway_bin.clone(),
            Role::Storage => self.storage_bin.clone(),
        };
        let child = spawn(&binary, self.member(daemon)?, arguments)?;
        self.members_mut(daemon.role)[daemon.index].pid = child.id();
        self.children.push(child);
        write_pids(&self.file, &self.cluster)
    }

    /// The first of the daemons that should run and does not, if any: something crashed that nobody killed.
    pub fn missing(&self) -> Option<&Member> {
        let mut members = self.cluster.gateways.iter().chain(&self.cluster.storage);
        members.find(|member| member.pid != 0 && !is_running(member.pid))
    }
}

impl Drop for Processes {
    /// Of a cluster of ours nothing outlives a test that was broken off; [`Processes::stop`] is the gentle way.
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        for child in &mut self.children {
            // One that ended by itself is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program of that name beside this one, else the one in PATH.
pub fn beside(name: &str) -> PathBuf {
    let here = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(name)));
    here.filter(|path| path.exists()).unwrap_or_else(|| name.into())
}

fn spawn(binary: &Path, member: &Member, arguments: &[String]) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&member.log)
        .with_context(|| format!("cannot write {}", member.log.display()))?;
    let errors = log.try_clone()?;
    Command::new(binary)
        .arg("--config")
        .arg(&member.config)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // A group of its own, as `hayloft dev` starts it: Ctrl-C reaches this program only.
        .process_group(0)
        .spawn()
        .with_context(|| {
            format!("cannot start {}; name it with --gateway-bin or --storage-bin", binary.display())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_seen_as_gone_even_before_it_is_reaped() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(is_running(child.id()));
        kill_now(child.id()).unwrap();
        while is_running(child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        kill_now(child.id()).unwrap();
    }
}
