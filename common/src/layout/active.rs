//! The epochs: which layout is read and which are written while one follows another (design §3).
//!
//! stable v → introduced v+1 → synced v+1 → stable v+1, each a higher epoch. A write needs a quorum in
//! every write set, a read a quorum of the read set: so at any two neighbouring epochs each read quorum
//! meets a quorum of every acknowledged write. Senders of different epochs never mix: a node refuses an
//! epoch below its own. When a phase may end: [`super::progress`].
//!
//! Layouts applied while a change is under way queue up; each follows the one before it. Queueing one, and
//! giving up waiting for nodes, are epochs too: so everybody sees them in one order.

use super::assignment::Layout;
use super::error::{InvalidLayout, LookupError};
use super::partition::Partition;
use super::quorum::{ConsistencyMode, read_quorum};
use super::role::Parameters;
use crate::codec::{Format, encode};
use crate::hash::Hash;
use crate::id::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most layouts that may wait behind the one being moved to.
pub const MAX_QUEUED: usize = 8;
/// Largest encoded state with its queue, in bytes: it travels in one head of a request.
const MAX_ENCODED: usize = 3 << 20;

/// How far the change to the current layout has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Only the current layout counts.
    Stable,
    /// Writes go to old and current, reads to old.
    Introduced,
    /// Every new copy is complete: writes go to old and current, reads to current.
    Synced,
}

/// The layout as it is in force, with the epoch that every data request carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct ActiveLayout {
    /// Rises by one with every change of layout, phase, queue or skipped nodes; 0 while no layout is applied.
    pub epoch: u64,
    pub phase: Phase,
    /// The layout being left; none when stable.
    pub old: Option<Layout>,
    pub current: Layout,
    /// Applied while a change was under way: each follows the one before, the first the current one.
    pub queued: Vec<Layout>,
    /// Nodes that the operator gave up waiting for in the change under way; empty when stable.
    pub skipped: BTreeSet<NodeId>,
    /// For each partition the version in which its set of nodes last changed: so a node that missed versions
    /// knows whether it was out of the set in between.
    pub set_since: Vec<u64>,
}

#[derive(Deserialize)]
struct Wire {
    epoch: u64,
    phase: Phase,
    old: Option<Layout>,
    current: Layout,
    #[serde(default)]
    queued: Vec<Layout>,
    #[serde(default)]
    skipped: BTreeSet<NodeId>,
    #[serde(default)]
    set_since: Vec<u64>,
}

