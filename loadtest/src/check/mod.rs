//! Judging histories: pure functions from what happened to what is wrong with it.
//!
//! The rules are read-after-write for single keys (`register`), no going back between reads ([`monotonic`]),
//! and listings ([`listing`]); of a cluster at rest ([`ClusterView`]) that replicas are equal ([`replicas`]), that every
//! block that is needed is where it should be ([`copies`]) and that nothing else is left ([`leaks`]). A checker never guesses: whatever a correct store could have done is allowed.

mod cluster;
mod copies;
mod leaks;
mod listing;
mod monotonic;
mod register;
mod replicas;
#[cfg(test)]
mod testing;

pub use cluster::{ClusterView, NodeView, RowName, RowState};
pub use copies::copies;
pub use leaks::leaks;
pub use listing::{ListedSize, listing};
pub use monotonic::monotonic;
pub use register::{allowed, forget, reads, states_at};
pub use replicas::replicas;

use crate::history::{Read, State};
use std::fmt;

/// Something a correct store cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub key: String,
    pub what: Fault,
}

/// The kinds of violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read gave what no write that could be in effect wrote: stale, lost, from the future, or made up.
    Read { read: Read, allowed: Vec<State> },
    /// A later read gave an older write than an earlier read, though both agree with the writes.
    WentBack { newer: State, older: State },
    /// A listing lacks a key that must be there.
    NotListed { allowed: Vec<State> },
    /// A listing holds a key that must not be there, or with a size that it never had.
    Listed { size: u64, allowed: Vec<State> },
    /// The bytes are not those of the generation that the object claims to be, or it claims none.
    Content(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        match &self.what {
            Fault::Read { read, allowed } => {
                let (start, end) = (read.start, read.end);
                write!(f, "read {:?} between {start:?} and {end:?}, allowed were {allowed:?}", read.state)
            }
            Fault::WentBack { newer, older } => {
                write!(f, "a read gave {newer:?}, a later one {older:?} again")
            }
            Fault::NotListed { allowed } => write!(f, "missing from the listing, allowed were {allowed:?}"),
            Fault::Listed { size, allowed } => {
                write!(f, "listed with {size} bytes, allowed were {allowed:?}")
            }
            Fault::Content(what) => write!(f, "{what}"),
        }
    }
}
