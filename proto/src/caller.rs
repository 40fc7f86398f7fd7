//! The calling end of a connection: a task that owns it ([`run`]), and the [`Line`] through which calls
//! reach that task. Dropping a call's future, or the body of its answer, cancels the call at the peer.

use crate::body::{Body, BodyError, Piece};
use crate::conn::{End, Event};
use crate::error::RpcError;
use crate::frame::{Frame, Request};
use crate::greet::Greeted;
use crate::hello::Agreed;
use crate::limits::Limits;
use crate::link::{Call, Command, GOAWAY_VIOLATION, Link, LinkError, Returns, TURNS, follows};
use crate::stats::PeerMeter;
use bytes::Bytes;
use hayloft_common::env::Env;
use hayloft_common::id::NodeId;
use hayloft_common::map::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A live connection as its users see it; cheap to clone. When the last clone is gone and nothing runs,
/// the connection closes.
#[derive(Clone)]
pub(crate) struct Line {
    commands: mpsc::UnboundedSender<Command>,
    state: Arc<LineState>,
    agreed: Agreed,
}

struct LineState {
    next_call: AtomicU64,
    /// No new calls: the connection is lost or the peer is stopping.
    closed: AtomicBool,
}

/// Cancels a call whose future is dropped.
struct CancelOnDrop<'a> {
    commands: &'a mpsc::UnboundedSender<Command>,
    number: u64,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            // A closed connection has nothing to cancel.
            let _ = self.commands.send(Command::CancelCall(self.number));
        }
    }
}

impl Line {
    pub(crate) fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Acquire)
    }

    /// Sends a call and waits for its answer; the deadline is the caller's to keep. `measured`: its
    /// duration counts as the peer's latency.
    pub(crate) async fn call(
        &self,
        mut request: Request,
        body: Body,
        measured: bool,
    ) -> Result<(Bytes, Body), RpcError> {
        let cap = self.agreed.params.max_head as usize;
        if request.head.len() > cap {
            return Err(RpcError::bad_request(format!(
                "request head of {} bytes, the peer takes up to {cap}",
                request.head.len()
            )));
        }
        request.body = follows(&body);
        let body = request.body.is_some().then_some(body);
        let (reply, answer) = oneshot::channel();
        let number = self.state.next_call.fetch_add(1, Ordering::Relaxed);
        let call = Call { number, request, body, reply, measured };
        if self.commands.send(Command::Call(Box::new(call))).is_err() {
            return Err(RpcError::Unreachable { sent: false, reason: "the connection closed".into() });
        }
        let mut guard = CancelOnDrop { commands: &self.commands, number, armed: true };
        let answer = answer.await;
        guard.armed = false;
        answer.unwrap_or_else(|_| Err(RpcError::lost("the connection closed")))
    }
}

/// A call that was sent.
struct Pending {
    number: u64,
    reply: Option<oneshot::Sender<Result<(Bytes, Body), RpcError>>>,
    /// Where the body of the answer goes.
    arriving: Option<mpsc::UnboundedSender<Piece>>,
    sent: Duration,
    measured: bool,
}

struct Caller {
    link: Link,
    state: Closer,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// For the bodies of answers; weak, so that only users keep the connection open.
    commands: mpsc::WeakUnboundedSender<Command>,
    calls: HashMap<u32, Pending>,
    /// Calls for which the peer's limit of streams leaves no room yet.
    waiting: VecDeque<Box<Call>>,
    limits: Arc<Limits>,
    peer: NodeId,
    stopping: bool,
    /// Tells the keeper to make another connection.
    ended: Option<oneshot::Sender<LinkError>>,
}

/// Starts the task of a connection. The receiver hears when the connection takes no more calls, and why;
/// what runs then is still finished if the connection lives.
pub(crate) fn start(
    env: &Env,
    greeted: Greeted,
    limits: Arc<Limits>,
    meter: Option<Arc<PeerMeter>>,
) -> (Line, oneshot::Receiver<LinkError>) {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (ended, end) = oneshot::channel();
    let state = Arc::new(LineState { next_call: AtomicU64::new(0), closed: AtomicBool::new(false) });
    let Greeted { stream, peer, agreed } = greeted;
    let link = Link::new(env.clone(), stream, End::Caller, &agreed, limits.clone(), meter);
    let caller = Caller {
        link,
        state: Closer(state.clone()),
        inbox,
        commands: commands.downgrade(),
        calls: HashMap::default(),
        waiting: VecDeque::new(),
        limits,
        peer,
        stopping: false,
        ended: Some(ended),
    };
    env.spawn("rpc caller", caller.run());
    (Line { commands, state, agreed }, end)
}

