//! Gossip: which storage nodes there are, where, and which layout is in force (design §2).
//!
//! Every node, storage or gateway, exchanges what it knows with the storage nodes it knows of, every few
//! seconds; so one reachable peer is enough to learn the rest, a change of address spreads by itself, and a node
//! that missed a layout gets it. How far the storage nodes are with a change of layout spreads in the same way, at
//! once when it matters. Nothing is ever given up: an address that fails is tried again for ever, and a silent
//! peer delays no other.

use crate::body::Body;
use crate::cluster::Cluster;
use crate::message::membership::{Exchange, ExchangeReply, PeerInfo};
use hayloft_common::codec;
use hayloft_common::config::Peer;
use hayloft_common::crdt::Crdt as _;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{Acks, Progress, StagedChanges};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Between two rounds with the same peer, give or take a quarter.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between rounds while no storage node has answered yet.
const EAGER_INTERVAL: Duration = Duration::from_millis(250);
/// Between hurried rounds: what changes within it travels together.
const HURRY_GAP: Duration = Duration::from_millis(20);
/// For one exchange.
const DEADLINE: Duration = Duration::from_secs(5);

/// See the module's head.
pub struct Membership {
    cluster: Arc<Cluster>,
    /// What this node says of itself, if it is a storage node.
    me: Option<Mutex<Own>>,
    bootstrap: Vec<Peer>,
    /// Configured addresses, by who answers there: tried besides those that the node tells of itself.
    configured: Mutex<BTreeMap<NodeId, String>>,
    peers: Mutex<BTreeMap<NodeId, PeerInfo>>,
    /// Of the other storage nodes.
    acks: Mutex<Acks>,
    /// Counts what was learnt of the progress of any node.
    news: watch::Sender<u64>,
    /// The highest incarnation that others say this node has, if not below its own; else 0.
    outlived: watch::Sender<u64>,
    staged: Mutex<StagedChanges>,
    /// How far each storage node's wall clock is ahead of ours, in milliseconds.
    clocks: Mutex<BTreeMap<NodeId, i64>>,
    /// Asks for a round of gossip at once.
    hurry: Notify,
    /// Peers that an exchange is under way with, and whether another is to follow.
    busy: Mutex<BTreeMap<NodeId, bool>>,
    /// Whether any peer answered of late.
    answered: AtomicBool,
    started: Duration,
}

/// What a storage node says of itself.
struct Own {
    info: PeerInfo,
    progress: Progress,
}

impl Membership {
    pub fn new(
        cluster: Arc<Cluster>,
        me: Option<PeerInfo>,
        bootstrap: Vec<Peer>,
        staged: StagedChanges,
    ) -> Arc<Self> {
        let own = |info: PeerInfo| {
            let progress = Progress { incarnation: info.incarnation, ..Progress::default() };
            Mutex::new(Own { info, progress })
        };
        let configured = bootstrap.iter().filter_map(|peer| Some((peer.id?, peer.addr.clone()))).collect();
        Arc::new(Self {
            started: cluster.env().now(),
            cluster,
            me: me.map(own),
            bootstrap,
            configured: Mutex::new(configured),
            peers: Mutex::default(),
            acks: Mutex::default(),
            news: watch::Sender::default(),
            outlived: watch::Sender::default(),
            staged: Mutex::new(staged),
            clocks: Mutex::default(),
            hurry: Notify::new(),
            busy: Mutex::default(),
            answered: AtomicBool::new(false),
        })
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Every storage node heard of, in order of id.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let own = self.me.as_ref().map(|me| me.lock().info.clone());
        let mut all: Vec<PeerInfo> = self.others().into_iter().chain(own).collect();
        all.sort_by_key(|info| info.id);
        all
    }

    /// How far each storage node is with the layout, by what it said last; this one among them, if it is one.
    pub fn progress(&self) -> Acks {
        let mut acks = self.acks.lock().clone();
        if let Some(me) = &self.me {
            let mut me = me.lock();
            let epoch = self.cluster.layout().epoch;
            if me.progress.epoch != epoch {
                me.progress.epoch = epoch;
                me.progress.seq += 1;
            }
            acks.insert(me.info.id, me.progress);
        }
        acks
    }

