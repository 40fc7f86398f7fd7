//! Who sent a request, and is its body what was signed: AWS signature version 4 in headers, in presigned
//! URLs and in chunked bodies. Shared by S3 and K2V (they differ in the service name).
//!
//! Parsing, canonical forms and signing are pure; only [`verify::authenticate`] waits, for the lookup of
//! the key. Time is the caller's. Nothing of a request is believed before its signature holds.

pub mod canonical;
pub mod chunked;
pub mod error;
pub mod payload;
pub mod presigned;
pub mod sigv4;
pub mod verify;

pub use error::AuthError;
pub use payload::Payload;
pub use verify::{AuthConfig, Caller, KeyLookup, RequestHead, authenticate};
