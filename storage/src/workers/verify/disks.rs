//! The block index against the references, the disks against the index, and what is queued.

use super::{Found, WorkerError};
use crate::blocks::{Location, Place, ScanDepth, ScanItem};
use crate::meta::{Direction, KeyRange, Space, Step};
use crate::serve::{Node, meta_error, tables_error};
use crate::tables::Overlay;
use crate::tables::queue::{Kind, Work};
use hayloft_common::hash::Hash;
use std::sync::Arc;

/// Index entries read at once.
const PAGE: usize = 4096;

/// Every block in the index must be referred to.
pub(super) async fn index(node: &Arc<Node>, found: &mut Found) -> Result<(), WorkerError> {
    let mut from = Vec::new();
    loop {
        let tables = node.plane()?.tables;
        let start = from.clone();
        let (page, next) = node
            .blocking(move |node| {
                let view = node.engine.snapshot();
                let mut entries: Vec<(Hash, Option<Location>)> = Vec::new();
                let mut next = None;
                let range = KeyRange { from: start, to: None };
                view.scan(Space::BlockIndex, &range, Direction::Forward, &mut |key, value| {
                    if entries.len() >= PAGE {
                        next = Some(key.to_vec());
                        return Step::Stop;
                    }
                    if let Ok(hash) = <[u8; 32]>::try_from(&key[..]) {
                        entries.push((Hash(hash), Location::decode(value).ok()));
                    }
                    Step::Next
                })
                .map_err(|e| meta_error(&e))?;
                let overlay = Overlay::new(&*view);
                let mut page = Vec::new();
                for (hash, location) in entries {
                    let referred = tables.is_referred(&overlay, &hash).map_err(|e| tables_error(&e))?;
                    let key = Work::CheckBlock { block: hash }.key(tables.partition(&hash.0));
                    let queued = view.get(Space::Queue, &key).map_err(|e| meta_error(&e))?.is_some();
                    page.push((hash, location, referred, queued));
                }
                Ok((page, next))
            })
            .await?;
        for (hash, location, referred, queued) in page {
            found.blocks += 1;
            match location {
                None => found.wrong("damaged index entry", hash.to_string()),
                Some(location) => found.block_bytes += u64::from(location.len),
            }
            if !referred && queued {
                found.pending("block to be released");
            } else if !referred {
                found.wrong("block without reference", hash.to_string());
            }
        }
        match next {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// Every file on the disks must be in the index; dead records of packed files wait for compaction.
pub(super) async fn files(node: &Arc<Node>, found: &mut Found) -> Result<(), WorkerError> {
    let (dead, stray, damaged) = node
        .blocking(move |node| {
            let (mut dead, mut stray, mut damaged) = (0u64, Vec::new(), Vec::new());
            for item in node.blocks.scan(ScanDepth::Headers) {
                match item {
                    ScanItem::Block { hash, location } => {
                        let entry = node.engine.get(Space::BlockIndex, hash.as_bytes());
                        let entry =
                            entry.map_err(|e| meta_error(&e))?.and_then(|e| Location::decode(&e).ok());
                        let known = entry.is_some_and(|entry| entry.same_place(&location));
                        match location.place {
                            _ if known => {}
                            Place::Packed { .. } => dead += u64::from(location.len),
                            Place::Plain => stray.push(format!("{hash} on disk {}", location.disk)),
                        }
                    }
                    ScanItem::Damaged { path, offset, bytes, reason, .. } => {
                        damaged.push(format!("{path} at {offset}, {bytes} bytes: {reason}"));
                    }
                }
            }
            Ok((dead, stray, damaged))
        })
        .await?;
    if dead > 0 {
        found.pending.insert("dead bytes in packed files", dead);
    }
    for file in stray {
        // A put that was given up or cut off by a crash leaves one: the block scan and the scrub free it.
        found.pending("file without index entry");
        tracing::info!(file, "verification: a block's file that the index does not name");
    }
    for place in damaged {
        // What a crash tore was never acknowledged; what rotted is found by its index entry.
        found.pending("damaged bytes on disk");
        tracing::info!(place, "verification: bytes on a disk that are no block");
    }
    Ok(())
}

/// How much work is queued.
pub(super) async fn queue(node: &Arc<Node>, found: &mut Found) -> Result<(), WorkerError> {
    for (kind, name) in [
        (Kind::DropVersion, "queued: versions to drop"),
        (Kind::DropParts, "queued: uploads to clean up"),
        (Kind::CheckBlock, "queued: blocks to look at"),
        (Kind::CheckRef, "queued: references to look at"),
        (Kind::Collect, "queued: tombstones"),
    ] {
        let count = node.blocking(move |node| {
            let mut count = 0;
            let scanned =
                node.engine.snapshot().scan(Space::Queue, &kind.range(), Direction::Forward, &mut |_, _| {
                    count += 1;
                    Step::Next
                });
            scanned.map_err(|e| meta_error(&e))?;
            Ok(count)
        });
        let count: u64 = count.await?;
        if count > 0 {
            found.pending.insert(name, count);
        }
    }
    Ok(())
}
