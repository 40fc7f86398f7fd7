//! The metrics of a node, in Prometheus' text form: every name and label stands in this file.
//!
//! Names and labels are those that dashboards of this field already read (`api_s3_…`, `block_…`, `rpc_…`,
//! `table_…`, `cluster_…`). Where those carry the prefix `garage_`, ours is `hayloft_` and the same series is
//! given under the old name too. A registry belongs to one node. Recording never fails and never blocks.

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Upper bounds of the buckets of every duration, in seconds: from a cached read to a stuck WAN link.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// A metric could not be registered: two have the same name, or a name is malformed.
#[derive(Debug, thiserror::Error)]
#[error("a metric cannot be registered: {0}")]
pub struct MetricError(#[from] prometheus::Error);

/// Runs before each scrape to bring gauges up to date; must be quick and may not block.
type Sampler = Box<dyn Fn() + Send + Sync>;

/// The registry of one node.
pub struct Metrics {
    registry: Registry,
    samplers: parking_lot::Mutex<Vec<Arc<Sampler>>>,
}

fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> Result<C, MetricError> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    /// An empty registry that tells only the version of this build.
    pub fn new(version: &str) -> Result<Self, MetricError> {
        let metrics = Self { registry: Registry::new(), samplers: parking_lot::Mutex::default() };
        for name in ["hayloft_build_info", "garage_build_info"] {
            let info = metrics.int_gauges(name, "Version of this build", &["version"])?;
            info.with_label_values(&[version]).set(1);
        }
        Ok(metrics)
    }

    /// Runs `sample` before each [`Metrics::render`].
    pub fn on_scrape(&self, sample: impl Fn() + Send + Sync + 'static) {
        self.samplers.lock().push(Arc::new(Box::new(sample)));
    }

    /// All metrics as text.
    pub fn render(&self) -> Result<String, MetricError> {
        // Run outside the lock: a sampler may add another.
        let samplers = self.samplers.lock().clone();
        for sample in samplers {
            sample();
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        // The encoder writes text only; a label that is not UTF-8 cannot be made.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn int_counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricError> {
        add(&self.registry, IntCounter::new(name, help))
    }

    fn int_counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, MetricError> {
        add(&self.registry, IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricError> {
        add(&self.registry, IntGauge::new(name, help))
    }

    fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricError> {
        add(&self.registry, IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn seconds(&self, name: &str, help: &str) -> Result<Histogram, MetricError> {
        let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        add(&self.registry, Histogram::with_opts(opts))
    }

    fn seconds_by(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, MetricError> {
        let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        add(&self.registry, HistogramVec::new(opts, labels))
    }
}

/// Requests of one HTTP interface: `api_s3_…`, `api_k2v_…`, `api_admin_…`.
#[derive(Clone)]
pub struct ApiMetrics {
    /// Requests, by `api_endpoint`.
    pub requests: IntCounterVec,
    /// Those answered with 400 or more, by `api_endpoint` and `status_code`.
    pub errors: IntCounterVec,
    /// Seconds to the end of the answer's headers, by `api_endpoint`.
    pub duration: HistogramVec,
}

impl ApiMetrics {
    /// For the interface `api` (`s3`, `k2v`, `admin`).
    pub fn new(metrics: &Metrics, api: &str) -> Result<Self, MetricError> {
        let name = |what: &str| format!("api_{api}_{what}");
        let endpoint = &["api_endpoint"];
        Ok(Self {
            requests: metrics.int_counters(&name("request_counter"), "Requests received", endpoint)?,
            errors: metrics.int_counters(
                &name("error_counter"),
                "Requests answered with an error",
                &["api_endpoint", "status_code"],
            )?,
            duration: metrics.seconds_by(&name("request_duration"), "Seconds to answer", endpoint)?,
        })
    }

    /// Notes one request that was answered with `status` after `seconds`.
    pub fn observe(&self, endpoint: &str, status: u16, seconds: f64) {
        self.requests.with_label_values(&[endpoint]).inc();
        self.duration.with_label_values(&[endpoint]).observe(seconds);
        if status >= 400 {
            self.errors.with_label_values(&[endpoint, &status.to_string()]).inc();
        }
    }
}

/// Calls between nodes: `rpc_…`. Labels: `from` and `to` (node ids), `rpc_endpoint` (our message names).
#[derive(Clone)]
pub struct RpcMetrics {
    /// Calls made.
    pub requests: IntCounterVec,
    /// Calls that failed to reach the peer or to come back.
    pub errors: IntCounterVec,
    /// Calls given up at their deadline.
    pub timeouts: IntCounterVec,
    /// Seconds from the call to its answer.
    pub duration: HistogramVec,
}

impl RpcMetrics {
    /// Registers the family.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricError> {
        let labels = &["from", "to", "rpc_endpoint"];
        Ok(Self {
            requests: metrics.int_counters("rpc_request_counter", "Calls to other nodes", labels)?,
            errors: metrics.int_counters(
                "rpc_netapp_error_counter",
                "Calls that broke on the way",
                labels,
            )?,
            timeouts: metrics.int_counters(
                "rpc_timeout_counter",
                "Calls given up at their deadline",
                labels,
            )?,
            duration: metrics.seconds_by("rpc_duration", "Seconds to an answer", labels)?,
        })
    }
}

/// Blocks on a storage node's disks: `block_…`.
#[derive(Clone)]
pub struct BlockMetrics {
    pub bytes_read: IntCounter,
    pub bytes_written: IntCounter,
    pub read_duration: Histogram,
    pub write_duration: Histogram,
    /// Blocks with at least one reference.
    pub rc_size: IntGauge,
    pub resync_queue_length: IntGauge,
    /// Blocks that could not be fetched; must fall back to 0: the alert to have.
    pub resync_errored_blocks: IntGauge,
    pub resync_counter: IntCounter,
    pub resync_duration: Histogram,
    pub delete_counter: IntCounter,
    /// Copies found damaged on disk.
    pub corruption_counter: IntCounter,
}

impl BlockMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        Ok(Self {
            bytes_read: m.int_counter("block_bytes_read", "Bytes of blocks read from disk")?,
            bytes_written: m.int_counter("block_bytes_written", "Bytes of blocks written to disk")?,
            read_duration: m.seconds("block_read_duration", "Seconds to read a block")?,
            write_duration: m.seconds("block_write_duration", "Seconds to write a block durably")?,
            rc_size: m.int_gauge("block_rc_size", "Blocks known by a reference")?,
            resync_queue_length: m.int_gauge("block_resync_queue_length", "Blocks to be checked")?,
            resync_errored_blocks: m
                .int_gauge("block_resync_errored_blocks", "Blocks that resync could not fix")?,
            resync_counter: m.int_counter("block_resync_counter", "Blocks checked by resync")?,
            resync_duration: m.seconds("block_resync_duration", "Seconds to check a block")?,
            delete_counter: m.int_counter("block_delete_counter", "Blocks deleted")?,
            corruption_counter: m.int_counter("block_corruption_counter", "Damaged copies found")?,
        })
    }
}

/// Blocks in a gateway: `block_compression_level`, `block_ram_buffer_free_kb`.
#[derive(Clone)]
pub struct BlockBufferMetrics {
    /// The configured level; not registered as a value when compression is off.
    pub compression_level: IntGauge,
    /// KiB of `block_ram_buffer_max` that are free.
    pub ram_buffer_free_kb: IntGauge,
}

impl BlockBufferMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        Ok(Self {
            compression_level: m.int_gauge("block_compression_level", "zstd level of new blocks")?,
            ram_buffer_free_kb: m.int_gauge("block_ram_buffer_free_kb", "KiB free for blocks in flight")?,
        })
    }
}

/// Replicated tables on a storage node: `table_…`, by `table_name`.
#[derive(Clone)]
pub struct TableMetrics {
    pub size: IntGaugeVec,
    pub gc_queue_length: IntGaugeVec,
    pub insert_queue_length: IntGaugeVec,
    pub get_counter: IntCounterVec,
    pub get_duration: HistogramVec,
    pub put_counter: IntCounterVec,
    pub put_duration: HistogramVec,
    pub update_counter: IntCounterVec,
    pub delete_counter: IntCounterVec,
    /// Also by `from` (node id).
    pub sync_items_received: IntCounterVec,
    /// Also by `to` (node id).
    pub sync_items_sent: IntCounterVec,
}

impl TableMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        let table = &["table_name"];
        Ok(Self {
            size: m.int_gauges("table_size", "Rows", table)?,
            gc_queue_length: m.int_gauges("table_gc_todo_queue_length", "Tombstones to be dropped", table)?,
            insert_queue_length: m.int_gauges("table_insert_queue_length", "Rows to be spread", table)?,
            get_counter: m.int_counters("table_get_request_counter", "Reads of rows", table)?,
            get_duration: m.seconds_by("table_get_request_duration", "Seconds to read", table)?,
            put_counter: m.int_counters("table_put_request_counter", "Writes of rows", table)?,
            put_duration: m.seconds_by("table_put_request_duration", "Seconds to write durably", table)?,
            update_counter: m.int_counters("table_internal_update_counter", "Rows changed here", table)?,
            delete_counter: m.int_counters("table_internal_delete_counter", "Rows dropped here", table)?,
            sync_items_received: m.int_counters(
                "table_sync_items_received",
                "Rows received by anti-entropy",
                &["table_name", "from"],
            )?,
            sync_items_sent: m.int_counters(
                "table_sync_items_sent",
                "Rows sent by anti-entropy",
                &["table_name", "to"],
            )?,
        })
    }
}

