//! Reads every block on the disks once in `scrub_interval` and compares it with its checksum. A bad copy is given up and
//! fetched from another node; a file that no index entry names is removed.
//!
//! The disks are read in order, packed segments first, a bounded piece in each step, evenly over the interval (a round
//! that an operator asked for goes as fast as tranquility lets it). How far each disk is lies in the metadata engine, so
//! a round goes on after a restart. A disk that does not answer is passed over, and costs the others nothing.
//!
//! At the end of a round a block scan looks for blocks that the index has and the disks don't.

use super::block_copies::{entries_in_segment, remove_unnamed, verify};
use super::block_work::Round;
use super::pull::reading;
use super::{Next, Report, Worker, WorkerError, block_scan};
use crate::blocks::format::{plain_hash, record_size};
use crate::blocks::{DiskId, Location, Place, ScanItem, SegmentUsage};
use crate::meta::Space;
use crate::serve::Node;
use crate::tables::TablesError;
use async_trait::async_trait;
use hayloft_common::codec::{self, Format};
use hayloft_common::hash::Hash;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "scrub";
const IDLE: Duration = Duration::from_secs(30);
/// Bytes read in one step.
const STEP_BYTES: u64 = 32 << 20;
/// How long a disk may take for one step.
const STEP_PATIENCE: Duration = Duration::from_mins(2);
/// A disk that took longer is passed over for so long.
const SKIP: Duration = Duration::from_mins(10);
const DAY_MS: u64 = 24 * 3_600_000;

/// The worker.
#[derive(Default)]
pub struct Scrub(Mutex<State>);

#[derive(Default)]
struct State {
    /// Disks that did not answer, and until when they are passed over (monotonic).
    skipped: BTreeMap<DiskId, Duration>,
    /// What is known live so far of the segment being read on each disk, and what was counted at its start.
    counting: BTreeMap<DiskId, Counting>,
}

#[derive(Clone, Copy, Default)]
struct Counting {
    segment: u32,
    blocks: u64,
    bytes: u64,
    before: SegmentUsage,
}

/// Where a round is, by disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cursor {
    disks: BTreeMap<DiskId, Position>,
}

impl Format for Cursor {
    const NAME: &'static str = "position of a scrub";
}

/// What has been read of a disk: segments below `segment` and that one up to `offset`; of the files directories below
/// `directory` and that one up to the block `after`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    segment: u32,
    offset: u64,
    /// All segments are done.
    files: bool,
    directory: u8,
    after: Option<Hash>,
    done: bool,
    bytes: u64,
}

/// Begins a round now; one that is under way hurries.
pub async fn start(node: &Arc<Node>) -> Result<(), WorkerError> {
    let now = node.env.wall_millis();
    node.block_work
        .change_round(node, NAME, |round| {
            round.paused = false;
            if round.began_ms.is_some() {
                round.asked = true;
            } else {
                round.wanted = Some(now);
            }
        })
        .await?;
    node.workers.wake(NAME);
    Ok(())
}

/// Pauses scrubbing, for as long as it is not resumed; also over restarts.
pub async fn pause(node: &Arc<Node>, paused: bool) -> Result<(), WorkerError> {
    node.block_work.change_round(node, NAME, |round| round.paused = paused).await?;
    node.workers.wake(NAME);
    Ok(())
}

/// Gives up the present round; the next one begins after the usual time.
pub async fn cancel(node: &Arc<Node>) -> Result<(), WorkerError> {
    let now = node.env.wall_millis();
    node.block_work
        .change_round(node, NAME, |round| {
            round.wanted = None;
            if round.began_ms.is_some() {
                round.began_ms = Some(now);
                round.finish(now);
            }
        })
        .await
}

/// What an operator may want to know, by name. Dates in seconds since 1970.
pub async fn variables(node: &Arc<Node>) -> Result<BTreeMap<String, String>, WorkerError> {
    let round =
        if node.plane().is_ok() { node.block_work.round(node, NAME).await? } else { Round::default() };
    let date = |ms: Option<u64>| ms.map_or_else(|| "never".to_owned(), |ms| (ms / 1000).to_string());
    let interval = node.settings.scrub_interval.as_millis() as u64;
    let next = round.last.map(|(began, _)| began + interval);
    Ok(BTreeMap::from([
        ("scrub-paused".to_owned(), round.paused.to_string()),
        ("scrub-began".to_owned(), date(round.began_ms)),
        ("scrub-last-began".to_owned(), date(round.last.map(|(began, _)| began))),
        ("scrub-last-ended".to_owned(), date(round.last.map(|(_, ended)| ended))),
        ("scrub-next".to_owned(), date(round.began_ms.or(round.wanted).or(next))),
        ("scrub-bad-copies".to_owned(), round.faults.to_string()),
    ]))
}

