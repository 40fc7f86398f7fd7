//! The laws of merging for every row kind, and that stored forms read back.

use super::*;
use crate::codec;
use crate::crdt::{Lww, LwwMap};
use crate::hash::Hash;
use crate::id::{BucketId, UploadId, VersionId};
use proptest::prelude::*;

fn law<R: Row + std::fmt::Debug>(a: &R, b: &R, c: &R) {
    let merged = |x: &R, y: &R| {
        let mut out = x.clone();
        out.merge(y);
        out
    };
    assert_eq!(merged(a, a), *a, "idempotent");
    assert_eq!(merged(a, b), merged(b, a), "commutative");
    assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)), "associative");
    for row in [a, b, c] {
        assert_eq!(&codec::decode::<R>(&codec::encode(row)).unwrap(), row);
        let mut short = row.clone();
        if let Some(detail) = short.detach() {
            short.attach(&detail).unwrap();
        }
        assert_eq!(&short, row, "detach and attach are inverse");
    }
}

fn stamp() -> impl Strategy<Value = Stamp> {
    // Few values, so that equal stamps with different contents are met too.
    (0u64..4, 0u64..3).prop_map(|(micros, writer)| Stamp { micros, writer })
}

fn entry() -> impl Strategy<Value = BlockEntry> {
    (0u8..4).prop_map(|n| BlockEntry { hash: Hash([n; 32]), len: 1 })
}

fn object() -> impl Strategy<Value = ObjectRow> {
    let live = (0u8..3, 0usize..3).prop_map(|(id, size)| {
        let detail = ObjectDetail {
            headers: vec![("content-type".into(), format!("t/{id}"))],
            checksum: None,
            parts: vec![],
            data: ObjectData::Inline(vec![id; size]),
        };
        ObjectState::Live(Box::new(ObjectVersion {
            id: VersionId([id; 16]),
            modified_ms: 1,
            size: size as u64,
            etag: "e".into(),
            checksum: None,
            detail: Some(Box::new(detail)),
        }))
    });
    (stamp(), prop_oneof![Just(ObjectState::Tombstone), live]).prop_map(|(stamp, state)| ObjectRow {
        bucket: BucketId([1; 16]),
        shard: 0,
        key: "k".into(),
        slot: Slot::Null,
        stamp,
        state,
    })
}

fn manifest() -> impl Strategy<Value = ManifestRow> {
    // One honest content per row: what differs is how much of it arrived, and deletion.
    (0usize..4, any::<bool>()).prop_map(|(n, deleted)| ManifestRow {
        version: VersionId([1; 16]),
        chunk: 0,
        blocks: if deleted { vec![] } else { vec![BlockEntry { hash: Hash([7; 32]), len: 1 }; n] },
        deleted,
    })
}

fn upload() -> impl Strategy<Value = UploadRow> {
    let open = (0u8..3)
        .prop_map(|n| UploadState::Open { headers: vec![("a".into(), n.to_string())], checksum: None });
    let state = prop_oneof![open, Just(UploadState::Closed)];
    (0u64..3, state, proptest::option::of(stamp())).prop_map(|(created_ms, state, completed)| UploadRow {
        bucket: BucketId([1; 16]),
        shard: 0,
        key: "k".into(),
        upload: UploadId([2; 16]),
        created_ms,
        state,
        completed,
    })
}

fn part() -> impl Strategy<Value = PartRow> {
    let live = (0u8..3, proptest::collection::vec(entry(), 0..3)).prop_map(|(id, blocks)| {
        PartState::Live(PartVersion {
            id: VersionId([id; 16]),
            modified_ms: 0,
            size: blocks.len() as u64,
            md5: [id; 16],
            checksum: None,
            blocks,
            manifest_chunks: 0,
        })
    });
    (stamp(), prop_oneof![Just(PartState::Tombstone), live]).prop_map(|(stamp, state)| PartRow {
        bucket: BucketId([1; 16]),
        shard: 0,
        key: "k".into(),
        upload: UploadId([2; 16]),
        number: 1,
        stamp,
        state,
    })
}

fn block_ref() -> impl Strategy<Value = BlockRefRow> {
    (0u64..3, any::<bool>(), 0u16..3).prop_map(|(created_ms, deleted, shard)| BlockRefRow {
        block: Hash([1; 32]),
        version: VersionId([2; 16]),
        created_ms,
        owner: BlockOwner::Object { bucket: BucketId([3; 16]), shard, key: "k".into() },
        deleted,
    })
}

