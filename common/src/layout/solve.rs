//! The optimisation behind [`super::compute`].
//!
//! The constraints are those of a flow. Each partition sends `redundancy` units that must go to different
//! zones and `copies - redundancy` units that are free to go anywhere; a zone passes at most one unit of a
//! partition to each of its nodes; a node takes `capacity / size` units in all. An assignment exists iff
//! the flow can carry everything.
//!
//! All partitions are alike as far as existence goes, so the average of a flow over all permutations of
//! the partitions is a flow too, and (capacities being integers) the whole exists iff the flow summed over
//! the partitions does. That one has two sources, so its minimum cut is a sum over zones, either for the
//! units that must spread or for all of them ([`Problem::shortfall`]; the cut for the free units alone is
//! never the smallest). The largest size is found by bisection over that test, with no flow at all.
//! Who keeps what is then one minimum-cost flow: a copy costs 1 on a node that does not hold it yet.

use super::flow::Network;
use super::role::{Parameters, Role};
use crate::hash::Hash;
use crate::id::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Roles and parameters as numbers; nodes in order of id, zones in order of name.
pub(super) struct Problem {
    pub(super) partitions: usize,
    pub(super) copies: usize,
    /// Different zones each partition must touch.
    pub(super) redundancy: usize,
    pub(super) zones: Vec<String>,
    /// For each node its capacity in bytes and the number of its zone.
    pub(super) capacity: Vec<u64>,
    pub(super) zone: Vec<usize>,
    /// For each zone its nodes.
    members: Vec<Vec<usize>>,
    /// What the order of preference is drawn from, for each node and zone.
    node_key: Vec<u64>,
    zone_key: Vec<u64>,
}

/// Why a size is too large: the copies that some group of units needs exceed what the zones take.
pub(super) struct Shortfall {
    /// What any one zone could take of the group at most. Zones below it are full: they bound the size.
    pub(super) zone_limit: u64,
}

impl Problem {
    pub(super) fn new(roles: &BTreeMap<NodeId, Role>, parameters: &Parameters, bits: u8) -> Self {
        let names: BTreeSet<&str> = roles.values().map(|role| role.zone.as_str()).collect();
        let zones: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let number = |role: &Role| zones.partition_point(|name| *name < role.zone);
        let zone: Vec<usize> = roles.values().map(number).collect();
        let mut members = vec![Vec::new(); zones.len()];
        for (node, &zone) in zone.iter().enumerate() {
            members[zone].push(node);
        }
        let key = |bytes: &[u8]| {
            Hash::of(bytes).0.iter().take(8).fold(0, |key, &byte| (key << 8) | u64::from(byte))
        };
        Self {
            partitions: 1 << bits,
            copies: parameters.replication_factor,
            redundancy: parameters.effective_zone_redundancy(zones.len()),
            capacity: roles.values().map(|role| role.capacity).collect(),
            node_key: roles.keys().map(|node| key(node.as_bytes())).collect(),
            zone_key: zones.iter().map(|name| key(name.as_bytes())).collect(),
            zones,
            zone,
            members,
        }
    }

    /// The partitions of `size` bytes that `node` can take.
    fn room(&self, node: usize, size: u64) -> u64 {
        (self.capacity[node] / size).min(self.partitions as u64)
    }

    /// The partitions of `size` bytes that each zone can take, before any limit of redundancy.
    pub(super) fn zone_room(&self, size: u64) -> Vec<u64> {
        self.members.iter().map(|nodes| nodes.iter().map(|&node| self.room(node, size)).sum()).collect()
    }

    /// Most copies that a zone may hold under the redundancy.
    pub(super) fn zone_limit(&self) -> u64 {
        (self.partitions * (self.copies - self.redundancy + 1)) as u64
    }

    /// What stands against partitions of `size` bytes; none if an assignment exists.
    pub(super) fn shortfall(&self, size: u64) -> Option<Shortfall> {
        let room = self.zone_room(size);
        let all = self.partitions as u64;
        let spread = self.redundancy as u64 * all;
        let free = (self.copies - self.redundancy) as u64 * all;
        // Each group of sources with what it needs and what it may send to one zone.
        [(spread, all), (spread + free, all + free)]
            .into_iter()
            .find(|&(need, limit)| room.iter().map(|&room| room.min(limit)).sum::<u64>() < need)
            .map(|(_, zone_limit)| Shortfall { zone_limit })
    }

