//! Which blocks this node should hold and has no readable copy of; and whether anybody has one.

use super::pull::{self, Source};
use crate::blocks::Location;
use crate::meta::{Direction, KeyRange, Space, Step};
use crate::serve::Node;
use crate::tables::queue::Work;
use crate::tables::stored::Stored;
use crate::tables::{TablesError, key};
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Partition};
use hayloft_common::schema::TableId;
use hayloft_proto::message::sync::HaveBlocks;
use std::collections::BTreeSet;
use std::sync::Arc;

/// References looked at in one go.
const VISITS: usize = 20_000;
/// Blocks that one question may name.
const QUESTION: usize = 4096;

/// Missing blocks among some references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Each once, in order.
    pub missing: Vec<Hash>,
    /// The stored key to go on from; `None`: those were all of the partition.
    pub next: Option<Vec<u8>>,
}

/// The blocks with a live reference in `partition`, from a stored key on, of which no copy here can be read. Blocks.
pub fn missing(node: &Node, partition: Partition, from: Option<&[u8]>) -> Result<Missing, TablesError> {
    let view = node.engine.snapshot();
    let mut range = KeyRange::prefix(&partition.0.to_be_bytes());
    if let Some(from) = from {
        range.from = from.to_vec();
    }
    let mut wanted: BTreeSet<Hash> = BTreeSet::new();
    let (mut visited, mut next, mut failed) = (0, None, None);
    view.scan(Space::Table(TableId::BlockRef), &range, Direction::Forward, &mut |key, value| {
        if visited >= VISITS {
            next = Some(key.to_vec());
            return Step::Stop;
        }
        visited += 1;
        match Stored::parse(TableId::BlockRef, key, value) {
            Ok(stored) if stored.live => {
                let block = key::split(key).and_then(|(block, _)| <[u8; 32]>::try_from(block).ok());
                wanted.extend(block.map(Hash));
                Step::Next
            }
            Ok(_) => Step::Next,
            Err(e) => {
                failed = Some(e);
                Step::Stop
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut missing = Vec::new();
    for block in wanted {
        let entry = view.get(Space::BlockIndex, block.as_bytes())?;
        // A damaged entry is as good as none.
        let location = entry.and_then(|entry| Location::decode(&entry).ok());
        if !location.is_some_and(|location| node.blocks.is_readable(&location)) {
            missing.push(block);
        }
    }
    Ok(Missing { missing, next })
}

/// Those of `blocks` that do not wait in the queue for the resync worker. Blocks.
pub fn not_queued(
    node: &Node,
    partition: Partition,
    mut blocks: Vec<Hash>,
) -> Result<Vec<Hash>, TablesError> {
    let view = node.engine.snapshot();
    let mut failed = None;
    blocks.retain(|block| {
        let key = Work::CheckBlock { block: *block }.key(partition.0);
        match view.get(Space::Queue, &key) {
            Ok(entry) => entry.is_none(),
            Err(e) => {
                failed = Some(e);
                false
            }
        }
    });
    failed.map_or(Ok(blocks), |e| Err(e.into()))
}

/// Those of `blocks` that every other node that holds the partition says it has no readable copy of. As long as one of
/// them does not answer, none.
pub async fn lost(
    node: &Arc<Node>,
    layout: &ActiveLayout,
    partition: Partition,
    blocks: &[Hash],
) -> BTreeSet<Hash> {
    let mut lost: BTreeSet<Hash> = blocks.iter().copied().collect();
    let sets = layout.write_sets(partition).unwrap_or_default();
    let holders: BTreeSet<NodeId> = sets.into_iter().flatten().filter(|id| *id != node.id).collect();
    for peer in holders {
        let source = Source { peer, epoch: layout.epoch };
        let question: Vec<Hash> = lost.iter().copied().collect();
        for some in question.chunks(QUESTION) {
            let answer = pull::ask(node, source, &HaveBlocks { blocks: some.to_vec() }).await;
            let Ok(answer) = answer else { return BTreeSet::new() };
            if answer.have.len() != some.len() {
                return BTreeSet::new();
            }
            for (block, has) in some.iter().zip(answer.have) {
                if has {
                    lost.remove(block);
                }
            }
        }
    }
    lost
}
