//! A gateway that stops for a while in the middle of an operation: a clock that tests set forward, and a store that does
//! so, or fails, at a chosen call.
#![allow(dead_code, reason = "each test file uses its own part")]

use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::env::{Clock, Env};
use hayloft_common::hash::Hash;
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::store::{EarlyRow, Replies, Store, StoreError, StoredRow, Wrote};
use hayloft_proto::message::table::{
    IndexCounters, ListKeys, ListKeysReply, ReadRange, ReadRangeReply, ReadRow, RowBytes, WriteMode,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Follows tokio's time, which tests pause, and can be set forward by either kind of time.
pub(crate) struct Watch {
    start: tokio::time::Instant,
    monotonic_ms: AtomicU64,
    wall_ms: AtomicU64,
}

impl Watch {
    pub(crate) fn new() -> Arc<Self> {
        let (monotonic_ms, wall_ms) = (AtomicU64::new(0), AtomicU64::new(1_900_000_000_000));
        Arc::new(Self { start: tokio::time::Instant::now(), monotonic_ms, wall_ms })
    }

    pub(crate) fn env(self: &Arc<Self>) -> Env {
        Env { clock: self.clone(), ..Env::real() }
    }

    pub(crate) fn forward(&self, monotonic: Duration, wall: Duration) {
        self.monotonic_ms.fetch_add(monotonic.as_millis() as u64, Ordering::SeqCst);
        self.wall_ms.fetch_add(wall.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for Watch {
    fn wall_micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + self.wall_ms.load(Ordering::SeqCst) * 1000
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed() + Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }
}

type Hook = Box<dyn Fn(&MemoryStore) + Send>;

/// A store with a hook behind chosen calls.
pub(crate) struct Stopping {
    pub(crate) inner: Arc<MemoryStore>,
    hook: Mutex<Option<(&'static str, Hook)>>,
    /// References can't be written.
    pub(crate) no_references: AtomicBool,
}

impl Stopping {
    pub(crate) fn new(inner: &Arc<MemoryStore>) -> Arc<Self> {
        let (hook, no_references) = (Mutex::new(None), AtomicBool::new(false));
        Arc::new(Self { inner: inner.clone(), hook, no_references })
    }

    /// Does something once, when the next `call` has been answered.
    pub(crate) fn after(&self, call: &'static str, hook: impl Fn(&MemoryStore) + Send + 'static) {
        *self.hook.lock().unwrap() = Some((call, Box::new(hook)));
    }

    fn done(&self, call: &'static str) {
        let hook = self.hook.lock().unwrap().take_if(|(at, _)| *at == call);
        if let Some((_, hook)) = hook {
            hook(&self.inner);
        }
    }
}

#[async_trait]
impl Store for Stopping {
    fn partition_of(&self, place: &Hash) -> u16 {
        self.inner.partition_of(place)
    }

    async fn write_rows(
        &self,
        place: Hash,
        mode: WriteMode,
        rows: Vec<RowBytes>,
    ) -> Result<Wrote, StoreError> {
        self.inner.write_rows(place, mode, rows).await
    }

    async fn read_row(&self, read: ReadRow) -> Result<Replies<StoredRow>, StoreError> {
        let replies = self.inner.read_row(read).await;
        self.done("read_row");
        replies
    }

    fn read_row_early(&self, read: ReadRow) -> Box<dyn EarlyRow> {
        self.inner.read_row_early(read)
    }

    async fn read_range(&self, read: ReadRange) -> Result<Replies<ReadRangeReply>, StoreError> {
        let replies = self.inner.read_range(read).await;
        self.done("read_range");
        replies
    }

    async fn list_keys(&self, list: ListKeys) -> Result<Replies<ListKeysReply>, StoreError> {
        self.inner.list_keys(list).await
    }

    async fn read_counters(&self, partition_key: Vec<u8>) -> Result<Vec<IndexCounters>, StoreError> {
        self.inner.read_counters(partition_key).await
    }

    async fn put_block(&self, block: Hash, reference: RowBytes, envelope: Bytes) -> Result<(), StoreError> {
        let put = self.inner.put_block(block, reference, envelope).await;
        self.done("put_block");
        put
    }

    async fn refer_blocks(&self, place: Hash, references: Vec<RowBytes>) -> Result<Vec<Hash>, StoreError> {
        if self.no_references.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("no references for now".into()));
        }
        let missing = self.inner.refer_blocks(place, references).await;
        self.done("refer_blocks");
        missing
    }

    async fn get_block(&self, block: Hash, max: usize) -> Result<Bytes, StoreError> {
        self.inner.get_block(block, max).await
    }
}
