//! Disks that go: a directory deleted under a running node, and a dead disk taken out of the configuration.

use super::{Context, end};
use crate::cluster::{Daemon, Role, disk_usage, machine_disk_free};
use crate::testbed::{
    Reader, Shape, Testbed, data_dirs, delete_dir, fill, give_back_disks, no_failures, take_other_disks,
    verify,
};
use crate::workload::{Keys, Site};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The node whose disk goes.
const VICTIM: Daemon = Daemon { role: Role::Storage, index: 0 };
/// Between two looks at a disk.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes written to see what the disk can do.
const PROBE: u64 = 256 << 20;

/// A directory is deleted under a running node; nobody does anything about it.
pub(super) async fn lost(cx: &mut Context<'_>) -> Result<()> {
    with_cluster(cx, false).await
}

/// The disk is dead and the operator takes it out of the configuration.
pub(super) async fn dead(cx: &mut Context<'_>) -> Result<()> {
    with_cluster(cx, true).await
}

async fn with_cluster(cx: &mut Context<'_>, taken_out: bool) -> Result<()> {
    let mut bed = cx.cluster(Shape { disks: Some(2), ..Shape::default() }).await?;
    let result = work(cx, &mut bed, taken_out).await;
    end(bed, result).await
}

async fn work(cx: &mut Context<'_>, bed: &mut Testbed, taken_out: bool) -> Result<()> {
    let (site, prefix) = bed.site("disk");
    let mib = cx.args.mib(2048);
    let dirs = data_dirs(&bed.processes.member(VICTIM)?.config)?;
    let needed = (mib << 20) * 4 + PROBE;
    ensure!(machine_disk_free(&dirs[0])? > needed, "needs {} MiB of free disk", needed >> 20);
    cx.figures.add("sequential write of the disk", disk_speed(&dirs[0], &cx.env.clone())?, "MB/s");
    let large = (mib / 2) as u32;
    let keys = Keys::new(&prefix, large + (mib * 8) as u32);
    let (bytes, took) =
        fill(&site, &keys, move |i| if i < large { 1 << 20 } else { 64 << 10 }).await.context("filling")?;
    cx.figures.mib("data", bytes);
    cx.figures.add("written at", bytes as f64 / 1e6 / took.as_secs_f64(), "MB/s");
    bed.converged(false, cx.args.limit()).await.context("before the disk went")?;

    let usage = |dirs: &[PathBuf]| dirs.iter().map(|dir| disk_usage(dir)).sum::<u64>();
    let (before, gone) = (usage(&dirs), disk_usage(&dirs[1]));
    ensure!(gone > bytes / 10, "the second disk holds only {gone} bytes: nothing to lose");
    let links = bed.links().context("the cluster was started without links")?.clone();
    let reader = Reader::start(&site, &keys, cx.args.clients, cx.seed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let name = bed.processes.member(VICTIM)?.name.clone();
    let sent = links.bytes_of_node(&name);
    println!("  deleting {} ({} MiB)", dirs[1].display(), gone >> 20);
    let start = bed.env.now();
    if taken_out {
        bed.processes.kill(&[VICTIM]).await?;
    }
    delete_dir(&dirs[1])?;
    if taken_out {
        take_out(&bed.processes.member(VICTIM)?.config.clone(), &dirs[0])?;
        bed.restart(&[VICTIM], &[])?;
        bed.listening(VICTIM).await?;
    }
    let refilled = refill(bed, &dirs, before, start, cx.args.limit()).await?;
    let whole = bed.converged(false, cx.args.limit()).await?;
    let moved = links.bytes_of_node(&name) - sent;
    let reads = reader.stop().await?;
    no_failures(&site).context("while the disk was gone")?;
    cx.figures.mib("lost with the disk", gone);
    cx.figures.seconds("full redundancy after", refilled);
    cx.figures.add("restored at", gone as f64 / 1e6 / refilled.as_secs_f64(), "MB/s");
    cx.figures.mib("fetched from other nodes", moved);
    cx.figures.seconds("found whole by verify after another", whole);
    cx.figures.add("reads meanwhile, none failed", reads as f64, "");
    verify(bed, &site, &keys, false).await.context("after the repair")?;
    from_this_node_alone(bed, &site, &keys).await
}

/// Waits until the node's disks hold as much as before; how long after `start` that was.
async fn refill(
    bed: &Testbed,
    dirs: &[PathBuf],
    before: u64,
    start: Duration,
    limit: Duration,
) -> Result<Duration> {
    loop {
        let now: u64 = dirs.iter().map(|dir| disk_usage(dir)).sum();
        let waited = bed.env.now().saturating_sub(start);
        // Space is given out in larger pieces than blocks.
        if now as f64 >= before as f64 * 0.99 {
            return Ok(waited);
        }
        if waited > limit {
            bail!("after {waited:?} the node holds {} of {} MiB again", now >> 20, before >> 20);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every block is on this node again: with the disks of all others taken away, every read is right.
async fn from_this_node_alone(bed: &mut Testbed, site: &Site, keys: &Keys) -> Result<()> {
    let taken = take_other_disks(bed, VICTIM).await?;
    let proof = verify(bed, site, keys, false).await.context("from the repaired node alone");
    give_back_disks(bed, VICTIM, &taken).await?;
    let proof = proof?;
    println!("  {} reads right from the repaired node alone", proof.reads);
    no_failures(site)
}

/// Leaves only the directory `kept` in a node's configuration.
fn take_out(config: &Path, kept: &Path) -> Result<()> {
    let text = std::fs::read_to_string(config)?;
    let kept = toml::Value::String(kept.display().to_string());
    let lines: Vec<String> = text
        .lines()
        .map(|line| if line.starts_with("data_dir") { format!("data_dir = {kept}") } else { line.into() })
        .collect();
    std::fs::write(config, lines.join("\n") + "\n").with_context(|| config.display().to_string())
}

/// What sequential writing reaches beside `dir`, synced, in MB/s.
fn disk_speed(dir: &Path, env: &hayloft_common::env::Env) -> Result<f64> {
    let path = dir.with_extension("probe");
    let piece = vec![0x5a; 4 << 20];
    let start = env.now();
    let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
    for _ in 0..PROBE / piece.len() as u64 {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let took = env.now().saturating_sub(start);
    std::fs::remove_file(&path)?;
    Ok(PROBE as f64 / 1e6 / took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_taken_out_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        std::fs::write(&config, "a = 1\ndata_dir = [{ path = \"/x\", capacity = 1 }]\n[t]\nb = 2\n").unwrap();
        take_out(&config, Path::new("/x")).unwrap();
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "a = 1\ndata_dir = \"/x\"\n[t]\nb = 2\n");
        assert_eq!(data_dirs(&config).unwrap(), [PathBuf::from("/x")]);
    }
}
