//! A [`Store`] in memory, for tests: several replicas of everything, some dead, some stale, some with bad copies.
//!
//! Fault model. A dead replica answers nothing; with more dead ones than a quorum can miss, operations fail with
//! `Unavailable`. A stale replica gets each write late with a given probability (rows at some later write, blocks
//! never), as long as a write quorum of others has it. A torn write reaches one replica for good, the others never, and
//! fails. Reads ask a random read quorum. Bad copies of blocks are found
//! out by their hash, as they are by the real nodes' callers. Storage nodes are as eager as they may be: once a
//! version is superseded on a quorum, or an upload closed, its references are deleted for good. Blocks without a live
//! reference go when the test says that their grace period is over ([`MemoryStore::collect`]). Everything is drawn
//! from a seed. A layout change shows only in that replies that agree are no proof. References of versions that are not
//! committed are given up when the test says so ([`MemoryStore::give_up_uncommitted`]). Out of scope: time.

use super::rows::decode;
use super::store::{EarlyRow, Replies, Store, StoreError, StoredRow, Wrote, place_of_block};
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::id::VersionId;
use hayloft_common::schema::{
    AliasRow, BlockOwner, BlockRefRow, BucketRow, FloorRow, KeyRow, ManifestRow, ObjectRow, PartRow, Row,
    Slot, TableId, UploadRow, index_partition_key, sort_key,
};
use hayloft_common::{block, codec, hash::Hash, stamp::Stamp};
use hayloft_proto::message::table::{
    IndexCounters, ListEntry, ListKeys, ListKeysReply, ReadRange, ReadRangeReply, ReadRow, RowBytes,
    WriteMode,
};
use parking_lot::Mutex;
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

type RowKey = (TableId, Vec<u8>, Vec<u8>);

/// One replica.
#[derive(Default)]
struct Replica {
    rows: BTreeMap<RowKey, Vec<u8>>,
    blocks: BTreeMap<Hash, Bytes>,
    dead: bool,
    /// Chance in 256 to get a write late.
    stale: u8,
    /// Writes still to come.
    late: VecDeque<Vec<(RowKey, RowBytes)>>,
}

/// An object, part or upload as far as its references go.
enum Held {
    /// The version that the row holds, if any.
    Version(Option<VersionId>),
    Upload {
        open: bool,
    },
}

fn held(table: TableId, bytes: &[u8]) -> Option<Held> {
    match table {
        TableId::Object => decode::<ObjectRow>(bytes).ok().map(|r| Held::Version(r.live().map(|v| v.id))),
        TableId::Part => decode::<PartRow>(bytes).ok().map(|r| Held::Version(r.live().map(|v| v.id))),
        TableId::Upload => decode::<UploadRow>(bytes).ok().map(|r| Held::Upload { open: r.is_live() }),
        _ => None,
    }
}

struct State {
    replicas: Vec<Replica>,
    seed: u64,
    calls: BTreeMap<&'static str, usize>,
    /// Most entries of a page, to make pages end at odd places.
    page: usize,
    /// Chance in 256 that a write of rows is torn.
    torn: u8,
    /// Replies that agree are no proof, as during a layout change.
    changing: bool,
}

/// See the module's head.
pub struct MemoryStore {
    state: Mutex<State>,
}

struct Known(Replies<StoredRow>);

#[async_trait]
impl EarlyRow for Known {
    async fn first(&mut self) -> Result<StoredRow, StoreError> {
        Ok(self.0.all.first().cloned().flatten())
    }

    async fn quorum(self: Box<Self>) -> Result<Replies<StoredRow>, StoreError> {
        Ok(self.0)
    }
}

struct Failing(StoreError);

#[async_trait]
impl EarlyRow for Failing {
    async fn first(&mut self) -> Result<StoredRow, StoreError> {
        Err(self.0.clone())
    }

    async fn quorum(self: Box<Self>) -> Result<Replies<StoredRow>, StoreError> {
        Err(self.0)
    }
}

