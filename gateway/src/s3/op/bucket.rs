//! Buckets: create, look, delete, list.

use super::{Context, acl_response, empty, set, write_owner, xml_response};
use crate::domain::Right;
use crate::http::date;
use crate::s3::S3Response;
use crate::s3::error::{Code, S3Error, S3Result};
use crate::s3::xml::{self, XmlWriter};
use http::StatusCode;

/// Longest body of CreateBucket.
const MAX_BODY: usize = 64 << 10;

pub(super) async fn list(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    let prefix = request.query.get("prefix").unwrap_or_default();
    let after = request.query.get("continuation-token");
    let max = match request.number("max-buckets")? {
        None => usize::MAX,
        Some(n @ 1..=10_000) => n as usize,
        Some(n) => {
            let text = "max-buckets must be between 1 and 10000";
            return Err(S3Error::argument("max-buckets", &n.to_string(), text));
        }
    };
    let buckets = cx.gateway.list_buckets_of(&request.key).await?;
    let mut left = buckets
        .iter()
        .filter(|b| b.name.starts_with(prefix) && after.is_none_or(|a| b.name.as_str() > a))
        .peekable();
    let mut xml = XmlWriter::with_root("ListAllMyBucketsResult");
    write_owner(&mut xml, "Owner", request);
    xml.open("Buckets");
    let mut last = None;
    for bucket in left.by_ref().take(max) {
        xml.open("Bucket")
            .text("Name", &bucket.name)
            .text("CreationDate", &date::iso(bucket.created_ms))
            .text("BucketRegion", &cx.config.auth.region)
            .close("Bucket");
        last = Some(bucket.name.as_str());
    }
    xml.close("Buckets");
    let next = last.filter(|_| left.peek().is_some());
    xml.optional("ContinuationToken", next).optional("Prefix", request.query.get("prefix"));
    xml.close("ListAllMyBucketsResult");
    Ok(xml_response(xml))
}

pub(super) async fn create(mut cx: Context<'_>) -> S3Result<S3Response> {
    let body = cx.request.read_xml(MAX_BODY, false).await?;
    let auth = &cx.config.auth;
    if let Some(constraint) = xml::parse_create_bucket(&body)?
        && constraint != auth.region
        && !auth.extra_regions.contains(&constraint)
    {
        return Err(S3Error::new(
            Code::IllegalLocationConstraintException,
            format!(
                "The {constraint} location constraint is incompatible with this endpoint, whose region is {}.",
                auth.region
            ),
        ));
    }
    let request = &cx.request;
    let bucket = cx.gateway.create_bucket_as(&request.key.id, &request.bucket).await?;
    let mut response = empty(StatusCode::OK);
    set(response.headers_mut(), "location", &format!("/{}", bucket.name));
    Ok(response)
}

pub(super) async fn head(cx: Context<'_>) -> S3Result<S3Response> {
    cx.bucket(Right::Read).await?;
    let mut response = empty(StatusCode::OK);
    set(response.headers_mut(), "x-amz-bucket-region", &cx.config.auth.region);
    Ok(response)
}

pub(super) async fn delete(cx: Context<'_>) -> S3Result<S3Response> {
    let bucket = cx.bucket(Right::Owner).await?;
    cx.gateway.delete_bucket(&bucket).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn location(cx: Context<'_>) -> S3Result<S3Response> {
    cx.bucket(Right::Read).await?;
    let mut xml = XmlWriter::document();
    xml.raw_open("LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"")
        .content(&cx.config.auth.region)
        .close("LocationConstraint");
    Ok(xml_response(xml))
}

/// No versioning was ever configured: what S3 says with an empty element.
pub(super) async fn versioning(cx: Context<'_>) -> S3Result<S3Response> {
    cx.bucket(Right::Read).await?;
    let mut xml = XmlWriter::with_root("VersioningConfiguration");
    xml.close("VersioningConfiguration");
    Ok(xml_response(xml))
}

pub(super) async fn acl(cx: Context<'_>) -> S3Result<S3Response> {
    cx.bucket(Right::Read).await?;
    Ok(acl_response(&cx.request))
}
