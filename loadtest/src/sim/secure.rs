//! Peer security of the simulator: both sides state their id, in plain text.
//!
//! TLS stays outside, since its library draws its own randomness and a run would not repeat byte for byte. The
//! greeting after it (`proto::hello`) runs inside. This type lives here only, so no daemon can be set to use it.

use async_trait::async_trait;
use hayloft_common::env::{BoxStream, Env};
use hayloft_common::id::NodeId;
use hayloft_proto::secure::{Secure, SecureError, Secured};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The identity of one simulated node.
pub(super) struct PlainSecure {
    pub(super) id: NodeId,
    pub(super) env: Env,
}

impl PlainSecure {
    /// Sends our id and a nonce, reads theirs; the binding is made of both in the dialler's order.
    async fn greet(&self, mut stream: BoxStream, dialled: bool) -> Result<Secured, SecureError> {
        let nonce: [u8; 16] = self.env.random_bytes();
        let ours = [&self.id.0[..], &nonce].concat();
        stream.write_all(&ours).await?;
        stream.flush().await?;
        let mut theirs = [0; 48];
        stream.read_exact(&mut theirs).await?;
        let mut peer = NodeId::default();
        peer.0.copy_from_slice(&theirs[..32]);
        let both = if dialled { [&ours[..], &theirs].concat() } else { [&theirs[..], &ours].concat() };
        Ok(Secured { stream, peer, binding: *blake3::hash(&both).as_bytes() })
    }
}

#[async_trait]
impl Secure for PlainSecure {
    async fn client(&self, stream: BoxStream, expect: Option<NodeId>) -> Result<Secured, SecureError> {
        let secured = self.greet(stream, true).await?;
        match expect {
            Some(expected) if expected != secured.peer => {
                Err(SecureError::WrongPeer { expected, found: secured.peer })
            }
            _ => Ok(secured),
        }
    }

    async fn server(&self, stream: BoxStream) -> Result<Secured, SecureError> {
        self.greet(stream, false).await
    }

    fn local_id(&self) -> NodeId {
        self.id
    }
}
