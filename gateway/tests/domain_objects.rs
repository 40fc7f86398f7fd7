//! Objects: what was put is got, whatever the clocks, the lost copies and the way the body came.

mod domain_support;

use domain_support::*;
use futures::StreamExt as _;
use hayloft_common::schema::{ChecksumAlgorithm, ObjectData};
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{BodyError, BodyFault, ChecksumRequest, CopyObject, DomainError, Expected};
use hayloft_gateway::limits::DomainConfig;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

#[tokio::test]
async fn every_size_comes_back_as_it_was_put() {
    let store = Arc::new(MemoryStore::new(3, 1));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    for size in [0, 1, 99, 100, 101, 999, 1000, 1001, 5000, 64_000, 64_001, 70_123] {
        for known in [true, false] {
            let data = noise(size, size as u64);
            let length = known.then_some(size as u64);
            let done = gateway.put(put_of(&bucket, "k", length), body_of(&data, 777)).await.unwrap();
            assert_eq!(done.etag, md5_hex(&data));
            assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), data, "{size} bytes");
            let head = gateway.head(&bucket, "k", None).await.unwrap();
            assert_eq!((head.version.size, head.version.etag.as_str()), (size as u64, done.etag.as_str()));
            assert_eq!(head.headers()[0].1, "text/x-test");
            let inline = matches!(head.version.detail.unwrap().data, ObjectData::Inline(_));
            assert_eq!(inline, size <= 100, "{size} bytes");
        }
    }
}

#[tokio::test]
async fn a_long_block_list_goes_to_manifest_rows_and_ranges_find_their_row() {
    let store = Arc::new(MemoryStore::new(3, 2));
    let gateway = gateway_with(&store, 0, DomainConfig { block_size: 50, inline_max: 10, ..config() });
    let (bucket, data) = (bucket(1), noise(50 * 2500 + 7, 9));
    put(&gateway, &bucket, "k", &data).await.unwrap();
    let head = gateway.head(&bucket, "k", None).await.unwrap();
    let ObjectData::Manifest { chunk_offsets, .. } = &head.version.detail.as_ref().unwrap().data else {
        panic!("no manifest")
    };
    assert_eq!(chunk_offsets, &[0, 51_200, 102_400]);
    assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), data);
    for range in [0..1, 790..810, 51_190..51_210, 51_200..51_201, 102_399..125_007, 125_000..999_999] {
        let object = gateway.open_at(&bucket, "k", None, Some(range.start)).await.unwrap();
        let end = (range.end as usize).min(data.len());
        assert_eq!(
            read(object.read(range.clone())).await.unwrap(),
            data[range.start as usize..end],
            "{range:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_range_is_the_same_range_of_the_data(
        size in 0usize..6000, piece in 1usize..3000, a in 0u64..6000, b in 0u64..6000, compress in any::<bool>(),
    ) {
        runtime().block_on(async {
            let store = Arc::new(MemoryStore::new(3, 3));
            let (gateway, bucket) = (gateway(&store), bucket(4));
            let data = if compress { vec![5; size] } else { noise(size, 5) };
            gateway.put(put_of(&bucket, "k", None), body_of(&data, piece)).await.unwrap();
            let (start, end) = (a.min(b).min(size as u64), a.max(b).min(size as u64));
            let object = gateway.open_at(&bucket, "k", None, Some(start)).await.unwrap();
            assert_eq!(read(object.read(start..end)).await.unwrap(), data[start as usize..end as usize]);
        });
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Gateways whose clocks are ten years off in both directions, replicas that lose writes, one that is dead.
    #[test]
    fn a_read_after_a_write_sees_it(
        seed in any::<u64>(),
        ops in prop::collection::vec((0usize..3, 0u8..2, prop::option::weighted(0.8, 0usize..2500), any::<bool>()), 1..25),
    ) {
        runtime().block_on(async {
            let store = Arc::new(MemoryStore::new(3, seed));
            store.set_stale((seed % 3) as usize, 128);
            store.set_stale((seed / 3 % 3) as usize, 128);
            let gateways = [0, YEARS_10_MS, -YEARS_10_MS].map(|offset| gateway_with(&store, offset, config()));
            let bucket = bucket(2);
            let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            for (n, (who, key, size, down)) in ops.into_iter().enumerate() {
                store.set_dead(n % 3, down);
                let key = format!("key{key}");
                if let Some(size) = size {
                    let data = noise(size, n as u64);
                    put(&gateways[who], &bucket, &key, &data).await.unwrap();
                    model.insert(key.clone(), data);
                } else {
                    gateways[who].delete(&bucket, &key).await.unwrap();
                    model.remove(&key);
                }
                store.collect();
                store.set_dead(n % 3, false);
                store.set_dead((n + 1) % 3, down);
                let reader = &gateways[(who + 1) % 3];
                match (get(reader, &bucket, &key).await, model.get(&key)) {
                    (Ok(found), Some(data)) => assert!(found == *data, "other bytes than were put"),
                    (Err(DomainError::NoSuchKey { .. }), None) => {}
                    (found, model) => panic!("found {:?}, put {:?}", found.map(|f| f.len()), model.map(Vec::len)),
                }
                // Every block of the version that is current has a reference of that version.
                if let Ok(head) = reader.head(&bucket, &key, None).await
                    && let ObjectData::Blocks(blocks) = &head.version.detail.as_ref().unwrap().data
                {
                    let referred = store.referred(head.version.id);
                    assert!(blocks.iter().all(|b| referred.contains(&b.hash)), "a block without reference");
                }
                store.set_dead((n + 1) % 3, false);
            }
        });
    }
}

#[tokio::test]
async fn a_body_that_fails_leaves_the_object_as_it_was() {
    let store = Arc::new(MemoryStore::new(3, 4));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    put(&gateway, &bucket, "k", b"before").await.unwrap();
    for size in [50, 3500] {
        let data = noise(size, 1);
        let gone = BodyError { fault: BodyFault::Incomplete, reason: "gone".into() };
        let failing = body_of(&data, 300).chain(futures::stream::iter([Err(gone)])).boxed();
        let error = gateway.put(put_of(&bucket, "k", Some(9999)), failing).await.unwrap_err();
        assert!(matches!(error, DomainError::Body(BodyError { fault: BodyFault::Incomplete, .. })));
        let error =
            gateway.put(put_of(&bucket, "k", Some(size as u64 + 1)), body_of(&data, 300)).await.unwrap_err();
        assert!(matches!(error, DomainError::IncompleteBody { .. }));
        let error =
            gateway.put(put_of(&bucket, "k", Some(size as u64 - 1)), body_of(&data, 300)).await.unwrap_err();
        assert!(matches!(error, DomainError::Body(BodyError { fault: BodyFault::TooLarge, .. })));
        let mut wrong = put_of(&bucket, "k", None);
        wrong.checks.md5 = Some([1; 16]);
        let error = gateway.put(wrong, body_of(&data, 300)).await.unwrap_err();
        assert!(matches!(error, DomainError::BadDigest));
    }
    assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), b"before");
    assert_eq!(gateway.free_memory(), (512 << 10, 512 << 10));
}

