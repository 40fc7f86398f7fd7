//! The three ways S3 writes a moment: `Last-Modified` (IMF-fixdate), ISO 8601 with milliseconds in XML,
//! and the basic form of signatures. Whole functions over numbers; no clock here.

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// `Sun, 06 Nov 1994 08:49:37 GMT`; fractions are cut off. Moments past the year 9999 read as its end.
pub fn http(millis: u64) -> String {
    format(millis, "%a, %d %b %Y %H:%M:%S GMT")
}

/// `1994-11-06T08:49:37.000Z`.
pub fn iso(millis: u64) -> String {
    format(millis, "%Y-%m-%dT%H:%M:%S.%3fZ")
}

/// `19941106T084937Z`, as in `x-amz-date`.
pub fn amz(secs: u64) -> String {
    format(secs.saturating_mul(1000), "%Y%m%dT%H%M%SZ")
}

fn format(millis: u64, pattern: &str) -> String {
    let moment = i64::try_from(millis)
        .ok()
        .and_then(|m| Timestamp::from_millisecond(m).ok())
        .unwrap_or(Timestamp::MAX);
    strtime::format(pattern, &moment.to_zoned(TimeZone::UTC)).unwrap_or_default()
}

/// Reads `19941106T084937Z`: seconds since the epoch.
pub fn parse_amz(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let digits = |range: std::ops::Range<usize>| -> Option<i16> {
        let piece = bytes.get(range)?;
        piece
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| piece.iter().fold(0i16, |n, b| n.wrapping_mul(10).wrapping_add(i16::from(b - b'0'))))
    };
    let small = |range| digits(range).and_then(|n| i8::try_from(n).ok());
    let date = jiff::civil::DateTime::new(
        digits(0..4)?,
        small(4..6)?,
        small(6..8)?,
        small(9..11)?,
        small(11..13)?,
        small(13..15)?,
        0,
    )
    .ok()?;
    seconds(date)
}

/// Reads an HTTP date in any of the three forms of RFC 9110 §5.6.7, or ISO 8601: seconds since the epoch.
pub fn parse_http(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Ok(moment) = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text) {
        return u64::try_from(moment.as_second()).ok();
    }
    for pattern in ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
        if let Ok(date) = strtime::parse(pattern, text).and_then(|t| t.to_datetime()) {
            return seconds(date);
        }
    }
    text.parse::<Timestamp>().ok().and_then(|m| u64::try_from(m.as_second()).ok())
}

fn seconds(date: jiff::civil::DateTime) -> Option<u64> {
    let moment = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
    u64::try_from(moment.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_is_the_documented_one() {
        let millis = 784_111_777_123;
        assert_eq!(http(millis), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(iso(millis), "1994-11-06T08:49:37.123Z");
        assert_eq!(amz(784_111_777), "19941106T084937Z");
        assert_eq!(http(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert!(http(u64::MAX).contains("9999"));
    }

    #[test]
    fn every_form_of_http_date_is_read() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(parse_http(text), Some(784_111_777), "{text}");
        }
        for text in ["", "yesterday", "06 Nov", "19941106"] {
            assert_eq!(parse_http(text), None, "{text}");
        }
    }

    #[test]
    fn broken_signature_dates_are_refused() {
        for text in
            ["", "19941106", "19941306T084937Z", "19941106T084937", "1994110aT084937Z", "19941106T254937Z"]
        {
            assert_eq!(parse_amz(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_undoes_formatting(secs in 0u64..4_000_000_000) {
            prop_assert_eq!(parse_amz(&amz(secs)), Some(secs));
            prop_assert_eq!(parse_http(&http(secs * 1000)), Some(secs));
        }

        #[test]
        fn any_text_is_taken(text in any::<String>()) {
            let _ = (parse_amz(&text), parse_http(&text));
        }
    }
}
