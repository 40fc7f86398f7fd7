//! The operator's requests to this node: workers and their variables, repairs, blocks in trouble, snapshots, findings.

use super::{Answer, Node, meta_error, reply, tables_error};
use crate::blocks::Location;
use crate::meta::Space;
use crate::workers::{Slot, WorkerError, resync, scrub};
use hayloft_common::codec;
use hayloft_common::schema::{BlockRefRow, Row as _, TableId};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::message::operate::{
    BlockErrors, BlockInfo, LaunchRepair, ListBlockErrors, ListWorkers, ReadBlockInfo, ReadFindings,
    ReadVariables, ReferenceInfo, Repair, RetryBlocks, SetVariable, TakeSnapshot, Variables, WorkerInfo,
    WorkerState,
};
use hayloft_proto::message::table::ReadRange;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// References of one block that are shown.
const MAX_REFERENCES: u32 = 1000;
/// Blocks that one request may name.
const MAX_BLOCKS: usize = 10_000;
const TRANQUILITY: &str = "-tranquility";

impl Node {
    pub(super) fn list_workers(&self, _: ListWorkers) -> Answer {
        let now = self.env.now();
        let workers: Vec<WorkerInfo> =
            self.workers.list().iter().map(|slot| worker_info(slot, now)).collect();
        reply(&workers)
    }

    pub(super) async fn variables(self: &Arc<Self>, _: ReadVariables) -> Answer {
        reply(&self.all_variables().await?)
    }

    pub(super) async fn set_variable(self: &Arc<Self>, request: SetVariable) -> Answer {
        let SetVariable { name, value } = request;
        let number = value.trim().parse::<u32>().map_err(|_| {
            RpcError::bad_request(format!("{value:?} is not a number: {name} takes a whole number from 0 on"))
        });
        if let Some(slot) =
            name.strip_suffix(TRANQUILITY).and_then(|name| self.workers.get(&name.replace('-', " ")))
        {
            slot.set_tranquility(number?);
        } else {
            let known = self.all_variables().await?.values;
            let what = if known.contains_key(&name) { "can only be read" } else { "is not known" };
            let settable: Vec<String> =
                known.into_keys().filter(|name| name.ends_with(TRANQUILITY)).collect();
            let text = format!("the variable {name} {what}; these can be set: {}", settable.join(", "));
            return Err(RpcError::bad_request(text));
        }
        reply(&self.all_variables().await?)
    }

    async fn all_variables(self: &Arc<Self>) -> Result<Variables, RpcError> {
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        for slot in self.workers.list() {
            let name = format!("{}{TRANQUILITY}", slot.name.replace(' ', "-"));
            values.insert(name, slot.tranquility().to_string());
        }
        values.extend(scrub::variables(self).await.map_err(|e| worker_error(&e))?);
        Ok(Variables { values })
    }

    pub(super) async fn launch_repair(self: &Arc<Self>, request: LaunchRepair) -> Answer {
        self.start_repair(request.repair).await.map_err(|e| worker_error(&e))?;
        reply(&())
    }

    pub(super) async fn list_block_errors(self: &Arc<Self>, _: ListBlockErrors) -> Answer {
        let mut errors = resync::errors(self).await.map_err(|e| worker_error(&e))?;
        errors.truncate(MAX_BLOCKS);
        reply(&BlockErrors { errors })
    }

