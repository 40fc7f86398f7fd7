//! The daemons as child processes: start, watch, stop.

use super::plan::Node;
use crate::cluster_file::write_private;
use anyhow::Context as _;
use hayloft_common::env::Env;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::mpsc;

/// Variables that would override the secrets of this cluster's configuration.
const FOREIGN: [&str; 6] = [
    "HAYLOFT_RPC_SECRET",
    "HAYLOFT_RPC_SECRET_FILE",
    "HAYLOFT_ADMIN_TOKEN",
    "HAYLOFT_ADMIN_TOKEN_FILE",
    "HAYLOFT_METRICS_TOKEN",
    "HAYLOFT_METRICS_TOKEN_FILE",
];
/// How long a daemon may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of the end of a log is looked at.
const TAIL_BYTES: u64 = 16 << 10;
/// How many of its lines are shown.
const TAIL_LINES: usize = 15;

/// A daemon that runs, as kept in `pids.json`.
#[derive(Serialize, Deserialize)]
struct Running {
    name: String,
    pid: u32,
    config: PathBuf,
    #[serde(skip)]
    log: PathBuf,
}

/// The daemons that this process started and that still run.
pub(super) struct Fleet {
    env: Env,
    dir: PathBuf,
    running: Vec<Running>,
    exits: mpsc::UnboundedReceiver<(String, std::io::Result<ExitStatus>)>,
    exit: mpsc::UnboundedSender<(String, std::io::Result<ExitStatus>)>,
}

/// A program that stands beside this one.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is missing: `hayloft dev` needs the daemons beside itself (build all with `cargo build --workspace`)",
        path.display()
    );
    Ok(path)
}

/// The command that runs the daemon `program` with `config`. It dies with its handle.
pub(super) fn daemon(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--config").arg(config).kill_on_drop(true);
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
}

impl Fleet {
    pub(super) fn new(env: &Env, dir: &Path) -> Self {
        let (exit, exits) = mpsc::unbounded_channel();
        Self { env: env.clone(), dir: dir.into(), running: Vec::new(), exits, exit }
    }

    /// Starts the daemon of `node`; its output is added to its log.
    pub(super) fn start(
        &mut self,
        node: &Node,
        log_filter: Option<&str>,
        clock_offset_ms: Option<i64>,
    ) -> anyhow::Result<()> {
        let log = node.log(&self.dir);
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let path = program(node.role.program())?;
        let mut command = daemon(&path, &node.config(&self.dir));
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log")?)
            .stderr(output)
            // A group of its own: Ctrl-C reaches this process only, which then stops the daemons in order.
            .process_group(0);
        if let Some(filter) = log_filter {
            command.env("RUST_LOG", filter);
        }
        if let Some(ms) = clock_offset_ms {
            command.arg(format!("--clock-offset-ms={ms}"));
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {}", path.display()))?;
        let pid =
            child.id().with_context(|| format!("{} ended at once: see {}", node.name, log.display()))?;
        self.running.push(Running { name: node.name.clone(), pid, config: node.config(&self.dir), log });
        write_private(&self.dir.join("pids.json"), &serde_json::to_vec(&self.running)?)?;
        let (exit, name) = (self.exit.clone(), node.name.clone());
        self.env.spawn("wait for a daemon", async move {
            // Nobody listens any more only when everything is over.
            let _ = exit.send((name, child.wait().await));
        });
        Ok(())
    }

    /// The process of the daemon `name`, if it runs.
    pub(super) fn pid(&self, name: &str) -> Option<u32> {
        self.running.iter().find(|daemon| daemon.name == name).map(|daemon| daemon.pid)
    }

    /// Fails if a daemon ended, with the end of its log.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.exits.try_recv() {
            Ok((name, status)) => Err(anyhow::anyhow!(self.take_exit(&name, status))),
            Err(_) => Ok(()),
        }
    }

    /// Waits until a daemon ends, and says so. The others go on.
    pub(super) async fn report_exit(&mut self) {
        if let Some((name, status)) = self.exits.recv().await {
            let what = self.take_exit(&name, status);
            eprintln!("{what}\nThe other daemons go on.");
        }
    }

    /// Forgets a daemon that ended; how it ended, with the end of its log.
    fn take_exit(&mut self, name: &str, status: std::io::Result<ExitStatus>) -> String {
        let how = match status {
            Ok(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was ended by signal {signal}"),
                (None, Some(code)) => format!("ended with exit code {code}"),
                (None, None) => "ended".to_owned(),
            },
            Err(error) => format!("cannot be watched: {error}"),
        };
        let Some(i) = self.running.iter().position(|daemon| daemon.name == name) else {
            return format!("{name} {how}.");
        };
        let daemon = self.running.remove(i);
        let log = daemon.log.display();
        match tail(&daemon.log) {
            Ok(lines) if lines.is_empty() => format!("{name} {how}; {log} is empty."),
            Ok(lines) => format!("{name} {how}. The end of {log}:\n  {}", lines.join("\n  ")),
            Err(error) => format!("{name} {how}; {log} cannot be read: {error}"),
        }
    }

    /// Asks every daemon to stop, waits, and kills those that do not.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for daemon in &self.running {
            signal(daemon.pid, Signal::TERM);
        }
        let all = async {
            while !self.running.is_empty() {
                let Some((name, _)) = self.exits.recv().await else { break };
                self.running.retain(|daemon| daemon.name != name);
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_ok() {
            return super::remove_if_there(&self.dir.join("pids.json"));
        }
        let mut names = Vec::new();
        for daemon in &self.running {
            signal(daemon.pid, Signal::KILL);
            names.push(daemon.name.as_str());
        }
        anyhow::bail!(
            "did not stop within {} s and were killed: {}",
            STOP_TIMEOUT.as_secs(),
            names.join(", ")
        )
    }
}

