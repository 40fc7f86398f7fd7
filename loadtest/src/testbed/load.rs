//! Work for a cluster under test: a background load, writing many objects, reading them all.

use crate::workload::{Keys, Mix, Observed, Site, mixed, observe, together};
use anyhow::{Context as _, Result, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// Requests at a time when objects are written or read in bulk.
const LANES: u32 = 48;

/// Clients at work in the background.
pub struct Load {
    site: Site,
    ended: oneshot::Receiver<()>,
}

impl Load {
    /// Starts `clients` clients of the mixed workload on `keys`; their history is that of `site`.
    pub fn start(site: &Site, keys: &Keys, mix: Mix, clients: u64, seed: u64) -> Self {
        let site = site.through(site.s3.clone());
        let (send, ended) = oneshot::channel();
        let (work, keys) = (site.clone(), keys.clone());
        site.env.spawn("load", async move {
            mixed(&work, &keys, mix, clients, seed).await;
            // Nobody waits only if the test has failed already.
            let _ = send.send(());
        });
        Self { site, ended }
    }

    /// Asks the clients to end and waits until their last operations are over.
    pub async fn stop(self) -> Result<()> {
        self.site.stop();
        self.ended.await.context("a client of the workload panicked")
    }
}

/// Reads objects over and over in the background: of every one it counts whether it could be read.
pub struct Reader {
    site: Site,
    ended: oneshot::Receiver<()>,
    reads: Arc<AtomicU64>,
}

impl Reader {
    /// Starts `clients` clients that read `keys` at random.
    pub fn start(site: &Site, keys: &Keys, clients: u64, seed: u64) -> Self {
        let site = site.through(site.s3.clone());
        let (send, ended) = oneshot::channel();
        let reads = Arc::new(AtomicU64::new(0));
        let work = (0..clients).map(|client| {
            let (site, keys, reads) = (site.clone(), keys.clone(), reads.clone());
            let mut random = SmallRng::seed_from_u64(seed ^ client);
            async move {
                while !site.stopped() {
                    observe(&site, &keys.name(random.random_range(0..keys.count()))).await;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (env, work) = (site.env.clone(), work.collect::<Vec<_>>());
        site.env.spawn("readers", async move {
            together(&env, "reader", work).await;
            // Nobody waits only if the test has failed already.
            let _ = send.send(());
        });
        Self { site, ended, reads }
    }

    /// Reads so far.
    pub fn count(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Ends it; how many reads there were.
    pub async fn stop(self) -> Result<u64> {
        self.site.stop();
        self.ended.await.context("a reader panicked")?;
        Ok(self.reads.load(Ordering::Relaxed))
    }
}

/// Runs `work` on each of `count` numbers, many at a time; fails if a task panicked.
async fn each<F: Future<Output = ()> + Send + 'static>(
    site: &Site,
    count: u32,
    work: impl Fn(Site, u32) -> F + Clone + Send + 'static,
) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let lanes = (0..LANES.min(count)).map(|_| {
        let (site, work, next) = (site.clone(), work.clone(), next.clone());
        async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= u64::from(count) {
                    return;
                }
                work(site.clone(), index as u32).await;
            }
        }
    });
    let ended = together(&site.env, "bulk", lanes.collect::<Vec<_>>()).await;
    ensure!(ended.iter().all(Option::is_some), "a task panicked");
    Ok(())
}

/// Writes every key once, of the size that `size` gives for its number; returns the bytes and the time.
pub async fn fill(
    site: &Site,
    keys: &Keys,
    size: impl Fn(u32) -> u64 + Clone + Send + Sync + 'static,
) -> Result<(u64, Duration)> {
    let start = site.env.now();
    let names = keys.clone();
    let sizes = size.clone();
    each(site, keys.count(), move |site, index| {
        let (name, len) = (names.name(index), sizes(index));
        async move {
            site.write(&name, len, None).await;
        }
    })
    .await?;
    super::no_failures(site)?;
    Ok(((0..keys.count()).map(size).sum(), site.env.now().saturating_sub(start)))
}

/// Deletes the keys whose numbers `chosen` picks.
pub async fn delete_keys(
    site: &Site,
    keys: &Keys,
    chosen: impl Fn(u32) -> bool + Clone + Send + Sync + 'static,
) -> Result<()> {
    let names = keys.clone();
    each(site, keys.count(), move |site, index| {
        let name = chosen(index).then(|| names.name(index));
        async move {
            if let Some(name) = name {
                site.delete(&name).await;
            }
        }
    })
    .await?;
    super::no_failures(site)
}

/// Reads every key once; a read that fails is a violation.
pub async fn read_keys(site: &Site, keys: &Keys) -> Result<()> {
    let names = keys.clone();
    each(site, keys.count(), move |site, index| {
        let name = names.name(index);
        async move {
            if observe(&site, &name).await == Observed::Failed {
                let failures = site.failures.lock().clone();
                site.wrong_content(&name, format!("cannot be read at rest; failures so far: {failures:?}"));
            }
        }
    })
    .await
}
