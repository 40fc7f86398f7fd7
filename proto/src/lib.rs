//! How peers talk: identity, TLS, greeting, framing, many calls on one connection, a pool of peers and
//! the server side; and on top of them the messages, and calls to several nodes at once.
//!
//! The transport (everything but [`message`], [`cluster`], [`fanout`], [`agree`] and [`membership`]) knows nothing of
//! message types: a call is a method number, a head and a body; so is its answer.
//! Pure (bytes in, bytes out): [`frame`], [`conn`], [`hello`]. I/O around them: [`client`], [`server`].
//!
//! Protocol versions, one line each:
//! - 1: the first.

/// Oldest and newest protocol version this release speaks; the newest both peers know is used.
pub const PROTOCOL_MIN: u16 = 1;
pub const PROTOCOL_MAX: u16 = 1;

pub mod admin;
pub mod agree;
mod answerer;
pub mod body;
mod caller;
pub mod client;
pub mod cluster;
pub mod conn;
pub mod error;
pub mod fanout;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod greet;
pub mod hello;
pub mod identity;
pub mod late;
pub mod limits;
mod link;
pub mod membership;
pub mod message;
pub mod secure;
pub mod server;
pub mod stats;
pub mod trace;
mod watched;
