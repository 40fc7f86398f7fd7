//! Finding and giving what another replica lacks: sums first, then leaves, then rows. Pure; on any view.
//!
//! Both sides walk their rows of a partition once, in order of key. The asker names the hashes of those it has
//! ([`Walk`]), a bounded number at a time with the range of keys they lie in; the other gives the rows of that range whose
//! hashes are not named ([`page`]), a bounded number of bytes at a time. So memory is bounded on both sides, and what
//! travels is the difference and 9 bytes for each equal row in a leaf that differs.
//!
//! Hashes are named by 8 of their 16 bytes. Two rows that agree in them (odds of 2^-50 for each row asked for) are taken
//! for one until one of them changes.

use super::fingerprint::{self, LEAVES, Leaves};
use super::read::PAGE_BYTES;
use super::stored::{self, Stored};
use super::{TablesError, with_row};
use crate::meta::{Direction, KeyRange, Space, Step, View, range};
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::layout::Partition;
use hayloft_common::schema::TableId;
use hayloft_proto::message::sync::{MAX_HAVE, RowSum, SyncRows, SyncRowsReply};
use serde_bytes::ByteBuf;

/// Rows that one page looks at, at most: some 50 ms.
const PAGE_VISITS: usize = 50_000;
/// Rows that [`held`] looks at, at most.
const HELD_VISITS: usize = 200_000;
/// Rows collected before their details are read.
const GATHER: usize = 64;

/// The fingerprint of a partition in every table that holds rows of it.
pub fn totals(view: &dyn View, partition: Partition) -> Result<Vec<(TableId, RowSum)>, TablesError> {
    let mut out = Vec::new();
    for table in TableId::ALL {
        let total = Leaves::read(view, table, partition.0)?.total();
        if total != fingerprint::Fingerprint::default() {
            out.push((table, RowSum { sum: total.sum.to_le_bytes(), rows: total.rows }));
        }
    }
    Ok(out)
}

/// The leaves of one table's partition, as they travel.
pub fn leaves(
    view: &dyn View,
    table: TableId,
    partition: Partition,
) -> Result<Vec<(u16, RowSum)>, TablesError> {
    let leaves = Leaves::read(view, table, partition.0)?.0;
    let sum = |leaf: fingerprint::Fingerprint| RowSum { sum: leaf.sum.to_le_bytes(), rows: leaf.rows };
    Ok(leaves.into_iter().map(|(leaf, fingerprint)| (leaf, sum(fingerprint))).collect())
}

/// The leaves in which another replica, whose leaves are `theirs`, may hold rows that lack here.
pub fn wanted(ours: &[(u16, RowSum)], theirs: &[(u16, RowSum)]) -> Vec<u16> {
    let ours: std::collections::BTreeMap<u16, RowSum> = ours.iter().copied().collect();
    let differs = |(leaf, sum): &&(u16, RowSum)| sum.rows > 0 && ours.get(leaf) != Some(sum);
    theirs.iter().filter(differs).map(|(leaf, _)| *leaf).collect()
}

/// Which leaves are asked for.
struct LeafSet([u64; LEAVES / 64]);

impl LeafSet {
    fn new(leaves: &[u16]) -> Self {
        let mut set = [0; LEAVES / 64];
        for leaf in leaves {
            if let Some(word) = set.get_mut(usize::from(leaf / 64)) {
                *word |= 1 << (leaf % 64);
            }
        }
        Self(set)
    }

    fn contains(&self, key: &[u8]) -> bool {
        let leaf = fingerprint::leaf_of(key);
        self.0[usize::from(leaf / 64)] >> (leaf % 64) & 1 == 1
    }
}

/// The part of a row's hash by which it is named.
fn short_hash(hash: u128) -> u64 {
    hash as u64
}

/// The keys of `partition` from `from` up to `to`.
fn keys_between(partition: Partition, from: Option<&[u8]>, to: Option<&[u8]>) -> KeyRange {
    let prefix = partition.0.to_be_bytes();
    let first = from.unwrap_or_default().max(&prefix).to_vec();
    let end = range::after_prefix(&prefix);
    let to = match (to, end) {
        (Some(to), Some(end)) => Some(to.min(&end).to_vec()),
        (Some(to), None) => Some(to.to_vec()),
        (None, end) => end,
    };
    KeyRange { from: first, to }
}

/// Rows held in a range of keys.
struct Held {
    /// The short hashes of all rows of the leaves asked for.
    have: Vec<u64>,
    /// Where the range ends (excluded); `None`: with the partition.
    to: Option<Vec<u8>>,
}