fn alias() -> impl Strategy<Value = AliasRow> {
    (stamp(), proptest::option::of(0u8..3))
        .prop_map(|(s, t)| AliasRow { name: "n".into(), target: Lww::new(s, t.map(|b| BucketId([b; 16]))) })
}

fn bucket() -> impl Strategy<Value = BucketRow> {
    let aliases = proptest::collection::btree_map("[ab]", (stamp(), any::<bool>()), 0..3);
    (0u64..3, any::<bool>(), aliases, (stamp(), any::<bool>())).prop_map(
        |(created_ms, deleted, aliases, (s, on))| BucketRow {
            id: BucketId([1; 16]),
            created_ms,
            index_shards: 1,
            deleted,
            aliases: aliases.into_iter().map(|(k, (s, v))| (k, Lww::new(s, v))).collect(),
            monotonic_reads: Lww::new(s, on),
        },
    )
}

fn key() -> impl Strategy<Value = KeyRow> {
    let rights = (stamp(), any::<bool>(), any::<bool>())
        .prop_map(|(s, read, write)| Lww::new(s, Permissions { read, write, owner: false }));
    let buckets = proptest::collection::btree_map((0u8..3).prop_map(|b| BucketId([b; 16])), rights, 0..3);
    (stamp(), "[xy]", any::<bool>(), buckets, stamp()).prop_map(|(s, name, deleted, buckets, other)| KeyRow {
        id: KeyId("HK".into()),
        secret: "s".into(),
        created_ms: 0,
        deleted,
        name: Lww::new(s, name),
        expires_ms: Lww::new(other, None),
        create_bucket: Lww::new(other, deleted),
        buckets,
        local_aliases: LwwMap::new(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn rows_obey_the_merge_laws(
        o in [object(), object(), object()],
        m in [manifest(), manifest(), manifest()],
        u in [upload(), upload(), upload()],
        p in [part(), part(), part()],
        b in [block_ref(), block_ref(), block_ref()],
    ) {
        law(&o[0], &o[1], &o[2]);
        law(&m[0], &m[1], &m[2]);
        law(&u[0], &u[1], &u[2]);
        law(&p[0], &p[1], &p[2]);
        law(&b[0], &b[1], &b[2]);
    }

    #[test]
    fn control_rows_obey_the_merge_laws(
        a in [alias(), alias(), alias()],
        b in [bucket(), bucket(), bucket()],
        k in [key(), key(), key()],
    ) {
        law(&a[0], &a[1], &a[2]);
        law(&b[0], &b[1], &b[2]);
        law(&k[0], &k[1], &k[2]);
    }

    #[test]
    fn sort_keys_keep_the_order_of_keys(a in "[\\x00-\\x02ab/]{0,6}", b in "[\\x00-\\x02ab/]{0,6}") {
        let (ka, kb) = (sort_key::whole(a.as_bytes()), sort_key::whole(b.as_bytes()));
        prop_assert_eq!(a.as_bytes().cmp(b.as_bytes()), ka.cmp(&kb));
        prop_assert_eq!(sort_key::split(&ka), Some((a.clone().into_bytes(), &[][..])));
        prop_assert_eq!(a.starts_with(&b), ka.starts_with(&sort_key::prefix(b.as_bytes())));
    }
}

#[test]
fn newer_versions_of_a_key_sort_first_and_behind_the_null_version() {
    let slot = |micros| Slot::Named { stamp: Stamp { micros, writer: 1 }, version: VersionId([1; 16]) };
    let null = ObjectRow::sort_key_of("k", Slot::Null);
    let old = ObjectRow::sort_key_of("k", slot(1));
    let new = ObjectRow::sort_key_of("k", slot(2));
    assert!(null < new && new < old && old < ObjectRow::sort_key_of("ka", Slot::Null));
}

#[test]
fn an_unknown_format_is_refused_by_name() {
    let mut bytes = codec::encode(&AliasRow { name: "n".into(), target: Lww::default() });
    bytes[0] = 9;
    let error = codec::decode::<AliasRow>(&bytes).unwrap_err().to_string();
    assert!(error.contains("alias row") && error.contains('9') && error.contains('1'), "{error}");
}
