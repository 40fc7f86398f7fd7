//! What a call can end with when it does not succeed: reasons as data, whether another try may help, and
//! who is at fault. The wire form is here too ([`RpcError::encode`]); unknown reasons of a newer peer are
//! kept as numbers, never misread.

use crate::limits::MAX_ERROR_TEXT;
use bytes::Bytes;
use hayloft_common::codec::{self, CodecError, Format};
use serde::{Deserialize, Serialize};

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// No connection, or it broke. `sent`: the peer may have received the call and carried it out.
    #[error("peer unreachable: {reason}")]
    Unreachable { sent: bool, reason: String },
    /// The deadline passed; the peer may have carried out the call.
    #[error("no answer within the deadline")]
    Timeout,
    /// Too many calls wait or run, here or at the peer; it was not carried out.
    #[error("overloaded: {what}")]
    Overloaded { what: String },
    /// One side refused the other in the greeting.
    #[error("connection refused in the greeting: {0}")]
    Refused(Refusal),
    /// The caller's layout epoch is behind the peer's; its layout is in the answer (encoded).
    #[error("the layout epoch of this call is too old")]
    StaleEpoch { layout: Bytes },
    /// The peer's handler answered with an error.
    #[error("peer answered {code:?}: {message}")]
    Remote { code: RemoteCode, message: String },
}

impl From<crate::message::MessageError> for RpcError {
    fn from(error: crate::message::MessageError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// What went wrong at the peer. The numbers are on the wire: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteCode {
    NotFound,
    NoSpace,
    /// The disk concerned takes no writes for now.
    ReadOnlyDisk,
    Io,
    /// Stored data failed its checksum.
    Corrupt,
    /// The call makes no sense: a bug, or an attempt.
    BadRequest,
    Internal,
    /// The method or an option is not known to this peer (it may be older).
    Unsupported,
    ShuttingDown,
    /// The peer does not hold what is asked for (yet): not its partition, not synced.
    NotReady,
    /// A precondition of the call does not hold.
    Conflict,
    /// The peer may not do this: its role does not allow it.
    Forbidden,
    /// The body ended early, was too long, or failed underway.
    BodyFailed,
    /// A code of a newer release.
    Unknown(u16),
}

impl RemoteCode {
    const KNOWN: [(Self, u16); 13] = [
        (Self::NotFound, 1),
        (Self::NoSpace, 2),
        (Self::ReadOnlyDisk, 3),
        (Self::Io, 4),
        (Self::Corrupt, 5),
        (Self::BadRequest, 6),
        (Self::Internal, 7),
        (Self::Unsupported, 8),
        (Self::ShuttingDown, 9),
        (Self::NotReady, 10),
        (Self::Conflict, 11),
        (Self::Forbidden, 12),
        (Self::BodyFailed, 13),
    ];

    fn number(self) -> u16 {
        match self {
            Self::Unknown(number) => number,
            known => Self::KNOWN.iter().find(|(code, _)| *code == known).map_or(0, |(_, n)| *n),
        }
    }

    fn from_number(number: u16) -> Self {
        Self::KNOWN.iter().find(|(_, n)| *n == number).map_or(Self::Unknown(number), |(code, _)| *code)
    }
}

/// Why one side refused the other in the greeting. The numbers are on the wire: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not a Hayloft node: its greeting has the wrong magic")]
    WrongMagic,
    #[error("no common protocol version: upgrade the older side first to a release in between")]
    WrongProtocol,
    #[error("node of another cluster")]
    WrongCluster,
    #[error("wrong rpc_secret: both sides need the same one")]
    WrongSecret,
    #[error("malformed greeting")]
    Malformed,
    #[error("shutting down")]
    ShuttingDown,
    #[error("too many connections")]
    TooManyConnections,
    #[error("reason {0}, unknown to this release")]
    Unknown(u8),
}

impl Refusal {
    const KNOWN: [(Self, u8); 7] = [
        (Self::WrongMagic, 1),
        (Self::WrongProtocol, 2),
        (Self::WrongCluster, 3),
        (Self::WrongSecret, 4),
        (Self::Malformed, 5),
        (Self::ShuttingDown, 6),
        (Self::TooManyConnections, 7),
    ];

    /// The number on the wire; 0 is never a refusal.
    pub fn number(self) -> u8 {
        match self {
            Self::Unknown(number) => number,
            known => Self::KNOWN.iter().find(|(r, _)| *r == known).map_or(u8::MAX, |(_, n)| *n),
        }
    }

    pub(crate) fn from_number(number: u8) -> Self {
        Self::KNOWN.iter().find(|(_, n)| *n == number).map_or(Self::Unknown(number), |(r, _)| *r)
    }
}

/// Whom an error should be held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This node sent something wrong or outdated.
    Caller,
    /// The peer, or a disk of it.
    Peer,
    /// The way between, or a peer that does not answer.
    Network,
    /// Nobody: that is how things are (not found, a conflict).
    Nobody,
}

impl RpcError {
    /// A handler's error.
    pub fn remote(code: RemoteCode, message: impl Into<String>) -> Self {
        Self::Remote { code, message: message.into() }
    }

