//! The hash map and set that may be used: a fixed hasher, so that two runs of the simulator iterate in
//! the same order. Keys that an outsider chooses belong in a `BTreeMap`: this hasher does not resist
//! chosen collisions.

use std::hash::{BuildHasherDefault, DefaultHasher};

#[expect(clippy::disallowed_types, reason = "the one place that fixes the hasher")]
pub type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<DefaultHasher>>;
#[expect(clippy::disallowed_types, reason = "the one place that fixes the hasher")]
pub type HashSet<K> = std::collections::HashSet<K, BuildHasherDefault<DefaultHasher>>;
