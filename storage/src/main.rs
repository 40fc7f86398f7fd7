//! `hayloft-storage`: reads its configuration file and runs a storage node until SIGTERM or Ctrl-C. Its sub-commands work
//! on a node that is stopped.

use clap::{Parser, Subcommand};
use hayloft_common::config::StorageConfig;
use hayloft_common::env::{Env, stop_signal};
use hayloft_common::telemetry;
use hayloft_storage::daemon;
use hayloft_storage::data_disks::Rebuilt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The Hayloft storage daemon: keeps metadata and blocks on the disks of one machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The TOML configuration file; deploy/config/storage.example.toml documents every key.
    #[arg(
        short,
        long,
        global = true,
        env = "HAYLOFT_STORAGE_CONFIG",
        default_value = "/etc/hayloft/storage.toml"
    )]
    config: PathBuf,
    /// Print this node's id (made at the first start) and exit.
    #[arg(long)]
    print_node_id: bool,
    /// For tests: pretend that the wall clock is off by this many milliseconds.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "MS")]
    clock_offset_ms: i64,
    #[command(subcommand)]
    command: Option<Command>,
}

/// For a node that is stopped.
#[derive(Subcommand)]
enum Command {
    /// Rebuild the index of blocks from what lies on the data disks alone. May be interrupted and run again. The next
    /// start compares blocks with references, and lets go what nothing refers to.
    RebuildIndex,
    /// Take the empty directory at PATH for a new disk, though this node knew another one there. The blocks of that one
    /// are fetched from other nodes.
    AcceptDisk {
        /// As it stands in `data_dir`.
        path: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hayloft-storage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = StorageConfig::load(&arguments.config)?;
    if arguments.print_node_id {
        println!("{}", daemon::identity(&config)?.id());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(std::time::Duration::from_mins(1))
        .build()?;
    runtime.block_on(async {
        let telemetry = telemetry::init(&config.log, &config.trace, "hayloft-storage")?;
        let env = Env::real_with_clock_offset(arguments.clock_offset_ms);
        let result = match &arguments.command {
            None => daemon::run(&config, env.clone(), stop_signal()).await,
            Some(Command::RebuildIndex) => rebuild_index(&config, &env).await,
            Some(Command::AcceptDisk { path }) => accept_disk(&config, path),
        };
        telemetry.shutdown(&env).await;
        result
    })
}

async fn rebuild_index(config: &StorageConfig, env: &Env) -> anyhow::Result<()> {
    println!("Reading all data disks; this takes as long as reading all packed blocks does.");
    let mut progress = |so_far: &Rebuilt| println!("  {} blocks, {} bytes", so_far.blocks, so_far.bytes);
    let found = daemon::rebuild_index(config, env, &mut progress).await?;
    println!("Found {} blocks, {} bytes.", found.blocks, found.bytes);
    println!("{} were found more than once (released or moved, and not compacted yet).", found.duplicates);
    println!("{} places hold bytes that are no block.", found.damaged);
    println!("{} entries of the old index were replaced.", found.dropped);
    Ok(())
}

fn accept_disk(config: &StorageConfig, path: &Path) -> anyhow::Result<()> {
    let was = daemon::accept_disk(config, path)?;
    println!(
        "{} is no longer known as disk {was}. The next start takes it for a new disk, if it is empty.",
        path.display()
    );
    Ok(())
}
