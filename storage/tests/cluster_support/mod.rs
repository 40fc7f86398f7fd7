//! Three storage nodes in this process, over TLS on loopback, on memory that survives a crash; and a client that writes as
//! a gateway does.
#![allow(dead_code, reason = "each test file uses its own part")]

use bytes::Bytes;
use hayloft_common::block;
use hayloft_common::codec;
use hayloft_common::config::Peer;
use hayloft_common::env::{BlockingJob, Env, RealTasks, TaskFuture, TaskHandle, Tasks};
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, NodeId, VersionId};
use hayloft_common::layout::{ActiveLayout, Ballot, Parameters, Role, ZoneRedundancy, compute};
use hayloft_common::schema::{
    BlockEntry, BlockOwner, BlockRefRow, ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion,
    Row, Slot, TableId,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::cluster::Cluster;
use hayloft_proto::fanout::{self, Verdict};
use hayloft_proto::hello::RpcSecret;
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::message::block::{PutBlock, ReferBlocks};
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode, WriteRows, WriteRowsReply};
use hayloft_proto::secure::tls::TlsSecure;
use hayloft_storage::blocks::{BlockConfig, DiskConfig};
use hayloft_storage::daemon::{self, Parts, Running};
use hayloft_storage::disk::MemoryDisk;
use hayloft_storage::meta::memory::MemoryDisk as MemoryMeta;
use hayloft_storage::meta::{Direction, KeyRange, Space, Step};
use hayloft_storage::serve::{Node, Sabotage};
use hayloft_storage::tables::queue::{self, Kind};
use hayloft_storage::workers::Settings;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Partitions, as a power of two.
const BITS: u8 = 2;
/// Longest wait for background work.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tasks that can all be stopped at once.
#[derive(Default)]
struct Stoppable(Mutex<Vec<TaskHandle>>);

impl Stoppable {
    fn stop(&self) {
        for task in self.0.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

impl Tasks for Stoppable {
    fn spawn(&self, name: &'static str, task: TaskFuture) -> TaskHandle {
        let handle = Arc::new(RealTasks.spawn(name, task));
        let kept = handle.clone();
        self.0.lock().unwrap().push(TaskHandle::new(move || kept.abort()));
        TaskHandle::new(move || handle.abort())
    }

    fn run_blocking(&self, job: BlockingJob) {
        RealTasks.run_blocking(job);
    }
}

/// Background work in a hurry.
pub(crate) fn hasty() -> Settings {
    let ms = Duration::from_millis;
    Settings {
        anti_entropy_interval: ms(500),
        drop_delay: ms(50),
        takeover_delay: ms(600),
        block_grace: ms(100),
        tombstone_delay: ms(200),
        tombstone_settle: ms(100),
        uncommitted_age: ms(1000),
        down_after: ms(2000),
        ..Settings::default()
    }
}

pub(crate) struct Machine {
    identity: Identity,
    meta: MemoryMeta,
    disk: MemoryDisk,
    tasks: Arc<Stoppable>,
    address: String,
    running: Option<Running>,
}

impl Machine {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.running.as_ref().unwrap().node
    }
}

pub(crate) struct TestCluster {
    pub(crate) machines: Vec<Machine>,
    settings: Settings,
}

impl TestCluster {
    /// Three nodes with a layout in which each holds everything.
    pub(crate) async fn start(settings: Settings) -> Self {
        let machine = |i: usize| Machine {
            identity: Identity::generate().unwrap(),
            meta: MemoryMeta::new(),
            disk: MemoryDisk::new(format!("disk{i}")),
            tasks: Arc::default(),
            address: "127.0.0.1:0".into(),
            running: None,
        };
        let mut cluster = Self { machines: (0..3).map(machine).collect(), settings };
        for i in 0..3 {
            cluster.run(i).await;
        }
        let role = |i: usize| Role { zone: format!("z{i}"), capacity: 1 << 40, tags: vec![] };
        let ids: Vec<NodeId> = cluster.machines.iter().map(|machine| machine.identity.id()).collect();
        let roles: BTreeMap<NodeId, Role> = ids.iter().enumerate().map(|(i, id)| (*id, role(i))).collect();
        let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
        let first = compute(None, &roles, &parameters, BITS).unwrap().0;
        let layout = ActiveLayout::empty(parameters, BITS).introduce(first).unwrap();
        for machine in &cluster.machines {
            // A node that was not asked for its vote would take itself for one that lost its memory.
            let ballot = Ballot { round: 1, proposer: 1 };
            machine.node().layout_store.prepare(layout.epoch, ballot).await.unwrap();
            assert!(machine.node().cluster.learn(layout.clone()).await);
        }
        cluster.until_connected().await;
        cluster
    }

