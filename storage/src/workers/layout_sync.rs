//! "layout sync": completes this node's copies after a change of layout, and says when it is done (design §3).
//!
//! For the current version, of each partition this node holds and whose set changed:
//! 1. rows: everything that a read quorum of the set that is read holds is pulled, one node after the other, at an epoch
//!    that those nodes have adopted. So every write acknowledged before the change is here; later ones come by themselves;
//! 2. blocks: every block with a live reference has a readable copy here. The missing ones are queued for the resync
//!    worker, and looked for again. A block that no other holder has is lost; it holds nothing up.
//!
//! Then the version is noted as synced, durably, and told. A node that comes late (the change went on without it) does the
//! same with all partitions it holds. After a restart it begins anew: what is equal already costs one comparison of sums.
//! A new epoch of the same version goes on where it is; a new version starts over.

use super::pull::{self, Source};
use super::{Next, Report, Worker, WorkerError, needed};
use crate::layout_store::SyncedError;
use crate::serve::Node;
use async_trait::async_trait;
use futures::StreamExt as _;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Holdings, Partition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

pub const NAME: &str = "layout sync";

/// Between looks when there is nothing to do, or nobody to pull from.
const LOOK: Duration = Duration::from_secs(1);
/// Before a node that failed, or refused a partition, is asked again.
const RETRY: Duration = Duration::from_secs(2);
/// Partitions compared in one step, and pulled side by side.
const PARTITIONS: usize = 16;
const PARALLEL: usize = 4;
/// Partitions whose blocks are looked for in one step.
const BLOCK_PARTITIONS: usize = 4;
/// Before blocks that were missing are looked for again: the first is for few, the last for many.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Resync has this long to try before all holders are asked whether a block is lost.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// A partition to be completed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    partition: Partition,
    /// Whom to pull from.
    sources: Vec<NodeId>,
    /// So many of them.
    needed: usize,
}

/// What `me` has to complete for the current version.
///
/// It counts itself towards the quorum if it is in the set: what it acknowledged, it holds. But one that comes late, and
/// was never complete, needs another node in any case.
fn plan(layout: &ActiveLayout, holdings: &Holdings, me: NodeId) -> Vec<Task> {
    let late = layout.old.as_ref().is_none_or(|old| holdings.synced() < old.version);
    let task = |partition: Partition| {
        let (set, quorum) = layout.sources(partition).unwrap_or_default();
        let sources: Vec<NodeId> = set.iter().copied().filter(|node| *node != me).collect();
        let own = usize::from(sources.len() < set.len());
        let needed = quorum.saturating_sub(own).max(usize::from(late)).min(sources.len());
        Task { partition, sources, needed }
    };
    holdings.to_sync(me, layout).into_iter().map(task).collect()
}

/// See the module's head.
#[derive(Default)]
pub struct LayoutSync(Mutex<State>);

/// How far this version is.
#[derive(Default)]
struct State {
    version: u64,
    /// Whom each partition was pulled from.
    pulled: BTreeMap<Partition, BTreeSet<NodeId>>,
    /// Blocks of partitions whose rows are complete.
    blocks: BTreeMap<Partition, Blocks>,
    /// When to ask again: a node, or a node for one partition.
    pauses: BTreeMap<(NodeId, Option<Partition>), Duration>,
}

/// How far the blocks of a partition are.
#[derive(Clone, Debug, Default)]
struct Blocks {
    /// Since when they are looked for.
    since: Option<Duration>,
    /// Where to look next, and what this pass found missing so far.
    from: Option<Vec<u8>>,
    missing: u64,
    lost: u64,
    /// What the pass before found missing.
    left: u64,
    again_at: Duration,
    done: bool,
}

impl State {
    fn is_pulled(&self, task: &Task) -> bool {
        let pulled = self.pulled.get(&task.partition);
        let from = |node: &&NodeId| pulled.is_some_and(|nodes| nodes.contains(node));
        task.sources.iter().filter(from).count() >= task.needed
    }

    fn may_ask(&self, node: NodeId, partition: Partition, now: Duration) -> bool {
        let pause = |key| self.pauses.get(&key).is_some_and(|until| *until > now);
        !pause((node, None)) && !pause((node, Some(partition)))
    }

