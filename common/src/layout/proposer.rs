//! The proposing side of the layout's Paxos: what to send next, given the answers so far. Pure; the
//! caller sends, waits, draws random numbers and backs off.
//!
//! ```text
//! prepare to all acceptors → quorum of promises → accept to all → quorum of accepts → committed: tell all
//! ```
//! A value that some acceptor had accepted already is carried on instead of the own one: then the own
//! layout is in conflict with it ([`Step::Done`] says so), and is to be computed again.
//!
//! The acceptors of an epoch are the storage nodes of the epoch before, which committed layouts name in
//! the same way to everyone; a majority decides. Before the first layout there are none: there all nodes
//! of the proposed layout must agree, and whoever meets another proposal on one of its nodes goes through
//! both phases with *that* proposal's nodes. So two first layouts that share a node are never both
//! committed.

use super::active::ActiveLayout;
use super::error::InvalidLayout;
use super::quorum::{QuorumState, Tracker};
use super::register::{AcceptReply, Ballot, PrepareReply};
use crate::id::NodeId;

/// Who decides an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptors {
    pub nodes: Vec<NodeId>,
    /// How many of them must agree.
    pub quorum: usize,
}

/// Who decides the epoch after `committed`, when `proposed` is proposed for it.
pub fn acceptors(committed: &ActiveLayout, proposed: &ActiveLayout) -> Acceptors {
    if committed.is_empty() {
        let nodes = proposed.storage_nodes();
        let quorum = nodes.len();
        return Acceptors { nodes, quorum };
    }
    let nodes = committed.storage_nodes();
    let quorum = nodes.len() / 2 + 1;
    Acceptors { nodes, quorum }
}

/// What the proposer's driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few and short-lived: a box would only be in the way")]
pub enum Step {
    /// Wait for more answers; a node that does not answer is reported with [`Proposer::fail`].
    Wait,
    /// Send *learn* with [`Proposer::committed`] to this node, then repeat the request to it.
    Teach(NodeId),
    /// Send *accept* with [`Proposer::ballot`] and [`Proposer::value`] to all [`Proposer::nodes`].
    Accept,
    /// Wait a random while, call [`Proposer::restart`], and send *prepare* to all [`Proposer::nodes`].
    Restart,
    /// This layout is committed: send *learn* with it to every node. `won` tells whether it is the
    /// layout that was wanted; if not, someone else changed the layout at the same time.
    Done { layout: ActiveLayout, won: bool },
    /// Too few acceptors answer; these are missing. Nothing is known to have changed, but the wanted
    /// layout may still come into force, if another proposer finds it accepted somewhere.
    Unreachable { missing: Vec<NodeId> },
    /// An acceptor finds that the layout breaks a rule.
    Invalid { node: NodeId, why: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Preparing,
    Accepting,
    Over,
}

/// One attempt (with its restarts) to bring a layout into force.
#[derive(Clone, Debug)]
pub struct Proposer {
    committed: ActiveLayout,
    wanted: ActiveLayout,
    /// What this round is about: the wanted layout, or the one found accepted.
    value: ActiveLayout,
    ballot: Ballot,
    /// The highest ballot that stood against us.
    outbid: Ballot,
    /// The highest accepted value that the promises of this round report.
    found: Option<(Ballot, ActiveLayout)>,
    acceptors: Acceptors,
    tracker: Tracker,
    stage: Stage,
}

fn tracker(acceptors: &Acceptors) -> Tracker {
    Tracker::new(std::slice::from_ref(&acceptors.nodes), |_| acceptors.quorum)
}

impl Proposer {
    /// Proposes `wanted` for the epoch after `committed`. `random` must differ in every attempt of every
    /// proposer. *Prepare* is to be sent to all [`Proposer::nodes`] first.
    pub fn new(committed: ActiveLayout, wanted: ActiveLayout, random: u64) -> Result<Self, InvalidLayout> {
        wanted.check_follows(&committed)?;
        let acceptors = acceptors(&committed, &wanted);
        Ok(Self {
            ballot: Ballot::ZERO.next(random),
            outbid: Ballot::ZERO,
            found: None,
            tracker: tracker(&acceptors),
            acceptors,
            value: wanted.clone(),
            committed,
            wanted,
            stage: Stage::Preparing,
        })
    }

    /// The layout that the proposal follows.
    pub fn committed(&self) -> &ActiveLayout {
        &self.committed
    }