/// Calls `$body` with `$row` as the type of the rows of a table.
macro_rules! with_row {
    ($table:expr, $row:ident => $body:expr) => {
        match $table {
            TableId::Key => {
                type $row = KeyRow;
                $body
            }
            TableId::Bucket => {
                type $row = BucketRow;
                $body
            }
            TableId::Alias => {
                type $row = AliasRow;
                $body
            }
            TableId::Object => {
                type $row = ObjectRow;
                $body
            }
            TableId::Upload => {
                type $row = UploadRow;
                $body
            }
            TableId::Part => {
                type $row = PartRow;
                $body
            }
            TableId::Manifest => {
                type $row = ManifestRow;
                $body
            }
            TableId::BlockRef => {
                type $row = BlockRefRow;
                $body
            }
            TableId::Floor => {
                type $row = FloorRow;
                $body
            }
        }
    };
}

fn refused(error: impl ToString) -> StoreError {
    StoreError::Unavailable(format!("refused: {}", error.to_string()))
}

fn key_of(row: &RowBytes) -> Result<RowKey, StoreError> {
    with_row!(row.table, R => {
        let decoded: R = decode(&row.bytes).map_err(refused)?;
        decoded.validate().map_err(refused)?;
        Ok((row.table, decoded.partition_key(), decoded.sort_key()))
    })
}

fn keyed(rows: Vec<RowBytes>) -> Result<Vec<(RowKey, RowBytes)>, StoreError> {
    rows.into_iter().map(|row| Ok((key_of(&row)?, row))).collect()
}

/// The stamp that keeps `new` from being put over `old`.
fn outdated(table: TableId, old: &[u8], new: &[u8]) -> Option<Stamp> {
    with_row!(table, R => {
        let (old, new): (R, R) = (decode(old).ok()?, decode(new).ok()?);
        old.stamp().filter(|have| *have > new.stamp().unwrap_or_default())
    })
}

fn merged(table: TableId, old: &[u8], new: &[u8]) -> Vec<u8> {
    with_row!(table, R => {
        match (decode::<R>(old), decode::<R>(new)) {
            (Ok(mut old), Ok(new)) => {
                old.merge(&new);
                codec::encode(&old)
            }
            _ => old.to_vec(),
        }
    })
}

/// A row as a listing gives it, and whether it is live.
fn short(table: TableId, bytes: &[u8]) -> (Vec<u8>, bool) {
    with_row!(table, R => {
        match decode::<R>(bytes) {
            Ok(mut row) => {
                row.detach();
                (codec::encode(&row), row.is_live())
            }
            Err(_) => (bytes.to_vec(), true),
        }
    })
}

impl Replica {
    fn put(&mut self, mode: WriteMode, rows: &[(RowKey, RowBytes)]) -> Option<Stamp> {
        if mode == WriteMode::Put {
            let newer = rows.iter().filter_map(|(key, row)| outdated(key.0, self.rows.get(key)?, &row.bytes));
            if let Some(stamp) = newer.max() {
                return Some(stamp);
            }
        }
        for (key, row) in rows {
            let new = match self.rows.get(key) {
                Some(old) => merged(key.0, old, &row.bytes),
                None => row.bytes.clone(),
            };
            self.rows.insert(key.clone(), new);
        }
        None
    }

    /// Rows of a partition key from a sort key on.
    fn from<'a>(
        &'a self,
        table: TableId,
        pk: &'a [u8],
        from: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.rows
            .range((table, pk.to_vec(), from.to_vec())..)
            .take_while(move |((t, p, _), _)| *t == table && p == pk)
            .map(|((_, _, sort), bytes)| (sort.as_slice(), bytes.as_slice()))
    }

    /// Ids of the parts of the upload whose row has this key.
    fn parts_of(&self, upload: &RowKey) -> Vec<VersionId> {
        self.from(TableId::Part, &upload.1, &upload.2)
            .take_while(|(sort, _)| sort.starts_with(&upload.2))
            .filter_map(|(_, bytes)| decode::<PartRow>(bytes).ok()?.live().map(|part| part.id))
            .collect()
    }

    fn list(&self, list: &ListKeys, limit: usize) -> ListKeysReply {
        let within = sort_key::prefix(list.prefix.as_bytes());
        let mut at = within.clone().max(list.from.clone());
        let mut entries = Vec::new();
        let mut visits = 0;
        'seek: loop {
            for (sort, bytes) in self.from(list.table, &list.partition_key, &at) {
                if !sort.starts_with(&within) {
                    break;
                }
                if entries.len() >= limit || visits >= 4 * limit {
                    return ListKeysReply { entries, next: Some(ByteBuf::from(sort.to_vec())) };
                }
                visits += 1;
                let key = sort_key::split(sort).map(|(key, _)| String::from_utf8_lossy(&key).into_owned());
                let key = key.unwrap_or_default();
                let (row, live) = short(list.table, bytes);
                let end = list
                    .delimiter
                    .as_deref()
                    .and_then(|d| key[list.prefix.len()..].find(d).map(|i| list.prefix.len() + i + d.len()));
                match end {
                    None => entries.push(ListEntry::Row(row)),
                    Some(_) if !live => {
                        if list.tombstones {
                            entries.push(ListEntry::Row(row));
                        }
                    }
                    Some(end) => {
                        let prefix = key[..end].to_owned();
                        let Some(after) = sort_key::after_prefix(&sort_key::prefix(prefix.as_bytes())) else {
                            break;
                        };
                        at = after;
                        entries.push(ListEntry::Prefix { prefix, witness: row });
                        continue 'seek;
                    }
                }
            }
            return ListKeysReply { entries, next: None };
        }
    }
}

