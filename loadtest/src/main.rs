//! `hayloft-loadtest`: benchmarks and crash tests.

use anyhow::Result;
use clap::{Parser, Subcommand};
use hayloft_common::env::Env;
use hayloft_loadtest::{bench, crash};
use std::process::ExitCode;

/// Benchmarks any S3 endpoint, and crashes Hayloft clusters to see that nothing is lost.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure an S3 endpoint: small objects, throughput, listing.
    Bench(Box<bench::BenchArgs>),
    /// Compare two results of `bench --json`.
    Compare(bench::CompareArgs),
    /// Crash a development cluster under load and verify what it holds afterwards.
    Crash(Box<crash::CrashArgs>),
}

async fn run(command: Command) -> Result<()> {
    let env = Env::real();
    match command {
        Command::Bench(args) => bench::run(&env, &args).await,
        Command::Compare(args) => bench::run_compare(&args),
        Command::Crash(args) => crash::run(&env, &args).await,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
