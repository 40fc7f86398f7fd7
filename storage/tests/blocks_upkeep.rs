//! Compaction, rebalance, release and scrub under crashes and readers: no block that is referred to is ever lost or
//! unreadable, and what is not needed goes.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::cluster::*;
use blocks_support::{block, memory};
use hayloft_common::env::{BlockingJob, Clock, Env, TaskFuture, TaskHandle, Tasks};
use hayloft_common::hash::Hash;
use hayloft_proto::body::Body;
use hayloft_proto::message::block::{GetBlock, PutBlock};
use hayloft_storage::daemon::Running;
use hayloft_storage::disk::MemoryDisk;
use hayloft_storage::meta::{Direction, KeyRange, Space, Step};
use hayloft_storage::serve::Node;
use hayloft_storage::workers::{compact, rebalance, scrub};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;

/// The tasks of one process, which can be killed.
#[derive(Default)]
struct Killable(Mutex<Vec<AbortHandle>>);

impl Tasks for Killable {
    fn spawn(&self, _name: &'static str, task: TaskFuture) -> TaskHandle {
        let handle = spawn(task);
        self.0.lock().push(handle.clone());
        TaskHandle::new(move || handle.abort())
    }

    fn run_blocking(&self, job: BlockingJob) {
        job();
    }
}

#[expect(clippy::disallowed_methods, reason = "stands in for the seam")]
fn spawn(task: TaskFuture) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

/// Time as tokio's paused clock has it: it jumps when nobody has anything to do.
struct Jumping(tokio::time::Instant);

