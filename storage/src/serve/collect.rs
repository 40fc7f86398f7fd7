//! What the workers of other nodes ask when they collect garbage: which versions rows hold, when references were renewed,
//! whether tombstones are held, and to remove those that all hold.

use super::{Answer, At, Node, meta_error, reply, tables_error};
use crate::commit::Job;
use crate::meta::Space;
use crate::tables::queue::{Entry, Kind, Work};
use crate::tables::{Overlay, with_row};
use crate::workers::MESSAGE_LIFETIME;
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::schema::{Row, RowError, TableId};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::message::sync::{
    CollectTombstones, HoldTombstones, HoldTombstonesReply, MAX_READ_HEADS, MAX_REFERENCES, MAX_TOMBSTONES,
    MAX_WORK_DONE, ReadHeads, ReadHeadsReply, ReadRenewals, ReadRenewalsReply, WorkDone,
};
use hayloft_proto::message::table::{ReadRow, RowBytes, WriteMode, WriteRows};
use serde_bytes::ByteBuf;
use std::sync::Arc;
use std::time::Duration;

fn at_most(count: usize, most: usize, what: &str) -> Result<(), RpcError> {
    if count <= most {
        return Ok(());
    }
    Err(RpcError::bad_request(format!("{count} {what}, at most {most} are taken")))
}

/// Where a tombstone that a peer sends is placed. It must be one, and of that partition.
fn place_of_tombstone(table: TableId, bytes: &[u8]) -> Result<Hash, RpcError> {
    fn check<R: Row>(bytes: &[u8]) -> Result<Option<Hash>, RowError> {
        let row: R = codec::decode(bytes)?;
        row.validate()?;
        Ok((!row.is_live()).then(|| Hash::of(&row.partition_key())))
    }
    let place = with_row!(table, R => check::<R>(bytes)).map_err(|e| RpcError::bad_request(e.to_string()))?;
    place.ok_or_else(|| RpcError::bad_request("a row to be held as a tombstone is live"))
}

