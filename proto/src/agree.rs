//! Agreeing on the next epoch of the layout: drives [`Proposer`] over the network, and tells everybody.
//!
//! Used by gateways (an operator applies, queues or skips) and by storage nodes (a phase ends). Whoever stops in
//! the middle leaves nothing to clean up: what may have been decided is found, and carried on, by whoever
//! proposes next. A silent node is waited for only if nothing can be decided without it.

use crate::body::Body;
use crate::cluster::Cluster;
use crate::error::RpcError;
use crate::membership::Membership;
use crate::message::Message;
use crate::message::membership::{AcceptLayout, LearnLayout, PrepareLayout};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{AcceptReply, ActiveLayout, InvalidLayout, PrepareReply, Proposer, Step};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// For one call.
const DEADLINE: Duration = Duration::from_secs(10);
/// Rounds against other proposers before giving up.
const MAX_ROUNDS: usize = 10;
/// Changes of others that [`Agreement::change`] builds on before giving up.
const MAX_REBASES: usize = 10;
/// How long nodes are waited for that have to be told what was decided; the rest hears of it later.
const TEACH_PATIENCE: Duration = Duration::from_secs(2);

/// Why a layout was not agreed on.
#[derive(Debug, thiserror::Error)]
pub enum AgreeError {
    #[error(transparent)]
    Invalid(#[from] InvalidLayout),
    /// The epoch was given to something else, which is adopted here by now.
    #[error(
        "someone else changed the layout at the same time (version {} is in force); look at it again",
        layout.current.version
    )]
    Conflict { layout: Box<ActiveLayout> },
    /// It may still come into force: see [`Step::Unreachable`].
    #[error("nodes {} have to agree and do not answer", names(missing))]
    Unreachable { missing: Vec<NodeId> },
    #[error("node {} refuses the layout: {why}", node.short())]
    Refused { node: NodeId, why: String },
    #[error("too many propose a layout at the same time; try again")]
    Contended,
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::short).collect::<Vec<_>>().join(", ")
}

/// See the module's head.
#[derive(Clone)]
pub struct Agreement {
    membership: Arc<Membership>,
}

type Call<R> = BoxFuture<'static, (NodeId, Result<R, RpcError>)>;

impl Agreement {
    pub fn new(membership: Arc<Membership>) -> Self {
        Self { membership }
    }

    fn cluster(&self) -> &Arc<Cluster> {
        self.membership.cluster()
    }

    /// Brings `next` of the layout in force into force; called again on the newer one whenever somebody else's
    /// change came first. An error of `next` ends it.
    pub async fn change<E: From<AgreeError>>(
        &self,
        next: impl Fn(&ActiveLayout) -> Result<ActiveLayout, E>,
    ) -> Result<ActiveLayout, E> {
        for _ in 0..MAX_REBASES {
            let before = self.cluster().layout();
            match self.agree(&before, next(&before)?).await {
                Err(AgreeError::Conflict { layout }) if self.cluster().layout().epoch >= layout.epoch => {}
                done => return done.map_err(E::from),
            }
        }
        Err(AgreeError::Contended.into())
    }

    /// Brings `wanted` into force as the epoch after `before`, and tells everybody. Returns what is in force then:
    /// `wanted`, or something later that includes it.
    pub async fn agree(
        &self,
        before: &ActiveLayout,
        wanted: ActiveLayout,
    ) -> Result<ActiveLayout, AgreeError> {
        let env = self.cluster().env().clone();
        let mut proposer = Proposer::new(before.clone(), wanted, env.random_u64())?;
        for round in 0..MAX_ROUNDS {
            if round > 0 {
                let pause = env.random_u64() % (100 << round.min(5));
                tokio::time::sleep(Duration::from_millis(pause)).await;
                proposer.restart(env.random_u64());
            }
            match self.one_round(&mut proposer).await {
                Step::Done { layout, won } => {
                    self.teach(before, &layout).await;
                    if won {
                        return Ok(layout);
                    }
                    return Err(AgreeError::Conflict { layout: Box::new(layout) });
                }
                Step::Unreachable { missing } => return Err(AgreeError::Unreachable { missing }),
                Step::Invalid { node, why } => return Err(AgreeError::Refused { node, why }),
                Step::Restart | Step::Wait | Step::Accept | Step::Teach(_) => {}
            }
        }
        Err(AgreeError::Contended)
    }

