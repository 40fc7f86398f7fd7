//! How a request can fail, and what that says about its effect.

use std::io;
use std::time::Duration;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: the request was never sent.
    #[error("cannot connect to {endpoint}: {source}")]
    Connect { endpoint: String, source: io::Error },
    /// The connection broke while the request was under way.
    #[error("connection to {endpoint} broke: {source}")]
    Transport { endpoint: String, source: hyper::Error },
    /// No complete answer in time.
    #[error("no complete answer from {endpoint} within {after:?}")]
    TimedOut { endpoint: String, after: Duration },
    /// The service answered with an error. `code` is S3's (`NoSuchKey`…), or made of the status where the answer
    /// carries none (as for HEAD).
    #[error("{status} {code}: {message}")]
    Service { status: u16, code: String, message: String },
    /// The service answered, but not as S3 does.
    #[error("malformed answer: {0}")]
    Malformed(String),
    /// The body is not the expected content.
    #[error("wrong content: {0}")]
    WrongContent(String),
    /// The request cannot be built from these inputs.
    #[error("cannot build the request: {0}")]
    Request(String),
}

/// What a failed write may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Surely nothing.
    None,
    /// It may have happened, or may still happen.
    Unknown,
}

impl Error {
    /// What a write that failed this way may have done.
    pub fn effect(&self) -> Effect {
        match self {
            // Refused with 4xx (412, 403, 404…): nothing was done. 408 is a time-out in the middle of things.
            Self::Service { status, .. } if (400..500).contains(status) && *status != 408 => Effect::None,
            Self::Connect { .. } | Self::Request(_) => Effect::None,
            _ => Effect::Unknown,
        }
    }

    /// S3's error code, if the service gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Service { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The object is not there (as opposed to: the request failed).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Service { status: 404, code, .. } if code == "NoSuchKey" || code == "NotFound")
    }

    /// A short name to count errors by.
    pub fn kind(&self) -> String {
        match self {
            Self::Connect { .. } => "connect".into(),
            Self::Transport { .. } => "transport".into(),
            Self::TimedOut { .. } => "timeout".into(),
            Self::Service { status, code, .. } => format!("{status} {code}"),
            Self::Malformed(_) => "malformed".into(),
            Self::WrongContent(_) => "wrong content".into(),
            Self::Request(_) => "request".into(),
        }
    }
}
