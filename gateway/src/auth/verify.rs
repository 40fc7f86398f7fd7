//! Authentication of a request's head: one function, in the order in which S3 answers.
//!
//! After it the caller is known, and so is how the body must be verified.

use super::canonical::{self, PathForm, Signable};
use super::chunked::ChunkSigner;
use super::error::{AuthError, SignatureMismatch};
use super::payload::Payload;
use super::presigned::{self, Presigned};
use super::sigv4::{self, Authorization, Credential, Signed, SigningKey};
use crate::domain::{DomainError, Gateway};
use crate::http::date;
use async_trait::async_trait;
use hayloft_common::schema::{KeyId, KeyRow};
use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use std::sync::Arc;

/// `x-amz-*` headers that need not be signed: they ask for nothing, or are covered otherwise.
const MAY_BE_UNSIGNED: [&str; 3] = ["x-amz-content-sha256", "x-amz-user-agent", "x-amz-cf-id"];

/// What signatures are checked against.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// `s3` or `k2v`.
    pub service: &'static str,
    /// Our region: what errors name.
    pub region: String,
    /// Other regions that are accepted.
    pub extra_regions: Vec<String>,
    /// How far clocks may be apart, in seconds.
    pub max_skew_secs: u64,
}

impl AuthConfig {
    /// S3's rules: 15 minutes of skew.
    pub fn new(service: &'static str, region: &str, extra_regions: &[String]) -> Self {
        Self {
            service,
            region: region.to_owned(),
            extra_regions: extra_regions.to_vec(),
            max_skew_secs: 15 * 60,
        }
    }
}

/// The head of a request, with path and query decoded once.
pub type RequestHead<'a> = Signable<'a>;

/// Where access keys are looked up.
#[async_trait]
pub trait KeyLookup: Send + Sync {
    /// The key, if it exists and may be used now.
    async fn find(&self, id: &str) -> Result<Option<Arc<KeyRow>>, DomainError>;
}

