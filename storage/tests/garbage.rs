//! Three nodes collect their garbage: what replaced versions, abandoned uploads and closed multipart uploads held goes,
//! then the tombstones; what is wanted stays, whatever node was away meanwhile.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cluster_support;

use cluster_support::{
    BUCKET, TestCluster, block_on, deleted, hasty, keys, meanwhile, object, object_of, owner, row_bytes,
    rows, until, version,
};
use hayloft_common::hash::Hash;
use hayloft_common::id::{UploadId, VersionId};
use hayloft_common::schema::{
    BlockEntry, BlockOwner, ManifestRow, ObjectData, ObjectRow, PartRow, PartState, PartVersion, Row,
    TableId, UploadRow, UploadState,
};
use hayloft_common::stamp::Stamp;
use hayloft_proto::body::Body;
use hayloft_proto::fanout;
use hayloft_proto::message::table::{ReadRow, WriteMode, WriteRows};
use hayloft_storage::meta::Space;
use hayloft_storage::serve::Node;
use hayloft_storage::tables::queue::{self, Kind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Whether a node holds rows and blocks of nothing, and has nothing more to do. Floors stay.
fn is_empty(node: &Arc<Node>) -> bool {
    let tables = TableId::ALL.into_iter().filter(|table| *table != TableId::Floor);
    tables.map(|table| rows(node, table).0).sum::<usize>() == 0
        && keys(node, Space::Queue).is_empty()
        && keys(node, Space::BlockIndex).is_empty()
        && keys(node, Space::Counters).is_empty()
        && keys(node, Space::Detail).is_empty()
}

async fn read(cluster: &TestCluster, key: &str) -> Option<ObjectRow> {
    let row = deleted(key, 0);
    let (partition_key, sort_key) = (row.partition_key(), row.sort_key());
    let place = Hash::of(&partition_key);
    let ask = ReadRow { table: TableId::Object, partition_key, sort_key };
    let replies = fanout::read(cluster.client(), place, ask).await.unwrap();
    let mut merged: Option<ObjectRow> = None;
    for bytes in replies.into_iter().filter_map(|(_, reply)| reply.row) {
        let row: ObjectRow = hayloft_common::codec::decode(&bytes).unwrap();
        match &mut merged {
            Some(merged) => merged.merge(&row),
            None => merged = Some(row),
        }
    }
    merged.filter(Row::is_live)
}

#[test]
fn what_a_replaced_version_held_goes_and_after_the_deletion_nothing_is_left() {
    block_on(async {
        let cluster = TestCluster::start(hasty()).await;
        let first = cluster.put_blocks(version(1), &owner("k"), &[b"one", b"shared"]).await;
        cluster.put(&[object("k", 10, version(1), first)]).await;
        let second = cluster.put_blocks(version(2), &owner("k"), &[b"two", b"shared"]).await;
        cluster.put(&[object("k", 20, version(2), second.clone())]).await;
        cluster
            .until_all("the replaced version's references are gone", |node| {
                rows(node, TableId::BlockRef) == (2, 2)
                    && keys(node, Space::BlockIndex).len() == 2
                    && keys(node, Space::Queue).is_empty()
            })
            .await;
        assert_eq!(read(&cluster, "k").await.unwrap().live().unwrap().id, version(2));
        cluster.put(&[deleted("k", 30)]).await;
        cluster.until_all("all is gone", is_empty).await;
        // A gateway whose clock is behind: its write is called outdated until it is above what was deleted.
        let late = WriteRows { mode: WriteMode::Put, rows: vec![row_bytes(&deleted("other", 29))] };
        for node in cluster.up() {
            let reply = cluster.client().call(node.id, &late, Body::empty(), Duration::from_secs(5)).await;
            let outcomes = reply.unwrap().0.outcomes;
            let floor = Stamp { micros: 30, writer: 1 };
            assert_eq!(outcomes, [hayloft_proto::message::table::RowOutcome::Outdated(floor)]);
        }
    });
}

#[test]
fn references_of_an_upload_live_as_long_as_they_are_renewed() {
    block_on(async {
        let cluster = TestCluster::start(hasty()).await;
        let blocks = cluster.put_blocks(version(1), &owner("kept"), &[b"kept"]).await;
        cluster.put_blocks(version(2), &owner("left"), &[b"left"]).await;
        for _ in 0..20 {
            meanwhile(Duration::from_millis(200)).await;
            cluster.renew(version(1), &owner("kept"), &blocks).await;
        }
        cluster.put(&[object("kept", 10, version(1), blocks)]).await;
        let looked_at = |node: &Arc<Node>| {
            rows(node, TableId::BlockRef) == (1, 1)
                && keys(node, Space::BlockIndex).len() == 1
                && keys(node, Space::Queue).is_empty()
        };
        cluster
            .until_all("the abandoned upload is gone and the committed one was looked at", looked_at)
            .await;
    });
}

#[test]
fn a_version_that_only_one_node_has_keeps_its_references() {
    block_on(async {
        let settings =
            hayloft_storage::workers::Settings { anti_entropy_interval: Duration::from_hours(1), ..hasty() };
        let cluster = TestCluster::start(settings).await;
        let blocks = cluster.put_blocks(version(1), &owner("k"), &[b"one"]).await;
        // A commit that reached one node and was never answered.
        let rows_of = vec![row_bytes(&object("k", 10, version(1), blocks))];
        let write = WriteRows { mode: WriteMode::Put, rows: rows_of };
        let one = cluster.machines[2].node().id;
        cluster.client().call(one, &write, Body::empty(), Duration::from_secs(5)).await.unwrap();
        meanwhile(Duration::from_secs(4)).await;
        for node in cluster.up() {
            assert_eq!(rows(node, TableId::BlockRef), (1, 1));
            assert_eq!(keys(node, Space::BlockIndex).len(), 1);
        }
    });
}

fn upload(closed: bool) -> UploadRow {
    let open = UploadState::Open { headers: vec![], checksum: None };
    let state = if closed { UploadState::Closed } else { open };
    let (key, upload) = ("k".into(), UploadId([9; 16]));
    UploadRow { bucket: BUCKET, shard: 0, key, upload, created_ms: 1, state, completed: None }
}

fn part_owner(number: u16) -> BlockOwner {
    BlockOwner::Part { bucket: BUCKET, shard: 0, key: "k".into(), upload: UploadId([9; 16]), number }
}

async fn put_part(cluster: &TestCluster, number: u16, id: u8, micros: u64) {
    let plain = format!("part {number} {id}");
    let blocks = cluster.put_blocks(version(id), &part_owner(number), &[plain.as_bytes()]).await;
    let state = PartState::Live(PartVersion {
        id: version(id),
        modified_ms: 0,
        size: plain.len() as u64,
        md5: [0; 16],
        checksum: None,
        blocks,
        manifest_chunks: 0,
    });
    let stamp = Stamp { micros, writer: 1 };
    let (key, upload) = ("k".into(), UploadId([9; 16]));
    cluster.put(&[PartRow { bucket: BUCKET, shard: 0, key, upload, number, stamp, state }]).await;
}

#[test]
fn parts_of_a_closed_upload_go_also_those_that_come_late() {
    block_on(async {
        let cluster = TestCluster::start(hasty()).await;
        cluster.put(&[upload(false)]).await;
        put_part(&cluster, 1, 1, 10).await;
        put_part(&cluster, 2, 2, 11).await;
        put_part(&cluster, 2, 3, 12).await;
        until("the replaced part is gone, the others were looked at", || {
            cluster
                .up()
                .all(|node| rows(node, TableId::BlockRef) == (2, 2) && keys(node, Space::Queue).is_empty())
        })
        .await;
        cluster.put(&[upload(true)]).await;
        cluster.until_all("all parts are gone", is_empty).await;
        put_part(&cluster, 3, 4, u64::from(u32::MAX)).await;
        cluster.until_all("the late part is gone", is_empty).await;
    });
}

#[test]
fn block_lists_in_rows_of_their_own_go_with_their_version() {
    block_on(async {
        let cluster = TestCluster::start(hasty()).await;
        let plain: Vec<Vec<u8>> = (0..70u8).map(|i| vec![i; 10]).collect();
        let plain: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
        let write = async |id: u8, blocks: &[_]| {
            let chunks = blocks.chunks(7).enumerate();
            let row = |(chunk, blocks): (usize, &[_])| ManifestRow {
                version: version(id),
                chunk: chunk as u32,
                blocks: blocks.to_vec(),
                deleted: false,
            };
            cluster.put(&chunks.map(row).collect::<Vec<_>>()).await;
        };
        let blocks = cluster.put_blocks(version(1), &owner("k"), &plain).await;
        write(1, &blocks).await;
        let chunk_offsets = (0..10).map(|chunk| chunk * 70).collect();
        let data = ObjectData::Manifest { chunk_offsets, first: blocks[..1].to_vec() };
        cluster.put(&[object_of("k", 10, version(1), 700, data)]).await;
        // Never committed.
        let blocks = cluster.put_blocks(version(2), &owner("k"), &plain[..20]).await;
        write(2, &blocks).await;
        cluster
            .until_all("what was not committed is gone", |node| {
                rows(node, TableId::Manifest) == (10, 10)
                    && rows(node, TableId::BlockRef) == (70, 70)
                    && keys(node, Space::Queue).is_empty()
            })
            .await;
        cluster.put(&[deleted("k", 20)]).await;
        cluster.until_all("all is gone", is_empty).await;
    });
}

#[test]
fn a_node_that_was_away_while_an_object_was_deleted_does_not_bring_it_back() {
    block_on(async {
        let mut cluster = TestCluster::start(hasty()).await;
        let blocks = cluster.put_blocks(version(1), &owner("k"), &[b"one"]).await;
        cluster.put(&[object("k", 10, version(1), blocks)]).await;
        until("all nodes have it", || {
            cluster
                .up()
                .all(|node| rows(node, TableId::Object) == (1, 1) && rows(node, TableId::BlockRef) == (1, 1))
        })
        .await;
        cluster.crash(2);
        cluster.put(&[deleted("k", 20)]).await;
        meanwhile(Duration::from_secs(3)).await;
        for node in cluster.up() {
            assert_eq!(rows(node, TableId::Object), (1, 0), "the tombstone waits for the node that is down");
        }
        cluster.run(2).await;
        cluster.until_connected().await;
        cluster.until_all("all is gone", is_empty).await;
        assert!(read(&cluster, "k").await.is_none());
    });
}

/// Prints how long it takes to let go of what many deleted objects of one block each held. Run it alone, optimised:
/// `cargo test --release -p hayloft-storage --test garbage -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn how_long_many_deleted_objects_take() {
    const OBJECTS: u64 = 5_000;
    let settings = hayloft_storage::workers::Settings {
        drop_delay: Duration::from_secs(1),
        takeover_delay: Duration::from_mins(10),
        uncommitted_age: Duration::from_hours(1),
        tombstone_delay: Duration::from_secs(1),
        ..hasty()
    };
    block_on(async {
        let cluster = TestCluster::start(settings).await;
        let clock = hayloft_common::env::Env::real();
        let id = |n: u64| VersionId([n.to_le_bytes(), [7; 8]].concat().try_into().unwrap());
        let block = |n: u64| BlockEntry { hash: Hash::of(&n.to_le_bytes()), len: 10 };
        let key = |n: u64| format!("key{n:08}");
        let numbers: Vec<u64> = (0..OBJECTS).collect();
        for chunk in numbers.chunks(500) {
            let row = |n: &u64| object(&key(*n), 10, id(*n), vec![block(*n)]);
            cluster.put(&chunk.iter().map(row).collect::<Vec<_>>()).await;
            let mut groups: BTreeMap<u16, Vec<_>> = BTreeMap::new();
            for n in chunk {
                let partition = cluster.client().layout().partition_of_key(block(*n).hash.as_bytes()).0;
                let reference = cluster_support::reference(block(*n).hash, id(*n), &owner(&key(*n)));
                groups.entry(partition).or_default().push(reference);
            }
            for group in groups.into_values() {
                cluster.put(&group).await;
            }
        }
        let began = clock.now();
        let say = |what: &str| eprintln!("{what}: {:.1} s", clock.now().saturating_sub(began).as_secs_f64());
        for chunk in numbers.chunks(1000) {
            cluster.put(&chunk.iter().map(|n| deleted(&key(*n), 20)).collect::<Vec<_>>()).await;
        }
        say("deleted");
        let drops =
            |node: &Arc<Node>| queue::read(&*node.engine, &Kind::DropVersion.range(), 1).unwrap().len();
        while cluster.up().any(|node| drops(node) > 0) {
            meanwhile(Duration::from_millis(200)).await;
        }
        say("references dropped");
        while cluster.up().any(|node| rows(node, TableId::Object).0 + rows(node, TableId::BlockRef).0 > 0) {
            meanwhile(Duration::from_secs(2)).await;
        }
        say("tombstones gone");
    });
}
