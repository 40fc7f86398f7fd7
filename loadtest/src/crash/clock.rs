//! Gateways whose clocks are wrong overwrite and delete: a read after the acknowledgement, through any gateway, sees
//! it; clients that sign with the true time are served, and objects are dated truly: only the order of a gateway's
//! writes follows its own clock.

use super::CrashArgs;
use crate::check;
use crate::cluster::{Daemon, Role};
use crate::testbed::{Testbed, no_failures};
use crate::workload::{Keys, Site, observe};
use anyhow::{Context as _, Result, bail};
use jiff::fmt::rfc2822::DateTimeParser;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 3_600_000;
const TEN_YEARS: i64 = 10 * 365 * 24 * HOUR;

pub(super) async fn run(setup: &mut Testbed, args: &CrashArgs) -> Result<String> {
    setup.gateways(2).await?;
    let (site, prefix) = setup.site("clock");
    let keys = Keys::new(&prefix, args.keys.clamp(4, 40));
    let wrong = Daemon { role: Role::Gateway, index: 1 };
    let right = site.through(setup.s3.pinned(0));
    let offsets = [HOUR, -HOUR, TEN_YEARS, -TEN_YEARS, 0];
    for offset in offsets {
        setup.processes.kill(&[wrong]).await?;
        setup.restart(&[wrong], &[format!("--clock-offset-ms={offset}")])?;
        let other = site.through(setup.s3.pinned(1));
        setup.healthy_through(&other.s3).await.with_context(|| format!("offset {offset} ms"))?;
        for (index, key) in keys.all().enumerate() {
            // Inside the row and in blocks.
            let len = if index % 2 == 0 { 1_000 } else { 200_000 };
            exchange(&right, &other, &key, len).await;
            exchange(&other, &right, &key, len).await;
        }
        let dated = last_modified(setup, &other, &keys.name(0)).await;
        let dated = dated.with_context(|| format!("offset {offset} ms"))?;
        no_failures(&site).with_context(|| format!("offset {offset} ms"))?;
        let mut violations = std::mem::take(&mut *site.violations.lock());
        for (name, key) in &site.history.snapshot() {
            violations.extend(check::reads(name, key));
        }
        if let Some(first) = violations.first() {
            bail!("offset {offset} ms: {} violations, the first: {first}", violations.len());
        }
        println!("  offset {offset} ms: {} keys right, dated {dated}", keys.count());
    }
    let (writes, reads) = site.history.counts();
    Ok(format!("{} offsets, {writes} writes, {reads} reads, no violation", offsets.len()))
}

/// What an object written through `site` just now is dated; must be about now.
async fn last_modified(setup: &Testbed, site: &Site, key: &str) -> Result<String> {
    site.write(key, 10, None).await;
    let dated = site.s3.head(key).await?.last_modified;
    let time =
        DateTimeParser::new().parse_timestamp(&dated).with_context(|| format!("Last-Modified {dated:?}"))?;
    let now = i64::try_from(setup.env.wall_micros())? / 1000;
    if (time.as_millisecond() - now).abs() > MINUTE {
        bail!("an object written now has Last-Modified {dated}");
    }
    Ok(dated)
}

/// `a` and `b` take turns writing and deleting; both read after each.
async fn exchange(a: &Site, b: &Site, key: &str, len: u64) {
    let look = async || {
        observe(a, key).await;
        observe(b, key).await;
    };
    a.write(key, len, None).await;
    look().await;
    b.write(key, len + 1, None).await;
    look().await;
    a.delete(key).await;
    look().await;
    b.write(key, len + 2, None).await;
    look().await;
    b.delete(key).await;
    look().await;
    a.write(key, len + 3, None).await;
    look().await;
}
