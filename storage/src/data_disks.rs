//! The data disks of a node and its block index, as they hang together: which disk was known at which path, what to do
//! when one comes back, and how the index is rebuilt from the disks alone.
//!
//! A node whose metadata was lost (new engine, disks full of blocks) rebuilds its index when it starts, before it
//! serves anything: until then no file on its disks may be taken for one that nobody needs.

use crate::blocks::{
    self, BlockConfig, BlockIndex, BlockStore, DiskConfig, DiskId, DiskStats, Location, OpenError, ScanDepth,
    ScanItem,
};
use crate::meta::{Batch, Direction, Engine, KeyRange, MetaError, Space, Step};
use crate::serve::Node;
use crate::workers::{block_scan, block_work};
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Between looks at the disks.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// There as long as a node runs: found at a start, the last end was a crash.
const RUNNING_KEY: &[u8] = b"running";
/// There once the index is known to name what the disks hold; a lost engine lacks it.
const INDEX_KEY: &[u8] = b"block index";
/// Entries written at once.
const BATCH: usize = 4096;
/// Blocks between two reports of progress.
const PROGRESS: u64 = 20_000;
/// After the metadata was lost: how long references may take to come from other nodes before blocks that have none are
/// let go.
const LATER: Duration = Duration::from_hours(6);

/// The block index in the metadata engine.
pub struct EngineIndex(pub Arc<dyn Engine>);

impl BlockIndex for EngineIndex {
    fn get(&self, hash: &Hash) -> Option<Location> {
        let entry = self.0.get(Space::BlockIndex, hash.as_bytes()).ok()??;
        Location::decode(&entry).ok()
    }

    fn for_each(&self, visit: &mut dyn FnMut(Hash, Location)) {
        let scanned =
            self.0.scan(Space::BlockIndex, &KeyRange::all(), Direction::Forward, &mut |key, value| {
                if let (Ok(hash), Ok(location)) = (<[u8; 32]>::try_from(&key[..]), Location::decode(value)) {
                    visit(Hash(hash), location);
                } else {
                    tracing::error!(key = hex::encode(key), "a block index entry is damaged and is left out");
                }
                Step::Next
            });
        if let Err(error) = scanned {
            tracing::error!(%error, "the block index could not be counted; disk usage will look too small");
        }
    }
}

/// Why the disks can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error(transparent)]
    Block(#[from] blocks::BlockError),
}

/// Opens the disks of a node that starts. Blocks its thread, for long if the index has to be rebuilt.
pub async fn open(
    engine: &Arc<dyn Engine>,
    disks: Vec<DiskConfig>,
    identity: blocks::Identity,
    config: BlockConfig,
    env: &Env,
) -> Result<BlockStore, DisksError> {
    let index = EngineIndex(engine.clone());
    let disks = remember(&**engine, disks)?;
    let store = BlockStore::open(disks, identity, config, env.clone(), &index)?;
    keep(&**engine, &store.stats().await?)?;
    let crashed = engine.get(Space::Node, RUNNING_KEY)?.is_some();
    if engine.get(Space::Node, INDEX_KEY)?.is_none() {
        if is_empty(&**engine, Space::BlockIndex)? && store.holds_anything() {
            tracing::error!(
                "the block index is empty and the data disks hold blocks: the metadata was lost; rebuilding the index"
            );
            rebuild(engine, &store, env, &mut |so_far| {
                tracing::info!(blocks = so_far.blocks, "rebuilding the block index");
            })?;
        } else {
            mark(&**engine, INDEX_KEY)?;
        }
    } else if crashed {
        block_work::ask_at_start(&**engine, block_scan::NAME, env.wall_millis())?;
    }
    mark(&**engine, RUNNING_KEY)?;
    Ok(store)
}

/// The node stops in good order: the next start need not look for what a crash leaves.
pub fn close(engine: &dyn Engine) -> Result<(), MetaError> {
    let mut batch = Batch::new();
    batch.delete(Space::Node, RUNNING_KEY);
    engine.commit(batch, true)
}

fn mark(engine: &dyn Engine, key: &'static [u8]) -> Result<(), MetaError> {
    let mut batch = Batch::new();
    batch.put(Space::Node, key, Vec::from(*b"1"));
    engine.commit(batch, true)
}

