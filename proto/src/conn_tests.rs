//! Two ends of a connection driven against each other: order, completeness, windows, fairness, refusals.

use super::*;
use crate::frame::{Decoder, Outbox};
use crate::limits::{MAX_DATA_FRAME, MAX_HEAD};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn settings(window: u32, data_frame: u32) -> Settings {
    Settings { window_in: window, window_out: window, budget: 2 * window, data_frame, max_streams: 8 }
}

fn request(body: Option<Follows>) -> Request {
    Request { method: 7, deadline_ms: 1000, trace: None, body, head: Bytes::from_static(b"q") }
}

fn frames_of(conn: &mut Conn) -> Vec<Frame> {
    std::iter::from_fn(|| conn.pop()).collect()
}

/// Moves up to `count` frames from one end to the other through the real encoding.
fn carry(from: &mut Conn, to: &mut Conn, count: usize) -> Vec<Event> {
    let mut outbox = Outbox::default();
    for _ in 0..count {
        let Some(frame) = from.pop() else { break };
        outbox.push(frame);
    }
    let mut decoder = Decoder::new(MAX_HEAD, MAX_DATA_FRAME);
    decoder.buffer(0).extend_from_slice(&outbox.take_all());
    let mut events = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        events.extend(to.receive(frame).unwrap());
    }
    events
}

/// A body that is sent on one stream, and what came of it.
#[derive(Default)]
struct Flow {
    chunks: VecDeque<Bytes>,
    sent: Vec<u8>,
    got: Vec<u8>,
    unread: u64,
    ended: bool,
}

impl Flow {
    fn new(sizes: &[usize], seed: u8) -> Self {
        let mut byte = seed;
        let mut chunks = VecDeque::new();
        let mut sent = Vec::new();
        for &size in sizes {
            let chunk: Vec<u8> = (0..size)
                .map(|_| {
                    byte = byte.wrapping_mul(31).wrapping_add(17);
                    byte
                })
                .collect();
            sent.extend_from_slice(&chunk);
            chunks.push_back(chunk.into());
        }
        Self { chunks, sent, ..Self::default() }
    }

    fn push_to(&mut self, conn: &mut Conn, stream: u32) {
        let chunk = self.chunks.pop_front();
        conn.push_data(stream, chunk.unwrap_or_default(), self.chunks.is_empty());
    }
}

fn body_sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0usize..200, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn bodies_arrive_intact_under_any_interleaving_and_tiny_windows(
        bodies in proptest::collection::vec((body_sizes(), body_sizes(), any::<bool>()), 1..6),
        window in 1u32..100,
        data_frame in 1u32..60,
        steps in proptest::collection::vec((0u8..6, 1usize..5), 20..60),
    ) {
        let mut caller = Conn::new(End::Caller, settings(window, data_frame));
        let mut answerer = Conn::new(End::Answerer, settings(window, data_frame));
        let mut up = BTreeMap::new();
        let mut down = BTreeMap::new();
        for (i, (sizes_up, sizes_down, known)) in bodies.iter().enumerate() {
            let length = known.then(|| sizes_up.iter().sum::<usize>() as u64);
            let stream = caller.open(request(Some(Follows(length))));
            up.insert(stream, Flow::new(sizes_up, i as u8));
            down.insert(stream, Flow::new(sizes_down, 100 + i as u8));
        }
        // Random steps first, then all in turn until nothing is left to do.
        let closing = (0..20_000).map(|i| (i as u8 % 6, 3));
        for (step, count) in steps.into_iter().chain(closing) {
            match step {
                0 => if let Some(stream) = caller.next_wanted() {
                    up.get_mut(&stream).unwrap().push_to(&mut caller, stream);
                },
                1 => if let Some(stream) = answerer.next_wanted() {
                    down.get_mut(&stream).unwrap().push_to(&mut answerer, stream);
                },
                2 => for event in carry(&mut caller, &mut answerer, count) {
                    if let Event::Data { stream, end, bytes } = event {
                        let flow = up.get_mut(&stream).unwrap();
                        flow.got.extend_from_slice(&bytes);
                        flow.unread += bytes.len() as u64;
                        flow.ended |= end;
                        if end {
                            let body = Some(Follows(None));
                            answerer.respond(stream, false, body, Bytes::from_static(b"a"));
                        }
                    }
                },
                3 => for event in carry(&mut answerer, &mut caller, count) {
                    if let Event::Data { stream, end, bytes } = event {
                        let flow = down.get_mut(&stream).unwrap();
                        flow.got.extend_from_slice(&bytes);
                        flow.unread += bytes.len() as u64;
                        flow.ended |= end;
                    }
                },
                4 => for (stream, flow) in &mut up {
                    answerer.consumed(*stream, std::mem::take(&mut flow.unread));
                },
                _ => for (stream, flow) in &mut down {
                    caller.consumed(*stream, std::mem::take(&mut flow.unread));
                },
            }
            if caller.streams() == 0 && answerer.streams() == 0 {
                break;
            }
        }
        for flow in up.values().chain(down.values()) {
            prop_assert!(flow.ended, "a body never ended");
            prop_assert_eq!(&flow.got, &flow.sent);
        }
        prop_assert_eq!((caller.streams(), answerer.streams()), (0, 0));
        prop_assert_eq!((caller.arriving, answerer.arriving), (0, 0));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        crate::fuzzing::conn(&bytes);
    }

    #[test]
    fn any_frames_in_any_order_never_panic(
        frames in proptest::collection::vec(crate::frame::tests::frame(), 0..40),
    ) {
        let mut outbox = Outbox::default();
        for frame in frames {
            outbox.push(frame);
        }
        crate::fuzzing::conn(&outbox.take_all());
    }
}

