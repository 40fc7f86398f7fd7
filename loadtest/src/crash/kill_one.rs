//! One storage node after the other is killed under load: no request may fail, and each serves again afterwards.
//!
//! That a restarted node serves again is proven by killing the next one: with three copies and quorums of two,
//! nothing works without the node that came back.

use super::CrashArgs;
use crate::cluster::{Daemon, Role};
use crate::testbed::{Testbed, no_failures, verify};
use crate::workload::{Keys, Mix, mixed, together};
use anyhow::{Context as _, Result, bail};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Clients, as the scenario is defined.
const CLIENTS: u64 = 64;

pub(super) async fn run(setup: &mut Testbed, args: &CrashArgs) -> Result<String> {
    let (site, prefix) = setup.site("kill-one");
    let keys = Keys::new(&prefix, args.keys);
    let nodes = setup.processes.cluster.storage.len();
    if nodes < 3 {
        bail!("needs at least three storage nodes, there are {nodes}");
    }
    let load = Duration::from_secs(args.load_seconds);
    let mix = Mix { max_size: 1 << 20, multipart: 0, ..Mix::default() };
    let clients = {
        let (site, keys, seed) = (site.clone(), keys.clone(), setup.seed);
        async move { mixed(&site, &keys, mix, CLIENTS, seed).await }
    };
    let env = setup.env.clone();
    let workload = together(&env, "workload", [clients]);
    let faults = async {
        let result = kill_each(setup, &site, nodes, load).await;
        site.stop();
        result
    };
    let (ended, result) = futures::future::join(workload, faults).await;
    result?;
    ended.into_iter().next().flatten().context("the workload panicked")?;
    no_failures(&site)?;
    let verified = verify(setup, &site, &keys, args.monotonic).await?;
    Ok(format!(
        "{nodes} nodes killed and restarted one by one, {} requests, none failed, {} reads right",
        site.done.load(Ordering::Relaxed),
        verified.reads
    ))
}

async fn kill_each(
    setup: &mut Testbed,
    site: &crate::workload::Site,
    nodes: usize,
    load: Duration,
) -> Result<()> {
    for index in 0..nodes {
        let daemon = Daemon { role: Role::Storage, index };
        let name = setup.processes.member(daemon)?.name.clone();
        tokio::time::sleep(load).await;
        println!("  killing {name} after {} requests", site.done.load(Ordering::Relaxed));
        setup.processes.kill(&[daemon]).await?;
        tokio::time::sleep(load).await;
        no_failures(site).with_context(|| format!("while {name} was down"))?;
        setup.restart(&[daemon], &[])?;
        setup.listening(daemon).await?;
        println!("  {name} is back after {} requests", site.done.load(Ordering::Relaxed));
    }
    tokio::time::sleep(load).await;
    no_failures(site).context("after all nodes were back")
}
