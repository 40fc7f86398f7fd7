//! Applying incoming rows: decode, check, merge with the stored row, react, write to the overlay.

use super::queue::Work;
use super::reaction::React;
use super::stored::{self, Parts, Stored};
use super::{Overlay, RowKey, Tables, TablesError, counters, fingerprint, queue, with_row};
use crate::meta::Space;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::limits::MAX_ROW_SIZE;
use hayloft_common::schema::{FloorRow, Row as _, RowError, TableId};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode};

/// What became of a request's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// One for each row, in order.
    pub outcomes: Vec<RowOutcome>,
    /// Whether the overlay now holds the request's writes. False if a row was outdated: then none is written.
    pub kept: bool,
    /// Blocks of the live references among the rows, as they came, that are live after the merge.
    pub referred: Vec<Hash>,
    /// Blocks of the live references among the rows that the stored row says are deleted for good.
    pub refused: Vec<Hash>,
}

/// What became of one row.
struct Done {
    outcome: RowOutcome,
    /// The row came live; whether it is after the merge.
    live: Option<bool>,
}

impl Tables {
    /// Applies the rows of one request in order, all or none. `now_ms` (wall clock) only dates queue entries.
    /// After an error, or if a row is outdated, the overlay is as it was before; else the writes wait in it for the
    /// caller's [`Overlay::keep`] (or [`Overlay::discard`]).
    pub fn apply(
        &self,
        overlay: &mut Overlay<'_>,
        mode: WriteMode,
        rows: &[RowBytes],
        now_ms: u64,
    ) -> Result<Applied, TablesError> {
        let mut outcomes = Vec::with_capacity(rows.len());
        let (mut referred, mut refused) = (Vec::new(), Vec::new());
        for row in rows {
            let done = with_row!(row.table, R => self.apply_row::<R>(overlay, mode, &row.bytes, now_ms));
            match done {
                Ok((Done { outcome, live }, partition_key)) => {
                    outcomes.push(outcome);
                    if row.table == TableId::BlockRef
                        && let (Some(live), Ok(block)) = (live, <[u8; 32]>::try_from(partition_key))
                    {
                        if live { &mut referred } else { &mut refused }.push(Hash(block));
                    }
                }
                Err(e) => {
                    overlay.discard();
                    return Err(e);
                }
            }
        }
        let kept = outcomes.iter().all(|o| *o == RowOutcome::Written);
        if !kept {
            overlay.discard();
        }
        Ok(Applied { outcomes, kept, referred, refused })
    }

