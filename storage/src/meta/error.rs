//! Why the metadata engine could not do what was asked.

use hayloft_common::id::{ClusterId, NodeId};
use std::path::PathBuf;

/// A failure of the metadata engine. Cheap to clone: one failed sync answers many writers.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetaError {
    #[error("metadata: {doing} failed: {reason}; check the disk and its free space, then restart the node")]
    Io { doing: &'static str, reason: String },
    #[error(
        "metadata: an earlier write or sync failed, so no more writes are taken; check the disk, then restart the node"
    )]
    Poisoned,
    #[error(
        "metadata: {what} is damaged: {reason}; restore the directory or let the node start empty and resync"
    )]
    Corrupt { what: &'static str, reason: String },
    #[error(
        "metadata: the directory has format {found}, this program reads up to format {known}; upgrade it"
    )]
    UnknownFormat { found: u16, known: u16 },
    #[error(
        "metadata: {path} was written by another major version of the engine ({found}); use the release that wrote it"
    )]
    UnknownEngineFormat { path: PathBuf, found: String },
    #[error(
        "metadata: the directory belongs to cluster {found}, not {expected}; check `rpc_secret` and `metadata_dir`"
    )]
    OtherCluster { found: ClusterId, expected: ClusterId },
    #[error(
        "metadata: the directory belongs to node {found}, but this node's key is that of {expected}; \
         check `metadata_dir` and the key file"
    )]
    OtherNode { found: NodeId, expected: NodeId },
    #[error(
        "metadata: {path} is in use by another process; stop it, or give this one its own `metadata_dir`"
    )]
    Locked { path: PathBuf },
    #[error("metadata: the engine was closed")]
    Closed,
}

impl MetaError {
    pub(crate) fn corrupt(what: &'static str, reason: impl ToString) -> Self {
        Self::Corrupt { what, reason: reason.to_string() }
    }
}
