//! Multipart uploads over HTTP.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod s3_support;

use md5::{Digest as _, Md5};
use s3_support::{Client, ask, noise, world};
use std::fmt::Write as _;

const PART: usize = 5 << 20;

async fn create(client: &Client, target: &str, headers: &[(&str, &str)]) -> String {
    let ask = headers.iter().fold(ask("POST", &format!("{target}?uploads")), |a, (n, v)| a.header(n, v));
    client.send(ask).await.expect(200).element("UploadId")
}

fn complete_xml(etags: &[(u32, String)]) -> String {
    let mut xml = String::from("<CompleteMultipartUpload>");
    for (number, etag) in etags {
        write!(xml, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>").unwrap();
    }
    xml + "</CompleteMultipartUpload>"
}

#[tokio::test]
async fn an_upload_is_put_together_from_its_parts() {
    let world = world().await;
    let c = &world.client;
    c.send(ask("PUT", "/mpu")).await.expect(200);
    let id = create(c, "/mpu/k", &[("x-amz-meta-a", "1"), ("content-type", "t/x")]).await;
    let parts = [noise(PART, 1), noise(1234, 2)];
    let mut etags = Vec::new();
    for (i, data) in parts.iter().enumerate() {
        let target = format!("/mpu/k?partNumber={}&uploadId={id}", i + 1);
        let put = c.send(ask("PUT", &target).payload("UNSIGNED-PAYLOAD").body(data)).await.expect(200);
        etags.push((i as u32 + 1, put.header("etag").to_owned()));
    }
    let list = c.send(ask("GET", &format!("/mpu/k?uploadId={id}"))).await.expect(200);
    assert_eq!(list.text().matches("<Part>").count(), 2);
    let page = c.send(ask("GET", &format!("/mpu/k?max-parts=1&uploadId={id}"))).await.expect(200);
    assert_eq!(
        (page.element("NextPartNumberMarker").as_str(), page.element("IsTruncated").as_str()),
        ("1", "true")
    );
    let uploads = c.send(ask("GET", "/mpu?uploads")).await.expect(200);
    assert_eq!(uploads.element("UploadId"), id);
    c.send(ask("GET", "/mpu/k")).await.expect_error(404, "NoSuchKey");

    let mut wrong = etags.clone();
    wrong[1].1 = "\"00000000000000000000000000000000\"".into();
    let target = format!("/mpu/k?uploadId={id}");
    c.send(ask("POST", &target).body(complete_xml(&wrong))).await.expect_error(400, "InvalidPart");
    wrong = etags.iter().rev().cloned().collect();
    c.send(ask("POST", &target).body(complete_xml(&wrong))).await.expect_error(400, "InvalidPartOrder");
    c.send(ask("POST", &target).body("<x/>")).await.expect_error(400, "MalformedXML");
    let done = c.send(ask("POST", &target).body(complete_xml(&etags))).await.expect(200);
    let digests: Vec<u8> = parts.iter().flat_map(|p| Md5::digest(p).to_vec()).collect();
    let etag = format!("\"{}-2\"", hex::encode(Md5::digest(&digests)));
    assert_eq!(done.element("ETag"), etag);
    let get = c.send(ask("GET", "/mpu/k")).await.expect(200);
    assert_eq!(
        (get.header("etag"), get.header("content-type"), get.header("x-amz-meta-a")),
        (etag.as_str(), "t/x", "1")
    );
    assert!(get.body == parts.concat());
    let part = c.send(ask("GET", "/mpu/k?partNumber=2")).await.expect(206);
    assert!(part.body == parts[1]);
    assert_eq!(part.header("x-amz-mp-parts-count"), "2");
    let wanted = ask("GET", "/mpu/k?attributes").header("x-amz-object-attributes", "ObjectParts,ObjectSize");
    let attributes = c.send(wanted).await.expect(200);
    assert_eq!(attributes.element("TotalPartsCount"), "2");
    c.send(ask("PUT", &format!("/mpu/k?partNumber=3&uploadId={id}")).body("x"))
        .await
        .expect_error(404, "NoSuchUpload");
}

#[tokio::test]
async fn parts_are_copied_with_ranges() {
    let world = world().await;
    let c = &world.client;
    c.send(ask("PUT", "/mpu")).await.expect(200);
    let source = noise(300_000, 5);
    c.send(ask("PUT", "/mpu/source").body(&source)).await.expect(200);
    let id = create(c, "/mpu/copy", &[]).await;
    let copy = ask("PUT", &format!("/mpu/copy?partNumber=1&uploadId={id}"))
        .header("x-amz-copy-source", "mpu/source");
    let bad = copy.clone().header("x-amz-copy-source-range", "bytes=5-");
    c.send(bad).await.expect_error(400, "InvalidArgument");
    let outside = copy.clone().header("x-amz-copy-source-range", "bytes=5-300000");
    c.send(outside).await.expect_error(400, "InvalidRequest");
    let done = c.send(copy.header("x-amz-copy-source-range", "bytes=1000-250999")).await.expect(200);
    let etags = [(1, done.element("ETag"))];
    c.send(ask("POST", &format!("/mpu/copy?uploadId={id}")).body(complete_xml(&etags))).await.expect(200);
    let get = c.send(ask("GET", "/mpu/copy")).await.expect(200);
    assert!(get.body == source[1000..251_000]);
}

#[tokio::test]
async fn an_aborted_upload_is_gone() {
    let world = world().await;
    let c = &world.client;
    c.send(ask("PUT", "/mpu")).await.expect(200);
    let id = create(c, "/mpu/k", &[]).await;
    let target = format!("/mpu/k?partNumber=1&uploadId={id}");
    c.send(ask("PUT", &target).body("x")).await.expect(200);
    c.send(ask("DELETE", &format!("/mpu/k?uploadId={id}"))).await.expect(204);
    c.send(ask("PUT", &target).body("x")).await.expect_error(404, "NoSuchUpload");
    c.send(ask("GET", "/mpu/k?uploadId=nonsense")).await.expect_error(404, "NoSuchUpload");
    for bad in ["0", "10001", "x", "-1"] {
        let target = format!("/mpu/k?partNumber={bad}&uploadId={id}");
        c.send(ask("PUT", &target).body("x")).await.expect_error(400, "InvalidArgument");
    }
    let uploads = c.send(ask("GET", "/mpu?uploads")).await.expect(200);
    assert_eq!(uploads.element("UploadId"), "");
}

#[tokio::test]
async fn checksums_of_parts_make_the_objects() {
    let world = world().await;
    let c = &world.client;
    c.send(ask("PUT", "/mpu")).await.expect(200);
    let id = create(c, "/mpu/k", &[("x-amz-checksum-algorithm", "CRC32")]).await;
    let target = format!("/mpu/k?partNumber=1&uploadId={id}");
    let put = c
        .send(ask("PUT", &target).header("x-amz-checksum-crc32", "y/Q5Jg==").body("123456789"))
        .await
        .expect(200);
    assert_eq!(put.header("x-amz-checksum-crc32"), "y/Q5Jg==");
    let xml = complete_xml(&[(1, put.header("etag").to_owned())])
        .replace("</ETag>", "</ETag><ChecksumCRC32>y/Q5Jg==</ChecksumCRC32>");
    let complete = |xml: &str| ask("POST", &format!("/mpu/k?uploadId={id}")).body(xml);
    c.send(complete(&xml.replace("y/Q5Jg==", "AAAAAA=="))).await.expect_error(400, "InvalidPart");
    c.send(complete(&xml).header("x-amz-checksum-type", "FULL_OBJECT"))
        .await
        .expect_error(400, "InvalidRequest");
    c.send(complete(&xml).header("x-amz-mp-object-size", "10")).await.expect_error(400, "InvalidRequest");
    let done = c.send(complete(&xml).header("x-amz-mp-object-size", "9")).await.expect(200);
    assert!(done.element("ChecksumCRC32").ends_with("-1"), "{}", done.text());
    assert_eq!(done.element("ChecksumType"), "COMPOSITE");
}
