//! Calls over live connections: answers, bodies, cancellation, deadlines, broken peers, limits.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use bytes::Bytes;
use futures::future::join_all;
use hayloft_proto::body::{Body, BodyError};
use hayloft_proto::error::{RemoteCode, RpcError};
use hayloft_proto::frame::TraceContext;
use hayloft_proto::limits::Limits;
use hayloft_proto::message::Class;
use std::time::Duration;
use support::*;

/// Small windows and frames on in-memory streams, defaults on TLS: every test runs on both.
fn tiny() -> Limits {
    Limits { stream_window: 1000, body_budget: 5000, data_frame: 300, ..quick_limits() }
}

async fn pairs() -> [(Node, Node); 2] {
    [tls_pair(quick_limits()).await, memory_pair(tiny()).await]
}

fn noise(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes.into()
}

#[tokio::test]
async fn a_call_is_answered_and_errors_arrive_as_they_are() {
    for (a, b) in pairs().await {
        let (head, body) = a.call(&b, ECHO, b"hello", Body::empty()).await.unwrap();
        assert_eq!((&head[..], body.len()), (&b"hello"[..], Some(0)));
        let error = a.call(&b, REFUSE, b"", Body::empty()).await.unwrap_err();
        assert_eq!(error, RpcError::remote(RemoteCode::NoSpace, "disk full"));
        let big = noise(3 << 20);
        assert_eq!(a.call(&b, ECHO, &big, Body::empty()).await.unwrap().0, big);
        assert!(matches!(
            a.call(&b, ECHO, &vec![0; 5 << 20], Body::empty()).await,
            Err(RpcError::Remote { code: RemoteCode::BadRequest, .. })
        ));
        for method in [HUGE_HEAD, PANIC] {
            assert!(matches!(
                a.call(&b, method, b"", Body::empty()).await,
                Err(RpcError::Remote { code: RemoteCode::Internal, .. })
            ));
        }
        assert_eq!(a.call(&b, ECHO, b"still up", Body::empty()).await.unwrap().0, "still up");
    }
}

#[tokio::test]
async fn many_calls_at_once_all_get_their_own_answer() {
    for (a, b) in pairs().await {
        let calls = (0..3000u32).map(|i| {
            let (a, b) = (&a, &b);
            async move {
                let head = i.to_be_bytes();
                assert_eq!(a.call(b, ECHO, &head, Body::empty()).await.unwrap().0, head[..]);
            }
        });
        join_all(calls).await;
        let stats = a.pool.peer_stats(b.id);
        assert!(stats.connected && stats.p95.is_some() && stats.last_heard.is_some());
    }
}

#[tokio::test]
async fn a_body_of_64_mib_goes_both_ways() {
    let (a, b) = tls_pair(quick_limits()).await;
    let sent = noise(64 << 20);
    let options = options(Class::Bulk);
    let (head, _) = a.pool.call(b.id, options, DIGEST, Bytes::new(), sent.clone().into()).await.unwrap();
    assert_eq!(head, digest(&sent));
    let (_, body) = a.pool.call(b.id, options, ECHO, Bytes::new(), sent.clone().into()).await.unwrap();
    assert_eq!(body.len(), Some(64 << 20));
    assert!(body.collect(64 << 20).await.unwrap() == sent);
}

#[tokio::test]
async fn bodies_of_unknown_length_and_many_chunks_arrive_whole() {
    for (a, b) in pairs().await {
        let sent = noise(200_000);
        let chunks: Vec<_> = sent.chunks(777).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        let body = Body::from_stream(None, futures::stream::iter(chunks));
        let (_, body) = a.call(&b, ECHO, b"", body).await.unwrap();
        assert_eq!(body.len(), None);
        assert!(body.collect(1 << 20).await.unwrap() == sent);
    }
}

#[tokio::test]
async fn small_calls_go_on_while_bulk_bodies_stand_still() {
    for (a, b) in pairs().await {
        // Eight endless bodies that nobody reads: each stops at its window.
        let mut bodies = Vec::new();
        for _ in 0..8 {
            let call = a.pool.call(b.id, options(Class::Bulk), ENDLESS, Bytes::new(), Body::empty());
            bodies.push(call.await.unwrap().1);
        }
        for i in 0..100u8 {
            assert_eq!(a.call(&b, ECHO, &[i], Body::empty()).await.unwrap().0, [i][..]);
        }
        // The same connection still serves others, too.
        let call = a.pool.call(
            b.id,
            options(Class::Bulk),
            PRODUCE,
            50_000u64.to_be_bytes().to_vec().into(),
            Body::empty(),
        );
        assert_eq!(call.await.unwrap().1.collect(50_000).await.unwrap().len(), 50_000);
        for body in &mut bodies {
            assert!(body.next().await.unwrap().is_ok());
        }
    }
}

