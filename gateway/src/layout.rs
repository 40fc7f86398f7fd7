//! Bringing a new layout into force: compute, check, agree, tell everybody (design §3).
//!
//! The pure parts (the computation, the proposer's rules) are in `common::layout`; here is the waiting around them.
//! Two gateways that apply at the same time can't both win: the layout of an epoch is agreed on by the storage
//! nodes' registers. Until data can be moved, a change that would move data that exists is refused.

use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, Explanation, InvalidLayout, Layout, LayoutError, Proposer, Role, StagedChanges, Step,
    compute,
};
use hayloft_common::stamp::HybridClock;
use hayloft_proto::body::Body;
use hayloft_proto::cluster::Cluster;
use hayloft_proto::error::RpcError;
use hayloft_proto::membership::Membership;
use hayloft_proto::message::Message;
use hayloft_proto::message::membership::{
    AcceptLayout, LearnLayout, PrepareLayout, ReadInventory, StageChanges,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// For one call of the procedure.
const DEADLINE: Duration = Duration::from_secs(10);
/// Rounds against other proposers before giving up.
const MAX_ROUNDS: usize = 10;

/// Why a layout was not applied, or changes not staged.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("version {asked} cannot be applied: the next one is {next}; look at the staged changes again")]
    WrongVersion { asked: u64, next: u64 },
    #[error("no changes are staged: assign or remove roles first")]
    NothingStaged,
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Invalid(#[from] InvalidLayout),
    #[error(
        "applying this would move {partitions} partitions that hold data, which this release cannot do yet; nothing was changed"
    )]
    WouldMoveData { partitions: usize },
    #[error("node {node} has no known address: connect it to the cluster first")]
    UnknownNode { node: NodeId },
    #[error(
        "someone else changed the layout at the same time (version {version} is in force); look at it again"
    )]
    Conflict { version: u64 },
    #[error("not enough storage nodes answered: {detail}")]
    Unreachable { detail: String },
    #[error("{0}")]
    BadRequest(String),
}

/// What applying the staged changes would give.
pub struct Plan {
    pub layout: Layout,
    pub explanation: Explanation,
}

/// A layout that is in force.
pub struct Applied {
    pub layout: ActiveLayout,
    pub explanation: Explanation,
}

/// Manages the layout on behalf of operators.
pub struct LayoutManager {
    env: Env,
    membership: Arc<Membership>,
    clock: HybridClock,
}

impl LayoutManager {
    pub fn new(env: Env, membership: Arc<Membership>) -> Self {
        Self { clock: HybridClock::new(env.clone()), env, membership }
    }

    fn cluster(&self) -> &Arc<Cluster> {
        self.membership.cluster()
    }

    /// The layout in force and the staged changes, asked of the storage nodes now.
    pub async fn current(&self) -> Result<(Arc<ActiveLayout>, StagedChanges), ApplyError> {
        if !self.membership.round().await {
            let detail = "no storage node is reachable; check `storage_peers` and the network".into();
            return Err(ApplyError::Unreachable { detail });
        }
        Ok((self.cluster().layout(), self.membership.staged()))
    }

    /// Stages changes on top of those that are staged; `edit` gets a stamp above all of them.
    pub async fn stage(
        &self,
        edit: impl FnOnce(&mut StagedChanges, hayloft_common::stamp::Stamp),
    ) -> Result<(Arc<ActiveLayout>, StagedChanges), ApplyError> {
        let (layout, mut staged) = self.current().await?;
        let stamp = self.clock.above(staged.floor());
        edit(&mut staged, stamp);
        self.send_staged(&staged).await?;
        Ok((layout, self.membership.staged()))
    }

    /// Gives the staged changes to all storage nodes; at least one has to keep them.
    async fn send_staged(&self, staged: &StagedChanges) -> Result<(), ApplyError> {
        let message = StageChanges { staged: staged.clone() };
        let nodes = self.membership.peers().into_iter().map(|peer| peer.id).collect();
        let mut kept = false;
        let mut errors = Vec::new();
        for (node, result) in self.ask_all(nodes, &message).await {
            match result {
                Ok(merged) => {
                    kept = true;
                    self.membership.merge_staged(&merged);
                }
                Err(error) => errors.push(format!("{}: {error}", node.short())),
            }
        }
        if kept { Ok(()) } else { Err(ApplyError::Unreachable { detail: errors.join("; ") }) }
    }

    async fn ask_all<M: Message>(
        &self,
        nodes: Vec<NodeId>,
        message: &M,
    ) -> Vec<(NodeId, Result<M::Reply, RpcError>)> {
        let calls = nodes.into_iter().map(|node| async move {
            let answer = self.cluster().call(node, message, Body::empty(), DEADLINE).await;
            (node, answer.map(|(reply, _)| reply))
        });
        futures::future::join_all(calls).await
    }

    /// Computes what applying would do, without doing it.
    pub fn plan(layout: &ActiveLayout, staged: &StagedChanges, bits: u8) -> Result<Plan, ApplyError> {
        if staged.is_empty() {
            return Err(ApplyError::NothingStaged);
        }
        let current = &layout.current;
        let roles: BTreeMap<NodeId, Role> = staged.apply_to(current);
        let parameters = staged.parameters_for(current);
        let previous = (!layout.is_empty()).then_some(current);
        let (layout, explanation) = compute(previous, &roles, &parameters, bits)?;
        Ok(Plan { layout, explanation })
    }

