//! The admin interface, version 2: what the `hayloft` command and consoles call.
//!
//! Its shapes are `proto::admin`'s. Every answer of 400 or more has a JSON body that says what is wrong. This is the
//! one API that looks at nodes, through [`crate::layout`] and the membership; keys and buckets go through the domain.

mod buckets;
mod cluster;
mod history;
mod keys;
mod layout;
mod operate;

use crate::domain::{DomainError, Gateway};
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::observe::Endpoint as EndpointName;
use crate::http::query::Query;
use crate::http::server::{Handler, Refusal, RequestInfo};
use crate::layout::{ApplyError, LayoutManager};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use hayloft_common::config::Secret;
use hayloft_common::telemetry::metric::{CONTENT_TYPE, Metrics};
use hayloft_proto::admin::{Endpoint, ErrorBody};
use hayloft_proto::agree::AgreeError;
use hayloft_proto::membership::Membership;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Longest request body, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The admin port of a gateway.
pub struct Admin {
    pub gateway: Arc<Gateway>,
    pub membership: Arc<Membership>,
    pub layout: LayoutManager,
    pub metrics: Arc<Metrics>,
    pub region: String,
    pub admin_token: Option<Secret>,
    pub metrics_token: Option<Secret>,
    pub metrics_require_token: bool,
}

/// Why a request fails: status, code for programs, text for people.
#[derive(Debug)]
pub struct AdminError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl AdminError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
    }

    fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }
}

