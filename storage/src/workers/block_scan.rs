//! Compares references, block index and disks, and queues what differs for the resync worker. Changes nothing itself,
//! but for files that no index entry names, which it removes.
//!
//! Three passes: every live reference (of a partition held here) has an index entry at a place that can be read and is
//! there; every index entry has a live reference; every file of a large block has an index entry. Bytes are not read.
//!
//! Runs after an unclean start, when a disk is lost, removed from the configuration or partly deleted, and on demand
//! (`repair blocks`). A round goes on after a restart.

use super::block_copies::{not_queued, remove_unnamed};
use super::block_work::Round;
use super::pull::reading;
use super::{Next, Report, Worker, WorkerError};
use crate::blocks::{DiskId, Location, Place, ScanDepth, ScanItem};
use crate::meta::{Direction, KeyRange, Space, Step};
use crate::serve::Node;
use crate::serve::block::place_of;
use crate::tables::stored::Stored;
use crate::tables::{Overlay, TablesError, key};
use async_trait::async_trait;
use hayloft_common::hash::Hash;
use hayloft_common::schema::TableId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "block scan";
/// References or index entries looked at in one step.
const PAGE: usize = 4096;
const IDLE: Duration = Duration::from_secs(5);
/// How long a disk may take to list one directory.
const LIST_PATIENCE: Duration = Duration::from_secs(30);

/// The worker.
#[derive(Default)]
pub struct BlockScan(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// How often a disk had been opened again when that was last seen to.
    reopened: u64,
}

/// Asks for a scan.
pub async fn start(node: &Arc<Node>) -> Result<(), WorkerError> {
    node.block_work.ask_for_round(node, NAME, node.env.wall_millis()).await
}

/// Asks for a scan in a while: of what was found on the disks without metadata, references may come from other nodes yet.
pub async fn start_later(node: &Arc<Node>, pause: Duration) -> Result<(), WorkerError> {
    node.block_work.ask_for_round(node, NAME, node.env.wall_millis() + pause.as_millis() as u64).await
}

/// Where a round is: the first byte is the pass.
const REFERENCES: u8 = 0;
const INDEX: u8 = 1;
const FILES: u8 = 2;

#[async_trait]
impl Worker for BlockScan {
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
        let mut round = node.block_work.round(node, NAME).await?;
        let disks_moved = self.disks_moved(node, &round);
        if round.began_ms.is_none() || disks_moved {
            // A disk that is lost while a round is under way: the round begins anew.
            let (now, disks) = (node.env.wall_millis(), present(node));
            let first = round.number == 0 && round.wanted.is_none();
            if !disks_moved && !first && !round.is_due(now) {
                if disks.keys().any(|disk| !round.disks.contains_key(disk)) {
                    node.block_work.change_round(node, NAME, |round| round.disks.extend(disks)).await?;
                }
                return Ok(Next::After(IDLE));
            }
            let all = estimate(node);
            round = node
                .block_work
                .change_round(node, NAME, |round| {
                    round.begin(now);
                    round.cursor = vec![REFERENCES];
                    (round.all, round.disks, round.faults) = (all, disks, 0);
                    round.clone()
                })
                .await?;
            self.0.lock().reopened = node.blocks.reopened();
            report.begin(node.env.now(), all);
            tracing::info!("blocks are compared with references and disks");
        }
        self.go_on(node, &round, report).await
    }
}

/// The disks that can be read.
fn present(node: &Node) -> BTreeMap<DiskId, u64> {
    node.blocks.readable_disks().into_iter().map(|disk| (disk, 0)).collect()
}

fn estimate(node: &Node) -> u64 {
    let spaces = node.engine.stats().spaces;
    let wanted = [Space::Table(TableId::BlockRef), Space::BlockIndex];
    spaces.iter().filter(|space| wanted.contains(&space.space)).map(|space| space.entries).sum()
}

impl BlockScan {
    /// Whether blocks may be missing that the last round, or the present one, found.
    fn disks_moved(&self, node: &Node, round: &Round) -> bool {
        let now = present(node);
        let lost = round.disks.keys().any(|disk| !now.contains_key(disk));
        lost || node.blocks.reopened() != self.0.lock().reopened
    }

    async fn go_on(&self, node: &Arc<Node>, round: &Round, report: &Report) -> Result<Next, WorkerError> {
        let (pass, at) = round.cursor.split_first().map_or((REFERENCES, &[][..]), |(pass, at)| (*pass, at));
        let (cursor, looked, found) = match pass {
            REFERENCES => self.references(node, at.to_vec()).await?,
            INDEX => self.index(node, at.to_vec()).await?,
            _ => self.files(node, at, report).await?,
        };
        let now = node.env.wall_millis();
        let ended = cursor.is_none();
        let disks = present(node);
        node.block_work
            .go_on(node, NAME, round.number, |round| {
                round.done += looked;
                round.faults += found;
                if let Some(cursor) = cursor {
                    round.cursor = cursor;
                } else {
                    round.finish(now);
                    // Disks that came while it ran are known from now on; one that went is noticed next.
                    round.disks.extend(disks);
                }
            })
            .await?;
        report.count(looked, 0);
        report.progress(round.done + looked, round.all.max(round.done + looked));
        report.notes(vec![format!("found so far: {}", round.faults + found)]);
        if ended {
            let found = round.faults + found;
            tracing::info!(found, "blocks have been compared with references and disks");
        }
        Ok(Next::Again)
    }