    /// Applies the staged changes as `version`, which must be the next one.
    pub async fn apply(&self, version: u64) -> Result<Applied, ApplyError> {
        let (before, staged) = self.current().await?;
        let next = before.current.version + 1;
        if version != next {
            return Err(ApplyError::WrongVersion { asked: version, next });
        }
        let Plan { layout, explanation } = Self::plan(&before, &staged, before.current.bits)?;
        let known: BTreeSet<NodeId> = self.membership.peers().into_iter().map(|peer| peer.id).collect();
        if let Some(node) = layout.nodes.iter().find(|node| !known.contains(node)) {
            return Err(ApplyError::UnknownNode { node: *node });
        }
        self.refuse_to_move_data(&before, &layout).await?;
        let wanted = before.introduce(layout)?;
        let agreed = self.agree(&before, wanted).await?;
        self.teach(&before, &agreed).await;
        let mut rest = staged.clone();
        rest.clear(self.clock.above(staged.floor()));
        self.send_staged(&rest).await?;
        Ok(Applied { layout: agreed, explanation })
    }

    async fn refuse_to_move_data(&self, before: &ActiveLayout, next: &Layout) -> Result<(), ApplyError> {
        if before.is_empty() {
            return Ok(());
        }
        let mut used = BTreeSet::new();
        for (node, result) in self.ask_all(before.storage_nodes(), &ReadInventory {}).await {
            match result {
                Ok(inventory) => used.extend(inventory.partitions),
                Err(error) => {
                    let detail =
                        format!("node {} must say which partitions hold data: {error}", node.short());
                    return Err(ApplyError::Unreachable { detail });
                }
            }
        }
        let set = |layout: &Layout, partition| {
            layout.nodes_of(partition).map(BTreeSet::from_iter).unwrap_or_default()
        };
        let moved = used.iter().filter(|p| set(&before.current, **p) != set(next, **p)).count();
        if moved > 0 { Err(ApplyError::WouldMoveData { partitions: moved }) } else { Ok(()) }
    }

    /// Runs the proposer until the layout is decided.
    async fn agree(&self, before: &ActiveLayout, wanted: ActiveLayout) -> Result<ActiveLayout, ApplyError> {
        let mut proposer = Proposer::new(before.clone(), wanted, self.env.random_u64())?;
        for round in 0..MAX_ROUNDS {
            if round > 0 {
                let pause = self.env.random_u64() % (100 << round.min(5));
                tokio::time::sleep(Duration::from_millis(pause)).await;
                proposer.restart(self.env.random_u64());
            }
            match self.one_round(&mut proposer).await {
                Step::Done { layout, won: true } => return Ok(layout),
                Step::Done { layout, won: false } => {
                    self.teach(before, &layout).await;
                    return Err(ApplyError::Conflict { version: layout.current.version });
                }
                Step::Unreachable { missing } => {
                    let nodes: Vec<String> = missing.iter().map(NodeId::short).collect();
                    let detail = format!("nodes {} have to agree and do not answer", nodes.join(", "));
                    return Err(ApplyError::Unreachable { detail });
                }
                Step::Invalid { node, why } => {
                    return Err(ApplyError::BadRequest(format!(
                        "node {} refuses the layout: {why}",
                        node.short()
                    )));
                }
                Step::Restart | Step::Wait | Step::Accept | Step::Teach(_) => {}
            }
        }
        Err(ApplyError::Conflict { version: before.current.version })
    }

    /// Both phases once. Answers with what ended the round.
    async fn one_round(&self, proposer: &mut Proposer) -> Step {
        let (epoch, ballot) = (proposer.epoch(), proposer.ballot());
        let prepare = PrepareLayout { epoch, ballot };
        let mut step = Step::Wait;
        for (node, result) in self.ask_taught(proposer, &prepare).await {
            let next = match result {
                Ok(reply) => proposer.on_prepare(node, ballot, reply),
                Err(error) => {
                    tracing::warn!(node = %node.short(), %error, "no answer on a layout proposal");
                    proposer.fail(node)
                }
            };
            if next != Step::Wait && step == Step::Wait {
                step = next;
            }
        }
        if step != Step::Accept {
            return step;
        }
        let accept = AcceptLayout { ballot, layout: proposer.value().clone() };
        let mut step = Step::Wait;
        for (node, result) in self.ask_taught(proposer, &accept).await {
            let next = match result {
                Ok(reply) => proposer.on_accept(node, ballot, reply),
                Err(_) => proposer.fail(node),
            };
            if next != Step::Wait && step == Step::Wait {
                step = next;
            }
        }
        step
    }

    /// Asks the acceptors, after telling each the layout that the proposal follows: one that missed it could not
    /// take part.
    async fn ask_taught<M: Message>(
        &self,
        proposer: &Proposer,
        message: &M,
    ) -> Vec<(NodeId, Result<M::Reply, RpcError>)> {
        let nodes = proposer.nodes().to_vec();
        if proposer.committed().epoch > 0 {
            let learn = LearnLayout { layout: proposer.committed().clone() };
            // A node that can't be told answers `Behind` or not at all, which the proposer counts.
            let _ = self.ask_all(nodes.clone(), &learn).await;
        }
        self.ask_all(nodes, message).await
    }

    /// Tells everybody; gossip reaches whoever is missed.
    async fn teach(&self, before: &ActiveLayout, agreed: &ActiveLayout) {
        let nodes: BTreeSet<NodeId> = agreed
            .storage_nodes()
            .into_iter()
            .chain(before.storage_nodes())
            .chain(self.membership.peers().into_iter().map(|peer| peer.id))
            .collect();
        let learn = LearnLayout { layout: agreed.clone() };
        for (node, result) in self.ask_all(nodes.into_iter().collect(), &learn).await {
            if let Err(error) = result {
                tracing::warn!(node = %node.short(), %error, "not told of the new layout; gossip will");
            }
        }
        self.cluster().learn(agreed.clone()).await;
    }
}
