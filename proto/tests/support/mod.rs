//! A node with a handler made for tests, over real TLS on loopback or over in-memory streams with a
//! plaintext stand-in for TLS.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "test support, used in parts"
)]

use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::env::{BoxStream, Env, Listener, Net};
use hayloft_common::id::NodeId;
use hayloft_proto::body::Body;
use hayloft_proto::client::{CallOptions, Pool};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::hello::{Member, Role, RpcSecret};
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::message::Class;
use hayloft_proto::secure::tls::TlsSecure;
use hayloft_proto::secure::{Secure, SecureError, Secured};
use hayloft_proto::server::{Handler, Incoming, Server, serve};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

/// Answers with the head and streams the body back.
pub const ECHO: u16 = 1;
/// Never answers; [`TestHandler::started`] and [`TestHandler::dropped`] count.
pub const HANG: u16 = 2;
/// Answers with a body of as many zero bytes as the head says (u64).
pub const PRODUCE: u16 = 3;
/// Reads the body and answers with its length and hash.
pub const DIGEST: u16 = 4;
/// Answers with a body that breaks off.
pub const BREAK_OFF: u16 = 5;
pub const PANIC: u16 = 6;
/// Answers with a head larger than any peer takes.
pub const HUGE_HEAD: u16 = 7;
pub const REFUSE: u16 = 8;
/// Answers with a body that goes on for ever.
pub const ENDLESS: u16 = 9;
/// Answers without reading the body.
pub const IGNORE_BODY: u16 = 10;
/// Answers with the trace context it was called with.
pub const TRACE: u16 = 11;

pub struct TestHandler {
    pub started: Semaphore,
    pub dropped: Semaphore,
    env: Env,
}

struct CountDrop<'a>(&'a Semaphore);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

pub fn digest(bytes: &[u8]) -> Bytes {
    blake3::hash(bytes).as_bytes().to_vec().into()
}

#[async_trait]
impl Handler for TestHandler {
    async fn handle(&self, mut call: Incoming) -> Result<(Bytes, Body), RpcError> {
        match call.method {
            ECHO => Ok((call.head, call.body)),
            HANG => {
                self.started.add_permits(1);
                let _dropped = CountDrop(&self.dropped);
                std::future::pending().await
            }
            PRODUCE => {
                let length = u64::from_be_bytes(call.head[..].try_into().unwrap());
                let chunk = Bytes::from(vec![0; 100_000]);
                let chunks = (0..length.div_ceil(100_000)).map(move |i| {
                    Ok(chunk.slice(..chunk.len().min(usize::try_from(length - i * 100_000).unwrap())))
                });
                Ok((Bytes::new(), Body::from_stream(Some(length), futures::stream::iter(chunks))))
            }
            DIGEST => {
                let mut hasher = blake3::Hasher::new();
                while let Some(chunk) = call.body.next().await {
                    hasher.update(&chunk?);
                }
                Ok((hasher.finalize().as_bytes().to_vec().into(), Body::empty()))
            }
            BREAK_OFF | ENDLESS => {
                let (tx, body) = Body::channel(None);
                let endless = call.method == ENDLESS;
                self.env.spawn("writer", async move {
                    let chunk = Bytes::from(vec![7; 10_000]);
                    while tx.send(chunk.clone()).await.is_ok() && endless {}
                });
                Ok((Bytes::new(), body))
            }
            PANIC => panic!("a handler that panics, as this test wants"),
            HUGE_HEAD => Ok((vec![0; 5 << 20].into(), Body::empty())),
            TRACE => Ok((format!("{:?}", call.trace).into(), Body::empty())),
            IGNORE_BODY => Ok((Bytes::from_static(b"no thanks"), Body::empty())),
            _ => Err(RpcError::remote(RemoteCode::NoSpace, "disk full")),
        }
    }
}

pub fn secret(n: u8) -> RpcSecret {
    RpcSecret::new([n; 32])
}

pub fn quick_limits() -> Limits {
    Limits {
        hello_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(2),
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        ..Limits::default()
    }
}

/// A node that serves and calls.
pub struct Node {
    pub id: NodeId,
    pub pool: Pool,
    pub server: Server,
    pub handler: Arc<TestHandler>,
}

