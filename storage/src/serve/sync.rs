//! What other storage nodes ask to become equal to this one: sums, leaves, rows (`tables::compare`).
//!
//! Guarantee: whoever asks at an epoch sees every write that was acknowledged here under an earlier one. The request is
//! refused unless this node is at its epoch, and answered only after a commit barrier: from then on no write of an
//! earlier epoch can follow. Partitions of which this node has no complete copy are refused.

use super::{Answer, Node, commit_error, reply, tables_error};
use crate::tables::compare;
use hayloft_common::layout::Partition;
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::message::sync::{
    LeavesReply, MAX_HAVE, MAX_TOTALS, ReadLeaves, ReadTotals, SyncRows, Totals,
};
use std::sync::Arc;

impl Node {
    pub(super) async fn read_totals(self: &Arc<Self>, request: ReadTotals) -> Answer {
        if request.partitions.len() > MAX_TOTALS {
            return Err(RpcError::bad_request(format!("more than {MAX_TOTALS} partitions")));
        }
        self.barrier().await?;
        let (given, refused): (Vec<Partition>, _) =
            request.partitions.into_iter().partition(|partition| self.has_copy_of(*partition));
        let totals = self
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let mut sums = Vec::new();
                for partition in given {
                    let totals = compare::totals(&*view, partition).map_err(|e| tables_error(&e))?;
                    sums.extend(totals.into_iter().map(|(table, sum)| (table, partition, sum)));
                }
                Ok(sums)
            })
            .await?;
        reply(&Totals { totals, refused })
    }

    pub(super) async fn read_leaves(self: &Arc<Self>, request: ReadLeaves) -> Answer {
        self.check_copy_of(request.partition)?;
        self.barrier().await?;
        let read =
            move |node: &Self| compare::leaves(&*node.engine.snapshot(), request.table, request.partition);
        let leaves = self.blocking(move |node| read(node).map_err(|e| tables_error(&e))).await?;
        reply(&LeavesReply { leaves })
    }

    pub(super) async fn sync_rows(self: &Arc<Self>, request: SyncRows) -> Answer {
        if request.have.len() > MAX_HAVE {
            return Err(RpcError::bad_request(format!("more than {MAX_HAVE} hashes")));
        }
        self.check_copy_of(request.partition)?;
        self.barrier().await?;
        let read = move |node: &Self| compare::page(&*node.engine.snapshot(), &request);
        reply(&self.blocking(move |node| read(node).map_err(|e| tables_error(&e))).await?)
    }

    /// Whether this node holds the partition, and has no rows in it that are older than its membership.
    pub fn has_copy_of(&self, partition: Partition) -> bool {
        self.is_member(partition)
    }

    async fn barrier(&self) -> Result<(), RpcError> {
        self.plane()?.commit.barrier().await.map_err(|e| commit_error(&e))
    }

    fn check_copy_of(&self, partition: Partition) -> Result<(), RpcError> {
        if self.has_copy_of(partition) {
            return Ok(());
        }
        let text = format!("this node has no copy of partition {} to compare with", partition.0);
        Err(RpcError::remote(RemoteCode::NotReady, text))
    }
}
