//! Many calls on one connection: streams, credit for bodies, fairness, cancellation. Pure: frames in,
//! events and frames out; no I/O, no clock.
//!
//! The end that dialled calls, the other answers. Guarantees:
//! - a body's bytes arrive in order and complete, or the stream fails;
//! - at most the granted window of a body is on the way; small frames go before data, and the data of
//!   several streams take turns, one data frame each;
//! - what the peer must never do is a [`Violation`], after which the connection has to be closed;
//! - frames about a stream that has just ended are ignored: they crossed its end on the way.
//!
//! The window of a body starts at what the greeting said and is raised as the body is read: the
//! connection's budget is shared among the bodies that are arriving, so one alone can fill a long fat
//! line and many together cannot fill the memory.

use crate::frame::{Follows, Frame, HEADER, Request};
use crate::limits::MAX_WAITING_PONGS;
use bytes::Bytes;
use hayloft_common::map::HashMap;
use std::collections::VecDeque;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Caller,
    Answerer,
}

/// What both ends are held to.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Window of a body when it starts: ours when we receive, the peer's when we send.
    pub window_in: u32,
    pub window_out: u32,
    /// Bytes granted to all arriving bodies together, beyond their first windows.
    pub budget: u32,
    /// Data frames are cut to this.
    pub data_frame: u32,
    /// Calls in flight: that we may have as caller, that we allow as answerer.
    pub max_streams: u32,
}

/// Something for the layer above.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// (answerer) A call came in.
    Request { stream: u32, request: Request },
    /// (answerer) The caller gave up: drop the work.
    Cancelled { stream: u32 },
    /// (caller) The answer's head; without a body the stream is over.
    Response { stream: u32, error: bool, body: Option<Follows>, head: Bytes },
    /// A piece of the body that arrives on `stream`.
    Data { stream: u32, end: bool, bytes: Bytes },
    /// (caller) The answer's body failed at the peer; the stream is over.
    Failed { stream: u32, reason: Bytes },
    /// The answer to [`Conn::ping`].
    Pong(u64),
    /// The peer wants no new calls here.
    GoAway { code: u8, reason: Bytes },
}

/// What the peer must never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("protocol violation: {0} frame not allowed now (stream {1})")]
    Unexpected(&'static str, u32),
    #[error("protocol violation: stream {0} used again or out of order")]
    StreamOrder(u32),
    #[error("protocol violation: more than {0} calls in flight")]
    TooManyStreams(u32),
    #[error("protocol violation: more data than granted on stream {0}")]
    WindowExceeded(u32),
    #[error("protocol violation: absurd credit on stream {0}")]
    Credit(u32),
    #[error("protocol violation: flood of pings")]
    PingFlood,
}

#[derive(Debug)]
struct OutBody {
    credit: u64,
    queue: VecDeque<Bytes>,
    /// The end is queued: nothing more will be pushed.
    ended: bool,
    /// Stands in `ready`.
    ready: bool,
}

#[derive(Debug)]
struct InBody {
    /// Bytes the peer may still send.
    window: u64,
    /// Bytes received and not read yet.
    unread: u64,
    /// Bytes still to come, if the length was declared.
    left: Option<u64>,
}

#[derive(Debug, Default)]
struct Stream {
    outgoing: Option<OutBody>,
    incoming: Option<InBody>,
    /// The answer's head is through: received (caller) or sent (answerer).
    answered: bool,
}

/// One connection's state.
#[derive(Debug)]
pub struct Conn {
    end: End,
    settings: Settings,
    streams: HashMap<u32, Stream>,
    last_stream: u32,
    arriving: u32,
    small: VecDeque<Frame>,
    small_bytes: usize,
    ready: VecDeque<u32>,
    wanted: VecDeque<u32>,
    pongs: usize,
    finished: Vec<u32>,
}

/// More credit than any sane peer grants for one stream.
const CREDIT_CAP: u64 = 1 << 40;

impl Conn {
    pub fn new(end: End, settings: Settings) -> Self {
        Self {
            end,
            settings,
            streams: HashMap::default(),
            last_stream: 0,
            arriving: 0,
            small: VecDeque::new(),
            small_bytes: 0,
            ready: VecDeque::new(),
            wanted: VecDeque::new(),
            pongs: 0,
            finished: Vec::new(),
        }
    }

