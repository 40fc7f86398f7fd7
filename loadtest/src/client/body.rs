//! Request bodies: bytes in memory, or generated content streamed with bounded memory.

use super::content::Content;
use super::sign::{EMPTY_SHA256, sha256_hex};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// What a request carries.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Bytes in memory, perhaps none.
    Bytes(Bytes),
    /// The bytes `offset..end` of a generated content.
    Content { content: Content, offset: u64, end: u64 },
}

impl Payload {
    /// No body.
    pub fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }

    /// All of `content`.
    pub fn whole(content: Content) -> Self {
        Self::Content { content, offset: 0, end: content.len() }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Content { content, offset, end } => end.min(&content.len()).saturating_sub(*offset),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// SHA-256 in hex, for a signed payload.
    pub fn sha256(&self) -> String {
        match self {
            Self::Bytes(bytes) if bytes.is_empty() => EMPTY_SHA256.to_owned(),
            Self::Bytes(bytes) => sha256_hex(bytes),
            Self::Content { content, offset, end } => content.sha256(*offset, *end),
        }
    }
}

/// A payload being sent.
pub(super) struct SendBody {
    payload: Payload,
    left: u64,
    sent: Option<Arc<AtomicU64>>,
}

impl SendBody {
    /// `sent`, if given, counts the bytes handed to the connection.
    pub(super) fn new(payload: Payload, sent: Option<Arc<AtomicU64>>) -> Self {
        Self { left: payload.len(), payload, sent }
    }
}

impl Body for SendBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let chunk = match &mut self.payload {
            Payload::Bytes(bytes) => std::mem::take(bytes),
            Payload::Content { content, offset, end } => {
                let chunk = content.chunk(*offset, *end);
                *offset += chunk.len() as u64;
                chunk
            }
        };
        self.left -= chunk.len() as u64;
        if let Some(sent) = &self.sent {
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