#[async_trait]
impl Worker for Scrub {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tranquility(&self) -> u32 {
        4
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        if node.plane().is_err() {
            return Ok(Next::After(IDLE));
        }
        let now = node.env.wall_millis();
        let mut round = node.block_work.round(node, NAME).await?;
        if round.paused {
            report.notes(vec!["paused: `repair scrub resume` goes on".into()]);
            return Ok(Next::After(IDLE));
        }
        let interval = node.settings.scrub_interval.as_millis() as u64;
        if round.began_ms.is_none() {
            // A date in the future was set by a clock that was wrong.
            let due = round.last.is_none_or(|(began, _)| began + interval <= now || began > now + DAY_MS);
            if !due && !round.is_due(now) {
                return Ok(Next::After(IDLE));
            }
            let all = bytes_on_disks(node).await?;
            round = node
                .block_work
                .change_round(node, NAME, |round| {
                    round.begin(now);
                    (round.all, round.faults) = (all, 0);
                    round.clone()
                })
                .await?;
            report.begin(node.env.now(), all);
        }
        report.progress(round.done, round.all.max(round.done));
        report.notes(vec![format!("bad copies found: {}", round.faults)]);
        if let Some(pause) = ahead(&round, now, interval) {
            return Ok(Next::After(pause.min(IDLE)));
        }
        self.go_on(node, &round, report).await?;
        Ok(Next::Again)
    }
}

/// How long to wait because the round is ahead of its time.
fn ahead(round: &Round, now_ms: u64, interval_ms: u64) -> Option<Duration> {
    let began = round.began_ms.filter(|began| !round.asked && *began <= now_ms)?;
    // A tenth is kept for what is slower than thought.
    let due = u128::from(interval_ms) * 9 / 10 * u128::from(round.done) / u128::from(round.all.max(1));
    let spent = u128::from(now_ms - began);
    let pause = due.checked_sub(spent).filter(|pause| *pause > 0)?;
    Some(Duration::from_millis(pause.min(u128::from(DAY_MS)) as u64))
}

async fn bytes_on_disks(node: &Arc<Node>) -> Result<u64, WorkerError> {
    let disks = node.blocks.stats().await?;
    Ok(disks.iter().map(|disk| disk.live_bytes + disk.dead_bytes).sum())
}

/// What one step found on a disk.
#[derive(Default)]
struct Found {
    position: Position,
    bytes: u64,
    blocks: u64,
    /// Of the present segment.
    live: (u64, u64),
    /// The segment that was read to its end in this step, if it was.
    segment_done: Option<u32>,
    /// Segments in which something could not be read.
    damaged: BTreeSet<u32>,
    /// Files that are damaged, and those that no entry names.
    suspects: Vec<Hash>,
    unnamed: Vec<Hash>,
}

impl Scrub {
    async fn go_on(&self, node: &Arc<Node>, round: &Round, report: &Report) -> Result<(), WorkerError> {
        let mut cursor: Cursor = codec::decode(&round.cursor).unwrap_or_default();
        let now = node.env.now();
        self.0.lock().skipped.retain(|_, until| *until > now);
        // The disk of which least has been read goes next.
        let next = {
            let state = self.0.lock();
            let disks = node.blocks.disks();
            let open = disks.iter().filter(|disk| disk.readable && !state.skipped.contains_key(&disk.disk));
            let positions =
                open.map(|disk| (disk.disk, cursor.disks.get(&disk.disk).copied().unwrap_or_default()));
            positions.filter(|(_, position)| !position.done).min_by_key(|(_, position)| position.bytes)
        };
        let Some((disk, position)) = next else { return self.finish(node, round).await };
        let read = reading(node, move |node| read_on(node, disk, position));
        let Ok(read) = tokio::time::timeout(STEP_PATIENCE, read).await else {
            self.0.lock().skipped.insert(disk, node.env.now() + SKIP);
            return Err(WorkerError::Other(format!(
                "disk {disk} takes too long to be read; it is passed over"
            )));
        };
        let found = read?;
        let faults = self.see_to(node, disk, &found).await?;
        self.count_live(node, disk, position, &found);
        report.count(found.blocks, found.bytes);
        cursor.disks.insert(disk, Position { bytes: position.bytes + found.bytes, ..found.position });
        let encoded = codec::encode(&cursor);
        node.block_work
            .go_on(node, NAME, round.number, |round| {
                round.cursor = encoded;
                round.done += found.bytes;
                round.faults += faults;
            })
            .await
    }

    async fn finish(&self, node: &Arc<Node>, round: &Round) -> Result<(), WorkerError> {
        if !self.0.lock().skipped.is_empty() {
            tracing::warn!("a scrub ends without some disks, which did not answer");
        }
        let now = node.env.wall_millis();
        tracing::info!(
            bytes = round.done,
            bad_copies = round.faults,
            "all blocks have been read and verified"
        );
        node.block_work.go_on(node, NAME, round.number, |round| round.finish(now)).await?;
        block_scan::start(node).await
    }

