//! Multipart uploads: parts replaced, named wrongly, copied; completes repeated and raced.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod domain_support;

use domain_support::*;
use hayloft_common::schema::{ChecksumAlgorithm, ChecksumKind};
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{
    BodyChecks, Bucket, CompleteUpload, CreateUpload, DomainError, Gateway, NamedPart, PartDone, PutDone,
    UploadRef,
};
use hayloft_gateway::limits::DomainConfig;
use std::sync::Arc;

const FIVE_MIB: usize = 5 << 20;

fn setup(seed: u64) -> (Arc<MemoryStore>, Arc<Gateway>, Arc<Bucket>) {
    let store = Arc::new(MemoryStore::new(3, seed));
    let gateway = gateway_with(&store, 0, large());
    (store, gateway, bucket(2))
}

fn large() -> DomainConfig {
    DomainConfig { block_size: 64 << 10, block_ram_buffer_max: 16 << 20, ..config() }
}

type Sum = Option<(ChecksumAlgorithm, ChecksumKind)>;

async fn begin(gateway: &Arc<Gateway>, bucket: &Arc<Bucket>, checksum: Sum) -> UploadRef {
    let headers = vec![("x-amz-meta-a".to_owned(), "b".to_owned())];
    let create = CreateUpload { bucket: bucket.clone(), key: "big".into(), headers, checksum };
    let upload = gateway.create_upload(create).await.unwrap();
    UploadRef { bucket: bucket.clone(), key: "big".into(), upload }
}

async fn part(gateway: &Arc<Gateway>, upload: &UploadRef, number: u32, data: &[u8]) -> PartDone {
    let checks = BodyChecks { length: Some(data.len() as u64), ..BodyChecks::default() };
    let done = gateway.put_part(upload.clone(), number, checks, body_of(data, 100_000)).await.unwrap();
    assert_eq!(done.etag, md5_hex(data));
    done
}

fn named(number: u32, done: &PartDone) -> NamedPart {
    NamedPart { number, etag: done.etag.clone(), checksum: None }
}

async fn complete(
    gateway: &Arc<Gateway>,
    upload: &UploadRef,
    parts: Vec<NamedPart>,
) -> Result<PutDone, DomainError> {
    let complete = CompleteUpload { target: upload.clone(), parts, checksum: None, size: None };
    gateway.complete_upload(complete).await
}

#[tokio::test]
async fn an_upload_becomes_one_object_of_the_parts_named() {
    let (store, gateway, bucket) = setup(1);
    let upload =
        begin(&gateway, &bucket, Some((ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject))).await;
    let (one, two, five) = (noise(FIVE_MIB, 1), noise(FIVE_MIB + 3, 2), noise(17, 5));
    part(&gateway, &upload, 2, &noise(99, 0)).await;
    part(&gateway, &upload, 9, &noise(1000, 9)).await;
    let done5 = part(&gateway, &upload, 5, &five).await;
    let done1 = part(&gateway, &upload, 1, &one).await;
    let done2 = part(&gateway, &upload, 2, &two).await;
    let listing = gateway.list_parts(&upload, 1, 2).await.unwrap();
    let sizes: Vec<_> = listing.parts.iter().map(|p| (p.number, p.size)).collect();
    assert_eq!((sizes, listing.next), (vec![(2, two.len() as u64), (5, 17)], Some(5)));

    let parts = vec![named(1, &done1), named(2, &done2), named(5, &done5)];
    let done = complete(&gateway, &upload, parts.clone()).await.unwrap();
    let whole = [one.clone(), two.clone(), five].concat();
    let md5s: Vec<u8> = [&done1, &done2, &done5].iter().flat_map(|d| hex::decode(&d.etag).unwrap()).collect();
    assert_eq!(done.etag, format!("{}-3", md5_hex(&md5s)));
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &whole).to_be_bytes();
    assert_eq!(done.checksum.unwrap().value, crc);
    store.collect();
    assert!(get(&gateway, &bucket, "big").await.unwrap() == whole);

    let object = gateway.open(&bucket, "big", Some(2)).await.unwrap();
    let view = object.head.part.unwrap();
    assert_eq!((view.count, view.offset, view.size), (3, one.len() as u64, two.len() as u64));
    assert!(read(object.read(view.offset..view.offset + view.size)).await.unwrap() == two);
    assert!(matches!(
        gateway.head(&bucket, "big", Some(3)).await,
        Err(DomainError::NoSuchPart { number: 3 })
    ));
    assert_eq!(gateway.head(&bucket, "big", None).await.unwrap().headers()[0].0, "x-amz-meta-a");
    let head = gateway.head(&bucket, "big", None).await.unwrap();
    assert_eq!(store.referred(head.version.id).len(), whole.len().div_ceil(64 << 10) + 1);

    // A repeat says what the first one said; the upload is gone for all else.
    assert_eq!(complete(&gateway, &upload, parts.clone()).await.unwrap().etag, done.etag);
    let error =
        gateway.put_part(upload.clone(), 1, BodyChecks::default(), body_of(b"x", 1)).await.unwrap_err();
    assert!(matches!(error, DomainError::NoSuchUpload { .. }));
    assert!(matches!(gateway.abort_upload(&upload).await, Err(DomainError::NoSuchUpload { .. })));
    gateway.delete(&bucket, "big").await.unwrap();
    assert!(matches!(complete(&gateway, &upload, parts).await, Err(DomainError::NoSuchUpload { .. })));
}

