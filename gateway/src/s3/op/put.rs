//! PutObject.

use super::{Context, empty, set_checksum, set_etag};
use crate::domain::{PutObject, Right};
use crate::s3::S3Response;
use crate::s3::error::S3Result;
use crate::s3::headers;
use http::StatusCode;

pub(super) async fn object(cx: Context<'_>) -> S3Result<S3Response> {
    let key = cx.object_key()?.to_owned();
    let stored = headers::to_store(&cx.request.headers)?;
    let (checks, trailer) = cx.request.checks()?;
    let bucket = cx.bucket(Right::Write).await?;
    // Until here nothing of the body was read: a refusal comes before it (`Expect: 100-continue`).
    let body = cx.request.into_body(checks.length.unwrap_or_default(), trailer);
    let done = cx.gateway.put(PutObject { bucket, key, headers: stored, checks }, body).await?;
    let mut response = empty(StatusCode::OK);
    set_etag(response.headers_mut(), &done.etag);
    set_checksum(response.headers_mut(), done.checksum.as_ref(), 0);
    Ok(response)
}