    /// Says how far this storage node is; others hear at once of a newly synced version, else with the next round.
    pub fn set_progress(&self, synced: u64, partitions_left: u32, blocks_left: u64) {
        let Some(me) = &self.me else { return };
        let mut me = me.lock();
        let mut now = Progress { synced, partitions_left, blocks_left, ..me.progress };
        if now == me.progress {
            return;
        }
        now.seq += 1;
        let urgent = now.synced != me.progress.synced;
        me.progress = now;
        drop(me);
        self.news.send_modify(|count| *count += 1);
        if urgent {
            self.hurry();
        }
    }

    /// Changes whenever [`Membership::progress`] may have.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// For how long nothing was heard of a storage node; since this node's start, if never.
    pub fn silent_for(&self, node: NodeId) -> Duration {
        if node == self.cluster.pool().local_id() {
            return Duration::ZERO;
        }
        let heard = self.cluster.pool().peer_stats(node).last_heard.unwrap_or(self.started);
        self.cluster.env().now().saturating_sub(heard)
    }

    /// The storage nodes of the layout in force of which nothing was heard for `after`.
    pub fn down(&self, after: Duration) -> BTreeSet<NodeId> {
        let nodes = self.cluster.layout().storage_nodes();
        nodes.into_iter().filter(|node| self.silent_for(*node) >= after).collect()
    }

    /// A later state of this storage node than its own, that others know of: its incarnation. Then this node has
    /// gone back in time (restored from a copy, or emptied) and may lack what it acknowledged. It must take a
    /// higher one ([`Membership::renew`]) before it serves data.
    pub fn outlived(&self) -> Option<u64> {
        Some(*self.outlived.borrow()).filter(|incarnation| *incarnation > 0)
    }

    /// Changes whenever [`Membership::outlived`] does.
    pub fn outlivings(&self) -> watch::Receiver<u64> {
        self.outlived.subscribe()
    }

    /// Takes another incarnation, which must be durable and above all that others know of.
    pub fn renew(&self, incarnation: u64) {
        let Some(me) = &self.me else { return };
        let mut me = me.lock();
        me.info.incarnation = incarnation;
        me.progress = Progress { incarnation, ..Progress::default() };
        drop(me);
        self.outlived.send_modify(|heard| {
            if *heard < incarnation {
                *heard = 0;
            }
        });
        self.hurry();
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
        self.take_progress(&request.progress);
        let layout = self.cluster.layout();
        if request.epoch > layout.epoch {
            self.hurry();
        }
        let staged = self.staged();
        ExchangeReply {
            peers: self.peers(),
            layout: (layout.epoch > request.epoch).then(|| (*layout).clone()),
            epoch: layout.epoch,
            staged: (digest(&staged) != request.staged_digest).then_some(staged),
            wall_ms: self.cluster.env().wall_millis(),
            progress: self.progress(),
        }
    }

    /// Takes in what a peer says of the storage nodes; what is new is dialled at the next round.
    fn take_in(&self, infos: &[PeerInfo]) {
        for info in infos {
            if let Some(me) = self.me.as_ref().filter(|me| me.lock().info.id == info.id) {
                if me.lock().info.incarnation < info.incarnation {
                    self.note_outlived(info.incarnation);
                }
                continue;
            }
            let mut peers = self.peers.lock();
            if peers.get(&info.id).is_none_or(|known| known.incarnation < info.incarnation) {
                self.cluster.pool().set_addresses(info.id, self.addresses(info.id, &info.addresses));
                peers.insert(info.id, info.clone());
            }
        }
    }

    /// What a node tells of itself, then what is configured.
    fn addresses(&self, node: NodeId, told: &[String]) -> Vec<String> {
        let configured = self.configured.lock().get(&node).cloned();
        told.iter().cloned().chain(configured.filter(|addr| !told.contains(addr))).collect()
    }

