//! Calling several replicas until enough have answered (design §2, §4).
//!
//! The rule when enough is reached is [`Tracker`]'s (pure, in `common`); here is the waiting around it:
//!
//! - [`write()`] asks every node of every write set and returns at a quorum; the rest goes on in the background.
//! - [`read`] asks as many nodes as a read quorum needs, nearest first, and one more whenever one fails or is
//!   slower than it usually is. [`EarlyRead`] lets the caller start work on the first reply.
//! - [`any`] wants one good answer: nearest replica first, the next when it fails, is bad, or is slow.
//!
//! All of them follow the layout: a node that knows a newer epoch refuses and sends its layout, which is learnt
//! before the operation starts over; one that is behind is told, and the operation starts over after a pause if there
//! is no quorum without it. Within one try the nodes asked, the epoch sent and the sets counted are of one layout. No operation
//! waits for a time-out while enough other nodes answer.

use crate::body::Body;
use crate::cluster::{CALL_DEADLINE, Cluster};
use crate::error::{RemoteCode, RpcError};
use crate::late::LateCalls;
use crate::message::{Class, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, QuorumState, Tracker};
use std::sync::Arc;
use std::time::Duration;

/// How often an operation starts over because the layout moved on under it.
const MAX_EPOCH_RETRIES: usize = 8;
/// Pause before it does because nodes were behind; doubled each time (1.3 s in all).
const BEHIND_PAUSE: Duration = Duration::from_millis(10);

/// Why not enough nodes agreed.
#[derive(Debug, thiserror::Error)]
pub enum FanoutError<R = ()> {
    /// No layout has been applied: nothing can be stored yet.
    #[error("the cluster has no layout yet: assign roles with `hayloft layout assign` and apply them")]
    NoLayout,
    /// Too many nodes refused; their replies say why.
    #[error("refused by {} of the nodes asked", replies.len())]
    Rejected { replies: Vec<R> },
    /// Too many nodes failed or could not be reached.
    #[error("no quorum: {} (wanted {wanted}, {answered} answered)", reasons(errors))]
    NoQuorum { wanted: usize, answered: usize, errors: Vec<(NodeId, RpcError)> },
    /// The layout changed again and again during the operation.
    #[error("the layout kept changing during the operation; try again")]
    LayoutMoving,
}

impl<R> FanoutError<R> {
    /// Drops the replies, for callers that never reject.
    pub fn without_replies<S>(self) -> FanoutError<S> {
        match self {
            Self::NoLayout => FanoutError::NoLayout,
            Self::Rejected { .. } => FanoutError::Rejected { replies: Vec::new() },
            Self::NoQuorum { wanted, answered, errors } => FanoutError::NoQuorum { wanted, answered, errors },
            Self::LayoutMoving => FanoutError::LayoutMoving,
        }
    }
}

fn reasons(errors: &[(NodeId, RpcError)]) -> String {
    if errors.is_empty() {
        return "no node answered".into();
    }
    errors.iter().map(|(node, e)| format!("{}: {e}", node.short())).collect::<Vec<_>>().join("; ")
}

/// What a caller makes of one node's reply to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Counts towards the quorum.
    Accept,
    /// Counts against it.
    Reject,
}

type Call<R> = BoxFuture<'static, (NodeId, Result<(R, Body), RpcError>)>;

fn start<M: Message>(
    cluster: &Arc<Cluster>,
    epoch: u64,
    node: NodeId,
    message: &Arc<M>,
    body: &Bytes,
) -> Call<M::Reply> {
    let (cluster, message, body) = (cluster.clone(), message.clone(), body.clone());
    Box::pin(async move {
        let body = if body.is_empty() { Body::empty() } else { Body::from(body) };
        (node, cluster.call_at(epoch, node, &*message, body, CALL_DEADLINE).await)
    })
}

/// What errors said of the layout.
#[derive(Default)]
struct Moves {
    /// A newer one is known now: this try is for nothing.
    newer: bool,
    /// A node does not know ours yet (it is being told), or is not ready for another reason.
    behind: bool,
}

