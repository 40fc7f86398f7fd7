//! Listings equal a naive model for hostile keys, prefixes, delimiters and limits; paging through gives
//! exactly the whole; a big folder is skipped over, not read.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use hayloft_common::codec;
use hayloft_common::id::{BucketId, VersionId};
use hayloft_common::schema::{
    ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion, Row, Slot, TableId, sort_key,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{ListEntry, ListKeys, ReadRange, RowBytes, WriteMode};
use hayloft_storage::meta::memory::{MemoryDisk, MemoryEngine};
use hayloft_storage::meta::{Direction, Engine, KeyRange, MetaError, Space, Step, View, Visitor};
use hayloft_storage::tables::{Overlay, Tables};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

const BUCKET: BucketId = BucketId([1; 16]);

fn row(key: &str, slot: Slot, live: bool) -> ObjectRow {
    let data = ObjectData::Inline(vec![]);
    let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
    let version = ObjectVersion {
        id: VersionId([1; 16]),
        modified_ms: 0,
        size: 0,
        etag: "e".into(),
        checksum: None,
        detail: Some(Box::new(detail)),
    };
    let state = if live { ObjectState::Live(Box::new(version)) } else { ObjectState::Tombstone };
    ObjectRow {
        bucket: BUCKET,
        shard: 0,
        key: key.into(),
        slot,
        stamp: Stamp { micros: 1, writer: 1 },
        state,
    }
}

fn store(rows: &[ObjectRow]) -> (Tables, MemoryEngine) {
    let (tables, engine) = (Tables::new(8), MemoryDisk::new().open().unwrap());
    let snapshot = engine.snapshot();
    let mut overlay = Overlay::new(&*snapshot);
    let encoded: Vec<_> =
        rows.iter().map(|r| RowBytes { table: TableId::Object, bytes: codec::encode(r) }).collect();
    tables.apply(&mut overlay, WriteMode::Merge, &encoded, 0).unwrap();
    overlay.keep();
    engine.commit(overlay.into_batch(), true).unwrap();
    (tables, engine)
}

fn short(row: &ObjectRow) -> Vec<u8> {
    let mut row = row.clone();
    row.detach();
    codec::encode(&row)
}

fn ask(prefix: &str, delimiter: Option<&str>, from: Vec<u8>, limit: u32) -> ListKeys {
    let partition_key = row("x", Slot::Null, true).partition_key();
    let (prefix, delimiter) = (prefix.to_owned(), delimiter.map(str::to_owned));
    ListKeys { table: TableId::Object, partition_key, prefix, delimiter, from, limit, tombstones: false }
}

/// The definition: walk all rows in order.
fn naive(
    rows: &BTreeMap<Vec<u8>, ObjectRow>,
    prefix: &str,
    delimiter: Option<&str>,
    from: &[u8],
    tombstones: bool,
) -> Vec<ListEntry> {
    let mut out: Vec<ListEntry> = Vec::new();
    for (sort, row) in rows {
        if !row.key.starts_with(prefix) || **sort < *from {
            continue;
        }
        let rest = &row.key[prefix.len()..];
        let Some(end) = delimiter.and_then(|d| rest.find(d).map(|at| at + d.len())) else {
            out.push(ListEntry::Row(short(row)));
            continue;
        };
        let common = &row.key[..prefix.len() + end];
        if out.iter().any(|e| matches!(e, ListEntry::Prefix { prefix, .. } if prefix == common)) {
            continue;
        }
        if row.is_live() {
            out.push(ListEntry::Prefix { prefix: common.to_owned(), witness: short(row) });
        } else if tombstones {
            out.push(ListEntry::Row(short(row)));
        }
    }
    out
}

fn key() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("a"),
        Just("b"),
        Just("/"),
        Just("//"),
        Just("a/"),
        Just("\0"),
        Just("\u{1}"),
        Just("😀"),
        Just("é"),
        Just("\u{7f}"),
        Just("\u{10ffff}"),
        Just("-"),
    ];
    proptest::collection::vec(piece, 1..6).prop_map(|p| p.concat())
}

