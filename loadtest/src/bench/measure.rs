//! Running one case: clients in a closed loop, histograms merged, CPU and memory of processes read around it.

use crate::client::{Error, S3};
use crate::cluster::{Usage, usage_of};
use crate::report::{Case, Latency, RoleUsage};
use crate::workload::together;
use anyhow::{Context as _, Result};
use hayloft_common::env::Env;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest latency that is told apart: an hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// When a case ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// After this many operations, without a warm-up.
    Ops(u64),
    /// After this time, following a warm-up that is not counted; or when `at_most` operations are used up.
    Time { warm_up: Duration, measured: Duration, at_most: u64 },
}

/// What one client measured.
struct Tally {
    latency: Histogram<u64>,
    bytes: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn new() -> Result<Self> {
        let latency = Histogram::new_with_bounds(1, LONGEST, 3).context("histogram bounds")?;
        Ok(Self { latency, bytes: 0, errors: BTreeMap::new() })
    }

    fn note(&mut self, took: Duration, result: Result<u64, Error>) {
        match result {
            Ok(bytes) => {
                self.latency.saturating_record((took.as_micros() as u64).max(1));
                self.bytes += bytes;
            }
            Err(error) => *self.errors.entry(error.kind()).or_default() += 1,
        }
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        self.latency.add(&other.latency).context("histograms of different bounds")?;
        self.bytes += other.bytes;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        Ok(())
    }
}

/// Measures cases against one service.
pub(super) struct Meter {
    pub(super) env: Env,
    pub(super) s3: S3,
    /// Process ids by role, as they are written under /proc.
    roles: BTreeMap<String, Vec<String>>,
}

impl Meter {
    pub(super) fn new(env: Env, s3: S3, roles: BTreeMap<String, Vec<String>>) -> Self {
        Self { env, s3, roles }
    }

    fn usage(&self) -> Result<BTreeMap<String, Usage>> {
        let sum = |pids: &Vec<String>| {
            pids.iter()
                .try_fold(Usage::default(), |sum, pid| Ok::<_, anyhow::Error>(sum.plus(usage_of(pid)?)))
        };
        self.roles.iter().map(|(role, pids)| Ok((role.clone(), sum(pids)?))).collect()
    }

    /// Runs `operation`, which is given the number of the operation (0, 1, 2 …) and returns the bytes it moved.
    /// Returns the case and how many operations were begun.
    pub(super) async fn run<F, W>(
        &self,
        name: &str,
        concurrency: usize,
        until: Until,
        operation: F,
    ) -> Result<(Case, u64)>
    where
        F: Fn(S3, u64) -> W + Clone + Send + 'static,
        W: Future<Output = Result<u64, Error>> + Send,
    {
        let bar = progress(name, until);
        let next = Arc::new(AtomicU64::new(0));
        let begun = self.env.now();
        let (measure_from, measure_until, at_most) = match until {
            Until::Ops(count) => (begun, Duration::MAX, count),
            Until::Time { warm_up, measured, at_most } => {
                (begun + warm_up, begun + warm_up + measured, at_most)
            }
        };
        let mut work = Vec::new();
        for _ in 0..concurrency {
            let (env, s3, bar) = (self.env.clone(), self.s3.clone(), bar.clone());
            let (operation, next) = (operation.clone(), Arc::clone(&next));
            let mut tally = Tally::new()?;
            work.push(async move {
                loop {
                    let start = env.now();
                    if start >= measure_until {
                        break;
                    }
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= at_most {
                        break;
                    }
                    let result = operation(s3.clone(), index).await;
                    let end = env.now();
                    if start >= measure_from {
                        tally.note(end.saturating_sub(start), result);
                    }
                    match until {
                        Until::Ops(_) => bar.inc(1),
                        Until::Time { .. } => bar.set_position(end.saturating_sub(begun).as_millis() as u64),
                    }
                }
                tally
            });
        }
        // CPU is counted from the end of the warm-up; the sleeper shares the clock of the clients.
        let wait = measure_from.saturating_sub(self.env.now());
        let clients = together(&self.env, "bench-client", work);
        let (tallies, before) = futures::future::join(clients, async {
            tokio::time::sleep(wait).await;
            self.usage()
        })
        .await;
        let ended = self.env.now();
        let (before, after) = (before?, self.usage()?);
        bar.finish_and_clear();
        let mut total = Tally::new()?;
        for tally in tallies {
            total.merge(&tally.context("a client of the benchmark panicked")?)?;
        }
        let seconds = ended.saturating_sub(measure_from).as_secs_f64();
        let case = finish(name, concurrency, seconds, &total, &before, &after);
        println!("{}", line(&case));
        Ok((case, next.load(Ordering::Relaxed).min(at_most)))
    }
}

