//! Taking rows away for good: tombstones that every replica holds, and partitions that are not this node's any more.
//! And what it takes to let a block go: that no live reference is left.

use super::queue::{self, Kind, Work};
use super::stored::Stored;
use super::{Overlay, Tables, TablesError, fingerprint, key, with_row};
use crate::meta::{Direction, KeyRange, Space, Step};
use bytes::Bytes;
use hayloft_common::hash::Hash;
use hayloft_common::schema::{FloorRow, Row, TableId};

impl Tables {
    /// Removes the row stored at `key` if it is a tombstone with this hash. True if the row is gone now, or was before.
    /// In the same step the floor of its partition key is raised to its stamp ([`FloorRow`]).
    pub fn collect(
        &self,
        overlay: &mut Overlay<'_>,
        table: TableId,
        key: &[u8],
        hash: u128,
        now_ms: u64,
    ) -> Result<bool, TablesError> {
        let Some(partition) = key.first_chunk::<2>().map(|p| u16::from_be_bytes(*p)) else {
            return Ok(false);
        };
        if let Some(value) = overlay.get(Space::Table(table), key)? {
            let stored = Stored::parse(table, key, &value)?;
            if stored.live || stored.hash != hash {
                return Ok(false);
            }
            let (partition_key, stamp) = with_row!(table, R => {
                let row: R = stored.decode_short(key)?;
                (row.partition_key(), row.stamp())
            });
            if let Some(stamp) = stamp {
                self.raise_floor(overlay, &FloorRow { of: table, partition_key, stamp }, now_ms)?;
            }
            if stored.has_detail {
                overlay.delete(Space::Detail, key::detail_key(table, key));
            }
            fingerprint::remove(overlay, table, partition, key, hash)?;
            overlay.delete(Space::Table(table), key.to_vec());
        }
        overlay.delete(Space::Queue, Work::Collect { table, key: key.to_vec() }.key(partition));
        Ok(true)
    }

    /// Whether a live reference to `block` is stored.
    pub fn is_referred(&self, overlay: &Overlay<'_>, block: &Hash) -> Result<bool, TablesError> {
        let base = self.key(block.as_bytes(), &[]).base().to_vec();
        let mut damaged = None;
        let found = overlay.any_with_prefix(Space::Table(TableId::BlockRef), &base, &mut |key, value| {
            match Stored::parse(TableId::BlockRef, key, value) {
                Ok(stored) => stored.live,
                // Nobody knows what it says: the block stays.
                Err(error) => {
                    damaged = Some(error);
                    true
                }
            }
        })?;
        damaged.map_or(Ok(found), Err)
    }

    /// Removes up to `limit` entries of a partition: rows, details, counters, fingerprints, queued work. Blocks that its
    /// references named are queued to be looked at. True if there was something: then call it again.
    ///
    /// Fingerprints go first: until all is gone the partition must not be compared with anybody's.
    pub fn forget(
        &self,
        overlay: &mut Overlay<'_>,
        partition: u16,
        limit: usize,
        now_ms: u64,
    ) -> Result<bool, TablesError> {
        let mut ranges: Vec<(Space, KeyRange)> = Vec::new();
        let prefix = KeyRange::prefix(&partition.to_be_bytes());
        for table in TableId::ALL {
            ranges.push((Space::Fingerprint, fingerprint::leaves_of(table, partition)));
        }
        ranges.push((Space::Counters, prefix.clone()));
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::CheckBlock) {
            ranges.push((Space::Queue, kind.in_partition(partition)));
        }
        for table in TableId::ALL {
            let [high, low] = partition.to_be_bytes();
            ranges.push((Space::Detail, KeyRange::prefix(&[u8::from(table), high, low])));
            ranges.push((Space::Table(table), prefix.clone()));
        }
        let mut doomed: Vec<(Space, Bytes)> = Vec::new();
        for (space, range) in ranges {
            overlay.view().scan(space, &range, Direction::Forward, &mut |key, _| {
                if doomed.len() >= limit.max(1) {
                    return Step::Stop;
                }
                doomed.push((space, key.clone()));
                Step::Next
            })?;
        }
        // What earlier jobs of the same batch wrote is not in the view: the caller's next call sees it.
        let more = !doomed.is_empty();
        for (space, key) in doomed {
            if space == Space::Table(TableId::BlockRef)
                && let Some((block, _)) = key::split(&key)
                && let Ok(block) = <[u8; 32]>::try_from(block)
            {
                queue::add(overlay, partition, Work::CheckBlock { block: Hash(block) }, now_ms);
            }
            overlay.delete(space, key);
        }
        Ok(more)
    }

    /// The hash of the stored row that equals `row`, if there is one: whether this node holds just this row.
    pub fn hash_if_equal<R: Row>(&self, overlay: &Overlay<'_>, row: &R) -> Result<Option<u128>, TablesError> {
        let key = self.key(&row.partition_key(), &row.sort_key());
        let found = super::stored::load::<R>(overlay, key.as_bytes())?;
        Ok(found.filter(|(stored, _)| stored == row).map(|(_, stored)| stored.hash))
    }

    /// As [`Tables::hash_if_equal`], for an encoded row.
    pub fn holds_exactly(
        &self,
        overlay: &Overlay<'_>,
        table: TableId,
        bytes: &[u8],
    ) -> Result<Option<u128>, TablesError> {
        with_row!(table, R => {
            let row: R = hayloft_common::codec::decode(bytes).map_err(hayloft_common::schema::RowError::from)?;
            self.hash_if_equal(overlay, &row)
        })
    }
}
