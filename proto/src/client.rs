//! The calling side: a pool of peers by node id, each with up to two connections, one for small calls and
//! one for bulk bodies, made when first needed and remade for ever after with back-off.
//!
//! A call to a peer that is known to be down fails at once; the pool keeps trying in the background. Only
//! the very first connection, and one to a peer that closed properly, is waited for. A call to this node
//! itself goes straight to the local handler.

use crate::body::Body;
use crate::caller::{self, Line};
use crate::error::RpcError;
use crate::frame::{Request, TraceContext};
use crate::greet::{self, GreetError, Greeted};
use crate::hello::{Kind, Member, Role};
use crate::limits::Limits;
use crate::link::LinkError;
use crate::message::Class;
use crate::secure::Secure;
use crate::server::{Handler, Incoming};
use crate::stats::{PeerMeter, PeerStats};
use crate::watched::Watched;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt as _;
use hayloft_common::env::{BoxStream, Env};
use hayloft_common::id::NodeId;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// Calls that may take longer than this (polls) do not count for a peer's latency.
const LONGEST_MEASURED: Duration = Duration::from_mins(1);

/// How a call is to be made.
#[derive(Debug, Clone, Copy)]
pub struct CallOptions {
    /// Which connection it takes.
    pub class: Class,
    /// Time for the answer's head; the peer keeps it too.
    pub deadline: Duration,
    pub trace: Option<TraceContext>,
}

#[derive(Clone)]
enum State {
    /// Never used: nothing is being done.
    Unused,
    /// An attempt runs that is worth waiting for.
    Connecting,
    Up(Line),
    /// Attempts go on in the background.
    Down(RpcError),
    /// The peer was removed.
    Removed,
}

/// One of a peer's two connections.
struct Slot {
    state: Watched<State>,
}

struct Peer {
    id: NodeId,
    addresses: Mutex<Vec<String>>,
    slots: [Slot; 2],
    meter: Arc<PeerMeter>,
    /// Wakes attempts that wait: a new address, or somebody who wants it tried now.
    retry: Notify,
}

impl Peer {
    fn new(id: NodeId) -> Arc<Self> {
        let slot = || Slot { state: Watched::new(State::Unused) };
        Arc::new(Self {
            id,
            addresses: Mutex::new(Vec::new()),
            slots: [slot(), slot()],
            meter: Arc::new(PeerMeter::default()),
            retry: Notify::new(),
        })
    }

    fn slot(&self, kind: Kind) -> &Slot {
        match kind {
            Kind::Small => &self.slots[0],
            Kind::Bulk => &self.slots[1],
        }
    }

    fn retire(&self) {
        for slot in &self.slots {
            slot.state.set(State::Removed);
        }
        self.retry.notify_waiters();
    }
}

struct LocalHandler {
    handler: Arc<dyn Handler>,
}

/// Calls peers; cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    secure: Arc<dyn Secure>,
    member: Member,
    limits: Arc<Limits>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    local: ArcSwapOption<LocalHandler>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for peer in self.peers.get_mut().values() {
            peer.retire();
        }
    }
}

