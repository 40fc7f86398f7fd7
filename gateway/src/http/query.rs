//! The query string: every parameter, in order, decoded once. Duplicates are visible, nothing is dropped.

use super::percent::{self, PercentError};

/// A parsed query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=1&b&c=%20`. A parameter without `=` has the empty value.
    pub fn parse(raw: &str) -> Result<Self, PercentError> {
        let mut pairs = Vec::new();
        for piece in raw.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            pairs.push((percent::decode(name, true)?, percent::decode(value, true)?));
        }
        Ok(Self(pairs))
    }

    /// The parameter `name`, if it is given; the first, if it is given more than once.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether `name` is given, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All parameters, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// The first name that is given twice.
    pub fn duplicate(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|(n, _)| n.as_str()).collect();
        names.sort_unstable();
        names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    }

    /// Takes out all parameters for which `pick` answers true.
    pub fn take(&mut self, mut pick: impl FnMut(&str) -> bool) -> Vec<(String, String)> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(n, _)| pick(n));
        self.0 = left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once_and_kept_in_order() {
        let query = Query::parse("list-type=2&prefix=a%2520b&uploads&x=+&&y=1=2").unwrap();
        assert_eq!(query.get("prefix"), Some("a%20b"));
        assert_eq!(query.get("uploads"), Some(""));
        assert_eq!(query.get("x"), Some(" "));
        assert_eq!(query.get("y"), Some("1=2"));
        assert_eq!(
            query.iter().map(|p| p.0).collect::<Vec<_>>(),
            ["list-type", "prefix", "uploads", "x", "y"]
        );
        assert!(Query::parse("a=%f").is_err());
    }

    #[test]
    fn a_parameter_given_twice_is_found() {
        assert_eq!(Query::parse("b=1&a=2&b=3").unwrap().duplicate(), Some("b"));
        assert_eq!(Query::parse("b=1&a=2").unwrap().duplicate(), None);
    }
}
