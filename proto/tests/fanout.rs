//! Quorum operations against nodes that refuse, lag behind, are ahead, or say nothing.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, ConsistencyMode, Parameters, Role as Place, ZoneRedundancy, compute,
};
use hayloft_common::schema::TableId;
use hayloft_common::stamp::Stamp;
use hayloft_proto::body::Body;
use hayloft_proto::client::Pool;
use hayloft_proto::cluster::{Cluster, NoLayoutStore};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::fanout::{self, FanoutError, Verdict};
use hayloft_proto::hello::{Member, Role};
use hayloft_proto::late::LateCalls;
use hayloft_proto::message::membership::LearnLayout;
use hayloft_proto::message::table::{
    ReadRow, ReadRowReply, RowOutcome, WriteMode, WriteRows, WriteRowsReply,
};
use hayloft_proto::message::{Message as _, decode_request, encode};
use hayloft_proto::server::{Handler, Incoming, serve};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{MemoryNet, Plaintext, quick_limits, secret};

/// How a node answers.
#[derive(Clone)]
enum Manner {
    Well,
    Outdated,
    Silent,
    Conflict,
    /// Refuses older epochs.
    At(Box<ActiveLayout>),
    /// Is not ready so many times.
    Behind(usize),
    /// Lets the caller's cluster adopt a layout, then is not ready, once.
    Overtaken(Arc<Cluster>, Box<ActiveLayout>),
}

struct Node {
    manner: Mutex<Manner>,
    /// Epochs of the calls that came.
    epochs: Mutex<Vec<u64>>,
    /// Epochs of the layouts that it was taught.
    taught: Mutex<Vec<u64>>,
}

impl Node {
    fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }
}

fn not_ready() -> RpcError {
    RpcError::remote(RemoteCode::NotReady, "behind")
}

#[async_trait]
impl Handler for Node {
    async fn handle(&self, call: Incoming) -> Result<(Bytes, Body), RpcError> {
        let (write, epoch) = match call.method {
            LearnLayout::METHOD => {
                let learn = decode_request::<LearnLayout>(&call.head).unwrap().message;
                self.taught.lock().unwrap().push(learn.layout.epoch);
                return Ok((encode(&()), Body::empty()));
            }
            WriteRows::METHOD => (true, decode_request::<WriteRows>(&call.head).unwrap().epoch),
            _ => (false, decode_request::<ReadRow>(&call.head).unwrap().epoch),
        };
        self.epochs.lock().unwrap().push(epoch);
        let manner = self.manner.lock().unwrap().clone();
        let mut outcome = RowOutcome::Written;
        match manner {
            Manner::Outdated => outcome = RowOutcome::Outdated(Stamp { micros: 9, writer: 9 }),
            Manner::Silent => std::future::pending().await,
            Manner::Conflict => return Err(RpcError::remote(RemoteCode::Conflict, "no")),
            Manner::At(layout) if epoch < layout.epoch => {
                return Err(RpcError::StaleEpoch { layout: codec::encode(&*layout).into() });
            }
            Manner::Well | Manner::At(_) | Manner::Behind(0) => {}
            Manner::Behind(left) => {
                self.set(Manner::Behind(left - 1));
                return Err(not_ready());
            }
            Manner::Overtaken(caller, layout) => {
                assert!(caller.learn(*layout).await);
                self.set(Manner::Well);
                return Err(not_ready());
            }
        }
        let reply = if write {
            encode(&WriteRowsReply { outcomes: vec![outcome] })
        } else {
            encode(&ReadRowReply { row: None })
        };
        Ok((reply, Body::empty()))
    }
}

fn layouts() -> (ActiveLayout, ActiveLayout) {
    let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
    let role =
        |n: u8| (NodeId([n; 32]), Place { zone: format!("z{n}"), capacity: 1 << 30, tags: Vec::new() });
    let roles: BTreeMap<NodeId, Place> = (1..=3).map(role).collect();
    let empty = ActiveLayout::empty(parameters, 4);
    let first = empty.replace(compute(None, &roles, &parameters, 4).unwrap().0).unwrap();
    let (second, _) = compute(Some(&first.current), &roles, &parameters, 4).unwrap();
    let second = first.introduce(second).unwrap();
    (first, second)
}

/// Three nodes, and a gateway's view of them under the first layout.
async fn cluster() -> (Arc<Cluster>, Vec<Arc<Node>>) {
    let env = Env { net: Arc::new(MemoryNet::default()), ..Env::real() };
    cluster_with(env, None).await
}

/// The third node is at `third`, if given.
async fn cluster_with(env: Env, third: Option<&str>) -> (Arc<Cluster>, Vec<Arc<Node>>) {
    let pool = Pool::new(
        env.clone(),
        Arc::new(Plaintext(NodeId([9; 32]))),
        Member::new(secret(1), Role::Gateway),
        quick_limits(),
    );
    let mut nodes = Vec::new();
    for n in 1..=3u8 {
        let node = Arc::new(Node {
            manner: Mutex::new(Manner::Well),
            epochs: Mutex::default(),
            taught: Mutex::default(),
        });
        let (id, addr) = (NodeId([n; 32]), format!("n{n}"));
        let listener = env.net.listen(&addr).await.unwrap();
        let member = Member::new(secret(1), Role::Storage);
        serve(env.clone(), listener, Arc::new(Plaintext(id)), member, node.clone(), quick_limits());
        pool.set_addresses(id, vec![third.filter(|_| n == 3).map_or(addr, str::to_owned)]);
        nodes.push(node);
    }
    let (mode, store) = (ConsistencyMode::Consistent, Arc::new(NoLayoutStore));
    (Cluster::new(env, Arc::new(pool), None, mode, layouts().0, store), nodes)
}

