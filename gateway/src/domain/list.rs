//! Listings of objects and uploads: the pages of a quorum, merged exactly, over all index shards.
//!
//! Each node of a read quorum answers with a page, complete up to the point where it stopped. Up to the lowest such
//! point the union is what the quorum knows: rows are merged (so a tombstone on one node wins over a live row on
//! another). A rolled-up prefix counts when every node named the same witness, since then that row is live in the
//! merge too; otherwise the keys behind the prefix are listed until the merge shows a live one. Index shards are
//! read side by side and their streams merged by key.
//!
//! A monotonic reading ([`super::settle`]) takes only what all replies agree on. Rows in doubt are read again one by one
//! (a page has no details, so it can't be written back) and made to last. A prefix is there if all name the same
//! version of the same witness, and is not if they know the same tombstones behind it (which nodes give for such
//! readings, else two that agree on "nothing" might do so for reasons that a third does not share); otherwise the rows
//! behind it are settled up to the first live one.
//!
//! Round trips: 1 for a page when nodes agree; one more where they disagree about a prefix; more where tombstones or
//! nodes' page limits leave a page short.

use super::rows::{all, decode};
use super::settle::{Reading, Seen};
use super::store::Replies;
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

/// The pages of a quorum put together, before what is in doubt is looked into.
struct Merged<R> {
    rows: BTreeMap<Vec<u8>, Seen<R>>,
    /// Prefixes that are there, or may be.
    groups: BTreeMap<String, Verdict>,
    /// All is complete below this.
    bound: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Live,
    Doubt,
}

/// What each reply says of a rolled-up prefix: the first live row behind it, and the tombstones before that.
struct Group<'a> {
    witnesses: Vec<Option<&'a [u8]>>,
    tombstones: Vec<Vec<&'a [u8]>>,
}

impl Group<'_> {
    fn new(replies: usize) -> Self {
        Self { witnesses: vec![None; replies], tombstones: vec![Vec::new(); replies] }
    }

    /// `None`: there is nothing live behind the prefix.
    fn verdict<R: KeyRow>(&self, reading: Reading, lasting: bool) -> Result<Option<Verdict>, DomainError> {
        let Some(named) = self.witnesses.iter().copied().collect::<Option<Vec<&[u8]>>>() else {
            // As long as nobody has a live row, the tombstones are why.
            let agree = self.witnesses.iter().all(Option::is_none)
                && lasting
                && self.tombstones.windows(2).all(|pair| pair[0] == pair[1]);
            return Ok(if agree { None } else { Some(Verdict::Doubt) });
        };
        let same = match reading {
            // A row that is live everywhere is live in the merge, even if nodes have different versions of it.
            Reading::Plain => {
                let mut keys = Vec::with_capacity(named.len());
                for witness in named {
                    keys.push(decode::<R>(witness)?.sort_key());
                }
                keys.windows(2).all(|pair| pair[0] == pair[1])
            }
            Reading::Monotonic => lasting && named.windows(2).all(|pair| pair[0] == pair[1]),
        };
        Ok(Some(if same { Verdict::Live } else { Verdict::Doubt }))
    }
}

