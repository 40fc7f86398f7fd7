//! A small client of the admin interface, over plain HTTP.
//!
//! One request at a time, with a time limit; answers come back as JSON as the gateway gave them, so that
//! `--json` shows fields this program does not know.

use bytes::Bytes;
use hayloft_common::config::Secret;
use hayloft_proto::admin::{Endpoint, ErrorBody};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// Longest wait for an answer; computing the layout of a large cluster takes seconds.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Largest answer accepted, in bytes.
const MAX_ANSWER: usize = 256 << 20;
/// What stays as it is in a query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a call failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "`{0}` is not the address of an admin interface: write http://HOST:PORT (put TLS in front with a tunnel or a proxy on this machine)"
    )]
    Url(String),
    #[error("the admin token is not plain ASCII: check the file or variable it comes from")]
    Token,
    #[error(
        "cannot reach the admin interface at {url}: {reason}. Is the gateway running? Name another with --admin-url"
    )]
    Unreachable { url: String, reason: String },
    #[error("the admin interface at {url} did not answer within {} s", TIMEOUT.as_secs())]
    Timeout { url: String },
    #[error(
        "the admin token was refused: give the gateway's with --admin-token-file or HAYLOFT_ADMIN_TOKEN ({message})"
    )]
    Forbidden { message: String },
    #[error("{message} ({code})")]
    Refused { status: StatusCode, code: String, message: String },
    #[error(
        "{url} answered {status} with something else than the admin interface would: is it the right port?"
    )]
    NotAdmin { url: String, status: StatusCode },
    #[error("the answer to {endpoint} is not understood: {reason}. Is the gateway of another version?")]
    Shape { endpoint: &'static str, reason: String },
}

impl ClientError {
    /// Whether the gateway said that the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// Whether the gateway said that the thing to be made exists, or that someone else was faster.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::CONFLICT)
    }
}

/// A gateway's admin interface.
#[derive(Clone)]
pub struct Client {
    url: String,
    authorization: Option<HeaderValue>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

/// Reads `value` as `T`, or says which answer was not understood.
pub fn read<T: serde::de::DeserializeOwned>(endpoint: Endpoint, value: &Value) -> Result<T, ClientError> {
    T::deserialize(value)
        .map_err(|error| ClientError::Shape { endpoint: endpoint.name(), reason: error.to_string() })
}

impl Client {
    /// For the interface at `url` (`http://HOST:PORT`).
    pub fn new(url: &str, token: Option<&Secret>) -> Result<Self, ClientError> {
        let bad = || ClientError::Url(url.to_owned());
        let parsed: Uri = url.trim_end_matches('/').parse().map_err(|_| bad())?;
        if parsed.scheme_str() != Some("http") || parsed.host().is_none() || parsed.path() != "/" {
            return Err(bad());
        }
        let authorization = match token {
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                    .map_err(|_| ClientError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        Ok(Self { url: url.trim_end_matches('/').to_owned(), authorization, http })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `GET /health`: the status, whatever it is.
    pub async fn health(&self) -> Result<StatusCode, ClientError> {
        let (status, _) = self.send("GET", "/health".into(), Bytes::new()).await?;
        Ok(status)
    }

    /// Calls a reading endpoint, as JSON.
    pub async fn get(&self, endpoint: Endpoint, query: &[(&str, &str)]) -> Result<Value, ClientError> {
        self.call(endpoint, query, Bytes::new()).await
    }

    /// Calls an acting endpoint, as JSON.
    pub async fn post(
        &self,
        endpoint: Endpoint,
        query: &[(&str, &str)],
        body: &impl Serialize,
    ) -> Result<Value, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| ClientError::Shape { endpoint: endpoint.name(), reason: error.to_string() })?;
        self.call(endpoint, query, body.into()).await
    }

    async fn call(
        &self,
        endpoint: Endpoint,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Value, ClientError> {
        let (status, answer) = self.send(endpoint.method(), path(endpoint, query), body).await?;
        if status.is_success() {
            if answer.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&answer)
                .map_err(|_| ClientError::NotAdmin { url: self.url.clone(), status });
        }
        let Ok(error) = serde_json::from_slice::<ErrorBody>(&answer) else {
            return Err(ClientError::NotAdmin { url: self.url.clone(), status });
        };
        if status == StatusCode::FORBIDDEN {
            return Err(ClientError::Forbidden { message: error.message });
        }
        Err(ClientError::Refused { status, code: error.code, message: error.message })
    }

    async fn send(
        &self,
        method: &str,
        path: String,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|_| ClientError::Url(self.url.clone()))?;
        let unreachable = |error: &dyn std::error::Error| ClientError::Unreachable {
            url: self.url.clone(),
            reason: innermost(error).to_string(),
        };
        let exchange = async {
            let answer = self.http.request(request).await.map_err(|error| unreachable(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|error| unreachable(&*error))?.to_bytes()))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Timeout { url: self.url.clone() }),
        }
    }
}

/// The cause that says something: hyper's own text is "client error (Connect)".
fn innermost(error: &dyn std::error::Error) -> &dyn std::error::Error {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

fn path(endpoint: Endpoint, query: &[(&str, &str)]) -> String {
    let mut path = endpoint.path();
    for (i, (name, value)) in query.iter().enumerate() {
        path.push(if i == 0 { '?' } else { '&' });
        path.push_str(name);
        path.push('=');
        path.extend(utf8_percent_encode(value, QUERY));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A client of a server that answers one request with `answer`, and the task that gives the request.
    async fn one_answer(status: &str, answer: &str) -> (Client, impl Future<Output = String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        (Client::new(&url, Some(&Secret::new("tok"))).unwrap(), serve)
    }

    #[tokio::test]
    async fn a_call_sends_token_and_query_and_reads_json() {
        let (client, serve) = one_answer("200 OK", "[]").await;
        let query = [("search", "a b&c"), ("showSecretKey", "true")];
        let (answer, request) = tokio::join!(client.get(Endpoint::GetKeyInfo, &query), serve);
        assert_eq!(answer.unwrap(), serde_json::json!([]));
        assert!(
            request.starts_with("GET /v2/GetKeyInfo?search=a%20b%26c&showSecretKey=true HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("authorization: Bearer tok\r\n"), "{request}");
    }

    #[tokio::test]
    async fn refusals_carry_the_gateways_message() {
        let body = r#"{"code":"NoSuchBucket","message":"no bucket is named x","region":"r","path":"/"}"#;
        let (client, serve) = one_answer("404 Not Found", body).await;
        let (answer, _) = tokio::join!(client.get(Endpoint::GetBucketInfo, &[]), serve);
        let error = answer.unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "no bucket is named x (NoSuchBucket)");
        let (client, serve) = one_answer("403 Forbidden", body).await;
        let (answer, _) = tokio::join!(client.get(Endpoint::GetBucketInfo, &[]), serve);
        assert!(matches!(answer.unwrap_err(), ClientError::Forbidden { .. }));
        let (client, serve) = one_answer("404 Not Found", "<html>").await;
        let (answer, _) = tokio::join!(client.get(Endpoint::GetBucketInfo, &[]), serve);
        assert!(answer.unwrap_err().to_string().contains("is it the right port?"));
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_used_is_told() {
        for url in ["https://a:1", "a:1", "http://", "http://a:1/v2", ""] {
            assert!(matches!(Client::new(url, None), Err(ClientError::Url(_))), "{url}");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = Client::new(&url, None).unwrap().health().await.unwrap_err().to_string();
        assert!(error.contains("Is the gateway running?") && error.contains("refused"), "{error}");
    }
}
