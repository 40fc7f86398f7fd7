//! Reading everything back through every gateway and judging it.

use super::{Testbed, read_keys};
use crate::check;
use crate::workload::{Keys, Site};
use anyhow::{Result, bail};

/// What was verified.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verified {
    pub reads: usize,
    pub writes: usize,
}

/// Reads every key through every gateway, lists them, and checks all reads so far against the history; afterwards
/// forgets what no longer matters. Nothing may be writing meanwhile.
pub async fn verify(setup: &Testbed, site: &Site, keys: &Keys, monotonic: bool) -> Result<Verified> {
    for gateway in 0..setup.s3.endpoints() {
        let through = site.through(setup.s3.pinned(gateway));
        read_keys(&through, keys).await?;
        list(&through, keys).await?;
    }
    judge(site, monotonic)
}

/// Checks all reads so far against the history, and forgets what no longer matters. Nothing may be running meanwhile.
pub fn judge(site: &Site, monotonic: bool) -> Result<Verified> {
    let snapshot = site.history.snapshot();
    let mut violations = std::mem::take(&mut *site.violations.lock());
    for (name, key) in &snapshot {
        violations.extend(check::reads(name, key));
        if monotonic {
            violations.extend(check::monotonic(name, key));
        }
    }
    let (writes, reads) = site.history.counts();
    let now = site.env.now();
    site.history.replace(snapshot.into_iter().map(|(name, key)| (name, check::forget(&key, now))).collect());
    if violations.is_empty() {
        return Ok(Verified { reads, writes });
    }
    for violation in violations.iter().take(20) {
        println!("  VIOLATION {violation}");
    }
    bail!("{} violations, the first: {}", violations.len(), violations[0])
}

async fn list(site: &Site, keys: &Keys) -> Result<()> {
    let start = site.env.now();
    let listed = site.s3.list_all(keys.prefix()).await?;
    let end = site.env.now();
    let listed: Vec<_> = listed.into_iter().map(|object| (object.key, object.size)).collect();
    let found = check::listing(&site.history.writes_under(keys.prefix()), &listed, start, end);
    site.violations.lock().extend(found);
    Ok(())
}

/// Fails if any request failed so far: for faults that clients must not notice.
pub fn no_failures(site: &Site) -> Result<()> {
    let failures = site.failures.lock().clone();
    if failures.is_empty() { Ok(()) } else { bail!("requests failed: {failures:?}") }
}

/// Fails if a request failed otherwise than by its connection: for faults that break connections.
pub fn no_refusals(site: &Site) -> Result<()> {
    let broken = |kind: &str| ["connect", "transport"].iter().any(|how| kind.ends_with(&format!(": {how}")));
    let refused: Vec<_> =
        site.failures.lock().clone().into_iter().filter(|(kind, _)| !broken(kind)).collect();
    if refused.is_empty() { Ok(()) } else { bail!("requests were refused: {refused:?}") }
}
