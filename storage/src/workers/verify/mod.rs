//! Looking through everything this node holds for what should not be: rows, references and blocks that nothing needs,
//! and what is needed and missing. Changes nothing; `hayloft verify` runs it on all nodes and adds the findings up.
//!
//! A finding is *wrong* only if no queued work will see to it; what is queued is *pending*. In a cluster that is being
//! written to, a thing may be on its way between two looks: what looks wrong is looked at again before it is counted.
//! Questions that concern several nodes (has a reference its version, are replicas equal) are asked by the first node of
//! the partition's set alone, so that each is counted once.
//!
//! `rows` reads a page of a partition, `ask` puts questions to other nodes, `disks` compares index and disks.

mod ask;
mod disks;
mod rows;

use super::{Next, Report, Worker, WorkerError};
use crate::serve::Node;
use async_trait::async_trait;
use hayloft_common::layout::Partition;
use hayloft_common::schema::TableId;
use hayloft_proto::message::operate::Findings;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Findings named in full.
const SAMPLES: usize = 20;
const NAME: &str = "verify";

/// What the last verification found, and where the present one is.
#[derive(Default)]
pub struct Verification(Mutex<State>);

#[derive(Default)]
struct State {
    findings: Findings,
    cursor: Option<Cursor>,
}

/// Where a verification is.
#[derive(Clone)]
struct Cursor {
    round: u64,
    partitions: Vec<Partition>,
    /// Index into `partitions`; beyond the last one the disks come.
    at: usize,
    /// Index into [`TableId::ALL`].
    table: usize,
    /// The stored key to go on from, within partition and table.
    from: Option<Vec<u8>>,
}

impl Verification {
    pub fn findings(&self) -> Findings {
        self.0.lock().findings.clone()
    }

    fn begin(&self, partitions: Vec<Partition>) {
        let mut state = self.0.lock();
        let round = state.findings.round + 1;
        let progress = (0, partitions.len() as u64 + 1);
        state.findings = Findings { round, running: true, progress, ..Findings::default() };
        state.cursor = Some(Cursor { round, partitions, at: 0, table: 0, from: None });
    }

    fn cursor(&self) -> Option<Cursor> {
        self.0.lock().cursor.clone()
    }

    /// Adds what a step found and goes on at `next` (none: the round is over), unless another round was begun meanwhile.
    fn add(&self, round: u64, found: Found, next: Option<Cursor>) {
        let mut state = self.0.lock();
        if state.findings.round != round {
            return;
        }
        let findings = &mut state.findings;
        findings.rows += found.rows;
        findings.references += found.references;
        findings.blocks += found.blocks;
        findings.block_bytes += found.block_bytes;
        for (kind, text) in found.wrong {
            *findings.wrong.entry(kind.into()).or_default() += 1;
            if findings.samples.len() < SAMPLES {
                findings.samples.push(format!("{kind}: {text}"));
            }
        }
        for (kind, count) in found.pending {
            *findings.pending.entry(kind.into()).or_default() += count;
        }
        findings.running = next.is_some();
        findings.progress.0 = next.as_ref().map_or(findings.progress.1, |next| next.at as u64);
        state.cursor = next;
    }
}

/// What one step found.
#[derive(Default)]
struct Found {
    rows: u64,
    references: u64,
    blocks: u64,
    block_bytes: u64,
    wrong: Vec<(&'static str, String)>,
    pending: BTreeMap<&'static str, u64>,
}

impl Found {
    fn wrong(&mut self, kind: &'static str, what: impl Into<String>) {
        self.wrong.push((kind, what.into()));
    }

    fn pending(&mut self, kind: &'static str) {
        *self.pending.entry(kind).or_default() += 1;
    }
}

/// Begins a verification of this node, in place of one that runs.
pub fn start(node: &Arc<Node>) {
    let layout = node.cluster.layout();
    let all = 0..(1u32 << layout.current.bits);
    let partitions = all.map(|p| Partition(p as u16)).filter(|p| layout.holds(node.id, *p)).collect();
    node.verification.begin(partitions);
    node.workers.wake(NAME);
}

/// The worker.
pub struct Verify;

#[async_trait]
impl Worker for Verify {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn step(&self, node: &Arc<Node>, report: &Report) -> Result<Next, WorkerError> {
        let Some(cursor) = node.verification.cursor() else {
            return Ok(Next::After(Duration::from_hours(1)));
        };
        let mut found = Found::default();
        let next = if let Some(&partition) = cursor.partitions.get(cursor.at) {
            let from = cursor.from.clone();
            let page = rows::page(node, partition, TableId::ALL[cursor.table], from).await?;
            let next = page.next.clone();
            ask::claims(node, page, &mut found).await?;
            let table_done = next.is_none();
            let table = if table_done { cursor.table + 1 } else { cursor.table };
            if table == TableId::ALL.len() {
                rows::sums(node, partition, &mut found).await?;
                ask::replicas(node, partition, &mut found).await?;
                Some(Cursor { at: cursor.at + 1, table: 0, from: None, ..cursor.clone() })
            } else {
                Some(Cursor { table, from: next, ..cursor.clone() })
            }
        } else {
            disks::index(node, &mut found).await?;
            disks::files(node, &mut found).await?;
            disks::queue(node, &mut found).await?;
            None
        };
        report.progress(cursor.at as u64, cursor.partitions.len() as u64 + 1);
        report.count(found.rows, 0);
        node.verification.add(cursor.round, found, next);
        Ok(Next::Again)
    }
}
