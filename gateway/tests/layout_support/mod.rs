//! A cluster for tests of the layout: storage nodes that gossip and agree on layouts but hold no data, and gateways,
//! over TLS on loopback.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its own part; helpers of tests")]

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use hayloft_common::config::{Peer, Secret};
use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, ConsistencyMode, LayoutRegister, Parameters, StagedChanges, ZoneRedundancy,
};
use hayloft_common::limits::DEFAULT_PARTITION_BITS;
use hayloft_common::telemetry::metric::Metrics;
use hayloft_gateway::admin::Admin;
use hayloft_gateway::daemon::{self, Core, Parts};
use hayloft_gateway::http::server::{Handler as HttpHandler, RequestInfo};
use hayloft_gateway::layout::LayoutManager;
use hayloft_gateway::limits::DomainConfig;
use hayloft_proto::admin::Endpoint;
use hayloft_proto::agree::{AgreeError, Agreement};
use hayloft_proto::body::Body;
use hayloft_proto::client::Pool;
use hayloft_proto::cluster::{Cluster, LayoutStore};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::hello::{Member, Role as MemberRole, RpcSecret};
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::membership::Membership;
use hayloft_proto::message::membership::{
    AcceptLayout, Exchange, LearnLayout, NodeStatus, PeerInfo, PrepareLayout, ReadStatus, StageChanges,
};
use hayloft_proto::message::{self, Message};
use hayloft_proto::secure::tls::TlsSecure;
use hayloft_proto::server::{Handler, Incoming, Server, serve};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const TOKEN: &str = "token";

/// A storage node without data.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) addr: String,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) membership: Arc<Membership>,
    register: Arc<Register>,
    server: Mutex<Option<Server>>,
}

struct Register(Mutex<LayoutRegister>);

#[async_trait]
impl LayoutStore for Register {
    async fn keep(&self, layout: &ActiveLayout) -> Result<(), String> {
        self.0.lock().learn(layout).map(|_| ()).map_err(|error| error.to_string())
    }
}

fn limits() -> Limits {
    Limits {
        hello_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(2),
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        ..Limits::default()
    }
}

fn secret() -> RpcSecret {
    RpcSecret::new([7; 32])
}

fn empty() -> ActiveLayout {
    let parameters = Parameters { replication_factor: 2, zone_redundancy: ZoneRedundancy::Maximum };
    ActiveLayout::empty(parameters, DEFAULT_PARTITION_BITS)
}

