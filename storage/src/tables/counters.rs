//! What a node counts per index shard of a bucket: objects, bytes, unfinished uploads and their parts.
//!
//! Kept in the same batch as the rows they count, under the rows' own partition and partition key: a
//! partition that leaves takes its counters along. Several replicas count the same rows: a reader takes one
//! node's answer per shard, never their sum.

use super::reaction::Counts;
use super::{Overlay, TablesError};
use crate::meta::{Direction, KeyRange, Space, Step, View};
use bytes::Bytes;
use hayloft_common::codec::{self, Format};
use hayloft_proto::message::table::IndexCounters;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Record {
    objects: i64,
    bytes: i64,
    uploads: i64,
    parts: i64,
    part_bytes: i64,
}

impl From<Record> for Counts {
    fn from(record: Record) -> Self {
        let Record { objects, bytes, uploads, parts, part_bytes } = record;
        Self { objects, bytes, uploads, parts, part_bytes }
    }
}

impl Format for Record {
    const NAME: &'static str = "index counters";
}

fn decode(value: Option<Bytes>) -> Result<Record, TablesError> {
    let Some(value) = value else { return Ok(Record::default()) };
    codec::decode(&value)
        .map_err(|e| TablesError::DamagedEntry { what: "index counters", reason: e.to_string() })
}

/// Adds to the counters of the partition key whose rows begin with `base`.
pub(crate) fn change(overlay: &mut Overlay<'_>, base: &[u8], by: Counts) -> Result<(), TablesError> {
    if by == Counts::default() {
        return Ok(());
    }
    let old = decode(overlay.get(Space::Counters, base)?)?;
    // Sizes are checked when rows come in (at most 5 TiB each): a sum that wraps would take 1.8 million such rows.
    let new = Record {
        objects: old.objects.wrapping_add(by.objects),
        bytes: old.bytes.wrapping_add(by.bytes),
        uploads: old.uploads.wrapping_add(by.uploads),
        parts: old.parts.wrapping_add(by.parts),
        part_bytes: old.part_bytes.wrapping_add(by.part_bytes),
    };
    // No entry is the same as zeros, and what is stored must not depend on the way rows came.
    if new == Record::default() {
        overlay.delete(Space::Counters, base.to_vec());
    } else {
        overlay.put(Space::Counters, base.to_vec(), codec::encode(&new));
    }
    Ok(())
}

/// What the counters under a base are wrong by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CountersCorrection {
    base: Vec<u8>,
    /// To be added.
    by: Counts,
    /// What they should have been, for counters that cannot be read: then they can't have changed since.
    counted: Counts,
}

/// The counters of a partition that differ from `counted`, a recount on the same view.
pub(crate) fn corrections(
    view: &dyn View,
    partition: u16,
    mut counted: BTreeMap<Vec<u8>, Counts>,
) -> Result<Vec<CountersCorrection>, TablesError> {
    let mut stored: BTreeMap<Vec<u8>, Option<Counts>> = BTreeMap::new();
    let range = KeyRange::prefix(&partition.to_be_bytes());
    view.scan(Space::Counters, &range, Direction::Forward, &mut |key, value| {
        stored.insert(key.to_vec(), decode(Some(value.clone())).ok().map(Counts::from));
        Step::Next
    })?;
    for base in stored.keys() {
        counted.entry(base.clone()).or_default();
    }
    let mut wrong = Vec::new();
    for (base, counted) in counted {
        let is = stored.get(&base).copied().unwrap_or_else(|| Some(Counts::default()));
        if is != Some(counted) {
            wrong.push(CountersCorrection { base, by: counted - is.unwrap_or(counted), counted });
        }
    }
    Ok(wrong)
}

/// Applies a correction. Rows that have changed since it was made do not matter: it is a difference.
pub(crate) fn correct(overlay: &mut Overlay<'_>, correction: &CountersCorrection) -> Result<(), TablesError> {
    let CountersCorrection { base, by, counted } = correction;
    let damaged = decode(overlay.get(Space::Counters, base)?).is_err();
    if damaged {
        overlay.delete(Space::Counters, base.clone());
    }
    change(overlay, base, if damaged { *counted } else { *by })
}

/// The counters of the partition key whose rows begin with `base`.
pub(crate) fn read(view: &dyn View, base: &[u8]) -> Result<IndexCounters, TablesError> {
    let record = decode(view.get(Space::Counters, base)?)?;
    // Counts of what exists are never below 0: they are kept with the rows.
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(IndexCounters {
        objects: count(record.objects),
        bytes: count(record.bytes),
        uploads: count(record.uploads),
        parts: count(record.parts),
        part_bytes: count(record.part_bytes),
    })
}
