//! Rows applied in any order and any grouping end in the same state, fingerprints and counters as merging
//! them all; both equal what a scan of the rows gives.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, UploadId, VersionId};
use hayloft_common::schema::{
    BlockEntry, BlockOwner, BlockRefRow, ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion,
    PartRow, PartState, PartVersion, Row, Slot, TableId, UploadRow, UploadState, index_partition_key,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{IndexCounters, ReadCounters, RowBytes, RowOutcome, WriteMode};
use hayloft_storage::meta::memory::{MemoryDisk, MemoryEngine};
use hayloft_storage::meta::{Direction, Engine, KeyRange, Space, Step, View};
use hayloft_storage::tables::fingerprint::Leaves;
use hayloft_storage::tables::queue::{self, Kind, Work};
use hayloft_storage::tables::{Overlay, Tables};
use proptest::prelude::*;
use std::collections::BTreeMap;

const TABLES: [TableId; 4] = [TableId::Object, TableId::Upload, TableId::Part, TableId::BlockRef];
const SHARDS: [(u8, u16); 3] = [(1, 0), (1, 1), (2, 0)];

/// Encoded rows by table, partition key and sort key.
type Model = BTreeMap<(TableId, Vec<u8>, Vec<u8>), Vec<u8>>;

#[derive(Clone, Debug)]
enum Any {
    Object(ObjectRow),
    Upload(UploadRow),
    Part(PartRow),
    Ref(BlockRefRow),
}

impl Any {
    fn encode(&self) -> RowBytes {
        fn bytes<R: Row>(row: &R) -> RowBytes {
            RowBytes { table: R::TABLE, bytes: codec::encode(row) }
        }
        match self {
            Self::Object(row) => bytes(row),
            Self::Upload(row) => bytes(row),
            Self::Part(row) => bytes(row),
            Self::Ref(row) => bytes(row),
        }
    }
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (0u64..5, 0u64..2).prop_map(|(micros, writer)| Stamp { micros, writer })
}

fn place() -> impl Strategy<Value = (BucketId, u16)> {
    proptest::sample::select(SHARDS.to_vec()).prop_map(|(b, shard)| (BucketId([b; 16]), shard))
}

fn blocks(n: usize, seed: u8) -> Vec<BlockEntry> {
    (0..n).map(|i| BlockEntry { hash: Hash([seed + i as u8; 32]), len: 10 }).collect()
}

pub fn version(id: u8, n: usize, inline: bool) -> ObjectState {
    let data = if inline { ObjectData::Inline(vec![id; 10 * n]) } else { ObjectData::Blocks(blocks(n, id)) };
    let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
    ObjectState::Live(Box::new(ObjectVersion {
        id: VersionId([id; 16]),
        modified_ms: 0,
        size: 10 * n as u64,
        etag: format!("{id}"),
        checksum: None,
        detail: Some(Box::new(detail)),
    }))
}

fn any_row() -> impl Strategy<Value = Any> {
    let live = (0u8..6, 0usize..3, any::<bool>()).prop_map(|(id, n, inline)| version(id, n, inline));
    let object = (place(), "[ab]", stamp(), prop_oneof![1 => Just(ObjectState::Tombstone), 3 => live])
        .prop_map(|((bucket, shard), key, stamp, state)| {
            Any::Object(ObjectRow { bucket, shard, key, slot: Slot::Null, stamp, state })
        });
    let upload = (place(), 0u8..3, any::<bool>()).prop_map(|((bucket, shard), id, closed)| {
        let open = UploadState::Open { headers: vec![], checksum: None };
        let state = if closed { UploadState::Closed } else { open };
        let upload = UploadId([id; 16]);
        Any::Upload(UploadRow {
            bucket,
            shard,
            key: "k".into(),
            upload,
            created_ms: 1,
            state,
            completed: None,
        })
    });
    let part_state = prop_oneof![
        1 => Just(PartState::Tombstone),
        3 => (0u8..6, 0usize..3).prop_map(|(id, n)| PartState::Live(PartVersion {
            id: VersionId([id; 16]),
            modified_ms: 0,
            size: 10 * n as u64,
            md5: [id; 16],
            checksum: None,
            blocks: blocks(n, id),
            manifest_chunks: 0,
        })),
    ];
    let part = (place(), 1u16..3, stamp(), part_state).prop_map(|((bucket, shard), number, stamp, state)| {
        let upload = UploadId([1; 16]);
        Any::Part(PartRow { bucket, shard, key: "k".into(), upload, number, stamp, state })
    });
    let reference = (0u8..3, 0u8..3, any::<bool>()).prop_map(|(block, version, deleted)| {
        let owner = BlockOwner::Object { bucket: BucketId([1; 16]), shard: 0, key: "k".into() };
        let (block, version) = (Hash([block; 32]), VersionId([version; 16]));
        Any::Ref(BlockRefRow { block, version, created_ms: 1, owner, deleted })
    });
    prop_oneof![4 => object, 1 => upload, 2 => part, 1 => reference]
}

/// Applies the groups, each one request, each `per_batch` requests one batch.
fn apply(tables: Tables, groups: &[Vec<Any>], per_batch: usize) -> MemoryEngine {
    let engine = MemoryDisk::new().open().unwrap();
    for chunk in groups.chunks(per_batch) {
        let snapshot = engine.snapshot();
        let mut overlay = Overlay::new(&*snapshot);
        for group in chunk {
            let rows: Vec<_> = group.iter().map(Any::encode).collect();
            let applied = tables.apply(&mut overlay, WriteMode::Merge, &rows, 1).unwrap();
            overlay.keep();
            assert!(applied.kept && applied.outcomes.iter().all(|o| *o == RowOutcome::Written));
        }
        engine.commit(overlay.into_batch(), true).unwrap();
    }
    engine
}

/// Every entry but the queue's: what was superseded on the way depends on the way.
fn dump(engine: &dyn Engine) -> BTreeMap<(&'static str, Vec<u8>), Vec<u8>> {
    let mut out = BTreeMap::new();
    for space in Space::ALL.into_iter().filter(|s| *s != Space::Queue) {
        engine
            .scan(space, &KeyRange::all(), Direction::Forward, &mut |key, value| {
                out.insert((space.name(), key.to_vec()), value.to_vec());
                Step::Next
            })
            .unwrap();
    }
    out
}

/// The merge of all rows, made without storage.
fn merged(rows: &[Any]) -> Model {
    fn put<R: Row>(into: &mut Model, row: &R) {
        let key = (R::TABLE, row.partition_key(), row.sort_key());
        let mut row = row.clone();
        if let Some(old) = into.get(&key) {
            row.merge(&codec::decode(old).unwrap());
        }
        into.insert(key, codec::encode(&row));
    }
    let mut out = BTreeMap::new();
    for row in rows {
        match row {
            Any::Object(row) => put(&mut out, row),
            Any::Upload(row) => put(&mut out, row),
            Any::Part(row) => put(&mut out, row),
            Any::Ref(row) => put(&mut out, row),
        }
    }
    out
}

fn recount(model: &Model, partition_key: &[u8]) -> IndexCounters {
    let mut counters = IndexCounters::default();
    for ((table, _, _), bytes) in model.iter().filter(|((_, pk, _), _)| pk == partition_key) {
        match table {
            TableId::Object => {
                let row: ObjectRow = codec::decode(bytes).unwrap();
                counters.objects += u64::from(row.is_live());
                counters.bytes += row.live().map_or(0, |v| v.size);
            }
            TableId::Upload => {
                counters.uploads += u64::from(codec::decode::<UploadRow>(bytes).unwrap().is_live());
            }
            TableId::Part => {
                let row: PartRow = codec::decode(bytes).unwrap();
                counters.parts += u64::from(row.is_live());
                counters.part_bytes += row.live().map_or(0, |v| v.size);
            }
            _ => {}
        }
    }
    counters
}

fn shuffled(mut rows: Vec<Any>, mut seed: u64) -> Vec<Any> {
    for i in (1..rows.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        rows.swap(i, (seed >> 33) as usize % (i + 1));
    }
    rows
}

fn grouped(rows: &[Any], size: usize) -> Vec<Vec<Any>> {
    rows.chunks(size).map(<[Any]>::to_vec).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn order_and_grouping_do_not_matter(
        rows in proptest::collection::vec(any_row(), 1..40),
        seed in any::<u64>(),
        (group, batch) in (1usize..6, 1usize..6),
        bits in prop_oneof![Just(0u8), Just(1), Just(8), Just(16)],
    ) {
        let tables = Tables::new(bits);
        let one = apply(tables, &grouped(&rows, 1), 1);
        let other = apply(tables, &grouped(&shuffled(rows.clone(), seed), group), batch);
        prop_assert_eq!(dump(&one), dump(&other));

        let model = merged(&rows);
        for ((table, pk, sk), bytes) in &model {
            let ask = hayloft_proto::message::table::ReadRow {
                table: *table, partition_key: pk.clone(), sort_key: sk.clone(),
            };
            let stored = tables.read_row(&one, &ask).unwrap();
            prop_assert_eq!(stored.as_ref(), Some(bytes));
        }
        for (bucket, shard) in SHARDS {
            let partition_key = index_partition_key(&BucketId([bucket; 16]), shard);
            let expected = recount(&model, &partition_key);
            prop_assert_eq!(tables.read_counters(&one, &ReadCounters { partition_key }).unwrap(), expected);
        }
        for table in TABLES {
            let mut rows_seen = 0;
            let mut partitions: Vec<u16> =
                model.keys().filter(|(t, _, _)| *t == table).map(|(_, pk, _)| tables.partition(pk)).collect();
            partitions.dedup();
            partitions.sort_unstable();
            partitions.dedup();
            for partition in partitions {
                let leaves = Leaves::read(&one, table, partition).unwrap();
                prop_assert_eq!(&leaves, &Leaves::recompute(&one, table, partition).unwrap());
                prop_assert_eq!(leaves.total().sum, leaves.node(1, 0).sum.wrapping_add(leaves.node(1, 1).sum));
                rows_seen += leaves.total().rows;
            }
            prop_assert_eq!(rows_seen, model.keys().filter(|(t, _, _)| *t == table).count() as u64);
        }
    }

    #[test]
    fn a_row_more_is_seen_in_exactly_its_leaf(rows in proptest::collection::vec(any_row(), 1..20), extra in any_row()) {
        let tables = Tables::new(0);
        let before = apply(tables, &grouped(&rows, 1), 1);
        let mut all = rows.clone();
        all.push(extra.clone());
        let after = apply(tables, &grouped(&all, 1), 1);
        let changed = merged(&rows) != merged(&all);
        let differing: usize = TABLES.iter().map(|table| {
            let (a, b) = (Leaves::read(&before, *table, 0).unwrap(), Leaves::read(&after, *table, 0).unwrap());
            a.differing(&b).len()
        }).sum();
        prop_assert_eq!(differing, usize::from(changed));
    }
}

fn object(micros: u64, state: ObjectState) -> ObjectRow {
    let stamp = Stamp { micros, writer: 1 };
    ObjectRow { bucket: BucketId([1; 16]), shard: 0, key: "k".into(), slot: Slot::Null, stamp, state }
}

struct Node {
    tables: Tables,
    engine: MemoryEngine,
}

impl Node {
    fn new() -> Self {
        Self { tables: Tables::new(8), engine: MemoryDisk::new().open().unwrap() }
    }

    fn write(&self, mode: WriteMode, rows: &[ObjectRow]) -> Vec<RowOutcome> {
        let snapshot = self.engine.snapshot();
        let mut overlay = Overlay::new(&*snapshot);
        let rows: Vec<_> = rows.iter().map(|r| Any::Object(r.clone()).encode()).collect();
        let applied = self.tables.apply(&mut overlay, mode, &rows, 77).unwrap();
        overlay.keep();
        self.engine.commit(overlay.into_batch(), true).unwrap();
        applied.outcomes
    }

    fn row(&self) -> Option<ObjectRow> {
        let any = object(0, ObjectState::Tombstone);
        self.tables.row(&self.engine, &any.partition_key(), &any.sort_key()).unwrap()
    }
}

#[test]
fn a_put_below_the_stored_stamp_is_outdated_and_a_merge_is_not() {
    let node = Node::new();
    let new = object(5, version(2, 1, true));
    let old = object(4, version(1, 1, true));
    assert_eq!(node.write(WriteMode::Put, std::slice::from_ref(&new)), [RowOutcome::Written]);
    assert_eq!(node.write(WriteMode::Put, std::slice::from_ref(&new)), [RowOutcome::Written]);
    assert_eq!(node.write(WriteMode::Put, std::slice::from_ref(&old)), [RowOutcome::Outdated(new.stamp)]);
    assert_eq!(node.write(WriteMode::Merge, &[old]), [RowOutcome::Written]);
    assert_eq!(node.row(), Some(new.clone()));
    // The same stamp with another content: the merge decides, and the loser hears of it.
    let (a, b) = (object(6, version(3, 1, true)), object(6, version(4, 1, true)));
    let first = node.write(WriteMode::Put, std::slice::from_ref(&a));
    let second = node.write(WriteMode::Put, std::slice::from_ref(&b));
    assert_eq!(first, [RowOutcome::Written]);
    assert_eq!(second == [RowOutcome::Written], node.row() == Some(b));
}

#[test]
fn one_outdated_row_keeps_its_whole_request_out() {
    let node = Node::new();
    node.write(WriteMode::Put, &[object(5, version(2, 1, true))]);
    let mut other = object(9, version(3, 1, true));
    other.key = "z".into();
    let outcomes = node.write(WriteMode::Put, &[other.clone(), object(4, ObjectState::Tombstone)]);
    assert_eq!(outcomes[1], RowOutcome::Outdated(Stamp { micros: 5, writer: 1 }));
    let found: Option<ObjectRow> =
        node.tables.row(&node.engine, &other.partition_key(), &other.sort_key()).unwrap();
    assert_eq!(found, None);
}

#[test]
fn a_superseded_version_with_blocks_is_queued_with_its_block_list() {
    let node = Node::new();
    node.write(WriteMode::Put, &[object(1, version(1, 2, false))]);
    node.write(WriteMode::Put, &[object(2, version(1, 2, false))]);
    assert!(
        queue::read(&node.engine, &Kind::DropVersion.range(), 10).unwrap().is_empty(),
        "the same version is not superseded"
    );
    node.write(WriteMode::Put, &[object(3, version(2, 1, true))]);
    node.write(WriteMode::Put, &[object(4, ObjectState::Tombstone)]);
    let entries = queue::read(&node.engine, &Kind::DropVersion.range(), 10).unwrap();
    assert_eq!(entries.len(), 1, "inline data needs no removal");
    assert_eq!(entries[0].1.queued_ms, 77);
    let Work::DropVersion { version, blocks, manifest_chunks, .. } = &entries[0].1.work else {
        panic!("{entries:?}")
    };
    assert_eq!((*version, *manifest_chunks), (VersionId([1; 16]), 0));
    assert_eq!(*blocks, vec![Hash([1; 32]), Hash([2; 32])]);
    node.engine.commit(queue::done([entries[0].0.clone()]), true).unwrap();
    assert!(queue::read(&node.engine, &Kind::DropVersion.range(), 10).unwrap().is_empty());
}

#[test]
fn a_refused_row_leaves_its_request_unwritten_and_names_the_rule() {
    let node = Node::new();
    let snapshot = node.engine.snapshot();
    let mut overlay = Overlay::new(&*snapshot);
    let good = Any::Object(object(1, ObjectState::Tombstone)).encode();
    let mut bad = object(1, ObjectState::Tombstone);
    bad.key = "x".repeat(2000);
    let bad = Any::Object(bad).encode();
    let garbage = RowBytes { table: TableId::Object, bytes: vec![1, 0xc1, 7] };
    let huge = RowBytes { table: TableId::Object, bytes: vec![1; 3 << 20] };
    for wrong in [bad, garbage, huge] {
        let rows = [good.clone(), wrong];
        assert!(node.tables.apply(&mut overlay, WriteMode::Merge, &rows, 0).is_err());
    }
    assert!(overlay.into_batch().is_empty());
}

#[test]
fn listings_read_rows_without_their_inline_data() {
    let node = Node::new();
    let row = object(1, version(1, 20, true));
    node.write(WriteMode::Put, std::slice::from_ref(&row));
    let key = node.tables.key(&row.partition_key(), &row.sort_key());
    let short = node.engine.get(Space::Table(TableId::Object), key.as_bytes()).unwrap().unwrap();
    assert!(short.len() < 150, "{}", short.len());
    assert_eq!(node.row(), Some(row));
    node.write(WriteMode::Put, &[object(2, ObjectState::Tombstone)]);
    assert_eq!(node.engine.get(Space::Detail, &key.detail(TableId::Object)).unwrap(), None);
}
