//! `hayloft-storage`: reads its configuration file and runs a storage node until SIGTERM or Ctrl-C.

use clap::Parser;
use hayloft_common::config::StorageConfig;
use hayloft_common::env::{Env, stop_signal};
use hayloft_common::telemetry;
use hayloft_storage::daemon;
use std::path::PathBuf;
use std::process::ExitCode;

/// The Hayloft storage daemon: keeps metadata and blocks on the disks of one machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The TOML configuration file; deploy/config/storage.example.toml documents every key.
    #[arg(short, long, env = "HAYLOFT_STORAGE_CONFIG", default_value = "/etc/hayloft/storage.toml")]
    config: PathBuf,
    /// Print this node's id (made at the first start) and exit.
    #[arg(long)]
    print_node_id: bool,
    /// For tests: pretend that the wall clock is off by this many milliseconds.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "MS")]
    clock_offset_ms: i64,
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
        let result = daemon::run(&config, env.clone(), stop_signal()).await;
        telemetry.shutdown(&env).await;
        result
    })
}
