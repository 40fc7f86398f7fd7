//! Builds a storage node from its parts, in order, and stops it in reverse: the only file that knows all.
//!
//! [`start`] takes the seams from the caller, so that the simulator runs the same node on a simulated network, clock
//! and disks; [`run`] gives it the operating system's and waits for the signal to stop.

use crate::blocks::{self, BlockConfig, DiskConfig};
use crate::commit;
use crate::data_disks;
use crate::disk::{Disk, RealDisk};
use crate::layout_store::{LayoutStore, next_incarnation};
use crate::limits::DEFAULT_DISK_RESERVE;
use crate::meta::fjall::{self, FjallEngine};
use crate::meta::{self, Engine, MetaError};
use crate::observe::{self, Observer};
use crate::serve::{BlockLocks, Node, NodeHandler, Sabotage};
use crate::snapshot::{self, Snapshots};
use crate::space::MetadataSpace;
use crate::workers::block_scan::BlockScan;
use crate::workers::block_work::BlockWork;
use crate::workers::check_refs::CheckRefs;
use crate::workers::clock_watch::ClockWatch;
use crate::workers::compact::Compaction;
use crate::workers::compact_metadata::{self, MetadataCompaction};
use crate::workers::drop_versions::DropVersions;
use crate::workers::forget::{self, PartitionDrop};
use crate::workers::layout_sync::{self, LayoutSync};
use crate::workers::pull::SyncState;
use crate::workers::rebalance::Rebalance;
use crate::workers::recount::Recount;
use crate::workers::resync::Resync;
use crate::workers::scrub::Scrub;
use crate::workers::table_sync::{self, TableSync};
use crate::workers::tombstones::Tombstones;
use crate::workers::verify::{Verification, Verify};
use crate::workers::{Settings, Workers, layout_driver};
use anyhow::Context as _;
use hayloft_common::config::{DataDir, Peer, StorageConfig};
use hayloft_common::env::Env;
use hayloft_common::layout::{ActiveLayout, ConsistencyMode, Parameters, ZoneRedundancy};
use hayloft_common::limits::DEFAULT_PARTITION_BITS;
use hayloft_proto::client::Pool;
use hayloft_proto::cluster::Cluster;
use hayloft_proto::hello::{Member, Role, RpcSecret};
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::membership::Membership;
use hayloft_proto::message::membership::PeerInfo;
use hayloft_proto::secure::Secure;
use hayloft_proto::secure::tls::TlsSecure;
use hayloft_proto::server::{self, Server};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// The node's key, in its metadata directory.
const IDENTITY_FILE: &str = "node_key.pem";
/// For calls that run to finish, when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What a node is made of: the seams, and the few settings that matter below the configuration file.
pub struct Parts {
    pub env: Env,
    pub secure: Arc<dyn Secure>,
    pub secret: RpcSecret,
    pub engine: Arc<dyn Engine>,
    pub disks: Vec<DiskConfig>,
    /// Where the metadata lies, to watch its free space. None: not watched.
    pub metadata_disk: Option<Arc<dyn Disk>>,
    pub blocks: BlockConfig,
    pub commit: commit::Config,
    pub rpc: Limits,
    pub rpc_bind_addr: String,
    /// `host:port` for others; the bind address if empty.
    pub rpc_public_addr: Option<String>,
    pub bootstrap: Vec<Peer>,
    pub hostname: String,
    pub settings: Settings,
    /// Where copies of the metadata go, if it lies in files.
    pub snapshots: Option<Arc<Snapshots>>,
    /// For the simulator; [`Sabotage::default`] else.
    pub sabotage: Sabotage,
}

/// A running node.
pub struct Running {
    pub node: Arc<Node>,
    server: Server,
}

impl Running {
    /// The address that peers reach.
    pub fn rpc_addr(&self) -> &str {
        self.server.local_addr()
    }

    /// Takes no more calls, lets those that run finish, for a bounded time.
    pub async fn stop(self) {
        self.server.stop(STOP_GRACE).await;
        let engine = self.node.engine.clone();
        if let Ok(Err(error)) = self.node.env.run_blocking(move || data_disks::close(&*engine)).await {
            tracing::warn!(%error, "the next start will look for what a crash leaves");
        }
    }
}

