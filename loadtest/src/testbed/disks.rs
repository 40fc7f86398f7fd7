//! The directories of storage nodes: where they are, and a proof of what one node holds by taking all others' away.

use super::Testbed;
use crate::cluster::Daemon;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

fn settings(config: &Path) -> Result<toml::Table> {
    let text =
        std::fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    text.parse().with_context(|| config.display().to_string())
}

/// The data directories that a storage node's configuration names.
pub fn data_dirs(config: &Path) -> Result<Vec<PathBuf>> {
    let dirs: Vec<PathBuf> = match settings(config)?.get("data_dir") {
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

/// The metadata directory that a storage node's configuration names.
pub fn metadata_dir(config: &Path) -> Result<PathBuf> {
    let settings = settings(config)?;
    let dir = settings.get("metadata_dir").and_then(toml::Value::as_str);
    dir.map(PathBuf::from).with_context(|| format!("{} has no metadata_dir", config.display()))
}

/// Deletes a directory with all it holds, also if someone writes into it meanwhile.
pub fn delete_dir(dir: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && tries < 100 => tries += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => return other.with_context(|| format!("cannot delete {}", dir.display())),
        }
    }
}

/// All files under `dir`, added to `files`.
pub fn collect_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
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

/// Where a data directory is put meanwhile.
fn aside(dir: &Path) -> PathBuf {
    dir.with_extension("aside")
}

fn others(bed: &Testbed, kept: Daemon) -> Vec<Daemon> {
    bed.processes.storage().into_iter().filter(|daemon| *daemon != kept).collect()
}

/// Restarts all storage nodes but `kept` without their data directories, as if those were not mounted; returns these.
pub async fn take_other_disks(bed: &mut Testbed, kept: Daemon) -> Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for daemon in others(bed, kept) {
        bed.processes.stop(daemon).await?;
        for dir in data_dirs(&bed.processes.member(daemon)?.config)? {
            std::fs::rename(&dir, aside(&dir)).with_context(|| dir.display().to_string())?;
            // What an unmounted disk leaves: its empty mount point.
            std::fs::create_dir(&dir)?;
            dirs.push(dir);
        }
    }
    start_others(bed, kept).await?;
    Ok(dirs)
}

/// Puts back what [`take_other_disks`] took.
pub async fn give_back_disks(bed: &mut Testbed, kept: Daemon, dirs: &[PathBuf]) -> Result<()> {
    for daemon in others(bed, kept) {
        bed.processes.stop(daemon).await?;
    }
    for dir in dirs {
        std::fs::remove_dir(dir).with_context(|| format!("{} was written to", dir.display()))?;
        std::fs::rename(aside(dir), dir)?;
    }
    start_others(bed, kept).await
}

async fn start_others(bed: &mut Testbed, kept: Daemon) -> Result<()> {
    let others = others(bed, kept);
    bed.restart(&others, &[])?;
    for daemon in others {
        bed.listening(daemon).await?;
    }
    bed.healthy().await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_found_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("storage.toml");
        for text in ["data_dir = \"/d\"", "data_dir = [{ path = \"/d\", capacity = \"1GiB\" }]"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(data_dirs(&path).unwrap(), [PathBuf::from("/d")]);
        }
        std::fs::write(&path, "metadata_dir = \"/m\"").unwrap();
        assert_eq!(metadata_dir(&path).unwrap(), Path::new("/m"));
        assert!(data_dirs(&path).is_err());
    }
}
