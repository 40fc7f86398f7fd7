//! Builds a gateway from its parts, in order, and stops it in reverse: the only file that knows all.
//!
//! [`start`] takes the seams from the caller, so that the simulator runs the same gateway on a simulated network and
//! clock; [`run`] gives it the operating system's and waits for the signal to stop.

use crate::admin::Admin;
use crate::auth::verify::AuthConfig;
use crate::domain::{ClusterStore, Gateway};
use crate::http::observe::{Finished, Observer};
use crate::http::server::{Handler, Server, ServerConfig};
use crate::http::tls::{Tls, TlsFiles};
use crate::layout::LayoutManager;
use crate::limits::DomainConfig;
use crate::s3::{S3Api, S3Config};
use anyhow::Context as _;
use hayloft_common::config::{GatewayConfig, LimitsConfig, Peer};
use hayloft_common::env::{Clock, Env};
use hayloft_common::layout::{ActiveLayout, ConsistencyMode, Parameters, StagedChanges, ZoneRedundancy};
use hayloft_common::limits::DEFAULT_PARTITION_BITS;
use hayloft_common::stamp::HybridClock;
use hayloft_common::telemetry::metric::{
    ApiMetrics, BlockBufferMetrics, ClusterMetrics, MetricError, Metrics, peer_rtt,
};
use hayloft_proto::client::Pool;
use hayloft_proto::cluster::{Cluster, NoLayoutStore};
use hayloft_proto::hello::{Member, Role, RpcSecret};
use hayloft_proto::identity::Identity;
use hayloft_proto::limits::Limits;
use hayloft_proto::membership::Membership;
use hayloft_proto::secure::Secure;
use hayloft_proto::secure::tls::TlsSecure;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Between looks at the certificate files.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// What a gateway is made of below its HTTP ports.
pub struct Parts {
    pub env: Env,
    pub secure: Arc<dyn Secure>,
    pub secret: RpcSecret,
    /// The gateway's own zone: replicas there are preferred.
    pub zone: Option<String>,
    pub mode: ConsistencyMode,
    pub storage_peers: Vec<Peer>,
    pub domain: DomainConfig,
    pub rpc: Limits,
}

/// A gateway without its ports.
pub struct Core {
    pub gateway: Arc<Gateway>,
    pub membership: Arc<Membership>,
}

/// How long a gateway that starts may wait for a layout before it opens the S3 port.
const LAYOUT_PATIENCE: Duration = Duration::from_secs(10);

/// Starts what lies below the ports: transport, gossip, domain.
pub fn start(parts: Parts) -> Core {
    let Parts { env, secure, secret, zone, mode, storage_peers, domain, rpc } = parts;
    let member = Member::new(secret, Role::Gateway);
    let pool = Arc::new(Pool::new(env.clone(), secure, member, rpc));
    let parameters = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
    let empty = ActiveLayout::empty(parameters, DEFAULT_PARTITION_BITS);
    let cluster = Cluster::new(env.clone(), pool, zone, mode, empty, Arc::new(NoLayoutStore));
    let membership = Membership::new(cluster.clone(), None, storage_peers, StagedChanges::default());
    membership.start();
    let clock = Arc::new(ClusterClock { own: env.clock.clone(), membership: membership.clone() });
    // The order of writes does not depend on the time of day: the own clock does, and never steps.
    let order = HybridClock::new(env.clone());
    let store = Arc::new(ClusterStore::with_late_bytes(cluster, domain.block_ram_buffer_max / 12));
    let gateway = Gateway::with_clock(Env { clock, ..env }, order, store, domain);
    Core { gateway, membership }
}

/// The cluster's time: a gateway is stateless and stands anywhere, so its own clock is the one most likely wrong. What
/// is compared with the world (signatures, expiry, `Last-Modified`) follows the median of the storage nodes' clocks;
/// before the first of them was heard, its own.
struct ClusterClock {
    own: Arc<dyn Clock>,
    membership: Arc<Membership>,
}

impl Clock for ClusterClock {
    fn wall_micros(&self) -> u64 {
        let offset = self.membership.clock_offset_ms().saturating_mul(1000);
        self.own.wall_micros().saturating_add_signed(offset)
    }

    fn monotonic(&self) -> Duration {
        self.own.monotonic()
    }
}

/// Requests of a port in metrics.
struct Observed(ApiMetrics);

