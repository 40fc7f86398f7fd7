//! What the APIs may do, in plain words: authorize, put, open, copy, delete, list, multipart uploads, buckets, keys.
//!
//! Nothing here knows HTTP or XML, and nothing here speaks to a node but through [`Store`], whose every method is
//! one quorum operation. Rules that hold for all of it:
//!
//! - An operation that fails leaves what was visible before; one that answers success is durable on a write quorum.
//! - Every version id is used by one attempt only: a reference to a block, once deleted, can't come back.
//! - Memory for block data is claimed before it is filled, and given back when the last user of the bytes is done.

pub mod error;
pub mod memory;
pub mod store;
pub mod types;

mod aliases;
mod buckets;
mod budget;
mod cluster_store;
mod complete;
mod copy;
mod digest;
mod keys;
mod list;
mod moment;
mod multipart;
mod objects;
mod purge;
mod read;
mod receive;
mod rows;
mod settle;
mod uploads;

pub use cluster_store::ClusterStore;
pub use error::DomainError;
pub use objects::OpenObject;
pub use purge::PurgedVersion;
pub use store::{Store, StoreError};
pub use types::*;

use crate::cache::{Aged, PartMemory};
use crate::limits::DomainConfig;
use budget::Budget;
use hayloft_common::env::Env;
use hayloft_common::id::{BucketId, UploadId};
use hayloft_common::limits::MAX_OBJECT_KEY;
use hayloft_common::schema::{BucketRow, ChecksumAlgorithm, ChecksumKind, KeyId, KeyRow};
use hayloft_common::stamp::HybridClock;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The domain's root: one for a gateway, shared by all requests (`Arc<Gateway>`).
pub struct Gateway {
    env: Env,
    store: Arc<dyn Store>,
    clock: HybridClock,
    config: DomainConfig,
    upload_memory: Budget,
    /// For bodies that are known to fit in a row.
    small_memory: Budget,
    download_memory: Budget,
    repairs: Arc<Semaphore>,
    keys: Aged<KeyId, Arc<KeyRow>>,
    names: Aged<String, BucketId>,
    buckets: Aged<BucketId, Arc<BucketRow>>,
    /// What open uploads said of their checksums; fixed for an upload's life.
    upload_sums: Aged<UploadId, Option<(ChecksumAlgorithm, ChecksumKind)>>,
    parts: PartMemory,
}

impl Gateway {
    /// A gateway's domain over `store`. Starts the task that keeps used control records fresh; it ends with the
    /// gateway.
    pub fn new(env: Env, store: Arc<dyn Store>, config: DomainConfig) -> Arc<Self> {
        let clock = HybridClock::new(env.clone());
        Self::with_clock(env, clock, store, config)
    }

    /// As [`Gateway::new`], but `clock` orders the writes. `env` may tell the cluster's time, which may step back
    /// when nodes come and go; what orders writes must follow one clock only.
    pub fn with_clock(
        env: Env,
        clock: HybridClock,
        store: Arc<dyn Store>,
        config: DomainConfig,
    ) -> Arc<Self> {
        let half = config.block_ram_buffer_max / 2;
        let control = || (config.control_entries, config.control_max_age);
        let gateway = Arc::new(Self {
            clock,
            upload_memory: Budget::new(half - half / 4, "uploads: no buffer memory is free"),
            small_memory: Budget::new(half / 4, "small uploads: no buffer memory is free"),
            download_memory: Budget::new(half, "downloads: no buffer memory is free"),
            repairs: Arc::new(Semaphore::new(settle::MAX_REPAIRS)),
            keys: Aged::new(control()),
            names: Aged::new(control()),
            buckets: Aged::new(control()),
            upload_sums: Aged::new((config.control_entries, std::time::Duration::from_hours(24))),
            parts: PartMemory::new(crate::limits::PART_MEMORY_BLOCKS),
            env,
            store,
            config,
        });
        gateway.keep_fresh();
        gateway
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    pub fn config(&self) -> &DomainConfig {
        &self.config
    }

    /// Bytes of block memory that are free: for uploads, for downloads.
    pub fn free_memory(&self) -> (usize, usize) {
        (self.upload_memory.free() + self.small_memory.free(), self.download_memory.free())
    }
}

/// Refuses object keys that S3 refuses.
fn check_key(key: &str) -> Result<(), DomainError> {
    if (1..=MAX_OBJECT_KEY).contains(&key.len()) {
        Ok(())
    } else {
        Err(DomainError::KeyLength { len: key.len() })
    }
}

#[cfg(test)]
mod sendable;
