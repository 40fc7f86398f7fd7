//! A handful of replicas and operations as one value: every message, copy, crash and change of layout is an action that a
//! walk or a search chooses. Nothing waits, nothing is random in here.
//!
//! Faults: messages are lost, late, doubled, out of order; replicas crash and restart with what is durable; operations end
//! without an answer; rows are copied between replicas at any time; tombstones are collected once all hold them, replica
//! by replica; layouts change, replica by replica. Deliberate mistakes are switched on by [`Broken`].

use crate::history::{If, Outcome, Seen, Value, is_linearizable};
use hayloft_common::cas::{
    Accept, AcceptReply, Acceptor, Answer, Condition, End, Forget, Lineage, Next, Proposer, Sets, Stamped,
    Standing, Try, ballot,
};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{QuorumState, Tracker};
use hayloft_common::stamp::Stamp;

/// A mistake to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Broken {
    Nothing,
    /// Plain writes ask for nothing but the row, as in the first draft of the design.
    PlainIgnoresPromises,
    /// As before, and accepts do not ask for a newer row either.
    NoNewerRowCheck,
    /// A crash forgets promises.
    PromiseNotDurable,
    /// A condition that fails is reported at once.
    NoWriteBack,
    /// No write-back if a quorum has the row, as a copy or not.
    SettledByCopies,
    /// Who starts over does not ask what became of earlier tries.
    NoLineage,
    /// Plain writes that some replica took and others called outdated are written again above.
    PlainAgain,
    /// Promises are forgotten although the row is below them.
    ForgetAnyway,
    /// A new replica gets rows, but no promises.
    SyncRowsOnly,
    /// While the layout changes, conditional writes ask the set only that is read.
    OneSet,
    /// Promises are released although they were used.
    ReleaseUsed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) stamp: Stamp,
    pub(crate) value: Value,
}

impl Stamped for Row {
    fn stamp(&self) -> Stamp {
        self.stamp
    }

