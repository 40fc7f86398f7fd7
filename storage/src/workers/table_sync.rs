//! "table sync", anti-entropy: compares this node's rows with every other replica's and pulls what is missing here.
//!
//! A peer is compared with at start, when it is reachable again after it was not, when the layout's epoch changes, when
//! an operator asks, and else once in `anti_entropy_interval`. Pull only: each node sees to its own copies, so two
//! replicas are equal once both have pulled. Partitions of which this node has no complete copy are left to the worker
//! that completes them.

use super::pull::{self, Source};
use super::{Next, Report, Worker, WorkerError};
use crate::serve::Node;
use async_trait::async_trait;
use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Partition};
use hayloft_common::schema::TableId;
use hayloft_proto::message::sync::MAX_TOTALS;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "table sync";

/// Peers compared with at the same time.
const PARALLEL: usize = 2;
/// Between looks at who is reachable.
const LOOK: Duration = Duration::from_secs(1);
/// Before a peer that failed is tried again: twice as long each time, at most the interval.
const RETRY: Duration = Duration::from_secs(2);
/// Partitions pulled in one step, from each peer.
const PULLS: usize = 8;

/// Compares all rows with all replicas now.
pub fn compare_now(node: &Arc<Node>) {
    node.sync.ask_to_compare();
    node.workers.wake(NAME);
}

/// See the module's head.
#[derive(Default)]
pub struct TableSync(Mutex<Peers>);

#[derive(Default)]
struct Peers {
    epoch: u64,
    peers: BTreeMap<NodeId, Peer>,
}

/// When to compare with a peer, and how far the present comparison is.
#[derive(Default)]
struct Peer {
    connected: bool,
    /// By the node's monotonic clock.
    due: Duration,
    failures: u32,
    round: Option<Round>,
}

/// A comparison of everything with one peer.
struct Round {
    epoch: u64,
    all: usize,
    partitions: VecDeque<Partition>,
    differing: VecDeque<(Partition, Vec<TableId>)>,
    failed: bool,
}

impl Round {
    fn is_over(&self) -> bool {
        self.partitions.is_empty() && self.differing.is_empty()
    }
}

impl Peers {
    /// Takes in who is there, and at what epoch; `all`: everything is due.
    fn look(&mut self, now: Duration, epoch: u64, nodes: &[(NodeId, bool)], all: bool) {
        let moved = std::mem::replace(&mut self.epoch, epoch) != epoch;
        self.peers.retain(|id, _| nodes.iter().any(|(node, _)| node == id));
        for (node, connected) in nodes {
            let peer = self.peers.entry(*node).or_insert_with(|| Peer { due: now, ..Peer::default() });
            let back = *connected && !peer.connected;
            peer.connected = *connected;
            if moved || !connected {
                peer.round = None;
            }
            if moved || back || all {
                peer.due = now;
                peer.failures = 0;
            }
        }
    }

    /// Takes out the rounds to work at: those begun, then those due.
    fn choose(&mut self, now: Duration) -> Vec<(NodeId, Option<Round>)> {
        let mut ready: Vec<(bool, Duration, NodeId)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.connected && (peer.round.is_some() || peer.due <= now))
            .map(|(id, peer)| (peer.round.is_none(), peer.due, *id))
            .collect();
        ready.sort_unstable();
        ready.truncate(PARALLEL);
        let mut take = |id: &NodeId| self.peers.get_mut(id).and_then(|peer| peer.round.take());
        ready.into_iter().map(|(_, _, id)| (id, take(&id))).collect()
    }

    /// Puts back a round that goes on, or notes how one ended.
    fn put_back(&mut self, id: NodeId, now: Duration, round: Result<Round, ()>, interval: Duration) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match round {
            Ok(round) if !round.is_over() => {
                peer.round = Some(round);
            }
            Ok(round) if !round.failed => {
                peer.failures = 0;
                peer.due = now + interval;
            }
            _ => {
                peer.due = now + (RETRY * (1 << peer.failures.min(16))).min(interval);
                peer.failures += 1;
            }
        }
    }

    /// Partitions done and all, in the rounds that run.
    fn progress(&self) -> (usize, usize) {
        let rounds = self.peers.values().filter_map(|peer| peer.round.as_ref());
        rounds.fold((0, 0), |(done, all), round| {
            (done + round.all - round.partitions.len() - round.differing.len(), all + round.all)
        })
    }
}

#[async_trait]
impl Worker for TableSync {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let layout = node.cluster.layout();
        if layout.is_empty() {
            return Ok(Next::After(LOOK));
        }
        let now = node.env.now();
        let pool = node.cluster.pool();
        let others = layout.storage_nodes().into_iter().filter(|id| *id != node.id);
        let nodes: Vec<(NodeId, bool)> = others.map(|id| (id, pool.peer_stats(id).connected)).collect();
        let chosen = {
            let mut peers = self.0.lock();
            peers.look(now, layout.epoch, &nodes, node.sync.was_asked_to_compare());
            peers.choose(now)
        };
        if chosen.is_empty() {
            return Ok(Next::After(LOOK));
        }
        let slices = chosen.into_iter().map(|(peer, round)| {
            let layout = &layout;
            async move {
                let round = round.unwrap_or_else(|| begin(node, layout, peer));
                (peer, slice(node, peer, round, report).await)
            }
        });
        let done = futures::future::join_all(slices).await;
        let now = node.env.now();
        let mut peers = self.0.lock();
        for (peer, round) in done {
            let interval = jittered(&node.env, node.settings.anti_entropy_interval);
            peers.put_back(peer, now, round, interval);
        }
        let (done, all) = peers.progress();
        report.progress(done as u64, all as u64);
        Ok(Next::Again)
    }
}

