//! The answering end of a connection: the task that owns it. Each call gets a task of its own; its permit
//! is held until the answer, body included, has been handed to the socket.

use crate::body::{Body, Piece};
use crate::conn::{End, Event};
use crate::error::{RemoteCode, RpcError};
use crate::frame::{Frame, Request};
use crate::greet::Greeted;
use crate::hello::Agreed;
use crate::limits::MAX_ERROR_TEXT;
use crate::link::{Command, GOAWAY_STOPPING, GOAWAY_VIOLATION, Link, LinkError, Returns, TURNS, follows};
use crate::server::{CallPermit, Gates, Incoming, Shared};
use bytes::Bytes;
use hayloft_common::env::TaskHandle;
use hayloft_common::id::NodeId;
use hayloft_common::map::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// A call that runs or whose answer is being sent.
struct Serving {
    task: TaskHandle,
    arriving: Option<mpsc::UnboundedSender<Piece>>,
    _permit: CallPermit,
}

/// What a connection that breaks leaves behind: nothing. Its handlers are dropped.
impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Answerer<'a> {
    shared: &'a Arc<Shared>,
    link: Link,
    peer: NodeId,
    agreed: Agreed,
    gates: Gates,
    commands: mpsc::UnboundedSender<Command>,
    inbox: mpsc::UnboundedReceiver<Command>,
    calls: HashMap<u32, Serving>,
    stopping: bool,
    cut: bool,
}

/// Serves a connection to its end.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    greeted: Greeted,
    gates: Gates,
    commands: mpsc::UnboundedSender<Command>,
    inbox: mpsc::UnboundedReceiver<Command>,
) -> LinkError {
    let Greeted { stream, peer, agreed } = greeted;
    let link = Link::new(shared.env.clone(), stream, End::Answerer, &agreed, shared.limits.clone(), None);
    let mut answerer = Answerer {
        shared,
        link,
        peer,
        agreed,
        gates,
        commands,
        inbox,
        calls: HashMap::default(),
        stopping: false,
        cut: false,
    };
    let mut frames = Vec::new();
    let why = std::future::poll_fn(|cx| match answerer.poll_all(cx, &mut frames) {
        Ok(()) => Poll::Pending,
        Err(why) => Poll::Ready(why),
    })
    .await;
    let Answerer { mut link, calls, .. } = answerer;
    drop(calls);
    link.close(why.farewell()).await;
    why
}

/// Answers for a handler that panicked, so that its caller need not wait for the deadline.
struct AnswerOnDrop {
    commands: mpsc::UnboundedSender<Command>,
    stream: u32,
    answer: Option<Result<(Bytes, Body), RpcError>>,
}

impl AnswerOnDrop {
    fn finish(mut self, answer: Result<(Bytes, Body), RpcError>) {
        self.answer = Some(answer);
    }
}

impl Drop for AnswerOnDrop {
    fn drop(&mut self) {
        let answer = self.answer.take().unwrap_or_else(|| {
            Err(RpcError::internal("the handler stopped without an answer; see the peer's log"))
        });
        // A closed connection takes no answer.
        let _ = self.commands.send(Command::Respond { stream: self.stream, answer });
    }
}

