//! Listings of objects and uploads: the pages of a quorum, merged exactly, over all index shards.
//!
//! Each node of a read quorum answers with a page, complete up to the point where it stopped. Up to the lowest such
//! point the union is what the quorum knows: rows are merged (so a tombstone on one node wins over a live row on
//! another). A rolled-up prefix counts when every node named the same witness, since then that row is live in the
//! merge too; otherwise the keys behind the prefix are listed until the merge shows a live one. Index shards are
//! read side by side and their streams merged by key.
//!
//! Round trips: 1 for a page when nodes agree; one more where they disagree about a prefix; more where tombstones or
//! nodes' page limits leave a page short.

use super::rows::{all, decode};
use super::{
    Bucket, DomainError, Gateway, ListRequest, ListStart, ListUploads, Listed, Listing, ObjectEntry,
    UploadEntry, UploadStart,
};
use crate::limits::{LIST_MAX_ROUNDS, LIST_MIN_READ};
use futures::future::try_join_all;
use hayloft_common::limits::MAX_LIST_PAGE;
use hayloft_common::schema::{ObjectRow, Row, Slot, UploadRow, UploadState, index_partition_key, sort_key};
use hayloft_proto::message::table::{ListEntry, ListKeys, ListKeysReply};
use std::collections::{BTreeMap, VecDeque};

/// A row that a listing by keys can show.
pub(super) trait KeyRow: Row {
    fn key(&self) -> &str;
    /// Whether it is shown, once merged.
    fn shown(&self) -> bool;
}

impl KeyRow for ObjectRow {
    fn key(&self) -> &str {
        &self.key
    }

    fn shown(&self) -> bool {
        self.slot == Slot::Null && self.is_live()
    }
}

impl KeyRow for UploadRow {
    fn key(&self) -> &str {
        &self.key
    }

    fn shown(&self) -> bool {
        self.is_live()
    }
}

/// What is listed of each shard.
struct Query {
    prefix: String,
    delimiter: Option<String>,
}

impl Query {
    /// The rolled-up prefix that `key` falls under.
    fn group_of(&self, key: &str) -> Option<String> {
        let delimiter = self.delimiter.as_deref()?;
        let rest = key.strip_prefix(&self.prefix)?;
        let end = self.prefix.len() + rest.find(delimiter)? + delimiter.len();
        Some(key[..end].to_owned())
    }

    /// The first sort key behind `name`, a key or a rolled-up prefix. `None`: nothing can come behind.
    fn behind(&self, name: &str) -> Option<Vec<u8>> {
        match self.group_of(name) {
            Some(group) => sort_key::after_prefix(&sort_key::prefix(group.as_bytes())),
            None => sort_key::after_prefix(&sort_key::whole(name.as_bytes())),
        }
    }
}

enum Item<R> {
    Row(R),
    Prefix(String),
}

/// A page as the quorum's merge has it.
struct Page<R> {
    /// By position (sort key; of a prefix, the lowest that it covers).
    items: Vec<(Vec<u8>, Item<R>)>,
    next: Option<Vec<u8>>,
}

/// The pages of a quorum put together, before prefixes in doubt are looked into.
struct Merged<R> {
    rows: BTreeMap<Vec<u8>, R>,
    /// Prefixes, and whether each is certain.
    groups: BTreeMap<String, bool>,
    /// All is complete below this.
    bound: Option<Vec<u8>>,
}

fn merge_pages<R: KeyRow>(query: &Query, replies: &[ListKeysReply]) -> Result<Merged<R>, DomainError> {
    let bound = replies.iter().filter_map(|r| r.next.as_ref()).min().map(|n| n.to_vec());
    let within = |at: &[u8]| bound.as_deref().is_none_or(|b| at < b);
    let mut rows: BTreeMap<Vec<u8>, R> = BTreeMap::new();
    // Of each prefix: the witness of the first node that named it, how many named that one, and whether any other.
    let mut named: BTreeMap<String, (Vec<u8>, usize)> = BTreeMap::new();
    for entry in replies.iter().flat_map(|r| &r.entries) {
        match entry {
            ListEntry::Row(bytes) => {
                let row: R = decode(bytes)?;
                let at = row.sort_key();
                if query.group_of(row.key()).is_some() || !within(&at) {
                    // Behind a delimiter only tombstones come one by one; whoever disagrees has a witness.
                    continue;
                }
                match rows.get_mut(&at) {
                    Some(have) => have.merge(&row),
                    None => {
                        rows.insert(at, row);
                    }
                }
            }
            ListEntry::Prefix { prefix, witness } => {
                if !within(&sort_key::prefix(prefix.as_bytes())) {
                    continue;
                }
                let witness = decode::<R>(witness)?.sort_key();
                let (first, count) = named.entry(prefix.clone()).or_insert_with(|| (witness.clone(), 0));
                *count += usize::from(*first == witness);
            }
        }
    }
    let groups = named.into_iter().map(|(prefix, (_, count))| (prefix, count == replies.len())).collect();
    Ok(Merged { rows, groups, bound })
}

