//! What both ends of a live connection share: reading frames from the stream, writing them in batches,
//! pulling bodies as they are wanted, and noticing silence. The driver of each end ([`crate::caller`],
//! [`crate::server`]) polls it from one task, so there are no locks.
//!
//! Many small frames go out in one write and so in one TLS record; data are written by reference.

use crate::body::{Body, BodyError};
use crate::conn::{Conn, End, Settings, Violation};
use crate::error::RpcError;
use crate::frame::{Decoder, Follows, Frame, FrameError, Outbox, Request};
use crate::hello::{Agreed, Kind};
use crate::limits::{Limits, MAX_DATA_FRAME, MAX_HEAD};
use crate::stats::PeerMeter;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{AbortHandle, Abortable};
use futures::stream::FuturesUnordered;
use hayloft_common::env::{BoxStream, Env};
use hayloft_common::map::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

/// Bytes encoded ahead of the socket: small frames that come later wait behind at most these.
const BATCH_SMALL: usize = 32 << 10;
const BATCH_BULK: usize = 256 << 10;
/// Segments of one write.
const SLICES: usize = 32;
/// Reads in a row before what they brought is handled.
const READS: usize = 8;
/// Rounds of work before a connection's task lets others have the thread.
pub(crate) const TURNS: usize = 4;
/// Time for the last words when a connection closes.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a driver is asked to do by the tasks around it.
pub(crate) enum Command {
    Call(Box<Call>),
    /// The caller of this call number went away.
    CancelCall(u64),
    Respond {
        stream: u32,
        answer: Result<(Bytes, Body), RpcError>,
    },
    Consumed {
        stream: u32,
        bytes: u32,
    },
    BodyDropped {
        stream: u32,
    },
    /// Finish what runs, take nothing new, then close.
    Stop,
    /// Close now.
    Cut,
}

/// A call on its way to a connection.
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) request: Request,
    pub(crate) body: Option<Body>,
    pub(crate) reply: oneshot::Sender<Result<(Bytes, Body), RpcError>>,
    pub(crate) measured: bool,
}

/// How the reader of a body that comes from the peer reports back.
pub(crate) struct Returns {
    commands: mpsc::UnboundedSender<Command>,
    stream: u32,
    read: u32,
    batch: u32,
    over: bool,
}

impl Returns {
    pub(crate) fn new(commands: mpsc::UnboundedSender<Command>, stream: u32, window: u32) -> Self {
        Self { commands, stream, read: 0, batch: window / 8, over: false }
    }

    /// `count` bytes were read; told in batches.
    pub(crate) fn consumed(&mut self, count: usize) {
        self.read = self.read.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if self.read > self.batch {
            // A closed connection needs no credit.
            let _ = self.commands.send(Command::Consumed { stream: self.stream, bytes: self.read });
            self.read = 0;
        }
    }

    /// The body came to an end, good or bad: nothing to stop.
    pub(crate) fn finished(&mut self) {
        self.over = true;
    }
}

impl Drop for Returns {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.commands.send(Command::BodyDropped { stream: self.stream });
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("nothing heard from the peer for {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("closed here")]
    Done,
}

impl LinkError {
    /// Whether the peer broke the protocol.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Violation(_))
    }

    /// The last frame to send.
    pub(crate) fn farewell(&self) -> Frame {
        let code = if self.is_violation() { GOAWAY_VIOLATION } else { GOAWAY_DONE };
        Frame::GoAway { code, reason: self.to_string().into() }
    }
}

enum SourceState {
    Idle(Body),
    Pulling(AbortHandle),
}

/// Takes the next chunk of a body that is being sent.
struct Pull {
    stream: u32,
    body: Option<Body>,
}

type Pulled = (u32, Option<Body>, Option<Result<Bytes, BodyError>>);

impl Future for Pull {
    type Output = Pulled;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Pulled> {
        let item = match &mut self.body {
            Some(body) => std::task::ready!(body.poll_chunk(cx)),
            None => None,
        };
        let body = self.body.take();
        Poll::Ready((self.stream, body, item))
    }
}

