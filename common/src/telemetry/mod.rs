//! Logs, traces and metrics of a process.
//!
//! [`init`] sets up log lines on standard error and, if a collector is configured, the export of spans.
//! It is called once by a program's `main`; libraries only use the `tracing` macros. Metrics
//! ([`metric`]) belong to a node, not to the process: the simulator runs many nodes in one.

pub mod metric;
pub mod span;

use crate::config::{LogConfig, LogFormat, TraceConfig};
use crate::env::Env;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, Registry};

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`{filter}` (RUST_LOG, or `log.level`) is not a log filter: {reason}")]
    Filter { filter: String, reason: String },
    #[error("cannot export traces to {endpoint}: {source}")]
    Exporter { endpoint: String, source: ExporterBuildError },
    #[error("logging was already set up in this process: {0}")]
    Twice(#[from] TryInitError),
}

/// Keeps the export of traces going; [`Telemetry::shutdown`] sends what is left.
#[must_use = "call `shutdown` at the end, or the last spans are lost"]
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sends the spans that wait, for at most five seconds. Failures are logged: there is nobody to tell.
    pub async fn shutdown(self, env: &Env) {
        let Some(provider) = self.provider else { return };
        // Blocks until the exporter's task, which runs on this runtime, is done.
        match env.run_blocking(move || provider.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last traces were not sent"),
            Err(error) => tracing::warn!(%error, "the last traces were not sent"),
        }
    }
}

/// The filter of log lines: `RUST_LOG`, else the configured level.
fn log_filter(log: &LogConfig, rust_log: Option<String>) -> Result<EnvFilter, TelemetryError> {
    let filter = rust_log.filter(|filter| !filter.trim().is_empty()).unwrap_or_else(|| log.level.clone());
    EnvFilter::builder()
        .parse(&filter)
        .map_err(|error| TelemetryError::Filter { reason: error.to_string(), filter })
}

/// Sets up logs, and traces if a collector is configured. `service` names this program in traces
/// (`hayloft-storage`). Must be called on a tokio runtime if a collector is configured.
pub fn init(log: &LogConfig, trace: &TraceConfig, service: &str) -> Result<Telemetry, TelemetryError> {
    let filter = log_filter(log, std::env::var("RUST_LOG").ok())?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let provider = match &trace.otlp_endpoint {
        Some(endpoint) => Some(exporter(endpoint, trace.sample_ratio, service)?),
        None => None,
    };
    let spans = provider.as_ref().map(|provider| {
        // Our own spans only: those of libraries tell an operator nothing.
        let targets = Targets::new().with_target("hayloft", LevelFilter::DEBUG);
        tracing_opentelemetry::layer().with_tracer(provider.tracer(service.to_owned())).with_filter(targets)
    });
    if provider.is_some() {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    }
    Registry::default().with(lines.with_filter(filter)).with(spans).try_init()?;
    Ok(Telemetry { provider })
}

/// Spans in batches, over HTTP, from a task of this runtime.
fn exporter(endpoint: &str, ratio: f64, service: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(url)
        .build()
        .map_err(|source| TelemetryError::Exporter { endpoint: endpoint.to_owned(), source })?;
    // The exporter's HTTP client lives on tokio, so the batches must be sent from there too.
    let processor = BatchSpanProcessor::builder(exporter, Tokio).build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_resource(Resource::builder().with_service_name(service.to_owned()).build())
        .build())
}

#[cfg(test)]
mod tests;
