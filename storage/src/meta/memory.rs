//! The metadata engine in memory, for tests and the simulator.
//!
//! Fault model.
//! - *Power loss* ([`MemoryDisk::crash`]): keeps every batch up to the last durable one, and of those after
//!   it a prefix in commit order whose length the seed chooses. Handles opened before are dead: every
//!   call on them fails with [`MetaError::Closed`].
//! - *Kill* (dropping the engine): keeps everything, as the operating system's cache does.
//! - *Failed write* ([`Fault::Write`]): nothing of the batch is kept; the engine is poisoned.
//! - *Failed sync* ([`Fault::Sync`]): the batch counts as written but not synced, so a crash may keep it or
//!   lose it; the engine is poisoned. The caller must treat it as unknown, which is the case to test.
//! - *Failed read* ([`Fault::Read`]): one read fails.
//! - *Full disk* ([`MemoryDisk::set_full`]): as failed writes, until there is room and the engine is opened again.
//! - *Lost* ([`MemoryDisk::wipe`]): nothing is left.
//! - Out of scope: torn batches and bit rot (fjall's journal and tables carry checksums).
//!
//! Time costs nothing here. Reads are consistent without holding up writers: a snapshot shares the maps and
//! a writer copies only the pieces it changes (`map`).

mod map;

use super::{Batch, Direction, Engine, KeyRange, MetaError, Space, SpaceStats, Stats, Step, View, Visitor};
use bytes::Bytes;
use map::Map;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;

type Maps = Vec<Arc<Map>>;

/// What shall go wrong next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Write,
    Sync,
    Read,
}

/// The disk below the engine: what outlives a process.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Mutex<State>>);

struct State {
    /// What readers see.
    live: Maps,
    /// What a crash cannot take.
    stable: Maps,
    /// Batches in `live` and not in `stable`, in commit order.
    unsynced: Vec<Batch>,
    /// Increased by a crash; handles of an older generation are dead.
    generation: u64,
    open: bool,
    poisoned: bool,
    full: bool,
    fault: Option<(Fault, u32)>,
    commits: u64,
    syncs: u64,
}

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        let empty: Maps = (0..Space::COUNT).map(|_| Arc::default()).collect();
        Self(Arc::new(Mutex::new(State {
            live: empty.clone(),
            stable: empty,
            unsynced: Vec::new(),
            generation: 0,
            open: false,
            poisoned: false,
            full: false,
            fault: None,
            commits: 0,
            syncs: 0,
        })))
    }

    /// Opens the engine; one at a time.
    pub fn open(&self) -> Result<MemoryEngine, MetaError> {
        let mut state = self.0.lock();
        if state.open {
            return Err(MetaError::Locked { path: PathBuf::from("<memory>") });
        }
        state.open = true;
        state.poisoned = false;
        Ok(MemoryEngine { disk: self.clone(), generation: state.generation })
    }

    /// Power loss; see the head. `seed` decides how many unsynced batches survive.
    pub fn crash(&self, seed: u64) {
        let mut state = self.0.lock();
        let kept = (seed % (state.unsynced.len() as u64 + 1)) as usize;
        let unsynced = std::mem::take(&mut state.unsynced);
        for batch in unsynced.into_iter().take(kept) {
            apply(&mut state.stable, batch);
        }
        let stable = state.stable.clone();
        state.live = stable;
        state.generation += 1;
        (state.open, state.poisoned, state.fault) = (false, false, None);
    }

    /// Makes the operation of that kind after the next `after` ones fail, once.
    pub fn inject(&self, fault: Fault, after: u32) {
        self.0.lock().fault = Some((fault, after));
    }

    /// From now on writes find no room, or do again.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// Loses everything, as a metadata directory that was removed while its node was down. Handles are dead.
    pub fn wipe(&self) {
        let mut state = self.0.lock();
        let empty: Maps = (0..Space::COUNT).map(|_| Arc::default()).collect();
        (state.live, state.stable) = (empty.clone(), empty);
        state.unsynced.clear();
        state.generation += 1;
        (state.open, state.poisoned, state.full, state.fault) = (false, false, false, None);
    }

    /// Commits and syncs so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.commits, state.syncs)
    }
}

