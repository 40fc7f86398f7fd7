//! Buckets and objects over HTTP: put, get, head, ranges, conditions, copies, deletes, listings.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod s3_support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest as _, Md5};
use s3_support::{Client, ask, encode_path, noise, world};

fn md5_hex(data: &[u8]) -> String {
    hex::encode(Md5::digest(data))
}

async fn make_bucket(client: &Client, name: &str) {
    client.send(ask("PUT", &format!("/{name}"))).await.expect(200);
}

#[tokio::test]
async fn buckets_are_created_listed_and_deleted() {
    let world = world().await;
    let c = &world.client;
    let answer = c.send(ask("PUT", "/bucket-a")).await.expect(200);
    assert_eq!(answer.header("location"), "/bucket-a");
    assert_eq!(answer.header("x-amz-request-id").len(), 16);
    let body = "<CreateBucketConfiguration><LocationConstraint>hayloft</LocationConstraint></CreateBucketConfiguration>";
    c.send(ask("PUT", "/bucket-b").body(body)).await.expect(200);
    c.send(ask("PUT", "/bucket-c").body(body.replace("hayloft", "mars")))
        .await
        .expect_error(400, "IllegalLocationConstraintException");
    c.send(ask("PUT", "/bucket-a")).await.expect_error(409, "BucketAlreadyOwnedByYou");
    c.send(ask("PUT", "/Bad_Name")).await.expect_error(400, "InvalidBucketName");
    let list = c.send(ask("GET", "/")).await.expect(200).text();
    assert!(list.contains("<Name>bucket-a</Name>") && list.contains("<Name>bucket-b</Name>"), "{list}");
    let page = c.send(ask("GET", "/?max-buckets=1")).await.expect(200);
    assert_eq!(page.element("ContinuationToken"), "bucket-a");
    let head = c.send(ask("HEAD", "/bucket-a")).await.expect(200);
    assert_eq!(head.header("x-amz-bucket-region"), "hayloft");
    let location = c.send(ask("GET", "/bucket-a?location")).await.expect(200).text();
    assert!(location.contains(">hayloft</LocationConstraint>"), "{location}");
    let versioning = c.send(ask("GET", "/bucket-a?versioning")).await.expect(200).text();
    assert!(!versioning.contains("<Status>"), "{versioning}");
    assert!(c.send(ask("GET", "/bucket-a?acl")).await.expect(200).text().contains("FULL_CONTROL"));
    c.send(ask("PUT", "/bucket-a/k").body("x")).await.expect(200);
    c.send(ask("DELETE", "/bucket-a")).await.expect_error(409, "BucketNotEmpty");
    c.send(ask("DELETE", "/bucket-b")).await.expect(204);
    c.send(ask("HEAD", "/bucket-b")).await.expect(404);
    c.send(ask("GET", "/bucket-b")).await.expect_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn objects_of_all_sizes_come_back() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "sizes").await;
    for (i, size) in [0usize, 1, 1000, 1001, 65536, 65537, 1_000_000].into_iter().enumerate() {
        let data = noise(size, i as u64);
        let put = c.send(ask("PUT", "/sizes/k").body(&data)).await.expect(200);
        assert_eq!(put.header("etag"), format!("\"{}\"", md5_hex(&data)));
        let get = c.send(ask("GET", "/sizes/k")).await.expect(200);
        assert_eq!(get.header("content-length"), size.to_string());
        assert_eq!(get.header("content-type"), "binary/octet-stream");
        assert_eq!(get.header("accept-ranges"), "bytes");
        assert!(get.body == data, "size {size}");
        let head = c.send(ask("HEAD", "/sizes/k")).await.expect(200);
        assert_eq!(
            (head.header("content-length"), head.header("etag")),
            (size.to_string().as_str(), put.header("etag"))
        );
    }
    c.send(ask("GET", "/sizes/missing")).await.expect_error(404, "NoSuchKey");
    c.send(ask("HEAD", "/sizes/missing")).await.expect(404);
    c.send(ask("DELETE", "/sizes/k")).await.expect(204);
    c.send(ask("DELETE", "/sizes/k")).await.expect(204);
    c.send(ask("GET", "/sizes/k")).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn keys_are_any_text_and_never_normalised() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "keys").await;
    let long = "x".repeat(1024);
    let keys = [
        "a",
        "a/",
        "a/b",
        "../up",
        "./here",
        "//",
        "/",
        "a//b",
        "100%",
        "%2F",
        "a+b",
        "a b",
        "ü/🦀",
        "a\u{1}\r\nb\u{7f}",
        "<&>'\"",
        "?x=1",
        "#frag",
        "\\",
        long.as_str(),
    ];
    for key in keys {
        let path = format!("/keys/{}", encode_path(key));
        c.send(ask("PUT", &path).body(key)).await.expect(200);
    }
    for key in keys {
        let path = format!("/keys/{}", encode_path(key));
        assert_eq!(c.send(ask("GET", &path)).await.expect(200).text(), key);
    }
    let list = c.send(ask("GET", "/keys?encoding-type=url&list-type=2")).await.expect(200);
    assert_eq!(list.element("KeyCount"), keys.len().to_string());
    for key in keys {
        assert!(list.text().contains(&format!("<Key>{}</Key>", encode_path(key))), "{key:?}");
    }
    let list = c.send(ask("GET", "/keys")).await.expect(200).text();
    assert!(list.contains("<Key>a&#x1;&#xD;&#xA;b&#x7F;</Key>"), "{list}");
    let too_long = format!("/keys/{}", "x".repeat(1025));
    c.send(ask("PUT", &too_long).body("x")).await.expect_error(400, "KeyTooLongError");
    c.send(ask("PUT", "/keys/%FF").body("x")).await.expect_error(400, "InvalidURI");
}