/// One index shard's stream.
struct Cursor<R> {
    partition_key: Vec<u8>,
    from: Vec<u8>,
    buffer: VecDeque<(Vec<u8>, Item<R>)>,
    done: bool,
}

fn token_of(position: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(position)
}

fn position_of(token: &str) -> Result<Vec<u8>, DomainError> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).map_err(|_| DomainError::InvalidArgument {
        reason: "the continuation token is not one of ours".into(),
    })
}

impl Gateway {
    /// Objects in order of their keys' bytes.
    pub async fn list(
        &self,
        bucket: &Bucket,
        list: ListRequest,
    ) -> Result<Listing<ObjectEntry>, DomainError> {
        let query = Query { prefix: list.prefix, delimiter: list.delimiter.filter(|d| !d.is_empty()) };
        let from = match &list.start {
            ListStart::Beginning => Some(Vec::new()),
            ListStart::After(name) => query.behind(name),
            ListStart::Token(token) => Some(position_of(token)?),
        };
        self.list_from(bucket, &query, from, list.max, |row: ObjectRow| {
            let key = row.key.clone();
            match row.state {
                hayloft_common::schema::ObjectState::Live(version) => {
                    Some(ObjectEntry { key, version: *version })
                }
                hayloft_common::schema::ObjectState::Tombstone => None,
            }
        })
        .await
    }

    /// Open uploads in order of key, then upload id.
    pub async fn list_uploads(
        &self,
        bucket: &Bucket,
        list: ListUploads,
    ) -> Result<Listing<UploadEntry>, DomainError> {
        let query = Query { prefix: list.prefix, delimiter: list.delimiter.filter(|d| !d.is_empty()) };
        let from = match &list.start {
            UploadStart::Beginning => Some(Vec::new()),
            UploadStart::AfterKey(key) => query.behind(key),
            UploadStart::After(key, _) if query.group_of(key).is_some() => query.behind(key),
            UploadStart::After(key, upload) => {
                let mut position = UploadRow::sort_key_of(key, upload);
                position.push(0);
                Some(position)
            }
        };
        self.list_from(bucket, &query, from, list.max, |row: UploadRow| upload_entry(&row)).await
    }

    async fn list_from<R: KeyRow, T>(
        &self,
        bucket: &Bucket,
        query: &Query,
        from: Option<Vec<u8>>,
        max: usize,
        show: impl Fn(R) -> Option<T>,
    ) -> Result<Listing<T>, DomainError> {
        let max = max.min(MAX_LIST_PAGE);
        let mut out = Listing { entries: Vec::new(), next: None };
        let Some(from) = from.filter(|_| max > 0) else { return Ok(out) };
        let from = from.max(sort_key::prefix(query.prefix.as_bytes()));
        let mut cursors: Vec<Cursor<R>> = (0..bucket.row.index_shards.max(1))
            .map(|shard| Cursor {
                partition_key: index_partition_key(&bucket.id(), shard),
                from: from.clone(),
                buffer: VecDeque::new(),
                done: false,
            })
            .collect();
        // The position behind the last entry given, and that entry's prefix if it is one.
        let (mut behind, mut last_prefix) = (from, None);
        let mut rounds = 0;
        loop {
            // One more than is given out tells whether there is more; few are no cheaper than some.
            let want = (max + 1 - out.entries.len()).max(LIST_MIN_READ);
            self.fill(query, &mut cursors, want).await?;
            rounds += 1;
            while let Some(cursor) = next_cursor(&mut cursors) {
                let Some((position, item)) = cursor.buffer.pop_front() else { break };
                if matches!(&item, Item::Prefix(prefix) if Some(prefix) == last_prefix.as_ref()) {
                    continue;
                }
                if out.entries.len() == max {
                    out.next = Some(token_of(&behind));
                    return Ok(out);
                }
                match item {
                    Item::Row(row) => {
                        // One position holds one row, so the next one is right behind.
                        behind = position;
                        behind.push(0);
                        out.entries.extend(show(row).map(Listed::Entry));
                    }
                    Item::Prefix(prefix) => {
                        behind = sort_key::after_prefix(&position).unwrap_or(position);
                        last_prefix = Some(prefix.clone());
                        out.entries.push(Listed::Prefix(prefix));
                    }
                }
            }
            if cursors.iter().all(|c| c.done && c.buffer.is_empty()) {
                return Ok(out);
            }
            if rounds >= LIST_MAX_ROUNDS && !out.entries.is_empty() {
                out.next = Some(token_of(&behind));
                return Ok(out);
            }
        }
    }

