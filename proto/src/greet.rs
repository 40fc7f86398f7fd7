//! Carries out TLS and the greeting on a fresh stream, within a time limit: both sides end up with a
//! connection, or both with a reason.

use crate::error::{Refusal, RpcError};
use crate::hello::{
    Agreed, Greeting, Kind, Member, Params, Session, Side, VERDICT_LEN, decode_verdict, encode_verdict,
};
use crate::limits::Limits;
use crate::secure::{Secure, SecureError};
use hayloft_common::env::BoxStream;
use hayloft_common::id::NodeId;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error(transparent)]
    Secure(#[from] SecureError),
    #[error("node {peer} refused this node: {reason}")]
    PeerRefused { peer: NodeId, reason: Refusal },
    #[error("this node refused node {peer}: {reason}")]
    WeRefused { peer: NodeId, reason: Refusal },
    #[error("node {peer} broke off the greeting: {source}")]
    Broken { peer: NodeId, source: io::Error },
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no address is known for this node")]
    NoAddress,
}

impl GreetError {
    /// As the outcome of a call that waited for the connection.
    pub(crate) fn to_rpc(&self) -> RpcError {
        match self {
            Self::PeerRefused { reason, .. } | Self::WeRefused { reason, .. } => RpcError::Refused(*reason),
            other => RpcError::Unreachable { sent: false, reason: other.to_string() },
        }
    }
}

/// A stream ready for frames.
pub(crate) struct Greeted {
    pub(crate) stream: BoxStream,
    pub(crate) peer: NodeId,
    pub(crate) agreed: Agreed,
}

/// The dialling side.
pub(crate) async fn dialled(
    stream: BoxStream,
    secure: &dyn Secure,
    member: &Member,
    expect: Option<NodeId>,
    kind: Kind,
    limits: &Limits,
) -> Result<Greeted, GreetError> {
    let work = async {
        let secured = secure.client(stream, expect).await?;
        let session = Session {
            side: Side::Dialled,
            local: secure.local_id(),
            peer: secured.peer,
            binding: secured.binding,
        };
        greet(secured.stream, member, session, kind, limits, None).await
    };
    bounded(work, limits.hello_timeout).await
}

/// The accepting side. With `refuse`, the peer is told that and nothing else.
pub(crate) async fn accepted(
    stream: BoxStream,
    secure: &dyn Secure,
    member: &Member,
    limits: &Limits,
    refuse: Option<Refusal>,
) -> Result<Greeted, GreetError> {
    let work = async {
        let secured = secure.server(stream).await?;
        let session = Session {
            side: Side::Accepted,
            local: secure.local_id(),
            peer: secured.peer,
            binding: secured.binding,
        };
        greet(secured.stream, member, session, Kind::Small, limits, refuse).await
    };
    bounded(work, limits.hello_timeout).await
}

async fn bounded(
    work: impl Future<Output = Result<Greeted, GreetError>>,
    limit: Duration,
) -> Result<Greeted, GreetError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(GreetError::Timeout(limit)))
}

async fn greet(
    mut stream: BoxStream,
    member: &Member,
    session: Session,
    kind: Kind,
    limits: &Limits,
    refuse: Option<Refusal>,
) -> Result<Greeted, GreetError> {
    let peer = session.peer;
    let broken = |source| GreetError::Broken { peer, source };
    let ours = Greeting::make(member, &session, kind, Params::of(limits));
    stream.write_all(&ours.encode()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let judged = match read_greeting(&mut stream).await.map_err(broken)? {
        Ok(theirs) => theirs.judge(member, &session, kind),
        Err(refusal) => Err(refusal),
    };
    let judged = match refuse {
        Some(refusal) => judged.and(Err(refusal)),
        None => judged,
    };
    stream.write_all(&encode_verdict(judged.map(|_| ()))).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    match judged {
        Err(reason) => {
            part(stream).await;
            Err(GreetError::WeRefused { peer, reason })
        }
        Ok(agreed) => {
            let mut verdict = [0; VERDICT_LEN];
            stream.read_exact(&mut verdict).await.map_err(broken)?;
            match decode_verdict(verdict) {
                Ok(Ok(())) => Ok(Greeted { stream, peer, agreed }),
                Ok(Err(reason)) => Err(GreetError::PeerRefused { peer, reason }),
                Err(reason) => Err(GreetError::WeRefused { peer, reason }),
            }
        }
    }
}

/// Reads not one byte more than the greeting. The inner error: it is no greeting.
async fn read_greeting(stream: &mut BoxStream) -> io::Result<Result<Greeting, Refusal>> {
    let mut bytes = Vec::with_capacity(128);
    loop {
        let missing = match Greeting::missing(&bytes) {
            Ok(0) => return Ok(Greeting::decode(&bytes)),
            Ok(missing) => missing,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let had = (&mut *stream).take(missing as u64).read_buf(&mut bytes).await?;
        if had == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Closes after a refusal. Waits a moment for the peer to close too: closing a socket with unread bytes
/// would reset it, and the peer might never read the reason.
async fn part(mut stream: BoxStream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut ignored = [0; 256];
        let mut total = 0;
        while total < 4096 {
            match stream.read(&mut ignored).await? {
                0 => break,
                count => total += count,
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
}
