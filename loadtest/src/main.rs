//! `hayloft-loadtest`: benchmarks, crash tests and simulations.

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use hayloft_common::env::Env;
use hayloft_loadtest::{bench, chaos, crash, scenario, sim};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

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
    /// Mistreat a cluster of real processes at random for a while, and verify what it holds.
    Chaos(Box<chaos::ChaosArgs>),
    /// Named disasters and changes on clusters of real processes, with figures.
    Scenario(Box<scenario::ScenarioArgs>),
    /// Simulate whole clusters with faults drawn from seeds, and check that nothing is lost.
    Sim(sim::SimArgs),
    /// Check that the simulator gives the same log for the same seed.
    Meta(sim::MetaArgs),
}

/// Runs a test that starts processes; SIGINT and SIGTERM break it off, which stops them.
async fn breakable(test: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    // Biased: a signal comes first.
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => bail!("broken off by SIGINT"),
        _ = terminate.recv() => bail!("broken off by SIGTERM"),
        result = test => result,
    }
}

fn run(command: Command) -> Result<()> {
    let env = Env::real();
    // Simulations bring a runtime of their own.
    let real = tokio::runtime::Runtime::new;
    match command {
        Command::Bench(args) => real()?.block_on(bench::run(&env, &args)),
        Command::Compare(args) => bench::run_compare(&args),
        Command::Crash(args) => real()?.block_on(breakable(crash::run(&env, &args))),
        Command::Chaos(args) => real()?.block_on(breakable(chaos::run(&env, &args))),
        Command::Scenario(args) => real()?.block_on(breakable(scenario::run(&env, &args))),
        Command::Sim(args) => sim::run(&args),
        Command::Meta(args) => sim::run_meta(&args),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
