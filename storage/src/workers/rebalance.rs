//! Moves blocks to the disks of this node that should have them: after a disk was added, its capacity changed, or it takes
//! no writes any more (then it is drained, and can be removed). And on demand.
//!
//! A block is copied, durably, its index entry moved by compare-and-set under the block's lock, and the old copy freed.
//! A round walks the index in order of block and goes on after a restart.

use super::block_copies::{Moved, relocate};
use super::pull::reading;
use super::{Next, Report, Worker, WorkerError};
use crate::blocks::{DiskId, Location};
use crate::meta::{Direction, KeyRange, Space, Step};
use crate::serve::Node;
use async_trait::async_trait;
use futures::stream::{self, StreamExt as _};
use hayloft_common::hash::Hash;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "rebalance";
const IDLE: Duration = Duration::from_secs(10);
/// Index entries looked at in one step, and blocks moved.
const PAGE: u64 = 8192;
const MOVES: usize = 256;
const PARALLEL: usize = 16;
/// After a round in which some blocks could not be moved.
const AGAIN: Duration = Duration::from_hours(1);

/// The worker.
pub struct Rebalance;

/// Asks for a round.
pub async fn start(node: &Arc<Node>) -> Result<(), WorkerError> {
    node.block_work.ask_for_round(node, NAME, node.env.wall_millis()).await
}

#[async_trait]
impl Worker for Rebalance {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tranquility(&self) -> u32 {
        1
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        if node.plane().is_err() {
            return Ok(Next::After(IDLE));
        }
        let (now, shares) = (node.env.wall_millis(), shares(node));
        let mut round = node.block_work.round(node, NAME).await?;
        // A round under way goes by the disks as they are; if they changed since it began, another follows.
        if round.began_ms.is_none() {
            if round.disks == shares && !round.is_due(now) {
                return Ok(Next::After(IDLE));
            }
            let all = entries(node);
            round = node
                .block_work
                .change_round(node, NAME, |round| {
                    round.begin(now);
                    (round.all, round.disks, round.faults) = (all, shares, 0);
                    round.clone()
                })
                .await?;
            report.begin(node.env.now(), all);
        }
        let page = read_page(node, round.cursor.clone()).await?;
        let mut failed = 0;
        let mut moves = stream::iter(page.moves)
            .map(async |(block, from, to)| relocate(node, block, &from, to).await)
            .buffer_unordered(PARALLEL);
        while let Some(moved) = moves.next().await {
            match moved {
                Ok(Moved::Bytes(bytes)) => report.count(1, bytes),
                Ok(Moved::NotThere | Moved::Lost) => {}
                Err(error) => {
                    failed += 1;
                    report.error(node.env.now(), &error);
                }
            }
        }
        drop(moves);
        let faults = round.faults + failed;
        node.block_work
            .go_on(node, NAME, round.number, |round| {
                (round.done, round.faults) = (round.done + page.looked, faults);
                if let Some(next) = page.next {
                    round.cursor = next;
                    return;
                }
                round.finish(now);
                if faults > 0 {
                    round.wanted.get_or_insert(now + AGAIN.as_millis() as u64);
                }
            })
            .await?;
        let done = round.done + page.looked;
        report.progress(done, round.all.max(done));
        Ok(Next::Again)
    }
}

fn entries(node: &Node) -> u64 {
    let spaces = node.engine.stats().spaces;
    spaces.iter().filter(|space| space.space == Space::BlockIndex).map(|space| space.entries).sum()
}

/// What placement goes by: each disk's share of the blocks in percent; 0 if it takes none. Rounded, since the size of
/// some file systems wavers.
fn shares(node: &Node) -> BTreeMap<DiskId, u64> {
    let disks = node.blocks.disks();
    let weight = |disk: &crate::blocks::DiskUse| if disk.writable { disk.weight } else { 0 };
    let total: u128 = disks.iter().map(|disk| u128::from(weight(disk))).sum();
    let share = |disk: &crate::blocks::DiskUse| (u128::from(weight(disk)) * 100 / total.max(1)) as u64;
    disks.iter().filter(|disk| disk.readable).map(|disk| (disk.disk, share(disk))).collect()
}

struct Page {
    moves: Vec<(Hash, Location, DiskId)>,
    next: Option<Vec<u8>>,
    looked: u64,
}

/// Index entries from `from` on, and which of them lie on another disk than they should.
async fn read_page(node: &Arc<Node>, from: Vec<u8>) -> Result<Page, WorkerError> {
    reading(node, move |node| {
        let mut page = Page { moves: Vec::new(), next: None, looked: 0 };
        let range = KeyRange { from, to: None };
        node.engine.scan(Space::BlockIndex, &range, Direction::Forward, &mut |key, value| {
            if page.looked >= PAGE || page.moves.len() >= MOVES {
                page.next = Some(key.to_vec());
                return Step::Stop;
            }
            page.looked += 1;
            if let (Ok(block), Ok(at)) = (<[u8; 32]>::try_from(&key[..]), Location::decode(value))
                && node.blocks.is_readable(&at)
                && let Some(to) = node.blocks.preferred(&Hash(block)).filter(|to| *to != at.disk)
            {
                page.moves.push((Hash(block), at, to));
            }
            Step::Next
        })?;
        Ok(page)
    })
    .await
}
