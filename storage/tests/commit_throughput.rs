//! How many rows per second one node commits; a measurement, not a check. Run it alone, optimised:
//! `cargo test --release -p hayloft-storage --test commit_throughput -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::id::{BucketId, ClusterId, NodeId, VersionId};
use hayloft_common::schema::{
    ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion, Slot, TableId,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{RowBytes, WriteMode, WriteRows};
use hayloft_storage::commit::{CommitQueue, Config, Job};
use hayloft_storage::meta::fjall::{self, FjallEngine};
use hayloft_storage::meta::{Engine, Identity};
use hayloft_storage::tables::Tables;
use std::sync::Arc;

fn row(writer: usize, i: usize, inline: usize) -> RowBytes {
    let detail = ObjectDetail {
        headers: vec![("content-type".into(), "application/octet-stream".into())],
        checksum: None,
        parts: vec![],
        data: ObjectData::Inline(vec![7; inline]),
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(i as u64).to_le_bytes());
    id[8..].copy_from_slice(&(writer as u64).to_le_bytes());
    let version = ObjectVersion {
        id: VersionId(id),
        modified_ms: 1_700_000_000_000,
        size: inline as u64,
        etag: hex::encode(id),
        checksum: None,
        detail: Some(Box::new(detail)),
    };
    let row = ObjectRow {
        bucket: BucketId([(writer % 16) as u8; 16]),
        shard: 0,
        key: format!("photos/{writer:03}/{i:06}.jpg"),
        slot: Slot::Null,
        stamp: Stamp { micros: 1_700_000_000_000_000 + i as u64, writer: writer as u64 },
        state: ObjectState::Live(Box::new(version)),
    };
    RowBytes { table: TableId::Object, bytes: codec::encode(&row) }
}

async fn measure(writers: usize, per_writer: usize, inline: usize, fsync: bool) {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId([1; 32]) };
    let engine = Arc::new(FjallEngine::open(&fjall::Config::new(dir.path()), &identity).unwrap());
    let env = Env::real();
    let config = Config { fsync, ..Config::default() };
    let queue = CommitQueue::start(&env, engine.clone(), Tables::new(8), config, Arc::new(|| 0));
    let begin = env.now();
    let tasks = (0..writers).map(|writer| {
        let queue = queue.clone();
        async move {
            for i in 0..per_writer {
                let rows = vec![row(writer, i, inline)];
                queue.submit(Job::rows(WriteRows { mode: WriteMode::Put, rows })).await.unwrap();
            }
        }
    });
    futures::future::join_all(tasks).await;
    let seconds = env.now().saturating_sub(begin).as_secs_f64();
    let (stats, rows) = (queue.stats(), (writers * per_writer) as f64);
    println!(
        "{writers} writers, {inline} B inline, fsync {fsync}: {:.0} rows/s, {:.1} rows a sync, {} batches; write buffers {} KiB",
        rows / seconds,
        rows / stats.batches as f64,
        stats.batches,
        engine.stats().memtable_bytes >> 10,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rows_per_second() {
    for (writers, per_writer, inline) in [(1, 1000, 100), (4, 1000, 100), (64, 1000, 100), (64, 300, 8000)] {
        measure(writers, per_writer, inline, true).await;
    }
    measure(64, 1000, 100, false).await;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!(
        "{}",
        status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")).collect::<String>()
    );
}
