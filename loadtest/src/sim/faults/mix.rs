//! The mix of faults of a run (swarm testing, Groce et al., 2012): each kind is left out or has a weight, so that some runs
//! have nothing but crashes and others everything but cuts.

use rand::RngExt as _;
use rand::rngs::StdRng;
use std::fmt;

/// The kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Kind {
    CutHost,
    CutPair,
    CutZone,
    Delay,
    DelayGateway,
    Reset,
    Crash,
    CrashInTheMiddle,
    FailedSync,
    CrashGateway,
    PowerCut,
    Clock,
    SlowHost,
    SlowDisk,
    Pause,
    Rot,
    DiskLost,
    DiskAway,
    DiskFull,
    MetadataFull,
    MetadataLost,
}

/// Every kind with its usual weight.
const USUAL: [(Kind, u32); 21] = [
    (Kind::CutHost, 20),
    (Kind::CutPair, 10),
    (Kind::CutZone, 5),
    (Kind::Delay, 8),
    (Kind::DelayGateway, 12),
    (Kind::Reset, 8),
    (Kind::Crash, 20),
    (Kind::CrashInTheMiddle, 10),
    (Kind::FailedSync, 4),
    (Kind::CrashGateway, 7),
    (Kind::PowerCut, 3),
    (Kind::Clock, 10),
    (Kind::SlowHost, 8),
    (Kind::SlowDisk, 8),
    (Kind::Pause, 10),
    (Kind::Rot, 10),
    (Kind::DiskLost, 6),
    (Kind::DiskAway, 5),
    (Kind::DiskFull, 6),
    (Kind::MetadataFull, 3),
    (Kind::MetadataLost, 3),
];

/// The kinds that occur, with their weights.
#[derive(Clone, PartialEq, Eq)]
pub(in super::super) struct Mix(Vec<(Kind, u32)>);

impl fmt::Debug for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().copied()).finish()
    }
}

impl Mix {
    /// A fifth of all runs has all kinds, the others a random half of them; never none.
    pub(in super::super) fn new(random: &mut StdRng) -> Self {
        let all = random.random_bool(0.2);
        let mut mix: Vec<(Kind, u32)> = USUAL
            .into_iter()
            .filter_map(|(kind, weight)| {
                let (here, times) = (random.random_bool(0.5), [1, 1, 4][random.random_range(0..3)]);
                (all || here).then_some((kind, weight * times))
            })
            .collect();
        if mix.is_empty() {
            mix.push((Kind::Crash, 1));
        }
        Self(mix)
    }

    /// Draws by weight; none if nothing is left.
    pub(super) fn draw(&self, random: &mut StdRng) -> Option<Kind> {
        let total: u32 = self.0.iter().map(|(_, weight)| weight).sum();
        let mut at = random.random_range(0..total.max(1));
        self.0.iter().find_map(|(kind, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here.then_some(*kind)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::knobs::rng;

    #[test]
    fn every_kind_is_drawn_somewhere_and_no_mix_is_empty() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let random = &mut rng(seed, "mix");
            let mix = Mix::new(random);
            for _ in 0..20 {
                seen.insert(mix.draw(random).expect("a kind"));
            }
        }
        assert_eq!(seen.len(), USUAL.len());
    }
}
