//! What a computed layout means for people: sizes per node and zone, what moves, and why some capacity
//! stays unused.

use super::assignment::Layout;
use super::solve::Problem;
use crate::id::NodeId;
use serde::{Deserialize, Serialize};

/// Below this partition size (100 MB) the split into partitions is too fine for the capacity: nodes differ
/// notably in how full they are.
const LOW_PARTITION_SIZE: u64 = 100_000_000;
/// Below this share of the total capacity, in percent, too much of it is wasted.
const LOW_USABLE_PERCENT: u128 = 80;

/// A layout explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub statistics: Statistics,
    /// Text for people, one line each.
    pub lines: Vec<String>,
}

/// The numbers of a layout, as the admin interface shows them. Sizes and capacities in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    pub replication_factor: usize,
    /// Different zones that every partition touches.
    pub effective_zone_redundancy: usize,
    pub partition_size: u64,
    pub previous_partition_size: Option<u64>,
    /// What all nodes offer.
    pub total_capacity: u64,
    /// What of it the assignment uses when full, all copies counted.
    pub usable_capacity: u64,
    /// What fits into the cluster, each byte counted once.
    pub effective_capacity: u64,
    /// Whether partitions are so small that nodes fill unevenly.
    pub low_partition_size: bool,
    /// Whether much capacity stays unused.
    pub low_usable_capacity: bool,
    /// Copies that nodes must fetch; none for the first layout, when there is nothing to fetch.
    pub total_moved_partitions: Option<usize>,
    pub zones: Vec<ZoneStatistics>,
}

/// The numbers of one zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneStatistics {
    pub name: String,
    pub total_capacity: u64,
    pub usable_capacity: u64,
    /// Partitions with at least one copy here.
    pub unique_partitions: usize,
    /// Copies here.
    pub total_replicated_partitions: usize,
    pub nodes: Vec<NodeStatistics>,
}

/// The numbers of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatistics {
    pub id: NodeId,
    pub tags: Vec<String>,
    pub stored_partitions: usize,
    /// Stored partitions that the node did not hold in the previous version.
    pub new_partitions: usize,
    pub total_capacity: u64,
    pub usable_capacity: u64,
}

impl Explanation {
    /// Explains `layout`, computed from `problem`; `held` is who had each partition before.
    pub(super) fn new(
        layout: &Layout,
        previous: Option<&Layout>,
        problem: &Problem,
        held: &[Vec<u16>],
    ) -> Self {
        let statistics = statistics(layout, previous, problem, held);
        let lines = lines(layout, &statistics, problem);
        Self { statistics, lines }
    }
}

fn statistics(
    layout: &Layout,
    previous: Option<&Layout>,
    problem: &Problem,
    held: &[Vec<u16>],
) -> Statistics {
    let size = layout.partition_size;
    let mut nodes: Vec<NodeStatistics> = Vec::with_capacity(layout.nodes.len());
    for (&id, role) in &layout.roles {
        nodes.push(NodeStatistics {
            id,
            tags: role.tags.clone(),
            stored_partitions: 0,
            new_partitions: 0,
            total_capacity: role.capacity,
            usable_capacity: 0,
        });
    }
    let mut unique = vec![0; problem.zones.len()];
    for (copies, held) in layout.assignment.iter().zip(held) {
        for &node in copies {
            nodes[usize::from(node)].stored_partitions += 1;
            nodes[usize::from(node)].new_partitions += usize::from(!held.contains(&node));
        }
        let mut zones: Vec<usize> = copies.iter().map(|&node| problem.zone[usize::from(node)]).collect();
        zones.sort_unstable();
        zones.dedup();
        for zone in zones {
            unique[zone] += 1;
        }
    }
    for node in &mut nodes {
        node.usable_capacity = node.stored_partitions as u64 * size;
    }
    let moved = nodes.iter().map(|node| node.new_partitions).sum();
    let mut zones: Vec<ZoneStatistics> = Vec::with_capacity(problem.zones.len());
    for (name, unique_partitions) in problem.zones.iter().zip(unique) {
        zones.push(ZoneStatistics {
            name: name.clone(),
            total_capacity: 0,
            usable_capacity: 0,
            unique_partitions,
            total_replicated_partitions: 0,
            nodes: Vec::new(),
        });
    }
    for (node, &zone) in nodes.into_iter().zip(&problem.zone) {
        let zone = &mut zones[zone];
        zone.total_capacity = zone.total_capacity.saturating_add(node.total_capacity);
        zone.usable_capacity = zone.usable_capacity.saturating_add(node.usable_capacity);
        zone.total_replicated_partitions += node.stored_partitions;
        zone.nodes.push(node);
    }
    let total_capacity = zones.iter().fold(0u64, |sum, zone| sum.saturating_add(zone.total_capacity));
    let usable_capacity = zones.iter().fold(0u64, |sum, zone| sum.saturating_add(zone.usable_capacity));
    let percent = u128::from(usable_capacity) * 100 / u128::from(total_capacity.max(1));
    Statistics {
        replication_factor: problem.copies,
        effective_zone_redundancy: problem.redundancy,
        partition_size: size,
        previous_partition_size: previous.map(|layout| layout.partition_size),
        total_capacity,
        usable_capacity,
        effective_capacity: size.saturating_mul(problem.partitions as u64),
        low_partition_size: size < LOW_PARTITION_SIZE,
        low_usable_capacity: percent < LOW_USABLE_PERCENT,
        total_moved_partitions: previous.map(|_| moved),
        zones,
    }
}

