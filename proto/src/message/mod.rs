//! What nodes say to one another: one type per request, with its reply, number and class.
//!
//! A request travels as a [`Head`]: the sender's layout epoch, then the message. Numbers are never reused;
//! fields may be appended with `#[serde(default)]` (a new minor form), anything else takes a new number, so
//! that version N talks to N−1. Who serves a message: [`crate::server::Handler`] of the storage node.

pub mod block;
pub mod membership;
pub mod operate;
pub mod sync;
pub mod table;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Which of the two connections to a peer a call uses, so that bulk data never delays small calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Small,
    Bulk,
}

/// A request and how it is to be handled.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names the request on the wire; never reused.
    const METHOD: u16;
    /// For logs, metrics and spans.
    const NAME: &'static str;
    const CLASS: Class;
    /// Whether a node refuses it when the sender's layout epoch is older than its own (design §3).
    const CHECKS_EPOCH: bool;
    /// Whether asking twice does no more than asking once, so that it may be retried and hedged.
    const IDEMPOTENT: bool = true;
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// What stands before a message's body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head<M> {
    pub epoch: u64,
    pub message: M,
}

/// A message that can't be read: an unknown form, or damage.
#[derive(Debug, thiserror::Error)]
#[error("{what}: unreadable message: {reason}")]
pub struct MessageError {
    pub what: &'static str,
    pub reason: String,
}

/// Encodes a request with the sender's epoch.
pub fn encode_request<M: Message>(epoch: u64, message: &M) -> Bytes {
    #[derive(Serialize)]
    struct Borrowed<'a, M>(u64, &'a M);
    encode(&Borrowed(epoch, message))
}

/// Reads a request.
pub fn decode_request<M: Message>(bytes: &[u8]) -> Result<Head<M>, MessageError> {
    decode(M::NAME, bytes)
}

/// Encodes a reply.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut out = Vec::with_capacity(128);
    #[expect(clippy::expect_used, reason = "in-memory encoding of our own plain types cannot fail")]
    rmp_serde::encode::write(&mut out, value).expect("messages have a msgpack form");
    out.into()
}

/// Reads a reply; `what` names it in errors.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, MessageError> {
    rmp_serde::from_slice(bytes).map_err(|e| MessageError { what, reason: e.to_string() })
}

/// Implements [`Message`]: `message!(Type => Reply, number, class, epoch check)`.
macro_rules! message {
    ($type:ty => $reply:ty, $method:literal, $class:ident, epoch: $epoch:literal) => {
        impl $crate::message::Message for $type {
            const METHOD: u16 = $method;
            const NAME: &'static str = stringify!($type);
            const CLASS: $crate::message::Class = $crate::message::Class::$class;
            const CHECKS_EPOCH: bool = $epoch;
            type Reply = $reply;
        }
    };
}
pub(crate) use message;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::table::{ReadRow, WriteMode};
    use hayloft_common::schema::TableId;

    #[test]
    fn a_request_reads_back_and_damage_is_named() {
        let request = ReadRow { table: TableId::Object, partition_key: vec![1], sort_key: vec![2, 3] };
        let bytes = encode_request(7, &request);
        let head: Head<ReadRow> = decode_request(&bytes).unwrap();
        assert_eq!((head.epoch, head.message.sort_key), (7, vec![2, 3]));
        let error = decode_request::<ReadRow>(&bytes[..3]).unwrap_err();
        assert!(error.to_string().starts_with("ReadRow"));
        assert_eq!(decode::<WriteMode>("mode", &encode(&WriteMode::Merge)).unwrap(), WriteMode::Merge);
    }
}