fn slot() -> impl Strategy<Value = Slot> {
    let named = (0u64..3)
        .prop_map(|micros| Slot::Named { stamp: Stamp { micros, writer: 1 }, version: VersionId([3; 16]) });
    prop_oneof![3 => Just(Slot::Null), 1 => named]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn pages_equal_the_naive_model(
        rows in proptest::collection::vec((key(), slot(), prop::bool::weighted(0.7)), 0..40),
        prefix in prop_oneof![Just(String::new()), key(), Just("a".to_owned()), Just("a/".to_owned())],
        delimiter in proptest::option::of(prop_oneof![Just("/"), Just("a"), Just("\0"), Just("😀"), Just("//"), Just("/a")]),
        from in proptest::option::of((key(), any::<bool>())),
        limit in 1u32..6,
        tombstones in any::<bool>(),
    ) {
        let ask = |from, limit| ListKeys { tombstones, ..ask(&prefix, delimiter, from, limit) };
        let rows: Vec<_> = rows.iter().map(|(key, slot, live)| row(key, *slot, *live)).collect();
        let (tables, engine) = store(&rows);
        // Later rows of the same key and stamp merge; take what is stored.
        let mut model = BTreeMap::new();
        for row in &rows {
            let merged: ObjectRow = tables.row(&engine, &row.partition_key(), &row.sort_key()).unwrap().unwrap();
            model.insert(row.sort_key(), merged);
        }
        let start = match &from {
            None => Vec::new(),
            Some((key, true)) => sort_key::whole(key.as_bytes()),
            Some((key, false)) => sort_key::after_prefix(&sort_key::prefix(key.as_bytes())).unwrap(),
        };
        let expected = naive(&model, &prefix, delimiter, &start, tombstones);
        let all = tables.list_keys(&engine, &ask(start.clone(), 1000)).unwrap();
        prop_assert_eq!(&all.entries, &expected);
        prop_assert_eq!(all.next, None);

        let mut paged = Vec::new();
        let mut next = start;
        loop {
            let page = tables.list_keys(&engine, &ask(next.clone(), limit)).unwrap();
            prop_assert!(page.entries.len() <= limit as usize);
            paged.extend(page.entries);
            let Some(ahead) = page.next else { break };
            prop_assert!(ahead.as_slice() > next.as_slice(), "a page always moves on");
            next = ahead.into_vec();
        }
        prop_assert_eq!(paged, expected);
    }

    #[test]
    fn ranges_page_through_in_both_directions(
        keys in proptest::collection::btree_set(key(), 0..30),
        limit in 1u32..6,
        bounds in (proptest::option::of(key()), proptest::option::of(key())),
    ) {
        let rows: Vec<_> = keys.iter().map(|k| row(k, Slot::Null, true)).collect();
        let (tables, engine) = store(&rows);
        let from = bounds.0.map(|k| sort_key::whole(k.as_bytes())).unwrap_or_default();
        let to = bounds.1.map(|k| sort_key::whole(k.as_bytes()));
        let mut expected: Vec<_> = rows
            .iter()
            .filter(|r| r.sort_key() >= from && to.as_ref().is_none_or(|to| r.sort_key() < *to))
            .map(short)
            .collect();
        for direction in [Direction::Forward, Direction::Reverse] {
            let mut ask = ReadRange {
                table: TableId::Object,
                partition_key: row("x", Slot::Null, true).partition_key(),
                from: from.clone(),
                to: to.clone().map(serde_bytes::ByteBuf::from),
                limit,
            };
            let mut seen = Vec::new();
            loop {
                let page = tables.range(&engine, &ask, direction).unwrap();
                prop_assert!(page.rows.len() <= limit as usize);
                seen.extend(page.rows.into_iter().map(serde_bytes::ByteBuf::into_vec));
                match (page.next, direction) {
                    (None, _) => break,
                    (Some(next), Direction::Forward) => ask.from = next.into_vec(),
                    (next, Direction::Reverse) => ask.to = next,
                }
            }
            prop_assert_eq!(&seen, &expected);
            expected.reverse();
        }
    }
}

/// Counts the rows a listing looks at.
struct Counting<'a>(&'a dyn View, AtomicUsize);

impl View for Counting<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<bytes::Bytes>, MetaError> {
        self.0.get(space, key)
    }

    fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), MetaError> {
        self.0.scan(space, range, direction, &mut |key, value| {
            self.1.fetch_add(1, Ordering::Relaxed);
            visit(key, value)
        })
    }
}

#[test]
fn a_folder_costs_one_row_however_many_it_holds() {
    let mut rows = Vec::new();
    for folder in 0..5 {
        rows.extend((0..500).map(|i| row(&format!("folder{folder}/{i:04}"), Slot::Null, true)));
    }
    rows.push(row("folder2", Slot::Null, true));
    let (tables, engine) = store(&rows);
    let view = Counting(&engine, AtomicUsize::new(0));
    let page = tables.list_keys(&view, &ask("", Some("/"), Vec::new(), 100)).unwrap();
    assert_eq!((page.entries.len(), page.next), (6, None));
    assert_eq!(view.1.into_inner(), 6);
}

#[test]
fn a_folder_of_tombstones_ends_the_page_early_and_is_left_out() {
    let mut rows: Vec<_> = (0..12_000).map(|i| row(&format!("dead/{i:05}"), Slot::Null, false)).collect();
    rows.push(row("live", Slot::Null, true));
    let (tables, engine) = store(&rows);
    let first = tables.list_keys(&engine, &ask("", Some("/"), Vec::new(), 10)).unwrap();
    assert!(first.entries.is_empty());
    let next = first.next.unwrap().into_vec();
    let second = tables.list_keys(&engine, &ask("", Some("/"), next, 10)).unwrap();
    assert_eq!((second.entries.len(), second.next), (1, None));
    let mut seen = 0;
    engine
        .scan(Space::Table(TableId::Object), &KeyRange::all(), Direction::Forward, &mut |_, _| {
            seen += 1;
            Step::Next
        })
        .unwrap();
    assert_eq!(seen, 12_001);
}