fn merge_pages<R: KeyRow>(
    query: &Query,
    reading: Reading,
    replies: &Replies<ListKeysReply>,
) -> Result<Merged<R>, DomainError> {
    let count = replies.all.len();
    let bound = replies.all.iter().filter_map(|r| r.next.as_ref()).min().map(|n| n.to_vec());
    let within = |at: &[u8]| bound.as_deref().is_none_or(|b| at < b);
    let mut rows: BTreeMap<Vec<u8>, Seen<R>> = BTreeMap::new();
    let mut groups: BTreeMap<String, Group<'_>> = BTreeMap::new();
    for (reply, entry) in
        replies.all.iter().enumerate().flat_map(|(i, r)| r.entries.iter().map(move |entry| (i, entry)))
    {
        match entry {
            ListEntry::Row(bytes) => {
                let row: R = decode(bytes)?;
                let at = row.sort_key();
                if !within(&at) {
                    continue;
                }
                if let Some(prefix) = query.group_of(row.key()) {
                    // Behind a delimiter only tombstones come one by one, and only when asked for.
                    if reading == Reading::Monotonic {
                        let group = groups.entry(prefix).or_insert_with(|| Group::new(count));
                        group.tombstones[reply].push(bytes);
                    }
                    continue;
                }
                match rows.get_mut(&at) {
                    Some(have) => have.merge(&row, bytes),
                    None => {
                        rows.insert(at, Seen::new(row, bytes));
                    }
                }
            }
            ListEntry::Prefix { prefix, witness } => {
                if within(&sort_key::prefix(prefix.as_bytes())) {
                    let group = groups.entry(prefix.clone()).or_insert_with(|| Group::new(count));
                    group.witnesses[reply] = Some(witness);
                }
            }
        }
    }
    let mut decided = BTreeMap::new();
    for (prefix, group) in groups {
        if let Some(verdict) = group.verdict::<R>(reading, replies.lasting)? {
            decided.insert(prefix, verdict);
        }
    }
    Ok(Merged { rows, groups: decided, bound })
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
            self.fill(query, bucket.reading(), &mut cursors, want).await?;
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
        reading: Reading,
        cursors: &mut [Cursor<R>],
        limit: usize,
    ) -> Result<(), DomainError> {
        let pages = cursors.iter_mut().filter(|c| c.buffer.is_empty() && !c.done).map(|cursor| async move {
            let page = self.page(query, reading, &cursor.partition_key, &cursor.from, limit).await?;
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
        reading: Reading,
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
                tombstones: reading == Reading::Monotonic,
            })
            .await?;
        let Merged { rows, groups, mut bound } = merge_pages::<R>(query, reading, &replies)?;
        let rows = self.settle_rows(reading, partition_key, rows, &replies).await?;
        let mut probes = Vec::with_capacity(groups.len());
        for (prefix, verdict) in groups {
            probes.push(async move {
                let live = verdict == Verdict::Live
                    || self.any_live::<R>(reading, partition_key, &prefix, from).await?;
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

    /// The rows of a page; for a monotonic reading those in doubt (tombstones as well: what is seen gone stays gone)
    /// are read again and made to last.
    async fn settle_rows<R: KeyRow>(
        &self,
        reading: Reading,
        partition_key: &[u8],
        rows: BTreeMap<Vec<u8>, Seen<R>>,
        replies: &Replies<ListKeysReply>,
    ) -> Result<BTreeMap<Vec<u8>, R>, DomainError> {
        let sure = |seen: &Seen<R>| {
            reading == Reading::Plain || (replies.lasting && seen.is_agreed(replies.all.len()))
        };
        let (mut out, mut doubtful) = (BTreeMap::new(), Vec::new());
        for (at, seen) in rows {
            if sure(&seen) {
                out.insert(at, seen.row);
            } else {
                doubtful.push(at);
            }
        }
        for mut row in self.read_lasting::<R>(partition_key, &doubtful).await? {
            row.detach();
            out.insert(row.sort_key(), row);
        }
        Ok(out)
    }

    /// Whether the merge of a quorum has a live row behind `prefix`, from `from` on.
    async fn any_live<R: KeyRow>(
        &self,
        reading: Reading,
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
                    tombstones: false,
                })
                .await?;
            let Merged { mut rows, bound, .. } = merge_pages::<R>(&query, reading, &replies)?;
            // One live row is enough; what comes behind it need not be made to last.
            let behind = rows.iter().find(|(_, seen)| seen.row.shown()).map(|(at, _)| {
                let mut behind = at.clone();
                behind.push(0);
                behind
            });
            if let Some(behind) = &behind {
                rows.split_off(behind);
            }
            let rows = self.settle_rows(reading, partition_key, rows, &replies).await?;
            if rows.values().any(KeyRow::shown) {
                return Ok(true);
            }
            match behind.or(bound) {
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