    fn pause(&mut self, node: NodeId, partition: Option<Partition>, now: Duration) {
        self.pauses.insert((node, partition), now + RETRY);
    }
}

#[async_trait]
impl Worker for LayoutSync {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let layout = node.cluster.layout();
        let holdings = node.layout_store.holdings();
        let (version, synced) = (layout.current.version, holdings.synced());
        if layout.is_empty() || synced >= version {
            node.membership.set_progress(synced, 0, 0);
            return Ok(Next::After(LOOK));
        }
        let mut state = self.0.lock().await;
        if state.version != version {
            *state = State { version, ..State::default() };
        }
        let (waiting, tasks): (Vec<Task>, Vec<Task>) =
            plan(&layout, &holdings, node.id).into_iter().partition(|task| !node.has_copy_of(task.partition));
        if state.pulled.is_empty() {
            report.begin(node.env.now(), tasks.len() as u64);
        }
        let busy_with_rows = pull_some(node, &layout, &tasks, &mut state, report).await;
        let busy_with_blocks = find_blocks(node, &layout, &tasks, &mut state).await?;

        let rows_left = waiting.len() + tasks.iter().filter(|task| !state.is_pulled(task)).count();
        let blocks_left: u64 = state.blocks.values().map(|blocks| blocks.left.max(blocks.missing)).sum();
        let is_done = |task: &&Task| state.blocks.get(&task.partition).is_some_and(|blocks| blocks.done);
        let done = tasks.iter().filter(is_done).count();
        report.progress(done as u64, (tasks.len() + waiting.len()) as u64);
        report.queue(blocks_left);
        say_lost(&state, report);
        if done == tasks.len() && waiting.is_empty() {
            match node.layout_store.set_synced(version).await {
                Ok(()) => tracing::info!(version, partitions = done, "this node's copies are complete"),
                Err(SyncedError::Meta(error)) => return Err(error.into()),
                // The layout moved on just now.
                Err(SyncedError::NotSynced(reason)) => {
                    tracing::debug!(version, %reason, "not complete after all");
                }
            }
            return Ok(Next::Again);
        }
        node.membership.set_progress(synced, u32::try_from(rows_left).unwrap_or(u32::MAX), blocks_left);
        Ok(if busy_with_rows || busy_with_blocks { Next::Again } else { Next::After(LOOK) })
    }
}

fn say_lost(state: &State, report: &Report) {
    let lost: u64 = state.blocks.values().map(|blocks| blocks.lost).sum();
    let note = format!("{lost} blocks are lost: no node that should hold them has a readable copy");
    report.notes(if lost > 0 { vec![note] } else { Vec::new() });
}

/// Pulls some partitions from the next of their sources. True if there was something to do.
async fn pull_some(
    node: &Arc<Node>,
    layout: &ActiveLayout,
    tasks: &[Task],
    state: &mut State,
    report: &Report,
) -> bool {
    let now = node.env.now();
    let mut by_peer: BTreeMap<NodeId, Vec<Partition>> = BTreeMap::new();
    let mut chosen = 0;
    for task in tasks.iter().filter(|task| !state.is_pulled(task)) {
        let pulled = state.pulled.get(&task.partition);
        let mut sources = task.sources.clone();
        sources.retain(|peer| {
            pulled.is_none_or(|nodes| !nodes.contains(peer))
                && state.may_ask(*peer, task.partition, now)
                && node.cluster.pool().peer_stats(*peer).connected
        });
        node.cluster.order(&mut sources);
        if let Some(peer) = sources.first() {
            by_peer.entry(*peer).or_default().push(task.partition);
            chosen += 1;
        }
        if chosen >= PARTITIONS {
            break;
        }
    }
    let compared = by_peer.into_iter().map(|(peer, partitions)| async move {
        let source = Source { peer, epoch: layout.epoch };
        let compared = pull::compare(node, source, &partitions).await;
        (source, partitions, compared)
    });
    let mut pulls = Vec::new();
    for (source, partitions, compared) in futures::future::join_all(compared).await {
        match compared {
            Ok(mut compared) => {
                for partition in partitions {
                    if compared.refused.contains(&partition) {
                        state.pause(source.peer, Some(partition), now);
                    } else {
                        let tables = compared.differing.remove(&partition).unwrap_or_default();
                        pulls.push((source, partition, tables));
                    }
                }
            }
            Err(error) => {
                say(node, source.peer, &error, report);
                state.pause(source.peer, None, now);
            }
        }
    }
    let pulls = pulls.into_iter().map(|(source, partition, tables)| async move {
        (source, partition, pull::pull_tables(node, source, partition, &tables).await)
    });
    // Collected first: the order in which pulls end does not matter then.
    let done: Vec<_> = futures::stream::iter(pulls).buffer_unordered(PARALLEL).collect().await;
    for (source, partition, pulled) in done {
        match pulled {
            Ok(pulled) => {
                report.count(pulled.rows, pulled.bytes);
                state.pulled.entry(partition).or_default().insert(source.peer);
            }
            Err(error) => {
                say(node, source.peer, &error, report);
                state.pause(source.peer, Some(partition), now);
            }
        }
    }
    chosen > 0
}

