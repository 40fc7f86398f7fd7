//! Signature version 4: the credential scope, the `Authorization` header, the string to sign, the key.
//! Pure functions; the names follow AWS's documents.

use super::AuthError;
use crate::http::date;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// The only algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// `AKID/20130524/us-east-1/s3/aws4_request`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub access_key: String,
    /// `yyyymmdd`.
    pub date: String,
    pub region: String,
    pub service: String,
}

impl Credential {
    /// Parses a credential; the access key itself may hold slashes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.rsplitn(5, '/');
        let (end, service, region, date, access_key) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let well_formed = end == "aws4_request"
            && date.len() == 8
            && date.bytes().all(|b| b.is_ascii_digit())
            && !access_key.is_empty()
            && !region.is_empty();
        well_formed.then(|| Self {
            access_key: access_key.into(),
            date: date.into(),
            region: region.into(),
            service: service.into(),
        })
    }

    /// `20130524/us-east-1/s3/aws4_request`.
    pub fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// A parsed `Authorization: AWS4-HMAC-SHA256 …` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    pub credential: Credential,
    /// Lower case, sorted, without duplicates.
    pub signed_headers: Vec<String>,
    /// 64 hex digits.
    pub signature: String,
}

impl Authorization {
    /// Parses the header.
    pub fn parse(header: &str) -> Result<Self, AuthError> {
        let Some(rest) = header.strip_prefix(ALGORITHM) else {
            return Err(AuthError::UnsupportedMechanism);
        };
        let malformed = |what: &str| AuthError::MalformedHeader(what.to_owned());
        if !rest.starts_with([' ', '\t']) {
            return Err(AuthError::UnsupportedMechanism);
        }
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for piece in rest.split(',') {
            let (name, value) =
                piece.trim().split_once('=').ok_or_else(|| malformed("a component has no '='."))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(malformed("it has an unknown component.")),
            };
            if slot.replace(value).is_some() {
                return Err(malformed("a component is given twice."));
            }
        }
        let credential = credential.ok_or_else(|| malformed("Credential is missing."))?;
        let signed_headers = signed_headers.ok_or_else(|| malformed("SignedHeaders is missing."))?;
        let signature = signature.ok_or_else(|| malformed("Signature is missing."))?;
        Ok(Self {
            credential: Credential::parse(credential).ok_or_else(|| {
                malformed(
                    "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".",
                )
            })?,
            signed_headers: parse_signed_headers(signed_headers)
                .ok_or_else(|| malformed("SignedHeaders must be unique lower-case names that include host."))?,
            signature: parse_signature(signature)
                .ok_or_else(|| malformed("the Signature is not 64 hexadecimal digits."))?,
        })
    }
}

/// Parses `host;x-amz-date`: lower-case, unique, `host` among them; sorted on the way.
pub fn parse_signed_headers(text: &str) -> Option<Vec<String>> {
    let mut names: Vec<String> = text.split(';').map(str::to_owned).collect();
    names.sort_unstable();
    let valid =
        names.iter().all(|n| !n.is_empty() && !n.bytes().any(|b| b.is_ascii_uppercase() || b <= b' '))
            && names.windows(2).all(|pair| pair[0] != pair[1])
            && names.iter().any(|n| n == "host");
    valid.then_some(names)
}

/// Accepts 64 hex digits.
pub fn parse_signature(text: &str) -> Option<String> {
    (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
}

/// HMAC-SHA256.
pub fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length: the empty fallback is never reached.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// SHA-256 in hex.
pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// A key that signs for one day, region and service. Not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey([u8; 32]);

impl SigningKey {
    pub fn derive(secret: &str, credential: &Credential) -> Self {
        let day = hmac(format!("AWS4{secret}").as_bytes(), credential.date.as_bytes());
        let region = hmac(&day, credential.region.as_bytes());
        let service = hmac(&region, credential.service.as_bytes());
        Self(hmac(&service, b"aws4_request"))
    }

    /// The signature of a string to sign, in hex.
    pub fn sign(&self, string_to_sign: &str) -> String {
        hex::encode(hmac(&self.0, string_to_sign.as_bytes()))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

/// What was signed: for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub canonical_request: Vec<u8>,
    pub string_to_sign: String,
}

impl Signed {
    /// The string to sign for a canonical request.
    pub fn new(canonical_request: Vec<u8>, request_secs: u64, credential: &Credential) -> Self {
        let string_to_sign = format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            date::amz(request_secs),
            credential.scope(),
            sha256_hex(&canonical_request)
        );
        Self { canonical_request, string_to_sign }
    }
}

/// Compares without telling by its duration where the difference is.
pub fn equal(ours: &str, theirs: &str) -> bool {
    ours.len() == theirs.len()
        && ours.bytes().zip(theirs.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;range;x-amz-date, Signature=fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc963176630326f1024";

    #[test]
    fn the_documented_header_is_read() {
        let parsed = Authorization::parse(HEADER).unwrap();
        assert_eq!(parsed.credential.access_key, "AKIAIOSFODNN7EXAMPLE");
        assert_eq!(parsed.credential.scope(), "20130524/us-east-1/s3/aws4_request");
        assert_eq!(parsed.signed_headers, ["host", "range", "x-amz-date"]);
        assert!(parsed.signature.starts_with("fe5f"));
    }

    #[test]
    fn malformed_headers_are_refused_with_a_reason() {
        for (from, to) in [
            ("Credential=", "Credentials="),
            ("/aws4_request", "/aws5_request"),
            ("20130524", "2013"),
            ("host;range", "range"),
            ("host;range", "host;Range"),
            ("host;range", "host;host"),
            ("fe5f80", "fe5f8"),
            ("fe5f80", "ze5f80"),
            (",SignedHeaders=host;range;x-amz-date", ""),
            (", Signature", ",Signature=00, Signature"),
        ] {
            let error = Authorization::parse(&HEADER.replace(from, to)).unwrap_err();
            assert!(matches!(error, AuthError::MalformedHeader(_)), "{to}: {error:?}");
        }
        for other in ["AWS AKID:signature", "Basic abc", "Bearer x", "", "AWS4-HMAC-SHA256x Credential=a"] {
            assert!(matches!(Authorization::parse(other), Err(AuthError::UnsupportedMechanism)), "{other}");
        }
    }

    #[test]
    fn an_access_key_may_hold_slashes() {
        let credential = Credential::parse("a/b/20130524/eu/s3/aws4_request").unwrap();
        assert_eq!(credential.access_key, "a/b");
    }

    /// AWS, "Examples of how to derive a signing key".
    #[test]
    fn the_documented_signing_key_is_derived() {
        let credential = Credential::parse("AKID/20150830/us-east-1/iam/aws4_request").unwrap();
        let key = SigningKey::derive("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", &credential);
        assert_eq!(hex::encode(key.0), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
    }

    #[test]
    fn signatures_are_compared_whole() {
        assert!(equal("ab", "ab"));
        assert!(!equal("ab", "ac"));
        assert!(!equal("ab", "abc"));
    }

    proptest! {
        #[test]
        fn any_header_is_taken(text in any::<String>()) {
            let _ = Authorization::parse(&text);
            let _ = Authorization::parse(&format!("{ALGORITHM} {text}"));
        }
    }
}