fn lines(layout: &Layout, statistics: &Statistics, problem: &Problem) -> Vec<String> {
    let (copies, partitions) = (problem.copies, problem.partitions);
    let size = bytes(statistics.partition_size);
    let mut lines = vec![format!(
        "Version {}: {partitions} partitions, {copies} copies of each, in {} zone(s) at least; {} storage \
         node(s) in {} zone(s).",
        layout.version,
        problem.redundancy,
        layout.nodes.len(),
        problem.zones.len(),
    )];
    lines.push(match statistics.previous_partition_size {
        Some(before) => format!("Partition size: {size} (was {}).", bytes(before)),
        None => format!("Partition size: {size}."),
    });
    lines.push(format!(
        "Usable capacity: {} of {} ({}); that is {} of data, each byte stored {copies} time(s).",
        bytes(statistics.usable_capacity),
        bytes(statistics.total_capacity),
        share(statistics.usable_capacity, statistics.total_capacity),
        bytes(statistics.effective_capacity),
    ));
    lines.push(match statistics.total_moved_partitions {
        None => "Copies to move: none, this is the first layout.".into(),
        Some(0) => "Copies to move: none.".into(),
        Some(moved) => format!("Copies to move: {moved} of {}.", partitions * copies),
    });
    let bound = bound(statistics, problem);
    lines.extend(bound.clone());
    for zone in &statistics.zones {
        lines.push(format!(
            "Zone {}: {} partition(s) in {} copies; uses {} of {} ({}).",
            zone.name,
            zone.unique_partitions,
            zone.total_replicated_partitions,
            bytes(zone.usable_capacity),
            bytes(zone.total_capacity),
            share(zone.usable_capacity, zone.total_capacity),
        ));
        for node in &zone.nodes {
            lines.push(node_line(node, zone, statistics, problem));
        }
    }
    if statistics.low_partition_size {
        lines.push(format!(
            "Warning: a partition takes only {size}; with so little capacity the nodes fill unevenly."
        ));
    }
    if statistics.low_usable_capacity {
        lines.push(
            "Warning: much of the capacity stays unused: even out the capacities of nodes and zones, or see \
             whether a lower zone redundancy uses more of it."
                .into(),
        );
    }
    lines
}

/// What keeps partitions from being larger: the zones that are full, when others are not.
fn bound(statistics: &Statistics, problem: &Problem) -> Option<String> {
    let larger = statistics.partition_size.checked_add(1)?;
    let limit = problem.shortfall(larger)?.zone_limit;
    let room = problem.zone_room(larger);
    let full: Vec<&str> = (problem.zones.iter().zip(&room))
        .filter(|&(_, &room)| room < limit)
        .map(|(name, _)| name.as_str())
        .collect();
    if full.len() == problem.zones.len() {
        return None;
    }
    Some(format!("Bounded by zone(s) {}: more capacity there makes the cluster larger.", full.join(", ")))
}

fn node_line(
    node: &NodeStatistics,
    zone: &ZoneStatistics,
    statistics: &Statistics,
    problem: &Problem,
) -> String {
    let unused = node.total_capacity.saturating_sub(node.usable_capacity);
    let tags = if node.tags.is_empty() { String::new() } else { format!(" ({})", node.tags.join(", ")) };
    let line = format!(
        "  {}{tags}: {} partition(s), {} new; uses {} of {} ({})",
        node.id.short(),
        node.stored_partitions,
        node.new_partitions,
        bytes(node.usable_capacity),
        bytes(node.total_capacity),
        share(node.usable_capacity, node.total_capacity),
    );
    let zone_is_full = zone.total_replicated_partitions as u64 >= problem.zone_limit();
    let why = if unused < statistics.partition_size {
        if unused > 0 && node.stored_partitions == 0 {
            return format!("{line}; it is smaller than one partition");
        }
        return line;
    } else if node.stored_partitions == problem.partitions {
        "it holds a copy of every partition already"
    } else if zone_is_full {
        "its zone holds as many copies as the zone redundancy allows"
    } else if node.stored_partitions == 0 && problem.partitions * problem.copies < problem.capacity.len() {
        "there are more nodes than copies of partitions"
    } else {
        "every partition has its copies, and the other nodes cannot take larger ones"
    };
    format!("{line}; {} unused: {why}", bytes(unused))
}

fn share(part: u64, whole: u64) -> String {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", permille / 10, permille % 10)
}

/// A size for people, in decimal units as disks are sold.
fn bytes(size: u64) -> String {
    let (mut whole, mut rest, mut unit) = (size, 0, 0);
    while whole >= 1000 && unit < 5 {
        (rest, whole, unit) = (whole % 1000, whole / 1000, unit + 1);
    }
    let name = ["B", "kB", "MB", "GB", "TB", "PB"][unit];
    if unit == 0 { format!("{whole} B") } else { format!("{whole}.{} {name}", rest / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_on_the_box_of_a_disk() {
        let texts = [0, 999, 1_000, 1_550, 4_000_000_000_000, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "999 B", "1.0 kB", "1.5 kB", "4.0 TB", "18446.7 PB"]);
        assert_eq!(share(1, 3), "33.3 %");
    }
}
