//! Never two different layouts for one epoch: random walks over proposers and acceptors whose messages
//! are lost, duplicated, delayed and reordered, and who restart at any moment.
//!
//! Fault model: acceptors keep what they had when they answered (a register is stored before its answer
//! leaves) and forget nothing; proposers forget everything. Nodes lie never.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use hayloft_common::codec::{decode, encode};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    AcceptReply, ActiveLayout, Ballot, Layout, LayoutRegister, LearnError, Parameters, PrepareReply,
    Proposer, Role, Step, ZoneRedundancy, acceptors, compute,
};
use std::collections::{BTreeMap, BTreeSet};

const PARAMETERS: Parameters =
    Parameters { replication_factor: 1, zone_redundancy: ZoneRedundancy::AtLeast(1) };

fn node(i: usize) -> NodeId {
    NodeId([i as u8 + 1; 32])
}

fn layout(previous: &Layout, nodes: &[usize], capacity: u64) -> Layout {
    let role = |i| (node(i), Role { zone: "z".into(), capacity, tags: vec![] });
    let roles = nodes.iter().map(|&i| role(i)).collect();
    compute(Some(previous), &roles, &PARAMETERS, 0).unwrap().0
}

fn nothing() -> ActiveLayout {
    ActiveLayout::empty(PARAMETERS, 0)
}

/// splitmix64: the same walk for the same seed.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[derive(Clone)]
enum Message {
    Prepare { from: usize, to: usize, epoch: u64, ballot: Ballot },
    Accept { from: usize, to: usize, ballot: Ballot, layout: ActiveLayout },
    Learn { to: usize, layout: ActiveLayout },
    Prepared { from: usize, to: usize, ballot: Ballot, reply: PrepareReply },
    Accepted { from: usize, to: usize, ballot: Ballot, reply: AcceptReply },
}

/// What changes between the walks.
struct Scene {
    /// Sets of nodes that proposals draw from.
    memberships: Vec<Vec<usize>>,
    start: ActiveLayout,
    nodes: usize,
    /// Nobody learns what was decided: the walk stays at the first epoch, where proposals that share no
    /// node may both win.
    first_only: bool,
}

struct World<'a> {
    scene: &'a Scene,
    draw: Draw,
    acceptors: Vec<LayoutRegister>,
    /// What each proposer believes to be in force, and its attempt.
    views: Vec<ActiveLayout>,
    attempts: Vec<Option<Proposer>>,
    wire: Vec<Message>,
    /// What was committed for each epoch.
    decided: BTreeMap<u64, Vec<ActiveLayout>>,
    /// Who accepted what at which ballot, ever.
    accepts: BTreeMap<(u64, Ballot), (ActiveLayout, BTreeSet<usize>)>,
    lost_races: usize,
}

impl<'a> World<'a> {
    fn new(scene: &'a Scene, seed: u64) -> Self {
        Self {
            scene,
            draw: Draw(seed),
            acceptors: (0..scene.nodes).map(|_| LayoutRegister::new(scene.start.clone())).collect(),
            views: vec![scene.start.clone(); 2],
            attempts: vec![None, None],
            wire: Vec::new(),
            decided: BTreeMap::new(),
            accepts: BTreeMap::new(),
            lost_races: 0,
        }
    }

    fn record(&mut self, layout: &ActiveLayout) {
        let known = self.decided.entry(layout.epoch).or_default();
        if known.contains(layout) {
            return;
        }
        for other in known.iter() {
            let shared = other.storage_nodes().iter().any(|n| layout.current.nodes.contains(n));
            assert!(self.scene.first_only && !shared, "two layouts are committed for epoch {}", layout.epoch);
        }
        known.push(layout.clone());
    }

