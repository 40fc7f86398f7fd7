//! Group commit: one sync for all who wait, answers only for what is durable, no hang after a failure.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use hayloft_common::codec;
use hayloft_common::crdt::Lww;
use hayloft_common::env::Env;
use hayloft_common::id::BucketId;
use hayloft_common::schema::{AliasRow, Row, TableId};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode, WriteRows};
use hayloft_storage::commit::{CommitError, CommitQueue, Config, Job};
use hayloft_storage::meta::memory::{Fault, MemoryDisk, MemoryEngine};
use hayloft_storage::meta::{Batch, MetaError, Space, View};
use hayloft_storage::tables::Tables;
use proptest::prelude::*;
use std::sync::Arc;

fn alias(name: &str, micros: u64) -> AliasRow {
    let stamp = Stamp { micros, writer: 1 };
    AliasRow { name: name.into(), target: Lww::new(stamp, Some(BucketId([micros as u8; 16]))) }
}

fn put(rows: &[AliasRow]) -> Job {
    let rows = rows.iter().map(|r| RowBytes { table: TableId::Alias, bytes: codec::encode(r) }).collect();
    Job::rows(WriteRows { mode: WriteMode::Put, rows })
}

fn stored(engine: &dyn View, name: &str) -> Option<AliasRow> {
    let row = alias(name, 0);
    Tables::new(8).row(engine, &row.partition_key(), &row.sort_key()).unwrap()
}