fn is_empty(engine: &dyn Engine, space: Space) -> Result<bool, MetaError> {
    let mut empty = true;
    engine.scan(space, &KeyRange::all(), Direction::Forward, &mut |_, _| {
        empty = false;
        Step::Stop
    })?;
    Ok(empty)
}

fn disk_key(name: &str) -> Vec<u8> {
    [b"disk:", name.as_bytes()].concat()
}

/// Says of each disk which one this node knew under that name, so that an unmounted disk is not taken for a new one.
pub fn remember(engine: &dyn Engine, mut disks: Vec<DiskConfig>) -> Result<Vec<DiskConfig>, MetaError> {
    for disk in &mut disks {
        let known = engine.get(Space::Node, &disk_key(&disk.disk.name()))?;
        disk.known_as = known.and_then(|id| id[..].try_into().ok()).map(|id| DiskId(u32::from_le_bytes(id)));
    }
    Ok(disks)
}

fn keep(engine: &dyn Engine, disks: &[DiskStats]) -> Result<(), MetaError> {
    let mut batch = Batch::new();
    for disk in disks {
        let Some(id) = disk.id else { continue };
        let key = disk_key(&disk.path);
        if engine.get(Space::Node, &key)?.as_deref() != Some(&id.0.to_le_bytes()[..]) {
            batch.put(Space::Node, key, id.0.to_le_bytes().to_vec());
        }
    }
    if batch.is_empty() { Ok(()) } else { engine.commit(batch, true) }
}

/// Forgets which disk was known at `path`, so that an empty directory there is taken for a new disk. False: none was.
/// The node must not run.
pub fn accept(engine: &dyn Engine, path: &Path) -> Result<Option<DiskId>, MetaError> {
    let key = disk_key(&path.display().to_string());
    let known = engine.get(Space::Node, &key)?;
    let Some(id) = known.and_then(|id| id[..].try_into().ok()) else { return Ok(None) };
    let mut batch = Batch::new();
    batch.delete(Space::Node, key);
    engine.commit(batch, true)?;
    Ok(Some(DiskId(u32::from_le_bytes(id))))
}

/// Rebuilds the index of a node that does not run, from its disks.
pub async fn rebuild_stopped(
    engine: &Arc<dyn Engine>,
    disks: Vec<DiskConfig>,
    identity: blocks::Identity,
    config: BlockConfig,
    env: &Env,
    progress: &mut dyn FnMut(&Rebuilt),
) -> Result<Rebuilt, DisksError> {
    let disks = remember(&**engine, disks)?;
    let store = BlockStore::open(disks, identity, config, env.clone(), &EngineIndex(engine.clone()))?;
    keep(&**engine, &store.stats().await?)?;
    Ok(rebuild(engine, &store, env, progress)?)
}

/// What a rebuild of the index found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Blocks found, each once, and their bytes.
    pub blocks: u64,
    pub bytes: u64,
    /// Further finds of the same blocks: deleted and put again, or moved, and not compacted yet.
    pub duplicates: u64,
    /// Places with bytes that are no block.
    pub damaged: u64,
    /// Entries dropped at the start: of disks that were searched.
    pub dropped: u64,
}