#[async_trait]
impl KeyLookup for Gateway {
    async fn find(&self, id: &str) -> Result<Option<Arc<KeyRow>>, DomainError> {
        match self.key(&KeyId(id.to_owned())).await {
            Ok(key) => Ok(Some(key)),
            Err(DomainError::NoSuchKeyId { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Who sent a request, and how its body was signed.
#[derive(Debug, Clone)]
pub struct Caller {
    pub key: Arc<KeyRow>,
    pub payload: Payload,
    /// Whether the signature stood in the query.
    pub presigned: bool,
}

/// The parts of both kinds of signature.
struct Claim {
    credential: Credential,
    signed_headers: Vec<String>,
    signature: String,
    date_secs: u64,
    /// As it stands in the canonical request.
    payload_hash: String,
    presigned: bool,
}

/// Authenticates a request; `now_secs` is the wall clock in seconds since the epoch.
pub async fn authenticate(
    config: &AuthConfig,
    now_secs: u64,
    request: RequestHead<'_>,
    keys: &dyn KeyLookup,
) -> Result<Caller, AuthError> {
    let in_header = request.headers.contains_key(AUTHORIZATION);
    let in_query = presigned::is_presigned(request.query);
    let claim = match (in_header, in_query) {
        (true, true) => return Err(AuthError::TwoMechanisms),
        (true, false) => header_claim(config, now_secs, request)?,
        (false, true) => query_claim(config, now_secs, request)?,
        (false, false) if presigned::is_version_2(request.query) => {
            return Err(AuthError::UnsupportedMechanism);
        }
        (false, false) => return Err(AuthError::Anonymous),
    };
    check_headers_signed(request.headers, &claim.signed_headers)?;
    if request.headers.contains_key("x-amz-security-token") || request.query.has("X-Amz-Security-Token") {
        return Err(AuthError::SecurityToken);
    }
    let payload = Kind::parse(&claim.payload_hash)?;
    let id = &claim.credential.access_key;
    let key = keys
        .find(id)
        .await
        .map_err(AuthError::Lookup)?
        .ok_or_else(|| AuthError::UnknownKey { id: id.clone() })?;
    let signing_key = SigningKey::derive(&key.secret, &claim.credential);
    check_signature(request, &claim, &signing_key)?;
    let payload = payload.with_signer(&claim, signing_key);
    Ok(Caller { key, payload, presigned: claim.presigned })
}

fn header_claim(config: &AuthConfig, now_secs: u64, request: RequestHead<'_>) -> Result<Claim, AuthError> {
    let malformed = |text: &str| AuthError::MalformedHeader(text.to_owned());
    let header = unique(request.headers, AUTHORIZATION.as_str())
        .ok_or_else(|| malformed("it is given more than once, or is not text."))?;
    let parsed = Authorization::parse(header)?;
    check_scope(config, &parsed.credential, false)?;
    let date_secs = request_date(request.headers).ok_or(AuthError::MissingDate)?;
    if date::amz(date_secs)[..8] != parsed.credential.date {
        return Err(malformed("the date in the Credential is not the day of the request."));
    }
    if date_secs.abs_diff(now_secs) > config.max_skew_secs {
        return Err(AuthError::Skewed {
            request_secs: date_secs,
            server_secs: now_secs,
            max_secs: config.max_skew_secs,
        });
    }
    let payload_hash =
        unique(request.headers, "x-amz-content-sha256").ok_or(AuthError::MissingContentSha256)?.to_owned();
    Ok(Claim {
        credential: parsed.credential,
        signed_headers: parsed.signed_headers,
        signature: parsed.signature,
        date_secs,
        payload_hash,
        presigned: false,
    })
}

fn query_claim(config: &AuthConfig, now_secs: u64, request: RequestHead<'_>) -> Result<Claim, AuthError> {
    let parsed = Presigned::parse(request.query)?;
    check_scope(config, &parsed.credential, true)?;
    if date::amz(parsed.date_secs)[..8] != parsed.credential.date {
        return Err(AuthError::MalformedQuery(
            "Error parsing the X-Amz-Credential parameter; its date is not the day of X-Amz-Date.".to_owned(),
        ));
    }
    parsed.check_time(now_secs, config.max_skew_secs)?;
    // The body is usually not known when the URL is made. A hash that is sent all the same is verified.
    let payload_hash = unique(request.headers, "x-amz-content-sha256")
        .or_else(|| request.query.get("X-Amz-Content-Sha256"))
        .unwrap_or("UNSIGNED-PAYLOAD")
        .to_owned();
    Ok(Claim {
        credential: parsed.credential,
        signed_headers: parsed.signed_headers,
        signature: parsed.signature,
        date_secs: parsed.date_secs,
        payload_hash,
        presigned: true,
    })
}

/// A header's value, if it is given once and is text.
fn unique<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    std::str::from_utf8(value.as_bytes()).ok().map(str::trim)
}

fn request_date(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key("x-amz-date") {
        return unique(headers, "x-amz-date").and_then(date::parse_amz);
    }
    let date = unique(headers, DATE.as_str())?;
    date::parse_amz(date).or_else(|| date::parse_http(date))
}

fn check_scope(config: &AuthConfig, credential: &Credential, presigned: bool) -> Result<(), AuthError> {
    let malformed = |text: String| {
        if presigned {
            AuthError::MalformedQuery(format!("Error parsing the X-Amz-Credential parameter; {text}"))
        } else {
            AuthError::MalformedHeader(text)
        }
    };
    if credential.service != config.service {
        let (given, expected) = (&credential.service, config.service);
        return Err(malformed(format!(
            "incorrect service \"{given}\". This endpoint belongs to \"{expected}\"."
        )));
    }
    let known = credential.region == config.region || config.extra_regions.contains(&credential.region);
    if !known {
        return Err(AuthError::WrongRegion {
            given: credential.region.clone(),
            expected: config.region.clone(),
            presigned,
        });
    }
    Ok(())
}

/// Every `x-amz-*` header must be signed, or a third party could add a meaning.
fn check_headers_signed(headers: &HeaderMap, signed: &[String]) -> Result<(), AuthError> {
    let mut unsigned: Vec<&str> = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|n| n.starts_with("x-amz-") && !MAY_BE_UNSIGNED.contains(n))
        .filter(|n| !signed.iter().any(|s| s == n))
        .collect();
    if unsigned.is_empty() {
        return Ok(());
    }
    unsigned.sort_unstable();
    Err(AuthError::HeadersNotSigned(unsigned.join(", ")))
}

fn check_signature(request: RequestHead<'_>, claim: &Claim, key: &SigningKey) -> Result<(), AuthError> {
    let signed_headers: Vec<&str> = claim.signed_headers.iter().map(String::as_str).collect();
    let hash_is_signed = signed_headers.contains(&"x-amz-content-sha256");
    let stated_hash: &str = match request.query.get("X-Amz-Content-Sha256") {
        _ if !claim.presigned || hash_is_signed => &claim.payload_hash,
        Some(in_query) => in_query,
        None => "UNSIGNED-PAYLOAD",
    };
    let sign = |form| -> Result<Signed, AuthError> {
        let canonical = canonical::canonical_request(request, form, &signed_headers, stated_hash)
            .map_err(|missing| AuthError::SignedHeaderMissing(missing.0))?;
        Ok(Signed::new(canonical, claim.date_secs, &claim.credential))
    };
    let signed = sign(PathForm::Encoded)?;
    if sigv4::equal(&key.sign(&signed.string_to_sign), &claim.signature) {
        return Ok(());
    }
    let raw = sign(PathForm::Raw)?;
    if sigv4::equal(&key.sign(&raw.string_to_sign), &claim.signature) {
        return Ok(());
    }
    Err(AuthError::BadSignature(Box::new(SignatureMismatch {
        access_key: claim.credential.access_key.clone(),
        provided: claim.signature.clone(),
        signed,
    })))
}

/// `x-amz-content-sha256`, before the key is known.
enum Kind {
    Plain(Payload),
    SignedChunks { trailers: bool },
}

impl Kind {
    fn parse(text: &str) -> Result<Self, AuthError> {
        Ok(match text {
            "UNSIGNED-PAYLOAD" => Self::Plain(Payload::Unsigned),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => {
                Self::Plain(Payload::Chunked { signer: None, trailers: true })
            }
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Self::SignedChunks { trailers: false },
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Self::SignedChunks { trailers: true },
            other if other.starts_with("STREAMING-") => {
                return Err(AuthError::UnsupportedPayload(other.chars().take(80).collect()));
            }
            other => {
                let mut hash = [0; 32];
                hex::decode_to_slice(other, &mut hash).map_err(|_| AuthError::InvalidContentSha256)?;
                Self::Plain(Payload::Hashed(hash))
            }
        })
    }

    fn with_signer(self, claim: &Claim, key: SigningKey) -> Payload {
        match self {
            Self::Plain(payload) => payload,
            Self::SignedChunks { trailers } => {
                let (date, scope) = (date::amz(claim.date_secs), claim.credential.scope());
                let signer = ChunkSigner::new(key, &date, &scope, &claim.signature);
                Payload::Chunked { signer: Some(signer), trailers }
            }
        }
    }
}
