//! What a node counts per index shard of a bucket: objects, bytes, unfinished uploads and their parts.
//!
//! Kept in the same batch as the rows they count, under the rows' own partition and partition key: a
//! partition that leaves takes its counters along. Several replicas count the same rows: a reader takes one
//! node's answer per shard, never their sum.

use super::reaction::Counts;
use super::{Overlay, TablesError};
use crate::meta::{Space, View};
use bytes::Bytes;
use hayloft_common::codec::{self, Format};
use hayloft_proto::message::table::IndexCounters;
use serde::{Deserialize, Serialize};

#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Record {
    objects: i64,
    bytes: i64,
    uploads: i64,
    parts: i64,
    part_bytes: i64,
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
