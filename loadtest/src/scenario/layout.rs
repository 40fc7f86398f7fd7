//! One change of the layout after another, each under a mixed load from three gateways while daemons are killed: no
//! read fails or is stale, no object is lost. For each: how long it took, what storage nodes sent one another, and
//! the least they had to.

use super::{Context, end};
use crate::cluster::{Daemon, Role};
use crate::testbed::{Load, Shape, Testbed, fill, judge, number, verify};
use crate::workload::{Keys, Mix, Site};
use anyhow::{Context as _, Result, bail};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long the operator tries again when a gateway is down.
const PATIENCE: Duration = Duration::from_mins(1);
/// Clients go on for this long after a change is through.
const AFTER: Duration = Duration::from_secs(5);

/// A change: what it is called, and the commands that stage it.
struct Step {
    name: &'static str,
    commands: Vec<Vec<String>>,
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

/// The changes, with `id` giving the ids of the nodes (numbered from 1; those from 4 on are spares).
fn steps(id: impl Fn(usize) -> Result<String>) -> Result<Vec<Step>> {
    let assign = |number: usize, zone: &str| -> Result<Vec<String>> {
        Ok(words(&["layout", "assign", &id(number)?, "--zone", zone, "--capacity", "10GiB"]))
    };
    let factor = |factor: &str| words(&["layout", "config", "--replication-factor", factor]);
    Ok(vec![
        Step { name: "grow 3 to 5", commands: vec![assign(4, "zone4")?, assign(5, "zone5")?] },
        Step { name: "remove a node", commands: vec![words(&["layout", "remove", &id(1)?])] },
        Step { name: "move to another zone", commands: vec![assign(5, "zone4")?] },
        Step { name: "replace a node", commands: vec![words(&["node", "replace", &id(3)?, &id(6)?])] },
        Step { name: "RF 3 to 5", commands: vec![assign(1, "zone6")?, factor("5")] },
        Step { name: "RF 5 to 3", commands: vec![factor("3")] },
    ])
}

pub(super) async fn run(cx: &mut Context<'_>) -> Result<()> {
    let shape = Shape { storage: Some(3), spares: 3, zones: Some(3), ..Shape::default() };
    let mut bed = cx.cluster(shape).await?;
    let result = work(cx, &mut bed).await;
    end(bed, result).await
}

async fn work(cx: &mut Context<'_>, bed: &mut Testbed) -> Result<()> {
    let (mut site, prefix) = bed.site("layout");
    // Gateways are killed: clients go to the next one.
    site.read_retries = 4;
    let mib = cx.args.mib(256);
    // Half the bytes in blocks of 1 MiB, half in small ones.
    let resting = Keys::new(&format!("{prefix}resting/"), (mib / 2 + mib * 8) as u32);
    let large = mib as u32 / 2;
    let (bytes, _) = fill(&site, &resting, move |i| if i < large { 1 << 20 } else { 64 << 10 }).await?;
    cx.figures.mib("data at rest", bytes);
    let keys = Keys::new(&format!("{prefix}busy/"), 300);
    let daemons = bed.processes.storage();
    let ids: Vec<String> = daemons.iter().map(|daemon| bed.node_id(*daemon)).collect::<Result<_>>()?;
    let id = |number: usize| ids.get(number - 1).cloned().context("the cluster has too few nodes");
    for (index, step) in steps(id)?.into_iter().enumerate() {
        change(cx, bed, &site, &keys, &step, index as u64, bytes)
            .await
            .with_context(|| step.name.to_owned())?;
        judge(&site, false).with_context(|| step.name.to_owned())?;
        no_failed_reads(&site).with_context(|| step.name.to_owned())?;
    }
    let whole = bed.converged(false, cx.args.limit()).await?;
    cx.figures.seconds("whole after the last change", whole);
    verify(bed, &site, &keys, false).await?;
    verify(bed, &site, &resting, false).await?;
    refused_writes(&site);
    Ok(())
}

/// Makes one change under load and kills, and tells its figures.
async fn change(
    cx: &mut Context<'_>,
    bed: &mut Testbed,
    site: &Site,
    keys: &Keys,
    step: &Step,
    index: u64,
    resting: u64,
) -> Result<()> {
    println!("  {}", step.name);
    let links = bed.links().context("the cluster was started without links")?.clone();
    let mix = Mix { max_size: 512 << 10, multipart: 1, checked_list: 1, ..Mix::default() };
    let seed = cx.seed.wrapping_add(index << 32);
    let (done_before, sent_before) = (site.done.load(Ordering::Relaxed), links.bytes_between_nodes());
    let load = Load::start(site, keys, mix, cx.args.clients, seed);
    let operator = bed.operator.clone();
    let (env, limit) = (bed.env.clone(), cx.args.limit());
    let over = AtomicBool::new(false);
    let changing = async {
        let start = env.now();
        let commands: Vec<Vec<&str>> =
            step.commands.iter().map(|command| command.iter().map(String::as_str).collect()).collect();
        let staging: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
        let result = async {
            let applied = operator.change_layout(&staging, PATIENCE).await?;
            operator.layout_settled(applied.version, limit).await?;
            Ok::<_, anyhow::Error>((applied, env.now().saturating_sub(start)))
        };
        let result = result.await;
        let sent = links.bytes_between_nodes() - sent_before;
        tokio::time::sleep(AFTER).await;
        over.store(true, Ordering::Relaxed);
        result.map(|(applied, took)| (applied, took, sent))
    };
    let killing = kills(bed, seed, &over);
    let (changed, killed) = futures::future::join(changing, killing).await;
    load.stop().await?;
    let ((applied, took, sent), killed) = (changed?, killed?);
    bed.healthy().await?;

    let name = step.name;
    let layout = bed.operator.json(&["layout", "show"]).await?;
    let roles = layout.get("roles").and_then(serde_json::Value::as_array).into_iter().flatten();
    let copies: u64 = roles.filter_map(|role| role.get("storedPartitions")?.as_u64()).sum();
    let partitions = copies / number(&layout, "/parameters/replicationFactor")?.max(1);
    let busy: u64 = site.history.live_bytes(keys.prefix());
    // Each copy that a node had to fetch is a partition's share of the data.
    let least = (resting + busy) * applied.moved_partitions / partitions.max(1);
    cx.figures.seconds(format!("{name}: time"), took);
    cx.figures.mib(format!("{name}: had to move"), least);
    cx.figures.mib(format!("{name}: moved"), sent);
    let requests = site.done.load(Ordering::Relaxed) - done_before;
    cx.figures.add(format!("{name}: requests"), requests as f64, "");
    cx.figures.add(format!("{name}: kills"), f64::from(killed), "");
    Ok(())
}

/// Kills one daemon after the other until `over`, never two at a time; each is back in step before the next.
async fn kills(bed: &mut Testbed, seed: u64, over: &AtomicBool) -> Result<u32> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(500..3_000))).await;
        let storage = bed.processes.storage();
        let victim = if random.random_range(0..4) == 0 {
            Daemon {
                role: Role::Gateway,
                index: random.random_range(0..bed.processes.cluster.gateways.len()),
            }
        } else {
            storage[random.random_range(0..storage.len())]
        };
        bed.processes.kill(&[victim]).await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..4_000))).await;
        bed.restart(&[victim], &[])?;
        bed.listening(victim).await?;
        bed.everyone_up(Duration::from_mins(2)).await?;
        count += 1;
    }
    Ok(count)
}

/// Reads and listings must all have been answered, by some gateway.
fn no_failed_reads(site: &Site) -> Result<()> {
    let failures = site.failures.lock().clone();
    let reads: Vec<_> = failures
        .iter()
        .filter(|(kind, _)| ["get: ", "head: ", "list: "].iter().any(|start| kind.starts_with(start)))
        .collect();
    if reads.is_empty() { Ok(()) } else { bail!("reads failed: {reads:?}") }
}

/// Says what else failed: writes through a gateway that was killed.
fn refused_writes(site: &Site) {
    for (kind, failure) in site.failures.lock().iter() {
        println!("  {kind}: {failure:?}");
    }
}
