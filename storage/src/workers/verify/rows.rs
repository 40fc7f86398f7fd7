//! A page of a partition's rows, with what they claim of other rows; and a partition's sums against a recount.

use super::{Found, WorkerError};
use crate::meta::{Direction, KeyRange, Space, Step, View, range};
use crate::serve::Node;
use crate::tables::fingerprint::Leaves;
use crate::tables::reaction::{Counts, React};
use crate::tables::stored::{self, Stored};
use crate::tables::{TablesError, counters, key, with_row};
use bytes::Bytes;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::layout::Partition;
use hayloft_common::schema::{
    BlockOwner, BlockRefRow, ManifestRow, ObjectData, ObjectRow, PartRow, Row, TableId, UploadRow,
};
use hayloft_proto::message::table::IndexCounters;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of one page.
const PAGE: usize = 256;

/// What a row claims.
pub(super) enum Claim {
    /// A live version with these blocks (or manifest rows): each must have a live reference of it.
    Version { owner: BlockOwner, version: VersionId, blocks: Vec<Hash>, manifests: u32 },
    /// A live part: its upload must be open.
    Part(Box<PartRow>),
    /// A live manifest row: its first block must have a live reference of its version.
    Manifest { version: VersionId, chunk: u32, block: Option<Hash> },
    /// A live reference: its version must be there, and the block here.
    Reference(BlockRefRow),
}

/// See the module's head.
pub(super) struct Page {
    pub(super) partition: Partition,
    pub(super) claims: Vec<Claim>,
    pub(super) rows: u64,
    pub(super) tombstones: u64,
    /// Rows that cannot be read.
    pub(super) damaged: Vec<String>,
    pub(super) next: Option<Vec<u8>>,
}

/// Reads a page from stored key `from` on.
pub(super) async fn page(
    node: &Arc<Node>,
    partition: Partition,
    table: TableId,
    from: Option<Vec<u8>>,
) -> Result<Page, WorkerError> {
    let page = node.blocking(move |node| {
        with_row!(table, R => read_page::<R>(&*node.engine.snapshot(), partition, from))
            .map_err(|e| crate::serve::tables_error(&e))
    });
    Ok(page.await?)
}

fn read_page<R: React>(
    view: &dyn View,
    partition: Partition,
    from: Option<Vec<u8>>,
) -> Result<Page, TablesError> {
    let prefix = partition.0.to_be_bytes();
    let rows = KeyRange { from: from.unwrap_or_else(|| prefix.to_vec()), to: range::after_prefix(&prefix) };
    let mut keys: Vec<Bytes> = Vec::new();
    let mut next = None;
    view.scan(Space::Table(R::TABLE), &rows, Direction::Forward, &mut |key, _| {
        if keys.len() >= PAGE {
            next = Some(key.to_vec());
            return Step::Stop;
        }
        keys.push(key.clone());
        Step::Next
    })?;
    let mut page = Page { partition, claims: Vec::new(), rows: 0, tombstones: 0, damaged: Vec::new(), next };
    for key in keys {
        page.rows += 1;
        match stored::load::<R>(view, &key) {
            Ok(Some((row, _))) if row.is_live() => page.claims.extend(claim_of(&row)),
            Ok(Some(_)) => page.tombstones += 1,
            Ok(None) => {}
            Err(error @ TablesError::Damaged { .. }) => page.damaged.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(page)
}

/// What a live row claims of others.
fn claim_of<R: Row>(row: &R) -> Option<Claim> {
    let row: &dyn Any = row;
    if let Some(object) = row.downcast_ref::<ObjectRow>() {
        let version = object.live()?;
        let owner =
            BlockOwner::Object { bucket: object.bucket, shard: object.shard, key: object.key.clone() };
        let (blocks, manifests) = match &version.detail.as_ref()?.data {
            ObjectData::Inline(_) => return None,
            ObjectData::Blocks(blocks) => (blocks.iter().map(|b| b.hash).collect(), 0),
            ObjectData::Manifest { chunk_offsets, .. } => (Vec::new(), chunk_offsets.len() as u32),
        };
        return Some(Claim::Version { owner, version: version.id, blocks, manifests });
    }
    if let Some(part) = row.downcast_ref::<PartRow>() {
        return Some(Claim::Part(Box::new(part.clone())));
    }
    if let Some(manifest) = row.downcast_ref::<ManifestRow>() {
        let block = manifest.blocks.first().map(|block| block.hash);
        return Some(Claim::Manifest { version: manifest.version, chunk: manifest.chunk, block });
    }
    row.downcast_ref::<BlockRefRow>().map(|reference| Claim::Reference(reference.clone()))
}

/// Compares a partition's fingerprints and counters with a recount, on one state of the engine.
pub(super) async fn sums(
    node: &Arc<Node>,
    partition: Partition,
    found: &mut Found,
) -> Result<(), WorkerError> {
    let wrong = node.blocking(move |node| {
        let view = node.engine.snapshot();
        wrong_sums(&*view, partition.0).map_err(|e| crate::serve::tables_error(&e))
    });
    for (kind, what) in wrong.await? {
        found.wrong(kind, what);
    }
    Ok(())
}

fn wrong_sums(view: &dyn View, partition: u16) -> Result<Vec<(&'static str, String)>, TablesError> {
    let mut wrong = Vec::new();
    for table in TableId::ALL {
        if Leaves::read(view, table, partition)? != Leaves::recompute(view, table, partition)? {
            wrong.push(("wrong fingerprint", format!("table {} partition {partition}", table.name())));
        }
    }
    let mut counted: BTreeMap<Vec<u8>, Counts> = BTreeMap::new();
    count::<ObjectRow>(view, partition, &mut counted)?;
    count::<UploadRow>(view, partition, &mut counted)?;
    count::<PartRow>(view, partition, &mut counted)?;
    // Stored counters without any row must be found too.
    view.scan(
        Space::Counters,
        &KeyRange::prefix(&partition.to_be_bytes()),
        Direction::Forward,
        &mut |key, _| {
            counted.entry(key.to_vec()).or_default();
            Step::Next
        },
    )?;
    for (base, counts) in counted {
        let stored = counters::read(view, &base)?;
        let n = |n: i64| u64::try_from(n).unwrap_or(0);
        let recount = IndexCounters {
            objects: n(counts.objects),
            bytes: n(counts.bytes),
            uploads: n(counts.uploads),
            parts: n(counts.parts),
            part_bytes: n(counts.part_bytes),
        };
        if stored != recount {
            wrong.push(("wrong counter", format!("{stored:?}, recounted {recount:?}")));
        }
    }
    Ok(wrong)
}

fn count<R: React>(
    view: &dyn View,
    partition: u16,
    counted: &mut BTreeMap<Vec<u8>, Counts>,
) -> Result<(), TablesError> {
    let mut failed = None;
    let range = KeyRange::prefix(&partition.to_be_bytes());
    view.scan(Space::Table(R::TABLE), &range, Direction::Forward, &mut |stored_key, value| {
        let row = Stored::parse(R::TABLE, stored_key, value).and_then(|s| s.decode_short::<R>(stored_key));
        match (row, key::split(stored_key)) {
            (Ok(row), Some((partition_key, _))) => {
                let base = stored_key[..4 + partition_key.len()].to_vec();
                let sum = counted.entry(base).or_default();
                *sum = *sum - (Counts::default() - row.counts());
                Step::Next
            }
            (Err(e), _) => {
                failed = Some(e);
                Step::Stop
            }
            (_, None) => Step::Next,
        }
    })?;
    failed.map_or(Ok(()), Err)
}
