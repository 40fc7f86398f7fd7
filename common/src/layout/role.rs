//! What an operator says about the cluster: the role of each storage node and the parameters of the
//! layout. Gateways have no role.

use serde::{Deserialize, Serialize};

/// The role of a storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// The site the node stands at: nodes of one zone may fail together. Not empty.
    pub zone: String,
    /// Bytes the node offers for data, above zero.
    pub capacity: u64,
    /// Free text for people.
    pub tags: Vec<String>,
}

/// In how many zones the copies of a partition must lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ZoneRedundancy {
    /// In as many as there are, up to the replication factor.
    Maximum,
    /// In at least this many (1 up to the replication factor).
    AtLeast(usize),
}

/// What holds for the whole layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// Copies of each partition, one of [`crate::limits::REPLICATION_FACTORS`].
    pub replication_factor: usize,
    pub zone_redundancy: ZoneRedundancy,
}

impl Parameters {
    /// The number of zones each partition must touch when the cluster has `zones` of them. May exceed
    /// `zones` for [`ZoneRedundancy::AtLeast`]: then no layout exists.
    pub fn effective_zone_redundancy(&self, zones: usize) -> usize {
        match self.zone_redundancy {
            ZoneRedundancy::Maximum => zones.min(self.replication_factor),
            ZoneRedundancy::AtLeast(n) => n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_redundancy_has_the_json_form_of_the_admin_interface() {
        for (value, json) in
            [(ZoneRedundancy::Maximum, r#""maximum""#), (ZoneRedundancy::AtLeast(2), r#"{"atLeast":2}"#)]
        {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<ZoneRedundancy>(json).unwrap(), value);
            let packed = rmp_serde::to_vec(&value).unwrap();
            assert_eq!(rmp_serde::from_slice::<ZoneRedundancy>(&packed).unwrap(), value);
        }
    }

    #[test]
    fn maximum_redundancy_is_bounded_by_zones_and_by_copies() {
        let maximum = Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::Maximum };
        assert_eq!([1, 2, 3, 9].map(|zones| maximum.effective_zone_redundancy(zones)), [1, 2, 3, 3]);
    }
}
