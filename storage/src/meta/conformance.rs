//! What every metadata engine must do, run on each of them.

use super::{Batch, Direction, Engine, KeyRange, Space, Step, View};
use hayloft_common::schema::TableId;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;

/// Opens the same directory again and again.
pub(super) type Reopen = Box<dyn Fn() -> Box<dyn Engine>>;

/// Runs the suite; `fresh` makes an empty directory each time.
pub(super) fn run(fresh: impl Fn() -> Reopen) {
    batches_span_keyspaces_and_outlive_reopening(&fresh());
    snapshots_stand_still(&*fresh()());
    scans_stop_and_seek(&*fresh()());
    long_values_come_back(&fresh());
    random_batches_and_scans_equal_a_plain_map(&*fresh()());
}

const OBJECT: Space = Space::Table(TableId::Object);

fn collect(view: &dyn View, space: Space, range: &KeyRange, direction: Direction) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    view.scan(space, range, direction, &mut |key, _| {
        out.push(key.to_vec());
        Step::Next
    })
    .unwrap();
    out
}

fn batches_span_keyspaces_and_outlive_reopening(open: &Reopen) {
    let engine = open();
    let mut batch = Batch::new();
    batch.put(OBJECT, "k", "1");
    batch.put(Space::Detail, "k", "2");
    engine.commit(batch, true).unwrap();
    let mut batch = Batch::new();
    batch.put(Space::Queue, "q", "");
    batch.delete(OBJECT, "k");
    batch.delete(OBJECT, "never there");
    engine.commit(batch, false).unwrap();
    engine.commit(Batch::new(), true).unwrap();
    engine.sync().unwrap();
    let check = |engine: &dyn Engine| {
        assert_eq!(engine.get(OBJECT, b"k").unwrap(), None);
        assert_eq!(engine.get(Space::Detail, b"k").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(engine.get(Space::Queue, b"q").unwrap().as_deref(), Some(&b""[..]));
        assert!(!engine.is_poisoned());
        assert_eq!(engine.stats().spaces.len(), Space::COUNT);
    };
    check(&*engine);
    drop(engine);
    check(&*open());
}

fn snapshots_stand_still(engine: &dyn Engine) {
    let mut batch = Batch::new();
    batch.put(OBJECT, "a", "old");
    engine.commit(batch, false).unwrap();
    let before = engine.snapshot();
    let mut batch = Batch::new();
    batch.put(OBJECT, "a", "new");
    batch.put(OBJECT, "b", "new");
    engine.commit(batch, true).unwrap();
    assert_eq!(before.get(OBJECT, b"a").unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(collect(&*before, OBJECT, &KeyRange::all(), Direction::Forward).len(), 1);
    assert_eq!(engine.get(OBJECT, b"a").unwrap().as_deref(), Some(&b"new"[..]));
}

fn scans_stop_and_seek(engine: &dyn Engine) {
    let mut batch = Batch::new();
    for i in 0..100u8 {
        batch.put(OBJECT, vec![1, i], vec![i]);
    }
    engine.commit(batch, false).unwrap();
    let mut seen = Vec::new();
    let mut visit = |key: &bytes::Bytes, _: &bytes::Bytes| {
        seen.push(key[1]);
        match key[1] {
            2 => Step::Seek(vec![1, 4]),
            4 => Step::Seek(vec![1, 60]),
            60 => Step::Seek(vec![1, 3]),
            62 => Step::Stop,
            _ => Step::Next,
        }
    };
    engine.scan(OBJECT, &KeyRange::prefix(&[1]), Direction::Forward, &mut visit).unwrap();
    assert_eq!(seen, [0, 1, 2, 4, 60, 61, 62]);
    let mut seen = Vec::new();
    let mut visit = |key: &bytes::Bytes, _: &bytes::Bytes| {
        seen.push(key[1]);
        match key[1] {
            18 => Step::Seek(vec![1, 17]),
            16 => Step::Seek(vec![1, 3]),
            2 => Step::Seek(vec![1, 90]),
            _ => Step::Next,
        }
    };
    engine.scan(OBJECT, &KeyRange::new([1], [1, 20]), Direction::Reverse, &mut visit).unwrap();
    assert_eq!(seen, [19, 18, 16, 2, 1, 0]);
    let none = collect(engine, OBJECT, &KeyRange::new([9], [2]), Direction::Forward);
    assert!(none.is_empty());
}

fn long_values_come_back(open: &Reopen) {
    let engine = open();
    for i in 0..20u8 {
        let mut batch = Batch::new();
        batch.put(Space::Detail, vec![i % 10], vec![i; 300_000]);
        engine.commit(batch, i == 19).unwrap();
    }
    drop(engine);
    let engine = open();
    for i in 10..20u8 {
        assert_eq!(engine.get(Space::Detail, &[i % 10]).unwrap(), Some(vec![i; 300_000].into()));
    }
}

fn random_batches_and_scans_equal_a_plain_map(engine: &dyn Engine) {
    let key = proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(7), Just(0xff)], 1..5);
    let op = (key.clone(), proptest::option::of(any::<u8>()));
    let batches = proptest::collection::vec(proptest::collection::vec(op, 1..8), 1..12);
    let scans = proptest::collection::vec((key.clone(), key.clone(), key, any::<bool>()), 4);
    let mut runner = TestRunner::new(Config::with_cases(40));
    runner
        .run(&(batches, scans), |(batches, scans)| {
            // Opening is slow on a real disk: each case empties the engine instead.
            let mut batch = Batch::new();
            for key in collect(engine, OBJECT, &KeyRange::all(), Direction::Forward) {
                batch.delete(OBJECT, key);
            }
            engine.commit(batch, false).unwrap();
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            for ops in batches {
                let mut batch = Batch::new();
                for (key, value) in ops {
                    if let Some(v) = value {
                        batch.put(OBJECT, key.clone(), vec![v]);
                        model.insert(key, vec![v]);
                    } else {
                        batch.delete(OBJECT, key.clone());
                        model.remove(&key);
                    }
                }
                engine.commit(batch, false).unwrap();
            }
            for (from, to, target, forward) in scans {
                check_scan(engine, &model, &KeyRange::new(from, to), &target, forward);
            }
            Ok(())
        })
        .unwrap();
}

/// Scans with a seek at the second entry and compares with the map filtered by hand.
fn check_scan(
    engine: &dyn Engine,
    model: &BTreeMap<Vec<u8>, Vec<u8>>,
    range: &KeyRange,
    target: &[u8],
    forward: bool,
) {
    let mut expected: Vec<_> = model.keys().filter(|k| range.contains(k)).cloned().collect();
    let direction = if forward { Direction::Forward } else { Direction::Reverse };
    if !forward {
        expected.reverse();
    }
    let mut position = 0;
    expected.retain(|key| {
        position += 1;
        position <= 2 || if forward { **key >= *target } else { **key < *target }
    });
    let mut seen = Vec::new();
    engine
        .scan(OBJECT, range, direction, &mut |key, value| {
            assert_eq!(model.get(&key[..]).map(Vec::as_slice), Some(&value[..]));
            seen.push(key.to_vec());
            if seen.len() == 2 { Step::Seek(target.to_vec()) } else { Step::Next }
        })
        .unwrap();
    assert_eq!(seen, expected);
}
