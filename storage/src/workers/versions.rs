//! Which versions are still wanted: asking the rows that decide it, many at once.
//!
//! Two questions with different answers to a silent node:
//!
//! - [`superseded`], for a version that this node saw replaced: a read quorum and this node's own row say what is there
//!   now. Before the answer is "gone", what replaced the version stands on a write quorum: so the version can't win again,
//!   wherever a late copy of its row turns up.
//! - [`committed`], for a version of which only references were seen: "abandoned" only if *every* node that holds the
//!   deciding row answered that it does not have the version. A commit that got no answer may have left it on one node,
//!   and from there it would spread.

use super::members::{ask_all, members};
use super::{WorkerError, pull};
use crate::serve::Node;
use futures::stream::{self, StreamExt as _};
use hayloft_common::codec;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::schema::{
    BlockOwner, ObjectRow, PartRow, Row, RowError, Slot, TableId, index_partition_key,
};
use hayloft_proto::error::RpcError;
use hayloft_proto::fanout::{self, Verdict};
use hayloft_proto::message::sync::{MAX_READ_HEADS, ReadHeads};
use hayloft_proto::message::table::{ReadRow, RowBytes, WriteMode, WriteRows, WriteRowsReply};
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Questions under way at once.
const PARALLEL: usize = 16;
/// A merge is not written back when its read began longer ago: it might bring back what a tombstone removed that was
/// collected since.
const WRITE_BACK_AGE: Duration = Duration::from_secs(30);

/// A version and who decides on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub(super) version: VersionId,
    pub(super) owner: BlockOwner,
}

/// What became of a version that was replaced somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is the present one.
    Wanted,
    /// It is not, and won't be again.
    Gone,
    /// Too few nodes answered.
    Unknown,
}

/// What became of a version that references were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    /// It is the present one.
    Committed,
    /// No node has it.
    Abandoned,
    /// Some have it and some do not: their rows are being made equal.
    Unsettled,
    /// Not all nodes answered.
    Unknown,
}

/// Where a row lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    table: TableId,
    partition_key: Vec<u8>,
    sort_key: Vec<u8>,
}

impl Place {
    fn of(owner: &BlockOwner) -> Self {
        match owner {
            BlockOwner::Object { bucket, shard, key } => Self {
                table: TableId::Object,
                partition_key: index_partition_key(bucket, *shard),
                sort_key: ObjectRow::sort_key_of(key, Slot::Null),
            },
            BlockOwner::Part { bucket, shard, key, upload, number } => Self {
                table: TableId::Part,
                partition_key: index_partition_key(bucket, *shard),
                sort_key: PartRow::sort_key_of(key, upload, *number),
            },
        }
    }

    fn hash(&self) -> Hash {
        Hash::of(&self.partition_key)
    }

    fn read(&self) -> ReadRow {
        ReadRow {
            table: self.table,
            partition_key: self.partition_key.clone(),
            sort_key: self.sort_key.clone(),
        }
    }
}

/// A row that holds one version.
trait Versioned: Row {
    fn version(&self) -> Option<VersionId>;
}

impl Versioned for ObjectRow {
    fn version(&self) -> Option<VersionId> {
        self.live().map(|version| version.id)
    }
}

impl Versioned for PartRow {
    fn version(&self) -> Option<VersionId> {
        self.live().map(|version| version.id)
    }
}

/// What several nodes say of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Judged {
    /// The version of the merged row.
    version: Option<VersionId>,
    /// The versions that any of them has.
    held: BTreeSet<VersionId>,
    /// Whether one of them lacks something.
    differ: bool,
}

fn judge(table: TableId, rows: &[Option<Vec<u8>>]) -> Result<Judged, RowError> {
    match table {
        TableId::Part => judge_rows::<PartRow>(rows),
        _ => judge_rows::<ObjectRow>(rows),
    }
}

fn judge_rows<R: Versioned>(rows: &[Option<Vec<u8>>]) -> Result<Judged, RowError> {
    let mut merged: Option<R> = None;
    let mut held = BTreeSet::new();
    for bytes in rows.iter().flatten() {
        let row: R = codec::decode(bytes)?;
        held.extend(row.version());
        match &mut merged {
            Some(merged) => merged.merge(&row),
            None => merged = Some(row),
        }
    }
    Ok(Judged {
        version: merged.as_ref().and_then(R::version),
        held,
        differ: rows.windows(2).any(|pair| pair[0] != pair[1]),
    })
}

/// Rows that several nodes hold at one place, without details.
type Heads = BTreeMap<Place, Vec<Option<Vec<u8>>>>;

