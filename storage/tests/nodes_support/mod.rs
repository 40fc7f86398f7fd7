//! Several storage nodes in this process, over TCP on loopback and disks in memory, that can be stopped as by a power
//! cut and started again; and a client that writes to their quorums.

#![allow(dead_code, reason = "not every test uses all of it")]

use hayloft_common::block;
use hayloft_common::codec;
use hayloft_common::config::Peer;
use hayloft_common::env::{BlockingJob, Env, RealTasks, TaskFuture, TaskHandle, Tasks};
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, NodeId, VersionId};
use hayloft_common::layout::{ActiveLayout, Parameters, Partition, Phase, Role, ZoneRedundancy, compute};
use hayloft_common::schema::{
    BlockOwner, BlockRefRow, ObjectData, ObjectDetail, ObjectRow, ObjectState, ObjectVersion, Row, Slot,
    TableId,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::agree::Agreement;
use hayloft_proto::fanout::{self, Verdict};
use hayloft_proto::hello::RpcSecret;
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::message::block::PutBlock;
use hayloft_proto::message::sync::RowSum;
use hayloft_proto::message::table::{RowBytes, RowOutcome, WriteMode, WriteRows};
use hayloft_proto::secure::tls::TlsSecure;
use hayloft_storage::blocks::{BlockConfig, DiskConfig};
use hayloft_storage::commit::Job;
use hayloft_storage::daemon::{self, Parts, Running};
use hayloft_storage::meta::{Direction, KeyRange, Space, Step};
use hayloft_storage::serve::{Node, Sabotage};
use hayloft_storage::tables::compare;
use hayloft_storage::workers::{Settings, needed};
use hayloft_storage::{commit, disk, meta};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A step of a test that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(2);
pub(crate) const BITS: u8 = 4;

/// A node's tasks, which a crash drops.
#[derive(Default)]
struct Droppable(Mutex<Vec<TaskHandle>>);

impl Tasks for Droppable {
    fn spawn(&self, name: &'static str, task: TaskFuture) -> TaskHandle {
        let handle = Arc::new(RealTasks.spawn(name, task));
        let other = handle.clone();
        self.0.lock().unwrap().push(TaskHandle::new(move || other.abort()));
        TaskHandle::new(move || handle.abort())
    }

    fn run_blocking(&self, job: BlockingJob) {
        RealTasks.run_blocking(job);
    }
}

/// A storage node, up or down.
pub(crate) struct Host {
    key: Identity,
    pub(crate) metadata: meta::memory::MemoryDisk,
    pub(crate) data: disk::MemoryDisk,
    address: String,
    tasks: Arc<Droppable>,
    running: Option<Running>,
}

impl Host {
    pub(crate) fn id(&self) -> NodeId {
        self.key.id()
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.running.as_ref().unwrap().node
    }
}

pub(crate) struct Nodes(pub Vec<Host>);

impl Nodes {
    /// So many nodes, each in a zone of its own, without a layout.
    pub(crate) async fn start(count: usize) -> Self {
        let host = |i: usize| Host {
            key: Identity::generate().unwrap(),
            metadata: meta::memory::MemoryDisk::new(),
            data: disk::MemoryDisk::new(format!("disk{i}")),
            address: "127.0.0.1:0".into(),
            tasks: Arc::default(),
            running: None,
        };
        let mut nodes = Self((0..count).map(host).collect());
        for i in 0..count {
            nodes.up(i).await;
        }
        nodes
    }

    /// Starts a node with what its disks hold.
    pub(crate) async fn up(&mut self, i: usize) {
        let bootstrap: Vec<Peer> = self
            .0
            .iter()
            .filter(|host| host.running.is_some())
            .map(|host| Peer { id: None, addr: host.address.clone() })
            .collect();
        let host = &mut self.0[i];
        host.tasks = Arc::default();
        let env = Env { tasks: host.tasks.clone(), ..Env::real() };
        let parts = || Parts {
            env: env.clone(),
            secure: Arc::new(TlsSecure::new(&host.key).unwrap()),
            secret: RpcSecret::new([7; 32]),
            engine: Arc::new(host.metadata.open().unwrap()),
            disks: vec![DiskConfig::disk(Arc::new(host.data.clone()))],
            metadata_disk: None,
            blocks: BlockConfig { disk_reserve: 0, ..BlockConfig::default() },
            commit: commit::Config::default(),
            rpc: Limits { backoff_max: Duration::from_millis(500), ..Limits::default() },
            rpc_bind_addr: host.address.clone(),
            rpc_public_addr: None,
            bootstrap: bootstrap.clone(),
            hostname: format!("n{i}"),
            settings: Settings { down_after: Duration::from_secs(3), ..Settings::default() },
            snapshots: None,
            sabotage: Sabotage::default(),
        };
        // The port is free once the tasks of the node before are gone.
        let running = loop {
            match daemon::start(parts()).await {
                Ok(running) => break running,
                Err(error) => eprintln!("n{i} is not up yet: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        running.rpc_addr().clone_into(&mut host.address);
        host.running = Some(running);
    }

    /// Cuts a node's power.
    pub(crate) async fn down(&mut self, i: usize) {
        let host = &mut self.0[i];
        for task in host.tasks.0.lock().unwrap().drain(..) {
            task.abort();
        }
        host.running = None;
        tokio::time::sleep(Duration::from_millis(200)).await;
        host.metadata.crash(1);
        host.data.crash(1);
    }

    pub(crate) fn node(&self, i: usize) -> &Arc<Node> {
        self.0[i].node()
    }

    /// Has a layout of these nodes agreed on, through the first of them that is up.
    pub(crate) async fn apply(&self, members: &[usize], replication_factor: usize) {
        let role =
            |i: &usize| (self.0[*i].id(), Role { zone: format!("z{i}"), capacity: 1 << 40, tags: vec![] });
        let roles: BTreeMap<NodeId, Role> = members.iter().map(role).collect();
        let parameters = Parameters { replication_factor, zone_redundancy: ZoneRedundancy::Maximum };
        let node = self.0.iter().find_map(|host| host.running.as_ref()).unwrap().node.clone();
        let next = |before: &ActiveLayout| {
            let layout = compute(Some(before.newest()), &roles, &parameters, BITS).unwrap().0;
            before.apply(layout).unwrap()
        };
        until("a layout is agreed on", async || {
            let before = node.cluster.layout();
            let agreed = Agreement::new(node.membership.clone()).agree(&before, next(&before)).await;
            agreed.inspect_err(|error| eprintln!("{error}")).is_ok()
        })
        .await;
    }

    /// Waits until every node that is up says the change to `version` is over.
    pub(crate) async fn stable(&self, version: u64) {
        until("the layout is stable", async || {
            self.0.iter().filter_map(|host| host.running.as_ref()).all(|running| {
                let layout = running.node.cluster.layout();
                layout.phase == Phase::Stable && layout.current.version == version
            })
        })
        .await;
    }

    /// Writes an object row and a block with a reference, as a gateway does.
    pub(crate) async fn write(&self, through: usize, n: u32) {
        let cluster = &self.node(through).cluster;
        let plain = n.to_le_bytes().repeat(100);
        let (hash, envelope) = (Hash::of(&plain), block::seal(&plain, None));
        let owner = BlockOwner::Object { bucket: bucket(n), shard: 0, key: n.to_string() };
        let reference =
            BlockRefRow { block: hash, version: version(n), created_ms: 1, owner, deleted: false };
        let row = object(n);
        let (block_place, row_place) = (Hash::of(hash.as_bytes()), Hash::of(&row.partition_key()));
        until("a write is acknowledged", async || {
            let put = PutBlock { block: hash, reference: encoded(&reference) };
            let done = fanout::write(cluster, block_place, put, envelope.clone(), |()| Verdict::Accept).await;
            if let Err(error) = done {
                eprintln!("block {n}: {error}");
                return false;
            }
            let put = WriteRows { mode: WriteMode::Put, rows: vec![encoded(&row)] };
            let done = fanout::write(cluster, row_place, put, bytes::Bytes::new(), |reply| {
                let written = reply.outcomes.iter().all(|outcome| *outcome == RowOutcome::Written);
                if written { Verdict::Accept } else { Verdict::Reject }
            });
            done.await.inspect_err(|error| eprintln!("row {n}: {error}")).is_ok()
        })
        .await;
    }

    /// Waits until all nodes that hold a partition by the stable layout hold equal rows, and the blocks they refer to.
    pub(crate) async fn equal(&self) {
        until("all copies are equal and complete", async || {
            (0..1 << BITS).map(Partition).all(|partition| {
                let layout =
                    self.0.iter().find_map(|host| host.running.as_ref()).unwrap().node.cluster.layout();
                let holders: Vec<_> =
                    self.0.iter().filter(|host| layout.holds(host.id(), partition)).collect();
                let sums: Vec<_> = holders.iter().map(|host| totals(host.node(), partition)).collect();
                let complete = |host: &&Host| needed::missing(host.node(), partition, None).unwrap();
                sums.iter().all(|sum| *sum == sums[0])
                    && holders.iter().all(|host| complete(host).missing.is_empty())
            })
        })
        .await;
    }

    /// Takes the block of a write from a node, as a bad disk does.
    pub(crate) async fn lose_block(&self, i: usize, n: u32) {
        let node = self.node(i);
        let block = Hash::of(&n.to_le_bytes().repeat(100));
        if node.locate(block).await.unwrap().is_some() {
            node.plane().unwrap().commit.submit(Job::release_regardless(block)).await.unwrap();
        }
    }

    /// Blocks that a node should have and has not.
    pub(crate) fn missing(&self, i: usize) -> usize {
        let missing = |p: u16| needed::missing(self.node(i), Partition(p), None).unwrap().missing.len();
        (0..1 << BITS).map(missing).sum()
    }

    /// Checks that every holder has the rows of all these writes.
    pub(crate) fn check_holders_have(&self, writes: std::ops::Range<u32>) {
        for n in writes {
            let row = object(n);
            let mut holders = 0;
            for host in &self.0 {
                let node = host.node();
                let partition = node.cluster.layout().partition_of_key(&row.partition_key());
                if node.cluster.layout().holds(node.id, partition) {
                    let tables = node.plane().unwrap().tables;
                    let found = tables.row::<ObjectRow>(&*node.engine, &row.partition_key(), &row.sort_key());
                    assert_eq!(found.unwrap().as_ref(), Some(&row), "write {n}");
                    holders += 1;
                }
            }
            assert!(holders > 0);
        }
    }
}

fn totals(node: &Node, partition: Partition) -> Vec<(TableId, RowSum)> {
    compare::totals(&*node.engine.snapshot(), partition).unwrap()
}

/// Rows of all tables that a node stores.
pub(crate) fn rows_of(node: &Node) -> usize {
    let mut rows = 0;
    for table in TableId::ALL {
        let mut count = |_: &bytes::Bytes, _: &bytes::Bytes| {
            rows += 1;
            Step::Next
        };
        node.engine.scan(Space::Table(table), &KeyRange::all(), Direction::Forward, &mut count).unwrap();
    }
    rows
}

fn bucket(n: u32) -> BucketId {
    BucketId([(n % 40) as u8; 16])
}

fn version(n: u32) -> VersionId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_le_bytes());
    VersionId(id)
}

fn object(n: u32) -> ObjectRow {
    let data = ObjectData::Inline(n.to_le_bytes().to_vec());
    let detail = ObjectDetail { headers: vec![], checksum: None, parts: vec![], data };
    ObjectRow {
        bucket: bucket(n),
        shard: 0,
        key: n.to_string(),
        slot: Slot::Null,
        stamp: Stamp { micros: 1, writer: 1 },
        state: ObjectState::Live(Box::new(ObjectVersion {
            id: version(n),
            modified_ms: 0,
            size: 4,
            etag: "e".into(),
            checksum: None,
            detail: Some(Box::new(detail)),
        })),
    }
}

fn encoded<R: Row>(row: &R) -> RowBytes {
    RowBytes { table: R::TABLE, bytes: codec::encode(row) }
}

/// Tries until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let tries = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, tries).await.is_ok(), "not so after {PATIENCE:?}: {what}");
}
