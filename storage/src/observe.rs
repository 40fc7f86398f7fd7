//! The node's own small HTTP port: `/health` for supervisors and load balancers, `/metrics` for Prometheus.

use crate::serve::Node;
use crate::workers::{resync, tombstones};
use hayloft_common::config::{Secret, StorageConfig};
use hayloft_common::telemetry::metric::{
    BlockMetrics, DiskMetrics, MetricError, Metrics, TableMetrics, WorkerMetrics,
};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;

/// What the port serves.
pub struct Observer {
    node: Arc<Node>,
    metrics: Metrics,
    disks: DiskMetrics,
    tables: TableMetrics,
    workers: WorkerMetrics,
    blocks: BlockMetrics,
    token: Option<Secret>,
    require_token: bool,
}

/// Serves until the node's tasks end.
pub async fn serve(observer: Arc<Observer>, listener: Box<dyn hayloft_common::env::Listener>) {
    let env = observer.node.env.clone();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin port could not accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let observer = observer.clone();
        env.spawn("admin connection", async move {
            let service = hyper::service::service_fn(move |request| {
                let observer = observer.clone();
                async move { Ok::<_, Infallible>(observer.answer(&request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10));
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
}

impl Observer {
    /// An observer of `node` with the tokens of its configuration.
    pub fn new(node: Arc<Node>, config: &StorageConfig) -> Result<Self, MetricError> {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"))?;
        Ok(Self {
            disks: DiskMetrics::new(&metrics)?,
            tables: TableMetrics::new(&metrics)?,
            workers: WorkerMetrics::new(&metrics)?,
            blocks: BlockMetrics::new(&metrics)?,
            metrics,
            node,
            token: config.admin.metrics_token().cloned(),
            require_token: config.admin.metrics_require_token,
        })
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        }
        match request.uri().path() {
            "/health" => self.health().await,
            "/metrics" if !self.may_read_metrics(request) => {
                text(StatusCode::FORBIDDEN, "a metrics token is needed\n".into())
            }
            "/metrics" => self.scrape().await,
            _ => text(StatusCode::NOT_FOUND, "only /health and /metrics\n".into()),
        }
    }

    /// Healthy: the metadata takes writes, and some disk takes blocks.
    async fn health(&self) -> Response<Full<Bytes>> {
        if self.node.engine.is_poisoned() {
            let reason = "the metadata engine failed and takes no writes: restart the node\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, reason.into());
        }
        match self.node.blocks.stats().await {
            Ok(disks) if disks.iter().any(|disk| disk.health.takes_writes()) => {
                text(StatusCode::OK, "healthy\n".into())
            }
            Ok(_) => text(StatusCode::SERVICE_UNAVAILABLE, "no disk takes new blocks\n".into()),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        }
    }

    /// Brings the gauges up to date and renders all metrics.
    async fn scrape(&self) -> Response<Full<Bytes>> {
        if let Ok(disks) = self.node.blocks.stats().await {
            let sum = |part: fn(&crate::blocks::DiskStats) -> u64| disks.iter().map(part).sum();
            self.disks.set("data", sum(|d| d.available), sum(|d| d.total));
        }
        if let Some((available, total)) = self.node.metadata_space.now() {
            self.disks.set("metadata", available, total);
        }
        for space in self.node.engine.stats().spaces {
            let entries = i64::try_from(space.entries).unwrap_or(i64::MAX);
            self.tables.size.with_label_values(&[space.space.name()]).set(entries);
        }
        self.count_work().await;
        match self.metrics.render() {
            Ok(metrics) => text(StatusCode::OK, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// What the background workers say of themselves.
    async fn count_work(&self) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for slot in self.node.workers.list() {
            let (status, name) = (slot.report.status(), &[slot.name]);
            self.workers.items.with_label_values(name).set(gauge(status.items));
            self.workers.bytes.with_label_values(name).set(gauge(status.bytes));
            self.workers.errors.with_label_values(name).set(gauge(status.errors));
            if let Some(queue) = status.queue {
                self.workers.queue.with_label_values(name).set(gauge(queue));
                match slot.name {
                    resync::NAME => self.blocks.resync_queue_length.set(gauge(queue)),
                    tombstones::NAME => {
                        self.tables.gc_queue_length.with_label_values(&["all"]).set(gauge(queue));
                    }
                    _ => {}
                }
            }
        }
        match resync::errors(&self.node).await {
            Ok(errors) => self.blocks.resync_errored_blocks.set(gauge(errors.len() as u64)),
            Err(error) => tracing::debug!(%error, "blocks in trouble could not be counted"),
        }
    }

    fn may_read_metrics(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return !self.require_token };
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        token.matches(given)
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