/// A live connection; see the module.
pub(crate) struct Link {
    pub(crate) env: Env,
    pub(crate) conn: Conn,
    pub(crate) meter: Option<Arc<PeerMeter>>,
    limits: Arc<Limits>,
    kind: Kind,
    stream: BoxStream,
    decoder: Decoder,
    outbox: Outbox,
    unflushed: bool,
    sources: HashMap<u32, SourceState>,
    pulls: FuturesUnordered<Abortable<Pull>>,
    /// Bodies whose source failed: the driver has to act.
    failed: Vec<(u32, BodyError)>,
    last_heard: Duration,
    last_ping: Duration,
    /// Number and time of the ping that is not answered yet.
    ping: Option<(u64, Duration)>,
    pings: u64,
    timer: Pin<Box<Sleep>>,
}

impl Link {
    pub(crate) fn new(
        env: Env,
        stream: BoxStream,
        end: End,
        agreed: &Agreed,
        limits: Arc<Limits>,
        meter: Option<Arc<PeerMeter>>,
    ) -> Self {
        let settings = Settings {
            window_in: limits.stream_window,
            window_out: agreed.params.stream_window,
            budget: limits.body_budget,
            data_frame: limits.data_frame.min(agreed.params.max_data_frame),
            max_streams: match end {
                End::Caller => agreed.params.max_streams,
                End::Answerer => limits.max_streams,
            },
        };
        let now = env.now();
        let timer = Box::pin(tokio::time::sleep(limits.ping_interval));
        Self {
            conn: Conn::new(end, settings),
            meter,
            kind: agreed.kind,
            stream,
            decoder: Decoder::new(limits.max_head.min(MAX_HEAD), MAX_DATA_FRAME),
            outbox: Outbox::default(),
            unflushed: false,
            sources: HashMap::default(),
            pulls: FuturesUnordered::new(),
            failed: Vec::new(),
            last_heard: now,
            last_ping: now,
            ping: None,
            pings: 0,
            timer,
            limits,
            env,
        }
    }

    /// Sends `body` on `stream` as the peer grants.
    pub(crate) fn send_body(&mut self, stream: u32, body: Body) {
        self.sources.insert(stream, SourceState::Idle(body));
    }

    /// The stream is over: its body is not wanted any more.
    pub(crate) fn drop_body(&mut self, stream: u32) {
        if let Some(SourceState::Pulling(abort)) = self.sources.remove(&stream) {
            abort.abort();
        }
    }

    /// A body whose source failed.
    pub(crate) fn take_failed(&mut self) -> Option<(u32, BodyError)> {
        self.failed.pop()
    }

    /// Frames that arrived, handed to `handle` one by one. Ready(true) if there may be more at once.
    pub(crate) fn poll_frames(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Vec<Frame>,
    ) -> Poll<Result<(), LinkError>> {
        let room = match self.kind {
            Kind::Small => 16 << 10,
            Kind::Bulk => 64 << 10,
        };
        let mut heard = false;
        for _ in 0..READS {
            match poll_read_buf(Pin::new(&mut self.stream), cx, self.decoder.buffer(room)) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(LinkError::Closed)),
                Poll::Ready(Ok(_)) => {
                    heard = true;
                    while let Some(frame) = self.decoder.next_frame()? {
                        frames.push(frame);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending if heard => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        self.last_heard = self.env.now();
        if let Some(meter) = &self.meter {
            meter.heard(self.last_heard);
        }
        Poll::Ready(Ok(()))
    }

    /// A pong came: the round trip is known.
    pub(crate) fn pong(&mut self, number: u64) {
        if let Some((expected, sent)) = self.ping
            && expected == number
        {
            self.ping = None;
            if let Some(meter) = &self.meter {
                meter.round_trip(self.env.now().saturating_sub(sent));
            }
        }
    }

    /// A call goes out: if the line has been quiet, find out at once whether it is alive.
    pub(crate) fn probe(&mut self) {
        let now = self.env.now();
        if self.ping.is_none() && now.saturating_sub(self.last_heard) > self.limits.probe_after {
            self.send_ping(now);
        }
    }

    fn send_ping(&mut self, now: Duration) {
        self.pings += 1;
        self.conn.ping(self.pings);
        self.last_ping = now;
        if self.ping.is_none() {
            self.ping = Some((self.pings, now));
            if let Some(meter) = &self.meter {
                meter.awaiting(now);
            }
        }
    }

    /// Pings on time, and notices a peer that fell silent.
    pub(crate) fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = self.env.now();
            let silence = now.saturating_sub(self.last_heard);
            if silence >= self.limits.dead_after {
                return Err(LinkError::Silent(silence));
            }
            if now.saturating_sub(self.last_ping) >= self.limits.ping_interval {
                // The oldest unanswered ping stays the one that is measured.
                self.send_ping(now);
            }
            // Often enough that neither a ping nor a death is late by more than a third.
            let step = (self.limits.ping_interval / 3).max(Duration::from_millis(1));
            self.timer.as_mut().reset(tokio::time::Instant::now() + step);
        }
        Ok(())
    }