#[tokio::test]
async fn checksums_are_compared_wherever_they_come_from() {
    let store = Arc::new(MemoryStore::new(3, 5));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    let data = b"123456789".repeat(200);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &data) as u32;
    let put_with = |expected| {
        let mut put = put_of(&bucket, "k", None);
        put.checks.checksum = Some(ChecksumRequest { algorithm: ChecksumAlgorithm::Crc32c, expected });
        gateway.put(put, body_of(&data, 512))
    };
    let right = crc.to_be_bytes().to_vec();
    let done = put_with(Expected::Value(right.clone())).await.unwrap();
    assert_eq!(done.checksum.unwrap().value, right);
    let error = put_with(Expected::Value(vec![0; 4])).await.unwrap_err();
    assert!(matches!(error, DomainError::BadChecksum { .. }));

    let trailer = Arc::new(OnceLock::new());
    let error = put_with(Expected::Trailer(trailer.clone())).await.unwrap_err();
    assert!(matches!(error, DomainError::MissingTrailer));
    trailer.set(right.clone()).unwrap();
    put_with(Expected::Trailer(trailer)).await.unwrap();
    let head = gateway.head(&bucket, "k", None).await.unwrap();
    assert_eq!(head.checksum().unwrap().value, right);
}

#[tokio::test]
async fn one_replica_may_be_dead_and_two_may_not() {
    let store = Arc::new(MemoryStore::new(3, 6));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    let data = noise(4321, 1);
    put(&gateway, &bucket, "k", &data).await.unwrap();
    store.set_dead(0, true);
    put(&gateway, &bucket, "k2", &data).await.unwrap();
    assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), data);
    store.set_dead(1, true);
    let error = put(&gateway, &bucket, "k", b"new").await.unwrap_err();
    assert!(matches!(error, DomainError::Unavailable { .. }) && error.is_retryable());
    assert!(matches!(get(&gateway, &bucket, "k").await, Err(DomainError::Unavailable { .. })));
    store.set_dead(0, false);
    assert_eq!(get(&gateway, &bucket, "k2").await.unwrap(), data);
}