impl State {
    fn strikes(&mut self, kind: Fault) -> bool {
        match &mut self.fault {
            Some((fault, left)) if *fault == kind => {
                if *left > 0 {
                    *left -= 1;
                    return false;
                }
                self.fault = None;
                true
            }
            _ => false,
        }
    }

    fn sync(&mut self) -> Result<(), MetaError> {
        if self.strikes(Fault::Sync) {
            self.poisoned = true;
            return Err(MetaError::Io { doing: "a sync", reason: "injected".to_owned() });
        }
        for batch in std::mem::take(&mut self.unsynced) {
            apply(&mut self.stable, batch);
        }
        self.syncs += 1;
        Ok(())
    }
}

fn apply(maps: &mut Maps, batch: Batch) {
    for (space, key, value) in batch.into_ops() {
        let map = Arc::make_mut(&mut maps[space.index()]);
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        }
    }
}

/// The engine on a [`MemoryDisk`]. Dropping it is a kill: all that was committed stays.
pub struct MemoryEngine {
    disk: MemoryDisk,
    generation: u64,
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if state.generation == self.generation {
            state.open = false;
        }
    }
}

impl MemoryEngine {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> Result<T, MetaError>) -> Result<T, MetaError> {
        let mut state = self.disk.0.lock();
        if state.generation != self.generation {
            return Err(MetaError::Closed);
        }
        work(&mut state)
    }

    fn read(&self, space: Space) -> Result<Arc<Map>, MetaError> {
        self.with(|state| {
            if state.strikes(Fault::Read) {
                return Err(MetaError::Io { doing: "a read", reason: "injected".to_owned() });
            }
            Ok(state.live[space.index()].clone())
        })
    }
}

impl View for MemoryEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        Ok(self.read(space)?.get(key).cloned())
    }

    fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), MetaError> {
        // The map is shared, not locked: the visitor may read other keyspaces meanwhile.
        scan_map(&*self.read(space)?, range, direction, visit);
        Ok(())
    }
}

impl Engine for MemoryEngine {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), MetaError> {
        self.with(|state| {
            if state.poisoned {
                return Err(MetaError::Poisoned);
            }
            if state.full || state.strikes(Fault::Write) {
                state.poisoned = true;
                let reason = if state.full { "no space left" } else { "injected" };
                return Err(MetaError::Io { doing: "a write", reason: reason.to_owned() });
            }
            state.commits += 1;
            // Once written it may survive, whatever becomes of its sync; readers see it only if that succeeds.
            state.unsynced.push(batch.clone());
            if durable {
                state.sync()?;
            }
            apply(&mut state.live, batch);
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), MetaError> {
        self.with(|state| if state.poisoned { Err(MetaError::Poisoned) } else { state.sync() })
    }

    fn snapshot(&self) -> Arc<dyn View> {
        let maps = self.with(|state| Ok(state.live.clone()));
        Arc::new(MemoryView(maps))
    }

    fn stats(&self) -> Stats {
        let state = self.disk.0.lock();
        let spaces = Space::ALL
            .into_iter()
            .map(|space| {
                let map = &state.live[space.index()];
                let bytes = map.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum();
                SpaceStats { space, entries: map.len() as u64, bytes }
            })
            .collect();
        Stats { spaces, ..Stats::default() }
    }

    fn is_poisoned(&self) -> bool {
        self.disk.0.lock().poisoned
    }
}

/// The maps at one moment, or why there are none.
struct MemoryView(Result<Maps, MetaError>);

impl MemoryView {
    fn map(&self, space: Space) -> Result<&Map, MetaError> {
        self.0.as_ref().map(|maps| &*maps[space.index()]).map_err(Clone::clone)
    }
}

impl View for MemoryView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError> {
        Ok(self.map(space)?.get(key).cloned())
    }

    fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), MetaError> {
        scan_map(self.map(space)?, range, direction, visit);
        Ok(())
    }
}

