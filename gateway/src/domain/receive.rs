//! Taking in a body: cut in blocks, hash, compress, send, digest; small ones are kept whole for their row.
//!
//! Copies of a byte: one, from the pieces HTTP gives into the block's buffer (which is the raw envelope already: its
//! kind byte is put in front); a second one only if the block compresses. Hashing and compressing run in the blocking
//! pool, digests in a task of their own. Memory: the buffer and room for its compressed form are claimed before a
//! block is begun; claims travel with the bytes. Bodies known to be small have a budget of their own, so that they
//! never queue behind large ones. Allocations: two or three a block, and the RPC's.
//!
//! Round trips: each block one, [`PUT_BLOCKS_IN_FLIGHT`] at once, while the body comes in; so 1 R behind the last
//! byte. A manifest (more than `MAX_ROW_BLOCKS` blocks) is written while the last blocks are under way.
//!
//! Until its version is committed nothing of this is visible. References are renewed every [`HEARTBEAT`], so that a
//! slow upload is not taken for an abandoned one; one whose references can't be renewed is given up. An error drops what is under way; what was stored is found by age.

use super::budget::{Claim, hold};
use super::digest::{DigestTask, Digesting, Digests};
use super::moment::Moment;
use super::objects::not_fresh;
use super::store::{StoreError, row_bytes};
use super::{Body, BodyChecks, BodyError, BodyFault, DomainError, Expected, Gateway};
use crate::limits::{COMMIT_MAX_AGE, HEARTBEAT, HEARTBEAT_RETRY, PUT_BLOCKS_IN_FLIGHT, RENEWAL_MAX_AGE};
use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hayloft_common::block;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::limits::{MAX_PUT_SIZE, MAX_ROW_BLOCKS};
use hayloft_common::map::HashMap;
use hayloft_common::schema::{BlockEntry, BlockOwner, BlockRefRow, Checksum, ChecksumAlgorithm};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Work on less than this is done in line: handing it to another thread costs more.
const IN_LINE: usize = 32 << 10;

/// Where the bytes of a body went.
pub(super) enum Content {
    Inline(Vec<u8>),
    Blocks(Referred),
}

/// Blocks in order, durable, with references of one version; with manifest rows if more than `MAX_ROW_BLOCKS`.
pub(super) struct Referred {
    pub(super) blocks: Vec<BlockEntry>,
    /// No reference was written or renewed before this.
    pub(super) since: Moment,
}

impl Referred {
    /// Whether the version may be committed as it is: no node can have begun to give up its references.
    pub(super) fn is_fresh(&self, env: &Env) -> bool {
        self.blocks.is_empty() || self.since.age(env) <= COMMIT_MAX_AGE
    }
}

/// A body that came in whole and passed its checks.
pub(super) struct Received {
    pub(super) size: u64,
    pub(super) digests: Digests,
    pub(super) content: Content,
}

/// For whom blocks are stored.
pub(super) struct Target {
    pub(super) version: VersionId,
    pub(super) owner: BlockOwner,
    /// Bodies up to this many bytes are kept whole; 0: never.
    pub(super) inline_max: usize,
    /// Extra checksum to compute.
    pub(super) algorithm: Option<ChecksumAlgorithm>,
}

/// A block being filled: the kind byte of a raw envelope, then plain bytes.
struct Filling {
    envelope: Vec<u8>,
    capacity: usize,
    claim: Claim,
}

impl Filling {
    /// Moves from `piece` what fits.
    fn take(&mut self, piece: &mut Bytes) {
        let n = (self.capacity - self.envelope.len()).min(piece.len());
        if self.envelope.len() + n > self.envelope.capacity() {
            // To the full size at once: growing by doubling would end up beyond it.
            self.envelope.reserve_exact(self.capacity - self.envelope.len());
        }
        self.envelope.extend_from_slice(&piece[..n]);
        piece.advance(n);
    }

    fn is_full(&self) -> bool {
        self.envelope.len() == self.capacity
    }
}

/// Blocks on their way, and those that are there.
#[derive(Default)]
struct Sends {
    calls: FuturesUnordered<BoxFuture<'static, Result<Option<Hash>, DomainError>>>,
    /// Every block sent: since when it is on its way, `None` when it is stored.
    sent: HashMap<Hash, Option<Moment>>,
}

