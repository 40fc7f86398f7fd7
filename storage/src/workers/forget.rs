//! "partition drop": does away with rows that this node must not be asked for any more.
//!
//! - *Leftovers*, of partitions that a layout took away: they may be older than deletions that the cluster has forgotten
//!   since. They are dropped when all who hold the partition now have everything; or before anything else if it is given
//!   to this node again. Then it takes part in writes at once, and the layout sync completes it.
//! - *Lost* partitions, of which this node may lack what it acknowledged (its metadata went back in time): it could make
//!   up a read quorum with another that misses the same write. So it takes no part until what it had is dropped and
//!   everything is pulled anew from a quorum of the *others*. Its old rows are kept until those others answer, for who
//!   knows whether they ever will.
//!
//! Files of blocks go the usual way, when nothing refers to them.

use super::pull::{self, Source};
use super::{Next, Report, Worker, WorkerError, layout_sync};
use crate::commit::Job;
use crate::serve::Node;
use async_trait::async_trait;
use hayloft_common::layout::{ActiveLayout, Partition, may_drop};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "partition drop";

/// Between looks at what has become droppable.
const LOOK: Duration = Duration::from_secs(2);
/// Entries removed in one job, so that the writes of clients get their turn in between.
const ENTRIES: usize = 500;
/// Partitions dropped in one step.
const PARTITIONS: usize = 4;

/// See the module's head.
#[derive(Default)]
pub struct PartitionDrop {
    /// Partitions whose rows were dropped by this process, and which are being filled again.
    emptied: Mutex<BTreeSet<Partition>>,
}

#[async_trait]
impl Worker for PartitionDrop {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let layout = node.cluster.layout();
        let (leftovers, lost) = (node.layout_store.leftovers(), node.layout_store.lost());
        report.queue((leftovers.len() + lost.len()) as u64);
        if layout.is_empty() || leftovers.len() + lost.len() == 0 {
            return Ok(Next::After(LOOK));
        }
        let acks = node.membership.progress();
        let mut done = 0;
        for partition in
            leftovers.into_iter().filter(|p| may_drop(&layout, &acks, node.id, *p)).take(PARTITIONS)
        {
            // It may have been lost before, and emptied and filled again in part: that must go too.
            self.emptied.lock().remove(&partition);
            self.empty(node, partition, report).await?;
            node.layout_store.dropped(partition).await?;
            self.emptied.lock().remove(&partition);
            done += 1;
        }
        for partition in lost {
            if done >= PARTITIONS || node.cluster.layout().epoch != layout.epoch {
                break;
            }
            if self.refill(node, &layout, partition, report).await? {
                node.layout_store.refilled(partition).await?;
                self.emptied.lock().remove(&partition);
                done += 1;
            }
        }
        if done == 0 {
            return Ok(Next::After(LOOK));
        }
        node.workers.wake(layout_sync::NAME);
        Ok(Next::Again)
    }
}

impl PartitionDrop {
    /// Removes all rows of a leftover partition, once.
    async fn empty(
        &self,
        node: &Arc<Node>,
        partition: Partition,
        report: &Report,
    ) -> Result<(), WorkerError> {
        if self.emptied.lock().contains(&partition) {
            return Ok(());
        }
        let _alone = node.sync.lock(partition).await;
        let commit = &node.plane()?.commit;
        // What was let in while the partition was this node's is written, or refused, by then.
        commit.barrier().await?;
        loop {
            let done = commit.submit(Job::forget(partition.0, ENTRIES)).await?;
            report.count(ENTRIES as u64, 0);
            if !done.more {
                break;
            }
        }
        self.emptied.lock().insert(partition);
        node.workers.wake("block resync");
        tracing::info!(partition = partition.0, "rows of an earlier membership dropped");
        Ok(())
    }

    /// Replaces the rows of a lost partition by those of a quorum of others. False if not so many are there.
    async fn refill(
        &self,
        node: &Arc<Node>,
        layout: &ActiveLayout,
        partition: Partition,
        report: &Report,
    ) -> Result<bool, WorkerError> {
        let (mut sources, quorum) = layout.sources(partition).unwrap_or_default();
        sources.retain(|peer| *peer != node.id);
        let needed = quorum.min(sources.len());
        if sources.is_empty() {
            tracing::warn!(
                partition = partition.0,
                "no other node has a copy: what is here is kept, as old as it is"
            );
            return Ok(true);
        }
        node.cluster.order(&mut sources);
        let mut ready = Vec::new();
        for peer in sources {
            let source = Source { peer, epoch: layout.epoch };
            match pull::compare(node, source, &[partition]).await {
                Ok(compared) if !compared.refused.contains(&partition) => ready.push(source),
                Ok(_) => {}
                Err(error) if pull::is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if ready.len() < needed {
            tracing::debug!(partition = partition.0, needed, there = ready.len(), "waiting for other copies");
            return Ok(false);
        }
        self.empty(node, partition, report).await?;
        let mut pulled = 0;
        for source in ready {
            match pull::pull_partition(node, source, partition).await {
                Ok(rows) => {
                    report.count(rows.rows, rows.bytes);
                    pulled += 1;
                }
                Err(error) => tracing::debug!(partition = partition.0, %error, "a copy could not be pulled"),
            }
        }
        Ok(pulled >= needed)
    }
}
