//! Looks directly into the storage nodes' engines and disks, for the checks of a cluster at rest. Changes nothing.

use super::net::HostId;
use super::world::World;
use crate::check::{ClusterView, NodeView, RowState};
use anyhow::Context as _;
use bytes::Bytes;
use hayloft_common::block;
use hayloft_common::codec;
use hayloft_common::hash::Hash;
use hayloft_common::id::UploadId;
use hayloft_common::layout::{ActiveLayout, Phase};
use hayloft_common::limits::MAX_BLOCK_SIZE;
use hayloft_common::schema::{
    BlockRefRow, ManifestRow, ObjectData, ObjectRow, PartRow, Row, TableId, UploadRow,
};
use hayloft_proto::message::table::{IndexCounters, ReadCounters};
use hayloft_storage::blocks::{Location, Place, ScanDepth, ScanItem};
use hayloft_storage::meta::{Direction, KeyRange, Space, Step, View};
use hayloft_storage::serve::Node;
use hayloft_storage::tables::Tables;
use hayloft_storage::tables::fingerprint::Leaves;
use hayloft_storage::tables::queue::{self, Work};
use hayloft_storage::tables::reaction::{Counts, React};
use hayloft_storage::tables::stored::Stored;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything all nodes hold. `Err`: the cluster is not at rest yet, or cannot be read.
pub(super) async fn cluster(world: &World, with_blocks: bool) -> anyhow::Result<ClusterView> {
    let mut nodes = Vec::new();
    let mut newest: Option<Arc<ActiveLayout>> = None;
    for host in world.storage_hosts().filter(|host| !world.is_gone(*host)) {
        let node = world.node(host).with_context(|| format!("{} is not up", world.name(host)))?;
        let layout = node.cluster.layout();
        anyhow::ensure!(
            layout.phase == Phase::Stable && layout.queued.is_empty(),
            "{}: the layout is changing: epoch {} {:?}",
            world.name(host),
            layout.epoch,
            layout.phase
        );
        if let Some(other) = &newest {
            anyhow::ensure!(
                other.epoch == layout.epoch,
                "{} is at epoch {}, not {}",
                world.name(host),
                layout.epoch,
                other.epoch
            );
        }
        newest = Some(layout);
        nodes.push(look_at(world, host, &node, with_blocks).await.with_context(|| world.name(host))?);
    }
    let layout = newest.context("no node is up")?;
    Ok(ClusterView { layout: (*layout).clone(), nodes })
}

async fn look_at(
    world: &World,
    host: HostId,
    node: &Arc<Node>,
    with_blocks: bool,
) -> anyhow::Result<NodeView> {
    let engine = node.engine.snapshot();
    let mut view = NodeView { name: world.name(host), id: node.id, ..NodeView::default() };
    let now_micros = world.earliest_clock();
    let mut reader = Reader { view: &*engine, out: &mut view, counts: BTreeMap::new(), now_micros };
    reader.rows()?;
    let counts = std::mem::take(&mut reader.counts);
    let bits = node.cluster.layout().current.bits;
    fingerprints(&*engine, &mut view)?;
    counters(&*engine, Tables::new(bits), counts, &mut view)?;
    for (_, entry) in queue::read(&*engine, &KeyRange::all(), usize::MAX)? {
        if let Work::Collect { table, key } = &entry.work
            && view.rows.get(&(*table, key.clone())).is_some_and(|row| row.stays)
        {
            continue;
        }
        if let Work::CheckBlock { block } = &entry.work {
            view.unchecked.insert(*block);
            continue;
        }
        let kind = format!("{:?}", entry.work);
        let kind = kind.split([' ', '{', '(']).next().unwrap_or_default().to_owned();
        *view.queued.entry(kind).or_default() += 1;
    }
    let index = index(&*engine)?;
    view.copies = index.keys().map(|hash| (*hash, None)).collect();
    if with_blocks {
        // Only a scrub finds what a crash left on a disk.
        blocks(node, &index, world.knobs.scrubs_in_time(), &mut view).await;
        if world.may_be_rotten(host) {
            view.copies.values_mut().for_each(|wrong| *wrong = None);
        }
    }
    Ok(view)
}

fn index(view: &dyn View) -> anyhow::Result<BTreeMap<Hash, Location>> {
    let mut index = BTreeMap::new();
    let mut bad = None;
    view.scan(Space::BlockIndex, &KeyRange::all(), Direction::Forward, &mut |key, value| {
        match (<[u8; 32]>::try_from(&key[..]), Location::decode(value)) {
            (Ok(hash), Ok(location)) => drop(index.insert(Hash(hash), location)),
            _ => bad = Some(hex::encode(key)),
        }
        Step::Next
    })?;
    anyhow::ensure!(bad.is_none(), "a damaged index entry: {bad:?}");
    Ok(index)
}

/// Reads every block that the index knows, and looks for files that it does not.
async fn blocks(node: &Arc<Node>, index: &BTreeMap<Hash, Location>, strays: bool, out: &mut NodeView) {
    for (hash, location) in index {
        let wrong = match node.blocks.get(hash, location).await {
            Ok(envelope) => block::open(&envelope, hash, MAX_BLOCK_SIZE).err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        out.copies.insert(*hash, wrong);
    }
    if !strays {
        return;
    }
    for item in node.blocks.scan(ScanDepth::Headers) {
        if let ScanItem::Block { hash, location } = item
            && location.place == Place::Plain
            && index.get(&hash).is_none_or(|known| !known.same_place(&location))
        {
            out.strays.push(hash);
        }
    }
}

struct Reader<'a> {
    view: &'a dyn View,
    out: &'a mut NodeView,
    /// What the rows of each partition key add up to.
    counts: BTreeMap<Vec<u8>, Counts>,
    /// The wall clock of the node that is farthest behind.
    now_micros: u64,
}