    /// The epoch to be decided.
    pub fn epoch(&self) -> u64 {
        self.wanted.epoch
    }

    /// The ballot of this round.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// What *accept* carries in this round.
    pub fn value(&self) -> &ActiveLayout {
        &self.value
    }

    /// Whom to ask in this round.
    pub fn nodes(&self) -> &[NodeId] {
        &self.acceptors.nodes
    }

    /// Starts the next round, above everything heard of. `random` as in [`Proposer::new`].
    pub fn restart(&mut self, random: u64) {
        self.ballot = self.ballot.max(self.outbid).next(random);
        self.found = None;
        if !self.committed.is_empty() {
            self.value = self.wanted.clone();
        }
        self.acceptors = acceptors(&self.committed, &self.value);
        self.stage = Stage::Preparing;
        self.reset_tracker();
    }

    fn reset_tracker(&mut self) {
        self.tracker = tracker(&self.acceptors);
    }

    /// Takes the answer of `node` to the *prepare* that carried `ballot`.
    pub fn on_prepare(&mut self, node: NodeId, ballot: Ballot, reply: PrepareReply) -> Step {
        if let PrepareReply::Decided(layout) = reply {
            return self.decided(layout);
        }
        if ballot != self.ballot || self.stage != Stage::Preparing {
            return Step::Wait;
        }
        match reply {
            PrepareReply::Decided(layout) => self.decided(layout),
            PrepareReply::Behind { .. } => Step::Teach(node),
            PrepareReply::Outbid { promised } => self.outbid_by(node, promised),
            PrepareReply::Promise { accepted } => {
                if self.tracker.ok(node)
                    && let Some(accepted) = accepted
                    && self.found.as_ref().is_none_or(|(highest, _)| *highest < accepted.0)
                {
                    self.found = Some(accepted);
                }
                self.promised()
            }
        }
    }

    /// Goes on to the second phase once enough have promised.
    fn promised(&mut self) -> Step {
        if self.tracker.state() != QuorumState::Reached {
            return self.waiting();
        }
        if let Some((_, found)) = self.found.take()
            && found != self.value
        {
            self.value = found;
            if self.committed.is_empty() {
                // The first layout is decided by its own nodes, which this round did not all ask.
                self.stage = Stage::Over;
                return Step::Restart;
            }
        }
        self.stage = Stage::Accepting;
        self.reset_tracker();
        Step::Accept
    }

    /// Takes the answer of `node` to the *accept* that carried `ballot`.
    pub fn on_accept(&mut self, node: NodeId, ballot: Ballot, reply: AcceptReply) -> Step {
        if let AcceptReply::Decided(layout) = reply {
            return self.decided(layout);
        }
        if ballot != self.ballot || self.stage != Stage::Accepting {
            return Step::Wait;
        }
        match reply {
            AcceptReply::Decided(layout) => self.decided(layout),
            AcceptReply::Behind { .. } => Step::Teach(node),
            AcceptReply::Outbid { promised } => self.outbid_by(node, promised),
            AcceptReply::Invalid { why } => {
                self.stage = Stage::Over;
                Step::Invalid { node, why }
            }
            AcceptReply::Accepted => {
                self.tracker.ok(node);
                if self.tracker.state() == QuorumState::Reached {
                    return self.decided(self.value.clone());
                }
                self.waiting()
            }
        }
    }

    /// Notes that `node` did not answer the request of this round.
    pub fn fail(&mut self, node: NodeId) -> Step {
        if self.stage == Stage::Over {
            return Step::Wait;
        }
        self.tracker.fail(node);
        self.waiting()
    }

    fn outbid_by(&mut self, node: NodeId, promised: Ballot) -> Step {
        self.outbid = self.outbid.max(promised);
        self.fail(node)
    }

    fn waiting(&mut self) -> Step {
        if self.tracker.state() != QuorumState::Impossible {
            return Step::Wait;
        }
        self.stage = Stage::Over;
        if self.outbid > self.ballot {
            return Step::Restart;
        }
        Step::Unreachable { missing: self.tracker.failed().collect() }
    }

    /// `layout` is committed, for our epoch or a later one.
    fn decided(&mut self, layout: ActiveLayout) -> Step {
        if layout.epoch < self.wanted.epoch {
            return Step::Wait;
        }
        self.stage = Stage::Over;
        let won = layout.includes(&self.wanted);
        Step::Done { layout, won }
    }
}
