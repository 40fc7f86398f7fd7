//! Blocks: a put writes the bytes, then commits reference and index entry together; a get checks what it reads.
//!
//! Invariant B1: an index entry is committed only after the bytes it names are durable. Invariant B2: a put is
//! answered only after bytes, index entry and reference are durable. What a crash leaves in between is at worst
//! bytes without an entry, which a scan of the disks finds.

use super::{Answer, At, Node, commit_error, meta_error, reply};
use crate::blocks::{BlockError, Location};
use crate::commit::Job;
use crate::meta::{Batch, Space};
use crate::tables::queue::{self, Work};
use crate::workers::block_work::Stray;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::schema::{BlockRefRow, TableId};
use hayloft_proto::body::Body;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::message;
use hayloft_proto::message::block::{GetBlock, PutBlock, ReferBlocks, ReferBlocksReply, ReportBlock};
use hayloft_proto::message::sync::{HaveBlocks, HaveBlocksReply};
use hayloft_proto::message::table::RowBytes;
use std::sync::Arc;

/// References that one request may carry.
const MAX_REFERENCES: usize = 1024;
/// Blocks that one request may ask for.
const MAX_ASKED: usize = 4096;

impl Node {
    pub(super) async fn put_block(self: &Arc<Self>, request: At<PutBlock>, body: Body) -> Answer {
        let At { epoch, message: PutBlock { block, reference } } = request;
        self.check_place(&place_of(&block))?;
        check_reference(&reference, Some(block))?;
        self.metadata_space.check()?;
        let envelope = body.collect(crate::limits::MAX_STORED_BLOCK).await?;
        let _shared = self.block_locks.of(&block).read().await;
        let mut put = None;
        let index = match self.locate(block).await? {
            // Deduplicated: the bytes are here already, only the reference is new.
            Some(location) if self.blocks.is_readable(&location) => Batch::new(),
            _ => {
                let stray = put.insert(Stray::new(self, block));
                let location = self.blocks.put(block, envelope).await.map_err(|e| block_error(&e))?;
                stray.lies_at(location);
                index_entry(block, &location)
            }
        };
        let done = self.submit_at(epoch, Job::block(vec![reference], index)).await?;
        refuse_deleted(&done.refused)?;
        if let Some(stray) = put {
            stray.is_committed();
        }
        reply(&())
    }

    pub(super) async fn refer_blocks(self: &Arc<Self>, request: At<ReferBlocks>) -> Answer {
        let At { epoch, message: request } = request;
        if request.references.len() > MAX_REFERENCES {
            return Err(RpcError::bad_request(format!("more than {MAX_REFERENCES} references")));
        }
        self.metadata_space.check()?;
        let mut blocks = Vec::with_capacity(request.references.len());
        for reference in &request.references {
            let block = check_reference(reference, None)?;
            self.check_place(&place_of(&block))?;
            blocks.push(block);
        }
        let done = self.submit_at(epoch, Job::block(request.references, Batch::new())).await?;
        refuse_deleted(&done.refused)?;
        let mut missing = done.missing;
        // An entry on a disk that is lost is no copy. With a live reference none of these can be released any more.
        for block in blocks {
            if let Some(location) = self.locate(block).await?
                && !self.blocks.is_readable(&location)
            {
                missing.push(block);
            }
        }
        // With a reference comes the duty to hold the block.
        self.check_blocks(&missing).await?;
        reply(&ReferBlocksReply { missing })
    }

    pub(super) async fn get_block(self: &Arc<Self>, request: GetBlock) -> Answer {
        let block = request.block;
        let none = || RpcError::remote(RemoteCode::NotFound, format!("no block {block} here"));
        let mut location = self.locate(block).await?.ok_or_else(none)?;
        let mut read = self.blocks.get(&block, &location).await;
        if read.as_ref().is_err_and(BlockError::is_lost_copy) {
            // It may have been moved between the look and the read.
            let now = self.locate(block).await?.ok_or_else(none)?;
            if now != location {
                location = now;
                read = self.blocks.get(&block, &location).await;
            }
        }
        match read {
            Ok(envelope) => Ok((message::encode(&()), Body::from(envelope))),
            Err(error) => {
                if error.is_lost_copy() || !self.blocks.is_readable(&location) {
                    tracing::warn!(%block, %error, "this node's copy of a block is lost; fetching another");
                    self.check_blocks(&[block]).await?;
                }
                Err(block_error(&error))
            }
        }
    }