    /// References whose blocks have no good entry.
    async fn references(
        &self,
        node: &Arc<Node>,
        from: Vec<u8>,
    ) -> Result<(Option<Vec<u8>>, u64, u64), WorkerError> {
        let (page, missing) = reading(node, move |node| read_references(node, from)).await?;
        let found = queue(node, missing).await?;
        Ok((Some(page.next(REFERENCES, INDEX)), page.looked, found))
    }

    /// Entries without reference, and those that can't be read.
    async fn index(
        &self,
        node: &Arc<Node>,
        from: Vec<u8>,
    ) -> Result<(Option<Vec<u8>>, u64, u64), WorkerError> {
        let tables = node.plane()?.tables;
        let read = reading(node, move |node| {
            let view = node.engine.snapshot();
            let overlay = Overlay::new(&*view);
            let (mut page, mut blocks) = (Page::default(), Vec::new());
            let range = KeyRange { from, to: None };
            view.scan(Space::BlockIndex, &range, Direction::Forward, &mut |key, value| {
                if blocks.len() >= PAGE {
                    page.more = Some(key.to_vec());
                    return Step::Stop;
                }
                page.looked += 1;
                if let Ok(block) = <[u8; 32]>::try_from(&key[..]) {
                    blocks.push((Hash(block), Location::decode(value).is_ok()));
                }
                Step::Next
            })?;
            let mut unneeded = Vec::new();
            for (block, readable) in blocks {
                if !readable || !tables.is_referred(&overlay, &block)? {
                    unneeded.push(block);
                }
            }
            Ok((page, unneeded))
        });
        let (page, unneeded) = read.await?;
        let found = queue(node, unneeded).await?;
        Ok((Some(page.next(INDEX, FILES)), page.looked, found))
    }

    /// Files that no entry names, one directory of each disk at a time. They are removed.
    async fn files(
        &self,
        node: &Arc<Node>,
        at: &[u8],
        report: &Report,
    ) -> Result<(Option<Vec<u8>>, u64, u64), WorkerError> {
        let first = at.first().copied().unwrap_or_default();
        let mut found = 0;
        for disk in node.blocks.disks().into_iter().filter(|disk| disk.writable) {
            let list = unnamed(node, disk.disk, first);
            let Ok(unnamed) = tokio::time::timeout(LIST_PATIENCE, list).await else {
                let error = format!("disk {} takes too long to list a directory; passed over", disk.disk);
                report.error(node.env.now(), &error);
                continue;
            };
            for block in unnamed? {
                found += u64::from(remove_unnamed(node, block, disk.disk).await?);
            }
        }
        Ok((first.checked_add(1).map(|next| vec![FILES, next]), 0, found))
    }
}

/// How far a page went.
#[derive(Default)]
struct Page {
    /// Where to go on within the pass.
    more: Option<Vec<u8>>,
    looked: u64,
}

impl Page {
    fn next(&self, pass: u8, after: u8) -> Vec<u8> {
        match &self.more {
            Some(key) => [&[pass], key.as_slice()].concat(),
            None => vec![after],
        }
    }
}

/// A page of references: the blocks of live ones that this node should hold and has no copy of.
fn read_references(node: &Node, from: Vec<u8>) -> Result<(Page, Vec<Hash>), TablesError> {
    let view = node.engine.snapshot();
    let layout = node.cluster.layout();
    let (mut page, mut blocks) = (Page::default(), Vec::new());
    let range = KeyRange { from, to: None };
    view.scan(Space::Table(TableId::BlockRef), &range, Direction::Forward, &mut |key, value| {
        if page.looked >= PAGE as u64 {
            page.more = Some(key.to_vec());
            return Step::Stop;
        }
        page.looked += 1;
        // A damaged reference may be live.
        let live = Stored::parse(TableId::BlockRef, key, value).map_or(true, |stored| stored.live);
        if let Some((block, _)) = key::split(key)
            && let Ok(block) = <[u8; 32]>::try_from(block)
            && live
            && blocks.last() != Some(&Hash(block))
        {
            blocks.push(Hash(block));
        }
        Step::Next
    })?;
    let mut missing = Vec::new();
    for block in blocks {
        if !layout.holds(node.id, layout.partition_of(&place_of(&block))) {
            continue;
        }
        let entry = view.get(Space::BlockIndex, block.as_bytes())?;
        let location = entry.and_then(|entry| Location::decode(&entry).ok());
        let good = location.is_some_and(|location| {
            // A disk that can't be asked now is another's business.
            node.blocks.is_readable(&location) && node.blocks.is_present(&block, &location).unwrap_or(true)
        });
        if !good {
            missing.push(block);
        }
    }
    Ok((page, missing))
}

/// Queues blocks that are not queued yet; says how many.
async fn queue(node: &Arc<Node>, blocks: Vec<Hash>) -> Result<u64, WorkerError> {
    let wanted = not_queued(node, blocks).await?;
    node.check_blocks(&wanted).await?;
    Ok(wanted.len() as u64)
}

/// Blocks that have a file in a directory of a disk and no index entry that names it.
async fn unnamed(node: &Arc<Node>, disk: DiskId, first: u8) -> Result<Vec<Hash>, WorkerError> {
    reading(node, move |node| {
        let Ok(files) = node.blocks.scan_files(disk, first, ScanDepth::Headers) else {
            return Ok(Vec::new());
        };
        let mut unnamed = Vec::new();
        for item in files {
            let ScanItem::Block { hash, .. } = item else { continue };
            let entry = node.engine.get(Space::BlockIndex, hash.as_bytes())?;
            let location = entry.and_then(|entry| Location::decode(&entry).ok());
            if !location.is_some_and(|at| at.disk == disk && at.place == Place::Plain) {
                unnamed.push(hash);
            }
        }
        Ok(unnamed)
    })
    .await
}
