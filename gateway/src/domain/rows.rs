//! Rows by quorum: read, write, refer to blocks. What is done with replies that differ is in [`super::settle`].

use super::moment::Moment;
use super::settle::Reading;
use super::store::{StoreError, Wrote, place_of, place_of_block, row_bytes};
use super::{DomainError, Gateway};
use crate::limits::{FAN_OUT, MAX_OUTDATED_TRIES, REFER_BATCH};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use hayloft_common::block;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::VersionId;
use hayloft_common::limits::MANIFEST_CHUNK;
use hayloft_common::map::HashSet;
use hayloft_common::schema::{BlockEntry, BlockOwner, BlockRefRow, ManifestRow, Row};
use hayloft_common::stamp::Stamp;
use hayloft_proto::message::table::{RowBytes, WriteMode};
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) fn decode<R: Row>(bytes: &[u8]) -> Result<R, DomainError> {
    codec::decode(bytes).map_err(|e| DomainError::Damaged { detail: e.to_string() })
}

/// Awaits all `calls`, [`FAN_OUT`] at once; the results in order, or the first error. (A vector of futures rather
/// than a stream of borrows: the compiler can't see that those are `Send`.)
pub(super) async fn all<T, E, F: Future<Output = Result<T, E>>>(calls: Vec<F>) -> Result<Vec<T>, E> {
    stream::iter(calls).buffered(FAN_OUT).try_collect().await
}

impl Gateway {
    /// A row as a read quorum knows it, tombstones included. 1 R.
    pub(super) async fn read<R: Row>(
        &self,
        partition_key: Vec<u8>,
        sort_key: Vec<u8>,
    ) -> Result<Option<R>, DomainError> {
        self.read_as(Reading::Plain, partition_key, sort_key).await
    }

    /// Writes a row whose merge keeps all that both sides know. 1 R.
    pub(super) async fn write_merge<R: Row>(&self, row: &R) -> Result<(), DomainError> {
        let place = place_of(&row.partition_key());
        self.store.write_rows(place, WriteMode::Merge, vec![row_bytes(row)]).await?;
        Ok(())
    }

    /// A client's write: `make` builds the rows for a stamp; again, above the newest stamp seen, while replicas
    /// call it outdated. All rows are of one partition. 1 R when the clock is not behind.
    pub(super) async fn write_put(
        &self,
        place: Hash,
        floor: Stamp,
        mut make: impl FnMut(Stamp) -> Vec<RowBytes> + Send,
    ) -> Result<Stamp, DomainError> {
        let mut floor = floor;
        for attempt in 0..MAX_OUTDATED_TRIES {
            let stamp = self.clock.above(floor);
            match self.store.write_rows(place, WriteMode::Put, make(stamp)).await? {
                Wrote::Done => return Ok(stamp),
                Wrote::Outdated(newest) => floor = floor.max(newest),
            }
            self.back_off(attempt).await;
        }
        Err(DomainError::Contention)
    }

    /// A short random pause, from the second try on: the first is only our clock that is behind.
    pub(super) async fn back_off(&self, attempt: usize) {
        if attempt > 0 {
            let most = 5_000u64 << attempt.min(7);
            tokio::time::sleep(Duration::from_micros(self.env.random_u64() % most)).await;
        }
    }

    /// Makes references of `version` to blocks that should be there. 1 R, whatever their number (in groups of
    /// partitions, a few at once). Blocks that no node which answered holds are fetched from elsewhere and stored
    /// again; `Damaged` if they are gone. Answers since when the references are fresh.
    pub(super) async fn refer(
        &self,
        version: VersionId,
        owner: &BlockOwner,
        blocks: &[BlockEntry],
    ) -> Result<Moment, DomainError> {
        Ok(self.try_refer(version, owner, blocks).await?)
    }

