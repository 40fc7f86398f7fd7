//! "metadata compaction": gives back the space of rows that were removed for good.
//!
//! The engine compacts by itself as rows come in, level by level, but keeps marks of removed rows until a compaction
//! reaches the lowest one: after many removals and little writing that may be never. So once enough rows were removed
//! and no more are waiting to be, everything is compacted; also at an operator's word (`hayloft repair compact`).

use super::{Next, Report, Worker, WorkerError, forget, tombstones};
use crate::serve::Node;
use async_trait::async_trait;
use hayloft_proto::error::{RemoteCode, RpcError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const NAME: &str = "metadata compaction";

/// Removed rows that make a compaction worth while.
const WORTH: u64 = 10_000;
/// Between looks.
const LOOK: Duration = Duration::from_secs(15);

/// The worker.
#[derive(Default)]
pub struct MetadataCompaction {
    /// Rows removed by this process when it compacted last.
    removed_then: Mutex<u64>,
}

/// Asks for a compaction.
#[derive(Default)]
pub struct Asked(AtomicBool);

/// Asks for a compaction now.
pub fn start(node: &Arc<Node>) {
    node.compaction_asked.0.store(true, Ordering::Relaxed);
    node.workers.wake(NAME);
}

#[async_trait]
impl Worker for MetadataCompaction {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let status = |name| node.workers.get(name).map(|slot| slot.report.status()).unwrap_or_default();
        let (collected, dropped) = (status(tombstones::NAME), status(forget::NAME));
        let removed = collected.items + dropped.items;
        let waiting = collected.queue.unwrap_or(0) + dropped.queue.unwrap_or(0);
        let worth = waiting == 0 && removed.saturating_sub(*self.removed_then.lock()) >= WORTH;
        if !worth && !node.compaction_asked.0.swap(false, Ordering::Relaxed) {
            return Ok(Next::After(LOOK));
        }
        let engine = node.engine.clone();
        let done = node.env.run_blocking(move || engine.compact()).await;
        done.map_err(|_| RpcError::remote(RemoteCode::ShuttingDown, "the node is stopping"))??;
        *self.removed_then.lock() = removed;
        report.count(1, 0);
        Ok(Next::After(LOOK))
    }
}