/// Background workers of a storage node, by name.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    pub items: IntGaugeVec,
    pub bytes: IntGaugeVec,
    pub errors: IntGaugeVec,
    pub queue: IntGaugeVec,
}

impl WorkerMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        let worker = &["worker"];
        Ok(Self {
            items: m.int_gauges("hayloft_worker_items", "Items done since the start", worker)?,
            bytes: m.int_gauges("hayloft_worker_bytes", "Bytes moved since the start", worker)?,
            errors: m.int_gauges("hayloft_worker_errors", "Errors since the start", worker)?,
            queue: m.int_gauges("hayloft_worker_queue_length", "Items waiting, where known", worker)?,
        })
    }
}

/// The disks of a storage node: `hayloft_local_disk_…` (and under the old prefix), by `volume`.
#[derive(Clone)]
pub struct DiskMetrics {
    avail: [IntGaugeVec; 2],
    total: [IntGaugeVec; 2],
}

impl DiskMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        let volume = &["volume"];
        let avail = |name: &str| m.int_gauges(name, "Bytes free", volume);
        let total = |name: &str| m.int_gauges(name, "Bytes in all", volume);
        Ok(Self {
            avail: [avail("hayloft_local_disk_avail")?, avail("garage_local_disk_avail")?],
            total: [total("hayloft_local_disk_total")?, total("garage_local_disk_total")?],
        })
    }

    /// Sets the bytes of `volume` (`data` or `metadata`).
    pub fn set(&self, volume: &str, avail: u64, total: u64) {
        for (gauges, value) in [(&self.avail, avail), (&self.total, total)] {
            for gauge in gauges {
                gauge.with_label_values(&[volume]).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
    }
}

/// The cluster as this node sees it: `cluster_…`, `hayloft_replication_factor` (and under the old prefix).
#[derive(Clone)]
pub struct ClusterMetrics {
    /// 1 if every storage node is up.
    pub healthy: IntGauge,
    /// 1 if every partition has a quorum.
    pub available: IntGauge,
    pub connected_nodes: IntGauge,
    pub known_nodes: IntGauge,
    pub storage_nodes: IntGauge,
    pub storage_nodes_ok: IntGauge,
    pub partitions: IntGauge,
    pub partitions_quorum: IntGauge,
    pub partitions_all_ok: IntGauge,
    /// 1 if connected; by `id`, `role_capacity`, `role_gateway`, `role_zone`.
    pub layout_node_connected: IntGaugeVec,
    /// Seconds since it was last seen; the same labels.
    pub layout_node_disconnected_time: GaugeVec,
    replication_factor: [IntGauge; 2],
}

impl ClusterMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        let node = &["id", "role_capacity", "role_gateway", "role_zone"];
        let factor = |name: &str| m.int_gauge(name, "Copies of everything");
        let disconnected = Opts::new("cluster_layout_node_disconnected_time", "Seconds since last seen");
        Ok(Self {
            healthy: m.int_gauge("cluster_healthy", "Every storage node is up")?,
            available: m.int_gauge("cluster_available", "Every partition has a quorum")?,
            connected_nodes: m.int_gauge("cluster_connected_nodes", "Nodes connected to this one")?,
            known_nodes: m.int_gauge("cluster_known_nodes", "Nodes ever heard of")?,
            storage_nodes: m.int_gauge("cluster_storage_nodes", "Storage nodes of the layout")?,
            storage_nodes_ok: m.int_gauge("cluster_storage_nodes_ok", "Storage nodes that are up")?,
            partitions: m.int_gauge("cluster_partitions", "Partitions")?,
            partitions_quorum: m.int_gauge("cluster_partitions_quorum", "Partitions with a quorum")?,
            partitions_all_ok: m.int_gauge("cluster_partitions_all_ok", "Partitions with every copy up")?,
            layout_node_connected: m.int_gauges(
                "cluster_layout_node_connected",
                "The node is connected",
                node,
            )?,
            layout_node_disconnected_time: add(&m.registry, GaugeVec::new(disconnected, node))?,
            replication_factor: [factor("hayloft_replication_factor")?, factor("garage_replication_factor")?],
        })
    }

    /// Sets the replication factor.
    pub fn set_replication_factor(&self, factor: usize) {
        for gauge in &self.replication_factor {
            gauge.set(factor as i64);
        }
    }
}