    fn step(&mut self) {
        match self.draw.below(100) {
            0..80 if !self.wire.is_empty() => {
                let at = self.draw.below(self.wire.len());
                // One in eight is delivered and stays, to come again; one in eight is lost.
                match self.draw.below(8) {
                    0 => self.deliver(self.wire[at].clone()),
                    1 => drop(self.wire.swap_remove(at)),
                    _ => {
                        let message = self.wire.swap_remove(at);
                        self.deliver(message);
                    }
                }
            }
            0..90 => {
                let who = self.draw.below(2);
                if self.attempts[who].is_none() {
                    self.propose(who);
                }
            }
            90..94 => {
                let who = self.draw.below(self.acceptors.len());
                self.acceptors[who] = decode(&encode(&self.acceptors[who])).unwrap();
            }
            94..96 => {
                let who = self.draw.below(2);
                self.attempts[who] = None;
            }
            96 => self.views[self.draw.0 as usize % 2] = self.scene.start.clone(),
            _ => {
                let (who, silent) = (self.draw.below(2), self.draw.below(self.scene.nodes));
                if let Some(attempt) = &mut self.attempts[who] {
                    let step = attempt.fail(node(silent));
                    self.act(who, step);
                }
            }
        }
    }

    fn propose(&mut self, who: usize) {
        let view = self.views[who].clone();
        let members = &self.scene.memberships[self.draw.below(self.scene.memberships.len())];
        let next = layout(view.newest(), members, 10 + self.draw.next() % 1000);
        let everyone = (0..self.scene.nodes).map(node).collect();
        let wanted = match self.draw.below(4) {
            0 if view.is_changing() => view.skip(&everyone).or_else(|_| view.next_phase()),
            1 | 2 if view.is_changing() => view.next_phase(),
            // Sooner or later the queue is full.
            _ => view.apply(next).or_else(|_| view.next_phase()),
        };
        let random = self.draw.next();
        self.attempts[who] = Some(Proposer::new(view, wanted.unwrap(), random).unwrap());
        self.send_prepare(who);
    }

    fn send_prepare(&mut self, who: usize) {
        let Some(attempt) = &self.attempts[who] else { return };
        let (epoch, ballot) = (attempt.epoch(), attempt.ballot());
        for to in attempt.nodes().iter().map(index) {
            self.wire.push(Message::Prepare { from: who, to, epoch, ballot });
        }
    }

    fn act(&mut self, who: usize, step: Step) {
        match step {
            Step::Wait => {}
            Step::Invalid { why, .. } => panic!("a valid layout is refused: {why}"),
            Step::Unreachable { .. } => self.attempts[who] = None,
            Step::Restart => {
                let random = self.draw.next();
                if let Some(attempt) = &mut self.attempts[who] {
                    attempt.restart(random);
                }
                self.send_prepare(who);
            }
            Step::Accept => {
                let Some(attempt) = &self.attempts[who] else { return };
                for to in attempt.nodes().iter().map(index) {
                    let (ballot, layout) = (attempt.ballot(), attempt.value().clone());
                    self.wire.push(Message::Accept { from: who, to, ballot, layout });
                }
            }
            Step::Teach(behind) => {
                let Some(attempt) = &self.attempts[who] else { return };
                self.wire.push(Message::Learn { to: index(&behind), layout: attempt.committed().clone() });
                self.send_prepare(who);
            }
            Step::Done { layout, won } => {
                self.record(&layout);
                self.lost_races += usize::from(!won);
                self.attempts[who] = None;
                if self.scene.first_only {
                    return;
                }
                for to in 0..self.scene.nodes {
                    self.wire.push(Message::Learn { to, layout: layout.clone() });
                }
                self.views[who] = layout;
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Prepare { from, to, epoch, ballot } => {
                let reply = self.acceptors[to].prepare(epoch, ballot);
                self.wire.push(Message::Prepared { from: to, to: from, ballot, reply });
            }
            Message::Accept { from, to, ballot, layout } => {
                let reply = self.acceptors[to].accept(ballot, &layout);
                if reply == AcceptReply::Accepted {
                    self.record_accept(to, ballot, &layout);
                }
                self.wire.push(Message::Accepted { from: to, to: from, ballot, reply });
            }
            Message::Learn { to, layout } => {
                self.acceptors[to].learn(&layout).unwrap();
            }
            Message::Prepared { from, to, ballot, reply } => {
                if let Some(attempt) = &mut self.attempts[to] {
                    let step = attempt.on_prepare(node(from), ballot, reply);
                    self.act(to, step);
                }
            }
            Message::Accepted { from, to, ballot, reply } => {
                if let Some(attempt) = &mut self.attempts[to] {
                    let step = attempt.on_accept(node(from), ballot, reply);
                    self.act(to, step);
                }
            }
        }
    }

    /// A layout is committed as soon as a quorum accepted it at one ballot, whether anyone knows or not.
    fn record_accept(&mut self, acceptor: usize, ballot: Ballot, layout: &ActiveLayout) {
        let who = acceptors(self.acceptors[acceptor].committed(), layout);
        let key = (layout.epoch, ballot);
        let (first, by) = self.accepts.entry(key).or_insert_with(|| (layout.clone(), BTreeSet::new()));
        assert_eq!(first, layout, "one ballot carries two layouts");
        by.insert(acceptor);
        let agreed = who.nodes.iter().filter(|n| by.contains(&index(n))).count();
        if agreed >= who.quorum {
            self.record(layout);
        }
    }
}

fn index(id: &NodeId) -> usize {
    usize::from(id.0[0]) - 1
}

fn explore(scene: &Scene, seeds: u64, steps: usize) -> (usize, usize) {
    let (mut epochs, mut lost_races) = (0, 0);
    for seed in 0..seeds {
        let walk = std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(scene, seed);
            (0..steps).for_each(|_| world.step());
            (world.decided.len(), world.lost_races)
        });
        let Ok((decided, lost)) = std::panic::catch_unwind(walk) else { panic!("seed {seed}") };
        epochs += decided;
        lost_races += lost;
    }
    (epochs, lost_races)
}