impl Answerer<'_> {
    /// Does everything that can be done now, in turns, until nothing moves.
    fn poll_all(&mut self, cx: &mut Context<'_>, frames: &mut Vec<Frame>) -> Result<(), LinkError> {
        self.link.poll_timer(cx)?;
        for _ in 0..TURNS {
            let mut moved = false;
            while let Poll::Ready(Some(command)) = self.inbox.poll_recv(cx) {
                self.on_command(command);
                moved = true;
            }
            if let Poll::Ready(read) = self.link.poll_frames(cx, frames) {
                for frame in frames.drain(..) {
                    if let Some(event) = self.link.conn.receive(frame)? {
                        self.on_event(event);
                    }
                }
                read?;
                moved = true;
            }
            moved |= self.link.poll_bodies(cx);
            while let Some((stream, error)) = self.link.take_failed() {
                let mut reason = error.to_string().into_bytes();
                reason.truncate(MAX_ERROR_TEXT);
                self.link.conn.fail(stream, reason.into());
                moved = true;
            }
            moved |= self.link.poll_write(cx)?;
            self.sweep();
            if self.cut {
                return Err(LinkError::Done);
            }
            if self.stopping && self.link.conn.streams() == 0 && self.link.is_flushed() {
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

    /// Forgets calls whose answer is through, or whose caller gave up.
    fn sweep(&mut self) {
        while let Some(stream) = self.link.conn.next_finished() {
            self.calls.remove(&stream);
            self.link.drop_body(stream);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Respond { stream, answer } => self.respond(stream, answer),
            Command::Consumed { stream, bytes } => self.link.conn.consumed(stream, u64::from(bytes)),
            Command::BodyDropped { stream } => {
                self.link.conn.discard(stream);
                if let Some(call) = self.calls.get_mut(&stream) {
                    call.arriving = None;
                }
            }
            Command::Stop => {
                self.stopping = true;
                self.link.conn.goaway(GOAWAY_STOPPING, Bytes::from_static(b"shutting down"));
            }
            Command::Cut => self.cut = true,
            // Only the calling end gets these.
            Command::Call(_) | Command::CancelCall(_) => {}
        }
    }

    fn respond(&mut self, stream: u32, answer: Result<(Bytes, Body), RpcError>) {
        let cap = self.agreed.params.max_head as usize;
        let answer = answer.and_then(|(head, body)| {
            if head.len() <= cap {
                return Ok((head, body));
            }
            let length = head.len();
            tracing::error!(peer = %self.peer, length, cap, "an answer is larger than the peer takes");
            Err(RpcError::internal(format!("answer of {length} bytes, over the limit of {cap}")))
        });
        match answer {
            Ok((head, body)) => {
                let follows = follows(&body);
                self.link.conn.respond(stream, false, follows, head);
                if follows.is_some() && self.link.conn.is_open(stream) {
                    self.link.send_body(stream, body);
                }
            }
            Err(error) => self.link.conn.respond(stream, true, None, error.encode()),
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Request { stream, request } => self.start(stream, request),
            Event::Data { stream, end, bytes } => {
                let Some(call) = self.calls.get_mut(&stream) else { return };
                if let Some(pieces) = &call.arriving {
                    // A handler that went away reads no more.
                    let _ = pieces.send(Piece::Data(bytes));
                    if end {
                        let _ = pieces.send(Piece::End);
                        call.arriving = None;
                    }
                }
            }
            Event::Pong(number) => self.link.pong(number),
            Event::GoAway { code, reason } => {
                if code == GOAWAY_VIOLATION {
                    let reason = String::from_utf8_lossy(&reason).into_owned();
                    tracing::warn!(peer = %self.peer, reason, "the peer closes the connection: it says we broke the protocol");
                }
            }
            // `sweep` drops a cancelled call; the others go to the calling end only.
            Event::Cancelled { .. } | Event::Response { .. } | Event::Failed { .. } => {}
        }
    }

    fn start(&mut self, stream: u32, request: Request) {
        if self.stopping {
            let error = RpcError::remote(RemoteCode::ShuttingDown, "this node is shutting down");
            return self.respond(stream, Err(error));
        }
        let permit = match self.gates.enter() {
            Ok(permit) => permit,
            Err(overloaded) => return self.respond(stream, Err(overloaded)),
        };
        let (arriving, body) = match request.body {
            None => (None, Body::empty()),
            Some(follows) => {
                let window = self.shared.limits.stream_window;
                let returns = Returns::new(self.commands.clone(), stream, window);
                let (pieces, body) = Body::from_peer(follows.0, returns);
                (Some(pieces), body)
            }
        };
        let deadline = Duration::from_millis(u64::from(request.deadline_ms));
        let call = Incoming {
            peer: self.peer,
            peer_role: self.agreed.role,
            protocol: self.agreed.protocol,
            method: request.method,
            head: request.head,
            body,
            deadline,
            trace: request.trace,
        };
        let handler = self.shared.handler.clone();
        let guard = AnswerOnDrop { commands: self.commands.clone(), stream, answer: None };
        let task = self.shared.env.spawn("rpc call", async move {
            let answer = tokio::time::timeout(deadline, handler.handle(call)).await;
            guard.finish(answer.unwrap_or(Err(RpcError::Timeout)));
        });
        self.calls.insert(stream, Serving { task, arriving, _permit: permit });
    }
}
