//! Reading the queue of work for one kind: what is ripe, whose turn it is, and how long to wait.
//!
//! Every replica of a row queues the work that follows from it. The first node of the partition's current set does it
//! when it is ripe, the others so much later ([`Turn`]) that they find it done unless the first one could not. Work of
//! partitions that this node has no part in is left alone: it goes with the partition's rows.
//!
//! A pass over the queue is cut in steps of bounded work. Between passes the reader waits for a fraction of the delay, so
//! that looking costs nothing when there is nothing: work can't ripen sooner than its delay.
//!
//! Dates are by this node's wall clock. Work dated in the future (the clock was put back) gets the present date.

use super::members::rank;
use super::{Report, WorkerError, pull};
use crate::commit::Job;
use crate::meta::{Direction, Space, Step, View};
use crate::serve::Node;
use crate::tables::TablesError;
use crate::tables::queue::{self, Entry, Kind, Work};
use bytes::Bytes;
use hayloft_common::codec;
use hayloft_common::id::NodeId;
use hayloft_common::layout::{ActiveLayout, Partition};
use std::sync::Arc;
use std::time::Duration;

/// Entries looked at in one step: some 20 ms.
const VISITS: usize = 20_000;
/// Entries dated so far ahead get a new date; less is the clock being set right.
const AHEAD: Duration = Duration::from_mins(1);
/// Bounds of the wait between two passes.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_mins(1));

/// When a kind of work is ripe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// For the first node.
    pub(super) delay: Duration,
    /// For each further node so much more.
    pub(super) each: Duration,
}

impl Turn {
    /// When work of `partition` is ripe here; `None`: it is not this node's.
    fn of(self, layout: &ActiveLayout, me: NodeId, partition: Partition) -> Option<Duration> {
        Some(self.delay + self.each * rank(layout, me, partition)?)
    }

    /// How long to wait before looking again.
    pub(super) fn look(self) -> Duration {
        (self.delay / 8).clamp(LOOK.0, LOOK.1)
    }
}

/// What a look at part of the queue found.
#[derive(Debug, Default)]
struct Seen {
    ripe: Vec<(Bytes, Entry)>,
    /// Entries that are not ripe yet.
    waiting: u64,
    /// Entries from the future.
    ahead: Vec<(Bytes, Entry)>,
    /// Keys of entries that can't be read.
    damaged: Vec<Bytes>,
    /// Where to go on; `None`: the end was reached.
    next: Option<Vec<u8>>,
}

/// How much to take at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

fn look(
    view: &dyn View,
    kind: Kind,
    from: Option<Vec<u8>>,
    now_ms: u64,
    ripe_after: &dyn Fn(Partition) -> Option<Duration>,
    most: Most,
) -> Result<Seen, TablesError> {
    let mut seen = Seen::default();
    let mut range = kind.range();
    range.from = from.unwrap_or(range.from);
    let (mut visited, mut bytes) = (0, 0);
    let mut known: Option<(u16, Option<Duration>)> = None;
    view.scan(Space::Queue, &range, Direction::Forward, &mut |key, value| {
        let full = seen.ripe.len() >= most.entries.max(1) || bytes >= most.bytes;
        if full || visited >= VISITS {
            seen.next = Some(key.to_vec());
            return Step::Stop;
        }
        visited += 1;
        let Some(partition) = queue::partition_of(key) else {
            seen.damaged.push(key.clone());
            return Step::Next;
        };
        let after = match known {
            Some((same, after)) if same == partition => after,
            _ => {
                let after = ripe_after(Partition(partition));
                known = Some((partition, after));
                after
            }
        };
        let Some(after) = after else {
            return kind.in_partition(partition).to.map_or(Step::Stop, Step::Seek);
        };
        let Ok(entry) = codec::decode::<Entry>(value) else {
            seen.damaged.push(key.clone());
            return Step::Next;
        };
        if entry.queued_ms > now_ms.saturating_add(AHEAD.as_millis() as u64) {
            seen.ahead.push((key.clone(), entry));
        } else if u128::from(now_ms.saturating_sub(entry.queued_ms)) >= after.as_millis() {
            bytes += value.len();
            seen.ripe.push((key.clone(), entry));
        } else {
            seen.waiting += 1;
        }
        Step::Next
    })?;
    Ok(seen)
}

/// Ripe entries, and whether the pass is over.
#[derive(Debug, Default)]
pub(super) struct Ripe {
    pub(super) entries: Vec<(Bytes, Entry)>,
    pub(super) is_last: bool,
}

