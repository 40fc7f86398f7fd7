//! See the README of this crate.

pub mod domain;
pub mod limits;