impl ActiveLayout {
    /// Epoch 0: no layout applied.
    pub fn empty(parameters: Parameters, bits: u8) -> Self {
        Self {
            epoch: 0,
            phase: Phase::Stable,
            old: None,
            current: Layout::empty(parameters, bits),
            queued: Vec::new(),
            skipped: BTreeSet::new(),
            set_since: Vec::new(),
        }
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether no layout was applied yet.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// Whether a change is under way or waits: somebody has to bring it forward.
    pub fn is_changing(&self) -> bool {
        self.phase != Phase::Stable || !self.queued.is_empty()
    }

    /// The layout that the next one applied builds on: the last in the queue, or the current one.
    pub fn newest(&self) -> &Layout {
        self.queued.last().unwrap_or(&self.current)
    }

    /// The sets of nodes that must each give a write quorum: one, or old and current when they differ.
    pub fn write_sets(&self, partition: Partition) -> Result<Vec<Vec<NodeId>>, LookupError> {
        let current = self.current.nodes_of(partition)?;
        let mut sets = Vec::with_capacity(2);
        if let Some(old) = &self.old {
            let old = old.nodes_of(partition)?;
            if old != current {
                sets.push(old);
            }
        }
        sets.push(current);
        Ok(sets)
    }

    /// The set of nodes that must give a read quorum.
    pub fn read_set(&self, partition: Partition) -> Result<Vec<NodeId>, LookupError> {
        match (self.phase, &self.old) {
            (Phase::Introduced, Some(old)) => old.nodes_of(partition),
            _ => self.current.nodes_of(partition),
        }
    }

    /// The partition of what is named by `hash`; the same in every live layout.
    pub fn partition_of(&self, hash: &Hash) -> Partition {
        self.current.partition_of(hash)
    }

    /// The partition of the rows under partition key `pk`; the same in every live layout.
    pub fn partition_of_key(&self, pk: &[u8]) -> Partition {
        self.current.partition_of_key(pk)
    }

    /// Every node with a role in a live layout, in order of id. Queued layouts are not live.
    pub fn storage_nodes(&self) -> Vec<NodeId> {
        let old = self.old.iter().flat_map(|old| &old.nodes);
        self.current.nodes.iter().chain(old).copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a node holds `partition` in any live layout: it accepts writes for it.
    pub fn holds(&self, node: NodeId, partition: Partition) -> bool {
        let in_layout = |layout: &Layout| layout.holds(node, partition);
        in_layout(&self.current) || self.old.as_ref().is_some_and(in_layout)
    }

    /// The partitions whose set differs between old and current, ascending; none when stable.
    pub fn changed_partitions(&self) -> Vec<Partition> {
        let Some(old) = &self.old else { return Vec::new() };
        let all = (0..self.current.partitions()).map(|p| Partition(p as u16));
        all.filter(|p| old.nodes_of(*p) != self.current.nodes_of(*p)).collect()
    }

    /// The version in which the set of `partition` last changed.
    pub fn set_since(&self, partition: Partition) -> u64 {
        self.set_since.get(usize::from(partition.0)).copied().unwrap_or(self.current.version)
    }

    /// The next epoch with `next` in force at once, no copy being waited for: only for the first layout of a
    /// cluster. [`ActiveLayout::introduce`] otherwise.
    pub fn replace(&self, next: Layout) -> Result<Self, InvalidLayout> {
        let set_since = self.sets_since(&next);
        Self { epoch: self.next_epoch(), set_since, current: next, ..self.stable() }.following(self)
    }

    /// The next epoch, in which `next` is being moved to; only from stable with an empty queue. From version 0
    /// there is nothing to move: it is in force at once.
    pub fn introduce(&self, next: Layout) -> Result<Self, InvalidLayout> {
        if self.is_empty() {
            return self.replace(next);
        }
        let set_since = self.sets_since(&next);
        Self {
            epoch: self.next_epoch(),
            phase: Phase::Introduced,
            old: Some(self.current.clone()),
            current: next,
            set_since,
            ..self.clone()
        }
        .following(self)
    }

    /// The next epoch, in which `next` waits for the change under way to end.
    pub fn queue(&self, next: Layout) -> Result<Self, InvalidLayout> {
        let mut queued = self.queued.clone();
        queued.push(next);
        let after = Self { epoch: self.next_epoch(), queued, ..self.clone() }.following(self)?;
        if encode(&after).len() > MAX_ENCODED {
            return Err(InvalidLayout(
                "the layouts that wait are too large together; let one come first".into(),
            ));
        }
        Ok(after)
    }

    /// The next epoch after `next` was applied: it is introduced, or queued behind what is under way.
    pub fn apply(&self, next: Layout) -> Result<Self, InvalidLayout> {
        if self.is_changing() { self.queue(next) } else { self.introduce(next) }
    }

    /// The next epoch, in which the change under way does not wait for `nodes` either.
    pub fn skip(&self, nodes: &BTreeSet<NodeId>) -> Result<Self, InvalidLayout> {
        let skipped = self.skipped.union(nodes).copied().collect();
        Self { epoch: self.next_epoch(), skipped, ..self.clone() }.following(self)
    }

    /// The next epoch, once what this phase waits for is done ([`super::may_advance`]): introduced → synced →
    /// stable → the first of the queue introduced.
    pub fn next_phase(&self) -> Result<Self, InvalidLayout> {
        match self.phase {
            Phase::Introduced => self.synced(),
            Phase::Synced => self.finish(),
            Phase::Stable => {
                let (first, rest) = self
                    .queued
                    .split_first()
                    .ok_or_else(|| InvalidLayout("no layout waits to be introduced".into()))?;
                let set_since = self.sets_since(first);
                Self {
                    epoch: self.next_epoch(),
                    phase: Phase::Introduced,
                    old: Some(self.current.clone()),
                    current: first.clone(),
                    queued: rest.to_vec(),
                    skipped: BTreeSet::new(),
                    set_since,
                }
                .following(self)
            }
        }
    }

    /// The next epoch, once every new copy is complete.
    pub fn synced(&self) -> Result<Self, InvalidLayout> {
        Self { epoch: self.next_epoch(), phase: Phase::Synced, ..self.clone() }.following(self)
    }

    /// The next epoch, once every node of both layouts knows that all is synced: the old one is dropped.
    pub fn finish(&self) -> Result<Self, InvalidLayout> {
        Self { epoch: self.next_epoch(), ..self.stable() }.following(self)
    }

    fn stable(&self) -> Self {
        Self { phase: Phase::Stable, old: None, skipped: BTreeSet::new(), ..self.clone() }
    }

    fn next_epoch(&self) -> u64 {
        self.epoch.saturating_add(1)
    }

    /// What `set_since` is once `next` is the current layout.
    fn sets_since(&self, next: &Layout) -> Vec<u64> {
        let since = |p: usize| {
            let partition = Partition(p as u16);
            let same = !self.is_empty() && self.current.nodes_of(partition) == next.nodes_of(partition);
            if same { self.set_since(partition) } else { next.version }
        };
        (0..next.partitions()).map(since).collect()
    }

    fn following(self, before: &Self) -> Result<Self, InvalidLayout> {
        self.check_follows(before)?;
        Ok(self)
    }

    /// Checks that this may be the very next epoch after `before`.
    pub fn check_follows(&self, before: &Self) -> Result<(), InvalidLayout> {
        let fail = |why: String| Err(InvalidLayout(why));
        self.validate()?;
        if before.epoch.checked_add(1) != Some(self.epoch) {
            return fail(format!("epoch {} does not follow epoch {}", self.epoch, before.epoch));
        }
        if !before.is_empty() && before.current.bits != self.current.bits {
            return fail("the number of partitions cannot change".into());
        }
        let same = self.current == before.current && self.set_since == before.set_since;
        let right = match (before.phase, self.phase) {
            (Phase::Stable, Phase::Stable) if before.is_empty() => {
                self.current.version == 1
                    && self.queued.is_empty()
                    && self.set_since == before.sets_since(&self.current)
            }
            (Phase::Stable, Phase::Introduced) => self.introduces_after(before),
            (Phase::Introduced, Phase::Synced) => {
                same && self.old == before.old
                    && self.queued == before.queued
                    && self.skipped == before.skipped
            }
            (Phase::Synced, Phase::Stable) => same && self.queued == before.queued,
            (was, is) if was == is && same && self.old == before.old => {
                self.queues_after(before) || self.skips_after(before)
            }
            _ => false,
        };
        if right {
            return Ok(());
        }
        fail(format!(
            "version {} ({:?}, {} waiting) cannot follow version {} ({:?}, {} waiting)",
            self.current.version,
            self.phase,
            self.queued.len(),
            before.current.version,
            before.phase,
            before.queued.len(),
        ))
    }

    fn introduces_after(&self, before: &Self) -> bool {
        let in_turn = match before.queued.split_first() {
            Some((first, rest)) => self.current == *first && self.queued == rest,
            None => self.queued.is_empty(),
        };
        in_turn
            && self.old.as_ref() == Some(&before.current)
            && self.skipped.is_empty()
            && self.set_since == before.sets_since(&self.current)
    }

    fn queues_after(&self, before: &Self) -> bool {
        before.is_changing()
            && self.skipped == before.skipped
            && self.queued.len() == before.queued.len() + 1
            && self.queued.starts_with(&before.queued)
    }

    fn skips_after(&self, before: &Self) -> bool {
        self.queued == before.queued
            && self.skipped.len() > before.skipped.len()
            && self.skipped.is_superset(&before.skipped)
    }

    /// Whether what `earlier` decided is part of this state: it was this epoch, or came before it. False also
    /// when too much has happened since to tell.
    pub fn includes(&self, earlier: &Self) -> bool {
        if self.epoch <= earlier.epoch {
            return self == earlier;
        }
        let mut known = self.old.iter().chain([&self.current]).chain(&self.queued);
        let stage = |layout: &Self| match layout.phase {
            Phase::Introduced => (layout.current.version, 0),
            Phase::Synced => (layout.current.version, 1),
            Phase::Stable => (layout.current.version, 2),
        };
        let over = stage(self) > (earlier.current.version, 1);
        known.any(|layout| layout == earlier.newest())
            && stage(self) >= stage(earlier)
            && (over || self.skipped.is_superset(&earlier.skipped))
    }

    /// Where a copy of `partition` that may lack rows gets them from: a set of nodes, and from how many of them.
    /// That many have seen between them every write that was acknowledged before this epoch. Fewer than a read
    /// quorum only if the operator gave up waiting for the others.
    pub fn sources(&self, partition: Partition) -> Result<(Vec<NodeId>, usize), LookupError> {
        let nodes = self.old.as_ref().unwrap_or(&self.current).nodes_of(partition)?;
        let quorum = read_quorum(ConsistencyMode::Consistent, nodes.len());
        let waited_for = nodes.iter().filter(|node| !self.skipped.contains(node)).count();
        Ok((nodes, quorum.min(waited_for)))
    }

    /// Names this state: two with one digest are equal.
    pub fn digest(&self) -> Hash {
        Hash::of(&encode(self))
    }

    fn validate(&self) -> Result<(), InvalidLayout> {
        let fail = |why: &str| Err(InvalidLayout(why.into()));
        if (self.epoch == 0) != self.is_empty() {
            return fail("epoch 0 stands for version 0, and for nothing else");
        }
        let partitions = if self.is_empty() { 0 } else { self.current.partitions() };
        if self.set_since.len() != partitions || self.set_since.iter().any(|v| *v > self.current.version) {
            return fail("it does not tell since when each partition is where it is");
        }
        if self.queued.len() > MAX_QUEUED {
            return fail("too many layouts wait; let the change under way end first");
        }
        let mut before = &self.current;
        for next in &self.queued {
            if before.is_empty() || before.version.checked_add(1) != Some(next.version) {
                return fail("the layouts that wait do not follow one another");
            }
            if next.bits != before.bits {
                return fail("the number of partitions changes");
            }
            before = next;
        }
        match (&self.old, self.phase) {
            (None, Phase::Stable) if !self.skipped.is_empty() => fail("a stable layout waits for no node"),
            (None, Phase::Stable) => Ok(()),
            (Some(_), Phase::Stable) => fail("a stable layout has no old one"),
            (None, _) => fail("a layout that is changing names no old one"),
            (Some(old), _) if old.is_empty() => fail("version 0 holds no data to move"),
            (Some(old), _) if old.bits != self.current.bits => fail("the number of partitions changes"),
            (Some(old), _) if old.version.checked_add(1) != Some(self.current.version) => {
                fail("the old layout is not the version before the current one")
            }
            _ => Ok(()),
        }
    }
}

impl TryFrom<Wire> for ActiveLayout {
    type Error = InvalidLayout;

    fn try_from(wire: Wire) -> Result<Self, InvalidLayout> {
        let Wire { epoch, phase, old, current, queued, skipped, mut set_since } = wire;
        if set_since.is_empty() && !current.is_empty() {
            // Written before sets were followed: any of them may have changed up to now.
            set_since = vec![current.version; current.partitions()];
        }
        let active = Self { epoch, phase, old, current, queued, skipped, set_since };
        active.validate()?;
        Ok(active)
    }
}

impl Format for ActiveLayout {
    const NAME: &'static str = "active layout";
}

#[cfg(test)]
mod tests {
    use super::super::compute::compute;
    use super::super::role::{Role, ZoneRedundancy};
    use super::*;
    use crate::codec::decode;
    use std::collections::BTreeMap;

    const PARAMETERS: Parameters =
        Parameters { replication_factor: 2, zone_redundancy: ZoneRedundancy::Maximum };

    fn node(i: u8) -> NodeId {
        NodeId([i; 32])
    }

    fn layout(previous: &Layout, nodes: &[u8]) -> Layout {
        let role = |i: u8| Role { zone: format!("z{i}"), capacity: 1 << 40, tags: vec![] };
        let roles: BTreeMap<NodeId, Role> = nodes.iter().map(|&i| (node(i), role(i))).collect();
        compute(Some(previous), &roles, &PARAMETERS, 4).unwrap().0
    }

    fn first() -> ActiveLayout {
        let empty = ActiveLayout::empty(PARAMETERS, 4);
        empty.introduce(layout(&empty.current, &[1, 2])).unwrap()
    }

    #[test]
    fn without_a_layout_nothing_is_written_or_read() {
        let empty = ActiveLayout::empty(PARAMETERS, 4);
        assert_eq!(empty.write_sets(Partition(0)), Err(LookupError::NoLayout));
        assert_eq!(empty.read_set(Partition(0)), Err(LookupError::NoLayout));
        assert!(LookupError::NoLayout.to_string().starts_with("no layout applied"));
    }

    #[test]
    fn the_sets_of_each_phase_are_those_of_the_design() {
        let (old, new) = (vec![node(1), node(2)], vec![node(2), node(3)]);
        let stable = first();
        assert_eq!((stable.epoch(), stable.phase), (1, Phase::Stable));
        let introduced = stable.introduce(layout(&stable.current, &[2, 3])).unwrap();
        let synced = introduced.synced().unwrap();
        let finished = synced.finish().unwrap();
        let both = vec![old.clone(), new.clone()];
        for (active, epoch, write, read) in [
            (&stable, 1, vec![old.clone()], &old),
            (&introduced, 2, both.clone(), &old),
            (&synced, 3, both, &new),
            (&finished, 4, vec![new.clone()], &new),
        ] {
            assert_eq!(active.epoch(), epoch);
            assert_eq!(active.write_sets(Partition(3)).unwrap(), write);
            assert_eq!(&active.read_set(Partition(3)).unwrap(), read);
            assert_eq!(decode::<ActiveLayout>(&encode(active)).unwrap(), *active);
        }
        assert_eq!(introduced.storage_nodes(), [1, 2, 3].map(node));
        assert!(introduced.holds(node(1), Partition(0)) && !finished.holds(node(1), Partition(0)));
    }

    #[test]
    fn phases_cannot_be_skipped_or_repeated() {
        let stable = first();
        assert!(stable.synced().is_err() && stable.finish().is_err());
        let next = layout(&stable.current, &[2, 3]);
        let introduced = stable.introduce(next.clone()).unwrap();
        assert!(introduced.finish().is_err() && introduced.introduce(next.clone()).is_err());
        let two_on = layout(&next, &[1, 2]);
        assert!(introduced.replace(two_on.clone()).is_err() && introduced.introduce(two_on).is_err());
        assert!(introduced.synced().unwrap().synced().is_err());
        assert!(stable.introduce(stable.current.clone()).is_err(), "the version must rise");
        assert!(stable.replace(next).is_err(), "only the first layout is in force at once");
        assert!(introduced.check_follows(&introduced).is_err());
    }

    #[test]
    fn a_partition_that_does_not_move_is_written_once() {
        let stable = first();
        let mut next = layout(&stable.current, &[1, 2]);
        next.partition_size -= 1;
        let introduced = stable.introduce(next).unwrap();
        assert_eq!(introduced.write_sets(Partition(0)).unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let broken = ActiveLayout { old: Some(first().current), ..first() };
        assert!(decode::<ActiveLayout>(&encode(&broken)).is_err());
    }

    #[test]
    fn layouts_applied_during_a_change_come_one_after_the_other() {
        let stable = first();
        let second = layout(&stable.current, &[2, 3]);
        let third = layout(&second, &[3, 4]);
        let fourth = layout(&third, &[1, 4]);
        assert!(stable.queue(second.clone()).is_err(), "nothing is under way");
        let mut active = stable.apply(second.clone()).unwrap();
        assert!(active.queue(fourth.clone()).is_err(), "a version is missing");
        active = active.apply(third.clone()).unwrap().apply(fourth.clone()).unwrap();
        assert_eq!((active.epoch, active.phase, active.newest()), (4, Phase::Introduced, &fourth));
        assert_eq!(decode::<ActiveLayout>(&encode(&active)).unwrap(), active);
        let mut seen = Vec::new();
        while active.is_changing() {
            let next = active.next_phase().unwrap();
            assert!(next.includes(&active) && !active.includes(&next));
            active = next;
            seen.push((active.current.version, active.phase));
        }
        use Phase::{Introduced, Stable, Synced};
        let versions = [(2, Synced), (2, Stable), (3, Introduced), (3, Synced), (3, Stable)];
        assert_eq!(seen[..5], versions);
        assert_eq!(active.current, fourth);
        assert!(active.next_phase().is_err() && active.is_empty() == stable.is_empty());
        assert!(!active.includes(&stable), "three versions on, the first is not known any more");
    }

    #[test]
    fn a_layout_that_waits_comes_before_one_applied_later() {
        let stable = first();
        let second = layout(&stable.current, &[2, 3]);
        let third = layout(&second, &[3, 4]);
        let waiting = stable.apply(second).unwrap().apply(third.clone()).unwrap();
        let finished = waiting.next_phase().unwrap().next_phase().unwrap();
        assert_eq!(finished.phase, Phase::Stable);
        assert!(finished.is_changing() && finished.introduce(layout(&third, &[1, 2])).is_err());
        assert!(finished.introduce(third.clone()).is_err(), "it is not taken out of the queue");
        assert_eq!(finished.apply(layout(&third, &[1, 2])).unwrap().queued.len(), 2);
        assert_eq!(finished.next_phase().unwrap().current, third);
    }

    #[test]
    fn the_queue_is_bounded() {
        let stable = first();
        let mut active = stable.apply(layout(&stable.current, &[2, 3])).unwrap();
        for _ in 0..MAX_QUEUED {
            active = active.apply(layout(active.newest(), &[2, 3])).unwrap();
        }
        assert!(active.apply(layout(active.newest(), &[2, 3])).is_err());
    }

    #[test]
    fn skipped_nodes_belong_to_one_change() {
        let stable = first();
        let (one, two) = (BTreeSet::from([node(1)]), BTreeSet::from([node(2)]));
        assert!(stable.skip(&one).is_err(), "nothing is waited for");
        let introduced = stable.apply(layout(&stable.current, &[2, 3])).unwrap();
        let skipped = introduced.skip(&one).unwrap();
        assert!(skipped.skip(&one).is_err(), "nothing changes");
        assert!(skipped.includes(&introduced) && !introduced.skip(&two).unwrap().includes(&skipped));
        assert_eq!(skipped.skip(&two).unwrap().skipped.len(), 2);
        let synced = skipped.next_phase().unwrap();
        assert_eq!(synced.skipped, one);
        assert!(synced.next_phase().unwrap().skipped.is_empty());
    }

    #[test]
    fn a_decision_counts_as_carried_out_only_if_it_is_part_of_what_came() {
        let introduced = first().apply(layout(&first().current, &[2, 3])).unwrap();
        let queued = introduced.queue(layout(&introduced.current, &[3, 4])).unwrap();
        let moved_on = introduced.synced().unwrap().finish().unwrap();
        assert!(moved_on.epoch > queued.epoch && !moved_on.includes(&queued));
        assert!(queued.synced().unwrap().includes(&queued) && queued.includes(&queued));
    }

    #[test]
    fn each_partition_knows_since_when_its_nodes_are_the_same() {
        let stable = first();
        assert_eq!(stable.set_since, [1; 16]);
        let unmoved = stable.apply(layout(&stable.current, &[1, 2])).unwrap();
        assert_eq!(unmoved.set_since, [1; 16]);
        assert!(unmoved.changed_partitions().is_empty());
        let moved =
            unmoved.synced().unwrap().finish().unwrap().apply(layout(&unmoved.current, &[2, 3])).unwrap();
        assert_eq!((moved.set_since.clone(), moved.changed_partitions().len()), (vec![3; 16], 16));
        let lied = ActiveLayout { set_since: vec![1; 16], ..moved };
        assert!(lied.check_follows(&unmoved.synced().unwrap().finish().unwrap()).is_err());
    }

    #[test]
    fn a_state_of_the_release_before_is_read() {
        #[derive(Serialize, Deserialize)]
        struct Before(u64, Phase, Option<Layout>, Layout);
        impl Format for Before {
            const NAME: &'static str = "active layout";
        }
        let now = first();
        let bytes = encode(&Before(now.epoch, now.phase, None, now.current.clone()));
        assert_eq!(decode::<ActiveLayout>(&bytes).unwrap(), now);
    }
}