impl Sends {
    /// Awaits the end of a send. `None`: none is under way.
    async fn next(&mut self) -> Option<Result<(), DomainError>> {
        let sent = self.calls.next().await?;
        Some(sent.map(|block| {
            if let Some(block) = block {
                self.sent.insert(block, None);
            }
        }))
    }

    /// The earliest time at which the reference of a block that is still on its way may have been written.
    fn oldest(&self) -> Option<Moment> {
        self.sent.values().flatten().copied().reduce(Moment::min)
    }
}

/// Awaits `work` while sends go on; a failed send ends it.
async fn beside<T>(sends: &mut Sends, work: impl Future<Output = T>) -> Result<T, DomainError> {
    let mut work = pin!(work);
    loop {
        // Biased: sends are few and each ends once, so they can't keep `work` from its turn.
        tokio::select! { biased;
            Some(sent) = sends.next() => sent?,
            out = &mut work => return Ok(out),
        }
    }
}

struct Receiver<'a> {
    gateway: &'a Arc<Gateway>,
    target: &'a Target,
    sends: Sends,
    digests: Option<DigestTask>,
    entries: Vec<BlockEntry>,
    /// No reference of a block that is stored was written or renewed before this.
    since: Moment,
    /// When to renew them next (of `Env::now`).
    renew_at: Duration,
}

/// Takes in a body. `checks.checksum` is compared with the digest of [`Target::algorithm`].
pub(super) async fn receive(
    gateway: &Arc<Gateway>,
    target: &Target,
    checks: &BodyChecks,
    mut body: Body,
) -> Result<Received, DomainError> {
    if let Some(size) = checks.length.filter(|l| *l > MAX_PUT_SIZE) {
        return Err(DomainError::EntityTooLarge { size, max: MAX_PUT_SIZE });
    }
    let mut receiver = Receiver {
        gateway,
        target,
        sends: Sends::default(),
        digests: None,
        entries: Vec::new(),
        since: Moment::now(&gateway.env),
        renew_at: gateway.env.now() + HEARTBEAT,
    };
    let mut size = 0u64;
    let mut filling: Option<Filling> = None;
    while let Some(mut piece) = receiver.next_piece(&mut body).await? {
        size += piece.len() as u64;
        check_length(size, checks.length)?;
        while !piece.is_empty() {
            if filling.as_ref().is_some_and(Filling::is_full) {
                receiver.send(filling.take()).await?;
            }
            let mut block = match filling.take() {
                Some(block) => block,
                None => receiver.begin(checks.length.map(|l| l - (size - piece.len() as u64))).await?,
            };
            block.take(&mut piece);
            filling = Some(block);
        }
    }
    if let Some(want) = checks.length.filter(|want| *want != size) {
        return Err(DomainError::IncompleteBody { got: size, want });
    }
    let (digests, content) = receiver.finish(size, filling).await?;
    check_digests(checks, &digests)?;
    Ok(Received { size, digests, content })
}

fn check_length(size: u64, announced: Option<u64>) -> Result<(), DomainError> {
    if announced.is_some_and(|l| size > l) {
        let reason = format!("the body has more than the {} bytes announced", announced.unwrap_or_default());
        return Err(BodyError { fault: BodyFault::TooLarge, reason }.into());
    }
    if size > MAX_PUT_SIZE {
        return Err(DomainError::EntityTooLarge { size, max: MAX_PUT_SIZE });
    }
    Ok(())
}

fn check_digests(checks: &BodyChecks, digests: &Digests) -> Result<(), DomainError> {
    if checks.md5.is_some_and(|md5| md5 != digests.md5) {
        return Err(DomainError::BadDigest);
    }
    let Some(request) = &checks.checksum else { return Ok(()) };
    let expected = match &request.expected {
        Expected::Unknown => return Ok(()),
        Expected::Value(value) => value,
        Expected::Trailer(trailer) => trailer.get().ok_or(DomainError::MissingTrailer)?,
    };
    match &digests.checksum {
        Some(Checksum { algorithm, value, .. }) if *algorithm == request.algorithm => {
            if value == expected {
                Ok(())
            } else {
                let (expected, found) = (hex::encode(expected), hex::encode(value));
                Err(DomainError::BadChecksum { algorithm: *algorithm, expected, found })
            }
        }
        other => Err(DomainError::ChecksumMismatch { wanted: other.as_ref().map(|c| c.algorithm) }),
    }
}