/// A comparison of all that this node shares with `peer`.
fn begin(node: &Node, layout: &ActiveLayout, peer: NodeId) -> Round {
    let all = (0..layout.current.partitions()).map(|p| Partition(p as u16));
    let partitions: VecDeque<Partition> =
        all.filter(|p| layout.holds(peer, *p) && node.has_copy_of(*p)).collect();
    let all = partitions.len();
    Round { epoch: layout.epoch, all, partitions, differing: VecDeque::new(), failed: false }
}

/// Some of a round's work. An error ends the round; what concerns one partition alone only marks it.
async fn slice(node: &Arc<Node>, peer: NodeId, mut round: Round, report: &Report) -> Result<Round, ()> {
    let source = Source { peer, epoch: round.epoch };
    if round.differing.is_empty() {
        let some: Vec<Partition> = round.partitions.drain(..MAX_TOTALS.min(round.partitions.len())).collect();
        match pull::compare(node, source, &some).await {
            Ok(compared) => round.differing.extend(compared.differing),
            Err(error) => {
                say(node, peer, &error, report);
                return Err(());
            }
        }
    }
    for _ in 0..PULLS {
        let Some((partition, tables)) = round.differing.pop_front() else { break };
        if !node.has_copy_of(partition) {
            continue;
        }
        match pull::pull_tables(node, source, partition, &tables).await {
            Ok(pulled) => report.count(pulled.rows, pulled.bytes),
            Err(error) => {
                say(node, peer, &error, report);
                if pull::is_passing(&error) {
                    return Err(());
                }
                round.failed = true;
            }
        }
    }
    Ok(round)
}

/// Says what went wrong, where it is worth an operator's attention.
fn say(node: &Node, peer: NodeId, error: &WorkerError, report: &Report) {
    if pull::is_passing(error) {
        tracing::debug!(peer = %peer.short(), %error, "comparison of rows broken off; it is tried again");
    } else {
        tracing::warn!(peer = %peer.short(), %error, "rows could not be compared or taken over; it is tried again");
        report.error(node.env.now(), error);
    }
}

/// A quarter more or less, so that nodes spread out.
fn jittered(env: &Env, interval: Duration) -> Duration {
    interval.mul_f64(0.75 + (env.random_u64() % 512) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_mins(10);

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    fn round(partitions: u16) -> Round {
        let partitions: VecDeque<Partition> = (0..partitions).map(Partition).collect();
        Round { epoch: 1, all: partitions.len(), partitions, differing: VecDeque::new(), failed: false }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn chosen(peers: &mut Peers, now: Duration) -> Vec<NodeId> {
        peers.choose(now).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn a_peer_is_due_at_start_after_the_interval_on_return_and_at_a_new_epoch() {
        let mut peers = Peers::default();
        let up = [(node(1), true)];
        peers.look(secs(1), 1, &up, false);
        assert_eq!(chosen(&mut peers, secs(1)), [node(1)]);
        peers.put_back(node(1), secs(2), Ok(round(0)), INTERVAL);
        peers.look(secs(3), 1, &up, false);
        assert!(chosen(&mut peers, secs(3)).is_empty());
        assert_eq!(chosen(&mut peers, secs(602)), [node(1)]);

        peers.look(secs(4), 1, &[(node(1), false)], false);
        assert!(chosen(&mut peers, secs(700)).is_empty(), "nobody there");
        peers.look(secs(5), 1, &up, false);
        assert_eq!(chosen(&mut peers, secs(5)), [node(1)], "it is back");
        peers.put_back(node(1), secs(6), Ok(round(0)), INTERVAL);
        peers.look(secs(7), 2, &up, false);
        assert_eq!(chosen(&mut peers, secs(7)), [node(1)], "a new epoch");
        peers.put_back(node(1), secs(8), Ok(round(0)), INTERVAL);
        peers.look(secs(9), 2, &up, true);
        assert_eq!(chosen(&mut peers, secs(9)), [node(1)], "asked for");
    }

    #[test]
    fn failures_are_tried_again_later_and_later_and_begun_rounds_go_first() {
        let mut peers = Peers::default();
        let up = [(node(1), true), (node(2), true), (node(3), true)];
        peers.look(secs(1), 1, &up, false);
        assert_eq!(chosen(&mut peers, secs(1)), [node(1), node(2)]);
        peers.put_back(node(1), secs(2), Err(()), INTERVAL);
        peers.put_back(node(2), secs(2), Ok(round(9)), INTERVAL);
        let next = peers.choose(secs(2));
        assert_eq!(
            next.iter().map(|(id, r)| (*id, r.is_some())).collect::<Vec<_>>(),
            [(node(2), true), (node(3), false)]
        );
        peers.put_back(node(2), secs(3), Ok(round(0)), INTERVAL);
        peers.put_back(node(3), secs(3), Ok(round(0)), INTERVAL);
        assert!(chosen(&mut peers, secs(3)).is_empty());
        assert_eq!(chosen(&mut peers, secs(4)), [node(1)]);
        peers.put_back(node(1), secs(5), Err(()), INTERVAL);
        assert!(chosen(&mut peers, secs(8)).is_empty());
        assert_eq!(chosen(&mut peers, secs(9)), [node(1)]);
    }
}
