//! Block files of one node are damaged while it runs: every read still returns the right bytes, and the node repairs
//! what was read. That it did is proven by taking the disks of all other nodes away: then every block must come
//! from the damaged node. (Their disks are put back afterwards.)

use super::CrashArgs;
use super::setup::Setup;
use super::verify::{no_failures, verify};
use crate::cluster::{Daemon, Role};
use crate::workload::{Keys, Mix, together};
use anyhow::{Context as _, Result, bail};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for repairs that reads have asked for.
const REPAIR_TIME: Duration = Duration::from_secs(10);
/// Most files that are damaged: the rest shows that undamaged ones are fine too.
const MOST_FILES: usize = 100;

pub(super) async fn run(setup: &mut Setup, args: &CrashArgs) -> Result<String> {
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
    let dirs = take_other_disks(setup).await?;
    let proof = verify(setup, &site, &keys, args.monotonic).await.context("from the damaged node alone");
    give_back_disks(setup, &dirs).await?;
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

/// All storage nodes but the damaged one.
fn others(setup: &Setup) -> Vec<Daemon> {
    let count = setup.processes.cluster.storage.len();
    (1..count).map(|index| Daemon { role: Role::Storage, index }).collect()
}

/// Where a data directory is put meanwhile.
fn aside(dir: &Path) -> PathBuf {
    dir.with_extension("aside")
}

/// Restarts all other nodes without their data directories, as if those were not mounted; returns these.
async fn take_other_disks(setup: &mut Setup) -> Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for daemon in others(setup) {
        setup.processes.stop(daemon).await?;
        for dir in data_dirs(&setup.processes.member(daemon)?.config)? {
            std::fs::rename(&dir, aside(&dir)).with_context(|| dir.display().to_string())?;
            // What an unmounted disk leaves: its empty mount point.
            std::fs::create_dir(&dir)?;
            dirs.push(dir);
        }
    }
    start_others(setup).await?;
    Ok(dirs)
}

async fn give_back_disks(setup: &mut Setup, dirs: &[PathBuf]) -> Result<()> {
    for daemon in others(setup) {
        setup.processes.stop(daemon).await?;
    }
    for dir in dirs {
        std::fs::remove_dir(dir).with_context(|| format!("{} was written to", dir.display()))?;
        std::fs::rename(aside(dir), dir)?;
    }
    start_others(setup).await
}

async fn start_others(setup: &mut Setup) -> Result<()> {
    let others = others(setup);
    setup.restart(&others, &[])?;
    for daemon in others {
        setup.listening(daemon).await?;
    }
    setup.healthy().await.map(|_| ())
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

/// The data directories that a storage node's configuration names.
fn data_dirs(config: &Path) -> Result<Vec<PathBuf>> {
    let text =
        std::fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let table: toml::Table = text.parse().with_context(|| config.display().to_string())?;
    let dirs: Vec<PathBuf> = match table.get("data_dir") {
        Some(toml::Value::String(path)) => vec![path.into()],
        Some(toml::Value::Array(list)) => {
            let path = |entry: &toml::Value| match entry {
                toml::Value::String(path) => Some(PathBuf::from(path)),
                entry => entry.get("path").and_then(toml::Value::as_str).map(PathBuf::from),
            };
            list.iter().filter_map(path).collect()
        }
        _ => Vec::new(),
    };
    if dirs.is_empty() {
        bail!("{} has no data_dir", config.display());
    }
    Ok(dirs)
}

fn collect_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect_files(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
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

    #[test]
    fn data_directories_are_found_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("storage.toml");
        for text in ["data_dir = \"/d\"", "data_dir = [{ path = \"/d\", capacity = \"1GiB\" }]"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(data_dirs(&path).unwrap(), [PathBuf::from("/d")]);
        }
        std::fs::write(&path, "x = 1").unwrap();
        assert!(data_dirs(&path).is_err());
    }
}
