//! Sees to blocks that are queued to be looked at: fetches those that this node should hold and doesn't, releases those
//! that nothing refers to any more.
//!
//! - Live reference, partition held here, no good copy: fetched from another node, nearest first; of each batch those
//!   with the fewest copies elsewhere first. The local copy is read to know whether it is good.
//! - No live reference for `block_grace`: the index entry goes, then the bytes.
//! - Partition not held: nothing is fetched.
//!
//! What fails is tried again, each block after a pause of its own, for ever; the entry stays queued until it is done.
//! Entries are read in order of partition, a batch at a time, over and over: there is no state but the queue, the
//! pauses, and which entries are known to be waiting for their time of grace.

use super::block_copies::{self, give_up, release, store, tidy};
use super::pull::reading;
use super::{Next, Report, Worker, WorkerError};
use crate::blocks::{BlockError, Location};
use crate::commit::Job;
use crate::limits::MAX_STORED_BLOCK;
use crate::meta::{Direction, KeyRange, Space, Step, View};
use crate::serve::Node;
use crate::serve::block::place_of;
use crate::tables::queue::{self, Entry, Kind, Work};
use crate::tables::stored::Stored;
use crate::tables::{Overlay, Tables, TablesError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use hayloft_common::block;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_common::limits::MAX_BLOCK_SIZE;
use hayloft_common::schema::TableId;
use hayloft_proto::body::Body;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::fanout::{self, FanoutError};
use hayloft_proto::message::block::{GetBlock, ReportBlock};
use hayloft_proto::message::operate::BlockErrorInfo;
use hayloft_proto::message::sync::HaveBlocks;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Woken by this name when a block is queued.
pub const NAME: &str = "block resync";
/// Blocks seen to in one step; as many as one question to another node may name.
const BATCH: usize = 4096;
/// Entries read in one step, due or not.
const SCAN: usize = 32_768;
/// Between two passes over the queue; woken, it starts no earlier than the shorter one after the last.
const IDLE: Duration = Duration::from_secs(5);
const BREATH: Duration = Duration::from_millis(200);
/// Blocks released at once: mostly they wait for one another's sync.
const RELEASES: usize = 256;
/// Entries known to wait for their time of grace.
const MAX_WAITING: usize = 300_000;
/// Fetches are weighed in units of this many bytes, blocks of unknown size as if they had the usual one.
const UNIT: u64 = 16 << 10;
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time for one block: all sources asked in turn, and a slow line.
const FETCH_DEADLINE: Duration = Duration::from_mins(2);
/// A put that was given up has come to its end after this long.
const STRAY_AGE: Duration = Duration::from_mins(1);

/// The worker.
#[derive(Default)]
pub struct Resync(Mutex<State>);

#[derive(Default)]
struct State {
    /// Where the pass goes on; none: at the start.
    from: Option<Vec<u8>>,
    /// When the earliest of the entries passed over in this pass is due, as a pause from when it was read.
    soonest: Option<Duration>,
    seen: u64,
    /// Blocks without live reference, and when they were queued: they need no second look before their time.
    waiting: BTreeMap<Hash, u64>,
    /// Until then (monotonic) the bandwidth is used up.
    free_at: Duration,
    /// Usual length of a block, for those whose length is unknown.
    usual: u64,
}

/// What is to be done about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Bytes that it had when it was here.
    Fetch(Option<u32>),
    /// Read the copy that should be here.
    Check(Location),
    Release {
        regardless: bool,
    },
    /// Nothing.
    Finished,
}

struct Task {
    key: Bytes,
    entry: Entry,
    block: Hash,
    action: Action,
}

/// A part of the queue, judged.
#[derive(Default)]
struct Page {
    tasks: Vec<Task>,
    /// Where the next page begins.
    next: Option<Vec<u8>>,
    seen: u64,
    soonest: Option<Duration>,
    /// Without live reference, not due yet.
    waiting: Vec<(Hash, u64)>,
    /// Dated in the future: the clock was wrong.
    misdated: Vec<Hash>,
    /// Entries that can't be read.
    damaged: Vec<Bytes>,
}

impl Page {
    fn wait(&mut self, pause: Duration) {
        self.soonest = Some(self.soonest.map_or(pause, |before| before.min(pause)));
    }
}

