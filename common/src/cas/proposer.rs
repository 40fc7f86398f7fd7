//! The proposing side: what to send next, given the answers so far. Pure; the caller sends, waits, draws random numbers
//! and backs off.
//!
//! One [`Proposer`] is one operation with all its tries. A try that was refused is over: the next one has a higher ballot.
//! Before the condition is judged again it is found out what became of the earlier ones ([`Lineage::fate`]); an operation
//! that took effect is never reported as failed, nor done twice. What cannot be found out is said to be unknown.
//!
//! It relies on a call reaching a node at most once: who has refused a row will not take it later.

use super::acceptor::{AcceptReply, Prepared, Standing};
use super::lineage::{Fate, Lineage};
use crate::id::NodeId;
use crate::layout::{ConsistencyMode, QuorumState, Tracker, write_quorum};
use crate::stamp::Stamp;

/// A row as the replicas hold it.
pub trait Stamped {
    fn stamp(&self) -> Stamp;
    /// Becomes the merge of both.
    fn absorb(&mut self, other: Self);
}

/// What the condition says of the merged row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Holds,
    Fails,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The row was written, by the try with this stamp. Something newer may be there by now.
    Written(Stamp),
    /// The condition failed on [`Proposer::row`]; nothing was written, nor will be.
    Failed,
    /// It may have been written, or not.
    Unknown,
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for more answers; a node that does not answer is reported with [`Proposer::fail`].
    Wait,
    /// Judge the condition on [`Proposer::row`], and say so with [`Proposer::judged`]. There is time: it may wait until the
    /// new row is ready.
    Judge,
    /// Send *accept* ([`Proposer::accept`]) to all nodes.
    Accept(Accept),
    /// [`Proposer::start`] again above [`Proposer::above`], at once.
    Again,
    /// Wait a random while, then [`Proposer::start`] again above [`Proposer::above`].
    Restart,
    /// Too few nodes answer.
    NoQuorum,
    /// It is over.
    Over(End),
}

/// Which row *accept* is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accept {
    /// The new one, stamped with the ballot.
    New,
    /// [`Proposer::row`], stamped with the ballot: the condition failed on it, so it has to stay.
    Same,
    /// As `Same`: the earlier try with this stamp took effect. What belongs to its transaction goes along.
    Earlier(Stamp),
}

/// A node's answer to *prepare*.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer<V> {
    pub reply: Prepared,
    pub row: Option<V>,
    /// Without a row: tombstones up to this stamp may have been collected.
    pub floor: Stamp,
    pub lineage: Lineage,
}

/// Where data is written: the sets of nodes that each must give a write quorum.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sets {
    pub sets: Vec<Vec<NodeId>>,
    /// The layout's version: while it is the same, or one more, all sets that were in force are known.
    pub version: u64,
}

impl Sets {
    /// Any two quorums of a set share a node, whatever is configured for plain writes.
    fn tracker(&self) -> Tracker {
        Tracker::new(&self.sets, |size| write_quorum(ConsistencyMode::Consistent, size))
    }
}

/// A row that was sent to be written and not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Try {
    stamp: Stamp,
    sets: Sets,
    /// Nodes that did not say that they refused it.
    maybe: Vec<NodeId>,
}

impl Try {
    /// A row stamped `stamp` is sent to all nodes of `sets`.
    pub fn new(stamp: Stamp, sets: Sets) -> Self {
        let maybe = Tracker::new(&sets.sets, |_| 1).nodes().collect();
        Self { stamp, sets, maybe }
    }

    /// A node refused it, and was not sent it in any other way.
    pub fn refused(&mut self, node: NodeId) {
        self.maybe.retain(|maybe| *maybe != node);
    }

    /// Whether every node refused it.
    pub fn is_nowhere(&self) -> bool {
        self.maybe.is_empty()
    }

