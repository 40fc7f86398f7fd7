//! How a peer has been doing: round trip, latency of calls, and when it was last heard. Pure but for the
//! lock around a few numbers, held for some instructions.

use parking_lot::Mutex;
use std::time::Duration;

/// A peer's standing at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStats {
    /// Whether a connection is up.
    pub connected: bool,
    /// Smoothed round-trip time of pings (RFC 6298's weights).
    pub srtt: Option<Duration>,
    /// About the 95th percentile of how long small calls take of late, the peer's work included.
    pub p95: Option<Duration>,
    /// When anything was last heard ([`hayloft_common::env::Env::now`]'s time).
    pub last_heard: Option<Duration>,
    /// Since when a ping waits for any sign of life; long against `srtt` means the peer is silent.
    pub silent_since: Option<Duration>,
}

#[derive(Debug, Default)]
struct Numbers {
    stats: PeerStats,
    links: u32,
    mean: f64,
    deviation: f64,
}

/// Collects a peer's numbers.
#[derive(Debug, Default)]
pub(crate) struct PeerMeter(Mutex<Numbers>);

impl PeerMeter {
    pub(crate) fn link_up(&self, now: Duration) {
        let mut numbers = self.0.lock();
        numbers.links += 1;
        numbers.stats.connected = true;
        numbers.stats.last_heard = Some(now);
        numbers.stats.silent_since = None;
    }

    pub(crate) fn link_down(&self) {
        let mut numbers = self.0.lock();
        numbers.links = numbers.links.saturating_sub(1);
        numbers.stats.connected = numbers.links > 0;
        numbers.stats.silent_since = None;
    }

    pub(crate) fn heard(&self, now: Duration) {
        let mut numbers = self.0.lock();
        numbers.stats.last_heard = Some(now);
        numbers.stats.silent_since = None;
    }

    pub(crate) fn awaiting(&self, now: Duration) {
        self.0.lock().stats.silent_since.get_or_insert(now);
    }

    pub(crate) fn round_trip(&self, sample: Duration) {
        let mut numbers = self.0.lock();
        numbers.stats.srtt = Some(match numbers.stats.srtt {
            None => sample,
            Some(srtt) => (srtt * 7 + sample) / 8,
        });
    }

    /// Mean and mean deviation are smoothed; mean + 2.5 deviations is close to the 95th percentile for
    /// the shapes that latencies have (normal: 2.06, exponential: 2.7).
    pub(crate) fn call_took(&self, sample: Duration) {
        let mut numbers = self.0.lock();
        let sample = sample.as_secs_f64();
        if numbers.stats.p95.is_none() {
            numbers.mean = sample;
            numbers.deviation = sample / 2.0;
        } else {
            let error = sample - numbers.mean;
            numbers.mean += error / 16.0;
            numbers.deviation += (error.abs() - numbers.deviation) / 16.0;
        }
        let p95 = numbers.mean + 2.5 * numbers.deviation;
        numbers.stats.p95 = Duration::try_from_secs_f64(p95).ok();
    }

    pub(crate) fn stats(&self) -> PeerStats {
        self.0.lock().stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_near_for_an_even_spread_of_latencies() {
        let meter = PeerMeter::default();
        for i in 0..2000_u64 {
            // 10 to 30 ms in a scattered order: the true 95th percentile is 29 ms.
            meter.call_took(Duration::from_micros(10_000 + (i * 7919) % 20_000));
        }
        let p95 = meter.stats().p95.unwrap();
        assert!((25..40).contains(&p95.as_millis()), "{p95:?}");
    }

    #[test]
    fn silence_starts_with_the_first_unanswered_ping_and_ends_with_any_sign() {
        let meter = PeerMeter::default();
        let at = Duration::from_secs;
        meter.link_up(at(1));
        meter.awaiting(at(2));
        meter.awaiting(at(5));
        assert_eq!(meter.stats().silent_since, Some(at(2)));
        meter.heard(at(6));
        assert_eq!(meter.stats().silent_since, None);
        assert_eq!(meter.stats().last_heard, Some(at(6)));
    }

    #[test]
    fn a_peer_is_connected_while_one_of_its_links_is_up() {
        let meter = PeerMeter::default();
        meter.link_up(Duration::ZERO);
        meter.link_up(Duration::ZERO);
        meter.link_down();
        assert!(meter.stats().connected);
        meter.link_down();
        assert!(!meter.stats().connected);
    }
}
