//! Writes that are not committed yet, over a view: later requests of a batch see the earlier ones' rows.
//!
//! A request writes to a layer of its own, which is kept or thrown away as a whole.

use crate::meta::{Batch, Direction, KeyRange, MetaError, Space, Step, View};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A view with the writes of a batch in the making.
pub struct Overlay<'a> {
    view: &'a dyn View,
    kept: Batch,
    request: Batch,
}

impl<'a> Overlay<'a> {
    pub fn new(view: &'a dyn View) -> Self {
        Self { view, kept: Batch::new(), request: Batch::new() }
    }

    /// The value as it would be after all writes so far.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        match self.request.get(space, key).or_else(|| self.kept.get(space, key)) {
            Some(written) => Ok(written.cloned()),
            None => self.view.get(space, key),
        }
    }

    /// Whether `test` holds for a value among the entries whose keys begin with `prefix`, as they would be after all
    /// writes so far. Stops at the first.
    pub fn any_with_prefix(
        &self,
        space: Space,
        prefix: &[u8],
        test: &mut dyn FnMut(&Bytes, &Bytes) -> bool,
    ) -> Result<bool, MetaError> {
        let mut written: BTreeMap<&Bytes, Option<&Bytes>> = self.kept.with_prefix(space, prefix).collect();
        written.extend(self.request.with_prefix(space, prefix));
        if written.iter().any(|(key, value)| value.is_some_and(|value| test(key, value))) {
            return Ok(true);
        }
        let mut found = false;
        self.view.scan(space, &KeyRange::prefix(prefix), Direction::Forward, &mut |key, value| {
            found = !written.contains_key(key) && test(key, value);
            if found { Step::Stop } else { Step::Next }
        })?;
        Ok(found)
    }

    /// The view below: what was there before all writes.
    pub fn view(&self) -> &dyn View {
        self.view
    }

    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.request.put(space, key, value);
    }

    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.request.delete(space, key);
    }

    /// Takes over entries made elsewhere, as part of the present request.
    pub fn extend(&mut self, entries: Batch) {
        self.request.extend(entries);
    }

    /// Keeps the present request's writes.
    pub fn keep(&mut self) {
        self.kept.extend(std::mem::take(&mut self.request));
    }

    /// Drops the present request's writes.
    pub fn discard(&mut self) {
        self.request = Batch::new();
    }

    /// All that was kept.
    pub fn into_batch(self) -> Batch {
        self.kept
    }
}