/// Sends a signal; a process that is gone needs none.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> std::io::Result<Vec<String>> {
    let mut file = std::fs::OpenOptions::new().read(true).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(ToString::to_string).collect())
}

/// Whether `pid` is a process that runs with the configuration file `config`.
fn runs_with(pid: u32, config: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|byte| *byte == 0);
    words.any(|word| word == config.as_os_str().as_encoded_bytes())
}

/// Stops the daemons of an earlier run on `dir` that was killed itself. The directory is locked, and a process
/// is touched only if its command line names our configuration file.
pub(super) async fn stop_leftovers(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("pids.json");
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    let left: Vec<Running> =
        serde_json::from_slice(&text).with_context(|| format!("{} is not understood", path.display()))?;
    for daemon in left.iter().filter(|daemon| runs_with(daemon.pid, &daemon.config)) {
        eprintln!("{} (pid {}) is left from an earlier run: stopping it.", daemon.name, daemon.pid);
        signal(daemon.pid, Signal::TERM);
        let Some(pid) = i32::try_from(daemon.pid).ok().and_then(Pid::from_raw) else { continue };
        for _ in 0..STOP_TIMEOUT.as_millis() / 50 {
            if test_kill_process(pid).is_err() || !runs_with(daemon.pid, &daemon.config) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::ensure!(
            !runs_with(daemon.pid, &daemon.config),
            "{} (pid {}) does not stop: end it, then start again",
            daemon.name,
            daemon.pid
        );
    }
    super::remove_if_there(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text: Vec<String> = (0..100).map(|i| format!("line {i}")).collect();
        std::fs::write(&path, text.join("\n")).unwrap();
        let lines = tail(&path).unwrap();
        assert_eq!((lines.len(), lines[0].as_str(), lines[14].as_str()), (15, "line 85", "line 99"));
        std::fs::write(&path, "").unwrap();
        assert!(tail(&path).unwrap().is_empty());
    }

    /// A process that names `config` on its command line and runs until it is told to stop.
    fn sleeper(config: &Path) -> std::process::Child {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "read line"]).arg(config).stdin(Stdio::piped()).spawn().unwrap()
    }

    #[tokio::test]
    async fn leftovers_are_stopped_and_strangers_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("a/config.toml");
        let mut ours = sleeper(&config);
        let mut stranger = sleeper(&dir.path().join("b"));
        // A shell is not running its command line yet right after the spawn.
        while !runs_with(ours.id(), &config) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let entry =
            |name: &str, pid| Running { name: name.into(), pid, config: config.clone(), log: "".into() };
        let pids = serde_json::to_vec(&[entry("a", ours.id()), entry("b", stranger.id())]).unwrap();
        std::fs::write(dir.path().join("pids.json"), pids).unwrap();
        stop_leftovers(dir.path()).await.unwrap();
        assert_eq!(ours.wait().unwrap().signal(), Some(15));
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(!dir.path().join("pids.json").exists());
    }
}