impl Receiver<'_> {
    /// The next piece of the body, while sends go on and references are renewed.
    async fn next_piece(&mut self, body: &mut Body) -> Result<Option<Bytes>, DomainError> {
        loop {
            let left = self.renew_at.saturating_sub(self.gateway.env.now());
            // At its end the time-out still polls the body first: a body that never waits must not put off a renewal.
            if !left.is_zero() {
                let next = tokio::time::timeout(left, body.next());
                if let Ok(piece) = beside(&mut self.sends, next).await? {
                    return Ok(piece.transpose()?);
                }
            }
            self.renew().await?;
        }
    }

    /// Tells the storage nodes that this upload lives.
    async fn renew(&mut self) -> Result<(), DomainError> {
        let stored: Vec<BlockEntry> = {
            let sent = &self.sends.sent;
            self.entries.iter().filter(|entry| sent.get(&entry.hash) == Some(&None)).copied().collect()
        };
        // What is on its way may have been written since it was sent, but is not renewed.
        let oldest = self.sends.oldest();
        let gateway = self.gateway.clone();
        let renewal = gateway.renew(self.target.version, &self.target.owner, &stored, self.since);
        let renewed = beside(&mut self.sends, renewal).await??;
        self.renew_at = gateway.env.now() + if renewed.is_some() { HEARTBEAT } else { HEARTBEAT_RETRY };
        if let Some(since) = renewed {
            self.since = oldest.map_or(since, |oldest| oldest.min(since));
        }
        Ok(())
    }

    /// Claims memory for the next block. `left`: bytes still to come, if known.
    async fn begin(&mut self, left: Option<u64>) -> Result<Filling, DomainError> {
        let config = &self.gateway.config;
        let plain = left.map_or(config.block_size, |left| left.clamp(1, config.block_size as u64) as usize);
        let memory = match left {
            Some(left) if left <= config.inline_max as u64 => &self.gateway.small_memory,
            _ => &self.gateway.upload_memory,
        };
        let claim = memory.claim(2 * plain);
        let claim = beside(&mut self.sends, claim).await??;
        let capacity = plain + block::OVERHEAD;
        // Without a known length most bodies are small: let it grow.
        let mut envelope = Vec::with_capacity(if left.is_some() { capacity } else { capacity.min(IN_LINE) });
        envelope.push(block::RAW);
        Ok(Filling { envelope, capacity, claim })
    }

    /// Hashes, seals and sends a block.
    async fn send(&mut self, filling: Option<Filling>) -> Result<(), DomainError> {
        let Some(Filling { envelope, mut claim, .. }) = filling else { return Ok(()) };
        let len = envelope.len() - block::OVERHEAD;
        let raw = match claim.split(envelope.len().min(self.gateway.config.block_size)) {
            Some(part) => hold(envelope, part),
            None => Bytes::from(envelope),
        };
        let plain = raw.slice(block::OVERHEAD..);
        let digests = self
            .digests
            .get_or_insert_with(|| DigestTask::start(self.gateway, Digesting::new(self.target.algorithm)));
        beside(&mut self.sends, digests.push(plain.clone())).await??;
        let level = self.gateway.config.compression;
        let seal = move || {
            let hash = Hash::of(&plain);
            let packed = level.map(|_| block::seal(&plain, level)).filter(|e| e.first() != Some(&block::RAW));
            (hash, packed)
        };
        let (hash, packed) = if len <= IN_LINE {
            seal()
        } else {
            beside(&mut self.sends, self.gateway.env.run_blocking(seal)).await??
        };
        let sealed = match packed {
            Some(packed) => match claim.split(packed.len()) {
                Some(part) => hold(packed, part),
                None => packed,
            },
            None => raw,
        };
        drop(claim);
        self.entries.push(BlockEntry { hash, len: len as u32 });
        if !self.sends.sent.contains_key(&hash) {
            self.put(hash, sealed).await?;
        }
        Ok(())
    }

    async fn put(&mut self, hash: Hash, envelope: Bytes) -> Result<(), DomainError> {
        while self.sends.calls.len() >= PUT_BLOCKS_IN_FLIGHT {
            if let Some(sent) = self.sends.next().await {
                sent?;
            }
        }
        self.sends.sent.insert(hash, Some(Moment::now(&self.gateway.env)));
        let reference = row_bytes(&BlockRefRow {
            block: hash,
            version: self.target.version,
            created_ms: self.gateway.env.wall_millis(),
            owner: self.target.owner.clone(),
            deleted: false,
        });
        let store = self.gateway.store.clone();
        self.sends.calls.push(Box::pin(async move {
            store.put_block(hash, reference, envelope).await?;
            Ok(Some(hash))
        }));
        Ok(())
    }

    /// The body has ended: keeps it whole if small, else sends the rest and waits until all is durable.
    async fn finish(mut self, size: u64, last: Option<Filling>) -> Result<(Digests, Content), DomainError> {
        if self.entries.is_empty() && size <= self.target.inline_max as u64 {
            let mut envelope = last.map_or_else(|| vec![block::RAW], |filling| filling.envelope);
            envelope.drain(..block::OVERHEAD);
            let mut digesting = Digesting::new(self.target.algorithm);
            digesting.update(&envelope);
            return Ok((digesting.finish(), Content::Inline(envelope)));
        }
        self.send(last).await?;
        if self.entries.len() > MAX_ROW_BLOCKS {
            let (gateway, version, entries) =
                (self.gateway.clone(), self.target.version, self.entries.clone());
            self.sends.calls.push(Box::pin(async move {
                gateway.write_manifest(version, &entries).await?;
                Ok(None)
            }));
        }
        while let Some(sent) = self.sends.next().await {
            sent?;
        }
        let digests = match self.digests {
            Some(task) => task.finish().await?,
            None => Digesting::new(self.target.algorithm).finish(),
        };
        Ok((digests, Content::Blocks(Referred { blocks: self.entries, since: self.since })))
    }
}

