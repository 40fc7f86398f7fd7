//! Agreeing on layouts over calls, and what gossip tells of nodes, with registers in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::config::Peer;
use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, ConsistencyMode, LayoutRegister, Parameters, Role as Place, StagedChanges, ZoneRedundancy,
    compute,
};
use hayloft_proto::agree::{AgreeError, Agreement};
use hayloft_proto::body::Body;
use hayloft_proto::client::Pool;
use hayloft_proto::cluster::{Cluster, LayoutStore};
use hayloft_proto::error::RpcError;
use hayloft_proto::hello::{Member, Role};
use hayloft_proto::membership::Membership;
use hayloft_proto::message::membership::{AcceptLayout, Exchange, LearnLayout, PeerInfo, PrepareLayout};
use hayloft_proto::message::{Message as _, decode_request, encode};
use hayloft_proto::server::{Handler, Incoming, serve};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{MemoryNet, Plaintext, quick_limits, secret};

const PARAMETERS: Parameters =
    Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::AtLeast(1) };

struct Register(Mutex<LayoutRegister>);

#[async_trait]
impl LayoutStore for Register {
    async fn keep(&self, layout: &ActiveLayout) -> Result<(), String> {
        self.0.lock().unwrap().learn(layout).map(|_| ()).map_err(|e| e.to_string())
    }
}

struct Node {
    id: NodeId,
    membership: Arc<Membership>,
    register: Arc<Register>,
    silent: Mutex<bool>,
}

#[async_trait]
impl Handler for Node {
    async fn handle(&self, call: Incoming) -> Result<(Bytes, Body), RpcError> {
        if *self.silent.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        let reply = match call.method {
            Exchange::METHOD => {
                encode(&self.membership.answer(&decode_request::<Exchange>(&call.head)?.message))
            }
            PrepareLayout::METHOD => {
                let ask = decode_request::<PrepareLayout>(&call.head)?.message;
                encode(&self.register.0.lock().unwrap().prepare(ask.epoch, ask.ballot))
            }
            AcceptLayout::METHOD => {
                let ask = decode_request::<AcceptLayout>(&call.head)?.message;
                encode(&self.register.0.lock().unwrap().accept(ask.ballot, &ask.layout))
            }
            _ => {
                let learn = decode_request::<LearnLayout>(&call.head)?.message;
                assert!(self.membership.cluster().learn(learn.layout).await);
                encode(&())
            }
        };
        Ok((reply, Body::empty()))
    }
}

/// A storage node that knows the addresses of those before it.
async fn start(env: &Env, n: u8, incarnation: u64) -> Arc<Node> {
    let (id, addr) = (NodeId([n; 32]), format!("n{n}"));
    let member = Member::new(secret(1), Role::Storage);
    let pool = Pool::new(env.clone(), Arc::new(Plaintext(id)), member.clone(), quick_limits());
    let empty = ActiveLayout::empty(PARAMETERS, 2);
    let register = Arc::new(Register(Mutex::new(LayoutRegister::new(empty.clone()))));
    let cluster = Cluster::new(
        env.clone(),
        Arc::new(pool.clone()),
        None,
        ConsistencyMode::Consistent,
        empty,
        register.clone(),
    );
    let me = PeerInfo {
        id,
        addresses: vec![addr.clone()],
        hostname: String::new(),
        program: String::new(),
        incarnation,
    };
    let bootstrap = (1..n).map(|peer| Peer { id: None, addr: format!("n{peer}") }).collect();
    let membership = Membership::new(cluster, Some(me), bootstrap, StagedChanges::default());
    let node = Arc::new(Node { id, membership, register, silent: Mutex::default() });
    pool.set_local(node.clone());
    let listener = env.net.listen(&addr).await.unwrap();
    serve(env.clone(), listener, Arc::new(Plaintext(id)), member, node.clone(), quick_limits());
    node.membership.start();
    node
}

async fn three() -> (Env, Vec<Arc<Node>>) {
    let mut env = Env::real();
    env.net = Arc::new(MemoryNet::default());
    let mut nodes = Vec::new();
    for n in 1..=3 {
        nodes.push(start(&env, n, 1).await);
    }
    until(|| nodes.iter().all(|node| node.membership.peers().len() == 3)).await;
    (env, nodes)
}

/// The clock is paused: it leaps when all wait.
async fn until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.expect("it never comes");
}

fn next(before: &ActiveLayout, capacity: u64) -> ActiveLayout {
    let role = |n: u8| (NodeId([n; 32]), Place { zone: format!("z{n}"), capacity, tags: Vec::new() });
    let roles: BTreeMap<NodeId, Place> = (1..=3).map(role).collect();
    before.apply(compute(Some(before.newest()), &roles, &PARAMETERS, 2).unwrap().0).unwrap()
}

async fn agree(node: &Node, before: &ActiveLayout, wanted: ActiveLayout) -> Result<ActiveLayout, AgreeError> {
    Agreement::new(node.membership.clone()).agree(before, wanted).await
}

