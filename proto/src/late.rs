//! A bound on what calls hold that nobody waits for any more.
//!
//! When a write has its quorum, the calls to the other nodes go on, so that slow nodes get what they are owed. A node
//! that says nothing keeps its call, and the bytes in it, until it is declared dead; with large bodies that soon is
//! all the memory there is, and new writes wait for a node that no quorum needs. So: once late calls hold more than
//! the limit, those to nodes that are silent (no link, or a ping without answer for `SILENT`) are dropped. Such a node
//! gets the data from the others when it is back. A node that is slow but alive is never given up.

use crate::cluster::Cluster;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hayloft_common::id::NodeId;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How often a late call looks whether it should go on.
const CHECK: Duration = Duration::from_millis(250);
/// A ping that has no answer for so long, and for many round trips, means silence. Long enough for a full line.
const SILENT: Duration = Duration::from_secs(2);
const SILENT_ROUND_TRIPS: u32 = 4;

/// What late calls hold together, and how much they may.
#[derive(Debug)]
pub struct LateCalls {
    held: AtomicUsize,
    limit: usize,
}

/// Bytes of a body that late calls hold.
struct Held<'a>(&'a LateCalls, usize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl LateCalls {
    /// Late calls to silent nodes end when all late ones hold more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { held: AtomicUsize::new(0), limit }
    }

    /// Bytes that late calls hold.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether calls to `nodes` should end.
    fn gives_up(&self, cluster: &Cluster, nodes: &[NodeId]) -> bool {
        self.held() > self.limit && nodes.iter().all(|node| is_silent(cluster, *node))
    }

    /// Runs `calls`, which hold a body of `bytes` for `nodes`, to their end or until they are given up.
    pub(crate) async fn finish<C: Future>(
        self: Arc<Self>,
        cluster: Arc<Cluster>,
        mut calls: FuturesUnordered<C>,
        nodes: Vec<NodeId>,
        bytes: usize,
    ) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let _held = Held(&self, bytes);
        loop {
            match tokio::time::timeout(CHECK, calls.next()).await {
                Ok(None) => return,
                Err(_) if self.gives_up(&cluster, &nodes) => {
                    tracing::debug!(?nodes, bytes, "a late write to a silent node is given up");
                    return;
                }
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }
}

fn is_silent(cluster: &Cluster, node: NodeId) -> bool {
    let stats = cluster.pool().peer_stats(node);
    let usual = SILENT.max(stats.srtt.unwrap_or_default() * SILENT_ROUND_TRIPS);
    let silence = stats.silent_since.map(|since| cluster.env().now().saturating_sub(since));
    !stats.connected || silence.is_some_and(|silence| silence > usual)
}
