//! Keys and buckets: rights, names, and what a cache may and may not say.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod domain_support;

use domain_support::*;
use hayloft_common::schema::{KeyId, Permissions};
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{DomainError, Gateway, KeyChange, NewBucket, NewKey, Right};
use std::sync::Arc;

async fn key(gateway: &Arc<Gateway>, create_bucket: bool) -> KeyId {
    let new = NewKey { name: "test".into(), expires_ms: None, create_bucket };
    gateway.create_key(new).await.unwrap().id
}

#[tokio::test]
async fn a_bucket_is_made_once_used_and_deleted_when_empty() {
    let store = Arc::new(MemoryStore::new(3, 1));
    store.set_stale(2, 128);
    let gateway = gateway(&store);
    let (mine, other) = (key(&gateway, true).await, key(&gateway, true).await);
    let made = gateway.create_bucket_as(&mine, "photos").await.unwrap();
    let again = gateway.create_bucket_as(&mine, "photos").await;
    assert!(matches!(again, Err(DomainError::BucketAlreadyOwnedByYou { .. })));
    let taken = gateway.create_bucket_as(&other, "photos").await;
    assert!(matches!(taken, Err(DomainError::BucketAlreadyExists { .. })));
    let bad = gateway.create_bucket_as(&mine, "Photos").await;
    assert!(matches!(bad, Err(DomainError::InvalidBucketName { .. })));
    let poor = key(&gateway, false).await;
    assert!(matches!(gateway.create_bucket_as(&poor, "poor").await, Err(DomainError::MayNotCreateBucket)));

    let bucket = gateway.authorize(&mine, "photos", Right::Write).await.unwrap();
    assert_eq!(bucket.id(), made.id());
    put(&gateway, &bucket, "a", b"x").await.unwrap();
    assert!(matches!(gateway.delete_bucket(&bucket).await, Err(DomainError::BucketNotEmpty { .. })));
    gateway.delete(&bucket, "a").await.unwrap();
    gateway.delete_bucket(&bucket).await.unwrap();
    assert!(matches!(gateway.resolve("photos").await, Err(DomainError::NoSuchBucket { .. })));
    let gone = gateway.authorize(&mine, "photos", Right::Read).await;
    assert!(matches!(gone, Err(DomainError::NoSuchBucket { .. })));
    let new = gateway.create_bucket_as(&other, "photos").await.unwrap();
    assert_ne!(new.id(), made.id());
}

