//! What the tests of the domain share: gateways over one in-memory store, bodies, reading back.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its own part; helpers of tests")]

use bytes::Bytes;
use futures::StreamExt as _;
use hayloft_common::crdt::{Lww, LwwMap};
use hayloft_common::env::Env;
use hayloft_common::id::BucketId;
use hayloft_common::schema::BucketRow;
use hayloft_common::stamp::Stamp;
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{Body, BodyChecks, Bucket, DomainError, Gateway, PutDone, PutObject};
use hayloft_gateway::limits::DomainConfig;
use md5::{Digest as _, Md5};
use std::sync::Arc;

pub(crate) const YEARS_10_MS: i64 = 10 * 365 * 86_400_000;

/// Small blocks, so that small bodies have many.
pub(crate) fn config() -> DomainConfig {
    DomainConfig {
        block_size: 1000,
        inline_max: 100,
        block_ram_buffer_max: 1 << 20,
        ..DomainConfig::default()
    }
}

pub(crate) fn gateway_with(store: &Arc<MemoryStore>, offset_ms: i64, config: DomainConfig) -> Arc<Gateway> {
    Gateway::new(Env::real_with_clock_offset(offset_ms), store.clone(), config)
}

pub(crate) fn gateway(store: &Arc<MemoryStore>) -> Arc<Gateway> {
    gateway_with(store, 0, config())
}

pub(crate) fn bucket(shards: u16) -> Arc<Bucket> {
    let row = BucketRow {
        id: BucketId([7; 16]),
        created_ms: 0,
        index_shards: shards,
        deleted: false,
        aliases: LwwMap::new(),
        monotonic_reads: Lww::default(),
    };
    Arc::new(Bucket { name: "bucket".into(), row })
}

/// The same bucket, with monotonic reads on.
pub(crate) fn monotonic(bucket: &Arc<Bucket>) -> Arc<Bucket> {
    let mut bucket = Bucket::clone(bucket);
    bucket.row.monotonic_reads = Lww::new(Stamp::ZERO, true);
    Arc::new(bucket)
}

/// Bytes without a pattern that blocks could share.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A body in pieces of so many bytes.
pub(crate) fn body_of(data: &[u8], piece: usize) -> Body {
    let pieces: Vec<_> = data.chunks(piece.max(1)).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    futures::stream::iter(pieces).boxed()
}

pub(crate) fn put_of(bucket: &Arc<Bucket>, key: &str, length: Option<u64>) -> PutObject {
    PutObject {
        bucket: bucket.clone(),
        key: key.into(),
        headers: vec![("content-type".into(), "text/x-test".into())],
        checks: BodyChecks { length, ..BodyChecks::default() },
    }
}

pub(crate) async fn put(
    gateway: &Arc<Gateway>,
    bucket: &Arc<Bucket>,
    key: &str,
    data: &[u8],
) -> Result<PutDone, DomainError> {
    gateway.put(put_of(bucket, key, Some(data.len() as u64)), body_of(data, 700)).await
}

pub(crate) async fn get(gateway: &Arc<Gateway>, bucket: &Bucket, key: &str) -> Result<Vec<u8>, DomainError> {
    let object = gateway.open(bucket, key, None).await?;
    let size = object.head.version.size;
    read(object.read(0..size)).await
}

pub(crate) async fn read(
    mut stream: futures::stream::BoxStream<'static, Result<Bytes, DomainError>>,
) -> Result<Vec<u8>, DomainError> {
    let mut out = Vec::new();
    while let Some(piece) = stream.next().await {
        out.extend_from_slice(&piece?);
    }
    Ok(out)
}

pub(crate) fn md5_hex(data: &[u8]) -> String {
    hex::encode(Md5::digest(data))
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
