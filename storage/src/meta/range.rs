//! Ranges of keys, and how a scan goes on.

/// The keys from `from` (included) up to `to` (excluded; to the end of the keyspace if absent).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    pub from: Vec<u8>,
    pub to: Option<Vec<u8>>,
}

impl KeyRange {
    /// A whole keyspace.
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { from: prefix.to_vec(), to: after_prefix(prefix) }
    }

    /// From `from` (included) to `to` (excluded).
    pub fn new(from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) -> Self {
        Self { from: from.into(), to: Some(to.into()) }
    }

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.from <= *key && self.to.as_ref().is_none_or(|to| *key < **to)
    }

    /// What remains of the range once a scan jumps to `key` (see [`Step::Seek`]).
    pub(crate) fn narrowed(&self, key: Vec<u8>, direction: Direction) -> Self {
        match direction {
            Direction::Forward => Self { from: key.max(self.from.clone()), to: self.to.clone() },
            Direction::Reverse => {
                let to = match &self.to {
                    Some(to) if *to < key => to.clone(),
                    _ => key,
                };
                Self { from: self.from.clone(), to: Some(to) }
            }
        }
    }
}

/// The first key after all that begin with `prefix`; none if there is no such key (`prefix` is empty or
/// all 0xff).
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Reverse,
}

/// How a scan goes on after an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// With the next entry.
    Next,
    /// Forward: with the first key at or above this one. Reverse: with the last key below it. A key that
    /// lies behind the scan is ignored, so a scan always moves on.
    Seek(Vec<u8>),
    /// Not at all.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_carries_over_0xff() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(after_prefix(&[0xff, 0xff]), None);
        assert_eq!(after_prefix(b""), None);
        assert!(KeyRange::prefix(b"a").contains(b"a\xff\xff"));
        assert!(!KeyRange::prefix(b"a").contains(b"b"));
    }
}
