//! Room for metadata: writes are refused in good time before the file system is full.
//!
//! The engine stops for good when a write of its journal fails (it can't know what the disk kept), and it needs
//! room to tidy up. So the free space is watched, and below a reserve writes get `NoSpace`, a state that ends by
//! itself when space is freed. Reads go on.

use crate::disk::Disk;
use hayloft_common::env::Env;
use hayloft_proto::error::{RemoteCode, RpcError};
use parking_lot::Mutex;
use std::sync::Arc;

/// Smallest and largest reserve, in bytes; in between it is a hundredth of the file system.
const RESERVE: (u64, u64) = (4 << 20, 512 << 20);

/// The free space as last seen.
pub struct MetadataSpace {
    disk: Option<Arc<dyn Disk>>,
    /// Available and total bytes.
    seen: Mutex<Option<(u64, u64)>>,
}

impl MetadataSpace {
    /// Watches the file system of `disk`; without one nothing is refused.
    pub fn new(disk: Option<Arc<dyn Disk>>) -> Self {
        Self { disk, seen: Mutex::default() }
    }

    /// Looks again.
    pub async fn refresh(&self, env: &Env) {
        let Some(disk) = self.disk.clone() else { return };
        match env.run_blocking(move || disk.space()).await {
            Ok(Ok(space)) => *self.seen.lock() = Some((space.available, space.total)),
            Ok(Err(error)) => tracing::warn!(%error, "the free space of metadata_dir could not be read"),
            Err(_) => {}
        }
    }

    /// Available and total bytes, if known.
    pub fn now(&self) -> Option<(u64, u64)> {
        *self.seen.lock()
    }

    /// Refuses a write while there is too little room.
    pub fn check(&self) -> Result<(), RpcError> {
        match self.now() {
            Some((available, total)) if available < reserve(total) => {
                let text = format!("metadata_dir has {available} bytes left of {total}; free some space");
                Err(RpcError::remote(RemoteCode::NoSpace, text))
            }
            _ => Ok(()),
        }
    }
}

fn reserve(total: u64) -> u64 {
    (total / 100).clamp(RESERVE.0, RESERVE.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_the_disk_within_bounds() {
        assert_eq!(reserve(48 << 20), 4 << 20);
        assert_eq!(reserve(10 << 30), (10 << 30) / 100);
        assert_eq!(reserve(4 << 40), 512 << 20);
    }

    #[test]
    fn writes_are_refused_below_the_reserve_and_taken_again_above() {
        let space = MetadataSpace::new(None);
        assert!(space.check().is_ok());
        *space.seen.lock() = Some((1 << 20, 48 << 20));
        let error = space.check().unwrap_err();
        assert!(matches!(error, RpcError::Remote { code: RemoteCode::NoSpace, .. }));
        *space.seen.lock() = Some((5 << 20, 48 << 20));
        assert!(space.check().is_ok());
    }
}
