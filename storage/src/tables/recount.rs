//! Counting a partition's fingerprints and counters anew, while rows change.
//!
//! What is kept with the rows is changed by differences. So what it is wrong by is the same before and after any change,
//! and can be found on a frozen view and added later. Only what was removed in between (a partition that was forgotten)
//! must not be corrected any more: the caller sees to that.

use super::counters::{self, CountersCorrection};
use super::fingerprint::{self, LeafCorrection};
use super::reaction::{Counts, React};
use super::stored::Stored;
use super::{Overlay, Tables, TablesError, key};
use crate::meta::{Direction, KeyRange, Space, Step, View};
use hayloft_common::schema::{ObjectRow, PartRow, TableId, UploadRow};
use std::collections::BTreeMap;

/// What a partition's fingerprints and counters are wrong by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correction {
    partition: u16,
    leaves: Vec<(TableId, LeafCorrection)>,
    counters: Vec<CountersCorrection>,
}

impl Correction {
    /// How much is wrong: leaves and index shards.
    pub fn len(&self) -> usize {
        self.leaves.len() + self.counters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Recounts a partition on one view.
pub fn recount(view: &dyn View, partition: u16) -> Result<Correction, TablesError> {
    let mut correction = Correction { partition, ..Correction::default() };
    for table in TableId::ALL {
        let leaves = fingerprint::corrections(view, table, partition)?;
        correction.leaves.extend(leaves.into_iter().map(|leaf| (table, leaf)));
    }
    let mut counted = BTreeMap::new();
    count::<ObjectRow>(view, partition, &mut counted)?;
    count::<UploadRow>(view, partition, &mut counted)?;
    count::<PartRow>(view, partition, &mut counted)?;
    correction.counters = counters::corrections(view, partition, counted)?;
    Ok(correction)
}

fn count<R: React>(
    view: &dyn View,
    partition: u16,
    counted: &mut BTreeMap<Vec<u8>, Counts>,
) -> Result<(), TablesError> {
    let mut failed = None;
    let range = KeyRange::prefix(&partition.to_be_bytes());
    view.scan(Space::Table(R::TABLE), &range, Direction::Forward, &mut |key, value| {
        let row = Stored::parse(R::TABLE, key, value).and_then(|stored| stored.decode_short::<R>(key));
        match row {
            Ok(row) => {
                let sort_key = key::split(key).map_or(0, |(_, sort_key)| sort_key.len());
                let counts = counted.entry(key[..key.len() - sort_key].to_vec()).or_default();
                *counts = *counts + row.counts();
                Step::Next
            }
            Err(error) => {
                failed = Some(error);
                Step::Stop
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

impl Tables {
    /// Puts right what a recount found wrong.
    pub fn correct(&self, overlay: &mut Overlay<'_>, correction: &Correction) -> Result<(), TablesError> {
        for (table, leaf) in &correction.leaves {
            fingerprint::correct(overlay, *table, correction.partition, leaf)?;
        }
        for counters in &correction.counters {
            counters::correct(overlay, counters)?;
        }
        Ok(())
    }
}
