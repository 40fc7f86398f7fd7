//! Frames: any split of the bytes gives the same frames, damage is refused, the form never changes.

use super::*;
use crate::limits::{MAX_DATA_FRAME, MAX_HEAD};
use proptest::prelude::*;

pub(crate) fn decode_all(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(MAX_HEAD, MAX_DATA_FRAME);
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().copied().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().unwrap_or(rest.len()).clamp(1, rest.len());
        decoder.buffer(cut).extend_from_slice(&rest[..cut]);
        rest = &rest[cut..];
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn encode_all(frames: &[Frame]) -> Vec<u8> {
    let mut outbox = Outbox::default();
    for frame in frames {
        outbox.push(frame.clone());
    }
    let length = outbox.len();
    let bytes = outbox.take_all();
    assert_eq!(bytes.len(), length);
    bytes
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    (0..max, any::<u8>()).prop_map(|(length, fill)| vec![fill; length].into())
}

fn follows() -> impl Strategy<Value = Option<Follows>> {
    prop_oneof![Just(None), any::<Option<u64>>().prop_map(|length| Some(Follows(length)))]
}

fn trace() -> impl Strategy<Value = Option<TraceContext>> {
    proptest::option::of(
        any::<([u8; 16], [u8; 8], u8)>().prop_map(|(trace_id, span_id, flags)| TraceContext {
            trace_id,
            span_id,
            flags,
        }),
    )
}

pub(crate) fn frame() -> impl Strategy<Value = Frame> {
    let stream = 1u32..50;
    let big = 3 * SMALL_FRAME;
    prop_oneof![
        (stream.clone(), any::<u16>(), any::<u32>(), trace(), follows(), bytes(big)).prop_map(
            |(stream, method, deadline_ms, trace, body, head)| Frame::Request {
                stream,
                request: Request { method, deadline_ms, trace, body, head }
            }
        ),
        (stream.clone(), any::<bool>(), follows(), bytes(big)).prop_map(|(stream, error, body, head)| {
            Frame::Response { stream, error, body: if error { None } else { body }, head }
        }),
        (stream.clone(), any::<bool>(), bytes(big)).prop_map(|(stream, end, bytes)| Frame::Data {
            stream,
            end,
            bytes
        }),
        (stream.clone(), any::<u32>()).prop_map(|(stream, bytes)| Frame::Credit { stream, bytes }),
        stream.clone().prop_map(|stream| Frame::Cancel { stream }),
        (stream, bytes(100)).prop_map(|(stream, reason)| Frame::Fail { stream, reason }),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        (any::<u8>(), bytes(100)).prop_map(|(code, reason)| Frame::GoAway { code, reason }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_the_bytes_gives_the_same_frames(
        frames in proptest::collection::vec(frame(), 0..12),
        cuts in proptest::collection::vec(1usize..3000, 1..8),
    ) {
        let encoded = encode_all(&frames);
        prop_assert_eq!(&decode_all(&encoded, &cuts).unwrap(), &frames);
        prop_assert_eq!(&decode_all(&encoded, &[]).unwrap(), &frames);
    }

    #[test]
    fn partial_writes_lose_nothing(
        frames in proptest::collection::vec(frame(), 1..8),
        steps in proptest::collection::vec(1usize..5000, 1..8),
    ) {
        let mut outbox = Outbox::default();
        for frame in &frames {
            outbox.push(frame.clone());
        }
        let mut written = Vec::new();
        let mut steps = steps.into_iter().cycle();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = outbox.slices(&mut slices);
            let offered: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
            let step = steps.next().unwrap_or(1).min(offered.len());
            written.extend_from_slice(&offered[..step]);
            outbox.advance(step);
        }
        prop_assert_eq!(written, encode_all(&frames));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        crate::fuzzing::frames(&bytes);
    }

    #[test]
    fn damaged_frames_never_panic(
        frames in proptest::collection::vec(frame(), 1..6),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut encoded = encode_all(&frames);
        let at = at.index(encoded.len());
        encoded[at] = value;
        crate::fuzzing::frames(&encoded);
    }
}

#[test]
fn frames_over_the_cap_are_refused_from_their_header_alone() {
    for (kind, length) in [(REQUEST, MAX_HEAD + 100), (DATA, MAX_DATA_FRAME + 2), (PING, 9), (FAIL, 5000)] {
        let mut header = length.to_be_bytes().to_vec();
        header.push(kind);
        header.extend_from_slice(&[0, 0, 0, 1]);
        assert!(matches!(decode_all(&header, &[]), Err(FrameError::TooLarge { .. })), "type {kind}");
    }
    assert_eq!(decode_all(&[0, 0, 0, 0, 77, 0, 0, 0, 1], &[]), Err(FrameError::UnknownType(77)));
}

#[test]
fn the_wire_form_never_changes() {
    let head = Bytes::from_static(b"head");
    let trace = Some(TraceContext { trace_id: [1; 16], span_id: [2; 8], flags: 1 });
    let request = |trace, body| Frame::Request {
        stream: 1,
        request: Request { method: 258, deadline_ms: 30_000, trace, body, head: head.clone() },
    };
    let response = |error, body| Frame::Response { stream: 2, error, body, head: head.clone() };
    let frames = [
        request(None, None),
        request(trace, Some(Follows(Some(1 << 20)))),
        response(false, None),
        response(false, Some(Follows(None))),
        response(true, None),
        Frame::Data { stream: 3, end: false, bytes: head.clone() },
        Frame::Data { stream: 3, end: true, bytes: Bytes::new() },
        Frame::Credit { stream: 4, bytes: 65_536 },
        Frame::Cancel { stream: 5 },
        Frame::Fail { stream: 6, reason: head.clone() },
        Frame::Ping(7),
        Frame::Pong(7),
        Frame::GoAway { code: 1, reason: head.clone() },
    ];
    let lines: String =
        frames.iter().map(|f| hex::encode(encode_all(std::slice::from_ref(f))) + "\n").collect();
    assert_eq!(lines, include_str!("../tests/golden/frames_v1.txt"));
}
