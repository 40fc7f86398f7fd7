//! Multipart uploads: create, put a part, list parts, complete, abort.

use super::{Context, empty, set_checksum, set_etag, write_checksum, write_owner, xml_response};
use crate::domain::{CompleteUpload, CreateUpload, NamedPart, Right, UploadRef};
use crate::http::{date, percent};
use crate::s3::error::{Code, S3Error, S3Result};
use crate::s3::xml::{self, CompletedPart, XmlWriter};
use crate::s3::{S3Response, checksum, headers};
use hayloft_common::limits::MAX_PARTS;
use hayloft_common::schema::{ChecksumAlgorithm, ChecksumKind};
use http::StatusCode;

/// Longest body of CompleteMultipartUpload: 10,000 parts with their checksums.
const MAX_BODY: usize = 4 << 20;

async fn target(cx: &Context<'_>, need: Right) -> S3Result<UploadRef> {
    let upload = cx.request.upload_id()?;
    let key = cx.object_key()?.to_owned();
    Ok(UploadRef { bucket: cx.bucket(need).await?, key, upload })
}

pub(super) async fn create(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    let key = cx.object_key()?.to_owned();
    let stored = headers::to_store(&request.headers)?;
    let sum = checksum::of_upload(&request.headers)?;
    let bucket = cx.bucket(Right::Write).await?;
    let upload = CreateUpload { bucket, key: key.clone(), headers: stored, checksum: sum };
    let upload = cx.gateway.create_upload(upload).await?;
    let mut xml = XmlWriter::with_root("InitiateMultipartUploadResult");
    xml.text("Bucket", &request.bucket).text("Key", &key).text("UploadId", &upload.to_string());
    xml.close("InitiateMultipartUploadResult");
    let mut response = xml_response(xml);
    if let Some((algorithm, kind)) = sum {
        let headers = response.headers_mut();
        super::set(headers, "x-amz-checksum-algorithm", checksum::name(algorithm));
        super::set(headers, "x-amz-checksum-type", checksum::kind_name(kind));
    }
    Ok(response)
}

pub(super) async fn put_part(cx: Context<'_>) -> S3Result<S3Response> {
    let number = cx.request.part_to_write()?;
    let (checks, trailer) = cx.request.checks()?;
    let target = target(&cx, Right::Write).await?;
    let body = cx.request.into_body(checks.length.unwrap_or_default(), trailer);
    let done = cx.gateway.put_part(target, number, checks, body).await?;
    let mut response = empty(StatusCode::OK);
    set_etag(response.headers_mut(), &done.etag);
    if let Some(sum) = &done.checksum {
        super::set(response.headers_mut(), checksum::header(sum.algorithm), &checksum::encode(&sum.value));
    }
    Ok(response)
}

pub(super) async fn list_parts(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    let max = request.page("max-parts")?;
    let url = request.url_encoding()?;
    let after = request.number("part-number-marker")?.unwrap_or(0);
    // Behind the highest number there is nothing, however far behind.
    let after = u16::try_from(after).unwrap_or(MAX_PARTS).min(MAX_PARTS);
    let target = target(&cx, Right::Read).await?;
    let listing = cx.gateway.list_parts(&target, after, max).await?;
    let mut xml = XmlWriter::with_root("ListPartsResult");
    let key = if url { percent::encode(&target.key, false) } else { target.key.clone() };
    xml.text("Bucket", &request.bucket).text("Key", &key).text("UploadId", &target.upload.to_string());
    if url {
        xml.text("EncodingType", "url");
    }
    write_owner(&mut xml, "Initiator", request);
    write_owner(&mut xml, "Owner", request);
    xml.text("StorageClass", "STANDARD").value("PartNumberMarker", after);
    if let Some(next) = listing.next {
        xml.value("NextPartNumberMarker", next);
    }
    xml.value("MaxParts", max).value("IsTruncated", listing.next.is_some());
    if let Some((algorithm, kind)) = listing.upload.checksum {
        xml.text("ChecksumAlgorithm", checksum::name(algorithm));
        xml.text("ChecksumType", checksum::kind_name(kind));
    }
    for part in &listing.parts {
        xml.open("Part")
            .value("PartNumber", part.number)
            .text("LastModified", &date::iso(part.modified_ms))
            .etag(&part.etag)
            .value("Size", part.size);
        if let Some(sum) = &part.checksum {
            xml.text(checksum::element(sum.algorithm), &checksum::encode(&sum.value));
        }
        xml.close("Part");
    }
    xml.close("ListPartsResult");
    Ok(xml_response(xml))
}

