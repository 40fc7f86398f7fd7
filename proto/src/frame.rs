//! Frames: the bytes on a connection. No I/O: [`Decoder`] takes bytes however they are split and gives
//! frames, [`Outbox`] takes frames and gives segments to write.
//!
//! ```text
//! frame:    length u32 (of what follows the header) | type u8 | stream u32 | …
//! request:  method u16 | deadline ms u32 | flags u8 | [trace 25] | [body length u64] | head
//! response: flags u8 | [body length u64] | head, or the encoded error
//! data:     flags u8 | bytes
//! credit:   bytes u32        fail: text        cancel: nothing
//! ping, pong: number u64     goaway: code u8 | text          (these three with stream 0)
//! ```
//!
//! All numbers are big-endian. The cap on a frame's size is checked before anything is kept of it.
//! History: version 1 is the first.

use crate::limits::{FRAME_OVERHEAD, SMALL_FRAME};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut, TryGetError};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bytes of a frame's header.
pub const HEADER: usize = 9;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CANCEL: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const GOAWAY: u8 = 8;
const FAIL: u8 = 9;

const FLAG_BODY: u8 = 1;
const FLAG_LENGTH: u8 = 2;
const FLAG_TRACE: u8 = 4;
const FLAG_ERROR: u8 = 8;
const FLAG_END: u8 = 1;

/// Where a call stands in a distributed trace (the fields of W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub flags: u8,
}

/// That a body follows, and its length in bytes if known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follows(pub Option<u64>);

/// A call's opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: u16,
    /// Time left for the call when it was sent.
    pub deadline_ms: u32,
    pub trace: Option<TraceContext>,
    pub body: Option<Follows>,
    pub head: Bytes,
}

/// One unit on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Request {
        stream: u32,
        request: Request,
    },
    /// `error`: `head` is an encoded [`crate::error::RpcError`].
    Response {
        stream: u32,
        error: bool,
        body: Option<Follows>,
        head: Bytes,
    },
    Data {
        stream: u32,
        end: bool,
        bytes: Bytes,
    },
    /// `bytes` more of the body may be sent.
    Credit {
        stream: u32,
        bytes: u32,
    },
    /// The caller wants no answer any more.
    Cancel {
        stream: u32,
    },
    /// The body of an answer ends here, incomplete.
    Fail {
        stream: u32,
        reason: Bytes,
    },
    Ping(u64),
    Pong(u64),
    /// No new calls on this connection, please.
    GoAway {
        code: u8,
        reason: Bytes,
    },
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {length} bytes, over the limit of {limit}")]
    TooLarge { length: u32, limit: u32 },
    #[error("frame of unknown type {0}")]
    UnknownType(u8),
    #[error("frame of type {0} is malformed")]
    Malformed(u8),
}

/// Turns bytes into frames. Feed it through [`Decoder::buffer`].
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max_head: u32,
    max_data: u32,
}

impl Decoder {
    /// Heads up to `max_head` bytes and data up to `max_data` bytes are accepted.
    pub fn new(max_head: u32, max_data: u32) -> Self {
        Self { buffer: BytesMut::new(), max_head, max_data }
    }

    /// Where to append received bytes, with room for at least the rest of a frame whose header is there.
    pub fn buffer(&mut self, at_least: usize) -> &mut BytesMut {
        let missing = match self.peek_length() {
            Some(length) => (HEADER + length as usize).saturating_sub(self.buffer.len()),
            None => HEADER,
        };
        // A frame over the limit never comes here: `next_frame` was asked before and refused it.
        let cap = (self.max_head + FRAME_OVERHEAD) as usize;
        self.buffer.reserve(missing.min(cap).max(at_least));
        &mut self.buffer
    }