impl State {
    /// Writes rows on one replica, and does what follows. The stamp of a newer row, if that refuses them.
    fn put(&mut self, replica: usize, mode: WriteMode, rows: &[(RowKey, RowBytes)]) -> Option<Stamp> {
        let before: Vec<Option<Vec<u8>>> =
            rows.iter().map(|(key, _)| self.replicas[replica].rows.get(key).cloned()).collect();
        let refused = self.replicas[replica].put(mode, rows);
        for ((key, _), old) in rows.iter().zip(before) {
            let Some(old) = old.and_then(|bytes| held(key.0, &bytes)) else { continue };
            let copies: Vec<&Vec<u8>> = self.replicas.iter().filter_map(|r| r.rows.get(key)).collect();
            let agree = copies.iter().filter(|c| Some(**c) == self.replicas[replica].rows.get(key)).count();
            let now = self.replicas[replica].rows.get(key).and_then(|bytes| held(key.0, bytes));
            if agree < self.write_quorum() {
                continue;
            }
            match (old, now) {
                (Held::Version(Some(gone)), Some(Held::Version(new))) if new != Some(gone) => {
                    self.drop_references(&[gone]);
                }
                (Held::Upload { open: true }, Some(Held::Upload { open: false })) => {
                    let parts = self.replicas.iter().flat_map(|r| r.parts_of(key)).collect::<Vec<_>>();
                    self.drop_references(&parts);
                }
                _ => {}
            }
        }
        refused
    }

    fn drop_references(&mut self, versions: &[VersionId]) {
        for ((table, _, _), bytes) in self.replicas.iter_mut().flat_map(|r| &mut r.rows) {
            if *table == TableId::BlockRef
                && let Ok(mut row) = decode::<BlockRefRow>(bytes)
                && versions.contains(&row.version)
            {
                row.deleted = true;
                *bytes = codec::encode(&row);
            }
        }
    }

    /// Lets some of the late writes arrive.
    fn deliver(&mut self) {
        for replica in 0..self.replicas.len() {
            while !self.replicas[replica].dead && self.random().is_multiple_of(6) {
                let Some(rows) = self.replicas[replica].late.pop_front() else { break };
                self.put(replica, WriteMode::Merge, &rows);
            }
        }
    }

    /// Writes rows wherever they arrive in time, and notes them where they will be late.
    fn write(
        &mut self,
        call: &'static str,
        mode: WriteMode,
        rows: &[(RowKey, RowBytes)],
    ) -> Result<(Vec<usize>, Vec<Stamp>), StoreError> {
        self.deliver();
        if call == "write_rows" && (self.random() % 256) < u64::from(self.torn) {
            let first = self.alive(call, 1)?[0];
            self.put(first, mode, rows);
            return Err(StoreError::Unavailable("torn: one replica has it, the others never will".into()));
        }
        let reached = self.reached(call)?;
        let newer: Vec<Stamp> = reached.iter().filter_map(|i| self.put(*i, mode, rows)).collect();
        // What is refused by a quorum may still have been written by the others, and arrive late at more.
        for (i, replica) in self.replicas.iter_mut().enumerate() {
            if !reached.contains(&i) && !replica.dead {
                replica.late.push_back(rows.to_vec());
            }
        }
        Ok((reached, newer))
    }

    /// A pseudo-random number (splitmix64).
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn read_quorum(&self) -> usize {
        self.replicas.len().div_ceil(2)
    }

