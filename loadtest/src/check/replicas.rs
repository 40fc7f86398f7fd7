//! Convergence: once all is healed and done, every node of a partition's set holds the same rows, nobody else holds any,
//! and what is derived from rows equals a recount.

use super::cluster::{ClusterView, NodeView, RowName, partition_of, show};
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong, a line each.
pub fn replicas(view: &ClusterView) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for node in &view.nodes {
        found.extend(node.miscounts.iter().map(|what| format!("{}: {what}", node.name)));
    }
    let mut holders: BTreeMap<&RowName, Vec<&NodeView>> = BTreeMap::new();
    for node in &view.nodes {
        node.rows.keys().for_each(|row| holders.entry(row).or_default().push(node));
    }
    for (row, have) in holders {
        let should: BTreeSet<_> = view.holders(partition_of(&row.1)).iter().map(|node| node.id).collect();
        let names = |wanted: &dyn Fn(&NodeView) -> bool| -> Vec<String> {
            view.nodes.iter().filter(|node| wanted(node)).map(|node| node.name.clone()).collect()
        };
        let missing =
            names(&|node| should.contains(&node.id) && !have.iter().any(|other| other.id == node.id));
        if !missing.is_empty() {
            let with: Vec<&str> = have.iter().map(|node| node.name.as_str()).collect();
            let kind = if have.iter().any(|node| node.rows[row].live) { "live" } else { "tombstone" };
            found.push(format!("{} ({kind}) is on {with:?} and not on {missing:?}", show(row)));
        }
        let extra: Vec<&str> =
            have.iter().filter(|node| !should.contains(&node.id)).map(|node| node.name.as_str()).collect();
        if !extra.is_empty() {
            found.push(format!("{} is on {extra:?}, which do not hold its partition", show(row)));
        }
        let states: Vec<_> = have.iter().filter(|node| should.contains(&node.id)).collect();
        if states.windows(2).any(|pair| pair[0].rows[row] != pair[1].rows[row]) {
            let each: Vec<String> =
                states.iter().map(|node| format!("{} {:?}", node.name, node.rows[row])).collect();
            found.push(format!("{} differs: {}", show(row), each.join(", ")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cluster, row};
    use super::*;

    #[test]
    fn equal_replicas_are_fine_missing_different_and_misplaced_rows_are_not() {
        let mut view = cluster(4);
        let place = view.layout.current.nodes_of(partition_of(&[0, 0])).unwrap();
        let holds = |view: &ClusterView, n: usize| place.contains(&view.nodes[n].id);
        let inside: Vec<usize> = (0..4).filter(|n| holds(&view, *n)).collect();
        let outside = (0..4).find(|n| !holds(&view, *n)).unwrap();
        for n in &inside {
            row(&mut view.nodes[*n], b"k", 1, true);
        }
        assert_eq!(replicas(&view), Vec::<String>::new());
        row(&mut view.nodes[inside[0]], b"k", 2, true);
        assert!(replicas(&view)[0].contains("differs"));
        view.nodes[inside[0]].rows.clear();
        assert!(replicas(&view)[0].contains("not on"));
        row(&mut view.nodes[inside[0]], b"k", 1, true);
        row(&mut view.nodes[outside], b"k", 1, true);
        assert!(replicas(&view)[0].contains("do not hold"));
    }
}
