//! The node's durable part in agreeing on layouts, and the staged changes it was told.
//!
//! Guarantees: the register and the staged changes are on disk before any answer that depends on them; at the
//! next start they are found again. All changes go through one lock: there is no second writer of these entries.

use crate::meta::{Batch, Engine, MetaError, Space};
use async_trait::async_trait;
use hayloft_common::codec::{self, Format};
use hayloft_common::crdt::Crdt;
use hayloft_common::env::Env;
use hayloft_common::layout::{
    AcceptReply, ActiveLayout, Ballot, LayoutRegister, PrepareReply, StagedChanges,
};
use std::sync::Arc;
use tokio::sync::Mutex;

const REGISTER_KEY: &[u8] = b"layout";
const STAGED_KEY: &[u8] = b"staged";

struct Kept {
    register: LayoutRegister,
    staged: StagedChanges,
}

/// See the module's head.
pub struct LayoutStore {
    env: Env,
    engine: Arc<dyn Engine>,
    kept: Mutex<Kept>,
}

impl LayoutStore {
    /// Reads what was kept; `empty` stands for a node that never had a layout. Blocks.
    pub fn open(env: Env, engine: Arc<dyn Engine>, empty: ActiveLayout) -> Result<Self, MetaError> {
        let register = load(&*engine, REGISTER_KEY)?.unwrap_or_else(|| LayoutRegister::new(empty));
        let staged = load(&*engine, STAGED_KEY)?.unwrap_or_default();
        Ok(Self { env, engine, kept: Mutex::new(Kept { register, staged }) })
    }

    /// The layout in force and the staged changes, as kept.
    pub async fn kept(&self) -> (ActiveLayout, StagedChanges) {
        let kept = self.kept.lock().await;
        (kept.register.committed().clone(), kept.staged.clone())
    }

    /// Phase one of agreeing on a layout.
    pub async fn prepare(&self, epoch: u64, ballot: Ballot) -> Result<PrepareReply, MetaError> {
        self.change(|register| register.prepare(epoch, ballot)).await
    }

    /// Phase two.
    pub async fn accept(&self, ballot: Ballot, layout: &ActiveLayout) -> Result<AcceptReply, MetaError> {
        self.change(|register| register.accept(ballot, layout)).await
    }

    /// Changes the register, makes it durable if it changed, and returns the answer.
    async fn change<T>(&self, step: impl FnOnce(&mut LayoutRegister) -> T) -> Result<T, MetaError> {
        let mut kept = self.kept.lock().await;
        let mut register = kept.register.clone();
        let answer = step(&mut register);
        if register != kept.register {
            self.write(REGISTER_KEY, codec::encode(&register)).await?;
            kept.register = register;
        }
        Ok(answer)
    }

    /// Merges staged changes, durably, and returns all of them.
    pub async fn stage(&self, changes: &StagedChanges) -> Result<StagedChanges, MetaError> {
        let mut kept = self.kept.lock().await;
        let mut staged = kept.staged.clone();
        staged.merge(changes);
        if staged != kept.staged {
            self.write(STAGED_KEY, codec::encode(&staged)).await?;
            kept.staged = staged;
        }
        Ok(kept.staged.clone())
    }

    async fn write(&self, key: &'static [u8], value: Vec<u8>) -> Result<(), MetaError> {
        let engine = self.engine.clone();
        let mut batch = Batch::new();
        batch.put(Space::Node, key, value);
        // Always synced, whatever the configuration says of rows: a forgotten promise could split the cluster.
        self.env.run_blocking(move || engine.commit(batch, true)).await.map_err(|_| MetaError::Closed)?
    }
}

fn load<T: Format>(engine: &dyn Engine, key: &[u8]) -> Result<Option<T>, MetaError> {
    let Some(bytes) = engine.get(Space::Node, key)? else { return Ok(None) };
    codec::decode(&bytes).map(Some).map_err(|e| MetaError::corrupt("the node's layout record", e))
}

#[async_trait]
impl hayloft_proto::cluster::LayoutStore for LayoutStore {
    async fn keep(&self, layout: &ActiveLayout) -> Result<(), String> {
        let learnt = self.change(|register| register.learn(layout)).await;
        learnt.map_err(|e| e.to_string())?.map(|_| ()).map_err(|e| e.to_string())
    }
}
