//! What operators want of the layout: stage changes, compute what they give, apply them, skip dead nodes (design §3).
//!
//! The pure parts (the computation, what may follow what) are in `common::layout`, the agreement among the storage
//! nodes in `proto::agree`. A layout that is applied is introduced, or queued behind the change under way; the storage
//! nodes carry it on from there. Guarantee: of several that apply a version, whatever they computed, at most one is
//! told that it was its own. An epoch lost to a storage node that only carries the change on is no conflict: the
//! same is tried again on top of it.

use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, Explanation, InvalidLayout, Layout, LayoutError, Phase, Role, StagedChanges, compute, risk,
};
use hayloft_common::stamp::HybridClock;
use hayloft_proto::agree::{AgreeError, Agreement};
use hayloft_proto::body::Body;
use hayloft_proto::cluster::Cluster;
use hayloft_proto::error::RpcError;
use hayloft_proto::membership::Membership;
use hayloft_proto::message::Message;
use hayloft_proto::message::membership::{ReadStatus, StageChanges};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// For one call of the procedure.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why changes were not staged, a layout not applied, or nodes not skipped.
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
    #[error("node {node} has no known address: connect it to the cluster first")]
    UnknownNode { node: NodeId },
    #[error(
        "someone else changed the layout at the same time: version {version} is the newest now; look at it again"
    )]
    Conflict { version: u64 },
    #[error(transparent)]
    Agree(#[from] AgreeError),
    #[error("not enough storage nodes answered: {detail}")]
    Unreachable { detail: String },
    #[error("no change of the layout is under way: there is nothing to wait for")]
    NothingUnderWay,
    #[error(
        "the change under way is to version {under_way}, not {asked}; look at `hayloft layout history` again"
    )]
    OtherChange { asked: u64, under_way: u64 },
    #[error("every node that the change to version {version} waits for can be reached: none is dead")]
    NobodyDead { version: u64 },
    #[error(
        "without {nodes}, acknowledged writes of {partitions} partition(s) may be lost or missed: too few other copies are known to be complete. Bring a node back, or accept that with --allow-missing-data (`allowMissingData`)"
    )]
    DataAtRisk { partitions: usize, nodes: String },
    #[error("{0}")]
    BadRequest(String),
}

/// What applying the staged changes would give.
pub struct Plan {
    pub layout: Layout,
    pub explanation: Explanation,
}

/// A layout that was applied.
pub struct Applied {
    pub layout: Layout,
    /// The one that it follows.
    pub previous: Layout,
    pub explanation: Explanation,
    /// All of the state right after.
    pub active: ActiveLayout,
}

/// Nodes that a change is no longer waiting for.
pub struct Skipped {
    pub nodes: BTreeSet<NodeId>,
    /// Those that may not know of the change.
    pub not_at_epoch: Vec<NodeId>,
    /// Those that may lack data of the version.
    pub not_synced: Vec<NodeId>,
    /// Partitions of which acknowledged writes may be lost or missed.
    pub partitions_at_risk: usize,
}

/// Manages the layout on behalf of operators.
pub struct LayoutManager {
    env: Env,
    membership: Arc<Membership>,
    agreement: Agreement,
    clock: HybridClock,
}

