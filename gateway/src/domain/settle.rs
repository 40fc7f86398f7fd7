//! What is done with the replies of a read quorum: merged, and where they differ made to agree.
//!
//! A plain read ([`Reading::Plain`]) sees every write that was acknowledged before it began. What it sees beyond that (a
//! write that failed half way, or is under way) a later one may miss, since its quorum may be another. Nodes that
//! lag are repaired beside the request.
//!
//! A monotonic read ([`Reading::Monotonic`]) answers only what every later read sees too: unless the replies agree
//! and that is proof ([`Replies::lasting`]), their merge is on a write quorum before the answer is given, and
//! without one the read fails. The merge written back is one that a quorum read gave, so it holds whatever an earlier
//! monotonic read answered; hence reads never go back, through whatever gateways. A tombstone is an answer
//! like any other: what was seen gone stays gone. What is answered of no row at all needs no proof, since nothing
//! can be older.
//!
//! A merge is only as good as its read is recent ([`REPAIR_MAX_AGE`]): a gateway that was stopped in between could
//! bring back rows whose tombstones were written and collected meanwhile. Late ones are dropped.

use super::moment::Moment;
use super::rows::{all, decode};
use super::store::{Replies, StoredRow, Wrote, place_of, row_bytes};
use super::{Bucket, DomainError, Gateway};
use crate::limits::{FAN_OUT, REPAIR_MAX_AGE, WRITE_BACK_BYTES, WRITE_BACK_ROWS};
use hayloft_common::hash::Hash;
use hayloft_common::schema::Row;
use hayloft_proto::message::table::{ReadRange, ReadRow, RowBytes, WriteMode};
use std::collections::BTreeMap;

/// Read repairs under way at once; a further one is left to anti-entropy.
pub(super) const MAX_REPAIRS: usize = 64;

/// What a read promises about later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing.
    Plain,
    /// They see what it saw.
    Monotonic,
}

impl Bucket {
    /// What its clients' reads promise.
    pub(super) fn reading(&self) -> Reading {
        if self.row.monotonic_reads.value { Reading::Monotonic } else { Reading::Plain }
    }
}

/// One row of a range as the replies have it.
pub(super) struct Seen<R> {
    pub(super) row: R,
    first: Vec<u8>,
    /// Replies that have it as the first one has.
    same: usize,
}

impl<R: Row> Seen<R> {
    pub(super) fn new(row: R, bytes: &[u8]) -> Self {
        Self { row, first: bytes.to_vec(), same: 1 }
    }

    pub(super) fn merge(&mut self, row: &R, bytes: &[u8]) {
        self.same += usize::from(self.first == bytes);
        self.row.merge(row);
    }

    /// Whether each of the `replies` has it just so.
    pub(super) fn is_agreed(&self, replies: usize) -> bool {
        self.same == replies
    }
}

/// Merges the replies of a quorum. The flag says whether a node that answered lacks something.
fn merge<R: Row>(replies: &[StoredRow]) -> Result<(Option<R>, bool), DomainError> {
    let differ = replies.windows(2).any(|pair| pair[0] != pair[1]);
    let mut merged: Option<R> = None;
    for bytes in replies.iter().flatten() {
        if !differ && merged.is_some() {
            break;
        }
        let row: R = decode(bytes)?;
        match &mut merged {
            Some(have) => have.merge(&row),
            None => merged = Some(row),
        }
    }
    Ok((merged, differ))
}

impl Gateway {
    /// A row as a read quorum knows it, tombstones included. 1 R; 2 if it has to be made to last.
    pub(super) async fn read_as<R: Row>(
        &self,
        what: Reading,
        partition_key: Vec<u8>,
        sort_key: Vec<u8>,
    ) -> Result<Option<R>, DomainError> {
        let asked = Moment::now(&self.env);
        let replies = self.store.read_row(ReadRow { table: R::TABLE, partition_key, sort_key }).await?;
        self.settle(what, asked, &replies).await
    }

    /// The merge of replies to a read that began at `asked`.
    pub(super) async fn settle<R: Row>(
        &self,
        what: Reading,
        asked: Moment,
        replies: &Replies<StoredRow>,
    ) -> Result<Option<R>, DomainError> {
        let (row, differ) = merge::<R>(&replies.all)?;
        match &row {
            Some(row) if what == Reading::Monotonic && (differ || !replies.lasting) => {
                self.write_back(asked, place_of(&row.partition_key()), vec![row_bytes(row)]).await?;
            }
            Some(row) if differ => self.repair(asked, row),
            _ => {}
        }
        Ok(row)
    }

    /// Writes a merged row back, beside the request.
    fn repair<R: Row>(&self, asked: Moment, row: &R) {
        let Ok(permit) = self.repairs.clone().try_acquire_owned() else { return };
        let (env, store) = (self.env.clone(), self.store.clone());
        let (place, row) = (place_of(&row.partition_key()), row_bytes(row));
        self.env.spawn("read repair", async move {
            let left = REPAIR_MAX_AGE.saturating_sub(asked.age(&env));
            if left.is_zero() {
                tracing::debug!("a read repair came too late and is dropped");
                return;
            }
            let write = store.write_rows(place, WriteMode::Merge, vec![row]);
            if let Ok(Err(error)) = tokio::time::timeout(left, write).await {
                tracing::debug!(%error, "read repair failed; anti-entropy will do it");
            }
            drop(permit);
        });
    }

