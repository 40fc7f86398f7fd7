//! What a seed decides before anything runs: how many hosts, where, how far apart, and settings drawn small or odd.

use super::Options;
use super::faults::mix::Mix;
use super::net::HostId;
use hayloft_common::limits::DEFAULT_BLOCK_SIZE;
use hayloft_gateway::limits::DomainConfig;
use hayloft_proto::limits::Limits;
use hayloft_storage::blocks::BlockConfig;
use hayloft_storage::commit;
use hayloft_storage::workers::{MESSAGE_LIFETIME, Settings};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;

/// Zones of every simulated cluster.
pub(super) const ZONES: usize = 3;
const HOUR: i64 = 3_600_000_000;
const YEAR: i64 = 365 * 24 * HOUR;

/// One process.
#[derive(Clone, Debug)]
pub(super) struct HostKnobs {
    pub(super) zone: usize,
    /// How far its wall clock is off at first, in microseconds.
    pub(super) clock_offset: i64,
}

/// Everything that is fixed for a run.
#[derive(Clone, Debug)]
pub(super) struct Knobs {
    pub(super) storage: Vec<HostKnobs>,
    /// Partitions, as a power of two: few, since work per partition is most of what an idle cluster does.
    pub(super) partition_bits: u8,
    /// The first so many storage nodes have a role from the beginning.
    pub(super) roles: usize,
    /// Mean time between two changes of the layout; none: it stays.
    pub(super) layout_every: Option<Duration>,
    pub(super) gateways: Vec<HostKnobs>,
    /// One-way latency and jitter between two zones; the same zone is 0.
    pub(super) latency: Latencies,
    pub(super) disks: usize,
    pub(super) clients: usize,
    pub(super) keys: usize,
    /// Longest pause of a client between two operations.
    pub(super) think: Duration,
    /// How long clients work and faults come.
    pub(super) seconds: u64,
    /// Mean time between two faults; none: no faults at all.
    pub(super) fault_every: Option<Duration>,
    pub(super) mix: Mix,
    /// If given, faults strike these hosts only, and everybody else must go on being served.
    pub(super) victims: Option<Vec<HostId>>,
    /// Whether the bucket has monotonic reads.
    pub(super) monotonic: bool,
    /// How often each kind of request is made.
    pub(super) requests: Requests,
    /// Whether parts of 5 MiB occur: they make a run slow.
    pub(super) large_parts: bool,
    pub(super) domain: DomainConfig,
    pub(super) blocks: BlockConfig,
    pub(super) commit: commit::Config,
    pub(super) workers: Settings,
    /// Whether the end of the run waits until uploads that never committed are cleared away too.
    pub(super) long: bool,
    /// Phases of faults, each with a time to come to rest behind it.
    pub(super) rounds: u32,
    pub(super) rpc: Limits,
}

/// Weights of the kinds of request.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) put: u32,
    /// Of all puts: how many have the same content as others, so that blocks are shared.
    pub(super) alike: f64,
    pub(super) delete: u32,
    pub(super) copy: u32,
    pub(super) multipart: u32,
    pub(super) abandon: u32,
    pub(super) list: u32,
    pub(super) get: u32,
}

/// One-way latency and jitter between two zones.
type Latencies = [[(Duration, Duration); ZONES]; ZONES];

/// A generator for one purpose, so that more draws for one do not change another.
pub(super) fn rng(seed: u64, purpose: &str) -> StdRng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
    StdRng::from_seed(*hasher.finalize().as_bytes())
}

fn pick<T: Clone>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())].clone()
}

/// A clock's error: mostly none, else up to minutes, hours or ten years, either way.
pub(super) fn clock_offset(random: &mut StdRng) -> i64 {
    let most = match random.random_range(0..10) {
        0..4 => return 0,
        4..6 => 60_000_000,
        6..8 => 5 * HOUR,
        _ => 10 * YEAR,
    };
    random.random_range(-most..=most)
}

impl Knobs {
    /// Whether faults may strike a host.
    pub(super) fn may_fail(&self, host: HostId) -> bool {
        self.victims.as_ref().is_none_or(|victims| victims.contains(&host))
    }

    /// Whether references of versions that were never committed must be gone in the end.
    pub(super) fn waits_for_uncommitted(&self) -> bool {
        self.long
    }

    /// Whether all blocks are scrubbed before the run ends.
    pub(super) fn scrubs_in_time(&self) -> bool {
        self.workers.scrub_interval <= Duration::from_mins(1)
    }

