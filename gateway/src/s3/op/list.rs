//! Listings of objects and of uploads under way.

use super::{Context, write_owner, xml_response};
use crate::domain::{
    ListRequest, ListStart, ListUploads, Listed, Listing, ObjectEntry, Right, UploadEntry, UploadStart,
};
use crate::http::{date, percent};
use crate::s3::error::{S3Error, S3Result};
use crate::s3::request::S3Request;
use crate::s3::xml::XmlWriter;
use crate::s3::{S3Response, checksum};

/// What both versions of ListObjects, and ListMultipartUploads, have in common.
struct Page {
    prefix: String,
    delimiter: Option<String>,
    max: usize,
    url: bool,
}

impl Page {
    fn of(request: &S3Request, max: &str) -> S3Result<Self> {
        let get = |name| request.query.get(name).unwrap_or_default().to_owned();
        Ok(Self {
            prefix: get("prefix"),
            delimiter: Some(get("delimiter")).filter(|d| !d.is_empty()),
            max: request.page(max)?,
            url: request.url_encoding()?,
        })
    }

    /// A key, or a piece of one, as it stands in the answer.
    fn name(&self, text: &str) -> String {
        if self.url { percent::encode(text, false) } else { text.to_owned() }
    }

    fn list(&self, start: ListStart) -> ListRequest {
        ListRequest { prefix: self.prefix.clone(), delimiter: self.delimiter.clone(), start, max: self.max }
    }

    fn write_head(&self, xml: &mut XmlWriter, max: &str) {
        xml.text("Prefix", &self.name(&self.prefix));
        if let Some(delimiter) = &self.delimiter {
            xml.text("Delimiter", &self.name(delimiter));
        }
        xml.value(max, self.max);
        if self.url {
            xml.text("EncodingType", "url");
        }
    }

    fn write_objects(&self, xml: &mut XmlWriter, listing: &Listing<ObjectEntry>, owner: Option<&S3Request>) {
        for entry in &listing.entries {
            if let Listed::Entry(entry) = entry {
                self.write_object(xml, entry, owner);
            }
        }
        self.write_prefixes(xml, &listing.entries);
    }

    fn write_object(&self, xml: &mut XmlWriter, entry: &ObjectEntry, owner: Option<&S3Request>) {
        let version = &entry.version;
        xml.open("Contents")
            .text("Key", &self.name(&entry.key))
            .text("LastModified", &date::iso(version.modified_ms))
            .etag(&version.etag)
            .value("Size", version.size);
        if let Some((algorithm, kind)) = version.checksum {
            xml.text("ChecksumAlgorithm", checksum::name(algorithm));
            xml.text("ChecksumType", checksum::kind_name(kind));
        }
        if let Some(request) = owner {
            write_owner(xml, "Owner", request);
        }
        xml.text("StorageClass", "STANDARD").close("Contents");
    }

    fn write_prefixes<T>(&self, xml: &mut XmlWriter, entries: &[Listed<T>]) {
        for entry in entries {
            if let Listed::Prefix(prefix) = entry {
                xml.open("CommonPrefixes").text("Prefix", &self.name(prefix)).close("CommonPrefixes");
            }
        }
    }
}

pub(super) async fn objects_v1(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    let page = Page::of(request, "max-keys")?;
    let marker = request.query.get("marker").unwrap_or_default();
    let start = if marker.is_empty() { ListStart::Beginning } else { ListStart::After(marker.to_owned()) };
    let bucket = cx.bucket(Right::Read).await?;
    let listing = cx.gateway.list(&bucket, page.list(start)).await?;
    let mut xml = XmlWriter::with_root("ListBucketResult");
    xml.text("Name", &request.bucket).text("Marker", &page.name(marker));
    page.write_head(&mut xml, "MaxKeys");
    xml.value("IsTruncated", listing.next.is_some());
    if listing.next.is_some()
        && let Some(last) = listing.last_name(|entry| &entry.key)
    {
        xml.text("NextMarker", &page.name(&last));
    }
    page.write_objects(&mut xml, &listing, Some(request));
    xml.close("ListBucketResult");
    Ok(xml_response(xml))
}

pub(super) async fn objects_v2(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    let page = Page::of(request, "max-keys")?;
    let token = request.query.get("continuation-token");
    let after = request.query.get("start-after");
    let with_owner = match request.query.get("fetch-owner") {
        None | Some("false" | "") => false,
        Some("true") => true,
        Some(other) => return Err(S3Error::argument("fetch-owner", other, "Expecting true or false.")),
    };
    let start = match (token, after) {
        (Some(""), _) => {
            let text = "The continuation token provided is incorrect";
            return Err(S3Error::argument("continuation-token", "", text));
        }
        (Some(token), _) => ListStart::Token(token.to_owned()),
        (None, Some(after)) if !after.is_empty() => ListStart::After(after.to_owned()),
        _ => ListStart::Beginning,
    };
    let bucket = cx.bucket(Right::Read).await?;
    let listing = cx.gateway.list(&bucket, page.list(start)).await?;
    let mut xml = XmlWriter::with_root("ListBucketResult");
    xml.text("Name", &request.bucket);
    page.write_head(&mut xml, "MaxKeys");
    xml.value("KeyCount", listing.entries.len()).value("IsTruncated", listing.next.is_some());
    xml.optional("ContinuationToken", token).optional("NextContinuationToken", listing.next.as_deref());
    if let Some(after) = after {
        xml.text("StartAfter", &page.name(after));
    }
    page.write_objects(&mut xml, &listing, with_owner.then_some(request));
    xml.close("ListBucketResult");
    Ok(xml_response(xml))
}