impl Moves {
    /// Takes in an error; learns the layout that it may carry.
    async fn note(&mut self, cluster: &Arc<Cluster>, node: NodeId, error: &RpcError) {
        match error {
            RpcError::StaleEpoch { layout } => self.newer |= cluster.learn_encoded(layout).await,
            RpcError::Remote { code: RemoteCode::NotReady, .. } => {
                self.behind = true;
                cluster.teach(node);
            }
            _ => {}
        }
    }

    /// Whether a try that failed is worth another, after the pause that it takes. `done`: tries so far.
    async fn again(&self, done: usize) -> bool {
        if !self.newer && self.behind && done < MAX_EPOCH_RETRIES {
            tokio::time::sleep(BEHIND_PAUSE * (1 << done.saturating_sub(1).min(16))).await;
            return true;
        }
        self.newer
    }
}

/// Sends `message` (with `body`, unless empty) to every node of the write sets of `place`, and returns the replies
/// that were there when a quorum of each set had accepted.
///
/// A conflict at any node that answers before there is a quorum is a conflict of the whole.
///
/// Once a node has refused, the caller has to try again above it anyway: nodes that are silent then are not waited for.
///
/// Dropping the future stops calls that are under way; nodes already asked may have written.
pub async fn write<M: Message>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
    body: Bytes,
    judge: impl Fn(&M::Reply) -> Verdict,
) -> Result<Vec<M::Reply>, FanoutError<M::Reply>> {
    write_bounded(cluster, place, message, body, judge, None).await
}

/// As [`write()`]; what is late holds no more of large bodies than `late` lets it.
pub async fn write_bounded<M: Message>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
    body: Bytes,
    judge: impl Fn(&M::Reply) -> Verdict,
    late: Option<&Arc<LateCalls>>,
) -> Result<Vec<M::Reply>, FanoutError<M::Reply>> {
    let (message, began) = (Arc::new(message), cluster.env().now());
    for tries in 1..=MAX_EPOCH_RETRIES {
        let layout = cluster.layout();
        let sets = layout.write_sets(layout.partition_of(&place)).map_err(|_| FanoutError::NoLayout)?;
        let mut tracker = Tracker::new(&sets, |size| cluster.write_quorum(size));
        let nodes: Vec<NodeId> = tracker.nodes().collect();
        let mut waiting = nodes.clone();
        let mut calls: FuturesUnordered<Call<M::Reply>> =
            nodes.iter().map(|node| start(cluster, layout.epoch, *node, &message, &body)).collect();
        let (mut accepted, mut rejected, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let mut moves = Moves::default();
        while let Some((node, result)) = next_write(cluster, &mut calls, &nodes, rejected.is_empty()).await {
            waiting.retain(|other| *other != node);
            match result {
                Ok((reply, _)) if judge(&reply) == Verdict::Accept => {
                    tracker.ok(node);
                    accepted.push(reply);
                }
                Ok((reply, _)) => {
                    tracker.fail(node);
                    rejected.push(reply);
                }
                Err(error) => {
                    moves.note(cluster, node, &error).await;
                    tracker.fail(node);
                    let conflict = error.is_conflict();
                    errors.push((node, error));
                    if conflict {
                        let wanted = tracker.wanted();
                        return Err(FanoutError::NoQuorum { wanted, answered: accepted.len(), errors });
                    }
                }
            }
            match tracker.state() {
                QuorumState::Reached => {
                    finish_in_background(cluster, calls, late.map(|late| (late, waiting, body.len())));
                    return Ok(accepted);
                }
                QuorumState::Impossible => break,
                QuorumState::Pending if moves.newer => break,
                QuorumState::Pending => {}
            }
        }
        if !moves.newer && !rejected.is_empty() {
            return Err(FanoutError::Rejected { replies: rejected });
        }
        // What is begun again much later could come behind the collection of a tombstone above it.
        let is_late = cluster.env().now().saturating_sub(began) > CALL_DEADLINE;
        if is_late || !moves.again(tries).await {
            let wanted = tracker.wanted();
            return Err(FanoutError::NoQuorum { wanted, answered: accepted.len(), errors });
        }
    }
    Err(FanoutError::LayoutMoving)
}

/// The next answer to a write. `None`: no more, or none soon enough after a refusal.
async fn next_write<R>(
    cluster: &Cluster,
    calls: &mut FuturesUnordered<Call<R>>,
    nodes: &[NodeId],
    patient: bool,
) -> Option<(NodeId, Result<(R, Body), RpcError>)> {
    if patient {
        return calls.next().await;
    }
    // Twice: a write may take longer than the calls of which the usual time is known.
    tokio::time::timeout(2 * patience(cluster, nodes, Class::Small), calls.next()).await.ok().flatten()
}

/// Lets the calls that a quorum did not wait for run to their end, within the bound for those nodes and bytes.
fn finish_in_background<R: Send + 'static>(
    cluster: &Arc<Cluster>,
    mut calls: FuturesUnordered<Call<R>>,
    bound: Option<(&Arc<LateCalls>, Vec<NodeId>, usize)>,
) {
    if calls.is_empty() {
        return;
    }
    match bound {
        None => {
            cluster.env().spawn("late replicas", async move { while calls.next().await.is_some() {} });
        }
        Some((late, nodes, bytes)) => {
            let late = late.clone().finish(cluster.clone(), calls, nodes, bytes);
            cluster.env().spawn("late replicas", late);
        }
    }
}