    /// Once healed and with its layout at rest, the cluster has everything done within this: each wait of the
    /// background work comes a few times in a row, with errors and back-off in between.
    pub(super) fn settles_within(&self) -> Duration {
        let workers = &self.workers;
        let chain = workers.drop_delay
            + 4 * workers.takeover_delay
            + 2 * workers.block_grace
            + workers.tombstone_delay
            + workers.tombstone_settle
            + 2 * workers.anti_entropy_interval
            + if self.scrubs_in_time() { 2 * workers.scrub_interval } else { Duration::ZERO };
        // Entries that a clock dated into the future begin to age when that is noticed.
        let uncommitted = if self.long { 2 * workers.uncommitted_age } else { Duration::ZERO };
        Duration::from_mins(5) + 2 * chain + uncommitted
    }

    /// Draws everything.
    pub(super) fn draw(options: &Options) -> Self {
        let random = &mut rng(options.seed, "knobs");
        let drawn = random.random_range(3..=6);
        let nodes = options.nodes.unwrap_or(drawn).max(ZONES);
        let host = |random: &mut StdRng, zone| HostKnobs { zone, clock_offset: clock_offset(random) };
        let layout_every = random.random_bool(0.6).then(|| Duration::from_secs(random.random_range(2..20)));
        let spares = if layout_every.is_some() { random.random_range(0..=3) } else { 0 };
        let storage: Vec<HostKnobs> = (0..nodes + spares).map(|index| host(random, index % ZONES)).collect();
        let gateways = random.random_range(2..=3);
        let gateways: Vec<HostKnobs> = (0..gateways)
            .map(|_| {
                let zone = random.random_range(0..ZONES);
                host(random, zone)
            })
            .collect();
        let latency = draw_latency(random);
        let calm = random.random_bool(0.05);
        let mix = Mix::new(random);
        let victims = random.random_bool(0.3).then(|| draw_victims(random, &storage, &gateways));
        let seconds = pick(random, &[5, 10, 20, 20, 40]);
        let fault_every = Duration::from_millis(random.random_range(500..5_000));
        let domain = draw_domain(random);
        Self {
            storage,
            partition_bits: pick(&mut rng(options.seed, "partitions"), &[1, 3, 4, 4, 4, 5, 8]),
            roles: nodes,
            layout_every,
            gateways,
            latency,
            disks: random.random_range(1..=3),
            clients: random.random_range(2..=4),
            keys: random.random_range(2..=8),
            think: Duration::from_millis(pick(random, &[5, 50, 300, 1_000])),
            seconds: options.seconds.unwrap_or(seconds),
            fault_every: (!calm).then_some(fault_every),
            mix,
            victims,
            monotonic: random.random_bool(0.3),
            requests: draw_requests(random),
            // With small blocks such a part would take longer than any client waits.
            large_parts: random.random_bool(0.2) && domain.block_size >= 64 << 10,
            domain,
            blocks: blocks(random),
            commit: draw_commit(random),
            workers: draw_workers(random),
            long: random.random_bool(0.04),
            rounds: pick(random, &[1, 1, 2]),
            rpc: rpc(random),
        }
    }
}

/// The storage nodes of one zone, and maybe gateways, but never all.
fn draw_victims(random: &mut StdRng, storage: &[HostKnobs], gateways: &[HostKnobs]) -> Vec<HostId> {
    let zone = random.random_range(0..ZONES);
    let struck = storage.iter().enumerate().filter(|(_, host)| host.zone == zone).map(|(index, _)| index);
    let spared = random.random_range(1..=gateways.len());
    struck.chain(storage.len() + spared..storage.len() + gateways.len()).collect()
}

fn draw_requests(random: &mut StdRng) -> Requests {
    let mut weight = |usual: u32| pick(random, &[0, 1, 1, 1, 3]) * usual;
    let (delete, copy, multipart, abandon) = (weight(10), weight(8), weight(5), weight(2));
    let (list, get) = (weight(7), weight(40));
    let alike = pick(random, &[0.0, 0.2, 0.8]);
    Requests { put: 30, alike, delete, copy, multipart, abandon, list, get: get.max(10) }
}

fn draw_commit(random: &mut StdRng) -> commit::Config {
    let usual = commit::Config::default();
    commit::Config {
        queue: pick(random, &[1, 8, usual.queue]),
        queue_bytes: pick(random, &[4 << 10, usual.queue_bytes]),
        batch_jobs: pick(random, &[1, 3, usual.batch_jobs]),
        batch_bytes: pick(random, &[1 << 10, usual.batch_bytes]),
        ..usual
    }
}

