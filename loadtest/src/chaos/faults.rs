//! The faults: drawing them, injecting them, taking them back.

use super::membership::Membership;
use super::small_disk::SmallDisk;
use crate::cluster::{Daemon, Links, Role, Rule};
use crate::testbed::{Testbed, data_dirs, delete_dir, metadata_dir};
use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR_MS: i64 = 3_600_000;
/// What clocks are wrong by, in milliseconds.
const OFFSETS: [i64; 8] =
    [700, -700, 90_000, -90_000, HOUR_MS, -HOUR_MS, 10 * 365 * 24 * HOUR_MS, -10 * 365 * 24 * HOUR_MS];
/// How long the operator tries again.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long daemons may take to be back.
const BACK: Duration = Duration::from_mins(2);
/// Rounds after which the cluster must become whole even if nothing was destroyed.
const RECOVER_EVERY: u64 = 4;

/// Kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillStorage,
    KillGateway,
    KillAll,
    PauseStorage,
    PauseGateway,
    CutPair,
    Isolate,
    OneWay,
    SlowLink,
    StorageClock,
    GatewayClock,
    FullDisk,
    LoseDisk,
    LoseNode,
    Layout,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::KillStorage,
        Self::KillGateway,
        Self::KillAll,
        Self::PauseStorage,
        Self::PauseGateway,
        Self::CutPair,
        Self::Isolate,
        Self::OneWay,
        Self::SlowLink,
        Self::StorageClock,
        Self::GatewayClock,
        Self::FullDisk,
        Self::LoseDisk,
        Self::LoseNode,
        Self::Layout,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::KillStorage => "kill-storage",
            Self::KillGateway => "kill-gateway",
            Self::KillAll => "kill-all",
            Self::PauseStorage => "pause-storage",
            Self::PauseGateway => "pause-gateway",
            Self::CutPair => "cut-pair",
            Self::Isolate => "isolate",
            Self::OneWay => "one-way",
            Self::SlowLink => "slow-link",
            Self::StorageClock => "storage-clock",
            Self::GatewayClock => "gateway-clock",
            Self::FullDisk => "full-disk",
            Self::LoseDisk => "lose-disk",
            Self::LoseNode => "lose-node",
            Self::Layout => "layout",
        }
    }

    /// How often it is drawn, against the others.
    fn weight(self) -> u32 {
        match self {
            Self::KillStorage => 20,
            Self::KillAll | Self::LoseDisk | Self::LoseNode | Self::FullDisk => 4,
            Self::StorageClock | Self::GatewayClock => 6,
            // Made at the beginning of a round.
            Self::Layout => 0,
            _ => 10,
        }
    }

    fn destroys(self) -> bool {
        matches!(self, Self::LoseDisk | Self::LoseNode)
    }
}

/// A cluster, what is wrong with it just now, and what was done to it.
pub(super) struct Chaos {
    pub(super) bed: Testbed,
    links: Links,
    random: SmallRng,
    kinds: Vec<Kind>,
    membership: Membership,
    small_disk: Option<SmallDisk>,
    /// Daemons whose clocks are wrong now, by name, and by how much.
    offsets: BTreeMap<String, i64>,
    /// Something was destroyed, and the cluster is not whole again yet.
    owed: bool,
    injected: BTreeMap<&'static str, u64>,
    this_round: Vec<&'static str>,
    rounds: u64,
}

