//! Read-after-write through changes of layout: random walks over a cluster of which every part moves at its own
//! pace. Nodes adopt epochs late or skip some, are down, or lose everything; phases end by `may_advance` on stale
//! news; sets grow and shrink; rows are collected when all who hold them agree.
//!
//! Checked: no quorum read misses a write that was acknowledged before it began, and none finds a row that was
//! collected before it began. Each of several broken rules is caught.
//!
//! Fault model: agreement on epochs is given (see `layout_register.rs`). A request takes effect at a node only
//! if both are at the same epoch. At most one node at a time has lost its data.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    Acks, ActiveLayout, ConsistencyMode, Holdings, Layout, Parameters, Partition, PartitionState, Phase,
    Progress, Role, ZoneRedundancy, compute, may_advance, may_drop, read_quorum, risk, write_quorum,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const NODES: usize = 7;
const BITS: u8 = 1;
type Rows = BTreeSet<u64>;

fn node(i: usize) -> NodeId {
    NodeId([i as u8 + 1; 32])
}

fn index(id: &NodeId) -> usize {
    usize::from(id.0[0]) - 1
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

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What is left out, to see that it matters.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Broken {
    Nothing,
    /// Phases end when the driver likes.
    NoWaiting,
    /// Nodes that are down are not waited for, whatever quorums may notice.
    DownDoNotCount,
    /// A copy is taken for complete after one source.
    OneSource,
    /// Rows of an earlier membership are served when it is given again.
    LeftoversServed,
    /// A node that lost its data serves at once.
    LostServed,
    /// Requests of any epoch are taken.
    NoEpochCheck,
}

#[derive(Clone, Default)]
struct Node {
    /// Index into the epochs that were decided.
    at: usize,
    holdings: Holdings,
    rows: BTreeMap<Partition, Rows>,
    /// Sources pulled from, for the version.
    pulled: BTreeMap<(u64, Partition), BTreeSet<usize>>,
    incarnation: u64,
    down: bool,
}

struct Write {
    at: usize,
    partition: Partition,
    row: u64,
    acks: BTreeSet<usize>,
}

struct Read {
    at: usize,
    partition: Partition,
    must_see: Rows,
    must_not_see: Rows,
    replies: BTreeMap<usize, Rows>,
}

#[derive(Default, Debug)]
struct Counts {
    acked: usize,
    read: usize,
    changes: usize,
    advanced_without: usize,
    collected: usize,
    refilled: usize,
    queued: usize,
}

struct World {
    broken: Broken,
    draw: Draw,
    epochs: Vec<Rc<ActiveLayout>>,
    nodes: Vec<Node>,
    /// What gossip has brought to the drivers.
    acks: Acks,
    seq: u64,
    writes: Vec<Write>,
    reads: Vec<Read>,
    acked: BTreeMap<Partition, Rows>,
    collected: BTreeMap<Partition, Rows>,
    next_row: u64,
    counts: Counts,
}

fn parameters(replication_factor: usize) -> Parameters {
    Parameters { replication_factor, zone_redundancy: ZoneRedundancy::AtLeast(1) }
}

impl World {
    fn new(broken: Broken, seed: u64) -> Self {
        let empty = ActiveLayout::empty(parameters(3), BITS);
        let mut world = Self {
            broken,
            draw: Draw(seed),
            epochs: vec![Rc::new(empty)],
            nodes: vec![Node::default(); NODES],
            acks: Acks::new(),
            seq: 0,
            writes: Vec::new(),
            reads: Vec::new(),
            acked: BTreeMap::new(),
            collected: BTreeMap::new(),
            next_row: 0,
            counts: Counts::default(),
        };
        let first = world.random_layout();
        let first = world.epochs[0].apply(first).unwrap();
        world.epochs.push(Rc::new(first));
        for i in 0..NODES {
            world.learn(i, 1, true);
        }
        world
    }

    fn newest(&self) -> &ActiveLayout {
        self.epochs.last().unwrap()
    }

    fn random_layout(&mut self) -> Layout {
        let factor = [2, 3, 3, 3, 5][self.draw.below(5)];
        let mut roles = BTreeMap::new();
        while roles.len() < factor || (roles.len() < NODES && self.draw.one_in(2)) {
            let capacity = 100 + self.draw.next() % 900;
            let role = Role { zone: "z".into(), capacity, tags: vec![] };
            roles.insert(node(self.draw.below(NODES)), role);
        }
        let last = self.epochs.last().unwrap().newest();
        compute(Some(last), &roles, &parameters(factor), BITS).unwrap().0
    }

    fn partition(&mut self) -> Partition {
        Partition(self.draw.below(1 << BITS) as u16)
    }

    fn learn(&mut self, i: usize, at: usize, remembers: bool) {
        let (before, after) = (&self.epochs[self.nodes[i].at], &self.epochs[at]);
        let target = &mut self.nodes[i];
        target.holdings.learn(node(i), before, after, remembers);
        for partition in (0..1 << BITS).map(Partition).filter(|p| after.holds(node(i), *p)) {
            if self.broken == Broken::LeftoversServed {
                target.holdings.dropped(node(i), after, partition);
            }
        }
        target.at = at;
    }

    fn serves(&self, i: usize, partition: Partition) -> bool {
        let state = self.nodes[i].holdings.state(partition);
        state == PartitionState::Member
            || (self.broken == Broken::LostServed && state == PartitionState::Lost)
    }

    /// Whether node `i` takes a request of that epoch.
    fn takes(&self, i: usize, at: usize, partition: Partition) -> bool {
        let same = self.nodes[i].at == at || self.broken == Broken::NoEpochCheck;
        let held = self.epochs[self.nodes[i].at].holds(node(i), partition);
        same && held && !self.nodes[i].down && self.serves(i, partition)
    }

    fn step(&mut self) -> Result<(), String> {
        match self.draw.below(100) {
            0..8 => self.begin_write(),
            8..16 => self.begin_read(),
            16..35 => self.deliver_write(),
            35..55 => self.deliver_read()?,
            55..61 => {
                for i in 0..NODES {
                    let (from, to) = (self.nodes[i].at, self.epochs.len() - 1);
                    if !self.nodes[i].down && from < to && self.draw.one_in(2) {
                        let at = from + 1 + self.draw.below(to - from);
                        self.learn(i, at, true);
                    }
                }
            }
            61..79 => (0..4).for_each(|_| self.work()),
            79..85 => self.gossip(),
            85..92 => self.drive(),
            92 => self.operate(),
            93..95 => {
                let i = self.draw.below(NODES);
                let others_down = self.nodes.iter().filter(|n| n.down).count();
                let down = self.nodes[i].down;
                self.nodes[i].down = if down { !self.draw.one_in(4) } else { others_down < 2 };
            }
            95..98 => self.collect(),
            98 if self.draw.one_in(4) => self.wipe(),
            _ => {}
        }
        Ok(())
    }

    /// An epoch that some gateway may be at.
    fn some_epoch(&mut self) -> usize {
        let last = self.epochs.len() - 1;
        last - self.draw.below(last.min(3) + usize::from(last < 4)).min(last - 1)
    }

    fn begin_write(&mut self) {
        let (at, partition) = (self.some_epoch(), self.partition());
        self.next_row += 1;
        self.writes.push(Write { at, partition, row: self.next_row, acks: BTreeSet::new() });
    }

    fn deliver_write(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let w = self.draw.below(self.writes.len());
        let Write { at, partition, row, .. } = self.writes[w];
        let sets = self.epochs[at].write_sets(partition).unwrap();
        let asked: Vec<usize> = sets.iter().flatten().map(index).collect();
        for i in asked {
            if self.takes(i, at, partition) && !self.draw.one_in(3) {
                self.nodes[i].rows.entry(partition).or_default().insert(row);
                self.writes[w].acks.insert(i);
            }
        }
        let enough = |set: &Vec<NodeId>| {
            let acks = set.iter().filter(|n| self.writes[w].acks.contains(&index(n))).count();
            acks >= write_quorum(ConsistencyMode::Consistent, set.len())
        };
        if sets.iter().all(enough) && self.acked.entry(partition).or_default().insert(row) {
            self.counts.acked += 1;
        }
    }

    fn begin_read(&mut self) {
        let (at, partition) = (self.some_epoch(), self.partition());
        let must_see = self.acked.get(&partition).cloned().unwrap_or_default();
        let must_not_see = self.collected.get(&partition).cloned().unwrap_or_default();
        self.reads.push(Read { at, partition, must_see, must_not_see, replies: BTreeMap::new() });
    }

    fn deliver_read(&mut self) -> Result<(), String> {
        if self.reads.is_empty() {
            return Ok(());
        }
        let r = self.draw.below(self.reads.len());
        let (at, partition) = (self.reads[r].at, self.reads[r].partition);
        let set = self.epochs[at].read_set(partition).unwrap();
        let quorum = read_quorum(ConsistencyMode::Consistent, set.len());
        for i in set.iter().map(index) {
            let wanted = self.reads[r].replies.len() < quorum && !self.draw.one_in(2);
            if wanted && self.takes(i, at, partition) {
                let rows = self.nodes[i].rows.get(&partition).cloned().unwrap_or_default();
                self.reads[r].replies.insert(i, rows);
            }
        }
        if self.reads[r].replies.len() < quorum {
            return Ok(());
        }
        let read = self.reads.swap_remove(r);
        self.counts.read += 1;
        let seen: Rows = read.replies.values().flatten().copied().collect();
        // What was collected since is gone rightly.
        let gone = self.collected.get(&partition).cloned().unwrap_or_default();
        if let Some(row) = read.must_see.difference(&seen).find(|row| !gone.contains(row)) {
            return Err(format!("row {row} is missing in a read at epoch {at} from {:?}", read.replies));
        }
        if let Some(row) = read.must_not_see.intersection(&seen).next() {
            return Err(format!("row {row} is back in a read at epoch {at} from {:?}", read.replies));
        }
        Ok(())
    }

    /// The background work of one node: drop, fill again, pull.
    fn work(&mut self) {
        let (i, partition) = (self.draw.below(NODES), self.partition());
        if self.nodes[i].down || self.nodes[i].at == 0 {
            return;
        }
        let active = self.epochs[self.nodes[i].at].clone();
        match self.nodes[i].holdings.state(partition) {
            PartitionState::Leftover if may_drop(&active, &self.acks, node(i), partition) => {
                self.nodes[i].rows.remove(&partition);
                self.nodes[i].holdings.dropped(node(i), &active, partition);
            }
            PartitionState::Leftover | PartitionState::None => {}
            PartitionState::Lost => self.refill(i, partition, &active),
            PartitionState::Member => self.pull(i, partition, &active),
        }
        let version = active.current.version;
        let holdings = &self.nodes[i].holdings;
        let todo = holdings.to_sync(node(i), &active);
        if holdings.synced() < version && todo.iter().all(|p| self.is_pulled(i, *p, &active)) {
            // Refused while something is left over or lost.
            let _ = self.nodes[i].holdings.set_synced(node(i), &active, version);
        }
    }

    /// Nodes that would let node `i` pull: those at its epoch that have a copy.
    fn open_sources(
        &self,
        i: usize,
        partition: Partition,
        active: &ActiveLayout,
    ) -> (BTreeSet<usize>, usize) {
        let (set, mut needed) = active.sources(partition).unwrap();
        if self.broken == Broken::OneSource {
            needed = needed.min(1);
        }
        let open = |n: &usize| *n == i || self.takes(*n, self.nodes[i].at, partition);
        (set.iter().map(index).filter(open).collect(), needed)
    }

    fn pull(&mut self, i: usize, partition: Partition, active: &ActiveLayout) {
        let (open, _) = self.open_sources(i, partition, active);
        for from in open {
            if self.draw.one_in(3) {
                continue;
            }
            let rows = self.nodes[from].rows.get(&partition).cloned().unwrap_or_default();
            self.nodes[i].rows.entry(partition).or_default().extend(rows);
            let version = active.current.version;
            self.nodes[i].pulled.entry((version, partition)).or_default().insert(from);
        }
    }

    fn is_pulled(&self, i: usize, partition: Partition, active: &ActiveLayout) -> bool {
        let (set, needed) = active.sources(partition).unwrap();
        let needed = if self.broken == Broken::OneSource { needed.min(1) } else { needed };
        let pulled = self.nodes[i].pulled.get(&(active.current.version, partition));
        let from = |n: &&NodeId| pulled.is_some_and(|pulled| pulled.contains(&index(n)));
        set.iter().filter(from).count() >= needed
    }

    fn refill(&mut self, i: usize, partition: Partition, active: &ActiveLayout) {
        let (mut open, needed) = self.open_sources(i, partition, active);
        open.remove(&i);
        if open.len() < needed {
            return;
        }
        let from: Vec<usize> = open.into_iter().take(needed).collect();
        let rows = from.iter().flat_map(|n| self.nodes[*n].rows.get(&partition).cloned().unwrap_or_default());
        let rows: Rows = rows.collect();
        self.nodes[i].rows.insert(partition, rows);
        self.nodes[i].holdings.refilled(partition);
        self.counts.refilled += 1;
    }

    /// The drivers hear what a node says now.
    fn gossip(&mut self) {
        for i in 0..NODES {
            if !self.nodes[i].down && !self.draw.one_in(3) {
                self.hear(i);
            }
        }
    }

    fn hear(&mut self, i: usize) {
        self.seq += 1;
        let said = Progress {
            incarnation: self.nodes[i].incarnation,
            seq: self.seq,
            epoch: self.epochs[self.nodes[i].at].epoch,
            synced: self.nodes[i].holdings.synced(),
            ..Progress::default()
        };
        self.acks.insert(node(i), said);
    }

    fn drive(&mut self) {
        let active = self.newest().clone();
        let down: BTreeSet<NodeId> = (0..NODES).filter(|i| self.nodes[*i].down).map(node).collect();
        let allowed = match self.broken {
            Broken::NoWaiting => active.is_changing(),
            Broken::DownDoNotCount => {
                let mut all = self.acks.clone();
                for node in &down {
                    all.insert(*node, Progress { epoch: u64::MAX, synced: u64::MAX, ..Progress::default() });
                }
                may_advance(&active, &all, &BTreeSet::new())
            }
            _ => may_advance(&active, &self.acks, &down),
        };
        if allowed {
            self.counts.changes += usize::from(active.phase == Phase::Synced);
            let all_there = may_advance(&active, &self.acks, &BTreeSet::new());
            self.counts.advanced_without += usize::from(!all_there);
            self.epochs.push(Rc::new(active.next_phase().unwrap()));
            // Requests live for a while only.
            let oldest = self.epochs.len().saturating_sub(5);
            self.writes.retain(|write| write.at >= oldest);
            self.reads.retain(|read| read.at >= oldest);
        }
    }

    /// An operator applies a layout, or gives up waiting for a node.
    fn operate(&mut self) {
        let active = self.newest().clone();
        let next = if active.is_changing() && self.draw.one_in(2) {
            let dead = BTreeSet::from([node(self.draw.below(NODES))]);
            if risk(&active, &self.acks, &dead) > 0 {
                return;
            }
            active.skip(&dead)
        } else {
            self.counts.queued += usize::from(active.is_changing());
            let layout = self.random_layout();
            active.apply(layout)
        };
        self.epochs.extend(next.ok().map(Rc::new));
    }

    /// Removes some rows that all who are to hold them hold: its deletion, in a model without deletions.
    fn collect(&mut self) {
        let partition = self.partition();
        let last = self.epochs.len() - 1;
        let holders: BTreeSet<usize> =
            self.epochs[last].write_sets(partition).unwrap().iter().flatten().map(index).collect();
        let agreed = |n: &usize| {
            self.nodes[*n].at == last
                && !self.nodes[*n].down
                && self.nodes[*n].holdings.state(partition) == PartitionState::Member
        };
        if !holders.iter().all(agreed) {
            return;
        }
        let rows_of = |n: &usize| self.nodes[*n].rows.get(&partition).cloned().unwrap_or_default();
        let common = holders.iter().map(rows_of).reduce(|a, b| a.intersection(&b).copied().collect());
        for row in common.unwrap_or_default() {
            if self.draw.one_in(2) {
                continue;
            }
            for n in &holders {
                self.nodes[*n].rows.entry(partition).or_default().remove(&row);
            }
            // Messages live shorter than tombstones.
            self.writes.retain(|write| write.row != row);
            self.acked.entry(partition).or_default().remove(&row);
            self.collected.entry(partition).or_default().insert(row);
            self.counts.collected += 1;
        }
    }

    /// A node loses all it has but its name.
    fn wipe(&mut self) {
        let i = self.draw.below(NODES);
        let lost = |n: &Node| !n.holdings.all_in(PartitionState::Lost).is_empty() || n.at == 0;
        if self.nodes.iter().any(lost) {
            return;
        }
        let forgotten = self.nodes[i].at;
        let at = forgotten + self.draw.below(self.epochs.len() - forgotten);
        self.nodes[i] = Node { incarnation: self.nodes[i].incarnation + 1, ..Node::default() };
        // It hears of itself before or after it hears of the layout.
        if self.draw.one_in(2) {
            self.nodes[i].holdings.outlive(node(i), &self.epochs[0]);
            self.learn(i, at, false);
        } else {
            self.learn(i, at, false);
            let active = &self.epochs[at];
            self.nodes[i].holdings.outlive(node(i), active);
        }
        self.writes.retain(|write| !write.acks.contains(&i));
    }
}

fn walk(broken: Broken, seeds: std::ops::Range<u64>, steps: usize) -> Result<Counts, String> {
    let mut all = Counts::default();
    for seed in seeds {
        let mut world = World::new(broken, seed);
        for _ in 0..steps {
            world.step().map_err(|what| format!("seed {seed}: {what}"))?;
        }
        all.acked += world.counts.acked;
        all.read += world.counts.read;
        all.changes += world.counts.changes;
        all.advanced_without += world.counts.advanced_without;
        all.collected += world.counts.collected;
        all.refilled += world.counts.refilled;
        all.queued += world.counts.queued;
    }
    Ok(all)
}

#[test]
fn no_read_misses_a_write_or_finds_a_collected_row_through_any_changes() {
    let counts = walk(Broken::Nothing, 0..200, 1500).unwrap();
    let Counts { acked, read, changes, advanced_without, collected, refilled, queued } = counts;
    let enough = acked > 1500
        && read > 2000
        && changes > 200
        && advanced_without > 100
        && collected > 500
        && refilled > 100
        && queued > 300;
    assert!(enough, "too little happens: {counts:?}");
}

#[test]
fn each_rule_is_needed() {
    for broken in [
        Broken::NoWaiting,
        Broken::DownDoNotCount,
        Broken::OneSource,
        Broken::LeftoversServed,
        Broken::LostServed,
        Broken::NoEpochCheck,
    ] {
        assert!(walk(broken, 0..2000, 1500).is_err(), "nobody notices {broken:?}");
    }
}
