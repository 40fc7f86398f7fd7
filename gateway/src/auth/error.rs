//! Why a request was not authenticated. Each API maps these to its own codes.

use super::sigv4::Signed;

/// Why a request is not from whom it says, or not well-formed enough to tell.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// No signature at all.
    #[error("Anonymous access is not allowed: sign the request, or use a presigned URL.")]
    Anonymous,
    /// More than one kind of authentication.
    #[error(
        "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter or the Authorization header should be specified."
    )]
    TwoMechanisms,
    /// Signature version 2, or another scheme.
    #[error("The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")]
    UnsupportedMechanism,
    #[error("The authorization header is malformed; {0}")]
    MalformedHeader(String),
    #[error("{0}")]
    MalformedQuery(String),
    /// The credential's region is not ours.
    #[error("the region '{given}' is wrong; expecting '{expected}'")]
    WrongRegion { given: String, expected: String, presigned: bool },
    #[error("AWS authentication requires a valid Date or x-amz-date header.")]
    MissingDate,
    #[error("Missing required header for this request: x-amz-content-sha256")]
    MissingContentSha256,
    #[error(
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value."
    )]
    InvalidContentSha256,
    #[error("The payload signing method {0} is not implemented.")]
    UnsupportedPayload(String),
    #[error("The difference between the request time and the server's time is too large.")]
    Skewed { request_secs: u64, server_secs: u64, max_secs: u64 },
    #[error("Request has expired")]
    Expired { expires_secs: u64, server_secs: u64 },
    #[error("Request is not valid yet")]
    NotYetValid { starts_secs: u64, server_secs: u64 },
    #[error("There were headers present in the request which were not signed: {0}")]
    HeadersNotSigned(String),
    #[error("The header {0} is signed but not in the request; a proxy may have removed it.")]
    SignedHeaderMissing(String),
    #[error(
        "The security token included in the request is invalid: temporary credentials are not supported."
    )]
    SecurityToken,
    #[error("The AWS Access Key Id you provided does not exist in our records.")]
    UnknownKey { id: String },
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your key and signing method."
    )]
    BadSignature(Box<SignatureMismatch>),
    /// The key couldn't be looked up.
    #[error("the access key could not be looked up: {0}")]
    Lookup(crate::domain::DomainError),
}

/// What a client needs to find out why its signature is another.
#[derive(Debug, Clone)]
pub struct SignatureMismatch {
    pub access_key: String,
    pub provided: String,
    pub signed: Signed,
}