    /// Which blocks this node has a copy of on a disk that can be read.
    pub(super) async fn have_blocks(self: &Arc<Self>, request: HaveBlocks) -> Answer {
        if request.blocks.len() > MAX_ASKED {
            return Err(RpcError::bad_request(format!("more than {MAX_ASKED} blocks")));
        }
        let have = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let has = |block: &Hash| {
                    let entry = view.get(Space::BlockIndex, block.as_bytes()).map_err(|e| meta_error(&e))?;
                    let location = entry.and_then(|entry| Location::decode(&entry).ok());
                    Ok(location.is_some_and(|location| node.blocks.is_readable(&location)))
                };
                request.blocks.iter().map(has).collect::<Result<Vec<bool>, RpcError>>()
            })
            .await?;
        reply(&HaveBlocksReply { have })
    }

    /// A gateway found our copy missing or bad.
    pub(super) async fn report_block(self: &Arc<Self>, request: ReportBlock) -> Answer {
        self.check_place(&place_of(&request.block))?;
        self.check_blocks(&[request.block]).await?;
        reply(&())
    }

    /// Where a block lies on this node's disks.
    pub async fn locate(self: &Arc<Self>, block: Hash) -> Result<Option<Location>, RpcError> {
        self.blocking(move |node| {
            let entry = node.engine.get(Space::BlockIndex, block.as_bytes()).map_err(|e| meta_error(&e))?;
            let Some(entry) = entry else { return Ok(None) };
            // A damaged entry is as good as none: the block is put or fetched again, and the entry with it.
            let location = Location::decode(&entry);
            Ok(location
                .inspect_err(|error| tracing::error!(%block, %error, "block index entry ignored"))
                .ok())
        })
        .await
    }

    /// Whether the index has an entry for a block, readable or not.
    pub async fn has_entry(self: &Arc<Self>, block: Hash) -> Result<bool, RpcError> {
        self.blocking(move |node| {
            let entry = node.engine.get(Space::BlockIndex, block.as_bytes()).map_err(|e| meta_error(&e))?;
            Ok(entry.is_some())
        })
        .await
    }

    /// Queues blocks for the resync worker to look at, durably, and wakes it.
    pub async fn check_blocks(self: &Arc<Self>, blocks: &[Hash]) -> Result<(), RpcError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let plane = self.plane()?;
        let work = blocks
            .iter()
            .map(|block| (plane.tables.partition(block.as_bytes()), Work::CheckBlock { block: *block }));
        let job = Job::entries(queue::entries(work, self.env.wall_millis()));
        plane.commit.submit(job).await.map_err(|e| commit_error(&e))?;
        self.workers.wake("block resync");
        Ok(())
    }
}

/// A version whose reference is deleted for good can't be written any more: it was given up as abandoned.
fn refuse_deleted(refused: &[Hash]) -> Result<(), RpcError> {
    match refused.first() {
        None => Ok(()),
        Some(block) => Err(RpcError::remote(
            RemoteCode::Conflict,
            format!("the reference to block {block} was deleted: its version was given up as abandoned"),
        )),
    }
}

/// A block lies with its references: where the hash of their partition key, the block's hash, points.
pub fn place_of(block: &Hash) -> Hash {
    Hash::of(block.as_bytes())
}

/// The batch that sets a block's index entry.
pub fn index_entry(block: Hash, location: &Location) -> Batch {
    let mut batch = Batch::new();
    batch.put(Space::BlockIndex, block.as_bytes().to_vec(), location.encode());
    batch
}

/// The block that a reference row is about; it must be `expected`, if given.
fn check_reference(row: &RowBytes, expected: Option<Hash>) -> Result<Hash, RpcError> {
    if row.table != TableId::BlockRef {
        return Err(RpcError::bad_request("the reference is not a block reference row"));
    }
    let row: BlockRefRow = codec::decode(&row.bytes).map_err(|e| RpcError::bad_request(e.to_string()))?;
    if expected.is_some_and(|block| block != row.block) {
        return Err(RpcError::bad_request("the reference is to another block"));
    }
    Ok(row.block)
}

fn block_error(error: &BlockError) -> RpcError {
    let code = match error {
        BlockError::Refused { .. } | BlockError::TooLarge { .. } => RemoteCode::BadRequest,
        BlockError::Busy { .. } => return RpcError::Overloaded { what: error.to_string() },
        BlockError::NoSpace => RemoteCode::NoSpace,
        BlockError::ReadOnly { .. } => RemoteCode::ReadOnlyDisk,
        BlockError::Io { .. } | BlockError::DiskFailed { .. } => RemoteCode::Io,
        BlockError::Corrupt { .. } => RemoteCode::Corrupt,
        BlockError::Missing { .. } | BlockError::UnknownDisk { .. } => RemoteCode::NotFound,
        BlockError::Stopping => RemoteCode::ShuttingDown,
    };
    RpcError::remote(code, error.to_string())
}
