//! Which nodes have lost data that were durable: the promise holds while fewer than a write quorum of the copies
//! are destroyed, so with three copies one node may lose anything, and no other until the first is whole again.
//!
//! A lost copy counts until the cluster has shown that every copy is back ([`Ledger::whole`]).

use super::super::net::HostId;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Cheap to clone.
#[derive(Clone)]
pub(in super::super) struct Ledger(Arc<Mutex<State>>);

struct State {
    /// Nodes that may be short of data at the same time: copies minus write quorum.
    most: usize,
    lost: BTreeSet<HostId>,
}

impl Ledger {
    pub(in super::super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(State { most, lost: BTreeSet::new() })))
    }

    /// Whether this node may lose data now; if so, that is noted.
    pub(in super::super) fn may_lose(&self, host: HostId) -> bool {
        let mut state = self.0.lock();
        if state.lost.contains(&host) {
            return true;
        }
        let room = state.lost.len() < state.most;
        if room {
            state.lost.insert(host);
        }
        room
    }

    /// All copies were seen to be whole.
    pub(in super::super) fn whole(&self) {
        self.0.lock().lost.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_at_a_time_loses_data_until_all_is_whole_again() {
        let ledger = Ledger::new(1);
        assert!(ledger.may_lose(2) && ledger.may_lose(2) && !ledger.may_lose(0));
        ledger.whole();
        assert!(ledger.may_lose(0) && !ledger.may_lose(2));
    }
}
