//! Fingerprints of a table's rows per partition, for anti-entropy (design §4).
//!
//! A fingerprint is the wrapping sum of the 128-bit hashes of its rows, so that it is kept up to date by
//! adding the new row's hash and subtracting the old one's, in the row's own batch, in any order. Two
//! replicas with equal rows have equal fingerprints; with different rows they differ but for odds of 2^-128.
//! (The sum does not resist someone who crafts rows to make replicas look equal; whoever can write rows gains
//! nothing by hiding that a replica lacks them.)
//!
//! Rows fall into 1,024 leaves per table and partition, by ten bits of the hash of their key. What lies above
//! the leaves is summed when asked for.

use super::stored::Stored;
use super::{Overlay, RowKey, TablesError};
use crate::meta::{Direction, KeyRange, Space, Step, View};
use bytes::Bytes;
use hayloft_common::hash::Hash;
use hayloft_common::schema::TableId;
use std::collections::BTreeMap;

/// Bits of the key's hash that choose the leaf.
pub const LEAF_BITS: u32 = 10;
/// Leaves per table and partition.
pub const LEAVES: usize = 1 << LEAF_BITS;
const VALUE: usize = 24;

/// Sum and number of a set of rows, tombstones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub sum: u128,
    pub rows: u64,
}

impl Fingerprint {
    fn add(self, other: Self) -> Self {
        Self { sum: self.sum.wrapping_add(other.sum), rows: self.rows.wrapping_add(other.rows) }
    }

    fn decode(value: &Bytes) -> Result<Self, TablesError> {
        let bytes: &[u8; VALUE] = value.as_ref().try_into().map_err(|_| TablesError::DamagedEntry {
            what: "a fingerprint",
            reason: format!("{} bytes instead of {VALUE}", value.len()),
        })?;
        let mut sum = [0; 16];
        let mut rows = [0; 8];
        sum.copy_from_slice(&bytes[..16]);
        rows.copy_from_slice(&bytes[16..]);
        Ok(Self { sum: u128::from_le_bytes(sum), rows: u64::from_le_bytes(rows) })
    }

    fn encode(self) -> Vec<u8> {
        let mut out = self.sum.to_le_bytes().to_vec();
        out.extend_from_slice(&self.rows.to_le_bytes());
        out
    }
}

/// The leaf of the row stored at `key`.
pub fn leaf_of(key: &[u8]) -> u16 {
    Hash::of(key).top16() >> (16 - LEAF_BITS)
}

fn leaf_key(table: TableId, partition: u16, leaf: u16) -> Vec<u8> {
    let mut key = partition_prefix(table, partition);
    key.extend_from_slice(&leaf.to_be_bytes());
    key
}

fn partition_prefix(table: TableId, partition: u16) -> Vec<u8> {
    let mut key = vec![u8::from(table)];
    key.extend_from_slice(&partition.to_be_bytes());
    key
}

/// Replaces a row's hash in its leaf.
pub(crate) fn change(
    overlay: &mut Overlay<'_>,
    table: TableId,
    key: &RowKey,
    old: Option<u128>,
    new: u128,
) -> Result<(), TablesError> {
    let leaf_key = leaf_key(table, key.partition(), leaf_of(key.as_bytes()));
    let leaf = match overlay.get(Space::Fingerprint, &leaf_key)? {
        Some(value) => Fingerprint::decode(&value)?,
        None => Fingerprint::default(),
    };
    let leaf = Fingerprint {
        sum: leaf.sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(new),
        rows: leaf.rows + u64::from(old.is_none()),
    };
    overlay.put(Space::Fingerprint, leaf_key, leaf.encode());
    Ok(())
}

/// Takes a row that is removed out of its leaf.
pub(crate) fn remove(
    overlay: &mut Overlay<'_>,
    table: TableId,
    partition: u16,
    key: &[u8],
    hash: u128,
) -> Result<(), TablesError> {
    let leaf_key = leaf_key(table, partition, leaf_of(key));
    let Some(value) = overlay.get(Space::Fingerprint, &leaf_key)? else { return Ok(()) };
    let leaf = Fingerprint::decode(&value)?;
    let leaf = Fingerprint { sum: leaf.sum.wrapping_sub(hash), rows: leaf.rows.saturating_sub(1) };
    if leaf == Fingerprint::default() {
        overlay.delete(Space::Fingerprint, leaf_key);
    } else {
        overlay.put(Space::Fingerprint, leaf_key, leaf.encode());
    }
    Ok(())
}

/// What a leaf is wrong by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafCorrection {
    leaf: u16,
    /// To be added, wrapping.
    by: Fingerprint,
    /// What it should have been, for a leaf that cannot be read: then no row of it can have changed since.
    counted: Fingerprint,
}