#[test]
fn no_more_than_the_window_is_sent_unasked() {
    let mut caller = Conn::new(End::Caller, settings(100, 30));
    let stream = caller.open(request(Some(Follows(None))));
    assert_eq!(caller.next_wanted(), Some(stream));
    caller.push_data(stream, vec![0; 1000].into(), true);
    let sent: usize = frames_of(&mut caller)
        .iter()
        .map(|frame| match frame {
            Frame::Data { bytes, .. } => {
                assert!(bytes.len() <= 30);
                bytes.len()
            }
            _ => 0,
        })
        .sum();
    assert_eq!(sent, 100);
    caller.receive(Frame::Credit { stream, bytes: 10 }).unwrap();
    assert_eq!(frames_of(&mut caller), [Frame::Data { stream, end: false, bytes: vec![0; 10].into() }]);
}

#[test]
fn one_body_alone_is_granted_the_whole_budget_and_a_short_one_no_credit_at_all() {
    let wide = Settings { budget: 10_000, ..settings(100, 1000) };
    let mut answerer = Conn::new(End::Answerer, wide);
    let open = |conn: &mut Conn, stream, length| {
        let request = request(Some(Follows(length)));
        conn.receive(Frame::Request { stream, request }).unwrap();
        frames_of(conn)
    };
    assert_eq!(open(&mut answerer, 1, Some(100)), []);
    answerer.receive(Frame::Data { stream: 1, end: true, bytes: Bytes::new() }).unwrap();
    assert_eq!(open(&mut answerer, 2, None), [Frame::Credit { stream: 2, bytes: 9900 }]);
    assert_eq!(open(&mut answerer, 3, Some(300)), [Frame::Credit { stream: 3, bytes: 200 }]);
    assert_eq!(open(&mut answerer, 4, None), [Frame::Credit { stream: 4, bytes: 3233 }]);
}