/// Groups places as [`ReadHeads`] asks for them.
fn questions(places: impl IntoIterator<Item = Place>) -> Vec<ReadHeads> {
    let mut groups: BTreeMap<(TableId, Vec<u8>), Vec<ByteBuf>> = BTreeMap::new();
    for place in places {
        groups.entry((place.table, place.partition_key)).or_default().push(ByteBuf::from(place.sort_key));
    }
    let cut = |((table, partition_key), keys): ((TableId, Vec<u8>), Vec<ByteBuf>)| {
        let ask = move |keys: &[ByteBuf]| ReadHeads {
            table,
            partition_key: partition_key.clone(),
            sort_keys: keys.to_vec(),
        };
        keys.chunks(MAX_READ_HEADS).map(ask).collect::<Vec<_>>()
    };
    groups.into_iter().flat_map(cut).collect()
}

/// Sorts the answers of several nodes to one question by place.
fn by_place(asked: &ReadHeads, replies: Vec<Vec<Option<ByteBuf>>>) -> Heads {
    let mut heads = Heads::new();
    for (index, sort_key) in asked.sort_keys.iter().enumerate() {
        let place = Place {
            table: asked.table,
            partition_key: asked.partition_key.clone(),
            sort_key: sort_key.to_vec(),
        };
        let row = |reply: &Vec<Option<ByteBuf>>| reply.get(index).cloned().flatten().map(ByteBuf::into_vec);
        heads.insert(place, replies.iter().map(row).collect());
    }
    heads
}

/// What a read quorum holds; places for which there was none are left out, with the last error.
async fn quorum_heads(node: &Arc<Node>, places: BTreeSet<Place>) -> (Heads, Option<WorkerError>) {
    let asked = questions(places).into_iter().map(|question| async move {
        let place = Hash::of(&question.partition_key);
        let replies = fanout::read(&node.cluster, place, question.clone()).await;
        (question, replies)
    });
    let answers: Vec<_> = stream::iter(asked.collect::<Vec<_>>()).buffered(PARALLEL).collect().await;
    let (mut heads, mut failed) = (Heads::new(), None);
    for (question, replies) in answers {
        match replies {
            Ok(replies) => {
                let rows = replies.into_iter().map(|(_, reply)| reply.rows).collect();
                heads.extend(by_place(&question, rows));
            }
            Err(error) => failed = Some(WorkerError::Other(error.to_string())),
        }
    }
    (heads, failed)
}

/// What every node holds that takes writes of the places; those for which one did not answer are left out.
async fn all_heads(node: &Arc<Node>, places: BTreeSet<Place>) -> (Heads, Option<WorkerError>) {
    let layout = node.cluster.layout();
    let asked = questions(places).into_iter().map(|question| {
        let layout = layout.clone();
        async move {
            let nodes = members(&layout, layout.partition_of_key(&question.partition_key));
            let replies = ask_all(node, layout.epoch, &nodes, &question).await;
            (question, replies)
        }
    });
    let answers: Vec<_> = stream::iter(asked.collect::<Vec<_>>()).buffered(PARALLEL).collect().await;
    let (mut heads, mut failed) = (Heads::new(), None);
    for (question, replies) in answers {
        match replies {
            Ok(replies) => {
                heads.extend(by_place(&question, replies.into_iter().map(|reply| reply.rows).collect()));
            }
            Err(error) => failed = Some(error.into()),
        }
    }
    (heads, failed)
}

/// Adds this node's own rows to those of others.
async fn with_own(node: &Arc<Node>, mut heads: Heads) -> Result<Heads, WorkerError> {
    let tables = node.plane()?.tables;
    pull::reading(node, move |node| {
        let (view, layout) = (node.engine.snapshot(), node.cluster.layout());
        for (place, rows) in &mut heads {
            if node.is_member(layout.partition_of(&place.hash())) {
                rows.push(tables.read_short(&*view, &place.read())?);
            }
        }
        Ok(heads)
    })
    .await
}

