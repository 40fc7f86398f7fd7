//! The keyspaces of a node and what each holds.
//!
//! One per replicated table, none per partition (2,560 keyspaces take a minute to create): the partition
//! is the first part of every row's key. Names are part of the directory's format, never reuse one.

use hayloft_common::schema::TableId;

/// A keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Rows of a replicated table, without their detail.
    Table(TableId),
    /// What [`hayloft_common::schema::Row::detach`] takes out of rows: inline data, block lists.
    Detail,
    /// Where each block of this node lies.
    BlockIndex,
    /// Objects, bytes and uploads per partition and bucket, counted with the rows.
    Counters,
    /// Sums of row hashes per table, partition and leaf.
    Fingerprint,
    /// Work that followed from a row's change and is not done yet.
    Queue,
    /// What concerns this node alone: format record, layout, settings.
    Node,
}

impl Space {
    /// Number of keyspaces.
    pub const COUNT: usize = TableId::ALL.len() + 6;

    /// Every keyspace.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Node; Self::COUNT];
        let mut i = 0;
        while i < TableId::ALL.len() {
            all[i] = Self::Table(TableId::ALL[i]);
            i += 1;
        }
        all[i] = Self::Detail;
        all[i + 1] = Self::BlockIndex;
        all[i + 2] = Self::Counters;
        all[i + 3] = Self::Fingerprint;
        all[i + 4] = Self::Queue;
        all
    };

    /// Its place in [`Space::ALL`].
    pub(crate) fn index(self) -> usize {
        let tables = TableId::ALL.len();
        match self {
            Self::Table(table) => TableId::ALL.iter().position(|t| *t == table).unwrap_or(0),
            Self::Detail => tables,
            Self::BlockIndex => tables + 1,
            Self::Counters => tables + 2,
            Self::Fingerprint => tables + 3,
            Self::Queue => tables + 4,
            Self::Node => tables + 5,
        }
    }

    /// The keyspace's name on disk and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Table(table) => table.name(),
            Self::Detail => "detail",
            Self::BlockIndex => "block_index",
            Self::Counters => "counters",
            Self::Fingerprint => "fingerprint",
            Self::Queue => "queue",
            Self::Node => "node",
        }
    }

    /// Whether it takes entries with every object, so that it deserves a larger write buffer.
    pub(crate) fn is_busy(self) -> bool {
        matches!(
            self,
            Self::Table(TableId::Object | TableId::BlockRef | TableId::Part)
                | Self::Detail
                | Self::BlockIndex
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_space_has_its_own_place_and_name() {
        let mut names: Vec<_> = Space::ALL.iter().map(|s| s.name()).collect();
        assert!(Space::ALL.iter().enumerate().all(|(i, s)| s.index() == i));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Space::COUNT);
    }
}