    /// [`RemoteCode::BadRequest`] with a text.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::remote(RemoteCode::BadRequest, message)
    }

    /// [`RemoteCode::Internal`] with a text.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::remote(RemoteCode::Internal, message)
    }

    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self::Unreachable { sent: true, reason: reason.into() }
    }

    /// Whether the peer says that a precondition does not hold.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Remote { code: RemoteCode::Conflict, .. })
    }

    /// Whether the same call may succeed at another replica, or here later. ([`Self::StaleEpoch`] is not:
    /// the caller has to take the newer layout first.)
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout | Self::Overloaded { .. } | Self::Refused(_) => true,
            Self::StaleEpoch { .. } => false,
            Self::Remote { code, .. } => match code {
                RemoteCode::NotFound
                | RemoteCode::NoSpace
                | RemoteCode::ReadOnlyDisk
                | RemoteCode::Io
                | RemoteCode::Corrupt
                | RemoteCode::Internal
                | RemoteCode::ShuttingDown
                | RemoteCode::NotReady
                | RemoteCode::BodyFailed => true,
                RemoteCode::BadRequest
                | RemoteCode::Unsupported
                | RemoteCode::Conflict
                | RemoteCode::Forbidden
                | RemoteCode::Unknown(_) => false,
            },
        }
    }

    /// Whether the peer is fine but its copy of the data asked for is missing or damaged: another replica
    /// should be asked, and this one repaired.
    pub fn is_bad_copy(&self) -> bool {
        matches!(self, Self::Remote { code: RemoteCode::NotFound | RemoteCode::Corrupt, .. })
    }

    /// Whether the peer may have carried out the call although it ended with this error.
    pub fn maybe_done(&self) -> bool {
        match self {
            Self::Unreachable { sent, .. } => *sent,
            Self::Timeout => true,
            Self::Overloaded { .. } | Self::Refused(_) | Self::StaleEpoch { .. } => false,
            Self::Remote { code, .. } => {
                matches!(code, RemoteCode::Internal | RemoteCode::Io | RemoteCode::Unknown(_))
            }
        }
    }

    /// Whom to hold it against: the peer's standing, an alarm, or a bug here.
    pub fn who_is_at_fault(&self) -> Fault {
        match self {
            Self::Unreachable { .. } | Self::Timeout | Self::Refused(_) => Fault::Network,
            Self::Overloaded { .. } => Fault::Peer,
            Self::StaleEpoch { .. } => Fault::Caller,
            Self::Remote { code, .. } => match code {
                RemoteCode::BadRequest | RemoteCode::Unsupported | RemoteCode::Forbidden => Fault::Caller,
                RemoteCode::NotFound | RemoteCode::Conflict | RemoteCode::NotReady => Fault::Nobody,
                RemoteCode::BodyFailed => Fault::Network,
                _ => Fault::Peer,
            },
        }
    }

    /// The wire form: a format byte, then msgpack.
    pub fn encode(&self) -> Bytes {
        let (kind, code, message, data) = match self {
            Self::Unreachable { sent, reason } => (1, u16::from(*sent), reason.as_str(), Bytes::new()),
            Self::Timeout => (2, 0, "", Bytes::new()),
            Self::Overloaded { what } => (3, 0, what.as_str(), Bytes::new()),
            Self::Refused(refusal) => (4, u16::from(refusal.number()), "", Bytes::new()),
            Self::StaleEpoch { layout } => (5, 0, "", layout.clone()),
            Self::Remote { code, message } => (6, code.number(), message.as_str(), Bytes::new()),
        };
        let message = truncate(message).to_owned();
        codec::encode(&WireError { kind, code, message, data }).into()
    }

    /// Reads the wire form.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let WireError { kind, code, message, data } = codec::decode(bytes)?;
        Ok(match kind {
            1 => Self::Unreachable { sent: code != 0, reason: message },
            2 => Self::Timeout,
            3 => Self::Overloaded { what: message },
            4 => Self::Refused(Refusal::from_number(code.to_le_bytes()[0])),
            5 => Self::StaleEpoch { layout: data },
            6 => Self::Remote { code: RemoteCode::from_number(code), message },
            // A kind of a newer release: nothing is known about it but its text.
            _ => Self::Remote { code: RemoteCode::Unknown(u16::from(kind)), message },
        })
    }
}

fn truncate(text: &str) -> &str {
    let mut end = text.len().min(MAX_ERROR_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[derive(Serialize, Deserialize)]
struct WireError {
    kind: u8,
    code: u16,
    message: String,
    data: Bytes,
}

impl Format for WireError {
    const NAME: &'static str = "an RPC error";
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn one_of_each() -> Vec<RpcError> {
        vec![
            RpcError::Unreachable { sent: true, reason: "connection reset".into() },
            RpcError::Unreachable { sent: false, reason: String::new() },
            RpcError::Timeout,
            RpcError::Overloaded { what: "2048 calls".into() },
            RpcError::Refused(Refusal::WrongSecret),
            RpcError::StaleEpoch { layout: Bytes::from_static(b"layout") },
            RpcError::remote(RemoteCode::NoSpace, "disk 2 is full"),
            RpcError::remote(RemoteCode::Unknown(999), "from the future"),
        ]
    }

    #[test]
    fn every_error_survives_the_wire() {
        for error in one_of_each() {
            assert_eq!(RpcError::decode(&error.encode()).unwrap(), error);
        }
        for (code, _) in RemoteCode::KNOWN {
            assert_eq!(RemoteCode::from_number(code.number()), code);
            assert_ne!(code.number(), 0);
        }
        for (refusal, _) in Refusal::KNOWN {
            assert_eq!(Refusal::from_number(refusal.number()), refusal);
            assert_ne!(refusal.number(), 0);
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let error = RpcError::internal("é".repeat(MAX_ERROR_TEXT));
        let RpcError::Remote { message, .. } = RpcError::decode(&error.encode()).unwrap() else { panic!() };
        assert_eq!(message.len(), MAX_ERROR_TEXT);
    }

    #[test]
    fn the_wire_form_never_changes() {
        let golden = include_str!("../tests/golden/errors_v1.txt");
        let now: String = one_of_each().iter().map(|e| hex::encode(e.encode()) + "\n").collect();
        assert_eq!(now, golden);
    }
}