#[async_trait]
impl Worker for Resync {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        if node.plane().is_err() {
            return Ok(Next::After(IDLE));
        }
        let page = self.read_page(node).await?;
        self.tidy_queue(node, &page).await?;
        let (next, ended) = self.take_in(&page, report);
        self.work_off(node, page.tasks, report).await?;
        if ended {
            self.tidy_strays(node, report).await;
            tokio::time::sleep(BREATH).await;
        }
        Ok(next)
    }
}

impl Resync {
    async fn read_page(&self, node: &Arc<Node>) -> Result<Page, WorkerError> {
        let (from, waiting) = {
            let mut state = self.0.lock();
            (state.from.clone(), std::mem::take(&mut state.waiting))
        };
        let (now, now_ms) = (node.env.now(), node.env.wall_millis());
        let tables = node.plane()?.tables;
        let read = reading(node, move |node| {
            let page = read_page(node, tables, from, &waiting, now, now_ms);
            page.map(|page| (page, waiting))
        });
        let (page, mut waiting) = read.await?;
        for task in &page.tasks {
            waiting.remove(&task.block);
        }
        for (block, queued_ms) in &page.waiting {
            if waiting.len() < MAX_WAITING {
                waiting.insert(*block, *queued_ms);
            }
        }
        self.0.lock().waiting = waiting;
        Ok(page)
    }

    /// Sees to entries that can't be used as they are.
    async fn tidy_queue(&self, node: &Arc<Node>, page: &Page) -> Result<(), WorkerError> {
        if !page.damaged.is_empty() {
            let entries = page.damaged.len();
            tracing::error!(
                entries,
                "damaged entries of the queue are dropped; all blocks are looked at instead"
            );
            super::block_scan::start(node).await?;
            node.plane()?.commit.submit(Job::entries(queue::done(page.damaged.iter().cloned()))).await?;
        }
        Ok(node.check_blocks(&page.misdated).await?)
    }

    /// Takes in how far the pass is; says when it goes on, and whether it is at its end.
    fn take_in(&self, page: &Page, report: &Report) -> (Next, bool) {
        let mut state = self.0.lock();
        state.seen += page.seen;
        state.soonest = [state.soonest, page.soonest].into_iter().flatten().min();
        state.from.clone_from(&page.next);
        if page.next.is_some() {
            return (Next::Again, false);
        }
        report.queue(state.seen);
        state.seen = 0;
        let soonest = state.soonest.take().unwrap_or(IDLE).clamp(BREATH, IDLE);
        (if page.tasks.is_empty() { Next::After(soonest) } else { Next::Again }, true)
    }

    async fn work_off(&self, node: &Arc<Node>, tasks: Vec<Task>, report: &Report) -> Result<(), WorkerError> {
        let (mut fetches, mut others) = (Vec::new(), Vec::new());
        for task in tasks {
            if matches!(task.action, Action::Fetch(_)) { &mut fetches } else { &mut others }.push(task);
        }
        // Releasing waits for syncs, fetching for the network: side by side.
        let (fetched, other) =
            tokio::join!(self.fetch_all(node, fetches, report), self.do_others(node, others, report));
        let finished: Vec<(Bytes, Entry)> = fetched.into_iter().chain(other).collect();
        for chunk in finished.chunks(1024) {
            node.plane()?.commit.submit(Job::done(chunk.to_vec())).await?;
        }
        Ok(())
    }

    async fn do_others(&self, node: &Arc<Node>, tasks: Vec<Task>, report: &Report) -> Vec<(Bytes, Entry)> {
        let done = stream::iter(tasks).map(async |task| {
            let done = match task.action {
                Action::Check(location) => self.check(node, task.block, location, report).await,
                Action::Release { regardless } => {
                    let done = release(node, task.block, regardless).await;
                    report.count(u64::from(matches!(done, Ok(true))), 0);
                    done
                }
                Action::Finished | Action::Fetch(_) => Ok(true),
            };
            note(node, report, task, done)
        });
        done.buffer_unordered(RELEASES).filter_map(std::future::ready).collect().await
    }