    /// Pulls chunks of the bodies that are wanted. Whether anything moved.
    pub(crate) fn poll_bodies(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            while let Some(stream) = self.conn.next_wanted() {
                match self.sources.remove(&stream) {
                    Some(SourceState::Idle(body)) => {
                        let (abort, registration) = AbortHandle::new_pair();
                        self.pulls.push(Abortable::new(Pull { stream, body: Some(body) }, registration));
                        self.sources.insert(stream, SourceState::Pulling(abort));
                    }
                    // Already being pulled: its chunk answers this want too.
                    Some(pulling) => {
                        self.sources.insert(stream, pulling);
                    }
                    None => {}
                }
            }
            let Poll::Ready(Some(pulled)) = self.pulls.poll_next_unpin(cx) else { return moved };
            let Ok((stream, body, item)) = pulled else { continue };
            if self.sources.remove(&stream).is_none() {
                continue;
            }
            moved = true;
            match item {
                Some(Ok(bytes)) => {
                    let body = body.filter(|body| !body.is_drained());
                    self.conn.push_data(stream, bytes, body.is_none());
                    if let Some(body) = body {
                        self.sources.insert(stream, SourceState::Idle(body));
                    }
                }
                None => self.conn.push_data(stream, Bytes::new(), true),
                Some(Err(error)) => self.failed.push((stream, error)),
            }
        }
    }

    /// Writes what there is. Whether anything moved.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        let batch = match self.kind {
            Kind::Small => BATCH_SMALL,
            Kind::Bulk => BATCH_BULK,
        };
        let mut moved = false;
        loop {
            while self.outbox.len() < batch
                && let Some(frame) = self.conn.pop()
            {
                self.outbox.push(frame);
            }
            if self.outbox.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.outbox.slices(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(LinkError::Closed),
                Poll::Ready(Ok(written)) => {
                    self.outbox.advance(written);
                    self.unflushed = true;
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(moved),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && !self.unflushed && self.conn.queued_bytes() == 0
    }

    /// Says the last words, if the peer can still hear them, and closes.
    pub(crate) async fn close(&mut self, farewell: Frame) {
        self.outbox.push(farewell);
        let last_words = async {
            while !self.outbox.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.outbox.slices(&mut slices);
                let written = self.stream.write_vectored(&slices[..count]).await?;
                if written == 0 {
                    break;
                }
                self.outbox.advance(written);
            }
            self.stream.shutdown().await
        };
        // The peer may be gone: then nobody needs the last words.
        let _ = tokio::time::timeout(FAREWELL, last_words).await;
    }
}

/// Codes of a GoAway frame.
pub(crate) const GOAWAY_DONE: u8 = 0;
pub(crate) const GOAWAY_VIOLATION: u8 = 1;
pub(crate) const GOAWAY_STOPPING: u8 = 2;

/// How a body is announced.
pub(crate) fn follows(body: &Body) -> Option<Follows> {
    if body.is_empty() { None } else { Some(Follows(body.len())) }
}
