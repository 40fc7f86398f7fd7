//! The `Range` request header: one range of bytes, as pure functions.
//!
//! Several ranges, other units and malformed text are ignored and the whole object is sent, as RFC 9110
//! §14.2 allows and S3 does; a range that can't be met is an error (416).

/// What a `Range` header asks for, before the size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSpec {
    /// `bytes=first-` or `bytes=first-last`.
    From { first: u64, last: Option<u64> },
    /// `bytes=-count`: the last bytes.
    Suffix(u64),
}

/// A range that was met: `first..=last`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    pub first: u64,
    pub last: u64,
}

impl ByteRange {
    /// Bytes in the range, at least 1.
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Never: there is no empty range. Here because `len` is.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The range lies outside of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the requested range cannot be satisfied: the object has {size} bytes")]
pub struct Unsatisfiable {
    pub size: u64,
}

/// Reads a `Range` header; `None` if it is to be ignored.
pub fn parse(header: &str) -> Option<RangeSpec> {
    let (unit, spec) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    parse_spec(spec.trim())
}

/// Reads `first-last`, `first-` or `-count`.
fn parse_spec(spec: &str) -> Option<RangeSpec> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        return number(last).map(RangeSpec::Suffix);
    }
    let first = number(first)?;
    if last.is_empty() {
        return Some(RangeSpec::From { first, last: None });
    }
    let last = number(last)?;
    (first <= last).then_some(RangeSpec::From { first, last: Some(last) })
}

/// The strict form of `x-amz-copy-source-range`: `bytes=first-last` and nothing else.
pub fn parse_copy_range(header: &str) -> Option<ByteRange> {
    match parse_spec(header.strip_prefix("bytes=")?)? {
        RangeSpec::From { first, last: Some(last) } => Some(ByteRange { first, last }),
        _ => None,
    }
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // More digits than a u64 holds still mean "beyond the end".
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Applies a range to an object of `size` bytes.
pub fn resolve(spec: RangeSpec, size: u64) -> Result<ByteRange, Unsatisfiable> {
    let out_of_range = Unsatisfiable { size };
    let end = size.checked_sub(1).ok_or(out_of_range)?;
    match spec {
        RangeSpec::From { first, last } if first <= end => {
            Ok(ByteRange { first, last: last.unwrap_or(end).min(end) })
        }
        RangeSpec::Suffix(count) if count > 0 => Ok(ByteRange { first: size - count.min(size), last: end }),
        _ => Err(out_of_range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(header: &str, size: u64) -> Option<Result<(u64, u64), Unsatisfiable>> {
        parse(header).map(|spec| resolve(spec, size).map(|r| (r.first, r.last)))
    }

    #[test]
    fn ranges_are_met_as_rfc_9110_says() {
        assert_eq!(ask("bytes=0-0", 10), Some(Ok((0, 0))));
        assert_eq!(ask("bytes=5-", 10), Some(Ok((5, 9))));
        assert_eq!(ask("bytes=5-100", 10), Some(Ok((5, 9))));
        assert_eq!(ask("bytes=-3", 10), Some(Ok((7, 9))));
        assert_eq!(ask("bytes=-30", 10), Some(Ok((0, 9))));
        assert_eq!(ask("Bytes=2-3", 10), Some(Ok((2, 3))));
        assert_eq!(ask("bytes=0-99999999999999999999999", 10), Some(Ok((0, 9))));
    }

    #[test]
    fn ranges_outside_of_the_object_are_refused() {
        for header in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(ask(header, 10), Some(Err(Unsatisfiable { size: 10 })), "{header}");
        }
        assert_eq!(ask("bytes=0-", 0), Some(Err(Unsatisfiable { size: 0 })));
        assert_eq!(ask("bytes=-5", 0), Some(Err(Unsatisfiable { size: 0 })));
    }

    #[test]
    fn what_is_no_single_byte_range_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=3-2",
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=a-b",
            "bytes=+1-2",
        ] {
            assert_eq!(ask(header, 10), None, "{header}");
        }
    }

    #[test]
    fn a_copy_range_has_both_ends() {
        assert_eq!(parse_copy_range("bytes=0-9"), Some(ByteRange { first: 0, last: 9 }));
        for header in ["bytes=0-", "bytes=-9", "0-9", "bytes=9-0", "bytes=0-1,2-3"] {
            assert_eq!(parse_copy_range(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn a_met_range_lies_inside(header in ".{0,40}|bytes=[0-9]{0,3}-[0-9]{0,3}", size in 0u64..200) {
            if let Some(Ok((first, last))) = ask(&header, size) {
                prop_assert!(first <= last && last < size);
            }
        }
    }
}
