//! `repair refs`: queues every live reference to be looked at, as if it had just arrived, so that one whose version was
//! never committed is found even if its queue entry was lost. What is queued already keeps its date.
//!
//! References of uploads under way are safe: they are looked at after `uncommitted_age`, and renewed meanwhile.

use super::WorkerError;
use crate::commit::Job;
use crate::meta::{Direction, KeyRange, Space, Step};
use crate::serve::{Node, meta_error};
use crate::tables::key;
use crate::tables::queue::{self, Work};
use crate::tables::stored::Stored;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::schema::TableId;
use std::sync::Arc;

/// References looked at in one go.
const PAGE: usize = 1024;

/// Queues all of them; how many were not queued before.
pub async fn run(node: &Arc<Node>) -> Result<u64, WorkerError> {
    let (mut from, mut queued) = (Some(Vec::new()), 0);
    while let Some(start) = from {
        let page = node.blocking(move |node| {
            let view = node.engine.snapshot();
            let (mut work, mut next, mut seen) = (Vec::new(), None, 0);
            let range = KeyRange { from: start, to: None };
            view.scan(
                Space::Table(TableId::BlockRef),
                &range,
                Direction::Forward,
                &mut |stored_key, value| {
                    if seen >= PAGE {
                        next = Some(stored_key.to_vec());
                        return Step::Stop;
                    }
                    seen += 1;
                    let live = Stored::parse(TableId::BlockRef, stored_key, value).is_ok_and(|row| row.live);
                    if let (true, Some((block, version))) = (live, key::split(stored_key))
                        && let (Ok(block), Ok(version)) = (block.try_into(), version.try_into())
                    {
                        let partition = u16::from_be_bytes([stored_key[0], stored_key[1]]);
                        work.push((
                            partition,
                            Work::CheckRef { block: Hash(block), version: VersionId(version) },
                        ));
                    }
                    Step::Next
                },
            )
            .map_err(|e| meta_error(&e))?;
            let mut missing = Vec::with_capacity(work.len());
            for (partition, work) in work {
                let entry = view.get(Space::Queue, &work.key(partition)).map_err(|e| meta_error(&e))?;
                if entry.is_none() {
                    missing.push((partition, work));
                }
            }
            Ok((missing, next))
        });
        let (missing, next) = page.await?;
        queued += missing.len() as u64;
        if !missing.is_empty() {
            let job = Job::entries(queue::entries(missing, node.env.wall_millis()));
            node.plane()?.commit.submit(job).await?;
        }
        from = next;
    }
    tracing::info!(queued, "every reference is queued to be looked at");
    Ok(queued)
}

/// The same, in the background.
pub fn start(node: &Arc<Node>) {
    let this = node.clone();
    node.env.spawn("reference scan", async move {
        if let Err(error) = run(&this).await {
            tracing::error!(%error, "references could not be queued to be looked at; start the repair again");
        }
    });
}