/// Marks the connection closed even if its task is dropped in the middle (a simulated crash).
struct Closer(Arc<LineState>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
    }
}

impl Caller {
    async fn run(mut self) {
        if let Some(meter) = &self.link.meter {
            meter.link_up(self.link.env.now());
        }
        let mut frames = Vec::new();
        let why = std::future::poll_fn(|cx| self.poll(cx, &mut frames)).await;
        self.state.0.closed.store(true, Ordering::Release);
        if let Some(meter) = &self.link.meter {
            meter.link_down();
        }
        self.fail_all(&why.to_string());
        if why.is_violation() {
            tracing::warn!(peer = %self.peer, error = %why, "closing a connection: the peer broke the protocol");
        }
        let farewell = why.farewell();
        self.tell(why);
        self.link.close(farewell).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>, frames: &mut Vec<Frame>) -> Poll<LinkError> {
        match self.poll_all(cx, frames) {
            Ok(()) => Poll::Pending,
            Err(why) => Poll::Ready(why),
        }
    }

    /// Does everything that can be done now, in turns, until nothing moves.
    fn poll_all(&mut self, cx: &mut Context<'_>, frames: &mut Vec<Frame>) -> Result<(), LinkError> {
        self.link.poll_timer(cx)?;
        for _ in 0..TURNS {
            let mut moved = self.poll_inbox(cx)?;
            if let Poll::Ready(read) = self.link.poll_frames(cx, frames) {
                // Frames that came before the end count.
                for frame in frames.drain(..) {
                    if let Some(event) = self.link.conn.receive(frame)? {
                        self.on_event(event);
                    }
                }
                read?;
                moved = true;
            }
            self.admit();
            moved |= self.link.poll_bodies(cx);
            while let Some((stream, error)) = self.link.take_failed() {
                self.source_failed(stream, error);
                moved = true;
            }
            moved |= self.link.poll_write(cx)?;
            if self.stopping && self.calls.is_empty() && self.waiting.is_empty() {
                return Err(LinkError::Done);
            }
            if !moved {
                return Ok(());
            }
        }
        // There is more to do, but other tasks want the thread too.
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        let mut moved = false;
        while let Poll::Ready(command) = self.inbox.poll_recv(cx) {
            // Nobody can call any more, and nobody reads an answer.
            let Some(command) = command else { return Err(LinkError::Done) };
            self.on_command(command);
            moved = true;
        }
        Ok(moved)
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Call(call) => {
                let queued = self.link.conn.queued_bytes() + call.request.head.len();
                if self.waiting.len() >= self.limits.max_queued_calls {
                    refuse(*call, format!("{} calls wait for this peer", self.waiting.len()));
                } else if queued > self.limits.max_queued_bytes {
                    refuse(*call, format!("{queued} bytes wait to be sent to this peer"));
                } else {
                    self.waiting.push_back(call);
                }
            }
            Command::CancelCall(number) => {
                self.waiting.retain(|call| call.number != number);
                let found = self.calls.iter().find(|(_, call)| call.number == number);
                if let Some(stream) = found.map(|(stream, _)| *stream) {
                    self.cancel(stream);
                }
            }
            Command::Consumed { stream, bytes } => self.link.conn.consumed(stream, u64::from(bytes)),
            Command::BodyDropped { stream } => self.cancel(stream),
            Command::Stop => self.stopping = true,
            // Only the answering end gets these.
            Command::Respond { .. } | Command::Cut => {}
        }
    }

    /// Sends waiting calls while the peer has room for them.
    fn admit(&mut self) {
        while !self.waiting.is_empty() && self.link.conn.can_open() {
            let Some(call) = self.waiting.pop_front() else { return };
            if call.reply.is_closed() {
                continue;
            }
            self.link.probe();
            let Call { number, request, body, reply, measured } = *call;
            let stream = self.link.conn.open(request);
            if let Some(body) = body {
                self.link.send_body(stream, body);
            }
            let sent = self.link.env.now();
            self.calls.insert(stream, Pending { number, reply: Some(reply), arriving: None, sent, measured });
        }
        if self.link.conn.is_worn_out() {
            self.retire();
        }
    }

    fn tell(&mut self, why: LinkError) {
        if let Some(ended) = self.ended.take() {
            // Nobody may be waiting for the end.
            let _ = ended.send(why);
        }
    }

    /// Takes no new calls; what runs is finished.
    fn retire(&mut self) {
        self.stopping = true;
        self.tell(LinkError::Closed);
        self.state.0.closed.store(true, Ordering::Release);
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Response { stream, error, body, head } => {
                let Some(call) = self.calls.get_mut(&stream) else { return };
                if let (true, Some(meter)) = (call.measured, &self.link.meter) {
                    meter.call_took(self.link.env.now().saturating_sub(call.sent));
                }
                let Some(reply) = call.reply.take() else { return };
                let answer = if error {
                    Err(RpcError::decode(&head)
                        .unwrap_or_else(|e| RpcError::internal(format!("unreadable error: {e}"))))
                } else {
                    match (body, self.commands.upgrade()) {
                        (Some(follows), Some(commands)) => {
                            let returns = Returns::new(commands, stream, self.limits.stream_window);
                            let (pieces, body) = Body::from_peer(follows.0, returns);
                            call.arriving = Some(pieces);
                            Ok((head, body))
                        }
                        _ => Ok((head, Body::empty())),
                    }
                };
                // A caller that went away has cancelled, or its body does when dropped here.
                let _ = reply.send(answer);
                if body.is_none() {
                    self.finish(stream);
                }
            }
            Event::Data { stream, end, bytes } => {
                if let Some(pieces) = self.calls.get(&stream).and_then(|call| call.arriving.as_ref()) {
                    // A reader that went away has cancelled.
                    let _ = pieces.send(Piece::Data(bytes));
                    if end {
                        let _ = pieces.send(Piece::End);
                    }
                }
                if end {
                    self.finish(stream);
                }
            }
            Event::Failed { stream, reason } => {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                if let Some(pieces) = self.calls.get(&stream).and_then(|call| call.arriving.as_ref()) {
                    let _ = pieces.send(Piece::Error(BodyError::Failed(reason)));
                }
                self.finish(stream);
            }
            Event::Pong(number) => self.link.pong(number),
            Event::GoAway { code, reason } => {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                if code == GOAWAY_VIOLATION {
                    tracing::warn!(peer = %self.peer, reason, "the peer closes the connection: it says we broke the protocol");
                }
                self.retire();
            }
            // The connection state hands these to the answering end only.
            Event::Request { .. } | Event::Cancelled { .. } => {}
        }
    }

    fn finish(&mut self, stream: u32) {
        self.calls.remove(&stream);
        self.link.drop_body(stream);
    }

    fn cancel(&mut self, stream: u32) {
        self.link.conn.cancel(stream);
        self.finish(stream);
    }

    /// The body of a request cannot be read: the call makes no sense any more.
    fn source_failed(&mut self, stream: u32, error: BodyError) {
        if let Some(call) = self.calls.get_mut(&stream) {
            if let Some(reply) = call.reply.take() {
                let _ = reply.send(Err(error.into()));
            } else if let Some(pieces) = &call.arriving {
                let _ = pieces.send(Piece::Error(error));
            }
        }
        self.cancel(stream);
    }

    fn fail_all(&mut self, reason: &str) {
        for call in self.waiting.drain(..) {
            let _ = call.reply.send(Err(RpcError::Unreachable { sent: false, reason: reason.into() }));
        }
        for (_, call) in self.calls.drain() {
            if let Some(reply) = call.reply {
                let _ = reply.send(Err(RpcError::lost(reason)));
            } else if let Some(pieces) = call.arriving {
                let _ = pieces.send(Piece::Error(BodyError::Disconnected(reason.into())));
            }
        }
    }
}

fn refuse(call: Call, what: String) {
    // A caller that went away needs no answer.
    let _ = call.reply.send(Err(RpcError::Overloaded { what }));
}