#[tokio::test]
async fn bad_and_lost_copies_are_passed_over_until_none_is_left() {
    let store = Arc::new(MemoryStore::new(3, 7));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    let data = noise(4321, 1);
    put(&gateway, &bucket, "k", &data).await.unwrap();
    store.spoil_blocks(0, false);
    store.spoil_blocks(1, true);
    assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), data);
    store.spoil_blocks(2, false);
    assert!(matches!(get(&gateway, &bucket, "k").await, Err(DomainError::Damaged { .. })));
}

#[tokio::test]
async fn many_transfers_share_little_memory_and_give_it_all_back() {
    let store = Arc::new(MemoryStore::new(3, 8));
    let config =
        DomainConfig { block_size: 64 << 10, inline_max: 100, block_ram_buffer_max: 1 << 20, ..config() };
    let (gateway, bucket) = (gateway_with(&store, 0, config), bucket(1));
    let before = gateway.free_memory();
    let transfers = (0..24u64).map(|n| {
        let (gateway, bucket) = (gateway.clone(), bucket.clone());
        async move {
            let (key, data) = (format!("k{n}"), noise(700_000, n));
            put(&gateway, &bucket, &key, &data).await.unwrap();
            assert!(get(&gateway, &bucket, &key).await.unwrap() == data);
        }
    });
    futures::future::join_all(transfers).await;
    // A download that nobody reads on holds memory only as long as it is kept.
    let object = gateway.open(&bucket, "k0", None).await.unwrap();
    let mut stream = object.read(0..700_000);
    stream.next().await.unwrap().unwrap();
    drop(stream);
    // What was aborted lets go at its next await.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(gateway.free_memory(), before);
}

#[tokio::test]
async fn equal_blocks_of_an_object_are_sent_once() {
    let store = Arc::new(MemoryStore::new(3, 9));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    put(&gateway, &bucket, "k", &vec![0; 50_000]).await.unwrap();
    assert_eq!((store.blocks(), store.calls()["put_block"]), (1, 1));
    assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), vec![0; 50_000]);
}

#[tokio::test]
async fn operations_take_the_round_trips_they_promise() {
    let store = Arc::new(MemoryStore::new(3, 10));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    let calls = |store: &MemoryStore| store.calls().values().sum::<usize>();
    put(&gateway, &bucket, "small", b"x").await.unwrap();
    assert_eq!(calls(&store), 1);
    get(&gateway, &bucket, "small").await.unwrap();
    assert_eq!(calls(&store), 2);
    gateway.delete(&bucket, "small").await.unwrap();
    assert_eq!(calls(&store), 3);
    put(&gateway, &bucket, "big", &noise(2000, 1)).await.unwrap();
    assert_eq!(calls(&store), 6);
    let keys = (0..1000).map(|n| format!("gone{n}")).collect();
    let outcomes = gateway.delete_many(&bucket, keys).await;
    assert!(outcomes.iter().all(|o| o.result.is_ok()) && outcomes[999].key == "gone999");
    assert_eq!(calls(&store), 7);
}

#[tokio::test]
async fn deleting_many_names_what_failed() {
    let store = Arc::new(MemoryStore::new(3, 11));
    let (gateway, bucket) = (gateway(&store), bucket(8));
    put(&gateway, &bucket, "a", b"x").await.unwrap();
    let keys = vec!["a".to_owned(), String::new(), "a".to_owned(), "never".to_owned()];
    let outcomes = gateway.delete_many(&bucket, keys).await;
    let ok: Vec<bool> = outcomes.iter().map(|o| o.result.is_ok()).collect();
    assert_eq!(ok, [true, false, true, true]);
    assert!(matches!(get(&gateway, &bucket, "a").await, Err(DomainError::NoSuchKey { .. })));
}

