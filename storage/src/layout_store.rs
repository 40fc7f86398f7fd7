//! The node's durable part in agreeing on layouts, what it holds of each partition under them, and the staged
//! changes it was told.
//!
//! Guarantees: the register, the states of partitions that follow from it, and the staged changes are on disk before
//! any answer that depends on them; a layout and the states that it leads to in one write. At the next start they are
//! found again. All changes go through one lock: there is no second writer of these entries. Looking up a state
//! takes no lock.

use crate::meta::{Batch, Engine, MetaError, Space};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use hayloft_common::codec::{self, Format};
use hayloft_common::crdt::Crdt;
use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    AcceptReply, ActiveLayout, Ballot, Holdings, LayoutRegister, LearnError, NotSynced, Partition,
    PartitionState, PrepareReply, StagedChanges,
};
use std::sync::Arc;
use tokio::sync::Mutex;

const REGISTER_KEY: &[u8] = b"layout";
const HOLDINGS_KEY: &[u8] = b"partitions";
const STAGED_KEY: &[u8] = b"staged";
const INCARNATION_KEY: &[u8] = b"incarnation";

struct Kept {
    register: LayoutRegister,
    holdings: Holdings,
    staged: StagedChanges,
}

/// Why a node's progress could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SyncedError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
}

/// See the module's head.
pub struct LayoutStore {
    env: Env,
    engine: Arc<dyn Engine>,
    me: NodeId,
    kept: Mutex<Kept>,
    /// The durable holdings, for lookups.
    holdings: ArcSwap<Holdings>,
}

impl LayoutStore {
    /// Reads what node `me` kept; `empty` stands for a node that never had a layout. Blocks.
    pub fn open(
        env: Env,
        engine: Arc<dyn Engine>,
        me: NodeId,
        empty: ActiveLayout,
    ) -> Result<Self, MetaError> {
        let register = load(&*engine, REGISTER_KEY)?.unwrap_or_else(|| LayoutRegister::new(empty));
        let holdings =
            load(&*engine, HOLDINGS_KEY)?.unwrap_or_else(|| Holdings::before_moves(me, register.committed()));
        let staged = load(&*engine, STAGED_KEY)?.unwrap_or_default();
        Ok(Self {
            env,
            engine,
            me,
            holdings: ArcSwap::from_pointee(holdings.clone()),
            kept: Mutex::new(Kept { register, holdings, staged }),
        })
    }

    /// The layout in force and the staged changes, as kept.
    pub async fn kept(&self) -> (ActiveLayout, StagedChanges) {
        let kept = self.kept.lock().await;
        (kept.register.committed().clone(), kept.staged.clone())
    }

    /// What this node holds of `partition`. Only a member answers data requests.
    pub fn state(&self, partition: Partition) -> PartitionState {
        self.holdings.load().state(partition)
    }

    /// All that this node holds, as it is now.
    pub fn holdings(&self) -> Arc<Holdings> {
        self.holdings.load_full()
    }

    /// The partitions whose rows are to be dropped, when `common::layout::may_drop` says so.
    pub fn leftovers(&self) -> Vec<Partition> {
        self.holdings.load().all_in(PartitionState::Leftover)
    }

    /// The partitions whose rows are to be dropped at once and pulled again, from as many of the others as
    /// `ActiveLayout::sources` says.
    pub fn lost(&self) -> Vec<Partition> {
        self.holdings.load().all_in(PartitionState::Lost)
    }

    /// The newest version of which this node has everything.
    pub fn synced(&self) -> u64 {
        self.holdings.load().synced()
    }

    /// The rows of a leftover are gone, durably: none, or a member if the partition was given to this node again.
    pub async fn dropped(&self, partition: Partition) -> Result<(), MetaError> {
        let me = self.me;
        self.hold(|holdings, active| holdings.dropped(me, active, partition)).await
    }

    /// A lost partition has been dropped and pulled again, durably: this node is a member of it again.
    pub async fn refilled(&self, partition: Partition) -> Result<(), MetaError> {
        self.hold(|holdings, _| holdings.refilled(partition)).await
    }

    /// This node has everything that it is to hold in `version`. Refused while a partition lacks something.
    pub async fn set_synced(&self, version: u64) -> Result<(), SyncedError> {
        let me = self.me;
        Ok(self.hold(|holdings, active| holdings.set_synced(me, active, version)).await??)
    }

    /// Others know this node in a later state than its own: nothing that it holds is trusted any more, and its
    /// incarnation becomes `incarnation`, in one write.
    pub async fn outlive(&self, incarnation: u64) -> Result<(), MetaError> {
        let mut kept = self.kept.lock().await;
        let mut holdings = kept.holdings.clone();
        holdings.outlive(self.me, kept.register.committed());
        let mut batch = Batch::new();
        batch.put(Space::Node, HOLDINGS_KEY, codec::encode(&holdings));
        batch.put(Space::Node, INCARNATION_KEY, incarnation.to_le_bytes().to_vec());
        // Before it is durable: from here on nothing is served by what was trusted before.
        self.holdings.store(Arc::new(holdings.clone()));
        self.write(batch).await?;
        kept.holdings = holdings;
        Ok(())
    }

