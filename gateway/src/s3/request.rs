//! A request of S3 once it is authenticated and routed: typed access to its parameters and its body.

use super::checksum;
use super::error::{Code, S3Error, S3Result};
use super::headers::text_of;
use super::route::Operation;
use crate::auth::payload::{self, Payload, TrailerSink};
use crate::domain::{Body, BodyChecks, DomainError, Expected};
use crate::http::body::RequestBody;
use crate::http::query::Query;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt as _;
use hayloft_common::id::UploadId;
use hayloft_common::limits::{MAX_LIST_PAGE, MAX_PARTS, MAX_PUT_SIZE};
use hayloft_common::schema::KeyRow;
use http::HeaderMap;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use std::sync::Arc;

/// An authenticated request.
pub struct S3Request {
    pub operation: Operation,
    pub key: Arc<KeyRow>,
    /// Empty for requests on the service.
    pub bucket: String,
    /// Empty for requests on a bucket.
    pub object: String,
    /// Without the parameters of a presigned URL.
    pub query: Query,
    /// With the parameters of a presigned URL that stand for headers.
    pub headers: HeaderMap,
    /// `https://host/path`, for `Location`.
    pub url: String,
    pub(super) payload: Payload,
    /// Never locked: the mutex makes the stream `Sync`, so that `&S3Request` may live across an await.
    pub(super) body: Mutex<RequestBody>,
}

impl S3Request {
    /// A header as text.
    pub fn header(&self, name: &str) -> S3Result<Option<&str>> {
        text_of(&self.headers, name)
    }

    /// A query parameter that is a whole number.
    pub fn number(&self, name: &str) -> S3Result<Option<u64>> {
        let Some(text) = self.query.get(name) else { return Ok(None) };
        let valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = valid.then(|| text.parse().ok()).flatten();
        number.map(Some).ok_or_else(|| {
            S3Error::argument(name, text, format!("Provided {name} not an integer or within integer range"))
        })
    }

    /// The size of a page: `name`, at most 1,000.
    pub fn page(&self, name: &str) -> S3Result<usize> {
        let wanted = self.number(name)?.unwrap_or(MAX_LIST_PAGE as u64);
        if wanted > u64::from(i32::MAX as u32) {
            let text = self.query.get(name).unwrap_or_default();
            return Err(S3Error::argument(name, text, format!("Argument {name} must be at most 2147483647")));
        }
        Ok(usize::try_from(wanted).unwrap_or(MAX_LIST_PAGE).min(MAX_LIST_PAGE))
    }

    /// Whether `encoding-type=url` is asked for.
    pub fn url_encoding(&self) -> S3Result<bool> {
        match self.query.get("encoding-type") {
            None | Some("") => Ok(false),
            Some("url") => Ok(true),
            Some(other) => {
                Err(S3Error::argument("encoding-type", other, "Invalid Encoding Method specified in Request"))
            }
        }
    }

    /// `partNumber` of an object that is read.
    pub fn part_to_read(&self) -> S3Result<Option<u16>> {
        let Some(number) = self.number("partNumber")? else { return Ok(None) };
        match u16::try_from(number) {
            Ok(n) if (1..=MAX_PARTS).contains(&n) => Ok(Some(n)),
            _ => Err(self.bad_part_number()),
        }
    }

    /// `partNumber` of a part that is written.
    pub fn part_to_write(&self) -> S3Result<u32> {
        let number = self.number("partNumber")?.ok_or_else(|| self.bad_part_number())?;
        if (1..=u64::from(MAX_PARTS)).contains(&number) {
            return Ok(number as u32);
        }
        Err(self.bad_part_number())
    }

    fn bad_part_number(&self) -> S3Error {
        let text = self.query.get("partNumber").unwrap_or_default();
        S3Error::argument("partNumber", text, "Part number must be an integer between 1 and 10000, inclusive")
    }

    /// `uploadId`; one that we can't have made does not exist.
    pub fn upload_id(&self) -> S3Result<UploadId> {
        let text = self.query.get("uploadId").unwrap_or_default();
        text.parse().map_err(|_| DomainError::NoSuchUpload { upload: text.to_owned() }.into())
    }

    /// Refuses versions that we don't have: all but `null`.
    pub fn check_version(&self) -> S3Result<()> {
        match self.query.get("versionId") {
            None | Some("null") => Ok(()),
            Some(_) => Err(S3Error::not_implemented("version ids other than null")),
        }
    }

