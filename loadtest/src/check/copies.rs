//! No referenced block is deleted, and redundancy is whole: every block that a live version needs is referred to, and on
//! every node of its set, readable.

use super::cluster::ClusterView;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong, a line each.
pub fn copies(view: &ClusterView) -> Vec<String> {
    let mut needed: BTreeMap<Hash, BTreeSet<VersionId>> = BTreeMap::new();
    let mut need = |version: VersionId, blocks: &BTreeSet<Hash>| {
        for block in blocks {
            needed.entry(*block).or_default().insert(version);
        }
    };
    let wanted: BTreeSet<VersionId> =
        view.nodes.iter().flat_map(|node| node.wanted.keys().copied()).collect();
    for node in &view.nodes {
        node.wanted.iter().for_each(|(version, blocks)| need(*version, blocks));
        // A manifest may lie on other nodes than the row.
        let manifests = node.manifests.iter().filter(|(version, _)| wanted.contains(version));
        manifests.for_each(|(version, blocks)| need(*version, blocks));
    }
    let mut found = Vec::new();
    for (block, versions) in &needed {
        for holder in view.holders_of(block) {
            for version in versions {
                if !holder.references.contains(&(*block, *version)) {
                    found.push(format!(
                        "{} has no reference of version {version} to block {block}",
                        holder.name
                    ));
                }
            }
            match holder.copies.get(block) {
                None => found.push(format!("{} has no copy of block {block}, which is needed", holder.name)),
                Some(Some(wrong)) => {
                    found.push(format!("{} has a bad copy of block {block}: {wrong}", holder.name));
                }
                Some(None) => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::testing::cluster;
    use super::*;

    #[test]
    fn missing_references_and_missing_or_bad_copies_are_found() {
        let mut view = cluster(3);
        let (block, version) = (Hash::of(b"block"), VersionId::default());
        view.nodes[0].wanted.insert(version, BTreeSet::from([block]));
        for node in &mut view.nodes {
            node.references.insert((block, version));
            node.copies.insert(block, None);
        }
        assert_eq!(copies(&view), Vec::<String>::new());
        view.nodes[1].copies.insert(block, Some("rotten".into()));
        assert!(copies(&view)[0].contains("bad copy"));
        view.nodes[1].copies.remove(&block);
        assert!(copies(&view)[0].contains("no copy"));
        view.nodes[1].copies.insert(block, None);
        view.nodes[2].references.clear();
        assert!(copies(&view)[0].contains("no reference"));
    }
}
