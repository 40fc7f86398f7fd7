//! Presigned URLs: the signature in the query string. Pure.
//!
//! Other `x-amz-…` parameters of a presigned URL stand for headers: see [`hoisted`].

use super::AuthError;
use super::sigv4::{ALGORITHM, Credential, parse_signature, parse_signed_headers};
use crate::http::date;
use crate::http::query::Query;

/// Longest validity: seven days, in seconds.
pub const MAX_EXPIRES: u64 = 7 * 24 * 3600;

/// The parameters that make a presigned URL.
pub const PARAMETERS: [&str; 6] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
];

/// The signature of a presigned URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presigned {
    pub credential: Credential,
    /// When it was signed, in seconds since the epoch.
    pub date_secs: u64,
    /// Its validity in seconds: 1 to [`MAX_EXPIRES`].
    pub expires: u64,
    pub signed_headers: Vec<String>,
    pub signature: String,
}

impl Presigned {
    /// Parses the parameters of a query that has at least one of them.
    pub fn parse(query: &Query) -> Result<Self, AuthError> {
        let bad = |text: &str| AuthError::MalformedQuery(text.to_owned());
        let get = |name: &str| {
            query.get(name).ok_or_else(|| {
                bad("Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.")
            })
        };
        if get("X-Amz-Algorithm")? != ALGORITHM {
            return Err(bad("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\""));
        }
        let credential = Credential::parse(get("X-Amz-Credential")?).ok_or_else(|| {
            bad("Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".")
        })?;
        let date_secs = date::parse_amz(get("X-Amz-Date")?)
            .ok_or_else(|| bad("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""))?;
        let expires: i64 =
            get("X-Amz-Expires")?.parse().map_err(|_| bad("X-Amz-Expires should be a number"))?;
        let expires = u64::try_from(expires).map_err(|_| bad("X-Amz-Expires must be non-negative"))?;
        if expires == 0 {
            return Err(bad("X-Amz-Expires must be positive"));
        }
        if expires > MAX_EXPIRES {
            return Err(bad("X-Amz-Expires must be less than a week (in seconds) that is 604800"));
        }
        let signed_headers = parse_signed_headers(get("X-Amz-SignedHeaders")?)
            .ok_or_else(|| bad("X-Amz-SignedHeaders must be unique lower-case names that include host"))?;
        let signature = parse_signature(get("X-Amz-Signature")?)
            .ok_or_else(|| bad("X-Amz-Signature must be 64 hexadecimal digits"))?;
        Ok(Self { credential, date_secs, expires, signed_headers, signature })
    }

    /// Whether the URL may be used at `now` (seconds); `skew` is how far clocks may be apart.
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), AuthError> {
        if self.date_secs > now.saturating_add(skew) {
            return Err(AuthError::NotYetValid { starts_secs: self.date_secs, server_secs: now });
        }
        let expires_secs = self.date_secs + self.expires;
        if now > expires_secs {
            return Err(AuthError::Expired { expires_secs, server_secs: now });
        }
        Ok(())
    }
}

/// Whether a query tries to be a presigned URL of version 4.
pub fn is_presigned(query: &Query) -> bool {
    query.has("X-Amz-Signature") || query.has("X-Amz-Algorithm") || query.has("X-Amz-Credential")
}

/// Whether a query is a presigned URL of version 2, which is not supported.
pub fn is_version_2(query: &Query) -> bool {
    query.has("Signature") && query.has("AWSAccessKeyId")
}

/// Takes the authentication parameters out of a verified query, and returns the parameters that stand
/// for headers, names in lower case.
pub fn hoisted(query: &mut Query) -> Vec<(String, String)> {
    query.take(|name| PARAMETERS.contains(&name));
    let is_header = |name: &str| name.get(..6).is_some_and(|p| p.eq_ignore_ascii_case("x-amz-"));
    query.take(is_header).into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUERY: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

    #[test]
    fn the_documented_query_is_read() {
        let parsed = Presigned::parse(&Query::parse(QUERY).unwrap()).unwrap();
        assert_eq!((parsed.date_secs, parsed.expires), (1_369_353_600, 86400));
        assert_eq!(parsed.signed_headers, ["host"]);
    }

    #[test]
    fn each_broken_parameter_is_refused() {
        for (from, to) in [
            ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
            ("X-Amz-Credential=", "x="),
            ("20130524T000000Z", "2013"),
            ("Expires=86400", "Expires=0"),
            ("Expires=86400", "Expires=-1"),
            ("Expires=86400", "Expires=604801"),
            ("Expires=86400", "Expires=soon"),
            ("SignedHeaders=host", "SignedHeaders=range"),
            ("Signature=aeeed9", "Signature=zeeed9"),
            ("&X-Amz-Signature", "&y"),
        ] {
            let query = Query::parse(&QUERY.replace(from, to)).unwrap();
            assert!(matches!(Presigned::parse(&query), Err(AuthError::MalformedQuery(_))), "{to}");
        }
    }

    #[test]
    fn a_url_is_valid_from_its_date_until_it_expires() {
        let url = Presigned::parse(&Query::parse(QUERY).unwrap()).unwrap();
        let start = url.date_secs;
        assert!(url.check_time(start, 900).is_ok());
        assert!(url.check_time(start - 900, 900).is_ok());
        assert!(matches!(url.check_time(start - 901, 900), Err(AuthError::NotYetValid { .. })));
        assert!(url.check_time(start + 86400, 900).is_ok());
        assert!(matches!(url.check_time(start + 86401, 900), Err(AuthError::Expired { .. })));
    }

    #[test]
    fn parameters_that_stand_for_headers_are_taken_out() {
        let mut query =
            Query::parse(&format!("{QUERY}&X-Amz-Meta-A=1&x-amz-acl=private&partNumber=3")).unwrap();
        let headers = hoisted(&mut query);
        assert_eq!(headers, [("x-amz-meta-a".into(), "1".into()), ("x-amz-acl".into(), "private".into())]);
        assert_eq!(query.iter().collect::<Vec<_>>(), [("partNumber", "3")]);
    }

    proptest! {
        #[test]
        fn any_query_is_taken(text in any::<String>()) {
            if let Ok(query) = Query::parse(&text) {
                let _ = Presigned::parse(&query);
            }
        }
    }
}