async fn with_first_layout() -> (Env, Vec<Arc<Node>>, ActiveLayout) {
    let (env, nodes) = three().await;
    let empty = ActiveLayout::empty(PARAMETERS, 2);
    let first = agree(&nodes[0], &empty, next(&empty, 1000)).await.unwrap();
    assert!(nodes.iter().all(|node| node.membership.cluster().layout().epoch == 1));
    (env, nodes, first)
}

#[tokio::test(start_paused = true)]
async fn of_two_that_propose_at_once_one_wins_and_the_other_is_told_of_it() {
    let (_env, nodes, first) = with_first_layout().await;
    let (one, two) = tokio::join!(
        agree(&nodes[0], &first, next(&first, 2000)),
        agree(&nodes[1], &first, next(&first, 3000)),
    );
    let (won, lost) = if one.is_ok() { (one, two) } else { (two, one) };
    let won = won.unwrap();
    assert!(matches!(lost, Err(AgreeError::Conflict { layout }) if *layout == won));
    assert!(nodes.iter().all(|node| *node.membership.cluster().layout() == won));
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_not_waited_for_and_one_that_is_behind_is_taught() {
    let (env, nodes, first) = with_first_layout().await;
    *nodes[2].silent.lock().unwrap() = true;
    let before = env.now();
    let second = agree(&nodes[0], &first, next(&first, 2000)).await.unwrap();
    assert!(
        env.now().saturating_sub(before) < Duration::from_secs(5),
        "a call to the silent node was waited for"
    );
    *nodes[2].silent.lock().unwrap() = false;
    // Both others are needed now, of which one missed the epoch before.
    *nodes[1].silent.lock().unwrap() = true;
    let third = agree(&nodes[0], &second, second.synced().unwrap()).await.unwrap();
    assert_eq!(nodes[2].register.0.lock().unwrap().committed(), &third);
    *nodes[2].silent.lock().unwrap() = true;
    let alone = agree(&nodes[0], &third, third.finish().unwrap()).await;
    assert!(matches!(alone, Err(AgreeError::Unreachable { missing }) if missing.len() == 2));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_built_anew_on_what_came_first() {
    let (_env, nodes, first) = with_first_layout().await;
    let second = agree(&nodes[0], &first, next(&first, 2000)).await.unwrap();
    let other = Agreement::new(nodes[1].membership.clone());
    let (advanced, queued) = tokio::join!(
        agree(&nodes[0], &second, second.synced().unwrap()),
        other.change(|before| Ok::<_, AgreeError>(next(before, 3000))),
    );
    let queued = queued.unwrap();
    assert_eq!(queued.newest().version, 3);
    assert!(advanced.is_ok() || nodes[0].membership.cluster().layout().includes(&queued));
}

#[tokio::test(start_paused = true)]
async fn progress_reaches_all_and_epochs_are_told_by_themselves() {
    let (_env, nodes, first) = with_first_layout().await;
    nodes[2].membership.set_progress(1, 0, 0);
    let said = |at: usize, of: usize| nodes[at].membership.progress().get(&nodes[of].id).copied();
    until(|| (0..3).all(|at| said(at, 2).is_some_and(|p| p.synced == 1 && p.epoch == first.epoch))).await;
    until(|| (0..3).all(|at| (0..3).all(|of| said(at, of).is_some_and(|p| p.epoch == 1)))).await;
    assert!(nodes[0].membership.down(Duration::from_secs(30)).is_empty());
    assert!(nodes.iter().all(|node| node.membership.outlived().is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_went_back_in_time_hears_of_it_and_is_heard_again_above() {
    let (env, nodes, _) = with_first_layout().await;
    nodes[0].membership.set_progress(1, 0, 0);
    until(|| nodes[1].membership.progress().get(&nodes[0].id).is_some_and(|p| p.synced == 1)).await;
    // The same incarnation: only what it said since tells.
    let again = start(&env, 1, 1).await;
    let reached = Peer { id: Some(nodes[1].id), addr: "n2".into() };
    again.membership.cluster().pool().set_addresses(nodes[1].id, vec![reached.addr]);
    let exchange = Exchange {
        peers: Vec::new(),
        epoch: 1,
        staged_digest: Vec::new(),
        progress: nodes[1].membership.progress(),
    };
    again.membership.answer(&exchange);
    assert_eq!(again.membership.outlived(), Some(1));
    again.membership.renew(2);
    assert_eq!(again.membership.outlived(), None);
    let told = again.membership.answer(&exchange);
    assert_eq!(again.membership.outlived(), None, "what is below is no news");
    let back = Exchange { peers: told.peers, progress: told.progress, ..exchange };
    nodes[1].membership.answer(&back);
    let now = nodes[1].membership.progress()[&again.id];
    assert_eq!((now.incarnation, now.synced), (2, 0));
}