    /// Reads the next page of every shard that has nothing left to give.
    async fn fill<R: KeyRow>(
        &self,
        query: &Query,
        cursors: &mut [Cursor<R>],
        limit: usize,
    ) -> Result<(), DomainError> {
        let pages = cursors.iter_mut().filter(|c| c.buffer.is_empty() && !c.done).map(|cursor| async move {
            let page = self.page(query, &cursor.partition_key, &cursor.from, limit).await?;
            cursor.buffer.extend(page.items);
            match page.next {
                Some(next) if next > cursor.from => cursor.from = next,
                Some(_) => return Err(DomainError::Internal("a listing came to a standstill".into())),
                None => cursor.done = true,
            }
            Ok(())
        });
        try_join_all(pages).await?;
        Ok(())
    }

    /// One page of one shard.
    async fn page<R: KeyRow>(
        &self,
        query: &Query,
        partition_key: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Page<R>, DomainError> {
        let replies = self
            .store
            .list_keys(ListKeys {
                table: R::TABLE,
                partition_key: partition_key.to_vec(),
                prefix: query.prefix.clone(),
                delimiter: query.delimiter.clone(),
                from: from.to_vec(),
                limit: limit as u32,
            })
            .await?;
        let Merged { rows, groups, mut bound } = merge_pages::<R>(query, &replies)?;
        let mut probes = Vec::with_capacity(groups.len());
        for (prefix, certain) in groups {
            probes.push(async move {
                let live = certain || self.any_live::<R>(partition_key, &prefix, from).await?;
                Ok::<_, DomainError>((prefix, live))
            });
        }
        let decided = all(probes).await?;
        let mut items: Vec<(Vec<u8>, Item<R>)> =
            rows.into_iter().filter(|(_, row)| row.shown()).map(|(at, row)| (at, Item::Row(row))).collect();
        for (prefix, live) in decided {
            let at = sort_key::prefix(prefix.as_bytes());
            // A page that ends within a prefix that is decided as a whole need not go back into it.
            if let (Some(end), Some(after)) = (&bound, sort_key::after_prefix(&at))
                && *end < after
            {
                bound = Some(after);
            }
            if live {
                items.push((at, Item::Prefix(prefix)));
            }
        }
        items.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Page { items, next: bound })
    }

    /// Whether the merge of a quorum has a live row behind `prefix`, from `from` on.
    async fn any_live<R: KeyRow>(
        &self,
        partition_key: &[u8],
        prefix: &str,
        from: &[u8],
    ) -> Result<bool, DomainError> {
        let query = Query { prefix: prefix.to_owned(), delimiter: None };
        let mut from = sort_key::prefix(prefix.as_bytes()).max(from.to_vec());
        let mut limit = 16;
        loop {
            let replies = self
                .store
                .list_keys(ListKeys {
                    table: R::TABLE,
                    partition_key: partition_key.to_vec(),
                    prefix: prefix.to_owned(),
                    delimiter: None,
                    from: from.clone(),
                    limit,
                })
                .await?;
            let Merged { rows, bound, .. } = merge_pages::<R>(&query, &replies)?;
            if rows.values().any(KeyRow::shown) {
                return Ok(true);
            }
            match bound {
                Some(next) if next > from => from = next,
                _ => return Ok(false),
            }
            limit = (limit * 8).min(MAX_LIST_PAGE as u32);
        }
    }
}

/// The shard whose next item comes first. `None` while a shard that may still have earlier ones has to be read.
fn next_cursor<R>(cursors: &mut [Cursor<R>]) -> Option<&mut Cursor<R>> {
    if cursors.iter().any(|c| c.buffer.is_empty() && !c.done) {
        return None;
    }
    fn at<R>(cursor: &Cursor<R>) -> Option<&[u8]> {
        cursor.buffer.front().map(|(position, _)| position.as_slice())
    }
    cursors.iter_mut().filter(|c| !c.buffer.is_empty()).min_by(|a, b| at(a).cmp(&at(b)))
}

pub(super) fn upload_entry(row: &UploadRow) -> Option<UploadEntry> {
    match &row.state {
        UploadState::Open { checksum, .. } => Some(UploadEntry {
            key: row.key.clone(),
            upload: row.upload,
            created_ms: row.created_ms,
            checksum: *checksum,
        }),
        UploadState::Closed => None,
    }
}
