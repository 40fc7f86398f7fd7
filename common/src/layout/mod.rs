//! Where data lives: roles of nodes, the table partition → nodes, how it is computed, how one table
//! follows another, and which nodes make a quorum (design §3).
//!
//! Pure: no I/O, no clock, no randomness. Whoever stores a [`LayoutRegister`] makes it durable before
//! answering; whoever calls nodes asks [`ActiveLayout`] for the sets and a [`Tracker`] when to stop.

mod active;
mod assignment;
mod compute;
mod error;
mod explain;
mod flow;
mod holdings;
mod partition;
mod progress;
mod proposer;
mod quorum;
mod register;
mod role;
mod solve;
mod staged;

pub use active::{ActiveLayout, MAX_QUEUED, Phase};
pub use assignment::Layout;
pub use compute::compute;
pub use error::{InvalidLayout, LayoutError, LookupError};
pub use explain::{Explanation, NodeStatistics, Statistics, ZoneStatistics};
pub use holdings::{Holdings, NotSynced, PartitionState};
pub use partition::{Partition, partition_of, partition_of_key};
pub use progress::{Acks, Progress, Wait, WaitReason, may_advance, may_drop, risk, waits_for};
pub use proposer::{Acceptors, Proposer, Step, acceptors};
pub use quorum::{ConsistencyMode, QuorumState, Tracker, read_quorum, write_quorum};
pub use register::{AcceptReply, Ballot, LayoutRegister, LearnError, PrepareReply};
pub use role::{Parameters, Role, ZoneRedundancy};
pub use staged::{Change, StagedChanges};
