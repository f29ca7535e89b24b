//! What is sent of a status: what differs from what the API server has, as a strategic merge patch; pure.
//!
//! Elsewhere: who sends it (`send`).

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Conditions that are the node's to set.
const OWN: [&str; 9] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
    DISRUPTION,
];
/// Others set it too.
const DISRUPTION: &str = "DisruptionTarget";
/// Conditions that are never taken away.
const STAY: [&str; 2] = ["PodScheduled", DISRUPTION];
/// Values that replace each other; those that may vanish again.
const VALUES: [(&str, bool); 11] = [
    ("phase", false),
    ("reason", true),
    ("message", true),
    ("startTime", false),
    ("hostIP", false),
    ("podIP", true),
    ("qosClass", false),
    ("observedGeneration", false),
    ("resize", true),
    ("allocatedResources", true),
    ("resources", true),
];
/// Lists that replace each other.
const LISTS: [&str; 3] = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
/// Lists that the API server would merge by their keys.
const MERGED: [&str; 2] = ["hostIPs", "podIPs"];

/// Whether a condition of this type is the node's to set.
pub fn is_own(condition: &str) -> bool {
    OWN.contains(&condition)
}

/// The patch that makes `base`, the API server's, into `status`; `None` where that is so already. What others have set
/// stays.
pub fn patch(uid: &str, base: &PodStatus, status: &PodStatus) -> Option<Value> {
    let (base, status) = (fields(base), fields(status));
    let mut changed = Map::new();
    for (name, may_vanish) in VALUES {
        match (base.get(name), status.get(name)) {
            (old, Some(new)) if old != Some(new) => _ = changed.insert(name.to_owned(), whole(new)),
            (Some(_), None) if may_vanish => _ = changed.insert(name.to_owned(), Value::Null),
            _ => {}
        }
    }
    for name in LISTS {
        match (base.get(name), status.get(name)) {
            (old, Some(new)) if old != Some(new) => _ = changed.insert(name.to_owned(), new.clone()),
            (Some(_), None) => _ = changed.insert(name.to_owned(), Value::Null),
            _ => {}
        }
    }
    for name in MERGED {
        match (base.get(name), status.get(name)) {
            (old, Some(new)) if old != Some(new) => {
                let replace = std::iter::once(json!({"$patch": "replace"}));
                let items = new.as_array().into_iter().flatten().cloned();
                changed.insert(name.to_owned(), replace.chain(items).collect());
            }
            (Some(_), None) => _ = changed.insert(name.to_owned(), json!([{"$patch": "replace"}])),
            _ => {}
        }
    }
    let conditions = conditions(list(&base, "conditions"), list(&status, "conditions"));
    if !conditions.is_empty() {
        changed.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// An object is replaced, not merged.
fn whole(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(map) = value.as_object_mut() {
        map.insert("$patch".to_owned(), json!("replace"));
    }
    value
}

fn conditions(base: &[Value], wanted: &[Value]) -> Vec<Value> {
    let kind = |it: &Value| it.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let find = |all: &[Value], name: &str| all.iter().find(|it| kind(it) == name).cloned();
    let mut changed = Vec::new();
    for condition in wanted.iter().filter(|it| is_own(&kind(it))) {
        let old = find(base, &kind(condition));
        let mut new = condition.clone();
        let Some(old) = old else {
            changed.push(new);
            continue;
        };
        // It is a transition only where the status is another.
        if old.get("status") == new.get("status")
            && let Some(time) = old.get("lastTransitionTime")
        {
            new["lastTransitionTime"] = time.clone();
        }
        if old == new {
            continue;
        }
        for (name, _) in old.as_object().into_iter().flatten() {
            if new.get(name).is_none() {
                new[name.as_str()] = Value::Null;
            }
        }
        changed.push(new);
    }
    let lost = base.iter().map(kind).filter(|it| is_own(it) && !STAY.contains(&it.as_str()));
    let lost = lost.filter(|it| find(wanted, it).is_none());
    changed.extend(lost.map(|name| json!({"type": name, "$patch": "delete"})));
    changed
}

fn list<'a>(fields: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    fields.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The fields that say something.
fn fields(status: &PodStatus) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(status) else { return Map::new() };
    let is_empty = |it: &Value| match it {
        Value::Null => true,
        Value::String(it) => it.is_empty(),
        Value::Array(it) => it.is_empty(),
        Value::Object(it) => it.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    fields.retain(|_, value| !is_empty(value));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_differs_is_sent() {
        #[track_caller]
        fn check(base: Value, new: Value, want: Value) {
            let patch = patch("u", &status(base), &status(new));
            assert_eq!(patch.map_or(Value::Null, |it| it["status"].clone()), want);
        }
        let none = json!({});
        check(none.clone(), none.clone(), Value::Null);
        check(json!({"phase": "Pending"}), json!({"phase": "Pending"}), Value::Null);
        check(json!({"phase": "Pending"}), json!({"phase": "Running"}), json!({"phase": "Running"}));
        check(json!({"reason": "x", "phase": "Failed"}), json!({"phase": "Failed"}), json!({"reason": null}));
        // What a node never takes back, and what is not the node's.
        check(json!({"startTime": "2025-01-01T00:00:00Z", "qosClass": "Burstable"}), none.clone(), Value::Null);
        check(json!({"nominatedNodeName": "x"}), none.clone(), Value::Null);
        let time = json!({"startTime": "2025-01-01T00:00:00.75Z"});
        check(json!({"startTime": "2025-01-01T00:00:00Z"}), time, Value::Null);
        let ip = |ip: &str| json!({"podIP": ip, "podIPs": [{"ip": ip}]});
        check(
            ip("10.0.0.1"),
            ip("10.0.0.2"),
            json!({"podIP": "10.0.0.2", "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}]}),
        );
        check(ip("10.0.0.1"), none, json!({"podIP": null, "podIPs": [{"$patch": "replace"}]}));
        let resources = |cpu: &str| json!({"allocatedResources": {"cpu": cpu}});
        check(resources("1"), resources("2"), json!({"allocatedResources": {"cpu": "2", "$patch": "replace"}}));
        let containers = |restarts: i32| {
            json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true,
                "restartCount": restarts}]})
        };
        check(containers(1), containers(1), Value::Null);
        check(containers(1), containers(2), containers(2));
    }

    #[test]
    fn conditions_of_others_stay() {
        #[track_caller]
        fn check(base: Value, new: Value, want: Value) {
            let (base, new) = (status(json!({"conditions": base})), status(json!({"conditions": new})));
            let patch = patch("u", &base, &new);
            assert_eq!(patch.map_or(Value::Null, |it| it["status"]["conditions"].clone()), want);
        }
        let ready = |status: &str, hour: u8| json!({"type": "Ready", "status": status, "lastTransitionTime": format!("2025-01-01T{hour:02}:00:00Z")});
        let gate = json!({"type": "example.com/gate", "status": "True"});
        check(json!([]), json!([ready("True", 1)]), json!([ready("True", 1)]));
        check(json!([ready("True", 1), gate]), json!([ready("True", 2)]), Value::Null);
        check(json!([ready("True", 1), gate]), json!([ready("False", 2), gate]), json!([ready("False", 2)]));
        check(json!([gate]), json!([{"type": "example.com/gate", "status": "False"}]), Value::Null);
        check(json!([ready("True", 1)]), json!([]), json!([{"type": "Ready", "$patch": "delete"}]));
        let shared =
            json!([{"type": "DisruptionTarget", "status": "True"}, {"type": "PodScheduled", "status": "True"}]);
        check(shared, json!([]), Value::Null);
        let mut with_reason = ready("False", 1);
        with_reason["reason"] = json!("PodFailed");
        let mut without = ready("False", 1);
        without["reason"] = Value::Null;
        check(json!([with_reason]), json!([ready("False", 2)]), json!([without]));
    }

    #[test]
    fn the_uid_is_always_there() {
        let patch = patch("u-1", &PodStatus::default(), &status(json!({"phase": "Running"}))).unwrap();
        assert_eq!(patch, json!({"metadata": {"uid": "u-1"}, "status": {"phase": "Running"}}));
    }
}
