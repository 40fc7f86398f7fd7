//! The body of a call: a stream of byte chunks, of known length or not.
//!
//! Guarantees: chunks arrive in order; a body that ends early, late (against its declared length), or
//! because its source vanished ends with an error, never silently short. Chunks are passed by reference
//! count. A body coming from a peer returns credit as it is read, and tells the peer to stop when dropped.

use crate::error::{RemoteCode, RpcError};
use crate::link::Returns;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// Chunks that a [`BodySender`] may be ahead of the reader.
const CHANNEL_CHUNKS: usize = 4;

/// Why a body cannot be read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body's source stopped before its end")]
    Truncated,
    #[error("the body's source failed: {0}")]
    Failed(String),
    #[error("the connection broke in the middle of the body: {0}")]
    Disconnected(String),
    #[error("the body has {got} bytes or more, its declared length is {declared}")]
    WrongLength { declared: u64, got: u64 },
    #[error("the body is longer than the {limit} bytes allowed here")]
    TooLong { limit: usize },
}

impl From<BodyError> for RpcError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Disconnected(reason) => Self::lost(reason),
            other => Self::remote(RemoteCode::BodyFailed, other.to_string()),
        }
    }
}

/// The reader is gone: nobody wants the rest of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads this body any more")]
pub struct BodyClosed;

#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    End,
    Error(BodyError),
}

enum Source {
    Chunks(VecDeque<Bytes>),
    Channel(mpsc::Receiver<Piece>),
    Peer { pieces: mpsc::UnboundedReceiver<Piece>, returns: Returns },
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>),
    Done,
}

/// A stream of byte chunks; see the module.
pub struct Body {
    source: Source,
    length: Option<u64>,
    seen: u64,
}

impl Body {
    /// No bytes at all.
    pub fn empty() -> Self {
        Self::new(Source::Done, Some(0))
    }

    fn new(source: Source, length: Option<u64>) -> Self {
        Self { source, length, seen: 0 }
    }

    /// All of `chunks`, one after the other.
    pub fn from_chunks(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        let chunks: VecDeque<Bytes> = chunks.into_iter().filter(|c| !c.is_empty()).collect();
        let length = chunks.iter().map(|c| c.len() as u64).sum();
        if length == 0 { Self::empty() } else { Self::new(Source::Chunks(chunks), Some(length)) }
    }

    /// What `stream` gives, `length` bytes if known.
    pub fn from_stream(
        length: Option<u64>,
        stream: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
    ) -> Self {
        Self::new(Source::Stream(Box::pin(stream)), length)
    }

    /// A body that is written elsewhere; the writer waits when it is some chunks ahead.
    pub fn channel(length: Option<u64>) -> (BodySender, Self) {
        let (tx, rx) = mpsc::channel(CHANNEL_CHUNKS);
        (BodySender(tx), Self::new(Source::Channel(rx), length))
    }

    pub(crate) fn from_peer(length: Option<u64>, returns: Returns) -> (mpsc::UnboundedSender<Piece>, Self) {
        let (tx, pieces) = mpsc::unbounded_channel();
        (tx, Self::new(Source::Peer { pieces, returns }, length))
    }

    /// The declared length in bytes, if known.
    pub fn len(&self) -> Option<u64> {
        self.length
    }

    /// Whether it is known to hold nothing.
    pub fn is_empty(&self) -> bool {
        self.length == Some(0)
    }

    /// The next chunk (never empty); `None` at the proper end. After an error only `None` follows.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// The whole body in one piece, copied only if it came in several. Longer than `limit` is an error.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, BodyError> {
        if self.length.is_some_and(|length| length > limit as u64) {
            return Err(BodyError::TooLong { limit });
        }
        let Some(first) = self.next().await else { return Ok(Bytes::new()) };
        let first = first?;
        let Some(second) = self.next().await else {
            return if first.len() > limit { Err(BodyError::TooLong { limit }) } else { Ok(first) };
        };
        let expected = self.length.map_or(0, |length| usize::try_from(length).unwrap_or(0));
        let mut all = BytesMut::with_capacity(expected.max(first.len()));
        all.extend_from_slice(&first);
        let mut chunk = second?;
        loop {
            if all.len() + chunk.len() > limit {
                return Err(BodyError::TooLong { limit });
            }
            all.extend_from_slice(&chunk);
            match self.next().await {
                Some(next) => chunk = next?,
                None => return Ok(all.freeze()),
            }
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let piece = match &mut self.source {
            Source::Done => return Poll::Ready(None),
            Source::Chunks(chunks) => return Poll::Ready(chunks.pop_front().map(Ok)),
            Source::Stream(stream) => return stream.as_mut().poll_next(cx),
            Source::Channel(rx) => ready!(rx.poll_recv(cx)),
            Source::Peer { pieces, returns } => {
                let piece = ready!(pieces.poll_recv(cx));
                match &piece {
                    Some(Piece::Data(bytes)) => returns.consumed(bytes.len()),
                    _ => returns.finished(),
                }
                piece
            }
        };
        Poll::Ready(match piece {
            Some(Piece::Data(bytes)) => Some(Ok(bytes)),
            Some(Piece::End) => None,
            Some(Piece::Error(error)) => Some(Err(error)),
            None => Some(Err(BodyError::Truncated)),
        })
    }

