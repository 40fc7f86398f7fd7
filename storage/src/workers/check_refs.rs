//! "check references": finds blocks that are held for versions which were never committed, and lets go of them.
//!
//! Every arrival of a live reference, renewals included, queues (re-dates) a look at it. Committed versions are most of
//! what is found; their references are let be. A reference is dropped only if
//!
//! - it was not renewed for `uncommitted_age` on this node, by a clock that ran evenly all the while, nor, by theirs, on a
//!   read quorum of those that hold it. A writer that renews has a write quorum to confirm it and gives up its version long
//!   before that age if it gets none; so no writer means to commit the version any more;
//! - and every node that holds the row which would make it wanted answered that it does not have it.

use super::drop_versions::note;
use super::queue_reader::{Most, QueueReader, Turn, dated};
use super::references::{drop_manifests, drop_references, finish};
use super::versions::{Commit, Subject, committed, no_quorum};
use super::{Next, Report, Worker, WorkerError, pull};
use crate::commit::Job;
use crate::serve::Node;
use crate::tables::queue::{self, Entry, Kind, Work};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::schema::BlockRefRow;
use hayloft_proto::fanout;
use hayloft_proto::message::sync::{MAX_REFERENCES, ReadRenewals};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

pub const NAME: &str = "check references";

/// References looked at in one step.
const STEP: Most = Most { entries: 4096, bytes: 1 << 20 };
/// Questions under way at once.
const PARALLEL: usize = 16;

/// See the module's head.
pub struct CheckRefs(Mutex<QueueReader>);

impl Default for CheckRefs {
    fn default() -> Self {
        Self(Mutex::new(QueueReader::new(Kind::CheckRef)))
    }
}

#[async_trait]
impl Worker for CheckRefs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tranquility(&self) -> u32 {
        2
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let age = node.settings.uncommitted_age;
        let turn = Turn { delay: age, each: node.settings.takeover_delay };
        if node.cluster.layout().is_empty() {
            return Ok(Next::After(turn.look()));
        }
        let even = node.clock_watch.even_for(&node.env);
        if even < age {
            let left = age.saturating_sub(even).min(turn.look());
            return Ok(Next::After(left.max(Duration::from_millis(1))));
        }
        let mut reader = self.0.lock().await;
        let ripe = reader.next(node, report, turn, STEP, |_| true).await?;
        check(node, report, ripe.entries).await?;
        Ok(if ripe.is_last { Next::After(turn.look()) } else { Next::Again })
    }
}

/// A reference that is there, and its place in the queue.
struct Reference {
    key: Bytes,
    entry: Entry,
    block: Hash,
    subject: Subject,
}