fn start(disk: &MemoryDisk, config: Config) -> (CommitQueue, Arc<MemoryEngine>) {
    let engine = Arc::new(disk.open().unwrap());
    (CommitQueue::start(&Env::real(), engine.clone(), Tables::new(8), config, Arc::new(|| 0)), engine)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn many_writers_share_syncs_and_each_sees_the_row_before_it() {
    block_on(async {
        let disk = MemoryDisk::new();
        let (queue, engine) = start(&disk, Config::default());
        let jobs = (1..=200).map(|i| {
            let queue = queue.clone();
            async move { queue.submit(put(&[alias("same", i), alias(&format!("own{i}"), 1)])).await }
        });
        let outcomes = futures::future::join_all(jobs).await;
        for (i, outcome) in (1..=200).zip(outcomes) {
            let outcome = outcome.unwrap();
            let done = outcome.rows == [RowOutcome::Written; 2];
            let outdated = matches!(outcome.rows[0], RowOutcome::Outdated(stamp) if stamp.micros > i);
            assert!(done != outdated, "writer {i}: {outcome:?}");
            assert_eq!(stored(&*engine, &format!("own{i}")).is_some(), done);
        }
        assert_eq!(stored(&*engine, "same"), Some(alias("same", 200)));
        let stats = queue.stats();
        assert_eq!((stats.jobs, stats.failed), (200, 0));
        assert!(stats.syncs < 100 && stats.largest > 1, "{stats:?}");
        assert_eq!(disk.counts(), (stats.batches, stats.syncs));
    });
}

#[test]
fn an_outdated_put_names_the_stamp_to_go_above_even_within_one_batch() {
    block_on(async {
        let (queue, engine) = start(&MemoryDisk::new(), Config::default());
        let (new, old) = tokio::join!(
            biased;
            queue.submit(put(&[alias("a", 9)])),
            queue.submit(put(&[alias("b", 1), alias("a", 3)])),
        );
        assert_eq!(new.unwrap().rows, [RowOutcome::Written]);
        assert_eq!(old.unwrap().rows[1], RowOutcome::Outdated(Stamp { micros: 9, writer: 1 }));
        assert_eq!(stored(&*engine, "b"), None, "none of an outdated request is written");
    });
}

#[test]
fn a_bad_job_fails_alone() {
    block_on(async {
        let (queue, engine) = start(&MemoryDisk::new(), Config::default());
        let bad = RowBytes { table: TableId::Alias, bytes: vec![9, 9] };
        let bad = Job::rows(WriteRows { mode: WriteMode::Put, rows: vec![bad] });
        let mut forged = Batch::new();
        forged.put(Space::Counters, "x", "y");
        let mut index = Batch::new();
        index.put(Space::BlockIndex, "block", "place");
        let (bad, forged, good) = tokio::join!(
            biased;
            queue.submit(bad),
            queue.submit(Job::entries(forged)),
            queue.submit(Job::block(vec![], index)),
        );
        assert!(matches!(bad, Err(CommitError::Tables(_))), "{bad:?}");
        assert!(matches!(forged, Err(CommitError::Derived("counters"))), "{forged:?}");
        good.unwrap();
        assert!(engine.get(Space::BlockIndex, b"block").unwrap().is_some());
        assert_eq!(queue.stats().failed, 2);
    });
}

#[test]
fn after_a_failed_sync_every_writer_gets_a_typed_error_and_none_hangs() {
    block_on(async {
        let disk = MemoryDisk::new();
        let (queue, _engine) = start(&disk, Config::default());
        queue.submit(put(&[alias("kept", 1)])).await.unwrap();
        disk.inject(Fault::Sync, 0);
        let names: Vec<_> = (0..20).map(|i| format!("n{i}")).collect();
        let jobs = names.iter().map(|name| queue.submit(put(&[alias(name, 1)])));
        for outcome in futures::future::join_all(jobs).await {
            assert!(matches!(outcome, Err(CommitError::Engine(_))), "{outcome:?}");
        }
        let again = queue.submit(put(&[alias("late", 1)])).await;
        assert!(matches!(again, Err(CommitError::Engine(MetaError::Poisoned))), "{again:?}");
        // Not even "you have it already" is answered: nobody knows what the disk still holds.
        let known = queue.submit(put(&[alias("kept", 1)])).await;
        assert!(matches!(known, Err(CommitError::Engine(MetaError::Poisoned))), "{known:?}");
        assert_eq!(queue.stats().failed, 22);
    });
}

#[test]
fn a_caller_that_goes_away_neither_blocks_the_queue_nor_undoes_its_write() {
    block_on(async {
        let small = Config { queue: 1, queue_bytes: 64, ..Config::default() };
        let (queue, engine) = start(&MemoryDisk::new(), small);
        {
            let gone = queue.submit(put(&[alias("gone", 1)]));
            futures::pin_mut!(gone);
            // One poll queues the job; then the caller is dropped.
            assert!(futures::poll!(gone).is_pending());
        }
        for i in 0..50 {
            queue.submit(put(&[alias(&format!("n{i}"), 1)])).await.unwrap();
        }
        assert!(stored(&*engine, "gone").is_some());
    });
}

#[test]
fn without_fsync_nothing_is_synced() {
    block_on(async {
        let disk = MemoryDisk::new();
        let (queue, _engine) = start(&disk, Config { fsync: false, ..Config::default() });
        queue.submit(put(&[alias("a", 1)])).await.unwrap();
        assert_eq!((disk.counts(), queue.stats().syncs), ((1, 0), 0));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Power is cut, or a write or sync fails, at any point: what was acknowledged is there afterwards.
    #[test]
    fn every_acknowledged_row_survives_a_crash(
        writes in proptest::collection::vec((0u8..8, 1u64..20), 1..40),
        fault in proptest::option::of((prop_oneof![Just(Fault::Write), Just(Fault::Sync), Just(Fault::Read)], 0u32..12)),
        (crash_after, seed) in (0usize..40, any::<u64>()),
        batch_jobs in 1usize..8,
    ) {
        let disk = MemoryDisk::new();
        let acknowledged = block_on(async {
            let (queue, _engine) = start(&disk, Config { batch_jobs, ..Config::default() });
            if let Some((kind, after)) = fault {
                disk.inject(kind, after);
            }
            let mut acknowledged = Vec::new();
            let jobs: futures::stream::FuturesUnordered<_> = writes.iter().map(|(name, micros)| {
                let (queue, row) = (queue.clone(), alias(&name.to_string(), *micros));
                async move { (row.clone(), queue.submit(put(&[row])).await) }
            }).collect();
            let mut answers = 0;
            futures::pin_mut!(jobs);
            while let Some((row, outcome)) = futures::StreamExt::next(&mut jobs).await {
                if answers == crash_after {
                    disk.crash(seed);
                }
                answers += 1;
                if matches!(&outcome, Ok(o) if o.rows == [RowOutcome::Written]) {
                    acknowledged.push(row);
                }
            }
            disk.crash(seed);
            acknowledged
        });
        let engine = disk.open().unwrap();
        for row in acknowledged {
            let found = stored(&engine, &row.name);
            prop_assert!(found.as_ref().is_some_and(|f| f.target.stamp >= row.target.stamp), "{:?} is lost: {:?}", row, found);
        }
    }
}
