//! How one layout follows another without two operators splitting the cluster: a single-decree Paxos
//! (Lamport, "Paxos Made Simple", 2001) per epoch, as the pure state of one storage node.
//!
//! Guarantees, as long as the caller makes the register durable before it answers and never loses it:
//! at most one layout is committed for an epoch (each epoch's acceptors follow from the one before, see
//! [`super::acceptors`]). The first epoch has no acceptors to agree on, so there it holds only among
//! layouts that share a node; [`LayoutRegister::learn`] reports two that do not as a conflict.

use super::active::ActiveLayout;
use super::error::InvalidLayout;
use crate::codec::Format;
use serde::{Deserialize, Serialize};

/// The place of an attempt in the order of attempts. No two attempts share one: `proposer` is random per
/// attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Ballot {
    pub round: u64,
    pub proposer: u64,
}

impl Ballot {
    /// Below every attempt.
    pub const ZERO: Self = Self { round: 0, proposer: 0 };

    /// A ballot above this one. `proposer` must be random.
    pub fn next(self, proposer: u64) -> Self {
        Self { round: self.round.saturating_add(1), proposer }
    }
}

/// What one storage node knows and has promised about the layout. Durable before any answer is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRegister {
    committed: ActiveLayout,
    /// For the epoch after the committed one: no ballot below is answered any more.
    promised: Ballot,
    /// For the epoch after the committed one: what was accepted last.
    accepted: Option<(Ballot, ActiveLayout)>,
}

/// The answer to *prepare*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrepareReply {
    /// No lower ballot will be accepted; this was accepted before. Asked twice, it is promised twice.
    Promise { accepted: Option<(Ballot, ActiveLayout)> },
    /// A higher ballot was promised already: try again above it.
    Outbid { promised: Ballot },
    /// The epoch is over, this one is in force.
    Decided(ActiveLayout),
    /// The node has not learned the epochs before; it knows only up to this one. Tell it and ask again.
    Behind { epoch: u64 },
}

/// The answer to *accept*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "few and short-lived: a box would only be in the way")]
pub enum AcceptReply {
    /// Accepted; a quorum of these commits.
    Accepted,
    /// A higher ballot was promised: try again above it.
    Outbid { promised: Ballot },
    /// The epoch is over, this one is in force.
    Decided(ActiveLayout),
    /// As for *prepare*.
    Behind { epoch: u64 },
    /// The layout cannot follow the committed one.
    Invalid { why: String },
}

/// Why a committed layout that was heard of cannot be adopted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LearnError {
    #[error(
        "two different layouts were committed for epoch {epoch} (ours {ours}, theirs {theirs}): two clusters \
         were set up separately with one rpc_secret; give one of them a secret of its own, or wipe its nodes"
    )]
    Conflict { epoch: u64, ours: crate::hash::Hash, theirs: crate::hash::Hash },
    #[error(
        "epoch {theirs} comes with layout version {version}, below ours ({ours_version} at epoch {ours})"
    )]
    Regress { ours: u64, ours_version: u64, theirs: u64, version: u64 },
    #[error("it splits the data in 2^{theirs} partitions, this cluster in 2^{ours}: not the same cluster")]
    Partitions { ours: u8, theirs: u8 },
}

impl LayoutRegister {
    /// A register in which `committed` is in force: [`ActiveLayout::empty`] on a new node.
    pub fn new(committed: ActiveLayout) -> Self {
        Self { committed, promised: Ballot::ZERO, accepted: None }
    }

    /// The layout in force, as far as this node knows.
    pub fn committed(&self) -> &ActiveLayout {
        &self.committed
    }

    /// The highest ballot promised for the epoch after the committed one.
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// What was accepted for the epoch after the committed one; it may or may not get committed.
    pub fn accepted(&self) -> Option<&(Ballot, ActiveLayout)> {
        self.accepted.as_ref()
    }

    /// First phase for `epoch`: promises to accept nothing below `ballot`, and tells what was accepted.
    /// The register must be durable before the answer is sent.
    pub fn prepare(&mut self, epoch: u64, ballot: Ballot) -> PrepareReply {
        if epoch <= self.committed.epoch {
            return PrepareReply::Decided(self.committed.clone());
        }
        if self.committed.epoch.checked_add(1) != Some(epoch) {
            return PrepareReply::Behind { epoch: self.committed.epoch };
        }
        if ballot < self.promised {
            return PrepareReply::Outbid { promised: self.promised };
        }
        self.promised = ballot;
        PrepareReply::Promise { accepted: self.accepted.clone() }
    }

    /// Second phase: accepts `layout` for its epoch, unless a higher ballot was promised.
    /// The register must be durable before the answer is sent.
    pub fn accept(&mut self, ballot: Ballot, layout: &ActiveLayout) -> AcceptReply {
        if layout.epoch <= self.committed.epoch {
            return AcceptReply::Decided(self.committed.clone());
        }
        if self.committed.epoch.checked_add(1) != Some(layout.epoch) {
            return AcceptReply::Behind { epoch: self.committed.epoch };
        }
        if ballot < self.promised || ballot == Ballot::ZERO {
            return AcceptReply::Outbid { promised: self.promised };
        }
        if let Err(InvalidLayout(why)) = layout.check_follows(&self.committed) {
            return AcceptReply::Invalid { why };
        }
        self.promised = ballot;
        self.accepted = Some((ballot, layout.clone()));
        AcceptReply::Accepted
    }

    /// Takes in a layout that was committed, as a peer or a proposer says. True if it is new here; the
    /// register is then to be made durable.
    pub fn learn(&mut self, layout: &ActiveLayout) -> Result<bool, LearnError> {
        let ours = &self.committed;
        if layout.epoch < ours.epoch || layout == ours {
            return Ok(false);
        }
        // Epoch 0 says only how this program was configured.
        if layout.epoch == 0 {
            return Ok(false);
        }
        if layout.epoch == ours.epoch {
            let (ours, theirs) = (ours.digest(), layout.digest());
            return Err(LearnError::Conflict { epoch: layout.epoch, ours, theirs });
        }
        if layout.current.version < ours.current.version {
            return Err(LearnError::Regress {
                ours: ours.epoch,
                ours_version: ours.current.version,
                theirs: layout.epoch,
                version: layout.current.version,
            });
        }
        if !ours.is_empty() && layout.current.bits != ours.current.bits {
            return Err(LearnError::Partitions { ours: ours.current.bits, theirs: layout.current.bits });
        }
        *self = Self::new(layout.clone());
        Ok(true)
    }
}

impl Format for LayoutRegister {
    const NAME: &'static str = "layout register";
}
