//! The nodes that hold a partition: whose turn it is, and asking all of them.

use crate::serve::Node;
use futures::future::join_all;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Partition};
use hayloft_proto::body::Body;
use hayloft_proto::cluster::CALL_DEADLINE;
use hayloft_proto::error::RpcError;
use hayloft_proto::message::Message;
use std::sync::Arc;

/// A node's place among those that see to a partition: its current set, then those that are leaving it.
pub(super) fn rank(layout: &ActiveLayout, node: NodeId, partition: Partition) -> Option<u32> {
    let current = layout.current.nodes_of(partition).unwrap_or_default();
    let old = layout.old.as_ref().and_then(|old| old.nodes_of(partition).ok()).unwrap_or_default();
    let leaving = old.iter().filter(|id| !current.contains(id));
    current.iter().chain(leaving).position(|id| *id == node).map(|place| place as u32)
}

/// Every node that takes writes of a partition, each once; empty without a layout.
pub(super) fn members(layout: &ActiveLayout, partition: Partition) -> Vec<NodeId> {
    let mut all: Vec<NodeId> = layout.write_sets(partition).unwrap_or_default().concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// Sends a message to each of `nodes` under the layout of `epoch` and waits for all answers.
pub(super) async fn ask_each<M: Message>(
    node: &Arc<Node>,
    epoch: u64,
    nodes: &[NodeId],
    message: &M,
) -> Vec<(NodeId, Result<M::Reply, RpcError>)> {
    let calls = nodes.iter().map(|to| async move {
        let done = node.cluster.call_at(epoch, *to, message, Body::empty(), CALL_DEADLINE).await;
        (*to, done.map(|(reply, _)| reply))
    });
    join_all(calls).await
}

/// As [`ask_each`]; the first error if one of them did not answer well. A newer layout that one of them knows is learnt.
pub(super) async fn ask_all<M: Message>(
    node: &Arc<Node>,
    epoch: u64,
    nodes: &[NodeId],
    message: &M,
) -> Result<Vec<M::Reply>, RpcError> {
    let mut replies = Vec::with_capacity(nodes.len());
    let mut failed = None;
    for (_, answer) in ask_each(node, epoch, nodes, message).await {
        match answer {
            Ok(reply) => replies.push(reply),
            Err(error) => {
                if let RpcError::StaleEpoch { layout } = &error {
                    node.cluster.learn_encoded(layout).await;
                }
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(replies), Err)
}
