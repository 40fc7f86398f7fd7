//! Percent-encoding as S3 uses it: exact on the way in, one fixed alphabet on the way out.
//!
//! Unlike the usual helpers, decoding refuses broken escapes and bytes that are not UTF-8, so that two
//! different requests never name the same key by accident.

use std::fmt::Write as _;

/// A path or query that can't be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PercentError {
    #[error("a `%` is not followed by two hexadecimal digits")]
    BadEscape,
    #[error("the decoded text is not UTF-8")]
    NotUtf8,
}

/// Decodes `%XX`; with `plus_is_space` also `+` (query strings).
pub fn decode(text: &str, plus_is_space: bool) -> Result<String, PercentError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = bytes.next().and_then(hex_digit).ok_or(PercentError::BadEscape)?;
                let low = bytes.next().and_then(hex_digit).ok_or(PercentError::BadEscape)?;
                out.push(high << 4 | low);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).map_err(|_| PercentError::NotUtf8)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// Encodes every byte but `A-Z a-z 0-9 - . _ ~`, and `/` unless `encode_slash` (the rule of signature
/// version 4, also used for `encoding-type=url`).
pub fn encode(text: &str, encode_slash: bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            b'/' if !encode_slash => out.push('/'),
            other => {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decoding_refuses_what_is_broken() {
        assert_eq!(decode("a%2Fb", false).unwrap(), "a/b");
        assert_eq!(decode("a+b", true).unwrap(), "a b");
        assert_eq!(decode("a+b", false).unwrap(), "a+b");
        for broken in ["%", "%4", "%zz", "a%2"] {
            assert_eq!(decode(broken, false), Err(PercentError::BadEscape), "{broken}");
        }
        assert_eq!(decode("%ff", false), Err(PercentError::NotUtf8));
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in any::<String>(), slash: bool, plus: bool) {
            prop_assert_eq!(decode(&encode(&text, slash), plus).unwrap(), text);
        }

        #[test]
        fn decoding_takes_any_text(text in any::<String>()) {
            let _ = decode(&text, true);
        }
    }
}
