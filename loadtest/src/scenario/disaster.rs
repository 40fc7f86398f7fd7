//! Disasters and the documented way back from each: a dead node, a node without its metadata, a lost zone, a power cut.
//!
//! Each begins with objects at rest and clients at work, and ends with everything read through every gateway. Reads
//! must not fail where the promise says so: one node or one zone of three may go without anybody noticing.

use super::{Context, end};
use crate::cluster::{Daemon, Role, disk_usage};
use crate::testbed::{
    Load, Shape, Testbed, data_dirs, delete_dir, fill, give_back_disks, judge, metadata_dir, no_failures,
    take_other_disks, verify,
};
use crate::workload::{Keys, Mix, Site};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// How long clients work before and after the event.
const WORK: Duration = Duration::from_secs(4);
/// How long the operator tries again.
const PATIENCE: Duration = Duration::from_mins(1);

fn storage(index: usize) -> Daemon {
    Daemon { role: Role::Storage, index }
}

/// Objects at rest, and keys that clients work on.
struct Data {
    site: Site,
    resting: Keys,
    busy: Keys,
    bytes: u64,
}

async fn data(cx: &mut Context<'_>, bed: &Testbed) -> Result<Data> {
    let (site, prefix) = bed.site("disaster");
    let mib = cx.args.mib(256);
    let large = (mib / 2) as u32;
    let resting = Keys::new(&format!("{prefix}resting/"), large + (mib * 8) as u32);
    let (bytes, _) = fill(&site, &resting, move |i| if i < large { 1 << 20 } else { 64 << 10 }).await?;
    cx.figures.mib("data", bytes);
    Ok(Data { site, resting, busy: Keys::new(&format!("{prefix}busy/"), 200), bytes })
}

fn load(cx: &Context<'_>, data: &Data) -> Load {
    let mix = Mix { max_size: 256 << 10, multipart: 0, ..Mix::default() };
    Load::start(&data.site, &data.busy, mix, cx.args.clients, cx.seed)
}

/// The end of each: whole again, everything judged and read.
async fn whole(cx: &mut Context<'_>, bed: &Testbed, data: &Data, load: Load) -> Result<()> {
    tokio::time::sleep(WORK).await;
    load.stop().await?;
    let took = bed.converged(false, cx.args.limit()).await?;
    cx.figures.seconds("whole again", took);
    judge(&data.site, false)?;
    no_failures(&data.site).context("clients noticed")?;
    verify(bed, &data.site, &data.busy, false).await?;
    verify(bed, &data.site, &data.resting, false).await?;
    Ok(())
}

/// SIGKILLs a node and deletes everything it had.
async fn destroy(bed: &mut Testbed, daemon: Daemon) -> Result<()> {
    bed.processes.kill(&[daemon]).await?;
    let config = bed.processes.member(daemon)?.config.clone();
    for dir in data_dirs(&config)?.into_iter().chain([metadata_dir(&config)?]) {
        delete_dir(&dir)?;
    }
    Ok(())
}

/// A node is lost for good: `hayloft node replace OLD NEW`.
pub(super) async fn dead_node(cx: &mut Context<'_>) -> Result<()> {
    let mut bed = cx.cluster(Shape { storage: Some(3), spares: 1, ..Shape::default() }).await?;
    let result = async {
        let data = data(cx, &bed).await?;
        let clients = load(cx, &data);
        tokio::time::sleep(WORK).await;
        let (old, new) = (bed.node_id(storage(1))?, bed.node_id(storage(3))?);
        destroy(&mut bed, storage(1)).await?;
        tokio::time::sleep(WORK).await;
        replace(cx, &bed, &[(old, new)], data.bytes).await?;
        whole(cx, &bed, &data, clients).await
    };
    let result = result.await;
    end(bed, result).await
}

/// Replaces dead nodes in one change and waits until it is through.
async fn replace(cx: &mut Context<'_>, bed: &Testbed, pairs: &[(String, String)], bytes: u64) -> Result<()> {
    let links = bed.links().context("the cluster was started without links")?.clone();
    let (start, sent) = (bed.env.now(), links.bytes_between_nodes());
    let commands: Vec<[&str; 4]> =
        pairs.iter().map(|(old, new)| ["node", "replace", old.as_str(), new.as_str()]).collect();
    let staging: Vec<&[&str]> = commands.iter().map(<[&str; 4]>::as_slice).collect();
    let applied = bed.operator.change_layout(&staging, PATIENCE).await?;
    bed.operator.layout_settled(applied.version, cx.args.limit()).await?;
    cx.figures.seconds("replaced in", bed.env.now().saturating_sub(start));
    cx.figures.mib("moved", links.bytes_between_nodes() - sent);
    cx.figures.mib("objects at rest, one copy", bytes);
    Ok(())
}

