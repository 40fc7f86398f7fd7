//! When is a cluster at rest and whole again? The answer is the product's own (`hayloft verify`), asked until it is
//! clean; what it says is checked elsewhere by reading everything.

use super::{Operator, Testbed};
use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two verifications.
const PAUSE: Duration = Duration::from_secs(3);
/// How long one verification may take.
const VERIFY_LIMIT: Duration = Duration::from_mins(20);

/// What `hayloft verify` found, all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is wrong, by kind.
    pub wrong: BTreeMap<String, u64>,
    /// What is known to go away by itself, by kind.
    pub pending: BTreeMap<String, u64>,
    /// The first wrong things, in words.
    pub samples: Vec<String>,
}

impl Findings {
    /// Nothing is wrong and nothing is left to do.
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.pending.is_empty()
    }

    /// Adds every object called `wrong` or `pending`, wherever it stands.
    fn collect(&mut self, json: &Value) {
        match json {
            Value::Array(list) => list.iter().for_each(|value| self.collect(value)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "samples" {
                        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                        self.samples.extend(texts.map(str::to_owned));
                        continue;
                    }
                    let kinds = match name.as_str() {
                        "wrong" => &mut self.wrong,
                        "pending" => &mut self.pending,
                        _ => {
                            self.collect(value);
                            continue;
                        }
                    };
                    for (kind, count) in value.as_object().into_iter().flatten() {
                        let count = count.as_u64().unwrap_or(0);
                        if count > 0 {
                            *kinds.entry(kind.clone()).or_default() += count;
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

/// Asks `hayloft verify` once. The command itself fails if it finds something wrong; what it printed counts.
pub async fn findings(operator: &Operator) -> Result<Findings> {
    let json = operator.printed_json(&["verify"], VERIFY_LIMIT).await?;
    let fields = |name: &str| json.get(name).and_then(Value::as_object);
    if fields("success").is_none_or(serde_json::Map::is_empty) {
        bail!("`hayloft verify` heard of no node: {json}");
    }
    if let Some(errors) = fields("error").filter(|errors| !errors.is_empty()) {
        bail!("nodes could not verify: {errors:?}");
    }
    let mut found = Findings::default();
    found.collect(&json);
    Ok(found)
}

/// Whether `hayloft status` shows every storage node up.
fn all_up(status: &Value, ids: &[String]) -> bool {
    let up = |id: &String| {
        let nodes = status.get("nodes").and_then(Value::as_array).into_iter().flatten();
        let of = |name: &str, node: &Value| node.get(name).cloned();
        nodes.into_iter().any(|node| {
            of("id", node) == Some(Value::from(id.as_str())) && of("isUp", node) == Some(Value::from(true))
        })
    };
    ids.iter().all(up)
}

impl Testbed {
    /// Waits until every gateway says that all storage nodes are up.
    pub async fn everyone_up(&self, limit: Duration) -> Result<()> {
        let ids: Vec<String> =
            self.processes.cluster.storage.iter().filter_map(|node| node.node_id.clone()).collect();
        let start = self.env.now();
        for gateway in 0..self.processes.cluster.gateways.len() {
            loop {
                let status = self.operator.through(gateway).json(&["status"]).await;
                if status.as_ref().is_ok_and(|status| all_up(status, &ids)) {
                    break;
                }
                if self.env.now().saturating_sub(start) > limit {
                    bail!("not every node is up after {limit:?}: {status:?}");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    /// Waits until the layout is settled and `verify` finds nothing wrong and, if `wholly`, nothing left to do;
    /// returns how long that took.
    pub async fn converged(&self, wholly: bool, limit: Duration) -> Result<Duration> {
        let start = self.env.now();
        self.operator.layout_settled(0, limit).await?;
        let (mut shown, mut samples) = (String::new(), Vec::new());
        loop {
            let last = match findings(&self.operator).await {
                Ok(found) if found.is_clean() || (!wholly && found.wrong.is_empty()) => {
                    return Ok(self.env.now().saturating_sub(start));
                }
                Ok(found) => {
                    samples = found.samples;
                    format!("wrong: {:?}, pending: {:?}", found.wrong, found.pending)
                }
                Err(error) => format!("{error:#}"),
            };
            let waited = self.env.now().saturating_sub(start);
            if waited > limit {
                bail!("not whole after {limit:?}: {last}; such as {samples:?}");
            }
            if shown != last {
                println!("  not whole yet ({:.0} s): {last}", waited.as_secs_f64());
                shown = last;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn findings_of_all_nodes_are_added_up() {
        let answer = json!({"success": {
            "a": {"wrong": {"orphan": 2, "none": 0}, "pending": {}, "samples": ["x"]},
            "b": {"wrong": {"orphan": 1}, "pending": {"CheckBlock": 4}}}, "error": {}});
        let mut found = Findings::default();
        found.collect(&answer);
        assert_eq!(found.wrong, BTreeMap::from([("orphan".to_owned(), 3)]));
        assert_eq!(found.pending, BTreeMap::from([("CheckBlock".to_owned(), 4)]));
        assert_eq!(found.samples, ["x"]);
        assert!(!found.is_clean() && Findings::default().is_clean());
    }
}
