//! Minimum-cost maximum flow, for [`super::compute`].
//!
//! Primal-dual (Ford and Fulkerson): shortest distances under reduced costs (Dijkstra) tell which arcs a
//! cheapest path may use; on those a blocking flow is pushed (Dinic) until none is left; and again. With
//! costs of 0 and 1 there are few distinct distances, so few rounds. Deterministic: integers only, arcs
//! are tried in the order they were added. Costs must not be negative.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const UNREACHED: u32 = u32::MAX;

struct Arc {
    to: u32,
    /// What may still be pushed.
    room: u32,
    cost: i32,
}

/// A flow network. Arc `2i` is the i-th one added, arc `2i + 1` its reverse.
pub(super) struct Network {
    arcs: Vec<Arc>,
    from: Vec<u32>,
    vertices: usize,
}

impl Network {
    pub(super) fn new(vertices: usize) -> Self {
        Self { arcs: Vec::new(), from: Vec::new(), vertices }
    }

    /// Adds an arc and returns its name for [`Network::flow`].
    pub(super) fn add(&mut self, from: usize, to: usize, capacity: u32, cost: u8) -> usize {
        self.arcs.push(Arc { to: to as u32, room: capacity, cost: i32::from(cost) });
        self.arcs.push(Arc { to: from as u32, room: 0, cost: -i32::from(cost) });
        self.from.extend([from as u32, to as u32]);
        self.arcs.len() - 2
    }

    /// What flows over an arc.
    pub(super) fn flow(&self, arc: usize) -> u32 {
        self.arcs[arc + 1].room
    }

    /// Pushes as much as possible from `source` to `sink` at the least cost; returns how much.
    pub(super) fn solve(&mut self, source: usize, sink: usize) -> u64 {
        let outgoing = Outgoing::new(&self.from, self.vertices);
        let mut potential = vec![0i32; self.vertices];
        let mut total = 0;
        while self.lift(&outgoing, &mut potential, source, sink) {
            while let Some(level) = self.levels(&outgoing, &potential, source, sink) {
                total += self.push(&outgoing, &potential, &level, source, sink);
            }
        }
        total
    }

    fn reduced(&self, arc: usize, potential: &[i32]) -> i32 {
        let Arc { to, cost, .. } = self.arcs[arc];
        cost + potential[self.from[arc] as usize] - potential[to as usize]
    }

    /// Raises the potentials by the distances from `source`; false if `sink` cannot be reached.
    fn lift(&self, outgoing: &Outgoing, potential: &mut [i32], source: usize, sink: usize) -> bool {
        let mut distance = vec![i32::MAX; self.vertices];
        let mut queue = BinaryHeap::from([Reverse((0, source))]);
        distance[source] = 0;
        while let Some(Reverse((so_far, vertex))) = queue.pop() {
            if so_far > distance[vertex] {
                continue;
            }
            if vertex == sink {
                break;
            }
            for &arc in outgoing.of(vertex) {
                let arc = arc as usize;
                let Arc { to, room, .. } = self.arcs[arc];
                let there = so_far + self.reduced(arc, potential);
                if room > 0 && there < distance[to as usize] {
                    distance[to as usize] = there;
                    queue.push(Reverse((there, to as usize)));
                }
            }
        }
        let reach = distance[sink];
        if reach == i32::MAX {
            return false;
        }
        for (potential, distance) in potential.iter_mut().zip(distance) {
            *potential += distance.min(reach);
        }
        true
    }

    fn is_tight(&self, arc: usize, potential: &[i32]) -> bool {
        self.arcs[arc].room > 0 && self.reduced(arc, potential) == 0
    }

