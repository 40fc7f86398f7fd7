//! The extra checksums of S3: their names, headers and digests, and which one a request asks for.

use super::error::{Code, S3Error, S3Result};
use crate::auth::payload::TrailerSink;
use crate::domain::{ChecksumRequest, Expected};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hayloft_common::schema::{Checksum, ChecksumAlgorithm, ChecksumKind};
use http::HeaderMap;
use std::sync::{Arc, OnceLock};

/// Every algorithm.
pub const ALL: [ChecksumAlgorithm; 5] = [
    ChecksumAlgorithm::Crc32,
    ChecksumAlgorithm::Crc32c,
    ChecksumAlgorithm::Crc64Nvme,
    ChecksumAlgorithm::Sha1,
    ChecksumAlgorithm::Sha256,
];

/// `CRC32`, as in `x-amz-checksum-algorithm` and behind `Checksum` in XML.
pub fn name(algorithm: ChecksumAlgorithm) -> &'static str {
    match algorithm {
        ChecksumAlgorithm::Crc32 => "CRC32",
        ChecksumAlgorithm::Crc32c => "CRC32C",
        ChecksumAlgorithm::Crc64Nvme => "CRC64NVME",
        ChecksumAlgorithm::Sha1 => "SHA1",
        ChecksumAlgorithm::Sha256 => "SHA256",
    }
}

/// The header that carries it.
pub fn header(algorithm: ChecksumAlgorithm) -> &'static str {
    match algorithm {
        ChecksumAlgorithm::Crc32 => "x-amz-checksum-crc32",
        ChecksumAlgorithm::Crc32c => "x-amz-checksum-crc32c",
        ChecksumAlgorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
        ChecksumAlgorithm::Sha1 => "x-amz-checksum-sha1",
        ChecksumAlgorithm::Sha256 => "x-amz-checksum-sha256",
    }
}

/// The XML element that carries it.
pub fn element(algorithm: ChecksumAlgorithm) -> &'static str {
    match algorithm {
        ChecksumAlgorithm::Crc32 => "ChecksumCRC32",
        ChecksumAlgorithm::Crc32c => "ChecksumCRC32C",
        ChecksumAlgorithm::Crc64Nvme => "ChecksumCRC64NVME",
        ChecksumAlgorithm::Sha1 => "ChecksumSHA1",
        ChecksumAlgorithm::Sha256 => "ChecksumSHA256",
    }
}

/// Bytes of a digest.
pub fn digest_len(algorithm: ChecksumAlgorithm) -> usize {
    match algorithm {
        ChecksumAlgorithm::Crc32 | ChecksumAlgorithm::Crc32c => 4,
        ChecksumAlgorithm::Crc64Nvme => 8,
        ChecksumAlgorithm::Sha1 => 20,
        ChecksumAlgorithm::Sha256 => 32,
    }
}

/// The algorithm called `text`, in any case.
pub fn by_name(text: &str) -> Option<ChecksumAlgorithm> {
    ALL.into_iter().find(|a| name(*a).eq_ignore_ascii_case(text))
}

/// `FULL_OBJECT` or `COMPOSITE`.
pub fn kind_name(kind: ChecksumKind) -> &'static str {
    match kind {
        ChecksumKind::FullObject => "FULL_OBJECT",
        ChecksumKind::Composite => "COMPOSITE",
    }
}

/// Decodes a digest of the right length.
pub fn decode(algorithm: ChecksumAlgorithm, text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok().filter(|digest| digest.len() == digest_len(algorithm))
}

/// A digest in base64.
pub fn encode(digest: &[u8]) -> String {
    BASE64.encode(digest)
}

/// As it is shown: base64, with `-N` behind if it was made of the checksums of N parts.
pub fn display(checksum: &Checksum, parts: usize) -> String {
    let text = encode(&checksum.value);
    match checksum.kind {
        ChecksumKind::FullObject => text,
        ChecksumKind::Composite => format!("{text}-{parts}"),
    }
}

/// The digest of a body that is in memory (XML).
pub fn digest(algorithm: ChecksumAlgorithm, data: &[u8]) -> Vec<u8> {
    use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc32IsoHdlc, Crc64Nvme};
    use sha2::Digest as _;
    let crc32 = |value: u64| (value as u32).to_be_bytes().to_vec();
    match algorithm {
        ChecksumAlgorithm::Crc32 => crc32(crc_fast::checksum(Crc32IsoHdlc, data)),
        ChecksumAlgorithm::Crc32c => crc32(crc_fast::checksum(Crc32Iscsi, data)),
        ChecksumAlgorithm::Crc64Nvme => crc_fast::checksum(Crc64Nvme, data).to_be_bytes().to_vec(),
        ChecksumAlgorithm::Sha1 => sha1::Sha1::digest(data).to_vec(),
        ChecksumAlgorithm::Sha256 => sha2::Sha256::digest(data).to_vec(),
    }
}