fn started(nodes: &[usize]) -> ActiveLayout {
    nothing().replace(layout(&nothing().current, nodes, 5)).unwrap()
}

#[test]
fn two_operators_never_commit_two_layouts_for_one_epoch() {
    let scene =
        Scene { memberships: vec![vec![0, 1, 2]], start: started(&[0, 1, 2]), nodes: 3, first_only: false };
    let (epochs, lost) = explore(&scene, 400, 400);
    assert!(epochs > 1000 && lost > 100, "{epochs} epochs, {lost} lost races: too little happens");
}

#[test]
fn nor_while_the_set_of_nodes_changes() {
    let memberships = vec![vec![0, 1, 2], vec![2, 3, 4], vec![1, 4], vec![3]];
    let scene = Scene { memberships, start: started(&[0, 1, 2]), nodes: 5, first_only: false };
    let (epochs, lost) = explore(&scene, 400, 500);
    assert!(epochs > 1000 && lost > 100, "{epochs} epochs, {lost} lost races: too little happens");
}

#[test]
fn nor_two_first_layouts_that_share_a_node() {
    let memberships = vec![vec![0, 1, 2], vec![2, 3], vec![1, 2, 4]];
    let scene = Scene { memberships, start: nothing(), nodes: 5, first_only: false };
    let (epochs, lost) = explore(&scene, 400, 500);
    assert!(epochs > 400 && lost > 100, "{epochs} epochs, {lost} lost races: too little happens");
}

#[test]
fn nor_when_a_third_proposal_finds_one_of_two_that_exclude_each_other() {
    // The second shares a node with each of the others, which share none.
    let memberships = vec![vec![0, 1], vec![1, 2], vec![2, 3]];
    let scene = Scene { memberships, start: nothing(), nodes: 4, first_only: true };
    let (epochs, lost) = explore(&scene, 800, 300);
    assert!(epochs > 400 && lost > 100, "{epochs} epochs, {lost} lost races: too little happens");
}

