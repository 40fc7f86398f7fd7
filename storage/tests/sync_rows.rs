//! Replicas that pull from one another end equal, over several pages and questions, and little more than the difference
//! travels. Without a network: what one side asks is given to the other.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, ClusterId, NodeId, VersionId};
use hayloft_common::layout::Partition;
use hayloft_common::schema::{
    BlockOwner, BlockRefRow, ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion, Slot, TableId,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message;
use hayloft_proto::message::sync::{LeavesReply, SyncRows};
use hayloft_proto::message::table::{RowBytes, WriteMode, WriteRows};
use hayloft_storage::commit::{CommitQueue, Config, Job};
use hayloft_storage::meta::fjall::{self, FjallEngine};
use hayloft_storage::meta::memory::MemoryDisk;
use hayloft_storage::meta::{Direction, Engine, Identity, KeyRange, Space, Step, View};
use hayloft_storage::tables::compare::{self, Walk};
use hayloft_storage::tables::fingerprint::leaf_of;
use hayloft_storage::tables::{Overlay, Tables};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const BITS: u8 = 2;

fn tables() -> Tables {
    Tables::new(BITS)
}

fn object(bucket: u8, key: &str, micros: u64, inline: usize) -> RowBytes {
    let state = if inline == 0 {
        ObjectState::Tombstone
    } else {
        let data = ObjectData::Inline(vec![micros as u8; inline]);
        let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
        ObjectState::Live(Box::new(ObjectVersion {
            id: VersionId([micros as u8; 16]),
            modified_ms: 0,
            size: inline as u64,
            etag: "0123456789abcdef0123456789abcdef".into(),
            checksum: None,
            detail: Some(Box::new(detail)),
        }))
    };
    let (slot, stamp) = (Slot::Null, Stamp { micros, writer: 1 });
    let row = ObjectRow { bucket: BucketId([bucket; 16]), shard: 0, key: key.into(), slot, stamp, state };
    RowBytes { table: TableId::Object, bytes: codec::encode(&row) }
}

fn reference(block: u8, version: u8, deleted: bool) -> RowBytes {
    let owner = BlockOwner::Object { bucket: BucketId([1; 16]), shard: 0, key: "k".into() };
    let (block, version) = (Hash([block; 32]), VersionId([version; 16]));
    let row = BlockRefRow { block, version, created_ms: 1, owner, deleted };
    RowBytes { table: TableId::BlockRef, bytes: codec::encode(&row) }
}

fn apply(engine: &dyn Engine, rows: &[RowBytes]) {
    for rows in rows.chunks(1000) {
        let snapshot = engine.snapshot();
        let mut overlay = Overlay::new(&*snapshot);
        assert!(tables().apply(&mut overlay, WriteMode::Merge, rows, 1).unwrap().kept);
        overlay.keep();
        engine.commit(overlay.into_batch(), true).unwrap();
    }
}

fn with(rows: &[RowBytes]) -> Box<dyn Engine> {
    let engine = MemoryDisk::new().open().unwrap();
    apply(&engine, rows);
    Box::new(engine)
}

/// What a pull took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    rows: usize,
    pages: usize,
    /// Encoded, in both directions.
    bytes: usize,
}

/// What `to` asks of `from` for one table, as the worker does; `rows` are given to `store`.
fn pull_table(
    to: &dyn Engine,
    from: &dyn Engine,
    table: TableId,
    partition: Partition,
    store: &mut dyn FnMut(Vec<RowBytes>),
) -> Taken {
    let leaves = LeavesReply { leaves: compare::leaves(from, table, partition).unwrap() };
    let wanted = compare::wanted(&compare::leaves(to, table, partition).unwrap(), &leaves.leaves);
    let mut taken = Taken { bytes: message::encode(&leaves).len(), ..Taken::default() };
    if wanted.is_empty() {
        return taken;
    }
    let mut walk = Walk::new(table, partition, wanted);
    loop {
        let question = walk.ask(&*to.snapshot()).unwrap();
        let answer = compare::page(&*from.snapshot(), &question).unwrap();
        taken.bytes += message::encode(&question).len() + message::encode(&answer).len();
        taken.rows += answer.rows.len();
        taken.pages += 1;
        store(answer.rows.into_iter().map(|row| RowBytes { table, bytes: row.into_vec() }).collect());
        if !walk.answered(answer.next).unwrap() {
            return taken;
        }
    }
}