#[tokio::test]
async fn hosts_below_the_root_domain_name_the_bucket() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "vhost").await;
    c.send(ask("PUT", "/a/b").header("host", "vhost.s3.test").body("x")).await.expect(200);
    assert_eq!(c.send(ask("GET", "/vhost/a/b")).await.expect(200).text(), "x");
    let list = c.send(ask("GET", "/").header("host", "vhost.s3.test:3900")).await.expect(200).text();
    assert!(list.contains("<Key>a/b</Key>"), "{list}");
}

#[tokio::test]
async fn headers_and_metadata_round_trip_and_can_be_overridden() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "meta").await;
    let headers = [
        ("content-type", "text/plain"),
        ("content-disposition", "attachment; filename=x"),
        ("content-language", "de"),
        ("cache-control", "no-cache"),
        ("expires", "Thu, 01 Dec 2033 16:00:00 GMT"),
        ("x-amz-meta-color", "blue"),
        ("x-amz-meta-empty", ""),
        ("x-amz-website-redirect-location", "/other"),
    ];
    let put = headers.iter().fold(ask("PUT", "/meta/k").body("x"), |a, (n, v)| a.header(n, v));
    c.send(put.header("content-encoding", "aws-chunked,gzip")).await.expect(200);
    let get = c.send(ask("GET", "/meta/k")).await.expect(200);
    for (name, value) in headers {
        assert_eq!(get.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(get.header("content-encoding"), "gzip");
    let get = c
        .send(ask("GET", "/meta/k?response-content-type=a%2Fb&response-cache-control=max-age%3D1"))
        .await
        .expect(200);
    assert_eq!((get.header("content-type"), get.header("cache-control")), ("a/b", "max-age=1"));
    let big = "v".repeat(2100);
    c.send(ask("PUT", "/meta/k").header("x-amz-meta-a", &big).body("x"))
        .await
        .expect_error(400, "MetadataTooLarge");
}

#[tokio::test]
async fn ranges_and_conditions_are_honoured() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "range").await;
    let data = noise(200_000, 1);
    let etag = c.send(ask("PUT", "/range/k").body(&data)).await.expect(200).header("etag").to_owned();
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=65530-65540", 65530, 65540),
        ("bytes=199999-", 199_999, 199_999),
        ("bytes=-10", 199_990, 199_999),
        ("bytes=0-999999", 0, 199_999),
    ] {
        let get = c.send(ask("GET", "/range/k").header("range", range)).await.expect(206);
        assert_eq!(get.header("content-range"), format!("bytes {first}-{last}/200000"));
        assert!(get.body == data[first..=last], "{range}");
    }
    let bad = c
        .send(ask("GET", "/range/k").header("range", "bytes=200000-"))
        .await
        .expect_error(416, "InvalidRange");
    assert_eq!(bad.element("ActualObjectSize"), "200000");
    c.send(ask("GET", "/range/k").header("range", "bytes=0-1,5-6")).await.expect(200);
    let head = c.send(ask("HEAD", "/range/k").header("range", "bytes=0-9")).await.expect(206);
    assert_eq!(head.header("content-length"), "10");

    let get = |name: &str, value: &str| c.send(ask("GET", "/range/k").header(name, value));
    get("if-match", &etag).await.expect(200);
    get("if-match", "\"x\"").await.expect_error(412, "PreconditionFailed");
    let not_modified = get("if-none-match", &etag).await.expect(304);
    assert!(not_modified.body.is_empty());
    assert_eq!(not_modified.header("etag"), etag);
    get("if-modified-since", "Thu, 01 Dec 2033 16:00:00 GMT").await.expect(304);
    get("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT").await.expect(412);
    let if_range = ask("GET", "/range/k").header("range", "bytes=0-1");
    c.send(if_range.clone().header("if-range", &etag)).await.expect(206);
    c.send(if_range.header("if-range", "\"other\"")).await.expect(200);
    let part = c.send(ask("GET", "/range/k?partNumber=1")).await.expect(206);
    assert!(part.body == data);
    c.send(ask("GET", "/range/k?partNumber=2")).await.expect_error(416, "InvalidPartNumber");
    c.send(ask("GET", "/range/k?partNumber=0")).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn checksums_are_verified_and_answered() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "sums").await;
    for (name, value) in [
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ("x-amz-checksum-crc32c", "4waSgw=="),
        ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
        ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
    ] {
        let put = c.send(ask("PUT", "/sums/k").header(name, value).body("123456789")).await;
        let put = put.expect(200);
        assert_eq!((put.header(name), put.header("x-amz-checksum-type")), (value, "FULL_OBJECT"));
        let head = c.send(ask("HEAD", "/sums/k").header("x-amz-checksum-mode", "ENABLED")).await.expect(200);
        assert_eq!(head.header(name), value);
        let plain = c.send(ask("HEAD", "/sums/k")).await.expect(200);
        assert_eq!(plain.header(name), "");
        let wrong = format!("A{}", &value[1..]);
        c.send(ask("PUT", "/sums/bad").header(name, &wrong).body("123456789"))
            .await
            .expect_error(400, "BadDigest");
    }
    let md5 = BASE64.encode(Md5::digest(b"abc"));
    c.send(ask("PUT", "/sums/k").header("content-md5", &md5).body("abc")).await.expect(200);
    c.send(ask("PUT", "/sums/bad").header("content-md5", &md5).body("abd"))
        .await
        .expect_error(400, "BadDigest");
    c.send(ask("PUT", "/sums/bad").header("content-md5", "xx").body("abd"))
        .await
        .expect_error(400, "InvalidDigest");
    c.send(ask("GET", "/sums/bad")).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn copies_follow_their_directives_and_conditions() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "from").await;
    make_bucket(c, "into").await;
    let data = noise(100_000, 2);
    let put = ask("PUT", "/from/a%20b").header("x-amz-meta-a", "1").header("content-type", "t/x").body(&data);
    let etag = c.send(put).await.expect(200).header("etag").to_owned();
    let copy = |target: &str| ask("PUT", target).header("x-amz-copy-source", "/from/a%20b");
    let done = c.send(copy("/into/k")).await.expect(200);
    assert_eq!(done.element("ETag"), etag);
    let get = c.send(ask("GET", "/into/k")).await.expect(200);
    assert_eq!((get.header("x-amz-meta-a"), get.header("content-type")), ("1", "t/x"));
    assert!(get.body == data);
    let replace = copy("/into/k").header("x-amz-metadata-directive", "REPLACE").header("x-amz-meta-b", "2");
    c.send(replace).await.expect(200);
    let head = c.send(ask("HEAD", "/into/k")).await.expect(200);
    assert_eq!((head.header("x-amz-meta-a"), head.header("x-amz-meta-b")), ("", "2"));
    c.send(copy("/from/a%20b")).await.expect_error(400, "InvalidRequest");
    c.send(copy("/from/a%20b").header("x-amz-metadata-directive", "REPLACE")).await.expect(200);
    c.send(copy("/into/k").header("x-amz-copy-source-if-match", "\"x\""))
        .await
        .expect_error(412, "PreconditionFailed");
    c.send(copy("/into/k").header("x-amz-copy-source-if-none-match", &etag))
        .await
        .expect_error(412, "PreconditionFailed");
    c.send(ask("PUT", "/into/k").header("x-amz-copy-source", "from/none"))
        .await
        .expect_error(404, "NoSuchKey");
    c.send(ask("PUT", "/into/k").header("x-amz-copy-source", "nobucket/x"))
        .await
        .expect_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn many_objects_are_deleted_at_once() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "many").await;
    for key in ["a", "b%26", "c"] {
        c.send(ask("PUT", &format!("/many/{key}")).body("x")).await.expect(200);
    }
    let xml = "<Delete><Object><Key>a</Key></Object><Object><Key>b&amp;</Key></Object><Object><Key>none</Key></Object></Delete>";
    let done = c.send(ask("POST", "/many?delete").body(xml)).await.expect(200).text();
    assert_eq!(done.matches("<Deleted>").count(), 3, "{done}");
    let quiet = "<Delete><Quiet>true</Quiet><Object><Key>c</Key></Object></Delete>";
    let done = c.send(ask("POST", "/many?delete").body(quiet)).await.expect(200).text();
    assert_eq!(done.matches("<Deleted>").count(), 0, "{done}");
    assert_eq!(c.send(ask("GET", "/many?list-type=2")).await.expect(200).element("KeyCount"), "0");
    let unprotected = ask("POST", "/many?delete").payload("UNSIGNED-PAYLOAD").body(xml);
    c.send(unprotected.clone()).await.expect_error(400, "MissingContentMD5");
    let md5 = BASE64.encode(Md5::digest(xml));
    c.send(unprotected.clone().header("content-md5", &md5)).await.expect(200);
    c.send(unprotected.header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="))
        .await
        .expect_error(400, "BadDigest");
}

