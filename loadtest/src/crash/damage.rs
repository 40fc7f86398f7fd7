//! Block files of one node are damaged while it runs: every read still returns the right bytes, and the node repairs
//! what was read. That it did is proven by taking the disks of all other nodes away: then every block must come
//! from the damaged node. (Their disks are put back afterwards.)

use super::CrashArgs;
use crate::cluster::{Daemon, Role};
use crate::testbed::{
    Testbed, collect_files, data_dirs, give_back_disks, no_failures, take_other_disks, verify,
};
use crate::workload::{Keys, Mix, together};
use anyhow::{Context as _, Result, bail};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

/// Time for repairs that reads have asked for.
const REPAIR_TIME: Duration = Duration::from_secs(10);
/// Most files that are damaged: the rest shows that undamaged ones are fine too.
const MOST_FILES: usize = 100;

pub(super) async fn run(setup: &mut Testbed, args: &CrashArgs) -> Result<String> {
    let (site, prefix) = setup.site("damage");
    let keys = Keys::new(&prefix, args.keys.min(200));
    let mix = Mix::default();
    let writers = (0..8u32).map(|lane| {
        let (site, keys) = (site.clone(), keys.clone());
        let mut random = SmallRng::seed_from_u64(setup.seed ^ u64::from(lane));
        async move {
            for index in (lane..keys.count()).step_by(8) {
                site.write(&keys.name(index), mix.size(&mut random), None).await;
            }
        }
    });
    together(&setup.env, "writer", writers).await;
    no_failures(&site)?;
    verify(setup, &site, &keys, args.monotonic).await.context("before the damage")?;

    let node = setup.processes.member(Daemon { role: Role::Storage, index: 0 })?;
    let mut files = Vec::new();
    for dir in data_dirs(&node.config)? {
        collect_files(&dir, &mut files)?;
    }
    files.sort();
    if files.is_empty() {
        bail!("{} has no block files to damage", node.name);
    }
    let mut random = SmallRng::seed_from_u64(setup.seed);
    let mut counts = [0; 3];
    let mut left = files.len();
    while left > 0 && counts.iter().sum::<usize>() < MOST_FILES {
        let path = files.swap_remove(random.random_range(0..files.len()));
        left = files.len();
        let kind = random.random_range(0..3);
        if harm(&path, kind, &mut random).with_context(|| path.display().to_string())? {
            counts[kind] += 1;
        }
    }
    println!(
        "  {}: {} files with a flipped bit, {} truncated, {} removed",
        node.name, counts[0], counts[1], counts[2]
    );
    for _ in 0..3 {
        verify(setup, &site, &keys, args.monotonic).await.context("after the damage")?;
    }
    no_failures(&site)?;
    tokio::time::sleep(REPAIR_TIME).await;
    let damaged = Daemon { role: Role::Storage, index: 0 };
    let dirs = take_other_disks(setup, damaged).await?;
    let proof = verify(setup, &site, &keys, args.monotonic).await.context("from the damaged node alone");
    give_back_disks(setup, damaged, &dirs).await?;
    let alone = proof?;
    no_failures(&site)?;
    verify(setup, &site, &keys, args.monotonic).await.context("with all disks again")?;
    Ok(format!(
        "{} damaged files ({} flipped, {} truncated, {} removed), every read right; repaired: {} reads right from that \
         node alone",
        counts.iter().sum::<usize>(),
        counts[0],
        counts[1],
        counts[2],
        alone.reads
    ))
}

/// Damages a file; false if there is nothing in it to damage, or it has just gone.
fn harm(path: &Path, kind: usize, random: &mut SmallRng) -> std::io::Result<bool> {
    let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open(path) else { return Ok(false) };
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(false);
    }
    let at = random.random_range(0..len);
    match kind {
        0 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            byte[0] ^= 1 << random.random_range(0..8);
            file.write_all_at(&byte, at)?;
        }
        1 => file.set_len(at)?,
        _ => std::fs::remove_file(path)?,
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_harm_changes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block");
        let mut random = SmallRng::seed_from_u64(1);
        for kind in 0..3 {
            std::fs::write(&path, [7; 100]).unwrap();
            assert!(harm(&path, kind, &mut random).unwrap());
            assert_ne!(std::fs::read(&path).ok(), Some(vec![7; 100]), "{kind}");
        }
        assert!(!harm(&path, 0, &mut random).unwrap(), "the file is gone");
    }
}
