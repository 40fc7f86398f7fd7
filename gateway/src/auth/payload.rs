//! The body as it was signed: decoded and verified while it streams.
//!
//! The stream it makes ends without an error only if the whole payload came and is what was signed. Memory:
//! one piece of the network's.

use super::chunked::{ChunkDecoder, ChunkError, ChunkSigner};
use crate::domain::{Body, BodyError, BodyFault};
use crate::http::body::{ReadError, RequestBody};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::Stream;
use sha2::{Digest as _, Sha256};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

/// How the payload was signed (`x-amz-content-sha256`).
#[derive(Debug, Clone)]
pub enum Payload {
    /// Its SHA-256 is part of the signature.
    Hashed([u8; 32]),
    /// Not at all.
    Unsigned,
    /// In the aws-chunked encoding; `signer` checks each chunk. With trailers if `trailers`.
    Chunked { signer: Option<ChunkSigner>, trailers: bool },
}

impl Payload {
    /// Whether the body is in the aws-chunked encoding.
    pub fn is_chunked(&self) -> bool {
        matches!(self, Self::Chunked { .. })
    }
}

/// Where a checksum that comes as a trailer goes.
#[derive(Debug, Clone)]
pub struct TrailerSink {
    /// The trailer's name, in lower case.
    pub name: &'static str,
    /// Bytes of the digest.
    pub digest_len: usize,
    pub slot: Arc<OnceLock<Vec<u8>>>,
}

/// Wraps a request's body. `length` is the payload's length, needed if it is chunked; `trailer` is the one
/// trailer that was announced.
pub fn verified(raw: RequestBody, payload: Payload, length: u64, trailer: Option<TrailerSink>) -> Body {
    let check = match payload {
        Payload::Unsigned => Check::None,
        Payload::Hashed(expected) => Check::Hash(Box::default(), expected),
        Payload::Chunked { signer, trailers } => {
            let announced = trailers.then(|| trailer.iter().map(|t| t.name.to_owned()).collect());
            Check::Chunks(Box::new(ChunkDecoder::new(signer, announced, length)))
        }
    };
    Box::pin(Verified { raw, check, pending: Bytes::new(), trailer, over: false })
}

enum Check {
    None,
    Hash(Box<Sha256>, [u8; 32]),
    Chunks(Box<ChunkDecoder>),
}

struct Verified {
    raw: RequestBody,
    check: Check,
    /// Read from the network, not yet decoded.
    pending: Bytes,
    trailer: Option<TrailerSink>,
    over: bool,
}

impl Verified {
    fn end(&mut self) -> Result<(), BodyError> {
        match std::mem::replace(&mut self.check, Check::None) {
            Check::None => Ok(()),
            Check::Hash(hash, expected) => {
                if hash.finalize()[..] == expected {
                    return Ok(());
                }
                let reason = "the provided 'x-amz-content-sha256' header does not match what was computed";
                Err(fault(BodyFault::BadPayloadHash, reason))
            }
            Check::Chunks(decoder) => {
                let trailers = decoder.finish().map_err(|e| chunk_fault(&e))?;
                let Some(sink) = &self.trailer else { return Ok(()) };
                let value = trailers.iter().find(|(name, _)| name == sink.name).map(|(_, v)| v.as_str());
                let digest = value
                    .and_then(|v| BASE64.decode(v).ok())
                    .filter(|digest| digest.len() == sink.digest_len)
                    .ok_or_else(|| fault(BodyFault::Malformed, "the checksum in the trailer is malformed"))?;
                // Set once: this is the end of the one body.
                let _ = sink.slot.set(digest);
                Ok(())
            }
        }
    }

    fn decode(&mut self) -> Result<Option<Bytes>, BodyError> {
        match &mut self.check {
            Check::None => {}
            Check::Hash(hash, _) => hash.update(&self.pending),
            Check::Chunks(decoder) => {
                return decoder.decode(&mut self.pending).map_err(|e| chunk_fault(&e));
            }
        }
        let data = std::mem::take(&mut self.pending);
        Ok((!data.is_empty()).then_some(data))
    }
}

impl Stream for Verified {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let error = loop {
            match this.decode() {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(None) => {}
                Err(error) => break error,
            }
            match ready!(this.raw.as_mut().poll_next(cx)) {
                Some(Ok(data)) => this.pending = data,
                Some(Err(error)) => break read_fault(&error),
                None => match this.end() {
                    Ok(()) => {
                        this.over = true;
                        return Poll::Ready(None);
                    }
                    Err(error) => break error,
                },
            }
        };
        this.over = true;
        Poll::Ready(Some(Err(error)))
    }
}

fn fault(fault: BodyFault, reason: &str) -> BodyError {
    BodyError { fault, reason: reason.to_owned() }
}

fn read_fault(error: &ReadError) -> BodyError {
    let kind = match error {
        ReadError::Stalled(_) => BodyFault::TooSlow,
        ReadError::Broken(_) => BodyFault::Incomplete,
    };
    fault(kind, &error.to_string())
}

fn chunk_fault(error: &ChunkError) -> BodyError {
    let kind = match error {
        ChunkError::Malformed(_) => BodyFault::Malformed,
        ChunkError::BadSignature => BodyFault::BadSignature,
        ChunkError::TooLong => BodyFault::TooLarge,
        ChunkError::Incomplete => BodyFault::Incomplete,
    };
    fault(kind, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt as _, stream};

    async fn read(
        pieces: &'static [&'static str],
        payload: Payload,
        length: u64,
        trailer: Option<TrailerSink>,
    ) -> Result<Vec<u8>, BodyFault> {
        let raw = Box::pin(stream::iter(pieces.iter().map(|p| Ok(Bytes::from_static(p.as_bytes())))));
        let mut body = verified(raw, payload, length, trailer);
        let mut out = Vec::new();
        while let Some(piece) = body.next().await {
            out.extend_from_slice(&piece.map_err(|e| e.fault)?);
        }
        assert!(body.next().await.is_none(), "it stays over");
        Ok(out)
    }

    #[tokio::test]
    async fn a_signed_hash_is_verified_at_the_end() {
        let right = Payload::Hashed(Sha256::digest(b"abc").into());
        assert_eq!(read(&["ab", "c"], right.clone(), 3, None).await.unwrap(), b"abc");
        assert_eq!(read(&["ab", "d"], right, 3, None).await, Err(BodyFault::BadPayloadHash));
        assert_eq!(read(&["x"], Payload::Unsigned, 1, None).await.unwrap(), b"x");
    }

    #[tokio::test]
    async fn a_trailer_is_handed_over_before_the_end() {
        let sink = || TrailerSink { name: "x-amz-checksum-crc32", digest_len: 4, slot: Arc::default() };
        let chunked = || Payload::Chunked { signer: None, trailers: true };
        let good = sink();
        let body = &["3\r\na", "bc\r\n0\r\nx-amz-checksum-crc32:AQIDBA==\r\n\r\n"];
        assert_eq!(read(body, chunked(), 3, Some(good.clone())).await.unwrap(), b"abc");
        assert_eq!(good.slot.get().unwrap(), &[1, 2, 3, 4]);
        let short = &["3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AQID\r\n\r\n"];
        assert_eq!(read(short, chunked(), 3, Some(sink())).await, Err(BodyFault::Malformed));
        assert_eq!(read(&["3\r\nabc"], chunked(), 3, Some(sink())).await, Err(BodyFault::Incomplete));
        assert_eq!(read(&["4\r\nabcd"], chunked(), 3, Some(sink())).await, Err(BodyFault::TooLarge));
    }
}
