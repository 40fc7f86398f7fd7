//! Blocks: a put writes the bytes, then commits reference and index entry together; a get checks what it reads.
//!
//! Invariant B1: an index entry is committed only after the bytes it names are durable. Invariant B2: a put is
//! answered only after bytes, index entry and reference are durable. What a crash leaves in between is at worst
//! bytes without an entry, which a scan of the disks finds.

use super::{Answer, Node, commit_error, meta_error, reply};
use crate::blocks::{BlockError, Location};
use crate::commit::Job;
use crate::limits::MAX_WAITING_REPAIRS;
use crate::meta::{Batch, Space};
use bytes::Bytes;
use hayloft_common::block;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::limits::MAX_BLOCK_SIZE;
use hayloft_common::schema::{BlockRefRow, TableId};
use hayloft_proto::body::Body;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::fanout;
use hayloft_proto::message;
use hayloft_proto::message::block::{GetBlock, PutBlock, ReferBlocks, ReferBlocksReply, ReportBlock};
use hayloft_proto::message::table::RowBytes;
use std::sync::Arc;

/// References that one request may carry.
const MAX_REFERENCES: usize = 1024;

impl Node {
    pub(super) async fn put_block(self: &Arc<Self>, request: PutBlock, body: Body) -> Answer {
        let PutBlock { block, reference } = request;
        self.check_place(&place_of(&block))?;
        check_reference(&reference, Some(block))?;
        self.metadata_space.check()?;
        let envelope = body.collect(crate::limits::MAX_STORED_BLOCK).await?;
        let index = match self.locate(block).await? {
            // Deduplicated: the bytes are here already, only the reference is new.
            Some(location) if self.blocks.is_readable(&location) => Batch::new(),
            _ => {
                let location = self.blocks.put(block, envelope).await.map_err(|e| block_error(&e))?;
                index_entry(block, &location)
            }
        };
        let job = Job::block(vec![reference], index);
        self.plane()?.commit.submit(job).await.map_err(|e| commit_error(&e))?;
        reply(&())
    }

    pub(super) async fn refer_blocks(self: &Arc<Self>, request: ReferBlocks) -> Answer {
        if request.references.len() > MAX_REFERENCES {
            return Err(RpcError::bad_request(format!("more than {MAX_REFERENCES} references")));
        }
        self.metadata_space.check()?;
        let mut missing = Vec::new();
        for reference in &request.references {
            let block = check_reference(reference, None)?;
            self.check_place(&place_of(&block))?;
            if !self.locate(block).await?.is_some_and(|location| self.blocks.is_readable(&location)) {
                missing.push(block);
            }
        }
        let job = Job::block(request.references, Batch::new());
        self.plane()?.commit.submit(job).await.map_err(|e| commit_error(&e))?;
        // With a reference comes the duty to hold the block.
        for block in &missing {
            self.repair_later(*block);
        }
        reply(&ReferBlocksReply { missing })
    }

    pub(super) async fn get_block(self: &Arc<Self>, request: GetBlock) -> Answer {
        let block = request.block;
        let Some(location) = self.locate(block).await? else {
            return Err(RpcError::remote(RemoteCode::NotFound, format!("no block {block} here")));
        };
        match self.blocks.get(&block, &location).await {
            Ok(envelope) => Ok((message::encode(&()), Body::from(envelope))),
            Err(error) => {
                if error.is_lost_copy() || !self.blocks.is_readable(&location) {
                    tracing::warn!(%block, %error, "this node's copy of a block is lost; fetching another");
                    self.repair_later(block);
                }
                Err(block_error(&error))
            }
        }
    }

    /// A gateway found our copy missing or bad.
    pub(super) async fn report_block(self: &Arc<Self>, request: ReportBlock) -> Answer {
        self.check_place(&place_of(&request.block))?;
        self.repair_later(request.block);
        reply(&())
    }

    /// Where a block lies on this node's disks.
    async fn locate(self: &Arc<Self>, block: Hash) -> Result<Option<Location>, RpcError> {
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

    /// Looks after our copy of a block, beside the request. When many wait already it is left out: whoever misses the
    /// block next asks again.
    fn repair_later(self: &Arc<Self>, block: Hash) {
        {
            let mut waiting = self.repairing.lock();
            if waiting.len() >= MAX_WAITING_REPAIRS || !waiting.insert(block) {
                return;
            }
        }
        let this = self.clone();
        self.env.spawn("block repair", async move {
            if let Ok(_turn) = this.repair_turns.acquire().await {
                match this.repair(block).await {
                    Ok(true) => tracing::info!(%block, "block fetched again from another node"),
                    Ok(false) => {}
                    Err(error) => tracing::error!(%block, %error, "a lost block could not be fetched again"),
                }
            }
            this.repairing.lock().remove(&block);
        });
    }

    /// Reads our copy; if it is not good, fetches the block from another node. True if that was needed.
    async fn repair(self: &Arc<Self>, block: Hash) -> Result<bool, RpcError> {
        let old = self.locate(block).await?;
        if let Some(location) = old
            && self.blocks.is_readable(&location)
        {
            match self.blocks.get(&block, &location).await {
                Ok(envelope) if block::open(&envelope, &block, MAX_BLOCK_SIZE).is_ok() => return Ok(false),
                Ok(_) => {}
                Err(error) if error.is_lost_copy() => {}
                Err(error) => return Err(block_error(&error)),
            }
        }
        let check = |(): &(), envelope: Bytes| match block::open(&envelope, &block, MAX_BLOCK_SIZE) {
            Ok(_) => Ok(envelope),
            Err(error) => Err(RpcError::remote(RemoteCode::Corrupt, error.to_string())),
        };
        let found = fanout::any_other(
            &self.cluster,
            place_of(&block),
            GetBlock { block },
            crate::limits::MAX_STORED_BLOCK,
            check,
        );
        let found = found.await.map_err(|e| RpcError::remote(RemoteCode::NotFound, e.to_string()))?;
        let location = self.blocks.put(block, found.value).await.map_err(|e| block_error(&e))?;
        let job = Job::entries(index_entry(block, &location));
        self.plane()?.commit.submit(job).await.map_err(|e| commit_error(&e))?;
        Ok(true)
    }
}

/// A block lies with its references: where the hash of their partition key, the block's hash, points.
fn place_of(block: &Hash) -> Hash {
    Hash::of(block.as_bytes())
}

fn index_entry(block: Hash, location: &Location) -> Batch {
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
