//! How long a storage node's background work waits, and how much it may take: the section `[workers]`.

use super::Check;
use super::size::{de_duration, de_option_size, de_size, format_duration};
use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Messages, retries and replies under way are dead after this long: nothing older may still be written. The delays
/// that guard against late writes exceed it, except in tests.
pub const MESSAGE_LIFETIME: Duration = Duration::from_mins(1);

/// See the fields; the default is what a node uses unless configured otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// Between two comparisons of rows with the same peer.
    #[serde(deserialize_with = "de_duration")]
    pub anti_entropy_interval: Duration,
    /// Before references of a superseded version are dropped.
    #[serde(deserialize_with = "de_duration")]
    pub drop_delay: Duration,
    /// What the second replica waits longer than the first before it does the first one's work (the third twice that).
    #[serde(deserialize_with = "de_duration")]
    pub takeover_delay: Duration,
    /// Without a live reference for this long, a block is released.
    #[serde(deserialize_with = "de_duration")]
    pub block_grace: Duration,
    /// A tombstone younger than this (on the node that collects) is kept.
    #[serde(deserialize_with = "de_duration")]
    pub tombstone_delay: Duration,
    /// Between the two rounds in which all replicas must say that they hold a tombstone.
    #[serde(deserialize_with = "de_duration")]
    pub tombstone_settle: Duration,
    /// A reference that was not renewed for this long is looked at: was its version committed?
    #[serde(deserialize_with = "de_duration")]
    pub uncommitted_age: Duration,
    /// A node not heard of for this long is down: layout changes go on without it where quorums allow.
    #[serde(deserialize_with = "de_duration")]
    pub down_after: Duration,
    /// All blocks are read and verified once in this time.
    #[serde(deserialize_with = "de_duration")]
    pub scrub_interval: Duration,
    /// Blocks fetched or released at once: 1 to 64.
    pub resync_parallel: usize,
    /// Bytes a second that fetching blocks may take; none: no limit.
    #[serde(deserialize_with = "de_option_size")]
    pub resync_bandwidth: Option<u64>,
    /// Share of dead bytes, in percent, from which on a segment is compacted: 10 to 95.
    pub compact_dead_percent: u8,
    /// Smallest segment that is worth compacting, in bytes.
    #[serde(deserialize_with = "de_size")]
    pub compact_min_size: u64,
    /// Between two timed metadata snapshots; none: only on demand. The last two are kept.
    #[serde(deserialize_with = "de_option_duration")]
    pub snapshot_interval: Option<Duration>,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            anti_entropy_interval: Duration::from_mins(10),
            drop_delay: Duration::from_secs(10),
            takeover_delay: Duration::from_mins(2),
            block_grace: Duration::from_mins(10),
            tombstone_delay: Duration::from_mins(10),
            tombstone_settle: Duration::from_mins(2),
            uncommitted_age: Duration::from_hours(1),
            down_after: Duration::from_mins(1),
            scrub_interval: Duration::from_hours(30 * 24),
            resync_parallel: 4,
            resync_bandwidth: None,
            compact_dead_percent: 50,
            compact_min_size: 1 << 20,
            snapshot_interval: None,
        }
    }
}

impl WorkerSettings {
    /// Whether delays are so short that a late message could undo a collected deletion: right for tests only.
    pub fn is_hasty(&self) -> bool {
        // What was read before a tombstone stood everywhere, and then written back: two messages.
        self.tombstone_settle < 2 * MESSAGE_LIFETIME || self.uncommitted_age < Duration::from_mins(40)
    }

    pub(super) fn check(&self, check: &mut Check<'_>) {
        let (second, day) = (Duration::from_secs(1), Duration::from_hours(24));
        for (name, value, min, max) in [
            ("anti_entropy_interval", self.anti_entropy_interval, second, day),
            ("drop_delay", self.drop_delay, Duration::ZERO, day),
            ("takeover_delay", self.takeover_delay, second, day),
            ("block_grace", self.block_grace, Duration::ZERO, 30 * day),
            ("tombstone_delay", self.tombstone_delay, second, 30 * day),
            ("tombstone_settle", self.tombstone_settle, second, day),
            ("uncommitted_age", self.uncommitted_age, 5 * second, 30 * day),
            ("down_after", self.down_after, 5 * second, day),
            ("scrub_interval", self.scrub_interval, 60 * second, 3650 * day),
        ] {
            check.range(&format!("workers.{name}"), value, min, max, format_duration);
        }
        let number = |n: usize| n.to_string();
        check.range("workers.resync_parallel", self.resync_parallel, 1, 64, number);
        let percent = usize::from(self.compact_dead_percent);
        check.range("workers.compact_dead_percent", percent, 10, 95, number);
        if let Some(interval) = self.snapshot_interval {
            check.range("workers.snapshot_interval", interval, 60 * second, 365 * day, format_duration);
        }
    }
}

fn de_option_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    de_duration(d).map(Some)
}