    fn write_quorum(&self) -> usize {
        self.replicas.len() + 1 - self.read_quorum()
    }

    /// Live replicas in random order, or why there are fewer than `least`.
    fn alive(&mut self, call: &'static str, least: usize) -> Result<Vec<usize>, StoreError> {
        *self.calls.entry(call).or_default() += 1;
        let mut alive: Vec<usize> = (0..self.replicas.len()).filter(|i| !self.replicas[*i].dead).collect();
        if alive.len() < least {
            return Err(StoreError::Unavailable(format!("{} of {} alive", alive.len(), self.replicas.len())));
        }
        for i in (1..alive.len()).rev() {
            let j = (self.random() % (i as u64 + 1)) as usize;
            alive.swap(i, j);
        }
        Ok(alive)
    }

    /// The replicas that a write reaches: a quorum at least.
    fn reached(&mut self, call: &'static str) -> Result<Vec<usize>, StoreError> {
        let quorum = self.write_quorum();
        let alive = self.alive(call, quorum)?;
        let mut reached = Vec::new();
        for (n, replica) in alive.iter().enumerate() {
            let needed = alive.len() - n <= quorum.saturating_sub(reached.len());
            let lost = (self.random() % 256) < u64::from(self.replicas[*replica].stale);
            if needed || !lost {
                reached.push(*replica);
            }
        }
        Ok(reached)
    }

    fn read<T>(
        &mut self,
        call: &'static str,
        f: impl Fn(&Replica, usize) -> T,
    ) -> Result<Replies<T>, StoreError> {
        let (quorum, page) = (self.read_quorum(), self.page);
        let alive = self.alive(call, quorum)?;
        let all = alive[..quorum].iter().map(|i| f(&self.replicas[*i], page)).collect();
        Ok(Replies { all, lasting: quorum >= self.write_quorum() && !self.changing })
    }

    /// Whether one of these replicas holds a deleted reference that `rows` would write again.
    fn conflict(&self, reached: &[usize], rows: &[(RowKey, RowBytes)]) -> Result<(), StoreError> {
        let is_deleted = |bytes: &Vec<u8>| decode::<BlockRefRow>(bytes).is_ok_and(|row| row.deleted);
        for i in reached {
            if rows.iter().any(|(key, _)| self.replicas[*i].rows.get(key).is_some_and(is_deleted)) {
                return Err(StoreError::Conflict("the reference was deleted".into()));
            }
        }
        Ok(())
    }

    /// Whether an object's or part's row holds `version` on any replica.
    fn is_committed(&self, owner: &BlockOwner, version: VersionId) -> bool {
        let (table, pk, sort) = match owner {
            BlockOwner::Object { bucket, shard, key } => (
                TableId::Object,
                index_partition_key(bucket, *shard),
                ObjectRow::sort_key_of(key, Slot::Null),
            ),
            BlockOwner::Part { bucket, shard, key, upload, number } => (
                TableId::Part,
                index_partition_key(bucket, *shard),
                PartRow::sort_key_of(key, upload, *number),
            ),
        };
        let key = (table, pk, sort);
        self.replicas
            .iter()
            .filter_map(|r| r.rows.get(&key))
            .any(|bytes| matches!(held(table, bytes), Some(Held::Version(Some(id))) if id == version))
    }
}

impl MemoryStore {
    /// So many replicas, all well; quorums are majorities.
    pub fn new(replicas: usize, seed: u64) -> Self {
        let replicas = (0..replicas.max(1)).map(|_| Replica::default()).collect();
        let state = State { replicas, seed, calls: BTreeMap::new(), page: 1000, torn: 0, changing: false };
        Self { state: Mutex::new(state) }
    }

    /// Chance in 256 that a write of rows is torn.
    pub fn set_torn(&self, chance: u8) {
        self.state.lock().torn = chance;
    }

    /// Whether the layout is changing.
    pub fn set_changing(&self, changing: bool) {
        self.state.lock().changing = changing;
    }

    /// Deletes the references of all versions that are not committed, as nodes do with those of a certain age.
    pub fn give_up_uncommitted(&self) {
        let mut state = self.state.lock();
        let references = state.replicas.iter().flat_map(|replica| &replica.rows);
        let references = references.filter(|((table, _, _), _)| *table == TableId::BlockRef);
        let rows: Vec<BlockRefRow> = references.filter_map(|(_, bytes)| decode(bytes).ok()).collect();
        let lost: Vec<VersionId> =
            rows.iter().filter(|r| !state.is_committed(&r.owner, r.version)).map(|r| r.version).collect();
        state.drop_references(&lost);
    }

