//! "layout", the driver of layout changes: brings the next phase into force when what the present one waits for is
//! done, and introduces layouts that wait in the queue (design §3).
//!
//! Every storage node drives: the first in order of id among those that it can hear at once, the others a little later
//! each, so that one that stops in the middle is replaced. Two that drive at the same time do no harm: an epoch is
//! agreed on. It never decides on its own whether data is complete: [`may_advance`] does, on what all nodes say.
//!
//! It also sees to it that this node says what it has, and that a node which went back in time
//! ([`Membership::outlived`](hayloft_proto::membership::Membership::outlived)) trusts nothing it holds. While nothing
//! changes it sleeps.

use super::{Next, Report, Worker, WorkerError};
use crate::serve::Node;
use async_trait::async_trait;
use hayloft_common::layout::{ActiveLayout, WaitReason, may_advance, waits_for};
use hayloft_proto::agree::{AgreeError, Agreement};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "layout";

/// What each node waits longer than the one before it in order of id.
const RANK_DELAY: Duration = Duration::from_secs(2);
/// Between two looks while a change is under way: nodes may go down or come back without any news.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks else; it is woken by every change.
const IDLE: Duration = Duration::from_hours(1);
/// Nodes named in the report.
const NAMED: usize = 10;

/// See the module's head.
#[derive(Default)]
pub struct LayoutDriver {
    /// The epoch which the next may follow, and since when this node knows that it may.
    ready: Mutex<Option<(u64, Duration)>>,
}

/// Starts the driver, and what wakes it.
pub fn start(node: &Arc<Node>) {
    node.workers.start(node, LayoutDriver::default());
    let this = node.clone();
    node.env.spawn("layout news", async move {
        let mut epochs = this.cluster.epochs();
        let mut news = this.membership.news();
        let mut outlivings = this.membership.outlivings();
        loop {
            // Biased: all three lead to the same. None of the senders goes away before this node does.
            tokio::select! { biased;
                _ = outlivings.changed() => {}
                _ = epochs.changed() => {}
                // What others say matters only during a change.
                _ = news.changed(), if this.cluster.layout().is_changing() => {}
            }
            this.workers.wake(NAME);
        }
    });
}

#[async_trait]
impl Worker for LayoutDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        if let Some(incarnation) = node.membership.outlived() {
            let next = incarnation.saturating_add(1);
            node.layout_store.outlive(next).await?;
            node.membership.renew(next);
        }
        say_what_is_synced(node);
        let layout = node.cluster.layout();
        describe(node, &layout, report);
        if !layout.is_changing() {
            *self.ready.lock() = None;
            return Ok(Next::After(IDLE));
        }
        let Some(wait) = self.wait(node, &layout) else { return Ok(Next::After(LOOK)) };
        if !wait.is_zero() {
            return Ok(Next::After(wait.min(LOOK)));
        }
        self.advance(node, &layout).await?;
        Ok(Next::Again)
    }
}

impl LayoutDriver {
    /// How long this node still leaves it to others to end the phase; `None` while it may not end.
    fn wait(&self, node: &Node, layout: &ActiveLayout) -> Option<Duration> {
        let down = node.membership.down(node.settings.down_after);
        let mut ready = self.ready.lock();
        if !may_advance(layout, &node.membership.progress(), &down) {
            *ready = None;
            return None;
        }
        let live = layout.storage_nodes().into_iter().filter(|id| !down.contains(id));
        let rank = live.take_while(|id| *id != node.id).count();
        let now = node.env.now();
        let since = match *ready {
            Some((epoch, since)) if epoch == layout.epoch => since,
            _ => now,
        };
        *ready = Some((layout.epoch, since));
        let patience = RANK_DELAY * u32::try_from(rank).unwrap_or(u32::MAX);
        Some(patience.saturating_sub(now.saturating_sub(since)))
    }

    async fn advance(&self, node: &Arc<Node>, layout: &ActiveLayout) -> Result<(), WorkerError> {
        let next = layout.next_phase().map_err(|e| WorkerError::Other(e.to_string()))?;
        let (version, phase) = (next.current.version, next.phase);
        match Agreement::new(node.membership.clone()).agree(layout, next).await {
            Ok(agreed) => {
                tracing::info!(epoch = agreed.epoch, version, ?phase, "the layout's next phase has begun");
                Ok(())
            }
            // Somebody else's came first: from there on.
            Err(AgreeError::Conflict { .. }) => Ok(()),
            Err(error) => {
                // The others had their turns as well when this is tried again.
                *self.ready.lock() = None;
                Err(WorkerError::Other(error.to_string()))
            }
        }
    }
}

/// Gives what is kept of the synced version to gossip. What is left to be done says the worker that does it.
fn say_what_is_synced(node: &Node) {
    let synced = node.layout_store.synced();
    let said = node.membership.progress().get(&node.id).copied().unwrap_or_default();
    if said.synced != synced {
        node.membership.set_progress(synced, said.partitions_left, said.blocks_left);
    }
}

/// Tells the operator what the change waits for.
fn describe(node: &Node, layout: &ActiveLayout, report: &Report) {
    let waits = waits_for(layout, &node.membership.progress());
    let mut notes = vec![format!(
        "version {}, {:?}, epoch {}, {} waiting behind it",
        layout.current.version,
        layout.phase,
        layout.epoch,
        layout.queued.len()
    )];
    notes.extend(waits.iter().take(NAMED).map(|wait| match wait.reason {
        WaitReason::Epoch { at } => format!("node {} is at epoch {at}", wait.node.short()),
        WaitReason::Copies { partitions_left, blocks_left } => {
            let id = wait.node.short();
            format!("node {id} has {partitions_left} partitions and {blocks_left} blocks left")
        }
    }));
    report.notes(notes);
}
