//! Gives back the space of packed blocks that were released: copies what is live of a segment, then removes its file.
//!
//! In this order, so that a crash at any step loses nothing: the segment is sealed; every put that was under way is waited
//! for, so that from here on no new index entry names the segment; each live block is copied, durably, and its entry
//! moved by compare-and-set under the block's lock; the index is asked again whether any entry names the segment; only
//! then the file goes. A reader that looked the place up before either has the file open or finds it missing and looks
//! the block up again (`serve::block`).
//!
//! What is live the index alone says: the counts by which segments are chosen are hints.

use super::block_copies::{Moved, entries_in_segment, lies_in, relocate, wait_for_puts};
use super::pull::reading;
use super::{Next, Report, Worker, WorkerError};
use crate::blocks::{DiskId, Location, ScanItem, SegmentUsage};
use crate::meta::Space;
use crate::serve::Node;
use async_trait::async_trait;
use futures::stream::{self, StreamExt as _};
use hayloft_common::hash::Hash;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "compaction";
const IDLE: Duration = Duration::from_secs(30);
/// A segment that could not be compacted is left alone for so long.
const SKIP: Duration = Duration::from_mins(10);
/// Blocks copied at once: they share syncs.
const PARALLEL: usize = 32;
/// A segment that is still written to is worth a new one from this many dead bytes on, or if all of it is dead.
const WORTH: u64 = 1 << 20;
/// Dead bytes that every segment has: its header.
const UNAVOIDABLE: u64 = 64;
/// How long a disk may take to say which segment it writes to.
const PATIENCE: Duration = Duration::from_secs(5);

/// The worker.
#[derive(Default)]
pub struct Compaction(Mutex<BTreeMap<(DiskId, u32), Duration>>);

/// Asks for a round over every segment with dead bytes, however few.
pub async fn start(node: &Arc<Node>) -> Result<(), WorkerError> {
    node.block_work.ask_for_round(node, NAME, node.env.wall_millis()).await
}

/// A segment to be compacted.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    disk: DiskId,
    segment: u32,
    usage: SegmentUsage,
}

#[async_trait]
impl Worker for Compaction {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        if node.plane().is_err() {
            return Ok(Next::After(IDLE));
        }
        let now_ms = node.env.wall_millis();
        let mut round = node.block_work.round(node, NAME).await?;
        if round.began_ms.is_none() && round.is_due(now_ms) {
            round = node
                .block_work
                .change_round(node, NAME, |round| {
                    round.begin(now_ms);
                    round.clone()
                })
                .await?;
        }
        let asked = round.began_ms.is_some();
        let Some(chosen) = self.choose(node, asked).await else {
            if asked {
                node.block_work.go_on(node, NAME, round.number, |round| round.finish(now_ms)).await?;
            }
            return Ok(Next::After(IDLE));
        };
        match compact(node, chosen).await {
            Ok(moved) => {
                report.count(1, moved);
                Ok(Next::Again)
            }
            Err(error) => {
                // The others are not held up by it.
                self.0.lock().insert((chosen.disk, chosen.segment), node.env.now() + SKIP);
                Err(error)
            }
        }
    }
}

impl Compaction {
    /// The segment with the largest share of dead bytes, if there is one to be compacted.
    async fn choose(&self, node: &Arc<Node>, asked: bool) -> Option<Chosen> {
        let now = node.env.now();
        self.0.lock().retain(|_, until| *until > now);
        let least = if asked { 0 } else { u64::from(node.settings.compact_dead_percent.max(1)) };
        let mut best: Option<(u64, Chosen)> = None;
        for disk in node.blocks.disks().into_iter().filter(|disk| disk.writable) {
            let appending = tokio::time::timeout(PATIENCE, node.blocks.appending(disk.disk)).await;
            let Ok(Ok(appending)) = appending else { continue };
            for (segment, usage) in node.blocks.segments(disk.disk) {
                let dead = usage.dead_bytes();
                let share = dead * 100 / usage.file_bytes.max(1);
                let all_dead = usage.live_blocks == 0;
                let open = appending == Some(segment);
                let worth = match (open, asked) {
                    (true, false) => dead >= WORTH || (all_dead && dead > UNAVOIDABLE),
                    (true, true) => dead > UNAVOIDABLE,
                    (false, _) => dead > UNAVOIDABLE || all_dead,
                };
                let skipped = self.0.lock().contains_key(&(disk.disk, segment));
                let better = best.as_ref().is_none_or(|(most, _)| share > *most);
                if worth && share >= least && !skipped && better {
                    best = Some((share, Chosen { disk: disk.disk, segment, usage }));
                }
            }
        }
        best.map(|(_, chosen)| chosen)
    }
}

/// Compacts one segment; returns the bytes copied.
async fn compact(node: &Arc<Node>, chosen: Chosen) -> Result<u64, WorkerError> {
    let Chosen { disk, segment, usage } = chosen;
    node.blocks.seal(disk, segment).await?;
    wait_for_puts(node).await?;
    let (mut live, damaged) = live_records(node, disk, segment).await?;
    if damaged {
        // Headers may be unreadable of blocks that the index has here.
        live = entries_in_segment(node, disk, segment).await?;
    }
    let blocks: Vec<Hash> = live.iter().map(|(block, _)| *block).collect();
    let mut moves = stream::iter(live)
        .map(async |(block, from)| relocate(node, block, &from, disk).await)
        .buffer_unordered(PARALLEL);
    let mut copied = 0;
    while let Some(moved) = moves.next().await {
        if let Moved::Bytes(bytes) = moved? {
            copied += bytes;
        }
    }
    drop(moves);
    if still_named(node, disk, segment, blocks).await? {
        return Err(WorkerError::Other(format!("blocks still lie in segment {segment} of disk {disk}")));
    }
    if !node.commit_config.fsync {
        // The entries that lead away from the file must outlive it.
        let engine = node.engine.clone();
        reading(node, move |_| Ok(engine.sync()?)).await?;
    }
    node.blocks.remove_segment(disk, segment).await?;
    let freed = usage.file_bytes;
    tracing::debug!(%disk, segment, freed, copied, "a file of packed blocks was compacted");
    Ok(copied)
}

/// The records of a segment that the index names, and whether anything in it could not be read.
async fn live_records(
    node: &Arc<Node>,
    disk: DiskId,
    segment: u32,
) -> Result<(Vec<(Hash, Location)>, bool), WorkerError> {
    let records = node.blocks.scan_segment(disk, segment, 0)?;
    reading(node, move |node| {
        let view = node.engine.snapshot();
        let (mut live, mut damaged) = (Vec::new(), false);
        for item in records {
            let ScanItem::Block { hash, location } = item else {
                damaged = true;
                continue;
            };
            let entry = view.get(Space::BlockIndex, hash.as_bytes())?;
            if entry.and_then(|entry| Location::decode(&entry).ok()) == Some(location) {
                live.push((hash, location));
            }
        }
        Ok((live, damaged))
    })
    .await
}

/// Whether the index still names a place in the segment for one of the blocks.
async fn still_named(
    node: &Arc<Node>,
    disk: DiskId,
    segment: u32,
    blocks: Vec<Hash>,
) -> Result<bool, WorkerError> {
    reading(node, move |node| {
        for block in blocks {
            let entry = node.engine.get(Space::BlockIndex, block.as_bytes())?;
            let location = entry.and_then(|entry| Location::decode(&entry).ok());
            if location.is_some_and(|location| lies_in(&location, disk, segment)) {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
}
