//! What can go wrong with blocks, and what to do about it.

use super::format::FormatError;
use super::index::DiskId;
use hayloft_common::block::EnvelopeError;
use hayloft_common::hash::Hash;
use hayloft_common::id::{ClusterId, NodeId};
use std::io;

/// Why a block could not be put, read or deleted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlockError {
    /// The sender's fault: the bytes do not belong to the hash. Nothing was written.
    #[error("block {hash} refused: {reason}")]
    Refused { hash: Hash, reason: EnvelopeError },
    /// The sender's fault.
    #[error("block of {len} bytes refused: at most {max} are accepted")]
    TooLarge { len: usize, max: usize },
    /// Too many puts wait for this disk; try again later or elsewhere.
    #[error("{disk}: too many blocks wait to be written")]
    Busy { disk: String },
    #[error("no space: every data disk that takes writes is full; free space or add a disk")]
    NoSpace,
    #[error("no data disk takes writes: {states}")]
    ReadOnly { states: String },
    #[error("{disk}: {action} failed: {error}")]
    Io { disk: String, action: &'static str, kind: io::ErrorKind, error: String },
    /// This copy is damaged: read another and put it again.
    #[error("block {hash} on {disk} is damaged: {reason}")]
    Corrupt { hash: Hash, disk: String, reason: FormatError },
    /// This copy is lost: read another and put it again.
    #[error("block {hash} is not on {disk} where it should be")]
    Missing { hash: Hash, disk: String },
    /// The disk was removed from the configuration, or could not be used when the daemon started.
    #[error("data disk {disk} is not in use")]
    UnknownDisk { disk: DiskId },
    /// The disk was set aside.
    #[error("{disk}: {reason}")]
    DiskFailed { disk: String, reason: String },
    #[error("the node is stopping")]
    Stopping,
}

impl BlockError {
    pub(super) fn io(disk: &str, action: &'static str, error: &io::Error) -> Self {
        Self::Io { disk: disk.to_owned(), action, kind: error.kind(), error: error.to_string() }
    }

    /// Whether another disk of this node may succeed where this one did not.
    pub(super) fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Busy { .. } | Self::DiskFailed { .. } | Self::NoSpace)
    }

    /// Whether this node's copy is of no use and should be fetched again from another node.
    pub fn is_lost_copy(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Missing { .. } | Self::UnknownDisk { .. })
    }
}

/// Why the data directories are refused when the daemon starts. Each is a mistake of configuration that a
/// person must settle; a disk that merely fails is not an error here (see `DiskStats::health`).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no data directory is configured: set data_dir")]
    NoDisks,
    #[error(
        "{disk} belongs to cluster {found}, this node is in cluster {expected}: check data_dir and rpc_secret"
    )]
    ForeignCluster { disk: String, found: ClusterId, expected: ClusterId },
    #[error("{disk} belongs to node {found}, this is node {expected}: check data_dir and metadata_dir")]
    ForeignNode { disk: String, found: NodeId, expected: NodeId },
    #[error("{disk} was written in format {found}, this program knows formats up to {known}: upgrade it")]
    UnknownFormat { disk: String, found: u16, known: u16 },
    #[error("{disk} is not empty (it holds `{entry}`) and is no Hayloft data directory: choose an empty one")]
    NotEmpty { disk: String, entry: String },
    #[error(
        "{disk} holds blocks (`{entry}`) but no `hayloft-disk` file: restore that file, or move the blocks away"
    )]
    MarkerMissing { disk: String, entry: String },
    #[error("{first} and {second} are the same data disk {id}, or copies of it: remove one from data_dir")]
    SameDisk { first: String, second: String, id: DiskId },
    #[error("{what} is {value}, allowed is {allowed}")]
    BadConfig { what: &'static str, value: u64, allowed: String },
}
