//! The storage daemon: metadata tables over an embedded engine, and blocks on several disks.
//!
//! See the README of this crate for the map of modules and the invariants they keep.

pub mod blocks;
pub mod commit;
pub mod daemon;
pub mod data_disks;
pub mod disk;
pub mod layout_store;
pub mod limits;
pub mod meta;
pub mod observe;
pub mod serve;
pub mod snapshot;
pub mod space;
pub mod tables;
pub mod workers;
