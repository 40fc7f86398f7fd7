//! Entry points that take arbitrary bytes and must never panic: shared by `proto/fuzz` and the property
//! tests. Not part of the API.

use crate::conn::{Conn, End, Settings};
use crate::error::{Refusal, RpcError};
use crate::frame::{Decoder, Outbox};
use crate::hello::{Greeting, Kind, Member, Role, RpcSecret, Session, Side, decode_verdict};
use crate::limits::{MAX_DATA_FRAME, MAX_HEAD};
use bytes::Bytes;
use hayloft_common::id::NodeId;

/// Decodes frames, and checks that what decodes also encodes to bytes that decode to the same.
pub fn frames(bytes: &[u8]) {
    let mut decoder = Decoder::new(MAX_HEAD, MAX_DATA_FRAME);
    decoder.buffer(bytes.len()).extend_from_slice(bytes);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let mut outbox = Outbox::default();
        outbox.push(frame.clone());
        let mut again = Decoder::new(MAX_HEAD, MAX_DATA_FRAME);
        again.buffer(0).extend_from_slice(&outbox.take_all());
        assert_eq!(again.next_frame(), Ok(Some(frame)));
    }
    // Errors travel in frames.
    let _ = RpcError::decode(bytes);
}

/// Feeds frames to both ends of a connection in some state, answering and reading as they come.
pub fn conn(bytes: &[u8]) {
    let settings = Settings { window_in: 64, window_out: 64, budget: 256, data_frame: 16, max_streams: 8 };
    for end in [End::Caller, End::Answerer] {
        let mut conn = Conn::new(end, settings);
        if end == End::Caller {
            for body in [None, Some(crate::frame::Follows(None))] {
                let request = crate::frame::Request {
                    method: 1,
                    deadline_ms: 1,
                    trace: None,
                    body,
                    head: Bytes::new(),
                };
                conn.open(request);
            }
        }
        let mut decoder = Decoder::new(MAX_HEAD, MAX_DATA_FRAME);
        decoder.buffer(bytes.len()).extend_from_slice(bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let Ok(event) = conn.receive(frame) else { break };
            match event {
                Some(crate::conn::Event::Request { stream, request }) => {
                    conn.respond(stream, false, request.body, request.head);
                }
                Some(crate::conn::Event::Data { stream, bytes, end }) => {
                    conn.consumed(stream, bytes.len() as u64);
                    conn.push_data(stream, bytes, end);
                }
                _ => {}
            }
            while conn.pop().is_some() || conn.next_wanted().is_some() {}
        }
    }
}

/// Judges a greeting and a verdict.
pub fn hello(bytes: &[u8]) {
    let member = Member::new(RpcSecret::new([1; 32]), Role::Storage);
    let session =
        Session { side: Side::Accepted, local: NodeId([1; 32]), peer: NodeId([2; 32]), binding: [3; 32] };
    let mut with_magic = b"HAYLOFT\n".to_vec();
    with_magic.extend_from_slice(bytes);
    for bytes in [bytes, &with_magic] {
        if let Ok(greeting) = Greeting::decode(bytes) {
            let verdict = greeting.judge(&member, &session, Kind::Small);
            assert!(
                matches!(verdict, Err(Refusal::WrongSecret | Refusal::WrongProtocol)),
                "a guessed proof was accepted"
            );
        }
    }
    if let Some(verdict) = bytes.first_chunk() {
        let _ = decode_verdict(*verdict);
    }
}
