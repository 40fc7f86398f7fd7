//! "drop versions": lets go of what versions held that were replaced or deleted, and of parts of closed uploads.
//!
//! The nodes that hold the row queue the work in the row's own transaction. A version's references go only after it is
//! certain that it can't be the present one again (`versions::superseded`), parts only after it is certain that
//! their upload is closed and, if it was completed, that the object stands on a write quorum. All of it may be done twice,
//! or be cut short and begun again.

use super::members::{ask_all, members};
use super::queue_reader::{Most, QueueReader, Turn};
use super::references::{drop_manifests, drop_references, finish, read_page, subject};
use super::versions::{Fate, Subject, read_and_write_back, superseded, write_merge};
use super::{Next, Report, Worker, WorkerError};
use crate::commit::Job;
use crate::serve::Node;
use crate::tables::queue::{Entry, Kind, Work};
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::{BucketId, UploadId};
use hayloft_common::schema::{
    ObjectRow, PartRow, PartState, Row, Slot, TableId, UploadRow, index_partition_key, sort_key,
};
use hayloft_common::stamp::{MAX_MICROS, Stamp};
use hayloft_proto::message::sync::ReadHeads;
use hayloft_proto::message::table::{ReadRange, RowBytes};
use serde_bytes::ByteBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

pub const NAME: &str = "drop versions";

/// Versions seen to in one step, and bytes of their block lists.
const STEP: Most = Most { entries: 4096, bytes: 1 << 20 };
/// Uploads seen to in one step.
const STEP_UPLOADS: Most = Most { entries: 16, bytes: 1 << 20 };
/// Longest wait after a pass in which something could not be done.
const RETRY: Duration = Duration::from_mins(1);
/// Part rows read and deleted at once.
const PART_PAGE: u32 = 200;

/// See the module's head.
pub struct DropVersions(Mutex<State>);

struct State {
    versions: QueueReader,
    uploads: QueueReader,
    uploads_seen: bool,
    /// Something could not be done in the present pass.
    failed: bool,
}

impl Default for DropVersions {
    fn default() -> Self {
        Self(Mutex::new(State {
            versions: QueueReader::new(Kind::DropVersion),
            uploads: QueueReader::new(Kind::DropParts),
            uploads_seen: false,
            failed: false,
        }))
    }
}

#[async_trait]
impl Worker for DropVersions {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let turn = Turn { delay: node.settings.drop_delay, each: node.settings.takeover_delay };
        if node.cluster.layout().is_empty() {
            return Ok(Next::After(turn.look()));
        }
        let mut state = self.0.lock().await;
        let errors = report.status().errors;
        // Uploads first: their parts are versions to drop.
        if !state.uploads_seen {
            let ripe = state.uploads.next(node, &Report::default(), turn, STEP_UPLOADS, |_| true).await?;
            state.uploads_seen = ripe.is_last;
            drop_uploads(node, report, ripe.entries).await?;
        }
        let ripe = state.versions.next(node, report, turn, STEP, |_| true).await?;
        drop_versions(node, report, ripe.entries).await?;
        state.failed |= report.status().errors > errors;
        if ripe.is_last && state.uploads_seen {
            state.uploads_seen = false;
            // Without a quorum the same would fail again at once.
            let failed = std::mem::take(&mut state.failed);
            let wait = if failed { turn.delay.clamp(turn.look(), RETRY) } else { turn.look() };
            return Ok(Next::After(wait));
        }
        Ok(Next::Again)
    }
}

/// A version to drop, as it stands in the queue.
struct Queued {
    key: Bytes,
    entry: Entry,
    subject: Subject,
    blocks: Vec<Hash>,
    manifest: bool,
}

fn queued((key, entry): (Bytes, Entry)) -> Option<Queued> {
    let Work::DropVersion { version, owner, blocks, manifest_chunks } = &entry.work else { return None };
    let (subject, blocks, manifest) = (subject(*version, owner), blocks.clone(), *manifest_chunks > 0);
    Some(Queued { key, entry, subject, blocks, manifest })
}

async fn drop_versions(
    node: &Arc<Node>,
    report: &Report,
    entries: Vec<(Bytes, Entry)>,
) -> Result<(), WorkerError> {
    let queued: Vec<Queued> = entries.into_iter().filter_map(queued).collect();
    if queued.is_empty() {
        return Ok(());
    }
    let subjects: Vec<Subject> = queued.iter().map(|queued| queued.subject.clone()).collect();
    let (fates, failed) = superseded(node, &subjects).await?;
    note(node, report, failed);
    let (mut gone, mut wanted) = (Vec::new(), Vec::new());
    for (queued, fate) in queued.into_iter().zip(fates) {
        match fate {
            Fate::Gone => gone.push(queued),
            // When it is replaced for good, that will queue it again.
            Fate::Wanted => wanted.push((queued.key, queued.entry)),
            Fate::Unknown => {}
        }
    }
    if !wanted.is_empty() {
        node.plane()?.commit.submit(Job::done(wanted)).await?;
    }
    let dropped: Vec<(Subject, Vec<Hash>)> =
        gone.iter().map(|queued| (queued.subject.clone(), queued.blocks.clone())).collect();
    let (done, failed) = drop_references(node, &dropped).await?;
    note(node, report, failed);
    let mut finished = Vec::with_capacity(gone.len());
    for (queued, mut done) in gone.into_iter().zip(done) {
        if done && queued.manifest {
            let dropped = drop_manifests(node, &queued.subject).await;
            done = dropped.is_ok();
            note(node, report, dropped.err());
        }
        if done {
            finished.push((queued.key, queued.entry));
        }
    }
    report.count(finished.len() as u64, 0);
    finish(node, finished).await
}