    /// The largest partition size in bytes for which an assignment exists, if there is any.
    pub(super) fn largest_size(&self) -> Option<u64> {
        let (mut fits, mut too_large) = (0, self.capacity.iter().max()?.saturating_add(1));
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            if self.shortfall(middle).is_none() {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        (fits > 0).then_some(fits)
    }

    /// Assigns partitions of `size` bytes with the fewest new copies, `held` being who has each partition
    /// now. None if no assignment exists.
    pub(super) fn assign(&self, size: u64, held: &[Vec<u16>]) -> Option<Vec<Vec<u16>>> {
        let (node_count, zone_count) = (self.capacity.len(), self.zones.len());
        let free = self.copies - self.redundancy;
        // Vertices: source, sink, nodes, then for each partition its two sources and its zones.
        let (source, sink) = (0, 1);
        let at_node = |node: usize| 2 + node;
        let base = |partition: usize| 2 + node_count + partition * (2 + zone_count);
        let mut network = Network::new(base(self.partitions));
        let mut placed = Vec::new();
        for (partition, held) in held.iter().enumerate() {
            let (spread_at, free_at) = (base(partition), base(partition) + 1);
            network.add(source, spread_at, self.redundancy as u32, 0);
            if free > 0 {
                network.add(source, free_at, free as u32, 0);
            }
            for zone in in_drawn_order(0..zone_count, &self.zone_key, partition) {
                let at_zone = base(partition) + 2 + zone;
                network.add(spread_at, at_zone, 1, 0);
                if free > 0 {
                    network.add(free_at, at_zone, free as u32, 0);
                }
                let members = self.members[zone].iter().copied();
                for node in in_drawn_order(members, &self.node_key, partition) {
                    let cost = u8::from(!held.contains(&(node as u16)));
                    placed.push((partition, node, network.add(at_zone, at_node(node), 1, cost)));
                }
            }
        }
        for node in 0..node_count {
            network.add(at_node(node), sink, self.room(node, size) as u32, 0);
        }
        if network.solve(source, sink) != (self.partitions * self.copies) as u64 {
            return None;
        }
        let mut assignment = vec![Vec::with_capacity(self.copies); self.partitions];
        for (partition, node, arc) in placed {
            if network.flow(arc) == 1 {
                assignment[partition].push(node as u16);
            }
        }
        self.spread(&mut assignment, size, held);
        for copies in &mut assignment {
            copies.sort_unstable();
        }
        Some(assignment)
    }

    /// Evens out the new copies that each node receives, in proportion to its capacity: hands a new copy
    /// on to another node while that lowers the sum of squares of copies received over capacity.
    /// The number of moves stays what it is.
    fn spread(&self, assignment: &mut [Vec<u16>], size: u64, held: &[Vec<u16>]) {
        let node_count = self.capacity.len();
        let (mut stored, mut received) = (vec![0u64; node_count], vec![0u64; node_count]);
        for (copies, held) in assignment.iter().zip(held) {
            for node in copies {
                stored[usize::from(*node)] += 1;
                received[usize::from(*node)] += u64::from(!held.contains(node));
            }
        }
        let room: Vec<u64> = (0..node_count).map(|node| self.room(node, size)).collect();
        // What the k-th copy adds to the sum is (2k - 1) / capacity; compared without division.
        let cheaper = |(a, ka): (usize, u64), (b, kb): (usize, u64)| {
            u128::from(2 * ka - 1) * u128::from(self.capacity[b])
                < u128::from(2 * kb - 1) * u128::from(self.capacity[a])
        };
        let mut improved = true;
        while improved {
            improved = false;
            for (copies, held) in assignment.iter_mut().zip(held) {
                for slot in 0..copies.len() {
                    let giver = usize::from(copies[slot]);
                    if held.contains(&copies[slot]) {
                        continue;
                    }
                    let mut best = (giver, received[giver]);
                    for node in 0..node_count {
                        let offer = (node, received[node] + 1);
                        if stored[node] < room[node]
                            && cheaper(offer, best)
                            && !copies.contains(&(node as u16))
                            && self.may_replace(copies, slot, node)
                        {
                            best = offer;
                        }
                    }
                    let (taker, _) = best;
                    if taker != giver {
                        copies[slot] = taker as u16;
                        for count in [&mut stored, &mut received] {
                            count[giver] -= 1;
                            count[taker] += 1;
                        }
                        improved = true;
                    }
                }
            }
        }
    }

    /// Whether `copies` still touch enough zones with `node` in the place of `slot`.
    fn may_replace(&self, copies: &[u16], slot: usize, node: usize) -> bool {
        let zone_at =
            |at: usize| if at == slot { self.zone[node] } else { self.zone[usize::from(copies[at])] };
        if self.zone[node] == self.zone[usize::from(copies[slot])] {
            return true;
        }
        let first = |at: &usize| (0..*at).all(|before| zone_at(before) != zone_at(*at));
        (0..copies.len()).filter(first).count() >= self.redundancy
    }
}

/// `items` in an order drawn for this partition from their keys. It spreads the partitions of a node over
/// all others, so that many nodes help when it is lost; and a new node does not change the order of others.
fn in_drawn_order(items: impl Iterator<Item = usize>, keys: &[u64], partition: usize) -> Vec<usize> {
    let mut items: Vec<usize> = items.collect();
    items.sort_by_cached_key(|&item| (mix(keys[item] ^ mix(partition as u64)), item));
    items
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the result depends on all of
/// the input.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
