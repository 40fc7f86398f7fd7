//! "recount", for `repair counters`: counts the fingerprints and counters of every partition anew, and puts right what is
//! wrong, while the node works. It does nothing until an operator asks.

use super::pull::reading;
use super::{Next, Report, Worker, WorkerError};
use crate::commit::Job;
use crate::serve::Node;
use crate::tables::recount;
use async_trait::async_trait;
use hayloft_common::layout::Partition;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "recount";

/// It is woken when there is something to do.
const IDLE: Duration = Duration::from_hours(1);

/// Begins a recount of everything, from the start if one is under way.
pub fn start(node: &Arc<Node>) {
    node.sync.ask_to_recount();
    node.workers.wake(NAME);
}

/// See the module's head.
#[derive(Default)]
pub struct Recount {
    /// The next partition of the round under way, and what was wrong so far.
    next: Mutex<Option<(u16, usize)>>,
}

#[async_trait]
impl Worker for Recount {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tranquility(&self) -> u32 {
        1
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let layout = node.cluster.layout();
        let all = layout.current.partitions();
        if node.sync.was_asked_to_recount() && !layout.is_empty() {
            report.begin(node.env.now(), all as u64);
            report.notes(Vec::new());
            *self.next.lock() = Some((0, 0));
        }
        let under_way = *self.next.lock();
        let Some((partition, mut wrong)) = under_way else { return Ok(Next::After(IDLE)) };
        match correct(node, Partition(partition)).await {
            Ok(found) => wrong += found,
            Err(error) => {
                tracing::error!(partition, %error, "a partition could not be counted; the next one is");
                report.error(node.env.now(), &error);
            }
        }
        let done = usize::from(partition) + 1;
        report.progress(done as u64, all as u64);
        report.count(1, 0);
        let next = partition.checked_add(1).filter(|_| done < all);
        *self.next.lock() = next.map(|next| (next, wrong));
        if next.is_none() {
            tracing::info!(wrong, "fingerprints and counters were counted anew");
            report.notes(vec![format!("{wrong} fingerprints and counters were wrong and are right now")]);
        }
        Ok(Next::Again)
    }
}

/// Puts a partition's sums right; says how many were wrong.
async fn correct(node: &Arc<Node>, partition: Partition) -> Result<usize, WorkerError> {
    // Not while the partition is being forgotten.
    let _alone = node.sync.lock(partition).await;
    if !node.is_member(partition) {
        return Ok(0);
    }
    let correction =
        reading(node, move |node| recount::recount(&*node.engine.snapshot(), partition.0)).await?;
    let wrong = correction.len();
    if wrong > 0 {
        tracing::warn!(
            partition = partition.0,
            wrong,
            "fingerprints or counters are wrong; they are corrected"
        );
        node.plane()?.commit.submit(Job::correct(correction)).await?;
    }
    Ok(wrong)
}
