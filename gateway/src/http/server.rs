//! The HTTP server of every port: HTTP/1.1 and HTTP/2, plain or over TLS, on the network seam.
//!
//! It guarantees limits (connections, requests, header bytes, idle, stall and handshake times), an
//! `x-amz-request-id` and a date on each answer, a span and one report to the [`Observer`] per request, and
//! a shutdown that lets requests finish. What a request means is the [`Handler`]'s business.

use super::body::{self, RequestBody, ResponseBody};
use super::date;
use super::io::{Active, Activity, ConnectionIo};
use super::observe::{Endpoint, Finished, Observer};
use super::tls::Tls;
use async_trait::async_trait;
use bytes::Bytes;
use hayloft_common::env::{BoxStream, Env, Listener};
use http::{HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// The header that names a request in answers and logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// Limits of one port.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name of the interface in metrics and spans: `s3`, `k2v`, `web`, `admin`.
    pub api: &'static str,
    /// Open connections; more wait in the listener's queue.
    pub max_connections: usize,
    /// Requests under way; more are refused with `SlowDown`.
    pub max_requests: usize,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    /// For the head of a request, and for the TLS handshake.
    pub header_timeout: Duration,
    /// For a connection without a request.
    pub idle_timeout: Duration,
    /// For the next bytes of a body, in either direction.
    pub stall_timeout: Duration,
    /// How long requests may go on after shutdown began.
    pub shutdown_grace: Duration,
}

impl ServerConfig {
    /// Usual limits for the interface `api`.
    pub fn new(api: &'static str) -> Self {
        Self {
            api,
            max_connections: 4096,
            max_requests: 1024,
            max_header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_mins(2),
            stall_timeout: Duration::from_mins(1),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// What a handler learns besides the request.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// 16 hex digits.
    pub id: String,
    /// The client's address, for logs.
    pub peer: String,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// Why the server itself refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too many requests are under way.
    Overloaded,
    /// The head is larger than allowed.
    HeadersTooLarge,
}

/// Answers the requests of a port. Dropping the future means that the client went away.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    async fn handle(&self, request: Request<RequestBody>, info: RequestInfo) -> Response<ResponseBody>;

    /// The answer to a request that the server refuses.
    fn refuse(
        &self,
        request: &http::request::Parts,
        info: &RequestInfo,
        why: Refusal,
    ) -> Response<ResponseBody>;
}

/// A bound port.
pub struct Server {
    shared: Arc<Shared>,
    listener: Box<dyn Listener>,
    tls: Option<Arc<Tls>>,
}

struct Shared {
    env: Env,
    config: ServerConfig,
    handler: Arc<dyn Handler>,
    observer: Arc<dyn Observer>,
    requests: Arc<Semaphore>,
}

impl Server {
    /// Listens on `addr` (`host:port`; port 0 draws one).
    pub async fn bind(
        env: Env,
        addr: &str,
        config: ServerConfig,
        tls: Option<Arc<Tls>>,
        handler: Arc<dyn Handler>,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let listener = env.net.listen(addr).await?;
        let requests = Arc::new(Semaphore::new(config.max_requests));
        Ok(Self { shared: Arc::new(Shared { env, config, handler, observer, requests }), listener, tls })
    }

