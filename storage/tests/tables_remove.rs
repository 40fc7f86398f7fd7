//! Removing rows, tombstones that all hold and partitions that go elsewhere, leaves sums and counts as a recount gives
//! them, and leaves nothing else behind.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, UploadId, VersionId};
use hayloft_common::schema::{
    BlockOwner, BlockRefRow, FloorRow, ManifestRow, ObjectData, ObjectDetail, ObjectRow, ObjectState,
    ObjectVersion, PartRow, PartState, PartVersion, Row, Slot, TableId, UploadRow, UploadState,
    index_partition_key,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{IndexCounters, ReadCounters, RowBytes, RowOutcome, WriteMode};
use hayloft_storage::meta::memory::{MemoryDisk, MemoryEngine};
use hayloft_storage::meta::{Direction, Engine, KeyRange, Space, Step, View};
use hayloft_storage::tables::fingerprint::Leaves;
use hayloft_storage::tables::queue::{self, Kind, Work};
use hayloft_storage::tables::stored::Stored;
use hayloft_storage::tables::{Overlay, Tables};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Few partitions, so that they hold several things.
const BITS: u8 = 2;
const BUCKETS: [u8; 4] = [1, 2, 3, 4];

fn tables() -> Tables {
    Tables::new(BITS)
}

fn bytes<R: Row>(row: &R) -> RowBytes {
    RowBytes { table: R::TABLE, bytes: codec::encode(row) }
}

fn stamp(micros: u64) -> Stamp {
    Stamp { micros, writer: 1 }
}

fn object(bucket: u8, key: &str, micros: u64, live: bool) -> ObjectRow {
    let data = ObjectData::Inline(vec![micros as u8; 10]);
    let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
    let version = ObjectVersion {
        id: VersionId([micros as u8; 16]),
        modified_ms: 0,
        size: 10,
        etag: String::new(),
        checksum: None,
        detail: Some(Box::new(detail)),
    };
    let state = if live { ObjectState::Live(Box::new(version)) } else { ObjectState::Tombstone };
    let (bucket, key, slot, stamp) = (BucketId([bucket; 16]), key.into(), Slot::Null, stamp(micros));
    ObjectRow { bucket, shard: 0, key, slot, stamp, state }
}

fn upload(bucket: u8, closed: bool) -> UploadRow {
    let open = UploadState::Open { headers: vec![], checksum: None };
    let state = if closed { UploadState::Closed } else { open };
    let (bucket, key, upload) = (BucketId([bucket; 16]), "k".into(), UploadId([bucket; 16]));
    UploadRow { bucket, shard: 0, key, upload, created_ms: 1, state, completed: None }
}

fn part(bucket: u8, number: u16, micros: u64, live: bool) -> PartRow {
    let version = PartVersion {
        id: VersionId([micros as u8; 16]),
        modified_ms: 0,
        size: 7,
        md5: [0; 16],
        checksum: None,
        blocks: vec![],
        manifest_chunks: 0,
    };
    let state = if live { PartState::Live(version) } else { PartState::Tombstone };
    let (bucket, key, upload) = (BucketId([bucket; 16]), "k".into(), UploadId([bucket; 16]));
    PartRow { bucket, shard: 0, key, upload, number, stamp: stamp(micros), state }
}

fn reference(block: u8, version: u8, deleted: bool) -> BlockRefRow {
    let owner = BlockOwner::Object { bucket: BucketId([1; 16]), shard: 0, key: "k".into() };
    let (block, version) = (Hash([block; 32]), VersionId([version; 16]));
    BlockRefRow { block, version, created_ms: 1, owner, deleted }
}

#[derive(Clone, Debug)]
enum Op {
    Write(RowBytes, WriteMode),
    /// Removes the n-th of the tombstones stored now, with a wrong hash if so.
    Collect(usize, bool),
    Forget(u16, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let bucket = || proptest::sample::select(BUCKETS.to_vec());
    let rows = prop_oneof![
        4 => (bucket(), "[ab]", 0u64..12, any::<bool>()).prop_map(|(b, k, m, l)| bytes(&object(b, &k, m, l))),
        1 => (bucket(), any::<bool>()).prop_map(|(b, closed)| bytes(&upload(b, closed))),
        2 => (bucket(), 1u16..3, 0u64..12, any::<bool>()).prop_map(|(b, n, m, l)| bytes(&part(b, n, m, l))),
        2 => (0u8..6, 0u8..3, any::<bool>()).prop_map(|(b, v, deleted)| bytes(&reference(b, v, deleted))),
        1 => (0u8..4, any::<bool>()).prop_map(|(v, deleted)| {
            let version = VersionId([v; 16]);
            bytes(&ManifestRow { version, chunk: 0, blocks: vec![], deleted })
        }),
    ];
    let mode = prop_oneof![Just(WriteMode::Put), Just(WriteMode::Merge)];
    prop_oneof![
        6 => (rows, mode).prop_map(|(row, mode)| Op::Write(row, mode)),
        4 => (0usize..20, any::<bool>()).prop_map(|(n, wrong)| Op::Collect(n, wrong)),
        1 => (0u16..4, 1usize..50).prop_map(|(partition, limit)| Op::Forget(partition, limit)),
    ]
}

/// Every stored row: table, key, head.
fn stored(view: &dyn View) -> Vec<(TableId, Bytes, Stored)> {
    let mut out = Vec::new();
    for table in TableId::ALL {
        view.scan(Space::Table(table), &KeyRange::all(), Direction::Forward, &mut |key, value| {
            out.push((table, key.clone(), Stored::parse(table, key, value).unwrap()));
            Step::Next
        })
        .unwrap();
    }
    out
}

fn recount(view: &dyn View, bucket: u8) -> IndexCounters {
    let mut counters = IndexCounters::default();
    let base = tables().key(&index_partition_key(&BucketId([bucket; 16]), 0), &[]).base().to_vec();
    for (table, key, stored) in stored(view) {
        if !key.starts_with(&base) || !stored.live {
            continue;
        }
        match table {
            TableId::Object => {
                counters.objects += 1;
                counters.bytes += 10;
            }
            TableId::Upload => counters.uploads += 1,
            TableId::Part => {
                counters.parts += 1;
                counters.part_bytes += 7;
            }
            _ => {}
        }
    }
    counters
}

fn check(engine: &MemoryEngine) {
    for table in TableId::ALL {
        for partition in 0..1 << BITS {
            let kept = Leaves::read(engine, table, partition).unwrap();
            assert_eq!(kept, Leaves::recompute(engine, table, partition).unwrap(), "{table:?} {partition}");
        }
    }
    for bucket in BUCKETS {
        let ask = ReadCounters { partition_key: index_partition_key(&BucketId([bucket; 16]), 0) };
        assert_eq!(tables().read_counters(engine, &ask).unwrap(), recount(engine, bucket));
    }
    let details = stored(engine).iter().filter(|(_, _, stored)| stored.has_detail).count();
    let mut found = 0;
    engine
        .scan(Space::Detail, &KeyRange::all(), Direction::Forward, &mut |_, _| {
            found += 1;
            Step::Next
        })
        .unwrap();
    assert_eq!(found, details, "details without rows");
    // Every tombstone is waiting to be removed, and nothing that is gone is.
    let waiting: BTreeSet<(TableId, Vec<u8>)> = queue::read(engine, &Kind::Collect.range(), 1000)
        .unwrap()
        .into_iter()
        .map(|(_, entry)| match entry.work {
            Work::Collect { table, key } => (table, key),
            other => panic!("{other:?}"),
        })
        .collect();
    for (table, key, stored) in stored(engine) {
        assert!(stored.live || waiting.contains(&(table, key.to_vec())), "{table:?} tombstone forgotten");
    }
}

/// Forgets a partition in steps.
fn forget(engine: &MemoryEngine, partition: u16, limit: usize) {
    let before: BTreeSet<Vec<u8>> = stored(engine)
        .into_iter()
        .filter(|(table, key, _)| *table == TableId::BlockRef && key.starts_with(&partition.to_be_bytes()))
        .map(|(_, key, _)| key[4..36].to_vec())
        .collect();
    for round in 0.. {
        assert!(round < 1000, "it never ends");
        let snapshot = engine.snapshot();
        let mut overlay = Overlay::new(&*snapshot);
        let more = tables().forget(&mut overlay, partition, limit, 5).unwrap();
        overlay.keep();
        engine.commit(overlay.into_batch(), true).unwrap();
        if !more {
            break;
        }
    }
    let prefix = partition.to_be_bytes();
    assert!(!stored(engine).iter().any(|(_, key, _)| key.starts_with(&prefix)));
    let left = queue::read(engine, &KeyRange::all(), 10_000).unwrap();
    let of_it: Vec<_> =
        left.into_iter().filter(|(key, _)| queue::partition_of(key) == Some(partition)).collect();
    assert!(of_it.iter().all(|(_, entry)| entry.work.kind() == Kind::CheckBlock));
    let checks: BTreeSet<Vec<u8>> = of_it
        .into_iter()
        .filter_map(|(_, entry)| match entry.work {
            Work::CheckBlock { block } => Some(block.0.to_vec()),
            _ => None,
        })
        .collect();
    assert!(before.is_subset(&checks), "blocks of a partition that left are looked at");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn removals_keep_sums_and_counts_exact_and_floors_hold(
        ops in proptest::collection::vec(op(), 1..60),
        together in 1usize..5,
    ) {
        let engine = MemoryDisk::new().open().unwrap();
        // The highest stamp removed, by table and bucket.
        let mut floors: BTreeMap<(TableId, u8), Stamp> = BTreeMap::new();
        for ops in ops.chunks(together) {
            let snapshot = engine.snapshot();
            let mut overlay = Overlay::new(&*snapshot);
            let tombstones: Vec<_> = stored(&*snapshot).into_iter().filter(|(_, _, s)| !s.live).collect();
            for op in ops {
                match op {
                    Op::Write(row, mode) => {
                        let object: Option<ObjectRow> =
                            (row.table == TableId::Object).then(|| codec::decode(&row.bytes).unwrap());
                        // As it is just before: an earlier row of the batch may have put it there.
                        let known = object.as_ref().is_some_and(|object| {
                            let key = tables().key(&object.partition_key(), &object.sort_key());
                            overlay.get(Space::Table(TableId::Object), key.as_bytes()).unwrap().is_some()
                        });
                        let applied =
                            tables().apply(&mut overlay, *mode, std::slice::from_ref(row), 1).unwrap();
                        if let Some(object) = object
                            && *mode == WriteMode::Put
                            && applied.outcomes == [RowOutcome::Written]
                        {
                            let floor = floors.get(&(TableId::Object, object.bucket.0[0]));
                            prop_assert!(known || floor.is_none_or(|f| object.stamp > *f));
                        }
                        overlay.keep();
                    }
                    Op::Collect(n, wrong) if !tombstones.is_empty() => {
                        let (table, key, stored) = &tombstones[n % tombstones.len()];
                        let hash = stored.hash ^ u128::from(*wrong);
                        let done = tables().collect(&mut overlay, *table, key, hash, 1).unwrap();
                        overlay.keep();
                        prop_assert!(!(done && *wrong) || together > 1);
                        if done && !wrong && *table == TableId::Object {
                            let row: ObjectRow = stored.decode_short(key).unwrap();
                            let floor = floors.entry((*table, row.bucket.0[0])).or_default();
                            *floor = row.stamp.max(*floor);
                        }
                    }
                    Op::Collect(..) | Op::Forget(..) => {}
                }
            }
            engine.commit(overlay.into_batch(), true).unwrap();
            check(&engine);
            for op in ops {
                if let Op::Forget(partition, limit) = op {
                    forget(&engine, *partition, *limit);
                    let left = |bucket: u8| {
                        tables().partition(&index_partition_key(&BucketId([bucket; 16]), 0)) != *partition
                    };
                    floors.retain(|(_, bucket), _| left(*bucket));
                    check(&engine);
                }
            }
        }
        for ((of, bucket), stamp) in floors {
            let partition_key = index_partition_key(&BucketId([bucket; 16]), 0);
            let floor: FloorRow =
                tables().row(&engine, &partition_key, &FloorRow::sort_key_of(of)).unwrap().unwrap();
            prop_assert!(floor.stamp >= stamp);
        }
    }
}

fn write(engine: &MemoryEngine, rows: &[RowBytes]) {
    let snapshot = engine.snapshot();
    let mut overlay = Overlay::new(&*snapshot);
    tables().apply(&mut overlay, WriteMode::Merge, rows, 1).unwrap();
    overlay.keep();
    engine.commit(overlay.into_batch(), true).unwrap();
}

#[test]
fn a_part_is_queued_to_go_unless_its_upload_is_open_here() {
    let drops = |engine: &MemoryEngine| queue::read(engine, &Kind::DropParts.range(), 10).unwrap().len();
    let engine = MemoryDisk::new().open().unwrap();
    write(&engine, &[bytes(&upload(1, false)), bytes(&part(1, 1, 5, true))]);
    assert_eq!(drops(&engine), 0);
    write(&engine, &[bytes(&upload(1, true))]);
    assert_eq!(drops(&engine), 1, "closing it queues its parts");
    let entry = queue::read(&engine, &Kind::DropParts.range(), 10).unwrap();
    engine.commit(queue::done(entry.into_iter().map(|(key, _)| key)), true).unwrap();
    write(&engine, &[bytes(&part(1, 1, 6, false))]);
    assert_eq!(drops(&engine), 0, "a deleted part needs nothing");
    write(&engine, &[bytes(&part(1, 2, 6, true))]);
    assert_eq!(drops(&engine), 1, "a late part");
    write(&engine, &[bytes(&part(2, 1, 6, true))]);
    assert_eq!(drops(&engine), 2, "a part of an upload that is not known here");
    write(&engine, &[bytes(&upload(3, true))]);
    assert_eq!(drops(&engine), 3, "an upload that is first heard of when it is closed");
}
