//! The strict layer: every header that asks for something must be known to the operation, with a value we
//! can honour. What we can't do is refused before anything is stored, and named.

use super::error::{Code, S3Error, S3Result};
use super::route::Operation;
use http::{HeaderMap, HeaderValue};

/// `x-amz-*` headers that any request may carry: authentication, transport, and what needs no action.
const ALWAYS: [&str; 8] = [
    "x-amz-date",
    "x-amz-content-sha256",
    "x-amz-user-agent",
    "x-amz-cf-id",
    // Agreeing to pay is harmless where nobody is charged.
    "x-amz-request-payer",
    // The transfer encoding; checked with the body.
    "x-amz-decoded-content-length",
    "x-amz-trailer",
    "x-amz-sdk-checksum-algorithm",
];

const CHECKSUMS: [&str; 5] = [
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
];

/// `x-amz-*` headers that an operation takes besides.
fn taken(operation: Operation) -> &'static [&'static str] {
    use Operation as O;
    match operation {
        O::PutObject => {
            &["x-amz-acl", "x-amz-storage-class", "x-amz-website-redirect-location", "x-amz-checksum-type"]
        }
        O::CreateMultipartUpload => &[
            "x-amz-acl",
            "x-amz-storage-class",
            "x-amz-website-redirect-location",
            "x-amz-checksum-algorithm",
            "x-amz-checksum-type",
        ],
        O::CopyObject => &[
            "x-amz-acl",
            "x-amz-storage-class",
            "x-amz-website-redirect-location",
            "x-amz-checksum-algorithm",
            "x-amz-metadata-directive",
            "x-amz-tagging-directive",
            "x-amz-copy-source",
            "x-amz-copy-source-if-match",
            "x-amz-copy-source-if-none-match",
            "x-amz-copy-source-if-modified-since",
            "x-amz-copy-source-if-unmodified-since",
        ],
        O::UploadPartCopy => &[
            "x-amz-copy-source",
            "x-amz-copy-source-range",
            "x-amz-copy-source-if-match",
            "x-amz-copy-source-if-none-match",
            "x-amz-copy-source-if-modified-since",
            "x-amz-copy-source-if-unmodified-since",
        ],
        O::CompleteMultipartUpload => &["x-amz-mp-object-size", "x-amz-checksum-type"],
        O::GetObject | O::HeadObject => &["x-amz-checksum-mode"],
        O::GetObjectAttributes => &["x-amz-object-attributes", "x-amz-max-parts", "x-amz-part-number-marker"],
        O::CreateBucket => &["x-amz-acl", "x-amz-object-ownership", "x-amz-bucket-object-lock-enabled"],
        O::ListObjects | O::ListObjectsV2 => &["x-amz-optional-object-attributes"],
        _ => &[],
    }
}

fn takes_checksums(operation: Operation) -> bool {
    use Operation as O;
    matches!(
        operation,
        O::PutObject | O::UploadPart | O::DeleteObjects | O::CompleteMultipartUpload | O::CreateBucket
    )
}

fn takes_metadata(operation: Operation) -> bool {
    matches!(operation, Operation::PutObject | Operation::CopyObject | Operation::CreateMultipartUpload)
}

fn is_read(operation: Operation) -> bool {
    use Operation as O;
    matches!(operation, O::GetObject | O::HeadObject)
}

/// Refuses headers that the operation can't honour.
pub fn check(operation: Operation, headers: &HeaderMap) -> S3Result<()> {
    let name = operation.name();
    for header in headers.keys().map(http::HeaderName::as_str) {
        let known = if header.starts_with("x-amz-meta-") {
            takes_metadata(operation)
        } else if header.starts_with("x-amz-") {
            ALWAYS.contains(&header)
                || taken(operation).contains(&header)
                || (takes_checksums(operation) && CHECKSUMS.contains(&header))
                || is_harmless(operation, header, headers)
        } else {
            match header {
                // Conditional writes need a consensus per key, which is not there yet.
                "if-match"
                | "if-none-match"
                | "if-modified-since"
                | "if-unmodified-since"
                | "range"
                | "if-range" => is_read(operation) || !matters(operation),
                "content-range" => false,
                _ => true,
            }
        };
        if !known {
            return Err(S3Error::not_implemented(format_args!("the header `{header}` for {name}"))
                .with("Header", header));
        }
    }
    if operation == Operation::PutObject {
        // An object of one piece has no checksums of parts.
        only(headers, "x-amz-checksum-type", &["FULL_OBJECT"])?;
    }
    check_values(headers)
}

/// Whether a condition or range on the operation would change what it does.
fn matters(operation: Operation) -> bool {
    use Operation as O;
    matches!(
        operation,
        O::PutObject
            | O::CopyObject
            | O::DeleteObject
            | O::DeleteObjects
            | O::CompleteMultipartUpload
            | O::CreateMultipartUpload
            | O::UploadPart
            | O::UploadPartCopy
            | O::AbortMultipartUpload
            | O::CreateBucket
            | O::DeleteBucket
            | O::GetObjectAttributes
    )
}

/// Headers with a value that asks for nothing.
fn is_harmless(operation: Operation, header: &str, headers: &HeaderMap) -> bool {
    let is = |wanted: &str| headers.get_all(header).iter().all(|v| v.as_bytes() == wanted.as_bytes());
    match header {
        "x-amz-tagging" => is(""),
        "x-amz-bypass-governance-retention" => is("false"),
        // A copy takes whatever algorithm it is asked for; elsewhere the name alone changes nothing.
        "x-amz-checksum-algorithm" => operation == Operation::DeleteObjects,
        _ => false,
    }
}