/// For versions that this node saw replaced: one fate each, in order, and the last error.
pub(super) async fn superseded(
    node: &Arc<Node>,
    subjects: &[Subject],
) -> Result<(Vec<Fate>, Option<WorkerError>), WorkerError> {
    let places: BTreeSet<Place> = subjects.iter().map(|subject| Place::of(&subject.owner)).collect();
    let (heads, mut failed) = quorum_heads(node, places).await;
    let heads = with_own(node, heads).await?;
    let mut fates = vec![Fate::Unknown; subjects.len()];
    let mut unsettled: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
    for (index, subject) in subjects.iter().enumerate() {
        let place = Place::of(&subject.owner);
        let Some(rows) = heads.get(&place) else { continue };
        match judge(place.table, rows) {
            Ok(judged) if judged.version == Some(subject.version) => fates[index] = Fate::Wanted,
            Ok(judged) if !judged.differ => fates[index] = Fate::Gone,
            Ok(_) => unsettled.entry(place).or_default().push(index),
            Err(error) => failed = Some(WorkerError::Other(error.to_string())),
        }
    }
    let settled = unsettled.into_iter().map(|(place, indexes)| async move {
        let version = settle(node, &place).await;
        (indexes, version)
    });
    let settled: Vec<_> = stream::iter(settled.collect::<Vec<_>>()).buffered(PARALLEL).collect().await;
    for (indexes, version) in settled {
        match version {
            Ok(version) => {
                for index in indexes {
                    let wanted = version == Some(subjects[index].version);
                    fates[index] = if wanted { Fate::Wanted } else { Fate::Gone };
                }
            }
            Err(error) => failed = Some(error),
        }
    }
    Ok((fates, failed))
}

/// The version that a row holds by a read quorum and this node, made durable on a write quorum.
async fn settle(node: &Arc<Node>, place: &Place) -> Result<Option<VersionId>, WorkerError> {
    let rows = read_and_write_back(node, place.table, &place.partition_key, &place.sort_key).await?;
    let judged = judge(place.table, std::slice::from_ref(&rows));
    Ok(judged.map_err(|error| WorkerError::Other(error.to_string()))?.version)
}

/// A row as a read quorum and this node know it; if they differ, the merge is written to a write quorum first.
pub(super) async fn read_and_write_back(
    node: &Arc<Node>,
    table: TableId,
    partition_key: &[u8],
    sort_key: &[u8],
) -> Result<Option<Vec<u8>>, WorkerError> {
    let began = Began::now(&node.env);
    let ask = ReadRow { table, partition_key: partition_key.to_vec(), sort_key: sort_key.to_vec() };
    let place = Hash::of(partition_key);
    let replies = fanout::read(&node.cluster, place, ask.clone()).await.map_err(no_quorum)?;
    let mut rows: Vec<Option<Vec<u8>>> =
        replies.into_iter().map(|(_, reply)| reply.row.map(ByteBuf::into_vec)).collect();
    let tables = node.plane()?.tables;
    let own = pull::reading(node, move |node| {
        let counts = node.is_member(node.cluster.layout().partition_of(&place));
        let row = tables.read_row(&*node.engine.snapshot(), &ask)?;
        Ok(counts.then_some(row))
    })
    .await?;
    rows.extend(own);
    let (merged, differ) = merge_rows(table, &rows)?;
    if let Some(row) = merged.as_ref().filter(|_| differ) {
        if began.is_older(&node.env, WRITE_BACK_AGE) {
            return Err(RpcError::Timeout.into());
        }
        let row = RowBytes { table, bytes: row.clone() };
        write_merge(node, place, vec![row]).await?;
    }
    Ok(merged)
}

fn merge_rows(table: TableId, rows: &[Option<Vec<u8>>]) -> Result<(Option<Vec<u8>>, bool), WorkerError> {
    fn merge<R: Row>(rows: &[Option<Vec<u8>>]) -> Result<Option<Vec<u8>>, RowError> {
        let mut merged: Option<R> = None;
        for bytes in rows.iter().flatten() {
            let row: R = codec::decode(bytes)?;
            match &mut merged {
                Some(merged) => merged.merge(&row),
                None => merged = Some(row),
            }
        }
        Ok(merged.as_ref().map(codec::encode))
    }
    let merged = crate::tables::with_row!(table, R => merge::<R>(rows));
    let differ = rows.windows(2).any(|pair| pair[0] != pair[1]);
    Ok((merged.map_err(|error| WorkerError::Other(error.to_string()))?, differ))
}

/// For versions of which references were made: what became of each, in order, and the last error.
pub(super) async fn committed(
    node: &Arc<Node>,
    subjects: &[Subject],
) -> Result<(Vec<Commit>, Option<WorkerError>), WorkerError> {
    let place_of = |subject: &Subject| Place::of(&subject.owner);
    let places: BTreeSet<Place> = subjects.iter().map(place_of).collect();
    let (heads, mut failed) = quorum_heads(node, places).await;
    let mut commits = vec![Commit::Unknown; subjects.len()];
    let mut doubtful = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let place = place_of(subject);
        let Some(rows) = heads.get(&place) else { continue };
        match judge(place.table, rows) {
            Ok(judged) if judged.version == Some(subject.version) && !judged.differ => {
                commits[index] = Commit::Committed;
            }
            Ok(judged) if judged.held.contains(&subject.version) => commits[index] = Commit::Unsettled,
            Ok(_) => doubtful.push(index),
            Err(error) => failed = Some(WorkerError::Other(error.to_string())),
        }
    }
    let places: BTreeSet<Place> = doubtful.iter().map(|index| place_of(&subjects[*index])).collect();
    let (heads, error) = all_heads(node, places).await;
    failed = error.or(failed);
    for index in doubtful {
        let place = place_of(&subjects[index]);
        let Some(rows) = heads.get(&place) else { continue };
        match judge(place.table, rows) {
            Ok(judged) if judged.held.contains(&subjects[index].version) => {
                commits[index] = Commit::Unsettled;
            }
            Ok(_) => commits[index] = Commit::Abandoned,
            Err(error) => failed = Some(WorkerError::Other(error.to_string())),
        }
    }
    Ok((commits, failed))
}