fn judge(reply: &WriteRowsReply) -> Verdict {
    if reply.outcomes.contains(&RowOutcome::Written) { Verdict::Accept } else { Verdict::Reject }
}

async fn write(cluster: &Arc<Cluster>) -> Result<usize, FanoutError<WriteRowsReply>> {
    let message = WriteRows { mode: WriteMode::Put, rows: Vec::new() };
    let done = fanout::write(cluster, Hash([0; 32]), message, Bytes::new(), judge).await;
    done.map(|replies| replies.len())
}

async fn read(cluster: &Arc<Cluster>) -> Result<usize, FanoutError> {
    let message = ReadRow { table: TableId::Object, partition_key: vec![1], sort_key: vec![] };
    fanout::read(cluster, Hash([0; 32]), message).await.map(|replies| replies.len())
}

/// Far below the deadline of a call. The clock is paused: it leaps when all wait.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), work).await.expect("it waited for a silent node")
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_does_not_wait_for_a_silent_node() {
    let (cluster, nodes) = cluster().await;
    nodes[0].set(Manner::Outdated);
    nodes[1].set(Manner::Silent);
    assert!(matches!(soon(write(&cluster)).await, Err(FanoutError::Rejected { .. })));
}

#[tokio::test(start_paused = true)]
async fn one_refusal_does_not_stop_a_write_that_the_others_take() {
    let (cluster, nodes) = cluster().await;
    nodes[2].set(Manner::Outdated);
    assert_eq!(soon(write(&cluster)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_of_one_node_is_one_of_all() {
    let (cluster, nodes) = cluster().await;
    nodes[0].set(Manner::Conflict);
    // The others would do for a quorum, were they heard first.
    nodes[1].set(Manner::Silent);
    let Err(FanoutError::NoQuorum { errors, .. }) = soon(write(&cluster)).await else {
        panic!("no conflict")
    };
    assert!(errors.iter().any(|(_, error)| error.is_conflict()));
}

/// What is held of a write's body a moment after its quorum, with the third node as it is.
async fn held_late(cluster: &Arc<Cluster>, limit: usize) -> usize {
    let late = Arc::new(LateCalls::new(limit));
    let message = WriteRows { mode: WriteMode::Put, rows: Vec::new() };
    let body = Bytes::from(vec![0; 1000]);
    soon(fanout::write_bounded(cluster, Hash([0; 32]), message, body, judge, Some(&late))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let at_first = late.held();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(at_first, 1000);
    late.held()
}

#[tokio::test(start_paused = true)]
async fn late_calls_to_silent_nodes_end_when_they_hold_too_much() {
    let (cluster, nodes) = cluster().await;
    nodes[2].set(Manner::Silent);
    assert_eq!(held_late(&cluster, 0).await, 1000, "a node that is slow but alive is waited for");
    // Takes connections and never says a word.
    let hole = cluster.env().net.listen("hole").await.unwrap();
    let (cluster, _nodes) = cluster_with(cluster.env().clone(), Some("hole")).await;
    assert_eq!(held_late(&cluster, 1000).await, 1000, "there is room for it");
    assert_eq!(held_late(&cluster, 999).await, 0);
    drop(hole);
}

#[tokio::test(start_paused = true)]
async fn a_newer_layout_starts_an_operation_over_though_a_node_is_silent() {
    for silent in 0..3 {
        let (cluster, nodes) = cluster().await;
        let second = layouts().1;
        for (i, node) in nodes.iter().enumerate() {
            node.set(if i == silent { Manner::Silent } else { Manner::At(Box::new(second.clone())) });
        }
        assert_eq!(soon(read(&cluster)).await.unwrap(), 2);
        assert_eq!(cluster.layout().epoch, 2);
        assert_eq!(soon(write(&cluster)).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_behind_are_given_a_moment() {
    let (cluster, nodes) = cluster().await;
    let all = |manner: &Manner| nodes.iter().for_each(|node| node.set(manner.clone()));
    all(&Manner::Behind(3));
    assert!(soon(write(&cluster)).await.is_ok());
    tokio::time::sleep(Duration::from_millis(100)).await;
    for node in &nodes {
        // In three tries within 70 ms, once.
        assert_eq!(*node.taught.lock().unwrap(), [1]);
    }
    all(&Manner::Behind(3));
    assert_eq!(soon(read(&cluster)).await.unwrap(), 2);
    all(&Manner::Behind(usize::MAX));
    assert!(matches!(soon(write(&cluster)).await, Err(FanoutError::NoQuorum { .. })));
    assert!(matches!(soon(read(&cluster)).await, Err(FanoutError::NoQuorum { .. })));
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_try_carries_the_epoch_of_the_sets_it_counts_by() {
    let (cluster, nodes) = cluster().await;
    // The first to be asked: because of its error a third node is asked, after the change.
    nodes[0].set(Manner::Overtaken(cluster.clone(), Box::new(layouts().1)));
    assert_eq!(soon(read(&cluster)).await.unwrap(), 2);
    let first: Vec<u64> = nodes.iter().filter_map(|n| n.epochs.lock().unwrap().first().copied()).collect();
    assert_eq!(first, [1, 1, 1], "a call after the change went out under the new epoch, by the old sets");
    assert_eq!(cluster.layout().epoch, 2);
}
