//! The simulated cluster: real gateways (domain layer) and real storage nodes on simulated seams.
//!
//! Storage hosts come first, then gateways, then the tester. A host's disks outlive its crashes; everything else of it
//! is dropped: tasks, streams, memory. Nothing here decides what goes wrong; see `faults`.

use super::knobs::{Knobs, ZONES, rng};
use super::log::{FAULT, Log};
use super::net::{HostId, SimNetwork};
use super::seams::{SimClock, SimEntropy, SimTasks};
use super::secure::PlainSecure;
use super::{Bug, Options};
use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::config::Peer;
use hayloft_common::env::{Clock as _, Env};
use hayloft_common::id::NodeId;
use hayloft_common::layout::{
    ActiveLayout, ConsistencyMode, Parameters, Role as LayoutRole, StagedChanges, ZoneRedundancy,
};
use hayloft_gateway::domain::{ClusterStore, Gateway};
use hayloft_gateway::layout::LayoutManager;
use hayloft_proto::body::Body;
use hayloft_proto::client::Pool;
use hayloft_proto::cluster::{Cluster, NoLayoutStore};
use hayloft_proto::error::RpcError;
use hayloft_proto::hello::{Member, Role, RpcSecret};
use hayloft_proto::membership::Membership;
use hayloft_proto::server::{Handler, Incoming};
use hayloft_storage::blocks::{BlockConfig, DiskConfig};
use hayloft_storage::daemon::{self, Parts, Running};
use hayloft_storage::meta::Engine;
use hayloft_storage::serve::{Node, Sabotage};
use hayloft_storage::{commit, disk, meta};
use parking_lot::Mutex;
use rand::Rng as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const SECRET: [u8; 32] = [7; 32];
const PORT: u16 = 3901;

/// What all hosts have.
struct Host {
    name: String,
    zone: usize,
    id: NodeId,
    clock: Arc<SimClock>,
    tasks: SimTasks,
    /// Starts so far.
    starts: u64,
    up: bool,
    /// It will never start again.
    gone: bool,
}

/// A storage node's disks, and what runs on them.
struct Storage {
    metadata: meta::memory::MemoryDisk,
    /// Only says how much room there is for metadata.
    metadata_room: disk::MemoryDisk,
    disks: Vec<disk::MemoryDisk>,
    /// Disks so far: each has a path of its own.
    disks_made: usize,
    /// Something failed that only a restart mends.
    restart: bool,
    /// Bits have rotted on its disks.
    rotten: bool,
    running: Arc<Mutex<Option<Running>>>,
}

/// A gateway that is up.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) env: Env,
    pub(super) gateway: Arc<Gateway>,
    pub(super) layout: Arc<LayoutManager>,
}

struct State {
    hosts: Vec<Host>,
    storage: Vec<Storage>,
    gateways: Vec<Option<Front>>,
    /// What must never happen and did, outside of any key's history.
    faults: Vec<String>,
}

/// The cluster; cheap to clone.
#[derive(Clone)]
pub(super) struct World {
    pub(super) log: Log,
    pub(super) network: SimNetwork,
    pub(super) knobs: Arc<Knobs>,
    /// Seams of the tester, who never crashes.
    pub(super) tester: Env,
    seed: u64,
    bug: Option<Bug>,
    state: Arc<Mutex<State>>,
}

/// Takes the place of a crashed node's handler, so that the node can be freed.
struct Gone;

#[async_trait]
impl Handler for Gone {
    async fn handle(&self, _call: Incoming) -> Result<(Bytes, Body), RpcError> {
        Err(RpcError::Unreachable { sent: false, reason: "this node has crashed".into() })
    }
}

/// A node's role in the layout.
pub(super) fn role(zone: usize, capacity: u64) -> LayoutRole {
    LayoutRole { zone: format!("z{zone}"), capacity, tags: Vec::new() }
}

