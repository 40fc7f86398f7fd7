//! `If-Match`, `If-None-Match`, `If-Modified-Since` and `If-Unmodified-Since`, as one pure decision
//! (RFC 9110 §13.2.2), for reading and for the source of a copy.

/// The four conditions as sent; times in seconds since the epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub if_modified_since: Option<u64>,
    pub if_unmodified_since: Option<u64>,
}

/// What the conditions say about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Proceed,
    /// 304 on GET and HEAD; 412 for the source of a copy.
    NotModified,
    /// 412, with the name of the condition that failed.
    Failed(&'static str),
}

impl Conditions {
    /// Whether none is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Judges an object that exists. `etag` is without quotes; `modified_secs` in seconds since the epoch
    /// (HTTP dates know no fractions).
    pub fn judge(&self, etag: &str, modified_secs: u64) -> Verdict {
        // A matching ETag overrides the date, in both pairs.
        if let Some(wanted) = &self.if_match {
            if !matches_any(wanted, etag) {
                return Verdict::Failed("If-Match");
            }
        } else if self.if_unmodified_since.is_some_and(|since| modified_secs > since) {
            return Verdict::Failed("If-Unmodified-Since");
        }
        if let Some(known) = &self.if_none_match {
            if matches_any(known, etag) {
                return Verdict::NotModified;
            }
        } else if self.if_modified_since.is_some_and(|since| modified_secs <= since) {
            return Verdict::NotModified;
        }
        Verdict::Proceed
    }
}

/// Whether the list `"a", W/"b", *` names `etag`. Quotes may be missing, as S3 allows.
fn matches_any(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let bare = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(tag);
        tag == "*" || bare == etag
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(
        if_match: Option<&str>,
        if_none_match: Option<&str>,
        modified: Option<u64>,
        unmodified: Option<u64>,
    ) -> Verdict {
        let conditions = Conditions {
            if_match: if_match.map(Into::into),
            if_none_match: if_none_match.map(Into::into),
            if_modified_since: modified,
            if_unmodified_since: unmodified,
        };
        conditions.judge("abc", 1000)
    }

    #[test]
    fn etags_match_with_quotes_without_in_lists_and_as_star() {
        for list in ["abc", "\"abc\"", "*", "\"x\", \"abc\"", "W/\"abc\""] {
            assert_eq!(judge(Some(list), None, None, None), Verdict::Proceed, "{list}");
            assert_eq!(judge(None, Some(list), None, None), Verdict::NotModified, "{list}");
        }
        for list in ["", "\"x\"", "ab", "\"abc", "**"] {
            assert_eq!(judge(Some(list), None, None, None), Verdict::Failed("If-Match"), "{list}");
            assert_eq!(judge(None, Some(list), None, None), Verdict::Proceed, "{list}");
        }
    }

    #[test]
    fn dates_are_compared_in_whole_seconds() {
        assert_eq!(judge(None, None, Some(1000), None), Verdict::NotModified);
        assert_eq!(judge(None, None, Some(999), None), Verdict::Proceed);
        assert_eq!(judge(None, None, None, Some(1000)), Verdict::Proceed);
        assert_eq!(judge(None, None, None, Some(999)), Verdict::Failed("If-Unmodified-Since"));
    }

    #[test]
    fn an_etag_condition_overrides_the_date_beside_it() {
        assert_eq!(judge(Some("abc"), None, None, Some(1)), Verdict::Proceed);
        assert_eq!(judge(Some("x"), None, None, Some(2000)), Verdict::Failed("If-Match"));
        assert_eq!(judge(None, Some("x"), Some(2000), None), Verdict::Proceed);
        assert_eq!(judge(None, Some("abc"), Some(1), None), Verdict::NotModified);
        assert_eq!(judge(Some("x"), Some("abc"), None, None), Verdict::Failed("If-Match"));
    }
}
