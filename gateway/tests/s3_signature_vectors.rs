//! The examples of AWS's documents ("Signature Calculations for the Authorization Header" and
//! "Authenticating Requests: Using Query Parameters"), through the gateway's whole authentication.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use async_trait::async_trait;
use hayloft_common::crdt::{Lww, LwwMap};
use hayloft_common::schema::{KeyId, KeyRow};
use hayloft_gateway::auth::canonical::Signable;
use hayloft_gateway::auth::{AuthConfig, AuthError, Caller, KeyLookup, Payload, authenticate};
use hayloft_gateway::domain::DomainError;
use hayloft_gateway::http::query::Query;
use hayloft_gateway::http::{date, percent};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::future::Future;
use std::sync::Arc;

const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const HOST: &str = "examplebucket.s3.amazonaws.com";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

struct OneKey;

#[async_trait]
impl KeyLookup for OneKey {
    async fn find(&self, id: &str) -> Result<Option<Arc<KeyRow>>, DomainError> {
        Ok((id == KEY).then(|| {
            Arc::new(KeyRow {
                id: KeyId(KEY.into()),
                secret: SECRET.into(),
                created_ms: 0,
                deleted: false,
                name: Lww::default(),
                expires_ms: Lww::default(),
                create_bucket: Lww::default(),
                buckets: LwwMap::new(),
                local_aliases: LwwMap::new(),
            })
        }))
    }
}

fn check(method: &str, target: &str, headers: &[(&str, &str)], now: &str) -> Result<Caller, AuthError> {
    let (raw_path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: HeaderMap = headers
        .iter()
        .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
        .collect();
    let path = percent::decode(raw_path, false).unwrap();
    let query = Query::parse(query).unwrap();
    let request = Signable { method, raw_path, path: &path, query: &query, headers: &headers, host: HOST };
    let config = AuthConfig::new("s3", "us-east-1", &[]);
    block_on(authenticate(&config, date::parse_amz(now).unwrap(), request, &OneKey))
}

fn authorization(signed: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={KEY}/20130524/us-east-1/s3/aws4_request,SignedHeaders={signed},Signature={signature}"
    )
}

const NOW: &str = "20130524T000000Z";

#[test]
fn get_object_with_a_range() {
    let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
    let authorization = authorization("host;range;x-amz-content-sha256;x-amz-date", signature);
    let headers = [
        ("range", "bytes=0-9"),
        ("x-amz-content-sha256", EMPTY),
        ("x-amz-date", NOW),
        ("authorization", authorization.as_str()),
    ];
    let caller = check("GET", "/test.txt", &headers, NOW).unwrap();
    assert!(matches!(caller.payload, Payload::Hashed(_)) && !caller.presigned);
    assert!(matches!(check("GET", "/test.tx", &headers, NOW), Err(AuthError::BadSignature(_))));
    assert!(matches!(check("PUT", "/test.txt", &headers, NOW), Err(AuthError::BadSignature(_))));
    let late = check("GET", "/test.txt", &headers, "20130524T001501Z");
    assert!(matches!(late, Err(AuthError::Skewed { .. })));
}

#[test]
fn put_object_with_a_key_that_needs_encoding() {
    let signature = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd";
    let authorization =
        authorization("date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class", signature);
    let headers = [
        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
        ("x-amz-date", NOW),
        ("authorization", authorization.as_str()),
    ];
    // The document sends the `$` bare and signs it encoded.
    check("PUT", "/test$file.text", &headers, NOW).unwrap();
    check("PUT", "/test%24file.text", &headers, NOW).unwrap();
}

#[test]
fn requests_on_a_bucket_with_a_query() {
    let lifecycle = authorization(
        "host;x-amz-content-sha256;x-amz-date",
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    );
    let headers =
        [("x-amz-content-sha256", EMPTY), ("x-amz-date", NOW), ("authorization", lifecycle.as_str())];
    check("GET", "/?lifecycle", &headers, NOW).unwrap();
    let list = authorization(
        "host;x-amz-content-sha256;x-amz-date",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    );
    let headers = [("x-amz-content-sha256", EMPTY), ("x-amz-date", NOW), ("authorization", list.as_str())];
    check("GET", "/?max-keys=2&prefix=J", &headers, NOW).unwrap();
    check("GET", "/?prefix=J&max-keys=2", &headers, NOW).unwrap();
}

#[test]
fn a_presigned_url() {
    let target = format!(
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={KEY}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date={NOW}&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    );
    assert!(check("GET", &target, &[], "20130524T235959Z").unwrap().presigned);
    assert!(matches!(check("GET", &target, &[], "20130525T000001Z"), Err(AuthError::Expired { .. })));
    let added = check("GET", &target, &[("x-amz-acl", "private")], NOW);
    assert!(matches!(added, Err(AuthError::HeadersNotSigned(_))));
    let token = check("GET", &format!("{target}&X-Amz-Security-Token=x"), &[], NOW);
    assert!(matches!(token, Err(AuthError::SecurityToken)));
}

#[test]
fn the_head_of_a_chunked_upload() {
    let authorization = authorization(
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    );
    let headers = [
        ("content-encoding", "aws-chunked"),
        ("content-length", "66824"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("x-amz-date", NOW),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("authorization", authorization.as_str()),
    ];
    let request = |host| {
        let headers: HeaderMap = headers
            .iter()
            .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
            .collect();
        let query = Query::default();
        let (path, method) = ("/examplebucket/chunkObject.txt", "PUT");
        let request = Signable { method, raw_path: path, path, query: &query, headers: &headers, host };
        let config = AuthConfig::new("s3", "us-east-1", &[]);
        block_on(authenticate(&config, date::parse_amz(NOW).unwrap(), request, &OneKey))
    };
    let caller = request("s3.amazonaws.com").unwrap();
    assert!(matches!(caller.payload, Payload::Chunked { signer: Some(_), trailers: false }));
    assert!(matches!(request("example.org"), Err(AuthError::BadSignature(_))));
}