impl LayoutManager {
    pub fn new(env: Env, membership: Arc<Membership>) -> Self {
        let agreement = Agreement::new(membership.clone());
        Self { clock: HybridClock::new(env.clone()), env, membership, agreement }
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

    /// Computes what applying would do, without doing it: the layout that follows the newest one.
    pub fn plan(layout: &ActiveLayout, staged: &StagedChanges) -> Result<Plan, ApplyError> {
        if staged.is_empty() {
            return Err(ApplyError::NothingStaged);
        }
        let newest = layout.newest();
        let roles: BTreeMap<NodeId, Role> = staged.apply_to(newest);
        let parameters = staged.parameters_for(newest);
        let (layout, explanation) = compute(Some(newest), &roles, &parameters, newest.bits)?;
        Ok(Plan { layout, explanation })
    }

    /// Applies the staged changes as `version`, which must be the one after the newest: introduces the layout, or
    /// queues it if a change is under way.
    pub async fn apply(&self, version: u64) -> Result<Applied, ApplyError> {
        let (before, staged) = self.current().await?;
        let next = before.newest().version.saturating_add(1);
        if version != next {
            return Err(ApplyError::WrongVersion { asked: version, next });
        }
        // What is staged from now on was not seen here, and stays staged.
        let cleared = self.clock.above(staged.floor());
        let Plan { mut layout, explanation } = Self::plan(&before, &staged)?;
        layout.applied_by = self.env.random_u64();
        self.check_nodes(&before, &layout)?;
        let previous = before.newest().clone();
        let agreed = self
            .agreement
            .change(|now| {
                if *now.newest() != previous {
                    return Err(ApplyError::Conflict { version: now.newest().version });
                }
                Ok(now.apply(layout.clone())?)
            })
            .await;
        let active = match agreed {
            Ok(active) => active,
            Err(error) => {
                // It may have been decided and moved on from before this gateway could tell.
                let now = self.cluster().layout();
                let known = now.old.iter().chain([&now.current]).chain(&now.queued);
                if !known.into_iter().any(|known| *known == layout) {
                    return Err(error);
                }
                (*now).clone()
            }
        };
        let mut rest = staged;
        rest.clear(cleared);
        if let Err(error) = self.send_staged(&rest).await {
            tracing::warn!(%error, version, "the layout is applied, but its changes are still staged: revert them");
        }
        Ok(Applied { layout, previous, explanation, active })
    }

    /// A node that gets a role must be known, or nobody could reach it.
    fn check_nodes(&self, before: &ActiveLayout, next: &Layout) -> Result<(), ApplyError> {
        let known: BTreeSet<NodeId> = self.membership.peers().into_iter().map(|peer| peer.id).collect();
        let has_role = |node: &NodeId| !before.is_empty() && before.newest().roles.contains_key(node);
        match next.nodes.iter().find(|node| !known.contains(node) && !has_role(node)) {
            Some(node) => Err(ApplyError::UnknownNode { node: *node }),
            None => Ok(()),
        }
    }

    /// Stops waiting for the nodes that can't be reached, in the change to `version` that is under way. If that may lose acknowledged
    /// writes, it is done only when `allow_missing_data`.
    pub async fn skip_dead(&self, version: u64, allow_missing_data: bool) -> Result<Skipped, ApplyError> {
        let (before, _) = self.current().await?;
        Self::check_change(&before, version)?;
        let asked: Vec<NodeId> =
            before.storage_nodes().into_iter().filter(|node| !before.skipped.contains(node)).collect();
        let answers = self.ask_all(asked, &ReadStatus {}).await;
        let dead: BTreeSet<NodeId> =
            answers.into_iter().filter(|(_, answer)| answer.is_err()).map(|(node, _)| node).collect();
        if dead.is_empty() {
            return Err(ApplyError::NobodyDead { version });
        }
        let acks = self.membership.progress();
        let partitions_at_risk = risk(&before, &acks, &dead);
        if partitions_at_risk > 0 && !allow_missing_data {
            return Err(ApplyError::DataAtRisk { partitions: partitions_at_risk, nodes: names(&dead) });
        }
        let agreed = self
            .agreement
            .change(|now| {
                Self::check_change(now, version)?;
                Ok::<_, ApplyError>(now.skip(&dead)?)
            })
            .await?;
        let behind = |node: &&NodeId| acks.get(node).is_none_or(|progress| progress.epoch < agreed.epoch);
        let unsynced = |node: &&NodeId| acks.get(node).is_none_or(|progress| progress.synced < version);
        Ok(Skipped {
            not_at_epoch: dead.iter().filter(behind).copied().collect(),
            not_synced: dead.iter().filter(unsynced).copied().collect(),
            nodes: dead,
            partitions_at_risk,
        })
    }

    fn check_change(layout: &ActiveLayout, version: u64) -> Result<(), ApplyError> {
        if layout.phase == Phase::Stable {
            return Err(ApplyError::NothingUnderWay);
        }
        if layout.current.version != version {
            return Err(ApplyError::OtherChange { asked: version, under_way: layout.current.version });
        }
        Ok(())
    }
}

/// Short ids in one line.
fn names(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::short).collect::<Vec<_>>().join(", ")
}
