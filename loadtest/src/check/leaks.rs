//! Nothing is left behind: no reference, manifest or block that no live version needs, no tombstone, no work undone.

use super::cluster::{ClusterView, show};
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use std::collections::BTreeSet;

/// What is left behind, a line each. Versions that were never committed are looked for only after an hour: until then
/// (unless `uncommitted`) their references are no leak, nor is the work that will look at them.
pub fn leaks(view: &ClusterView, uncommitted: bool) -> Vec<String> {
    let wanted: BTreeSet<VersionId> =
        view.nodes.iter().flat_map(|node| node.wanted.keys().copied()).collect();
    let mut found = Vec::new();
    for node in &view.nodes {
        let name = &node.name;
        for (row, state) in &node.rows {
            if !state.live && !state.stays {
                found.push(format!("{name}: tombstone left: {}", show(row)));
            }
        }
        if uncommitted {
            for (block, version) in node.references.iter().filter(|(_, version)| !wanted.contains(version)) {
                found.push(format!("{name}: reference of unwanted version {version} to block {block}"));
            }
            for version in node.manifests.keys().filter(|version| !wanted.contains(version)) {
                found.push(format!("{name}: manifest of unwanted version {version}"));
            }
        }
        let referred: BTreeSet<Hash> = node.references.iter().map(|(block, _)| *block).collect();
        for block in node.copies.keys().filter(|block| !referred.contains(block)) {
            found.push(format!("{name}: block {block} without a reference"));
        }
        for block in &node.strays {
            found.push(format!("{name}: a file of block {block} that the index does not know"));
        }
        for block in &node.unchecked {
            // A block that only uncommitted versions refer to may be nowhere, and is looked for until they are dropped.
            let mut versions = node.references.iter().filter(|(other, _)| other == block).peekable();
            let idle = versions.peek().is_some() && versions.all(|(_, version)| !wanted.contains(version));
            if uncommitted || !idle {
                found.push(format!("{name}: block {block} is queued to be looked at"));
            }
        }
        for (kind, number) in &node.queued {
            if uncommitted || kind != "CheckRef" {
                found.push(format!("{name}: {number} entries of {kind} in the queue"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cluster, row};
    use super::*;

    #[test]
    fn tombstones_unwanted_references_and_unreferenced_blocks_are_found() {
        let mut view = cluster(3);
        let (block, version) = (Hash::of(b"block"), VersionId::default());
        assert_eq!(leaks(&view, true), Vec::<String>::new());
        view.nodes[0].references.insert((block, version));
        view.nodes[0].copies.insert(block, None);
        assert_eq!(leaks(&view, false), Vec::<String>::new());
        assert_eq!(leaks(&view, true).len(), 1);
        view.nodes[1].wanted.insert(version, BTreeSet::new());
        assert_eq!(leaks(&view, true), Vec::<String>::new());
        view.nodes[0].references.clear();
        assert!(leaks(&view, true)[0].contains("without a reference"));
        row(&mut view.nodes[2], b"k", 1, false);
        assert!(leaks(&view, true)[1].contains("tombstone"));
    }
}