    /// The payload's announced length, if it is.
    fn announced_length(&self) -> S3Result<Option<u64>> {
        let name = if self.payload.is_chunked() { "x-amz-decoded-content-length" } else { "content-length" };
        let Some(text) = self.header(name)? else { return Ok(None) };
        let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        number.map(Some).ok_or_else(|| S3Error::argument(name, text, "The length is not a number."))
    }

    fn content_md5(&self) -> S3Result<Option<[u8; 16]>> {
        let Some(text) = self.header("content-md5")? else { return Ok(None) };
        let digest = BASE64.decode(text).ok().and_then(|d| <[u8; 16]>::try_from(d).ok());
        let invalid = || {
            S3Error::new(Code::InvalidDigest, "The Content-MD5 you specified was invalid.")
                .with("Content-MD5", text)
        };
        digest.map(Some).ok_or_else(invalid)
    }

    fn has_trailers(&self) -> bool {
        matches!(self.payload, Payload::Chunked { trailers: true, .. })
    }

    /// What is to be checked of the data of an object or part. Nothing of the body is read.
    pub fn checks(&self) -> S3Result<(BodyChecks, Option<TrailerSink>)> {
        let length = self.announced_length()?.ok_or_else(|| {
            S3Error::new(Code::MissingContentLength, "You must provide the Content-Length HTTP header.")
        })?;
        if length > MAX_PUT_SIZE {
            return Err(DomainError::EntityTooLarge { size: length, max: MAX_PUT_SIZE }.into());
        }
        let sum = checksum::of_body(&self.headers, self.has_trailers())?;
        let checks = BodyChecks { length: Some(length), md5: self.content_md5()?, checksum: sum.request };
        Ok((checks, sum.trailer))
    }

    /// The data of an object or part, verified as it streams.
    pub fn into_body(self, length: u64, trailer: Option<TrailerSink>) -> Body {
        payload::verified(self.body.into_inner(), self.payload, length, trailer)
    }

    /// Reads the whole body, at most `limit` bytes, and verifies it. `digest_needed`: refuse a body that nothing
    /// protects.
    pub async fn read_xml(&mut self, limit: usize, digest_needed: bool) -> S3Result<Vec<u8>> {
        let sum = checksum::of_body(&self.headers, self.has_trailers())?;
        let md5 = self.content_md5()?;
        let is_signed = !matches!(self.payload, Payload::Unsigned | Payload::Chunked { signer: None, .. });
        if digest_needed && md5.is_none() && sum.request.is_none() && !is_signed {
            let text = "Missing required header for this request: Content-MD5 OR x-amz-checksum-*";
            return Err(S3Error::new(Code::MissingContentMD5, text));
        }
        let length = self.announced_length()?;
        if length.is_some_and(|l| l > limit as u64) {
            return Err(too_large(limit));
        }
        if self.payload.is_chunked() && length.is_none() {
            let text = "You must provide the x-amz-decoded-content-length HTTP header.";
            return Err(S3Error::new(Code::MissingContentLength, text));
        }
        let raw = std::mem::replace(self.body.get_mut(), futures::stream::empty().boxed());
        let payload = std::mem::replace(&mut self.payload, Payload::Unsigned);
        let mut body = payload::verified(raw, payload, length.unwrap_or_default(), sum.trailer);
        let mut data = Vec::new();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(DomainError::Body)?;
            if data.len() + piece.len() > limit {
                return Err(too_large(limit));
            }
            data.extend_from_slice(&piece);
        }
        if md5.is_some_and(|expected| Md5::digest(&data)[..] != expected) {
            return Err(DomainError::BadDigest.into());
        }
        if let Some(request) = sum.request {
            let found = checksum::digest(request.algorithm, &data);
            let expected = match request.expected {
                Expected::Value(value) => value,
                Expected::Trailer(slot) => slot.get().cloned().ok_or(DomainError::MissingTrailer)?,
                Expected::Unknown => found.clone(),
            };
            if expected != found {
                return Err(DomainError::BadChecksum {
                    algorithm: request.algorithm,
                    expected: checksum::encode(&expected),
                    found: checksum::encode(&found),
                }
                .into());
            }
        }
        Ok(data)
    }
}

fn too_large(limit: usize) -> S3Error {
    S3Error::malformed_xml(format!("it is longer than {limit} bytes"))
}