/// Goes round and round through the entries of one kind.
pub(super) struct QueueReader {
    kind: Kind,
    next: Option<Vec<u8>>,
    /// Counted in the present pass.
    seen: u64,
}

impl QueueReader {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, next: None, seen: 0 }
    }

    /// The next ripe entries of partitions that are this node's and that `choose` accepts. They stay in the queue; the
    /// next call goes on behind them, and from the beginning after [`Ripe::is_last`].
    pub(super) async fn next(
        &mut self,
        node: &Arc<Node>,
        report: &Report,
        turn: Turn,
        most: Most,
        choose: impl Fn(Partition) -> bool + Send + 'static,
    ) -> Result<Ripe, WorkerError> {
        let (kind, from) = (self.kind, self.next.take());
        let now_ms = node.env.wall_millis();
        let seen = pull::reading(node, move |node| {
            let layout = node.cluster.layout();
            let after = |partition| {
                let mine = node.is_member(partition) && choose(partition);
                mine.then(|| turn.of(&layout, node.id, partition)).flatten()
            };
            look(&*node.engine.snapshot(), kind, from, now_ms, &after, most)
        })
        .await?;
        self.seen += seen.waiting + seen.ripe.len() as u64;
        if seen.next.is_none() {
            report.queue(self.seen);
            self.seen = 0;
        }
        self.next = seen.next;
        set_right(node, seen.ahead, seen.damaged, now_ms).await?;
        Ok(Ripe { entries: seen.ripe, is_last: self.next.is_none() })
    }
}

/// Gives the present date to entries from the future, and does away with those that can't be read.
async fn set_right(
    node: &Arc<Node>,
    ahead: Vec<(Bytes, Entry)>,
    damaged: Vec<Bytes>,
    now_ms: u64,
) -> Result<(), WorkerError> {
    if ahead.is_empty() && damaged.is_empty() {
        return Ok(());
    }
    for key in &damaged {
        tracing::error!(key = hex::encode(key), "a queued piece of work can't be read and is dropped");
    }
    let mut batch = queue::done(damaged);
    batch.extend(queue::entries(dated(ahead), now_ms));
    node.plane()?.commit.submit(Job::entries(batch)).await?;
    Ok(())
}

/// The work of entries with its partition, to be queued again.
pub(super) fn dated(entries: Vec<(Bytes, Entry)>) -> impl Iterator<Item = (u16, Work)> {
    entries.into_iter().filter_map(|(key, entry)| Some((queue::partition_of(&key)?, entry.work)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::memory::MemoryDisk;
    use crate::meta::{Batch, Engine as _};
    use hayloft_common::hash::Hash;

    fn check(block: u8) -> Work {
        Work::CheckBlock { block: Hash([block; 32]) }
    }

    fn queued(entries: &[(u16, u8, u64)]) -> Batch {
        let mut batch = Batch::new();
        for (partition, block, at) in entries {
            batch.extend(queue::entries([(*partition, check(*block))], *at));
        }
        batch
    }

    #[test]
    fn only_what_is_ripe_and_ours_is_read_and_a_pass_comes_to_its_end() {
        let engine = MemoryDisk::new().open().unwrap();
        let far = 1_000_000_000;
        engine
            .commit(
                queued(&[(1, 1, 100), (1, 2, 900), (1, 3, far), (2, 4, 100), (3, 5, 100), (3, 6, 500)]),
                true,
            )
            .unwrap();
        let mut broken = Batch::new();
        broken.put(Space::Queue, check(9).key(3), "?");
        engine.commit(broken, true).unwrap();
        // Partition 2 is not ours; partition 3 is ripe later.
        let after = |partition: Partition| match partition.0 {
            1 => Some(Duration::from_millis(200)),
            3 => Some(Duration::from_millis(600)),
            _ => None,
        };
        let (mut from, mut blocks, mut waiting, mut ahead, mut damaged) = (None, vec![], 0, 0, 0);
        for _ in 0..100 {
            let most = Most { entries: 1, bytes: 1000 };
            let seen = look(&engine, Kind::CheckBlock, from, 1000, &after, most).unwrap();
            blocks.extend(seen.ripe.into_iter().map(|(_, entry)| entry.work));
            waiting += seen.waiting;
            ahead += seen.ahead.len();
            damaged += seen.damaged.len();
            from = seen.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(blocks, [check(1), check(5)]);
        assert_eq!((waiting, ahead, damaged, from), (2, 1, 1, None));
    }
}
