//! Benchmarks of any S3 endpoint: small objects, throughput, listing.
//!
//! Closed loop: N clients, each sending its next request when the last was answered. Each case warms up, then runs
//! for a fixed time or number of operations. CPU time and memory of the server's processes are read from /proc
//! where their process ids are known.

mod cases;
mod measure;

use crate::client::{S3, Settings};
use crate::cluster::{Cluster, Role};
use crate::report::{Machine, Report, Table, compare};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use hayloft_common::env::Env;
use measure::Meter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// S3 endpoint, such as http://127.0.0.1:3900; may be given several times, requests take turns.
    #[arg(long, required_unless_present = "cluster")]
    endpoint: Vec<String>,
    /// Access key.
    #[arg(long, env = "AWS_ACCESS_KEY_ID", required_unless_present = "cluster")]
    access_key: Option<String>,
    /// Secret key.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true, required_unless_present = "cluster")]
    secret_key: Option<String>,
    /// Region to sign for.
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    region: String,
    /// Bucket; created if it is not there.
    #[arg(long, required_unless_present = "cluster")]
    bucket: Option<String>,
    /// Cluster file of `hayloft dev --json`: gives endpoints, keys, bucket and process ids.
    #[arg(long, conflicts_with_all = ["endpoint", "bucket"])]
    cluster: Option<PathBuf>,
    /// More server processes to measure, as ROLE=PID; may be repeated.
    #[arg(long, value_parser = role_and_pid)]
    pid: Vec<(String, u32)>,
    /// Certificates to trust besides the system's (PEM).
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// Sign payloads (SHA-256) instead of sending UNSIGNED-PAYLOAD.
    #[arg(long)]
    sign_payload: bool,
    /// Name of this run in reports.
    #[arg(long, default_value = "")]
    label: String,
    /// Write the result here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Run only cases whose name contains one of these texts (such as put/1KiB, list, 64MiB).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seconds measured of each case of small objects and of 1 MiB.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds of warm-up before each of these.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Clients at a time, for small objects.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    concurrency: Vec<usize>,
    /// 64 MiB objects, up and down.
    #[arg(long, default_value_t = 16)]
    medium_count: u64,
    /// 1 GiB objects, up and down.
    #[arg(long, default_value_t = 2)]
    large_count: u64,
    /// Keys in the listing.
    #[arg(long, default_value_t = 10_000)]
    list_keys: u64,
    /// Compare every byte read with what was written (costs client CPU).
    #[arg(long)]
    verify: bool,
    /// Leave the objects there.
    #[arg(long)]
    keep: bool,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Result to compare with.
    first: PathBuf,
    /// Result to be judged: ratios are this one's figures divided by the first's.
    second: PathBuf,
}

fn role_and_pid(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=').and_then(|(role, pid)| Some((role.to_owned(), pid.parse().ok()?)));
    parts.ok_or_else(|| "write ROLE=PID, such as server=1234".into())
}

impl BenchArgs {
    fn settings(&self) -> Result<(Settings, Vec<(String, u32)>)> {
        let timeout = Duration::from_mins(1);
        let mut pids = self.pid.clone();
        let settings = if let Some(path) = &self.cluster {
            let cluster = Cluster::read(path)?;
            pids.extend(cluster.pids().into_iter().map(|(role, pid)| (Role::name(role).to_owned(), pid)));
            cluster.settings(timeout)
        } else {
            Settings {
                endpoints: self.endpoint.clone(),
                access_key: self.access_key.clone().context("--access-key is missing")?,
                secret_key: self.secret_key.clone().context("--secret-key is missing")?,
                region: self.region.clone(),
                bucket: self.bucket.clone().context("--bucket is missing")?,
                sign_payload: false,
                ca_file: None,
                timeout,
            }
        };
        Ok((Settings { sign_payload: self.sign_payload, ca_file: self.ca_file.clone(), ..settings }, pids))
    }

    /// Whether a case was asked for.
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

/// Runs the benchmark, prints its table, writes its JSON.
pub async fn run(env: &Env, args: &BenchArgs) -> Result<()> {
    if args.concurrency.contains(&0) || args.seconds <= 0.0 {
        bail!("--concurrency and --seconds must be above 0");
    }
    let (settings, pids) = args.settings()?;
    let s3 = S3::new(env.clone(), &settings)?;
    if s3.head_bucket().await.is_err() {
        s3.create_bucket().await.context("the bucket is not there and cannot be created")?;
    }
    let mut roles: BTreeMap<String, Vec<String>> = BTreeMap::new();
    roles.insert("client".into(), vec!["self".into()]);
    for (role, pid) in pids {
        roles.entry(role).or_default().push(pid.to_string());
    }
    let now = i64::try_from(env.wall_micros()).context("clock out of range")?;
    let machine = Machine::here();
    println!(
        "{} {}: {} cores ({}), {} MiB, {}",
        if args.label.is_empty() { "bench" } else { &args.label },
        settings.endpoints.join(" "),
        machine.cores,
        machine.cpu,
        machine.memory_mib,
        machine.kernel
    );
    let mut report = Report {
        label: args.label.clone(),
        date: jiff::Timestamp::from_microsecond(now)?.to_string(),
        machine,
        endpoints: settings.endpoints.clone(),
        cases: Vec::new(),
    };
    let meter = Meter::new(env.clone(), s3, roles);
    let result = cases::all(&meter, args, &mut report).await;
    if !report.cases.is_empty() {
        let mut table = Table::new(crate::report::HEADS.map(str::to_owned));
        for case in &report.cases {
            table.row(case.row());
        }
        println!("\n{table}");
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {}", path.display());
    }
    result?;
    let errors: u64 = report.cases.iter().map(|case| case.errors).sum();
    if errors > 0 {
        bail!("{errors} requests failed: see the table and error_kinds in the JSON");
    }
    Ok(())
}

/// Prints the comparison of two results.
pub fn run_compare(args: &CompareArgs) -> Result<()> {
    let read = |path: &Path| -> Result<Report> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a result", path.display()))
    };
    let (first, second) = (read(&args.first)?, read(&args.second)?);
    if first.machine != second.machine {
        println!("warning: the two were measured on different machines");
    }
    println!("{}", compare(&first, &second));
    Ok(())
}
