//! GetObject and HeadObject: conditions, ranges, parts, and the headers of an object.

use super::{Context, empty, set, set_checksum, set_etag};
use crate::domain::{ObjectHead, PartView, Right};
use crate::http::body::ResponseBody;
use crate::http::conditional::{Conditions, Verdict};
use crate::http::date;
use crate::http::range::{self, ByteRange};
use crate::s3::S3Response;
use crate::s3::error::{Code, S3Error, S3Result};
use crate::s3::headers::{date_of, text_of, to_answer};
use crate::s3::request::S3Request;
use futures::StreamExt as _;
use hayloft_common::schema::{Checksum, ChecksumKind};
use http::{HeaderMap, Response, StatusCode};
use std::io;

pub(super) async fn get(cx: Context<'_>) -> S3Result<S3Response> {
    let part = prepare(&cx)?;
    let bucket = cx.bucket(Right::Read).await?;
    let open = cx.gateway.open(&bucket, cx.object_key()?, part).await?;
    let answer = answer_head(&cx.request, &open.head)?;
    let (mut response, Some(bytes)) = answer else { return Ok(answer.0) };
    let len = bytes.end - bytes.start;
    if len > 0 {
        let stream = open.read(bytes).map(|piece| piece.map_err(io::Error::other));
        *response.body_mut() = ResponseBody::sized(stream, len);
    }
    Ok(response)
}

pub(super) async fn head(cx: Context<'_>) -> S3Result<S3Response> {
    let part = prepare(&cx)?;
    let bucket = cx.bucket(Right::Read).await?;
    let head = cx.gateway.head(&bucket, cx.object_key()?, part).await?;
    Ok(answer_head(&cx.request, &head)?.0)
}

/// Checks the parameters; returns the part that is asked for.
fn prepare(cx: &Context<'_>) -> S3Result<Option<u16>> {
    let request = &cx.request;
    request.check_version()?;
    let part = request.part_to_read()?;
    if part.is_some() && request.headers.contains_key("range") {
        let text = "Cannot specify both Range header and partNumber query parameter";
        return Err(S3Error::new(Code::InvalidRequest, text));
    }
    Ok(part)
}

/// The conditions of a request that reads.
pub(super) fn conditions(headers: &HeaderMap, prefix: &str) -> S3Result<Conditions> {
    let name = |end: &str| format!("{prefix}{end}");
    let text = |end: &str| text_of(headers, &name(end)).map(|t| t.map(str::to_owned));
    Ok(Conditions {
        if_match: text("if-match")?,
        if_none_match: text("if-none-match")?,
        if_modified_since: date_of(headers, &name("if-modified-since")),
        if_unmodified_since: date_of(headers, &name("if-unmodified-since")),
    })
}

/// 412 for the condition `name`.
pub(super) fn precondition_failed(name: &str) -> S3Error {
    let text = "At least one of the pre-conditions you specified did not hold";
    S3Error::new(Code::PreconditionFailed, text).with("Condition", name)
}

/// The answer without its body, and the bytes that make it up, if there are to be any.
fn answer_head(
    request: &S3Request,
    head: &ObjectHead,
) -> S3Result<(S3Response, Option<std::ops::Range<u64>>)> {
    let version = &head.version;
    let mut headers = HeaderMap::new();
    set_etag(&mut headers, &version.etag);
    set(&mut headers, "last-modified", &date::http(version.modified_ms));
    let modified_secs = version.modified_ms / 1000;
    match conditions(&request.headers, "")?.judge(&version.etag, modified_secs) {
        Verdict::Proceed => {}
        Verdict::Failed(name) => return Err(precondition_failed(name)),
        Verdict::NotModified => {
            for (name, value) in head.headers() {
                match name.as_str() {
                    "cache-control" => set(&mut headers, "cache-control", value),
                    "expires" => set(&mut headers, "expires", value),
                    _ => {}
                }
            }
            let mut response = empty(StatusCode::NOT_MODIFIED);
            *response.headers_mut() = headers;
            return Ok((response, None));
        }
    }
    to_answer(head.headers(), &request.query, &mut headers)?;
    set(&mut headers, "accept-ranges", "bytes");
    let chosen = choose(request, head, modified_secs)?;
    let (status, bytes) = match chosen {
        None => (StatusCode::OK, 0..version.size),
        Some(range) => {
            let text = format!("bytes {}-{}/{}", range.first, range.last, version.size);
            set(&mut headers, "content-range", &text);
            (StatusCode::PARTIAL_CONTENT, range.first..range.last + 1)
        }
    };
    set(&mut headers, "content-length", &(bytes.end - bytes.start).to_string());
    if let Some(part) = head.part.filter(|p| p.count > 0) {
        set(&mut headers, "x-amz-mp-parts-count", &part.count.to_string());
    }
    if request.headers.contains_key("x-amz-checksum-mode") {
        set_checksums(&mut headers, head, chosen);
    }
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok((response, Some(bytes)))
}

/// The range to send; `None`: everything.
fn choose(request: &S3Request, head: &ObjectHead, modified_secs: u64) -> S3Result<Option<ByteRange>> {
    if let Some(PartView { offset, size, .. }) = head.part {
        // An empty part can't be told in a Content-Range.
        return Ok((size > 0).then(|| ByteRange { first: offset, last: offset + size - 1 }));
    }
    let Some(text) = request.header("range")? else { return Ok(None) };
    let Some(spec) = range::parse(text) else { return Ok(None) };
    if let Some(if_range) = request.header("if-range")? {
        let same = match date::parse_http(if_range) {
            Some(since) => since == modified_secs,
            None => if_range.trim_matches('"') == head.version.etag,
        };
        if !same {
            return Ok(None);
        }
    }
    let size = head.version.size;
    range::resolve(spec, size).map(Some).map_err(|_| {
        S3Error::new(Code::InvalidRange, "The requested range is not satisfiable")
            .with("RangeRequested", text)
            .with("ActualObjectSize", size.to_string())
    })
}

/// The checksum of what is sent: the object's, or the part's. There is none of any other range.
fn set_checksums(headers: &mut HeaderMap, head: &ObjectHead, range: Option<ByteRange>) {
    let Some(detail) = &head.version.detail else { return };
    let whole = range.is_none_or(|r| r.len() == head.version.size);
    if whole && head.part.is_none_or(|p| p.count == 0) {
        return set_checksum(headers, head.checksum(), detail.parts.len());
    }
    let Some(view) = head.part else { return };
    let part = detail.parts.iter().find(|p| p.number == view.number).or_else(|| {
        // Parts may be counted rather than numbered.
        detail.parts.get(usize::from(view.number).wrapping_sub(1))
    });
    if let (Some(sum), Some(value)) = (head.checksum(), part.and_then(|p| p.checksum.as_ref())) {
        let part_sum =
            Checksum { algorithm: sum.algorithm, kind: ChecksumKind::FullObject, value: value.to_vec() };
        set(
            headers,
            crate::s3::checksum::header(sum.algorithm),
            &crate::s3::checksum::encode(&part_sum.value),
        );
        set(headers, "x-amz-checksum-type", crate::s3::checksum::kind_name(sum.kind));
    }
}
