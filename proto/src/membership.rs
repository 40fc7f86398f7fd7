//! Gossip: which storage nodes there are, where, and which layout is in force (design §2).
//!
//! Every node, storage or gateway, exchanges what it knows with the storage nodes it knows of, every few
//! seconds; so one reachable peer is enough to learn the rest, a change of address spreads by itself, and a node
//! that missed a layout gets it. Nothing is ever given up: an address that fails is tried again for ever.

use crate::body::Body;
use crate::cluster::Cluster;
use crate::message::membership::{Exchange, ExchangeReply, PeerInfo};
use hayloft_common::codec;
use hayloft_common::config::Peer;
use hayloft_common::crdt::Crdt as _;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::StagedChanges;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Between two rounds with the same peer, give or take a quarter.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between rounds while no storage node has answered yet.
const EAGER_INTERVAL: Duration = Duration::from_millis(250);
/// For one exchange.
const DEADLINE: Duration = Duration::from_secs(5);

/// See the module's head.
pub struct Membership {
    cluster: Arc<Cluster>,
    /// What this node says of itself, if it is a storage node.
    me: Option<PeerInfo>,
    bootstrap: Vec<Peer>,
    peers: Mutex<BTreeMap<NodeId, PeerInfo>>,
    staged: Mutex<StagedChanges>,
    /// How far each storage node's wall clock is ahead of ours, in milliseconds.
    clocks: Mutex<BTreeMap<NodeId, i64>>,
    /// Asks for a round of gossip at once.
    hurry: Notify,
}

impl Membership {
    pub fn new(
        cluster: Arc<Cluster>,
        me: Option<PeerInfo>,
        bootstrap: Vec<Peer>,
        staged: StagedChanges,
    ) -> Arc<Self> {
        let peers = me.iter().map(|info| (info.id, info.clone())).collect();
        Arc::new(Self {
            cluster,
            me,
            bootstrap,
            peers: Mutex::new(peers),
            staged: Mutex::new(staged),
            clocks: Mutex::default(),
            hurry: Notify::new(),
        })
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Every storage node heard of, in order of id.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.peers.lock().values().cloned().collect()
    }

    /// The changes waiting for an `apply`.
    pub fn staged(&self) -> StagedChanges {
        self.staged.lock().clone()
    }

    /// Merges staged changes and returns all of them.
    pub fn merge_staged(&self, other: &StagedChanges) -> StagedChanges {
        let mut staged = self.staged.lock();
        staged.merge(other);
        staged.clone()
    }

    /// Starts a round of gossip now: something newer than what is known here exists.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// How far the cluster's time, the median of the storage nodes' wall clocks, is ahead of this node's, in
    /// milliseconds. 0 while no other node was heard. For what compares with the world's clocks (signatures, expiry);
    /// the order of writes does not depend on it.
    pub fn clock_offset_ms(&self) -> i64 {
        let mut offsets: Vec<i64> = self.clocks.lock().values().copied().collect();
        if self.me.is_some() {
            offsets.push(0);
        }
        offsets.sort_unstable();
        offsets.get(offsets.len() / 2).copied().unwrap_or(0)
    }

    /// Answers a peer's exchange.
    pub fn answer(&self, request: &Exchange) -> ExchangeReply {
        self.take_in(&request.peers);
        let layout = self.cluster.layout();
        let staged = self.staged();
        ExchangeReply {
            peers: self.peers(),
            layout: (layout.epoch > request.epoch).then(|| (*layout).clone()),
            epoch: layout.epoch,
            staged: (digest(&staged) != request.staged_digest).then_some(staged),
            wall_ms: self.cluster.env().wall_millis(),
        }
    }

    /// Takes in what a peer says of the storage nodes; what is new is dialled at the next round.
    fn take_in(&self, infos: &[PeerInfo]) {
        let mut peers = self.peers.lock();
        for info in infos {
            let newer = peers.get(&info.id).is_none_or(|known| known.incarnation < info.incarnation);
            if newer && self.me.as_ref().is_none_or(|me| me.id != info.id) {
                self.cluster.pool().set_addresses(info.id, info.addresses.clone());
                peers.insert(info.id, info.clone());
            }
        }
    }