/// The replies of a read quorum.
pub async fn read<M: Message>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
) -> Result<Vec<(NodeId, M::Reply)>, FanoutError> {
    read_early(cluster, place, message).quorum().await
}

/// Starts a quorum read whose first reply can be used before the quorum is there.
pub fn read_early<M: Message>(cluster: &Arc<Cluster>, place: Hash, message: M) -> EarlyRead<M> {
    EarlyRead { cluster: cluster.clone(), place, message: Arc::new(message), round: None, rounds: 0 }
}

/// A quorum read under way. It makes progress only while one of its methods is awaited.
pub struct EarlyRead<M: Message> {
    cluster: Arc<Cluster>,
    place: Hash,
    message: Arc<M>,
    round: Option<Round<M::Reply>>,
    rounds: usize,
}

/// One try under one layout.
struct Round<R> {
    epoch: u64,
    /// Still to be asked, nearest last.
    waiting: Vec<NodeId>,
    tracker: Tracker,
    wanted: usize,
    calls: FuturesUnordered<Call<R>>,
    asked: Vec<NodeId>,
    replies: Vec<(NodeId, R)>,
    errors: Vec<(NodeId, RpcError)>,
    moves: Moves,
}

impl<M: Message> EarlyRead<M> {
    fn begin(&mut self) -> Result<&mut Round<M::Reply>, FanoutError> {
        let layout = self.cluster.layout();
        let partition = layout.partition_of(&self.place);
        let mut nodes = layout.read_set(partition).map_err(|_| FanoutError::NoLayout)?;
        let wanted = self.cluster.read_quorum(nodes.len());
        let tracker = Tracker::new(&[nodes.clone()], |_| wanted);
        self.cluster.order(&mut nodes);
        nodes.reverse();
        let mut round = Round {
            epoch: layout.epoch,
            waiting: nodes,
            tracker,
            wanted,
            calls: FuturesUnordered::new(),
            asked: Vec::new(),
            replies: Vec::new(),
            errors: Vec::new(),
            moves: Moves::default(),
        };
        for _ in 0..wanted {
            ask_next(&self.cluster, &self.message, &mut round);
        }
        self.rounds += 1;
        Ok(self.round.insert(round))
    }

