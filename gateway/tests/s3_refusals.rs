//! What must be refused, how, and that nothing is stored then: signatures, malformed requests, everything
//! that S3 knows and we don't.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod s3_support;

use s3_support::{Client, World, amz_date, ask, hmac, raw, read_answer, sha256, world, world_with};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn with_bucket() -> World {
    let world = world().await;
    world.client.send(ask("PUT", "/bucket")).await.expect(200);
    world
}

async fn assert_empty(client: &Client) {
    let list = client.send(ask("GET", "/bucket?list-type=2")).await.expect(200);
    assert_eq!(list.element("KeyCount"), "0", "{}", list.text());
}

#[tokio::test]
async fn who_is_not_authenticated_gets_nothing() {
    let world = with_bucket().await;
    let c = &world.client;
    c.plain("GET", "/bucket/k", "", b"").await.expect_error(403, "AccessDenied");
    c.plain("PUT", "/bucket/k", "", b"x").await.expect_error(403, "AccessDenied");
    let v2 = c.plain("GET", "/bucket/k", "authorization: AWS AKID:abc\r\n", b"").await;
    assert!(v2.expect_error(400, "InvalidRequest").text().contains("AWS4-HMAC-SHA256"));
    c.plain("GET", "/bucket/k?AWSAccessKeyId=a&Signature=b&Expires=1", "", b"")
        .await
        .expect_error(400, "InvalidRequest");

    let mut other = c.clone();
    other.key = "HKunknown".into();
    other.send(ask("GET", "/bucket/k")).await.expect_error(403, "InvalidAccessKeyId");
    let mut other = c.clone();
    other.secret = "wrong".into();
    let answer =
        other.send(ask("PUT", "/bucket/k").body("x")).await.expect_error(403, "SignatureDoesNotMatch");
    assert!(answer.element("CanonicalRequest").starts_with("PUT&#xA;/bucket/k&#xA;"), "{}", answer.text());
    assert!(answer.element("StringToSign").starts_with("AWS4-HMAC-SHA256"));
    let mut other = c.clone();
    other.region = "mars".into();
    let answer = other.send(ask("GET", "/bucket/k")).await.expect_error(400, "AuthorizationHeaderMalformed");
    assert!(answer.element("Message").contains("the region 'mars' is wrong; expecting 'hayloft'"));
    assert_eq!(answer.element("Region"), "hayloft");
    let mut other = c.clone();
    other.region = "us-east-1".into();
    other.send(ask("GET", "/bucket?list-type=2")).await.expect(200);
    for skew in [-16 * 60, 16 * 60] {
        let mut late = ask("GET", "/bucket/k");
        late.skew = skew;
        c.send(late).await.expect_error(403, "RequestTimeTooSkewed");
    }
    assert_empty(c).await;
}

#[tokio::test]
async fn an_unsigned_amz_header_is_refused() {
    let world = with_bucket().await;
    let c = &world.client;
    let head = c.head(&ask("PUT", "/bucket/k")).text;
    let wire = head.replace("\r\n\r\n", "\r\nx-amz-meta-added: 1\r\n\r\n");
    let answer = raw(&c.addr, wire.as_bytes(), false).await.expect_error(403, "AccessDenied");
    assert_eq!(answer.element("HeadersNotSigned"), "x-amz-meta-added");
    let cut = head.replace("x-amz-date: ", "x-other: ");
    raw(&c.addr, cut.as_bytes(), false).await.expect(403);
}

#[tokio::test]
async fn a_key_without_rights_is_denied() {
    let world = with_bucket().await;
    let row = world.gateway.create_key(hayloft_gateway::domain::NewKey::default()).await.unwrap();
    let stranger = Client { key: row.id.0, secret: row.secret, ..world.client.clone() };
    stranger.send(ask("GET", "/bucket/k")).await.expect_error(403, "AccessDenied");
    stranger.send(ask("PUT", "/bucket/k").body("x")).await.expect_error(403, "AccessDenied");
    stranger.send(ask("PUT", "/another-one")).await.expect_error(403, "AccessDenied");
    stranger.send(ask("PUT", "/bucket")).await.expect_error(409, "BucketAlreadyExists");
}

