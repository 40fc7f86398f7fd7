//! What the APIs may do, in plain words: authorize, put, open, copy, delete, list, multipart uploads, buckets, keys.
//!
//! Nothing here knows HTTP or XML, and nothing here speaks to a node but through [`Store`], whose every method is
//! one quorum operation. Rules that hold for all of it:
//!
//! - An operation that fails leaves what was visible before; one that answers success is durable on a write quorum.
//! - Every version id is used by one attempt only: a reference to a block, once deleted, can't come back.
//! - Memory for block data is claimed before it is filled, and given back when the last user of the bytes is done.

pub mod error;
pub mod types;

mod buckets;
mod keys;
mod list;
mod multipart;
mod objects;

pub use error::DomainError;
pub use objects::OpenObject;
pub use types::*;

use hayloft_common::env::Env;

/// The domain's root: one for a gateway, shared by all requests (`Arc<Gateway>`).
pub struct Gateway {
    env: Env,
}
