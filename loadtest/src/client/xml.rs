//! The XML of S3 that this client reads and writes.

use super::error::Error;
use serde::Deserialize;
use std::fmt::Write as _;

/// One page of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ListPage {
    pub contents: Vec<ListedObject>,
    pub common_prefixes: Vec<CommonPrefix>,
    pub is_truncated: bool,
    pub next_continuation_token: Option<String>,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListedObject {
    pub key: String,
    pub size: u64,
    #[serde(rename = "ETag", default)]
    pub etag: String,
}

/// A rolled-up prefix in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CommonPrefix {
    pub prefix: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ErrorBody {
    pub(super) code: String,
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InitiateResult {
    pub(super) upload_id: String,
}

/// What DeleteObjects could not delete.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DeleteResult {
    #[serde(rename = "Error")]
    pub(super) errors: Vec<DeleteError>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DeleteError {
    pub(super) key: String,
    pub(super) code: String,
    pub(super) message: String,
}

/// Reads one document of the expected kind.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::Malformed("XML is not UTF-8".into()))?;
    quick_xml::de::from_str(text).map_err(|error| {
        Error::Malformed(format!("{error} in {:?}", text.chars().take(200).collect::<String>()))
    })
}

/// The error in `body`, if it is one: also found under status 200, after a copy or a completed upload.
pub(super) fn error_in(body: &[u8]) -> Option<ErrorBody> {
    let text = std::str::from_utf8(body).ok()?;
    let start = text.find("<Error")?;
    text[..start]
        .trim_start()
        .strip_prefix("<?xml")
        .map_or_else(
            || text[..start].trim().is_empty(),
            |declaration| declaration.trim_end().ends_with("?>") && !declaration.contains("><"),
        )
        .then(|| quick_xml::de::from_str(&text[start..]).ok())
        .flatten()
}

/// The body of DeleteObjects.
pub(super) fn delete_objects(keys: &[String]) -> String {
    let mut xml =
        String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>");
    for key in keys {
        // Writing to a string cannot fail.
        let _ = write!(xml, "<Object><Key>{}</Key></Object>", quick_xml::escape::escape(key.as_str()));
    }
    xml + "</Delete>"
}

/// The body of CompleteMultipartUpload, from part numbers and ETags.
pub(super) fn complete_upload(parts: &[(u16, String)]) -> String {
    let mut xml = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, etag) in parts {
        let etag = quick_xml::escape::escape(etag.as_str());
        let _ = write!(xml, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    xml + "</CompleteMultipartUpload>"
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;

    #[test]
    fn a_listing_is_read() {
        let xml = format!(
            r#"{HEAD}<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
            <IsTruncated>true</IsTruncated><NextContinuationToken>abc=</NextContinuationToken>
            <Contents><Key>a&amp;b</Key><Size>5</Size><ETag>&quot;x&quot;</ETag><StorageClass>S</StorageClass></Contents>
            <CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>
            <Contents><Key>c</Key><Size>0</Size></Contents></ListBucketResult>"#
        );
        let page: ListPage = parse(xml.as_bytes()).unwrap();
        assert!(page.is_truncated);
        assert_eq!(page.next_continuation_token.as_deref(), Some("abc="));
        assert_eq!(page.common_prefixes, [CommonPrefix { prefix: "p/".into() }]);
        let keys: Vec<_> = page.contents.iter().map(|object| (object.key.as_str(), object.size)).collect();
        assert_eq!(keys, [("a&b", 5), ("c", 0)]);
        assert_eq!(page.contents[0].etag, "\"x\"");
    }

    #[test]
    fn an_empty_listing_is_read() {
        let page: ListPage =
            parse(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>").unwrap();
        assert!(page.contents.is_empty() && !page.is_truncated);
    }

    #[test]
    fn errors_are_found_whatever_the_status() {
        let error =
            error_in(format!("{HEAD}\n<Error><Code>SlowDown</Code><Message>m</Message></Error>").as_bytes());
        assert_eq!(error.unwrap().code, "SlowDown");
        let result = format!(
            "{HEAD}<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        );
        assert!(error_in(result.as_bytes()).is_none());
        let result: DeleteResult = parse(result.as_bytes()).unwrap();
        assert_eq!((result.errors[0].key.as_str(), result.errors[0].code.as_str()), ("k", "AccessDenied"));
        assert!(error_in(b"<html>").is_none());
    }

    #[test]
    fn keys_are_escaped() {
        assert!(delete_objects(&["a<&>".into()]).contains("<Key>a&lt;&amp;&gt;</Key>"));
    }
}