    fn take_progress(&self, told: &Acks) {
        let mut newer = false;
        for (node, progress) in told {
            if let Some(me) = self.me.as_ref().filter(|me| me.lock().info.id == *node) {
                if progress.is_newer_than(&me.lock().progress) {
                    self.note_outlived(progress.incarnation);
                }
                continue;
            }
            let mut acks = self.acks.lock();
            if acks.get(node).is_none_or(|known| progress.is_newer_than(known)) {
                acks.insert(*node, *progress);
                newer = true;
            }
        }
        if newer {
            self.news.send_modify(|count| *count += 1);
        }
    }

    fn note_outlived(&self, incarnation: u64) {
        let higher = self.outlived.send_if_modified(|heard| {
            let higher = *heard < incarnation;
            *heard = incarnation.max(*heard);
            higher
        });
        if higher {
            tracing::error!(
                incarnation,
                "other nodes know a later state of this node: its metadata was lost or restored from a copy; \
                 what it holds is fetched again before it serves data"
            );
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
                    if self.cluster.pool().local_id() == id {
                        return;
                    }
                    self.configured.lock().insert(id, bootstrap.addr.clone());
                    let told = self.peers.lock().get(&id).map(|info| info.addresses.clone());
                    let addresses = self.addresses(id, &told.unwrap_or_default());
                    self.cluster.pool().set_addresses(id, addresses);
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
        let mut epochs = self.cluster.epochs();
        loop {
            for info in self.others() {
                self.poke(info.id);
            }
            let eager = !self.answered.swap(false, Ordering::Relaxed) || self.cluster.layout().is_empty();
            let pause = self.jittered(if eager { EAGER_INTERVAL } else { INTERVAL });
            // Biased: all three lead to the same.
            tokio::select! { biased;
                () = self.hurry.notified() => {}
                _ = epochs.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            tokio::time::sleep(HURRY_GAP).await;
        }
    }

    /// Starts an exchange with a peer; another one after it, if one is under way.
    fn poke(self: &Arc<Self>, id: NodeId) {
        let mut busy = self.busy.lock();
        if let Some(again) = busy.get_mut(&id) {
            *again = true;
            return;
        }
        busy.insert(id, false);
        drop(busy);
        let this = self.clone();
        self.cluster.env().spawn("gossip with a peer", async move {
            loop {
                this.exchange_with(id).await;
                let mut busy = this.busy.lock();
                if busy.insert(id, false) != Some(true) {
                    busy.remove(&id);
                    return;
                }
            }
        });
    }

    /// One exchange. True if the peer answered.
    async fn exchange_with(&self, id: NodeId) -> bool {
        let request = Exchange {
            peers: self.peers(),
            epoch: self.cluster.layout().epoch,
            staged_digest: digest(&self.staged()),
            progress: self.progress(),
        };
        match self.cluster.call(id, &request, Body::empty(), DEADLINE).await {
            Ok((reply, _)) => {
                self.answered.store(true, Ordering::Relaxed);
                // First of all: it may tell that this node must not serve.
                self.take_in(&reply.peers);
                self.take_progress(&reply.progress);
                if reply.wall_ms > 0 {
                    let ahead = reply.wall_ms.cast_signed() - self.cluster.env().wall_millis().cast_signed();
                    self.clocks.lock().insert(id, ahead);
                }
                if let Some(staged) = &reply.staged {
                    self.merge_staged(staged);
                }
                if let Some(layout) = reply.layout {
                    self.cluster.learn(layout).await;
                } else if reply.epoch < self.cluster.layout().epoch {
                    self.cluster.teach(id);
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
        self.peers.lock().values().cloned().collect()
    }

    fn jittered(&self, base: Duration) -> Duration {
        let quarter = base.as_micros() as u64 / 4;
        base * 3 / 4 + Duration::from_micros(self.cluster.env().random_u64() % (2 * quarter + 1))
    }
}

fn digest(staged: &StagedChanges) -> Vec<u8> {
    Hash::of(&codec::encode(staged)).0.to_vec()
}