    /// Steps from `source` over tight arcs; none if `sink` cannot be reached over them.
    fn levels(&self, outgoing: &Outgoing, potential: &[i32], source: usize, sink: usize) -> Option<Vec<u32>> {
        let mut level = vec![UNREACHED; self.vertices];
        let mut queue = VecDeque::from([source]);
        level[source] = 0;
        while let Some(vertex) = queue.pop_front() {
            for &arc in outgoing.of(vertex) {
                let arc = arc as usize;
                let to = self.arcs[arc].to as usize;
                if level[to] == UNREACHED && self.is_tight(arc, potential) {
                    level[to] = level[vertex] + 1;
                    queue.push_back(to);
                }
            }
            if level[sink] != UNREACHED {
                return Some(level);
            }
        }
        None
    }

    /// Pushes a blocking flow along tight arcs that climb the levels; returns how much.
    fn push(
        &mut self,
        outgoing: &Outgoing,
        potential: &[i32],
        level: &[u32],
        source: usize,
        sink: usize,
    ) -> u64 {
        let mut next = vec![0usize; self.vertices];
        let mut path: Vec<usize> = Vec::new();
        let mut pushed = 0;
        loop {
            let here = path.last().map_or(source, |&arc| self.arcs[arc].to as usize);
            if here == sink {
                let amount = path.iter().map(|&arc| self.arcs[arc].room).min().unwrap_or(0);
                for &arc in &path {
                    self.arcs[arc].room -= amount;
                    self.arcs[arc ^ 1].room += amount;
                }
                pushed += u64::from(amount);
                let full = path.iter().position(|&arc| self.arcs[arc].room == 0).unwrap_or(0);
                path.truncate(full);
                continue;
            }
            let climbs = |arc: usize| {
                let to = self.arcs[arc].to as usize;
                level[to] == level[here] + 1 && self.is_tight(arc, potential)
            };
            let onward = outgoing.of(here)[next[here]..].iter().position(|&arc| climbs(arc as usize));
            if let Some(skip) = onward {
                next[here] += skip;
                path.push(outgoing.of(here)[next[here]] as usize);
            } else {
                // A dead end: step back and never try that arc again in this round.
                next[here] = outgoing.of(here).len();
                let Some(arc) = path.pop() else { return pushed };
                next[self.from[arc] as usize] += 1;
            }
        }
    }
}

/// The arcs leaving each vertex, in the order they were added.
struct Outgoing {
    start: Vec<u32>,
    arcs: Vec<u32>,
}

impl Outgoing {
    fn new(from: &[u32], vertices: usize) -> Self {
        let mut start = vec![0u32; vertices + 1];
        for &vertex in from {
            start[vertex as usize + 1] += 1;
        }
        for vertex in 0..vertices {
            start[vertex + 1] += start[vertex];
        }
        let mut fill = start.clone();
        let mut arcs = vec![0; from.len()];
        for (arc, &vertex) in (0..).zip(from) {
            arcs[fill[vertex as usize] as usize] = arc;
            fill[vertex as usize] += 1;
        }
        Self { start, arcs }
    }

    fn of(&self, vertex: usize) -> &[u32] {
        &self.arcs[self.start[vertex] as usize..self.start[vertex + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_of_the_largest_flows_is_found() {
        // Taking the free arc 1→3 first would block the only way to push 2: it must be undone.
        let mut network = Network::new(4);
        let arcs = [(0, 1, 1, 0), (0, 2, 1, 1), (1, 2, 1, 0), (1, 3, 1, 1), (2, 3, 1, 0)]
            .map(|(a, b, room, cost)| (network.add(a, b, room, cost), cost));
        assert_eq!(network.solve(0, 3), 2);
        assert_eq!(arcs.map(|(arc, _)| network.flow(arc)), [1, 1, 0, 1, 1]);
        assert_eq!(arcs.iter().map(|&(arc, cost)| network.flow(arc) * u32::from(cost)).sum::<u32>(), 2);
    }

    #[test]
    fn an_unreachable_sink_takes_nothing() {
        let mut network = Network::new(3);
        network.add(0, 1, 5, 0);
        assert_eq!(network.solve(0, 2), 0);
    }
}