fn say(node: &Node, peer: NodeId, error: &WorkerError, report: &Report) {
    if pull::is_passing(error) {
        tracing::debug!(peer = %peer.short(), %error, "a partition could not be completed yet");
    } else {
        tracing::warn!(peer = %peer.short(), %error, "a partition could not be completed; it is tried again");
        report.error(node.env.now(), error);
    }
}

/// Looks for the blocks of some partitions whose rows are complete. True if there was something to do.
async fn find_blocks(
    node: &Arc<Node>,
    layout: &ActiveLayout,
    tasks: &[Task],
    state: &mut State,
) -> Result<bool, WorkerError> {
    let now = node.env.now();
    let ready: Vec<Partition> = tasks
        .iter()
        .filter(|task| state.is_pulled(task))
        .map(|task| task.partition)
        .filter(|p| state.blocks.get(p).is_none_or(|blocks| !blocks.done && blocks.again_at <= now))
        .take(BLOCK_PARTITIONS)
        .collect();
    for partition in &ready {
        let mut blocks = state.blocks.get(partition).cloned().unwrap_or_default();
        look(node, layout, *partition, &mut blocks).await?;
        state.blocks.insert(*partition, blocks);
    }
    Ok(!ready.is_empty())
}

/// Looks at some references of a partition.
async fn look(
    node: &Arc<Node>,
    layout: &ActiveLayout,
    partition: Partition,
    blocks: &mut Blocks,
) -> Result<(), WorkerError> {
    let now = node.env.now();
    let since = *blocks.since.get_or_insert(now);
    let from = blocks.from.take();
    let page = pull::reading(node, move |node| needed::missing(node, partition, from.as_deref())).await?;
    let mut missing = page.missing;
    if now.saturating_sub(since) >= LOST_AFTER {
        let lost = needed::lost(node, layout, partition, &missing).await;
        blocks.lost += lost.len() as u64;
        missing.retain(|block| !lost.contains(block));
    }
    queue_unless_queued(node, partition, &missing).await?;
    blocks.missing += missing.len() as u64;
    blocks.from = page.next;
    if blocks.from.is_none() {
        blocks.left = std::mem::take(&mut blocks.missing);
        blocks.done = blocks.left == 0;
        let (few, many) = LOOK_AGAIN;
        let wait = Duration::from_millis(blocks.left.saturating_mul(10)).clamp(few, many);
        blocks.again_at = node.env.now() + wait;
        if blocks.done && blocks.lost > 0 {
            let lost = blocks.lost;
            tracing::error!(
                partition = partition.0,
                lost,
                "blocks are lost: no node that should hold them has a readable copy"
            );
        } else if !blocks.done {
            blocks.lost = 0;
        }
    }
    Ok(())
}