    /// Gives up bad copies, removes files that nobody needs; returns how many copies were bad.
    async fn see_to(&self, node: &Arc<Node>, disk: DiskId, found: &Found) -> Result<u64, WorkerError> {
        let mut faults = 0;
        for segment in &found.damaged {
            for (block, location) in entries_in_segment(node, disk, *segment).await? {
                faults += u64::from(verify(node, block, &location).await?);
            }
        }
        for block in &found.suspects {
            match node.locate(*block).await? {
                Some(at) if at.disk == disk && at.place == Place::Plain => {
                    faults += u64::from(verify(node, *block, &at).await?);
                }
                _ => drop(remove_unnamed(node, *block, disk).await),
            }
        }
        for block in &found.unnamed {
            // A disk that takes no deletions keeps them.
            if let Err(error) = remove_unnamed(node, *block, disk).await {
                tracing::debug!(%block, %error, "a file that no index entry names stays for now");
            }
        }
        Ok(faults)
    }

    /// Puts right what is counted live in a segment that was read from end to end while nothing in it was released.
    fn count_live(&self, node: &Node, disk: DiskId, from: Position, found: &Found) {
        let mut state = self.0.lock();
        if found.position.files && from.files {
            return;
        }
        let segment = found.segment_done.unwrap_or(found.position.segment);
        let now = node.blocks.segments(disk).get(&segment).copied().unwrap_or_default();
        let counting = state.counting.entry(disk).or_default();
        if from.segment != segment || from.offset == 0 {
            *counting = Counting { segment, before: now, ..Counting::default() };
        }
        counting.blocks += found.live.0;
        counting.bytes += found.live.1;
        let whole = counting.segment == segment && found.segment_done.is_some() && counting.before == now;
        if whole && !found.damaged.contains(&segment) {
            node.blocks.set_live(disk, segment, counting.blocks, counting.bytes);
        }
    }
}

/// Reads a disk from a position on. Blocks its thread.
fn read_on(node: &Node, disk: DiskId, position: Position) -> Result<Found, TablesError> {
    if position.files { read_files(node, disk, position) } else { read_segment(node, disk, position) }
}

fn read_segment(node: &Node, disk: DiskId, position: Position) -> Result<Found, TablesError> {
    let mut found = Found { position, ..Found::default() };
    let mut segments = node.blocks.segments(disk).into_keys().filter(|segment| *segment >= position.segment);
    let Some(segment) = segments.next() else {
        found.position.files = true;
        return Ok(found);
    };
    let offset = if segment == position.segment { position.offset } else { 0 };
    let Ok(records) = node.blocks.scan_segment(disk, segment, offset) else { return Ok(found) };
    found.position = Position { segment, offset, ..position };
    for item in records {
        match item {
            ScanItem::Block { hash, location } => {
                let size = record_size(location.len as usize);
                found.bytes += size;
                found.blocks += 1;
                if entry(node, &hash)? == Some(location) {
                    found.live = (found.live.0 + 1, found.live.1 + size);
                }
                if let Place::Packed { offset, .. } = location.place {
                    found.position.offset = u64::from(offset) + size;
                }
            }
            ScanItem::Damaged { bytes, .. } => {
                found.bytes += bytes;
                found.damaged.insert(segment);
            }
        }
        if found.bytes >= STEP_BYTES {
            return Ok(found);
        }
    }
    found.segment_done = Some(segment);
    found.position.segment = segment.saturating_add(1);
    found.position.offset = 0;
    Ok(found)
}

fn read_files(node: &Node, disk: DiskId, position: Position) -> Result<Found, TablesError> {
    let mut found = Found { position, ..Found::default() };
    while found.bytes < STEP_BYTES && !found.position.done {
        let Position { directory, after, .. } = found.position;
        let Ok(files) = node.blocks.scan_files_after(disk, directory, after) else { return Ok(found) };
        let mut ended = true;
        for item in files {
            if found.bytes >= STEP_BYTES {
                ended = false;
                break;
            }
            found.read_file(node, disk, item)?;
        }
        if ended {
            found.position.after = None;
            match directory.checked_add(1) {
                Some(next) => found.position.directory = next,
                None => found.position.done = true,
            }
        }
    }
    Ok(found)
}

impl Found {
    fn read_file(&mut self, node: &Node, disk: DiskId, item: ScanItem) -> Result<(), TablesError> {
        match item {
            ScanItem::Block { hash, location } => {
                self.bytes += u64::from(location.len);
                self.blocks += 1;
                if !entry(node, &hash)?.is_some_and(|at| at.disk == disk && at.place == Place::Plain) {
                    self.unnamed.push(hash);
                }
                self.position.after = Some(hash);
            }
            ScanItem::Damaged { path, bytes, .. } => {
                self.bytes += bytes;
                if let Some(hash) = path.rsplit('/').next().and_then(plain_hash) {
                    self.suspects.push(hash);
                    self.position.after = Some(hash);
                }
            }
        }
        Ok(())
    }
}

fn entry(node: &Node, block: &Hash) -> Result<Option<Location>, TablesError> {
    let entry = node.engine.get(Space::BlockIndex, block.as_bytes())?;
    Ok(entry.and_then(|entry| Location::decode(&entry).ok()))
}
