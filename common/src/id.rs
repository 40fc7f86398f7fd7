//! Identifiers as newtypes: they cannot be confused, print as lower-case hex and parse back.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not {what}: expected {digits} hexadecimal digits")]
pub struct IdError {
    text: String,
    what: &'static str,
    digits: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// The first eight hex digits, for logs and tables.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError {
                    text: text.chars().take(100).collect(),
                    what: $what,
                    digits: 2 * $len,
                })?;
                Ok(Self(bytes))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                Ok(Self(bytes.try_into()?))
            }
        }

        impl Serialize for $name {
            /// Hex text in human-readable formats (JSON), raw bytes elsewhere (msgpack).
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                use serde::de::Error as _;
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(D::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<$len>::deserialize(d)?;
                    Ok(Self(bytes.into_array()))
                }
            }
        }
    };
}

hex_id!(
    /// A node: the 32 bytes of its Ed25519 public key.
    NodeId, 32, "a node id"
);
hex_id!(
    /// A cluster, derived from its RPC secret: nodes of different clusters never talk.
    ClusterId, 16, "a cluster id"
);
hex_id!(
    /// A bucket; random, so that a deleted and recreated name is another bucket.
    BucketId, 16, "a bucket id"
);
hex_id!(
    /// One stored generation of an object, or of one part of an upload; random.
    VersionId, 16, "a version id"
);
hex_id!(
    /// A multipart upload; random. The object it completes to takes it as version id.
    UploadId, 16, "an upload id"
);

impl From<UploadId> for VersionId {
    fn from(id: UploadId) -> Self {
        Self(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_is_the_inverse_of_display_and_bad_text_is_named() {
        let id = BucketId([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let error = "xyz".parse::<BucketId>().unwrap_err();
        assert_eq!(error.to_string(), "`xyz` is not a bucket id: expected 32 hexadecimal digits");
    }

    #[test]
    fn msgpack_and_json_round_trip() {
        let id = NodeId([9; 32]);
        let packed = rmp_serde::to_vec(&id).unwrap();
        assert_eq!(packed.len(), 34);
        assert_eq!(rmp_serde::from_slice::<NodeId>(&packed).unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);
    }
}
