//! Connections: HTTP/2 over TLS, several requests on one, and what shutdown does to them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod s3_support;

use bytes::Bytes;
use hayloft_common::env::Env;
use hayloft_gateway::http::tls::{Tls, TlsFiles};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use s3_support::{ask, noise, raw, world, world_of};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn http_2_over_tls_is_served() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles { certificate: dir.path().join("crt"), key: dir.path().join("key") };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let world = world_of(|_| {}, Some(Tls::load(&Env::real(), files).await.unwrap())).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(&world.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test's own task")]
    tokio::spawn(connection);

    let data = noise(3_000_000, 1);
    for (method, target, body) in
        [("PUT", "/bucket", &[][..]), ("PUT", "/bucket/k", &data[..]), ("GET", "/bucket/k", &[][..])]
    {
        let head = world.client.head(&ask(method, target).body(body));
        let uri = format!("https://{}{target}", world.addr);
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in head.text.lines().skip(1).filter_map(|l| l.split_once(": ")) {
            if !matches!(name, "host" | "connection") {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "{method} {target}");
        assert!(response.headers().contains_key("date"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(method != "GET" || body == data);
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let world = world().await;
    let mut stream = TcpStream::connect(&world.addr).await.unwrap();
    for _ in 0..3 {
        let head = world.client.head(&ask("GET", "/")).text.replace("connection: close\r\n", "");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"</ListAllMyBucketsResult>") {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
        }
    }
}

#[tokio::test]
async fn shutdown_lets_a_request_finish_and_takes_no_new_ones() {
    let world = world().await;
    let c = &world.client;
    c.send(ask("PUT", "/bucket")).await.expect(200);
    let put = ask("PUT", "/bucket/k").header("content-length", "6").payload("UNSIGNED-PAYLOAD");
    let mut stream = TcpStream::connect(&c.addr).await.unwrap();
    stream.write_all(c.head(&put).text.as_bytes()).await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    // Let the request begin.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(TcpStream::connect(&c.addr).await.is_err(), "the port is closed");
    stream.write_all(b"def").await.unwrap();
    s3_support::read_answer(&mut stream, false).await.expect(200);
}

#[tokio::test]
async fn bytes_that_are_no_http_get_a_400() {
    let world = world().await;
    assert_eq!(raw(&world.addr, b"\x00\x01\x02\r\n\r\n", false).await.status, 400);
}