#[tokio::test]
async fn wrong_lists_of_parts_are_refused_and_leave_the_upload_open() {
    let (_, gateway, bucket) = setup(2);
    let upload = begin(&gateway, &bucket, None).await;
    let one = part(&gateway, &upload, 1, &noise(100, 1)).await;
    let two = part(&gateway, &upload, 2, &noise(200, 2)).await;
    let fails = |parts| complete(&gateway, &upload, parts);
    assert!(matches!(fails(vec![]).await, Err(DomainError::NoParts)));
    let order = fails(vec![named(2, &two), named(1, &one)]).await;
    assert!(matches!(order, Err(DomainError::InvalidPartOrder)));
    let twice = fails(vec![named(1, &one), named(1, &one)]).await;
    assert!(matches!(twice, Err(DomainError::InvalidPartOrder)));
    let small = fails(vec![named(1, &one), named(2, &two)]).await;
    assert!(matches!(small, Err(DomainError::EntityTooSmall { number: 1, size: 100, .. })));
    let etag = fails(vec![named(1, &two)]).await;
    assert!(matches!(etag, Err(DomainError::InvalidPart { number: 1 })));
    let absent = fails(vec![named(3, &two)]).await;
    assert!(matches!(absent, Err(DomainError::InvalidPart { number: 3 })));
    let number = fails(vec![named(10_001, &two)]).await;
    assert!(matches!(number, Err(DomainError::PartNumber { number: 10_001 })));
    let size = CompleteUpload {
        target: upload.clone(),
        parts: vec![named(2, &two)],
        checksum: None,
        size: Some(201),
    };
    let size = gateway.complete_upload(size).await;
    assert!(matches!(size, Err(DomainError::WrongObjectSize { expected: 201, found: 200 })));
    complete(&gateway, &upload, vec![named(2, &two)]).await.unwrap();
    assert_eq!(get(&gateway, &bucket, "big").await.unwrap(), noise(200, 2));
}

#[tokio::test]
async fn completing_goes_above_newer_clocks_with_references_of_its_own() {
    let (store, gateway, bucket) = setup(3);
    let ahead = gateway_with(&store, YEARS_10_MS, large());
    let behind = gateway_with(&store, -YEARS_10_MS, large());
    put(&ahead, &bucket, "big", b"from the future").await.unwrap();
    store.set_stale(0, 128);
    let upload = begin(&gateway, &bucket, None).await;
    let data = noise(300_000, 1);
    let done = part(&ahead, &upload, 1, &data).await;
    let data2 = noise(300_001, 2);
    let done2 = part(&behind, &upload, 1, &data2).await;
    let error = complete(&behind, &upload, vec![named(1, &done)]).await.unwrap_err();
    assert!(matches!(error, DomainError::InvalidPart { number: 1 }), "the later part counts");
    complete(&behind, &upload, vec![named(1, &done2)]).await.unwrap();
    store.collect();
    assert!(get(&gateway, &bucket, "big").await.unwrap() == data2);
    let head = gateway.head(&bucket, "big", None).await.unwrap();
    assert_eq!(store.referred(head.version.id).len(), 5);
}

#[tokio::test]
async fn a_complete_takes_two_round_trips_where_the_parts_came_through() {
    let (store, gateway, bucket) = setup(4);
    let upload = begin(&gateway, &bucket, None).await;
    let done = part(&gateway, &upload, 1, &noise(100, 1)).await;
    complete(&gateway, &upload, vec![named(1, &done)]).await.unwrap();
    assert_eq!(store.calls()["refer_blocks"], 1);
    // Another gateway has to look first.
    let other = gateway_with(&store, 0, large());
    let upload = begin(&gateway, &bucket, None).await;
    let done = part(&gateway, &upload, 1, &noise(100, 2)).await;
    complete(&other, &upload, vec![named(1, &done)]).await.unwrap();
    store.collect();
    assert_eq!(get(&other, &bucket, "big").await.unwrap(), noise(100, 2));
}