impl Node {
    /// Merges tombstones, and says which of them are what is stored then. Every node that takes part in the partition
    /// must say so twice before they are removed.
    pub(super) async fn hold_tombstones(self: &Arc<Self>, request: At<HoldTombstones>) -> Answer {
        let At { epoch, message: HoldTombstones { table, partition, rows } } = request;
        at_most(rows.len(), MAX_TOMBSTONES, "tombstones")?;
        let layout = self.cluster.layout();
        for bytes in &rows {
            let place = place_of_tombstone(table, bytes)?;
            if layout.partition_of(&place) != partition {
                return Err(RpcError::bad_request("a tombstone is of another partition"));
            }
            self.check_place(&place)?;
        }
        let rows: Vec<RowBytes> =
            rows.into_iter().map(|bytes| RowBytes { table, bytes: bytes.into_vec() }).collect();
        let sent = rows.clone();
        self.submit_at(epoch, Job::rows(WriteRows { mode: WriteMode::Merge, rows })).await?;
        let tables = self.plane()?.tables;
        let held = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let overlay = Overlay::new(&*view);
                let holds = |row: &RowBytes| tables.holds_exactly(&overlay, table, &row.bytes);
                let held: Result<Vec<_>, _> = sent.iter().map(|row| Ok(holds(row)?.is_some())).collect();
                held.map_err(|e| tables_error(&e))
            })
            .await?;
        reply(&HoldTombstonesReply { held })
    }

    /// Removes tombstones that are still stored just so.
    pub(super) async fn collect_tombstones(self: &Arc<Self>, request: At<CollectTombstones>) -> Answer {
        let At { epoch, message: CollectTombstones { table, partition, rows } } = request;
        at_most(rows.len(), MAX_TOMBSTONES, "tombstones")?;
        if !self.is_member(partition) {
            let text = format!("this node takes no part in partition {}", partition.0);
            return Err(RpcError::remote(RemoteCode::NotReady, text));
        }
        let of_partition = |key: &ByteBuf| key.starts_with(&partition.0.to_be_bytes());
        if !rows.iter().all(|(key, _)| of_partition(key)) {
            return Err(RpcError::bad_request("a tombstone is of another partition"));
        }
        let hash = |bytes: [u8; 16]| u128::from_le_bytes(bytes);
        let rows = rows.into_iter().map(|(key, row)| (table, Bytes::from(key.into_vec()), hash(row.0)));
        self.submit_at(epoch, Job::collect(rows.collect())).await?;
        reply(&())
    }

    /// Takes work off the queue that another replica has done, unless it came up again.
    pub(super) async fn work_done(self: &Arc<Self>, request: WorkDone) -> Answer {
        at_most(request.keys.len(), MAX_WORK_DONE, "keys")?;
        let now_ms = self.env.wall_millis();
        let finished = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let mut finished = Vec::new();
                for key in request.keys {
                    let Some(value) = view.get(Space::Queue, &key).map_err(|e| meta_error(&e))? else {
                        continue;
                    };
                    let Ok(entry) = codec::decode::<Entry>(&value) else { continue };
                    let least = match entry.work.kind() {
                        // Once a version is gone it is gone for good.
                        Kind::DropVersion => Duration::ZERO,
                        // There may be a new part, or a renewal, that the sender did not see.
                        Kind::DropParts => MESSAGE_LIFETIME,
                        Kind::CheckRef => MESSAGE_LIFETIME.min(node.settings.uncommitted_age / 2),
                        // These are each node's own.
                        Kind::CheckBlock | Kind::Collect => continue,
                    };
                    let age = now_ms.checked_sub(entry.queued_ms).map(Duration::from_millis);
                    if age.is_some_and(|age| age >= least) {
                        finished.push((Bytes::from(key.into_vec()), entry));
                    }
                }
                Ok(finished)
            })
            .await?;
        if !finished.is_empty() {
            self.plane()?.commit.submit(Job::done(finished)).await.map_err(|e| super::commit_error(&e))?;
        }
        reply(&())
    }

    pub(super) async fn read_heads(self: &Arc<Self>, request: ReadHeads) -> Answer {
        at_most(request.sort_keys.len(), MAX_READ_HEADS, "rows")?;
        self.check_place(&Hash::of(&request.partition_key))?;
        let tables = self.plane()?.tables;
        let rows = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let ReadHeads { table, partition_key, sort_keys } = request;
                let mut ask = ReadRow { table, partition_key, sort_key: Vec::new() };
                let mut rows = Vec::with_capacity(sort_keys.len());
                for sort_key in sort_keys {
                    ask.sort_key = sort_key.into_vec();
                    let row = tables.read_short(&*view, &ask).map_err(|e| tables_error(&e))?;
                    rows.push(row.map(ByteBuf::from));
                }
                Ok(rows)
            })
            .await?;
        reply(&ReadHeadsReply { rows })
    }

    pub(super) async fn read_renewals(self: &Arc<Self>, request: ReadRenewals) -> Answer {
        at_most(request.references.len(), MAX_REFERENCES, "references")?;
        for (block, _) in &request.references {
            self.check_place(&Hash::of(block.as_bytes()))?;
        }
        let tables = self.plane()?.tables;
        let dates = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let mut dates = Vec::with_capacity(request.references.len());
                for (block, version) in request.references {
                    let key = Work::CheckRef { block, version }.key(tables.partition(block.as_bytes()));
                    let value = view.get(Space::Queue, &key).map_err(|e| meta_error(&e))?;
                    let entry = value.and_then(|value| codec::decode::<Entry>(&value).ok());
                    dates.push(entry.map(|entry| entry.queued_ms));
                }
                Ok(dates)
            })
            .await?;
        let age = |date: u64| self.clock_watch.age(&self.env, date).as_millis() as u64;
        reply(&ReadRenewalsReply { ages_ms: dates.into_iter().map(|date| date.map(age)).collect() })
    }
}
