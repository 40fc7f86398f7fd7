//! Many large transfers at once through one gateway: its memory stays bounded; and little is used at rest.

use super::CrashArgs;
use crate::cluster::{Role, Usage, machine_disk_free, reset_peak, usage_of};
use crate::testbed::{Testbed, no_failures};
use crate::workload::{Keys, observe, together};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::time::Duration;

/// Most resident memory of a process that does nothing, in MiB.
const IDLE_LIMITS_MIB: [(Role, u64); 2] = [(Role::Gateway, 32), (Role::Storage, 64)];
/// Rest before memory at rest is read.
const REST: Duration = Duration::from_secs(20);

pub(super) async fn run(setup: &mut Testbed, args: &CrashArgs) -> Result<String> {
    let size = args.transfer_mib << 20;
    let config = &setup.processes.cluster.storage.first().map(|node| node.config.clone());
    if let Some(dir) = config.as_deref().and_then(std::path::Path::parent) {
        let (free, needed) = (machine_disk_free(dir)?, args.transfers * size * 3 + (4 << 30));
        if free < needed {
            bail!(
                "needs {} GiB of disk, {} GiB are free: lower --transfers or --transfer-mib",
                needed >> 30,
                free >> 30
            );
        }
    }
    let (site, prefix) = setup.site("memory");
    let site = site.through(setup.s3.pinned(0));
    let keys = Keys::new(&prefix, args.transfers as u32);
    tokio::time::sleep(REST).await;
    let idle = figures(setup, |usage| usage.rss_kib)?;
    println!("  idle: {}", text(&idle));
    for (_, pid) in setup.processes.cluster.pids() {
        reset_peak(pid)?;
    }
    let up = keys.all().map(|key| {
        let site = site.clone();
        async move { site.write(&key, size, None).await }
    });
    together(&setup.env, "upload", up).await;
    no_failures(&site)?;
    let up = figures(setup, |usage| usage.peak_kib)?;
    println!("  {} uploads of {} MiB at once: {}", args.transfers, args.transfer_mib, text(&up));

    for (_, pid) in setup.processes.cluster.pids() {
        reset_peak(pid)?;
    }
    let down = keys.all().map(|key| {
        let site = site.clone();
        async move { observe(&site, &key).await }
    });
    together(&setup.env, "download", down).await;
    no_failures(&site)?;
    if let Some(violation) = site.violations.lock().first() {
        bail!("{violation}");
    }
    let down = figures(setup, |usage| usage.peak_kib)?;
    println!("  {} downloads at once: {}", args.transfers, text(&down));
    for key in keys.all() {
        site.delete(&key).await;
    }
    tokio::time::sleep(REST).await;
    let after = figures(setup, |usage| usage.rss_kib)?;
    println!("  {} s after it: {}", REST.as_secs(), text(&after));
    for (role, limit) in IDLE_LIMITS_MIB {
        let used = idle.get(role.name()).copied().unwrap_or(0);
        if used > limit << 10 {
            bail!("an idle {} uses {} MiB, {limit} are allowed", role.name(), used >> 10);
        }
    }
    let worst = up.get("gateway").max(down.get("gateway")).copied().unwrap_or(0);
    if worst > args.memory_limit_mib << 10 {
        bail!("the gateway used {} MiB, {} are allowed", worst >> 10, args.memory_limit_mib);
    }
    let list = [("idle", idle), ("uploading", up), ("downloading", down), ("after", after)];
    Ok(list.map(|(when, figures)| format!("{when} {}", text(&figures))).join("; "))
}

/// A figure, in KiB, of the process of each role that has most of it.
fn figures(setup: &Testbed, figure: impl Fn(Usage) -> u64) -> Result<BTreeMap<&'static str, u64>> {
    let mut most = BTreeMap::new();
    for (role, pid) in setup.processes.cluster.pids() {
        let of_role = most.entry(Role::name(role)).or_insert(0);
        *of_role = figure(usage_of(pid)?).max(*of_role);
    }
    Ok(most)
}

fn text(peaks: &BTreeMap<&'static str, u64>) -> String {
    let each = peaks.iter().map(|(role, kib)| format!("{role} {} MiB", kib >> 10));
    each.collect::<Vec<_>>().join(", ")
}