/// A zone is lost for good, with both its nodes: they are replaced by two in a new place.
pub(super) async fn lost_zone(cx: &mut Context<'_>) -> Result<()> {
    let shape = Shape { storage: Some(6), spares: 2, zones: Some(3), ..Shape::default() };
    let mut bed = cx.cluster(shape).await?;
    let result = async {
        let data = data(cx, &bed).await?;
        let clients = load(cx, &data);
        tokio::time::sleep(WORK).await;
        let zone = bed.processes.member(storage(0))?.zone.clone();
        let members = bed.processes.storage();
        let lost: Vec<Daemon> = members
            .into_iter()
            .filter(|daemon| bed.processes.member(*daemon).is_ok_and(|node| node.zone == zone && !node.spare))
            .collect();
        bed.processes.kill(&lost).await?;
        for daemon in &lost {
            destroy(&mut bed, *daemon).await?;
        }
        println!("  {zone} is lost with {} nodes", lost.len());
        tokio::time::sleep(WORK).await;
        let mut pairs = Vec::new();
        for (index, daemon) in lost.iter().enumerate() {
            pairs.push((bed.node_id(*daemon)?, bed.node_id(storage(6 + index))?));
        }
        replace(cx, &bed, &pairs, data.bytes).await?;
        whole(cx, &bed, &data, clients).await
    };
    let result = result.await;
    end(bed, result).await
}

/// All nodes are off at once, gateways too; they are started again and nothing else is done.
pub(super) async fn power_cut(cx: &mut Context<'_>) -> Result<()> {
    let mut bed = cx.cluster(Shape::default()).await?;
    let result = async {
        let data = data(cx, &bed).await?;
        let clients = load(cx, &data);
        tokio::time::sleep(WORK).await;
        let all = bed.processes.all();
        bed.processes.kill(&all).await?;
        clients.stop().await?;
        data.site.history.close_unknown(data.site.env.now());
        // Clients do notice this one.
        data.site.failures.lock().clear();
        bed.restart(&all, &[])?;
        let took = bed.healthy().await?;
        cx.figures.seconds("serving again after", took);
        let clients = load(cx, &data);
        tokio::time::sleep(WORK).await;
        whole(cx, &bed, &data, clients).await
    };
    let result = result.await;
    end(bed, result).await
}

/// A node loses its metadata and keeps its key and blocks: it is just started. Then one loses its key as well: it is a
/// new node, which replaces its former self. Both find their blocks again on their disks.
pub(super) async fn lost_metadata(cx: &mut Context<'_>) -> Result<()> {
    let mut bed = cx.cluster(Shape { storage: Some(3), ..Shape::default() }).await?;
    let result = async {
        let data = data(cx, &bed).await?;
        let links = bed.links().context("the cluster was started without links")?.clone();
        for (victim, key_too) in [(storage(1), false), (storage(2), true)] {
            let clients = load(cx, &data);
            tokio::time::sleep(WORK).await;
            let old = bed.node_id(victim)?;
            let name = bed.processes.member(victim)?.name.clone();
            bed.processes.kill(&[victim]).await?;
            let config = bed.processes.member(victim)?.config.clone();
            let metadata = metadata_dir(&config)?;
            delete_dir(&if key_too { metadata } else { metadata.join("db") })?;
            let blocks: u64 = data_dirs(&config)?.iter().map(|dir| disk_usage(dir)).sum();
            cx.figures.mib(format!("{name}: blocks kept on its disks"), blocks);
            tokio::time::sleep(WORK).await;
            let sent = links.bytes_of_node(&name);
            let new = bed.processes.run_storage(victim, &["--print-node-id"])?.trim().to_owned();
            ensure!((new == old) != key_too, "{name} is {new} now and was {old}");
            bed.restart(&[victim], &[])?;
            bed.listening(victim).await?;
            bed.processes.renamed(victim, &new);
            bed.everyone_up(PATIENCE).await?;
            if key_too {
                replace(cx, &bed, &[(old, new)], data.bytes).await?;
            }
            whole(cx, &bed, &data, clients).await.with_context(|| name.clone())?;
            cx.figures.mib(format!("{name}: exchanged with other nodes"), links.bytes_of_node(&name) - sent);
        }
        let victim = storage(1);
        let taken = take_other_disks(&mut bed, victim).await?;
        let proof = verify(&bed, &data.site, &data.resting, false).await;
        give_back_disks(&mut bed, victim, &taken).await?;
        proof.context("from the node that lost its metadata alone")?;
        Ok(())
    };
    let result = result.await;
    end(bed, result).await
}
