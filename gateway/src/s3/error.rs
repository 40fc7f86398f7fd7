//! S3's errors: the codes we answer, their statuses and their XML, and the one map from the domain's and
//! the authentication's errors to them.

use super::xml::XmlWriter;
use crate::auth::AuthError;
use crate::domain::{BodyFault, DomainError};
use crate::http::body::ResponseBody;
use crate::http::date;
use http::{HeaderValue, Response, StatusCode, header};

macro_rules! codes {
    ($($name:ident = $status:literal,)*) => {
        /// The error codes of S3 that we use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($name,)* }

        impl Code {
            /// As it stands in the XML.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

codes! {
    AccessDenied = 403,
    AuthorizationHeaderMalformed = 400,
    AuthorizationQueryParametersError = 400,
    BadDigest = 400,
    BucketAlreadyExists = 409,
    BucketAlreadyOwnedByYou = 409,
    BucketNotEmpty = 409,
    EntityTooLarge = 400,
    EntityTooSmall = 400,
    IllegalLocationConstraintException = 400,
    IncompleteBody = 400,
    InternalError = 500,
    InvalidAccessKeyId = 403,
    InvalidArgument = 400,
    InvalidBucketName = 400,
    InvalidDigest = 400,
    InvalidPart = 400,
    InvalidPartNumber = 416,
    InvalidPartOrder = 400,
    InvalidRange = 416,
    InvalidRequest = 400,
    InvalidStorageClass = 400,
    InvalidToken = 400,
    InvalidURI = 400,
    KeyTooLongError = 400,
    MalformedXML = 400,
    MetadataTooLarge = 400,
    MethodNotAllowed = 405,
    MissingContentLength = 411,
    MissingContentMD5 = 400,
    NoSuchBucket = 404,
    NoSuchKey = 404,
    NoSuchUpload = 404,
    NotImplemented = 501,
    OperationAborted = 409,
    PreconditionFailed = 412,
    RequestHeaderSectionTooLarge = 400,
    RequestTimeTooSkewed = 403,
    RequestTimeout = 400,
    ServiceUnavailable = 503,
    SignatureDoesNotMatch = 403,
    SlowDown = 503,
    XAmzContentSHA256Mismatch = 400,
}

/// An error as S3 answers it.
#[derive(Debug, Clone)]
pub struct S3Error {
    pub code: Code,
    pub message: String,
    /// More elements of the XML, such as `Key`.
    pub fields: Vec<(&'static str, String)>,
}

/// The result of most of this API's functions.
pub type S3Result<T> = Result<T, S3Error>;

impl S3Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), fields: Vec::new() }
    }

    /// Adds an element to the XML.
    pub fn with(mut self, field: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((field, value.into()));
        self
    }

    /// 501: something we know and can't do, or don't know; named, so that the user can leave it out.
    pub fn not_implemented(what: impl std::fmt::Display) -> Self {
        Self::new(Code::NotImplemented, format!("This server does not implement {what}; nothing was done."))
    }

    /// 400 for the parameter or header `name`.
    pub fn argument(name: &str, value: &str, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message).with("ArgumentName", name).with("ArgumentValue", value)
    }

    /// 400 for a body that is not the XML the operation needs.
    pub fn malformed_xml(why: impl std::fmt::Display) -> Self {
        let text =
            "The XML you provided was not well-formed or did not validate against our published schema";
        Self::new(Code::MalformedXML, format!("{text}: {why}."))
    }

    /// The answer. `head`: to a HEAD request, so without a body.
    pub fn response(&self, place: Place<'_>, head: bool) -> Response<ResponseBody> {
        let mut response = if head {
            Response::new(ResponseBody::Empty)
        } else {
            let mut xml = XmlWriter::document();
            xml.open("Error").text("Code", self.code.name()).text("Message", &self.message);
            for (name, value) in &self.fields {
                xml.text(name, value);
            }
            xml.text("Resource", place.resource)
                .text("RequestId", place.request_id)
                .text("Region", place.region)
                .close("Error");
            let mut response = Response::new(ResponseBody::from(xml.finish()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            response
        };
        *response.status_mut() =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.code.status() == 503 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// What an error's XML says about where it happened.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The path as sent.
    pub resource: &'a str,
    pub request_id: &'a str,
    pub region: &'a str,
}

impl From<DomainError> for S3Error {
    fn from(error: DomainError) -> Self {
        use DomainError as D;
        let text = error.to_string();
        match error {
            D::NoSuchKeyId { id } => Self::new(Code::InvalidAccessKeyId, text).with("AWSAccessKeyId", id),
            D::AccessDenied { .. } | D::MayNotCreateBucket => Self::new(Code::AccessDenied, text),
            D::NoSuchBucket { name } => {
                Self::new(Code::NoSuchBucket, "The specified bucket does not exist").with("BucketName", name)
            }
            D::BucketAlreadyExists { name } => {
                Self::new(Code::BucketAlreadyExists, text).with("BucketName", name)
            }
            D::BucketAlreadyOwnedByYou { name } => {
                Self::new(Code::BucketAlreadyOwnedByYou, text).with("BucketName", name)
            }
            D::BucketNotEmpty { name } => Self::new(Code::BucketNotEmpty, text).with("BucketName", name),
            D::InvalidBucketName { name, .. } => {
                Self::new(Code::InvalidBucketName, text).with("BucketName", name)
            }
            D::NoSuchKey { key } => {
                Self::new(Code::NoSuchKey, "The specified key does not exist.").with("Key", key)
            }
            D::KeyLength { len: 1.. } => {
                Self::new(Code::KeyTooLongError, text).with("MaxSizeAllowed", "1024")
            }
            D::NoSuchUpload { upload } => Self::new(Code::NoSuchUpload, text).with("UploadId", upload),
            D::NoSuchPart { .. } => Self::new(Code::InvalidPartNumber, text),
            D::PartNumber { number } => Self::argument("partNumber", &number.to_string(), text),
            D::BadDigest | D::BadChecksum { .. } => Self::new(Code::BadDigest, text),
            D::ChecksumMismatch { .. }
            | D::MissingTrailer
            | D::WrongObjectSize { .. }
            | D::InvalidSourceRange { .. } => Self::new(Code::InvalidRequest, text),
            D::IncompleteBody { .. } => Self::new(Code::IncompleteBody, text),
            D::Body(body) => Self::new(body_code(body.fault), text),
            D::EntityTooLarge { size, max } => Self::new(Code::EntityTooLarge, text)
                .with("ProposedSize", size.to_string())
                .with("MaxSizeAllowed", max.to_string()),
            D::EntityTooSmall { number, size, min } => Self::new(Code::EntityTooSmall, text)
                .with("PartNumber", number.to_string())
                .with("ProposedSize", size.to_string())
                .with("MinSizeAllowed", min.to_string()),
            D::InvalidPart { number } => {
                Self::new(Code::InvalidPart, text).with("PartNumber", number.to_string())
            }
            D::InvalidPartOrder => Self::new(Code::InvalidPartOrder, text),
            D::NoParts => Self::malformed_xml(text),
            D::KeyLength { len: 0 } | D::InvalidArgument { .. } => Self::new(Code::InvalidArgument, text),
            D::Overloaded { .. } => {
                Self::new(Code::SlowDown, format!("Please reduce your request rate: {text}."))
            }
            D::Unavailable { .. } | D::NoSpace { .. } => Self::new(Code::ServiceUnavailable, text),
            // Not AWS's OperationAborted: an unconditional write may simply be tried again, and SDKs do.
            D::Contention => Self::new(Code::SlowDown, text),
            D::Damaged { .. } | D::Internal(_) | D::KeyExists { .. } | D::LastAlias { .. } => {
                tracing::error!(error = %text, "a request failed with an internal error");
                Self::new(Code::InternalError, "We encountered an internal error. Please try again.")
            }
        }
    }
}

fn body_code(fault: BodyFault) -> Code {
    match fault {
        BodyFault::Incomplete | BodyFault::TooLarge => Code::IncompleteBody,
        BodyFault::TooSlow => Code::RequestTimeout,
        BodyFault::BadSignature => Code::SignatureDoesNotMatch,
        BodyFault::BadPayloadHash => Code::XAmzContentSHA256Mismatch,
        BodyFault::Malformed => Code::InvalidRequest,
    }
}

impl From<AuthError> for S3Error {
    fn from(error: AuthError) -> Self {
        use AuthError as A;
        let text = error.to_string();
        let iso = |secs: u64| date::iso(secs.saturating_mul(1000));
        match error {
            A::Anonymous | A::MissingDate => Self::new(Code::AccessDenied, text),
            A::HeadersNotSigned(names) => Self::new(Code::AccessDenied, text).with("HeadersNotSigned", names),
            A::TwoMechanisms | A::InvalidContentSha256 => Self::new(Code::InvalidArgument, text),
            A::UnsupportedMechanism | A::MissingContentSha256 => Self::new(Code::InvalidRequest, text),
            A::MalformedHeader(_) => Self::new(Code::AuthorizationHeaderMalformed, text),
            A::MalformedQuery(_) => Self::new(Code::AuthorizationQueryParametersError, text),
            A::WrongRegion { presigned: false, .. } => Self::new(
                Code::AuthorizationHeaderMalformed,
                format!("The authorization header is malformed; {text}"),
            ),
            A::WrongRegion { presigned: true, .. } => Self::new(
                Code::AuthorizationQueryParametersError,
                format!("Error parsing the X-Amz-Credential parameter; {text}"),
            ),
            A::UnsupportedPayload(_) => Self::new(Code::NotImplemented, text),
            A::Skewed { request_secs, server_secs, max_secs } => Self::new(Code::RequestTimeTooSkewed, text)
                .with("RequestTime", date::amz(request_secs))
                .with("ServerTime", iso(server_secs))
                .with("MaxAllowedSkewMilliseconds", (max_secs * 1000).to_string()),
            A::Expired { expires_secs, server_secs } => Self::new(Code::AccessDenied, text)
                .with("Expires", iso(expires_secs))
                .with("ServerTime", iso(server_secs)),
            A::NotYetValid { starts_secs, server_secs } => Self::new(Code::AccessDenied, text)
                .with("StartsAt", iso(starts_secs))
                .with("ServerTime", iso(server_secs)),
            A::SignedHeaderMissing(_) => Self::new(Code::SignatureDoesNotMatch, text),
            A::SecurityToken => Self::new(Code::InvalidToken, text),
            A::UnknownKey { id } => Self::new(Code::InvalidAccessKeyId, text).with("AWSAccessKeyId", id),
            A::BadSignature(mismatch) => {
                let canonical = String::from_utf8_lossy(&mismatch.signed.canonical_request).into_owned();
                Self::new(Code::SignatureDoesNotMatch, text)
                    .with("AWSAccessKeyId", mismatch.access_key)
                    .with("StringToSign", mismatch.signed.string_to_sign)
                    .with("SignatureProvided", mismatch.provided)
                    .with("CanonicalRequest", canonical)
            }
            A::Lookup(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn an_error_is_xml_with_code_message_resource_request_id_and_region() {
        let place = Place { resource: "/b/<k>", request_id: "ID", region: "hayloft" };
        let error = S3Error::from(DomainError::NoSuchKey { key: "<k>".into() });
        let response = error.response(place, false);
        assert_eq!(response.status(), 404);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message><Key>&lt;k&gt;</Key><Resource>/b/&lt;k&gt;</Resource><RequestId>ID</RequestId><Region>hayloft</Region></Error>"
        );
        assert!(error.response(place, true).into_body().is_empty());
    }

    #[test]
    fn a_wrong_region_names_the_right_one() {
        let error = S3Error::from(AuthError::WrongRegion {
            given: "eu".into(),
            expected: "hayloft".into(),
            presigned: false,
        });
        assert_eq!(error.code, Code::AuthorizationHeaderMalformed);
        assert_eq!(
            error.message,
            "The authorization header is malformed; the region 'eu' is wrong; expecting 'hayloft'"
        );
    }

    #[test]
    fn overload_and_unavailability_are_503_with_a_retry_hint() {
        let place = Place { resource: "/", request_id: "", region: "" };
        for error in
            [DomainError::Overloaded { what: "x" }, DomainError::Unavailable { detail: String::new() }]
        {
            let response = S3Error::from(error).response(place, false);
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key("retry-after"));
        }
    }
}
