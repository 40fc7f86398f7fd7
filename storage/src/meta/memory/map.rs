//! An ordered map that is cheap to copy: sorted chunks of entries, shared until one of the copies changes them.
//!
//! Snapshots and the durable state of the engine in memory are such copies; every commit is made beside at least one of
//! them, so copying a whole keyspace for each would make long simulations slow.

use bytes::Bytes;
use std::sync::Arc;

/// Entries of a chunk before it is split in two.
const CHUNK: usize = 64;

type Entry = (Bytes, Bytes);

/// The map. Chunks are never empty; their keys rise from chunk to chunk.
#[derive(Clone, Default)]
pub(super) struct Map {
    chunks: Vec<Arc<Vec<Entry>>>,
    len: usize,
}

/// A place between entries: chunk and index in it.
type Place = (usize, usize);

impl Map {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The place of the first entry whose key is not below `key`, or the end.
    fn place(&self, key: &[u8]) -> Place {
        let chunk = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|(last, _)| **last < *key));
        let index = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|(k, _)| **k < *key));
        (chunk, index)
    }

    fn at(&self, (chunk, index): Place) -> Option<&Entry> {
        self.chunks.get(chunk)?.get(index)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.at(self.place(key)).filter(|(k, _)| **k == *key).map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, key: Bytes, value: Bytes) {
        if self.chunks.is_empty() {
            self.chunks.push(Arc::default());
        }
        let (mut chunk, mut index) = self.place(&key);
        if chunk == self.chunks.len() {
            chunk -= 1;
            index = self.chunks[chunk].len();
        }
        let entries = Arc::make_mut(&mut self.chunks[chunk]);
        if let Some(entry) = entries.get_mut(index).filter(|(k, _)| *k == key) {
            entry.1 = value;
        } else {
            entries.insert(index, (key, value));
            self.len += 1;
        }
        if entries.len() > CHUNK {
            let upper = entries.split_off(CHUNK / 2);
            self.chunks.insert(chunk + 1, Arc::new(upper));
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        let place = self.place(key);
        if self.at(place).is_none_or(|(k, _)| **k != *key) {
            return;
        }
        let entries = Arc::make_mut(&mut self.chunks[place.0]);
        entries.remove(place.1);
        self.len -= 1;
        if entries.is_empty() {
            self.chunks.remove(place.0);
        }
    }

    /// The entries from `from` (included) to `to` (excluded), in order.
    pub(super) fn range<'a>(
        &'a self,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl DoubleEndedIterator<Item = &'a Entry> + use<'a> {
        let (first, last) = (self.place(from), to.map_or((self.chunks.len(), 0), |to| self.place(to)));
        let chunks = if first <= last { first.0..(last.0 + 1).min(self.chunks.len()) } else { 0..0 };
        chunks.flat_map(move |number| {
            let chunk = &self.chunks[number][..];
            let start = if number == first.0 { first.1 } else { 0 };
            let end = if number == last.0 { last.1 } else { chunk.len() };
            chunk.get(start..end).unwrap_or_default().iter()
        })
    }

    /// All entries in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn bytes(n: u16) -> Bytes {
        Bytes::copy_from_slice(&n.to_be_bytes())
    }

    proptest! {
        #[test]
        fn it_does_what_an_ordered_map_does_and_copies_stand_still(
            steps in prop::collection::vec((0..400_u16, any::<bool>(), any::<u16>()), 0..600),
            from in 0..400_u16, to in prop::option::of(0..400_u16),
        ) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            let mut kept = (map.clone(), model.clone());
            for (n, (key, put, value)) in steps.into_iter().enumerate() {
                if put {
                    map.insert(bytes(key), bytes(value));
                    model.insert(bytes(key), bytes(value));
                } else {
                    map.remove(&bytes(key));
                    model.remove(&bytes(key));
                }
                prop_assert_eq!(map.get(&bytes(key)), model.get(&bytes(key)));
                if n % 97 == 0 {
                    kept = (map.clone(), model.clone());
                }
            }
            for (map, model) in [(&map, &model), (&kept.0, &kept.1)] {
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.iter().map(|(k, v)| (k, v)).eq(model.iter()));
                let (from, to) = (bytes(from), to.map(bytes));
                let inside = |k: &&Bytes| **k >= from && to.as_ref().is_none_or(|to| *k < to);
                let right: Vec<_> = model.keys().filter(inside).collect();
                let forward: Vec<_> = map.range(&from, to.as_deref()).map(|(k, _)| k).collect();
                prop_assert_eq!(&forward, &right);
                let mut back: Vec<_> = map.range(&from, to.as_deref()).rev().map(|(k, _)| k).collect();
                back.reverse();
                prop_assert_eq!(&back, &right);
            }
        }
    }
}