    /// Waits until there are `enough` replies (or the quorum, or no hope).
    async fn drive(&mut self, enough: usize) -> Result<(), FanoutError> {
        loop {
            if self.round.is_none() {
                self.begin()?;
            }
            let Some(round) = self.round.as_mut() else { continue };
            while round.replies.len() < enough
                && round.tracker.state() == QuorumState::Pending
                && !round.moves.newer
            {
                let Some((node, result)) = next_or_hedge(&self.cluster, &self.message, round).await else {
                    break;
                };
                match result {
                    Ok((reply, _)) => {
                        round.tracker.ok(node);
                        round.replies.push((node, reply));
                    }
                    Err(error) => {
                        round.moves.note(&self.cluster, node, &error).await;
                        round.tracker.fail(node);
                        round.errors.push((node, error));
                        ask_next(&self.cluster, &self.message, round);
                    }
                }
            }
            if round.replies.len() >= enough || round.tracker.state() == QuorumState::Reached {
                return Ok(());
            }
            if !round.moves.again(self.rounds).await {
                let errors = std::mem::take(&mut round.errors);
                return Err(FanoutError::NoQuorum {
                    wanted: round.wanted,
                    answered: round.replies.len(),
                    errors,
                });
            }
            if self.rounds >= MAX_EPOCH_RETRIES {
                return Err(FanoutError::LayoutMoving);
            }
            self.round = None;
        }
    }

    /// The first reply there is. It may be stale: only the quorum's merge is the truth.
    pub async fn first(&mut self) -> Result<(NodeId, &M::Reply), FanoutError> {
        self.drive(1).await?;
        let first = self.round.as_ref().and_then(|round| round.replies.first());
        first.map(|(node, reply)| (*node, reply)).ok_or(FanoutError::LayoutMoving)
    }

    /// The replies of a read quorum.
    pub async fn quorum(mut self) -> Result<Vec<(NodeId, M::Reply)>, FanoutError> {
        self.drive(usize::MAX).await?;
        Ok(self.round.map(|round| round.replies).unwrap_or_default())
    }
}

fn ask_next<M: Message>(cluster: &Arc<Cluster>, message: &Arc<M>, round: &mut Round<M::Reply>) {
    if let Some(node) = round.waiting.pop() {
        round.asked.push(node);
        round.calls.push(start(cluster, round.epoch, node, message, &Bytes::new()));
    }
}

/// The next result; asks one more node whenever the ones asked are slower than usual.
async fn next_or_hedge<M: Message>(
    cluster: &Arc<Cluster>,
    message: &Arc<M>,
    round: &mut Round<M::Reply>,
) -> Option<(NodeId, Result<(M::Reply, Body), RpcError>)> {
    loop {
        if round.waiting.is_empty() {
            return round.calls.next().await;
        }
        let patience = patience(cluster, &round.asked, M::CLASS);
        // Biased: a result that is there beats the timer; the timer can't starve, since each result ends the wait.
        tokio::select! { biased;
            result = round.calls.next() => return result,
            () = tokio::time::sleep(patience) => {
                suspect_silent(cluster, &round.asked, &round.replies, &round.errors);
                ask_next(cluster, message, round);
            }
        }
    }
}

/// How long the slowest of the nodes asked usually takes.
fn patience(cluster: &Cluster, asked: &[NodeId], class: Class) -> Duration {
    asked.iter().map(|node| cluster.hedge_delay(*node, class)).max().unwrap_or_default()
}

fn suspect_silent<R>(
    cluster: &Cluster,
    asked: &[NodeId],
    replies: &[(NodeId, R)],
    errors: &[(NodeId, RpcError)],
) {
    for node in asked {
        if !replies.iter().any(|(n, _)| n == node) && !errors.iter().any(|(n, _)| n == node) {
            cluster.suspect(*node);
        }
    }
}

/// One good answer, and the nodes whose answers were bad (they should be told).
pub struct Found<T> {
    pub value: T,
    pub bad: Vec<NodeId>,
}

