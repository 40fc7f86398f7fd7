//! See the README of this crate.

pub mod auth;
pub mod cache;
pub mod domain;
pub mod http;
pub mod limits;