    /// Changes the holdings, durably.
    async fn hold<T>(&self, step: impl FnOnce(&mut Holdings, &ActiveLayout) -> T) -> Result<T, MetaError> {
        let mut kept = self.kept.lock().await;
        let mut holdings = kept.holdings.clone();
        let answer = step(&mut holdings, kept.register.committed());
        if holdings != kept.holdings {
            let mut batch = Batch::new();
            batch.put(Space::Node, HOLDINGS_KEY, codec::encode(&holdings));
            self.write(batch).await?;
            self.holdings.store(Arc::new(holdings.clone()));
            kept.holdings = holdings;
        }
        Ok(answer)
    }

    /// Phase one of agreeing on a layout.
    pub async fn prepare(&self, epoch: u64, ballot: Ballot) -> Result<PrepareReply, MetaError> {
        self.change(|register| register.prepare(epoch, ballot)).await
    }

    /// Phase two.
    pub async fn accept(&self, ballot: Ballot, layout: &ActiveLayout) -> Result<AcceptReply, MetaError> {
        self.change(|register| register.accept(ballot, layout)).await
    }

    /// Changes what is promised and accepted, makes it durable if it changed, and returns the answer.
    async fn change<T>(&self, step: impl FnOnce(&mut LayoutRegister) -> T) -> Result<T, MetaError> {
        let mut kept = self.kept.lock().await;
        let mut register = kept.register.clone();
        let answer = step(&mut register);
        if register != kept.register {
            let mut batch = Batch::new();
            batch.put(Space::Node, REGISTER_KEY, codec::encode(&register));
            self.write(batch).await?;
            kept.register = register;
        }
        Ok(answer)
    }