/// The caches of a gateway: `hayloft_cache_…`, by `cache`.
#[derive(Clone)]
pub struct CacheMetrics {
    pub hits: IntCounterVec,
    pub misses: IntCounterVec,
}

impl CacheMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        Ok(Self {
            hits: m.int_counters("hayloft_cache_hits", "Answers from a cache", &["cache"])?,
            misses: m.int_counters(
                "hayloft_cache_misses",
                "Questions a cache could not answer",
                &["cache"],
            )?,
        })
    }
}

/// A gauge of a peer's smoothed round trip: `hayloft_peer_rtt_seconds`, by `to`.
pub fn peer_rtt(m: &Metrics) -> Result<GaugeVec, MetricError> {
    let opts = Opts::new("hayloft_peer_rtt_seconds", "Smoothed round trip to a node");
    add(&m.registry, GaugeVec::new(opts, &["to"]))
}

/// Seconds of group commits and how many writes each carried: `hayloft_commit_…`.
#[derive(Clone)]
pub struct CommitMetrics {
    /// Seconds of a batch with its sync.
    pub duration: Histogram,
    /// Writes in all batches.
    pub writes: IntCounter,
    /// Writes that wait now.
    pub waiting: Gauge,
}

impl CommitMetrics {
    /// Registers the family.
    pub fn new(m: &Metrics) -> Result<Self, MetricError> {
        Ok(Self {
            duration: m.seconds("hayloft_commit_duration", "Seconds of a group commit")?,
            writes: m.int_counter("hayloft_commit_writes", "Writes committed")?,
            waiting: add(&m.registry, Gauge::new("hayloft_commit_waiting", "Writes waiting for a commit"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(m: &Metrics) -> Result<(ApiMetrics, ClusterMetrics, DiskMetrics, TableMetrics), MetricError> {
        RpcMetrics::new(m)?;
        BlockMetrics::new(m)?;
        BlockBufferMetrics::new(m)?;
        CacheMetrics::new(m)?;
        CommitMetrics::new(m)?;
        peer_rtt(m)?;
        Ok((ApiMetrics::new(m, "s3")?, ClusterMetrics::new(m)?, DiskMetrics::new(m)?, TableMetrics::new(m)?))
    }

    #[test]
    fn every_family_registers_once_and_renders_with_the_names_of_dashboards() {
        let metrics = Metrics::new("1.2.3").unwrap();
        let (api, cluster, disk, table) = all(&metrics).unwrap();
        api.observe("PutObject", 200, 0.02);
        api.observe("PutObject", 503, 0.02);
        cluster.set_replication_factor(3);
        disk.set("data", 10, 100);
        table.size.with_label_values(&["object"]).set(7);
        let text = metrics.render().unwrap();
        for line in [
            "hayloft_build_info{version=\"1.2.3\"} 1",
            "garage_build_info{version=\"1.2.3\"} 1",
            "api_s3_request_counter{api_endpoint=\"PutObject\"} 2",
            "api_s3_error_counter{api_endpoint=\"PutObject\",status_code=\"503\"} 1",
            "api_s3_request_duration_count{api_endpoint=\"PutObject\"} 2",
            "garage_replication_factor 3",
            "garage_local_disk_avail{volume=\"data\"} 10",
            "hayloft_local_disk_total{volume=\"data\"} 100",
            "block_resync_errored_blocks 0",
            "table_size{table_name=\"object\"} 7",
            "cluster_available 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(all(&metrics).is_err(), "the same name twice is refused");
    }

    #[test]
    fn samplers_run_before_each_scrape() {
        let metrics = Metrics::new("x").unwrap();
        let gauges = BlockBufferMetrics::new(&metrics).unwrap();
        let gauge = gauges.ram_buffer_free_kb.clone();
        metrics.on_scrape(move || gauge.set(gauge.get() + 5));
        assert!(metrics.render().unwrap().contains("block_ram_buffer_free_kb 5"));
        assert!(metrics.render().unwrap().contains("block_ram_buffer_free_kb 10"));
    }
}
