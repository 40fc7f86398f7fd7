//! Proving Hayloft: an S3 client of our own, workloads, histories and their checkers, benchmarks of any S3
//! endpoint, scripted and random faults on real clusters, and a deterministic simulation of the whole stack.
//!
//! Imports go downwards only: `client history` ← `check` ← `workload`; `cluster report` ← `bench`;
//! `cluster workload` ← `testbed` ← `crash scenario chaos`; `client history check workload` ← `sim`.

pub mod bench;
pub mod chaos;
pub mod check;
pub mod client;
pub mod cluster;
pub mod crash;
pub mod history;
pub mod report;
pub mod scenario;
pub mod sim;
pub mod testbed;
pub mod workload;