    /// Kills or revives a replica.
    pub fn set_dead(&self, replica: usize, dead: bool) {
        self.state.lock().replicas[replica].dead = dead;
    }

    /// Chance in 256 that the replica loses a write.
    pub fn set_stale(&self, replica: usize, chance: u8) {
        self.state.lock().replicas[replica].stale = chance;
    }

    /// Most entries of a page.
    pub fn set_page(&self, entries: usize) {
        self.state.lock().page = entries.max(1);
    }

    /// Flips a bit in, or removes, one replica's copies of all blocks.
    pub fn spoil_blocks(&self, replica: usize, remove: bool) {
        let blocks = &mut self.state.lock().replicas[replica].blocks;
        if remove {
            blocks.clear();
        }
        for envelope in blocks.values_mut() {
            let mut bytes = envelope.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            *envelope = bytes.into();
        }
    }

    /// Removes blocks that no live reference keeps: their grace period is over.
    pub fn collect(&self) {
        for replica in &mut self.state.lock().replicas {
            let references = replica.rows.iter().filter(|((table, _, _), _)| *table == TableId::BlockRef);
            let rows = references.filter_map(|(_, bytes)| decode::<BlockRefRow>(bytes).ok());
            let live: BTreeSet<Hash> = rows.filter(|row| !row.deleted).map(|row| row.block).collect();
            replica.blocks.retain(|hash, _| live.contains(hash));
        }
    }