/// The number of the zone with this label.
pub(super) fn zone_of(label: &str) -> usize {
    label.get(1..).and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn address(host: HostId) -> String {
    format!("host{host}:{PORT}")
}

impl World {
    /// All hosts, down. Must be called on a runtime with paused time.
    pub(super) fn new(options: &Options, knobs: Knobs, log: Log) -> Self {
        let start = Instant::now();
        let seed = options.seed;
        let network = SimNetwork::new(rng(seed, "network").next_u64());
        let all = knobs.storage.iter().map(|host| (host, "s")).chain(knobs.gateways.iter().map(|h| (h, "g")));
        let hosts: Vec<Host> = all
            .enumerate()
            .map(|(index, (host, kind))| Host {
                name: format!("{kind}{index}"),
                zone: host.zone,
                id: NodeId(*blake3::hash(&[&seed.to_le_bytes()[..], &[index as u8]].concat()).as_bytes()),
                clock: Arc::new(SimClock::new(start, host.clock_offset)),
                tasks: SimTasks::new(0),
                starts: 0,
                up: false,
                gone: false,
            })
            .collect();
        for (a, one) in hosts.iter().enumerate() {
            for (b, other) in hosts.iter().enumerate() {
                let (base, jitter) = knobs.latency[one.zone][other.zone];
                network.set_latency(a, b, base, jitter);
            }
        }
        let storage = (0..knobs.storage.len())
            .map(|_| Storage {
                metadata: meta::memory::MemoryDisk::new(),
                metadata_room: disk::MemoryDisk::new("metadata"),
                disks: (0..knobs.disks).map(|n| disk::MemoryDisk::new(format!("disk{n}"))).collect(),
                disks_made: knobs.disks,
                restart: false,
                rotten: false,
                running: Arc::default(),
            })
            .collect();
        let tester = Env {
            clock: Arc::new(SimClock::new(start, 0)),
            entropy: Arc::new(SimEntropy::new(rng(seed, "tester").next_u64())),
            tasks: Arc::new(SimTasks::new(seed)),
            net: Arc::new(network.host(hosts.len())),
        };
        let gateways = vec![None; knobs.gateways.len()];
        let state = State { hosts, storage, gateways, faults: Vec::new() };
        let (bug, state) = (options.bug, Arc::new(Mutex::new(state)));
        Self { log, network, knobs: Arc::new(knobs), tester, seed, bug, state }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Numbers of the storage hosts.
    pub(super) fn storage_hosts(&self) -> std::ops::Range<HostId> {
        0..self.knobs.storage.len()
    }

    /// Numbers of all hosts but the tester.
    pub(super) fn hosts(&self) -> std::ops::Range<HostId> {
        0..self.knobs.storage.len() + self.knobs.gateways.len()
    }

    pub(super) fn name(&self, host: HostId) -> String {
        self.state.lock().hosts[host].name.clone()
    }

    pub(super) fn zone(&self, host: HostId) -> usize {
        self.state.lock().hosts[host].zone
    }

    pub(super) fn id(&self, host: HostId) -> NodeId {
        self.state.lock().hosts[host].id
    }

    pub(super) fn is_up(&self, host: HostId) -> bool {
        self.state.lock().hosts[host].up
    }

    /// The gateway by its number among gateways, if it is up.
    pub(super) fn front(&self, gateway: usize) -> Option<Front> {
        self.state.lock().gateways[gateway].clone()
    }

    /// A storage node, if it runs.
    pub(super) fn node(&self, host: HostId) -> Option<Arc<Node>> {
        let running = self.state.lock().storage.get(host)?.running.clone();
        running.lock().as_ref().map(|running| running.node.clone())
    }

    /// Notes that something went wrong that concerns no single key.
    pub(super) fn fault(&self, what: String) {
        self.log.event(FAULT, &what);
        self.state.lock().faults.push(what);
    }

    /// What was noted.
    pub(super) fn faults(&self) -> Vec<String> {
        self.state.lock().faults.clone()
    }

    /// Makes a host's wall clock wrong by this many microseconds.
    pub(super) fn set_clock(&self, host: HostId, offset: i64) {
        self.state.lock().hosts[host].clock.set_offset(offset);
    }

    /// The wall clock that is farthest behind among the storage nodes', in microseconds.
    pub(super) fn earliest_clock(&self) -> u64 {
        let state = self.state.lock();
        let storage = state.hosts.iter().take(self.knobs.storage.len());
        storage.map(|host| host.clock.wall_micros()).min().unwrap_or_default()
    }

    /// Makes a share of a host's blocking work slow.
    pub(super) fn set_slowness(&self, host: HostId, times: u32, share: f64) {
        self.state.lock().hosts[host].tasks.set_slowness(times, share);
    }

    /// Lets a host stand still, or go on.
    pub(super) fn pause(&self, host: HostId, paused: bool) {
        let tasks = self.state.lock().hosts[host].tasks.clone();
        tasks.pause(paused);
    }

    /// Hosts that faults may strike.
    pub(super) fn victims(&self, storage: bool, gateways: bool) -> Vec<HostId> {
        let first = self.knobs.storage.len();
        let wanted = |host: &HostId| if *host < first { storage } else { gateways };
        self.hosts().filter(wanted).filter(|host| self.knobs.may_fail(*host)).collect()
    }

    /// A data disk of a storage node.
    pub(super) fn disk(&self, host: HostId, disk: usize) -> disk::MemoryDisk {
        self.state.lock().storage[host].disks[disk].clone()
    }

    /// What is below a storage node's metadata engine.
    pub(super) fn metadata(&self, host: HostId) -> meta::memory::MemoryDisk {
        self.state.lock().storage[host].metadata.clone()
    }

    /// Puts an empty disk in the place of one; the node must be down.
    pub(super) fn new_disk(&self, host: HostId, disk: usize) {
        let mut state = self.state.lock();
        let storage = &mut state.storage[host];
        storage.disks[disk] = disk::MemoryDisk::new(format!("disk{}", storage.disks_made));
        storage.disks_made += 1;
    }

    /// Leaves no room for metadata: so that the node sees it coming, or not.
    pub(super) fn fill_metadata(&self, host: HostId, seen: bool) {
        let state = self.state.lock();
        if seen {
            state.storage[host].metadata_room.set_capacity(1 << 20);
        } else {
            state.storage[host].metadata.set_full(true);
        }
    }

    /// All disks of a host have room.
    pub(super) fn make_room(&self, host: HostId) {
        let state = self.state.lock();
        let Some(storage) = state.storage.get(host) else { return };
        storage.disks.iter().chain([&storage.metadata_room]).for_each(|disk| disk.set_capacity(1 << 40));
        storage.metadata.set_full(false);
    }

    /// Something of a node has failed that only a restart mends.
    pub(super) fn note_restart(&self, host: HostId) {
        self.state.lock().storage[host].restart = true;
    }

    /// Bits of a node's disks have rotted.
    pub(super) fn note_rot(&self, host: HostId) {
        self.state.lock().storage[host].rotten = true;
    }

    /// Whether a node may have bad copies that nothing has found yet: only a scrub looks at what nobody reads.
    pub(super) fn may_be_rotten(&self, host: HostId) -> bool {
        self.state.lock().storage[host].rotten && !self.knobs.scrubs_in_time()
    }

    /// Whether a node has to be started again before all of it works.
    pub(super) fn needs_restart(&self, host: HostId) -> bool {
        let state = self.state.lock();
        let storage = &state.storage[host];
        let running = storage.running.lock();
        storage.restart || running.as_ref().is_some_and(|running| running.node.engine.is_poisoned())
    }

    fn new_env(&self, host: HostId) -> Env {
        let mut state = self.state.lock();
        let host_state = &mut state.hosts[host];
        host_state.starts += 1;
        host_state.up = true;
        let mut random = rng(self.seed, &format!("host {host} start {}", host_state.starts));
        host_state.tasks = SimTasks::new(random.next_u64());
        Env {
            clock: host_state.clock.clone(),
            entropy: Arc::new(SimEntropy::new(random.next_u64())),
            tasks: Arc::new(host_state.tasks.clone()),
            net: Arc::new(self.network.host(host)),
        }
    }

    /// Whether a host will never start again.
    pub(super) fn is_gone(&self, host: HostId) -> bool {
        self.state.lock().hosts[host].gone
    }

    /// A host that is down stays so for good.
    pub(super) fn set_gone(&self, host: HostId) {
        self.state.lock().hosts[host].gone = true;
    }

    /// Starts a host that is down.
    pub(super) fn start(&self, host: HostId) {
        if self.is_up(host) || self.is_gone(host) {
            return;
        }
        self.network.revive(host);
        let env = self.new_env(host);
        self.log.event(FAULT, format!("{} starts", self.name(host)));
        if self.storage_hosts().contains(&host) {
            if let Err(error) = self.start_storage(host, env) {
                self.fault(format!("{} cannot start: {error:#}", self.name(host)));
            }
        } else {
            self.start_gateway(host, env);
        }
    }

    fn secure(&self, host: HostId, env: &Env) -> Arc<PlainSecure> {
        Arc::new(PlainSecure { id: self.state.lock().hosts[host].id, env: env.clone() })
    }

    fn peers(&self, except: HostId) -> Vec<Peer> {
        let others = self.storage_hosts().filter(|host| *host != except);
        others.map(|host| Peer { id: None, addr: address(host) }).collect()
    }

    fn start_storage(&self, host: HostId, env: Env) -> anyhow::Result<()> {
        let fsync = self.bug != Some(Bug::NoFsync);
        let (engine, disks, room, running) = {
            let mut state = self.state.lock();
            let storage = &mut state.storage[host];
            storage.restart = false;
            let engine: Arc<dyn Engine> =
                Arc::new(storage.metadata.open().context("the metadata engine does not open")?);
            let disk = |disk: &disk::MemoryDisk| DiskConfig::disk(Arc::new(disk.clone()));
            let room = storage.metadata_room.clone();
            (engine, storage.disks.iter().map(disk).collect(), room, storage.running.clone())
        };
        let parts = Parts {
            secure: self.secure(host, &env),
            env: env.clone(),
            secret: RpcSecret::new(SECRET),
            engine,
            disks,
            metadata_disk: Some(Arc::new(room)),
            blocks: BlockConfig { data_fsync: fsync, ..self.knobs.blocks.clone() },
            commit: commit::Config { fsync, ..self.knobs.commit.clone() },
            rpc: self.knobs.rpc.clone(),
            rpc_bind_addr: address(host),
            rpc_public_addr: None,
            bootstrap: self.peers(host),
            hostname: self.name(host),
            settings: self.knobs.workers.clone(),
            snapshots: None,
            sabotage: Sabotage {
                skip_epoch_check: self.bug == Some(Bug::DroppedEpochCheck),
                release_early: self.bug == Some(Bug::EarlyBlockDeletion),
            },
        };
        let this = self.clone();
        env.spawn("start", async move {
            match daemon::start(parts).await {
                Ok(node) => *running.lock() = Some(node),
                Err(error) => this.fault(format!("{} did not start: {error:#}", this.name(host))),
            }
        });
        Ok(())
    }

    fn start_gateway(&self, host: HostId, env: Env) {
        let secret = RpcSecret::new(SECRET);
        let secure = self.secure(host, &env);
        let member = Member::new(secret, Role::Gateway);
        let pool = Arc::new(Pool::new(env.clone(), secure, member, self.knobs.rpc.clone()));
        let mode = match self.bug {
            Some(Bug::Dangerous) => ConsistencyMode::Dangerous,
            _ => ConsistencyMode::Consistent,
        };
        let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
        let empty = ActiveLayout::empty(parameters, self.knobs.partition_bits);
        let zone = Some(format!("z{}", self.zone(host)));
        let cluster = Cluster::new(env.clone(), pool, zone, mode, empty, Arc::new(NoLayoutStore));
        let membership = Membership::new(cluster.clone(), None, self.peers(host), StagedChanges::default());
        membership.start();
        let store = Arc::new(ClusterStore::new(cluster));
        let front = Front {
            gateway: Gateway::new(env.clone(), store, self.knobs.domain.clone()),
            layout: Arc::new(LayoutManager::new(env.clone(), membership)),
            env,
        };
        let number = host - self.knobs.storage.len();
        self.state.lock().gateways[number] = Some(front);
    }

    /// Stops a host as a power cut does (of the machine, if the others are not told; else they get resets). What its
    /// disks had not synced survives as `seed` decides.
    pub(super) fn crash(&self, host: HostId, told: bool, seed: u64) {
        if !self.is_up(host) {
            return;
        }
        self.network.crash(host, told);
        let (running, front) = {
            let mut state = self.state.lock();
            state.hosts[host].up = false;
            state.hosts[host].tasks.crash();
            if let Some(storage) = state.storage.get(host) {
                storage.metadata.crash(seed);
                for (n, disk) in (0..).zip(&storage.disks) {
                    disk.crash(seed.wrapping_add(n));
                }
                (storage.running.lock().take(), None)
            } else {
                let number = host - self.knobs.storage.len();
                (None, state.gateways[number].take())
            }
        };
        if let Some(running) = running {
            running.node.cluster.pool().set_local(Arc::new(Gone));
        }
        drop(front);
    }

    /// Crashes everything for good.
    pub(super) fn end(&self) {
        for host in self.hosts() {
            self.crash(host, false, 0);
        }
    }

    /// Gives every storage node that is to have one a role and puts the layout in force, through the first gateway.
    pub(super) async fn apply_layout(&self) -> anyhow::Result<()> {
        let front = self.front(0).context("the first gateway is down")?;
        let roles: Vec<(NodeId, LayoutRole)> = {
            let state = self.state.lock();
            let storage = state.hosts.iter().take(self.knobs.roles);
            storage.map(|host| (host.id, role(host.zone, 1 << 40))).collect()
        };
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let stage = |staged: &mut StagedChanges, stamp| {
                for (node, role) in &roles {
                    staged.stage_role(*node, Some(role.clone()), stamp);
                }
            };
            if let Err(error) = front.layout.stage(stage).await {
                self.log.event("t", format!("staging: {error}"));
                continue;
            }
            match front.layout.apply(1).await {
                Ok(applied) => {
                    let epoch = applied.active.epoch;
                    self.log.event("t", format!("layout 1 is in force, epoch {epoch}"));
                    return Ok(());
                }
                Err(error) => self.log.event("t", format!("applying: {error}")),
            }
        }
        anyhow::bail!("no layout could be applied on a healthy cluster; zones: {ZONES}")
    }
}
