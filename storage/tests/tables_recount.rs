//! Wrong or damaged fingerprints and counters are put right, also when rows change between the counting and the correction.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use hayloft_common::codec;
use hayloft_common::id::{BucketId, VersionId};
use hayloft_common::schema::{
    ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion, Slot, TableId,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{RowBytes, WriteMode};
use hayloft_storage::meta::memory::{MemoryDisk, MemoryEngine};
use hayloft_storage::meta::{Batch, Direction, Engine, KeyRange, Space, Step, View};
use hayloft_storage::tables::recount::{Correction, recount};
use hayloft_storage::tables::{Overlay, Tables};
use proptest::prelude::*;
use std::collections::BTreeMap;

const TABLES: fn() -> Tables = || Tables::new(0);

fn object(key: &str, micros: u64, size: u64) -> RowBytes {
    let state = if size == 0 {
        ObjectState::Tombstone
    } else {
        let data = ObjectData::Inline(vec![1; size as usize]);
        let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
        ObjectState::Live(Box::new(ObjectVersion {
            id: VersionId([micros as u8; 16]),
            modified_ms: 0,
            size,
            etag: String::new(),
            checksum: None,
            detail: Some(Box::new(detail)),
        }))
    };
    let (slot, stamp) = (Slot::Null, Stamp { micros, writer: 1 });
    let row = ObjectRow { bucket: BucketId([1; 16]), shard: 0, key: key.into(), slot, stamp, state };
    RowBytes { table: TableId::Object, bytes: codec::encode(&row) }
}

fn change(engine: &MemoryEngine, change: impl FnOnce(&mut Overlay<'_>)) {
    let snapshot = engine.snapshot();
    let mut overlay = Overlay::new(&*snapshot);
    change(&mut overlay);
    overlay.keep();
    engine.commit(overlay.into_batch(), true).unwrap();
}

fn apply(engine: &MemoryEngine, rows: &[RowBytes]) {
    change(engine, |overlay| assert!(TABLES().apply(overlay, WriteMode::Merge, rows, 1).unwrap().kept));
}

fn correct(engine: &MemoryEngine, correction: &Correction) {
    change(engine, |overlay| TABLES().correct(overlay, correction).unwrap());
}

fn sums(view: &dyn View) -> BTreeMap<(&'static str, Vec<u8>), Vec<u8>> {
    let mut out = BTreeMap::new();
    for space in [Space::Fingerprint, Space::Counters] {
        let mut put = |key: &bytes::Bytes, value: &bytes::Bytes| {
            out.insert((space.name(), key.to_vec()), value.to_vec());
            Step::Next
        };
        view.scan(space, &KeyRange::all(), Direction::Forward, &mut put).unwrap();
    }
    out
}

fn rows() -> impl Strategy<Value = Vec<RowBytes>> {
    let row = ("[a-f]{1,2}", 1u64..8, 0u64..50).prop_map(|(key, micros, size)| object(&key, micros, size));
    prop::collection::vec(row, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Entries are replaced by those of other rows, or removed.
    #[test]
    fn what_is_wrong_is_put_right_whatever_changes_meanwhile(
        (before, other, after) in (rows(), rows(), rows()),
        remove in any::<prop::sample::Index>(),
    ) {
        let engine = MemoryDisk::new().open().unwrap();
        apply(&engine, &before);
        prop_assert!(recount(&engine, 0).unwrap().is_empty(), "nothing is wrong");
        let stranger = MemoryDisk::new().open().unwrap();
        apply(&stranger, &other);
        let mut damage = Batch::new();
        for space in [Space::Fingerprint, Space::Counters] {
            let mut put = |key: &bytes::Bytes, value: &bytes::Bytes| {
                damage.put(space, key.clone(), value.clone());
                Step::Next
            };
            stranger.scan(space, &KeyRange::all(), Direction::Forward, &mut put).unwrap();
        }
        let present: Vec<_> = sums(&engine).into_keys().filter(|(space, _)| *space == "fingerprint").collect();
        damage.delete(Space::Fingerprint, remove.get(&present).1.clone());
        engine.commit(damage, true).unwrap();

        let correction = recount(&engine, 0).unwrap();
        prop_assert!(!correction.is_empty());
        apply(&engine, &after);
        correct(&engine, &correction);
        let right = MemoryDisk::new().open().unwrap();
        apply(&right, &[before, after].concat());
        prop_assert_eq!(sums(&engine), sums(&right));
        prop_assert!(recount(&engine, 0).unwrap().is_empty());
    }
}

#[test]
fn entries_that_cannot_be_read_are_replaced() {
    let engine = MemoryDisk::new().open().unwrap();
    let rows = [object("a", 1, 10), object("b", 1, 20)];
    apply(&engine, &rows);
    let right = sums(&engine);
    let mut damage = Batch::new();
    for (space, key) in right.keys() {
        let space = if *space == "counters" { Space::Counters } else { Space::Fingerprint };
        damage.put(space, key.clone(), "?");
    }
    engine.commit(damage, true).unwrap();
    let snapshot = engine.snapshot();
    let mut overlay = Overlay::new(&*snapshot);
    assert!(TABLES().apply(&mut overlay, WriteMode::Merge, &[object("a", 2, 5)], 1).is_err());
    let correction = recount(&engine, 0).unwrap();
    assert_eq!(correction.len(), right.len());
    correct(&engine, &correction);
    assert_eq!(sums(&engine), right);
}