pub(super) async fn complete(mut cx: Context<'_>) -> S3Result<S3Response> {
    let target = target(&cx, Right::Write).await?;
    let expected = expected_checksum(&cx)?;
    let kind = match cx.request.header("x-amz-checksum-type")? {
        None => None,
        Some("FULL_OBJECT") => Some(ChecksumKind::FullObject),
        Some("COMPOSITE") => Some(ChecksumKind::Composite),
        Some(other) => {
            let text = "Expecting FULL_OBJECT or COMPOSITE.";
            return Err(S3Error::argument("x-amz-checksum-type", other, text));
        }
    };
    let size = match cx.request.header("x-amz-mp-object-size")? {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| S3Error::argument("x-amz-mp-object-size", text, "The size is not a number."))?,
        ),
    };
    // The checksum header is the object's, not the body's: keep it from being checked against the body.
    for algorithm in checksum::ALL {
        cx.request.headers.remove(checksum::header(algorithm));
    }
    let parts = xml::parse_complete(&cx.request.read_xml(MAX_BODY, false).await?)?;
    let named = parts.iter().find_map(|p| p.checksum.as_ref()).map(|(algorithm, _)| *algorithm);
    let algorithms = [expected.as_ref().map(|(algorithm, _)| *algorithm), named];
    if algorithms.iter().any(Option::is_some) || kind.is_some() {
        check_upload(&cx, &target, algorithms, kind).await?;
    }
    let parts = parts.into_iter().map(|part| named_part(part, named)).collect::<S3Result<Vec<_>>>()?;
    let count = parts.len();
    let upload = CompleteUpload { target, parts, checksum: expected.map(|(_, digest)| digest), size };
    let key = upload.target.key.clone();
    let done = cx.gateway.complete_upload(upload).await?;
    let mut xml = XmlWriter::with_root("CompleteMultipartUploadResult");
    xml.text("Location", &cx.request.url).text("Bucket", &cx.request.bucket).text("Key", &key);
    xml.etag(&done.etag);
    write_checksum(&mut xml, done.checksum.as_ref(), count);
    xml.close("CompleteMultipartUploadResult");
    let mut response = xml_response(xml);
    set_checksum(response.headers_mut(), done.checksum.as_ref(), count);
    Ok(response)
}

/// The checksum that the whole object is to have: base64, with `-N` behind a composite one.
fn expected_checksum(cx: &Context<'_>) -> S3Result<Option<(ChecksumAlgorithm, Vec<u8>)>> {
    let Some((algorithm, text)) = checksum::header_value(&cx.request.headers)? else { return Ok(None) };
    let digest = text.split('-').next().and_then(|t| checksum::decode(algorithm, t)).ok_or_else(|| {
        let name = checksum::header(algorithm);
        S3Error::new(Code::InvalidRequest, format!("Value for {name} header is invalid."))
    })?;
    Ok(Some((algorithm, digest)))
}

/// Refuses checksums of another kind than the upload's.
async fn check_upload(
    cx: &Context<'_>,
    target: &UploadRef,
    algorithms: [Option<ChecksumAlgorithm>; 2],
    kind: Option<ChecksumKind>,
) -> S3Result<()> {
    let found = cx.gateway.list_parts(target, MAX_PARTS, 1).await?.upload.checksum;
    let mismatch = |what: &str| {
        let text = format!("The upload was created using another checksum {what} than the complete request.");
        S3Error::new(Code::InvalidRequest, text)
    };
    // An upload begun without a checksum may still have parts with one (SDKs add it unasked): those named for the
    // parts are then compared with what each part came with.
    let [whole, of_parts] = algorithms;
    let of_upload = found.map(|f| f.0);
    if (whole.is_some() && whole != of_upload)
        || (of_upload.is_some() && of_parts.is_some_and(|a| of_upload != Some(a)))
    {
        return Err(mismatch("algorithm"));
    }
    if kind.is_some() && kind != found.map(|f| f.1) {
        return Err(mismatch("type"));
    }
    Ok(())
}

fn named_part(part: CompletedPart, algorithm: Option<ChecksumAlgorithm>) -> S3Result<NamedPart> {
    if part.checksum.as_ref().is_some_and(|(a, _)| Some(*a) != algorithm) {
        return Err(S3Error::malformed_xml("the parts have checksums of different algorithms"));
    }
    let CompletedPart { number, etag, checksum } = part;
    Ok(NamedPart { number, etag, checksum: checksum.map(|(_, digest)| digest) })
}

pub(super) async fn abort(cx: Context<'_>) -> S3Result<S3Response> {
    let target = target(&cx, Right::Write).await?;
    cx.gateway.abort_upload(&target).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