#[tokio::test]
async fn presigned_urls_work_until_they_expire() {
    let world = with_bucket().await;
    let c = &world.client;
    let put = c.presign("PUT", "/bucket/k", "x-amz-meta-a=1", 60, 0);
    c.plain("PUT", &put, "", b"hello").await.expect(200);
    let get = c.presign("GET", "/bucket/k", "response-content-type=a%2Fb", 60, -30);
    let answer = c.plain("GET", &get, "", b"").await.expect(200);
    assert_eq!((answer.text().as_str(), answer.header("content-type")), ("hello", "a/b"));
    assert_eq!(answer.header("x-amz-meta-a"), "1");
    let expired = c.presign("GET", "/bucket/k", "", 10, -60);
    let answer = c.plain("GET", &expired, "", b"").await.expect_error(403, "AccessDenied");
    assert_eq!(answer.element("Message"), "Request has expired");
    let early = c.presign("GET", "/bucket/k", "", 10, 3600);
    c.plain("GET", &early, "", b"").await.expect_error(403, "AccessDenied");
    let long = c.presign("GET", "/bucket/k", "", 604_801, 0);
    c.plain("GET", &long, "", b"").await.expect_error(400, "AuthorizationQueryParametersError");
    let other_key = get.replace("/bucket/k?", "/bucket/l?");
    c.plain("GET", &other_key, "", b"").await.expect_error(403, "SignatureDoesNotMatch");
    let acl = c.presign("PUT", "/bucket/k", "x-amz-acl=public-read", 60, 0);
    c.plain("PUT", &acl, "", b"x").await.expect_error(501, "NotImplemented");
    let mut other = c.clone();
    other.region = "mars".into();
    let url = other.presign("GET", "/bucket/k", "", 60, 0);
    let answer = c.plain("GET", &url, "", b"").await.expect_error(400, "AuthorizationQueryParametersError");
    assert!(answer.text().contains("expecting 'hayloft'"), "{}", answer.text());
    c.plain(
        "GET",
        &url,
        &format!("authorization: AWS4-HMAC-SHA256 Credential=a/{}\r\n", &amz_date(0)[..8]),
        b"",
    )
    .await
    .expect(400);
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_before_anything_is_stored() {
    let world = with_bucket().await;
    let c = &world.client;
    for (name, value) in [
        ("if-none-match", "*"),
        ("if-match", "\"a\""),
        ("x-amz-tagging", "a=b"),
        ("x-amz-acl", "public-read"),
        ("x-amz-grant-read", "id=1"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-storage-class", "GLACIER"),
        ("x-amz-whatever", "1"),
    ] {
        let put = ask("PUT", "/bucket/k").header(name, value).body("x");
        c.send(put).await.expect_error(501, "NotImplemented");
        let create = ask("POST", "/bucket/k?uploads").header(name, value);
        c.send(create).await.expect_error(501, "NotImplemented");
    }
    c.send(ask("PUT", "/bucket/k").header("x-amz-storage-class", "FAST").body("x"))
        .await
        .expect_error(400, "InvalidStorageClass");
    for (method, target) in [
        ("PUT", "/bucket/k?tagging"),
        ("PUT", "/bucket/k?acl"),
        ("PUT", "/bucket?versioning"),
        ("PUT", "/bucket?website"),
        ("PUT", "/bucket?lifecycle"),
        ("PUT", "/bucket?made-up"),
        ("GET", "/bucket?policy"),
        ("GET", "/bucket?versions"),
        ("GET", "/bucket/k?versionId=1"),
        ("DELETE", "/bucket/k?versionId=1"),
        ("DELETE", "/bucket?made-up"),
        ("POST", "/bucket/k?restore"),
        ("POST", "/bucket/k"),
        ("OPTIONS", "/bucket/k"),
    ] {
        c.send(ask(method, target)).await.expect_error(501, "NotImplemented");
    }
    let form = "content-type: multipart/form-data; boundary=x\r\n";
    c.plain("POST", "/bucket", form, b"--x--").await.expect_error(501, "NotImplemented");
    c.send(ask("PATCH", "/bucket/k")).await.expect_error(405, "MethodNotAllowed");
    assert_empty(c).await;
}

#[tokio::test]
async fn bodies_that_are_not_what_was_signed_or_announced_are_refused() {
    let world = with_bucket().await;
    let c = &world.client;
    let wrong = ask("PUT", "/bucket/k").payload(&sha256(b"other")).body("data");
    c.send(wrong).await.expect_error(400, "XAmzContentSHA256Mismatch");
    let no_length =
        ask("PUT", "/bucket/k").header("transfer-encoding", "chunked").payload("UNSIGNED-PAYLOAD");
    let mut wire = c.head(&no_length).text.into_bytes();
    wire.extend_from_slice(b"1\r\nx\r\n0\r\n\r\n");
    raw(&c.addr, &wire, false).await.expect_error(411, "MissingContentLength");
    let huge = ask("PUT", "/bucket/k").header("content-length", "5368709121").payload("UNSIGNED-PAYLOAD");
    raw(&c.addr, c.head(&huge).text.as_bytes(), false).await.expect_error(400, "EntityTooLarge");
    c.send(ask("PUT", "/bucket/k").payload("nonsense").body("x")).await.expect_error(400, "InvalidArgument");
    c.send(ask("PUT", "/bucket/k").payload("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD").body("x"))
        .await
        .expect_error(501, "NotImplemented");
    // The client goes away in the middle.
    let cut = ask("PUT", "/bucket/k").header("content-length", "100").payload("UNSIGNED-PAYLOAD");
    let mut stream = TcpStream::connect(&c.addr).await.unwrap();
    stream.write_all(c.head(&cut).text.as_bytes()).await.unwrap();
    stream.write_all(b"only this").await.unwrap();
    drop(stream);
    for (body, code) in [
        ("<Delete><Object>", "MalformedXML"),
        ("", "MalformedXML"),
        ("<Delete/>", "MalformedXML"),
        ("<!DOCTYPE x><Delete><Object><Key>a</Key></Object></Delete>", "MalformedXML"),
    ] {
        c.send(ask("POST", "/bucket?delete").body(body)).await.expect_error(400, code);
    }
    assert_empty(c).await;
}

#[tokio::test]
async fn refusals_come_before_the_body_is_asked_for() {
    let world = with_bucket().await;
    let c = &world.client;
    let put = |name: &str| {
        ask("PUT", "/bucket/k")
            .header("expect", "100-continue")
            .header("content-length", "3")
            .header(name, "abc")
            .payload("UNSIGNED-PAYLOAD")
    };
    let mut stream = TcpStream::connect(&c.addr).await.unwrap();
    stream.write_all(c.head(&put("x-amz-tagging")).text.as_bytes()).await.unwrap();
    read_answer(&mut stream, false).await.expect_error(501, "NotImplemented");

    let mut stream = TcpStream::connect(&c.addr).await.unwrap();
    stream.write_all(c.head(&put("x-amz-meta-a")).text.as_bytes()).await.unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    read_answer(&mut stream, false).await.expect(200);
}

#[tokio::test]
async fn an_error_reaches_a_client_that_is_still_sending() {
    let world = with_bucket().await;
    let c = &world.client;
    let put = ask("PUT", "/bucket/k").header("x-amz-tagging", "a").body(vec![0; 8 << 20]);
    c.send(put).await.expect_error(501, "NotImplemented");
}

#[tokio::test]
async fn signed_chunks_are_decoded_and_verified() {
    let world = with_bucket().await;
    let c = &world.client;
    let send = async |chunks: &[&[u8]], announced: usize, spoil: bool| {
        let put = ask("PUT", "/bucket/chunked")
            .payload("STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
            .header("content-encoding", "aws-chunked")
            .header("x-amz-decoded-content-length", &announced.to_string())
            .header("transfer-encoding", "chunked");
        let head = c.head(&put);
        let (mut body, mut previous) = (Vec::new(), head.signature.clone());
        for chunk in chunks.iter().chain([&&b""[..]]) {
            let to_sign = format!(
                "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{previous}\n{}\n{}",
                head.date,
                head.scope,
                sha256(b""),
                sha256(chunk)
            );
            previous = hex::encode(hmac(&head.key, to_sign.as_bytes()));
            body.extend_from_slice(format!("{:x};chunk-signature={previous}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        if spoil {
            let at = body.len() / 2;
            body[at] ^= 1;
        }
        let mut wire = head.text.into_bytes();
        wire.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        wire.extend_from_slice(&body);
        wire.extend_from_slice(b"\r\n0\r\n\r\n");
        raw(&c.addr, &wire, false).await
    };
    let data = s3_support::noise(150_000, 3);
    let (a, b) = data.split_at(70_000);
    send(&[a, b], 150_000, true).await.expect_error(403, "SignatureDoesNotMatch");
    send(&[a, b], 150_001, false).await.expect_error(400, "IncompleteBody");
    send(&[a, b], 149_999, false).await.expect_error(400, "IncompleteBody");
    assert_empty(c).await;
    send(&[a, b], 150_000, false).await.expect(200);
    let get = c.send(ask("GET", "/bucket/chunked")).await.expect(200);
    assert!(get.body == data);
    assert_eq!(get.header("content-encoding"), "");
    let no_length = ask("PUT", "/bucket/x").payload("STREAMING-AWS4-HMAC-SHA256-PAYLOAD").body("0");
    c.send(no_length).await.expect_error(411, "MissingContentLength");
}

#[tokio::test]
async fn trailing_checksums_are_verified() {
    let world = with_bucket().await;
    let c = &world.client;
    let put = |trailer: &str| {
        let mut body = String::from("9\r\n123456789\r\n0\r\n");
        write!(body, "{trailer}\r\n").unwrap();
        ask("PUT", "/bucket/t")
            .payload("STREAMING-UNSIGNED-PAYLOAD-TRAILER")
            .header("x-amz-decoded-content-length", "9")
            .header("x-amz-trailer", "x-amz-checksum-crc32")
            .header("x-amz-sdk-checksum-algorithm", "CRC32")
            .body(body)
    };
    c.send(put("x-amz-checksum-crc32:AAAAAA==\r\n")).await.expect_error(400, "BadDigest");
    c.send(put("")).await.expect_error(400, "InvalidRequest");
    c.send(put("x-amz-checksum-sha1:AAAA\r\n")).await.expect_error(400, "InvalidRequest");
    assert_empty(c).await;
    let done = c.send(put("x-amz-checksum-crc32:y/Q5Jg==\r\n")).await.expect(200);
    assert_eq!(done.header("x-amz-checksum-crc32"), "y/Q5Jg==");
    assert_eq!(c.send(ask("GET", "/bucket/t")).await.expect(200).text(), "123456789");
}

#[tokio::test]
async fn overload_and_large_heads_are_refused() {
    let world = world_with(|config| {
        config.max_requests = 0;
        config.max_header_bytes = 2000;
    })
    .await;
    let c = &world.client;
    let answer = c.send(ask("GET", "/")).await.expect_error(503, "SlowDown");
    assert_eq!(answer.header("x-amz-request-id").len(), 16);
    let long = "v".repeat(3000);
    c.send(ask("GET", "/").header("x-amz-meta-a", &long))
        .await
        .expect_error(400, "RequestHeaderSectionTooLarge");
    let huge = "v".repeat(200_000);
    c.send(ask("GET", "/").header("x-amz-meta-a", &huge)).await.expect(431);
}

#[tokio::test]
async fn a_client_that_sends_no_head_is_cut_off() {
    let world = world_with(|config| {
        config.header_timeout = Duration::from_millis(200);
        config.idle_timeout = Duration::from_millis(200);
    })
    .await;
    for wire in ["", "GET / HTTP/1.1\r\nhost"] {
        let mut stream = TcpStream::connect(&world.addr).await.unwrap();
        stream.write_all(wire.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest));
        read.await.expect("the server closes the connection").ok();
    }
}