pub(super) async fn uploads(cx: Context<'_>) -> S3Result<S3Response> {
    let request = &cx.request;
    let page = Page::of(request, "max-uploads")?;
    let key_marker = request.query.get("key-marker").unwrap_or_default();
    let id_marker = request.query.get("upload-id-marker").unwrap_or_default();
    let start = match (key_marker, id_marker) {
        ("", _) => UploadStart::Beginning,
        (key, "") => UploadStart::AfterKey(key.to_owned()),
        (key, id) => {
            let id = id
                .parse()
                .map_err(|_| S3Error::argument("upload-id-marker", id, "Invalid uploadId marker"))?;
            UploadStart::After(key.to_owned(), id)
        }
    };
    let bucket = cx.bucket(Right::Read).await?;
    let list =
        ListUploads { prefix: page.prefix.clone(), delimiter: page.delimiter.clone(), start, max: page.max };
    let listing = cx.gateway.list_uploads(&bucket, list).await?;
    let mut xml = XmlWriter::with_root("ListMultipartUploadsResult");
    xml.text("Bucket", &request.bucket)
        .text("KeyMarker", &page.name(key_marker))
        .text("UploadIdMarker", id_marker);
    page.write_head(&mut xml, "MaxUploads");
    xml.value("IsTruncated", listing.next.is_some());
    if listing.next.is_some() {
        match listing.entries.last() {
            Some(Listed::Entry(last)) => {
                xml.text("NextKeyMarker", &page.name(&last.key));
                xml.text("NextUploadIdMarker", &last.upload.to_string());
            }
            Some(Listed::Prefix(last)) => {
                xml.text("NextKeyMarker", &page.name(last));
            }
            None => {}
        }
    }
    for entry in &listing.entries {
        if let Listed::Entry(entry) = entry {
            write_upload(&mut xml, &page, entry, request);
        }
    }
    page.write_prefixes(&mut xml, &listing.entries);
    xml.close("ListMultipartUploadsResult");
    Ok(xml_response(xml))
}

fn write_upload(xml: &mut XmlWriter, page: &Page, entry: &UploadEntry, request: &S3Request) {
    xml.open("Upload").text("Key", &page.name(&entry.key)).text("UploadId", &entry.upload.to_string());
    write_owner(xml, "Initiator", request);
    write_owner(xml, "Owner", request);
    xml.text("StorageClass", "STANDARD").text("Initiated", &date::iso(entry.created_ms));
    if let Some((algorithm, kind)) = entry.checksum {
        xml.text("ChecksumAlgorithm", checksum::name(algorithm));
        xml.text("ChecksumType", checksum::kind_name(kind));
    }
    xml.close("Upload");
}

#[cfg(test)]
mod tests {
    use super::*;
    use hayloft_common::id::VersionId;
    use hayloft_common::schema::{ChecksumAlgorithm, ChecksumKind, ObjectVersion};

    fn entry(key: &str) -> Listed<ObjectEntry> {
        let version = ObjectVersion {
            id: VersionId::default(),
            modified_ms: 0,
            size: 3,
            etag: "e".into(),
            checksum: Some((ChecksumAlgorithm::Crc32, ChecksumKind::FullObject)),
            detail: None,
        };
        Listed::Entry(ObjectEntry { key: key.into(), version })
    }

    fn written(url: bool) -> String {
        let page = Page { prefix: String::new(), delimiter: None, max: 10, url };
        let listing =
            Listing { entries: vec![entry("a <\u{1}\r+é/b"), Listed::Prefix("p\u{7}/".into())], next: None };
        let mut xml = XmlWriter::document();
        page.write_objects(&mut xml, &listing, None);
        xml.finish()
    }

    #[test]
    fn control_characters_in_keys_are_escaped() {
        let xml = written(false);
        assert!(xml.contains("<Key>a &lt;&#x1;&#xD;+é/b</Key>"), "{xml}");
        assert!(xml.contains("<CommonPrefixes><Prefix>p&#x7;/</Prefix></CommonPrefixes>"), "{xml}");
        assert!(xml.contains("<LastModified>1970-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>3</Size><ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><StorageClass>STANDARD</StorageClass>"), "{xml}");
    }

    #[test]
    fn encoding_type_url_encodes_keys_and_prefixes() {
        let xml = written(true);
        assert!(xml.contains("<Key>a%20%3C%01%0D%2B%C3%A9/b</Key>"), "{xml}");
        assert!(xml.contains("<Prefix>p%07/</Prefix>"), "{xml}");
    }
}
