//! Headers that are stored with an object and given back: content headers and user metadata.

use super::error::{Code, S3Error, S3Result};
use crate::http::date;
use crate::http::query::Query;
use hayloft_common::limits::MAX_USER_METADATA;
use hayloft_common::schema::Headers;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Stored as sent and given back.
const CONTENT: [&str; 6] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];
/// Where the website sends visitors of the object.
pub const REDIRECT: &str = "x-amz-website-redirect-location";
/// The type of an object that was stored without one.
const DEFAULT_TYPE: &str = "binary/octet-stream";

/// The headers to store with an object.
pub fn to_store(headers: &HeaderMap) -> S3Result<Headers> {
    let mut out = Headers::new();
    for name in CONTENT {
        if let Some(value) = joined(headers, name)? {
            let value = if name == "content-encoding" { without_aws_chunked(&value) } else { value };
            if !value.is_empty() {
                out.push((name.to_owned(), value));
            }
        }
    }
    if let Some(location) = redirect(headers)? {
        out.push((REDIRECT.to_owned(), location));
    }
    let mut metadata = 0;
    let mut names: Vec<&HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with("x-amz-meta-")).collect();
    names.sort_unstable_by_key(|n| n.as_str());
    for name in names {
        let value = joined(headers, name.as_str())?.unwrap_or_default();
        metadata += name.as_str().len() - "x-amz-meta-".len() + value.len();
        out.push((name.as_str().to_owned(), value));
    }
    if metadata > MAX_USER_METADATA {
        let text = "Your metadata headers exceed the maximum allowed metadata size";
        return Err(S3Error::new(Code::MetadataTooLarge, text)
            .with("Size", metadata.to_string())
            .with("MaxSizeAllowed", MAX_USER_METADATA.to_string()));
    }
    Ok(out)
}

/// The redirect that a request sets.
pub fn redirect(headers: &HeaderMap) -> S3Result<Option<String>> {
    let Some(location) = joined(headers, REDIRECT)? else { return Ok(None) };
    let valid =
        ["/", "http://", "https://"].iter().any(|p| location.starts_with(p)) && location.len() <= 2048;
    if valid {
        return Ok(Some(location));
    }
    let text = "The website redirect location must be non-empty, at most 2 KiB, and begin with '/', 'http://' or 'https://'.";
    Err(S3Error::argument(REDIRECT, &location, text))
}

/// All values of a header as one text.
fn joined(headers: &HeaderMap, name: &str) -> S3Result<Option<String>> {
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        let text = std::str::from_utf8(value.as_bytes())
            .map_err(|_| S3Error::argument(name, "", "The header is not UTF-8."))?;
        values.push(text);
    }
    Ok((!values.is_empty()).then(|| values.join(",")))
}

/// aws-chunked is a matter of the transfer: it is never given back.
fn without_aws_chunked(value: &str) -> String {
    let left: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|c| !c.eq_ignore_ascii_case("aws-chunked") && !c.is_empty())
        .collect();
    left.join(",")
}

/// Puts stored headers on an answer, then `response-*` parameters over them.
pub fn to_answer(stored: &[(String, String)], query: &Query, out: &mut HeaderMap) -> S3Result<()> {
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(DEFAULT_TYPE));
    for (name, value) in stored {
        // Stored by us or by another version: what is no header is left out rather than failing the read.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()))
        {
            out.insert(name, value);
        }
    }
    for name in CONTENT {
        let parameter = format!("response-{name}");
        let Some(text) = query.get(&parameter) else { continue };
        let value = HeaderValue::from_bytes(text.as_bytes())
            .map_err(|_| S3Error::argument(&parameter, text, "The value can't stand in a header."))?;
        out.insert(HeaderName::from_static(name), value);
    }
    Ok(())
}

/// A header with an HTTP date, in seconds since the epoch; one that can't be read is left out (RFC 9110).
pub fn date_of(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name).and_then(|v| v.to_str().ok()).and_then(date::parse_http)
}

/// A header as text, if it is given once.
pub fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> S3Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) if values.next().is_none() => Ok(Some(text.trim())),
        _ => Err(S3Error::argument(name, "", "The header is given more than once, or is not UTF-8.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_bytes(v.as_bytes()).unwrap()))
            .collect()
    }

    #[test]
    fn content_headers_and_metadata_round_trip() {
        let sent = map(&[
            ("content-type", "text/plain"),
            ("content-encoding", "aws-chunked, gzip"),
            ("expires", "whenever"),
            ("x-amz-website-redirect-location", "/other"),
            ("x-amz-meta-b", "ü"),
            ("x-amz-meta-a", ""),
            ("host", "example.org"),
        ]);
        let stored = to_store(&sent).unwrap();
        assert_eq!(
            stored.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>(),
            [
                ("content-encoding", "gzip"),
                ("content-type", "text/plain"),
                ("expires", "whenever"),
                ("x-amz-website-redirect-location", "/other"),
                ("x-amz-meta-a", ""),
                ("x-amz-meta-b", "ü"),
            ]
        );
        let mut out = HeaderMap::new();
        to_answer(&stored, &Query::default(), &mut out).unwrap();
        assert_eq!(out["x-amz-meta-b"].as_bytes(), "ü".as_bytes());
        assert_eq!(out.len(), 6);
    }

    #[test]
    fn aws_chunked_alone_leaves_no_encoding() {
        let stored = to_store(&map(&[("content-encoding", "aws-chunked")])).unwrap();
        assert!(stored.is_empty());
    }

    #[test]
    fn response_parameters_override() {
        let query = Query::parse("response-content-type=a%2Fb&response-expires=never").unwrap();
        let mut out = HeaderMap::new();
        to_answer(&[("content-type".into(), "x/y".into())], &query, &mut out).unwrap();
        assert_eq!(
            (&out["content-type"], &out["expires"]),
            (&HeaderValue::from_static("a/b"), &HeaderValue::from_static("never"))
        );
        let query = Query::parse("response-content-type=a%0D%0Ax:%20y").unwrap();
        assert!(to_answer(&[], &query, &mut out).is_err(), "no header can be smuggled in");
    }

    #[test]
    fn limits_hold() {
        let long = "x".repeat(2048);
        assert!(to_store(&map(&[("x-amz-meta-a", &long[1..])])).is_ok());
        let error = to_store(&map(&[("x-amz-meta-a", &long)])).unwrap_err();
        assert_eq!(error.code, Code::MetadataTooLarge);
        for location in ["", "ftp://x", "other"] {
            let sent = map(&[("x-amz-website-redirect-location", location)]);
            assert_eq!(to_store(&sent).unwrap_err().code, Code::InvalidArgument);
        }
    }

    proptest! {
        #[test]
        fn stored_headers_of_any_text_are_answered(name in any::<String>(), value in any::<String>()) {
            let mut out = HeaderMap::new();
            prop_assert!(to_answer(&[(name, value)], &Query::default(), &mut out).is_ok());
        }
    }
}
