//! Applying incoming rows: decode, check, merge with the stored row, react, write to the overlay.

use super::reaction::React;
use super::stored::{self, Parts};
use super::{Overlay, Tables, TablesError, counters, fingerprint, queue, with_row};
use crate::meta::Space;
use hayloft_common::codec;
use hayloft_common::limits::MAX_ROW_SIZE;
use hayloft_common::schema::RowError;
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode};

/// What became of a request's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// One for each row, in order.
    pub outcomes: Vec<RowOutcome>,
    /// Whether the overlay now holds the request's writes. False if a row was outdated: then none is written.
    pub kept: bool,
}

impl Tables {
    /// Applies the rows of one request in order, all or none. `now_ms` (wall clock) only dates queue entries.
    /// After an error, or if a row is outdated, the overlay is as it was before.
    pub fn apply(
        &self,
        overlay: &mut Overlay<'_>,
        mode: WriteMode,
        rows: &[RowBytes],
        now_ms: u64,
    ) -> Result<Applied, TablesError> {
        let mut outcomes = Vec::with_capacity(rows.len());
        for row in rows {
            let outcome = with_row!(row.table, R => self.apply_row::<R>(overlay, mode, &row.bytes, now_ms));
            match outcome {
                Ok(outcome) => outcomes.push(outcome),
                Err(e) => {
                    overlay.discard();
                    return Err(e);
                }
            }
        }
        let kept = outcomes.iter().all(|o| *o == RowOutcome::Written);
        if kept {
            overlay.keep();
        } else {
            overlay.discard();
        }
        Ok(Applied { outcomes, kept })
    }

    fn apply_row<R: React>(
        self,
        overlay: &mut Overlay<'_>,
        mode: WriteMode,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<RowOutcome, TablesError> {
        if bytes.len() > MAX_ROW_SIZE {
            return Err(TablesError::TooLarge { table: R::TABLE, len: bytes.len() });
        }
        let new: R = codec::decode(bytes).map_err(RowError::from)?;
        new.validate()?;
        let partition_key = new.partition_key();
        let key = self.key(&partition_key, &new.sort_key());
        let old = stored::load::<R>(overlay, key.as_bytes())?;
        let merged = match &old {
            None => new,
            Some((old, _)) => {
                if let (WriteMode::Put, Some(ours), Some(theirs)) = (mode, old.stamp(), new.stamp())
                    && ours > theirs
                {
                    return Ok(RowOutcome::Outdated(ours));
                }
                let mut merged = old.clone();
                merged.merge(&new);
                if merged == *old {
                    // Known already, or, with an equal stamp that no honest writer makes, the lesser of two contents.
                    return Ok(match (mode, old.stamp()) {
                        (WriteMode::Put, Some(ours)) if new != *old => RowOutcome::Outdated(ours),
                        _ => RowOutcome::Written,
                    });
                }
                merged
            }
        };

        let Parts { value, hash, detail } = stored::take_apart(&merged, &key);
        let (old_row, old_stored) = old.unzip();
        let effects = R::react(old_row.as_ref(), &merged);
        counters::change(overlay, key.base(), effects.counts)?;
        let old_hash = old_stored.as_ref().map(|s| s.hash);
        fingerprint::change(overlay, R::TABLE, &key, old_hash, hash)?;
        for work in effects.queue {
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
        Ok(RowOutcome::Written)
    }
}