    /// As [`Gateway::refer`]; `Conflict` when the version's references were given up.
    pub(super) async fn try_refer(
        &self,
        version: VersionId,
        owner: &BlockOwner,
        blocks: &[BlockEntry],
    ) -> Result<Moment, StoreError> {
        let since = Moment::now(&self.env);
        let created_ms = self.env.wall_millis();
        let mut groups: BTreeMap<u16, Vec<RowBytes>> = BTreeMap::new();
        let mut places: BTreeMap<u16, Hash> = BTreeMap::new();
        let mut seen = HashSet::default();
        for entry in blocks.iter().filter(|b| seen.insert(b.hash)) {
            let place = place_of_block(&entry.hash);
            let partition = self.store.partition_of(&place);
            places.insert(partition, place);
            let row =
                BlockRefRow { block: entry.hash, version, created_ms, owner: owner.clone(), deleted: false };
            groups.entry(partition).or_default().push(row_bytes(&row));
        }
        let batches = groups.into_iter().flat_map(|(partition, rows)| {
            let place = places[&partition];
            rows.chunks(REFER_BATCH).map(|batch| (place, batch.to_vec())).collect::<Vec<_>>()
        });
        let batches: Vec<_> = batches.collect();
        let calls = batches.into_iter().map(|(place, batch)| self.store.refer_blocks(place, batch)).collect();
        let missing: Vec<Vec<Hash>> = all(calls).await?;
        for hash in missing.into_iter().flatten() {
            let max = blocks.iter().find(|b| b.hash == hash).map_or(0, |b| b.len as usize);
            let plain = self.store.get_block(hash, max).await?;
            // One copy somewhere is not a write quorum: it is stored again before anything relies on it.
            let level = self.config.compression;
            let envelope = self.env.run_blocking(move || block::seal(&plain, level)).await;
            let envelope = envelope.map_err(|e| StoreError::Unavailable(e.to_string()))?;
            let row = BlockRefRow { block: hash, version, created_ms, owner: owner.clone(), deleted: false };
            self.store.put_block(hash, row_bytes(&row), envelope).await?;
        }
        Ok(since)
    }

    /// Writes the manifest rows of a block list too long for its row. 1 R.
    pub(super) async fn write_manifest(
        &self,
        version: VersionId,
        blocks: &[BlockEntry],
    ) -> Result<(), DomainError> {
        let rows: Vec<_> = (0u32..)
            .zip(blocks.chunks(MANIFEST_CHUNK))
            .map(|(chunk, blocks)| ManifestRow { version, chunk, blocks: blocks.to_vec(), deleted: false })
            .map(|row| row_bytes(&row))
            .collect();
        // A frame holds some ten chunks of 36 KiB with ease.
        let batches: Vec<Vec<RowBytes>> = rows.chunks(8).map(<[_]>::to_vec).collect();
        let place = place_of(&version.0);
        let write = |batch| self.store.write_rows(place, WriteMode::Put, batch);
        all(batches.into_iter().map(write).collect()).await?;
        Ok(())
    }

    /// One manifest row's blocks. 1 R.
    pub(super) async fn read_manifest(
        &self,
        version: VersionId,
        chunk: u32,
    ) -> Result<Vec<BlockEntry>, DomainError> {
        let row: Option<ManifestRow> = self.read(version.0.to_vec(), chunk.to_be_bytes().to_vec()).await?;
        match row {
            Some(row) if !row.deleted => Ok(row.blocks),
            _ => Err(DomainError::Damaged {
                detail: format!("block list {chunk} of version {version} is gone"),
            }),
        }
    }

    /// All blocks that stand in `chunks` manifest rows.
    pub(super) async fn read_manifests(
        &self,
        version: VersionId,
        chunks: u32,
    ) -> Result<Vec<BlockEntry>, DomainError> {
        let lists = all((0..chunks).map(|chunk| self.read_manifest(version, chunk)).collect()).await?;
        Ok(lists.concat())
    }
}
