//! What concerns single nodes: passed on to them, all at once, and their answers gathered.

use super::{Admin, AdminError, Call};
use crate::domain::PurgedVersion;
use hayloft_common::hash::Hash;
use hayloft_common::id::NodeId;
use hayloft_proto::admin::{
    BlockDetails, BlockError, BlockVersion, GetBlockInfo, GetWorkerInfo, GetWorkerVariable,
    LaunchRepairOperation, ListWorkersRequest, PerNode, PurgedBlocks, RepairType, Retried, RetryBlockResync,
    ScrubCommand, SetWorkerVariable, Snapshot, Verification, Worker, WorkerLastError, WorkerState,
};
use hayloft_proto::body::Body;
use hayloft_proto::message::Message;
use hayloft_proto::message::operate as wire;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);
/// A snapshot copies the whole metadata.
const SNAPSHOT_DEADLINE: Duration = Duration::from_mins(30);

impl Admin {
    /// The nodes that `?node=` names: an id or its beginning, a hostname, or `*` (also if it is left out) for all of
    /// the layout and those without a role that are up: one that was replaced and is gone is not asked.
    fn nodes(&self, call: &Call) -> Result<Vec<NodeId>, AdminError> {
        let mut known: BTreeMap<NodeId, String> =
            self.membership.peers().into_iter().map(|peer| (peer.id, peer.hostname)).collect();
        for node in self.membership.cluster().layout().storage_nodes() {
            known.entry(node).or_default();
        }
        let wanted = match call.query.get("node") {
            None | Some("*") => {
                let (cluster, layout) = (self.membership.cluster(), self.membership.cluster().layout());
                let members: BTreeSet<NodeId> = layout.storage_nodes().into_iter().collect();
                known.retain(|node, _| members.contains(node) || cluster.pool().peer_stats(*node).connected);
                return Ok(known.into_keys().collect());
            }
            Some(wanted) => wanted,
        };
        let hit = |(id, host): &(&NodeId, &String)| id.to_string().starts_with(wanted) || *host == wanted;
        let found: Vec<NodeId> = known.iter().filter(hit).map(|(id, _)| *id).collect();
        match found.len() {
            1 => Ok(found),
            0 => Err(AdminError::not_found("NoSuchNode", format!("no storage node {wanted} is known"))),
            _ => Err(AdminError::bad(format!("{wanted} names {} nodes: give more of the id", found.len()))),
        }
    }

    async fn ask<M: Message, T>(
        &self,
        call: &Call,
        message: M,
        deadline: Duration,
        answer: impl Fn(M::Reply) -> T,
    ) -> Result<PerNode<T>, AdminError> {
        let (cluster, message) = (self.membership.cluster(), &message);
        let calls = self
            .nodes(call)?
            .into_iter()
            .map(|node| async move { (node, cluster.call(node, message, Body::empty(), deadline).await) });
        let mut out = PerNode { success: BTreeMap::new(), error: BTreeMap::new() };
        for (node, result) in futures::future::join_all(calls).await {
            match result {
                Ok((reply, _)) => drop(out.success.insert(node, answer(reply))),
                Err(error) => drop(out.error.insert(node, error.to_string())),
            }
        }
        Ok(out)
    }

    pub(super) async fn launch_repair(&self, call: &Call) -> Result<PerNode<()>, AdminError> {
        let request: LaunchRepairOperation = call.json()?;
        let repair = match request.repair_type {
            RepairType::Tables => wire::Repair::Tables,
            RepairType::Blocks | RepairType::BlockRc => wire::Repair::Blocks,
            RepairType::Versions | RepairType::MultipartUploads | RepairType::BlockRefs => wire::Repair::Refs,
            RepairType::Rebalance => wire::Repair::Rebalance,
            RepairType::Counters => wire::Repair::Counters,
            RepairType::Compact => wire::Repair::Compact,
            RepairType::TrustLost => wire::Repair::TrustLost,
            RepairType::Verify => wire::Repair::Verify,
            RepairType::Scrub(ScrubCommand::Start) => wire::Repair::ScrubStart,
            RepairType::Scrub(ScrubCommand::Pause) => wire::Repair::ScrubPause,
            RepairType::Scrub(ScrubCommand::Resume) => wire::Repair::ScrubResume,
            RepairType::Scrub(ScrubCommand::Cancel) => wire::Repair::ScrubCancel,
        };
        self.ask(call, wire::LaunchRepair { repair }, DEADLINE, |()| ()).await
    }

