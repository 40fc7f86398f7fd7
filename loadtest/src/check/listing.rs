//! A listing equals the set of objects: every key that must be there is, no other is, sizes are right, in order.

use super::{Fault, Violation, states_at};
use crate::history::{KeyHistory, State};
use std::collections::BTreeMap;
use std::time::Duration;

/// A listed key and its size in bytes.
pub type ListedSize = (String, u64);

/// What is wrong with a listing, in byte order of keys, made between `start` and `end`, of all the keys in
/// `keys`. A key that changes meanwhile may be there or not.
pub fn listing(
    keys: &BTreeMap<String, KeyHistory>,
    listed: &[ListedSize],
    start: Duration,
    end: Duration,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for pair in listed.windows(2) {
        if let [(before, _), (after, _)] = pair
            && before.as_bytes() >= after.as_bytes()
        {
            let what = Fault::Content(format!("listed after {before:?}: not in order, or twice"));
            found.push(Violation { key: after.clone(), what });
        }
    }
    let sizes: BTreeMap<_, _> = listed.iter().map(|(key, size)| (key.as_str(), *size)).collect();
    for (key, size) in &sizes {
        if !keys.contains_key(*key) {
            let what = Fault::Listed { size: *size, allowed: vec![State::Absent] };
            found.push(Violation { key: (*key).to_owned(), what });
        }
    }
    for (key, history) in keys {
        let allowed = states_at(history, start, end);
        let what = match sizes.get(key.as_str()) {
            Some(&size) => {
                let fits = |state: &State| matches!(state, State::Present { len, .. } if *len == size);
                (!allowed.iter().any(fits)).then_some(Fault::Listed { size, allowed })
            }
            None => (!allowed.contains(&State::Absent)).then_some(Fault::NotListed { allowed }),
        };
        found.extend(what.map(|what| Violation { key: key.clone(), what }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Outcome};

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// `a` is there with 5 bytes, `b` was deleted, `c` is unknown with 7 bytes.
    fn keys() -> BTreeMap<String, KeyHistory> {
        let history = History::new();
        let put = |key, len, outcome, at| {
            let state = State::Present { generation: history.generation(), len };
            let pending = history.begin(key, state, ms(at));
            history.end(pending, outcome, ms(at + 1));
        };
        put("a", 5, Outcome::Acked, 1);
        put("b", 6, Outcome::Acked, 1);
        let pending = history.begin("b", State::Absent, ms(3));
        history.end(pending, Outcome::Acked, ms(4));
        put("c", 7, Outcome::Unknown, 1);
        history.snapshot()
    }

    fn judge(listed: &[(&str, u64)]) -> Vec<String> {
        let listed: Vec<_> = listed.iter().map(|(key, size)| ((*key).to_owned(), *size)).collect();
        listing(&keys(), &listed, ms(8), ms(9)).into_iter().map(|violation| violation.key).collect()
    }

    #[test]
    fn a_right_listing_with_or_without_the_unknown_key() {
        assert!(judge(&[("a", 5)]).is_empty());
        assert!(judge(&[("a", 5), ("c", 7)]).is_empty());
    }

    #[test]
    fn missing_deleted_foreign_and_resized_keys_are_found() {
        assert_eq!(judge(&[]), ["a"]);
        assert_eq!(judge(&[("a", 5), ("b", 6)]), ["b"]);
        assert_eq!(judge(&[("a", 5), ("x", 1)]), ["x"]);
        assert_eq!(judge(&[("a", 4)]), ["a"]);
    }

    #[test]
    fn disorder_and_repetition_are_found() {
        assert_eq!(judge(&[("c", 7), ("a", 5)]), ["a"]);
        assert_eq!(judge(&[("a", 5), ("a", 5)]), ["a"]);
    }
}
