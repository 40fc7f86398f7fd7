//! Scripted faults on a real cluster: kill its processes, damage its disks, set its clocks wrong, and verify.
//!
//! Faults injected: SIGKILL of any daemon or of all at once, damaged block files of one node, gateway clocks off by
//! years, memory pressure by many large transfers. What must hold: nothing acknowledged is lost or changed, deletes
//! stay, no write is torn, listings equal the set of objects, and one dead node is not noticed by clients.
//! Not here: power cuts that lose what was written but not synced (see the simulator), bad networks.

mod clock;
mod damage;
mod kill_gateway;
mod kill_one;
mod memory;
mod rounds;

use crate::testbed::{Programs, Shape, Testbed};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use hayloft_common::env::Env;
use std::path::PathBuf;
use std::time::Duration;

/// What to do to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Kill every daemon at once while clients write; restart; verify everything. Many rounds.
    Rounds,
    /// Kill one storage node after the other under load: no request may fail.
    KillOne,
    /// Kill a gateway in the middle of a large upload: the old object is intact, another gateway serves at once.
    KillGatewayMidUpload,
    /// Damage block files of one node: every read still returns the right bytes.
    Damage,
    /// Gateways whose clocks are off by an hour and by ten years overwrite and delete.
    Clock,
    /// Many large transfers through one gateway at once: its memory stays bounded.
    Memory,
    /// All of these, one after another.
    All,
}

/// Options of `crash`.
#[derive(Debug, Args)]
pub struct CrashArgs {
    /// Cluster file of a running `hayloft dev --json FILE`; process ids in it are updated when daemons restart.
    #[arg(long, required_unless_present = "dev_bin", conflicts_with = "dev_bin")]
    cluster: Option<PathBuf>,
    /// The `hayloft` binary: start a cluster of our own with it, and stop that at the end.
    #[arg(long)]
    dev_bin: Option<PathBuf>,
    /// Directory of the cluster that we start; by default a fresh one among the temporary files, removed if all is
    /// well.
    #[arg(long, requires = "dev_bin")]
    dir: Option<PathBuf>,
    /// The `hayloft-gateway` binary; by default the one beside this program, else the one in PATH.
    #[arg(long)]
    gateway_bin: Option<PathBuf>,
    /// The `hayloft-storage` binary; likewise.
    #[arg(long)]
    storage_bin: Option<PathBuf>,
    /// What to do.
    #[arg(long, value_enum, default_value = "rounds")]
    scenario: Scenario,
    /// Rounds of the scenario `rounds`.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Clients at a time.
    #[arg(long, default_value_t = 16)]
    clients: u64,
    /// Keys that the clients share.
    #[arg(long, default_value_t = 200)]
    keys: u32,
    /// Seed of everything that is drawn; drawn itself, and printed, if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds that a restarted cluster has to become healthy.
    #[arg(long, default_value_t = 120)]
    recovery_limit: u64,
    /// Seconds under load before and after each kill of `kill-one`.
    #[arg(long, default_value_t = 10)]
    load_seconds: u64,
    /// Transfers at a time in `memory`.
    #[arg(long, default_value_t = 16)]
    transfers: u64,
    /// Size in MiB of each transfer in `memory` and of the upload in `kill-gateway-mid-upload`.
    #[arg(long, default_value_t = 1024)]
    transfer_mib: u64,
    /// Most memory of the gateway in `memory`, in MiB (VmHWM).
    #[arg(long, default_value_t = 256)]
    memory_limit_mib: u64,
    /// Also demand that reads never go back (for buckets with monotonic reads).
    #[arg(long)]
    monotonic: bool,
}

/// Runs the scenario and says in its last line whether everything held.
pub async fn run(env: &Env, args: &CrashArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| env.random_u64() >> 16);
    let mut setup = start(env, args, seed).await?;
    println!(
        "seed {seed}; {} gateways, {} storage nodes",
        setup.s3.endpoints(),
        setup.processes.cluster.storage.len()
    );
    let chosen = match args.scenario {
        Scenario::All => vec![
            Scenario::KillOne,
            Scenario::KillGatewayMidUpload,
            Scenario::Damage,
            Scenario::Clock,
            Scenario::Memory,
            Scenario::Rounds,
        ],
        one => vec![one],
    };
    let mut failed = Vec::new();
    for scenario in chosen {
        let result = match scenario {
            Scenario::Rounds | Scenario::All => rounds::run(&mut setup, args).await,
            Scenario::KillOne => kill_one::run(&mut setup, args).await,
            Scenario::KillGatewayMidUpload => kill_gateway::run(&mut setup, args).await,
            Scenario::Damage => damage::run(&mut setup, args).await,
            Scenario::Clock => clock::run(&mut setup, args).await,
            Scenario::Memory => memory::run(&mut setup, args).await,
        };
        let name = scenario.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        match result {
            Ok(summary) => println!("PASS {name}: {summary}"),
            Err(error) => {
                println!("FAIL {name} (seed {seed}): {error:#}");
                failed.push(name);
            }
        }
    }
    setup.finish(failed.is_empty()).await?;
    if failed.is_empty() {
        println!("PASS: everything held (seed {seed})");
        Ok(())
    } else {
        bail!("FAIL: {} (seed {seed})", failed.join(", "))
    }
}

/// Finds the cluster, or starts one, and waits until it serves.
async fn start(env: &Env, args: &CrashArgs, seed: u64) -> Result<Testbed> {
    let programs = Programs {
        hayloft: args.dev_bin.clone(),
        gateway: args.gateway_bin.clone(),
        storage: args.storage_bin.clone(),
    };
    let limit = Duration::from_secs(args.recovery_limit);
    if let Some(file) = &args.cluster {
        let setup = Testbed::adopt(env, file, &programs, seed, limit)?;
        setup.healthy().await?;
        return Ok(setup);
    }
    let shape = Shape { gateways: 2, ..Shape::default() };
    Testbed::start(env, &programs, args.dir.as_deref(), &shape, seed, limit).await
}