    /// Calls in flight.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether the stream is not over yet.
    pub fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// (answerer) A stream that is over; each is told once.
    pub fn next_finished(&mut self) -> Option<u32> {
        self.finished.pop()
    }

    /// Bytes of small frames (heads included) that wait to be popped.
    pub fn queued_bytes(&self) -> usize {
        self.small_bytes
    }

    /// (caller) Whether [`Conn::open`] may be called: the peer's limit is not reached and the stream
    /// numbers are not used up.
    pub fn can_open(&self) -> bool {
        self.streams.len() < self.settings.max_streams as usize && !self.is_worn_out()
    }

    /// Whether the stream numbers are used up: time for a new connection.
    pub fn is_worn_out(&self) -> bool {
        self.last_stream >= u32::MAX - 1
    }

    /// (caller) Starts a call and returns its stream. The caller checked [`Conn::can_open`].
    pub fn open(&mut self, request: Request) -> u32 {
        self.last_stream += 1;
        let stream = self.last_stream;
        let outgoing = request.body.map(|_| self.out_body());
        if outgoing.is_some() {
            self.wanted.push_back(stream);
        }
        self.streams.insert(stream, Stream { outgoing, incoming: None, answered: false });
        self.push_small(Frame::Request { stream, request });
        stream
    }

    /// (caller) Gives up a call.
    pub fn cancel(&mut self, stream: u32) {
        if self.remove(stream) {
            self.push_small(Frame::Cancel { stream });
        }
    }

    /// (answerer) Sends the answer's head; with a body, data follow. Ignored if the caller gave up.
    pub fn respond(&mut self, stream: u32, error: bool, body: Option<Follows>, head: Bytes) {
        let outgoing = body.map(|_| self.out_body());
        let Some(state) = self.streams.get_mut(&stream).filter(|s| !s.answered) else { return };
        state.answered = true;
        if outgoing.is_some() {
            state.outgoing = outgoing;
            self.wanted.push_back(stream);
        } else {
            self.remove(stream);
        }
        self.push_small(Frame::Response { stream, error, body, head });
    }

    /// (answerer) Ends the answer's body with a failure. Ignored if the stream is over.
    pub fn fail(&mut self, stream: u32, reason: Bytes) {
        if self.remove(stream) {
            self.push_small(Frame::Fail { stream, reason });
        }
    }

    /// Appends to the body that goes out on `stream`. Ignored if the stream is over.
    pub fn push_data(&mut self, stream: u32, bytes: Bytes, end: bool) {
        let Some(body) = self.streams.get_mut(&stream).and_then(|s| s.outgoing.as_mut()) else { return };
        if body.ended {
            return;
        }
        if !bytes.is_empty() {
            body.queue.push_back(bytes);
        }
        body.ended = end;
        if body.queue.is_empty() && !end {
            self.wanted.push_back(stream);
        } else if !body.ready && (body.queue.is_empty() || body.credit > 0) {
            body.ready = true;
            self.ready.push_back(stream);
        }
    }

    /// A stream whose outgoing body has run dry: push more, or its end.
    pub fn next_wanted(&mut self) -> Option<u32> {
        while let Some(stream) = self.wanted.pop_front() {
            if self.streams.get(&stream).is_some_and(|s| s.outgoing.is_some()) {
                return Some(stream);
            }
        }
        None
    }

    /// `count` bytes of the body arriving on `stream` were read: grants more if it is time.
    pub fn consumed(&mut self, stream: u32, count: u64) {
        let share = u64::from(self.settings.budget) / u64::from(self.arriving.max(1));
        let target = share.max(u64::from(self.settings.window_in));
        let Some(body) = self.streams.get_mut(&stream).and_then(|s| s.incoming.as_mut()) else { return };
        body.unread = body.unread.saturating_sub(count);
        // A quarter at a time: credit frames stay rare, and the line never runs dry.
        let room = target.saturating_sub(body.window + body.unread);
        let useful = body.left.map_or(u64::MAX, |left| left.saturating_sub(body.window));
        let grant = room.min(useful).min(u64::from(u32::MAX));
        if grant > 0 && (room >= target / 4 || body.window == 0) {
            body.window += grant;
            self.push_small(Frame::Credit { stream, bytes: grant as u32 });
        }
    }