async fn check(node: &Arc<Node>, report: &Report, entries: Vec<(Bytes, Entry)>) -> Result<(), WorkerError> {
    if entries.is_empty() {
        return Ok(());
    }
    let (live, mut finished) = stored(node, entries).await?;
    let subjects: Vec<Subject> =
        live.iter().map(|reference| reference.subject.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let (commits, failed) = committed(node, &subjects).await?;
    note(node, report, failed);
    let commits: BTreeMap<Subject, Commit> = subjects.into_iter().zip(commits).collect();
    let (mut abandoned, mut later) = (Vec::new(), Vec::new());
    for reference in live {
        match commits.get(&reference.subject) {
            Some(Commit::Committed) => finished.push((reference.key, reference.entry)),
            Some(Commit::Unsettled) => later.push((reference.key, reference.entry)),
            Some(Commit::Abandoned) => abandoned.push(reference),
            Some(Commit::Unknown) | None => {}
        }
    }
    let renewed = renewed(node, report, &mut abandoned).await?;
    later.extend(renewed.into_iter().map(|reference| (reference.key, reference.entry)));
    if !later.is_empty() {
        let batch = queue::entries(dated(later), node.env.wall_millis());
        node.plane()?.commit.submit(Job::entries(batch)).await?;
    }
    finished.extend(drop_abandoned(node, report, abandoned).await?);
    report.count(finished.len() as u64, 0);
    finish(node, finished).await
}

/// The references that are live here, and the entries of those that are not.
async fn stored(
    node: &Arc<Node>,
    entries: Vec<(Bytes, Entry)>,
) -> Result<(Vec<Reference>, Vec<(Bytes, Entry)>), WorkerError> {
    let tables = node.plane()?.tables;
    pull::reading(node, move |node| {
        let view = node.engine.snapshot();
        let (mut live, mut gone) = (Vec::new(), Vec::new());
        for (key, entry) in entries {
            let Work::CheckRef { block, version } = &entry.work else { continue };
            let row = tables.row::<BlockRefRow>(&*view, block.as_bytes(), version.as_bytes())?;
            match row.filter(|row| !row.deleted) {
                Some(row) => {
                    let subject = Subject { version: row.version, owner: row.owner };
                    live.push(Reference { key, block: row.block, subject, entry });
                }
                None => gone.push((key, entry)),
            }
        }
        Ok((live, gone))
    })
    .await
}

/// Takes out of `abandoned` the references of versions of which one was renewed of late on another node; those of which
/// too few nodes say anything are dropped from the list, to be looked at again.
async fn renewed(
    node: &Arc<Node>,
    report: &Report,
    abandoned: &mut Vec<Reference>,
) -> Result<Vec<Reference>, WorkerError> {
    let tables = node.plane()?.tables;
    let mut groups: BTreeMap<u16, Vec<(Hash, VersionId)>> = BTreeMap::new();
    for reference in &*abandoned {
        let partition = tables.partition(reference.block.as_bytes());
        groups.entry(partition).or_default().push((reference.block, reference.subject.version));
    }
    let mut calls = Vec::new();
    for group in groups.into_values() {
        for references in group.chunks(MAX_REFERENCES).map(<[_]>::to_vec) {
            calls.push(async move {
                let place = references.first().map(|(block, _)| Hash::of(block.as_bytes()));
                let ask = ReadRenewals { references: references.clone() };
                let replies = match place {
                    Some(place) => fanout::read(&node.cluster, place, ask).await.map_err(no_quorum),
                    None => Ok(Vec::new()),
                };
                (references, replies)
            });
        }
    }
    let answers: Vec<_> = stream::iter(calls).buffer_unordered(PARALLEL).collect().await;
    let least = node.settings.uncommitted_age.as_millis();
    let (mut young, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for (references, replies) in answers {
        match replies {
            Ok(replies) => {
                for (index, (_, version)) in references.iter().enumerate() {
                    let mut ages = replies.iter().filter_map(|(_, reply)| *reply.ages_ms.get(index)?);
                    if ages.any(|age| u128::from(age) < least) {
                        young.insert(*version);
                    }
                }
            }
            Err(error) => {
                unknown.extend(references.into_iter().map(|(_, version)| version));
                note(node, report, Some(error));
            }
        }
    }
    let (renewed, rest): (Vec<_>, Vec<_>) = std::mem::take(abandoned)
        .into_iter()
        .partition(|reference| young.contains(&reference.subject.version));
    *abandoned = rest.into_iter().filter(|reference| !unknown.contains(&reference.subject.version)).collect();
    Ok(renewed)
}

/// Drops the references of versions that nobody will commit, and their manifest rows. Returns what is finished.
async fn drop_abandoned(
    node: &Arc<Node>,
    report: &Report,
    abandoned: Vec<Reference>,
) -> Result<Vec<(Bytes, Entry)>, WorkerError> {
    let mut versions: BTreeMap<Subject, Vec<Reference>> = BTreeMap::new();
    for reference in abandoned {
        versions.entry(reference.subject.clone()).or_default().push(reference);
    }
    let dropped: Vec<(Subject, Vec<Hash>)> = versions
        .iter()
        .map(|(subject, references)| (subject.clone(), references.iter().map(|r| r.block).collect()))
        .collect();
    let (done, failed) = drop_references(node, &dropped).await?;
    note(node, report, failed);
    let mut finished = Vec::new();
    for ((subject, references), done) in versions.into_iter().zip(done) {
        if !done {
            continue;
        }
        match drop_manifests(node, &subject).await {
            Ok(_) => {
                tracing::info!(
                    version = %subject.version, blocks = references.len(),
                    "dropped references of a version that was never committed"
                );
                finished.extend(references.into_iter().map(|r| (r.key, r.entry)));
            }
            Err(error) => note(node, report, Some(error)),
        }
    }
    Ok(finished)
}