/// What a request with a body says about its checksum.
#[derive(Debug, Clone, Default)]
pub struct BodyChecksum {
    pub request: Option<ChecksumRequest>,
    /// Set if the checksum comes as a trailer.
    pub trailer: Option<TrailerSink>,
}

/// Reads `x-amz-checksum-*`, `x-amz-trailer` and `x-amz-sdk-checksum-algorithm` of a request with a body.
/// `trailers`: whether its encoding has trailers.
pub fn of_body(headers: &HeaderMap, trailers: bool) -> S3Result<BodyChecksum> {
    let stated = stated_algorithm(headers)?;
    let in_header = header_value(headers)?;
    let announced = announced_trailer(headers, trailers)?;
    let found = match (in_header, announced) {
        (Some(_), Some(_)) => {
            return Err(S3Error::new(
                Code::InvalidRequest,
                "Expecting a single x-amz-checksum- header or trailer, not both.",
            ));
        }
        (Some((algorithm, text)), None) => {
            let digest = decode(algorithm, &text).ok_or_else(|| bad_value(algorithm))?;
            let request = ChecksumRequest { algorithm, expected: Expected::Value(digest) };
            BodyChecksum { request: Some(request), trailer: None }
        }
        (None, Some(algorithm)) => {
            let slot = Arc::new(OnceLock::new());
            let sink = TrailerSink {
                name: header(algorithm),
                digest_len: digest_len(algorithm),
                slot: Arc::clone(&slot),
            };
            let request = ChecksumRequest { algorithm, expected: Expected::Trailer(slot) };
            BodyChecksum { request: Some(request), trailer: Some(sink) }
        }
        (None, None) => BodyChecksum::default(),
    };
    let actual = found.request.as_ref().map(|r| r.algorithm);
    match stated {
        Some(_) if actual.is_none() => Err(S3Error::new(
            Code::InvalidRequest,
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found.",
        )),
        Some(stated) if Some(stated) != actual => Err(S3Error::new(
            Code::InvalidRequest,
            "Value for x-amz-sdk-checksum-algorithm header is invalid: the checksum sent is of another algorithm.",
        )),
        _ => Ok(found),
    }
}

fn stated_algorithm(headers: &HeaderMap) -> S3Result<Option<ChecksumAlgorithm>> {
    let Some(value) = headers.get("x-amz-sdk-checksum-algorithm") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    by_name(text)
        .map(Some)
        .ok_or_else(|| S3Error::not_implemented(format_args!("the checksum algorithm `{text}`")))
}

fn bad_value(algorithm: ChecksumAlgorithm) -> S3Error {
    S3Error::new(Code::InvalidRequest, format!("Value for {} header is invalid.", header(algorithm)))
}

/// The one `x-amz-checksum-<algorithm>` header and its text.
pub fn header_value(headers: &HeaderMap) -> S3Result<Option<(ChecksumAlgorithm, String)>> {
    let mut found = None;
    for algorithm in ALL {
        for value in headers.get_all(header(algorithm)) {
            let text = value.to_str().map_err(|_| bad_value(algorithm))?;
            if found.replace((algorithm, text.trim().to_owned())).is_some() {
                return Err(S3Error::new(
                    Code::InvalidRequest,
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                ));
            }
        }
    }
    Ok(found)
}

