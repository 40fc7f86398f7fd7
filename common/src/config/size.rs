//! Sizes ("10G", "1MiB") and durations ("30s", "5m") as people write them.
//!
//! Sizes: `K M G T P` and `KB MB …` are powers of 1000, `KiB MiB …` (or `Ki Mi …`) powers of 1024; a bare
//! number is bytes. Durations: `ms s m h d`; a bare number is seconds. Both take a decimal fraction
//! ("1.5G"). Whatever parses also prints, and parses back to the same value.

use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::time::Duration;

/// Why a text is not a size or a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not {what}")]
pub struct UnitError {
    text: String,
    what: &'static str,
}

const SIZE: &str = "a size: write a number of bytes, or a number and one of K M G T P (powers of 1000) or \
                    KiB MiB GiB TiB PiB (powers of 1024), such as \"10GiB\"";
const DURATION: &str = "a duration: write a number and one of ms s m h d, such as \"30s\"";

/// Units by factor, largest first within each family; names are compared in lower case.
const SIZE_UNITS: [(&str, u64); 23] = [
    ("", 1),
    ("b", 1),
    ("k", 1000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("p", 1_000_000_000_000_000),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
    ("ki", 1 << 10),
    ("mi", 1 << 20),
    ("gi", 1 << 30),
    ("ti", 1 << 40),
    ("pi", 1 << 50),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("pib", 1 << 50),
    ("byte", 1),
];

/// Units in milliseconds.
const DURATION_UNITS: [(&str, u64); 6] =
    [("", 1000), ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `text` = digits, perhaps a fraction, perhaps a unit: the value in the smallest unit, exactly, or
/// `None` if it does not parse, does not fit, or is not a whole number of the smallest unit.
fn parse_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10_u128.pow(fraction.len() as u32);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor);
    if part % scale != 0 {
        return None;
    }
    whole.checked_add(u64::try_from(part / scale).ok()?)
}

/// Bytes that `text` means.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse_units(text, &SIZE_UNITS).ok_or_else(|| UnitError { text: text.into(), what: SIZE })
}

/// The duration that `text` means, to the millisecond.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse_units(text, &DURATION_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| UnitError { text: text.into(), what: DURATION })
}

fn format_units(value: u64, units: &[(&str, u64)]) -> String {
    let (name, factor) = units
        .iter()
        .rev()
        .find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor))
        .unwrap_or(&units[0]);
    format!("{}{name}", value / factor)
}

/// `bytes` in the largest binary unit that is exact: parses back to the same value.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 6] =
        [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("PiB", 1 << 50)];
    format_units(bytes, &UNITS)
}

/// `duration` in the largest unit that is exact to the millisecond: parses back to the same value.
pub fn format_duration(duration: Duration) -> String {
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    format_units(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &UNITS)
}

/// `bytes` for people: three digits and a decimal unit ("10.7 GB"); not exact.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Text or a bare number.
struct Units(fn(&str) -> Result<u64, UnitError>, &'static str);

impl de::Visitor<'_> for Units {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        (self.0)(text).map_err(E::custom)
    }
}

fn millis(text: &str) -> Result<u64, UnitError> {
    Ok(u64::try_from(parse_duration(text)?.as_millis()).unwrap_or(u64::MAX))
}

/// For serde: a size in bytes.
pub fn de_size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    d.deserialize_any(Units(parse_size, SIZE))
}

/// For serde: a size in bytes that must fit in memory.
pub fn de_usize<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    usize::try_from(de_size(d)?)
        .map_err(|_| de::Error::custom("this size is more than this machine can address"))
}

/// For serde: a duration.
pub fn de_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    d.deserialize_any(Units(millis, DURATION)).map(Duration::from_millis)
}

/// For serde: a size in bytes, or none.
pub fn de_option_size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    struct Wrapped(u64);
    impl<'de> Deserialize<'de> for Wrapped {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            de_size(d).map(Self)
        }
    }
    Ok(Option::<Wrapped>::deserialize(d)?.map(|size| size.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_mean_what_people_expect() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10G", 10_000_000_000),
            ("10 GB", 10_000_000_000),
            ("1MiB", 1 << 20),
            ("64Ki", 64 << 10),
            ("1.5k", 1500),
            ("1_000", 1000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1.5h", 5_400_000), ("7", 7000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for text in ["", "G", "-1", "1.", ".5k", "1.5", "10 X", "1e9", "99999P", "1.2.3k", "1.0000000001G"] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is not a size")), "{error}");
        }
        for text in ["", "s", "-1s", "1 year", "0.1ms"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn human_sizes_are_short() {
        assert_eq!(human_size(999), "999 B");
        assert_eq!(human_size(10 << 30), "10.7 GB");
        assert_eq!(human_size(999_950), "1.0 MB");
        assert_eq!(human_size(u64::MAX), "18.4 EB");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(bytes: u64, ms in 0..u64::MAX / 1000) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = (parse_size(&text), parse_duration(&text));
        }
    }
}
