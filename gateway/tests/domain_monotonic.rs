//! Monotonic reads: whatever writes failed half way and whichever quorum answers, what one read has shown every later
//! one shows too, through gets, heads and listings alike.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod domain_support;
#[path = "domain_support/stopping.rs"]
mod stopping;

use domain_support::*;
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{
    BodyChecks, Bucket, CopyObject, CreateUpload, DomainError, Gateway, ListRequest, ListStart, ListUploads,
    Listed, NewBucket, UploadRef,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stopping::{Stopping, Watch};

const KEYS: [&str; 5] = ["a", "b/1", "c/1", "c/2", "d/1"];

/// What reads and answers have shown of each key: writes are numbered, and the state never falls below `floor`.
#[derive(Default)]
struct History {
    /// Number of the write, and the ETag that it put (`None`: a delete).
    writes: BTreeMap<&'static str, Vec<(usize, Option<String>)>>,
    floor: BTreeMap<&'static str, usize>,
    count: usize,
}

impl History {
    fn write(&mut self, key: &'static str, etag: Option<String>) -> usize {
        self.count += 1;
        self.writes.entry(key).or_default().push((self.count, etag));
        self.count
    }

    fn raise(&mut self, key: &'static str, to: usize) {
        let floor = self.floor.entry(key).or_default();
        *floor = to.max(*floor);
    }

    /// A read showed `etag` (`None`: nothing). It stands for the first write that it may be.
    fn saw(&mut self, key: &'static str, etag: Option<&str>) {
        let floor = self.floor.get(key).copied().unwrap_or(0);
        let start = if etag.is_none() && floor == 0 { Some(0) } else { None };
        let writes = self.writes.get(key).into_iter().flatten();
        let first = writes.filter(|(n, put)| *n >= floor && put.as_deref() == etag).map(|(n, _)| *n).min();
        let Some(first) = start.or(first) else {
            panic!("{key} went back to {etag:?} behind write {floor} of {:?}", self.writes.get(key));
        };
        self.raise(key, first);
    }

    /// A listing showed `prefix`: some key behind it is there.
    fn saw_prefix(&mut self, prefix: &str) {
        let keys: Vec<_> = KEYS.into_iter().filter(|key| key.starts_with(prefix)).collect();
        let next = |history: &Self, key: &str| {
            let floor = history.floor.get(key).copied().unwrap_or(0);
            let writes = history.writes.get(key).into_iter().flatten();
            writes.filter(|(n, put)| *n >= floor && put.is_some()).map(|(n, _)| *n).min()
        };
        assert!(keys.iter().any(|key| next(self, key).is_some()), "{prefix} came back");
        if let [key] = keys[..] {
            let first = next(self, key).unwrap();
            self.raise(key, first);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(usize),
    Delete(usize),
    Head(usize),
    Get(usize),
    List(bool, bool),
    Dead(usize),
    Changing(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    prop_oneof![
        3 => key.clone().prop_map(Op::Put),
        3 => key.clone().prop_map(Op::Delete),
        4 => key.clone().prop_map(Op::Head),
        2 => key.prop_map(Op::Get),
        6 => any::<(bool, bool)>().prop_map(|(delimited, backwards)| Op::List(delimited, backwards)),
        1 => (0..8usize).prop_map(Op::Dead),
        1 => any::<bool>().prop_map(Op::Changing),
    ]
}

enum Answer<T> {
    Found(T),
    Nothing,
    /// Of no use: a torn write, or too many dead replicas.
    Failed,
}

impl<T> Answer<T> {
    fn of(result: Result<T, DomainError>) -> Self {
        match result {
            Ok(value) => Self::Found(value),
            Err(DomainError::NoSuchKey { .. }) => Self::Nothing,
            Err(DomainError::Unavailable { .. }) => Self::Failed,
            Err(error) => panic!("{error}"),
        }
    }

    fn saw(self, history: &mut History, key: &'static str, etag: impl FnOnce(T) -> String) {
        match self {
            Self::Found(value) => history.saw(key, Some(&etag(value))),
            Self::Nothing => history.saw(key, None),
            Self::Failed => {}
        }
    }
}

async fn list(
    gateway: &Arc<Gateway>,
    bucket: &Bucket,
    delimited: bool,
    max: usize,
) -> Result<(BTreeMap<String, String>, BTreeSet<String>), DomainError> {
    let mut request = ListRequest { delimiter: delimited.then(|| "/".into()), max, ..ListRequest::default() };
    let (mut objects, mut prefixes) = (BTreeMap::new(), BTreeSet::new());
    loop {
        let page = gateway.list(bucket, request.clone()).await?;
        for entry in page.entries {
            match entry {
                Listed::Entry(object) => {
                    objects.insert(object.key, object.version.etag);
                }
                Listed::Prefix(prefix) => {
                    prefixes.insert(prefix);
                }
            }
        }
        match page.next {
            Some(next) => request.start = ListStart::Token(next),
            None => return Ok((objects, prefixes)),
        }
    }
}

struct Run {
    store: Arc<MemoryStore>,
    gateways: [Arc<Gateway>; 2],
    bucket: Arc<Bucket>,
    history: History,
    replicas: usize,
}

impl Run {
    async fn step(&mut self, n: usize, op: Op) {
        let (gateway, bucket, history) = (&self.gateways[n % 2], &self.bucket, &mut self.history);
        match op {
            Op::Put(key) => {
                let data = n.to_le_bytes();
                let number = history.write(KEYS[key], Some(md5_hex(&data)));
                if let Answer::Found(_) = Answer::of(put(gateway, bucket, KEYS[key], &data).await) {
                    history.raise(KEYS[key], number);
                }
            }
            Op::Delete(key) => {
                let number = history.write(KEYS[key], None);
                if let Answer::Found(()) = Answer::of(gateway.delete(bucket, KEYS[key]).await) {
                    history.raise(KEYS[key], number);
                }
            }
            Op::Head(key) => {
                let head = gateway.head(bucket, KEYS[key], None).await;
                Answer::of(head).saw(history, KEYS[key], |head| head.version.etag);
            }
            Op::Get(key) => {
                let data = get(gateway, bucket, KEYS[key]).await;
                Answer::of(data).saw(history, KEYS[key], |data| md5_hex(&data));
            }
            Op::List(delimited, small) => {
                let max = if small { 1 } else { 1000 };
                let listed = list(gateway, bucket, delimited, max).await;
                if let Answer::Found((objects, prefixes)) = Answer::of(listed) {
                    for prefix in &prefixes {
                        history.saw_prefix(prefix);
                    }
                    for key in KEYS {
                        if !prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())) {
                            history.saw(key, objects.get(key).map(String::as_str));
                        }
                    }
                }
            }
            Op::Dead(which) => {
                for replica in 0..self.replicas {
                    self.store.set_dead(replica, replica == which && self.replicas > 2);
                }
            }
            Op::Changing(changing) => self.store.set_changing(changing),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn reads_never_go_back(
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 1..60),
        replicas in prop::sample::select(vec![1usize, 2, 3, 3, 3, 4, 5]),
        torn in prop::sample::select(vec![0u8, 60, 130]),
        page in 1usize..6,
    ) {
        runtime().block_on(async {
            let store = Arc::new(MemoryStore::new(replicas, seed));
            for replica in 0..replicas {
                store.set_stale(replica, 100);
            }
            store.set_page(page);
            store.set_torn(torn);
            let gateways = [gateway(&store), gateway(&store)];
            let bucket = monotonic(&bucket(if seed % 2 == 0 { 1 } else { 4 }));
            let mut run = Run { store, gateways, bucket, history: History::default(), replicas };
            for (n, op) in ops.into_iter().enumerate() {
                run.step(n, op).await;
            }
        });
    }
}

/// Reads of a put that reached one of three replicas, until one fails the order or a hundred have kept it.
async fn goes_back(seed: u64, on: bool) -> bool {
    let store = Arc::new(MemoryStore::new(3, seed));
    let (gateway, plain) = (gateway(&store), bucket(1));
    let bucket = if on { monotonic(&plain) } else { plain };
    store.set_torn(255);
    while put(&gateway, &bucket, "k/1", b"torn").await.is_ok() {}
    // Read repair must not heal it while it is looked at.
    store.set_torn(if on { 0 } else { 255 });
    let mut seen = false;
    for n in 0..100 {
        let found = if n % 2 == 0 {
            gateway.head(&bucket, "k/1", None).await.is_ok()
        } else {
            !list(&gateway, &bucket, n % 4 == 1, 10).await.unwrap().1.is_empty()
                || !list(&gateway, &bucket, false, 10).await.unwrap().0.is_empty()
        };
        if seen && !found {
            return true;
        }
        seen |= found;
    }
    false
}

#[tokio::test]
async fn without_the_setting_they_may() {
    let mut plain = false;
    for seed in 0..20 {
        assert!(!goes_back(seed, true).await);
        plain |= goes_back(seed, false).await;
    }
    assert!(plain, "the test looks for what does not happen");
}

#[tokio::test]
async fn a_prefix_seen_gone_stays_gone() {
    for seed in 0..40 {
        let store = Arc::new(MemoryStore::new(3, seed));
        let (gateway, bucket) = (gateway(&store), monotonic(&bucket(1)));
        // On two of three; deleted on one. The tombstone and the replica without anything agree that nothing is there.
        store.set_dead(1, true);
        put(&gateway, &bucket, "d/1", b"x").await.unwrap();
        store.set_dead(1, false);
        store.set_torn(255);
        while gateway.delete(&bucket, "d/1").await.is_ok() {}
        store.set_torn(0);
        let mut gone = false;
        for _ in 0..20 {
            let there = !list(&gateway, &bucket, true, 10).await.unwrap().1.is_empty();
            assert!(!(gone && there), "seed {seed}");
            gone |= !there;
        }
    }
}

#[tokio::test]
async fn replies_that_agree_cost_nothing_more_where_they_are_proof() {
    for (replicas, extra) in [(1, 0), (2, 1), (3, 0), (4, 1), (5, 0)] {
        let store = Arc::new(MemoryStore::new(replicas, 1));
        let (gateway, bucket) = (gateway(&store), monotonic(&bucket(1)));
        put(&gateway, &bucket, "k", b"x").await.unwrap();
        let before = store.calls()["write_rows"];
        get(&gateway, &bucket, "k").await.unwrap();
        gateway.head(&bucket, "k", None).await.unwrap();
        list(&gateway, &bucket, true, 10).await.unwrap();
        assert_eq!(store.calls()["write_rows"] - before, 3 * extra, "{replicas} copies");
        // While the layout changes nothing is proof.
        store.set_changing(true);
        let before = store.calls()["write_rows"];
        gateway.head(&bucket, "k", None).await.unwrap();
        assert_eq!(store.calls()["write_rows"] - before, 1);
    }
}

#[tokio::test]
async fn a_read_that_cannot_be_made_to_last_fails() {
    for seed in 0..20 {
        let store = Arc::new(MemoryStore::new(3, seed));
        let (gateway, bucket) = (gateway(&store), monotonic(&bucket(1)));
        store.set_torn(255);
        while put(&gateway, &bucket, "k", b"torn").await.is_ok() {}
        // The chance is 255 in 256: a hundred reads of which most see the torn write.
        let mut failed = 0;
        for _ in 0..100 {
            match gateway.head(&bucket, "k", None).await {
                Ok(_) => break,
                Err(DomainError::Unavailable { .. }) => failed += 1,
                Err(DomainError::NoSuchKey { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(failed > 0, "seed {seed}");
    }
}

#[tokio::test]
async fn parts_uploads_and_sources_of_copies_stay_too() {
    for seed in 0..60 {
        let store = Arc::new(MemoryStore::new(3, seed));
        let (gateway, bucket) = (gateway(&store), monotonic(&bucket(1)));
        let create =
            || CreateUpload { bucket: bucket.clone(), key: "k/1".into(), headers: vec![], checksum: None };
        let upload = gateway.create_upload(create()).await.unwrap();
        let upload = UploadRef { bucket: bucket.clone(), key: "k/1".into(), upload };
        store.set_torn(255);
        let part = || gateway.put_part(upload.clone(), 1, BodyChecks::default(), body_of(b"x", 1));
        while part().await.is_ok() {}
        while gateway.create_upload(create()).await.is_ok() {}
        while put(&gateway, &bucket, "source", b"x").await.is_ok() {}
        store.set_torn(0);
        let (mut parts, mut uploads, mut source) = (0, 1, false);
        for _ in 0..20 {
            let found = gateway.list_parts(&upload, 0, 10).await.unwrap().parts.len();
            assert!(found >= parts);
            parts = found;
            let request = ListUploads { max: 10, ..ListUploads::default() };
            let found = gateway.list_uploads(&bucket, request).await.unwrap().entries.len();
            assert!(found >= uploads);
            uploads = found;
            match gateway.head(&bucket, "source", None).await {
                Ok(head) => {
                    let copy = CopyObject {
                        bucket: bucket.clone(),
                        key: "copy".into(),
                        headers: None,
                        checksum: None,
                    };
                    gateway.copy(&head, copy).await.unwrap();
                    source = true;
                }
                Err(_) => assert!(!source),
            }
        }
    }
}

#[tokio::test]
async fn the_setting_is_the_buckets_and_the_last_one_counts() {
    let store = Arc::new(MemoryStore::new(3, 1));
    let behind = gateway_with(&store, -YEARS_10_MS, config());
    let gateway = gateway(&store);
    let new = NewBucket { global_alias: Some("mono".into()), ..NewBucket::default() };
    let row = gateway.create_bucket(new).await.unwrap();
    assert!(!row.monotonic_reads.value);
    gateway.set_monotonic_reads(row.id, true).await.unwrap();
    assert!(behind.bucket_info(row.id).await.unwrap().row.monotonic_reads.value);
    behind.set_monotonic_reads(row.id, false).await.unwrap();
    assert!(!gateway.bucket_info(row.id).await.unwrap().row.monotonic_reads.value);
}

/// A row on two of three replicas, of which one is read along with the third.
async fn lagging(seed: u64) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new(3, seed));
    store.set_dead(0, true);
    put(&gateway(&store), &bucket(1), "k", b"x").await.unwrap();
    store.set_dead(0, false);
    store.set_dead(1, true);
    store
}

#[tokio::test(start_paused = true)]
async fn what_a_read_saw_too_long_ago_is_not_written_back() {
    let (none, long) = (Duration::ZERO, Duration::from_secs(31));
    for (monotonic_jump, wall_jump, late) in [(none, none, false), (long, none, true), (none, long, true)] {
        let (store, watch) = (lagging(1).await, Watch::new());
        let stopping = Stopping::new(&store);
        let gateway = Gateway::new(watch.env(), stopping.clone(), config());
        let stop = || {
            let watch = watch.clone();
            stopping.after("read_row", move |_| watch.forward(monotonic_jump, wall_jump));
        };
        let writes = || store.calls()["write_rows"];
        let before = writes();
        stop();
        gateway.head(&bucket(1), "k", None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(writes() - before, usize::from(!late));

        let (store, bucket) = (lagging(2).await, monotonic(&bucket(1)));
        let stopping = Stopping::new(&store);
        let gateway = Gateway::new(watch.env(), stopping.clone(), config());
        let watch = watch.clone();
        stopping.after("read_row", move |_| watch.forward(monotonic_jump, wall_jump));
        let read = gateway.head(&bucket, "k", None).await;
        assert_eq!(matches!(read, Err(DomainError::Unavailable { .. })), late, "{read:?}");
    }
}
