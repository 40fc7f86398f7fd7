//! Objects are written and deleted: after collection the disks hold what an empty cluster's hold, and nothing is left
//! over that no object needs.

use super::{Context, QUICK, end};
use crate::cluster::{disk_usage, file_lengths};
use crate::testbed::{Shape, Testbed, data_dirs, delete_keys, fill, metadata_dir};
use crate::workload::Keys;
use anyhow::{Context as _, Result, bail, ensure};
use std::time::Duration;

/// Between two looks at the disks.
const LOOK: Duration = Duration::from_secs(5);
/// What may stay, in percent of the empty cluster's.
const TOLERANCE: u64 = 5;

pub(super) async fn run(cx: &mut Context<'_>) -> Result<()> {
    // Nothing is ever late here: what was not committed can be looked at early.
    let storage_toml = QUICK.replace("uncommitted_age = \"1m\"", "uncommitted_age = \"10s\"");
    let bed = cx.cluster(Shape { storage_toml, ..Shape::default() }).await?;
    let result = work(cx, &bed).await;
    end(bed, result).await
}

/// Bytes of metadata and of blocks on the disks of all nodes. Of metadata the lengths of files count: the engine
/// reserves its journal in advance and fills it slowly, also in an empty cluster; what of it is written is told too.
fn usage(bed: &Testbed) -> Result<(u64, u64)> {
    let (mut sum, mut written) = ((0, 0), 0);
    for node in &bed.processes.cluster.storage {
        let metadata = metadata_dir(&node.config)?;
        sum.0 += file_lengths(&metadata);
        written += disk_usage(&metadata);
        sum.1 += data_dirs(&node.config)?.iter().map(|dir| disk_usage(dir)).sum::<u64>();
    }
    println!("  written of the metadata: {} KiB of {} KiB", written >> 10, sum.0 >> 10);
    Ok(sum)
}

async fn work(cx: &mut Context<'_>, bed: &Testbed) -> Result<()> {
    let (site, prefix) = bed.site("collect");
    let keys = Keys::new(&prefix, cx.args.objects());
    bed.converged(true, cx.args.limit()).await.context("while empty")?;
    let empty = usage(bed)?;
    cx.figures.mib("empty: metadata", empty.0);
    cx.figures.mib("empty: blocks", empty.1);
    // Some within their row, most in blocks, some with several.
    let size = |index: u32| match index % 10 {
        0..4 => 1 << 10,
        4..9 => 20 << 10,
        _ => 150 << 10,
    };
    let (bytes, took) = fill(&site, &keys, size).await.context("filling")?;
    cx.figures.mib("written", bytes);
    cx.figures.add("written at", f64::from(keys.count()) / took.as_secs_f64(), "objects/s");
    let full = usage(bed)?;
    cx.figures.mib("full: metadata", full.0);
    cx.figures.mib("full: blocks", full.1);
    ensure!(full.0 + full.1 > 2 * bytes, "the disks do not hold what was written");
    let start = bed.env.now();
    delete_keys(&site, &keys, |_| true).await?;
    cx.figures.seconds("deleted in", bed.env.now().saturating_sub(start));
    bed.converged(true, cx.args.limit()).await.context("collecting")?;
    cx.figures.seconds("nothing left to collect after", bed.env.now().saturating_sub(start));
    let before = usage(bed)?;
    cx.figures.mib("collected: metadata", before.0);
    cx.figures.mib("collected: blocks", before.1);
    // The space of removed rows and small blocks comes back when files are rewritten, which waits until it pays.
    bed.operator.run(&["repair", "compact"]).await?;
    loop {
        let now = usage(bed)?;
        let (left, allowed) = (now.0 + now.1, (empty.0 + empty.1) * (100 + TOLERANCE) / 100);
        let waited = bed.env.now().saturating_sub(start);
        if left <= allowed {
            cx.figures.seconds("space back after", waited);
            cx.figures.mib("left: metadata", now.0);
            cx.figures.mib("left: blocks", now.1);
            break;
        }
        if waited > cx.args.limit() {
            bail!(
                "after {waited:?} {} KiB of metadata and {} KiB of blocks are left; empty were {} and {}",
                now.0 >> 10,
                now.1 >> 10,
                empty.0 >> 10,
                empty.1 >> 10
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    let listed = site.s3.list_all(&prefix).await?;
    ensure!(listed.is_empty(), "{} deleted objects are listed", listed.len());
    Ok(())
}
