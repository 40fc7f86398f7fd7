//! What the S3 tests share: a gateway with its real server over an in-memory store, and a client that signs
//! by hand, independently of the gateway's code, and can send what no proper client would.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use hayloft_common::env::Env;
use hayloft_gateway::auth::AuthConfig;
use hayloft_gateway::domain::memory::MemoryStore;
use hayloft_gateway::domain::{Gateway, NewKey};
use hayloft_gateway::http::observe::NoObserver;
use hayloft_gateway::http::server::{Server, ServerConfig};
use hayloft_gateway::http::tls::Tls;
use hayloft_gateway::limits::DomainConfig;
use hayloft_gateway::s3::{S3Api, S3Config};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub(crate) const REGION: &str = "hayloft";

/// A running gateway and a key that may create buckets.
pub(crate) struct World {
    pub(crate) addr: String,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) client: Client,
    pub(crate) stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn world() -> World {
    world_with(|_| {}).await
}

pub(crate) async fn world_with(change: impl FnOnce(&mut ServerConfig)) -> World {
    world_of(change, None).await
}

pub(crate) async fn world_of(change: impl FnOnce(&mut ServerConfig), tls: Option<Arc<Tls>>) -> World {
    let env = Env::real();
    let config = DomainConfig {
        block_size: 64 << 10,
        inline_max: 1000,
        block_ram_buffer_max: 16 << 20,
        ..DomainConfig::default()
    };
    let gateway = Gateway::new(env.clone(), Arc::new(MemoryStore::new(3, 7)), config);
    let key = gateway
        .create_key(NewKey { name: "tester".into(), create_bucket: true, ..NewKey::default() })
        .await
        .unwrap();
    let auth = AuthConfig::new("s3", REGION, &["us-east-1".to_owned()]);
    let s3 = S3Config { auth, root_domain: Some("s3.test".into()) };
    let api = Arc::new(S3Api::new(gateway.clone(), env.clone(), s3));
    let mut config = ServerConfig::new("s3");
    change(&mut config);
    let server = Server::bind(env, "127.0.0.1:0", config, tls, api, Arc::new(NoObserver)).await.unwrap();
    let addr = server.local_addr();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "the test's own task")]
    tokio::spawn(server.run(stopped));
    let client = Client { addr: addr.clone(), key: key.id.0, secret: key.secret, region: REGION.into() };
    World { addr, gateway, client, stop }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The `<Code>` of an error.
    pub(crate) fn code(&self) -> String {
        self.element("Code")
    }

    /// The text of the first element `name`, unescaped as far as the tests need.
    pub(crate) fn element(&self, name: &str) -> String {
        let text = self.text();
        let inner = text
            .split_once(&format!("<{name}>"))
            .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")))
            .map_or("", |(inner, _)| inner);
        inner.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
        self
    }
}

/// A request being built.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// `x-amz-content-sha256`; the body's hash if empty.
    pub(crate) payload: String,
    /// Seconds to add to the clock.
    pub(crate) skew: i64,
}

pub(crate) fn ask(method: &str, target: &str) -> Ask {
    Ask {
        method: method.into(),
        target: target.into(),
        headers: Vec::new(),
        body: Vec::new(),
        payload: String::new(),
        skew: 0,
    }
}

impl Ask {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn payload(mut self, payload: &str) -> Self {
        self.payload = payload.into();
        self
    }
}

/// A client with a key.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) addr: String,
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) region: String,
}

pub(crate) fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

