//! What a gateway remembers: control records by age, and block lists of parts that came through it. Losing any of it
//! costs round trips, never correctness.

use hayloft_common::id::{UploadId, VersionId};
use hayloft_common::schema::BlockEntry;
use lru::LruCache;
use parking_lot::Mutex;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

struct Entry<V> {
    value: V,
    loaded: Duration,
    used: Duration,
}

/// The most recently used values, each for a limited time. Times are of `Env::now`.
pub struct Aged<K, V> {
    entries: Mutex<LruCache<K, Entry<V>>>,
    max_age: Duration,
}

impl<K: Hash + Eq + Clone, V: Clone> Aged<K, V> {
    /// At most so many entries, none used when older than so much.
    pub fn new((entries, max_age): (usize, Duration)) -> Self {
        let entries = NonZeroUsize::new(entries).unwrap_or(NonZeroUsize::MIN);
        // Not the whole capacity at once: most gateways use little of it.
        let mut cache = LruCache::unbounded();
        cache.resize(entries);
        Self { entries: Mutex::new(cache), max_age }
    }

    pub fn get(&self, now: Duration, key: &K) -> Option<V> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(key)?;
        if now.saturating_sub(entry.loaded) > self.max_age {
            entries.pop(key);
            return None;
        }
        entry.used = now;
        Some(entry.value.clone())
    }

    /// Puts in what was read by a read that began at `asked`; not over what is newer.
    pub fn put(&self, asked: Duration, key: K, value: V) {
        let mut entries = self.entries.lock();
        let used = match entries.peek(&key) {
            Some(have) if have.loaded > asked => return,
            Some(have) => have.used,
            None => asked,
        };
        entries.put(key, Entry { value, loaded: asked, used });
    }

    pub fn remove(&self, key: &K) {
        self.entries.lock().pop(key);
    }

    /// Keys used within `active` whose values are older than `refresh`, at most `limit`, oldest first.
    pub fn to_refresh(&self, now: Duration, refresh: Duration, active: Duration, limit: usize) -> Vec<K> {
        let entries = self.entries.lock();
        let mut found: Vec<_> = entries
            .iter()
            .take_while(|(_, e)| now.saturating_sub(e.used) <= active)
            .filter(|(_, e)| now.saturating_sub(e.loaded) >= refresh)
            .map(|(key, e)| (e.loaded, key.clone()))
            .collect();
        found.sort_by_key(|(loaded, _)| *loaded);
        found.into_iter().take(limit).map(|(_, key)| key).collect()
    }
}

/// A part as this gateway stored it.
#[derive(Clone, Debug)]
pub struct KnownPart {
    pub id: VersionId,
    pub blocks: Arc<[BlockEntry]>,
}

/// Block lists of recent parts, bounded by the number of blocks.
pub struct PartMemory {
    parts: Mutex<Parts>,
    max_blocks: usize,
}

struct Parts {
    lists: LruCache<(UploadId, u16), KnownPart>,
    /// What they cost together.
    cost: usize,
}

impl KnownPart {
    /// An empty part costs an entry all the same.
    fn cost(&self) -> usize {
        self.blocks.len() + 1
    }
}

impl PartMemory {
    pub fn new(max_blocks: usize) -> Self {
        Self { parts: Mutex::new(Parts { lists: LruCache::unbounded(), cost: 0 }), max_blocks }
    }

    pub fn put(&self, upload: UploadId, number: u16, part: KnownPart) {
        let mut parts = self.parts.lock();
        parts.cost += part.cost();
        if let Some(old) = parts.lists.put((upload, number), part) {
            parts.cost -= old.cost();
        }
        while parts.cost > self.max_blocks {
            let Some((_, old)) = parts.lists.pop_lru() else { break };
            parts.cost -= old.cost();
        }
    }

    /// Forgets a part, and says what was known of it.
    pub fn take(&self, upload: UploadId, number: u16) -> Option<KnownPart> {
        let mut parts = self.parts.lock();
        let part = parts.lists.pop(&(upload, number))?;
        parts.cost -= part.cost();
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_age_and_are_never_replaced_by_older_ones() {
        let s = Duration::from_secs;
        let cache = Aged::new((10, s(30)));
        cache.put(s(10), "k", 1);
        cache.put(s(9), "k", 0);
        assert_eq!(cache.get(s(40), &"k"), Some(1));
        assert_eq!(cache.get(s(41), &"k"), None);
    }

    #[test]
    fn only_values_in_use_are_refreshed() {
        let s = Duration::from_secs;
        let cache = Aged::new((10, s(600)));
        cache.put(s(0), "idle", 1);
        cache.put(s(0), "used", 1);
        assert_eq!(cache.get(s(100), &"used"), Some(1));
        assert_eq!(cache.to_refresh(s(101), s(1), s(60), 10), vec!["used"]);
    }

    #[test]
    fn part_memory_stays_in_its_bound() {
        let memory = PartMemory::new(10);
        let part = |n: u8| KnownPart {
            id: VersionId([n; 16]),
            blocks: vec![BlockEntry { hash: hayloft_common::hash::Hash::default(), len: 1 }; 4].into(),
        };
        for n in 0..3 {
            memory.put(UploadId([1; 16]), u16::from(n), part(n));
        }
        assert!(memory.take(UploadId([1; 16]), 0).is_none());
        assert_eq!(memory.take(UploadId([1; 16]), 2).map(|p| p.id), Some(VersionId([2; 16])));
    }
}
