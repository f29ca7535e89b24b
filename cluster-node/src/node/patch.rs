//! What of the object has to be sent: no more than what changed. Pure.
//!
//! Conditions are merged by their type, so those of others stay; addresses are replaced as a whole, because two of one type
//! are merged into one otherwise.

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use serde_json::{Map, Value, json};

/// Fields whose lists and objects are set as a whole.
const WHOLE: [&str; 7] =
    ["daemonEndpoints", "nodeInfo", "images", "runtimeHandlers", "features", "declaredFeatures", "volumesInUse"];
/// Fields by resource.
const BY_NAME: [&str; 2] = ["capacity", "allocatable"];

/// A strategic merge patch of the status from what the API server has to what it should have: `None` where they are the same
/// but for heartbeats. With `beat` these are told in any case.
pub fn status(before: &NodeStatus, after: &NodeStatus, beat: bool) -> Option<Value> {
    let (old, new) = (value(before), value(after));
    let mut patch = Map::new();
    for name in WHOLE {
        if is_other(old.get(name), new.get(name)) {
            patch.insert(name.to_owned(), new.get(name).cloned().unwrap_or_else(|| json!([])));
        }
    }
    for name in BY_NAME {
        let changes = named(old.get(name), new.get(name));
        if !changes.is_empty() {
            patch.insert(name.to_owned(), changes.into());
        }
    }
    if is_other(old.get("addresses"), new.get("addresses")) {
        let mut list = vec![json!({ "$patch": "replace" })];
        list.extend(new.get("addresses").and_then(Value::as_array).into_iter().flatten().cloned());
        patch.insert("addresses".to_owned(), list.into());
    }
    let none = Vec::new();
    let (old, new) = (before.conditions.as_ref().unwrap_or(&none), after.conditions.as_ref().unwrap_or(&none));
    let changed = new.iter().any(|it| !old.iter().any(|before| is_same(before, it)));
    if patch.is_empty() && !changed && !beat {
        return None;
    }
    let told: Vec<Value> = new.iter().map(|it| condition(old, it)).collect();
    patch.insert("conditions".to_owned(), told.into());
    Some(json!({ "status": patch }))
}

/// A strategic merge patch of labels and annotations that should be there, where any is missing or another.
pub fn metadata(before: &Node, after: &Node) -> Option<Value> {
    let (old, new) = (&before.metadata, &after.metadata);
    let mut patch = Map::new();
    for (name, old, new) in [("labels", &old.labels, &new.labels), ("annotations", &old.annotations, &new.annotations)]
    {
        let missing = new.iter().flatten().filter(|(key, value)| {
            let has = old.as_ref().and_then(|it| it.get(*key));
            has != Some(*value)
        });
        let missing: Map<String, Value> = missing.map(|(key, value)| (key.clone(), json!(value))).collect();
        if !missing.is_empty() {
            patch.insert(name.to_owned(), missing.into());
        }
    }
    (!patch.is_empty()).then(|| json!({ "metadata": patch }))
}

/// An unchanged one beats; a changed one is told whole.
fn condition(old: &[NodeCondition], new: &NodeCondition) -> Value {
    if old.iter().any(|before| is_same(before, new)) {
        return json!({ "type": new.type_, "lastHeartbeatTime": new.last_heartbeat_time });
    }
    value(new)
}

fn is_same(a: &NodeCondition, b: &NodeCondition) -> bool {
    a.type_ == b.type_ && a.status == b.status && a.reason == b.reason && a.message == b.message
}

/// What is set, and what is gone. Resources that others gave the node stay.
fn named(old: Option<&Value>, new: Option<&Value>) -> Map<String, Value> {
    let none = Map::new();
    let map = |value: Option<&Value>| value.and_then(Value::as_object).unwrap_or(&none).clone();
    let (old, new) = (map(old), map(new));
    let gone = old.keys().filter(|name| !new.contains_key(*name) && !name.contains('/'));
    let mut changes: Map<String, Value> = gone.map(|name| (name.clone(), Value::Null)).collect();
    changes.extend(new.into_iter().filter(|(name, amount)| old.get(name) != Some(amount)));
    changes
}

/// Absent and empty are the same.
fn is_other(old: Option<&Value>, new: Option<&Value>) -> bool {
    let empty = |value: &&Value| !matches!(value, Value::Null) && value.as_array().is_none_or(|it| !it.is_empty());
    old.filter(empty) != new.filter(empty)
}

fn value(of: &impl k8s_openapi::serde::Serialize) -> Value {
    // These types have no map with keys that are no texts, which alone JSON does not take.
    serde_json::to_value(of).unwrap_or_default()
}