    /// Whether it can have been written on a write quorum, at the sets of then, of `now`, or in between.
    fn may_have_stood(&self, now: &Sets) -> bool {
        let may = |sets: &Sets| {
            let mut tracker = sets.tracker();
            for node in &self.maybe {
                tracker.ok(*node);
            }
            tracker.state() == QuorumState::Reached
        };
        may(&self.sets) || may(now) || now.version > self.sets.version.saturating_add(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Idle,
    Preparing,
    Judging { promised: bool },
    Accepting(Accept),
    Over,
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer<V> {
    tried: Vec<Try>,
    /// Ballots that may be promised and were never used.
    unused: Vec<Stamp>,
    above: Stamp,
    ballot: Stamp,
    /// Whether nodes may decline; once they did without a clear result, they may not.
    may_decline: bool,
    stage: Stage,
    sets: Sets,
    /// Who did what is asked in this stage.
    tracker: Tracker,
    refused: Vec<NodeId>,
    /// What each node holds, and whether it is settled there.
    held: Vec<(NodeId, Standing, bool)>,
    row: Option<V>,
    standing: Standing,
    lineage: Lineage,
}

const NOTHING: Standing = Standing::Absent { floor: Stamp::ZERO };

impl<V: Stamped> Proposer<V> {
    /// An operation. `tried`: as what it was sent before as a plain write, and some node may hold.
    pub fn new(tried: Option<Try>) -> Self {
        let tried: Vec<Try> = tried.into_iter().filter(|tried| !tried.is_nowhere()).collect();
        let sets = Sets { sets: Vec::new(), version: 0 };
        Self {
            unused: Vec::new(),
            above: tried.first().map_or(Stamp::ZERO, |tried| tried.stamp),
            ballot: Stamp::ZERO,
            may_decline: tried.is_empty(),
            stage: Stage::Idle,
            tracker: sets.tracker(),
            sets,
            refused: Vec::new(),
            held: Vec::new(),
            row: None,
            standing: NOTHING,
            lineage: Lineage::default(),
            tried,
        }
    }

    /// Begins a try: *prepare* is to be sent to all nodes of `sets`. `ballot` must be above [`Proposer::above`], and one that
    /// nobody else has.
    pub fn start(&mut self, ballot: Stamp, sets: Sets) {
        debug_assert!(ballot > self.above);
        self.ballot = ballot;
        self.above = ballot;
        self.unused.push(ballot);
        self.tracker = sets.tracker();
        self.sets = sets;
        self.refused.clear();
        self.held.clear();
        (self.row, self.standing, self.lineage) = (None, NOTHING, Lineage::default());
        self.stage = Stage::Preparing;
    }

    /// The ballot of this try, and the stamp of the row that it writes.
    pub fn ballot(&self) -> Stamp {
        self.ballot
    }

    /// The next ballot must be above this.
    pub fn above(&self) -> Stamp {
        self.above
    }

    /// Notes a stamp that the next ballot must exceed.
    pub fn raise(&mut self, above: Stamp) {
        self.above = self.above.max(above);
    }

    /// Whether *prepare* may be declined by nodes whose row fails the condition.
    pub fn may_decline(&self) -> bool {
        self.may_decline
    }

    /// The row as the nodes that answered know it; `None` if there is none.
    pub fn row(&self) -> Option<&V> {
        self.row.as_ref()
    }

    /// What *accept* says the row was judged on, and how that came to be.
    pub fn accept(&self) -> (Standing, &Lineage) {
        (self.standing, &self.lineage)
    }

    /// Whether some replica may hold a row of an earlier try: then a new try must not share with it what replicas do away
    /// with when a row is replaced.
    pub fn was_tried(&self) -> bool {
        !self.tried.is_empty()
    }

    /// Ballots that replicas may have promised and that are of no use: to be released when the operation is over, unless
    /// its last *accept* was taken (then they don't matter).
    pub fn unused(&self) -> &[Stamp] {
        &self.unused
    }

    /// Takes the answer of `node` to the *prepare* that carried `ballot`.
    pub fn on_prepare(&mut self, node: NodeId, ballot: Stamp, answer: Answer<V>) -> Next {
        if ballot != self.ballot || self.stage != Stage::Preparing {
            return Next::Wait;
        }
        let Answer { reply, row, floor, lineage } = answer;
        let (promised, settled) = match reply {
            Prepared::Refused { above } => return self.refused(node, above),
            Prepared::Promised { settled } => (true, settled),
            Prepared::Declined { settled } => (false, settled),
        };
        if self.held.iter().any(|(other, _, _)| *other == node) || !self.tracker.nodes().any(|n| n == node) {
            return Next::Wait;
        }
        let standing = row.as_ref().map_or(Standing::Absent { floor }, |row| Standing::Row(row.stamp()));
        self.held.push((node, standing, settled));
        self.standing = self.standing.merge(standing);
        self.lineage.merge(&lineage);
        match (&mut self.row, row) {
            (Some(ours), Some(theirs)) => ours.absorb(theirs),
            (ours @ None, theirs) => *ours = theirs,
            (Some(_), None) => {}
        }
        if promised {
            self.tracker.ok(node);
        } else {
            self.tracker.fail(node);
        }
        self.prepared()
    }

    /// Whether enough is known to go on.
    fn prepared(&mut self) -> Next {
        match self.tracker.state() {
            QuorumState::Reached => self.promised(),
            QuorumState::Pending if self.settled() == QuorumState::Reached && self.declined() => {
                self.declines()
            }
            QuorumState::Pending => Next::Wait,
            QuorumState::Impossible if self.declined() => match self.settled() {
                QuorumState::Reached => self.declines(),
                QuorumState::Pending => Next::Wait,
                QuorumState::Impossible => {
                    self.may_decline = false;
                    self.stage = Stage::Idle;
                    Next::Again
                }
            },
            QuorumState::Impossible if self.refused.is_empty() => {
                self.stage = Stage::Idle;
                Next::NoQuorum
            }
            QuorumState::Impossible => self.restart(),
        }
    }

    fn declined(&self) -> bool {
        self.held.iter().any(|(node, _, _)| !self.tracker.done().any(|done| done == *node))
    }

    /// A write quorum of each set holds just the merged row, settled.
    fn settled(&self) -> QuorumState {
        let mut tracker = self.tracker.fresh();
        for node in self.tracker.failed() {
            tracker.fail(node);
        }
        for (node, standing, settled) in &self.held {
            let same = match (standing, self.standing) {
                (Standing::Absent { .. }, Standing::Absent { .. }) => true,
                (ours, merged) => *ours == merged,
            };
            if same && *settled {
                tracker.ok(*node);
            } else {
                tracker.fail(*node);
            }
        }
        tracker.state()
    }

    /// The row is settled, and some of those that hold it say that it fails the condition.
    fn declines(&mut self) -> Next {
        self.stage = Stage::Judging { promised: false };
        Next::Judge
    }

    /// A quorum has promised: what became of earlier tries?
    fn promised(&mut self) -> Next {
        let mut unknown = false;
        for tried in &self.tried {
            match self.lineage.fate(tried.stamp, self.standing) {
                Fate::Without => {}
                Fate::Unseen => unknown |= tried.may_have_stood(&self.sets),
                Fate::Unknown => unknown = true,
                Fate::TookEffect => return self.accepting(Accept::Earlier(tried.stamp)),
            }
        }
        if unknown {
            return self.over(End::Unknown);
        }
        self.stage = Stage::Judging { promised: true };
        Next::Judge
    }

    /// The condition was judged on [`Proposer::row`].
    pub fn judged(&mut self, condition: Condition) -> Next {
        let Stage::Judging { promised } = self.stage else { return Next::Wait };
        match condition {
            Condition::Holds if promised => self.accepting(Accept::New),
            Condition::Holds => {
                self.may_decline = false;
                self.stage = Stage::Idle;
                Next::Again
            }
            Condition::Fails if !promised => self.over(End::Failed),
            // While earlier tries stand somewhere, something above them has to be written.
            Condition::Fails if self.tried.is_empty() && self.settled() == QuorumState::Reached => {
                self.over(End::Failed)
            }
            Condition::Fails if self.row.is_some() => self.accepting(Accept::Same),
            // What was there when it was tried is deleted and collected.
            Condition::Fails if self.was_tried() => self.over(End::Unknown),
            // Where there is nothing there is nothing that could be overtaken.
            Condition::Fails => self.over(End::Failed),
        }
    }

    fn accepting(&mut self, what: Accept) -> Next {
        if what == Accept::New {
            self.tried.push(Try::new(self.ballot, self.sets.clone()));
            // What became of it is told by a quorum of promises only.
            self.may_decline = false;
        }
        self.unused.retain(|ballot| *ballot != self.ballot);
        self.tracker = self.tracker.fresh();
        self.refused.clear();
        self.stage = Stage::Accepting(what);
        Next::Accept(what)
    }

    /// Takes the answer of `node` to the *accept* that carried `ballot`.
    pub fn on_accept(&mut self, node: NodeId, ballot: Stamp, reply: AcceptReply) -> Next {
        let Stage::Accepting(what) = self.stage else { return Next::Wait };
        if ballot != self.ballot {
            return Next::Wait;
        }
        match reply {
            AcceptReply::Refused { above } => self.refused(node, above),
            AcceptReply::Accepted => {
                self.tracker.ok(node);
                if self.tracker.state() != QuorumState::Reached {
                    return Next::Wait;
                }
                self.over(match what {
                    Accept::New => End::Written(self.ballot),
                    Accept::Earlier(stamp) => End::Written(stamp),
                    Accept::Same => End::Failed,
                })
            }
        }
    }

    fn refused(&mut self, node: NodeId, above: Stamp) -> Next {
        self.raise(above);
        if !self.tracker.done().any(|done| done == node) {
            self.refused.push(node);
            if self.stage == Stage::Accepting(Accept::New)
                && let Some(tried) = self.tried.last_mut()
            {
                tried.refused(node);
            }
        }
        self.fail(node)
    }

    /// Notes that `node` did not answer the request of this stage.
    pub fn fail(&mut self, node: NodeId) -> Next {
        match self.stage {
            Stage::Preparing => {
                self.tracker.fail(node);
                self.prepared()
            }
            Stage::Accepting(_) => {
                self.tracker.fail(node);
                if self.tracker.state() != QuorumState::Impossible {
                    return Next::Wait;
                }
                if self.refused.is_empty() {
                    self.stage = Stage::Idle;
                    return Next::NoQuorum;
                }
                self.restart()
            }
            Stage::Idle | Stage::Judging { .. } | Stage::Over => Next::Wait,
        }
    }

    /// Gives this try up: the layout moved on, or something else calls for another one.
    pub fn restart(&mut self) -> Next {
        if self.stage == Stage::Over {
            return Next::Wait;
        }
        self.tried.retain(|tried| !tried.is_nowhere());
        self.stage = Stage::Idle;
        Next::Restart
    }

    fn over(&mut self, end: End) -> Next {
        self.stage = Stage::Over;
        Next::Over(end)
    }
}
