//! AWS signature version 4 in the `Authorization` header, as pure functions.
//!
//! Written from AWS's description of the algorithm and checked against its published examples; it shares no code
//! with the gateway, so that a mistake on one side cannot hide a mistake on the other.

use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// What stands for the payload's hash when the body is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// SHA-256 of nothing, in hex.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const UNRESERVED_AND_SLASH: &AsciiSet = &UNRESERVED.remove(b'/');

/// An access key and the region it signs for.
#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    /// `s3`, or `k2v`.
    pub service: &'static str,
}

/// A request as far as it is signed. Header names are lower case; `host` and `x-amz-date` are among them.
pub struct Signable<'a> {
    pub method: &'a str,
    /// The path, already encoded by [`encode_path`].
    pub path: &'a str,
    /// Names and values, not encoded, in any order.
    pub query: &'a [(String, String)],
    pub headers: &'a [(String, String)],
    /// SHA-256 of the body in hex, or [`UNSIGNED_PAYLOAD`].
    pub payload_hash: &'a str,
}

/// Encodes an object path as S3 signs it: everything but unreserved characters and slashes.
pub fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, UNRESERVED_AND_SLASH).to_string()
}

/// Encodes and sorts a query as S3 signs it; it is sent in the same form.
pub fn encode_query(query: &[(String, String)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
    let mut pairs: Vec<_> = query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// SHA-256 of `data` in hex.
pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    // HMAC takes keys of any length; the empty result could only come from a broken library, and signs nothing.
    Hmac::<Sha256>::new_from_slice(key)
        .map(|mac| mac.chain_update(message.as_bytes()).finalize().into_bytes().to_vec())
        .unwrap_or_default()
}

/// The value of the `Authorization` header. `date` is `YYYYMMDD'T'HHMMSS'Z'`, the same as in `x-amz-date`.
pub fn authorization(request: &Signable<'_>, credentials: &Credentials, date: &str) -> String {
    let mut headers: Vec<_> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.trim())).collect();
    headers.sort_unstable();
    let signed_names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, encode_query(request.query));
    for (name, value) in &headers {
        // Writing to a string cannot fail.
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let _ = write!(canonical, "\n{signed_names}\n{}", request.payload_hash);

    let day = date.get(..8).unwrap_or(date);
    let scope = format!("{day}/{}/{}/aws4_request", credentials.region, credentials.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));

    let mut key = hmac(format!("AWS4{}", credentials.secret_key).as_bytes(), day);
    for part in [credentials.region.as_str(), credentials.service, "aws4_request"] {
        key = hmac(&key, part);
    }
    let signature = hex::encode(hmac(&key, &to_sign));
    let access_key = &credentials.access_key;
    format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed_names}, Signature={signature}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // Test vectors: "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk"
    // (Amazon S3 API reference), and get-vanilla of AWS's signature version 4 test suite.
    const DATE: &str = "20130524T000000Z";

    fn example() -> Credentials {
        Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
            service: "s3",
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn signature(
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        hash: &str,
    ) -> String {
        let mut headers = pairs(headers);
        headers.extend(pairs(&[
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-date", DATE),
            ("x-amz-content-sha256", hash),
        ]));
        let path = encode_path(path);
        let request =
            Signable { method, path: &path, query: &pairs(query), headers: &headers, payload_hash: hash };
        let value = authorization(&request, &example(), DATE);
        value.rsplit('=').next().unwrap_or_default().to_owned()
    }

    #[test]
    fn aws_example_get_object_with_range() {
        assert_eq!(
            signature("GET", "/test.txt", &[], &[("range", "bytes=0-9")], EMPTY_SHA256),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    #[test]
    fn aws_example_put_object_with_signed_payload() {
        let hash = sha256_hex(b"Welcome to Amazon S3.");
        assert_eq!(hash, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
        assert_eq!(
            signature(
                "PUT",
                "/test$file.text",
                &[],
                &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
                &hash
            ),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
    }

    #[test]
    fn aws_example_get_bucket_lifecycle() {
        assert_eq!(
            signature("GET", "/", &[("lifecycle", "")], &[], EMPTY_SHA256),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
    }

    #[test]
    fn aws_example_list_objects() {
        assert_eq!(
            signature("GET", "/", &[("prefix", "J"), ("max-keys", "2")], &[], EMPTY_SHA256),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn aws_test_suite_get_vanilla() {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
            service: "service",
        };
        let headers = pairs(&[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")]);
        let request =
            Signable { method: "GET", path: "/", query: &[], headers: &headers, payload_hash: EMPTY_SHA256 };
        assert_eq!(
            authorization(&request, &credentials, "20150830T123600Z"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    #[test]
    fn paths_and_queries_are_encoded_as_s3_signs_them() {
        assert_eq!(encode_path("/b/a b+ü/~x"), "/b/a%20b%2B%C3%BC/~x");
        assert_eq!(
            encode_query(&pairs(&[("prefix", "a/b"), ("delimiter", "/")])),
            "delimiter=%2F&prefix=a%2Fb"
        );
    }
}
