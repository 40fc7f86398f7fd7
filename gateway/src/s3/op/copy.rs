//! CopyObject and UploadPartCopy: the source is read by its own conditions and rights.

use super::get::{conditions, precondition_failed};
use super::{Context, write_checksum, xml_response};
use crate::domain::{Bucket, CopyObject, ObjectHead, Right, UploadRef};
use crate::http::conditional::Verdict;
use crate::http::{date, percent, range};
use crate::s3::error::{Code, S3Error, S3Result};
use crate::s3::headers::{self, REDIRECT};
use crate::s3::xml::XmlWriter;
use crate::s3::{S3Response, checksum};
use hayloft_common::schema::Headers;
use std::sync::Arc;

/// What `x-amz-copy-source` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    pub bucket: String,
    pub key: String,
}

/// Parses `/bucket/key?versionId=null`, percent-encoded, with or without the first slash.
pub fn parse_copy_source(text: &str) -> S3Result<CopySource> {
    let name = "x-amz-copy-source";
    // A question mark in the key is encoded: a bare one begins the query.
    let (path, version) = text.split_once("?versionId=").map_or((text, None), |(p, v)| (p, Some(v)));
    if version.is_some_and(|v| v != "null") {
        return Err(S3Error::not_implemented("version ids other than null"));
    }
    let path = percent::decode(path, false)
        .map_err(|e| S3Error::argument(name, text, format!("Invalid copy source encoding: {e}.")))?;
    let path = path.strip_prefix('/').unwrap_or(&path);
    match path.split_once('/') {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
            Ok(CopySource { bucket: bucket.to_owned(), key: key.to_owned() })
        }
        _ => Err(S3Error::argument(
            name,
            text,
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        )),
    }
}

/// Finds the source and judges its conditions.
async fn open_source(cx: &Context<'_>) -> S3Result<(Arc<Bucket>, CopySource, ObjectHead)> {
    let request = &cx.request;
    let source = parse_copy_source(request.header("x-amz-copy-source")?.unwrap_or_default())?;
    let bucket = cx.gateway.authorize(&request.key.id, &source.bucket, Right::Read).await?;
    let head = cx.gateway.head(&bucket, &source.key, None).await?;
    let verdict = conditions(&request.headers, "x-amz-copy-source-")?
        .judge(&head.version.etag, head.version.modified_ms / 1000);
    match verdict {
        Verdict::Proceed => Ok((bucket, source, head)),
        Verdict::NotModified => {
            Err(precondition_failed("x-amz-copy-source-If-None-Match or -If-Modified-Since"))
        }
        Verdict::Failed(name) => Err(precondition_failed(&format!("x-amz-copy-source-{name}"))),
    }
}

/// A directive: whether it says REPLACE.
fn replaces(cx: &Context<'_>, name: &str) -> S3Result<bool> {
    match cx.request.header(name)? {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(other) => {
            Err(S3Error::argument(name, other, format!("Unknown {name}: expecting COPY or REPLACE.")))
        }
    }
}

