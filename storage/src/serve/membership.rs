//! Gossip, layouts and the node's own state.

use super::{Answer, Node, meta_error, reply, tables_error};
use crate::meta::{Direction, KeyRange, Space, Step};
use hayloft_common::layout::Partition;
use hayloft_common::schema::TableId;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::message::membership::{
    AcceptLayout, DiskStatus, Exchange, Inventory, LearnLayout, NodeStatus, PrepareLayout, ReadInventory,
    ReadStatus, StageChanges,
};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Node {
    pub(super) fn exchange(&self, request: Exchange) -> Answer {
        reply(&self.membership.answer(&request))
    }

    pub(super) async fn stage_changes(&self, request: StageChanges) -> Answer {
        let staged = self.layout_store.stage(&request.staged).await.map_err(|e| meta_error(&e))?;
        reply(&self.membership.merge_staged(&staged))
    }

    pub(super) async fn prepare_layout(&self, request: PrepareLayout) -> Answer {
        let answer = self.layout_store.prepare(request.epoch, request.ballot).await;
        reply(&answer.map_err(|e| meta_error(&e))?)
    }

    pub(super) async fn accept_layout(&self, request: AcceptLayout) -> Answer {
        let answer = self.layout_store.accept(request.ballot, &request.layout).await;
        reply(&answer.map_err(|e| meta_error(&e))?)
    }

    pub(super) async fn learn_layout(&self, request: LearnLayout) -> Answer {
        if self.cluster.learn(request.layout).await {
            return reply(&());
        }
        Err(RpcError::remote(RemoteCode::Conflict, "the layout could not be adopted; see this node's log"))
    }

    /// Partitions that hold rows. Control rows and block references are rows, so nothing is left out.
    pub(super) async fn inventory(self: &Arc<Self>, _: ReadInventory) -> Answer {
        let found = self
            .blocking(|node| {
                let view = node.engine.snapshot();
                let mut partitions = BTreeSet::new();
                for table in TableId::ALL {
                    let mut visit = |key: &bytes::Bytes, _: &bytes::Bytes| {
                        let Some(prefix) = key.first_chunk::<2>() else { return Step::Next };
                        let partition = u16::from_be_bytes(*prefix);
                        partitions.insert(Partition(partition));
                        match partition.checked_add(1) {
                            Some(next) => Step::Seek(next.to_be_bytes().to_vec()),
                            None => Step::Stop,
                        }
                    };
                    view.scan(Space::Table(table), &KeyRange::all(), Direction::Forward, &mut visit)
                        .map_err(|e| tables_error(&e.into()))?;
                }
                Ok(partitions.into_iter().collect())
            })
            .await?;
        reply(&Inventory { partitions: found })
    }

    pub(super) async fn status(self: &Arc<Self>, _: ReadStatus) -> Answer {
        let disks = self.blocks.stats().await.map_err(|e| RpcError::internal(e.to_string()))?;
        let metadata = self.metadata_space.now().unwrap_or_default();
        let own = self.membership.peers().into_iter().find(|info| info.id == self.id);
        let info = own.ok_or_else(|| RpcError::internal("this node does not know itself"))?;
        reply(&NodeStatus {
            info,
            epoch: self.cluster.layout().epoch,
            uptime_secs: self.env.now().saturating_sub(self.started).as_secs(),
            metadata,
            disks: disks
                .into_iter()
                .map(|disk| DiskStatus {
                    healthy: disk.health.takes_writes(),
                    health: disk.health.to_string(),
                    path: disk.path,
                    available: disk.available,
                    total: disk.total,
                })
                .collect(),
        })
    }
}