    fn peek_length(&self) -> Option<u32> {
        self.buffer.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// The next complete frame, if there is one.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let kind = header[4];
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let limit = match kind {
            REQUEST | RESPONSE => self.max_head.saturating_add(FRAME_OVERHEAD),
            DATA => self.max_data.saturating_add(1),
            CREDIT | CANCEL | PING | PONG => 8,
            FAIL | GOAWAY => SMALL_FRAME as u32,
            _ => return Err(FrameError::UnknownType(kind)),
        };
        if length > limit {
            return Err(FrameError::TooLarge { length, limit });
        }
        let whole = HEADER + length as usize;
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let payload = if length as usize <= SMALL_FRAME {
            let copy = Bytes::copy_from_slice(&self.buffer[HEADER..whole]);
            self.buffer.advance(whole);
            copy
        } else {
            self.buffer.advance(HEADER);
            self.buffer.split_to(length as usize).freeze()
        };
        parse(kind, stream, payload).ok_or(FrameError::Malformed(kind)).map(Some)
    }
}

fn parse(kind: u8, stream: u32, mut payload: Bytes) -> Option<Frame> {
    // Frames about the connection have stream 0, all others have not.
    if (stream == 0) != matches!(kind, PING | PONG | GOAWAY) {
        return None;
    }
    let frame = match kind {
        REQUEST => {
            let method = payload.try_get_u16().ok()?;
            let deadline_ms = payload.try_get_u32().ok()?;
            let flags = payload.try_get_u8().ok()?;
            let trace = if flags & FLAG_TRACE == 0 { None } else { Some(parse_trace(&mut payload)?) };
            let body = parse_follows(flags, &mut payload).ok()?;
            if flags & !(FLAG_BODY | FLAG_LENGTH | FLAG_TRACE) != 0 {
                return None;
            }
            return Some(Frame::Request {
                stream,
                request: Request { method, deadline_ms, trace, body, head: payload },
            });
        }
        RESPONSE => {
            let flags = payload.try_get_u8().ok()?;
            let body = parse_follows(flags, &mut payload).ok()?;
            let error = flags & FLAG_ERROR != 0;
            if flags & !(FLAG_BODY | FLAG_LENGTH | FLAG_ERROR) != 0 || (error && body.is_some()) {
                return None;
            }
            return Some(Frame::Response { stream, error, body, head: payload });
        }
        DATA => {
            let flags = payload.try_get_u8().ok()?;
            if flags & !FLAG_END != 0 {
                return None;
            }
            return Some(Frame::Data { stream, end: flags & FLAG_END != 0, bytes: payload });
        }
        FAIL => return Some(Frame::Fail { stream, reason: payload }),
        GOAWAY => {
            let code = payload.try_get_u8().ok()?;
            return Some(Frame::GoAway { code, reason: payload });
        }
        CREDIT => Frame::Credit { stream, bytes: payload.try_get_u32().ok()? },
        CANCEL => Frame::Cancel { stream },
        PING => Frame::Ping(payload.try_get_u64().ok()?),
        PONG => Frame::Pong(payload.try_get_u64().ok()?),
        _ => return None,
    };
    payload.is_empty().then_some(frame)
}

fn parse_trace(payload: &mut Bytes) -> Option<TraceContext> {
    let mut trace = TraceContext { trace_id: [0; 16], span_id: [0; 8], flags: 0 };
    payload.try_copy_to_slice(&mut trace.trace_id).ok()?;
    payload.try_copy_to_slice(&mut trace.span_id).ok()?;
    trace.flags = payload.try_get_u8().ok()?;
    Some(trace)
}

fn parse_follows(flags: u8, payload: &mut Bytes) -> Result<Option<Follows>, TryGetError> {
    match (flags & FLAG_BODY != 0, flags & FLAG_LENGTH != 0) {
        (false, false) => Ok(None),
        (true, false) => Ok(Some(Follows(None))),
        (true, true) => Ok(Some(Follows(Some(payload.try_get_u64()?)))),
        (false, true) => Err(TryGetError { requested: 1, available: 0 }),
    }
}

fn follows_flags(body: Option<Follows>) -> u8 {
    match body {
        None => 0,
        Some(Follows(None)) => FLAG_BODY,
        Some(Follows(Some(_))) => FLAG_BODY | FLAG_LENGTH,
    }
}