impl Node {
    pub async fn tls(member: Member, limits: Limits) -> Self {
        let secure = Arc::new(TlsSecure::new(&Identity::generate().unwrap()).unwrap());
        Self::start(Env::real(), secure, "127.0.0.1:0", member, limits).await
    }

    pub async fn start(
        env: Env,
        secure: Arc<dyn Secure>,
        addr: &str,
        member: Member,
        limits: Limits,
    ) -> Self {
        let handler = Arc::new(TestHandler {
            started: Semaphore::new(0),
            dropped: Semaphore::new(0),
            env: env.clone(),
        });
        let listener = env.net.listen(addr).await.unwrap();
        let server =
            serve(env.clone(), listener, secure.clone(), member.clone(), handler.clone(), limits.clone());
        let pool = Pool::new(env, secure, member, limits);
        Self { id: pool.local_id(), pool, server, handler }
    }

    pub fn knows(&self, other: &Node) {
        self.pool.set_addresses(other.id, vec![other.server.local_addr().to_owned()]);
    }

    pub async fn call(&self, to: &Node, method: u16, head: &[u8], body: Body) -> Answer {
        let head = Bytes::copy_from_slice(head);
        self.pool.call(to.id, options(Class::Small), method, head, body).await
    }
}

pub type Answer = Result<(Bytes, Body), RpcError>;

pub fn options(class: Class) -> CallOptions {
    CallOptions { class, deadline: Duration::from_secs(30), trace: None }
}

/// Two storage nodes of one cluster over TLS; the first knows the second.
pub async fn tls_pair(limits: Limits) -> (Node, Node) {
    let member = || Member::new(secret(1), Role::Storage);
    let (a, b) = (Node::tls(member(), limits.clone()).await, Node::tls(member(), limits).await);
    a.knows(&b);
    (a, b)
}

/// As [`tls_pair`], over in-memory streams with small buffers.
pub async fn memory_pair(limits: Limits) -> (Node, Node) {
    let mut env = Env::real();
    env.net = Arc::new(MemoryNet::default());
    let member = || Member::new(secret(1), Role::Storage);
    let node = |n: u8| {
        let secure = Arc::new(Plaintext(NodeId([n; 32])));
        Node::start(env.clone(), secure, if n == 1 { "a" } else { "b" }, member(), limits.clone())
    };
    let (a, b) = (node(1).await, node(2).await);
    a.knows(&b);
    (a, b)
}

/// Tells ids without proof.
pub struct Plaintext(pub NodeId);

impl Plaintext {
    async fn exchange(&self, mut stream: BoxStream) -> Result<Secured, SecureError> {
        stream.write_all(&self.0.0).await?;
        let mut peer = NodeId([0; 32]);
        stream.read_exact(&mut peer.0).await?;
        Ok(Secured { stream, peer, binding: [0; 32] })
    }
}

#[async_trait]
impl Secure for Plaintext {
    async fn client(&self, stream: BoxStream, _expect: Option<NodeId>) -> Result<Secured, SecureError> {
        self.exchange(stream).await
    }

    async fn server(&self, stream: BoxStream) -> Result<Secured, SecureError> {
        self.exchange(stream).await
    }

    fn local_id(&self) -> NodeId {
        self.0
    }
}

/// Streams in memory, by listener name.
#[derive(Default)]
pub struct MemoryNet(Mutex<BTreeMap<String, mpsc::UnboundedSender<BoxStream>>>);

struct MemoryListener(tokio::sync::Mutex<mpsc::UnboundedReceiver<BoxStream>>, String);

#[async_trait]
impl Net for MemoryNet {
    async fn dial(&self, addr: &str) -> io::Result<BoxStream> {
        let (near, far) = tokio::io::duplex(1500);
        let listeners = self.0.lock().unwrap();
        let listener = listeners.get(addr).ok_or(io::ErrorKind::ConnectionRefused)?;
        listener.send(Box::new(far)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(near))
    }

    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.0.lock().unwrap().insert(addr.to_owned(), tx);
        Ok(Box::new(MemoryListener(tokio::sync::Mutex::new(rx), addr.to_owned())))
    }
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&self) -> io::Result<(BoxStream, String)> {
        match self.0.lock().await.recv().await {
            Some(stream) => Ok((stream, "memory".into())),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> String {
        self.1.clone()
    }
}