/// Waits as short as they may be: those that guard against late messages cannot be drawn shorter than messages live.
fn draw_workers(random: &mut StdRng) -> Settings {
    let seconds = |random: &mut StdRng, of: &[u64]| Duration::from_secs(pick(random, of));
    Settings {
        anti_entropy_interval: seconds(random, &[3, 10, 60]),
        drop_delay: seconds(random, &[0, 1, 10]),
        takeover_delay: seconds(random, &[1, 5, 20]),
        block_grace: seconds(random, &[0, 1, 30]),
        tombstone_delay: seconds(random, &[1, 10, 60]),
        tombstone_settle: MESSAGE_LIFETIME,
        uncommitted_age: Duration::from_mins(40),
        down_after: seconds(random, &[5, 15, 60]),
        scrub_interval: seconds(random, &[60, 600, 86_400]),
        resync_parallel: pick(random, &[1, 4]),
        compact_dead_percent: pick(random, &[10, 50, 95]),
        compact_min_size: pick(random, &[1, 4 << 10, 1 << 20]),
        ..Settings::default()
    }
}

fn draw_latency(random: &mut StdRng) -> Latencies {
    let mut latency = Latencies::default();
    for (a, b) in (0..ZONES).flat_map(|a| (a..ZONES).map(move |b| (a, b))) {
        let base = if a == b { 0 } else { pick(random, &[1, 5, 20, 80, 150]) };
        let jitter = random.random_range(0..=base / 2 + 1);
        latency[a][b] = (Duration::from_millis(base), Duration::from_millis(jitter));
        latency[b][a] = latency[a][b];
    }
    latency
}

fn draw_domain(random: &mut StdRng) -> DomainConfig {
    let block_size = pick(random, &[4 << 10, 16 << 10, 64 << 10]);
    DomainConfig {
        block_size,
        inline_max: pick(random, &[0, 512, 3 << 10]),
        compression: pick(random, &[None, Some(1)]),
        block_ram_buffer_max: pick(random, &[8 * block_size, 16 * block_size, 128 << 20]),
        control_entries: pick(random, &[1, 10_000]),
        control_max_age: Duration::from_secs(pick(random, &[2, 30])),
        index_shards: pick(random, &[1, 1, 2, 8]),
    }
}

fn blocks(random: &mut StdRng) -> BlockConfig {
    let usual = BlockConfig::default();
    BlockConfig {
        pack_below: pick(random, &[0, 8 << 10, 256 << 10]),
        segment_size: pick(random, &[4 << 10, 256 << 10, 256 << 20]),
        disk_reserve: 1 << 20,
        reads_per_disk: pick(random, &[1, usual.reads_per_disk]),
        writes_per_disk: pick(random, &[1, usual.writes_per_disk]),
        // The smallest that takes the largest block accepted.
        write_queue: pick(random, &[usual.max_stored, usual.write_queue]),
        ..usual
    }
}

fn rpc(random: &mut StdRng) -> Limits {
    let usual = Limits::default();
    Limits {
        data_frame: pick(random, &[1 << 10, 16 << 10, usual.data_frame]),
        stream_window: pick(random, &[8 << 10, DEFAULT_BLOCK_SIZE as u32, usual.stream_window]),
        body_budget: pick(random, &[64 << 10, usual.body_budget]),
        max_streams: pick(random, &[16, usual.max_streams]),
        max_queued_bytes: pick(random, &[1 << 20, usual.max_queued_bytes]),
        max_calls_per_peer: pick(random, &[64, usual.max_calls_per_peer]),
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything_and_seeds_differ() {
        let text = |seed| format!("{:?}", Knobs::draw(&Options { seed, ..Options::default() }));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn clusters_have_all_zones_and_clocks_that_are_years_off() {
        let mut years = false;
        for seed in 0..200 {
            let knobs = Knobs::draw(&Options { seed, ..Options::default() });
            assert!((3..=6).contains(&knobs.roles) && (2..=3).contains(&knobs.gateways.len()));
            for zone in 0..ZONES {
                assert!(knobs.storage.iter().any(|host| host.zone == zone));
            }
            years |= knobs.gateways.iter().any(|host| host.clock_offset.abs() > YEAR);
        }
        assert!(years);
    }
}
