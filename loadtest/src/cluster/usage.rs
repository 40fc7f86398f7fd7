//! What processes use, from /proc.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What a process, or several together, use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time so far, user and system, in seconds (resolution 10 ms).
    pub cpu_seconds: f64,
    /// Resident memory now, in KiB.
    pub rss_kib: u64,
    /// Highest resident memory since the start or [`reset_peak`], in KiB.
    pub peak_kib: u64,
}

impl Usage {
    /// Sums of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            rss_kib: self.rss_kib + other.rss_kib,
            peak_kib: self.peak_kib + other.peak_kib,
        }
    }
}

/// Reads the figures of a process (`"self"` for this one).
pub fn usage_of(pid: impl std::fmt::Display) -> Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}: process gone?"))
    };
    let ticks = rustix::param::clock_ticks_per_second();
    parse(&read("stat")?, &read("status")?, ticks).with_context(|| format!("unexpected form of /proc/{pid}"))
}

fn parse(stat: &str, status: &str, ticks_per_second: u64) -> Option<Usage> {
    // The name, in brackets, may hold spaces and brackets; after it come state (field 3) and the numbers.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().split(' ').next()?.parse().ok()
    };
    // A zombie has no memory lines.
    Some(Usage {
        cpu_seconds: ticks as f64 / ticks_per_second as f64,
        rss_kib: kib("VmRSS").unwrap_or(0),
        peak_kib: kib("VmHWM").unwrap_or(0),
    })
}

/// Makes the peak of a process start anew from what it uses now.
pub fn reset_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
        .with_context(|| format!("cannot reset the peak memory of process {pid}"))
}

/// Bytes free on the file system of `path`.
pub fn machine_disk_free(path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(path).with_context(|| format!("cannot ask for space at {}", path.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Bytes that the files under `path` take on disk. What goes away meanwhile is not counted.
pub fn disk_usage(path: &Path) -> u64 {
    sum(path, &|data| data.blocks() * 512)
}

/// Lengths of the files under `path`: also what is reserved and not written yet.
pub fn file_lengths(path: &Path) -> u64 {
    sum(path, &std::fs::Metadata::len)
}

fn sum(path: &Path, size: &dyn Fn(&std::fs::Metadata) -> u64) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => sum(&entry.path(), size),
        Ok(data) => size(&data),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_whatever_the_name_of_the_process() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 1 1 1";
        let usage = parse(stat, "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  800 kB\n", 100).unwrap();
        assert_eq!(usage, Usage { cpu_seconds: 2.0, rss_kib: 800, peak_kib: 900 });
        assert!(parse("nonsense", "", 100).is_none());
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(usage_of("self").unwrap().rss_kib > 0);
    }
}
