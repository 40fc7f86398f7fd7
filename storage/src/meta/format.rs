//! Whose directory this is: the record written at creation and checked at every start.
//!
//! A node that opened the data of another node or cluster would answer for copies it does not own, so a
//! mismatch is refused before anything else is read. The record's form never changes except at its end.

use super::{Batch, Engine, KeyRange, MetaError, Space, Step};
use crate::meta::Direction;
use hayloft_common::codec::{self, Format};
use hayloft_common::id::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

/// The form of the keyspaces that this program writes. History: 1, the first.
pub const FORMAT: u16 = 1;
const RECORD_KEY: &[u8] = b"format";

/// Whose data it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u16,
    cluster: ClusterId,
    node: NodeId,
}

impl Format for Record {
    const NAME: &'static str = "the metadata directory's format record";
}

/// Checks that the engine's data is of a known format and belongs to `identity`; marks it if it is empty.
/// Call it before any other use.
pub fn claim(engine: &dyn Engine, identity: &Identity) -> Result<(), MetaError> {
    let Some(bytes) = engine.get(Space::Node, RECORD_KEY)? else {
        if let Some(space) = first_used(engine)? {
            let reason = format!("it holds `{}` entries but no format record", space.name());
            return Err(MetaError::corrupt("the metadata directory", reason));
        }
        let record = Record { format: FORMAT, cluster: identity.cluster, node: identity.node };
        let mut batch = Batch::new();
        batch.put(Space::Node, RECORD_KEY, codec::encode(&record));
        return engine.commit(batch, true);
    };
    let record: Record = codec::decode(&bytes).map_err(|e| match e {
        codec::CodecError::UnknownFormat { found, .. } => {
            MetaError::UnknownFormat { found: u16::from(found), known: FORMAT }
        }
        other => MetaError::corrupt("the metadata directory's format record", other),
    })?;
    if record.format > FORMAT {
        return Err(MetaError::UnknownFormat { found: record.format, known: FORMAT });
    }
    if record.cluster != identity.cluster {
        return Err(MetaError::OtherCluster { found: record.cluster, expected: identity.cluster });
    }
    if record.node != identity.node {
        return Err(MetaError::OtherNode { found: record.node, expected: identity.node });
    }
    Ok(())
}

fn first_used(engine: &dyn Engine) -> Result<Option<Space>, MetaError> {
    for space in Space::ALL {
        let mut used = false;
        engine.scan(space, &KeyRange::all(), Direction::Forward, &mut |_, _| {
            used = true;
            Step::Stop
        })?;
        if used {
            return Ok(Some(space));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::View as _;
    use crate::meta::memory::MemoryDisk;

    const OURS: Identity = Identity { cluster: ClusterId([1; 16]), node: NodeId([2; 32]) };

    #[test]
    fn a_directory_of_another_node_cluster_or_format_is_refused() {
        let engine = MemoryDisk::new().open().unwrap();
        claim(&engine, &OURS).unwrap();
        claim(&engine, &OURS).unwrap();
        let other = NodeId([9; 32]);
        assert_eq!(
            claim(&engine, &Identity { node: other, ..OURS }),
            Err(MetaError::OtherNode { found: OURS.node, expected: other })
        );
        let cluster = ClusterId([9; 16]);
        assert_eq!(
            claim(&engine, &Identity { cluster, ..OURS }),
            Err(MetaError::OtherCluster { found: OURS.cluster, expected: cluster })
        );
        let mut batch = Batch::new();
        let future = Record { format: 7, cluster: OURS.cluster, node: OURS.node };
        batch.put(Space::Node, RECORD_KEY, codec::encode(&future));
        engine.commit(batch, true).unwrap();
        assert_eq!(claim(&engine, &OURS), Err(MetaError::UnknownFormat { found: 7, known: FORMAT }));
    }

    #[test]
    fn data_without_a_record_is_not_adopted() {
        let engine = MemoryDisk::new().open().unwrap();
        let mut batch = Batch::new();
        batch.put(Space::Queue, "x", "y");
        engine.commit(batch, true).unwrap();
        assert!(matches!(claim(&engine, &OURS), Err(MetaError::Corrupt { .. })));
        assert_eq!(engine.get(Space::Node, RECORD_KEY).unwrap(), None);
    }
}
