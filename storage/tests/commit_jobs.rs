//! Jobs with conditions: judged in the same step as the write, also against the jobs before them in one batch.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::env::{Clock, Env};
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, VersionId};
use hayloft_common::schema::{BlockOwner, BlockRefRow, ObjectRow, ObjectState, Row, Slot, TableId};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode, WriteRows};
use hayloft_storage::commit::{CommitError, CommitQueue, Config, Job};
use hayloft_storage::meta::memory::{MemoryDisk, MemoryEngine};
use hayloft_storage::meta::{Batch, Space, View};
use hayloft_storage::tables::Tables;
use hayloft_storage::tables::queue::{self, Entry, Kind, Work};
use hayloft_storage::tables::stored::Stored;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock that stands still unless it is set.
struct SetClock(Arc<AtomicU64>);

impl Clock for SetClock {
    fn wall_micros(&self) -> u64 {
        self.0.load(Ordering::Relaxed) * 1000
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

struct Queue {
    commit: CommitQueue,
    engine: Arc<MemoryEngine>,
    now_ms: Arc<AtomicU64>,
    epoch: Arc<AtomicU64>,
}

const TABLES: fn() -> Tables = || Tables::new(4);

impl Queue {
    fn start() -> Self {
        let engine = Arc::new(MemoryDisk::new().open().unwrap());
        let (now_ms, epoch) = (Arc::new(AtomicU64::new(1000)), Arc::new(AtomicU64::new(7)));
        let env = Env { clock: Arc::new(SetClock(now_ms.clone())), ..Env::real() };
        let at = epoch.clone();
        let epoch_now = Arc::new(move || at.load(Ordering::Relaxed));
        let commit = CommitQueue::start(&env, engine.clone(), TABLES(), Config::default(), epoch_now);
        Self { commit, engine, now_ms, epoch }
    }

    fn queued(&self, kind: Kind) -> Vec<(Bytes, Entry)> {
        queue::read(&*self.engine, &kind.range(), 100).unwrap()
    }

    fn reference(&self, block: Hash, version: u8) -> Option<BlockRefRow> {
        TABLES().row(&*self.engine, block.as_bytes(), &[version; 16]).unwrap()
    }

    fn has_index(&self, block: Hash) -> bool {
        self.engine.get(Space::BlockIndex, block.as_bytes()).unwrap().is_some()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn block(n: u8) -> Hash {
    Hash([n; 32])
}

fn reference(block: Hash, version: u8, deleted: bool) -> RowBytes {
    let owner = BlockOwner::Object { bucket: BucketId([1; 16]), shard: 0, key: "k".into() };
    let version = VersionId([version; 16]);
    let row = BlockRefRow { block, version, created_ms: 1, owner, deleted };
    RowBytes { table: TableId::BlockRef, bytes: codec::encode(&row) }
}

fn index(block: Hash) -> Batch {
    let mut batch = Batch::new();
    batch.put(Space::BlockIndex, block.as_bytes().to_vec(), "place");
    batch
}

fn put_block(n: u8, version: u8) -> Job {
    Job::block(vec![reference(block(n), version, false)], index(block(n)))
}

fn merge(rows: Vec<RowBytes>) -> Job {
    Job::rows(WriteRows { mode: WriteMode::Merge, rows })
}

fn tombstone(key: &str, micros: u64) -> ObjectRow {
    let stamp = Stamp { micros, writer: 1 };
    let (bucket, key, state) = (BucketId([1; 16]), key.into(), ObjectState::Tombstone);
    ObjectRow { bucket, shard: 0, key, slot: Slot::Null, stamp, state }
}

fn bytes(row: &ObjectRow) -> RowBytes {
    RowBytes { table: TableId::Object, bytes: codec::encode(row) }
}

#[test]
fn a_job_of_an_epoch_that_is_over_writes_nothing() {
    block_on(async {
        let queue = Queue::start();
        assert!(queue.commit.submit(put_block(1, 1).at_epoch(7)).await.is_ok());
        queue.epoch.store(8, Ordering::Relaxed);
        let late = queue.commit.submit(put_block(2, 1).at_epoch(7)).await;
        assert!(matches!(late, Err(CommitError::StaleEpoch)), "{late:?}");
        assert!(!queue.has_index(block(2)) && queue.reference(block(2), 1).is_none());
        assert!(queue.commit.submit(put_block(2, 1)).await.is_ok(), "a job of no epoch");
    });
}

#[test]
fn finished_work_goes_unless_it_was_queued_again() {
    block_on(async {
        let queue = Queue::start();
        queue.commit.submit(merge(vec![reference(block(1), 1, false)])).await.unwrap();
        let read = queue.queued(Kind::CheckRef);
        assert_eq!(read[0].1.queued_ms, 1000);
        queue.now_ms.store(2000, Ordering::Relaxed);
        // An arrival that changes nothing renews the date: it is what a heart-beat does.
        queue.commit.submit(merge(vec![reference(block(1), 1, false)])).await.unwrap();
        let again = queue.queued(Kind::CheckRef);
        assert_eq!((again.len(), again[0].1.queued_ms), (1, 2000));
        assert_eq!(queue.commit.submit(Job::done(read)).await.unwrap().done, [false]);
        assert_eq!(queue.queued(Kind::CheckRef), again);
        assert_eq!(queue.commit.submit(Job::done(again)).await.unwrap().done, [true]);
        assert!(queue.queued(Kind::CheckRef).is_empty());
        // One that is deleted is not looked at any more, whatever arrives.
        queue.commit.submit(merge(vec![reference(block(1), 1, true)])).await.unwrap();
        queue.commit.submit(merge(vec![reference(block(1), 1, false)])).await.unwrap();
        assert!(queue.queued(Kind::CheckRef).is_empty());
        let dropped = queue.queued(Kind::CheckBlock);
        assert_eq!(dropped.last().unwrap().1.work, Work::CheckBlock { block: block(1) });
    });
}

#[test]
fn a_block_of_a_version_that_was_given_up_is_refused_entirely() {
    block_on(async {
        let queue = Queue::start();
        queue.commit.submit(merge(vec![reference(block(1), 1, true)])).await.unwrap();
        let mut rows = vec![reference(block(2), 1, false), reference(block(1), 1, false)];
        let (deleted, refused) = tokio::join!(
            biased;
            queue.commit.submit(merge(vec![reference(block(3), 1, true)])),
            queue.commit.submit(Job::block(rows.clone(), index(block(1)))),
        );
        deleted.unwrap();
        assert_eq!(refused.unwrap().refused, [block(1)]);
        assert!(!queue.has_index(block(1)) && queue.reference(block(2), 1).is_none());
        assert!(queue.queued(Kind::CheckRef).is_empty() && queue.queued(Kind::CheckBlock).is_empty());
        rows.truncate(1);
        let taken = queue.commit.submit(Job::block(rows, Batch::new())).await.unwrap();
        assert_eq!((taken.refused, taken.missing), (vec![], vec![block(2)]));
        assert_eq!(queue.queued(Kind::CheckBlock).len(), 1, "it is to be fetched");
    });
}

#[test]
fn an_index_entry_moves_only_from_where_it_is() {
    block_on(async {
        let queue = Queue::start();
        queue.commit.submit(put_block(1, 1)).await.unwrap();
        let (moved, late) = tokio::join!(
            biased;
            queue.commit.submit(Job::relocate(block(1), "place".into(), Some("other".into()))),
            queue.commit.submit(Job::relocate(block(1), "place".into(), None)),
        );
        assert_eq!((moved.unwrap().done, late.unwrap().done), (vec![true], vec![false]));
        let at = queue.engine.get(Space::BlockIndex, block(1).as_bytes()).unwrap();
        assert_eq!(at.as_deref(), Some(&b"other"[..]));
    });
}

#[test]
fn only_the_very_tombstone_goes_and_what_is_below_it_stays_out() {
    block_on(async {
        let queue = Queue::start();
        let row = tombstone("a", 5);
        queue.commit.submit(merge(vec![bytes(&row), bytes(&tombstone("b", 9))])).await.unwrap();
        let key = |row: &ObjectRow| {
            Bytes::from(TABLES().key(&row.partition_key(), &row.sort_key()).as_bytes().to_vec())
        };
        let hash = |row: &ObjectRow| {
            let value = queue.engine.get(Space::Table(TableId::Object), &key(row)).unwrap().unwrap();
            Stored::parse(TableId::Object, &key(row), &value).unwrap().hash
        };
        let (old, other) = (hash(&row), hash(&tombstone("b", 9)));
        let newer = tombstone("a", 6);
        let (written, collected) = tokio::join!(
            biased;
            queue.commit.submit(merge(vec![bytes(&newer)])),
            queue.commit.submit(Job::collect(vec![
                (TableId::Object, key(&row), old),
                (TableId::Object, key(&tombstone("b", 9)), other),
            ])),
        );
        written.unwrap();
        assert_eq!(collected.unwrap().done, [false, true]);
        let collect = Job::collect(vec![(TableId::Object, key(&row), hash(&newer))]);
        assert_eq!(queue.commit.submit(collect.clone()).await.unwrap().done, [true]);
        assert_eq!(queue.commit.submit(collect).await.unwrap().done, [true], "gone is gone");
        assert!(queue.queued(Kind::Collect).is_empty());
        let put = |micros| {
            let rows = vec![bytes(&tombstone("c", micros))];
            queue.commit.submit(Job::rows(WriteRows { mode: WriteMode::Put, rows }))
        };
        let floor = Stamp { micros: 9, writer: 1 };
        assert_eq!(put(8).await.unwrap().rows, [RowOutcome::Outdated(floor)]);
        assert_eq!(put(9).await.unwrap().rows, [RowOutcome::Outdated(floor)]);
        assert_eq!(put(10).await.unwrap().rows, [RowOutcome::Written]);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Refer { version: u8, deleted: bool },
    Put { version: u8 },
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..3, any::<bool>()).prop_map(|(version, deleted)| Step::Refer { version, deleted }),
        (0u8..3).prop_map(|version| Step::Put { version }),
        Just(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever else is in the batch: an index entry goes exactly if no live reference is left.
    #[test]
    fn a_block_is_released_exactly_if_nothing_refers_to_it(
        steps in proptest::collection::vec(step(), 1..20),
        together in 1usize..6,
    ) {
        block_on(async {
            let queue = Queue::start();
            // What each version's reference is, and whether there is an index entry.
            let (mut live, mut indexed) = ([None; 3], false);
            for steps in steps.chunks(together) {
                let jobs = steps.iter().map(|step| match step {
                    Step::Refer { version, deleted } => merge(vec![reference(block(1), *version, *deleted)]),
                    Step::Put { version } => put_block(1, *version),
                    Step::Release => Job::release(block(1)),
                });
                let outcomes = futures::future::join_all(jobs.map(|job| queue.commit.submit(job))).await;
                for (step, outcome) in steps.iter().zip(outcomes) {
                    let outcome = outcome.unwrap();
                    match step {
                        Step::Refer { version, deleted } => {
                            let row = &mut live[usize::from(*version)];
                            *row = Some(row.unwrap_or(true) && !deleted);
                            let missing = !deleted && *row == Some(true) && !indexed;
                            prop_assert_eq!(outcome.missing.len(), usize::from(missing));
                        }
                        Step::Put { version } => {
                            let row = &mut live[usize::from(*version)];
                            prop_assert_eq!(outcome.refused.len(), usize::from(*row == Some(false)));
                            if *row != Some(false) {
                                (*row, indexed) = (Some(true), true);
                            }
                        }
                        Step::Release => {
                            let free = !live.contains(&Some(true));
                            prop_assert_eq!(outcome.released.is_some(), free && indexed);
                            indexed &= !free;
                        }
                    }
                }
                prop_assert_eq!(queue.has_index(block(1)), indexed);
            }
            Ok(())
        })?;
    }
}