    /// Starts gossiping; ends with the node's tasks.
    pub fn start(self: &Arc<Self>) {
        for bootstrap in self.bootstrap.clone() {
            let this = self.clone();
            self.cluster.env().spawn("bootstrap", async move { this.find(bootstrap).await });
        }
        let this = self.clone();
        self.cluster.env().spawn("gossip", async move { this.gossip().await });
    }

    /// Dials a configured address until the node there is known.
    async fn find(self: Arc<Self>, bootstrap: Peer) {
        let mut wait = EAGER_INTERVAL;
        loop {
            match self.cluster.pool().dial_unknown(&bootstrap.addr).await {
                Ok(id) if bootstrap.id.is_none_or(|wanted| wanted == id) => {
                    if self.me.as_ref().is_some_and(|me| me.id == id) {
                        return;
                    }
                    if !self.peers.lock().contains_key(&id) {
                        self.cluster.pool().set_addresses(id, vec![bootstrap.addr.clone()]);
                    }
                    if self.exchange_with(id).await {
                        return;
                    }
                }
                Ok(id) => tracing::warn!(
                    addr = bootstrap.addr, found = %id,
                    "another node than the configured one answers there; correct the peer's id or address"
                ),
                Err(error) => tracing::warn!(addr = bootstrap.addr, %error, "peer not reached, trying on"),
            }
            tokio::time::sleep(self.jittered(wait)).await;
            wait = (wait * 2).min(INTERVAL);
        }
    }

    /// One exchange with every storage node known, all at once. True if one of them answered.
    pub async fn round(&self) -> bool {
        let peers = self.others();
        let rounds = peers.iter().map(|info| self.exchange_with(info.id));
        futures::future::join_all(rounds).await.into_iter().any(|ok| ok)
    }

    async fn gossip(self: Arc<Self>) {
        loop {
            let answered = self.round().await;
            let eager = !answered || self.cluster.layout().is_empty();
            let pause = self.jittered(if eager { EAGER_INTERVAL } else { INTERVAL });
            // Woken early or not: both lead to the next round.
            let _ = tokio::time::timeout(pause, self.hurry.notified()).await;
        }
    }

    /// One exchange. True if the peer answered.
    async fn exchange_with(&self, id: NodeId) -> bool {
        let request = Exchange {
            peers: self.me.iter().cloned().chain(self.others()).collect(),
            epoch: self.cluster.layout().epoch,
            staged_digest: digest(&self.staged()),
        };
        match self.cluster.call(id, &request, Body::empty(), DEADLINE).await {
            Ok((reply, _)) => {
                self.take_in(&reply.peers);
                if reply.wall_ms > 0 {
                    let ahead = reply.wall_ms.cast_signed() - self.cluster.env().wall_millis().cast_signed();
                    self.clocks.lock().insert(id, ahead);
                }
                if let Some(staged) = &reply.staged {
                    self.merge_staged(staged);
                }
                if let Some(layout) = reply.layout {
                    self.cluster.learn(layout).await;
                }
                true
            }
            Err(error) => {
                tracing::debug!(peer = %id.short(), %error, "gossip failed");
                false
            }
        }
    }

    fn others(&self) -> Vec<PeerInfo> {
        let own = self.me.as_ref().map(|me| me.id);
        self.peers.lock().values().filter(|info| Some(info.id) != own).cloned().collect()
    }

    fn jittered(&self, base: Duration) -> Duration {
        let quarter = base.as_micros() as u64 / 4;
        base * 3 / 4 + Duration::from_micros(self.cluster.env().random_u64() % (2 * quarter + 1))
    }
}

fn digest(staged: &StagedChanges) -> Vec<u8> {
    Hash::of(&codec::encode(staged)).0.to_vec()
}