/// The rows of some leaves that are stored here from the key `from` on: some thousands, and how far they reach.
fn held(
    view: &dyn View,
    table: TableId,
    partition: Partition,
    leaves: &[u16],
    from: Option<&[u8]>,
) -> Result<Held, TablesError> {
    let leaves = LeafSet::new(leaves);
    let mut found = Held { have: Vec::new(), to: None };
    let mut visited = 0;
    let mut failed = None;
    let keys = keys_between(partition, from, None);
    view.scan(Space::Table(table), &keys, Direction::Forward, &mut |key, value| {
        visited += 1;
        if !leaves.contains(key) && visited <= HELD_VISITS {
            return Step::Next;
        }
        if found.have.len() >= MAX_HAVE || visited > HELD_VISITS {
            found.to = Some(key.to_vec());
            return Step::Stop;
        }
        match Stored::parse(table, key, value) {
            Ok(stored) => {
                found.have.push(short_hash(stored.hash));
                Step::Next
            }
            Err(e) => {
                failed = Some(e);
                Step::Stop
            }
        }
    })?;
    failed.map_or(Ok(found), Err)
}

/// The asker's way through a table's partition, from question to question.
#[derive(Clone, Debug)]
pub struct Walk {
    table: TableId,
    partition: Partition,
    leaves: Vec<u16>,
    /// Where the next question begins, and the last one ended.
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl Walk {
    /// Through those leaves.
    pub fn new(table: TableId, partition: Partition, leaves: Vec<u16>) -> Self {
        Self { table, partition, leaves, from: None, to: None }
    }

    /// The next question, with what is stored here.
    pub fn ask(&mut self, view: &dyn View) -> Result<SyncRows, TablesError> {
        let Held { have, to } = held(view, self.table, self.partition, &self.leaves, self.from.as_deref())?;
        self.to = to;
        Ok(SyncRows {
            table: self.table,
            partition: self.partition,
            leaves: self.leaves.clone(),
            have,
            from: self.from.clone().map(ByteBuf::from),
            to: self.to.clone().map(ByteBuf::from),
        })
    }

    /// Takes in where the answer ended. False: that was all. `None`: it leads back, which no honest node's does.
    pub fn answered(&mut self, next: Option<ByteBuf>) -> Option<bool> {
        let Some(next) = next.map(ByteBuf::into_vec).or(self.to.take()) else { return Some(false) };
        if self.from.as_ref().is_some_and(|from| next <= *from) {
            return None;
        }
        self.from = Some(next);
        Some(true)
    }
}

/// The rows that an asker lacks, as many as fit in one reply.
pub fn page(view: &dyn View, ask: &SyncRows) -> Result<SyncRowsReply, TablesError> {
    let mut have = ask.have.clone();
    have.sort_unstable();
    let leaves = LeafSet::new(&ask.leaves);
    let end = ask.to.as_deref().map(Vec::as_slice);
    let mut keys = keys_between(ask.partition, ask.from.as_deref().map(Vec::as_slice), end);
    let mut reply = SyncRowsReply { rows: Vec::new(), next: None };
    let (mut bytes, mut visited) = (0, 0);
    while !keys.is_empty() {
        let mut found: Vec<Bytes> = Vec::with_capacity(GATHER);
        let mut next = None;
        let mut failed = None;
        view.scan(Space::Table(ask.table), &keys, Direction::Forward, &mut |key, value| {
            if found.len() >= GATHER || visited >= PAGE_VISITS {
                next = Some(key.to_vec());
                return Step::Stop;
            }
            visited += 1;
            if leaves.contains(key) {
                match Stored::parse(ask.table, key, value) {
                    Ok(stored) if have.binary_search(&short_hash(stored.hash)).is_err() => {
                        found.push(key.clone());
                    }
                    Ok(_) => {}
                    Err(e) => {
                        failed = Some(e);
                        return Step::Stop;
                    }
                }
            }
            Step::Next
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for key in found {
            if bytes >= PAGE_BYTES {
                next = Some(key.to_vec());
                break;
            }
            if let Some(row) = whole_row(view, ask.table, &key)? {
                bytes += row.len();
                reply.rows.push(ByteBuf::from(row));
            }
        }
        match next {
            Some(next) if bytes >= PAGE_BYTES || visited >= PAGE_VISITS => {
                reply.next = Some(ByteBuf::from(next));
                break;
            }
            Some(next) => keys.from = next,
            None => break,
        }
    }
    Ok(reply)
}

/// The encoded row stored at `key`, with its detail.
fn whole_row(view: &dyn View, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, TablesError> {
    with_row!(table, R => {
        Ok(stored::load::<R>(view, key)?.map(|(row, _)| codec::encode(&row)))
    })
}