/// Rebuilds the index from what lies on the disks. Entries of disks that can't be read stay. May be broken off and
/// begun again. The node must not serve. Blocks its thread.
pub fn rebuild(
    engine: &Arc<dyn Engine>,
    store: &BlockStore,
    env: &Env,
    progress: &mut dyn FnMut(&Rebuilt),
) -> Result<Rebuilt, MetaError> {
    // Until the index is whole again, a start goes on with this.
    let mut batch = Batch::new();
    batch.delete(Space::Node, INDEX_KEY);
    engine.commit(batch, true)?;
    let mut rebuilt = Rebuilt { dropped: drop_searched(&**engine, store)?, ..Rebuilt::default() };
    let mut found: Vec<(Hash, Location)> = Vec::with_capacity(BATCH);
    for item in store.scan(ScanDepth::Headers) {
        match item {
            ScanItem::Block { hash, location } => found.push((hash, location)),
            ScanItem::Damaged { path, offset, bytes, reason, .. } => {
                rebuilt.damaged += 1;
                tracing::warn!(path, offset, bytes, reason, "bytes that are no block");
            }
        }
        if found.len() >= BATCH {
            let before = rebuilt.blocks / PROGRESS;
            enter(&**engine, &mut found, &mut rebuilt)?;
            if rebuilt.blocks / PROGRESS > before {
                progress(&rebuilt);
            }
        }
    }
    enter(&**engine, &mut found, &mut rebuilt)?;
    // With the metadata went the references. They come back from other nodes; what has none then is let go.
    let lost = is_empty(&**engine, Space::Table(hayloft_common::schema::TableId::BlockRef))?;
    let from = env.wall_millis() + if lost { LATER.as_millis() as u64 } else { 0 };
    block_work::ask_at_start(&**engine, block_scan::NAME, from)?;
    mark(&**engine, INDEX_KEY)?;
    store.recount(&EngineIndex(engine.clone()));
    let Rebuilt { blocks, bytes, duplicates, damaged, dropped } = rebuilt;
    tracing::warn!(
        blocks,
        bytes,
        duplicates,
        damaged,
        dropped,
        "the block index has been rebuilt from the disks"
    );
    Ok(rebuilt)
}

/// Drops the entries of disks that are about to be searched, and those that can't be read.
fn drop_searched(engine: &dyn Engine, store: &BlockStore) -> Result<u64, MetaError> {
    let mut dropped = 0;
    let mut from = Some(Vec::new());
    while let Some(start) = from.take() {
        let (mut batch, mut seen) = (Batch::new(), 0);
        let range = KeyRange { from: start, to: None };
        engine.scan(Space::BlockIndex, &range, Direction::Forward, &mut |key, value| {
            if seen >= BATCH {
                from = Some(key.to_vec());
                return Step::Stop;
            }
            seen += 1;
            if Location::decode(value).map_or(true, |location| store.is_readable(&location)) {
                batch.delete(Space::BlockIndex, key.to_vec());
                dropped += 1;
            }
            Step::Next
        })?;
        if !batch.is_empty() {
            engine.commit(batch, false)?;
        }
    }
    Ok(dropped)
}

/// Enters what was found. Of several finds of a block the last counts: on one disk it is the newest.
fn enter(
    engine: &dyn Engine,
    found: &mut Vec<(Hash, Location)>,
    rebuilt: &mut Rebuilt,
) -> Result<(), MetaError> {
    let mut batch = Batch::new();
    for (hash, location) in found.drain(..) {
        let known = batch.get(Space::BlockIndex, hash.as_bytes()).is_some()
            || engine.get(Space::BlockIndex, hash.as_bytes())?.is_some();
        if known {
            rebuilt.duplicates += 1;
        } else {
            rebuilt.blocks += 1;
            rebuilt.bytes += u64::from(location.len);
        }
        batch.put(Space::BlockIndex, hash.as_bytes().to_vec(), location.encode());
    }
    if batch.is_empty() { Ok(()) } else { engine.commit(batch, false) }
}

/// Looks after the disks every few seconds, as long as the node runs.
pub fn watch(node: &Arc<Node>) {
    let node = node.clone();
    let env = node.env.clone();
    env.spawn("disk watch", async move {
        loop {
            node.metadata_space.refresh(&node.env).await;
            if let Err(error) = node.blocks.refresh().await {
                tracing::warn!(%error, "the data disks could not be looked at");
            }
            if node.blocks.has_gone() {
                revive(&node).await;
            }
            tokio::time::sleep(REFRESH_INTERVAL).await;
        }
    });
}

/// Takes disks back into use that were gone.
async fn revive(node: &Arc<Node>) {
    let (blocks, index) = (node.blocks.clone(), EngineIndex(node.engine.clone()));
    if !matches!(node.env.run_blocking(move || blocks.revive(&index)).await, Ok(true)) {
        return;
    }
    let Ok(stats) = node.blocks.stats().await else { return };
    let engine = node.engine.clone();
    if let Ok(Err(error)) = node.env.run_blocking(move || keep(&*engine, &stats)).await {
        tracing::error!(%error, "which disk lies where could not be noted");
    }
    node.workers.wake(block_scan::NAME);
}