/// The leaves of a table's partition that differ from a recount, on one view.
pub(crate) fn corrections(
    view: &dyn View,
    table: TableId,
    partition: u16,
) -> Result<Vec<LeafCorrection>, TablesError> {
    let mut stored: BTreeMap<u16, Option<Fingerprint>> = BTreeMap::new();
    let mut read = |key: &Bytes, value: &Bytes| {
        let leaf = key.last_chunk::<2>().map_or(0, |b| u16::from_be_bytes(*b));
        stored.insert(leaf, Fingerprint::decode(value).ok());
        Step::Next
    };
    view.scan(Space::Fingerprint, &leaves_of(table, partition), Direction::Forward, &mut read)?;
    let counted = Leaves::recompute(view, table, partition)?.0;
    let all: std::collections::BTreeSet<u16> = stored.keys().chain(counted.keys()).copied().collect();
    let mut wrong = Vec::new();
    for leaf in all {
        let is = stored.get(&leaf).copied().unwrap_or_else(|| Some(Fingerprint::default()));
        let counted = counted.get(&leaf).copied().unwrap_or_default();
        if is != Some(counted) {
            let is = is.unwrap_or(counted);
            let by = Fingerprint {
                sum: counted.sum.wrapping_sub(is.sum),
                rows: counted.rows.wrapping_sub(is.rows),
            };
            wrong.push(LeafCorrection { leaf, by, counted });
        }
    }
    Ok(wrong)
}

/// Applies a correction. Rows that have changed since it was made do not matter: it is a difference.
pub(crate) fn correct(
    overlay: &mut Overlay<'_>,
    table: TableId,
    partition: u16,
    correction: &LeafCorrection,
) -> Result<(), TablesError> {
    let key = leaf_key(table, partition, correction.leaf);
    let stored = overlay.get(Space::Fingerprint, &key)?;
    let right = match stored.as_ref().map(Fingerprint::decode) {
        None => Fingerprint::default().add(correction.by),
        Some(Ok(stored)) => stored.add(correction.by),
        Some(Err(_)) => correction.counted,
    };
    if right == Fingerprint::default() {
        overlay.delete(Space::Fingerprint, key);
    } else {
        overlay.put(Space::Fingerprint, key, right.encode());
    }
    Ok(())
}

/// The keys of a partition's leaves in [`Space::Fingerprint`], for one table.
pub(crate) fn leaves_of(table: TableId, partition: u16) -> KeyRange {
    KeyRange::prefix(&partition_prefix(table, partition))
}

/// The leaves of a table's partition that hold rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaves(pub BTreeMap<u16, Fingerprint>);

impl Leaves {
    /// Reads them; at most [`LEAVES`] short entries.
    pub fn read(view: &dyn View, table: TableId, partition: u16) -> Result<Self, TablesError> {
        let mut leaves = BTreeMap::new();
        let mut failed = None;
        let range = KeyRange::prefix(&partition_prefix(table, partition));
        view.scan(Space::Fingerprint, &range, Direction::Forward, &mut |key, value| {
            let leaf = key.last_chunk::<2>().map_or(0, |b| u16::from_be_bytes(*b));
            match Fingerprint::decode(value) {
                Ok(fingerprint) => {
                    leaves.insert(leaf, fingerprint);
                    Step::Next
                }
                Err(e) => {
                    failed = Some(e);
                    Step::Stop
                }
            }
        })?;
        failed.map_or(Ok(Self(leaves)), Err)
    }

    /// The fingerprint of node `index` at `level` of the binary tree above the leaves: level 0 is the whole
    /// partition, level [`LEAF_BITS`] the leaves.
    pub fn node(&self, level: u32, index: u16) -> Fingerprint {
        let shift = LEAF_BITS.saturating_sub(level);
        let first = u32::from(index) << shift;
        let last = first + (1 << shift);
        self.0
            .iter()
            .filter(|(leaf, _)| (first..last).contains(&u32::from(**leaf)))
            .fold(Fingerprint::default(), |sum, (_, leaf)| sum.add(*leaf))
    }

    /// The fingerprint of the whole partition.
    pub fn total(&self) -> Fingerprint {
        self.node(0, 0)
    }

    /// The leaves in which two replicas differ.
    pub fn differing(&self, other: &Self) -> Vec<u16> {
        let mut all: Vec<u16> = self.0.keys().chain(other.0.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|leaf| self.0.get(leaf) != other.0.get(leaf));
        all
    }

    /// Computes them anew from the rows; for checks and repair.
    pub fn recompute(view: &dyn View, table: TableId, partition: u16) -> Result<Self, TablesError> {
        let mut leaves: BTreeMap<u16, Fingerprint> = BTreeMap::new();
        let mut failed = None;
        let range = KeyRange::prefix(&partition.to_be_bytes());
        view.scan(Space::Table(table), &range, Direction::Forward, &mut |key, value| match Stored::parse(
            table, key, value,
        ) {
            Ok(stored) => {
                let leaf = leaves.entry(leaf_of(key)).or_default();
                *leaf = leaf.add(Fingerprint { sum: stored.hash, rows: 1 });
                Step::Next
            }
            Err(e) => {
                failed = Some(e);
                Step::Stop
            }
        })?;
        failed.map_or(Ok(Self(leaves)), Err)
    }
}
