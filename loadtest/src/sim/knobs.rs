//! What a seed decides before anything runs: how many hosts, where, how far apart, and settings drawn small or odd.

use super::Options;
use hayloft_common::limits::DEFAULT_BLOCK_SIZE;
use hayloft_gateway::limits::DomainConfig;
use hayloft_proto::limits::Limits;
use hayloft_storage::blocks::BlockConfig;
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
    pub(super) gateways: Vec<HostKnobs>,
    /// One-way latency and jitter between two zones; the same zone is 0.
    pub(super) latency: Latencies,
    pub(super) disks: usize,
    pub(super) clients: usize,
    pub(super) keys: usize,
    /// Longest pause of a client between two operations.
    pub(super) think: Duration,
    /// Mean time between two faults; none: no faults at all.
    pub(super) fault_every: Option<Duration>,
    /// Whether parts of 5 MiB occur: they make a run slow.
    pub(super) large_parts: bool,
    pub(super) domain: DomainConfig,
    pub(super) blocks: BlockConfig,
    pub(super) rpc: Limits,
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
    /// Draws everything.
    pub(super) fn draw(options: &Options) -> Self {
        let random = &mut rng(options.seed, "knobs");
        let drawn = random.random_range(3..=6);
        let nodes = options.nodes.unwrap_or(drawn).max(ZONES);
        let host = |random: &mut StdRng, zone| HostKnobs { zone, clock_offset: clock_offset(random) };
        let storage = (0..nodes).map(|index| host(random, index % ZONES)).collect();
        let gateways = random.random_range(2..=3);
        let gateways = (0..gateways)
            .map(|_| {
                let zone = random.random_range(0..ZONES);
                host(random, zone)
            })
            .collect();
        let latency = draw_latency(random);
        let calm = random.random_bool(0.05);
        let fault_every = Duration::from_millis(random.random_range(500..5_000));
        let domain = draw_domain(random);
        Self {
            storage,
            gateways,
            latency,
            disks: random.random_range(1..=3),
            clients: random.random_range(2..=4),
            keys: random.random_range(2..=8),
            think: Duration::from_millis(pick(random, &[5, 50, 300, 1_000])),
            fault_every: (!calm).then_some(fault_every),
            // With small blocks such a part would take longer than any client waits.
            large_parts: random.random_bool(0.2) && domain.block_size >= 64 << 10,
            domain,
            blocks: blocks(random),
            rpc: rpc(random),
        }
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
        block_ram_buffer_max: pick(random, &[16 * block_size, 128 << 20]),
        control_max_age: Duration::from_secs(pick(random, &[2, 30])),
        index_shards: pick(random, &[1, 1, 2, 8]),
        ..DomainConfig::default()
    }
}

fn blocks(random: &mut StdRng) -> BlockConfig {
    BlockConfig {
        pack_below: pick(random, &[0, 8 << 10, 256 << 10]),
        segment_size: pick(random, &[4 << 10, 256 << 10, 256 << 20]),
        ..BlockConfig::default()
    }
}

fn rpc(random: &mut StdRng) -> Limits {
    let usual = Limits::default();
    Limits {
        data_frame: pick(random, &[1 << 10, 16 << 10, usual.data_frame]),
        stream_window: pick(random, &[8 << 10, DEFAULT_BLOCK_SIZE as u32, usual.stream_window]),
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
            assert!((3..=6).contains(&knobs.storage.len()) && (2..=3).contains(&knobs.gateways.len()));
            for zone in 0..ZONES {
                assert!(knobs.storage.iter().any(|host| host.zone == zone));
            }
            years |= knobs.gateways.iter().any(|host| host.clock_offset.abs() > YEAR);
        }
        assert!(years);
    }
}
