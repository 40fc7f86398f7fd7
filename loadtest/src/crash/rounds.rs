//! Rounds of: write under load, kill every daemon at once, restart, verify everything.

use super::CrashArgs;
use crate::history::Outcome;
use crate::report::duration_text;
use crate::testbed::{Testbed, no_refusals, verify};
use crate::workload::{Keys, Mix, mixed};
use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(super) async fn run(setup: &mut Testbed, args: &CrashArgs) -> Result<String> {
    let (site, prefix) = setup.site("rounds");
    let keys = Keys::new(&prefix, args.keys);
    let mut random = SmallRng::seed_from_u64(setup.seed);
    let bar = ProgressBar::new(u64::from(args.rounds));
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} round {pos}/{len} {msg} {elapsed}") {
        bar.set_style(style);
    }
    let (mut unknown_total, mut reads_total, mut writes_total) = (0, 0, 0);
    for round in 1..=args.rounds {
        let (begun, done_before) = (site.env.now(), site.done.load(Ordering::Relaxed));
        let load = Duration::from_millis(random.random_range(500..4_000));
        let round_site = site.through(setup.s3.clone());
        let seed = setup.seed.wrapping_add(u64::from(round) << 32);
        bar.set_message("writing");
        let clients = {
            let (site, keys, clients) = (round_site.clone(), keys.clone(), args.clients);
            async move { mixed(&site, &keys, Mix::default(), clients, seed).await }
        };
        let all = setup.processes.all();
        let env = setup.env.clone();
        let workload = crate::workload::together(&env, "workload", [clients]);
        let killing = async {
            tokio::time::sleep(load).await;
            let killed = setup.processes.kill(&all).await;
            round_site.stop();
            killed
        };
        let (ended, killed) = futures::future::join(workload, killing).await;
        killed?;
        ended.into_iter().next().flatten().context("the workload panicked")?;
        // Gateways die first: no answer can tell of the death of storage nodes.
        no_refusals(&site).with_context(|| format!("round {round}"))?;
        // Every process is dead: what was not acknowledged by now has happened, or never will.
        site.history.close_unknown(site.env.now());
        let snapshot = site.history.snapshot();
        let writes = snapshot.values().flat_map(|key| &key.writes);
        let unknown =
            writes.filter(|write| write.start >= begun && write.outcome == Outcome::Unknown).count();

        bar.set_message("restarting");
        setup.restart(&all, &[])?;
        let recovery = setup.healthy().await.with_context(|| format!("round {round}"))?;
        bar.set_message("verifying");
        let verified =
            verify(setup, &site, &keys, args.monotonic).await.with_context(|| format!("round {round}"))?;
        unknown_total += unknown;
        reads_total += verified.reads;
        writes_total += verified.writes;
        bar.inc(1);
        let line = format!(
            "round {round:>3}: {} requests in {}, killed; {unknown} writes unknown; healthy after {}; {} reads right",
            site.done.load(Ordering::Relaxed) - done_before,
            duration_text(load),
            duration_text(recovery),
            verified.reads,
        );
        // Printed also where there is no terminal to draw a bar on.
        bar.suspend(|| println!("{line}"));
    }
    bar.finish_and_clear();
    Ok(format!(
        "{} rounds, {writes_total} writes ({unknown_total} unknown at a kill), {reads_total} reads, no violation",
        args.rounds
    ))
}
