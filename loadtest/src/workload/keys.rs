//! Names of objects, and which ones a client picks: some keys are much more popular than others.

use rand::{Rng, RngExt as _};

/// A set of keys under one prefix.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    count: u32,
}

impl Keys {
    /// `count` keys (at least one) under `prefix`.
    pub fn new(prefix: &str, count: u32) -> Self {
        Self { prefix: prefix.to_owned(), count: count.max(1) }
    }

    /// How many keys there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// What all of them begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of one key. Some lie in folders, some need encoding.
    pub fn name(&self, index: u32) -> String {
        let prefix = &self.prefix;
        match index % 4 {
            0 => format!("{prefix}plain-{index:06}"),
            1 => format!("{prefix}folder-{}/object-{index:06}", index % 7),
            2 => format!("{prefix}with space & sign+{index:06}"),
            _ => format!("{prefix}übung/{index:06}"),
        }
    }

    /// All names.
    pub fn all(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(|index| self.name(index))
    }

    /// A key; the first tenth of them is picked half of the time.
    pub fn pick(&self, random: &mut impl Rng) -> String {
        let hot = (self.count / 10).max(1);
        let range = if random.random_bool(0.5) { hot } else { self.count };
        self.name(random.random_range(0..range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_distinct_and_picks_follow_the_seed() {
        let keys = Keys::new("p/", 200);
        assert_eq!(keys.all().collect::<BTreeSet<_>>().len(), 200);
        let picks = |seed| {
            let mut random = SmallRng::seed_from_u64(seed);
            (0..50).map(|_| keys.pick(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(picks(1), picks(1));
        assert_ne!(picks(1), picks(2));
    }
}