/// Refuses values that we can't honour, of headers that mean the same everywhere.
fn check_values(headers: &HeaderMap) -> S3Result<()> {
    for value in headers.get_all("x-amz-acl") {
        // With one owner of everything, the owner's full control is what "private" gives.
        if !matches!(value.as_bytes(), b"private" | b"bucket-owner-full-control") {
            return Err(S3Error::not_implemented("ACLs other than `private`"));
        }
    }
    for value in headers.get_all("x-amz-storage-class") {
        match value.as_bytes() {
            b"STANDARD" => {}
            b"REDUCED_REDUNDANCY"
            | b"STANDARD_IA"
            | b"ONEZONE_IA"
            | b"INTELLIGENT_TIERING"
            | b"GLACIER"
            | b"DEEP_ARCHIVE"
            | b"OUTPOSTS"
            | b"GLACIER_IR"
            | b"SNOW"
            | b"EXPRESS_ONEZONE"
            | b"FSX_OPENZFS" => {
                return Err(S3Error::not_implemented("storage classes other than STANDARD"));
            }
            _ => {
                let text = "The storage class you specified is not valid";
                return Err(S3Error::new(Code::InvalidStorageClass, text));
            }
        }
    }
    only(headers, "x-amz-object-ownership", &["BucketOwnerEnforced"])?;
    only(headers, "x-amz-bucket-object-lock-enabled", &["false", "False"])?;
    only(headers, "x-amz-optional-object-attributes", &["RestoreStatus"])?;
    only(headers, "x-amz-request-payer", &["requester"])?;
    only(headers, "x-amz-checksum-mode", &["ENABLED", "enabled"])?;
    Ok(())
}

fn only(headers: &HeaderMap, name: &str, allowed: &[&str]) -> S3Result<()> {
    let is_allowed = |v: &HeaderValue| allowed.iter().any(|a| a.as_bytes() == v.as_bytes());
    if headers.get_all(name).iter().all(is_allowed) {
        return Ok(());
    }
    Err(S3Error::not_implemented(format_args!("this value of the header `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn ask(operation: Operation, name: &'static str, value: &'static str) -> Result<(), Code> {
        let headers =
            [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect();
        check(operation, &headers).map_err(|e| e.code)
    }

    #[test]
    fn writes_refuse_what_they_cannot_honour() {
        let refused = [
            ("if-none-match", "*"),
            ("if-match", "\"a\""),
            ("if-unmodified-since", "x"),
            ("content-range", "bytes 0-1/2"),
            ("x-amz-tagging", "a=b"),
            ("x-amz-acl", "public-read"),
            ("x-amz-grant-read", "id=1"),
            ("x-amz-server-side-encryption", "AES256"),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            ("x-amz-object-lock-mode", "GOVERNANCE"),
            ("x-amz-object-lock-legal-hold", "ON"),
            ("x-amz-storage-class", "GLACIER"),
            ("x-amz-expected-bucket-owner", "123"),
            ("x-amz-write-offset-bytes", "3"),
            ("x-amz-checksum-xxhash64", "AAAA"),
            ("x-amz-what", "1"),
        ];
        for operation in [Operation::PutObject, Operation::CopyObject, Operation::CreateMultipartUpload] {
            for (name, value) in refused {
                assert_eq!(ask(operation, name, value), Err(Code::NotImplemented), "{operation:?} {name}");
            }
        }
        for operation in [Operation::DeleteObject, Operation::CompleteMultipartUpload] {
            assert_eq!(ask(operation, "if-match", "x"), Err(Code::NotImplemented));
        }
        for name in ["x-amz-if-match-size", "x-amz-if-match-last-modified-time", "x-amz-mfa"] {
            assert_eq!(ask(Operation::DeleteObject, name, "1"), Err(Code::NotImplemented));
        }
        assert_eq!(ask(Operation::PutObject, "x-amz-storage-class", "FAST"), Err(Code::InvalidStorageClass));
        assert_eq!(ask(Operation::PutObject, "x-amz-checksum-type", "COMPOSITE"), Err(Code::NotImplemented));
        assert_eq!(ask(Operation::UploadPart, "x-amz-meta-a", "1"), Err(Code::NotImplemented));
    }

    #[test]
    fn what_can_be_honoured_passes() {
        for (operation, name, value) in [
            (Operation::PutObject, "x-amz-acl", "private"),
            (Operation::PutObject, "x-amz-storage-class", "STANDARD"),
            (Operation::PutObject, "x-amz-meta-a", "1"),
            (Operation::PutObject, "x-amz-checksum-sha1", "x"),
            (Operation::PutObject, "x-amz-tagging", ""),
            (Operation::PutObject, "cache-control", "no-cache"),
            (Operation::GetObject, "if-none-match", "x"),
            (Operation::GetObject, "range", "bytes=0-"),
            (Operation::GetObject, "x-amz-checksum-mode", "ENABLED"),
            (Operation::ListObjectsV2, "if-modified-since", "x"),
            (Operation::CopyObject, "x-amz-copy-source-if-match", "x"),
            (Operation::CreateBucket, "x-amz-object-ownership", "BucketOwnerEnforced"),
        ] {
            assert_eq!(ask(operation, name, value), Ok(()), "{operation:?} {name}");
        }
    }
}