    /// The address listened on, with the real port.
    pub fn local_addr(&self) -> String {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then lets requests finish for at most the grace time.
    pub async fn run(self, stop: CancellationToken) {
        let Self { shared, listener, tls } = self;
        let permits = Arc::new(Semaphore::new(shared.config.max_connections));
        let connections = TaskTracker::new();
        // Ends what is left after the grace time.
        let kill = CancellationToken::new();
        loop {
            let accepted = tokio::select! {
                biased; // Stopping goes first; it happens once, so it starves nothing.
                () = stop.cancelled() => break,
                accepted = next_connection(listener.as_ref(), &permits) => accepted,
            };
            match accepted {
                Ok((stream, peer, permit)) => {
                    let tls = tls.as_ref().map(|t| t.current());
                    let (ours, stop) = (Arc::clone(&shared), stop.clone());
                    let kill = kill.clone();
                    let task = connections.track_future(async move {
                        let serve = serve_connection(ours, stream, peer, tls, stop);
                        tokio::select! {
                            biased; // See above.
                            () = kill.cancelled() => {}
                            () = serve => {}
                        }
                        drop(permit);
                    });
                    shared.env.spawn("http connection", task);
                }
                Err(error) => {
                    // Out of file descriptors, most likely: let some connections end first.
                    tracing::warn!(%error, api = shared.config.api, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Nobody may connect any more, and another process may take the port.
        drop(listener);
        connections.close();
        if tokio::time::timeout(shared.config.shutdown_grace, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "breaking off requests: the grace time is over");
            kill.cancel();
            connections.wait().await;
        }
    }
}

async fn next_connection(
    listener: &dyn Listener,
    permits: &Arc<Semaphore>,
) -> io::Result<(BoxStream, String, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

/// hyper's tasks go through the task seam.
#[derive(Clone)]
struct EnvExecutor(Env);

impl<F> hyper::rt::Executor<F> for EnvExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn("http stream", async move {
            future.await;
        });
    }
}

async fn serve_connection(
    shared: Arc<Shared>,
    stream: BoxStream,
    peer: String,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: CancellationToken,
) {
    let config = &shared.config;
    let is_tls = tls.is_some();
    let stream = match tls {
        None => stream,
        Some(tls) => {
            let handshake = tokio_rustls::TlsAcceptor::from(tls).accept(stream);
            match tokio::time::timeout(config.header_timeout, handshake).await {
                Ok(Ok(stream)) => Box::new(stream) as BoxStream,
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
            }
        }
    };
    let activity = Arc::new(Activity::default());
    let io = ConnectionIo::new(stream, Arc::clone(&activity), config.idle_timeout, config.stall_timeout);
    let builder = protocol(&shared.env, config);
    let service = {
        let (shared, peer) = (Arc::clone(&shared), peer.clone());
        hyper::service::service_fn(move |request| {
            let (shared, active) = (Arc::clone(&shared), activity.begin());
            let info = RequestInfo {
                id: hex::encode_upper(shared.env.random_bytes::<8>()),
                peer: peer.clone(),
                tls: is_tls,
            };
            async move { Ok::<_, Infallible>(serve_request(shared, request, info, active).await) }
        })
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let result = tokio::select! {
        biased; // Stopping goes first; it happens once.
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        result = connection.as_mut() => result,
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection broke off");
    }
}

fn protocol(env: &Env, config: &ServerConfig) -> auto::Builder<EnvExecutor> {
    let mut builder = auto::Builder::new(EnvExecutor(env.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        // hyper answers 431 by itself when a head does not fit; also the size of one read of a body.
        .max_buf_size((2 * config.max_header_bytes).max(64 << 10))
        .max_headers(256)
        .auto_date_header(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(2 * config.max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(128)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .auto_date_header(false);
    builder
}

async fn serve_request(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    info: RequestInfo,
    active: Active,
) -> Response<TrackedBody> {
    let config = &shared.config;
    let began = shared.env.now();
    shared.observer.started(config.api);
    let mut report = Report {
        shared: Arc::clone(&shared),
        began,
        finished: Finished {
            api: config.api,
            endpoint: "Unknown",
            // As nginx counts clients that went away before the answer.
            status: 499,
            latency: Duration::ZERO,
            duration: Duration::ZERO,
            bytes_sent: 0,
        },
        permit: None,
        _active: active,
    };
    let span = tracing::info_span!(
        "request",
        api = config.api,
        id = %info.id,
        method = %request.method(),
        path = request.uri().path(),
        endpoint = tracing::field::Empty,
        status = tracing::field::Empty,
    );
    let (parts, body) = request.into_parts();
    let id = info.id.clone();
    let mut response = if head_bytes(&parts) > config.max_header_bytes {
        shared.handler.refuse(&parts, &info, Refusal::HeadersTooLarge)
    } else if let Ok(permit) = Arc::clone(&shared.requests).try_acquire_owned() {
        report.permit = Some(permit);
        let request = Request::from_parts(parts, body::incoming(body, config.stall_timeout));
        shared.handler.handle(request, info).instrument(span.clone()).await
    } else {
        shared.handler.refuse(&parts, &info, Refusal::Overloaded)
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::SERVER, HeaderValue::from_static("Hayloft"));
    if let Ok(now) = HeaderValue::from_str(&date::http(shared.env.wall_millis())) {
        headers.insert(header::DATE, now);
    }
    if let Some(Endpoint(name)) = response.extensions().get::<Endpoint>() {
        report.finished.endpoint = name;
    }
    report.finished.status = response.status().as_u16();
    report.finished.latency = shared.env.now().saturating_sub(began);
    span.record("endpoint", report.finished.endpoint);
    span.record("status", report.finished.status);
    response.map(|inner| TrackedBody { inner, report })
}

/// Bytes of a request's head, about as sent in HTTP/1.1.
fn head_bytes(parts: &http::request::Parts) -> usize {
    let uri = parts.uri.path_and_query().map_or(0, |p| p.as_str().len());
    parts.headers.iter().fold(uri, |sum, (name, value)| sum + name.as_str().len() + value.len() + 4)
}

/// Reports the request when dropped, and holds its permit until then.
struct Report {
    shared: Arc<Shared>,
    began: Duration,
    finished: Finished,
    permit: Option<OwnedSemaphorePermit>, // Held until the answer is sent.
    _active: Active,
}

impl Drop for Report {
    fn drop(&mut self) {
        self.finished.duration = self.shared.env.now().saturating_sub(self.began);
        self.shared.observer.finished(&self.finished);
    }
}

/// An answer's body that counts its bytes and carries the report.
pub struct TrackedBody {
    inner: ResponseBody,
    report: Report,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.report.finished.bytes_sent += frame.data_ref().map_or(0, |d| d.len() as u64);
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::warn!(
                    endpoint = self.report.finished.endpoint,
                    %error,
                    "an answer broke off in the middle of its body"
                );
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
