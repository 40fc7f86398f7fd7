//! A page of object keys with what follows a delimiter rolled up here, so that a folder of a million objects
//! costs one seek, not a million rows (skip-scan).
//!
//! Tombstones are given as rows: on another replica the same key may be live and older, and only the gateway,
//! which merges a quorum's pages, can tell. A rolled-up prefix names its first live row here as witness, which
//! the gateway confirms the same way; a prefix with nothing but tombstones is left out. For reads that must never go
//! back the tombstones before a witness are given too, so that the gateway sees on what nodes agree.
//!
//! A page says how far it is complete. It may end early, after [`MAX_VISITED`] rows, so that no request holds
//! a thread for long: then it may have few entries, even none, and `next` is still ahead of `from`.

use super::read::PAGE_BYTES;
use super::stored::Stored;
use super::{Tables, TablesError};
use crate::meta::{Direction, KeyRange, Space, Step, View, range};
use bytes::Bytes;
use hayloft_common::schema::{TableId, sort_key};
use hayloft_proto::message::table::{ListEntry, ListKeys, ListKeysReply};
use serde_bytes::ByteBuf;

/// Rows looked at for one page, at most.
pub const MAX_VISITED: usize = 10_000;

impl Tables {
    /// The page that `ask` describes, for tables whose sort keys begin with an escaped object key.
    pub fn list_keys(&self, view: &dyn View, ask: &ListKeys) -> Result<ListKeysReply, TablesError> {
        self.list_bounded(view, ask, MAX_VISITED)
    }

    fn list_bounded(
        self,
        view: &dyn View,
        ask: &ListKeys,
        max_visited: usize,
    ) -> Result<ListKeysReply, TablesError> {
        let base = self.key(&ask.partition_key, &[]).base().to_vec();
        let within = [&base[..], &sort_key::prefix(ask.prefix.as_bytes())].concat();
        let range = KeyRange {
            from: [&base[..], &ask.from].concat().max(within.clone()),
            to: range::after_prefix(&within),
        };
        let mut lister = Lister {
            table: ask.table,
            prefix: ask.prefix.as_bytes(),
            delimiter: ask.delimiter.as_deref().filter(|d| !d.is_empty()).map(str::as_bytes),
            base: &base,
            tombstones: ask.tombstones,
            limit: ask.limit.max(1) as usize,
            visits_left: max_visited.max(1),
            bytes: 0,
            entries: Vec::new(),
        };
        let mut next = None;
        let mut failed = None;
        view.scan(Space::Table(ask.table), &range, Direction::Forward, &mut |key, value| {
            if lister.is_full() {
                next = Some(ByteBuf::from(key[base.len()..].to_vec()));
                return Step::Stop;
            }
            lister.visit(key, value).unwrap_or_else(|e| {
                failed = Some(e);
                Step::Stop
            })
        })?;
        match failed {
            Some(e) => Err(e),
            None => Ok(ListKeysReply { entries: lister.entries, next }),
        }
    }
}

struct Lister<'a> {
    table: TableId,
    prefix: &'a [u8],
    delimiter: Option<&'a [u8]>,
    /// What all stored keys of the partition key begin with.
    base: &'a [u8],
    /// Whether tombstones behind the delimiter are given too.
    tombstones: bool,
    limit: usize,
    visits_left: usize,
    bytes: usize,
    entries: Vec<ListEntry>,
}

impl Lister<'_> {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit || self.visits_left == 0 || self.bytes >= PAGE_BYTES
    }

    fn visit(&mut self, key: &Bytes, value: &Bytes) -> Result<Step, TablesError> {
        self.visits_left -= 1;
        let stored = Stored::parse(self.table, key, value)?;
        let (plain, _) = sort_key::split(&key[self.base.len()..])
            .ok_or_else(|| TablesError::damaged(self.table, key, "its sort key begins with no object key"))?;
        let Some(end) = self.end_of_common_prefix(&plain) else {
            self.bytes += stored.short.len();
            self.entries.push(ListEntry::Row(stored.short.to_vec()));
            return Ok(Step::Next);
        };
        if !stored.live {
            if self.tombstones {
                self.bytes += stored.short.len();
                self.entries.push(ListEntry::Row(stored.short.to_vec()));
            }
            return Ok(Step::Next);
        }
        let common = &plain[..end];
        let prefix = std::str::from_utf8(common).map_err(|e| TablesError::damaged(self.table, key, e))?;
        self.bytes += stored.short.len() + prefix.len();
        self.entries.push(ListEntry::Prefix { prefix: prefix.to_owned(), witness: stored.short.to_vec() });
        let rolled_up = [self.base, &sort_key::prefix(common)].concat();
        // The base is a partition and a length: never all 0xff together with UTF-8, so there is a key behind.
        Ok(range::after_prefix(&rolled_up).map_or(Step::Stop, Step::Seek))
    }

    /// Where the delimiter ends that comes first behind the asked prefix.
    fn end_of_common_prefix(&self, plain: &[u8]) -> Option<usize> {
        let delimiter = self.delimiter?;
        let rest = plain.get(self.prefix.len()..)?;
        let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
        Some(self.prefix.len() + at + delimiter.len())
    }
}
