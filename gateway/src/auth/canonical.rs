//! The canonical request of signature version 4, as S3 defines it (no path normalisation, one level of
//! percent-encoding). Pure: the same input gives the same bytes.

use crate::http::percent;
use crate::http::query::Query;
use http::HeaderMap;

/// Everything of a request that may be signed.
#[derive(Debug, Clone, Copy)]
pub struct Signable<'a> {
    pub method: &'a str,
    /// The path as sent.
    pub raw_path: &'a str,
    /// The path, decoded.
    pub path: &'a str,
    pub query: &'a Query,
    pub headers: &'a HeaderMap,
    /// `Host` or `:authority`.
    pub host: &'a str,
}

/// A signed header that the request does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub String);

/// How the path enters the canonical request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathForm {
    /// Decoded and encoded again: what the specification says.
    Encoded,
    /// As sent: what clients do that leave characters such as `!` or `(` unencoded.
    Raw,
}

/// The canonical request. `signed_headers` in lower case and sorted; `payload_hash` as the client stated it.
/// The query parameter `X-Amz-Signature` is left out.
pub fn canonical_request(
    request: Signable<'_>,
    path: PathForm,
    signed_headers: &[&str],
    payload_hash: &str,
) -> Result<Vec<u8>, Missing> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(request.method.as_bytes());
    out.push(b'\n');
    match path {
        PathForm::Encoded => out.extend_from_slice(percent::encode(request.path, false).as_bytes()),
        PathForm::Raw => out.extend_from_slice(request.raw_path.as_bytes()),
    }
    out.push(b'\n');
    out.extend_from_slice(canonical_query(request.query).as_bytes());
    out.push(b'\n');
    for name in signed_headers {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        header_value(&mut out, request, name)?;
        out.push(b'\n');
    }
    out.push(b'\n');
    out.extend_from_slice(signed_headers.join(";").as_bytes());
    out.push(b'\n');
    out.extend_from_slice(payload_hash.as_bytes());
    Ok(out)
}

fn canonical_query(query: &Query) -> String {
    let mut pairs: Vec<(String, String)> = query
        .iter()
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| (percent::encode(name, true), percent::encode(value, true)))
        .collect();
    pairs.sort_unstable();
    let joined: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    joined.join("&")
}

/// All values of a header, joined by commas, each trimmed and with runs of spaces made one.
fn header_value(out: &mut Vec<u8>, request: Signable<'_>, name: &str) -> Result<(), Missing> {
    if name == "host" {
        out.extend_from_slice(request.host.as_bytes());
        return Ok(());
    }
    let mut values = request.headers.get_all(name).iter().peekable();
    if values.peek().is_none() {
        return Err(Missing(name.to_owned()));
    }
    for (i, value) in values.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let words = value.as_bytes().split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
        for (j, word) in words.enumerate() {
            if j > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(word);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn canonical(path: &str, query: &str, headers: &HeaderMap, form: PathForm, signed: &[&str]) -> String {
        let query = Query::parse(query).unwrap();
        let decoded = percent::decode(path, false).unwrap();
        let request = Signable {
            method: "GET",
            raw_path: path,
            path: &decoded,
            query: &query,
            headers,
            host: "example.org",
        };
        String::from_utf8(canonical_request(request, form, signed, "HASH").unwrap()).unwrap()
    }

    #[test]
    fn query_parameters_are_sorted_and_encoded() {
        let text = canonical(
            "/b/k",
            "b=2&a=%2f+&X-Amz-Signature=00&a=%21&uploads",
            &HeaderMap::new(),
            PathForm::Encoded,
            &["host"],
        );
        assert_eq!(text, "GET\n/b/k\na=%21&a=%2F%20&b=2&uploads=\nhost:example.org\n\nhost\nHASH");
    }

    #[test]
    fn paths_are_not_normalised_and_encoded_once() {
        let encoded = canonical("/b//../a%20b!", "", &HeaderMap::new(), PathForm::Encoded, &[]);
        assert!(encoded.starts_with("GET\n/b//../a%20b%21\n"), "{encoded}");
        let raw = canonical("/b//../a%20b!", "", &HeaderMap::new(), PathForm::Raw, &[]);
        assert!(raw.starts_with("GET\n/b//../a%20b!\n"), "{raw}");
    }

    #[test]
    fn header_values_are_trimmed_and_joined() {
        let mut headers = HeaderMap::new();
        headers.append("x-amz-meta-a", HeaderValue::from_static("  one   two "));
        headers.append("x-amz-meta-a", HeaderValue::from_bytes("ü".as_bytes()).unwrap());
        let text = canonical("/", "", &headers, PathForm::Encoded, &["x-amz-meta-a"]);
        assert!(text.contains("\nx-amz-meta-a:one two,ü\n\n"), "{text}");
    }

    #[test]
    fn a_signed_header_that_is_missing_is_named() {
        let query = Query::default();
        let headers = HeaderMap::new();
        let request =
            Signable { method: "GET", raw_path: "/", path: "/", query: &query, headers: &headers, host: "" };
        let missing = canonical_request(request, PathForm::Encoded, &["expect"], "").unwrap_err();
        assert_eq!(missing, Missing("expect".into()));
    }
}