    /// Nobody reads the body arriving on `stream` any more. A caller gives up the call; an answerer takes
    /// no more of it and will answer anyway.
    pub fn discard(&mut self, stream: u32) {
        match self.end {
            End::Caller => self.cancel(stream),
            // Without credit the rest stays away; what is on the way is dropped above.
            End::Answerer => {}
        }
    }

    pub fn ping(&mut self, number: u64) {
        self.push_small(Frame::Ping(number));
    }

    pub fn goaway(&mut self, code: u8, reason: Bytes) {
        self.push_small(Frame::GoAway { code, reason });
    }

    /// Takes in a frame of the peer.
    pub fn receive(&mut self, frame: Frame) -> Result<Option<Event>, Violation> {
        match frame {
            Frame::Request { stream, request } => self.receive_request(stream, request).map(Some),
            Frame::Response { stream, error, body, head } => self.receive_response(stream, error, body, head),
            Frame::Data { stream, end, bytes } => self.receive_data(stream, end, bytes),
            Frame::Credit { stream, bytes } => self.receive_credit(stream, bytes).map(|()| None),
            Frame::Cancel { stream } => {
                self.only(End::Answerer, "cancel", stream)?;
                self.was_opened(stream, "cancel")?;
                Ok(self.remove(stream).then_some(Event::Cancelled { stream }))
            }
            Frame::Fail { stream, reason } => {
                self.only(End::Caller, "fail", stream)?;
                self.was_opened(stream, "fail")?;
                match self.streams.get(&stream) {
                    Some(state) if state.incoming.is_none() => Err(Violation::Unexpected("fail", stream)),
                    Some(_) => {
                        self.remove(stream);
                        Ok(Some(Event::Failed { stream, reason }))
                    }
                    None => Ok(None),
                }
            }
            Frame::Ping(number) => {
                self.pongs += 1;
                if self.pongs > MAX_WAITING_PONGS {
                    return Err(Violation::PingFlood);
                }
                self.push_small(Frame::Pong(number));
                Ok(None)
            }
            Frame::Pong(number) => Ok(Some(Event::Pong(number))),
            Frame::GoAway { code, reason } => Ok(Some(Event::GoAway { code, reason })),
        }
    }

    fn receive_request(&mut self, stream: u32, request: Request) -> Result<Event, Violation> {
        self.only(End::Answerer, "request", stream)?;
        if stream <= self.last_stream {
            return Err(Violation::StreamOrder(stream));
        }
        if self.streams.len() >= self.settings.max_streams as usize {
            return Err(Violation::TooManyStreams(self.settings.max_streams));
        }
        self.last_stream = stream;
        self.streams.insert(stream, Stream::default());
        self.start_incoming(stream, request.body);
        Ok(Event::Request { stream, request })
    }

    fn receive_response(
        &mut self,
        stream: u32,
        error: bool,
        body: Option<Follows>,
        head: Bytes,
    ) -> Result<Option<Event>, Violation> {
        self.only(End::Caller, "response", stream)?;
        self.was_opened(stream, "response")?;
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
        if std::mem::replace(&mut state.answered, true) {
            return Err(Violation::Unexpected("response", stream));
        }
        if body.is_some() {
            self.start_incoming(stream, body);
        } else {
            self.remove(stream);
        }
        Ok(Some(Event::Response { stream, error, body, head }))
    }

    fn receive_data(&mut self, stream: u32, end: bool, bytes: Bytes) -> Result<Option<Event>, Violation> {
        self.was_opened(stream, "data")?;
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
        let Some(body) = state.incoming.as_mut() else {
            return Err(Violation::Unexpected("data", stream));
        };
        let count = bytes.len() as u64;
        if count > body.window {
            return Err(Violation::WindowExceeded(stream));
        }
        body.window -= count;
        body.unread += count;
        body.left = body.left.map(|left| left.saturating_sub(count));
        if end {
            match self.end {
                // The answer is complete: nobody waits for the rest of the request's body.
                End::Caller => {
                    self.remove(stream);
                }
                End::Answerer => {
                    state.incoming = None;
                    self.arriving -= 1;
                }
            }
        }
        Ok(Some(Event::Data { stream, end, bytes }))
    }

