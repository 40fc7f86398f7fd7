//! Encoding of everything stored or sent: one format byte, then msgpack.
//!
//! A type's fields are written in order, without names. A new format version may append fields with
//! `#[serde(default)]`; anything else takes a new [`Format::VERSION`] and a [`Format::upgrade`]. A newer
//! format than this program knows is refused with an error that names both (design §11).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type with a stored form.
pub trait Format: Serialize + DeserializeOwned {
    /// What people call it, for errors.
    const NAME: &'static str;
    /// The version written today; never reused for another form.
    const VERSION: u8 = 1;

    /// Reads an older form. `body` is the msgpack behind the format byte.
    fn upgrade(version: u8, _body: &[u8]) -> Result<Self, CodecError> {
        Err(CodecError::UnknownFormat { what: Self::NAME, found: version, known: Self::VERSION })
    }
}

/// Why bytes could not be read back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CodecError {
    #[error(
        "{what}: format {found} is not known to this program, which reads up to format {known}; upgrade it"
    )]
    UnknownFormat { what: &'static str, found: u8, known: u8 },
    #[error("{what}: empty")]
    Empty { what: &'static str },
    #[error("{what}: damaged: {reason}")]
    Damaged { what: &'static str, reason: String },
}

/// Encodes `value` with its format byte.
pub fn encode<T: Format>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.push(T::VERSION);
    // Writing to memory fails only for types msgpack has no form for, which tests would show at once.
    #[expect(clippy::expect_used, reason = "in-memory encoding of our own plain types cannot fail")]
    rmp_serde::encode::write(&mut bytes, value).expect("stored types have a msgpack form");
    bytes
}

/// Decodes what [`encode`] wrote, now or in an older release.
pub fn decode<T: Format>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty { what: T::NAME })?;
    if version != T::VERSION {
        return T::upgrade(version, body);
    }
    rmp_serde::from_slice(body).map_err(|e| CodecError::Damaged { what: T::NAME, reason: e.to_string() })
}