    /// Whether everything was handed out for certain, so that the end need not be asked for.
    pub(crate) fn is_drained(&self) -> bool {
        match &self.source {
            Source::Chunks(chunks) => chunks.is_empty(),
            Source::Done => true,
            _ => false,
        }
    }

    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let item = match ready!(self.poll_source(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => {
                    self.seen += bytes.len() as u64;
                    match self.length {
                        Some(declared) if self.seen > declared => {
                            Some(Err(BodyError::WrongLength { declared, got: self.seen }))
                        }
                        _ => Some(Ok(bytes)),
                    }
                }
                Some(Err(error)) => Some(Err(error)),
                None => match self.length {
                    Some(declared) if self.seen < declared && !matches!(self.source, Source::Done) => {
                        Some(Err(BodyError::WrongLength { declared, got: self.seen }))
                    }
                    _ => None,
                },
            };
            if !matches!(item, Some(Ok(_))) {
                self.source = Source::Done;
            }
            return Poll::Ready(item);
        }
    }
}

impl Stream for Body {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_chunk(cx)
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::from_chunks([bytes])
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("length", &self.length).field("seen", &self.seen).finish()
    }
}

/// The writing end of [`Body::channel`]. Dropping it without [`BodySender::finish`] is an error at the
/// reader.
#[derive(Debug)]
pub struct BodySender(mpsc::Sender<Piece>);

impl BodySender {
    /// Hands over a chunk, waiting while the reader is behind.
    pub async fn send(&self, chunk: Bytes) -> Result<(), BodyClosed> {
        self.0.send(Piece::Data(chunk)).await.map_err(|_| BodyClosed)
    }

    /// The proper end.
    pub async fn finish(self) -> Result<(), BodyClosed> {
        self.0.send(Piece::End).await.map_err(|_| BodyClosed)
    }

    /// An end with a reason that the reader will see.
    pub async fn fail(self, reason: impl Into<String>) {
        // If the reader is gone, nobody needs the reason.
        let _ = self.0.send(Piece::Error(BodyError::Failed(reason.into()))).await;
    }

    /// Waits until nobody reads the body any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_sender_is_an_error_not_an_end() {
        let (tx, mut body) = Body::channel(None);
        tx.send(Bytes::from_static(b"ab")).await.unwrap();
        drop(tx);
        assert_eq!(body.next().await, Some(Ok(Bytes::from_static(b"ab"))));
        assert_eq!(body.next().await, Some(Err(BodyError::Truncated)));
        assert_eq!(body.next().await, None);
    }

    #[tokio::test]
    async fn a_finished_body_is_collected_whole() {
        let (tx, body) = Body::channel(Some(4));
        tx.send(Bytes::from_static(b"ab")).await.unwrap();
        tx.send(Bytes::from_static(b"cd")).await.unwrap();
        tx.finish().await.unwrap();
        assert_eq!(body.collect(4).await.unwrap(), "abcd");
    }

    #[tokio::test]
    async fn too_short_and_too_long_bodies_are_errors() {
        let (tx, body) = Body::channel(Some(3));
        tx.send(Bytes::from_static(b"ab")).await.unwrap();
        tx.finish().await.unwrap();
        assert_eq!(body.collect(10).await, Err(BodyError::WrongLength { declared: 3, got: 2 }));
        let (tx, body) = Body::channel(Some(1));
        tx.send(Bytes::from_static(b"ab")).await.unwrap();
        tx.finish().await.unwrap();
        assert_eq!(body.collect(10).await, Err(BodyError::WrongLength { declared: 1, got: 2 }));
        let (tx, body) = Body::channel(Some(1));
        tx.finish().await.unwrap();
        assert_eq!(body.collect(10).await, Err(BodyError::WrongLength { declared: 1, got: 0 }));
    }

    #[tokio::test]
    async fn collect_keeps_its_limit() {
        let limit = Err(BodyError::TooLong { limit: 3 });
        assert_eq!(Body::from(vec![0; 4]).collect(3).await, limit);
        let chunks = [Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"cd"))];
        assert_eq!(Body::from_stream(None, futures::stream::iter(chunks)).collect(3).await, limit);
        assert_eq!(Body::from(vec![7; 3]).collect(3).await.unwrap(), vec![7; 3]);
        assert_eq!(Body::empty().collect(0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_failure_reason_reaches_the_reader_and_a_gone_reader_the_writer() {
        let (tx, mut body) = Body::channel(None);
        tx.fail("disk on fire").await;
        assert_eq!(body.next().await, Some(Err(BodyError::Failed("disk on fire".into()))));
        let (tx, body) = Body::channel(None);
        drop(body);
        assert_eq!(tx.send(Bytes::from_static(b"x")).await, Err(BodyClosed));
    }
}
