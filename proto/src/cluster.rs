//! The cluster as one node sees it: the layout in force, and how to call and order the others.
//!
//! Every data call carries the epoch of the layout held here. A newer layout, wherever it comes from, is first
//! given to the [`LayoutStore`] (a storage node makes it durable) and only then acted upon.

use crate::body::Body;
use crate::client::{CallOptions, Pool};
use crate::error::RpcError;
use crate::message::membership::LearnLayout;
use crate::message::{self, Class, Message};
use crate::trace;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, ConsistencyMode, read_quorum, write_quorum};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument as _;

/// How long a data call may take at most. Only reached when so many nodes are silent that no quorum is left.
pub const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// For telling a node our layout, and the shortest time between two such tellings.
const TEACH_DEADLINE: Duration = Duration::from_secs(5);
const TEACH_INTERVAL: Duration = Duration::from_millis(500);
/// Longest and shortest wait for a slow replica before another one is asked too.
const HEDGE_MIN: Duration = Duration::from_millis(10);
const HEDGE_MAX: Duration = Duration::from_millis(500);

/// What a block may take longer than a small call: a seek on a busy disk, a megabyte on a line of 50 Mbit/s.
const BULK_PATIENCE: Duration = Duration::from_millis(200);

/// Where a newly learnt layout is kept.
#[async_trait]
pub trait LayoutStore: Send + Sync + 'static {
    /// Makes the layout durable, if this node keeps any. An error means that it must not be acted upon.
    async fn keep(&self, layout: &ActiveLayout) -> Result<(), String>;
}

/// Keeps nothing: a gateway learns the layout anew at each start.
pub struct NoLayoutStore;

#[async_trait]
impl LayoutStore for NoLayoutStore {
    async fn keep(&self, _layout: &ActiveLayout) -> Result<(), String> {
        Ok(())
    }
}

/// See the module's head.
pub struct Cluster {
    env: Env,
    pool: Arc<Pool>,
    /// This node's zone, for a gateway; a storage node's stands in the layout.
    zone: Option<String>,
    mode: ConsistencyMode,
    layout: ArcSwap<ActiveLayout>,
    store: Arc<dyn LayoutStore>,
    /// Nodes that let a call wait beyond the hedge delay, and when; until they are heard of again.
    suspects: Mutex<BTreeMap<NodeId, Duration>>,
    /// Nodes that seemed to be behind, and the epoch they were told of when.
    taught: Mutex<BTreeMap<NodeId, (u64, Duration)>>,
    /// The epoch in force.
    epochs: watch::Sender<u64>,
}

