//! A set of writes that is applied entirely or not at all.
//!
//! Holds one operation per key, the latest: engines need not define what two writes of one key in one
//! batch mean. It can be read back, so that it also serves as the overlay of writes not committed yet.

use super::Space;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Writes across keyspaces, at most one per key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ops: BTreeMap<Space, BTreeMap<Bytes, Option<Bytes>>>,
    bytes: usize,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value` at `key`, whatever the batch held there.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.set(space, key.into(), Some(value.into()));
    }

    /// Removes `key`; fine if it does not exist.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.set(space, key.into(), None);
    }

    /// What the batch does to `key`: `None` if nothing, `Some(None)` if it deletes it.
    pub fn get(&self, space: Space, key: &[u8]) -> Option<Option<&Bytes>> {
        self.ops.get(&space)?.get(key).map(Option::as_ref)
    }

    /// The operations on keys of a keyspace that begin with `prefix`, in order.
    pub fn with_prefix<'a>(
        &'a self,
        space: Space,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a Bytes, Option<&'a Bytes>)> {
        let ops = self
            .ops
            .get(&space)
            .into_iter()
            .flat_map(move |ops| ops.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded)));
        ops.take_while(move |(key, _)| key.starts_with(prefix)).map(|(key, value)| (key, value.as_ref()))
    }

    /// All operations in order of keyspace and key; `None` deletes.
    pub fn iter(&self) -> impl Iterator<Item = (Space, &Bytes, Option<&Bytes>)> {
        self.ops.iter().flat_map(|(space, ops)| ops.iter().map(|(key, value)| (*space, key, value.as_ref())))
    }

    /// As [`Batch::iter`], by value.
    pub fn into_ops(self) -> impl Iterator<Item = (Space, Bytes, Option<Bytes>)> {
        self.ops
            .into_iter()
            .flat_map(|(space, ops)| ops.into_iter().map(move |(key, value)| (space, key, value)))
    }

    /// Number of keys written or deleted.
    pub fn len(&self) -> usize {
        self.ops.values().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes over all operations of `later`, which win.
    pub fn extend(&mut self, later: Batch) {
        for (space, key, value) in later.into_ops() {
            self.set(space, key, value);
        }
    }

    fn set(&mut self, space: Space, key: Bytes, value: Option<Bytes>) {
        let key_len = key.len();
        self.bytes += value.as_ref().map_or(0, Bytes::len);
        match self.ops.entry(space).or_default().insert(key, value) {
            Some(old) => self.bytes -= old.as_ref().map_or(0, Bytes::len),
            None => self.bytes += key_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_operation_on_a_key_wins_and_is_counted_once() {
        let mut batch = Batch::new();
        batch.put(Space::Node, "k", "long value");
        batch.put(Space::Node, "k", "v");
        assert_eq!((batch.len(), batch.bytes()), (1, 2));
        assert_eq!(batch.get(Space::Node, b"k"), Some(Some(&Bytes::from("v"))));
        batch.delete(Space::Node, "k");
        assert_eq!((batch.get(Space::Node, b"k"), batch.bytes()), (Some(None), 1));
        assert_eq!(batch.get(Space::Queue, b"k"), None);
    }
}
