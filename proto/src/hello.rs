//! The greeting after TLS: both sides say at once which protocol they speak, which cluster they belong to
//! and prove that they know its secret; then each tells the other its verdict. Bytes in, bytes out, no I/O.
//!
//! ```text
//! greeting: magic 8 | length u16 | min u16 | max u16 | cluster 16 | role u8 | kind u8
//!           | max head u32 | stream window u32 | max streams u32 | max data frame u32 | proof 32 | ignored…
//! verdict:  "HV" | code u8 (0 = welcome, else a Refusal) | 0
//! ```
//!
//! The proof is a keyed hash over the TLS session's binding, the side and both node ids: it can be neither
//! replayed in another session nor reflected. Protocol N talks to N−1: the highest version both know is
//! taken. Fields may be appended; what is longer than known is ignored.

use crate::error::Refusal;
use crate::limits::{Limits, MAX_DATA_FRAME, MAX_GREETING, MAX_HEAD};
use hayloft_common::id::{ClusterId, NodeId};
use std::str::FromStr;

const MAGIC: &[u8; 8] = b"HAYLOFT\n";
/// Bytes before the fields: magic and length.
const PREFIX: usize = 10;
/// Bytes of the fields of the first release.
const FIELDS: usize = 2 + 2 + 16 + 1 + 1 + 16 + 32;
/// Bytes of a verdict.
pub const VERDICT_LEN: usize = 4;

/// Shared by all nodes of a cluster; whoever knows it belongs to the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcSecret([u8; 32]);

/// A text is not an RPC secret (it is not shown, it may be one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rpc_secret must be 64 hexadecimal digits (make one with `openssl rand -hex 32`)")]
pub struct SecretError;

impl RpcSecret {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The cluster that this secret makes.
    pub fn cluster_id(&self) -> ClusterId {
        let hash = blake3::keyed_hash(&self.0, b"hayloft cluster id");
        let mut id = [0; ClusterId::LEN];
        id.copy_from_slice(&hash.as_bytes()[..ClusterId::LEN]);
        ClusterId(id)
    }
}

impl FromStr for RpcSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| SecretError)?;
        Ok(Self(bytes))
    }
}

impl std::fmt::Debug for RpcSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RpcSecret(hidden)")
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Storage,
    Gateway,
}

/// What a connection is for: bulk bodies must not delay small calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Kind {
    #[default]
    Small,
    Bulk,
}

/// What the receiving side of a connection allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    pub max_head: u32,
    /// Bytes of a body that may be sent without credit.
    pub stream_window: u32,
    pub max_streams: u32,
    pub max_data_frame: u32,
}

impl Params {
    pub fn of(limits: &Limits) -> Self {
        Self {
            max_head: limits.max_head.min(MAX_HEAD),
            stream_window: limits.stream_window,
            max_streams: limits.max_streams,
            max_data_frame: MAX_DATA_FRAME,
        }
    }
}

/// How a node introduces itself.
#[derive(Debug, Clone)]
pub struct Member {
    pub secret: RpcSecret,
    pub cluster: ClusterId,
    pub role: Role,
    /// Oldest and newest protocol version spoken.
    pub protocol: (u16, u16),
}

impl Member {
    /// A node of the secret's cluster, speaking what this release speaks.
    pub fn new(secret: RpcSecret, role: Role) -> Self {
        let cluster = secret.cluster_id();
        Self { secret, cluster, role, protocol: (crate::PROTOCOL_MIN, crate::PROTOCOL_MAX) }
    }
}

/// Which end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Dialled,
    Accepted,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Dialled => Self::Accepted,
            Self::Accepted => Self::Dialled,
        }
    }
}

/// One secured session, as one side sees it.
#[derive(Debug, Clone)]
pub struct Session {
    pub side: Side,
    pub local: NodeId,
    pub peer: NodeId,
    pub binding: [u8; 32],
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub protocol: u16,
    pub role: Role,
    /// As the dialling side wants it.
    pub kind: Kind,
    /// What the peer allows us.
    pub params: Params,
}

/// A decoded greeting, not judged yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    pub min: u16,
    pub max: u16,
    pub cluster: ClusterId,
    pub role: Role,
    pub kind: Kind,
    pub params: Params,
    pub proof: [u8; 32],
}