    fn receive_credit(&mut self, stream: u32, bytes: u32) -> Result<(), Violation> {
        self.was_opened(stream, "credit")?;
        let Some(body) = self.streams.get_mut(&stream).and_then(|s| s.outgoing.as_mut()) else {
            return Ok(());
        };
        body.credit += u64::from(bytes);
        if body.credit > CREDIT_CAP {
            return Err(Violation::Credit(stream));
        }
        if !body.ready && !body.queue.is_empty() && body.credit > 0 {
            body.ready = true;
            self.ready.push_back(stream);
        }
        Ok(())
    }

    /// The next frame to write: small ones first, then the streams' data in turn.
    pub fn pop(&mut self) -> Option<Frame> {
        if let Some(frame) = self.small.pop_front() {
            self.small_bytes -= small_size(&frame);
            self.pongs -= usize::from(matches!(frame, Frame::Pong(_)));
            return Some(frame);
        }
        while let Some(stream) = self.ready.pop_front() {
            let Some(body) = self.streams.get_mut(&stream).and_then(|s| s.outgoing.as_mut()) else {
                continue;
            };
            body.ready = false;
            let bytes = match body.queue.front_mut() {
                Some(_) if body.credit == 0 => continue,
                Some(chunk) => {
                    let most = u64::from(self.settings.data_frame.max(1)).min(body.credit);
                    let count = chunk.len().min(usize::try_from(most).unwrap_or(usize::MAX));
                    let bytes = chunk.split_to(count);
                    body.credit -= count as u64;
                    if chunk.is_empty() {
                        body.queue.pop_front();
                    }
                    bytes
                }
                None if body.ended => Bytes::new(),
                None => continue,
            };
            let end = body.ended && body.queue.is_empty();
            if end {
                self.finish_outgoing(stream);
            } else if body.queue.is_empty() {
                self.wanted.push_back(stream);
            } else if body.credit > 0 {
                body.ready = true;
                self.ready.push_back(stream);
            }
            return Some(Frame::Data { stream, end, bytes });
        }
        None
    }

    fn finish_outgoing(&mut self, stream: u32) {
        match self.end {
            End::Caller => {
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.outgoing = None;
                }
            }
            End::Answerer => {
                self.remove(stream);
            }
        }
    }

    fn out_body(&self) -> OutBody {
        OutBody {
            credit: u64::from(self.settings.window_out),
            queue: VecDeque::new(),
            ended: false,
            ready: false,
        }
    }

    fn start_incoming(&mut self, stream: u32, body: Option<Follows>) {
        let Some(Follows(left)) = body else { return };
        if let Some(state) = self.streams.get_mut(&stream) {
            state.incoming = Some(InBody { window: u64::from(self.settings.window_in), unread: 0, left });
            self.arriving += 1;
            self.consumed(stream, 0);
        }
    }

    fn remove(&mut self, stream: u32) -> bool {
        let Some(state) = self.streams.remove(&stream) else { return false };
        self.arriving -= u32::from(state.incoming.is_some());
        if self.end == End::Answerer {
            self.finished.push(stream);
        }
        true
    }

    fn push_small(&mut self, frame: Frame) {
        self.small_bytes += small_size(&frame);
        self.small.push_back(frame);
    }

    fn only(&self, end: End, what: &'static str, stream: u32) -> Result<(), Violation> {
        if self.end == end { Ok(()) } else { Err(Violation::Unexpected(what, stream)) }
    }

    fn was_opened(&self, stream: u32, what: &'static str) -> Result<(), Violation> {
        if stream <= self.last_stream { Ok(()) } else { Err(Violation::Unexpected(what, stream)) }
    }
}

fn small_size(frame: &Frame) -> usize {
    HEADER
        + match frame {
            Frame::Request { request, .. } => request.head.len(),
            Frame::Response { head, .. } => head.len(),
            Frame::Fail { reason, .. } | Frame::GoAway { reason, .. } => reason.len(),
            _ => 0,
        }
}

#[cfg(test)]
#[path = "conn_tests.rs"]
mod tests;