pub(super) async fn object(cx: Context<'_>) -> S3Result<S3Response> {
    let key = cx.object_key()?.to_owned();
    let replace = replaces(&cx, "x-amz-metadata-directive")?;
    // Objects have no tags, so both values are done by doing nothing.
    replaces(&cx, "x-amz-tagging-directive")?;
    let request = &cx.request;
    let wanted = match request.header("x-amz-checksum-algorithm")? {
        None => None,
        Some(name) => Some(
            checksum::by_name(name)
                .ok_or_else(|| S3Error::not_implemented(format_args!("the checksum algorithm `{name}`")))?,
        ),
    };
    let redirect = headers::redirect(&request.headers)?;
    let replaced = if replace { Some(headers::to_store(&request.headers)?) } else { None };
    let bucket = cx.bucket(Right::Write).await?;
    let (source_bucket, source, head) = open_source(&cx).await?;
    let to_itself = source_bucket.id() == bucket.id() && source.key == key;
    if to_itself && !replace && redirect.is_none() && !request.headers.contains_key("x-amz-storage-class") {
        return Err(S3Error::new(
            Code::InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let stored = replaced.or_else(|| with_redirect(head.headers(), redirect));
    let copy = CopyObject { bucket, key, headers: stored, checksum: wanted };
    let done = cx.gateway.copy(&head, copy).await?;
    let mut xml = XmlWriter::with_root("CopyObjectResult");
    xml.text("LastModified", &date::iso(done.modified_ms)).etag(&done.etag);
    let parts = head.version.detail.as_ref().map_or(0, |d| d.parts.len());
    write_checksum(&mut xml, done.checksum.as_ref(), parts);
    xml.close("CopyObjectResult");
    Ok(xml_response(xml))
}

/// The source's headers with another redirect: a redirect is never copied. `None` if nothing changes.
fn with_redirect(source: &[(String, String)], redirect: Option<String>) -> Option<Headers> {
    let has_one = source.iter().any(|(name, _)| name == REDIRECT);
    if !has_one && redirect.is_none() {
        return None;
    }
    let kept = source.iter().filter(|(name, _)| name != REDIRECT).cloned();
    Some(kept.chain(redirect.map(|r| (REDIRECT.to_owned(), r))).collect())
}

pub(super) async fn part(cx: Context<'_>) -> S3Result<S3Response> {
    let number = cx.request.part_to_write()?;
    let upload = cx.request.upload_id()?;
    let range = match cx.request.header("x-amz-copy-source-range")? {
        None => None,
        Some(text) => {
            let range = range::parse_copy_range(text).ok_or_else(|| {
                S3Error::argument(
                    "x-amz-copy-source-range",
                    text,
                    "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
                )
            })?;
            Some(range.first..range.last.saturating_add(1))
        }
    };
    let bucket = cx.bucket(Right::Write).await?;
    let (_, _, head) = open_source(&cx).await?;
    let target = UploadRef { bucket, key: cx.object_key()?.to_owned(), upload };
    let done = cx.gateway.copy_part(target, number, &head, range).await?;
    let mut xml = XmlWriter::with_root("CopyPartResult");
    xml.text("LastModified", &date::iso(done.modified_ms)).etag(&done.etag);
    if let Some(sum) = &done.checksum {
        xml.text(checksum::element(sum.algorithm), &checksum::encode(&sum.value));
    }
    xml.close("CopyPartResult");
    Ok(xml_response(xml))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn copy_sources_are_decoded_once() {
        for (text, bucket, key) in [
            ("b/k", "b", "k"),
            ("/b/k/l", "b", "k/l"),
            ("b/a%20%2B%3Fx%252F", "b", "a +?x%2F"),
            ("b%2Fk", "b", "k"),
            ("b/k?versionId=null", "b", "k"),
            ("b//k", "b", "/k"),
        ] {
            let source = parse_copy_source(text).unwrap();
            assert_eq!((source.bucket.as_str(), source.key.as_str()), (bucket, key), "{text}");
        }
        for (text, code) in [
            ("", Code::InvalidArgument),
            ("b", Code::InvalidArgument),
            ("b/", Code::InvalidArgument),
            ("b/%zz", Code::InvalidArgument),
            ("b/k?versionId=3", Code::NotImplemented),
        ] {
            assert_eq!(parse_copy_source(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn a_redirect_is_not_copied() {
        let source = [("content-type".to_owned(), "a/b".to_owned())];
        assert_eq!(with_redirect(&source, None), None);
        let both = with_redirect(&source, Some("/x".into())).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(with_redirect(&both, None).unwrap(), source);
    }

    proptest! {
        #[test]
        fn any_copy_source_is_taken(text in any::<String>()) {
            let _ = parse_copy_source(&text);
        }
    }
}