impl Greeting {
    /// What `member` says in `session`.
    pub fn make(member: &Member, session: &Session, kind: Kind, params: Params) -> Self {
        Self {
            min: member.protocol.0,
            max: member.protocol.1,
            cluster: member.cluster,
            role: member.role,
            kind,
            params,
            proof: proof(&member.secret, &session.binding, session.side, session.local, session.peer),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PREFIX + FIELDS);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(FIELDS as u16).to_be_bytes());
        out.extend_from_slice(&self.min.to_be_bytes());
        out.extend_from_slice(&self.max.to_be_bytes());
        out.extend_from_slice(&self.cluster.0);
        out.push(match self.role {
            Role::Storage => 1,
            Role::Gateway => 2,
        });
        out.push(match self.kind {
            Kind::Small => 1,
            Kind::Bulk => 2,
        });
        for number in [
            self.params.max_head,
            self.params.stream_window,
            self.params.max_streams,
            self.params.max_data_frame,
        ] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.proof);
        out
    }

    /// How many bytes of a greeting are still missing after `bytes`: 0 when it is complete. Garbage is
    /// refused at its first wrong byte, so that nobody waits for more of it.
    pub fn missing(bytes: &[u8]) -> Result<usize, Refusal> {
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(Refusal::WrongMagic);
        }
        let Some(length) = bytes.get(MAGIC.len()..PREFIX) else { return Ok(PREFIX - bytes.len()) };
        let length = usize::from(length[0]) << 8 | usize::from(length[1]);
        if !(FIELDS..=MAX_GREETING - PREFIX).contains(&length) {
            return Err(Refusal::Malformed);
        }
        Ok((PREFIX + length).saturating_sub(bytes.len()))
    }

    /// Reads a complete greeting.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if Self::missing(bytes)? != 0 {
            return Err(Refusal::Malformed);
        }
        let mut fields = Fields(&bytes[PREFIX..]);
        let (min, max) = (fields.u16()?, fields.u16()?);
        let cluster = ClusterId(fields.take()?);
        let [role, kind] = fields.take()?;
        let role = match role {
            1 => Role::Storage,
            2 => Role::Gateway,
            _ => return Err(Refusal::Malformed),
        };
        let kind = match kind {
            1 => Kind::Small,
            2 => Kind::Bulk,
            _ => return Err(Refusal::Malformed),
        };
        let params = Params {
            max_head: fields.u32()?,
            stream_window: fields.u32()?,
            max_streams: fields.u32()?,
            max_data_frame: fields.u32()?,
        };
        let sane = params.max_data_frame > 0 && params.stream_window > 0 && params.max_streams > 0;
        if !sane || min > max {
            return Err(Refusal::Malformed);
        }
        Ok(Self { min, max, cluster, role, kind, params, proof: fields.take()? })
    }

    /// Whether this greeting of the peer is acceptable. `kind` is what the dialling side wants.
    pub fn judge(&self, member: &Member, session: &Session, kind: Kind) -> Result<Agreed, Refusal> {
        let protocol = self.max.min(member.protocol.1);
        if protocol < self.min.max(member.protocol.0) {
            return Err(Refusal::WrongProtocol);
        }
        let side = session.side.other();
        let expected = proof(&member.secret, &session.binding, side, session.peer, session.local);
        // blake3's comparison takes the same time wherever they differ.
        if blake3::Hash::from_bytes(expected) != blake3::Hash::from_bytes(self.proof) {
            return Err(Refusal::WrongSecret);
        }
        if self.cluster != member.cluster {
            return Err(Refusal::WrongCluster);
        }
        let kind = if session.side == Side::Dialled { kind } else { self.kind };
        Ok(Agreed { protocol, role: self.role, kind, params: self.params })
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Refusal::Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.take().map(u32::from_be_bytes)
    }
}

fn proof(secret: &RpcSecret, binding: &[u8; 32], side: Side, speaker: NodeId, listener: NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    hasher.update(b"hayloft greeting proof");
    hasher.update(binding);
    hasher.update(match side {
        Side::Dialled => b"d",
        Side::Accepted => b"a",
    });
    hasher.update(&speaker.0);
    hasher.update(&listener.0);
    *hasher.finalize().as_bytes()
}

/// The last word of the handshake.
pub fn encode_verdict(verdict: Result<(), Refusal>) -> [u8; VERDICT_LEN] {
    [b'H', b'V', verdict.err().map_or(0, Refusal::number), 0]
}