fn pull(to: &dyn Engine, from: &dyn Engine) -> Taken {
    let mut all = Taken::default();
    for partition in (0..1 << BITS).map(Partition) {
        let theirs = compare::totals(from, partition).unwrap();
        let ours = compare::totals(to, partition).unwrap();
        for (table, _) in theirs.into_iter().filter(|total| !ours.contains(total)) {
            let taken = pull_table(to, from, table, partition, &mut |rows| apply(to, &rows));
            all.rows += taken.rows;
            all.pages += taken.pages;
            all.bytes += taken.bytes;
        }
    }
    all
}

/// All that follows from rows alone.
fn dump(view: &dyn View) -> BTreeMap<(&'static str, Vec<u8>), Vec<u8>> {
    let mut out = BTreeMap::new();
    for space in Space::ALL.into_iter().filter(|s| *s != Space::Queue) {
        let mut put = |key: &bytes::Bytes, value: &bytes::Bytes| {
            out.insert((space.name(), key.to_vec()), value.to_vec());
            Step::Next
        };
        view.scan(space, &KeyRange::all(), Direction::Forward, &mut put).unwrap();
    }
    out
}

fn any_row() -> impl Strategy<Value = RowBytes> {
    let objects = (0u8..3, "[a-d]{1,3}", 1u64..6, prop_oneof![1 => Just(0usize), 3 => 1usize..40])
        .prop_map(|(bucket, key, micros, inline)| object(bucket, &key, micros, inline));
    let references = (0u8..20, 0u8..3, any::<bool>()).prop_map(|(b, v, deleted)| reference(b, v, deleted));
    prop_oneof![3 => objects, 2 => references]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever each holds: after each has pulled from the other both hold the merge of all, and nothing is left to ask.
    #[test]
    fn replicas_are_equal_once_each_has_pulled(
        both in prop::collection::vec(any_row(), 0..60),
        ours in prop::collection::vec(any_row(), 0..30),
        theirs in prop::collection::vec(any_row(), 0..30),
    ) {
        let one = with(&[&both[..], &ours[..]].concat());
        let other = with(&[&both[..], &theirs[..]].concat());
        pull(&*one, &*other);
        let all = with(&[&both[..], &ours[..], &theirs[..]].concat());
        prop_assert_eq!(dump(&*one), dump(&*all), "the first has everything after its pull alone");
        pull(&*other, &*one);
        prop_assert_eq!(dump(&*other), dump(&*all));
        prop_assert_eq!(pull(&*one, &*other), Taken::default());
    }
}

#[test]
fn a_page_ends_after_its_bytes_and_the_next_goes_on_there() {
    let rows: Vec<_> = (0..60).map(|i| object(1, &format!("key{i:02}"), 7, 100 << 10)).collect();
    let (empty, full) = (with(&[]), with(&rows));
    let taken = pull(&*empty, &*full);
    // 60 rows of 100 KiB: eleven to a page of 1 MiB.
    assert_eq!((taken.rows, taken.pages), (60, 6));
    assert_eq!(dump(&*empty), dump(&*full));
}

#[test]
fn many_rows_are_named_in_several_questions() {
    let rows: Vec<_> = (0..20_000).map(|i| object(1, &format!("key{i:05}"), 7, 1)).collect();
    let more: Vec<_> = (0..3000).map(|i| object(1, &format!("key{:05}x", i * 6), 7, 1)).collect();
    let (one, other) = (with(&rows), with(&rows));
    apply(&*other, &more);
    let taken = pull(&*one, &*other);
    assert_eq!(taken.rows, more.len(), "only what differs");
    assert!(taken.pages >= 2, "{taken:?}");
    assert_eq!(dump(&*one), dump(&*other));
}

#[test]
fn what_travels_is_near_the_difference() {
    let rows: Vec<_> = (0..10_000).map(|i| object(1, &format!("key{i:05}"), 7, 50)).collect();
    let more: Vec<_> = (0..10).map(|i| object(1, &format!("more{i}"), 7, 50)).collect();
    let (one, other) = (with(&rows), with(&[&rows[..], &more[..]].concat()));
    let all: usize = rows.iter().map(|row| row.bytes.len()).sum();
    let lacking: usize = more.iter().map(|row| row.bytes.len()).sum();
    let taken = pull(&*one, &*other);
    assert_eq!(taken.rows, 10);
    // 1,024 leaves of 30 bytes, some ten rows to a leaf that differs at 9 bytes each, and the rows.
    assert!(taken.bytes < 40_000 + 1500 + lacking + 1000, "{taken:?} of {all}");
}

