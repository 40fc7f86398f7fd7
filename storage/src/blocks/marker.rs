//! The marker file of a data directory, `hayloft-disk`: which cluster, node and disk it belongs to.
//!
//! A directory without a marker is taken into use only when it is empty, and never when this node already
//! knew a disk there: that would be an unmounted disk, and its blocks would seem lost. The marker is
//! written last, by rename, so a directory that has one is complete.

use super::error::OpenError;
use super::format::{BLOCKS, FORMAT, SEGMENTS, TMP, crc32c};
use super::index::DiskId;
use crate::disk::{Access, Disk};
use hayloft_common::id::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::io;

/// Name of the marker file.
pub const MARKER: &str = "hayloft-disk";
const MARKER_TMP: &str = "hayloft-disk.tmp";
const WHAT: &str = "Hayloft data directory; do not edit or remove";
/// No marker is longer, in bytes.
const MAX_MARKER: usize = 4096;

/// Whose data directories these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub node: NodeId,
}

/// The marker's content, as JSON so that people can read it.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    what: String,
    format: u16,
    cluster: ClusterId,
    node: NodeId,
    disk: String,
    crc: u32,
}

/// Only this much of a marker is promised for every future format.
#[derive(Deserialize)]
struct MarkerFormat {
    format: u16,
}

/// Why a data directory cannot be used.
#[derive(Debug)]
pub(super) enum MarkError {
    /// A mistake a person must settle: the daemon does not start.
    Refused(OpenError),
    /// The disk fails, or is not there: the daemon starts without it.
    Failed(String),
    /// There is a marker, and it can't be read.
    Damaged(String),
}

impl From<OpenError> for MarkError {
    fn from(error: OpenError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for MarkError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Marker {
    fn new(identity: &Identity, disk: DiskId) -> Self {
        let mut marker = Self {
            what: WHAT.into(),
            format: u16::from(FORMAT),
            cluster: identity.cluster,
            node: identity.node,
            disk: disk.to_string(),
            crc: 0,
        };
        marker.crc = marker.checksum();
        marker
    }

    fn checksum(&self) -> u32 {
        crc32c(format!("{} {} {} {}", self.format, self.cluster, self.node, self.disk).as_bytes())
    }

    fn check(&self, name: &str, identity: &Identity) -> Result<DiskId, MarkError> {
        let damaged = || MarkError::Damaged("its checksum is wrong".into());
        if self.crc != self.checksum() {
            return Err(damaged());
        }
        let disk = name.to_owned();
        if self.cluster != identity.cluster {
            let (found, expected) = (self.cluster, identity.cluster);
            return Err(OpenError::ForeignCluster { disk, found, expected }.into());
        }
        if self.node != identity.node {
            let (found, expected) = (self.node, identity.node);
            return Err(OpenError::ForeignNode { disk, found, expected }.into());
        }
        u32::from_str_radix(&self.disk, 16).map(DiskId).map_err(|_| damaged())
    }
}

/// The disk id of a directory that has a marker; `None` if it has none.
pub(super) fn read(disk: &dyn Disk, identity: &Identity) -> Result<Option<DiskId>, MarkError> {
    if !disk.exists(MARKER)? {
        return Ok(None);
    }
    let mut bytes = vec![0; MAX_MARKER];
    let len = disk.open(MARKER, Access::Read)?.read_at(&mut bytes, 0)?;
    let damaged = |e: serde_json::Error| MarkError::Damaged(e.to_string());
    let MarkerFormat { format } = serde_json::from_slice(&bytes[..len]).map_err(damaged)?;
    if format != u16::from(FORMAT) {
        // One flipped bit in that number is not a newer program.
        let as_ours = serde_json::from_slice::<Marker>(&bytes[..len]);
        if as_ours.is_ok_and(|marker| {
            let marker = Marker { format: u16::from(FORMAT), ..marker };
            marker.crc == marker.checksum()
        }) {
            return Err(MarkError::Damaged(format!("it names format {format}")));
        }
        let known = u16::from(FORMAT);
        return Err(OpenError::UnknownFormat { disk: disk.name(), found: format, known }.into());
    }
    let marker: Marker = serde_json::from_slice(&bytes[..len]).map_err(damaged)?;
    marker.check(&disk.name(), identity).map(Some)
}

/// Takes an empty directory into use under the name `id`.
pub(super) fn create(disk: &dyn Disk, identity: &Identity, id: DiskId) -> Result<(), MarkError> {
    disk.create_dir("")?;
    need_empty(disk)?;
    make_dirs(disk)?;
    write(disk, identity, id)
}

/// Writes the marker (anew).
pub(super) fn write(disk: &dyn Disk, identity: &Identity, id: DiskId) -> Result<(), MarkError> {
    let text = serde_json::to_vec_pretty(&Marker::new(identity, id))
        .map_err(|e| MarkError::Failed(e.to_string()))?;
    if disk.exists(MARKER_TMP)? {
        disk.remove(MARKER_TMP)?;
    }
    let file = disk.create(MARKER_TMP)?;
    file.write_at(&text, 0)?;
    file.sync()?;
    disk.rename(MARKER_TMP, MARKER)?;
    disk.sync_dir("")?;
    Ok(())
}

/// Makes sure the directories for blocks are there, durably.
pub(super) fn make_dirs(disk: &dyn Disk) -> io::Result<()> {
    let mut new_below = false;
    let mut new = false;
    for dir in [SEGMENTS, BLOCKS, TMP] {
        new |= disk.create_dir(dir)?;
    }
    for first in 0..=u8::MAX {
        new_below |= disk.create_dir(&format!("{BLOCKS}/{first:02x}"))?;
    }
    if new_below {
        disk.sync_dir(BLOCKS)?;
    }
    if new {
        disk.sync_dir("")?;
    }
    Ok(())
}

/// Only what an interrupted `create` leaves behind, and what file systems put there, may be present.
fn need_empty(disk: &dyn Disk) -> Result<(), MarkError> {
    for entry in disk.list("")? {
        match entry.name.as_str() {
            "lost+found" | MARKER_TMP | TMP => {}
            SEGMENTS | BLOCKS if entry.is_dir => {
                if let Some(entry) = first_file(disk, &entry.name)? {
                    return Err(OpenError::MarkerMissing { disk: disk.name(), entry }.into());
                }
            }
            _ => return Err(OpenError::NotEmpty { disk: disk.name(), entry: entry.name }.into()),
        }
    }
    Ok(())
}

/// The path of some file below a directory.
fn first_file(disk: &dyn Disk, dir: &str) -> io::Result<Option<String>> {
    for entry in disk.list(dir)? {
        let path = format!("{dir}/{}", entry.name);
        if !entry.is_dir {
            return Ok(Some(path));
        }
        if let Some(found) = first_file(disk, &path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