impl Observer for Observed {
    fn started(&self, _api: &'static str) {}

    fn finished(&self, request: &Finished) {
        self.0.observe(request.endpoint, request.status, request.latency.as_secs_f64());
    }
}

fn server_config(api: &'static str, limits: &LimitsConfig) -> ServerConfig {
    ServerConfig {
        max_connections: limits.max_connections,
        max_requests: limits.max_concurrent_requests,
        max_header_bytes: limits.max_header_size,
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        stall_timeout: limits.body_timeout,
        ..ServerConfig::new(api)
    }
}

/// The ports of a gateway and what they need to stop.
struct Ports {
    env: Env,
    limits: LimitsConfig,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    running: TaskTracker,
}

impl Ports {
    async fn open(
        &self,
        api: &'static str,
        addr: &str,
        tls: Option<Arc<Tls>>,
        handler: Arc<dyn Handler>,
    ) -> anyhow::Result<String> {
        let observer = Arc::new(Observed(ApiMetrics::new(&self.metrics, api)?));
        let config = server_config(api, &self.limits);
        let server = Server::bind(self.env.clone(), addr, config, tls, handler, observer);
        let server =
            server.await.with_context(|| format!("cannot listen on {addr} ({api} api_bind_addr)"))?;
        let local = server.local_addr();
        self.env.spawn("http port", self.running.track_future(server.run(self.stop.clone())));
        Ok(local)
    }
}

/// Runs a gateway as its configuration says, until `stop` is ready.
pub async fn run(config: &GatewayConfig, env: Env, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let identity = match &config.identity_file {
        Some(path) => Identity::load_or_create(path)?,
        None => Identity::generate()?,
    };
    let core = start(Parts {
        env: env.clone(),
        secure: Arc::new(TlsSecure::new(&identity)?),
        secret: RpcSecret::new(*config.rpc_secret().as_bytes()),
        zone: config.zone.clone(),
        mode: config.consistency_mode,
        storage_peers: config.storage_peers.clone(),
        domain: config.into(),
        rpc: Limits::default(),
    });
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"))?);
    let ports = Ports {
        env: env.clone(),
        limits: config.limits.clone(),
        metrics: metrics.clone(),
        stop: CancellationToken::new(),
        running: TaskTracker::new(),
    };
    let tls = load_tls(config, &env, &ports.stop).await?;
    let secure = tls.is_some();
    let s3 = S3Api::new(core.gateway.clone(), core.gateway.env().clone(), s3_config(config));
    if let Some(addr) = &config.admin.api_bind_addr {
        let admin = Arc::new(admin(config, &env, &core, metrics.clone()));
        sample_cluster(&metrics, &admin, config)?;
        let addr = ports.open("admin", addr, None, admin).await?;
        tracing::info!(addr, "admin port is open");
    }
    tokio::pin!(stop);
    tokio::select! {
        biased;
        () = &mut stop => {
            ports.stop.cancel();
            return Ok(());
        }
        () = layout_known(&core) => {}
    }
    let s3_addr = ports.open("s3", &config.s3_api.api_bind_addr, tls, Arc::new(s3)).await?;
    tracing::info!(node = %identity.id(), addr = s3_addr, tls = secure, "gateway is up");
    stop.await;
    tracing::info!("stopping");
    ports.stop.cancel();
    ports.running.close();
    ports.running.wait().await;
    Ok(())
}

/// Waits for the first layout, so that a gateway that was restarted refuses no request for want of one; not for long: a
/// new cluster has none, and a client is to be told so.
async fn layout_known(core: &Core) {
    let mut epochs = core.membership.cluster().epochs();
    if tokio::time::timeout(LAYOUT_PATIENCE, epochs.wait_for(|epoch| *epoch > 0)).await.is_err() {
        tracing::warn!("no storage node has told of a layout yet: S3 requests are refused until one does");
    }
}

fn s3_config(config: &GatewayConfig) -> S3Config {
    let s3 = &config.s3_api;
    S3Config {
        auth: AuthConfig::new("s3", &s3.s3_region, &s3.extra_regions),
        root_domain: s3.root_domain.clone(),
    }
}

async fn load_tls(
    config: &GatewayConfig,
    env: &Env,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Arc<Tls>>> {
    let (Some(certificate), Some(key)) = (&config.s3_api.tls_cert, &config.s3_api.tls_key) else {
        return Ok(None);
    };
    let tls = Tls::load(env, TlsFiles { certificate: certificate.clone(), key: key.clone() }).await?;
    env.spawn("certificates", tls.clone().watch(env.clone(), CERTIFICATE_INTERVAL, stop.clone()));
    Ok(Some(tls))
}

fn admin(config: &GatewayConfig, env: &Env, core: &Core, metrics: Arc<Metrics>) -> Admin {
    Admin {
        gateway: core.gateway.clone(),
        membership: core.membership.clone(),
        layout: LayoutManager::new(env.clone(), core.membership.clone()),
        metrics,
        region: config.s3_api.s3_region.clone(),
        admin_token: config.admin.admin_token().cloned(),
        metrics_token: config.admin.metrics_token().cloned(),
        metrics_require_token: config.admin.metrics_require_token,
    }
}

/// Brings the gauges of cluster and buffers up to date before each scrape.
fn sample_cluster(metrics: &Metrics, admin: &Arc<Admin>, config: &GatewayConfig) -> Result<(), MetricError> {
    use hayloft_proto::admin::HealthStatus;
    let gauges = ClusterMetrics::new(metrics)?;
    let buffers = BlockBufferMetrics::new(metrics)?;
    let rtt = peer_rtt(metrics)?;
    if let hayloft_common::config::Compression::Level(level) = config.compression_level {
        buffers.compression_level.set(i64::from(level));
    }
    let admin = admin.clone();
    let as_i64 = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.on_scrape(move || {
        let health = admin.cluster_health();
        gauges.healthy.set(i64::from(health.status == HealthStatus::Healthy));
        gauges.available.set(i64::from(health.status != HealthStatus::Unavailable));
        gauges.connected_nodes.set(as_i64(health.connected_nodes));
        gauges.known_nodes.set(as_i64(health.known_nodes));
        gauges.storage_nodes.set(as_i64(health.storage_nodes));
        gauges.storage_nodes_ok.set(as_i64(health.storage_nodes_up));
        gauges.partitions.set(as_i64(health.partitions));
        gauges.partitions_quorum.set(as_i64(health.partitions_quorum));
        gauges.partitions_all_ok.set(as_i64(health.partitions_all_ok));
        let layout = admin.membership.cluster().layout();
        gauges.set_replication_factor(layout.current.parameters.replication_factor);
        let (uploads, downloads) = admin.gateway.free_memory();
        buffers.ram_buffer_free_kb.set(as_i64((uploads + downloads) / 1024));
        let pool = admin.membership.cluster().pool();
        for info in admin.membership.peers() {
            if let Some(time) = pool.peer_stats(info.id).srtt {
                rtt.with_label_values(&[&info.id.to_string()]).set(time.as_secs_f64());
            }
        }
    });
    Ok(())
}
