//! The S3 interface: from an HTTP request to a call of the domain, and back.
//!
//! A request goes through fixed steps, each of which can refuse it before the next: place (bucket and key),
//! route, signature, strict headers, rights, operation. Nothing of the body is read before the last.
//! Everything that S3 knows and we don't is refused by name ([`route`], [`strict`]); nothing is ignored.

pub mod checksum;
pub mod error;
pub mod fuzzing;
pub mod headers;
pub mod op;
pub mod request;
pub mod route;
pub mod strict;
pub mod xml;

use crate::auth::{self, AuthConfig, AuthError, RequestHead, presigned};
use crate::domain::Gateway;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::observe::Endpoint;
use crate::http::percent;
use crate::http::query::Query;
use crate::http::server::{Handler, Refusal, RequestInfo};
use crate::http::vhost;
use async_trait::async_trait;
use error::{Code, Place, S3Error, S3Result};
use hayloft_common::env::Env;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use request::S3Request;
use route::{Level, Operation};
use std::sync::Arc;

/// Answers to the operations.
pub type S3Response = Response<ResponseBody>;

/// How the interface is set up.
#[derive(Debug, Clone)]
pub struct S3Config {
    pub auth: AuthConfig,
    /// Hosts below it name buckets.
    pub root_domain: Option<String>,
}

/// The handler of the S3 port.
pub struct S3Api {
    gateway: Arc<Gateway>,
    env: Env,
    config: S3Config,
}

/// What a path and a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    bucket: String,
    object: String,
}

impl Target {
    fn of(raw_path: &str, host: &str, root_domain: Option<&str>) -> S3Result<Self> {
        let rest = raw_path.strip_prefix('/').unwrap_or(raw_path);
        let decode = |text: &str| {
            percent::decode(text, false).map_err(|e| {
                S3Error::new(Code::InvalidURI, format!("Couldn't parse the specified URI: {e}."))
            })
        };
        if let Some(bucket) = vhost::bucket_of_host(host, root_domain) {
            return Ok(Self { bucket, object: decode(rest)? });
        }
        // Cut before decoding: an encoded slash belongs to the name.
        let (bucket, object) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self { bucket: decode(bucket)?, object: decode(object)? })
    }

    fn level(&self) -> Level {
        match (self.bucket.is_empty(), self.object.is_empty()) {
            (true, true) => Level::Service,
            (_, true) => Level::Bucket,
            (_, false) => Level::Object,
        }
    }
}

impl S3Api {
    pub fn new(gateway: Arc<Gateway>, env: Env, config: S3Config) -> Self {
        Self { gateway, env, config }
    }

    fn region(&self) -> &str {
        &self.config.auth.region
    }

    async fn answer(
        &self,
        parts: Parts,
        body: RequestBody,
        info: &RequestInfo,
        endpoint: &mut &'static str,
    ) -> S3Result<S3Response> {
        let request = self.accept(parts, body, info, endpoint).await?;
        op::run(&self.gateway, &self.config, request).await
    }

    /// Everything up to the operation.
    async fn accept(
        &self,
        parts: Parts,
        body: RequestBody,
        info: &RequestInfo,
        endpoint: &mut &'static str,
    ) -> S3Result<S3Request> {
        let host = host_of(&parts);
        let raw_path = parts.uri.path();
        let target = Target::of(raw_path, &host, self.config.root_domain.as_deref())?;
        let uri = |e| S3Error::new(Code::InvalidURI, format!("Couldn't parse the specified URI: {e}."));
        let signed_query = Query::parse(parts.uri.query().unwrap_or_default()).map_err(uri)?;
        let path = percent::decode(raw_path, false).map_err(uri)?;

        if presigned::is_version_2(&signed_query) {
            // Named before its parameters are refused one by one.
            return Err(AuthError::UnsupportedMechanism.into());
        }
        let mut query = signed_query.clone();
        let mut headers = parts.headers.clone();
        if presigned::is_presigned(&query) {
            hoist(presigned::hoisted(&mut query), &mut headers)?;
        }
        let operation = find_operation(&parts.method, &target, &query, &headers)?;
        *endpoint = operation.name();

        let head = RequestHead {
            method: parts.method.as_str(),
            raw_path,
            path: &path,
            query: &signed_query,
            headers: &parts.headers,
            host: &host,
        };
        let now_secs = self.env.wall_millis() / 1000;
        let caller = auth::authenticate(&self.config.auth, now_secs, head, self.gateway.as_ref()).await?;
        strict::check(operation, &headers)?;
        let scheme = if info.tls { "https" } else { "http" };
        Ok(S3Request {
            operation,
            key: caller.key,
            bucket: target.bucket,
            object: target.object,
            query,
            headers,
            url: format!("{scheme}://{host}{raw_path}"),
            payload: caller.payload,
            body: body.into(),
        })
    }
}