#[tokio::test]
async fn a_copy_is_an_object_of_its_own() {
    let store = Arc::new(MemoryStore::new(3, 12));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    for size in [50, 5000, 70_500] {
        let data = noise(size, 3);
        put(&gateway, &bucket, "from", &data).await.unwrap();
        let source = gateway.head(&bucket, "from", None).await.unwrap();
        let before = store.calls().get("put_block").copied();
        let copy = CopyObject {
            bucket: bucket.clone(),
            key: "to".into(),
            headers: Some(vec![("content-type".into(), "other".into())]),
            checksum: Some(ChecksumAlgorithm::Sha256),
        };
        let done = gateway.copy(&source, copy).await.unwrap();
        assert_eq!(store.calls().get("put_block").copied(), before, "a copy moved data");
        assert_eq!(done.etag, md5_hex(&data));
        gateway.delete(&bucket, "from").await.unwrap();
        store.collect();
        let head = gateway.head(&bucket, "to", None).await.unwrap();
        assert_eq!(head.headers()[0].1, "other");
        assert_eq!(head.checksum().unwrap().value.len(), 32);
        assert_ne!(head.version.id, source.version.id);
        assert_eq!(get(&gateway, &bucket, "to").await.unwrap(), data);
        let blocks = size.div_ceil(1000) * usize::from(size > 100);
        assert_eq!(store.referred(head.version.id).len(), blocks);
    }
    store.spoil_blocks(0, true);
    store.spoil_blocks(1, true);
    store.spoil_blocks(2, true);
    let source = gateway.head(&bucket, "to", None).await.unwrap();
    let copy = CopyObject { bucket: bucket.clone(), key: "to2".into(), headers: None, checksum: None };
    assert!(matches!(gateway.copy(&source, copy).await, Err(DomainError::Damaged { .. })));
    assert!(matches!(get(&gateway, &bucket, "to2").await, Err(DomainError::NoSuchKey { .. })));
}

#[tokio::test]
async fn a_copy_is_on_a_write_quorum_though_its_blocks_were_on_one_node_only() {
    let store = Arc::new(MemoryStore::new(3, 14));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    let data = noise(5000, 3);
    put(&gateway, &bucket, "from", &data).await.unwrap();
    store.spoil_blocks(0, true);
    store.spoil_blocks(1, true);
    // The one that has them hears of references late.
    store.set_stale(2, 255);
    let source = gateway.head(&bucket, "from", None).await.unwrap();
    let copy = CopyObject { bucket: bucket.clone(), key: "to".into(), headers: None, checksum: None };
    gateway.copy(&source, copy).await.unwrap();
    store.set_dead(2, true);
    assert_eq!(get(&gateway, &bucket, "to").await.unwrap(), data);
}

#[tokio::test]
async fn a_reader_far_behind_a_slow_client_holds_its_place() {
    let store = Arc::new(MemoryStore::new(3, 13));
    // Memory for eight blocks in all: downloads make do with one block each.
    let config = DomainConfig { block_size: 8192, block_ram_buffer_max: 8 * 8192, ..config() };
    let (gateway, bucket) = (gateway_with(&store, 0, config), bucket(1));
    let data = noise(100_000, 1);
    put(&gateway, &bucket, "k", &data).await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut stream = gateway.open(&bucket, "k", None).await.unwrap().read(0..100_000);
        let first = stream.next().await.unwrap().unwrap();
        drop(first);
        slow.push(stream);
    }
    let rest = futures::future::join_all(slow.into_iter().map(read)).await;
    assert!(rest.into_iter().all(|r| r.unwrap() == data[8192..]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_renews_its_references() {
    let store = Arc::new(MemoryStore::new(3, 14));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    let data = noise(3000, 1);
    let (begin, end) = (body_of(&data[..2500], 500), body_of(&data[2500..], 500));
    let pause = futures::stream::once(async {
        tokio::time::sleep(std::time::Duration::from_mins(6)).await;
        Ok(bytes::Bytes::new())
    });
    gateway.put(put_of(&bucket, "k", None), begin.chain(pause).chain(end).boxed()).await.unwrap();
    assert!(store.calls()["refer_blocks"] > 0);
    assert_eq!(get(&gateway, &bucket, "k").await.unwrap(), data);
}

#[tokio::test]
async fn a_read_repairs_a_replica_that_lags() {
    let store = Arc::new(MemoryStore::new(3, 15));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    store.set_stale(0, 255);
    store.set_stale(1, 255);
    // Of the two that are unreliable one at least has each write: the quorum needs it.
    for n in 0..8 {
        put(&gateway, &bucket, &format!("k{n}"), b"x").await.unwrap();
    }
    store.set_stale(0, 0);
    store.set_stale(1, 0);
    let before = store.calls()["write_rows"];
    for n in 0..8 {
        assert_eq!(get(&gateway, &bucket, &format!("k{n}")).await.unwrap(), b"x");
    }
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(store.calls()["write_rows"] > before, "no reply differed, or none was repaired");
}
