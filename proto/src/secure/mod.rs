//! The peer-security seam: a byte stream in, an authenticated byte stream and the peer's id out.
//!
//! The real version is [`tls`]; the simulator brings a plaintext one of its own, which no daemon can be
//! configured to use. Whether the peer belongs to the cluster is not decided here but by the greeting
//! ([`crate::hello`]), which is tied to this session through [`Secured::binding`].

pub mod tls;

use async_trait::async_trait;
use hayloft_common::env::BoxStream;
use hayloft_common::id::NodeId;

/// Makes streams secure. Has no time limit of its own: callers bound it.
#[async_trait]
pub trait Secure: Send + Sync + 'static {
    /// The side that dialled. With `expect`, any other peer is an error that names both.
    async fn client(&self, stream: BoxStream, expect: Option<NodeId>) -> Result<Secured, SecureError>;
    /// The side that accepted.
    async fn server(&self, stream: BoxStream) -> Result<Secured, SecureError>;
    /// This node's own id.
    fn local_id(&self) -> NodeId;
}

/// A stream whose other end proved to hold the key of `peer`.
pub struct Secured {
    pub stream: BoxStream,
    pub peer: NodeId,
    /// Equal on both ends of this session and on no other.
    pub binding: [u8; 32],
}

/// Why a stream could not be made secure.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    #[error(
        "expected node {expected}, but node {found} answered: its key was replaced, or the address is now another node's"
    )]
    WrongPeer { expected: NodeId, found: NodeId },
    #[error("TLS handshake failed: {0}; is there a Hayloft node of this cluster at that address?")]
    Handshake(#[from] std::io::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    #[error("the peer showed no certificate")]
    NoCertificate,
}