#[tokio::test]
async fn composite_checksums_are_over_those_of_the_parts() {
    let (_, gateway, bucket) = setup(5);
    let sum = Some((ChecksumAlgorithm::Sha256, ChecksumKind::Composite));
    let upload = begin(&gateway, &bucket, sum).await;
    let done = part(&gateway, &upload, 1, b"hello").await;
    let raw = done.checksum.clone().unwrap().value;
    let wrong = NamedPart { checksum: Some(vec![0; 32]), ..named(1, &done) };
    assert!(matches!(
        complete(&gateway, &upload, vec![wrong]).await,
        Err(DomainError::InvalidPart { number: 1 })
    ));
    let right = NamedPart { checksum: Some(raw.clone()), ..named(1, &done) };
    let done = complete(&gateway, &upload, vec![right]).await.unwrap();
    let checksum = done.checksum.unwrap();
    use sha2::Digest as _;
    assert_eq!(checksum.value, sha2::Sha256::digest(&raw).to_vec());
    assert_eq!(checksum.kind, ChecksumKind::Composite);
    let create = CreateUpload {
        bucket: bucket.clone(),
        key: "k".into(),
        headers: vec![],
        checksum: Some((ChecksumAlgorithm::Sha1, ChecksumKind::FullObject)),
    };
    assert!(matches!(gateway.create_upload(create).await, Err(DomainError::InvalidArgument { .. })));
}

#[tokio::test]
async fn copied_parts_share_whole_blocks_and_cut_the_others() {
    let (store, gateway, bucket) = setup(6);
    let data = noise(1_000_000, 1);
    put(&gateway, &bucket, "source", &data).await.unwrap();
    put(&gateway, &bucket, "tiny", b"0123456789").await.unwrap();
    let source = gateway.head(&bucket, "source", None).await.unwrap();
    let tiny = gateway.head(&bucket, "tiny", None).await.unwrap();
    let sum = Some((ChecksumAlgorithm::Crc32, ChecksumKind::FullObject));
    let block = 64 << 10;
    for range in [0..1_000_000u64, 0..block, 100..101, 100..3 * block, block..1_000_000, 65_000..66_000] {
        let upload = begin(&gateway, &bucket, sum).await;
        let before = store.blocks();
        let done = gateway.copy_part(upload.clone(), 1, &source, Some(range.clone())).await.unwrap();
        assert!(store.blocks() <= before + 2, "{range:?} stored whole blocks again");
        let want = &data[range.start as usize..range.end as usize];
        assert_eq!((done.etag.clone(), done.size), (md5_hex(want), want.len() as u64));
        let completed = complete(&gateway, &upload, vec![named(1, &done)]).await.unwrap();
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, want) as u32;
        assert_eq!(completed.checksum.unwrap().value, crc.to_be_bytes());
        store.collect();
        assert!(get(&gateway, &bucket, "big").await.unwrap() == want, "{range:?}");
    }
    let upload = begin(&gateway, &bucket, None).await;
    let done = gateway.copy_part(upload.clone(), 1, &tiny, Some(2..5)).await.unwrap();
    complete(&gateway, &upload, vec![named(1, &done)]).await.unwrap();
    assert_eq!(get(&gateway, &bucket, "big").await.unwrap(), b"234");
    let upload = begin(&gateway, &bucket, None).await;
    let error = gateway.copy_part(upload, 1, &tiny, Some(5..11)).await.unwrap_err();
    assert!(matches!(error, DomainError::InvalidSourceRange { first: 5, last: 10, size: 10 }));
}

#[tokio::test]
async fn parts_with_long_block_lists_are_put_together_too() {
    let store = Arc::new(MemoryStore::new(3, 7));
    let small = DomainConfig { block_size: 4096, block_ram_buffer_max: 8 << 20, ..config() };
    let gateway = gateway_with(&store, 0, small.clone());
    let other = gateway_with(&store, 0, small);
    let bucket = bucket(1);
    let upload = begin(&gateway, &bucket, None).await;
    let (one, two) = (noise(FIVE_MIB, 1), noise(400_000, 2));
    let done1 = part(&gateway, &upload, 1, &one).await;
    let done2 = part(&other, &upload, 2, &two).await;
    complete(&other, &upload, vec![named(1, &done1), named(2, &done2)]).await.unwrap();
    store.collect();
    assert!(get(&gateway, &bucket, "big").await.unwrap() == [one, two].concat());
}

#[tokio::test]
async fn an_aborted_upload_is_gone() {
    let (_, gateway, bucket) = setup(8);
    let upload = begin(&gateway, &bucket, None).await;
    let done = part(&gateway, &upload, 1, b"x").await;
    gateway.abort_upload(&upload).await.unwrap();
    assert!(matches!(gateway.list_parts(&upload, 0, 10).await, Err(DomainError::NoSuchUpload { .. })));
    let error = complete(&gateway, &upload, vec![named(1, &done)]).await;
    assert!(matches!(error, Err(DomainError::NoSuchUpload { .. })));
    assert!(matches!(get(&gateway, &bucket, "big").await, Err(DomainError::NoSuchKey { .. })));
}