    fn apply_row<R: React>(
        self,
        overlay: &mut Overlay<'_>,
        mode: WriteMode,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(Done, Vec<u8>), TablesError> {
        if bytes.len() > MAX_ROW_SIZE {
            return Err(TablesError::TooLarge { table: R::TABLE, len: bytes.len() });
        }
        let new: R = codec::decode(bytes).map_err(RowError::from)?;
        new.validate()?;
        let partition_key = new.partition_key();
        let key = self.key(&partition_key, &new.sort_key());
        let old = stored::load::<R>(overlay, key.as_bytes())?;
        let came_live = new.is_live();
        let arrival = new.work_on_arrival();
        let merged = match &old {
            None => {
                if let (WriteMode::Put, Some(stamp)) = (mode, new.stamp())
                    && let Some(floor) =
                        self.floor(overlay, R::TABLE, &partition_key)?.filter(|f| *f >= stamp)
                {
                    return Ok((Done { outcome: RowOutcome::Outdated(floor), live: None }, partition_key));
                }
                new
            }
            Some((old, _)) => {
                if let (WriteMode::Put, Some(ours), Some(theirs)) = (mode, old.stamp(), new.stamp())
                    && ours > theirs
                {
                    return Ok((Done { outcome: RowOutcome::Outdated(ours), live: None }, partition_key));
                }
                let mut merged = old.clone();
                merged.merge(&new);
                if merged == *old {
                    // Known already, or, with an equal stamp that no honest writer makes, the lesser of two contents.
                    let outcome = match (mode, old.stamp()) {
                        (WriteMode::Put, Some(ours)) if new != *old => RowOutcome::Outdated(ours),
                        _ => RowOutcome::Written,
                    };
                    if let Some(work) = arrival.filter(|_| old.is_live()) {
                        queue::add(overlay, key.partition(), work, now_ms);
                    }
                    let live = came_live.then(|| old.is_live());
                    return Ok((Done { outcome, live }, partition_key));
                }
                merged
            }
        };
        if let Some(work) = arrival.filter(|_| merged.is_live()) {
            queue::add(overlay, key.partition(), work, now_ms);
        }
        if let Some((table, sort_key, work)) = merged.parent().filter(|_| merged.is_live())
            && !self.is_live_at(overlay, table, &partition_key, &sort_key)?
        {
            queue::add(overlay, key.partition(), work, now_ms);
        }
        let live = came_live.then(|| merged.is_live());
        store(overlay, &key, old, &merged, now_ms)?;
        Ok((Done { outcome: RowOutcome::Written, live }, partition_key))
    }

    /// The highest stamp of a tombstone that was removed under `partition_key` (see [`FloorRow`]).
    fn floor(
        self,
        overlay: &Overlay<'_>,
        of: TableId,
        partition_key: &[u8],
    ) -> Result<Option<Stamp>, TablesError> {
        let key = self.key(partition_key, &FloorRow::sort_key_of(of));
        Ok(stored::load::<FloorRow>(overlay, key.as_bytes())?.map(|(floor, _)| floor.stamp))
    }

    /// Raises the floor to `stamp`.
    pub(super) fn raise_floor(
        self,
        overlay: &mut Overlay<'_>,
        floor: &FloorRow,
        now_ms: u64,
    ) -> Result<(), TablesError> {
        let key = self.key(&floor.partition_key(), &floor.sort_key());
        let old = stored::load::<FloorRow>(overlay, key.as_bytes())?;
        if old.as_ref().is_some_and(|(old, _)| old.stamp >= floor.stamp) {
            return Ok(());
        }
        store(overlay, &key, old, floor, now_ms)
    }

    fn is_live_at(
        self,
        overlay: &Overlay<'_>,
        table: TableId,
        partition_key: &[u8],
        sort_key: &[u8],
    ) -> Result<bool, TablesError> {
        let key = self.key(partition_key, sort_key);
        let Some(value) = overlay.get(Space::Table(table), key.as_bytes())? else { return Ok(false) };
        Ok(Stored::parse(table, key.as_bytes(), &value)?.live)
    }
}

/// Puts a row in place of `old`, with all that follows from the change.
fn store<R: React>(
    overlay: &mut Overlay<'_>,
    key: &RowKey,
    old: Option<(R, Stored)>,
    new: &R,
    now_ms: u64,
) -> Result<(), TablesError> {
    let Parts { value, hash, detail } = stored::take_apart(new, key);
    let (old_row, old_stored) = old.unzip();
    let effects = R::react(old_row.as_ref(), new);
    counters::change(overlay, key.base(), effects.counts)?;
    let old_hash = old_stored.as_ref().map(|s| s.hash);
    fingerprint::change(overlay, R::TABLE, key, old_hash, hash)?;
    for work in effects.queue {
        queue::add(overlay, key.partition(), work, now_ms);
    }
    if !new.is_live() {
        let work = Work::Collect { table: R::TABLE, key: key.as_bytes().to_vec() };
        queue::add(overlay, key.partition(), work, now_ms);
    }
    match detail {
        Some(detail) => overlay.put(Space::Detail, key.detail(R::TABLE), detail),
        None if old_stored.is_some_and(|s| s.has_detail) => {
            overlay.delete(Space::Detail, key.detail(R::TABLE));
        }
        None => {}
    }
    overlay.put(Space::Table(R::TABLE), key.as_bytes().to_vec(), value);
    Ok(())
}
