//! Reading rows: one with its detail, a range without, counters. On any view, tombstones included.

use super::stored::{self, Stored};
use super::{Tables, TablesError, counters, with_row};
use crate::meta::{Direction, KeyRange, Space, Step, View, range};
use hayloft_common::codec;
use hayloft_common::schema::{Row, TableId};
use hayloft_proto::message::table::{IndexCounters, ReadCounters, ReadRange, ReadRangeReply, ReadRow};
use serde_bytes::ByteBuf;

/// Bytes of rows after which a page ends, however many were asked for: it must fit in one reply.
pub const PAGE_BYTES: usize = 1 << 20;

impl Tables {
    /// The encoded row with its detail; `None` if there never was one.
    pub fn read_row(&self, view: &dyn View, ask: &ReadRow) -> Result<Option<Vec<u8>>, TablesError> {
        let key = self.key(&ask.partition_key, &ask.sort_key);
        with_row!(ask.table, R => {
            let found = stored::load::<R>(view, key.as_bytes())?;
            Ok(found.map(|(row, _)| codec::encode(&row)))
        })
    }

    /// As [`Tables::read_row`], decoded.
    pub fn row<R: Row>(
        &self,
        view: &dyn View,
        partition_key: &[u8],
        sort_key: &[u8],
    ) -> Result<Option<R>, TablesError> {
        let key = self.key(partition_key, sort_key);
        Ok(stored::load::<R>(view, key.as_bytes())?.map(|(row, _)| row))
    }

    /// The encoded row without its detail; `None` if there never was one.
    pub fn read_short(&self, view: &dyn View, ask: &ReadRow) -> Result<Option<Vec<u8>>, TablesError> {
        let key = self.key(&ask.partition_key, &ask.sort_key);
        let Some(value) = view.get(Space::Table(ask.table), key.as_bytes())? else { return Ok(None) };
        Ok(Some(Stored::parse(ask.table, key.as_bytes(), &value)?.short.to_vec()))
    }

    /// Rows of a partition key in order, without details.
    pub fn read_range(&self, view: &dyn View, ask: &ReadRange) -> Result<ReadRangeReply, TablesError> {
        self.range(view, ask, Direction::Forward)
    }

    /// As [`Tables::read_range`], in either direction. In reverse `next` is the `to` to go on with.
    pub fn range(
        &self,
        view: &dyn View,
        ask: &ReadRange,
        direction: Direction,
    ) -> Result<ReadRangeReply, TablesError> {
        let base = self.key(&ask.partition_key, &[]).base().to_vec();
        let range = self.rows_between(&ask.partition_key, &ask.from, ask.to.as_deref().map(Vec::as_slice));
        let mut page = Page::new(ask.table, ask.limit);
        let mut last = None;
        view.scan(Space::Table(ask.table), &range, direction, &mut |key, value| {
            let sort_key = &key[base.len()..];
            if page.is_full() {
                // Reverse goes on below the last row given, which is an excluded end.
                page.next = match direction {
                    Direction::Forward => Some(sort_key.to_vec()),
                    Direction::Reverse => last.take(),
                };
                return Step::Stop;
            }
            if direction == Direction::Reverse {
                last = Some(sort_key.to_vec());
            }
            page.take(key, value)
        })?;
        page.finish()
    }

    /// The counters of an index shard.
    pub fn read_counters(&self, view: &dyn View, ask: &ReadCounters) -> Result<IndexCounters, TablesError> {
        counters::read(view, self.key(&ask.partition_key, &[]).base())
    }

    /// The stored keys of a partition key with sort keys from `from` up to `to`.
    pub(crate) fn rows_between(self, partition_key: &[u8], from: &[u8], to: Option<&[u8]>) -> KeyRange {
        let first = self.key(partition_key, from);
        let to = match to {
            Some(to) => Some(self.key(partition_key, to).as_bytes().to_vec()),
            None => range::after_prefix(first.base()),
        };
        KeyRange { from: first.as_bytes().to_vec(), to }
    }
}

/// Rows being collected for a reply.
struct Page {
    table: TableId,
    limit: usize,
    bytes: usize,
    rows: Vec<ByteBuf>,
    next: Option<Vec<u8>>,
    failed: Option<TablesError>,
}

impl Page {
    fn new(table: TableId, limit: u32) -> Self {
        Self { table, limit: limit.max(1) as usize, bytes: 0, rows: Vec::new(), next: None, failed: None }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= self.limit || self.bytes >= PAGE_BYTES
    }

    fn take(&mut self, key: &[u8], value: &bytes::Bytes) -> Step {
        match Stored::parse(self.table, key, value) {
            Ok(stored) => {
                self.bytes += stored.short.len();
                self.rows.push(ByteBuf::from(stored.short.to_vec()));
                Step::Next
            }
            Err(e) => {
                self.failed = Some(e);
                Step::Stop
            }
        }
    }

    fn finish(self) -> Result<ReadRangeReply, TablesError> {
        match self.failed {
            Some(e) => Err(e),
            None => Ok(ReadRangeReply { rows: self.rows, next: self.next.map(ByteBuf::from) }),
        }
    }
}