    /// Writes merged rows of one partition to a write quorum, in batches side by side. `Unavailable` when that can't be
    /// done in time.
    pub(super) async fn write_back(
        &self,
        asked: Moment,
        place: Hash,
        rows: Vec<RowBytes>,
    ) -> Result<(), DomainError> {
        let failed = |detail: String| DomainError::Unavailable {
            detail: format!("what was read can't be made to last: {detail}"),
        };
        let write = |batch| async move {
            let left = REPAIR_MAX_AGE.saturating_sub(asked.age(&self.env));
            if left.is_zero() {
                return Err(failed("the read took too long".into()));
            }
            match tokio::time::timeout(left, self.store.write_rows(place, WriteMode::Merge, batch)).await {
                Ok(Ok(Wrote::Done)) => Ok(()),
                Ok(Ok(Wrote::Outdated(_))) => Err(failed("nodes refuse a merge as outdated".into())),
                Ok(Err(error)) => Err(failed(error.to_string())),
                Err(_) => Err(failed("nodes take too long".into())),
            }
        };
        all(batches(rows).into_iter().map(write).collect()).await?;
        Ok(())
    }

    /// All rows of a range as a read quorum knows them, tombstones included, up to `limit` (about). Returns where to
    /// go on, if there is more. Only for tables whose rows a range gives whole.
    pub(super) async fn read_range<R: Row>(
        &self,
        what: Reading,
        partition_key: &[u8],
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<(Vec<R>, Option<Vec<u8>>), DomainError> {
        let mut rows: Vec<R> = Vec::new();
        let mut from = from;
        loop {
            let asked = Moment::now(&self.env);
            let replies = self
                .store
                .read_range(ReadRange {
                    table: R::TABLE,
                    partition_key: partition_key.to_vec(),
                    from: from.clone(),
                    to: to.clone().map(serde_bytes::ByteBuf::from),
                    limit: (limit - rows.len()).clamp(1, 1000) as u32,
                })
                .await?;
            // What every reply covers: below the lowest point at which one of them stopped.
            let next = replies.all.iter().filter_map(|r| r.next.as_ref()).min().map(|n| n.to_vec());
            let mut page: BTreeMap<Vec<u8>, Seen<R>> = BTreeMap::new();
            for bytes in replies.all.iter().flat_map(|r| &r.rows) {
                let row: R = decode(bytes)?;
                let key = row.sort_key();
                if next.as_ref().is_some_and(|n| key >= *n) {
                    continue;
                }
                match page.get_mut(&key) {
                    Some(have) => have.merge(&row, bytes),
                    None => {
                        page.insert(key, Seen::new(row, bytes));
                    }
                }
            }
            if what == Reading::Monotonic {
                let sure = |seen: &&Seen<R>| !(replies.lasting && seen.is_agreed(replies.all.len()));
                let doubtful: Vec<_> = page.values().filter(sure).map(|seen| row_bytes(&seen.row)).collect();
                self.write_back(asked, place_of(partition_key), doubtful).await?;
            }
            rows.extend(page.into_values().map(|seen| seen.row));
            match next {
                Some(next) if rows.len() < limit && next > from => from = next,
                next => return Ok((rows, next)),
            }
        }
    }

    /// Reads rows of one partition key again, whole, and makes them last. In the order of `keys`; rows that a quorum
    /// knows nothing of are left out.
    pub(super) async fn read_lasting<R: Row>(
        &self,
        partition_key: &[u8],
        keys: &[Vec<u8>],
    ) -> Result<Vec<R>, DomainError> {
        let mut out = Vec::with_capacity(keys.len());
        // In groups, so that none gets old before it is written back.
        for keys in keys.chunks(8 * FAN_OUT) {
            out.extend(self.read_lasting_group(partition_key, keys).await?);
        }
        Ok(out)
    }

    async fn read_lasting_group<R: Row>(
        &self,
        partition_key: &[u8],
        keys: &[Vec<u8>],
    ) -> Result<Vec<R>, DomainError> {
        let asked = Moment::now(&self.env);
        let read = |sort_key: &Vec<u8>| {
            let ask = ReadRow {
                table: R::TABLE,
                partition_key: partition_key.to_vec(),
                sort_key: sort_key.clone(),
            };
            async move {
                let replies = self.store.read_row(ask).await?;
                let (row, differ) = merge::<R>(&replies.all)?;
                Ok::<_, DomainError>(row.map(|row| (row, differ || !replies.lasting)))
            }
        };
        let found = all(keys.iter().map(read).collect()).await?;
        let doubtful = found.iter().flatten().filter(|(_, doubt)| *doubt).map(|(row, _)| row_bytes(row));
        self.write_back(asked, place_of(partition_key), doubtful.collect()).await?;
        Ok(found.into_iter().flatten().map(|(row, _)| row).collect())
    }
}

/// Rows in messages of a size that is no burden.
fn batches(rows: Vec<RowBytes>) -> Vec<Vec<RowBytes>> {
    let mut out: Vec<Vec<RowBytes>> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        let fits = bytes + row.bytes.len() <= WRITE_BACK_BYTES;
        if let Some(batch) = out.last_mut().filter(|batch| fits && batch.len() < WRITE_BACK_ROWS) {
            bytes += row.bytes.len();
            batch.push(row);
        } else {
            bytes = row.bytes.len();
            out.push(vec![row]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::schema::TableId;

    #[test]
    fn batches_keep_order_and_bounds() {
        let row = |len: usize| RowBytes { table: TableId::Part, bytes: vec![0; len] };
        let sizes = |rows: Vec<RowBytes>| -> Vec<usize> { batches(rows).iter().map(Vec::len).collect() };
        assert_eq!(sizes(Vec::new()), Vec::<usize>::new());
        assert_eq!(sizes(vec![row(1); WRITE_BACK_ROWS + 1]), [WRITE_BACK_ROWS, 1]);
        let (large, half) = (row(2 * WRITE_BACK_BYTES), row(WRITE_BACK_BYTES / 2));
        assert_eq!(sizes(vec![large, half.clone(), half.clone(), half]), [1, 2, 1]);
    }
}