    fn absorb(&mut self, other: Self) {
        if other.stamp > self.stamp {
            *self = other;
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Replica {
    pub(crate) row: Option<Row>,
    /// The row is not a copy.
    direct: bool,
    pub(crate) floor: Stamp,
    pub(crate) acceptor: Acceptor,
    epoch: u8,
    /// Replicas of the old set that this one has pulled from since the change began.
    pulled: Vec<usize>,
}

impl Replica {
    fn standing(&self) -> Standing {
        self.row.map_or(Standing::Absent { floor: self.floor }, |row| Standing::Row(row.stamp))
    }

    fn merge(&mut self, row: Row) {
        if self.row.is_none_or(|ours| ours.stamp < row.stamp) {
            self.row = Some(row);
            self.direct = false;
        }
    }

    fn write(&mut self, row: Row) {
        // What came as a copy stays one.
        if self.row != Some(row) {
            self.row = Some(row);
            self.direct = true;
        }
    }
}

/// What an operation does, and how far its clock is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub(crate) when: If,
    pub(crate) new: Value,
    pub(crate) clock: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Run {
    Waiting,
    /// A plain write: 1 R.
    Plain {
        tried: Try,
        stamp: Stamp,
        tracker: Tracker,
        above: Stamp,
    },
    Cas,
    /// A try is over; the next one comes.
    Paused,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Op {
    plan: Plan,
    run: Run,
    proposer: Proposer<Row>,
    tries: u8,
    epoch: u8,
    invoked: usize,
    returned: usize,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Body {
    Write(Row),
    Prepare {
        ballot: Stamp,
        hint: If,
    },
    Accept {
        ballot: Stamp,
        base: Standing,
        lineage: Lineage,
        row: Row,
    },
    Release(Vec<Stamp>),
    Written(Result<(), Stamp>),
    Promise {
        ballot: Stamp,
        answer: Answer<Row>,
    },
    Accepted {
        ballot: Stamp,
        reply: AcceptReply,
    },
    /// The replica is at another epoch.
    Failed {
        epoch: u8,
        stamp: Stamp,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    op: usize,
    node: usize,
    epoch: u8,
    body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start(usize),
    /// Delivers a message, and takes it off (or leaves a second one on its way).
    Deliver {
        at: usize,
        keep: bool,
    },
    Drop(usize),
    /// The operation takes a node for silent.
    Silent {
        op: usize,
        node: usize,
    },
    Again(usize),
    GiveUp(usize),
    Copy {
        from: usize,
        to: usize,
    },
    Crash(usize),
    /// All hold one tombstone, and nothing is under way.
    BeginCollection,
    Collect(usize),
    Forget(usize),
    /// The next epoch is decided; a replica adopts it; a new one pulls from an old one.
    Advance,
    Adopt(usize),
    Pull {
        from: usize,
        to: usize,
    },
}

/// The sets of the phases: write sets, and the read set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub(crate) old: Vec<usize>,
    pub(crate) new: Vec<usize>,
}

impl Layout {
    fn write_sets(&self, epoch: u8) -> Vec<Vec<usize>> {
        match epoch {
            0 => vec![self.old.clone()],
            1 | 2 => vec![self.old.clone(), self.new.clone()],
            _ => vec![self.new.clone()],
        }
    }

    fn read_set(&self, epoch: u8) -> &[usize] {
        if epoch < 2 { &self.old } else { &self.new }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) broken: Broken,
    pub(crate) replicas: Vec<Replica>,
    ops: Vec<Op>,
    messages: Vec<Message>,
    layout: Layout,
    epoch: u8,
    /// A request's reply comes with it, or not at all: less to search.
    atomic_calls: bool,
    max_tries: u8,
    collecting: Option<Stamp>,
    moment: usize,
    acked: Stamp,
}

fn id(node: usize) -> NodeId {
    NodeId([node as u8; 32])
}

fn distinct(sets: &[Vec<usize>]) -> Vec<usize> {
    let mut nodes = sets.concat();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

fn majority(size: usize) -> usize {
    size / 2 + 1
}

impl World {
    pub(crate) fn new(
        broken: Broken,
        layout: Layout,
        plans: &[Plan],
        atomic_calls: bool,
        max_tries: u8,
    ) -> Self {
        let replicas = layout.old.iter().chain(&layout.new).max().map_or(0, |n| n + 1);
        let op = |plan: &Plan| Op {
            plan: *plan,
            run: Run::Waiting,
            proposer: Proposer::new(None),
            tries: 0,
            epoch: 0,
            invoked: 0,
            returned: 0,
            outcome: Outcome::Unknown,
        };
        Self {
            broken,
            replicas: vec![Replica::default(); replicas],
            ops: plans.iter().map(op).collect(),
            messages: Vec::new(),
            layout,
            epoch: 0,
            atomic_calls,
            max_tries,
            collecting: None,
            moment: 0,
            acked: Stamp::ZERO,
        }
    }

    fn is_active(&self) -> bool {
        self.ops.iter().any(|op| !matches!(op.run, Run::Waiting | Run::Ended)) || !self.messages.is_empty()
    }

    /// Everything that could happen now, in a fixed order.
    pub(crate) fn actions(&self) -> Vec<Action> {
        let mut out = Vec::new();
        for (i, op) in self.ops.iter().enumerate() {
            match op.run {
                Run::Waiting => out.push(Action::Start(i)),
                Run::Paused if op.tries < self.max_tries => out.push(Action::Again(i)),
                _ => {}
            }
        }
        for at in 0..self.messages.len() {
            out.push(Action::Deliver { at, keep: false });
        }
        if self.atomic_calls {
            for at in 0..self.messages.len() {
                out.push(Action::Deliver { at, keep: true });
            }
        }
        out
    }

    /// More of what could happen: too much for a search.
    pub(crate) fn mishaps(&self) -> Vec<Action> {
        let mut out = Vec::new();
        for at in 0..self.messages.len() {
            out.extend([Action::Drop(at), Action::Deliver { at, keep: true }]);
        }
        for (op, state) in self.ops.iter().enumerate() {
            if matches!(state.run, Run::Plain { .. } | Run::Cas) {
                out.extend((0..self.replicas.len()).map(|node| Action::Silent { op, node }));
            }
            if matches!(state.run, Run::Plain { .. } | Run::Cas | Run::Paused) {
                out.push(Action::GiveUp(op));
            }
        }
        let idle = !self.is_active();
        for node in 0..self.replicas.len() {
            out.push(Action::Crash(node));
            out.extend(
                (0..self.replicas.len()).filter(|to| *to != node).map(|to| Action::Copy { from: node, to }),
            );
            if self.collecting.is_some() {
                out.push(Action::Collect(node));
            }
            if idle || self.broken == Broken::ForgetAnyway {
                out.push(Action::Forget(node));
            }
        }
        if idle && self.collecting.is_none() {
            out.push(Action::BeginCollection);
        }
        out
    }

    /// What a change of layout adds.
    pub(crate) fn moves(&self) -> Vec<Action> {
        let mut out = Vec::new();
        if self.may_advance() {
            out.push(Action::Advance);
        }
        for node in 0..self.replicas.len() {
            if self.replicas[node].epoch < self.epoch {
                out.push(Action::Adopt(node));
            }
        }
        for to in self.layout.new.iter().filter(|n| self.replicas[**n].epoch == 1) {
            for from in self.layout.old.iter().filter(|n| self.replicas[**n].epoch == 1) {
                if !self.replicas[*to].pulled.contains(from) {
                    out.push(Action::Pull { from: *from, to: *to });
                }
            }
        }
        out
    }

    fn may_advance(&self) -> bool {
        let complete = |node: &usize| {
            let own = usize::from(self.layout.old.contains(node));
            let pulled = self.replicas[*node].pulled.iter().filter(|from| *from != node).count();
            pulled + own >= majority(self.layout.old.len())
        };
        self.layout.old != self.layout.new
            && self.epoch < 3
            && self.replicas.iter().all(|replica| replica.epoch == self.epoch)
            && (self.epoch != 1 || self.layout.new.iter().all(complete))
    }

    pub(crate) fn apply(&mut self, action: Action) {
        match action {
            Action::Start(op) => {
                self.ops[op].invoked = self.now();
                self.begin(op);
            }
            Action::Again(op) => self.begin(op),
            Action::Deliver { at, keep } if self.atomic_calls => {
                let message = self.messages.remove(at);
                if let Some(reply) = self.serve(&message).filter(|_| !keep) {
                    self.answer(reply);
                }
            }
            Action::Deliver { at, keep } => {
                let message = self.messages[at].clone();
                // What writes a row reaches a node once, or not at all.
                if !keep || matches!(message.body, Body::Write(_) | Body::Accept { .. }) {
                    self.messages.remove(at);
                }
                let is_reply = matches!(
                    message.body,
                    Body::Written(_) | Body::Promise { .. } | Body::Accepted { .. } | Body::Failed { .. }
                );
                if is_reply {
                    self.answer(message);
                } else if let Some(reply) = self.serve(&message) {
                    self.messages.push(reply);
                }
            }
            Action::Drop(at) => drop(self.messages.remove(at)),
            Action::Silent { op, node } => self.silent(op, node),
            Action::GiveUp(op) => self.end(op, Outcome::Unknown),
            Action::Copy { from, to } => {
                if let Some(row) = self.replicas[from].row.filter(|_| self.collecting.is_none()) {
                    self.replicas[to].merge(row);
                }
            }
            Action::Crash(node) => {
                if self.broken == Broken::PromiseNotDurable {
                    self.replicas[node].acceptor = Acceptor::default();
                }
            }
            Action::BeginCollection => self.begin_collection(),
            Action::Collect(node) => self.collect(node),
            Action::Forget(node) => self.forget(node),
            Action::Advance => self.epoch += 1,
            Action::Adopt(node) => self.replicas[node].epoch += 1,
            Action::Pull { from, to } => self.pull(from, to),
        }
    }

    fn now(&mut self) -> usize {
        self.moment += 1;
        self.moment
    }

    fn send(&mut self, op: usize, nodes: impl IntoIterator<Item = usize>, body: &Body) {
        let epoch = self.ops[op].epoch;
        for node in nodes {
            self.messages.push(Message { op, node, epoch, body: body.clone() });
        }
    }

    fn sets(&self, op: usize) -> Vec<Vec<usize>> {
        let epoch = self.ops[op].epoch;
        match self.broken {
            Broken::OneSet if self.ops[op].plan.when != If::Always => {
                vec![self.layout.read_set(epoch).to_vec()]
            }
            _ => self.layout.write_sets(epoch),
        }
    }

    /// A try of an operation: a plain write if it is one and nobody holds an earlier try.
    fn begin(&mut self, i: usize) {
        self.ops[i].epoch = self.epoch;
        self.ops[i].tries += 1;
        let sets = self.sets(i);
        let named = sets.iter().map(|set| set.iter().copied().map(id).collect()).collect();
        let nodes = distinct(&sets);
        let version = if self.epoch == 0 { 1 } else { 2 };
        let sets = Sets { sets: named, version };
        let op = &mut self.ops[i];
        let micros = (op.plan.clock + u64::from(op.tries)).max(op.proposer.above().micros + 1);
        // Writers: even numbers, one for each try of each operation.
        let stamp = Stamp { micros, writer: 2 * (16 * i as u64 + u64::from(op.tries)) };
        if op.plan.when == If::Always && !op.proposer.was_tried() {
            let tracker = Tracker::new(&sets.sets, majority);
            op.run = Run::Plain { tried: Try::new(stamp, sets), stamp, tracker, above: stamp };
            let row = Row { stamp, value: op.plan.new };
            self.send(i, nodes, &Body::Write(row));
        } else {
            let stamp = ballot(stamp);
            op.run = Run::Cas;
            if self.broken == Broken::NoLineage {
                op.proposer = Proposer::new(None);
            }
            op.proposer.start(stamp, sets);
            let hint = if op.proposer.may_decline() { op.plan.when } else { If::Always };
            self.send(i, nodes, &Body::Prepare { ballot: stamp, hint });
        }
    }

    /// A replica handles a request.
    fn serve(&mut self, message: &Message) -> Option<Message> {
        let broken = self.broken;
        let replica = &mut self.replicas[message.node];
        let reply = |body| Some(Message { body, ..message.clone() });
        let standing = replica.standing();
        if message.epoch != replica.epoch {
            let stamp = match &message.body {
                Body::Write(row) => row.stamp,
                Body::Prepare { ballot, .. } | Body::Accept { ballot, .. } => *ballot,
                _ => return None,
            };
            return reply(Body::Failed { epoch: replica.epoch, stamp });
        }
        match message.body.clone() {
            Body::Write(row) => {
                let blocked = match standing {
                    Standing::Row(stamp) => stamp > row.stamp,
                    Standing::Absent { floor } => floor >= row.stamp,
                };
                let ignores = matches!(broken, Broken::PlainIgnoresPromises | Broken::NoNewerRowCheck);
                let admitted = if ignores { Ok(()) } else { replica.acceptor.admits(row.stamp) };
                let done = if blocked { Err(standing.stamp()) } else { admitted };
                if done.is_ok() {
                    replica.write(row);
                }
                reply(Body::Written(done))
            }
            Body::Prepare { ballot, hint } => {
                let fails = !hint.holds(replica.row.and_then(|row| row.value));
                let direct = replica.direct || broken == Broken::SettledByCopies;
                let answer = replica.acceptor.prepare(ballot, standing, direct, fails);
                let lineage = replica.acceptor.lineage().clone();
                let (row, floor) = (replica.row, replica.floor);
                reply(Body::Promise { ballot, answer: Answer { reply: answer, row, floor, lineage } })
            }
            Body::Accept { ballot, base, lineage, row } => {
                let standing = match standing {
                    Standing::Row(stamp) if broken == Broken::NoNewerRowCheck && stamp < ballot => {
                        Standing::Absent { floor: Stamp::ZERO }
                    }
                    standing => standing,
                };
                let answer = replica.acceptor.accept(ballot, base, &lineage, standing);
                if answer == AcceptReply::Accepted {
                    replica.write(row);
                }
                reply(Body::Accepted { ballot, reply: answer })
            }
            Body::Release(ballots) => {
                replica.acceptor.release(&ballots);
                None
            }
            _ => None,
        }
    }

    /// An operation gets a reply.
    fn answer(&mut self, message: Message) {
        let (i, node) = (message.op, message.node);
        if message.epoch != self.ops[i].epoch {
            return;
        }
        let op = &mut self.ops[i];
        let next = match (message.body, &mut op.run) {
            (Body::Written(reply), Run::Plain { tried, stamp, tracker, above }) => {
                match reply {
                    Ok(()) => drop(tracker.ok(id(node))),
                    Err(newer) => {
                        *above = newer.max(*above);
                        tried.refused(id(node));
                        tracker.fail(id(node));
                    }
                }
                match tracker.state() {
                    QuorumState::Reached => {
                        self.acked = self.acked.max(*stamp);
                        self.end(i, Outcome::Done);
                    }
                    QuorumState::Impossible => self.plain_refused(i),
                    QuorumState::Pending => {}
                }
                return;
            }
            (Body::Promise { ballot, answer }, Run::Cas) => op.proposer.on_prepare(id(node), ballot, answer),
            (Body::Accepted { ballot, reply }, Run::Cas) => op.proposer.on_accept(id(node), ballot, reply),
            (Body::Failed { epoch, stamp }, Run::Cas) if stamp == op.proposer.ballot() => {
                if epoch > op.epoch { op.proposer.restart() } else { op.proposer.fail(id(node)) }
            }
            (Body::Failed { .. }, _) => return self.silent(i, node),
            _ => return,
        };
        self.follow(i, next);
    }

    /// A plain write was refused. If no replica holds it, it is simply done again above.
    fn plain_refused(&mut self, i: usize) {
        let op = &mut self.ops[i];
        let Run::Plain { tried, above, stamp, .. } = &op.run else { return };
        if above == stamp {
            // Nobody refused it.
            return self.end(i, Outcome::Unknown);
        }
        op.plan.clock = op.plan.clock.max(above.micros);
        let again = self.broken == Broken::PlainAgain;
        op.proposer = Proposer::new(Some(tried.clone()).filter(|_| !again));
        op.run = Run::Paused;
    }

    fn silent(&mut self, i: usize, node: usize) {
        let op = &mut self.ops[i];
        match &mut op.run {
            Run::Plain { tracker, .. } => {
                tracker.fail(id(node));
                if tracker.state() == QuorumState::Impossible {
                    self.plain_refused(i);
                }
            }
            Run::Cas => {
                let next = op.proposer.fail(id(node));
                self.follow(i, next);
            }
            _ => {}
        }
    }

    /// Does what the proposer says.
    fn follow(&mut self, i: usize, mut next: Next) {
        loop {
            let op = &mut self.ops[i];
            match next {
                Next::Wait => return,
                Next::Judge => {
                    let value = op.proposer.row().and_then(|row| row.value);
                    let holds = op.plan.when.holds(value);
                    next = op.proposer.judged(if holds { Condition::Holds } else { Condition::Fails });
                }
                Next::Accept(Accept::Same) if self.broken == Broken::NoWriteBack => {
                    next = Next::Over(End::Failed);
                }
                Next::Accept(what) => {
                    let stamp = op.proposer.ballot();
                    let old = op.proposer.row().and_then(|row| row.value);
                    let value = if what == Accept::New { op.plan.new } else { old };
                    let (base, lineage) = op.proposer.accept();
                    let row = Row { stamp, value };
                    let body = Body::Accept { ballot: stamp, base, lineage: lineage.clone(), row };
                    let nodes = distinct(&self.sets(i));
                    self.send(i, nodes.clone(), &body);
                    if self.broken == Broken::ReleaseUsed {
                        self.send(i, nodes, &Body::Release(vec![stamp]));
                    }
                    return;
                }
                Next::Again | Next::Restart => {
                    op.run = Run::Paused;
                    return;
                }
                Next::NoQuorum => return self.end(i, Outcome::Unknown),
                Next::Over(end) => {
                    let value = op.proposer.row().and_then(|row| row.value);
                    let outcome = match end {
                        End::Written(_) => Outcome::Done,
                        End::Failed => Outcome::Failed(value),
                        End::Unknown => Outcome::Unknown,
                    };
                    if outcome == Outcome::Done {
                        self.acked = self.acked.max(op.proposer.ballot());
                    }
                    return self.end(i, outcome);
                }
            }
        }
    }

    fn end(&mut self, i: usize, outcome: Outcome) {
        let now = self.now();
        let op = &mut self.ops[i];
        op.run = Run::Ended;
        op.outcome = outcome;
        op.returned = now;
        let unused = op.proposer.unused().to_vec();
        if !unused.is_empty() && !matches!(outcome, Outcome::Done) {
            let nodes = 0..self.replicas.len();
            self.send(i, nodes, &Body::Release(unused));
        }
    }

    fn begin_collection(&mut self) {
        let row = self.replicas[0].row;
        let agreed = self.replicas.iter().all(|r| r.row == row && r.epoch == self.epoch);
        let stable = self.epoch == 0 || self.epoch == 3;
        if let Some(Row { stamp, value: None }) = row.filter(|_| agreed && stable) {
            self.collecting = Some(stamp);
        }
    }

    fn collect(&mut self, node: usize) {
        let Some(stamp) = self.collecting else { return };
        let replica = &mut self.replicas[node];
        if replica.row.is_some_and(|row| row.stamp == stamp) {
            replica.row = None;
            replica.floor = replica.floor.max(stamp);
        }
        if self.replicas.iter().all(|r| r.row.is_none_or(|row| row.stamp != stamp)) {
            self.collecting = None;
        }
    }

    fn forget(&mut self, node: usize) {
        let replica = &mut self.replicas[node];
        match replica.acceptor.forget(replica.standing()) {
            Forget::Now => replica.acceptor = Acceptor::default(),
            Forget::WithFloor(floor) => {
                replica.floor = replica.floor.max(floor);
                replica.acceptor = Acceptor::default();
            }
            Forget::Keep if self.broken == Broken::ForgetAnyway => replica.acceptor = Acceptor::default(),
            Forget::Keep => {}
        }
    }

    /// Layout sync: everything that `from` holds.
    fn pull(&mut self, from: usize, to: usize) {
        let source = self.replicas[from].clone();
        let replica = &mut self.replicas[to];
        if let Some(row) = source.row {
            replica.merge(row);
        }
        replica.floor = replica.floor.max(source.floor);
        if self.broken != Broken::SyncRowsOnly {
            replica.acceptor.adopt(&source.acceptor);
        }
        replica.pulled.push(from);
    }

    /// Forgets what makes no difference to what can happen: the order of messages, and messages that do nothing any more.
    pub(crate) fn tidy(&mut self) {
        let (ops, replicas) = (&self.ops, &self.replicas);
        self.messages.retain(|message| {
            let standing = replicas[message.node].standing();
            let promised = replicas[message.node].acceptor.promised();
            let is_over = ops[message.op].run == Run::Ended;
            match &message.body {
                Body::Prepare { ballot, .. } if is_over => *ballot > standing.stamp() && *ballot > promised,
                Body::Accept { ballot, .. } if is_over => *ballot > standing.stamp() && *ballot >= promised,
                Body::Write(row) if is_over => row.stamp > standing.stamp() && row.stamp >= promised,
                Body::Release(ballots) => ballots.contains(&promised),
                _ => true,
            }
        });
        self.messages.sort_unstable_by_key(|message| {
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(message, &mut hasher);
            std::hash::Hasher::finish(&hasher)
        });
    }

    /// What a plain read of these nodes of the read set would miss of what was acknowledged.
    pub(crate) fn check_reads(&self) {
        let set = self.layout.read_set(self.epoch);
        if set.iter().any(|n| self.replicas[*n].epoch != self.epoch) {
            return;
        }
        let behind = set.iter().filter(|n| self.replicas[**n].standing().stamp() < self.acked).count();
        let quorum = majority(set.len());
        assert!(behind < quorum, "a read quorum misses an acknowledged write: {self:#?}");
    }

    /// What clients saw so far, everything still under way being lost; and a read of what is there in the end, once all
    /// copies are equal.
    pub(crate) fn history(&self) -> Vec<Seen> {
        let mut history: Vec<Seen> = self
            .ops
            .iter()
            .filter(|op| op.run != Run::Waiting)
            .map(|op| {
                let outcome = if op.run == Run::Ended { op.outcome } else { Outcome::Unknown };
                let Plan { when, new, .. } = op.plan;
                Seen { when, new, invoked: op.invoked, returned: op.returned, outcome }
            })
            .collect();
        let holders: Vec<usize> = self.layout.write_sets(self.epoch).concat();
        let last = holders.iter().filter_map(|node| self.replicas[*node].row).max_by_key(|row| row.stamp);
        let outcome = Outcome::Failed(last.and_then(|row| row.value));
        let (invoked, returned) = (usize::MAX - 1, usize::MAX);
        history.push(Seen { when: If::Never, new: None, invoked, returned, outcome });
        history
    }

    pub(crate) fn is_linearizable(&self) -> bool {
        is_linearizable(&self.history())
    }

    /// Operations that ended, by what they were told: done, failed, unknown.
    pub(crate) fn outcomes(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for op in self.ops.iter().filter(|op| op.run == Run::Ended) {
            let kind = match op.outcome {
                Outcome::Done => 0,
                Outcome::Failed(_) => 1,
                Outcome::Unknown => 2,
            };
            counts[kind] += 1;
        }
        counts
    }
}
