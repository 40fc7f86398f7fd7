//! What every HTTP port of the gateway shares: the server, bodies, and the plain rules of HTTP that S3
//! builds on (ranges, conditions, dates, query strings, host names).
//!
//! Knows nothing of signatures, buckets' contents or quorums. All but `server`, `tls`, `io` and `body`
//! is made of plain functions.

pub mod body;
pub mod conditional;
pub mod date;
pub mod io;
pub mod observe;
pub mod percent;
pub mod query;
pub mod range;
pub mod server;
pub mod tls;
pub mod vhost;
