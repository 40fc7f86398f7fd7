//! How long background work waits, and how much it may take.

use std::time::Duration;

/// Messages, retries and replies under way are dead after this long: nothing older may still be written. Delays that
/// guard against late writes must exceed it.
pub const MESSAGE_LIFETIME: Duration = Duration::from_mins(1);

/// See the fields; [`Settings::default`] is what a node uses unless configured otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Between two comparisons with the same peer.
    pub anti_entropy_interval: Duration,
    /// Before references of a superseded version are dropped.
    pub drop_delay: Duration,
    /// What the second replica waits longer than the first before it does the first one's work (the third twice that).
    pub takeover_delay: Duration,
    /// Without a live reference for this long, a block is released.
    pub block_grace: Duration,
    /// A tombstone younger than this (on the node that collects) is kept.
    pub tombstone_delay: Duration,
    /// Between the two rounds in which all replicas must say that they hold a tombstone.
    pub tombstone_settle: Duration,
    /// A reference that was not renewed for this long is looked at: was its version committed?
    pub uncommitted_age: Duration,
    /// A node not heard of for this long is down: layout changes go on without it where quorums allow.
    pub down_after: Duration,
    /// All blocks are read and verified once in this time.
    pub scrub_interval: Duration,
    /// Blocks fetched or released at once.
    pub resync_parallel: usize,
    /// Bytes a second that fetching blocks may take; none: no limit.
    pub resync_bandwidth: Option<u64>,
    /// Share of dead bytes, in percent, from which on a segment is compacted.
    pub compact_dead_percent: u8,
    /// Between two timed metadata snapshots; none: only on demand.
    pub snapshot_interval: Option<Duration>,
}

impl Default for Settings {
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
            snapshot_interval: None,
        }
    }
}
