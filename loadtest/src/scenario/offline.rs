//! A node is down while many objects are overwritten and deleted, then comes back: how long until it is in step, and
//! how much was exchanged for it.

use super::{Context, end};
use crate::cluster::{Daemon, Links, Role};
use crate::testbed::{Shape, Testbed, delete_keys, fill, verify};
use crate::workload::Keys;
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// The node that is away.
const AWAY: Daemon = Daemon { role: Role::Storage, index: 2 };
/// Bytes of each object: they travel inside the metadata row.
const SIZE: u64 = 1 << 10;
/// Between two looks at the traffic.
const LOOK: Duration = Duration::from_millis(500);
/// Looks in a row with next to no traffic: the exchange is over.
const QUIET_LOOKS: u32 = 10;
/// Bytes in one look that are next to none: gossip and pings.
const QUIET_BYTES: u64 = 32 << 10;

pub(super) async fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut bed = cx.cluster(Shape::default()).await?;
    let result = work(cx, &mut bed).await;
    end(bed, result).await
}

async fn work(cx: &mut Context<'_>, bed: &mut Testbed) -> Result<()> {
    let (site, prefix) = bed.site("offline");
    let keys = Keys::new(&prefix, cx.args.objects());
    let (_, took) = fill(&site, &keys, |_| SIZE).await.context("filling")?;
    cx.figures.add("objects", f64::from(keys.count()), "");
    cx.figures.add("written at", f64::from(keys.count()) / took.as_secs_f64(), "objects/s");
    bed.converged(false, cx.args.limit()).await.context("before the node went")?;

    let name = bed.processes.member(AWAY)?.name.clone();
    bed.processes.kill(&[AWAY]).await?;
    println!("  {name} is away");
    // Every object is touched: even ones are overwritten (with another length), odd ones deleted.
    overwrite(&site, &keys).await?;
    delete_keys(&site, &keys, |index| index % 2 == 1).await?;

    let links = bed.links().context("the cluster was started without links")?.clone();
    let sent = links.bytes_of_node(&name);
    bed.restart(&[AWAY], &[])?;
    bed.listening(AWAY).await?;
    let start = bed.env.now();
    let quiet = until_quiet(bed, &links, &name, cx.args.limit()).await?;
    let exchanged = links.bytes_of_node(&name) - sent;
    bed.converged(false, cx.args.limit()).await?;
    let verified = bed.env.now().saturating_sub(start);
    // What the node lacks: new rows with their content, and a small row for each deletion.
    let names: u64 = keys.all().map(|name| name.len() as u64).sum();
    let difference = u64::from(keys.count().div_ceil(2)) * (SIZE + 1) + names;
    cx.figures.seconds("in step after", quiet);
    cx.figures.seconds("found in step by verify after", verified);
    cx.figures.mib("names and content of the difference", difference);
    cx.figures.mib("exchanged with other nodes", exchanged);
    ensure!(exchanged > difference, "less was exchanged than the node lacked: it cannot be in step");
    verify(bed, &site, &keys, false).await?;
    Ok(())
}

async fn overwrite(site: &crate::workload::Site, keys: &Keys) -> Result<()> {
    let count = keys.count();
    let lanes = (0..48_u32).map(|lane| {
        let (site, keys) = (site.clone(), keys.clone());
        async move {
            for index in (2 * lane..count).step_by(96) {
                site.write(&keys.name(index), SIZE + 1, None).await;
            }
        }
    });
    crate::workload::together(&site.env, "overwrite", lanes.collect::<Vec<_>>()).await;
    crate::testbed::no_failures(site)
}

/// Waits until a node exchanges next to nothing with the others; when the last of it was, after now.
async fn until_quiet(bed: &Testbed, links: &Links, name: &str, limit: Duration) -> Result<Duration> {
    let start = bed.env.now();
    let (mut last, mut quiet, mut busy_until) = (links.bytes_of_node(name), 0, start);
    while quiet < QUIET_LOOKS && bed.env.now().saturating_sub(start) < limit {
        tokio::time::sleep(LOOK).await;
        let now = links.bytes_of_node(name);
        if now - last < QUIET_BYTES {
            quiet += 1;
        } else {
            (quiet, busy_until) = (0, bed.env.now());
        }
        last = now;
    }
    Ok(busy_until.saturating_sub(start))
}
