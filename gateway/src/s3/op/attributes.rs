//! GetObjectAttributes and GetObjectAcl.

use super::{Context, acl_response, set, write_checksum, xml_response};
use crate::domain::{ObjectHead, Right};
use crate::http::date;
use crate::s3::error::{Code, S3Error, S3Result};
use crate::s3::xml::XmlWriter;
use crate::s3::{S3Response, checksum};
use hayloft_common::limits::MAX_LIST_PAGE;

const KNOWN: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];

pub(super) async fn acl(cx: Context<'_>) -> S3Result<S3Response> {
    cx.request.check_version()?;
    let bucket = cx.bucket(Right::Read).await?;
    cx.gateway.head(&bucket, cx.object_key()?, None).await?;
    Ok(acl_response(&cx.request))
}

/// A page of parts: behind which number, and how many.
struct Page {
    after: u64,
    max: usize,
}

pub(super) async fn get(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    request.check_version()?;
    let mut wanted = Vec::new();
    for value in request.headers.get_all("x-amz-object-attributes") {
        wanted.extend(value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|a| !a.is_empty()));
    }
    if wanted.is_empty() {
        let text = "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty";
        return Err(S3Error::new(Code::InvalidRequest, text));
    }
    if let Some(unknown) = wanted.iter().find(|a| !KNOWN.contains(*a)) {
        return Err(S3Error::argument(
            "x-amz-object-attributes",
            unknown,
            "Invalid attribute name specified.",
        ));
    }
    let page = Page {
        after: number(&cx, "x-amz-part-number-marker")?.unwrap_or(0),
        max: number(&cx, "x-amz-max-parts")?
            .map_or(MAX_LIST_PAGE, |n| usize::try_from(n).unwrap_or(MAX_LIST_PAGE).min(MAX_LIST_PAGE)),
    };
    let bucket = cx.bucket(Right::Read).await?;
    let head = cx.gateway.head(&bucket, cx.object_key()?, None).await?;
    let mut response = xml_response(document(&head, &wanted, &page));
    set(response.headers_mut(), "last-modified", &date::http(head.version.modified_ms));
    Ok(response)
}

fn number(cx: &Context<'_>, name: &str) -> S3Result<Option<u64>> {
    let Some(text) = cx.request.header(name)? else { return Ok(None) };
    let number = text.parse().map_err(|_| S3Error::argument(name, text, "Expecting a whole number."))?;
    Ok(Some(number))
}

fn document(head: &ObjectHead, wanted: &[&str], page: &Page) -> XmlWriter {
    let version = &head.version;
    let parts = version.detail.as_ref().map_or(&[][..], |d| &d.parts);
    let mut xml = XmlWriter::with_root("GetObjectAttributesResponse");
    if wanted.contains(&"ETag") {
        // Without quotes here, alone of all places.
        xml.text("ETag", &version.etag);
    }
    if wanted.contains(&"Checksum") && head.checksum().is_some() {
        xml.open("Checksum");
        write_checksum(&mut xml, head.checksum(), parts.len());
        xml.close("Checksum");
    }
    if wanted.contains(&"ObjectParts") && !parts.is_empty() {
        let mut left = parts.iter().filter(|p| u64::from(p.number) > page.after).peekable();
        xml.open("ObjectParts").value("TotalPartsCount", parts.len());
        xml.value("PartNumberMarker", page.after).value("MaxParts", page.max);
        let mut last = None;
        for part in left.by_ref().take(page.max) {
            xml.open("Part");
            if let (Some(sum), Some(value)) = (head.checksum(), &part.checksum) {
                xml.text(checksum::element(sum.algorithm), &checksum::encode(value));
            }
            xml.value("PartNumber", part.number).value("Size", part.size).close("Part");
            last = Some(part.number);
        }
        let truncated = left.peek().is_some();
        if let Some(last) = last.filter(|_| truncated) {
            xml.value("NextPartNumberMarker", last);
        }
        xml.value("IsTruncated", truncated).close("ObjectParts");
    }
    if wanted.contains(&"StorageClass") {
        xml.text("StorageClass", "STANDARD");
    }
    if wanted.contains(&"ObjectSize") {
        xml.value("ObjectSize", version.size);
    }
    xml.close("GetObjectAttributesResponse");
    xml
}