fn finish(
    name: &str,
    concurrency: usize,
    seconds: f64,
    total: &Tally,
    before: &BTreeMap<String, Usage>,
    after: &BTreeMap<String, Usage>,
) -> Case {
    let ops = total.latency.len();
    let per = |amount: f64, of: f64| if of > 0.0 { amount / of } else { 0.0 };
    let usage = after.iter().map(|(role, after)| {
        let earlier = before.get(role).map_or(0.0, |usage| usage.cpu_seconds);
        let cpu_seconds = (after.cpu_seconds - earlier).max(0.0);
        let usage = RoleUsage {
            cpu_seconds,
            cpu_us_per_op: per(cpu_seconds * 1e6, ops as f64),
            cpu_s_per_gb: per(cpu_seconds, total.bytes as f64 / 1e9),
            rss_mib: after.rss_kib as f64 / 1024.0,
            peak_mib: after.peak_kib as f64 / 1024.0,
        };
        (role.clone(), usage)
    });
    Case {
        name: name.to_owned(),
        concurrency,
        ops,
        errors: total.errors.values().sum(),
        error_kinds: total.errors.clone(),
        seconds,
        bytes: total.bytes,
        ops_per_second: per(ops as f64, seconds),
        mb_per_second: per(total.bytes as f64 / 1e6, seconds),
        latency_us: Latency::of(&total.latency),
        usage: usage.collect(),
    }
}

fn line(case: &Case) -> String {
    let row = case.row();
    let mut text =
        format!("{:<20} {:>9} op/s {:>9} MB/s  p50 {} p99 {}", row[0], row[3], row[4], row[5], row[7]);
    if case.errors > 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, "  {} errors: {:?}", case.errors, case.error_kinds);
    }
    text
}

fn progress(name: &str, until: Until) -> ProgressBar {
    let (length, template) = match until {
        Until::Ops(count) => (count, "{msg:20} {wide_bar} {pos}/{len}"),
        Until::Time { warm_up, measured, .. } => {
            ((warm_up + measured).as_millis() as u64, "{msg:20} {wide_bar} {elapsed}")
        }
    };
    let bar = ProgressBar::new(length).with_message(name.to_owned());
    // The templates are constants; were one wrong, the default style would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_tallies_have_the_percentiles_of_all_operations() {
        let mut total = Tally::new().unwrap();
        for half in [0..500u64, 500..1000] {
            let mut tally = Tally::new().unwrap();
            for millis in half {
                tally.note(Duration::from_millis(millis + 1), Ok(10));
            }
            tally.note(Duration::ZERO, Err(Error::Malformed("x".into())));
            total.merge(&tally).unwrap();
        }
        let latency = Latency::of(&total.latency);
        let near = |value: u64, expected: f64| (value as f64 / expected - 1.0).abs() < 0.002;
        assert!(
            near(latency.p50, 500e3) && near(latency.p99, 990e3) && near(latency.max, 1000e3),
            "{latency:?}"
        );
        assert_eq!((total.latency.len(), total.bytes, total.errors["malformed"]), (1000, 10_000, 2));
    }

    #[test]
    fn cpu_is_reckoned_for_each_operation_and_byte_of_the_measured_part() {
        let mut total = Tally::new().unwrap();
        for _ in 0..100 {
            total.note(Duration::from_millis(1), Ok(10_000_000));
        }
        let usage = |cpu_seconds| {
            BTreeMap::from([("gateway".to_owned(), Usage { cpu_seconds, rss_kib: 2048, peak_kib: 4096 })])
        };
        let case = finish("x", 1, 2.0, &total, &usage(1.0), &usage(1.5));
        let gateway = case.usage["gateway"];
        assert!((gateway.cpu_us_per_op - 5000.0).abs() < 1e-6 && (gateway.cpu_s_per_gb - 0.5).abs() < 1e-9);
        assert!((case.ops_per_second - 50.0).abs() < 1e-9 && (case.mb_per_second - 500.0).abs() < 1e-9);
    }
}