impl From<DomainError> for AdminError {
    fn from(error: DomainError) -> Self {
        use DomainError as E;
        let (status, code) = match &error {
            E::NoSuchKeyId { .. } => (StatusCode::NOT_FOUND, "NoSuchAccessKey"),
            E::NoSuchBucket { .. } => (StatusCode::NOT_FOUND, "NoSuchBucket"),
            E::KeyExists { .. } => (StatusCode::CONFLICT, "KeyAlreadyExists"),
            E::BucketAlreadyExists { .. } | E::BucketAlreadyOwnedByYou { .. } => {
                (StatusCode::CONFLICT, "BucketAlreadyExists")
            }
            E::BucketNotEmpty { .. } => (StatusCode::BAD_REQUEST, "BucketNotEmpty"),
            E::InvalidBucketName { .. } => (StatusCode::BAD_REQUEST, "InvalidBucketName"),
            E::LastAlias { .. } | E::InvalidArgument { .. } => (StatusCode::BAD_REQUEST, "InvalidRequest"),
            E::Unavailable { .. } | E::NoSpace { .. } | E::Overloaded { .. } | E::Contention => {
                (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<ApplyError> for AdminError {
    fn from(error: ApplyError) -> Self {
        use ApplyError as E;
        let (status, code) = match &error {
            E::WrongVersion { .. }
            | E::Conflict { .. }
            | E::OtherChange { .. }
            | E::Agree(AgreeError::Conflict { .. } | AgreeError::Contended) => {
                (StatusCode::CONFLICT, "LayoutConflict")
            }
            E::Unreachable { .. } | E::Agree(AgreeError::Unreachable { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
            }
            E::DataAtRisk { .. } => (StatusCode::BAD_REQUEST, "DataAtRisk"),
            E::NothingUnderWay | E::NobodyDead { .. } => (StatusCode::BAD_REQUEST, "NothingToSkip"),
            E::NothingStaged
            | E::Layout(_)
            | E::Invalid(_)
            | E::UnknownNode { .. }
            | E::Agree(AgreeError::Invalid(_) | AgreeError::Refused { .. })
            | E::BadRequest(_) => (StatusCode::BAD_REQUEST, "InvalidLayout"),
        };
        Self::new(status, code, error.to_string())
    }
}

/// A request taken apart.
struct Call {
    query: Query,
    body: Bytes,
}

impl Call {
    /// The body as JSON.
    fn json<T: DeserializeOwned>(&self) -> Result<T, AdminError> {
        serde_json::from_slice(&self.body)
            .map_err(|e| AdminError::bad(format!("the body is not what is expected: {e}")))
    }

    /// A query parameter that must be there.
    fn need(&self, name: &str) -> Result<&str, AdminError> {
        self.query
            .get(name)
            .ok_or_else(|| AdminError::bad(format!("the query parameter `{name}` is missing")))
    }
}

#[async_trait]
impl Handler for Admin {
    async fn handle(&self, request: Request<RequestBody>, _info: RequestInfo) -> Response<ResponseBody> {
        let path = request.uri().path().to_owned();
        match self.route(&path, request).await {
            Ok(response) => response,
            Err(error) => self.error(&path, &error),
        }
    }

    fn refuse(
        &self,
        request: &http::request::Parts,
        _: &RequestInfo,
        why: Refusal,
    ) -> Response<ResponseBody> {
        let error = match why {
            Refusal::Overloaded => {
                AdminError::new(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "too many requests at once")
            }
            Refusal::HeadersTooLarge => AdminError::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "RequestHeaderSectionTooLarge",
                "the headers are too large",
            ),
        };
        self.error(request.uri.path(), &error)
    }
}

impl Admin {
    async fn route(
        &self,
        path: &str,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, AdminError> {
        match (request.method(), path) {
            (&Method::GET, "/health") => return Ok(self.health()),
            (&Method::GET, "/metrics") => return self.render_metrics(&request),
            _ => {}
        }
        let endpoint = path.strip_prefix("/v2/").and_then(Endpoint::from_name);
        let Some(endpoint) = endpoint else {
            self.check_token(&request)?;
            return Err(AdminError::bad(format!("there is no endpoint {path}")));
        };
        self.check_token(&request)?;
        if request.method().as_str() != endpoint.method() {
            let text = format!("{path} takes {}, not {}", endpoint.method(), request.method());
            return Err(AdminError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text));
        }
        let query = Query::parse(request.uri().query().unwrap_or_default())
            .map_err(|_| AdminError::bad("the query is not well-formed"))?;
        let body = read_body(request.into_body()).await?;
        let mut response = self.run(endpoint, &Call { query, body }).await?;
        response.extensions_mut().insert(EndpointName(endpoint.name()));
        Ok(response)
    }

    async fn run(&self, endpoint: Endpoint, call: &Call) -> Result<Response<ResponseBody>, AdminError> {
        match endpoint {
            Endpoint::GetClusterStatus => json(&self.cluster_status().await?),
            Endpoint::GetClusterHealth => json(&self.cluster_health()),
            Endpoint::GetClusterLayout => json(&self.cluster_layout().await?),
            Endpoint::GetClusterLayoutHistory => json(&self.layout_history().await?),
            Endpoint::UpdateClusterLayout => json(&self.update_layout(call.json()?).await?),
            Endpoint::PreviewClusterLayoutChanges => json(&self.preview_layout().await?),
            Endpoint::ApplyClusterLayout => json(&self.apply_layout(call.json()?).await?),
            Endpoint::RevertClusterLayout => json(&self.revert_layout().await?),
            Endpoint::ClusterLayoutSkipDeadNodes => json(&self.skip_dead_nodes(call.json()?).await?),
            Endpoint::ListKeys => json(&self.list_keys(call).await?),
            Endpoint::GetKeyInfo => json(&self.key_info(call).await?),
            Endpoint::CreateKey => json(&self.create_key(call.json()?).await?),
            Endpoint::ImportKey => json(&self.import_key(call.json()?).await?),
            Endpoint::UpdateKey => json(&self.update_key(call.need("id")?, call.json()?).await?),
            Endpoint::DeleteKey => json(&self.delete_key(call.need("id")?).await?),
            Endpoint::ListBuckets => json(&self.list_buckets(call).await?),
            Endpoint::GetBucketInfo => json(&self.bucket_info(call).await?),
            Endpoint::CreateBucket => json(&self.create_bucket(call.json()?).await?),
            Endpoint::UpdateBucket => json(&self.update_bucket(call.need("id")?, call.json()?).await?),
            Endpoint::DeleteBucket => json(&self.delete_bucket(call.need("id")?).await?),
            Endpoint::AddBucketAlias => json(&self.add_alias(call.json()?).await?),
            Endpoint::RemoveBucketAlias => json(&self.remove_alias(call.json()?).await?),
            Endpoint::AllowBucketKey => json(&self.allow(call.json()?, true).await?),
            Endpoint::DenyBucketKey => json(&self.allow(call.json()?, false).await?),
            Endpoint::LaunchRepairOperation => json(&self.launch_repair(call).await?),
            Endpoint::ListWorkers => json(&self.list_workers(call).await?),
            Endpoint::GetWorkerInfo => json(&self.worker_info(call).await?),
            Endpoint::GetWorkerVariable => json(&self.worker_variables(call).await?),
            Endpoint::SetWorkerVariable => json(&self.set_worker_variable(call).await?),
            Endpoint::ListBlockErrors => json(&self.block_errors(call).await?),
            Endpoint::GetBlockInfo => json(&self.block_info(call).await?),
            Endpoint::RetryBlockResync => json(&self.retry_blocks(call).await?),
            Endpoint::PurgeBlocks => json(&self.purge_blocks(call).await?),
            Endpoint::CreateMetadataSnapshot => json(&self.snapshot(call).await?),
            Endpoint::GetVerification => json(&self.verification(call).await?),
        }
    }

    fn check_token<T>(&self, request: &Request<T>) -> Result<(), AdminError> {
        match (&self.admin_token, bearer(request)) {
            (Some(token), Some(given)) if token.matches(given) => Ok(()),
            (None, _) => Err(AdminError::new(
                StatusCode::FORBIDDEN,
                "Forbidden",
                "this gateway has no admin token: set `admin_token_file` in its configuration",
            )),
            _ => Err(AdminError::new(
                StatusCode::FORBIDDEN,
                "Forbidden",
                "the admin token is missing or wrong",
            )),
        }
    }

    fn render_metrics<T>(&self, request: &Request<T>) -> Result<Response<ResponseBody>, AdminError> {
        let allowed = match (&self.metrics_token, bearer(request)) {
            (Some(token), Some(given)) => token.matches(given),
            (Some(_), None) => false,
            (None, _) => !self.metrics_require_token,
        };
        if !allowed {
            return Err(AdminError::new(
                StatusCode::FORBIDDEN,
                "Forbidden",
                "the metrics token is missing or wrong",
            ));
        }
        let text = self.metrics.render().map_err(|e| {
            AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", e.to_string())
        })?;
        Ok(response(StatusCode::OK, CONTENT_TYPE, text.into()))
    }

    /// 200 while every partition has a quorum, else 503.
    fn health(&self) -> Response<ResponseBody> {
        use hayloft_proto::admin::HealthStatus::{Degraded, Healthy, Unavailable};
        let health = self.cluster_health();
        let (status, text) = match health.status {
            Healthy => (StatusCode::OK, "healthy: all storage nodes are up\n"),
            Degraded => {
                (StatusCode::OK, "degraded: every partition has a quorum, but not all nodes are up\n")
            }
            Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable: some partitions have no quorum\n"),
        };
        response(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
    }

    fn error(&self, path: &str, error: &AdminError) -> Response<ResponseBody> {
        let body = ErrorBody {
            code: error.code.into(),
            message: error.message.clone(),
            region: self.region.clone(),
            path: path.into(),
        };
        response(error.status, "application/json", serde_json::to_vec(&body).unwrap_or_default().into())
    }
}

fn bearer<T>(request: &Request<T>) -> Option<&str> {
    request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

async fn read_body(mut body: RequestBody) -> Result<Bytes, AdminError> {
    let mut all = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| AdminError::bad("the body could not be read"))?;
        if all.len() + chunk.len() > MAX_BODY {
            let text = format!("the body is longer than {MAX_BODY} bytes");
            return Err(AdminError::new(StatusCode::PAYLOAD_TOO_LARGE, "EntityTooLarge", text));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}

fn json<T: Serialize>(value: &T) -> Result<Response<ResponseBody>, AdminError> {
    let body = serde_json::to_vec(value)
        .map_err(|e| AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", e.to_string()))?;
    Ok(response(StatusCode::OK, "application/json", body.into()))
}

fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
