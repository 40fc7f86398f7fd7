//! How long background work waits, and how much it may take: the section `[workers]` of the node's file.

pub use hayloft_common::config::{MESSAGE_LIFETIME, WorkerSettings as Settings};
