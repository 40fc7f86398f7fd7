//! The JSON form of a benchmark's result, and how two of them compare.

use super::{Machine, Table, duration_text};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Percentiles of a case, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
}

impl Latency {
    /// Reads the percentiles off a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        }
    }
}

/// What the processes of one role used during a case, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoleUsage {
    pub cpu_seconds: f64,
    pub cpu_us_per_op: f64,
    /// CPU seconds for 10⁹ bytes of objects; 0 where no bytes move.
    pub cpu_s_per_gb: f64,
    /// Resident memory at the end.
    pub rss_mib: f64,
    /// Highest resident memory of the processes since they started, summed.
    pub peak_mib: f64,
}

/// One measured case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub name: String,
    pub concurrency: usize,
    pub ops: u64,
    pub errors: u64,
    /// Errors by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub error_kinds: BTreeMap<String, u64>,
    pub seconds: f64,
    pub bytes: u64,
    pub ops_per_second: f64,
    /// 10⁶ bytes of objects a second.
    pub mb_per_second: f64,
    pub latency_us: Latency,
    /// By role: `gateway`, `storage`, `client` (this program), or as named with `--pid`.
    pub usage: BTreeMap<String, RoleUsage>,
}

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub label: String,
    /// When it began, RFC 3339.
    pub date: String,
    pub machine: Machine,
    pub endpoints: Vec<String>,
    pub cases: Vec<Case>,
}

/// Column heads of [`Case::row`].
pub(crate) const HEADS: [&str; 10] =
    ["case", "ops", "errors", "op/s", "MB/s", "p50", "p90", "p99", "max", "CPU µs/op (s/GB)"];

impl Case {
    /// One line for people.
    pub(crate) fn row(&self) -> Vec<String> {
        let time = |micros| duration_text(Duration::from_micros(micros));
        let cpu = self.usage.iter().map(|(role, usage)| {
            if self.bytes >= self.ops << 20 && self.bytes > 0 {
                format!("{role} {:.0} ({:.2})", usage.cpu_us_per_op, usage.cpu_s_per_gb)
            } else {
                format!("{role} {:.0}", usage.cpu_us_per_op)
            }
        });
        vec![
            self.name.clone(),
            self.ops.to_string(),
            self.errors.to_string(),
            format!("{:.1}", self.ops_per_second),
            if self.bytes == 0 { "-".into() } else { format!("{:.1}", self.mb_per_second) },
            time(self.latency_us.p50),
            time(self.latency_us.p90),
            time(self.latency_us.p99),
            time(self.latency_us.max),
            cpu.collect::<Vec<_>>().join(", "),
        ]
    }
}

/// A table of two reports, with ratios second to first, for the cases that both have.
pub fn compare(first: &Report, second: &Report) -> Table {
    let name = |report: &Report, other: &str| {
        if report.label.is_empty() { other.to_owned() } else { report.label.clone() }
    };
    let (a, b) = (name(first, "A"), name(second, "B"));
    let mut table = Table::new([
        "case".into(),
        format!("op/s {a}"),
        format!("op/s {b}"),
        "ratio".into(),
        format!("p50 {a}"),
        format!("p50 {b}"),
        "ratio".into(),
        format!("p99 {a}"),
        format!("p99 {b}"),
        "ratio".into(),
        format!("server CPU µs/op {a}"),
        format!("server CPU µs/op {b}"),
        "ratio".into(),
    ]);
    let ratio = |old: f64, new: f64| {
        if old > 0.0 { format!("×{:.2}", new / old) } else { "-".into() }
    };
    let server = |case: &Case| {
        let roles = case.usage.iter().filter(|(role, _)| *role != "client");
        roles.map(|(_, usage)| usage.cpu_us_per_op).sum::<f64>()
    };
    let time = |micros: u64| duration_text(Duration::from_micros(micros));
    for old in &first.cases {
        let Some(new) = second.cases.iter().find(|case| case.name == old.name) else { continue };
        let mut row = vec![old.name.clone()];
        row.extend([
            format!("{:.1}", old.ops_per_second),
            format!("{:.1}", new.ops_per_second),
            ratio(old.ops_per_second, new.ops_per_second),
        ]);
        for (old, new) in [(old.latency_us.p50, new.latency_us.p50), (old.latency_us.p99, new.latency_us.p99)]
        {
            row.extend([time(old), time(new), ratio(old as f64, new as f64)]);
        }
        let (old, new) = (server(old), server(new));
        row.extend([format!("{old:.0}"), format!("{new:.0}"), ratio(old, new)]);
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(label: &str, ops_per_second: f64) -> Report {
        let case = Case { name: "put/1KiB/c1".into(), ops_per_second, ..Case::default() };
        Report { label: label.into(), cases: vec![case], ..Report::default() }
    }

    #[test]
    fn a_report_survives_json() {
        let report = report("x", 2.5);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn ratios_are_second_to_first_and_only_for_common_cases() {
        let mut second = report("b", 30.0);
        second.cases.push(Case { name: "only here".into(), ..Case::default() });
        let text = compare(&report("a", 10.0), &second).to_string();
        assert!(text.contains("×3.00"), "{text}");
        assert!(!text.contains("only here"));
    }
}
