//! What gateway, storage node and tools share: identifiers, hashes, clocks, CRDTs, the rows of every
//! table and how they merge, the layout algebra, configuration, telemetry and the seams to the outside
//! world.
//!
//! Nothing here talks to a peer or to a disk (the real versions of the seams in [`mod@env`] excepted).
//! Imports go downwards only: `id hash map codec env` ← `stamp crdt` ← `schema layout` ← `cas` ←
//! `config telemetry`.

pub mod block;
pub mod cas;
pub mod codec;
pub mod config;
pub mod crdt;
pub mod env;
pub mod hash;
pub mod id;
pub mod layout;
pub mod limits;
pub mod map;
pub mod schema;
pub mod stamp;
pub mod telemetry;