impl Reader<'_> {
    fn each(
        &mut self,
        table: TableId,
        mut visit: impl FnMut(&mut Self, Stored, Bytes) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        self.view.scan(Space::Table(table), &KeyRange::all(), Direction::Forward, &mut |key, value| {
            rows.push((key.clone(), value.clone()));
            Step::Next
        })?;
        for (key, value) in rows {
            let stored = Stored::parse(table, &key, &value)?;
            let state = RowState { hash: stored.hash, live: stored.live, stays: false };
            self.out.rows.insert((table, key.to_vec()), state);
            visit(self, stored, key)?;
        }
        Ok(())
    }

    fn detail(&self, table: TableId, key: &[u8]) -> anyhow::Result<Bytes> {
        let place = [&[u8::from(table)][..], key].concat();
        self.view.get(Space::Detail, &place)?.context("a row's detail is missing")
    }

    fn row<R: Row>(&self, stored: &Stored, key: &[u8]) -> anyhow::Result<R> {
        let mut row: R = codec::decode(&stored.short)?;
        if stored.has_detail {
            row.attach(&self.detail(R::TABLE, key)?)?;
        }
        Ok(row)
    }

    fn count<R: React>(&mut self, row: &R, key: &Bytes) {
        if row.stamp().is_some_and(|stamp| stamp.micros > self.now_micros)
            && let Some(state) = self.out.rows.get_mut(&(R::TABLE, key.to_vec()))
        {
            state.stays = !state.live;
        }
        let (all, one) = (self.counts.entry(row.partition_key()).or_default(), row.counts());
        all.objects += one.objects;
        all.bytes += one.bytes;
        all.uploads += one.uploads;
        all.parts += one.parts;
        all.part_bytes += one.part_bytes;
    }

    fn rows(&mut self) -> anyhow::Result<()> {
        for table in [TableId::Key, TableId::Bucket, TableId::Alias] {
            self.each(table, |_, _, _| Ok(()))?;
        }
        self.each(TableId::Object, |this, stored, key| {
            let row: ObjectRow = this.row(&stored, &key)?;
            this.count(&row, &key);
            if let Some(version) = row.live() {
                let blocks = match version.detail.as_ref().map(|detail| &detail.data) {
                    Some(ObjectData::Blocks(blocks)) => blocks.iter().map(|block| block.hash).collect(),
                    _ => BTreeSet::new(),
                };
                this.out.wanted.insert(version.id, blocks);
            }
            Ok(())
        })?;
        let mut open: BTreeSet<UploadId> = BTreeSet::new();
        self.each(TableId::Upload, |this, stored, key| {
            let row: UploadRow = this.row(&stored, &key)?;
            this.count(&row, &key);
            if row.is_live() {
                open.insert(row.upload);
            }
            Ok(())
        })?;
        self.each(TableId::Part, |this, stored, key| {
            let row: PartRow = this.row(&stored, &key)?;
            this.count(&row, &key);
            if let Some(version) = row.live().filter(|_| open.contains(&row.upload)) {
                let blocks = version.blocks.iter().map(|block| block.hash).collect();
                this.out.wanted.insert(version.id, blocks);
            }
            Ok(())
        })?;
        self.each(TableId::Manifest, |this, stored, key| {
            let row: ManifestRow = this.row(&stored, &key)?;
            if row.is_live() {
                let blocks = row.blocks.iter().map(|block| block.hash);
                this.out.manifests.entry(row.version).or_default().extend(blocks);
            }
            Ok(())
        })?;
        self.each(TableId::BlockRef, |this, stored, key| {
            let row: BlockRefRow = this.row(&stored, &key)?;
            if row.is_live() {
                this.out.references.insert((row.block, row.version));
            }
            Ok(())
        })
    }
}

/// Compares the fingerprints with what the rows add up to.
fn fingerprints(view: &dyn View, out: &mut NodeView) -> anyhow::Result<()> {
    let places: BTreeSet<(TableId, u16)> = out
        .rows
        .keys()
        .filter_map(|(table, key)| key.first_chunk::<2>().map(|number| (*table, u16::from_be_bytes(*number))))
        .collect();
    for (table, partition) in places {
        let mut kept = Leaves::read(view, table, partition)?;
        kept.0.retain(|_, leaf| *leaf != hayloft_storage::tables::fingerprint::Fingerprint::default());
        if kept != Leaves::recompute(view, table, partition)? {
            out.miscounts.push(format!("fingerprints of {} in partition {partition}", table.name()));
        }
    }
    Ok(())
}

/// Compares the counters with what the rows add up to.
fn counters(
    view: &dyn View,
    tables: Tables,
    counts: BTreeMap<Vec<u8>, Counts>,
    out: &mut NodeView,
) -> anyhow::Result<()> {
    for (partition_key, counts) in counts {
        let kept = tables.read_counters(view, &ReadCounters { partition_key: partition_key.clone() })?;
        let number = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
        let right = IndexCounters {
            objects: number(counts.objects),
            bytes: number(counts.bytes),
            uploads: number(counts.uploads),
            parts: number(counts.parts),
            part_bytes: number(counts.part_bytes),
        };
        if kept != right {
            out.miscounts
                .push(format!("counters of {}: {kept:?}, right are {right:?}", hex::encode(partition_key)));
        }
    }
    Ok(())
}