impl Cluster {
    pub fn new(
        env: Env,
        pool: Arc<Pool>,
        zone: Option<String>,
        mode: ConsistencyMode,
        layout: ActiveLayout,
        store: Arc<dyn LayoutStore>,
    ) -> Arc<Self> {
        Arc::new(Self {
            env,
            pool,
            zone,
            mode,
            epochs: watch::Sender::new(layout.epoch),
            layout: ArcSwap::from_pointee(layout),
            store,
            suspects: Mutex::default(),
            taught: Mutex::default(),
        })
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The layout in force, as far as this node knows.
    pub fn layout(&self) -> Arc<ActiveLayout> {
        self.layout.load_full()
    }

    /// Tells of every epoch that is adopted here (the latest one at least).
    pub fn epochs(&self) -> watch::Receiver<u64> {
        self.epochs.subscribe()
    }

    /// Answers that make a write to a set of that many nodes. The sets of two layouts may differ in size.
    pub fn write_quorum(&self, set: usize) -> usize {
        write_quorum(self.mode, set)
    }

    /// Answers that make a read of a set of that many nodes.
    pub fn read_quorum(&self, set: usize) -> usize {
        read_quorum(self.mode, set)
    }

    /// Adopts `layout` if it is newer than the one in force. True if the one in force is now at least as new.
    pub async fn learn(&self, layout: ActiveLayout) -> bool {
        if layout.epoch <= self.layout.load().epoch {
            return true;
        }
        if let Err(error) = self.store.keep(&layout).await {
            tracing::error!(epoch = layout.epoch, %error, "a newer layout could not be stored and is not used");
            return false;
        }
        let new = Arc::new(layout);
        self.layout.rcu(|old| if old.epoch < new.epoch { new.clone() } else { old.clone() });
        self.epochs.send_if_modified(|epoch| {
            let newer = *epoch < new.epoch;
            *epoch = new.epoch.max(*epoch);
            newer
        });
        tracing::info!(
            epoch = new.epoch, version = new.current.version, phase = ?new.phase, "layout adopted"
        );
        true
    }

    /// As [`Cluster::learn`], from the encoded form that a refusal carries.
    pub async fn learn_encoded(&self, layout: &[u8]) -> bool {
        match codec::decode::<ActiveLayout>(layout) {
            Ok(layout) => self.learn(layout).await,
            Err(error) => {
                tracing::warn!(%error, "a peer sent a layout that can't be read");
                false
            }
        }
    }

    /// Tells `node`, which seems to be behind, the layout in force here; in the background, and not more often than
    /// it can have an effect.
    pub fn teach(self: &Arc<Self>, node: NodeId) {
        let (layout, now) = (self.layout(), self.env.now());
        let mut taught = self.taught.lock();
        let lately = |(epoch, when): &(u64, Duration)| {
            *epoch == layout.epoch && now.saturating_sub(*when) < TEACH_INTERVAL
        };
        if layout.is_empty() || taught.get(&node).is_some_and(lately) {
            return;
        }
        taught.insert(node, (layout.epoch, now));
        drop(taught);
        let this = self.clone();
        self.env.spawn("teach the layout", async move {
            let learn = LearnLayout { layout: (*layout).clone() };
            if let Err(error) = this.call(node, &learn, Body::empty(), TEACH_DEADLINE).await {
                tracing::debug!(node = %node.short(), %error, "a node that is behind was not told the layout");
            }
        });
    }

    /// Calls one node, under the layout in force here.
    pub async fn call<M: Message>(
        &self,
        node: NodeId,
        request: &M,
        body: Body,
        deadline: Duration,
    ) -> Result<(M::Reply, Body), RpcError> {
        let epoch = self.layout.load().epoch;
        self.call_at(epoch, node, request, body, deadline).await
    }

    /// Calls one node under the layout of `epoch`: the one by which the node was chosen, and its answer is counted.
    /// A later one would let the node take for a call of its own epoch what counts by an older one's sets.
    pub async fn call_at<M: Message>(
        &self,
        epoch: u64,
        node: NodeId,
        request: &M,
        body: Body,
        deadline: Duration,
    ) -> Result<(M::Reply, Body), RpcError> {
        let span = tracing::debug_span!("call", message = M::NAME, node = %node.short());
        let call = async {
            let head = message::encode_request(epoch, request);
            let options = CallOptions { class: M::CLASS, deadline, trace: trace::current() };
            let (head, body) = self.pool.call(node, options, M::METHOD, head, body).await?;
            Ok((message::decode(M::NAME, &head)?, body))
        };
        call.instrument(span).await
    }

    /// Sorts nodes by preference: this zone's first, then by round-trip time; silent and disconnected ones last.
    pub fn order(&self, nodes: &mut [NodeId]) {
        let layout = self.layout.load();
        let zone_of = |node: &NodeId| layout.current.roles.get(node).map(|role| role.zone.as_str());
        let own_zone = self.zone.as_deref().or_else(|| zone_of(&self.pool.local_id()));
        nodes.sort_by_cached_key(|node| {
            let stats = self.pool.peer_stats(*node);
            let down = !stats.connected || self.is_suspect(*node, stats.last_heard);
            let elsewhere = own_zone.is_none() || zone_of(node) != own_zone;
            (down, elsewhere, stats.srtt.unwrap_or(Duration::MAX), *node)
        });
    }

    /// How long to wait for `node` before another one is asked as well: about its 95th percentile.
    /// The percentile is that of small calls; a block also takes its time on a disk and on the line.
    pub fn hedge_delay(&self, node: NodeId, class: Class) -> Duration {
        let stats = self.pool.peer_stats(node);
        let usual = match stats.p95 {
            Some(p95) => (p95 + p95 / 2).clamp(HEDGE_MIN, HEDGE_MAX),
            None => HEDGE_MAX / 5,
        };
        match class {
            Class::Small => usual,
            Class::Bulk => usual + BULK_PATIENCE,
        }
    }

    /// Notes that `node` keeps a call waiting: it is asked last until something is heard of it.
    pub fn suspect(&self, node: NodeId) {
        self.suspects.lock().insert(node, self.env.now());
    }

    fn is_suspect(&self, node: NodeId, last_heard: Option<Duration>) -> bool {
        let mut suspects = self.suspects.lock();
        match suspects.get(&node) {
            Some(since) if last_heard.is_some_and(|heard| heard > *since) => {
                suspects.remove(&node);
                false
            }
            Some(_) => true,
            None => false,
        }
    }
}