    /// Both phases once. Answers with what ended the round.
    async fn one_round(&self, proposer: &mut Proposer) -> Step {
        let ballot = proposer.ballot();
        let prepare = PrepareLayout { epoch: proposer.epoch(), ballot };
        let is_behind = |reply: &PrepareReply| matches!(reply, PrepareReply::Behind { .. });
        let mut calls = self.ask(proposer, prepare, is_behind);
        let step = loop {
            let Some((node, result)) = calls.next().await else { return Step::Wait };
            let step = match result {
                Ok(reply) => proposer.on_prepare(node, ballot, reply),
                Err(error) => {
                    tracing::debug!(node = %node.short(), %error, "no answer on a layout proposal");
                    proposer.fail(node)
                }
            };
            match step {
                // It was told all we know and is behind still: as good as silent.
                Step::Teach(_) => match proposer.fail(node) {
                    Step::Wait => {}
                    step => break step,
                },
                Step::Wait => {}
                step => break step,
            }
        };
        if step != Step::Accept {
            return step;
        }
        let accept = AcceptLayout { ballot, layout: proposer.value().clone() };
        let mut calls = self.ask(proposer, accept, |reply| matches!(reply, AcceptReply::Behind { .. }));
        while let Some((node, result)) = calls.next().await {
            let mut step = match result {
                Ok(reply) => proposer.on_accept(node, ballot, reply),
                Err(_) => proposer.fail(node),
            };
            if matches!(step, Step::Teach(_)) {
                step = proposer.fail(node);
            }
            if step != Step::Wait {
                return step;
            }
        }
        Step::Wait
    }

    /// Asks all acceptors. One that has missed the layout which the proposal follows is told, and asked again.
    fn ask<M: Message + Clone>(
        &self,
        proposer: &Proposer,
        message: M,
        is_behind: impl Fn(&M::Reply) -> bool + Copy + Send + 'static,
    ) -> FuturesUnordered<Call<M::Reply>> {
        let call = |node: NodeId| -> Call<M::Reply> {
            let (cluster, message) = (self.cluster().clone(), message.clone());
            let learn = LearnLayout { layout: proposer.committed().clone() };
            Box::pin(async move {
                let first = call(&cluster, node, &message).await;
                if !first.as_ref().is_ok_and(is_behind) {
                    return (node, first);
                }
                if let Err(error) = call(&cluster, node, &learn).await {
                    return (node, Err(error));
                }
                (node, call(&cluster, node, &message).await)
            })
        };
        proposer.nodes().iter().copied().map(call).collect()
    }

    /// Tells everybody what was decided. Whoever does not answer soon is told in the background, or by gossip.
    pub async fn teach(&self, before: &ActiveLayout, agreed: &ActiveLayout) {
        self.cluster().learn(agreed.clone()).await;
        let peers = self.membership.peers().into_iter().map(|peer| peer.id);
        let nodes: BTreeSet<NodeId> =
            agreed.storage_nodes().into_iter().chain(before.storage_nodes()).chain(peers).collect();
        let learn = Arc::new(LearnLayout { layout: agreed.clone() });
        let tell = |node: NodeId| {
            let (cluster, learn) = (self.cluster().clone(), learn.clone());
            async move { (node, call(&cluster, node, &*learn).await) }
        };
        let mut calls: FuturesUnordered<_> = nodes.into_iter().map(tell).collect();
        let all = async {
            while let Some((node, result)) = calls.next().await {
                if let Err(error) = result {
                    tracing::info!(node = %node.short(), %error, "not told of the new layout; gossip will");
                }
            }
        };
        if tokio::time::timeout(TEACH_PATIENCE, all).await.is_err() {
            let rest = async move { while calls.next().await.is_some() {} };
            self.cluster().env().spawn("layout news", rest);
        }
    }
}

async fn call<M: Message>(cluster: &Cluster, node: NodeId, message: &M) -> Result<M::Reply, RpcError> {
    cluster.call(node, message, Body::empty(), DEADLINE).await.map(|(reply, _)| reply)
}
