//! Many large transfers at once through one gateway: its memory stays bounded.

use super::CrashArgs;
use super::setup::Setup;
use super::verify::no_failures;
use crate::cluster::{Role, machine_disk_free, reset_peak, usage_of};
use crate::workload::{Keys, observe, together};
use anyhow::{Result, bail};
use std::collections::BTreeMap;

pub(super) async fn run(setup: &mut Setup, args: &CrashArgs) -> Result<String> {
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
    let idle = peaks(setup)?;
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
    let up = peaks(setup)?;
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
    let down = peaks(setup)?;
    println!("  {} downloads at once: {}", args.transfers, text(&down));
    for key in keys.all() {
        site.delete(&key).await;
    }
    let worst = up.get("gateway").max(down.get("gateway")).copied().unwrap_or(0);
    if worst > args.memory_limit_mib << 10 {
        bail!("the gateway used {} MiB, {} are allowed", worst >> 10, args.memory_limit_mib);
    }
    Ok(format!("idle {}; uploading {}; downloading {}", text(&idle), text(&up), text(&down)))
}

/// The highest resident memory of the largest process of each role, in KiB.
fn peaks(setup: &Setup) -> Result<BTreeMap<&'static str, u64>> {
    let mut peaks = BTreeMap::new();
    for (role, pid) in setup.processes.cluster.pids() {
        let peak = peaks.entry(Role::name(role)).or_insert(0);
        *peak = usage_of(pid)?.peak_kib.max(*peak);
    }
    Ok(peaks)
}

fn text(peaks: &BTreeMap<&'static str, u64>) -> String {
    let each = peaks.iter().map(|(role, kib)| format!("{role} {} MiB", kib >> 10));
    each.collect::<Vec<_>>().join(", ")
}