    pub(crate) async fn run(&mut self, i: usize) {
        let bootstrap = self.machines.iter().filter(|m| m.running.is_some());
        let bootstrap = bootstrap.map(|m| Peer { id: None, addr: m.address.clone() }).collect();
        let machine = &mut self.machines[i];
        let env = Env { tasks: machine.tasks.clone(), ..Env::real() };
        let parts = Parts {
            secure: Arc::new(TlsSecure::new(&machine.identity).unwrap()),
            secret: RpcSecret::new([7; 32]),
            engine: Arc::new(machine.meta.open().unwrap()),
            disks: vec![DiskConfig::disk(Arc::new(machine.disk.clone()))],
            metadata_disk: None,
            blocks: BlockConfig { disk_reserve: 0, ..BlockConfig::default() },
            commit: hayloft_storage::commit::Config::default(),
            rpc: Limits { backoff_max: Duration::from_millis(200), ..Limits::default() },
            rpc_bind_addr: machine.address.clone(),
            rpc_public_addr: None,
            bootstrap,
            hostname: format!("node{i}"),
            settings: self.settings.clone(),
            snapshots: None,
            sabotage: Sabotage::default(),
            env,
        };
        let running = daemon::start(parts).await.unwrap();
        running.rpc_addr().clone_into(&mut machine.address);
        machine.running = Some(running);
    }

    /// Cuts the power of a machine.
    pub(crate) fn crash(&mut self, i: usize) {
        let machine = &mut self.machines[i];
        machine.tasks.stop();
        machine.running = None;
        machine.meta.crash(0);
        machine.disk.crash(1);
    }

    pub(crate) fn up(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.machines.iter().filter(|machine| machine.running.is_some()).map(Machine::node)
    }

    /// A cluster to write through: that of the first node that is up.
    pub(crate) fn client(&self) -> &Arc<Cluster> {
        &self.up().next().unwrap().cluster
    }

    pub(crate) async fn until_connected(&self) {
        let ids: Vec<NodeId> = self.up().map(|node| node.id).collect();
        let all = || {
            let met = |node: &Arc<Node>, id: &NodeId| node.cluster.pool().peer_stats(*id).connected;
            self.up().all(|node| ids.iter().all(|id| met(node, id)))
        };
        until("all nodes are connected", all).await;
    }