impl Pool {
    pub fn new(env: Env, secure: Arc<dyn Secure>, member: Member, limits: Limits) -> Self {
        let inner = Inner {
            env,
            secure,
            member,
            limits: Arc::new(limits),
            peers: RwLock::new(BTreeMap::new()),
            local: ArcSwapOption::empty(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// This node's id.
    pub fn local_id(&self) -> NodeId {
        self.inner.secure.local_id()
    }

    /// This node's role, as it tells its peers.
    pub fn local_role(&self) -> Role {
        self.inner.member.role
    }

    /// Lets calls to this node's own id reach `handler` without a socket.
    pub fn set_local(&self, handler: Arc<dyn Handler>) {
        self.inner.local.store(Some(Arc::new(LocalHandler { handler })));
    }

    /// Where a peer can be reached: `host:port`, tried in this order with a short stagger. Names are
    /// resolved at every attempt. A waiting attempt to reconnect starts at once if they changed.
    pub fn set_addresses(&self, id: NodeId, addresses: Vec<String>) {
        let peer = self.peer_or_new(id);
        let mut known = peer.addresses.lock();
        if *known != addresses {
            *known = addresses;
            drop(known);
            peer.retry.notify_waiters();
        }
    }

    /// Forgets a peer and closes its connections; calls that run are finished.
    pub fn remove(&self, id: NodeId) {
        if let Some(peer) = self.inner.peers.write().remove(&id) {
            peer.retire();
        }
    }

    /// The peers that were given addresses, in order of id.
    pub fn peers(&self) -> Vec<NodeId> {
        self.inner.peers.read().keys().copied().collect()
    }

    /// The addresses given for a peer.
    pub fn addresses(&self, id: NodeId) -> Vec<String> {
        self.peer(id).map(|peer| peer.addresses.lock().clone()).unwrap_or_default()
    }

    /// How a peer is doing. This node itself is always connected.
    pub fn peer_stats(&self, id: NodeId) -> PeerStats {
        if id == self.local_id() {
            let now = Some(self.inner.env.now());
            let zero = Some(Duration::ZERO);
            return PeerStats { connected: true, srtt: zero, p95: zero, last_heard: now, silent_since: None };
        }
        self.peer(id).map(|peer| peer.meter.stats()).unwrap_or_default()
    }

    /// Tries to reconnect to a peer that is down now, not after its back-off.
    pub fn probe(&self, id: NodeId) {
        if let Some(peer) = self.peer(id) {
            peer.retry.notify_waiters();
        }
    }

    /// Calls `node` and returns the head of its answer and the body that follows. Dropping the future, or
    /// the body, cancels the call at the peer.
    pub async fn call(
        &self,
        node: NodeId,
        options: CallOptions,
        method: u16,
        head: Bytes,
        body: Body,
    ) -> Result<(Bytes, Body), RpcError> {
        let deadline = options.deadline;
        if node == self.local_id()
            && let Some(local) = self.inner.local.load_full()
        {
            return self.call_local(&local, options, method, head, body).await;
        }
        let work = async {
            let kind = match options.class {
                Class::Small => Kind::Small,
                Class::Bulk => Kind::Bulk,
            };
            let line = self.line(node, kind).await?;
            let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
            let measured = kind == Kind::Small && deadline <= LONGEST_MEASURED;
            let request = Request { method, deadline_ms, trace: options.trace, body: None, head };
            line.call(request, body, measured).await
        };
        tokio::time::timeout(deadline, work).await.unwrap_or(Err(RpcError::Timeout))
    }

    async fn call_local(
        &self,
        local: &LocalHandler,
        options: CallOptions,
        method: u16,
        head: Bytes,
        body: Body,
    ) -> Result<(Bytes, Body), RpcError> {
        let call = Incoming {
            peer: self.local_id(),
            peer_role: self.inner.member.role,
            protocol: self.inner.member.protocol.1,
            method,
            head,
            body,
            deadline: options.deadline,
            trace: options.trace,
        };
        let work = local.handler.handle(call);
        tokio::time::timeout(options.deadline, work).await.unwrap_or(Err(RpcError::Timeout))
    }

    /// Connects to an address to learn which node is there (and that it belongs to the cluster).
    pub async fn dial_unknown(&self, address: &str) -> Result<NodeId, RpcError> {
        let greeted = self.inner.connect_one(address.to_owned(), None, Kind::Small, Duration::ZERO).await;
        match greeted {
            Ok(greeted) => Ok(greeted.peer),
            Err(error) => {
                tracing::warn!(address, %error, "cannot reach a bootstrap peer");
                Err(error.to_rpc())
            }
        }
    }

    fn peer(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.inner.peers.read().get(&id).cloned()
    }

    fn peer_or_new(&self, id: NodeId) -> Arc<Peer> {
        if let Some(peer) = self.peer(id) {
            return peer;
        }
        self.inner.peers.write().entry(id).or_insert_with(|| Peer::new(id)).clone()
    }

    /// The peer's connection, made if it is not there.
    async fn line(&self, node: NodeId, kind: Kind) -> Result<Line, RpcError> {
        let Some(peer) = self.peer(node) else {
            return Err(GreetError::NoAddress.to_rpc());
        };
        let slot = peer.slot(kind);
        match slot.state.get() {
            State::Up(line) if line.is_open() => return Ok(line),
            State::Down(error) => return Err(error),
            _ => {}
        }
        // A peer whose small connection is down does not deserve a wait for its bulk connection.
        if let State::Down(error) = peer.slot(Kind::Small).state.get() {
            return Err(error);
        }
        let unused = slot.state.modify(|state| {
            let unused = matches!(state, State::Unused);
            if unused {
                *state = State::Connecting;
            }
            unused
        });
        if unused {
            let keeper = Keeper { pool: Arc::downgrade(&self.inner), peer: peer.clone(), kind };
            self.inner.env.spawn("rpc keeper", keeper.run());
        }
        let settled = |state: &State| match state {
            State::Up(line) => line.is_open(),
            State::Down(_) | State::Removed => true,
            State::Unused | State::Connecting => false,
        };
        let gone = || RpcError::Unreachable { sent: false, reason: "the peer was removed".into() };
        match slot.state.wait_for(settled).await {
            State::Up(line) => Ok(line),
            State::Down(error) => Err(error),
            _ => Err(gone()),
        }
    }
}

impl Inner {
    /// Tries a peer's addresses, each some time after the one before; the first success wins.
    async fn connect(&self, peer: &Peer, kind: Kind) -> Result<Greeted, GreetError> {
        let addresses = peer.addresses.lock().clone();
        if addresses.is_empty() {
            return Err(GreetError::NoAddress);
        }
        let attempts = (0u32..).zip(addresses).map(|(i, address)| {
            self.connect_one(address, Some(peer.id), kind, self.limits.address_stagger * i).boxed()
        });
        futures::future::select_ok(attempts).await.map(|(greeted, _)| greeted)
    }

    async fn connect_one(
        &self,
        address: String,
        expect: Option<NodeId>,
        kind: Kind,
        delay: Duration,
    ) -> Result<Greeted, GreetError> {
        tokio::time::sleep(delay).await;
        let limit = self.limits.connect_timeout;
        let stream: BoxStream = tokio::time::timeout(limit, self.env.net.dial(&address))
            .await
            .map_err(|_| GreetError::Timeout(limit))?
            .map_err(GreetError::Connect)?;
        greet::dialled(stream, &*self.secure, &self.member, expect, kind, &self.limits).await
    }
}

/// Keeps one connection of one peer alive until the peer is removed.
struct Keeper {
    pool: Weak<Inner>,
    peer: Arc<Peer>,
    kind: Kind,
}

impl Keeper {
    async fn run(self) {
        let mut failures = 0u32;
        loop {
            let Some(pool) = self.pool.upgrade() else { return };
            match pool.connect(&self.peer, self.kind).await {
                Ok(greeted) => {
                    if failures > 0 {
                        tracing::info!(peer = %self.peer.id, kind = ?self.kind, "peer is reachable again");
                    }
                    failures = 0;
                    let meter = Some(self.peer.meter.clone());
                    let (line, end) = caller::start(&pool.env, greeted, pool.limits.clone(), meter);
                    drop(pool);
                    if !self.set(State::Up(line)) {
                        return;
                    }
                    if !self.watch(end).await {
                        return;
                    }
                }
                Err(error) => {
                    // Said once per outage; the pool keeps trying.
                    if failures == 0 {
                        tracing::warn!(peer = %self.peer.id, kind = ?self.kind, %error, "peer is down");
                    } else {
                        tracing::debug!(peer = %self.peer.id, kind = ?self.kind, %error, "peer is still down");
                    }
                    failures += 1;
                    if !self.set(State::Down(error.to_rpc())) {
                        return;
                    }
                    let wait = backoff(&pool.limits, failures, pool.env.random_u64());
                    drop(pool);
                    let retry = self.peer.retry.notified();
                    // Whichever comes first; both lead to the next attempt.
                    let _ = tokio::time::timeout(wait, retry).await;
                }
            }
        }
    }

    /// Waits for the end of the connection. False if the peer was removed.
    async fn watch(&self, end: oneshot::Receiver<LinkError>) -> bool {
        let removed = self.peer.slot(self.kind).state.wait_for(|state| matches!(state, State::Removed));
        let mut end = end;
        let why = tokio::select! {
            biased;
            _ = removed => return false,
            why = &mut end => why,
        };
        let next = match why {
            // Silence: whoever calls meanwhile must not wait for a line that may be dead for long.
            Ok(why @ LinkError::Silent(_)) => {
                tracing::warn!(peer = %self.peer.id, kind = ?self.kind, reason = %why, "connection lost");
                State::Down(RpcError::Unreachable { sent: false, reason: why.to_string() })
            }
            Ok(why) => {
                tracing::debug!(peer = %self.peer.id, kind = ?self.kind, reason = %why, "connection ended");
                State::Connecting
            }
            // The connection's task was dropped: this node is being stopped.
            Err(_) => return false,
        };
        self.set(next)
    }

    /// False if the peer was removed.
    fn set(&self, next: State) -> bool {
        self.peer.slot(self.kind).state.modify(|state| {
            let removed = matches!(state, State::Removed);
            if !removed {
                *state = next;
            }
            !removed
        })
    }
}

/// Doubling from the least to the longest wait, a random quarter taken off so that peers spread out.
fn backoff(limits: &Limits, failures: u32, random: u64) -> Duration {
    let doubled = limits.backoff_min.saturating_mul(1 << (failures - 1).min(16));
    let full = doubled.min(limits.backoff_max);
    full.mul_f64(1.0 - (random % 256) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_never_reach_zero() {
        let limits = Limits::default();
        for failures in 1..100 {
            for random in [0, 255, u64::MAX] {
                let wait = backoff(&limits, failures, random);
                assert!(wait >= limits.backoff_min * 3 / 4 && wait <= limits.backoff_max);
            }
        }
        assert!(backoff(&limits, 3, 0) > backoff(&limits, 2, 0));
    }
}