    /// Adopts a layout that was agreed on, with what this node holds under it.
    async fn learn(&self, layout: &ActiveLayout) -> Result<Result<(), LearnError>, MetaError> {
        let mut kept = self.kept.lock().await;
        let (mut register, mut holdings) = (kept.register.clone(), kept.holdings.clone());
        // A node takes part in agreeing on the first layout that it has a place in, and never forgets that.
        let remembers = kept.register.promised() != Ballot::ZERO;
        match register.learn(layout) {
            Ok(true) => holdings.learn(self.me, kept.register.committed(), layout, remembers),
            Ok(false) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
        let mut batch = Batch::new();
        batch.put(Space::Node, REGISTER_KEY, codec::encode(&register));
        batch.put(Space::Node, HOLDINGS_KEY, codec::encode(&holdings));
        self.write(batch).await?;
        let lost = holdings.all_in(PartitionState::Lost).len();
        if lost > kept.holdings.all_in(PartitionState::Lost).len() {
            tracing::error!(
                partitions = lost,
                "this node should hold partitions that it does not remember (was its metadata lost?); they are \
                 fetched from other nodes before it serves them"
            );
        }
        self.holdings.store(Arc::new(holdings.clone()));
        kept.register = register;
        kept.holdings = holdings;
        Ok(Ok(()))
    }

    /// Merges staged changes, durably, and returns all of them.
    pub async fn stage(&self, changes: &StagedChanges) -> Result<StagedChanges, MetaError> {
        let mut kept = self.kept.lock().await;
        let mut staged = kept.staged.clone();
        staged.merge(changes);
        if staged != kept.staged {
            let mut batch = Batch::new();
            batch.put(Space::Node, STAGED_KEY, codec::encode(&staged));
            self.write(batch).await?;
            kept.staged = staged;
        }
        Ok(kept.staged.clone())
    }

    async fn write(&self, batch: Batch) -> Result<(), MetaError> {
        let engine = self.engine.clone();
        // Always synced, whatever the configuration says of rows: a forgotten promise could split the cluster.
        self.env.run_blocking(move || engine.commit(batch, true)).await.map_err(|_| MetaError::Closed)?
    }
}

fn load<T: Format>(engine: &dyn Engine, key: &[u8]) -> Result<Option<T>, MetaError> {
    let Some(bytes) = engine.get(Space::Node, key)? else { return Ok(None) };
    codec::decode(&bytes).map(Some).map_err(|e| MetaError::corrupt("the node's layout record", e))
}

/// A number that rises at every start, whatever the clock says. Durable before it is returned. Blocks.
pub fn next_incarnation(engine: &dyn Engine) -> Result<u64, MetaError> {
    let last = engine
        .get(Space::Node, INCARNATION_KEY)?
        .and_then(|bytes| bytes[..].try_into().ok())
        .map_or(0, u64::from_le_bytes);
    let mut batch = Batch::new();
    batch.put(Space::Node, INCARNATION_KEY, (last + 1).to_le_bytes().to_vec());
    engine.commit(batch, true)?;
    Ok(last + 1)
}

#[async_trait]
impl hayloft_proto::cluster::LayoutStore for LayoutStore {
    async fn keep(&self, layout: &ActiveLayout) -> Result<(), String> {
        self.learn(layout).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::memory::MemoryDisk;
    use hayloft_common::layout::{Layout, Parameters, Role, ZoneRedundancy, compute};
    use hayloft_proto::cluster::LayoutStore as _;

    const PARAMETERS: Parameters =
        Parameters { replication_factor: 1, zone_redundancy: ZoneRedundancy::AtLeast(1) };
    const ME: NodeId = NodeId([1; 32]);
    const OTHER: NodeId = NodeId([2; 32]);
    const P: Partition = Partition(0);

    fn empty() -> ActiveLayout {
        ActiveLayout::empty(PARAMETERS, 0)
    }

    fn on(before: &ActiveLayout, holder: NodeId) -> ActiveLayout {
        let role = Role { zone: "z".into(), capacity: 1 << 30, tags: vec![] };
        let next: Layout =
            compute(Some(before.newest()), &[(holder, role)].into(), &PARAMETERS, 0).unwrap().0;
        before.apply(next).unwrap()
    }

    fn open(engine: &Arc<dyn Engine>) -> LayoutStore {
        LayoutStore::open(Env::real(), engine.clone(), ME, empty()).unwrap()
    }

    fn engine() -> Arc<dyn Engine> {
        Arc::new(MemoryDisk::new().open().unwrap())
    }

    /// A store whose node took part in agreeing on the first layout.
    async fn started(engine: &Arc<dyn Engine>) -> (LayoutStore, ActiveLayout) {
        let (store, first) = (open(engine), on(&empty(), ME));
        store.accept(Ballot::ZERO.next(1), &first).await.unwrap();
        store.keep(&first).await.unwrap();
        (store, first)
    }

    #[tokio::test]
    async fn states_follow_the_layout_and_outlive_a_restart() {
        let engine = engine();
        let (store, first) = started(&engine).await;
        assert_eq!((store.state(P), store.synced()), (PartitionState::Member, 1));
        let moving = on(&first, OTHER);
        let moved = moving.next_phase().unwrap().next_phase().unwrap();
        store.keep(&moving).await.unwrap();
        assert_eq!(store.state(P), PartitionState::Member);
        store.keep(&moved).await.unwrap();
        let store = open(&engine);
        assert_eq!((store.kept().await.0, store.leftovers()), (moved.clone(), vec![P]));
        store.keep(&on(&moved, ME)).await.unwrap();
        assert_eq!(store.state(P), PartitionState::Leftover);
        assert!(matches!(store.set_synced(3).await, Err(SyncedError::NotSynced(_))));
        store.dropped(P).await.unwrap();
        store.set_synced(3).await.unwrap();
        let store = open(&engine);
        assert_eq!((store.state(P), store.synced()), (PartitionState::Member, 3));
    }

    #[tokio::test]
    async fn a_node_that_lost_its_metadata_does_not_take_itself_for_complete() {
        let (store, first) = (open(&engine()), on(&empty(), ME));
        store.keep(&first).await.unwrap();
        assert_eq!((store.state(P), store.synced(), store.lost()), (PartitionState::Lost, 0, vec![P]));
        store.dropped(P).await.unwrap();
        assert_eq!(store.state(P), PartitionState::Lost);
        store.refilled(P).await.unwrap();
        store.set_synced(1).await.unwrap();
        assert_eq!(store.state(P), PartitionState::Member);
    }

    #[tokio::test]
    async fn a_node_that_went_back_in_time_is_lost_and_takes_a_higher_incarnation() {
        let engine = engine();
        assert_eq!(next_incarnation(&*engine).unwrap(), 1);
        let (store, _) = started(&engine).await;
        store.outlive(8).await.unwrap();
        let store = open(&engine);
        assert_eq!((store.state(P), store.synced()), (PartitionState::Lost, 0));
        assert_eq!(next_incarnation(&*engine).unwrap(), 9);
    }

    #[tokio::test]
    async fn what_was_kept_before_states_were_is_complete() {
        let engine = engine();
        let first = on(&empty(), ME);
        let mut batch = Batch::new();
        batch.put(Space::Node, REGISTER_KEY, codec::encode(&LayoutRegister::new(first)));
        engine.commit(batch, true).unwrap();
        let store = open(&engine);
        assert_eq!((store.state(P), store.synced()), (PartitionState::Member, 1));
    }
}