    pub(super) async fn list_workers(&self, call: &Call) -> Result<PerNode<Vec<Worker>>, AdminError> {
        let request: ListWorkersRequest =
            if call.body.is_empty() { ListWorkersRequest::default() } else { call.json()? };
        let wanted = |worker: &Worker| {
            (!request.busy_only || worker.state == WorkerState::Busy)
                && (!request.error_only || worker.errors > 0)
        };
        let shown = |workers| shown(workers).into_iter().filter(wanted).collect();
        self.ask(call, wire::ListWorkers {}, DEADLINE, shown).await
    }

    pub(super) async fn worker_info(&self, call: &Call) -> Result<PerNode<Worker>, AdminError> {
        let request: GetWorkerInfo = call.json()?;
        let found = |workers| shown(workers).into_iter().find(|worker| worker.id == request.id);
        let all = self.ask(call, wire::ListWorkers {}, DEADLINE, found).await?;
        let mut out = PerNode { success: BTreeMap::new(), error: all.error };
        for (node, worker) in all.success {
            match worker {
                Some(worker) => drop(out.success.insert(node, worker)),
                None => drop(out.error.insert(node, format!("there is no worker {}", request.id))),
            }
        }
        Ok(out)
    }

    pub(super) async fn worker_variables(
        &self,
        call: &Call,
    ) -> Result<PerNode<BTreeMap<String, String>>, AdminError> {
        let request: GetWorkerVariable =
            if call.body.is_empty() { GetWorkerVariable::default() } else { call.json()? };
        let chosen = |mut variables: wire::Variables| {
            if let Some(name) = &request.variable {
                variables.values.retain(|known, _| known == name);
            }
            variables.values
        };
        let out = self.ask(call, wire::ReadVariables {}, DEADLINE, chosen).await?;
        match &request.variable {
            Some(name) if !out.success.is_empty() && out.success.values().all(BTreeMap::is_empty) => {
                Err(AdminError::not_found("NoSuchVariable", format!("there is no worker variable {name}")))
            }
            _ => Ok(out),
        }
    }

    pub(super) async fn set_worker_variable(
        &self,
        call: &Call,
    ) -> Result<PerNode<BTreeMap<String, String>>, AdminError> {
        let SetWorkerVariable { variable, value } = call.json()?;
        let name = variable.clone();
        let chosen = move |mut variables: wire::Variables| {
            variables.values.retain(|known, _| *known == name);
            variables.values
        };
        self.ask(call, wire::SetVariable { name: variable, value }, DEADLINE, chosen).await
    }

    pub(super) async fn block_errors(&self, call: &Call) -> Result<PerNode<Vec<BlockError>>, AdminError> {
        let error = |error: wire::BlockErrorInfo| BlockError {
            block_hash: error.block,
            refcount: error.references,
            error_count: error.errors,
            last_try_secs_ago: error.last_try_secs_ago,
            next_try_in_secs: error.next_try_in_secs,
            last_error: error.last_error,
        };
        let shown = |errors: wire::BlockErrors| errors.errors.into_iter().map(error).collect();
        self.ask(call, wire::ListBlockErrors {}, DEADLINE, shown).await
    }

    pub(super) async fn block_info(&self, call: &Call) -> Result<PerNode<BlockDetails>, AdminError> {
        let GetBlockInfo { block_hash } = call.json()?;
        self.ask(call, wire::ReadBlockInfo { block: block_hash }, DEADLINE, details).await
    }