#[test]
fn nothing_outside_of_the_range_the_leaves_and_the_partition_is_given() {
    let rows: Vec<_> =
        (0..40).flat_map(|b| (0..10).map(move |i| object(b, &format!("k{i}"), 7, 3))).collect();
    let engine = with(&rows);
    let mut keys = Vec::new();
    engine
        .scan(Space::Table(TableId::Object), &KeyRange::all(), Direction::Forward, &mut |key, _| {
            keys.push(key.to_vec());
            Step::Next
        })
        .unwrap();
    let partition = Partition(1);
    let ours: Vec<_> = keys.iter().filter(|key| key.starts_with(&partition.0.to_be_bytes())).collect();
    assert!(ours.len() > 40 && ours.len() < 300, "{}", ours.len());
    let (from, to) = (ours[10].clone(), ours[35].clone());
    let leaves: Vec<u16> = ours.iter().step_by(2).map(|key| leaf_of(key)).collect();
    let expected = ours[10..35].iter().filter(|key| leaves.contains(&leaf_of(key))).count();
    let ask = |leaves: &[u16], from: Option<Vec<u8>>, to: Option<Vec<u8>>| {
        let (from, to) = (from.map(serde_bytes::ByteBuf::from), to.map(serde_bytes::ByteBuf::from));
        let (table, leaves, have) = (TableId::Object, leaves.to_vec(), vec![]);
        compare::page(&*engine, &SyncRows { table, partition, leaves, have, from, to }).unwrap().rows.len()
    };
    assert_eq!(ask(&leaves, Some(from.clone()), Some(to.clone())), expected);
    let all: Vec<u16> = (0..1024).collect();
    assert_eq!(ask(&all, None, None), ours.len());
    // A range beyond the partition's ends is cut to it.
    assert_eq!(ask(&all, Some(vec![0]), Some(vec![0xff; 9])), ours.len());
    assert_eq!(ask(&all, Some(to), Some(from)), 0);
    assert_eq!(ask(&[5000], None, None), 0, "no such leaf");
}

/// A measurement: `cargo test --release -p hayloft-storage --test sync_rows -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn rows_and_bytes_for_a_thousand_of_a_hundred_thousand() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let engines = dirs.iter().map(|dir| {
        let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId([1; 32]) };
        Arc::new(FjallEngine::open(&fjall::Config::new(dir.path()), &identity).unwrap())
    });
    let engines: Vec<Arc<FjallEngine>> = engines.collect();
    let env = Env::real();
    let rows: Vec<_> = (0..100_000).map(|i| object(1, &format!("photos/{i:06}.jpg"), 7, 1)).collect();
    let differing: Vec<_> =
        (0..1000).map(|i| object(1, &format!("photos/{:06}.jpg", i * 97), 8, 1)).collect();
    for engine in &engines {
        apply(&**engine, &rows);
    }
    apply(&*engines[1], &differing);
    let queue = CommitQueue::start(&env, engines[0].clone(), tables(), Config::default(), Arc::new(|| 0));
    let partition =
        Partition(tables().partition(&hayloft_common::schema::index_partition_key(&BucketId([1; 16]), 0)));
    let begin = env.now();
    let mut pages = Vec::new();
    let taken =
        pull_table(&*engines[0], &*engines[1], TableId::Object, partition, &mut |rows| pages.push(rows));
    let asked = env.now();
    for rows in pages.concat().chunks(256) {
        let rows = rows.to_vec();
        queue.submit(Job::rows(WriteRows { mode: WriteMode::Merge, rows })).await.unwrap();
    }
    let done = env.now();
    println!(
        "{taken:?}; rows themselves {} bytes; finding {:?}, merging {:?}: {:.0} rows/s",
        differing.iter().map(|row| row.bytes.len()).sum::<usize>(),
        asked.saturating_sub(begin),
        done.saturating_sub(asked),
        taken.rows as f64 / done.saturating_sub(begin).as_secs_f64()
    );
}
