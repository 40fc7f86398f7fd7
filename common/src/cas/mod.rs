//! Conditional writes without a leader: a consensus register for each row, on the replicas and quorums of all other
//! writes (design §4.1). Pure: no I/O, no clock; whoever keeps an [`Acceptor`] makes it durable before answering.
//!
//! ```text
//! prepare(b) to all ─► a write quorum of each set promises, and answers with its rows: merged, they are e
//!   what became of my earlier tries? ─► the condition is judged on e
//!     holds:  accept(b, my row stamped b)   ─► a write quorum of each set accepts: done
//!     fails:  e surely stands on a quorum   ─► failed;  else accept(b, e stamped b) first
//! ```
//!
//! The ballot is the row's own stamp, so merge order and ballot order are one. What is guaranteed, what plain writes
//! have to do for it ([`Acceptor::admits`]), and why: `common/decisions/2026-11-21-conditional-writes.md`.

mod acceptor;
mod lineage;
mod proposer;

pub use acceptor::{AcceptReply, Acceptor, Forget, Prepared, Standing};
pub use lineage::{Fate, Lineage, MAX_STEPS, Step};
pub use proposer::{Accept, Answer, Condition, End, Next, Proposer, Sets, Stamped, Try};

use crate::schema::TableId;
use crate::stamp::Stamp;

/// Whether rows of a table can be written conditionally; plain writes of such rows are checked against promises.
pub fn governs(table: TableId) -> bool {
    matches!(table, TableId::Object | TableId::Alias)
}

/// The ballot made of a clock's stamp: one that says of the row which carries it that it was written conditionally.
pub fn ballot(stamp: Stamp) -> Stamp {
    Stamp { writer: stamp.writer | 1, ..stamp }
}

/// Whether a row with this stamp was written conditionally ([`ballot`]); plain writes have even writers. A wrong yes
/// (rows of releases that drew any number) can only make the outcome of a try unknown.
pub fn is_ballot(stamp: Stamp) -> bool {
    stamp.writer & 1 == 1
}