#[test]
fn answers_to_an_earlier_round_do_not_count() {
    let start = started(&[0, 1, 2]);
    let wanted = start.apply(layout(&start.current, &[0, 1, 2], 7)).unwrap();
    let mut proposer = Proposer::new(start, wanted, 1).unwrap();
    let promise = || PrepareReply::Promise { accepted: None };
    let first = proposer.ballot();
    assert_eq!(proposer.on_prepare(node(0), first, promise()), Step::Wait);
    assert_eq!(proposer.on_prepare(node(1), first, promise()), Step::Accept);
    proposer.restart(2);
    let second = proposer.ballot();
    assert!(second > first);
    assert_eq!(proposer.on_prepare(node(1), first, promise()), Step::Wait);
    assert_eq!(proposer.on_prepare(node(2), second, promise()), Step::Wait);
    assert_eq!(proposer.on_prepare(node(0), second, promise()), Step::Accept);
    for who in [0, 1] {
        assert_eq!(proposer.on_accept(node(who), first, AcceptReply::Accepted), Step::Wait);
    }
    assert_eq!(proposer.on_accept(node(2), second, AcceptReply::Accepted), Step::Wait);
    let done = proposer.on_accept(node(0), second, AcceptReply::Accepted);
    assert!(matches!(done, Step::Done { won: true, .. }));
}

#[test]
fn without_faults_the_first_of_two_operators_wins_and_the_second_is_told() {
    let start = started(&[0, 1, 2]);
    let mut registers: Vec<_> = (0..3).map(|_| LayoutRegister::new(start.clone())).collect();
    let apply = |registers: &mut Vec<LayoutRegister>, capacity: u64, random: u64| {
        let wanted = start.apply(layout(&start.current, &[0, 1, 2], capacity)).unwrap();
        let mut proposer = Proposer::new(start.clone(), wanted, random).unwrap();
        for (who, register) in registers.iter_mut().enumerate() {
            let reply = register.prepare(proposer.epoch(), proposer.ballot());
            match proposer.on_prepare(node(who), proposer.ballot(), reply) {
                Step::Accept => break,
                Step::Done { won, .. } => return won,
                step => assert_eq!(step, Step::Wait),
            }
        }
        for (who, register) in registers.iter_mut().enumerate() {
            let reply = register.accept(proposer.ballot(), proposer.value());
            if let Step::Done { layout, won } = proposer.on_accept(node(who), proposer.ballot(), reply) {
                assert!(register.learn(&layout).unwrap());
                return won;
            }
        }
        panic!("undecided");
    };
    assert!(apply(&mut registers, 100, 1));
    assert!(!apply(&mut registers, 200, 2));
}

#[test]
fn learning_adopts_newer_epochs_and_reports_what_cannot_be() {
    let first = started(&[0, 1, 2]);
    let second = first.apply(layout(&first.current, &[0, 1], 9)).unwrap();
    let mut register = LayoutRegister::new(nothing());
    assert!(register.learn(&second).unwrap());
    assert!(!register.learn(&first).unwrap());
    assert!(!register.learn(&second).unwrap());
    let other = first.apply(layout(&first.current, &[0, 1], 8)).unwrap();
    assert!(matches!(register.learn(&other), Err(LearnError::Conflict { epoch: 2, .. })));
    let roles = second.current.roles.clone();
    let elsewhere = compute(None, &roles, &PARAMETERS, 1).unwrap().0;
    let elsewhere = ActiveLayout { epoch: 9, current: Layout { version: 9, ..elsewhere }, ..first.clone() };
    assert!(matches!(register.learn(&elsewhere), Err(LearnError::Partitions { ours: 0, theirs: 1 })));
    let regress = ActiveLayout { epoch: 9, ..first };
    assert!(matches!(register.learn(&regress), Err(LearnError::Regress { .. })));
    assert_eq!(register.committed(), &second);
}

#[test]
fn a_first_layout_needs_all_of_its_nodes() {
    let wanted = started(&[0, 1, 2]);
    let mut proposer = Proposer::new(nothing(), wanted, 1).unwrap();
    let mut register = LayoutRegister::new(nothing());
    let ballot = proposer.ballot();
    for who in 0..2 {
        let reply = register.prepare(1, ballot);
        assert_eq!(proposer.on_prepare(node(who), ballot, reply), Step::Wait);
    }
    assert_eq!(proposer.fail(node(2)), Step::Unreachable { missing: vec![node(2)] });
}