#[tokio::test]
async fn rights_are_given_and_taken_and_a_refusal_is_never_from_the_cache() {
    let store = Arc::new(MemoryStore::new(3, 2));
    let (here, there) = (gateway(&store), gateway_with(&store, -YEARS_10_MS, config()));
    let (owner, guest) = (key(&here, true).await, key(&here, false).await);
    let bucket = here.create_bucket_as(&owner, "shared").await.unwrap();
    let denied = here.authorize(&guest, "shared", Right::Read).await;
    assert!(matches!(denied, Err(DomainError::AccessDenied { .. })));
    // Given at another gateway: used here at once, though this one has the key in its cache.
    let read = Permissions { read: true, ..Permissions::default() };
    there.allow(bucket.id(), &guest, read).await.unwrap();
    here.authorize(&guest, "shared", Right::Read).await.unwrap();
    let denied = here.authorize(&guest, "shared", Right::Write).await;
    assert!(matches!(denied, Err(DomainError::AccessDenied { .. })));
    // The slow clock takes the right again: the later change counts.
    there.deny(bucket.id(), &guest, read).await.unwrap();
    let denied = there.authorize(&guest, "shared", Right::Read).await;
    assert!(matches!(denied, Err(DomainError::AccessDenied { .. })));
    let info = here.bucket_info(bucket.id()).await.unwrap();
    assert_eq!(info.keys.iter().filter(|k| k.permissions.any()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_right_taken_elsewhere_stops_working_soon() {
    let store = Arc::new(MemoryStore::new(3, 3));
    let (here, there) = (gateway(&store), gateway(&store));
    let owner = key(&here, true).await;
    let bucket = here.create_bucket_as(&owner, "shared").await.unwrap();
    here.authorize(&owner, "shared", Right::Read).await.unwrap();
    there.deny(bucket.id(), &owner, Permissions::ALL).await.unwrap();
    let mut seconds = 0;
    while here.authorize(&owner, "shared", Right::Read).await.is_ok() {
        // The cache's ages are of the real clock, the refresh of tokio's: let both pass.
        std::thread::sleep(std::time::Duration::from_millis(600));
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        seconds += 1;
        assert!(seconds < 10, "the right still works");
    }
}

#[tokio::test]
async fn cached_rights_need_no_round_trip() {
    let store = Arc::new(MemoryStore::new(3, 4));
    let gateway = gateway(&store);
    let owner = key(&gateway, true).await;
    gateway.create_bucket_as(&owner, "mine").await.unwrap();
    gateway.authorize(&owner, "mine", Right::Owner).await.unwrap();
    let before = store.calls();
    gateway.authorize(&owner, "mine", Right::Write).await.unwrap();
    assert_eq!(store.calls(), before);
}

#[tokio::test]
async fn keys_live_expire_and_die_for_good() {
    let store = Arc::new(MemoryStore::new(3, 5));
    let gateway = gateway(&store);
    let id = key(&gateway, false).await;
    let row = gateway.key(&id).await.unwrap();
    assert_eq!((row.name.value.as_str(), row.secret.len()), ("test", 64));
    let change = KeyChange { name: Some("other".into()), expires_ms: Some(Some(1)), create_bucket: None };
    gateway.update_key(&id, change).await.unwrap();
    assert!(matches!(gateway.key(&id).await, Err(DomainError::NoSuchKeyId { .. })));
    assert_eq!(gateway.key_info(&id).await.unwrap().name.value, "other");
    assert_eq!(gateway.list_keys().await.unwrap().len(), 1);
    gateway.delete_key(&id).await.unwrap();
    assert!(gateway.list_keys().await.unwrap().is_empty());
    assert!(matches!(gateway.key_info(&id).await, Err(DomainError::NoSuchKeyId { .. })));
    let import = gateway.import_key(id, "secret".into(), NewKey::default()).await;
    assert!(matches!(import, Err(DomainError::KeyExists { .. })));
    gateway.import_key(KeyId("GK1".into()), "secret".into(), NewKey::default()).await.unwrap();
    assert_eq!(gateway.key(&KeyId("GK1".into())).await.unwrap().secret, "secret");
}

#[tokio::test]
async fn names_can_be_added_moved_and_be_a_keys_own() {
    let store = Arc::new(MemoryStore::new(3, 6));
    store.set_stale(0, 128);
    let gateway = gateway(&store);
    let owner = key(&gateway, true).await;
    let one = gateway.create_bucket_as(&owner, "one").await.unwrap();
    let two = gateway
        .create_bucket(NewBucket { global_alias: Some("two".into()), ..NewBucket::default() })
        .await
        .unwrap();
    let last = gateway.remove_global_alias(one.id(), "one").await;
    assert!(matches!(last, Err(DomainError::LastAlias { .. })));
    gateway.add_global_alias(one.id(), "uno").await.unwrap();
    gateway.remove_global_alias(one.id(), "one").await.unwrap();
    assert!(matches!(gateway.resolve("one").await, Err(DomainError::NoSuchBucket { .. })));
    gateway.add_global_alias(two.id, "one").await.unwrap();
    assert_eq!(gateway.resolve("one").await.unwrap().id(), two.id);
    let taken = gateway.add_global_alias(one.id(), "two").await;
    assert!(matches!(taken, Err(DomainError::BucketAlreadyExists { .. })));

    // The key's own name comes before the global one.
    gateway.add_local_alias(one.id(), &owner, "two").await.unwrap();
    assert_eq!(gateway.authorize(&owner, "two", Right::Read).await.unwrap().id(), one.id());
    let row = gateway.key(&owner).await.unwrap();
    let names: Vec<_> = gateway.list_buckets_of(&row).await.unwrap().into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["two", "uno"]);
    gateway.remove_local_alias(one.id(), &owner, "two").await.unwrap();
    let denied = gateway.authorize(&owner, "two", Right::Read).await;
    assert!(matches!(denied, Err(DomainError::AccessDenied { .. })));
    assert_eq!(gateway.list_buckets().await.unwrap().len(), 2);
}

#[tokio::test]
async fn counters_sum_the_shards() {
    let store = Arc::new(MemoryStore::new(3, 7));
    let (gateway, bucket) = (gateway(&store), bucket(8));
    for n in 0..20 {
        put(&gateway, &bucket, &format!("k{n}"), &[1; 10]).await.unwrap();
    }
    let counters = gateway.counters(&bucket.row).await.unwrap();
    assert_eq!((counters.objects, counters.bytes), (20, 200));
}
