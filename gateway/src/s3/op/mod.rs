//! The operations, one function each: parameters in, a call of the domain, an answer out.

mod attributes;
mod bucket;
mod copy;
mod delete;
mod get;
mod list;
mod multipart;
mod put;

pub use copy::{CopySource, parse_copy_source};

use super::error::S3Result;
use super::request::S3Request;
use super::route::Operation;
use super::xml::XmlWriter;
use super::{S3Config, S3Response, checksum};
use crate::domain::{Bucket, DomainError, Gateway, Right};
use crate::http::body::ResponseBody;
use hayloft_common::limits::MAX_OBJECT_KEY;
use hayloft_common::schema::Checksum;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use std::sync::Arc;

/// An operation under way: what every function here works on.
struct Context<'a> {
    gateway: &'a Arc<Gateway>,
    config: &'a S3Config,
    request: S3Request,
}

impl Context<'_> {
    /// The request's bucket, if its key has the right.
    async fn bucket(&self, need: Right) -> Result<Arc<Bucket>, DomainError> {
        self.gateway.authorize(&self.request.key.id, &self.request.bucket, need).await
    }

    /// The object's key, if it is one.
    fn object_key(&self) -> Result<&str, DomainError> {
        let len = self.request.object.len();
        if len > MAX_OBJECT_KEY {
            return Err(DomainError::KeyLength { len });
        }
        Ok(&self.request.object)
    }
}

/// Runs the operation of an authenticated request.
pub(super) async fn run(
    gateway: &Arc<Gateway>,
    config: &S3Config,
    request: S3Request,
) -> S3Result<S3Response> {
    use Operation as O;
    let operation = request.operation;
    let cx = Context { gateway, config, request };
    match operation {
        O::ListBuckets => bucket::list(cx).await,
        O::CreateBucket => bucket::create(cx).await,
        O::HeadBucket => bucket::head(cx).await,
        O::DeleteBucket => bucket::delete(cx).await,
        O::GetBucketLocation => bucket::location(cx).await,
        O::GetBucketVersioning => bucket::versioning(cx).await,
        O::GetBucketAcl => bucket::acl(cx).await,
        O::ListObjects => list::objects_v1(cx).await,
        O::ListObjectsV2 => list::objects_v2(cx).await,
        O::ListMultipartUploads => list::uploads(cx).await,
        O::DeleteObjects => delete::many(cx).await,
        O::GetObject => get::get(cx).await,
        O::HeadObject => get::head(cx).await,
        O::GetObjectAcl => attributes::acl(cx).await,
        O::GetObjectAttributes => attributes::get(cx).await,
        O::PutObject => put::object(cx).await,
        O::CopyObject => copy::object(cx).await,
        O::DeleteObject => delete::one(cx).await,
        O::CreateMultipartUpload => multipart::create(cx).await,
        O::UploadPart => multipart::put_part(cx).await,
        O::UploadPartCopy => copy::part(cx).await,
        O::ListParts => multipart::list_parts(cx).await,
        O::CompleteMultipartUpload => multipart::complete(cx).await,
        O::AbortMultipartUpload => multipart::abort(cx).await,
    }
}

/// 200 with a document.
fn xml_response(xml: XmlWriter) -> S3Response {
    let mut response = Response::new(ResponseBody::from(xml.finish()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

/// An answer without a body.
fn empty(status: StatusCode) -> S3Response {
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = status;
    response
}

/// Sets a header from text; text that can't stand in a header is left out.
fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn set_etag(headers: &mut HeaderMap, etag: &str) {
    set(headers, "etag", &format!("\"{etag}\""));
}

/// `x-amz-checksum-…` and its type. `parts`: of a multipart object.
fn set_checksum(headers: &mut HeaderMap, sum: Option<&Checksum>, parts: usize) {
    if let Some(sum) = sum {
        set(headers, checksum::header(sum.algorithm), &checksum::display(sum, parts));
        set(headers, "x-amz-checksum-type", checksum::kind_name(sum.kind));
    }
}

/// `<ChecksumCRC32>…</ChecksumCRC32><ChecksumType>…</ChecksumType>`.
fn write_checksum(xml: &mut XmlWriter, sum: Option<&Checksum>, parts: usize) {
    if let Some(sum) = sum {
        xml.text(checksum::element(sum.algorithm), &checksum::display(sum, parts));
        xml.text("ChecksumType", checksum::kind_name(sum.kind));
    }
}

/// `<Owner>`: the only owner there is, for the caller, is itself.
fn write_owner(xml: &mut XmlWriter, element: &str, request: &S3Request) {
    xml.open(element)
        .text("ID", &request.key.id.0)
        .text("DisplayName", &request.key.name.value)
        .close(element);
}

/// An ACL that gives the caller full control: what `private` means to the one who may ask.
fn acl_response(request: &S3Request) -> S3Response {
    let mut xml = XmlWriter::with_root("AccessControlPolicy");
    write_owner(&mut xml, "Owner", request);
    xml.open("AccessControlList").open("Grant");
    xml.raw_open(
        "Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\"",
    )
    .text("ID", &request.key.id.0)
    .text("DisplayName", &request.key.name.value)
    .close("Grantee")
    .text("Permission", "FULL_CONTROL");
    xml.close("Grant").close("AccessControlList").close("AccessControlPolicy");
    xml_response(xml)
}
