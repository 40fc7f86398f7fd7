//! A version is committed only while nobody can have given up its references: uploads that are slow, cut off or stopped
//! renew them, start over with an id of their own, or fail; none leaves an object without its blocks.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod domain_support;
#[path = "domain_support/stopping.rs"]
mod stopping;

use domain_support::*;
use futures::StreamExt as _;
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{
    BodyChecks, Bucket, CompleteUpload, CreateUpload, DomainError, Gateway, NamedPart, PutDone, UploadRef,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stopping::{Stopping, Watch};

const MINUTE: Duration = Duration::from_mins(1);

struct World {
    store: Arc<MemoryStore>,
    stopping: Arc<Stopping>,
    watch: Arc<Watch>,
    gateway: Arc<Gateway>,
    bucket: Arc<Bucket>,
}

fn world(seed: u64) -> World {
    let (store, watch, bucket) = (Arc::new(MemoryStore::new(3, seed)), Watch::new(), bucket(1));
    let stopping = Stopping::new(&store);
    let gateway = Gateway::new(watch.env(), stopping.clone(), config());
    World { store, stopping, watch, gateway, bucket }
}

impl World {
    /// A put of `data` whose body pauses in the middle; `then` happens at the end of the pause.
    async fn slow_put(
        &self,
        data: &[u8],
        pause: Duration,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<PutDone, DomainError> {
        let (begin, end) = (body_of(&data[..2500], 500), body_of(&data[2500..], 500));
        let pause = futures::stream::once(async move {
            tokio::time::sleep(pause).await;
            then();
            Ok(bytes::Bytes::new())
        });
        let body = begin.chain(pause).chain(end).boxed();
        self.gateway.put(put_of(&self.bucket, "k", None), body).await
    }

    async fn check(&self, want: &[u8]) {
        self.store.collect();
        assert!(get(&self.gateway, &self.bucket, "k").await.unwrap() == want);
        let head = self.gateway.head(&self.bucket, "k", None).await.unwrap();
        assert_eq!(self.store.referred(head.version.id).len(), want.len().div_ceil(1000));
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_whose_references_are_old_gets_a_new_id() {
    for (seed, (monotonic, wall)) in (0..).zip([(31 * MINUTE, Duration::ZERO), (Duration::ZERO, 31 * MINUTE)])
    {
        let world = world(seed);
        let (data, watch) = (noise(900, seed), world.watch.clone());
        world.stopping.after("put_block", move |store| {
            watch.forward(monotonic, wall);
            store.give_up_uncommitted();
        });
        put(&world.gateway, &world.bucket, "k", &data).await.unwrap();
        assert!(world.store.calls()["refer_blocks"] > 0);
        world.check(&data).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_whose_blocks_are_gone_is_not_committed() {
    let world = world(1);
    let old = noise(2000, 1);
    put(&world.gateway, &world.bucket, "k", &old).await.unwrap();
    let watch = world.watch.clone();
    world.stopping.after("put_block", move |store| {
        watch.forward(61 * MINUTE, 61 * MINUTE);
        store.give_up_uncommitted();
        store.collect();
    });
    let result = put(&world.gateway, &world.bucket, "k", &noise(1000, 2)).await;
    assert!(
        matches!(result, Err(DomainError::Damaged { .. } | DomainError::Unavailable { .. })),
        "{result:?}"
    );
    world.check(&old).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_whose_references_are_old_gets_a_new_id_and_so_does_what_it_is_completed_to() {
    let world = world(2);
    let create =
        CreateUpload { bucket: world.bucket.clone(), key: "k".into(), headers: vec![], checksum: None };
    let upload = world.gateway.create_upload(create).await.unwrap();
    let target = UploadRef { bucket: world.bucket.clone(), key: "k".into(), upload };
    let stop = |call| {
        let watch = world.watch.clone();
        world.stopping.after(call, move |store| {
            watch.forward(Duration::ZERO, 31 * MINUTE);
            store.give_up_uncommitted();
        });
    };
    let data = noise(3000, 2);
    stop("put_block");
    let checks = BodyChecks { length: Some(3000), ..BodyChecks::default() };
    let done = world.gateway.put_part(target.clone(), 1, checks, body_of(&data, 700)).await.unwrap();
    stop("refer_blocks");
    let parts = vec![NamedPart { number: 1, etag: done.etag, checksum: None }];
    let complete = CompleteUpload { target, parts, checksum: None, size: None };
    world.gateway.complete_upload(complete).await.unwrap();
    world.check(&data).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_repeated_soon_and_only_those_that_went_through_count() {
    let world = world(3);
    let data = noise(3000, 3);
    world.stopping.no_references.store(true, Ordering::SeqCst);
    let stopping = world.stopping.clone();
    world.watch.env().spawn("repair of references", async move {
        tokio::time::sleep(14 * MINUTE).await;
        stopping.no_references.store(false, Ordering::SeqCst);
    });
    // Many hours in all: with the first renewals failing the upload must have renewed in between.
    world.slow_put(&data, 300 * MINUTE, || ()).await.unwrap();
    world.check(&data).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_references_cannot_be_renewed_for_long_fails() {
    let world = world(4);
    let old = noise(2000, 4);
    put(&world.gateway, &world.bucket, "k", &old).await.unwrap();
    world.stopping.no_references.store(true, Ordering::SeqCst);
    let result = world.slow_put(&noise(3000, 5), 20 * MINUTE, || ()).await;
    assert!(matches!(result, Err(DomainError::Unavailable { .. })), "{result:?}");
    // A short failure is none.
    let result = world.slow_put(&noise(3000, 5), 10 * MINUTE, || ()).await;
    assert!(result.is_ok(), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_given_up_in_the_middle_of_its_upload_is_not_committed() {
    for minutes in [1u32, 7, 40] {
        let world = world(5);
        let old = noise(2000, 4);
        put(&world.gateway, &world.bucket, "k", &old).await.unwrap();
        let (store, watch, data) = (world.store.clone(), world.watch.clone(), noise(3000, 6));
        // The next thing that it does is to renew.
        let result = world.slow_put(&data, minutes * MINUTE, move || {
            store.give_up_uncommitted();
            watch.forward(6 * MINUTE, 6 * MINUTE);
        });
        assert!(matches!(result.await, Err(DomainError::Unavailable { .. })));
        world.check(&old).await;
    }
}

#[tokio::test]
async fn a_complete_that_got_no_answer_is_never_denied() {
    let mut unknown = 0;
    for seed in 0..100 {
        let store = Arc::new(MemoryStore::new(3, seed));
        let (gateway, bucket) = (gateway(&store), bucket(1));
        put(&gateway, &bucket, "k", b"before").await.unwrap();
        let create =
            CreateUpload { bucket: bucket.clone(), key: "k".into(), headers: vec![], checksum: None };
        let upload = gateway.create_upload(create).await.unwrap();
        let target = UploadRef { bucket: bucket.clone(), key: "k".into(), upload };
        let data = noise(3000, seed);
        let checks = BodyChecks::default();
        let done = gateway.put_part(target.clone(), 1, checks, body_of(&data, 700)).await.unwrap();
        let parts = vec![NamedPart { number: 1, etag: done.etag, checksum: None }];
        let complete = || {
            let target = target.clone();
            gateway.complete_upload(CompleteUpload {
                target,
                parts: parts.clone(),
                checksum: None,
                size: None,
            })
        };
        store.set_torn(255);
        while complete().await.is_ok() {}
        store.set_torn(0);
        for attempt in 0.. {
            match complete().await {
                Ok(_) => break,
                Err(DomainError::Unavailable { .. }) if attempt < 100 => unknown += 1,
                Err(error) => panic!("seed {seed}, attempt {attempt}: {error}"),
            }
            tokio::task::yield_now().await;
        }
        // What success was answered for is on a write quorum: any replica may go.
        for replica in 0..3 {
            store.set_dead(replica, true);
            assert!(get(&gateway, &bucket, "k").await.unwrap() == data, "seed {seed}");
            store.set_dead(replica, false);
        }
    }
    assert!(unknown > 0, "the test looks for what does not happen");
}
