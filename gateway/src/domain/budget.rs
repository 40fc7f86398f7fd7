//! Memory for block data: claimed before it is filled, released when the last user of the bytes is done.
//!
//! A claim travels inside the `Bytes` it pays for ([`hold`]), so that sends which go on in the background, digests
//! and HTTP's own buffers all count until they let go. Uploads and downloads have a budget each: neither can
//! starve the other.

use super::DomainError;
use crate::limits::MEMORY_WAIT;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit.
const PAGE: usize = 4096;

/// A number of bytes that may be in use.
pub(super) struct Budget {
    pages: Arc<Semaphore>,
    total: usize,
    what: &'static str,
}

/// Bytes taken from a budget until dropped.
pub(super) struct Claim(OwnedSemaphorePermit);

impl Budget {
    pub(super) fn new(bytes: usize, what: &'static str) -> Self {
        let total = (bytes / PAGE).clamp(1, u32::MAX as usize);
        Self { pages: Arc::new(Semaphore::new(total)), total, what }
    }

    /// More than there is in all counts as all there is.
    fn pages(&self, bytes: usize) -> u32 {
        bytes.div_ceil(PAGE).clamp(1, self.total) as u32
    }

    /// Waits for `bytes`, in order of arrival; `Overloaded` when none came free for [`MEMORY_WAIT`].
    pub(super) async fn claim(&self, bytes: usize) -> Result<Claim, DomainError> {
        let wait = self.pages.clone().acquire_many_owned(self.pages(bytes));
        match tokio::time::timeout(MEMORY_WAIT, wait).await {
            Ok(Ok(permit)) => Ok(Claim(permit)),
            Ok(Err(_)) | Err(_) => Err(DomainError::Overloaded { what: self.what }),
        }
    }

    /// `bytes`, if they are free and nobody waits.
    pub(super) fn try_claim(&self, bytes: usize) -> Option<Claim> {
        self.pages.clone().try_acquire_many_owned(self.pages(bytes)).ok().map(Claim)
    }

    /// Bytes not in use.
    pub(super) fn free(&self) -> usize {
        self.pages.available_permits() * PAGE
    }
}

impl Claim {
    /// Splits off a claim for `bytes`, if it has as much.
    pub(super) fn split(&mut self, bytes: usize) -> Option<Claim> {
        self.0.split(bytes.div_ceil(PAGE)).map(Claim)
    }
}

struct Held<T> {
    data: T,
    _claim: Claim,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}

/// `data` as bytes that give `claim` back when the last clone is dropped. Copies nothing.
pub(super) fn hold(data: impl AsRef<[u8]> + Send + 'static, claim: Claim) -> Bytes {
    Bytes::from_owner(Held { data, _claim: claim })
}
