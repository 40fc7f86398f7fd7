//! The gateway: S3 and admin requests in, quorum operations on the storage nodes out. It keeps no state on disk.
//!
//! See the README of this crate for the map of modules and the invariants they keep.

pub mod admin;
pub mod auth;
pub mod cache;
pub mod daemon;
pub mod domain;
pub mod http;
pub mod layout;
pub mod limits;
pub mod s3;