#[tokio::test]
async fn listings_page_through_keys_and_prefixes() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "list").await;
    for key in ["a", "b/1", "b/2", "c", "d/1", "e"] {
        c.send(ask("PUT", &format!("/list/{key}")).body("x")).await.expect(200);
    }
    let page = c.send(ask("GET", "/list?list-type=2&delimiter=%2F&max-keys=2")).await.expect(200);
    assert_eq!((page.element("IsTruncated").as_str(), page.element("KeyCount").as_str()), ("true", "2"));
    assert!(page.text().contains("<CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes>"), "{}", page.text());
    let token = encode_path(&page.element("NextContinuationToken")).replace('/', "%2F");
    let target = format!("/list?continuation-token={token}&delimiter=%2F&list-type=2");
    let rest = c.send(ask("GET", &target)).await.expect(200);
    assert_eq!((rest.element("IsTruncated").as_str(), rest.element("KeyCount").as_str()), ("false", "3"));
    let after = c.send(ask("GET", "/list?fetch-owner=true&list-type=2&start-after=c")).await.expect(200);
    assert_eq!(after.element("KeyCount"), "2");
    assert!(after.text().contains("<DisplayName>tester</DisplayName>"));
    let v1 = c.send(ask("GET", "/list?delimiter=%2F&marker=b%2F&max-keys=1")).await.expect(200);
    assert_eq!((v1.element("Key").as_str(), v1.element("NextMarker").as_str()), ("c", "c"));
    let none = c.send(ask("GET", "/list?max-keys=0")).await.expect(200);
    assert_eq!((none.element("IsTruncated").as_str(), none.element("Key").as_str()), ("false", ""));
    for bad in ["max-keys=-1", "max-keys=x", "encoding-type=xml", "continuation-token=garbage&list-type=2"] {
        c.send(ask("GET", &format!("/list?{bad}"))).await.expect_error(400, "InvalidArgument");
    }
}

#[tokio::test]
async fn attributes_are_the_real_ones() {
    let world = world().await;
    let c = &world.client;
    make_bucket(c, "attr").await;
    c.send(ask("PUT", "/attr/k").header("x-amz-checksum-crc32", "y/Q5Jg==").body("123456789"))
        .await
        .expect(200);
    let wanted = ask("GET", "/attr/k?attributes")
        .header("x-amz-object-attributes", "ETag,Checksum,ObjectSize,StorageClass");
    let found = c.send(wanted).await.expect(200);
    assert_eq!(found.element("ETag"), md5_hex(b"123456789"));
    assert_eq!(
        (found.element("ObjectSize").as_str(), found.element("ChecksumCRC32").as_str()),
        ("9", "y/Q5Jg==")
    );
    c.send(ask("GET", "/attr/k?attributes")).await.expect_error(400, "InvalidRequest");
    assert!(c.send(ask("GET", "/attr/k?acl")).await.expect(200).text().contains("FULL_CONTROL"));
}
