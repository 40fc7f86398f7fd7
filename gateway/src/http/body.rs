//! Bodies: requests as a stream of chunks that stall at most so long, answers as bytes or a stream.
//!
//! Nothing is read before the handler polls: so `Expect: 100-continue` is answered only when the body is
//! wanted, and back-pressure reaches the client. Nothing is buffered here.

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Why a request's body can't be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("no data came for {0} s")]
    Stalled(u64),
    #[error("the client broke off: {0}")]
    Broken(String),
}

/// A request's body: chunks in order, then the end or one error.
pub type RequestBody = BoxStream<'static, Result<Bytes, ReadError>>;

/// The body of a request that hyper received; fails when no data comes for `stall`.
pub fn incoming(body: Incoming, stall: Duration) -> RequestBody {
    Box::pin(IncomingStream { body, stall, timer: Box::pin(tokio::time::sleep(stall)), armed: false })
}

struct IncomingStream {
    body: Incoming,
    stall: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether `timer` runs for the wait that is under way.
    armed: bool,
}

impl Stream for IncomingStream {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => {
                    self.armed = false;
                    match frame {
                        None => return Poll::Ready(None),
                        Some(Err(error)) => {
                            return Poll::Ready(Some(Err(ReadError::Broken(error.to_string()))));
                        }
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                            // Trailers of HTTP itself mean nothing in S3.
                            _ => {}
                        },
                    }
                }
                Poll::Pending => {
                    if !self.armed {
                        let deadline = Instant::now() + self.stall;
                        self.timer.as_mut().reset(deadline);
                        self.armed = true;
                    }
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(ReadError::Stalled(self.stall.as_secs()))));
                }
            }
        }
    }
}

/// An answer's body.
pub enum ResponseBody {
    Empty,
    Full(Bytes),
    /// A stream of exactly `left` more bytes, if that is known. Ending early breaks the connection, so
    /// that the client never takes a cut answer for a whole one.
    Stream {
        stream: BoxStream<'static, io::Result<Bytes>>,
        left: Option<u64>,
    },
}

impl ResponseBody {
    /// A stream of `len` bytes.
    pub fn sized(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static, len: u64) -> Self {
        Self::Stream { stream: Box::pin(stream), left: Some(len) }
    }

    /// Its length in bytes, if known.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream { left, .. } => *left,
        }
    }

    /// Whether it is known to be empty.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}

impl<T: Into<Bytes>> From<T> for ResponseBody {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Stream { stream, left } => match ready!(stream.as_mut().poll_next(cx)) {
                Some(Ok(bytes)) => {
                    if let Some(left) = left {
                        let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                            return Poll::Ready(Some(Err(io::Error::other(
                                "the answer is longer than announced",
                            ))));
                        };
                        *left = rest;
                    }
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None if left.is_some_and(|l| l > 0) => {
                    Poll::Ready(Some(Err(io::Error::other("the answer ended before its announced length"))))
                }
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::BodyExt as _;

    fn stream_of(parts: &'static [&'static str], len: u64) -> ResponseBody {
        ResponseBody::sized(stream::iter(parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes())))), len)
    }

    #[tokio::test]
    async fn a_stream_of_the_announced_length_passes() {
        let body = stream_of(&["ab", "c"], 3);
        assert_eq!(body.len(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
    }

    #[tokio::test]
    async fn a_stream_of_another_length_is_an_error() {
        assert!(stream_of(&["ab"], 3).collect().await.is_err());
        assert!(stream_of(&["ab", "cd"], 3).collect().await.is_err());
    }
}
