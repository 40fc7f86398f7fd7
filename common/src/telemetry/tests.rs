//! Log filters, and a trace that reaches a collector.

use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[test]
fn rust_log_comes_before_the_configured_level_and_nonsense_is_refused() {
    let log = LogConfig { level: "warn".into(), ..LogConfig::default() };
    assert_eq!(log_filter(&log, None).unwrap().to_string(), "warn");
    assert_eq!(log_filter(&log, Some(" ".into())).unwrap().to_string(), "warn");
    assert_eq!(log_filter(&log, Some("debug".into())).unwrap().to_string(), "debug");
    let error = log_filter(&log, Some("a=b=c".into())).unwrap_err().to_string();
    assert!(error.starts_with("`a=b=c` (RUST_LOG"), "{error}");
}

/// Answers one HTTP request with 200 and returns all of it.
async fn collect_one(listener: tokio::net::TcpListener) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await.unwrap();
        request.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let length: usize = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
            .unwrap();
        if n == 0 || request.len() >= head.len() + 4 + length {
            break;
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    request
}

/// The only test that may call `init`: it is once a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_the_collector_and_follow_the_peers_trace() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let trace = TraceConfig { otlp_endpoint: Some(endpoint), sample_ratio: 1.0 };
    let telemetry = init(&LogConfig::default(), &trace, "hayloft-test").unwrap();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    {
        let span = tracing::info_span!("object_insert");
        span::set_parent(&span, parent);
        let _entered = span.enter();
        let sent = span::current_traceparent().unwrap();
        assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent != parent, "{sent}");
    }
    let env = Env::real();
    let (request, ()) = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::join!(collect_one(listener), telemetry.shutdown(&env))
    })
    .await
    .unwrap();
    let text = String::from_utf8_lossy(&request);
    assert!(text.starts_with("POST /v1/traces "), "{text}");
    assert!(text.contains("object_insert") && text.contains("hayloft-test"), "{text}");
    assert!(matches!(
        init(&LogConfig::default(), &TraceConfig::default(), "x"),
        Err(TelemetryError::Twice(_))
    ));
}
