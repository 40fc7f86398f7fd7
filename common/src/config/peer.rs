//! The address of a peer as operators write it: `host:port`, or `node-id@host:port` to pin its identity.

use crate::id::NodeId;
use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::str::FromStr;

/// A storage node to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who must answer; `None` accepts any member of the cluster.
    pub id: Option<NodeId>,
    /// A name or an address, and a port. Names are resolved at each dial.
    pub addr: String,
}

/// Why a text is not a peer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    #[error(
        "`{0}` is not an address: write HOST:PORT, such as \"node1.example.org:3901\" or \"[fd00::1]:3901\""
    )]
    Addr(String),
    #[error(
        "`{0}`: before the @ stands the node's id, 64 hexadecimal digits (`hayloft-storage --config FILE --print-node-id`)"
    )]
    Id(String),
}

/// Whether `addr` is a name or an address with a port.
pub(super) fn is_host_port(addr: &str) -> bool {
    let Some((host, port)) = addr.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_ok = if bracketed {
        addr.parse::<std::net::SocketAddr>().is_ok()
    } else {
        !host.is_empty()
            && host.len() <= 253
            && !host.contains([':', '/', '@', '[', ']'])
            && !host.contains(char::is_whitespace)
    };
    host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let (id, addr) = match text.split_once('@') {
            Some((id, addr)) => (Some(id.parse().map_err(|_| PeerError::Id(text.into()))?), addr),
            None => (None, text),
        };
        if is_host_port(addr) {
            Ok(Self { id, addr: addr.into() })
        } else {
            Err(PeerError::Addr(addr.into()))
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "{id}@{}", self.addr),
            None => f.write_str(&self.addr),
        }
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_parse_and_print() {
        let id = "ab".repeat(32);
        for text in ["node1.example.org:3901", "10.0.0.1:3901", "[fd00::1]:3901", &format!("{id}@home:1")] {
            assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        }
        for text in
            ["node1", "node1:0", "node1:70000", ":3901", "fd00::1:3901", "http://a:1", "a b:1", "[fd00:1"]
        {
            assert_eq!(text.parse::<Peer>(), Err(PeerError::Addr(text.into())), "{text}");
        }
        assert!(matches!("abcd@home:1".parse::<Peer>(), Err(PeerError::Id(_))));
    }
}
