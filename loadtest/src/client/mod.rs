//! A small S3 client of our own: independent of gateway code, path style, no retries.
//!
//! It does exactly what it is told, once, and reports what happened with the certainty that is there to have
//! ([`Error::effect`]): a checker needs to know which writes failed for sure. Bodies of any size are streamed
//! from [`Content`] and compared with it, in bounded memory. Time, sockets and tasks come from [`Env`], so the
//! client also runs inside a simulation.

mod body;
mod content;
mod error;
mod object;
mod pool;
pub mod sign;
mod xml;

pub use body::Payload;
pub use content::{CHUNK, Content};
pub use error::{Effect, Error};
pub use object::{Delivery, Head};
pub use xml::{CommonPrefix, ListPage, ListedObject};

use body::SendBody;
use bytes::Bytes;
use hayloft_common::env::Env;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use pool::{Connection, Endpoint};
use sign::{Credentials, Signable, UNSIGNED_PAYLOAD, authorization, encode_path, encode_query};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Largest answer that is read into memory.
const MAX_ANSWER: usize = 16 << 20;

/// Where and as whom to speak.
#[derive(Clone)]
pub struct Settings {
    /// `http[s]://host[:port]`, at least one; requests take turns.
    pub endpoints: Vec<String>,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    pub bucket: String,
    /// Sign the payload's SHA-256 instead of UNSIGNED-PAYLOAD.
    pub sign_payload: bool,
    /// More certificates to trust (PEM), besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Time that a request may take, besides one second for each MiB it moves.
    pub timeout: Duration,
}

/// A client bound to one bucket; cheap to clone.
#[derive(Clone)]
pub struct S3 {
    env: Env,
    endpoints: Arc<Vec<Arc<Endpoint>>>,
    credentials: Arc<Credentials>,
    bucket: Arc<str>,
    next: Arc<AtomicUsize>,
    only: Option<usize>,
    sign_payload: bool,
    timeout: Duration,
}

/// One request, before it is signed.
#[derive(Default)]
struct Call {
    method: http::Method,
    /// None: the bucket itself.
    key: Option<String>,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    payload: Option<Payload>,
    /// Counts the bytes of the body that were handed to the connection.
    sent: Option<Arc<AtomicU64>>,
    /// Bytes expected in the answer, for the time limit.
    expect: u64,
}

/// The head of an answer, its body still to be read.
struct Answer {
    response: Response<Incoming>,
    connection: Connection,
    endpoint: Arc<Endpoint>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }

    async fn collect(self) -> Result<Bytes, Error> {
        let body = Limited::new(self.response.into_body(), MAX_ANSWER).collect().await;
        let bytes =
            body.map_err(|error| Error::Malformed(format!("body of the answer: {error}")))?.to_bytes();
        self.endpoint.give_back(self.connection);
        Ok(bytes)
    }
}