fn scan_map(map: &Map, range: &KeyRange, direction: Direction, visit: &mut Visitor<'_>) {
    let mut range = range.clone();
    while !range.is_empty() {
        let mut entries = map.range(&range.from, range.to.as_deref());
        let target = loop {
            let entry = match direction {
                Direction::Forward => entries.next(),
                Direction::Reverse => entries.next_back(),
            };
            let Some((key, value)) = entry else { return };
            match visit(key, value) {
                Step::Next => {}
                Step::Seek(target) => {
                    // A target behind the scan is ignored: it goes on after the present key.
                    break match direction {
                        Direction::Forward if *target <= **key => {
                            let mut next = key.to_vec();
                            next.push(0);
                            next
                        }
                        Direction::Reverse if *target > **key => key.to_vec(),
                        _ => target,
                    };
                }
                Step::Stop => return,
            }
        };
        range = range.narrowed(target, direction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::conformance;

    fn put(key: &str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Space::Node, key.to_owned(), "v");
        batch
    }

    fn keys(engine: &MemoryEngine) -> String {
        let mut out = String::new();
        engine
            .scan(Space::Node, &KeyRange::all(), Direction::Forward, &mut |key, _| {
                out.push_str(std::str::from_utf8(key).unwrap());
                Step::Next
            })
            .unwrap();
        out
    }

    #[test]
    fn memory_passes_the_conformance_suite() {
        conformance::run(|| {
            let disk = MemoryDisk::new();
            Box::new(move || Box::new(disk.open().unwrap()) as Box<dyn Engine>)
        });
    }

    #[test]
    fn a_crash_keeps_durable_batches_and_a_prefix_of_the_others() {
        for (seed, left) in [(0, "ab"), (1, "abc"), (2, "abcd"), (3, "ab")] {
            let disk = MemoryDisk::new();
            let engine = disk.open().unwrap();
            engine.commit(put("a"), false).unwrap();
            engine.commit(put("b"), true).unwrap();
            engine.commit(put("c"), false).unwrap();
            engine.commit(put("d"), false).unwrap();
            assert_eq!(keys(&engine), "abcd");
            disk.crash(seed);
            assert_eq!(engine.get(Space::Node, b"a"), Err(MetaError::Closed));
            assert_eq!(engine.commit(put("e"), true), Err(MetaError::Closed));
            assert_eq!(keys(&disk.open().unwrap()), left);
        }
    }

    #[test]
    fn a_failed_sync_poisons_until_reopened_and_leaves_the_batch_undecided() {
        for (seed, left) in [(0, "a"), (1, "ab")] {
            let disk = MemoryDisk::new();
            let engine = disk.open().unwrap();
            engine.commit(put("a"), true).unwrap();
            disk.inject(Fault::Sync, 0);
            assert!(matches!(engine.commit(put("b"), true), Err(MetaError::Io { .. })));
            assert!(engine.is_poisoned());
            assert_eq!(engine.commit(put("c"), true), Err(MetaError::Poisoned));
            assert_eq!(engine.sync(), Err(MetaError::Poisoned));
            assert_eq!(keys(&engine), "a");
            disk.crash(seed);
            let engine = disk.open().unwrap();
            assert_eq!(keys(&engine), left);
            engine.commit(put("d"), true).unwrap();
        }
    }

    #[test]
    fn a_full_disk_takes_nothing_until_there_is_room_and_it_is_opened_again() {
        let disk = MemoryDisk::new();
        let engine = disk.open().unwrap();
        engine.commit(put("a"), true).unwrap();
        disk.set_full(true);
        assert!(matches!(engine.commit(put("b"), true), Err(MetaError::Io { .. })));
        disk.set_full(false);
        assert_eq!(engine.commit(put("b"), true), Err(MetaError::Poisoned));
        drop(engine);
        let engine = disk.open().unwrap();
        engine.commit(put("c"), true).unwrap();
        assert_eq!(keys(&engine), "ac");
        disk.wipe();
        assert_eq!(engine.commit(put("d"), true), Err(MetaError::Closed));
        assert_eq!(keys(&disk.open().unwrap()), "");
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let disk = MemoryDisk::new();
        let engine = disk.open().unwrap();
        disk.inject(Fault::Write, 1);
        engine.commit(put("a"), true).unwrap();
        assert!(engine.commit(put("b"), true).is_err());
        disk.crash(1);
        assert_eq!(keys(&disk.open().unwrap()), "a");
    }
}