/// Merges rows of one partition on a write quorum.
pub(super) async fn write_merge(
    node: &Arc<Node>,
    place: Hash,
    rows: Vec<RowBytes>,
) -> Result<(), WorkerError> {
    let write = WriteRows { mode: WriteMode::Merge, rows };
    let accept = |_: &WriteRowsReply| Verdict::Accept;
    fanout::write(&node.cluster, place, write, bytes::Bytes::new(), accept).await.map_err(no_quorum)?;
    Ok(())
}

/// An operation that found no quorum, as an error of a worker.
pub(super) fn no_quorum<R>(error: fanout::FanoutError<R>) -> WorkerError {
    WorkerError::Other(error.to_string())
}

/// When something began, by both clocks: a machine that was suspended may show it on one only.
#[derive(Clone, Copy)]
pub(super) struct Began {
    now: Duration,
    wall_ms: u64,
}

impl Began {
    pub(super) fn now(env: &Env) -> Self {
        Self { now: env.now(), wall_ms: env.wall_millis() }
    }

    /// Whether more than `age` has passed since.
    pub(super) fn is_older(&self, env: &Env, age: Duration) -> bool {
        let by_wall = Duration::from_millis(env.wall_millis().saturating_sub(self.wall_ms));
        env.now().saturating_sub(self.now) > age || by_wall > age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::id::BucketId;
    use hayloft_common::schema::{ObjectData, ObjectDetail, ObjectState, ObjectVersion};
    use hayloft_common::stamp::Stamp;

    #[expect(clippy::unnecessary_wraps, reason = "as a node answers")]
    fn row(micros: u64, version: Option<u8>) -> Option<Vec<u8>> {
        let detail =
            ObjectDetail { headers: vec![], checksum: None, parts: vec![], data: ObjectData::Inline(vec![]) };
        let live = |id| {
            ObjectState::Live(Box::new(ObjectVersion {
                id: VersionId([id; 16]),
                modified_ms: 0,
                size: 0,
                etag: String::new(),
                checksum: None,
                detail: Some(Box::new(detail)),
            }))
        };
        Some(codec::encode(&ObjectRow {
            bucket: BucketId([1; 16]),
            shard: 0,
            key: "k".into(),
            slot: Slot::Null,
            stamp: Stamp { micros, writer: 1 },
            state: version.map_or(ObjectState::Tombstone, live),
        }))
    }

    #[test]
    fn the_newest_row_decides_and_older_ones_are_remembered() {
        let judged = judge(TableId::Object, &[row(1, Some(1)), row(2, Some(2)), None]).unwrap();
        assert_eq!((judged.version, judged.differ), (Some(VersionId([2; 16])), true));
        assert_eq!(judged.held, BTreeSet::from([VersionId([1; 16]), VersionId([2; 16])]));
        let judged = judge(TableId::Object, &[row(3, None), row(2, Some(2))]).unwrap();
        assert_eq!((judged.version, judged.differ), (None, true));
        let judged = judge(TableId::Object, &[None, None]).unwrap();
        assert_eq!((judged.version, judged.differ), (None, false));
        assert!(judge(TableId::Object, &[Some(vec![9])]).is_err());
    }

    #[test]
    fn questions_are_grouped_by_partition_key_and_answers_find_their_rows() {
        let owner = |shard: u16, key: usize| BlockOwner::Object {
            bucket: BucketId([1; 16]),
            shard,
            key: format!("{key:05}"),
        };
        let places: Vec<Place> = (0..501).map(|key| Place::of(&owner(0, key))).collect();
        let asked = questions(places.iter().cloned().chain([Place::of(&owner(1, 0))]));
        assert_eq!(asked.iter().map(|ask| ask.sort_keys.len()).collect::<Vec<_>>(), [500, 1, 1]);
        let theirs = vec![Some(ByteBuf::from(vec![7]))];
        let heads = by_place(&asked[1], vec![theirs, vec![]]);
        assert_eq!(heads.get(&places[500]), Some(&vec![Some(vec![7]), None]));
    }
}