#[tokio::test]
async fn a_dropped_call_cancels_its_handler() {
    for (a, b) in pairs().await {
        {
            let call = a.call(&b, HANG, b"", Body::empty());
            tokio::select! { biased;
                _ = call => panic!("it hangs"),
                started = b.handler.started.acquire() => started.unwrap().forget(),
            }
        }
        b.handler.dropped.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn a_deadline_ends_the_call_here_and_the_handler_there() {
    for (a, b) in pairs().await {
        let mut options = options(Class::Small);
        options.deadline = Duration::from_millis(200);
        let answer = a.pool.call(b.id, options, HANG, Bytes::new(), Body::empty()).await;
        assert_eq!(answer.unwrap_err(), RpcError::Timeout);
        b.handler.dropped.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn a_dropped_body_stops_its_writer() {
    for (a, b) in pairs().await {
        let (_, mut body) = a.call(&b, ENDLESS, b"", Body::empty()).await.unwrap();
        body.next().await.unwrap().unwrap();
        drop(body);
        // Its stream is free again: were it not, the server could not finish.
        b.server.stop(Duration::from_secs(20)).await;
        assert_eq!(b.server.connections(), 0);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_at_the_reader_on_either_side() {
    for (a, b) in pairs().await {
        let (_, body) = a.call(&b, BREAK_OFF, b"", Body::empty()).await.unwrap();
        assert!(matches!(body.collect(1 << 20).await, Err(BodyError::Failed(_))));
        let (tx, body) = Body::channel(None);
        tx.send(Bytes::from_static(b"abc")).await.unwrap();
        drop(tx);
        let error = a.call(&b, DIGEST, b"", body).await.unwrap_err();
        assert!(matches!(error, RpcError::Remote { code: RemoteCode::BodyFailed, .. }), "{error}");
        assert_eq!(a.call(&b, ECHO, b"up", Body::empty()).await.unwrap().0, "up");
    }
}

#[tokio::test]
async fn an_answer_that_ignores_the_body_comes_through() {
    for (a, b) in pairs().await {
        let body = Body::from(noise(500_000));
        assert_eq!(a.call(&b, IGNORE_BODY, b"", body).await.unwrap().0, "no thanks");
        assert_eq!(a.call(&b, ECHO, b"up", Body::empty()).await.unwrap().0, "up");
    }
}

#[tokio::test]
async fn a_peer_that_goes_away_in_the_middle_is_an_error_at_once() {
    for (a, b) in pairs().await {
        let (_, mut body) = a.call(&b, ENDLESS, b"", Body::empty()).await.unwrap();
        body.next().await.unwrap().unwrap();
        let hanging = a.call(&b, HANG, b"", Body::empty());
        let cut = async {
            b.handler.started.acquire().await.unwrap().forget();
            b.server.stop(Duration::ZERO).await;
        };
        let (answer, ()) = tokio::join!(hanging, cut);
        assert!(matches!(answer, Err(RpcError::Unreachable { sent: true, .. })));
        let error = loop {
            match body.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, BodyError::Disconnected(_)), "{error}");
        b.handler.dropped.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn a_peer_that_comes_back_is_found_again() {
    let member = || hayloft_proto::hello::Member::new(secret(1), hayloft_proto::hello::Role::Storage);
    let a = Node::tls(member(), quick_limits()).await;
    let identity = hayloft_proto::identity::Identity::generate().unwrap();
    let secure = || std::sync::Arc::new(hayloft_proto::secure::tls::TlsSecure::new(&identity).unwrap());
    let env = hayloft_common::env::Env::real;
    let b = Node::start(env(), secure(), "127.0.0.1:0", member(), quick_limits()).await;
    a.knows(&b);
    a.call(&b, ECHO, b"1", Body::empty()).await.unwrap();
    b.server.stop(Duration::ZERO).await;
    // Once it is known to be down, calls fail at once.
    while !matches!(
        a.call(&b, ECHO, b"2", Body::empty()).await,
        Err(RpcError::Unreachable { sent: false, .. })
    ) {}
    assert!(!a.pool.peer_stats(b.id).connected);
    let again = Node::start(env(), secure(), "127.0.0.1:0", member(), quick_limits()).await;
    a.knows(&again);
    while a.call(&again, ECHO, b"3", Body::empty()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(a.pool.peer_stats(again.id).connected);
}

#[tokio::test]
async fn a_peer_that_stops_finishes_what_runs_and_others_do_not_wait_for_it() {
    for (a, b) in pairs().await {
        let (tx, body) = Body::channel(None);
        let running = a.call(&b, DIGEST, b"", body);
        let meanwhile = async {
            tx.send(Bytes::from_static(b"abc")).await.unwrap();
            a.call(&b, ECHO, b"", Body::empty()).await.unwrap();
            let stop = b.server.stop(Duration::from_secs(20));
            let others = async {
                // Until the word that it stops has come, calls are still taken and refused there.
                while a.call(&b, ECHO, b"", Body::empty()).await.is_ok() {}
                tx.finish().await.unwrap();
            };
            tokio::join!(stop, others);
        };
        let (answer, ()) = tokio::join!(running, meanwhile);
        assert_eq!(answer.unwrap().0, digest(b"abc"));
    }
}

#[tokio::test]
async fn more_calls_than_allowed_are_told_overloaded() {
    let limits = Limits { max_calls_per_peer: 2, ..quick_limits() };
    for (a, b) in [tls_pair(limits.clone()).await, memory_pair(limits).await] {
        let two = join_all((0..2).map(|_| a.call(&b, HANG, b"", Body::empty())));
        let third = async {
            b.handler.started.acquire_many(2).await.unwrap().forget();
            a.call(&b, ECHO, b"", Body::empty()).await
        };
        tokio::select! { biased;
            _ = two => panic!("they hang"),
            answer = third => assert!(matches!(answer, Err(RpcError::Overloaded { .. }))),
        }
        // The two were cancelled when dropped: there is room again.
        b.handler.dropped.acquire_many(2).await.unwrap().forget();
        while a.call(&b, ECHO, b"", Body::empty()).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn calls_beyond_the_peers_streams_wait_their_turn() {
    let limits = Limits { max_streams: 2, ..quick_limits() };
    let (a, b) = memory_pair(limits).await;
    let calls = (0..50u8).map(|i| {
        let (a, b) = (&a, &b);
        async move { assert_eq!(a.call(b, ECHO, &[i], Body::empty()).await.unwrap().0, [i][..]) }
    });
    join_all(calls).await;
}

#[tokio::test]
async fn a_call_to_oneself_needs_no_connection() {
    let (a, _) = memory_pair(quick_limits()).await;
    a.pool.set_local(a.handler.clone());
    let (head, body) = a.call(&a, ECHO, b"me", Body::from(noise(1000))).await.unwrap();
    assert_eq!((&head[..], body.collect(1000).await.unwrap()), (&b"me"[..], noise(1000)));
    assert_eq!(a.server.connections(), 0);
}

#[tokio::test]
async fn an_unknown_peer_is_unreachable_at_once() {
    let (a, b) = memory_pair(quick_limits()).await;
    a.pool.remove(b.id);
    let answer = a.call(&b, ECHO, b"", Body::empty()).await;
    assert!(matches!(answer, Err(RpcError::Unreachable { sent: false, .. })));
    assert_eq!(a.pool.peers(), []);
}

#[tokio::test]
async fn a_trace_context_travels_unharmed() {
    let (a, b) = memory_pair(quick_limits()).await;
    let trace = Some(TraceContext { trace_id: [3; 16], span_id: [4; 8], flags: 1 });
    let options = hayloft_proto::client::CallOptions { trace, ..options(Class::Small) };
    let (seen, _) = a.pool.call(b.id, options, TRACE, Bytes::new(), Body::empty()).await.unwrap();
    assert_eq!(seen, format!("{trace:?}"));
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_and_given_up() {
    use hayloft_common::env::{Env, Net as _};
    let mut env = Env::real();
    let net = std::sync::Arc::new(MemoryNet::default());
    env.net = net.clone();
    let limits = Limits {
        ping_interval: Duration::from_millis(100),
        probe_after: Duration::from_millis(10),
        dead_after: Duration::from_secs(3),
        ..quick_limits()
    };
    let member = hayloft_proto::hello::Member::new(secret(1), hayloft_proto::hello::Role::Storage);
    let start = |n: u8, addr| {
        let secure = std::sync::Arc::new(Plaintext(hayloft_common::id::NodeId([n; 32])));
        Node::start(env.clone(), secure, addr, member.clone(), limits.clone())
    };
    let (a, b) = (start(1, "a").await, start(2, "b").await);
    // A line between them that can go dead without closing.
    let (dead_tx, dead) = tokio::sync::watch::channel(false);
    let line = net.listen("line").await.unwrap();
    let relay_net = net.clone();
    env.spawn("line", async move {
        while let Ok((mut near, _)) = line.accept().await {
            let mut dead = dead.clone();
            let Ok(mut far) = relay_net.dial("b").await else { return };
            tokio::select! { biased;
                () = async { drop(dead.wait_for(|dead| *dead).await) } => {}
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => continue,
            }
            // Both ends stay open, and nothing passes any more.
            std::future::pending::<()>().await;
        }
    });
    a.pool.set_addresses(b.id, vec!["line".into()]);
    a.call(&b, ECHO, b"1", Body::empty()).await.unwrap();
    while a.pool.peer_stats(b.id).srtt.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    dead_tx.send(true).unwrap();
    let hanging = a.call(&b, ECHO, b"2", Body::empty());
    let look = async {
        loop {
            let stats = a.pool.peer_stats(b.id);
            if stats.silent_since.is_some() || !stats.connected {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (answer, during) = tokio::join!(hanging, look);
    assert!(during.connected && during.silent_since.is_some(), "silence shows before the line is given up");
    assert!(matches!(answer, Err(RpcError::Unreachable { sent: true, .. })), "{:?}", answer.err());
    assert!(!a.pool.peer_stats(b.id).connected);
}