impl Gateway {
    /// Renews the references of a version that is not committed yet; they are fresh since `since`. Answers since when
    /// they are fresh now; `None` if it failed for once and should be tried again soon. Fails when they are too old to
    /// go on with.
    async fn renew(
        &self,
        version: VersionId,
        owner: &BlockOwner,
        blocks: &[BlockEntry],
        since: Moment,
    ) -> Result<Option<Moment>, DomainError> {
        let renewed = self.try_refer(version, owner, blocks).await;
        let age = since.age(&self.env);
        match renewed {
            // A renewal that comes so late may meet nodes that have begun to give the references up.
            Ok(_) if age > COMMIT_MAX_AGE => Err(not_fresh()),
            Ok(since) => Ok(Some(since)),
            Err(error) if age > RENEWAL_MAX_AGE || !matches!(error, StoreError::Unavailable(_)) => {
                tracing::warn!(%error, ?age, "references of an upload under way could not be renewed; given up");
                Err(not_fresh())
            }
            Err(error) => {
                // The references last much longer than one beat.
                tracing::warn!(%error, "references of an upload under way could not be renewed; tried again soon");
                Ok(None)
            }
        }
    }

    /// Awaits `work` while the references of a version that is not committed yet are renewed.
    pub(super) async fn while_renewing<T>(
        &self,
        version: VersionId,
        owner: &BlockOwner,
        referred: &mut Referred,
        work: impl Future<Output = Result<T, DomainError>>,
    ) -> Result<T, DomainError> {
        let mut work = pin!(work);
        let mut pause = HEARTBEAT;
        loop {
            if let Ok(done) = tokio::time::timeout(pause, &mut work).await {
                return done;
            }
            let renewed = self.renew(version, owner, &referred.blocks, referred.since).await?;
            pause = if renewed.is_some() { HEARTBEAT } else { HEARTBEAT_RETRY };
            referred.since = renewed.unwrap_or(referred.since);
        }
    }
}
