//! Listings equal a naive model of the keys, whatever replicas lost, however pages end.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod domain_support;

use domain_support::*;
use hayloft_common::id::UploadId;
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{
    Bucket, CreateUpload, Gateway, ListRequest, ListStart, ListUploads, Listed, UploadRef, UploadStart,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What S3 says a listing is: keys behind the start, with the prefix, rolled up at the delimiter.
fn model(keys: &BTreeSet<String>, prefix: &str, delimiter: Option<&str>, after: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for key in keys.iter().filter(|k| k.starts_with(prefix)) {
        let shown = match delimiter.and_then(|d| key[prefix.len()..].find(d).map(|i| i + d.len())) {
            Some(end) => &key[..prefix.len() + end],
            None => key.as_str(),
        };
        // A rolled-up prefix that contains the start is behind it already.
        if (after.is_empty() || (shown > after && !(delimiter.is_some() && after.starts_with(shown))))
            && out.last().is_none_or(|last| last != shown)
        {
            out.push(shown.to_owned());
        }
    }
    out
}

async fn list_all(gateway: &Arc<Gateway>, bucket: &Bucket, list: &ListRequest) -> Vec<String> {
    let (mut list, mut out) = (list.clone(), Vec::new());
    loop {
        let page = gateway.list(bucket, list.clone()).await.unwrap();
        assert!(page.entries.len() <= list.max && (page.next.is_none() || page.entries.len() == list.max));
        out.extend(page.entries.iter().map(|entry| match entry {
            Listed::Entry(object) => object.key.clone(),
            Listed::Prefix(prefix) => prefix.clone(),
        }));
        match page.next {
            Some(next) => list.start = ListStart::Token(next),
            None => return out,
        }
    }
}

/// Few enough that a key is often put, deleted and put again.
fn key() -> impl Strategy<Value = String> {
    let keys = [
        "a", "a/", "a/a", "a/b", "a/b/a", "a/b/b", "a//", "ab", "ab/a", "b/a/a", "b/a/b", "b", "ü/\u{0}",
        "ü/ü",
    ];
    prop::sample::select(keys.to_vec()).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_listing_is_what_was_put_and_not_deleted(
        seed in any::<u64>(),
        ops in prop::collection::vec((key(), prop::bool::weighted(0.6)), 1..50),
        shards in prop::sample::select(vec![1u16, 4]),
        page in 1usize..12,
        prefix in prop::sample::select(vec!["", "a", "a/", "b/a", "zz"]),
        delimiter in prop::sample::select(vec![None, Some("/"), Some("a"), Some("//")]),
        start in prop::option::of(key()),
        max in 1usize..8,
    ) {
        runtime().block_on(async {
            let store = Arc::new(MemoryStore::new(3, seed));
            for replica in 0..3 {
                store.set_stale(replica, 110);
            }
            store.set_page(page);
            let (gateway, bucket) = (gateway(&store), bucket(shards));
            let mut keys = BTreeSet::new();
            for (key, live) in ops {
                if live {
                    put(&gateway, &bucket, &key, b"x").await.unwrap();
                    keys.insert(key);
                } else {
                    gateway.delete(&bucket, &key).await.unwrap();
                    keys.remove(&key);
                }
            }
            store.set_dead((seed % 4) as usize % 3, seed % 4 < 3);
            let list = ListRequest {
                prefix: prefix.into(),
                delimiter: delimiter.map(Into::into),
                start: start.clone().map_or(ListStart::Beginning, ListStart::After),
                max,
            };
            let found = list_all(&gateway, &bucket, &list).await;
            assert_eq!(found, model(&keys, prefix, delimiter, start.as_deref().unwrap_or("")));
        });
    }
}

#[tokio::test]
async fn pages_follow_the_marker_of_the_last_entry() {
    let store = Arc::new(MemoryStore::new(3, 1));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    for key in ["asdf", "boo/bar", "boo/baz/xyzzy", "cquux/bla", "cquux/thud"] {
        put(&gateway, &bucket, key, b"x").await.unwrap();
    }
    let (mut marker, mut seen) = (None, Vec::new());
    loop {
        let list = ListRequest {
            delimiter: Some("/".into()),
            start: marker.clone().map_or(ListStart::Beginning, ListStart::After),
            max: 1,
            ..ListRequest::default()
        };
        let page = gateway.list(&bucket, list).await.unwrap();
        marker = page.last_name(|o| o.key.as_str());
        seen.extend(marker.clone());
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["asdf", "boo/", "cquux/"]);
    let none = gateway.list(&bucket, ListRequest { max: 0, ..ListRequest::default() }).await.unwrap();
    assert!(none.entries.is_empty() && none.next.is_none());
}

#[tokio::test]
async fn a_page_takes_one_round_trip_when_replicas_agree() {
    let store = Arc::new(MemoryStore::new(3, 2));
    let (gateway, bucket) = (gateway(&store), bucket(1));
    for n in 0..300 {
        put(&gateway, &bucket, &format!("{}/{n}", n % 7), b"x").await.unwrap();
    }
    let list = ListRequest { delimiter: Some("/".into()), max: 1000, ..ListRequest::default() };
    assert_eq!(list_all(&gateway, &bucket, &list).await.len(), 7);
    assert_eq!(store.calls()["list_keys"], 1);
}

#[tokio::test]
async fn a_full_page_takes_one_round_trip_and_tombstones_behind_it_few_more() {
    let store = Arc::new(MemoryStore::new(3, 3));
    store.set_page(2000);
    let (gateway, bucket) = (gateway(&store), bucket(1));
    for n in 0..1100 {
        put(&gateway, &bucket, &format!("{n:04}"), b"x").await.unwrap();
    }
    let page = gateway.list(&bucket, ListRequest { max: 1000, ..ListRequest::default() }).await.unwrap();
    assert!(page.entries.len() == 1000 && page.next.is_some());
    assert_eq!(store.calls()["list_keys"], 1);
    let deleted = (2..1100).map(|n| format!("{n:04}")).collect();
    assert!(gateway.delete_many(&bucket, deleted).await.iter().all(|d| d.result.is_ok()));
    let page = gateway.list(&bucket, ListRequest { max: 2, ..ListRequest::default() }).await.unwrap();
    assert!(page.entries.len() == 2 && page.next.is_none());
    assert!(store.calls()["list_keys"] < 15, "{:?}", store.calls());
}

#[tokio::test]
async fn uploads_are_listed_by_key_and_id_until_closed() {
    let store = Arc::new(MemoryStore::new(3, 3));
    store.set_stale(1, 128);
    let (gateway, bucket) = (gateway(&store), bucket(4));
    let mut open: Vec<(String, UploadId)> = Vec::new();
    for n in 0..30 {
        let key = format!("{}/{}", n % 3, n % 5);
        let create =
            CreateUpload { bucket: bucket.clone(), key: key.clone(), headers: vec![], checksum: None };
        let upload = gateway.create_upload(create).await.unwrap();
        if n % 4 == 0 {
            gateway.abort_upload(&UploadRef { bucket: bucket.clone(), key, upload }).await.unwrap();
        } else {
            open.push((key, upload));
        }
    }
    open.sort();
    let (mut start, mut seen) = (UploadStart::Beginning, Vec::new());
    loop {
        let list = ListUploads { start, max: 4, ..ListUploads::default() };
        let page = gateway.list_uploads(&bucket, list).await.unwrap();
        for entry in page.entries {
            let Listed::Entry(entry) = entry else { panic!("a prefix without delimiter") };
            seen.push((entry.key, entry.upload));
        }
        if page.next.is_none() {
            break;
        }
        let (key, upload) = seen.last().cloned().unwrap();
        start = UploadStart::After(key, upload);
    }
    assert_eq!(seen, open);
    let list = ListUploads {
        delimiter: Some("/".into()),
        start: UploadStart::AfterKey("0/3".into()),
        max: 10,
        ..ListUploads::default()
    };
    let page = gateway.list_uploads(&bucket, list).await.unwrap();
    assert_eq!(page.entries, vec![Listed::Prefix("1/".into()), Listed::Prefix("2/".into())]);
}