    /// As [`until`], for every node that is up; a failure tells what they hold.
    pub(crate) async fn until_all(&self, what: &str, done: impl Fn(&Arc<Node>) -> bool) {
        let clock = Env::real();
        let begin = clock.now();
        while !self.up().all(&done) {
            if clock.now().saturating_sub(begin) > PATIENCE {
                for node in self.up() {
                    eprintln!("{}: {}", node.id.short(), describe(node));
                }
                panic!("in vain: {what}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes rows of one partition as a client does.
    pub(crate) async fn put<R: Row>(&self, rows: &[R]) {
        let place = Hash::of(&rows[0].partition_key());
        let write = WriteRows { mode: WriteMode::Put, rows: rows.iter().map(row_bytes).collect() };
        let judge = |reply: &WriteRowsReply| {
            let written = reply.outcomes.iter().all(|o| *o == RowOutcome::Written);
            if written { Verdict::Accept } else { Verdict::Reject }
        };
        fanout::write(self.client(), place, write, Bytes::new(), judge).await.unwrap();
    }

    /// Stores blocks for a version; returns their entries.
    pub(crate) async fn put_blocks(
        &self,
        version: VersionId,
        owner: &BlockOwner,
        plain: &[&[u8]],
    ) -> Vec<BlockEntry> {
        let mut entries = Vec::new();
        for plain in plain {
            let block = Hash::of(plain);
            let put = PutBlock { block, reference: row_bytes(&reference(block, version, owner)) };
            let place = Hash::of(block.as_bytes());
            let envelope = block::seal(&Bytes::copy_from_slice(plain), None);
            fanout::write(self.client(), place, put, envelope, |()| Verdict::Accept).await.unwrap();
            entries.push(BlockEntry { hash: block, len: plain.len() as u32 });
        }
        entries
    }

    /// Renews references.
    pub(crate) async fn renew(&self, version: VersionId, owner: &BlockOwner, blocks: &[BlockEntry]) {
        for entry in blocks {
            let refer = ReferBlocks { references: vec![row_bytes(&reference(entry.hash, version, owner))] };
            let place = Hash::of(entry.hash.as_bytes());
            fanout::write(self.client(), place, refer, Bytes::new(), |_| Verdict::Accept).await.unwrap();
        }
    }
}

pub(crate) fn row_bytes<R: Row>(row: &R) -> RowBytes {
    RowBytes { table: R::TABLE, bytes: codec::encode(row) }
}

pub(crate) fn reference(block: Hash, version: VersionId, owner: &BlockOwner) -> BlockRefRow {
    BlockRefRow { block, version, created_ms: 1, owner: owner.clone(), deleted: false }
}

pub(crate) const BUCKET: BucketId = BucketId([1; 16]);

pub(crate) fn owner(key: &str) -> BlockOwner {
    BlockOwner::Object { bucket: BUCKET, shard: 0, key: key.into() }
}

pub(crate) fn version(id: u8) -> VersionId {
    VersionId([id; 16])
}

/// The row of an object of blocks.
pub(crate) fn object(key: &str, micros: u64, id: VersionId, blocks: Vec<BlockEntry>) -> ObjectRow {
    let size = blocks.iter().map(|block| u64::from(block.len)).sum();
    object_of(key, micros, id, size, ObjectData::Blocks(blocks))
}

pub(crate) fn object_of(key: &str, micros: u64, id: VersionId, size: u64, data: ObjectData) -> ObjectRow {
    let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
    let state = ObjectState::Live(Box::new(ObjectVersion {
        id,
        modified_ms: 0,
        size,
        etag: "0123456789abcdef0123456789abcdef".into(),
        checksum: None,
        detail: Some(Box::new(detail)),
    }));
    ObjectRow { state, ..deleted(key, micros) }
}

/// The row of a deleted object.
pub(crate) fn deleted(key: &str, micros: u64) -> ObjectRow {
    let stamp = Stamp { micros, writer: 1 };
    ObjectRow {
        bucket: BUCKET,
        shard: 0,
        key: key.into(),
        slot: Slot::Null,
        stamp,
        state: ObjectState::Tombstone,
    }
}

/// The keys of a keyspace on a node.
pub(crate) fn keys(node: &Node, space: Space) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    node.engine
        .scan(space, &KeyRange::all(), Direction::Forward, &mut |key, _| {
            keys.push(key.to_vec());
            Step::Next
        })
        .unwrap();
    keys
}

/// How many rows of a table a node has, and how many of them are live.
pub(crate) fn rows(node: &Node, table: TableId) -> (usize, usize) {
    let (mut all, mut live) = (0, 0);
    node.engine
        .scan(Space::Table(table), &KeyRange::all(), Direction::Forward, &mut |key, value| {
            let stored = hayloft_storage::tables::stored::Stored::parse(table, key, value).unwrap();
            all += 1;
            live += usize::from(stored.live);
            Step::Next
        })
        .unwrap();
    (all, live)
}

fn describe(node: &Node) -> String {
    let tables: Vec<String> = TableId::ALL
        .into_iter()
        .map(|table| (table, rows(node, table)))
        .filter(|(_, rows)| rows.0 > 0)
        .map(|(table, (all, live))| format!("{} {all} ({live} live)", table.name()))
        .collect();
    let queue: Vec<String> = Kind::ALL
        .into_iter()
        .flat_map(|kind| queue::read(&*node.engine, &kind.range(), 10).unwrap())
        .map(|(_, entry)| format!("{:?} of {} ms ago", entry.work, node.env.wall_millis() - entry.queued_ms))
        .collect();
    let workers: Vec<String> = node
        .workers
        .list()
        .iter()
        .map(|slot| {
            let status = slot.report.status();
            format!("{}: {:?} {:?}", slot.name, status.last_error, status.notes)
        })
        .collect();
    let blocks = keys(node, Space::BlockIndex).len();
    format!("rows {tables:?}, {blocks} blocks, queue {queue:#?}, workers {workers:#?}")
}

/// Waits until background work has come so far.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    let clock = Env::real();
    let begin = clock.now();
    while !done() {
        assert!(clock.now().saturating_sub(begin) < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets background work go on for a while.
pub(crate) async fn meanwhile(time: Duration) {
    tokio::time::sleep(time).await;
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