pub(crate) fn sha256(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// `yyyymmddThhmmssZ`, now and `skew` seconds.
pub(crate) fn amz_date(skew: i64) -> String {
    let now = jiff::Timestamp::from_microsecond(Env::real().wall_micros() as i64).unwrap();
    let then = now.checked_add(jiff::SignedDuration::from_secs(skew)).unwrap();
    jiff::fmt::strtime::format("%Y%m%dT%H%M%SZ", &then.to_zoned(jiff::tz::TimeZone::UTC)).unwrap()
}

/// A signed head, and what is needed to sign its chunks.
pub(crate) struct Head {
    pub(crate) text: String,
    pub(crate) key: Vec<u8>,
    pub(crate) date: String,
    pub(crate) scope: String,
    pub(crate) signature: String,
}

impl Client {
    pub(crate) fn signing_key(&self, day: &str) -> Vec<u8> {
        let day = hmac(format!("AWS4{}", self.secret).as_bytes(), day.as_bytes());
        let region = hmac(&day, self.region.as_bytes());
        hmac(&hmac(&region, b"s3"), b"aws4_request")
    }

    /// The head of a signed request, with its blank line.
    pub(crate) fn head(&self, ask: &Ask) -> Head {
        let date = amz_date(ask.skew);
        let payload = if ask.payload.is_empty() { sha256(&ask.body) } else { ask.payload.clone() };
        let host = ask.headers.iter().find(|h| h.0 == "host").map_or(self.addr.as_str(), |h| &h.1);
        let mut headers = vec![
            ("host".to_owned(), host.to_owned()),
            ("x-amz-date".to_owned(), date.clone()),
            ("x-amz-content-sha256".to_owned(), payload.clone()),
        ];
        headers.extend(ask.headers.iter().filter(|h| h.0 != "host").cloned());
        let mut signed: Vec<(String, String)> =
            headers.iter().filter(|h| h.0.starts_with("x-amz-") || h.0 == "host").cloned().collect();
        signed.sort();
        let names: Vec<&str> = signed.iter().map(|h| h.0.as_str()).collect();
        let (path, query) = ask.target.split_once('?').unwrap_or((&ask.target, ""));
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| if p.contains('=') { p.to_owned() } else { format!("{p}=") })
            .collect();
        pairs.sort();
        let mut canonical = format!("{}\n{path}\n{}\n", ask.method, pairs.join("&"));
        for (name, value) in &signed {
            writeln!(canonical, "{name}:{value}").unwrap();
        }
        write!(canonical, "\n{}\n{payload}", names.join(";")).unwrap();
        let scope = format!("{}/{}/s3/aws4_request", &date[..8], self.region);
        let key = self.signing_key(&date[..8]);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let signature = hex::encode(hmac(&key, to_sign.as_bytes()));
        headers.push((
            "authorization".into(),
            format!(
                "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
                self.key,
                names.join(";")
            ),
        ));
        let mut text = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", ask.method, ask.target);
        if !headers.iter().any(|h| h.0 == "content-length" || h.0 == "transfer-encoding")
            && (!ask.body.is_empty() || ask.method == "PUT" || ask.method == "POST")
        {
            headers.push(("content-length".into(), ask.body.len().to_string()));
        }
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        text.push_str("\r\n");
        Head { text, key, date, scope, signature }
    }

    /// Signs and sends.
    pub(crate) async fn send(&self, ask: Ask) -> Answer {
        let head = self.head(&ask);
        let mut wire = head.text.into_bytes();
        wire.extend_from_slice(&ask.body);
        raw(&self.addr, &wire, ask.method == "HEAD").await
    }

    /// A presigned URL's target.
    pub(crate) fn presign(&self, method: &str, path: &str, query: &str, expires: u64, skew: i64) -> String {
        let date = amz_date(skew);
        let scope = format!("{}/{}/s3/aws4_request", &date[..8], self.region);
        let mut pairs: Vec<String> = query.split('&').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        pairs.extend([
            "X-Amz-Algorithm=AWS4-HMAC-SHA256".into(),
            format!("X-Amz-Credential={}", format!("{}/{scope}", self.key).replace('/', "%2F")),
            format!("X-Amz-Date={date}"),
            format!("X-Amz-Expires={expires}"),
            "X-Amz-SignedHeaders=host".into(),
        ]);
        pairs.sort();
        let query = pairs.join("&");
        let canonical = format!("{method}\n{path}\n{query}\nhost:{}\n\nhost\nUNSIGNED-PAYLOAD", self.addr);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let signature = hex::encode(hmac(&self.signing_key(&date[..8]), to_sign.as_bytes()));
        format!("{path}?{query}&X-Amz-Signature={signature}")
    }

    /// Sends without a signature.
    pub(crate) async fn plain(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let mut wire = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            self.addr,
            body.len()
        )
        .into_bytes();
        wire.extend_from_slice(body);
        raw(&self.addr, &wire, method == "HEAD").await
    }
}

/// Sends bytes and reads the answer until the connection closes.
pub(crate) async fn raw(addr: &str, wire: &[u8], is_head: bool) -> Answer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The server may answer, and stop reading, before all is sent.
    let _ = stream.write_all(wire).await;
    read_answer(&mut stream, is_head).await
}

pub(crate) async fn read_answer(stream: &mut TcpStream, is_head: bool) -> Answer {
    let mut data = Vec::new();
    let read = stream.read_to_end(&mut data);
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer in time");
    let at = data.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&data[..at]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_owned()))
        .collect::<BTreeMap<_, _>>();
    let mut body = data[at..].to_vec();
    if headers.get("transfer-encoding").is_some_and(|t| t == "chunked") {
        body = dechunk(&body);
    }
    assert!(!is_head || body.is_empty(), "an answer to HEAD has no body");
    Answer { status, headers, body }
}

fn dechunk(mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let at = data.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&data[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&data[at + 2..at + 2 + size]);
        data = &data[at + 2 + size + 2..];
    }
}

/// Bytes without a pattern.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(crate) fn encode_path(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte.into());
            }
            other => write!(out, "%{other:02X}").unwrap(),
        }
    }
    out
}
