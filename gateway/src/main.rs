//! `hayloft-gateway`: reads its configuration file and runs a gateway until SIGTERM or Ctrl-C.

use clap::Parser;
use hayloft_common::config::GatewayConfig;
use hayloft_common::env::{Env, stop_signal};
use hayloft_common::telemetry;
use hayloft_gateway::daemon;
use std::path::PathBuf;
use std::process::ExitCode;

/// The Hayloft gateway: serves S3 from the storage nodes of a cluster. It keeps no state.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The TOML configuration file; deploy/config/gateway.example.toml documents every key.
    #[arg(short, long, env = "HAYLOFT_GATEWAY_CONFIG", default_value = "/etc/hayloft/gateway.toml")]
    config: PathBuf,
    /// For tests: pretend that the wall clock is off by this many milliseconds.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "MS")]
    clock_offset_ms: i64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hayloft-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = GatewayConfig::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::init(&config.log, &config.trace, "hayloft-gateway")?;
        let env = Env::real_with_clock_offset(arguments.clock_offset_ms);
        let result = daemon::run(&config, env.clone(), stop_signal()).await;
        telemetry.shutdown(&env).await;
        result
    })
}