/// Starts a node. Must be called on a tokio runtime; may block for as long as it takes to open the disks.
pub async fn start(parts: Parts) -> anyhow::Result<Running> {
    let (env, engine) = (parts.env.clone(), parts.engine.clone());
    let (secure, secret) = (parts.secure.clone(), parts.secret.clone());
    let id = secure.local_id();
    let cluster_id = secret.cluster_id();
    meta::format::claim(&*engine, &meta::Identity { cluster: cluster_id, node: id })?;

    let identity = blocks::Identity { cluster: cluster_id, node: id };
    let blocks = data_disks::open(&engine, parts.disks, identity, parts.blocks, &env).await?;

    let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
    let empty = ActiveLayout::empty(parameters, DEFAULT_PARTITION_BITS);
    let layout_store = Arc::new(LayoutStore::open(env.clone(), engine.clone(), id, empty)?);
    let (layout, staged) = layout_store.kept().await;

    let incarnation = next_incarnation(&*engine)?;
    if let Some(date) = snapshot::restored(&*engine)? {
        tracing::warn!(
            date,
            "the metadata is a snapshot that was put back: partitions are pulled anew from other nodes"
        );
        layout_store.outlive(incarnation).await?;
        snapshot::forget_restored(&*engine)?;
    }

    let member = Member::new(secret.clone(), Role::Storage);
    let pool = Arc::new(Pool::new(env.clone(), secure.clone(), member.clone(), parts.rpc.clone()));
    let mode = ConsistencyMode::Consistent;
    let cluster = Cluster::new(env.clone(), pool.clone(), None, mode, layout, layout_store.clone());

    let listener = env
        .net
        .listen(&parts.rpc_bind_addr)
        .await
        .with_context(|| format!("cannot listen on {} (rpc_bind_addr)", parts.rpc_bind_addr))?;
    let address = parts.rpc_public_addr.clone().unwrap_or_else(|| listener.local_addr());
    let me = PeerInfo {
        id,
        addresses: vec![address],
        hostname: parts.hostname,
        program: env!("CARGO_PKG_VERSION").into(),
        incarnation,
    };
    let membership = Membership::new(cluster.clone(), Some(me), parts.bootstrap, staged);
    let node = Arc::new(Node {
        started: env.now(),
        metadata_space: MetadataSpace::new(parts.metadata_disk),
        env: env.clone(),
        id,
        engine,
        blocks,
        cluster,
        membership: membership.clone(),
        layout_store,
        commit_config: parts.commit,
        plane: std::sync::OnceLock::new(),
        workers: Workers::default(),
        clock_watch: ClockWatch::default(),
        settings: parts.settings,
        verification: Verification::default(),
        compaction_asked: compact_metadata::Asked::default(),
        sync: SyncState::default(),
        snapshots: parts.snapshots,
        block_locks: BlockLocks::default(),
        block_work: BlockWork::default(),
        sabotage: parts.sabotage,
    });
    let handler = Arc::new(NodeHandler(node.clone()));
    pool.set_local(handler.clone());
    let server = server::serve(env.clone(), listener, secure.clone(), member, handler, parts.rpc);
    data_disks::watch(&node);
    membership.start();
    start_workers(&node);
    Ok(Running { node, server })
}

/// Starts everything the node does by itself.
fn start_workers(node: &Arc<Node>) {
    let workers = &node.workers;
    workers.start(node, Verify);
    workers.start(node, DropVersions::default());
    workers.start(node, CheckRefs::default());
    workers.start(node, Tombstones::default());
    workers.start(node, Resync::default());
    workers.start(node, BlockScan::default());
    workers.start(node, Compaction::default());
    workers.start(node, MetadataCompaction::default());
    workers.start(node, Rebalance);
    workers.start(node, Scrub::default());
    workers.start(node, TableSync::default());
    workers.start(node, LayoutSync::default());
    workers.start(node, PartitionDrop::default());
    workers.start(node, Recount::default());
    layout_driver::start(node);
    wake_with_layout(node);
    if let (Some(snapshots), Some(interval)) = (node.snapshots.clone(), node.settings.snapshot_interval) {
        workers.start(node, snapshot::Timed { snapshots, interval });
    }
}

/// Gives those workers a turn at once whose work begins with a new epoch of the layout.
fn wake_with_layout(node: &Arc<Node>) {
    let node = node.clone();
    let env = node.env.clone();
    env.spawn("layout watch", async move {
        let mut epochs = node.cluster.epochs();
        while epochs.changed().await.is_ok() {
            for worker in [table_sync::NAME, layout_sync::NAME, forget::NAME] {
                node.workers.wake(worker);
            }
        }
    });
}

/// The node's key, made at the first start.
pub fn identity(config: &StorageConfig) -> anyhow::Result<Identity> {
    let dir = &config.metadata_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create metadata_dir {}", dir.display()))?;
    Ok(Identity::load_or_create(&dir.join(IDENTITY_FILE))?)
}

fn disk_configs(dirs: &[DataDir]) -> Vec<DiskConfig> {
    let disk = |dir: &DataDir| DiskConfig {
        capacity: dir.capacity,
        read_only: dir.read_only,
        ..DiskConfig::path(&dir.path)
    };
    dirs.iter().map(disk).collect()
}

