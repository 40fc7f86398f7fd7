//! Digests of a body: MD5 for the ETag, and at most one of S3's extra checksums.
//!
//! MD5 is the slowest work per byte of a PUT (some 570 MB/s), so it runs beside hashing and sending: a task feeds
//! blocks to the blocking pool in their order, a few blocks behind the body at most.

use super::{DomainError, Gateway};
use crate::limits::DIGEST_QUEUE;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use hayloft_common::schema::{Checksum, ChecksumAlgorithm, ChecksumKind};
use md5::{Digest as _, Md5};
use sha1::Sha1;
use sha2::Sha256;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// One of S3's extra checksums, being computed.
pub(super) enum Sum {
    Crc(CrcAlgorithm, Box<crc_fast::Digest>),
    Sha1(Box<Sha1>),
    Sha256(Box<Sha256>),
}

fn crc_of(algorithm: ChecksumAlgorithm) -> Option<CrcAlgorithm> {
    match algorithm {
        ChecksumAlgorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
        ChecksumAlgorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
        ChecksumAlgorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => None,
    }
}

/// The raw digest of a CRC: big-endian, 8 bytes for 64 bits, else 4.
fn crc_bytes(algorithm: CrcAlgorithm, value: u64) -> Vec<u8> {
    match algorithm {
        CrcAlgorithm::Crc64Nvme => value.to_be_bytes().to_vec(),
        _ => (value as u32).to_be_bytes().to_vec(),
    }
}

impl Sum {
    pub(super) fn new(algorithm: ChecksumAlgorithm) -> Self {
        match (crc_of(algorithm), algorithm) {
            (Some(crc), _) => Self::Crc(crc, Box::new(crc_fast::Digest::new(crc))),
            (None, ChecksumAlgorithm::Sha1) => Self::Sha1(Box::default()),
            (None, _) => Self::Sha256(Box::default()),
        }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Crc(_, digest) => digest.update(data),
            Self::Sha1(digest) => digest.update(data),
            Self::Sha256(digest) => digest.update(data),
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc(algorithm, digest) => crc_bytes(algorithm, digest.finalize()),
            Self::Sha1(digest) => digest.finalize().to_vec(),
            Self::Sha256(digest) => digest.finalize().to_vec(),
        }
    }
}

/// Whether checksums of parts can be combined to one of the whole object.
pub(super) fn combines(algorithm: ChecksumAlgorithm) -> bool {
    crc_of(algorithm).is_some()
}

/// The checksum of parts put together, from theirs and their lengths. `None` for algorithms that don't combine.
pub(super) fn combine(algorithm: ChecksumAlgorithm, parts: &[(Vec<u8>, u64)]) -> Option<Vec<u8>> {
    let crc = crc_of(algorithm)?;
    let number = |raw: &[u8]| raw.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let mut parts = parts.iter();
    let first = parts.next().map_or_else(|| crc_fast::Digest::new(crc).finalize(), |(raw, _)| number(raw));
    let value = parts.fold(first, |sum, (raw, len)| {
        // Nothing behind changes nothing (and the package's combination of length 0 need not be relied upon).
        if *len == 0 { sum } else { crc_fast::checksum_combine(crc, sum, number(raw), *len) }
    });
    Some(crc_bytes(crc, value))
}

/// The checksum over the checksums of the parts.
pub(super) fn composite<'a>(algorithm: ChecksumAlgorithm, parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sum = Sum::new(algorithm);
    parts.for_each(|raw| sum.update(raw));
    sum.finish()
}

/// The ETag of a completed upload.
pub(super) fn multipart_etag<'a>(md5s: impl ExactSizeIterator<Item = &'a [u8; 16]>) -> String {
    let count = md5s.len();
    let mut md5 = Md5::new();
    md5s.for_each(|m| md5.update(m));
    format!("{}-{count}", hex::encode(md5.finalize()))
}

/// What is known of a body once it was seen whole.
#[derive(Clone, Debug)]
pub(super) struct Digests {
    pub(super) md5: [u8; 16],
    pub(super) checksum: Option<Checksum>,
}

/// Digests being computed.
pub(super) struct Digesting {
    md5: Md5,
    sum: Option<(ChecksumAlgorithm, Sum)>,
}

impl Digesting {
    pub(super) fn new(algorithm: Option<ChecksumAlgorithm>) -> Self {
        Self { md5: Md5::new(), sum: algorithm.map(|a| (a, Sum::new(a))) }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
        if let Some((_, sum)) = &mut self.sum {
            sum.update(data);
        }
    }

    pub(super) fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finalize().into(),
            checksum: self.sum.map(|(algorithm, sum)| Checksum {
                algorithm,
                kind: ChecksumKind::FullObject,
                value: sum.finish(),
            }),
        }
    }
}

/// A task that digests blocks in the order given. Dropping it ends the task.
pub(super) struct DigestTask {
    blocks: mpsc::Sender<Bytes>,
    result: oneshot::Receiver<Digesting>,
}

impl DigestTask {
    pub(super) fn start(gateway: &Arc<Gateway>, mut state: Digesting) -> Self {
        let (blocks, mut queue) = mpsc::channel::<Bytes>(DIGEST_QUEUE);
        let (done, result) = oneshot::channel();
        let env = gateway.env.clone();
        gateway.env.spawn("digest", async move {
            while let Some(block) = queue.recv().await {
                let step = env.run_blocking(move || {
                    state.update(&block);
                    state
                });
                match step.await {
                    Ok(next) => state = next,
                    Err(_) => return,
                }
            }
            // Nobody may wait any more: then the body failed.
            let _ = done.send(state);
        });
        Self { blocks, result }
    }

    /// Hands over the next block; waits while too many are queued.
    pub(super) async fn push(&self, block: Bytes) -> Result<(), DomainError> {
        self.blocks.send(block).await.map_err(|_| DomainError::from(hayloft_common::env::Dropped))
    }

    pub(super) async fn finish(self) -> Result<Digests, DomainError> {
        drop(self.blocks);
        let state = self.result.await.map_err(|_| DomainError::from(hayloft_common::env::Dropped))?;
        Ok(state.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(algorithm: ChecksumAlgorithm, data: &[u8]) -> Vec<u8> {
        let mut sum = Sum::new(algorithm);
        sum.update(data);
        sum.finish()
    }

    #[test]
    fn checksums_are_the_published_ones() {
        let check = b"123456789";
        assert_eq!(hex::encode(sum(ChecksumAlgorithm::Crc32, check)), "cbf43926");
        assert_eq!(hex::encode(sum(ChecksumAlgorithm::Crc32c, check)), "e3069283");
        assert_eq!(hex::encode(sum(ChecksumAlgorithm::Crc64Nvme, check)), "ae8b14860a799888");
        assert_eq!(
            hex::encode(sum(ChecksumAlgorithm::Sha1, b"abc")),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert_eq!(
            hex::encode(sum(ChecksumAlgorithm::Sha256, b"")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn combining_crcs_of_parts_gives_the_crc_of_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
        ) {
            for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme] {
                let sums: Vec<_> = parts.iter().map(|p| (sum(algorithm, p), p.len() as u64)).collect();
                prop_assert_eq!(combine(algorithm, &sums), Some(sum(algorithm, &parts.concat())));
            }
        }
    }
}