/// Reads the peer's last word. The outer error: it is no verdict at all.
pub fn decode_verdict(bytes: [u8; VERDICT_LEN]) -> Result<Result<(), Refusal>, Refusal> {
    match bytes {
        [b'H', b'V', 0, _] => Ok(Ok(())),
        [b'H', b'V', code, _] => Ok(Err(Refusal::from_number(code))),
        _ => Err(Refusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(secret: u8) -> Member {
        Member::new(RpcSecret::new([secret; 32]), Role::Storage)
    }

    fn sessions() -> (Session, Session) {
        let (a, b) = (NodeId([1; 32]), NodeId([2; 32]));
        let binding = [9; 32];
        (
            Session { side: Side::Dialled, local: a, peer: b, binding },
            Session { side: Side::Accepted, local: b, peer: a, binding },
        )
    }

    fn params() -> Params {
        Params::of(&Limits::default())
    }

    /// What the accepting member answers to the dialling one.
    fn meet(dialling: &Member, accepting: &Member) -> Result<Agreed, Refusal> {
        let (a, b) = sessions();
        let greeting = Greeting::make(dialling, &a, Kind::Bulk, params());
        Greeting::decode(&greeting.encode())?.judge(accepting, &b, Kind::Small)
    }

    #[test]
    fn members_agree_on_the_highest_common_protocol() {
        let mut new = member(1);
        new.protocol = (3, 4);
        let mut old = member(1);
        old.protocol = (2, 3);
        let agreed = meet(&new, &old).unwrap();
        assert_eq!((agreed.protocol, agreed.kind), (3, Kind::Bulk));
        old.protocol = (1, 2);
        assert_eq!(meet(&new, &old), Err(Refusal::WrongProtocol));
        assert_eq!(meet(&old, &new), Err(Refusal::WrongProtocol));
    }

    #[test]
    fn another_secret_or_cluster_is_refused() {
        assert_eq!(meet(&member(1), &member(2)), Err(Refusal::WrongSecret));
        let other = Member { cluster: ClusterId([7; 16]), ..member(1) };
        assert_eq!(meet(&other, &member(1)), Err(Refusal::WrongCluster));
    }

    #[test]
    fn a_proof_holds_for_one_session_one_side_and_one_pair_only() {
        let (a, b) = sessions();
        let greeting = Greeting::make(&member(1), &a, Kind::Small, params());
        assert!(greeting.judge(&member(1), &b, Kind::Small).is_ok());
        let replayed = Session { binding: [8; 32], ..b.clone() };
        let reflected = Session { local: a.peer, peer: a.local, ..a.clone() };
        let forwarded = Session { peer: NodeId([3; 32]), ..b };
        for session in [replayed, reflected, forwarded] {
            assert_eq!(greeting.judge(&member(1), &session, Kind::Small), Err(Refusal::WrongSecret));
        }
    }

    #[test]
    fn the_wire_form_never_changes() {
        let greeting = Greeting::make(&member(1), &sessions().0, Kind::Bulk, params());
        let now = format!("{}\n", hex::encode(greeting.encode()));
        assert_eq!(now, include_str!("../tests/golden/greeting_v1.txt"));
    }

    #[test]
    fn appended_fields_of_a_newer_release_are_ignored() {
        let (a, b) = sessions();
        let mut bytes = Greeting::make(&member(1), &a, Kind::Small, params()).encode();
        bytes.extend_from_slice(b"more");
        let length = (FIELDS + 4) as u16;
        bytes[8..10].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Greeting::missing(&bytes), Ok(0));
        assert!(Greeting::decode(&bytes).unwrap().judge(&member(1), &b, Kind::Small).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            crate::fuzzing::hello(&bytes);
        }

        #[test]
        fn damaged_greetings_never_pass(at in 0usize..80, bit in 0u8..8) {
            let (a, b) = sessions();
            let good = Greeting::make(&member(1), &a, Kind::Small, params());
            let mut bytes = good.encode();
            bytes[at] ^= 1 << bit;
            if let Ok(greeting) = Greeting::decode(&bytes) {
                // TLS guards the rest; the proof guards identity and cluster.
                if greeting.proof != good.proof || greeting.cluster != good.cluster {
                    prop_assert!(greeting.judge(&member(1), &b, Kind::Small).is_err());
                }
            }
        }
    }

    #[test]
    fn secrets_parse_and_never_show() {
        assert!("00".parse::<RpcSecret>().is_err());
        let secret: RpcSecret = "ab".repeat(32).parse().unwrap();
        assert_eq!(format!("{secret:?}"), "RpcSecret(hidden)");
    }
}