fn pair(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// `YYYYMMDD'T'HHMMSS'Z'` of a time in microseconds since 1970, as signatures carry it.
fn amz_date(micros: i64) -> Result<String, Error> {
    let time = jiff::Timestamp::from_microsecond(micros)
        .map_err(|error| Error::Request(format!("clock out of range: {error}")))?;
    Ok(time.strftime("%Y%m%dT%H%M%SZ").to_string())
}

impl S3 {
    /// A client; connections are made when they are needed.
    pub fn new(env: Env, settings: &Settings) -> Result<Self, Error> {
        let endpoints: Vec<_> = settings
            .endpoints
            .iter()
            .map(|url| Endpoint::new(env.clone(), url, settings.ca_file.as_deref()).map(Arc::new))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::Request("no endpoint given".into()));
        }
        Ok(Self {
            env,
            endpoints: Arc::new(endpoints),
            credentials: Arc::new(Credentials {
                access_key: settings.access_key.clone(),
                secret_key: settings.secret_key.clone(),
                region: settings.region.clone(),
                service: "s3",
            }),
            bucket: settings.bucket.as_str().into(),
            next: Arc::new(AtomicUsize::new(0)),
            only: None,
            sign_payload: settings.sign_payload,
            timeout: settings.timeout,
        })
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// The same client, speaking only to endpoint `index` (modulo their number).
    pub fn pinned(&self, index: usize) -> Self {
        Self { only: Some(index % self.endpoints.len()), ..self.clone() }
    }

    /// A number to choose an endpoint by; the next call gives the next one.
    pub fn take_turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// As [`S3::pinned`]; a client that is pinned already stays so.
    pub fn preferring(&self, index: usize) -> Self {
        if self.only.is_some() { self.clone() } else { self.pinned(index) }
    }

    /// The same client with another time limit for a request.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The bucket spoken to.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        let index = self.only.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
        Arc::clone(&self.endpoints[index % self.endpoints.len()])
    }

    fn build(&self, endpoint: &Endpoint, call: Call) -> Result<Request<SendBody>, Error> {
        let (method, payload) = (call.method, call.payload.unwrap_or_else(Payload::empty));
        let payload_hash = if self.sign_payload || payload.is_empty() {
            payload.sha256()
        } else {
            UNSIGNED_PAYLOAD.to_owned()
        };
        let now = i64::try_from(self.env.wall_micros()).unwrap_or(i64::MAX);
        let date = amz_date(now)?;
        let path = match &call.key {
            None => format!("/{}", self.bucket),
            Some(key) => encode_path(&format!("/{}/{key}", self.bucket)),
        };
        let mut headers = call.headers;
        headers.push(pair("host", &endpoint.host));
        headers.push(pair("x-amz-date", &date));
        headers.push(pair("x-amz-content-sha256", &payload_hash));
        let signable = Signable {
            method: method.as_str(),
            path: &path,
            query: &call.query,
            headers: &headers,
            payload_hash: &payload_hash,
        };
        let authorization = authorization(&signable, &self.credentials, &date);
        let query = encode_query(&call.query);
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let mut request =
            Request::builder().method(method.clone()).uri(uri).header("authorization", authorization);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if payload.is_empty() && (method == http::Method::PUT || method == http::Method::POST) {
            // Said by hyper for bodies only; S3 insists on it for empty ones too.
            request = request.header("content-length", 0);
        }
        request.body(SendBody::new(payload, call.sent)).map_err(|error| Error::Request(error.to_string()))
    }

    /// Sends a call and waits for a successful head; any other answer is read and becomes an error.
    async fn start(&self, call: Call) -> Result<Answer, Error> {
        let endpoint = self.endpoint();
        let is_head = call.method == http::Method::HEAD;
        let request = self.build(&endpoint, call)?;
        let (response, connection) = endpoint.send(request).await?;
        let status = response.status();
        let answer = Answer { response, connection, endpoint };
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.collect().await?;
        let parsed = if is_head { None } else { xml::error_in(&body) };
        let (code, message) = parsed.map_or_else(
            || {
                let code = status.canonical_reason().unwrap_or("Unknown").replace(' ', "");
                (code, String::from_utf8_lossy(&body).chars().take(200).collect())
            },
            |error| (error.code, error.message),
        );
        Err(Error::Service { status: status.as_u16(), code, message })
    }

    /// Runs `work` within the time limit for `bytes` moved.
    async fn limited<T>(&self, bytes: u64, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let after = self.timeout + Duration::from_secs(bytes >> 20);
        let endpoint = || match self.only {
            Some(index) => self.endpoints[index].url.clone(),
            None => self.endpoints.iter().map(|each| each.url.as_str()).collect::<Vec<_>>().join(" or "),
        };
        tokio::time::timeout(after, work)
            .await
            .unwrap_or_else(|_| Err(Error::TimedOut { endpoint: endpoint(), after }))
    }

    /// Sends a call and reads its short answer.
    async fn run(&self, call: Call) -> Result<(Response<()>, Bytes), Error> {
        let bytes = call.payload.as_ref().map_or(0, Payload::len).max(call.expect);
        self.limited(bytes, async {
            let answer = self.start(call).await?;
            let mut head = Response::new(());
            *head.status_mut() = answer.response.status();
            *head.headers_mut() = answer.response.headers().clone();
            let body = answer.collect().await?;
            if let Some(error) = xml::error_in(&body) {
                // An error under status 200: the service was already answering when it failed.
                return Err(Error::Service { status: 500, code: error.code, message: error.message });
            }
            Ok((head, body))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_signatures_need_them() {
        assert_eq!(amz_date(1_369_353_600_000_000).unwrap(), "20130524T000000Z");
    }

    #[test]
    fn endpoints_that_cannot_work_are_refused() {
        let settings = |url: &str| Settings {
            endpoints: vec![url.into()],
            access_key: String::new(),
            secret_key: String::new(),
            region: String::new(),
            bucket: "b".into(),
            sign_payload: false,
            ca_file: None,
            timeout: Duration::from_secs(1),
        };
        for bad in ["127.0.0.1:3900", "ftp://host", "http://host/path", ""] {
            assert!(S3::new(Env::real(), &settings(bad)).is_err(), "{bad}");
        }
        for good in ["http://127.0.0.1:3900", "http://host/", "http://[::1]:80", "https://host"] {
            assert!(S3::new(Env::real(), &settings(good)).is_ok(), "{good}");
        }
    }
}
