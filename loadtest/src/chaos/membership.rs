//! Changes of the layout that are drawn at random and stay within what the cluster can do: which nodes have a role, in
//! which zone, and how many copies there are.

use rand::RngExt as _;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;

/// Zones that nodes are put in.
const ZONES: [&str; 4] = ["zone1", "zone2", "zone3", "zone4"];
/// Least nodes with a role.
const FEWEST: usize = 4;

/// The roles as they are after the changes applied so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// Node id to zone; a node without a role is not in it.
    roles: BTreeMap<String, String>,
    /// Nodes without a role that may have one.
    spares: Vec<String>,
    factor: usize,
}

/// A change: its name, the commands that stage it, and the roles after it.
pub(super) struct Change {
    pub(super) name: &'static str,
    pub(super) commands: Vec<Vec<String>>,
    pub(super) after: Membership,
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

fn assign(node: &str, zone: &str) -> Vec<String> {
    words(&["layout", "assign", node, "--zone", zone, "--capacity", "10GiB"])
}

impl Membership {
    pub(super) fn new(roles: BTreeMap<String, String>, spares: Vec<String>, factor: usize) -> Self {
        Self { roles, spares, factor }
    }

    /// Whether a node has a role.
    pub(super) fn has_role(&self, node: &str) -> bool {
        self.roles.contains_key(node)
    }

    fn pick<'a, T>(random: &mut SmallRng, list: &'a [T]) -> Option<&'a T> {
        if list.is_empty() { None } else { list.get(random.random_range(0..list.len())) }
    }

    /// Draws a change; none if the one that was drawn is not possible now.
    pub(super) fn draw(&self, random: &mut SmallRng) -> Option<Change> {
        let mut after = self.clone();
        let nodes: Vec<String> = self.roles.keys().cloned().collect();
        let node = Self::pick(random, &nodes)?.clone();
        let zone = *Self::pick(random, &ZONES)?;
        let spare = Self::pick(random, &self.spares).cloned();
        let (name, commands) = match random.random_range(0..5) {
            0 => {
                let spare = spare?;
                after.spares.retain(|other| *other != spare);
                after.roles.insert(spare.clone(), zone.to_owned());
                ("add a node", vec![assign(&spare, zone)])
            }
            1 => {
                after.roles.remove(&node);
                after.spares.push(node.clone());
                ("remove a node", vec![words(&["layout", "remove", &node])])
            }
            2 => {
                after.roles.insert(node.clone(), zone.to_owned());
                ("move a node to another zone", vec![assign(&node, zone)])
            }
            3 => self.replacement(&node, &spare?, &mut after),
            _ => {
                after.factor = if self.factor == 3 { 5 } else { 3 };
                let factor = after.factor.to_string();
                let name = if after.factor == 5 { "RF 3 to 5" } else { "RF 5 to 3" };
                (name, vec![words(&["layout", "config", "--replication-factor", &factor])])
            }
        };
        (after != *self && after.is_possible()).then_some(Change { name, commands, after })
    }

    fn replacement(&self, old: &str, new: &str, after: &mut Self) -> (&'static str, Vec<Vec<String>>) {
        let zone = self.roles.get(old).cloned().unwrap_or_default();
        after.roles.remove(old);
        after.spares.retain(|other| other != new);
        after.spares.push(old.to_owned());
        after.roles.insert(new.to_owned(), zone);
        ("replace a node", vec![words(&["node", "replace", old, new])])
    }

    /// A destroyed node is replaced by a spare; none if there is no spare. The old node is gone, also as a spare.
    pub(super) fn replace_lost(&self, lost: &str) -> Option<Change> {
        let mut after = self.clone();
        let new = self.spares.iter().find(|spare| *spare != lost)?.clone();
        let (name, commands) = self.replacement(lost, &new, &mut after);
        after.spares.retain(|spare| spare != lost);
        Some(Change { name, commands, after })
    }

    /// A node that comes without a role from now on.
    pub(super) fn add_spare(&mut self, node: &str) {
        self.spares.push(node.to_owned());
    }

    fn is_possible(&self) -> bool {
        let zones: std::collections::BTreeSet<_> = self.roles.values().collect();
        self.roles.len() >= FEWEST.max(self.factor) && zones.len() >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn start() -> Membership {
        let roles = [("a", "zone1"), ("b", "zone2"), ("c", "zone3"), ("d", "zone1")];
        let roles = roles.into_iter().map(|(node, zone)| (node.to_owned(), zone.to_owned())).collect();
        Membership::new(roles, vec!["e".into(), "f".into()], 3)
    }

    #[test]
    fn whatever_is_drawn_leaves_enough_nodes_and_zones_and_every_kind_is_drawn() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut now = start();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2_000 {
            let Some(change) = now.draw(&mut random) else { continue };
            seen.insert(change.name);
            now = change.after;
            assert!(now.is_possible());
            assert_eq!(now.roles.len() + now.spares.len(), 6, "no node is forgotten");
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }

    #[test]
    fn a_lost_node_is_replaced_by_a_spare_and_never_used_again() {
        let after = start().replace_lost("b").unwrap().after;
        assert_eq!(after.roles.get("e").map(String::as_str), Some("zone2"));
        assert!(!after.has_role("b") && !after.spares.contains(&"b".to_owned()));
    }
}