impl Node {
    /// Starts one that finds the others through `peers`.
    pub(crate) async fn start(number: usize, peers: Vec<Peer>) -> Arc<Self> {
        let env = Env::real();
        let secure = Arc::new(TlsSecure::new(&Identity::generate().unwrap()).unwrap());
        let member = Member::new(secret(), MemberRole::Storage);
        let pool = Arc::new(Pool::new(env.clone(), secure.clone(), member.clone(), limits()));
        let id = pool.local_id();
        let listener = env.net.listen("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        let register = Arc::new(Register(Mutex::new(LayoutRegister::new(empty()))));
        let mode = ConsistencyMode::Consistent;
        let cluster = Cluster::new(env.clone(), pool.clone(), None, mode, empty(), register.clone());
        let info = PeerInfo {
            id,
            addresses: vec![addr.clone()],
            hostname: format!("home{number}"),
            program: "test".into(),
            incarnation: 1,
        };
        let membership = Membership::new(cluster.clone(), Some(info), peers, StagedChanges::default());
        let server = Mutex::new(None);
        let node = Arc::new(Self { id, addr, cluster, membership, register, server });
        let handler = Arc::new(Answers(node.clone()));
        pool.set_local(handler.clone());
        *node.server.lock() = Some(serve(env, listener, secure, member, handler, limits()));
        node.membership.start();
        node
    }

    /// Cuts it off: it answers nobody any more.
    pub(crate) async fn kill(&self) {
        let server = self.server.lock().take();
        if let Some(server) = server {
            server.stop(Duration::ZERO).await;
        }
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer { id: Some(self.id), addr: self.addr.clone() }
    }

    /// Ends the phase under way, as a storage node does when all are ready.
    pub(crate) async fn advance(&self) {
        let agreement = Agreement::new(self.membership.clone());
        agreement.change(|now| Ok::<_, AgreeError>(now.next_phase()?)).await.unwrap();
    }

    fn status(&self) -> NodeStatus {
        let info = self.membership.peers().into_iter().find(|info| info.id == self.id).unwrap();
        NodeStatus {
            info,
            epoch: self.cluster.layout().epoch,
            uptime_secs: 0,
            metadata: (1, 2),
            disks: Vec::new(),
        }
    }
}

struct Answers(Arc<Node>);

fn read<M: Message>(call: &Incoming) -> Result<M, RpcError> {
    Ok(message::decode_request::<M>(&call.head)?.message)
}

#[async_trait]
impl Handler for Answers {
    async fn handle(&self, call: Incoming) -> Result<(Bytes, Body), RpcError> {
        let node = &self.0;
        let register = &node.register.0;
        let bytes = match call.method {
            Exchange::METHOD => message::encode(&node.membership.answer(&read(&call)?)),
            StageChanges::METHOD => {
                let StageChanges { staged } = read(&call)?;
                message::encode(&node.membership.merge_staged(&staged))
            }
            PrepareLayout::METHOD => {
                let PrepareLayout { epoch, ballot } = read(&call)?;
                message::encode(&register.lock().prepare(epoch, ballot))
            }
            AcceptLayout::METHOD => {
                let AcceptLayout { ballot, layout } = read(&call)?;
                message::encode(&register.lock().accept(ballot, &layout))
            }
            LearnLayout::METHOD => {
                let LearnLayout { layout } = read(&call)?;
                if !node.cluster.learn(layout).await {
                    return Err(RpcError::remote(RemoteCode::Conflict, "not adopted"));
                }
                message::encode(&())
            }
            ReadStatus::METHOD => message::encode(&node.status()),
            _ => return Err(RpcError::remote(RemoteCode::Unsupported, "no data here")),
        };
        Ok((bytes, Body::empty()))
    }
}

/// A gateway that knows all of `nodes`.
pub(crate) async fn gateway(nodes: &[Arc<Node>]) -> Core {
    let core = daemon::start(Parts {
        env: Env::real(),
        secure: Arc::new(TlsSecure::new(&Identity::generate().unwrap()).unwrap()),
        secret: secret(),
        zone: None,
        mode: ConsistencyMode::Consistent,
        storage_peers: nodes.iter().map(|node| node.peer()).collect(),
        domain: DomainConfig::default(),
        rpc: limits(),
    });
    until(|| core.membership.peers().len() == nodes.len()).await;
    core
}

pub(crate) fn manager(core: &Core) -> LayoutManager {
    LayoutManager::new(Env::real(), core.membership.clone())
}

/// The admin port of a gateway.
pub(crate) fn admin(core: &Core) -> Admin {
    Admin {
        gateway: core.gateway.clone(),
        membership: core.membership.clone(),
        layout: manager(core),
        metrics: Arc::new(Metrics::new("test").unwrap()),
        region: "test".into(),
        admin_token: Some(Secret::new(TOKEN)),
        metrics_token: None,
        metrics_require_token: false,
    }
}

/// Calls an endpoint as an operator's program would: status and answer.
pub(crate) async fn call(admin: &Admin, endpoint: Endpoint, body: Value) -> (StatusCode, Value) {
    let body = if endpoint.method() == "GET" { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
    let request = Request::builder()
        .method(endpoint.method())
        .uri(endpoint.path())
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(futures::stream::iter([Ok(Bytes::from(body))]).boxed())
        .unwrap();
    let info = RequestInfo { id: "test".into(), peer: "test".into(), tls: false };
    let response = HttpHandler::handle(admin, request, info).await;
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

/// As [`call`], for what must succeed.
pub(crate) async fn ok(admin: &Admin, endpoint: Endpoint, body: Value) -> Value {
    let (status, answer) = call(admin, endpoint, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// Stages roles, each in a zone of its own, and removals.
pub(crate) async fn stage(admin: &Admin, assign: &[&Arc<Node>], remove: &[&Arc<Node>], parameters: Value) {
    let assigned = assign.iter().map(|node| {
        let zone = node.id.short();
        json!({"id": node.id, "zone": zone, "capacity": 1_u64 << 40, "tags": []})
    });
    let removed = remove.iter().map(|node| json!({"id": node.id, "remove": true}));
    let roles: Vec<Value> = assigned.chain(removed).collect();
    let update = json!({"roles": roles, "parameters": parameters});
    ok(admin, Endpoint::UpdateClusterLayout, update).await;
}

pub(crate) async fn apply(admin: &Admin, version: u64) -> (StatusCode, Value) {
    call(admin, Endpoint::ApplyClusterLayout, json!({"version": version})).await
}

/// So many nodes that all know one another.
pub(crate) async fn nodes(count: usize) -> Vec<Arc<Node>> {
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    for number in 0..count {
        let peers = nodes.iter().map(|node| node.peer()).collect();
        nodes.push(Node::start(number, peers).await);
    }
    until(|| nodes.iter().all(|node| node.membership.peers().len() == count)).await;
    nodes
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
}