fn host_of(parts: &Parts) -> String {
    // HTTP/2 puts the host in the request's URI.
    if let Some(authority) = parts.uri.authority() {
        return authority.as_str().to_owned();
    }
    parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned()
}

fn find_operation(
    method: &Method,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> S3Result<Operation> {
    let is_form =
        headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"multipart/form-data"));
    let is_copy = headers.contains_key("x-amz-copy-source");
    let operation = route::route(method, target.level(), query, is_copy, is_form)?;
    if target.level() == Level::Object && target.bucket.is_empty() {
        return Err(S3Error::new(Code::InvalidBucketName, "The specified bucket is not valid."));
    }
    Ok(operation)
}

/// Puts the parameters of a presigned URL that stand for headers among the headers.
fn hoist(parameters: Vec<(String, String)>, headers: &mut HeaderMap) -> S3Result<()> {
    for (name, value) in parameters {
        if name == "x-amz-content-sha256" {
            continue; // Part of the signature, and checked with it.
        }
        let invalid = || S3Error::argument(&name, &value, "The parameter can't stand for a header.");
        let header = HeaderName::try_from(&name).map_err(|_| invalid())?;
        let content = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?;
        match headers.get(&header) {
            Some(sent) if *sent != content => {
                return Err(S3Error::argument(&name, &value, "The header and the query parameter differ."));
            }
            _ => {
                headers.insert(header, content);
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Handler for S3Api {
    async fn handle(&self, request: Request<RequestBody>, info: RequestInfo) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let resource = parts.uri.path().to_owned();
        let mut endpoint = "Unknown";
        let result = self.answer(parts, body, &info, &mut endpoint).await;
        let mut response = result.unwrap_or_else(|error| {
            tracing::debug!(code = error.code.name(), message = %error.message, "request refused");
            let place = Place { resource: &resource, request_id: &info.id, region: self.region() };
            error.response(place, is_head)
        });
        response.extensions_mut().insert(Endpoint(endpoint));
        response
    }

    fn refuse(&self, request: &Parts, info: &RequestInfo, why: Refusal) -> Response<ResponseBody> {
        let error = match why {
            Refusal::Overloaded => S3Error::new(Code::SlowDown, "Please reduce your request rate."),
            Refusal::HeadersTooLarge => S3Error::new(
                Code::RequestHeaderSectionTooLarge,
                "Your request header section exceeds the maximum allowed size.",
            ),
        };
        let place = Place { resource: request.uri.path(), request_id: &info.id, region: self.region() };
        error.response(place, request.method == Method::HEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, host: &str) -> Option<(String, String)> {
        Target::of(path, host, Some("s3.example.org")).ok().map(|t| (t.bucket, t.object))
    }

    #[test]
    fn keys_are_taken_as_they_are() {
        for (path, bucket, key) in [
            ("/", "", ""),
            ("/b", "b", ""),
            ("/b/", "b", ""),
            ("/b/a", "b", "a"),
            ("/b/a/", "b", "a/"),
            ("/b//a", "b", "/a"),
            ("/b/../a", "b", "../a"),
            ("/b/a%2Fb%25+%2B", "b", "a/b%++"),
            ("/b/%F0%9F%A6%80%00", "b", "🦀\u{0}"),
            ("/b%2Fc/a", "b/c", "a"),
        ] {
            assert_eq!(target(path, "example.org"), Some((bucket.into(), key.into())), "{path}");
        }
        assert_eq!(target("/b/%FF", "example.org"), None);
        assert_eq!(target("/b/%2", "example.org"), None);
        assert_eq!(target("/a/b", "p.s3.example.org:1"), Some(("p".into(), "a/b".into())));
        assert_eq!(target("//b", "p.s3.example.org"), Some(("p".into(), "/b".into())));
    }

    #[test]
    fn a_hoisted_parameter_may_not_contradict_a_header() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-acl", HeaderValue::from_static("private"));
        assert!(hoist(vec![("x-amz-acl".into(), "private".into())], &mut headers).is_ok());
        assert!(hoist(vec![("x-amz-acl".into(), "public-read".into())], &mut headers).is_err());
        assert!(hoist(vec![("x-amz-meta-ü".into(), "1".into())], &mut headers).is_err());
        assert!(hoist(vec![("x-amz-meta-a".into(), "1".into())], &mut headers).is_ok());
        assert_eq!(headers["x-amz-meta-a"], "1");
    }
}