    /// Whether the copy here is good. One that is bad is given up and queued to be fetched; one that the disk fails to
    /// read, though it reads others, is replaced, and stays as long as there is no other.
    async fn check(
        &self,
        node: &Arc<Node>,
        block: Hash,
        location: Location,
        report: &Report,
    ) -> Result<bool, WorkerError> {
        match node.blocks.get(&block, &location).await {
            Ok(_) => Ok(true),
            // The disk failed just now: the next pass fetches the block.
            Err(_) if !node.blocks.is_readable(&location) => Ok(false),
            Err(error) if error.is_lost_copy() => {
                give_up(node, block, &location, &error).await?;
                Ok(false)
            }
            Err(BlockError::Io { .. }) => self.fetch(node, block, Some(location), report).await,
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_all(&self, node: &Arc<Node>, tasks: Vec<Task>, report: &Report) -> Vec<(Bytes, Entry)> {
        let tasks = rank(node, tasks, report).await;
        // As many bytes at once as `resync_parallel` full blocks have: of small blocks more, so that neither the way to
        // the other node nor the syncs here bound the rate.
        let room = (node.settings.resync_parallel.max(1) as u64 * (1 << 20)) / UNIT;
        let permits = Arc::new(Semaphore::new(room as usize));
        let most = room as usize;
        let done = stream::iter(tasks).map(|task| {
            let permits = permits.clone();
            async move {
                let Action::Fetch(len) = task.action else { return None };
                let expected = len.map_or_else(|| self.usual(), u64::from).clamp(UNIT, 1 << 20);
                let units = (expected / UNIT) as u32;
                let Ok(_permit) = permits.acquire_many_owned(units.min(room as u32)).await else {
                    return None;
                };
                self.wait_for_bandwidth(node).await;
                let fetched =
                    tokio::time::timeout(FETCH_DEADLINE, self.fetch(node, task.block, None, report)).await;
                let done =
                    fetched.unwrap_or_else(|_| Err(WorkerError::Other("fetching takes too long".into())));
                note(node, report, task, done)
            }
        });
        done.buffer_unordered(most).filter_map(std::future::ready).collect().await
    }

    async fn fetch(
        &self,
        node: &Arc<Node>,
        wanted: Hash,
        unreadable: Option<Location>,
        report: &Report,
    ) -> Result<bool, WorkerError> {
        let check = |(): &(), envelope: Bytes| match block::open(&envelope, &wanted, MAX_BLOCK_SIZE) {
            Ok(_) => Ok(envelope),
            Err(error) => Err(RpcError::remote(RemoteCode::Corrupt, format!("a bad copy came: {error}"))),
        };
        let message = GetBlock { block: wanted };
        let found =
            fanout::any_other(&node.cluster, place_of(&wanted), message, MAX_STORED_BLOCK, check).await;
        let found = found.map_err(|error| fetch_error(node, wanted, &error))?;
        let len = found.value.len() as u64;
        self.use_bandwidth(node, len);
        if !found.bad.is_empty() {
            tell_of_bad_copies(node, wanted, found.bad);
        }
        let stored = store(node, wanted, found.value, unreadable).await?;
        report.count(u64::from(stored > 0), stored);
        Ok(true)
    }

    fn usual(&self) -> u64 {
        self.0.lock().usual
    }

    async fn wait_for_bandwidth(&self, node: &Arc<Node>) {
        if node.settings.resync_bandwidth.is_none() {
            return;
        }
        loop {
            let wait = self.0.lock().free_at.saturating_sub(node.env.now());
            if wait.is_zero() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Every byte that came puts off the next fetch.
    fn use_bandwidth(&self, node: &Arc<Node>, bytes: u64) {
        let mut state = self.0.lock();
        state.usual = (state.usual * 7 + bytes) / 8;
        if let Some(rate) = node.settings.resync_bandwidth {
            let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            state.free_at = state.free_at.max(node.env.now()) + cost;
        }
    }

    /// Frees what puts that came to nothing have left.
    async fn tidy_strays(&self, node: &Arc<Node>, report: &Report) {
        let Some(until) = node.env.now().checked_sub(STRAY_AGE) else { return };
        for stray in node.block_work.take_strays(until) {
            if let Err(error) = tidy(node, &stray).await {
                // A scan of the disks finds it.
                report.error(node.env.now(), &error);
            }
        }
    }
}

/// Notes what became of a task: an entry that is done, or trouble.
fn note(
    node: &Arc<Node>,
    report: &Report,
    task: Task,
    done: Result<bool, WorkerError>,
) -> Option<(Bytes, Entry)> {
    match done {
        Ok(done) => {
            node.block_work.clear(&task.block);
            done.then_some((task.key, task.entry))
        }
        Err(error) => {
            let lost = matches!(&error, WorkerError::NoCopyElsewhere);
            report.error(node.env.now(), &error);
            node.block_work.fail(task.block, &error, lost, node.env.now(), node.env.random_u64());
            None
        }
    }
}

fn fetch_error(node: &Arc<Node>, wanted: Hash, error: &FanoutError) -> WorkerError {
    if let FanoutError::NoQuorum { errors, .. } = error {
        let has_none = |node: &NodeId| errors.iter().any(|(from, e)| from == node && e.is_bad_copy());
        if holders(node, &wanted).iter().all(has_none) {
            return WorkerError::NoCopyElsewhere;
        }
    }
    WorkerError::Other(error.to_string())
}

fn tell_of_bad_copies(node: &Arc<Node>, block: Hash, bad: Vec<NodeId>) {
    let cluster = node.cluster.clone();
    node.env.spawn("report bad copies", async move {
        for holder in bad {
            let told = cluster.call(holder, &ReportBlock { block }, Body::empty(), ASK_DEADLINE).await;
            if let Err(error) = told {
                tracing::debug!(%block, %error, "a bad copy could not be reported");
            }
        }
    });
}

/// The other nodes that should hold a block.
fn holders(node: &Node, block: &Hash) -> BTreeSet<NodeId> {
    let layout = node.cluster.layout();
    let sets = layout.write_sets(layout.partition_of(&place_of(block))).unwrap_or_default();
    sets.into_iter().flatten().filter(|holder| *holder != node.id).collect()
}

/// Puts the tasks in order of how many other nodes have the block: fewest first. Those that no other node has fail.
async fn rank(node: &Arc<Node>, tasks: Vec<Task>, report: &Report) -> Vec<Task> {
    if tasks.len() < 2 {
        return tasks;
    }
    let mut asked: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let mut holders_of = Vec::with_capacity(tasks.len());
    for (i, task) in tasks.iter().enumerate() {
        let holders = holders(node, &task.block);
        for holder in &holders {
            asked.entry(*holder).or_default().push(i);
        }
        holders_of.push(holders.len());
    }
    let calls = asked.into_iter().map(async |(holder, which)| {
        let blocks = which.iter().map(|i| tasks[*i].block).collect();
        let answer = node.cluster.call(holder, &HaveBlocks { blocks }, Body::empty(), ASK_DEADLINE).await;
        if let Err(RpcError::StaleEpoch { layout }) = &answer {
            node.cluster.learn_encoded(layout).await;
        }
        (which, answer.map(|(reply, _)| reply.have).unwrap_or_default())
    });
    let answers = futures::future::join_all(calls).await;
    // Of each block: how many answered, and how many have it.
    let mut counts = vec![(0, 0); tasks.len()];
    for (which, have) in answers {
        for (i, have) in which.into_iter().zip(have) {
            counts[i].0 += 1;
            counts[i].1 += usize::from(have);
        }
    }
    let mut ranked = Vec::with_capacity(tasks.len());
    for ((task, (answered, have)), holders) in tasks.into_iter().zip(counts).zip(holders_of) {
        if answered == holders && have == 0 {
            note(node, report, task, Err(WorkerError::NoCopyElsewhere));
        } else {
            ranked.push((have, task));
        }
    }
    ranked.sort_by_key(|(have, _)| *have);
    ranked.into_iter().map(|(_, task)| task).collect()
}

/// Reads on from `from` and judges what is due. Blocks its thread.
fn read_page(
    node: &Node,
    tables: Tables,
    from: Option<Vec<u8>>,
    waiting: &BTreeMap<Hash, u64>,
    now: Duration,
    now_ms: u64,
) -> Result<Page, TablesError> {
    let view = node.engine.snapshot();
    let mut page = Page::default();
    let mut entries = Vec::new();
    let range =
        KeyRange { from: from.unwrap_or_else(|| Kind::CheckBlock.range().from), ..Kind::CheckBlock.range() };
    let grace_ms = node.settings.block_grace.as_millis() as u64;
    view.scan(Space::Queue, &range, Direction::Forward, &mut |key, value| {
        if entries.len() >= BATCH || page.seen >= SCAN as u64 {
            page.next = Some(key.to_vec());
            return Step::Stop;
        }
        page.seen += 1;
        let Ok(entry) = codec::decode::<Entry>(value) else {
            page.damaged.push(key.clone());
            return Step::Next;
        };
        let Work::CheckBlock { block } = entry.work else {
            page.damaged.push(key.clone());
            return Step::Next;
        };
        let pause = node.block_work.not_before(&block).map(|at| at.saturating_sub(now));
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            page.wait(pause);
        } else if entry.queued_ms > now_ms + grace_ms {
            page.misdated.push(block);
        } else if let Some(left) = (entry.queued_ms + grace_ms).checked_sub(now_ms).filter(|left| *left > 0)
            && waiting.get(&block) == Some(&entry.queued_ms)
        {
            page.wait(Duration::from_millis(left));
        } else {
            entries.push((key.clone(), entry, block));
        }
        Step::Next
    })?;
    let overlay = Overlay::new(&*view);
    for (key, entry, block) in entries {
        let age = now_ms.saturating_sub(entry.queued_ms);
        if let Some(action) = judge(node, tables, &overlay, &block, age >= grace_ms)? {
            page.tasks.push(Task { key, entry, block, action });
        } else {
            page.wait(Duration::from_millis(grace_ms.saturating_sub(age)).max(Duration::from_secs(1)));
            page.waiting.push((block, entry.queued_ms));
        }
    }
    Ok(page)
}

/// What to do about a block; `None`: not yet.
fn judge(
    node: &Node,
    tables: Tables,
    overlay: &Overlay<'_>,
    block: &Hash,
    past_grace: bool,
) -> Result<Option<Action>, TablesError> {
    if node.sabotage.release_early && has_deleted_reference(tables, overlay.view(), block)? {
        return Ok(Some(Action::Release { regardless: true }));
    }
    let layout = node.cluster.layout();
    let partition = layout.partition_of(&place_of(block));
    let held = layout.holds(node.id, partition);
    if !tables.is_referred(overlay, block)? {
        // References that are still being fetched may name it.
        let knows = !held || node.is_member(partition);
        return Ok((past_grace && knows).then_some(Action::Release { regardless: false }));
    }
    if !held {
        return Ok(Some(Action::Finished));
    }
    let entry = overlay.get(Space::BlockIndex, block.as_bytes())?;
    let location = entry.and_then(|entry| Location::decode(&entry).ok());
    Ok(Some(match location {
        Some(location) if node.blocks.is_readable(&location) => Action::Check(location),
        lost => Action::Fetch(lost.map(|location| location.len)),
    }))
}

fn has_deleted_reference(tables: Tables, view: &dyn View, block: &Hash) -> Result<bool, TablesError> {
    let key = tables.key(block.as_bytes(), &[]);
    let mut deleted = false;
    let range = KeyRange::prefix(key.base());
    view.scan(Space::Table(TableId::BlockRef), &range, Direction::Forward, &mut |key, value| {
        deleted |= Stored::parse(TableId::BlockRef, key, value).is_ok_and(|stored| !stored.live);
        if deleted { Step::Stop } else { Step::Next }
    })?;
    Ok(deleted)
}

/// Blocks that failed when they were tried last.
pub async fn errors(node: &Arc<Node>) -> Result<Vec<BlockErrorInfo>, WorkerError> {
    let (troubles, now) = (node.block_work.troubles(), node.env.now());
    let tables = node.plane()?.tables;
    reading(node, move |node| {
        let view = node.engine.snapshot();
        let info = |(block, trouble): (Hash, super::block_work::Trouble)| {
            let mut references = 0;
            let range = KeyRange::prefix(tables.key(block.as_bytes(), &[]).base());
            view.scan(Space::Table(TableId::BlockRef), &range, Direction::Forward, &mut |key, value| {
                let live = Stored::parse(TableId::BlockRef, key, value).is_ok_and(|stored| stored.live);
                references += u64::from(live);
                Step::Next
            })?;
            Ok(BlockErrorInfo {
                block,
                references,
                errors: u64::from(trouble.errors),
                last_error: trouble.last_error,
                last_try_secs_ago: now.saturating_sub(trouble.last_try).as_secs(),
                next_try_in_secs: trouble.next_try.saturating_sub(now).as_secs(),
            })
        };
        troubles.into_iter().map(info).collect()
    })
    .await
}

/// Sees to these blocks now, whether they failed before or not.
pub async fn retry(node: &Arc<Node>, blocks: &[Hash]) -> Result<(), WorkerError> {
    node.block_work.retry(&blocks.iter().copied().collect());
    let wanted = block_copies::not_queued(node, blocks.to_vec()).await?;
    node.check_blocks(&wanted).await?;
    node.workers.wake(NAME);
    Ok(())
}
