//! Giving out bytes: the blocks of a range in order, verified, fetched ahead of the client.
//!
//! Each block is one call to the nearest node that has a good copy, tried at others when missing, damaged or slow,
//! in the middle of the stream. Up to [`GET_BLOCKS_AHEAD`] blocks are fetched by tasks of their own, so that the
//! network works while the client reads. Memory: the block the client waits for is always claimed for, further ones
//! only while memory is free. Copies: none for a raw block (the bytes received are given on), one for a compressed
//! one. Allocations: some five a block. A block list in manifest rows is read chunk by chunk (1 R each GiB).

use super::budget::{Claim, hold};
use super::{DomainError, Gateway};
use crate::limits::GET_BLOCKS_AHEAD;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use hayloft_common::env::TaskHandle;
use hayloft_common::id::VersionId;
use hayloft_common::limits::MANIFEST_CHUNK;
use hayloft_common::schema::{BlockEntry, ObjectData};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Tries of a block while too few nodes answer.
const FETCH_TRIES: u32 = 4;

/// A block on its way. Dropping it stops the fetch.
pub(super) struct Fetch {
    pub(super) entry: BlockEntry,
    result: oneshot::Receiver<Result<Bytes, DomainError>>,
    task: TaskHandle,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fetch {
    pub(super) fn start(gateway: &Arc<Gateway>, entry: BlockEntry, claim: Claim) -> Self {
        let (done, result) = oneshot::channel();
        let fetcher = gateway.clone();
        let task = gateway.env.spawn("block fetch", async move {
            let block = fetcher.fetch(entry).await.map(|plain| hold(plain, claim));
            // The client may have gone: then nobody waits.
            let _ = done.send(block);
        });
        Self { entry, result, task }
    }

    async fn wait(mut self) -> Result<Bytes, DomainError> {
        match (&mut self.result).await {
            Ok(block) => block,
            Err(_) => Err(DomainError::Internal("a block fetch was stopped".into())),
        }
    }
}

impl Gateway {
    /// A block's plain bytes. Tries again when nodes are out of reach for a moment.
    pub(super) async fn fetch(&self, entry: BlockEntry) -> Result<Bytes, DomainError> {
        let mut tries = 0;
        loop {
            match self.store.get_block(entry.hash, entry.len as usize).await.map_err(DomainError::from) {
                Ok(plain) if plain.len() == entry.len as usize => return Ok(plain),
                Ok(_) => {
                    let detail = format!("block {} has another length than its object says", entry.hash);
                    return Err(DomainError::Damaged { detail });
                }
                Err(error) if error.is_retryable() && tries + 1 < FETCH_TRIES => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50 << tries)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Which piece of which block comes next.
struct Plan {
    version: VersionId,
    /// Blocks known and not yet planned; the first begins at `at`.
    blocks: VecDeque<BlockEntry>,
    at: u64,
    /// The next manifest row to read, and how many there are.
    chunk: u32,
    chunks: u32,
    range: Range<u64>,
}

/// A part of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) entry: BlockEntry,
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Piece {
    pub(super) fn is_whole(&self) -> bool {
        self.from == 0 && self.to == self.entry.len as usize
    }
}

impl Plan {
    fn new(version: VersionId, data: &ObjectData, range: Range<u64>) -> Self {
        // An empty range has no piece, not an empty one.
        let range = if range.is_empty() { 0..0 } else { range };
        let plan = |blocks: &[BlockEntry], at, chunk, chunks| Self {
            version,
            blocks: blocks.iter().copied().collect(),
            at,
            chunk,
            chunks,
            range: range.clone(),
        };
        match data {
            ObjectData::Inline(_) => plan(&[], 0, 0, 0),
            ObjectData::Blocks(blocks) => plan(blocks, 0, 0, 0),
            ObjectData::Manifest { chunk_offsets, first } => {
                let chunks = chunk_offsets.len() as u32;
                let covered: u64 = first.iter().map(|b| u64::from(b.len)).sum();
                // The copy of the first blocks serves while the range begins in it; else the right row is read.
                if range.start < covered {
                    plan(first, 0, 0, chunks)
                } else {
                    let chunk = chunk_offsets.partition_point(|o| *o <= range.start).saturating_sub(1);
                    plan(&[], chunk_offsets.get(chunk).copied().unwrap_or(0), chunk as u32, chunks)
                }
            }
        }
    }

    /// The next piece among the blocks known.
    fn pop(&mut self) -> Option<Piece> {
        while self.at < self.range.end {
            let entry = self.blocks.pop_front()?;
            let (start, len) = (self.at, u64::from(entry.len));
            self.at += len;
            if self.at > self.range.start {
                let from = self.range.start.saturating_sub(start).min(len) as usize;
                let to = (self.range.end - start).min(len) as usize;
                return Some(Piece { entry, from, to });
            }
        }
        None
    }

    async fn next(&mut self, gateway: &Arc<Gateway>) -> Result<Option<Piece>, DomainError> {
        loop {
            if let Some(piece) = self.pop() {
                return Ok(Some(piece));
            }
            if self.at >= self.range.end {
                return Ok(None);
            }
            if self.chunk >= self.chunks {
                return Err(DomainError::Damaged {
                    detail: format!("the block list of version {} ends early", self.version),
                });
            }
            let mut blocks = VecDeque::from(gateway.read_manifest(self.version, self.chunk).await?);
            if self.chunk == 0 {
                // `first` repeats the beginning of row 0: go on behind what of it was used.
                let mut skip = self.at;
                while let Some(block) = blocks.front().filter(|b| u64::from(b.len) <= skip) {
                    skip -= u64::from(block.len);
                    blocks.pop_front();
                }
            }
            self.blocks = blocks;
            self.chunk += 1;
        }
    }
}

/// All pieces of a range, for operations that refer to blocks.
pub(super) async fn pieces(
    gateway: &Arc<Gateway>,
    version: VersionId,
    data: &ObjectData,
    range: Range<u64>,
) -> Result<Vec<Piece>, DomainError> {
    let mut plan = Plan::new(version, data, range);
    let mut out = Vec::new();
    while let Some(piece) = plan.next(gateway).await? {
        out.push(piece);
    }
    Ok(out)
}

/// The block that holds byte `at`, if the row itself says so.
pub(super) fn block_at(data: &ObjectData, at: u64) -> Option<BlockEntry> {
    Plan::new(VersionId::default(), data, at..at.saturating_add(1)).pop().map(|piece| piece.entry)
}

struct Reading {
    gateway: Arc<Gateway>,
    plan: Plan,
    /// Blocks on their way, in order, and what is wanted of each.
    ahead: VecDeque<(Fetch, Range<usize>)>,
    /// A piece whose block was not begun for want of memory.
    held: Option<Piece>,
    prefetched: Option<Fetch>,
}

impl Reading {
    /// What to fetch next. `None`: nothing, or nothing that could be known without waiting while there are blocks to
    /// give out.
    async fn next_piece(&mut self) -> Result<Option<Piece>, DomainError> {
        if let Some(piece) = self.held.take().or_else(|| self.plan.pop()) {
            return Ok(Some(piece));
        }
        if self.ahead.is_empty() { self.plan.next(&self.gateway).await } else { Ok(None) }
    }

    /// Starts fetches until enough are under way.
    async fn fill(&mut self) -> Result<(), DomainError> {
        while self.ahead.len() < GET_BLOCKS_AHEAD {
            let Some(piece) = self.next_piece().await? else { return Ok(()) };
            let range = piece.from..piece.to;
            if let Some(fetch) = self.prefetched.take().filter(|f| f.entry == piece.entry) {
                self.ahead.push_back((fetch, range));
                continue;
            }
            let bytes = piece.entry.len as usize;
            let claim = if self.ahead.is_empty() {
                self.gateway.download_memory.claim(bytes).await?
            } else if let Some(claim) = self.gateway.download_memory.try_claim(bytes) {
                claim
            } else {
                self.held = Some(piece);
                return Ok(());
            };
            self.ahead.push_back((Fetch::start(&self.gateway, piece.entry, claim), range));
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, DomainError> {
        self.fill().await?;
        let Some((fetch, range)) = self.ahead.pop_front() else { return Ok(None) };
        let block = fetch.wait().await?;
        Ok(Some(block.slice(range)))
    }
}

/// The bytes of `range`. After an error the stream ends.
pub(super) fn read(
    gateway: Arc<Gateway>,
    version: VersionId,
    data: &ObjectData,
    range: Range<u64>,
    prefetched: Option<Fetch>,
) -> BoxStream<'static, Result<Bytes, DomainError>> {
    if range.is_empty() {
        return stream::empty().boxed();
    }
    if let ObjectData::Inline(bytes) = data {
        let range = range.start as usize..(range.end as usize).min(bytes.len());
        let piece = bytes.get(range).map(Bytes::copy_from_slice).ok_or_else(|| DomainError::Damaged {
            detail: format!("version {version} is shorter than its size says"),
        });
        return stream::once(async move { piece }).boxed();
    }
    let plan = Plan::new(version, data, range);
    let reading = Reading { gateway, plan, ahead: VecDeque::new(), held: None, prefetched };
    stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// The row's form of a block list, for a version whose manifest rows (if needed) are written.
pub(super) fn data_of(blocks: Vec<BlockEntry>) -> ObjectData {
    /// Blocks repeated in the row: enough to start reading while the first manifest row comes.
    const FIRST: usize = 16;
    if blocks.len() <= hayloft_common::limits::MAX_ROW_BLOCKS {
        return ObjectData::Blocks(blocks);
    }
    let mut offset = 0u64;
    let chunk_offsets = blocks
        .chunks(MANIFEST_CHUNK)
        .map(|chunk| {
            let start = offset;
            offset += chunk.iter().map(|b| u64::from(b.len)).sum::<u64>();
            start
        })
        .collect();
    ObjectData::Manifest { chunk_offsets, first: blocks[..FIRST].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::hash::Hash;
    use proptest::prelude::*;

    fn entry(i: u8, len: u32) -> BlockEntry {
        BlockEntry { hash: Hash([i; 32]), len }
    }

    proptest! {
        #[test]
        fn a_plan_covers_its_range_exactly(
            lens in prop::collection::vec(1u32..20, 1..12), a in 0u64..120, b in 0u64..120,
        ) {
            let total: u64 = lens.iter().map(|l| u64::from(*l)).sum();
            let (start, end) = (a.min(b).min(total), a.max(b).min(total));
            let blocks: Vec<_> = (0u8..).zip(&lens).map(|(i, l)| entry(i, *l)).collect();
            let data = ObjectData::Blocks(blocks.clone());
            let mut plan = Plan::new(VersionId::default(), &data, start..end);
            let mut found = Vec::new();
            while let Some(piece) = plan.pop() {
                prop_assert!(piece.from < piece.to);
                found.extend((piece.from..piece.to).map(|at| (piece.entry.hash, at)));
            }
            let all: Vec<_> = blocks.iter().flat_map(|b| (0..b.len as usize).map(|at| (b.hash, at))).collect();
            prop_assert_eq!(found, all[start as usize..end as usize].to_vec());
        }
    }
}
