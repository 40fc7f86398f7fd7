//! From method, place and query to an operation: one table, and nothing that it does not know passes.
//!
//! A parameter that the operation does not take is refused with 501, be it a known sub-resource of S3 that
//! we lack or one that nobody has heard of: a request is done as asked or not at all.

use super::error::{Code, S3Error, S3Result};
use crate::http::query::Query;
use http::Method;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Service,
    Bucket,
    Object,
}

macro_rules! operations {
    ($($name:ident [$($parameter:literal),*],)*) => {
        /// The operations of S3 that we have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Operation { $($name,)* }

        impl Operation {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name in AWS's documents, and in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The query parameters it takes.
            pub fn parameters(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$($parameter),*],)* }
            }
        }
    };
}

operations! {
    ListBuckets ["max-buckets", "prefix", "continuation-token"],
    CreateBucket [],
    HeadBucket [],
    DeleteBucket [],
    GetBucketLocation ["location"],
    GetBucketVersioning ["versioning"],
    GetBucketAcl ["acl"],
    ListObjects ["prefix", "delimiter", "marker", "max-keys", "encoding-type"],
    ListObjectsV2 [
        "list-type", "prefix", "delimiter", "start-after", "continuation-token", "max-keys", "encoding-type",
        "fetch-owner"
    ],
    ListMultipartUploads [
        "uploads", "prefix", "delimiter", "key-marker", "upload-id-marker", "max-uploads", "encoding-type"
    ],
    DeleteObjects ["delete"],
    GetObject [
        "versionId", "partNumber", "response-cache-control", "response-content-disposition",
        "response-content-encoding", "response-content-language", "response-content-type", "response-expires"
    ],
    HeadObject [
        "versionId", "partNumber", "response-cache-control", "response-content-disposition",
        "response-content-encoding", "response-content-language", "response-content-type", "response-expires"
    ],
    GetObjectAcl ["acl", "versionId"],
    GetObjectAttributes ["attributes", "versionId"],
    PutObject [],
    CopyObject [],
    DeleteObject ["versionId"],
    CreateMultipartUpload ["uploads"],
    UploadPart ["partNumber", "uploadId"],
    UploadPartCopy ["partNumber", "uploadId"],
    ListParts ["uploadId", "max-parts", "part-number-marker", "encoding-type"],
    CompleteMultipartUpload ["uploadId"],
    AbortMultipartUpload ["uploadId"],
}

/// Finds the operation. `query` without the parameters of a presigned URL; `is_copy`: the request has a
/// copy source; `is_form`: its body is a form.
pub fn route(
    method: &Method,
    level: Level,
    query: &Query,
    is_copy: bool,
    is_form: bool,
) -> S3Result<Operation> {
    if let Some(name) = query.duplicate() {
        return Err(S3Error::argument(name, "", "A query parameter is given more than once."));
    }
    let operation = match level {
        Level::Service => service(method)?,
        Level::Bucket => bucket(method, query, is_form)?,
        Level::Object => object(method, query, is_copy)?,
    };
    // `x-id` only repeats the operation's name, for logs of the SDKs.
    let unknown = query.iter().map(|p| p.0).find(|n| *n != "x-id" && !operation.parameters().contains(n));
    match unknown {
        None => Ok(operation),
        Some(name) => {
            Err(S3Error::not_implemented(format_args!("`?{name}` for {method} requests of this kind")))
        }
    }
}

fn wrong_method(method: &Method) -> S3Error {
    S3Error::new(Code::MethodNotAllowed, "The specified method is not allowed against this resource.")
        .with("Method", method.as_str())
}

fn service(method: &Method) -> S3Result<Operation> {
    match *method {
        Method::GET => Ok(Operation::ListBuckets),
        Method::OPTIONS => Err(no_cors()),
        _ => Err(wrong_method(method)),
    }
}

fn bucket(method: &Method, query: &Query, is_form: bool) -> S3Result<Operation> {
    Ok(match *method {
        Method::GET if query.has("uploads") => Operation::ListMultipartUploads,
        Method::GET if query.has("location") => Operation::GetBucketLocation,
        Method::GET if query.has("versioning") => Operation::GetBucketVersioning,
        Method::GET if query.has("acl") => Operation::GetBucketAcl,
        Method::GET if query.get("list-type") == Some("2") => Operation::ListObjectsV2,
        Method::GET => Operation::ListObjects,
        Method::HEAD => Operation::HeadBucket,
        Method::PUT => Operation::CreateBucket,
        Method::DELETE => Operation::DeleteBucket,
        Method::POST if query.has("delete") => Operation::DeleteObjects,
        Method::POST if is_form => {
            return Err(S3Error::not_implemented("uploads by HTML form (POST Object)"));
        }
        Method::POST => {
            let name = query.iter().next().map_or("no sub-resource", |p| p.0);
            return Err(S3Error::not_implemented(format_args!("POST on a bucket with `{name}`")));
        }
        Method::OPTIONS => return Err(no_cors()),
        _ => return Err(wrong_method(method)),
    })
}

fn object(method: &Method, query: &Query, is_copy: bool) -> S3Result<Operation> {
    let part = query.has("partNumber") || query.has("uploadId");
    Ok(match *method {
        Method::GET if query.has("uploadId") => Operation::ListParts,
        Method::GET if query.has("acl") => Operation::GetObjectAcl,
        Method::GET if query.has("attributes") => Operation::GetObjectAttributes,
        Method::GET => Operation::GetObject,
        Method::HEAD => Operation::HeadObject,
        Method::PUT if part && is_copy => Operation::UploadPartCopy,
        Method::PUT if part => Operation::UploadPart,
        Method::PUT if is_copy => Operation::CopyObject,
        Method::PUT => Operation::PutObject,
        Method::DELETE if query.has("uploadId") => Operation::AbortMultipartUpload,
        Method::DELETE => Operation::DeleteObject,
        Method::POST if query.has("uploads") => Operation::CreateMultipartUpload,
        Method::POST if query.has("uploadId") => Operation::CompleteMultipartUpload,
        Method::POST => {
            let name = query.iter().next().map_or("no sub-resource", |p| p.0);
            return Err(S3Error::not_implemented(format_args!("POST on an object with `{name}`")));
        }
        Method::OPTIONS => return Err(no_cors()),
        _ => return Err(wrong_method(method)),
    })
}

