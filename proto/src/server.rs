//! The answering side: accepts connections, greets, and hands each call to a [`Handler`].
//!
//! Every call runs in a task of its own, which is dropped when the caller cancels, the connection breaks
//! or the deadline passes. More calls than allowed are told [`RpcError::Overloaded`] at once.

use crate::answerer;
use crate::body::Body;
use crate::error::{Refusal, RpcError};
use crate::frame::TraceContext;
use crate::greet;
use crate::hello::{Member, Role};
use crate::limits::Limits;
use crate::link::Command;
use crate::secure::Secure;
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::env::{BoxStream, Env, Listener, TaskHandle};
use hayloft_common::id::NodeId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A call as it reaches the handler.
#[derive(Debug)]
pub struct Incoming {
    pub peer: NodeId,
    pub peer_role: Role,
    /// Protocol version agreed with the peer.
    pub protocol: u16,
    pub method: u16,
    pub head: Bytes,
    pub body: Body,
    /// Time left; the handler's future is dropped when it has passed.
    pub deadline: Duration,
    pub trace: Option<TraceContext>,
}

/// What answers calls.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one call. May be dropped at any await: the caller left, or the deadline passed.
    async fn handle(&self, call: Incoming) -> Result<(Bytes, Body), RpcError>;
}

/// Counts what runs; a permit travels with the work.
#[derive(Debug)]
struct Gate {
    running: AtomicUsize,
    limit: usize,
}

impl Gate {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { running: AtomicUsize::new(0), limit })
    }

    fn enter(self: &Arc<Self>) -> Option<Permit> {
        let take = |n| (n < self.limit).then_some(n + 1);
        self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok()?;
        Some(Permit(self.clone()))
    }
}

#[derive(Debug)]
struct Permit(Arc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Lets a call run; held until its answer is sent.
#[derive(Debug)]
pub(crate) struct CallPermit {
    _all: Permit,
    _peer: Permit,
}

/// The gates that a peer's calls pass.
#[derive(Debug, Clone)]
pub(crate) struct Gates {
    all: Arc<Gate>,
    peer: Arc<Gate>,
}

impl Gates {
    pub(crate) fn enter(&self) -> Result<CallPermit, RpcError> {
        let refuse = |whose: &str, gate: &Gate| RpcError::Overloaded {
            what: format!("{} calls {whose} run already", gate.limit),
        };
        let peer = self.peer.enter().ok_or_else(|| refuse("of this peer", &self.peer))?;
        let all = self.all.enter().ok_or_else(|| refuse("in all", &self.all))?;
        Ok(CallPermit { _all: all, _peer: peer })
    }
}

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) stopping: AtomicBool,
    secure: Arc<dyn Secure>,
    member: Member,
    calls: Arc<Gate>,
    connections: Arc<Gate>,
    peers: Mutex<BTreeMap<NodeId, Arc<Gate>>>,
    links: Mutex<BTreeMap<u64, mpsc::UnboundedSender<Command>>>,
    open: watch::Sender<usize>,
}

impl Shared {
    fn gates(&self, peer: NodeId) -> Gates {
        let mut peers = self.peers.lock();
        // Peers that left leave nothing behind.
        peers.retain(|id, gate| *id == peer || Arc::strong_count(gate) > 1);
        let gate = peers.entry(peer).or_insert_with(|| Gate::new(self.limits.max_calls_per_peer));
        Gates { all: self.calls.clone(), peer: gate.clone() }
    }

    fn enlist(&self, number: u64, commands: mpsc::UnboundedSender<Command>) {
        let mut links = self.links.lock();
        if self.stopping.load(Ordering::Acquire) {
            // It cannot fail: the receiver starts after this.
            let _ = commands.send(Command::Stop);
        }
        links.insert(number, commands);
        self.open.send_replace(links.len());
    }

    fn delist(&self, number: u64) {
        let mut links = self.links.lock();
        links.remove(&number);
        self.open.send_replace(links.len());
    }
}

/// A running server. Dropping it changes nothing; see [`Server::stop`] and [`Server::abort`].
pub struct Server {
    shared: Arc<Shared>,
    accept: TaskHandle,
    addr: String,
}

/// Starts to accept connections on `listener`.
pub fn serve(
    env: Env,
    listener: Box<dyn Listener>,
    secure: Arc<dyn Secure>,
    member: Member,
    handler: Arc<dyn Handler>,
    limits: Limits,
) -> Server {
    let addr = listener.local_addr();
    let shared = Arc::new(Shared {
        env: env.clone(),
        handler,
        secure,
        member,
        stopping: AtomicBool::new(false),
        calls: Gate::new(limits.max_calls),
        connections: Gate::new(limits.max_connections),
        limits: Arc::new(limits),
        peers: Mutex::new(BTreeMap::new()),
        links: Mutex::new(BTreeMap::new()),
        open: watch::Sender::new(0),
    });
    let accept = env.spawn("rpc accept", accept_loop(shared.clone(), listener));
    Server { shared, accept, addr }
}

async fn accept_loop(shared: Arc<Shared>, listener: Box<dyn Listener>) {
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                number += 1;
                let connection = connection(shared.clone(), stream, from, number);
                shared.env.spawn("rpc connection", connection);
            }
            Err(error) => {
                // Out of file descriptors, most likely: give others time to close some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Takes the connection off the list also when its task is dropped.
struct Listed(Arc<Shared>, u64);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.delist(self.1);
    }
}

async fn connection(shared: Arc<Shared>, stream: BoxStream, from: String, number: u64) {
    let permit = shared.connections.enter();
    let refuse = match permit {
        _ if shared.stopping.load(Ordering::Acquire) => Some(Refusal::ShuttingDown),
        None => Some(Refusal::TooManyConnections),
        Some(_) => None,
    };
    let greeted = greet::accepted(stream, &*shared.secure, &shared.member, &shared.limits, refuse).await;
    let greeted = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            tracing::warn!(from, %error, "no connection with a peer");
            return;
        }
    };
    let peer = greeted.peer;
    tracing::debug!(%peer, from, kind = ?greeted.agreed.kind, "peer connected");
    let (commands, inbox) = mpsc::unbounded_channel();
    shared.enlist(number, commands.clone());
    let _listed = Listed(shared.clone(), number);
    let gates = shared.gates(peer);
    let why = answerer::run(&shared, greeted, gates, commands, inbox).await;
    if why.is_violation() {
        tracing::warn!(%peer, from, error = %why, "closed a connection: the peer broke the protocol");
    } else {
        tracing::debug!(%peer, from, reason = %why, "peer disconnected");
    }
    drop(permit);
}

impl Server {
    /// The address listened on, with the real port.
    pub fn local_addr(&self) -> &str {
        &self.addr
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// Takes no new connections and calls, lets what runs finish for up to `grace`, then cuts the rest.
    pub async fn stop(&self, grace: Duration) {
        self.accept.abort();
        {
            let links = self.shared.links.lock();
            self.shared.stopping.store(true, Ordering::Release);
            for commands in links.values() {
                // A connection that is closing needs no telling.
                let _ = commands.send(Command::Stop);
            }
        }
        let mut open = self.shared.open.subscribe();
        let idle = async { open.wait_for(|count| *count == 0).await.is_ok() };
        if tokio::time::timeout(grace, idle).await.is_err() {
            tracing::info!(connections = self.connections(), "cutting connections that are still busy");
        }
        for commands in self.shared.links.lock().values() {
            let _ = commands.send(Command::Cut);
        }
    }

    /// Stops accepting at once; open connections live on until their peers leave.
    pub fn abort(&self) {
        self.accept.abort();
    }
}