#[test]
fn small_frames_go_first_and_streams_take_turns() {
    let mut caller = Conn::new(End::Caller, settings(1000, 10));
    let (a, b) = (caller.open(request(Some(Follows(None)))), caller.open(request(Some(Follows(None)))));
    caller.push_data(a, vec![1; 30].into(), true);
    caller.push_data(b, vec![2; 20].into(), true);
    caller.pop();
    caller.pop();
    let streams: Vec<u32> = (0..2)
        .map(|_| match caller.pop() {
            Some(Frame::Data { stream, .. }) => stream,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(streams, [a, b]);
    caller.ping(1);
    assert_eq!(caller.pop(), Some(Frame::Ping(1)));
    assert!(matches!(caller.pop(), Some(Frame::Data { stream, .. }) if stream == a));
}

#[test]
fn a_cancelled_call_ends_at_both_ends_and_late_frames_are_ignored() {
    let mut caller = Conn::new(End::Caller, settings(100, 10));
    let mut answerer = Conn::new(End::Answerer, settings(100, 10));
    let stream = caller.open(request(Some(Follows(None))));
    carry(&mut caller, &mut answerer, 9);
    answerer.respond(stream, false, Some(Follows(None)), Bytes::new());
    answerer.push_data(stream, vec![0; 50].into(), false);
    caller.cancel(stream);
    let events = carry(&mut caller, &mut answerer, 9);
    assert_eq!(events, [Event::Cancelled { stream }]);
    assert_eq!(answerer.next_finished(), Some(stream));
    // What the answerer had written before it knew.
    for frame in [
        Frame::Response { stream, error: false, body: Some(Follows(None)), head: Bytes::new() },
        Frame::Data { stream, end: false, bytes: vec![0; 10].into() },
        Frame::Fail { stream, reason: Bytes::new() },
    ] {
        assert_eq!(caller.receive(frame), Ok(None));
    }
    answerer.respond(stream, false, None, Bytes::new());
    assert!(!frames_of(&mut answerer).iter().any(|f| matches!(f, Frame::Data { .. })));
    assert_eq!((caller.streams(), answerer.streams()), (0, 0));
}

#[test]
fn an_answer_before_the_end_of_the_requests_body_stops_the_body() {
    let mut caller = Conn::new(End::Caller, settings(10, 10));
    let mut answerer = Conn::new(End::Answerer, settings(10, 10));
    let stream = caller.open(request(Some(Follows(None))));
    caller.push_data(stream, vec![0; 100].into(), true);
    carry(&mut caller, &mut answerer, 9);
    answerer.respond(stream, true, None, Bytes::from_static(b"no"));
    carry(&mut answerer, &mut caller, 9);
    assert_eq!(frames_of(&mut caller), []);
    assert_eq!((caller.streams(), answerer.streams()), (0, 0));
}

#[test]
fn violations_are_named() {
    let open = |stream| Frame::Request { stream, request: request(Some(Follows(None))) };
    let data = |stream, count: usize| Frame::Data { stream, end: false, bytes: vec![0; count].into() };
    let answerer = || {
        let mut conn = Conn::new(End::Answerer, settings(10, 10));
        conn.receive(open(5)).unwrap();
        conn
    };
    let mut caller = Conn::new(End::Caller, settings(10, 10));
    assert_eq!(answerer().receive(open(5)), Err(Violation::StreamOrder(5)));
    assert_eq!(answerer().receive(open(4)), Err(Violation::StreamOrder(4)));
    assert_eq!(answerer().receive(data(5, 21)), Err(Violation::WindowExceeded(5)));
    assert_eq!(answerer().receive(data(6, 1)), Err(Violation::Unexpected("data", 6)));
    assert_eq!(caller.receive(open(1)), Err(Violation::Unexpected("request", 1)));
    assert_eq!(caller.receive(Frame::Cancel { stream: 1 }), Err(Violation::Unexpected("cancel", 1)));
    let answer = Frame::Response { stream: 1, error: false, body: None, head: Bytes::new() };
    assert_eq!(caller.receive(answer), Err(Violation::Unexpected("response", 1)));
    let mut conn = answerer();
    let too_many = (6..20).map(|stream| conn.receive(open(stream))).find(Result::is_err);
    assert_eq!(too_many, Some(Err(Violation::TooManyStreams(8))));
    let mut conn = answerer();
    let flood = (0..100).map(|i| conn.receive(Frame::Ping(i))).find(Result::is_err);
    assert_eq!(flood, Some(Err(Violation::PingFlood)));
}
