//! Small clusters for the tests of the checks.

use super::cluster::{ClusterView, NodeView, RowState};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Parameters, Role, ZoneRedundancy, compute};
use hayloft_common::schema::TableId;
use std::collections::BTreeMap;

/// So many nodes in zones of their own, with three copies of everything and nothing stored.
pub(super) fn cluster(nodes: u8) -> ClusterView {
    let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
    let role = |n: u8| Role { zone: format!("z{n}"), capacity: 1 << 40, tags: Vec::new() };
    let roles: BTreeMap<NodeId, Role> = (0..nodes).map(|n| (NodeId([n; 32]), role(n))).collect();
    let empty = ActiveLayout::empty(parameters, 4);
    let (layout, _) = compute(None, &roles, &parameters, 4).unwrap();
    let nodes =
        (0..nodes).map(|n| NodeView { name: format!("s{n}"), id: NodeId([n; 32]), ..NodeView::default() });
    ClusterView { layout: empty.replace(layout).unwrap(), nodes: nodes.collect() }
}

/// Sets a row of partition 0.
pub(super) fn row(node: &mut NodeView, key: &[u8], hash: u128, live: bool) {
    let key = [&[0, 0, 0, 1][..], key].concat();
    node.rows.insert((TableId::Object, key), RowState { hash, live, stays: false });
}