/// Encoded frames waiting to be written: headers and small frames copied together, large heads and data
/// by reference.
#[derive(Debug, Default)]
pub struct Outbox {
    scratch: BytesMut,
    segments: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: Frame) {
        match frame {
            Frame::Request { stream, request } => self.push_request(stream, request),
            Frame::Response { stream, error, body, head } => {
                let length = body.and_then(|b| b.0);
                self.header(RESPONSE, stream, 1 + 8 * usize::from(length.is_some()) + head.len());
                self.scratch.put_u8(follows_flags(body) | if error { FLAG_ERROR } else { 0 });
                if let Some(length) = length {
                    self.scratch.put_u64(length);
                }
                self.payload(head);
            }
            Frame::Data { stream, end, bytes } => {
                self.header(DATA, stream, 1 + bytes.len());
                self.scratch.put_u8(if end { FLAG_END } else { 0 });
                self.payload(bytes);
            }
            Frame::Credit { stream, bytes } => {
                self.header(CREDIT, stream, 4);
                self.scratch.put_u32(bytes);
            }
            Frame::Cancel { stream } => self.header(CANCEL, stream, 0),
            Frame::Fail { stream, reason } => {
                self.header(FAIL, stream, reason.len());
                self.payload(reason);
            }
            Frame::Ping(number) => {
                self.header(PING, 0, 8);
                self.scratch.put_u64(number);
            }
            Frame::Pong(number) => {
                self.header(PONG, 0, 8);
                self.scratch.put_u64(number);
            }
            Frame::GoAway { code, reason } => {
                self.header(GOAWAY, 0, 1 + reason.len());
                self.scratch.put_u8(code);
                self.payload(reason);
            }
        }
    }

    fn push_request(&mut self, stream: u32, request: Request) {
        let length = request.body.and_then(|b| b.0);
        let fixed = 7 + 25 * usize::from(request.trace.is_some()) + 8 * usize::from(length.is_some());
        self.header(REQUEST, stream, fixed + request.head.len());
        self.scratch.put_u16(request.method);
        self.scratch.put_u32(request.deadline_ms);
        let trace_flag = if request.trace.is_some() { FLAG_TRACE } else { 0 };
        self.scratch.put_u8(follows_flags(request.body) | trace_flag);
        if let Some(trace) = request.trace {
            self.scratch.put_slice(&trace.trace_id);
            self.scratch.put_slice(&trace.span_id);
            self.scratch.put_u8(trace.flags);
        }
        if let Some(length) = length {
            self.scratch.put_u64(length);
        }
        self.payload(request.head);
    }

    /// `length`: of everything behind the header; the part in front of the payload is counted here.
    fn header(&mut self, kind: u8, stream: u32, length: usize) {
        self.scratch.reserve(HEADER + FRAME_OVERHEAD as usize);
        self.scratch.put_u32(length as u32);
        self.scratch.put_u8(kind);
        self.scratch.put_u32(stream);
        self.bytes += HEADER + length;
    }

    fn payload(&mut self, bytes: Bytes) {
        if bytes.len() <= SMALL_FRAME {
            self.scratch.put_slice(&bytes);
        } else {
            self.seal();
            self.segments.push_back(bytes);
        }
    }

    fn seal(&mut self) {
        if !self.scratch.is_empty() {
            self.segments.push_back(self.scratch.split().freeze());
        }
    }

    /// The first segments, for a vectored write. Returns how many of `slices` were filled.
    pub fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.seal();
        let count = slices.len().min(self.segments.len());
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(segment);
        }
        count
    }

    /// The first `count` bytes were written.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(first) = self.segments.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.segments.pop_front();
        }
    }

    /// Everything that waits, in one piece (for tests and golden files).
    pub fn take_all(&mut self) -> Vec<u8> {
        self.seal();
        let all = self.segments.iter().flat_map(|s| s.iter().copied()).collect();
        self.segments.clear();
        self.bytes = 0;
        all
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
pub(crate) mod tests;
