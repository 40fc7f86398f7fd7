//! Sizes, counts and times of the transport, and how they relate (checked when compiled).
//!
//! The constants are caps that hold for every release; [`Limits`] is what one process is set to. The
//! simulator and the tests draw some of them very small.

use std::time::Duration;

/// Largest head of a request or an answer, in bytes. A frame is larger by at most [`FRAME_OVERHEAD`].
pub const MAX_HEAD: u32 = 4 << 20;
/// Largest data frame that is accepted, in bytes.
pub const MAX_DATA_FRAME: u32 = 256 << 10;
/// What a frame may hold besides a head or data: its header, method, deadline, trace context, length.
pub const FRAME_OVERHEAD: u32 = 64;
/// Largest greeting, in bytes: one release may append fields to it.
pub const MAX_GREETING: usize = 1024;
/// Longest text of an error that travels, in bytes.
pub const MAX_ERROR_TEXT: usize = 1024;
/// Frames up to this many bytes are copied out of the read buffer, so that keeping one does not keep the
/// whole buffer alive; they are also copied behind their header when written, to make few segments.
pub const SMALL_FRAME: usize = 4 << 10;
/// Pongs waiting to be written before the peer is told off for flooding.
pub const MAX_WAITING_PONGS: usize = 32;

const _: () = assert!(hayloft_common::limits::MAX_ROW_SIZE < MAX_HEAD as usize);
const _: () = assert!(SMALL_FRAME < MAX_DATA_FRAME as usize && MAX_DATA_FRAME < MAX_HEAD);
const _: () = assert!(MAX_ERROR_TEXT < SMALL_FRAME);

/// What one process allows, per connection unless said otherwise.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest head accepted, at most [`MAX_HEAD`] bytes.
    pub max_head: u32,
    /// Data frames are cut to this many bytes: 1..=[`MAX_DATA_FRAME`].
    pub data_frame: u32,
    /// Bytes of a body the peer may send unasked: a block fits, so that it costs no extra round trip.
    pub stream_window: u32,
    /// Bytes on the way that all bodies together may be granted beyond `stream_window` each:
    /// 1 Gbit/s × 200 ms = 25 MB.
    pub body_budget: u32,
    /// Calls in flight that the peer may have.
    pub max_streams: u32,
    /// Bytes of small frames waiting to be written, and calls waiting for a stream, before new calls are
    /// told [`crate::error::RpcError::Overloaded`].
    pub max_queued_bytes: usize,
    pub max_queued_calls: usize,
    /// Calls a server runs at the same time: of one peer, and of all.
    pub max_calls_per_peer: usize,
    pub max_calls: usize,
    /// Connections a server keeps open.
    pub max_connections: usize,
    /// How often a quiet connection is probed, and the silence after which it is dead.
    pub ping_interval: Duration,
    pub dead_after: Duration,
    /// A call on a connection that was quiet for this long sends a ping along, so that silence shows
    /// within a round trip.
    pub probe_after: Duration,
    /// Time for TCP and for TLS with the greeting.
    pub connect_timeout: Duration,
    pub hello_timeout: Duration,
    /// A peer's further addresses are tried this much later each.
    pub address_stagger: Duration,
    /// First and longest wait between attempts to reconnect (doubling, with jitter).
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_head: MAX_HEAD,
            data_frame: 128 << 10,
            stream_window: 2 << 20,
            body_budget: 32 << 20,
            max_streams: 1024,
            max_queued_bytes: 64 << 20,
            max_queued_calls: 4096,
            max_calls_per_peer: 2048,
            max_calls: 8192,
            max_connections: 4096,
            ping_interval: Duration::from_secs(3),
            dead_after: Duration::from_secs(10),
            probe_after: Duration::from_millis(250),
            connect_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            address_stagger: Duration::from_millis(300),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
        }
    }
}
