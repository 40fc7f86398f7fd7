//! The parsers that meet bytes from outside, each as one function over arbitrary bytes: for the fuzz
//! targets in `gateway/fuzz`, and for property tests in every normal run.
//!
//! None may panic; what they can say about the result, they assert.

use super::op::parse_copy_source;
use super::route::{Level, route};
use super::xml;
use crate::auth::chunked::{ChunkDecoder, ChunkSigner};
use crate::auth::presigned::{self, Presigned};
use crate::auth::sigv4::{Authorization, Credential, SigningKey};
use crate::http::conditional::Conditions;
use crate::http::query::Query;
use crate::http::{date, percent, range, vhost};
use bytes::Bytes;
use http::Method;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The `Authorization` header and dates.
pub fn signature_header(bytes: &[u8]) {
    let text = text(bytes);
    let parsed = Authorization::parse(&text);
    let behind = Authorization::parse(&format!("AWS4-HMAC-SHA256 {text}"));
    for authorization in [parsed, behind].into_iter().flatten() {
        assert_eq!(authorization.signature.len(), 64);
        assert!(authorization.signed_headers.iter().any(|n| n == "host"));
        let scope = format!("{}/{}", authorization.credential.access_key, authorization.credential.scope());
        assert_eq!(Credential::parse(&scope), Some(authorization.credential));
    }
    if let Some(secs) = date::parse_amz(&text) {
        assert_eq!(date::amz(secs), text);
    }
    let _ = date::parse_http(&text);
}

/// The query: presigned URLs and routing.
pub fn presigned_query(bytes: &[u8]) {
    let Ok(mut query) = Query::parse(&text(bytes)) else { return };
    if let Ok(url) = Presigned::parse(&query) {
        assert!((1..=presigned::MAX_EXPIRES).contains(&url.expires));
        let _ = url.check_time(0, 0);
    }
    presigned::hoisted(&mut query);
    for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::HEAD] {
        for level in [Level::Service, Level::Bucket, Level::Object] {
            if let Ok(operation) = route(&method, level, &query, false, false) {
                let known = |n: &str| n == "x-id" || operation.parameters().contains(&n);
                assert!(query.iter().all(|(name, _)| known(name)), "nothing is ignored");
            }
        }
    }
}

/// The aws-chunked encoding. The first byte chooses the kind, the second where the wire cuts.
pub fn chunked_body(bytes: &[u8]) {
    let [kind, piece, rest @ ..] = bytes else { return };
    let length = 1000;
    let signer = || {
        let credential = Credential::parse("k/20130524/r/s3/aws4_request")?;
        let key = SigningKey::derive("secret", &credential);
        Some(ChunkSigner::new(key, "20130524T000000Z", &credential.scope(), "seed"))
    };
    let signer = if kind & 1 == 1 { signer() } else { None };
    let trailers = (kind & 2 == 2).then(|| vec!["x-amz-checksum-crc32".to_owned()]);
    let mut decoder = ChunkDecoder::new(signer, trailers, length);
    let mut decoded = 0;
    for part in rest.chunks(usize::from(*piece).max(1)) {
        let mut input = Bytes::copy_from_slice(part);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(data)) => decoded += data.len() as u64,
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(decoded <= length);
    if decoder.finish().is_ok() {
        assert_eq!(decoded, length);
    }
}

/// The bodies in XML.
pub fn xml_bodies(bytes: &[u8]) {
    let _ = xml::parse(bytes);
    if let Ok(delete) = xml::parse_delete(bytes) {
        assert!((1..=1000).contains(&delete.keys.len()));
    }
    let _ = (xml::parse_complete(bytes), xml::parse_create_bucket(bytes));
}

/// Ranges, conditions, copy sources, hosts and escapes. The first byte is the object's size.
pub fn range_and_conditions(bytes: &[u8]) {
    let [size, rest @ ..] = bytes else { return };
    let (size, text) = (u64::from(*size), text(rest));
    for header in [text.clone(), format!("bytes={text}")] {
        if let Some(Ok(met)) = range::parse(&header).map(|spec| range::resolve(spec, size)) {
            assert!(met.first <= met.last && met.last < size);
        }
        let _ = range::parse_copy_range(&header);
    }
    let conditions = Conditions {
        if_match: Some(text.clone()),
        if_none_match: Some(text.clone()),
        ..Conditions::default()
    };
    let _ = conditions.judge(&text, size);
    if let Ok(source) = parse_copy_source(&text) {
        assert!(!source.bucket.is_empty() && !source.key.is_empty());
    }
    let _ = vhost::bucket_of_host(&text, Some("s3.example.org"));
    assert_eq!(percent::decode(&percent::encode(&text, true), true), Ok(text));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_break_a_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::signature_header(&bytes);
            super::presigned_query(&bytes);
            super::chunked_body(&bytes);
            super::xml_bodies(&bytes);
            super::range_and_conditions(&bytes);
        }

        #[test]
        fn nothing_that_looks_right_breaks_a_parser(
            header in "Credential=[a/]{0,6}/20130524/r/s3/aws4_request,( )?SignedHeaders=(host|a|;){1,4},Signature=[0-9a-f]{63,65}",
            query in "((prefix|acl|uploads|partNumber|uploadId|x-id|X-Amz-Expires|X-Amz-Date)(=[0-9a%]{0,3})?&?){0,6}",
            body in "[\u{0}-\u{3}][\u{1}-\u{40}]([0-9a-f]{1,2}(;chunk-signature=0{64})?\r\n[a-z]{0,9}\r\n){0,4}(x-amz-checksum-crc32:[a-zA-Z=]{0,8}\r\n)?\r\n",
            xml in "<Delete>(<Object>(<Key>[a-z&;#]{0,5}</Key>){0,2}</Object>){0,3}</Delete>",
            range in "[\u{0}-\u{7f}][0-9,]{0,3}-[0-9]{0,3}",
        ) {
            super::signature_header(header.as_bytes());
            super::presigned_query(query.as_bytes());
            super::chunked_body(body.as_bytes());
            super::xml_bodies(xml.as_bytes());
            super::range_and_conditions(range.as_bytes());
        }
    }
}