    pub(super) async fn retry_blocks(&self, call: &Call) -> Result<PerNode<Retried>, AdminError> {
        let RetryBlockResync { all, block_hashes } = call.json()?;
        if !all && block_hashes.is_empty() {
            return Err(AdminError::bad("name blocks, or say `all`"));
        }
        let retry = wire::RetryBlocks { all, blocks: block_hashes };
        self.ask(call, retry, DEADLINE, |count| Retried { count }).await
    }

    /// Gives up blocks that are lost for good: deletes every object version that needs one of them.
    pub(super) async fn purge_blocks(&self, call: &Call) -> Result<PurgedBlocks, AdminError> {
        let blocks: BTreeSet<Hash> = call.json()?;
        let mut out = PurgedBlocks::default();
        for block in blocks {
            let info = self.ask(call, wire::ReadBlockInfo { block }, DEADLINE, |info| info).await?;
            let references: BTreeMap<_, _> = info
                .success
                .into_values()
                .flat_map(|info| info.references)
                .filter(|reference| !reference.deleted)
                .map(|reference| (reference.version, reference.owner))
                .collect();
            out.blocks_purged += 1;
            for (version, owner) in references {
                out.block_refs_purged += 1;
                match self.gateway.purge_version(version, &owner).await? {
                    PurgedVersion::Object => {
                        out.objects_deleted += 1;
                        out.versions_deleted += 1;
                    }
                    PurgedVersion::Upload => {
                        out.uploads_deleted += 1;
                        out.versions_deleted += 1;
                    }
                    PurgedVersion::Gone => {}
                }
            }
        }
        Ok(out)
    }

    pub(super) async fn snapshot(&self, call: &Call) -> Result<PerNode<Snapshot>, AdminError> {
        let shown = |taken: wire::SnapshotTaken| {
            let wire::SnapshotTaken { path, bytes, entries } = taken;
            Snapshot { path, bytes, entries }
        };
        self.ask(call, wire::TakeSnapshot {}, SNAPSHOT_DEADLINE, shown).await
    }

    pub(super) async fn verification(&self, call: &Call) -> Result<PerNode<Verification>, AdminError> {
        self.ask(call, wire::ReadFindings {}, DEADLINE, |findings| findings).await
    }
}

fn details(info: wire::BlockInfo) -> BlockDetails {
    let (disk, stored_bytes) = info.location.map_or((None, 0), |(disk, len)| (Some(disk), u64::from(len)));
    BlockDetails {
        block_hash: info.block,
        refcount: info.references.iter().filter(|reference| !reference.deleted).count() as u64,
        versions: info
            .references
            .into_iter()
            .map(|reference| BlockVersion {
                version_id: reference.version,
                ref_deleted: reference.deleted,
                owner: reference.owner,
            })
            .collect(),
        disk,
        stored_bytes,
        readable: info.readable,
    }
}

/// Workers as the interface shows them; a worker's id is its place in the node's list.
fn shown(workers: Vec<wire::WorkerInfo>) -> Vec<Worker> {
    let show = |(id, worker): (u64, wire::WorkerInfo)| Worker {
        id,
        name: worker.name,
        state: match worker.state {
            wire::WorkerState::Busy => WorkerState::Busy,
            wire::WorkerState::Idle => WorkerState::Idle,
            wire::WorkerState::Paused => WorkerState::Paused,
        },
        errors: worker.errors,
        consecutive_errors: u64::from(worker.errors_in_a_row),
        last_error: worker.last_error.map(|(message, secs_ago)| WorkerLastError { message, secs_ago }),
        progress: worker.progress.map(|(done, all)| {
            let percent = (done * 100).checked_div(all).unwrap_or(100);
            format!("{percent}% ({done} of {all})")
        }),
        queue_length: worker.queue,
        tranquility: Some(worker.tranquility),
        freeform: worker.notes,
        items: worker.items,
        bytes: worker.bytes,
        eta_secs: worker.eta_secs,
    };
    (0..).zip(workers).map(show).collect()
}
