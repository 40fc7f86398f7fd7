//! Rows: writes go to the commit queue, reads to a snapshot of the engine.

use super::{Answer, At, Node, reply, tables_error};
use crate::commit::Job;
use crate::tables::with_row;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::schema::Row as _;
use hayloft_proto::error::RpcError;
use hayloft_proto::message::table::{
    ListKeys, ReadCounters, ReadRange, ReadRow, ReadRowReply, RowBytes, WriteRows, WriteRowsReply,
};
use serde_bytes::ByteBuf;
use std::sync::Arc;

impl Node {
    pub(super) async fn write_rows(self: &Arc<Self>, request: At<WriteRows>) -> Answer {
        let At { epoch, message } = request;
        self.check_rows(&message.rows)?;
        self.metadata_space.check()?;
        let done = self.submit_at(epoch, Job::rows(message)).await?;
        reply(&WriteRowsReply { outcomes: done.rows })
    }

    /// Every row must belong to a partition of ours.
    pub(super) fn check_rows(&self, rows: &[RowBytes]) -> Result<(), RpcError> {
        for row in rows {
            let key =
                with_row!(row.table, R => codec::decode::<R>(&row.bytes).map(|row| row.partition_key()));
            let key = key.map_err(|e| RpcError::bad_request(e.to_string()))?;
            self.check_place(&Hash::of(&key))?;
        }
        Ok(())
    }

    pub(super) async fn read_row(self: &Arc<Self>, request: ReadRow) -> Answer {
        self.check_place(&Hash::of(&request.partition_key))?;
        let tables = self.plane()?.tables;
        let row = self
            .blocking(move |node| {
                tables.read_row(&*node.engine.snapshot(), &request).map_err(|e| tables_error(&e))
            })
            .await?;
        reply(&ReadRowReply { row: row.map(ByteBuf::from) })
    }

    pub(super) async fn read_range(self: &Arc<Self>, request: ReadRange) -> Answer {
        self.check_place(&Hash::of(&request.partition_key))?;
        let tables = self.plane()?.tables;
        let read = move |node: &Self| tables.read_range(&*node.engine.snapshot(), &request);
        reply(&self.blocking(move |node| read(node).map_err(|e| tables_error(&e))).await?)
    }

    pub(super) async fn list_keys(self: &Arc<Self>, request: ListKeys) -> Answer {
        self.check_place(&Hash::of(&request.partition_key))?;
        let tables = self.plane()?.tables;
        let list = move |node: &Self| tables.list_keys(&*node.engine.snapshot(), &request);
        reply(&self.blocking(move |node| list(node).map_err(|e| tables_error(&e))).await?)
    }

    pub(super) async fn read_counters(self: &Arc<Self>, request: ReadCounters) -> Answer {
        self.check_place(&Hash::of(&request.partition_key))?;
        let tables = self.plane()?.tables;
        let read = move |node: &Self| tables.read_counters(&*node.engine.snapshot(), &request);
        reply(&self.blocking(move |node| read(node).map_err(|e| tables_error(&e))).await?)
    }
}