impl Clock for Jumping {
    fn wall_micros(&self) -> u64 {
        1_700_000_000_000_000 + self.0.elapsed().as_micros() as u64
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A node alone, holding everything, whose process can be killed.
struct Alone {
    machine: Machine,
    disks: Vec<MemoryDisk>,
    tasks: Arc<Killable>,
    running: Option<Running>,
    began: tokio::time::Instant,
}

impl Alone {
    async fn start(disks: &[MemoryDisk], used: usize) -> Self {
        let machine = Machine::new(disks[..used].iter().map(memory).collect());
        let began = tokio::time::Instant::now();
        let mut alone = Self { machine, disks: disks.to_vec(), tasks: Arc::default(), running: None, began };
        alone.restart().await;
        alone
    }

    async fn restart(&mut self) {
        self.tasks = Arc::default();
        let env = Env { tasks: self.tasks.clone(), clock: Arc::new(Jumping(self.began)), ..Env::real() };
        let running = self.machine.start_in(env).await;
        join(std::slice::from_ref(&running)).await;
        self.running = Some(running);
    }

    /// The power fails, and comes back.
    async fn crash(&mut self, seed: u64) {
        for task in self.tasks.0.lock().drain(..) {
            task.abort();
        }
        self.running = None;
        tokio::task::yield_now().await;
        self.machine.metadata.crash(seed);
        for (disk, salt) in self.disks.iter().zip(1..) {
            disk.crash(seed * 31 + salt);
        }
        self.restart().await;
    }

    fn node(&self) -> &Arc<Node> {
        &self.running.as_ref().unwrap().node
    }
}

fn len_of(seed: u64) -> usize {
    [200, 700, 3000][seed as usize % 3]
}

/// Puts a block; `false` if it was not acknowledged.
async fn put(node: &Arc<Node>, seed: u64) -> bool {
    let (hash, envelope) = block(seed, len_of(seed));
    let message = PutBlock { block: hash, reference: reference(hash, false) };
    node.cluster.call(node.id, &message, Body::from(envelope), Duration::from_secs(20)).await.is_ok()
}

async fn read(node: &Arc<Node>, seed: u64) -> bool {
    let (hash, envelope) = block(seed, len_of(seed));
    let message = GetBlock { block: hash };
    match node.cluster.call(node.id, &message, Body::empty(), Duration::from_secs(20)).await {
        Ok(((), body)) => body.collect(1 << 20).await.unwrap() == envelope,
        Err(error) => {
            eprintln!("block {seed}: {error}");
            false
        }
    }
}

fn index_entries(node: &Node) -> u64 {
    let mut entries = 0;
    let mut count = |_: &bytes::Bytes, _: &bytes::Bytes| {
        entries += 1;
        Step::Next
    };
    node.engine.scan(Space::BlockIndex, &KeyRange::all(), Direction::Forward, &mut count).unwrap();
    entries
}

/// Everything happens at once: a new disk gets its share, blocks are released, segments compacted, new blocks come.
async fn upheaval(alone: &mut Alone, live: &mut BTreeMap<u64, Hash>) {
    let node = alone.node().clone();
    for seed in (0..60).filter(|seed| seed % 5 != 0) {
        live.remove(&seed);
        let (hash, _) = block(seed, len_of(seed));
        // It may fail once the disk has crashed; the metadata has not.
        drop_reference(&node, hash).await;
    }
    let _ = rebalance::start(&node).await;
    for seed in 100..112 {
        if put(&node, seed).await {
            live.insert(seed, block(seed, len_of(seed)).0);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let _ = compact::start(&node).await;
    }
}

async fn all_readable(node: &Arc<Node>, live: &BTreeMap<u64, Hash>) {
    for seed in live.keys() {
        assert!(read(node, *seed).await, "block {seed} is lost");
    }
}

/// Crashes the disks after `step` operations of the upheaval.
async fn crash_at(step: u64, seed: u64) -> bool {
    let disks = [MemoryDisk::new("a"), MemoryDisk::new("b")];
    let mut alone = Alone::start(&disks, 1).await;
    let mut live = BTreeMap::new();
    for seed in 0..60 {
        assert!(put(alone.node(), seed).await);
        live.insert(seed, block(seed, len_of(seed)).0);
    }
    // The second disk is new.
    alone.machine.disks = disks.iter().map(memory).collect();
    alone.crash(seed).await;
    for disk in &disks {
        disk.crash_after(step);
    }
    upheaval(&mut alone, &mut live).await;
    let crashed = disks.iter().any(MemoryDisk::has_crashed);
    alone.crash(seed + 1).await;
    let node = alone.node().clone();
    all_readable(&node, &live).await;
    tokio::time::sleep(Duration::from_mins(3)).await;
    compact::start(&node).await.unwrap();
    scrub::start(&node).await.unwrap();
    tokio::time::sleep(Duration::from_mins(11)).await;
    all_readable(&node, &live).await;
    assert_eq!(scrub::variables(&node).await.unwrap()["scrub-bad-copies"], "0");
    // What was put and not acknowledged may be there, too; all else is gone.
    let entries = index_entries(&node);
    assert!((live.len() as u64..=live.len() as u64 + 12).contains(&entries), "{entries} of {}", live.len());
    let stats = node.blocks.stats().await.unwrap();
    assert_eq!(stats.iter().map(|disk| disk.blocks).sum::<u64>(), entries, "{stats:?}");
    let dead: u64 = stats.iter().map(|disk| disk.dead_bytes).sum();
    assert!(dead < 4096, "dead bytes are given back: {dead}");
    let files = disks.iter().flat_map(MemoryDisk::files).filter(|path| path.starts_with("blocks/")).count();
    let large = live.keys().filter(|seed| len_of(**seed) > 1024).count();
    assert!((large..=large + 12).contains(&files), "{files} files for {large} large blocks");
    crashed
}

#[tokio::test(start_paused = true)]
async fn no_crash_at_any_step_loses_a_block_that_is_referred_to() {
    let mut step = 0;
    while crash_at(step, step * 7 + 3).await {
        step += if step < 150 { 31 } else { step / 3 };
    }
    assert!(step > 200, "the upheaval takes {step} steps");
}

#[tokio::test(start_paused = true)]
async fn readers_do_not_notice_that_blocks_are_moved() {
    let disks = [MemoryDisk::new("a"), MemoryDisk::new("b")];
    let mut alone = Alone::start(&disks, 1).await;
    let mut live = BTreeMap::new();
    for seed in 0..60 {
        assert!(put(alone.node(), seed).await);
        live.insert(seed, block(seed, len_of(seed)).0);
    }
    alone.machine.disks = disks.iter().map(memory).collect();
    alone.crash(1).await;
    let node = alone.node().clone();
    let tasks = alone.tasks.clone();
    let (done, reader) = tokio::sync::oneshot::channel();
    tasks.spawn(
        "reader",
        Box::pin(async move {
            let mut reads = 0;
            for _ in 0..4000 {
                for seed in (0..60).step_by(5) {
                    assert!(read(&node, seed).await, "block {seed} could not be read");
                    reads += 1;
                }
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
            done.send(reads).unwrap();
        }),
    );
    upheaval(&mut alone, &mut live).await;
    assert_eq!(reader.await.unwrap(), 48_000);
    let moved = alone.node().blocks.stats().await.unwrap();
    assert!(moved.iter().all(|disk| disk.blocks > 0), "{moved:?}");
}