/// Queues blocks to be fetched, those that are not queued already: queueing them again would put them off.
async fn queue_unless_queued(
    node: &Arc<Node>,
    partition: Partition,
    blocks: &[Hash],
) -> Result<(), WorkerError> {
    if blocks.is_empty() {
        return Ok(());
    }
    let asked = blocks.to_vec();
    let unqueued = pull::reading(node, move |node| needed::not_queued(node, partition, asked)).await?;
    node.check_blocks(&unqueued).await?;
    node.workers.wake("block resync");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::layout::{Layout, Parameters, Role, ZoneRedundancy, compute};

    const ME: NodeId = NodeId([9; 32]);

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    /// A layout of one partition on these nodes.
    fn on(before: &ActiveLayout, holders: &[u8]) -> ActiveLayout {
        let parameters =
            Parameters { replication_factor: holders.len(), zone_redundancy: ZoneRedundancy::AtLeast(1) };
        let role = |i: &u8| (node(*i), Role { zone: format!("z{i}"), capacity: 1 << 30, tags: vec![] });
        let roles = holders.iter().map(role).collect();
        let next: Layout = compute(Some(before.newest()), &roles, &parameters, 0).unwrap().0;
        before.apply(next).unwrap()
    }

    fn first(holders: &[u8]) -> ActiveLayout {
        let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::AtLeast(1) };
        on(&ActiveLayout::empty(parameters, 0), holders)
    }

    /// What this node has to do after it learnt these layouts one after the other.
    fn tasks(learnt: &[&ActiveLayout]) -> Vec<Task> {
        let mut holdings = Holdings::default();
        let mut before = ActiveLayout::empty(learnt[0].current.parameters, 0);
        for layout in learnt {
            holdings.learn(ME, &before, layout, true);
            before = (*layout).clone();
        }
        plan(&before, &holdings, ME)
    }

    fn task(sources: &[u8], needed: usize) -> Vec<Task> {
        vec![Task { partition: Partition(0), sources: sources.iter().map(|i| node(*i)).collect(), needed }]
    }

    #[test]
    fn a_read_quorum_of_the_old_set_is_pulled_from_and_counts_a_member_of_it() {
        let old = first(&[1, 2, 3]);
        assert_eq!(tasks(&[&old, &on(&old, &[2, 3, 9])]), task(&[1, 2, 3], 2));
        let with_me = first(&[1, 2, 9]);
        assert_eq!(tasks(&[&with_me, &on(&with_me, &[2, 3, 9])]), task(&[1, 2], 1));
        assert_eq!(tasks(&[&with_me, &on(&with_me, &[1, 2, 9])]), [], "nothing moves");
        assert_eq!(tasks(&[&with_me]), [], "the first layout is complete as it is");
        assert_eq!(tasks(&[&old, &on(&old, &[1, 2, 4])]), [], "not this node's");
    }

    #[test]
    fn quorums_are_of_the_set_that_is_left() {
        let one = first(&[1]);
        assert_eq!(tasks(&[&one, &on(&one, &[1, 2, 9])]), task(&[1], 1));
        let five = first(&[1, 2, 3, 4, 5]);
        assert_eq!(tasks(&[&five, &on(&five, &[1, 2, 9])]), task(&[1, 2, 3, 4, 5], 3));
        let two = first(&[1, 9]);
        assert_eq!(tasks(&[&two, &on(&two, &[1, 2, 9])]), task(&[1], 0), "it has all that was acknowledged");
    }

    #[test]
    fn one_that_comes_late_pulls_from_those_who_went_on_without_it() {
        let old = first(&[1, 2, 3]);
        let introduced = on(&old, &[2, 3, 9]);
        let stable = introduced.next_phase().unwrap().next_phase().unwrap();
        assert_eq!(tasks(&[&introduced, &stable]), task(&[2, 3], 1));
        // With two copies a quorum of reads is one: its own does not count for that.
        let two = first(&[1, 2]);
        let stable = on(&two, &[2, 9]).next_phase().unwrap().next_phase().unwrap();
        assert_eq!(tasks(&[&stable]), task(&[2], 1));
    }

    #[test]
    fn each_source_counts_once_and_failures_are_waited_out() {
        let mut state = State::default();
        let one = &task(&[1, 2, 3], 2)[0];
        state.pulled.entry(one.partition).or_default().extend([node(1), node(7)]);
        assert!(!state.is_pulled(one), "one of them is no source");
        state.pulled.entry(one.partition).or_default().insert(node(3));
        assert!(state.is_pulled(one));
        let now = Duration::from_secs(10);
        state.pause(node(1), Some(Partition(0)), now);
        assert!(!state.may_ask(node(1), Partition(0), now) && state.may_ask(node(1), Partition(1), now));
        state.pause(node(1), None, now);
        assert!(!state.may_ask(node(1), Partition(1), now));
        assert!(state.may_ask(node(1), Partition(1), now + RETRY));
    }
}