/// An error that did not keep other work from being done. What failed stays in the queue.
pub(super) fn note(node: &Node, report: &Report, error: Option<WorkerError>) {
    if let Some(error) = error {
        tracing::debug!(%error, "background work has to wait");
        report.error(node.env.now(), &error);
    }
}

async fn drop_uploads(
    node: &Arc<Node>,
    report: &Report,
    entries: Vec<(Bytes, Entry)>,
) -> Result<(), WorkerError> {
    let (mut finished, mut open) = (Vec::new(), Vec::new());
    for (key, entry) in entries {
        let Work::DropParts { bucket, shard, key: object, upload } = &entry.work else { continue };
        let upload = Upload { bucket: *bucket, shard: *shard, key: object.clone(), upload: *upload };
        match upload.drop_parts(node).await {
            Ok(true) => finished.push((key, entry)),
            // When it is closed, that will queue it again.
            Ok(false) => open.push((key, entry)),
            Err(error) => note(node, report, Some(error)),
        }
    }
    if !open.is_empty() {
        node.plane()?.commit.submit(Job::done(open)).await?;
    }
    report.count(finished.len() as u64, 0);
    finish(node, finished).await
}

struct Upload {
    bucket: BucketId,
    shard: u16,
    key: String,
    upload: UploadId,
}

impl Upload {
    fn partition_key(&self) -> Vec<u8> {
        index_partition_key(&self.bucket, self.shard)
    }

    /// Deletes the parts of a closed upload. False: it is open.
    async fn drop_parts(&self, node: &Arc<Node>) -> Result<bool, WorkerError> {
        let partition_key = self.partition_key();
        let sort_key = UploadRow::sort_key_of(&self.key, &self.upload);
        // That it is closed must be certain before anything that an open one needs is deleted.
        let row = read_and_write_back(node, TableId::Upload, &partition_key, &sort_key).await?;
        let row: Option<UploadRow> = row.as_deref().map(decode).transpose()?;
        if row.as_ref().is_some_and(Row::is_live) {
            return Ok(false);
        }
        if let Some(completed) = row.and_then(|row| row.completed) {
            self.keep_object(node, completed).await?;
        }
        let (place, to) = (Hash::of(&partition_key), sort_key::after_prefix(&sort_key));
        let mut from = sort_key;
        loop {
            let ask = ReadRange {
                table: TableId::Part,
                partition_key: partition_key.clone(),
                from: from.clone(),
                to: to.clone().map(ByteBuf::from),
                limit: PART_PAGE,
            };
            let (rows, next) = read_page::<PartRow>(node, place, ask).await?;
            let deleted: Vec<RowBytes> = rows.iter().filter(|row| row.is_live()).map(tombstone).collect();
            if !deleted.is_empty() {
                write_merge(node, place, deleted).await?;
            }
            match next {
                Some(next) if next > from => from = next,
                _ => return Ok(true),
            }
        }
    }

    /// Sees to it that the object which the upload was completed to, or what replaced it, stands on a write quorum: a
    /// complete that got no answer may have left it on one node, and without the parts nobody could repeat it.
    async fn keep_object(&self, node: &Arc<Node>, completed: Stamp) -> Result<(), WorkerError> {
        let partition_key = self.partition_key();
        let sort_key = ObjectRow::sort_key_of(&self.key, Slot::Null);
        let row = read_and_write_back(node, TableId::Object, &partition_key, &sort_key).await?;
        let row: Option<ObjectRow> = row.as_deref().map(decode).transpose()?;
        if row.is_some_and(|row| row.stamp >= completed) {
            return Ok(());
        }
        // Not seen: it is elsewhere, or was deleted since and the tombstone is gone. All nodes together know.
        let layout = node.cluster.layout();
        let nodes = members(&layout, layout.partition_of_key(&partition_key));
        let ask =
            ReadHeads { table: TableId::Object, partition_key, sort_keys: vec![ByteBuf::from(sort_key)] };
        for reply in ask_all(node, layout.epoch, &nodes, &ask).await? {
            for bytes in reply.rows.iter().flatten() {
                let row: ObjectRow = decode(bytes)?;
                if row.stamp >= completed {
                    let text = "a completed object is not on enough nodes yet; its upload's parts are kept";
                    return Err(WorkerError::Other(text.into()));
                }
            }
        }
        Ok(())
    }
}

fn decode<R: Row>(bytes: &[u8]) -> Result<R, WorkerError> {
    codec::decode(bytes).map_err(|error| WorkerError::Other(error.to_string()))
}

/// The row that deletes a part: right above it, and the same whoever makes it.
fn tombstone(part: &PartRow) -> RowBytes {
    let Stamp { micros, writer } = part.stamp;
    let stamp = if micros < MAX_MICROS {
        Stamp { micros: micros + 1, writer }
    } else {
        Stamp { micros, writer: writer.saturating_add(1) }
    };
    let row = PartRow { stamp, state: PartState::Tombstone, ..part.clone() };
    RowBytes { table: TableId::Part, bytes: codec::encode(&row) }
}
