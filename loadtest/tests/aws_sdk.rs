//! The Rust SDK of AWS against a real cluster: `hayloft dev` from the same build, talked to as applications do.
//!
//! Needs the three binaries beside the test's own directory (`cargo build --bins` with the same profile first).

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A development cluster that is stopped with the test.
struct Cluster {
    dev: Child,
    dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGTERM, so that the daemons stop too; what is left of them would hold the directory.
        let _ = Command::new("kill").arg(self.dev.id().to_string()).status();
        let _ = self.dev.wait();
    }
}

fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --bins` with the same profile first",
        path.display()
    );
    path
}

async fn start() -> (Cluster, Client, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.json");
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let dev = Command::new(binary("hayloft"))
        .args(["dev", "--dir"])
        .arg(dir.path().join("data"))
        .arg("--json")
        .arg(&file)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut cluster = Cluster { dev, dir };
    for _ in 0..900 {
        if let Ok(text) = std::fs::read_to_string(&file)
            && let Ok(info) = serde_json::from_str::<serde_json::Value>(&text)
        {
            let s3 = &info["s3"];
            let text = |name: &str| s3[name].as_str().unwrap().to_owned();
            let credentials = Credentials::new(text("access_key"), text("secret_key"), None, None, "test");
            let config = aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .endpoint_url(s3["endpoints"][0].as_str().unwrap())
                .region(Region::new(text("region")))
                .credentials_provider(credentials)
                .force_path_style(true)
                .build();
            return (cluster, Client::from_conf(config), text("bucket"));
        }
        assert!(cluster.dev.try_wait().unwrap().is_none(), "{}", log_of(&cluster));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the cluster did not start:\n{}", log_of(&cluster));
}

fn log_of(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.dir.path().join("log")).unwrap_or_default()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn code<E: aws_sdk_s3::error::ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> String {
    error.code().unwrap_or("none").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_works_as_applications_use_it() {
    let (_cluster, s3, bucket) = start().await;
    objects(&s3, &bucket).await;
    checksums(&s3, &bucket).await;
    multipart(&s3, &bucket).await;
    listing_and_deletion(&s3, &bucket).await;
    presigned(&s3, &bucket).await;
}

async fn read(s3: &Client, bucket: &str, key: &str) -> Vec<u8> {
    let answer = s3.get_object().bucket(bucket).key(key).send().await.unwrap();
    answer.body.collect().await.unwrap().into_bytes().to_vec()
}

async fn objects(s3: &Client, bucket: &str) {
    for (i, len) in [0, 5, 20_000, 3_000_001].into_iter().enumerate() {
        let body = bytes(i as u64, len);
        let put = s3.put_object().bucket(bucket).key("o").body(body.clone().into());
        put.metadata("k", "v").content_type("a/b").send().await.unwrap();
        assert_eq!(read(s3, bucket, "o").await, body);
        let head = s3.head_object().bucket(bucket).key("o").send().await.unwrap();
        assert_eq!(head.content_length(), Some(len as i64));
        assert_eq!(head.metadata().unwrap()["k"], "v");
        assert_eq!(head.content_type(), Some("a/b"));
    }
    let missing = s3.get_object().bucket(bucket).key("none").send().await.unwrap_err();
    assert_eq!(code(&missing), "NoSuchKey");
    let missing = s3.get_object().bucket("no-such-bucket").key("none").send().await.unwrap_err();
    assert_eq!(code(&missing), "NoSuchBucket");
    let refused = s3.put_object().bucket(bucket).key("o").if_none_match("*").send().await.unwrap_err();
    assert_eq!(code(&refused), "NotImplemented");
}

async fn checksums(s3: &Client, bucket: &str) {
    let body = bytes(9, 300_000);
    for algorithm in [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ] {
        // From a file: a stream of which the SDK sends the checksum as a trailer.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &body).unwrap();
        let stream = ByteStream::from_path(file.path()).await.unwrap();
        let put = s3.put_object().bucket(bucket).key("sum").checksum_algorithm(algorithm.clone());
        let put = put.body(stream).send().await.unwrap();
        let head = s3.head_object().bucket(bucket).key("sum").checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await.unwrap();
        let sums =
            |a: Option<&str>, b: Option<&str>| assert!(a.is_some() && a == b, "{algorithm:?}: {a:?} {b:?}");
        match algorithm {
            ChecksumAlgorithm::Crc32 => sums(put.checksum_crc32(), head.checksum_crc32()),
            ChecksumAlgorithm::Crc32C => sums(put.checksum_crc32_c(), head.checksum_crc32_c()),
            ChecksumAlgorithm::Crc64Nvme => sums(put.checksum_crc64_nvme(), head.checksum_crc64_nvme()),
            ChecksumAlgorithm::Sha1 => sums(put.checksum_sha1(), head.checksum_sha1()),
            _ => sums(put.checksum_sha256(), head.checksum_sha256()),
        }
        // The SDK compares what it reads with the checksum that is kept.
        let get = s3.get_object().bucket(bucket).key("sum").checksum_mode(ChecksumMode::Enabled);
        let back = get.send().await.unwrap().body.collect().await.unwrap().into_bytes();
        assert_eq!(back, body);
    }
}

async fn multipart(s3: &Client, bucket: &str) {
    let created = s3.create_multipart_upload().bucket(bucket).key("mp").send().await.unwrap();
    let upload = created.upload_id().unwrap();
    let parts: Vec<Vec<u8>> = (0..3).map(|i| bytes(100 + i, (5 << 20) + i as usize)).collect();
    let mut done = CompletedMultipartUpload::builder();
    for (i, part) in parts.iter().enumerate() {
        let number = i as i32 + 1;
        let sent = s3.upload_part().bucket(bucket).key("mp").upload_id(upload).part_number(number);
        let sent = sent.body(part.clone().into()).send().await.unwrap();
        let mut entry = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag);
        entry = entry.set_checksum_crc32(sent.checksum_crc32);
        done = done.parts(entry.build());
    }
    let complete = s3.complete_multipart_upload().bucket(bucket).key("mp").upload_id(upload);
    let complete = complete.multipart_upload(done.build()).send().await.unwrap();
    assert!(complete.e_tag().unwrap().ends_with("-3\""));
    assert_eq!(read(s3, bucket, "mp").await, parts.concat());
    let abandoned = s3.create_multipart_upload().bucket(bucket).key("x").send().await.unwrap();
    let id = abandoned.upload_id().unwrap();
    s3.abort_multipart_upload().bucket(bucket).key("x").upload_id(id).send().await.unwrap();
    let gone = s3.list_parts().bucket(bucket).key("x").upload_id(id).send().await.unwrap_err();
    assert_eq!(code(&gone), "NoSuchUpload");
}

async fn listing_and_deletion(s3: &Client, bucket: &str) {
    for i in 0..25 {
        let key = format!("list/{:02}/ü +%{i}", i % 5);
        s3.put_object().bucket(bucket).key(key).body(vec![1].into()).send().await.unwrap();
    }
    let mut pages = s3.list_objects_v2().bucket(bucket).prefix("list/").max_keys(4).into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        keys.extend(page.unwrap().contents().iter().map(|o| o.key().unwrap().to_owned()));
    }
    assert_eq!(keys.len(), 25);
    assert!(keys.is_sorted());
    let rolled = s3.list_objects_v2().bucket(bucket).prefix("list/").delimiter("/").send().await.unwrap();
    assert_eq!(rolled.common_prefixes().len(), 5);
    let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(objects.collect())).build().unwrap();
    let deleted = s3.delete_objects().bucket(bucket).delete(delete).send().await.unwrap();
    assert_eq!(deleted.deleted().len(), 25);
    let left = s3.list_objects_v2().bucket(bucket).prefix("list/").send().await.unwrap();
    assert_eq!(left.key_count(), Some(0));
}

async fn presigned(s3: &Client, bucket: &str) {
    s3.put_object().bucket(bucket).key("p q").body(b"presigned".to_vec().into()).send().await.unwrap();
    let expiry = PresigningConfig::expires_in(Duration::from_mins(1)).unwrap();
    let url = s3.get_object().bucket(bucket).key("p q").presigned(expiry).await.unwrap();
    let answer = Command::new("curl").args(["-sS", "--fail", url.uri()]).output().unwrap();
    assert_eq!(answer.stdout, b"presigned", "{}", String::from_utf8_lossy(&answer.stderr));
}
