//! A disk that can be filled: a small file system in memory, mounted over a node's data directory. Needs the right to
//! mount; without it there are no full disks in a run.

use anyhow::{Context as _, Result, bail};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the file system: several times what a node's disk holds in a run.
const SIZE: &str = "size=1g";
/// Name of the file that fills it.
const BALLAST: &str = "ballast";

/// A mounted file system; unmounted when dropped, with all it holds.
pub(super) struct SmallDisk {
    dir: PathBuf,
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("no `{program}`"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("`{program}` failed: {}", String::from_utf8_lossy(&output.stderr).trim())
}

impl SmallDisk {
    /// Mounts it over `dir`, whose content is put into it. Nobody may use the directory meanwhile.
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        let aside = dir.with_extension("moved");
        std::fs::rename(dir, &aside).with_context(|| dir.display().to_string())?;
        std::fs::create_dir(dir)?;
        let mounted = run(
            "mount",
            &["-t", "tmpfs", "-o", SIZE, "tmpfs"]
                .map(AsRef::as_ref)
                .into_iter()
                .chain([dir.as_os_str()])
                .collect::<Vec<_>>(),
        );
        if let Err(error) = mounted {
            std::fs::remove_dir(dir)?;
            std::fs::rename(&aside, dir)?;
            return Err(error);
        }
        let disk = Self { dir: dir.to_owned() };
        let mut content = aside.clone().into_os_string();
        content.push("/.");
        run("cp", &["-a".as_ref(), content.as_os_str(), dir.as_os_str()])?;
        std::fs::remove_dir_all(&aside)?;
        Ok(disk)
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Fills it to the last byte.
    pub(super) fn fill(&self) -> Result<()> {
        let path = self.dir.join(BALLAST);
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&path).context("the ballast")?;
        let piece = vec![0; 1 << 20];
        // Ends with ENOSPC: that is what it is for.
        while file.write_all(&piece).is_ok() {}
        Ok(())
    }

    /// Gives the space back.
    pub(super) fn clear(&self) -> Result<()> {
        match std::fs::remove_file(self.dir.join(BALLAST)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("the ballast"),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[self.dir.as_os_str()]) {
            eprintln!("warning: {} stays mounted: {error:#}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_keeps_what_was_there_fills_up_and_goes() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("kept"), "x").unwrap();
        let Ok(disk) = SmallDisk::mount(&dir) else {
            assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"x");
            eprintln!("not allowed to mount here: the rest is skipped");
            return;
        };
        assert_eq!(std::fs::read(disk.dir().join("kept")).unwrap(), b"x");
        disk.fill().unwrap();
        assert!(std::fs::write(dir.join("more"), [1; 4096]).is_err());
        disk.clear().unwrap();
        std::fs::write(dir.join("more"), [1; 4096]).unwrap();
        drop(disk);
        assert!(!dir.join("kept").exists());
    }
}
