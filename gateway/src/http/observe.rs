//! What the server tells about each request: one hook, implemented by the telemetry of the daemon.

use std::time::Duration;

/// A request that is over: its last byte was sent, or the client went away.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The port's interface: `s3`, `k2v`, `web`, `admin`.
    pub api: &'static str,
    /// The operation, such as `GetObject`; `Unknown` if the request was refused before it was known.
    pub endpoint: &'static str,
    pub status: u16,
    /// From the request's head to the answer's head.
    pub latency: Duration,
    /// From the request's head to the last byte of the answer.
    pub duration: Duration,
    /// Bytes of the answer's body that were handed to the connection.
    pub bytes_sent: u64,
}

/// Receives what happens on a server; must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A request's head was read.
    fn started(&self, api: &'static str);
    /// The request is over. Called once for each `started`.
    fn finished(&self, request: &Finished);
}

/// Sees nothing.
pub struct NoObserver;

impl Observer for NoObserver {
    fn started(&self, _api: &'static str) {}
    fn finished(&self, _request: &Finished) {}
}

/// Put in a response's extensions by a handler: the name of the operation.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint(pub &'static str);