    pub(super) async fn block_info(self: &Arc<Self>, request: ReadBlockInfo) -> Answer {
        let block = request.block;
        let tables = self.plane()?.tables;
        let (location, references) = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let entry = view.get(Space::BlockIndex, block.as_bytes()).map_err(|e| meta_error(&e))?;
                let ask = ReadRange {
                    table: TableId::BlockRef,
                    partition_key: block.0.to_vec(),
                    from: Vec::new(),
                    to: None,
                    limit: MAX_REFERENCES,
                };
                let page = tables.read_range(&*view, &ask).map_err(|e| tables_error(&e))?;
                Ok((entry.and_then(|entry| Location::decode(&entry).ok()), page.rows))
            })
            .await?;
        let disks = self.blocks.stats().await.map_err(|e| RpcError::internal(e.to_string()))?;
        let path = |location: &Location| {
            let disk = disks.iter().find(|disk| disk.id == Some(location.disk));
            disk.map_or_else(|| format!("disk {} (not in use)", location.disk), |disk| disk.path.clone())
        };
        let references =
            references.iter().map(|bytes| codec::decode::<BlockRefRow>(bytes)).collect::<Result<Vec<_>, _>>();
        let references = references.map_err(|e| RpcError::remote(RemoteCode::Corrupt, e.to_string()))?;
        reply(&BlockInfo {
            block,
            location: location.as_ref().map(|location| (path(location), location.len)),
            readable: location.is_some_and(|location| self.blocks.is_readable(&location)),
            references: references
                .into_iter()
                .map(|row| ReferenceInfo { version: row.version, deleted: !row.is_live(), owner: row.owner })
                .collect(),
        })
    }

    pub(super) async fn retry_blocks(self: &Arc<Self>, request: RetryBlocks) -> Answer {
        if request.blocks.len() > MAX_BLOCKS {
            return Err(RpcError::bad_request(format!("more than {MAX_BLOCKS} blocks")));
        }
        let blocks = if request.all {
            let errors = resync::errors(self).await.map_err(|e| worker_error(&e))?;
            errors.into_iter().map(|error| error.block).collect()
        } else {
            request.blocks
        };
        resync::retry(self, &blocks).await.map_err(|e| worker_error(&e))?;
        reply(&(blocks.len() as u64))
    }

    pub(super) async fn take_snapshot(self: &Arc<Self>, _: TakeSnapshot) -> Answer {
        let Some(snapshots) = self.snapshots.clone() else {
            return Err(RpcError::remote(RemoteCode::Unsupported, "this node has no place for snapshots"));
        };
        let taken = snapshots.take(&self.env, &self.engine).await;
        reply(&taken.map_err(|e| RpcError::remote(RemoteCode::Io, e.to_string()))?)
    }

    pub(super) fn findings(&self, _: ReadFindings) -> Answer {
        reply(&self.verification.findings())
    }

    /// Starts a repair. What it does is the business of the worker that does it.
    pub async fn start_repair(self: &Arc<Self>, repair: Repair) -> Result<(), WorkerError> {
        use crate::workers as w;
        match repair {
            Repair::Tables => w::table_sync::compare_now(self),
            Repair::Blocks => w::block_scan::start(self).await?,
            Repair::Refs => w::reference_scan::start(self),
            Repair::Counters => w::recount::start(self),
            Repair::Rebalance => w::rebalance::start(self).await?,
            Repair::Compact => {
                w::compact::start(self).await?;
                w::compact_metadata::start(self);
            }
            Repair::ScrubStart => scrub::start(self).await?,
            Repair::ScrubPause => scrub::pause(self, true).await?,
            Repair::ScrubResume => scrub::pause(self, false).await?,
            Repair::ScrubCancel => scrub::cancel(self).await?,
            Repair::TrustLost => {
                let lost = self.layout_store.lost();
                tracing::warn!(partitions = lost.len(), "an operator takes what is here for all there is");
                for partition in lost {
                    self.layout_store.refilled(partition).await?;
                }
                self.workers.wake(w::layout_sync::NAME);
            }
            Repair::Verify => w::verify::start(self),
        }
        Ok(())
    }
}

fn worker_error(error: &WorkerError) -> RpcError {
    RpcError::remote(RemoteCode::Internal, error.to_string())
}

fn worker_info(slot: &Slot, now: Duration) -> WorkerInfo {
    let status = slot.report.status();
    let state = match (slot.is_paused(), status.busy) {
        (true, _) => WorkerState::Paused,
        (false, true) => WorkerState::Busy,
        (false, false) => WorkerState::Idle,
    };
    let eta_secs = status.progress.zip(status.round_began).and_then(|((done, all), began)| {
        let spent = now.saturating_sub(began).as_secs();
        (done > 0 && all > done).then(|| spent * (all - done) / done)
    });
    WorkerInfo {
        name: slot.name.into(),
        state,
        errors: status.errors,
        errors_in_a_row: status.errors_in_a_row,
        last_error: status.last_error.map(|(text, at)| (text, now.saturating_sub(at).as_secs())),
        progress: status.progress,
        eta_secs,
        queue: status.queue,
        items: status.items,
        bytes: status.bytes,
        tranquility: slot.tranquility(),
        notes: status.notes,
    }
}