/// Space left free on data disks: the default, but never more than a fiftieth of the smallest.
fn disk_reserve(dirs: &[DataDir]) -> u64 {
    // A directory that is not there yet will be made on the file system of its nearest ancestor.
    let total = |dir: &DataDir| {
        let space = dir.path.ancestors().find_map(|path| RealDisk::new(path).space().ok());
        space.map(|space| space.total)
    };
    let smallest = dirs.iter().filter_map(total).min().unwrap_or(u64::MAX);
    DEFAULT_DISK_RESERVE.min(smallest / 50)
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn open_engine(config: &StorageConfig, identity: &meta::Identity) -> Result<FjallEngine, MetaError> {
    let mut fjall = fjall::Config::new(config.metadata_dir.join("db"));
    fjall.cache_bytes = config.meta_cache_size;
    FjallEngine::open(&fjall, identity)
}

/// Rebuilds the block index of a node that is stopped; see `data_disks::rebuild`.
pub async fn rebuild_index(
    config: &StorageConfig,
    env: &Env,
    progress: &mut dyn FnMut(&data_disks::Rebuilt),
) -> anyhow::Result<data_disks::Rebuilt> {
    let (engine, claim) = open_stopped(config)?;
    let identity = blocks::Identity { cluster: claim.cluster, node: claim.node };
    data_disks::rebuild_stopped(
        &engine,
        disk_configs(&config.data_dir),
        identity,
        block_config(config),
        env,
        progress,
    )
    .await
    .map_err(Into::into)
}

/// Forgets which disk a stopped node knew at `path`; returns it.
pub fn accept_disk(config: &StorageConfig, path: &std::path::Path) -> anyhow::Result<blocks::DiskId> {
    let known = config.data_dir.iter().any(|dir| dir.path == path);
    anyhow::ensure!(known, "{} does not stand in data_dir of the configuration", path.display());
    let (engine, _) = open_stopped(config)?;
    let was = data_disks::accept(&*engine, path)?;
    was.with_context(|| {
        format!("this node knows of no disk at {}: there is nothing to forget", path.display())
    })
}

/// Opens the metadata of a node that must not run meanwhile.
fn open_stopped(config: &StorageConfig) -> anyhow::Result<(Arc<dyn Engine>, meta::Identity)> {
    let secret = RpcSecret::new(*config.rpc_secret().as_bytes());
    let claim = meta::Identity { cluster: secret.cluster_id(), node: identity(config)?.id() };
    let engine = open_engine(config, &claim).context("the metadata can't be opened; is the node stopped?")?;
    Ok((Arc::new(engine), claim))
}

fn block_config(config: &StorageConfig) -> BlockConfig {
    BlockConfig {
        data_fsync: config.data_fsync,
        disk_reserve: disk_reserve(&config.data_dir),
        ..BlockConfig::default()
    }
}

/// Runs a storage node as its configuration says, until `stop` is ready.
pub async fn run(config: &StorageConfig, env: Env, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let key = identity(config)?;
    let secret = RpcSecret::new(*config.rpc_secret().as_bytes());
    let claim = meta::Identity { cluster: secret.cluster_id(), node: key.id() };
    let engine = open_engine(config, &claim)?;
    let parts = Parts {
        secure: Arc::new(TlsSecure::new(&key)?),
        secret,
        engine: Arc::new(engine),
        disks: disk_configs(&config.data_dir),
        metadata_disk: Some(Arc::new(RealDisk::new(&config.metadata_dir))),
        blocks: block_config(config),
        commit: commit::Config { fsync: config.metadata_fsync, ..commit::Config::default() },
        rpc: Limits::default(),
        rpc_bind_addr: config.rpc_bind_addr.clone(),
        rpc_public_addr: config.rpc_public_addr.clone(),
        bootstrap: config.bootstrap_peers.clone(),
        hostname: hostname(),
        settings: config.workers.clone(),
        snapshots: Some(Snapshots::new(config.snapshots_dir(), config.metadata_dir.join(IDENTITY_FILE))),
        sabotage: Sabotage::default(),
        env: env.clone(),
    };
    let running = start(parts).await?;
    if let Some(addr) = &config.admin.api_bind_addr {
        let listener = env.net.listen(addr).await;
        let listener = listener.with_context(|| format!("cannot listen on {addr} (admin.api_bind_addr)"))?;
        let observer = Observer::new(running.node.clone(), config)?;
        env.spawn("admin port", observe::serve(Arc::new(observer), listener));
    }
    tracing::info!(node = %key.id(), rpc = running.rpc_addr(), "storage node is up");
    stop.await;
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}
