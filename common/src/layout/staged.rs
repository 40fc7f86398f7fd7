//! Changes an operator prepares before applying them: a CRDT, so that every gateway can stage.
//!
//! Clearing writes "nothing" over each change that was seen, so a change staged at the same time
//! elsewhere survives it. A stamp must lie above [`StagedChanges::floor`] to be sure to win.

use super::assignment::Layout;
use super::role::{Parameters, Role};
use crate::codec::Format;
use crate::crdt::{Crdt, Lww, LwwMap};
use crate::id::NodeId;
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is staged for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// Nothing: an earlier change was applied or reverted.
    Nothing,
    /// The node takes this role.
    Assign(Role),
    /// The node loses its role.
    Remove,
}

/// The staged changes of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StagedChanges {
    roles: LwwMap<NodeId, Change>,
    parameters: Lww<Option<Parameters>>,
}

impl StagedChanges {
    /// Whether there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.parameters.value.is_none() && self.roles().next().is_none()
    }

    /// Stages a role for `node`, or its removal (`None`). Ignored if something newer is known.
    pub fn stage_role(&mut self, node: NodeId, role: Option<Role>, stamp: Stamp) {
        let change = role.map_or(Change::Remove, Change::Assign);
        Crdt::merge(&mut self.roles, &LwwMap::from([(node, Lww::new(stamp, change))]));
    }

    /// Stages parameters. Ignored if something newer is known.
    pub fn stage_parameters(&mut self, parameters: Parameters, stamp: Stamp) {
        self.parameters.merge(&Lww::new(stamp, Some(parameters)));
    }

    /// The staged roles in order of node: `None` means removal.
    pub fn roles(&self) -> impl Iterator<Item = (NodeId, Option<&Role>)> {
        self.roles.iter().filter_map(|(node, register)| match &register.value {
            Change::Nothing => None,
            Change::Assign(role) => Some((*node, Some(role))),
            Change::Remove => Some((*node, None)),
        })
    }

    /// The staged parameters, if any.
    pub fn parameters(&self) -> Option<&Parameters> {
        self.parameters.value.as_ref()
    }

    /// The roles that `layout` would have with these changes.
    pub fn apply_to(&self, layout: &Layout) -> BTreeMap<NodeId, Role> {
        let mut roles = layout.roles.clone();
        for (node, role) in self.roles() {
            match role {
                Some(role) => roles.insert(node, role.clone()),
                None => roles.remove(&node),
            };
        }
        roles
    }

    /// The parameters that `layout` would have with these changes.
    pub fn parameters_for(&self, layout: &Layout) -> Parameters {
        self.parameters().copied().unwrap_or(layout.parameters)
    }

    /// The highest stamp in use: a change that must win takes one above.
    pub fn floor(&self) -> Stamp {
        let roles = self.roles.values().map(|register| register.stamp);
        roles.chain([self.parameters.stamp]).max().unwrap_or(Stamp::ZERO)
    }

    /// Withdraws every change older than `stamp`.
    pub fn clear(&mut self, stamp: Stamp) {
        for register in self.roles.values_mut().filter(|register| register.stamp < stamp) {
            *register = Lww::new(stamp, Change::Nothing);
        }
        if self.parameters.stamp < stamp {
            self.parameters = Lww::new(stamp, None);
        }
    }
}

impl Crdt for StagedChanges {
    fn merge(&mut self, other: &Self) {
        Crdt::merge(&mut self.roles, &other.roles);
        self.parameters.merge(&other.parameters);
    }
}

impl Format for StagedChanges {
    const NAME: &'static str = "staged layout changes";
}

#[cfg(test)]
mod tests {
    use super::super::role::ZoneRedundancy;
    use super::*;
    use crate::codec::{decode, encode};
    use crate::crdt::laws;
    use proptest::prelude::*;

    fn stamp(micros: u64) -> Stamp {
        Stamp { micros, writer: 1 }
    }

    fn role(zone: &str) -> Role {
        Role { zone: zone.into(), capacity: 10, tags: vec!["disk".into()] }
    }

    fn parameters(n: usize) -> Parameters {
        Parameters { replication_factor: 3, zone_redundancy: ZoneRedundancy::AtLeast(n) }
    }

    fn staged() -> impl Strategy<Value = StagedChanges> {
        prop::collection::vec((0u8..8, 0u8..3, 1u64..6), 0..8).prop_map(|operations| {
            let mut staged = StagedChanges::default();
            for (what, who, micros) in operations {
                match what {
                    0..=2 => staged.stage_role(NodeId([who; 32]), Some(role("a")), stamp(micros)),
                    3 => staged.stage_role(NodeId([who; 32]), Some(role("b")), stamp(micros)),
                    4 => staged.stage_role(NodeId([who; 32]), None, stamp(micros)),
                    5 | 6 => staged.stage_parameters(parameters(usize::from(what)), stamp(micros)),
                    _ => staged.clear(stamp(micros)),
                }
            }
            staged
        })
    }

    proptest! {
        #[test]
        fn merge_obeys_the_laws_and_bytes_round_trip(a in staged(), b in staged(), c in staged()) {
            laws::check(&a, &b, &c);
            prop_assert_eq!(decode::<StagedChanges>(&encode(&a)).unwrap(), a);
        }
    }

    #[test]
    fn changes_are_applied_over_the_roles_of_the_layout() {
        let mut layout = Layout::empty(parameters(1), 8);
        layout.roles = BTreeMap::from([(NodeId([1; 32]), role("a")), (NodeId([2; 32]), role("a"))]);
        let mut staged = StagedChanges::default();
        staged.stage_role(NodeId([1; 32]), None, stamp(1));
        staged.stage_role(NodeId([3; 32]), Some(role("c")), stamp(2));
        staged.stage_role(NodeId([3; 32]), Some(role("old")), stamp(1));
        staged.stage_parameters(parameters(2), stamp(3));
        let expected = BTreeMap::from([(NodeId([2; 32]), role("a")), (NodeId([3; 32]), role("c"))]);
        assert_eq!(staged.apply_to(&layout), expected);
        assert_eq!(staged.parameters_for(&layout), parameters(2));
    }

    #[test]
    fn clearing_withdraws_what_was_seen_and_spares_what_was_staged_meanwhile() {
        let mut here = StagedChanges::default();
        here.stage_role(NodeId([1; 32]), Some(role("a")), stamp(5));
        let mut there = here.clone();
        there.stage_role(NodeId([2; 32]), Some(role("b")), stamp(2));
        here.clear(stamp(here.floor().micros + 1));
        assert!(here.is_empty());
        here.merge(&there);
        assert_eq!(here.roles().map(|(node, _)| node).collect::<Vec<_>>(), [NodeId([2; 32])]);
    }
}