fn announced_trailer(headers: &HeaderMap, trailers: bool) -> S3Result<Option<ChecksumAlgorithm>> {
    let mut values = headers.get_all("x-amz-trailer").iter();
    let Some(value) = values.next() else {
        // An encoding with trailers but none announced: it then carries none.
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
    if !trailers {
        return Err(S3Error::argument(
            "x-amz-trailer",
            &text,
            "x-amz-trailer needs an x-amz-content-sha256 of a streaming kind with trailers.",
        ));
    }
    let algorithm = ALL.into_iter().find(|a| header(*a) == text);
    if values.next().is_some() || algorithm.is_none() {
        return Err(S3Error::new(
            Code::InvalidRequest,
            "The value specified in the x-amz-trailer header is not supported: expecting one x-amz-checksum-* name.",
        ));
    }
    Ok(algorithm)
}

/// `x-amz-checksum-algorithm` and `x-amz-checksum-type` of a multipart upload.
pub fn of_upload(headers: &HeaderMap) -> S3Result<Option<(ChecksumAlgorithm, ChecksumKind)>> {
    let text = |name| headers.get(name).map(|v: &http::HeaderValue| v.to_str().unwrap_or_default());
    let kind = match text("x-amz-checksum-type") {
        None => None,
        Some("FULL_OBJECT") => Some(ChecksumKind::FullObject),
        Some("COMPOSITE") => Some(ChecksumKind::Composite),
        Some(other) => {
            return Err(S3Error::argument(
                "x-amz-checksum-type",
                other,
                "Expecting FULL_OBJECT or COMPOSITE.",
            ));
        }
    };
    let Some(algorithm) = text("x-amz-checksum-algorithm") else {
        return match kind {
            None => Ok(None),
            Some(_) => Err(S3Error::new(
                Code::InvalidRequest,
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )),
        };
    };
    let algorithm = by_name(algorithm)
        .ok_or_else(|| S3Error::not_implemented(format_args!("the checksum algorithm `{algorithm}`")))?;
    let is_sha = matches!(algorithm, ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256);
    let kind = match (kind, algorithm) {
        (Some(ChecksumKind::FullObject), _) if is_sha => None,
        (Some(ChecksumKind::Composite), ChecksumAlgorithm::Crc64Nvme) => None,
        (Some(kind), _) => Some(kind),
        (None, ChecksumAlgorithm::Crc64Nvme) => Some(ChecksumKind::FullObject),
        (None, _) => Some(ChecksumKind::Composite),
    };
    let kind = kind.ok_or_else(|| {
        S3Error::new(
            Code::InvalidRequest,
            format!("The checksum type can't be used with the {} algorithm.", name(algorithm)),
        )
    })?;
    Ok(Some((algorithm, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn digests_are_the_known_ones() {
        let known = [
            (ChecksumAlgorithm::Crc32, "y/Q5Jg=="),
            (ChecksumAlgorithm::Crc32c, "4waSgw=="),
            (ChecksumAlgorithm::Crc64Nvme, "rosUhgp5mIg="),
            (ChecksumAlgorithm::Sha1, "98O8HYCOBHMq32eZZczDTKeuNEE="),
            (ChecksumAlgorithm::Sha256, "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ];
        for (algorithm, text) in known {
            let bytes = digest(algorithm, b"123456789");
            assert_eq!(bytes.len(), digest_len(algorithm));
            assert_eq!(decode(algorithm, &encode(&bytes)), Some(bytes.clone()));
            assert_eq!(encode(&bytes), text, "{algorithm:?}");
        }
    }

    #[test]
    fn a_checksum_comes_in_a_header_or_as_a_trailer() {
        let found = of_body(&headers(&[("x-amz-checksum-crc32", "y/Q5Jg==")]), false).unwrap();
        assert!(matches!(found.request.unwrap().expected, Expected::Value(v) if v.len() == 4));
        let with_trailer =
            headers(&[("x-amz-trailer", "x-amz-checksum-sha1"), ("x-amz-sdk-checksum-algorithm", "SHA1")]);
        let found = of_body(&with_trailer, true).unwrap();
        assert_eq!(found.trailer.unwrap().name, "x-amz-checksum-sha1");
        assert!(of_body(&headers(&[]), false).unwrap().request.is_none());
    }

    #[test]
    fn contradictions_are_refused() {
        let cases: [&[(&str, &str)]; 7] = [
            &[("x-amz-checksum-crc32", "y/Q5Jg=="), ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE=")],
            &[("x-amz-checksum-crc32", "y/Q5Jg")],
            &[("x-amz-checksum-crc32", "98O8HYCOBHMq32eZZczDTKeuNEE=")],
            &[("x-amz-sdk-checksum-algorithm", "CRC32")],
            &[("x-amz-sdk-checksum-algorithm", "SHA1"), ("x-amz-checksum-crc32", "y/Q5Jg==")],
            &[("x-amz-trailer", "x-amz-meta-a")],
            &[("x-amz-trailer", "x-amz-checksum-crc32"), ("x-amz-checksum-crc32", "y/Q5Jg==")],
        ];
        for case in cases {
            assert!(of_body(&headers(case), true).is_err(), "{case:?}");
        }
        assert!(of_body(&headers(&[("x-amz-trailer", "x-amz-checksum-crc32")]), false).is_err());
        let unknown = of_body(&headers(&[("x-amz-sdk-checksum-algorithm", "MD4")]), false).unwrap_err();
        assert_eq!(unknown.code, Code::NotImplemented);
    }

    #[test]
    fn uploads_get_the_default_type_of_their_algorithm() {
        let of = |pairs: &[(&'static str, &'static str)]| of_upload(&headers(pairs));
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(
            of(&[("x-amz-checksum-algorithm", "crc32")]).unwrap(),
            Some((ChecksumAlgorithm::Crc32, ChecksumKind::Composite))
        );
        assert_eq!(
            of(&[("x-amz-checksum-algorithm", "CRC64NVME")]).unwrap(),
            Some((ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject))
        );
        for (algorithm, kind) in [("SHA1", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), ("CRC32", "X")] {
            assert!(of(&[("x-amz-checksum-algorithm", algorithm), ("x-amz-checksum-type", kind)]).is_err());
        }
        assert!(of(&[("x-amz-checksum-type", "COMPOSITE")]).is_err());
    }
}
