//! Storage nodes of one process, each with its own metadata engine and disks in memory or directories, on loopback.

use super::{block, small};
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, NodeId, VersionId};
use hayloft_common::layout::{ActiveLayout, Ballot, Parameters, Role, ZoneRedundancy, compute};
use hayloft_common::schema::{BlockOwner, BlockRefRow, TableId};
use hayloft_proto::body::Body;
use hayloft_proto::hello::RpcSecret;
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::message::block::PutBlock;
use hayloft_proto::message::table::{RowBytes, WriteMode, WriteRows};
use hayloft_proto::secure::tls::TlsSecure;
use hayloft_storage::blocks::{BlockConfig, DiskConfig};
use hayloft_storage::commit;
use hayloft_storage::daemon::{self, Parts, Running};
use hayloft_storage::meta::memory::MemoryDisk as Metadata;
use hayloft_storage::serve::{Node, Sabotage};
use hayloft_storage::workers::Settings;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What outlives a node's process.
pub(crate) struct Machine {
    pub(crate) identity: Identity,
    pub(crate) metadata: Metadata,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) settings: Settings,
    pub(crate) sabotage: Sabotage,
    pub(crate) blocks: BlockConfig,
}

impl Machine {
    pub(crate) fn new(disks: Vec<DiskConfig>) -> Self {
        // The references of these tests belong to no version: nobody shall ask for it.
        let uncommitted_age = Duration::from_hours(100_000);
        let settings = Settings { block_grace: Duration::ZERO, uncommitted_age, ..Settings::default() };
        Self {
            identity: Identity::generate().unwrap(),
            metadata: Metadata::new(),
            disks,
            settings,
            sabotage: Sabotage::default(),
            blocks: small(),
        }
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_in(Env::real()).await
    }

    pub(crate) async fn start_in(&self, env: Env) -> Running {
        let parts = Parts {
            env,
            secure: Arc::new(TlsSecure::new(&self.identity).unwrap()),
            secret: RpcSecret::new([7; 32]),
            engine: Arc::new(self.metadata.open().unwrap()),
            disks: self.disks.clone(),
            metadata_disk: None,
            blocks: self.blocks.clone(),
            commit: commit::Config::default(),
            rpc: Limits::default(),
            rpc_bind_addr: "127.0.0.1:0".into(),
            rpc_public_addr: None,
            bootstrap: Vec::new(),
            hostname: "test".into(),
            settings: self.settings.clone(),
            snapshots: None,
            sabotage: self.sabotage,
        };
        daemon::start(parts).await.unwrap()
    }
}

/// A layout in which every node holds everything.
pub(crate) fn layout_of(nodes: &[NodeId]) -> ActiveLayout {
    let parameters = Parameters { replication_factor: nodes.len(), zone_redundancy: ZoneRedundancy::Maximum };
    let role = |i: usize| Role { zone: format!("z{i}"), capacity: 1 << 40, tags: vec![] };
    let roles: BTreeMap<NodeId, Role> = nodes.iter().enumerate().map(|(i, node)| (*node, role(i))).collect();
    let empty = ActiveLayout::empty(parameters, 4);
    let layout = compute(Some(&empty.current), &roles, &parameters, 4).unwrap().0;
    empty.introduce(layout).unwrap()
}

/// Starts all of them; each knows the others and holds everything.
pub(crate) async fn start_all(machines: &[Machine]) -> Vec<Running> {
    let mut running = Vec::new();
    for machine in machines {
        running.push(machine.start().await);
    }
    join(&running).await;
    running
}

/// Tells all of them of one another, and of the layout.
pub(crate) async fn join(running: &[Running]) {
    let ids: Vec<NodeId> = running.iter().map(|r| r.node.id).collect();
    let layout = layout_of(&ids);
    for one in running {
        for other in running {
            if other.node.id != one.node.id {
                let pool = one.node.cluster.pool();
                pool.set_addresses(other.node.id, vec![other.rpc_addr().to_owned()]);
            }
        }
        // A node that took no part in agreeing on its first layout takes itself for one that lost its metadata.
        let ballot = Ballot::ZERO.next(1);
        one.node.layout_store.prepare(layout.epoch, ballot).await.unwrap();
        assert!(one.node.cluster.learn(layout.clone()).await);
    }
}

pub(crate) fn reference(hash: Hash, deleted: bool) -> RowBytes {
    let row = BlockRefRow {
        block: hash,
        version: VersionId([9; 16]),
        created_ms: 0,
        owner: BlockOwner::Object { bucket: BucketId::default(), shard: 0, key: "k".into() },
        deleted,
    };
    RowBytes { table: TableId::BlockRef, bytes: codec::encode(&row) }
}

/// Puts a block with a reference on each of the nodes.
pub(crate) async fn put_on_all(running: &[Running], seed: u64, len: usize) -> Hash {
    let (hash, envelope) = block(seed, len);
    for one in running {
        put_on(&one.node, hash, envelope.clone()).await;
    }
    hash
}

pub(crate) async fn put_on(node: &Arc<Node>, hash: Hash, envelope: Bytes) {
    let message = PutBlock { block: hash, reference: reference(hash, false) };
    let call = node.cluster.call(node.id, &message, Body::from(envelope), Duration::from_secs(20));
    call.await.unwrap();
}

/// Deletes the reference of a block on a node.
pub(crate) async fn drop_reference(node: &Arc<Node>, hash: Hash) {
    let message = WriteRows { mode: WriteMode::Merge, rows: vec![reference(hash, true)] };
    node.cluster.call(node.id, &message, Body::empty(), Duration::from_secs(20)).await.unwrap();
}

/// Removes a directory in which others may be making files.
pub(crate) fn remove(dir: &std::path::Path) {
    while let Err(error) = std::fs::remove_dir_all(dir) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
    }
}

/// Whether a node has a good copy.
pub(crate) async fn has(node: &Arc<Node>, hash: &Hash) -> bool {
    match node.locate(*hash).await.unwrap() {
        Some(location) => node.blocks.get(hash, &location).await.is_ok(),
        None => false,
    }
}

/// Waits until `done` holds, for a minute at most.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within a minute: {what}");
}

/// Waits until the node has good copies of all the blocks.
pub(crate) async fn until_has_all(node: &Arc<Node>, hashes: &[Hash]) {
    let mut at = 0;
    until("all blocks are there", async || {
        while at < hashes.len() && has(node, &hashes[at]).await {
            at += 1;
        }
        at == hashes.len()
    })
    .await;
}
