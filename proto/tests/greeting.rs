//! Who may connect, and what both sides learn when one may not. Nothing here ever hangs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use bytes::Bytes;
use hayloft_common::env::{Env, Net};
use hayloft_common::id::{ClusterId, NodeId};
use hayloft_proto::body::Body;
use hayloft_proto::error::{Refusal, RpcError};
use hayloft_proto::hello::{Member, Role};
use std::sync::Arc;
use std::time::Duration;
use support::{ECHO, MemoryNet, Node, Plaintext, memory_pair, quick_limits, secret, tls_pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn member(n: u8) -> Member {
    Member::new(secret(n), Role::Storage)
}

/// What a node with `calling` gets from one with `called`.
async fn meet(calling: Member, called: Member) -> Result<(), RpcError> {
    let a = Node::tls(calling, quick_limits()).await;
    let b = Node::tls(called, quick_limits()).await;
    a.knows(&b);
    let answer = a.call(&b, ECHO, b"hi", Body::empty()).await;
    assert_eq!(answer.is_ok(), b.server.connections() > 0);
    answer.map(|_| ())
}

#[tokio::test]
async fn members_of_one_cluster_meet() {
    meet(member(1), member(1)).await.unwrap();
    meet(Member::new(secret(1), Role::Gateway), member(1)).await.unwrap();
}

#[tokio::test]
async fn a_wrong_secret_a_wrong_cluster_and_a_wrong_protocol_are_refused_by_name() {
    let refused = |reason| Err(RpcError::Refused(reason));
    assert_eq!(meet(member(1), member(2)).await, refused(Refusal::WrongSecret));
    let elsewhere = Member { cluster: ClusterId([9; 16]), ..member(1) };
    assert_eq!(meet(elsewhere.clone(), member(1)).await, refused(Refusal::WrongCluster));
    assert_eq!(meet(member(1), elsewhere).await, refused(Refusal::WrongCluster));
    let newer = Member { protocol: (7, 8), ..member(1) };
    assert_eq!(meet(newer.clone(), member(1)).await, refused(Refusal::WrongProtocol));
    assert_eq!(meet(member(1), newer).await, refused(Refusal::WrongProtocol));
    let rolling = Member { protocol: (1, 2), ..member(1) };
    meet(rolling, member(1)).await.unwrap();
}

#[tokio::test]
async fn another_node_at_the_address_is_named_beside_the_expected_one() {
    let (a, b) = tls_pair(quick_limits()).await;
    let expected = NodeId([5; 32]);
    a.pool.set_addresses(expected, vec![b.server.local_addr().to_owned()]);
    let options = support::options(hayloft_proto::message::Class::Small);
    let error = a.pool.call(expected, options, ECHO, Bytes::new(), Body::empty()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains(&b.id.to_string()), "{text}");
}

#[tokio::test]
async fn the_id_behind_an_unknown_address_is_learnt() {
    let (a, b) = tls_pair(quick_limits()).await;
    assert_eq!(a.pool.dial_unknown(b.server.local_addr()).await, Ok(b.id));
    assert_eq!(b.pool.dial_unknown(b.server.local_addr()).await, Ok(b.id));
    assert!(a.pool.dial_unknown("127.0.0.1:1").await.is_err());
    let stranger = Node::tls(member(2), quick_limits()).await;
    let refused = a.pool.dial_unknown(stranger.server.local_addr()).await;
    assert_eq!(refused, Err(RpcError::Refused(Refusal::WrongSecret)));
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_an_error_not_a_hang() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let env = Env::real();
    env.spawn("garbage", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n").await;
            let _ = stream.read(&mut [0; 10]).await;
        }
    });
    let a = Node::tls(member(1), quick_limits()).await;
    assert!(matches!(a.pool.dial_unknown(&addr).await, Err(RpcError::Unreachable { sent: false, .. })));
}

#[tokio::test]
async fn a_silent_peer_costs_the_time_limit_on_either_side() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let a = Node::tls(member(1), quick_limits()).await;
    let error = a.pool.dial_unknown(&addr).await.unwrap_err();
    assert!(error.to_string().contains("no connection within"), "{error}");
    // The other way round: a client that says nothing, and one that says a little at a time.
    for bytes in [&b""[..], &b"\x16\x03\x01"[..]] {
        let mut stream = tokio::net::TcpStream::connect(a.server.local_addr()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut said = Vec::new();
        let closed = stream.read_to_end(&mut said);
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("hung up on").unwrap();
    }
}

#[tokio::test]
async fn garbage_after_tls_is_refused_and_told_so() {
    let mut env = Env::real();
    let net = Arc::new(MemoryNet::default());
    env.net = net.clone();
    let secure = Arc::new(Plaintext(NodeId([1; 32])));
    let _node = Node::start(env, secure, "a", member(1), quick_limits()).await;
    let mut stream = net.dial("a").await.unwrap();
    stream.write_all(&[2; 32]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    // The node waits a moment for us to hang up too, so that the reason is not lost.
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said[said.len() - 4..], [b'H', b'V', Refusal::WrongMagic.number(), 0]);
}

#[tokio::test]
async fn a_greeting_that_never_ends_is_cut_off() {
    let mut env = Env::real();
    let net = Arc::new(MemoryNet::default());
    env.net = net.clone();
    let secure = Arc::new(Plaintext(NodeId([1; 32])));
    let node = Node::start(env, secure, "a", member(1), quick_limits()).await;
    let mut stream = net.dial("a").await.unwrap();
    stream.write_all(&[2; 32]).await.unwrap();
    let mut said = Vec::new();
    let dribble = async {
        for byte in b"HAYLOFT\n\0\x46".iter().chain(std::iter::repeat_n(&0, 1000)) {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let _ = stream.read_to_end(&mut said).await;
    };
    tokio::time::timeout(Duration::from_secs(20), dribble).await.expect("cut off");
    assert_eq!(node.server.connections(), 0);
}

#[tokio::test]
async fn a_node_that_stops_says_so_to_those_who_come() {
    let (a, b) = memory_pair(quick_limits()).await;
    a.call(&b, ECHO, b"1", Body::empty()).await.unwrap();
    b.server.stop(Duration::from_secs(5)).await;
    assert_eq!(b.server.connections(), 0);
    assert!(a.call(&b, ECHO, b"2", Body::empty()).await.is_err());
}
