//! Which disk takes a new block: rendezvous hashing weighted by capacity.
//!
//! Pure. Each disk draws a number for each block from the two names, in proportion to its weight; the
//! highest wins. So adding or losing a disk changes the answer only for the blocks that the disk wins or
//! held, in proportion to its capacity. Callers offer only disks that take writes; the further ones of
//! the order are the fallbacks when the first fails.

use super::index::DiskId;
use hayloft_common::hash::Hash;

/// A disk that may take a block, with its weight: its capacity in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub disk: DiskId,
    pub weight: u64,
}

/// The candidates in order of preference for the block; those of weight 0 are left out.
pub fn order(hash: &Hash, candidates: &[Candidate]) -> Vec<DiskId> {
    let mut scored: Vec<(f64, DiskId)> = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0)
        .map(|candidate| (score(hash, *candidate), candidate.disk))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, disk)| disk).collect()
}

/// `weight / -ln(u)` with `u` uniform in (0, 1): the largest of these is drawn in proportion to weight.
fn score(hash: &Hash, candidate: Candidate) -> f64 {
    // The first bytes of a hash choose the partition, and so are alike on one node: use the last ones.
    let mut tail = [0; 8];
    tail.copy_from_slice(&hash.0[24..]);
    let drawn = mix(u64::from_le_bytes(tail) ^ mix(u64::from(candidate.disk.0)));
    let uniform = ((drawn >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    candidate.weight as f64 / -uniform.ln()
}

/// splitmix64's finaliser.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u32 = 20_000;

    fn candidates(weights: &[u64]) -> Vec<Candidate> {
        let disk = |i: usize| DiskId(i as u32 * 1000 + 1);
        weights.iter().enumerate().map(|(i, &weight)| Candidate { disk: disk(i), weight }).collect()
    }

    fn winners(candidates: &[Candidate]) -> Vec<DiskId> {
        (0..BLOCKS).map(|i| order(&Hash::of(&i.to_le_bytes()), candidates)[0]).collect()
    }

    #[test]
    fn disks_win_in_proportion_to_capacity() {
        let disks = candidates(&[1, 2, 5]);
        let winners = winners(&disks);
        for candidate in &disks {
            let share = winners.iter().filter(|w| **w == candidate.disk).count() as f64 / f64::from(BLOCKS);
            let due = candidate.weight as f64 / 8.0;
            assert!((share - due).abs() < 0.02, "{share} where {due} is due");
        }
    }

    #[test]
    fn a_new_disk_takes_its_share_and_moves_nothing_else() {
        let (old, new) = (candidates(&[3, 3, 3]), candidates(&[3, 3, 3, 1]));
        let moved: Vec<DiskId> = winners(&old)
            .into_iter()
            .zip(winners(&new))
            .filter(|(before, after)| before != after)
            .map(|(_, after)| after)
            .collect();
        assert!(moved.iter().all(|disk| *disk == new[3].disk));
        assert!((moved.len() as f64 / f64::from(BLOCKS) - 0.1).abs() < 0.02);
    }

    #[test]
    fn the_order_names_every_disk_with_weight_once() {
        let order = order(&Hash::of(b"x"), &candidates(&[1, 0, 7, 7]));
        assert_eq!(order.len(), 3);
        assert!(!order.contains(&DiskId(1001)));
        assert_eq!(super::order(&Hash::of(b"x"), &[]), vec![]);
    }
}
