//! The metadata engine behind a seam: named, ordered keyspaces with atomic batches across them.
//!
//! Synchronous and object-safe (`Arc<dyn Engine>`). Two versions pass the same suite
//! (`conformance.rs`): [`fjall`] on real disks, [`memory`] for tests and the simulator, which models
//! crashes.
//!
//! Guarantees:
//! - a [`Batch`] is seen, and survives a crash, entirely or not at all;
//! - a durable commit has been synced when it returns, and with it every batch committed before it; a crash
//!   keeps all durable batches and a prefix, in commit order, of those after the last durable one;
//! - a scan, and everything read through one [`Engine::snapshot`], sees one state;
//! - after a failed write or sync the engine takes no more writes ([`MetaError::Poisoned`]): what the
//!   operating system kept of it is unknown until the directory is opened again.
//!
//! It knows nothing of rows. It does not order concurrent read-modify-write: one owner of writes does
//! (`commit.rs`).

pub mod batch;
#[cfg(test)]
mod conformance;
pub mod error;
pub mod fjall;
pub mod format;
pub mod memory;
pub mod range;
pub mod space;

pub use batch::Batch;
pub use error::MetaError;
pub use format::Identity;
pub use range::{Direction, KeyRange, Step};
pub use space::Space;

use bytes::Bytes;
use std::sync::Arc;

/// What a scan calls for each entry in turn; it says how to go on.
pub type Visitor<'a> = dyn FnMut(&Bytes, &Bytes) -> Step + 'a;

/// Something that can be read: the engine as it is now, or a frozen state of it.
pub trait View: Send + Sync {
    /// The value at `key`.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, MetaError>;

    /// Visits the entries of `range` in key order, or in reverse, until the visitor stops it or the
    /// range ends. All entries are of one state, also across [`Step::Seek`].
    fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), MetaError>;
}

/// The engine: a [`View`] of its latest state that can be written.
pub trait Engine: View + 'static {
    /// Applies `batch` atomically. With `durable`, returns once it has been synced.
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), MetaError>;

    /// Syncs every batch committed so far.
    fn sync(&self) -> Result<(), MetaError>;

    /// A frozen view of the present state. Keep it for one request, not longer: what it sees cannot be
    /// reclaimed.
    fn snapshot(&self) -> Arc<dyn View>;

    /// Gives back the space of what was overwritten and removed. Takes long; reads and writes go on meanwhile. An engine
    /// that keeps no such things has nothing to do.
    fn compact(&self) -> Result<(), MetaError> {
        Ok(())
    }

    /// Rough sizes, for metrics and status pages.
    fn stats(&self) -> Stats;

    /// Whether an earlier failure ended all writing.
    fn is_poisoned(&self) -> bool;
}

/// Rough sizes of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries and bytes of each keyspace. Entries may count overwritten ones that are not compacted yet.
    pub spaces: Vec<SpaceStats>,
    /// Bytes of the journal on disk; 0 without one.
    pub journal_bytes: u64,
    /// Bytes of entries in memory that wait to be written to tables.
    pub memtable_bytes: u64,
}

/// Rough size of one keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceStats {
    pub space: Space,
    pub entries: u64,
    pub bytes: u64,
}