    /// Quorum operations so far, by name.
    pub fn calls(&self) -> BTreeMap<&'static str, usize> {
        self.state.lock().calls.clone()
    }

    /// Distinct blocks on any replica.
    pub fn blocks(&self) -> usize {
        let state = self.state.lock();
        state.replicas.iter().flat_map(|r| r.blocks.keys()).collect::<BTreeSet<_>>().len()
    }

    /// Blocks to which `version` has a live reference on a write quorum.
    pub fn referred(&self, version: VersionId) -> BTreeSet<Hash> {
        let state = self.state.lock();
        let mut counts: BTreeMap<Hash, usize> = BTreeMap::new();
        for replica in &state.replicas {
            for ((table, _, _), bytes) in &replica.rows {
                if *table == TableId::BlockRef
                    && let Ok(row) = decode::<BlockRefRow>(bytes)
                    && row.version == version
                    && !row.deleted
                {
                    *counts.entry(row.block).or_default() += 1;
                }
            }
        }
        counts.into_iter().filter(|(_, n)| *n >= state.write_quorum()).map(|(hash, _)| hash).collect()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn partition_of(&self, place: &Hash) -> u16 {
        place.top16() >> 8
    }

    async fn write_rows(
        &self,
        _place: Hash,
        mode: WriteMode,
        rows: Vec<RowBytes>,
    ) -> Result<Wrote, StoreError> {
        let rows = keyed(rows)?;
        if rows.windows(2).any(|pair| pair[0].0.1 != pair[1].0.1) {
            return Err(refused("rows of different partition keys"));
        }
        let mut state = self.state.lock();
        let (reached, newer) = state.write("write_rows", mode, &rows)?;
        if reached.len() - newer.len() >= state.write_quorum() {
            return Ok(Wrote::Done);
        }
        Ok(Wrote::Outdated(newer.into_iter().max().unwrap_or_default()))
    }

    async fn read_row(&self, read: ReadRow) -> Result<Replies<StoredRow>, StoreError> {
        let key = (read.table, read.partition_key, read.sort_key);
        self.state.lock().read("read_row", |replica, _| replica.rows.get(&key).cloned())
    }

    fn read_row_early(&self, read: ReadRow) -> Box<dyn EarlyRow> {
        let key = (read.table, read.partition_key, read.sort_key);
        match self.state.lock().read("read_row", |replica, _| replica.rows.get(&key).cloned()) {
            Ok(rows) => Box::new(Known(rows)),
            Err(error) => Box::new(Failing(error)),
        }
    }

    async fn read_range(&self, read: ReadRange) -> Result<Replies<ReadRangeReply>, StoreError> {
        self.state.lock().read("read_range", |replica, page| {
            let limit = page.min(read.limit as usize).max(1);
            let within = |sort: &[u8]| read.to.as_ref().is_none_or(|to| sort < to.as_slice());
            let mut rows: Vec<_> = replica
                .from(read.table, &read.partition_key, &read.from)
                .take_while(|(sort, _)| within(sort))
                .take(limit + 1)
                .collect();
            let next = (rows.len() > limit).then(|| ByteBuf::from(rows[limit].0.to_vec()));
            rows.truncate(limit);
            let rows = rows.into_iter().map(|(_, bytes)| ByteBuf::from(short(read.table, bytes).0)).collect();
            ReadRangeReply { rows, next }
        })
    }

    async fn list_keys(&self, list: ListKeys) -> Result<Replies<ListKeysReply>, StoreError> {
        let mut state = self.state.lock();
        state.read("list_keys", |replica, page| replica.list(&list, page.min(list.limit as usize).max(1)))
    }

    async fn read_counters(&self, partition_key: Vec<u8>) -> Result<Vec<IndexCounters>, StoreError> {
        let counted = self.state.lock().read("read_counters", |replica, _| {
            let mut sum = IndexCounters::default();
            for (_, bytes) in replica.from(TableId::Object, &partition_key, &[]) {
                if let Ok(row) = decode::<ObjectRow>(bytes)
                    && let Some(version) = row.live()
                {
                    sum.objects += 1;
                    sum.bytes += version.size;
                }
            }
            let uploads = replica.from(TableId::Upload, &partition_key, &[]);
            sum.uploads = uploads.filter(|(_, bytes)| short(TableId::Upload, bytes).1).count() as u64;
            sum
        });
        Ok(counted?.all)
    }

    async fn put_block(&self, block: Hash, reference: RowBytes, envelope: Bytes) -> Result<(), StoreError> {
        let rows = keyed(vec![reference])?;
        if rows.iter().any(|(key, _)| key.1 != block.as_bytes()) {
            return Err(refused("a block's reference is to another block"));
        }
        let mut state = self.state.lock();
        let reached = state.write("put_block", WriteMode::Merge, &rows)?.0;
        state.conflict(&reached, &rows)?;
        for i in reached {
            // A copy, so that the sender's memory is free again.
            state.replicas[i].blocks.entry(block).or_insert_with(|| Bytes::copy_from_slice(&envelope));
        }
        Ok(())
    }

    async fn refer_blocks(&self, place: Hash, references: Vec<RowBytes>) -> Result<Vec<Hash>, StoreError> {
        let rows = keyed(references)?;
        let hash_of = |key: &RowKey| key.1.as_slice().try_into().ok().map(Hash);
        let mut state = self.state.lock();
        let mut missing: Option<BTreeSet<Hash>> = None;
        let reached = state.write("refer_blocks", WriteMode::Merge, &rows)?.0;
        state.conflict(&reached, &rows)?;
        for i in reached {
            let replica = &state.replicas[i];
            let here: BTreeSet<Hash> = rows
                .iter()
                .filter_map(|(key, _)| hash_of(key))
                .filter(|hash| !replica.blocks.contains_key(hash))
                .collect();
            missing = Some(match missing {
                None => here,
                Some(before) => before.intersection(&here).copied().collect(),
            });
        }
        if rows
            .iter()
            .filter_map(|(key, _)| hash_of(key))
            .any(|h| self.partition_of(&place_of_block(&h)) != self.partition_of(&place))
        {
            return Err(refused("references of different partitions"));
        }
        Ok(missing.unwrap_or_default().into_iter().collect())
    }

    async fn get_block(&self, block: Hash, max: usize) -> Result<Bytes, StoreError> {
        let mut state = self.state.lock();
        *state.calls.entry("get_block").or_default() += 1;
        let alive: Vec<&Replica> = state.replicas.iter().filter(|r| !r.dead).collect();
        let dead = alive.len() < state.replicas.len();
        for replica in alive {
            if let Some(envelope) = replica.blocks.get(&block)
                && let Ok(plain) = block::open(envelope, &block, max)
            {
                return Ok(plain);
            }
        }
        let text = format!("no good copy of block {block}");
        Err(if dead { StoreError::Unavailable(text) } else { StoreError::Damaged(text) })
    }
}