fn no_cors() -> S3Error {
    S3Error::not_implemented("OPTIONS requests (CORS)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(method: &Method, level: Level, query: &str, is_copy: bool) -> Result<Operation, Code> {
        route(method, level, &Query::parse(query).unwrap(), is_copy, false).map_err(|e| e.code)
    }

    #[test]
    fn each_operation_is_found() {
        use Level::{Bucket, Object, Service};
        use Operation as O;
        let table: [(Method, Level, &str, bool, Operation); 28] = [
            (Method::GET, Service, "", false, O::ListBuckets),
            (Method::GET, Service, "x-id=ListBuckets&max-buckets=3", false, O::ListBuckets),
            (Method::PUT, Bucket, "", false, O::CreateBucket),
            (Method::HEAD, Bucket, "", false, O::HeadBucket),
            (Method::DELETE, Bucket, "", false, O::DeleteBucket),
            (Method::GET, Bucket, "location", false, O::GetBucketLocation),
            (Method::GET, Bucket, "versioning=", false, O::GetBucketVersioning),
            (Method::GET, Bucket, "acl", false, O::GetBucketAcl),
            (Method::GET, Bucket, "", false, O::ListObjects),
            (Method::GET, Bucket, "prefix=a&marker=b", false, O::ListObjects),
            (Method::GET, Bucket, "list-type=2&fetch-owner=true", false, O::ListObjectsV2),
            (Method::GET, Bucket, "uploads&prefix=a", false, O::ListMultipartUploads),
            (Method::POST, Bucket, "delete", false, O::DeleteObjects),
            (Method::GET, Object, "", false, O::GetObject),
            (Method::GET, Object, "versionId=null&partNumber=1", false, O::GetObject),
            (Method::HEAD, Object, "", false, O::HeadObject),
            (Method::GET, Object, "acl", false, O::GetObjectAcl),
            (Method::GET, Object, "attributes", false, O::GetObjectAttributes),
            (Method::PUT, Object, "", false, O::PutObject),
            (Method::PUT, Object, "x-id=PutObject", false, O::PutObject),
            (Method::PUT, Object, "", true, O::CopyObject),
            (Method::DELETE, Object, "", false, O::DeleteObject),
            (Method::POST, Object, "uploads", false, O::CreateMultipartUpload),
            (Method::PUT, Object, "partNumber=1&uploadId=x", false, O::UploadPart),
            (Method::PUT, Object, "partNumber=1&uploadId=x", true, O::UploadPartCopy),
            (Method::GET, Object, "uploadId=x", false, O::ListParts),
            (Method::POST, Object, "uploadId=x", false, O::CompleteMultipartUpload),
            (Method::DELETE, Object, "uploadId=x", false, O::AbortMultipartUpload),
        ];
        for (method, level, query, is_copy, operation) in &table {
            assert_eq!(find(method, *level, query, *is_copy), Ok(*operation), "{method} {query}");
        }
        for operation in Operation::ALL {
            assert!(table.iter().any(|row| row.4 == *operation), "{operation:?} is not in the table");
        }
    }

    #[test]
    fn sub_resources_that_we_lack_are_not_implemented_wherever_they_stand() {
        let lacking = [
            "accelerate",
            "analytics",
            "cors",
            "encryption",
            "intelligent-tiering",
            "inventory",
            "lifecycle",
            "logging",
            "metrics",
            "notification",
            "object-lock",
            "ownershipControls",
            "policy",
            "policyStatus",
            "publicAccessBlock",
            "replication",
            "requestPayment",
            "tagging",
            "versions",
            "website",
            "legal-hold",
            "retention",
            "torrent",
            "restore",
            "select&select-type=2",
            "session",
            "renameObject",
            "garbage",
            "Uploads",
            "response-x=1",
        ];
        let methods = [Method::GET, Method::PUT, Method::DELETE, Method::POST, Method::HEAD];
        for query in lacking {
            for method in &methods {
                for level in [Level::Bucket, Level::Object] {
                    let found = find(method, level, query, false);
                    assert_eq!(found, Err(Code::NotImplemented), "{method} {level:?} ?{query}");
                }
            }
        }
        for (method, level, query) in [
            (Method::PUT, Level::Bucket, "versioning"),
            (Method::PUT, Level::Bucket, "acl"),
            (Method::PUT, Level::Object, "acl"),
            (Method::GET, Level::Bucket, "uploads&location"),
            (Method::GET, Level::Bucket, "list-type=1"),
            (Method::POST, Level::Bucket, ""),
            (Method::DELETE, Level::Bucket, "versioning"),
        ] {
            assert_eq!(find(&method, level, query, false), Err(Code::NotImplemented), "{method} ?{query}");
        }
    }

    #[test]
    fn a_parameter_given_twice_and_a_method_nobody_has_are_refused() {
        let found = find(&Method::GET, Level::Bucket, "prefix=a&prefix=b", false);
        assert_eq!(found, Err(Code::InvalidArgument));
        assert_eq!(find(&Method::PUT, Level::Service, "", false), Err(Code::MethodNotAllowed));
        assert_eq!(find(&Method::PATCH, Level::Object, "", false), Err(Code::MethodNotAllowed));
    }
}