/// Asks the replicas of `place`, nearest first, until `check` likes an answer; the next one is asked as soon as one
/// fails or is slower than usual. `check` gets the reply and its whole body (at most `max_body` bytes).
pub async fn any<M: Message, T>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
    max_body: usize,
    check: impl Fn(&M::Reply, Bytes) -> Result<T, RpcError>,
) -> Result<Found<T>, FanoutError> {
    any_of(cluster, place, message, max_body, check, None).await
}

/// As [`any`], without asking this node itself: to repair what is lost here.
pub async fn any_other<M: Message, T>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
    max_body: usize,
    check: impl Fn(&M::Reply, Bytes) -> Result<T, RpcError>,
) -> Result<Found<T>, FanoutError> {
    any_of(cluster, place, message, max_body, check, Some(cluster.pool().local_id())).await
}

async fn any_of<M: Message, T>(
    cluster: &Arc<Cluster>,
    place: Hash,
    message: M,
    max_body: usize,
    check: impl Fn(&M::Reply, Bytes) -> Result<T, RpcError>,
    except: Option<NodeId>,
) -> Result<Found<T>, FanoutError> {
    let message = Arc::new(message);
    for tries in 1..=MAX_EPOCH_RETRIES {
        let layout = cluster.layout();
        let mut waiting = candidates(cluster, &layout, place).ok_or(FanoutError::NoLayout)?;
        waiting.retain(|node| Some(*node) != except);
        let mut calls: FuturesUnordered<BoxFuture<'static, Collected<M::Reply>>> = FuturesUnordered::new();
        let (mut asked, mut bad, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let mut moves = Moves::default();
        loop {
            if calls.is_empty() {
                let Some(node) = waiting.pop() else { break };
                asked.push(node);
                calls.push(collect(start(cluster, layout.epoch, node, &message, &Bytes::new()), max_body));
            }
            let patience = patience(cluster, &asked, M::CLASS);
            // Biased: as in next_or_hedge.
            let next = tokio::select! { biased;
                next = calls.next() => next,
                () = tokio::time::sleep(patience), if !waiting.is_empty() => {
                    if let Some(node) = waiting.pop() {
                        suspect_silent::<()>(cluster, &asked, &[], &errors);
                        asked.push(node);
                        calls.push(collect(start(cluster, layout.epoch, node, &message, &Bytes::new()), max_body));
                    }
                    continue;
                }
            };
            let Some((node, result)) = next else { continue };
            match result.and_then(|(reply, body)| check(&reply, body)) {
                Ok(value) => return Ok(Found { value, bad }),
                Err(error) => {
                    moves.note(cluster, node, &error).await;
                    if error.is_bad_copy() {
                        bad.push(node);
                    }
                    errors.push((node, error));
                    if moves.newer {
                        break;
                    }
                }
            }
        }
        if !moves.again(tries).await {
            return Err(FanoutError::NoQuorum { wanted: 1, answered: 0, errors });
        }
    }
    Err(FanoutError::LayoutMoving)
}

type Collected<R> = (NodeId, Result<(R, Bytes), RpcError>);

/// Awaits a call and then its reply's whole body.
fn collect<R: Send + 'static>(call: Call<R>, max_body: usize) -> BoxFuture<'static, Collected<R>> {
    Box::pin(async move {
        let (node, result) = call.await;
        let result = match result {
            Ok((reply, body)) => body.collect(max_body).await.map(|b| (reply, b)).map_err(RpcError::from),
            Err(error) => Err(error),
        };
        (node, result)
    })
}

/// Nodes that may hold a copy, nearest last: the read set, then what other sets a layout change adds. `None` while
/// there is no layout.
fn candidates(cluster: &Cluster, layout: &ActiveLayout, place: Hash) -> Option<Vec<NodeId>> {
    let partition = layout.partition_of(&place);
    let mut first = layout.read_set(partition).ok()?;
    cluster.order(&mut first);
    let others = layout.write_sets(partition).ok()?.into_iter().flatten();
    let mut more: Vec<NodeId> = others.filter(|node| !first.contains(node)).collect();
    more.sort();
    more.dedup();
    cluster.order(&mut more);
    first.extend(more);
    first.reverse();
    Some(first)
}