impl Chaos {
    /// Takes a fresh cluster. Faults that are not possible here are left out, with a line that says so.
    pub(super) async fn new(
        mut bed: Testbed,
        seed: u64,
        only: &[String],
        without: &[String],
    ) -> Result<Self> {
        for name in only.iter().chain(without) {
            let known = || Kind::ALL.map(Kind::name).join(", ");
            ensure!(Kind::ALL.iter().any(|kind| kind.name() == name), "no fault `{name}`: {}", known());
        }
        let mut kinds: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| only.is_empty() || only.iter().any(|name| name == kind.name()))
            .filter(|kind| without.iter().all(|name| name != kind.name()))
            .collect();
        let links = bed.links().context("the cluster was started without links")?.clone();
        let (mut roles, mut spares) = (BTreeMap::new(), Vec::new());
        for node in &bed.processes.cluster.storage {
            let id = node.node_id.clone().with_context(|| format!("{} has no id", node.name))?;
            if node.spare {
                spares.push(id);
            } else {
                roles.insert(id, node.zone.clone());
            }
        }
        let small_disk = if kinds.contains(&Kind::FullDisk) {
            match mount_small_disk(&mut bed).await {
                Ok(disk) => Some(disk),
                Err(error) => {
                    println!("no full disks in this run: {error:#}");
                    kinds.retain(|kind| *kind != Kind::FullDisk);
                    None
                }
            }
        } else {
            None
        };
        Ok(Self {
            bed,
            links,
            random: SmallRng::seed_from_u64(seed ^ 0xc4a0),
            kinds,
            membership: Membership::new(roles, spares, 3),
            small_disk,
            offsets: BTreeMap::new(),
            owed: false,
            injected: BTreeMap::new(),
            this_round: Vec::new(),
            rounds: 0,
        })
    }

    /// How often each fault was injected.
    pub(super) fn injected(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.injected.iter().map(|(name, count)| (*name, *count))
    }

    /// The faults of the last round, in order.
    pub(super) fn last_round(&self) -> String {
        self.this_round.join(" ")
    }

    /// Whether the cluster must become whole before more is done to it.
    pub(super) fn must_recover(&self) -> bool {
        self.owed || self.rounds.is_multiple_of(RECOVER_EVERY)
    }

    /// Injects faults for as long as `time`, one or two at once, and takes all of them back.
    pub(super) async fn round(&mut self, time: Duration) -> Result<()> {
        self.this_round.clear();
        self.rounds += 1;
        let env = self.bed.env.clone();
        let start = env.now();
        if self.kinds.contains(&Kind::Layout) && self.random.random_bool(0.7) {
            self.change_layout().await.context("changing the layout")?;
        }
        while env.now().saturating_sub(start) < time {
            for _ in 0..self.random.random_range(1..=2) {
                if let Some(kind) = self.draw() {
                    self.inject(kind).await.with_context(|| kind.name().to_owned())?;
                }
            }
            self.sleep(500..8_000).await;
            self.heal().await?;
            self.sleep(100..3_000).await;
        }
        Ok(())
    }

    async fn sleep(&mut self, millis: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(millis))).await;
    }

    fn draw(&mut self) -> Option<Kind> {
        let possible: Vec<Kind> =
            self.kinds.iter().copied().filter(|kind| !(self.owed && kind.destroys())).collect();
        let total: u32 = possible.iter().map(|kind| kind.weight()).sum();
        let mut draw = self.random.random_range(0..total.max(1));
        possible.into_iter().find(|kind| {
            let hit = draw < kind.weight();
            draw = draw.saturating_sub(kind.weight());
            hit
        })
    }

    fn note(&mut self, name: &'static str) {
        *self.injected.entry(name).or_default() += 1;
        self.this_round.push(name);
    }

    /// A daemon that runs.
    fn any(&mut self, role: Role) -> Option<Daemon> {
        let all: Vec<Daemon> = self
            .bed
            .processes
            .all()
            .into_iter()
            .filter(|daemon| daemon.role == role && self.bed.processes.is_up(*daemon))
            .collect();
        let count = all.len();
        if count == 0 { None } else { all.get(self.random.random_range(0..count)).copied() }
    }

    fn name(&self, daemon: Daemon) -> Result<String> {
        Ok(self.bed.processes.member(daemon)?.name.clone())
    }

    /// Every other daemon's name.
    fn others(&self, name: &str) -> Vec<String> {
        let cluster = &self.bed.processes.cluster;
        let all = cluster.gateways.iter().chain(&cluster.storage);
        all.map(|member| member.name.clone()).filter(|other| other != name).collect()
    }

    async fn inject(&mut self, kind: Kind) -> Result<()> {
        let role = match kind {
            Kind::KillGateway | Kind::PauseGateway | Kind::GatewayClock => Role::Gateway,
            _ => Role::Storage,
        };
        let Some(victim) = self.any(role) else { return Ok(()) };
        let name = self.name(victim)?;
        match kind {
            Kind::KillStorage | Kind::KillGateway => self.bed.processes.kill(&[victim]).await?,
            Kind::KillAll => {
                let all = self.bed.processes.all();
                self.bed.processes.kill(&all).await?;
            }
            Kind::PauseStorage | Kind::PauseGateway => self.bed.processes.pause(victim, true)?,
            Kind::CutPair | Kind::OneWay | Kind::SlowLink => {
                let others = self.others(&name);
                let other = &others[self.random.random_range(0..others.len())];
                self.disturb(kind, &name, other);
            }
            Kind::Isolate => {
                for other in self.others(&name) {
                    self.links.cut(&name, &other, true);
                }
            }
            Kind::StorageClock | Kind::GatewayClock => {
                let offset = OFFSETS[self.random.random_range(0..OFFSETS.len())];
                self.offsets.insert(name, offset);
                self.bed.processes.kill(&[victim]).await?;
                self.restart(victim)?;
            }
            Kind::FullDisk => match &self.small_disk {
                Some(disk) => disk.fill()?,
                None => return Ok(()),
            },
            Kind::LoseDisk => {
                let dirs = data_dirs(&self.bed.processes.member(victim)?.config)?;
                // The first may be the one in memory, which cannot be deleted.
                let Some(dir) = dirs.get(1) else { return Ok(()) };
                delete_dir(dir)?;
                self.owed = true;
            }
            Kind::LoseNode => return self.lose_node(victim).await,
            Kind::Layout => return self.change_layout().await,
        }
        self.note(kind.name());
        Ok(())
    }

    fn disturb(&mut self, kind: Kind, a: &str, b: &str) {
        match kind {
            Kind::OneWay => {
                let (from, to) = if self.random.random_bool(0.5) { (a, b) } else { (b, a) };
                self.links.set(from, to, Rule { cut: true, ..Rule::default() });
            }
            Kind::SlowLink => {
                let delay = Duration::from_millis(self.random.random_range(20..600));
                let bytes_per_second = Some(self.random.random_range(200_000..5_000_000));
                for (from, to) in [(a, b), (b, a)] {
                    self.links.set(from, to, Rule { cut: false, delay, bytes_per_second });
                }
            }
            _ => self.links.cut(a, b, true),
        }
    }

    /// A node is destroyed with all it had, and stays down until the round's faults are healed; then it is an empty
    /// machine with a new id. Its place in the layout is taken by a spare.
    async fn lose_node(&mut self, victim: Daemon) -> Result<()> {
        let old = self.bed.node_id(victim)?;
        let config = self.bed.processes.member(victim)?.config.clone();
        let dirs = data_dirs(&config)?;
        let on_small_disk = |disk: &SmallDisk| dirs.iter().any(|dir| dir == disk.dir());
        if !self.membership.has_role(&old) || self.small_disk.as_ref().is_some_and(on_small_disk) {
            return Ok(());
        }
        self.bed.processes.kill(&[victim]).await?;
        for dir in dirs.into_iter().chain([metadata_dir(&config)?]) {
            delete_dir(&dir)?;
        }
        self.owed = true;
        self.note(Kind::LoseNode.name());
        let new = self.bed.processes.run_storage(victim, &["--print-node-id"])?.trim().to_owned();
        self.bed.processes.renamed(victim, &new);
        self.restart(victim)?;
        self.bed.listening(victim).await?;
        let change = self.membership.replace_lost(&old);
        self.membership.add_spare(&new);
        let change = change.or_else(|| self.membership.replace_lost(&old));
        let change = change.context("there is no node that could replace the lost one")?;
        // The operator's commands need a gateway, and the change a majority.
        self.heal().await?;
        self.apply(change).await
    }

    async fn change_layout(&mut self) -> Result<()> {
        for _ in 0..20 {
            if let Some(change) = self.membership.draw(&mut self.random) {
                return self.apply(change).await;
            }
        }
        Ok(())
    }

    async fn apply(&mut self, change: super::membership::Change) -> Result<()> {
        let commands: Vec<Vec<&str>> =
            change.commands.iter().map(|command| command.iter().map(String::as_str).collect()).collect();
        let staging: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
        self.bed.operator.change_layout(&staging, PATIENCE).await?;
        self.membership = change.after;
        self.note(change.name);
        Ok(())
    }

    fn restart(&mut self, daemon: Daemon) -> Result<()> {
        let name = self.name(daemon)?;
        let arguments: Vec<String> =
            self.offsets.get(&name).map(|ms| format!("--clock-offset-ms={ms}")).into_iter().collect();
        self.bed.restart(&[daemon], &arguments)
    }

    /// Takes every fault back that can be taken back; a deleted directory stays deleted.
    async fn heal(&mut self) -> Result<()> {
        self.links.heal();
        if let Some(disk) = &self.small_disk {
            disk.clear()?;
        }
        let all = self.bed.processes.all();
        for daemon in &all {
            self.bed.processes.pause(*daemon, false)?;
        }
        if let Some(member) = self.bed.processes.missing() {
            bail!("{} ended by itself; see {}", member.name, member.log.display());
        }
        let wrong: Vec<String> = std::mem::take(&mut self.offsets).into_keys().collect();
        for name in wrong {
            let daemon = self.bed.processes.named(&name)?;
            self.bed.processes.kill(&[daemon]).await?;
        }
        for daemon in &all {
            if !self.bed.processes.is_up(*daemon) {
                self.restart(*daemon)?;
            }
        }
        for daemon in &all {
            self.bed.listening(*daemon).await?;
        }
        Ok(())
    }

    /// Waits until the cluster is whole: all nodes up, the layout settled, nothing wrong found.
    pub(super) async fn recover(&mut self, limit: Duration) -> Result<()> {
        self.heal().await?;
        self.bed.healthy().await?;
        self.bed.everyone_up(BACK).await?;
        let took = self.bed.converged(false, limit).await.context("the cluster is not whole again")?;
        println!("  whole again after {:.0} s", took.as_secs_f64());
        self.owed = false;
        Ok(())
    }

    /// Stops the cluster.
    pub(super) async fn finish(self, passed: bool) -> Result<()> {
        let Self { bed, links, small_disk, .. } = self;
        links.heal();
        if passed {
            // The directory is to be removed: the disk must be unmounted first, when nobody uses it.
            let mut bed = bed;
            for daemon in bed.processes.storage() {
                bed.processes.stop(daemon).await?;
            }
            drop(small_disk);
            bed.finish(true).await
        } else {
            let stopped = bed.finish(false).await;
            drop(small_disk);
            stopped
        }
    }
}

/// Mounts a disk that can be filled over the first data directory of the first node.
async fn mount_small_disk(bed: &mut Testbed) -> Result<SmallDisk> {
    let daemon = Daemon { role: Role::Storage, index: 0 };
    let dirs = data_dirs(&bed.processes.member(daemon)?.config)?;
    let dir = dirs.first().context("no data directory")?;
    bed.processes.stop(daemon).await?;
    let disk = SmallDisk::mount(dir);
    bed.restart(&[daemon], &[])?;
    bed.listening(daemon).await?;
    disk
}
