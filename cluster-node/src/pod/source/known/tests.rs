//! What is known of pods, by table.

use serde_json::{Value, json};

use super::*;

const NODE: &str = "board";

fn pod(name: &str, uid: &str, changed: Value) -> Pod {
    let mut pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": "1"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}]}});
    merge(&mut pod, changed);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

/// As `+uid`, `-uid` in order of telling, then `put` and `remove`.
fn words(delta: &Delta) -> String {
    let told = delta.tell.iter().map(|change| match change {
        Change::Set { pod, .. } => format!("+{}", pod.metadata.uid.as_deref().unwrap()),
        Change::Gone { uid } => format!("-{uid}"),
        Change::Complete(origin) => format!("{origin:?}"),
    });
    let put = delta.put.iter().map(|pod| format!("put {}", pod.metadata.uid.as_deref().unwrap()));
    let removed = delta.remove.iter().map(|uid| format!("remove {uid}"));
    told.chain(put).chain(removed).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_list_after_offline_time_is_compared_by_uid() {
    let mut table = Table::default();
    let cached = vec![pod("a", "1", json!({})), pod("b", "2", json!({})), pod("c", "3", json!({}))];
    assert_eq!(words(&table.cached(cached, NODE)), "+1 +2 +3");
    assert!(!table.is_listed);
    // `a` is as it was, `b` was made anew under its name, `c` is gone, `d` is new.
    let listed = vec![pod("a", "1", json!({})), pod("b", "22", json!({})), pod("d", "4", json!({}))];
    assert_eq!(words(&table.listed(listed, NODE)), "-2 -3 +22 +4 put 22 put 4 remove 2 remove 3");
    assert!(table.is_listed);
    assert_eq!(words(&table.listed(vec![], NODE)), "-1 -22 -4 remove 1 remove 22 remove 4");
}

#[test]
fn a_missed_deletion_is_made_up_for() {
    let mut table = Table::default();
    table.listed(vec![pod("a", "1", json!({}))], NODE);
    assert_eq!(words(&table.applied(pod("a", "2", json!({})), NODE)), "-1 +2 put 2 remove 1");
    // The late word of the first one's end does not touch the second.
    assert_eq!(words(&table.deleted(&pod("a", "1", json!({})))), "");
    assert_eq!(words(&table.deleted(&pod("a", "2", json!({})))), "-2 remove 2");
}

#[test]
fn the_nodes_own_status_coming_back_is_no_news() {
    #[track_caller]
    fn check(changed: Value, want: &str) {
        let mut table = Table::default();
        table.listed(vec![pod("a", "1", json!({"status": {"phase": "Running"}}))], NODE);
        let delta = table.applied(pod("a", "1", changed.clone()), NODE);
        assert_eq!(words(&delta), want, "{changed}");
        let again = table.applied(pod("a", "1", changed), NODE);
        assert_eq!(words(&again), "");
    }
    let status = |status: Value| json!({"metadata": {"resourceVersion": "2"}, "status": status});
    let condition = |name: &str| json!({"phase": "Running", "conditions": [{"type": name, "status": "True"}]});
    check(status(json!({"phase": "Running", "podIP": "10.0.0.1"})), "");
    check(status(condition("Ready")), "");
    check(status(condition("example.com/gate")), "+1 put 1");
    check(status(json!({"phase": "Failed"})), "+1");
    check(json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running"}}), "+1 put 1");
    let deleted = json!({"deletionTimestamp": "2025-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30});
    check(json!({"metadata": deleted, "status": {"phase": "Running"}}), "+1 put 1");
    check(json!({"spec": {"activeDeadlineSeconds": 5}, "status": {"phase": "Running"}}), "+1 put 1");
}

#[test]
fn what_is_not_safe_is_not_taken() {
    let mut table = Table::default();
    let hostile = vec![
        pod("../x", "1", json!({})),
        pod("a", "../../1", json!({})),
        pod("b", "2", json!({"spec": {"nodeName": "other"}})),
        pod("good", "3", json!({})),
    ];
    assert_eq!(words(&table.listed(hostile.clone(), NODE)), "+3 put 3");
    assert_eq!(words(&Table::default().cached(hostile, NODE)), "+3 remove 1 remove ../../1 remove 2");
}

fn of_manifest(name: &str, hash: &str) -> Arc<Pod> {
    Arc::new(pod(name, hash, json!({"metadata": {"annotations": {HASH: hash}}})))
}

fn mirror(name: &str, hash: &str) -> Pod {
    pod(name, &format!("mirror-{hash}"), json!({"metadata": {"annotations": {HASH: hash, MIRROR: hash}}}))
}

#[test]
fn mirrors_are_not_run_and_their_uids_are_translated() {
    let known = Known::default();
    assert_eq!(words(&known.change(|table| table.scanned(&[of_manifest("s", "h1")]))), "+h1");
    assert!(!known.is_complete());
    assert_eq!(words(&known.change(|table| table.listed(vec![mirror("s", "h1")], NODE))), "");
    assert!(known.is_complete() && known.is_static("h1"));
    assert_eq!(known.running_uid("mirror-h1"), "h1");
    assert_eq!(known.running_uid("anything"), "anything");
    let uid = |pod: Option<Arc<Pod>>| pod.and_then(|pod| pod.metadata.uid.clone());
    assert_eq!(uid(known.reported("h1")).as_deref(), Some("mirror-h1"));
    assert_eq!(uid(known.get("h1")).as_deref(), Some("h1"));

    // Another manifest under the name: its mirror is not yet there, and the old one stays until the old pod has ended.
    let delta = known.change(|table| table.scanned(&[of_manifest("s", "h2")]));
    assert_eq!(words(&delta), "-h1 +h2");
    assert_eq!(uid(known.mirror_of("h2")), None);
    assert_eq!(uid(known.mirror_of("h1")).as_deref(), Some("mirror-h1"));
    assert_eq!(known.for_mirrors().held.len(), 1);
    assert!(known.is_static("h1"));
    known.ended("h1");
    assert!(known.for_mirrors().held.is_empty() && known.get("h1").is_none());
    assert_eq!(words(&known.change(|table| table.deleted(&mirror("s", "h1")))), "");
}

#[test]
fn a_manifest_that_comes_back_is_wanted_again() {
    let mut table = Table::default();
    let pods = [of_manifest("s", "h1")];
    assert_eq!(words(&table.scanned(&pods)), "+h1");
    assert_eq!(words(&table.scanned(&pods)), "");
    assert_eq!(words(&table.scanned(&[])), "-h1");
    assert_eq!(words(&table.scanned(&pods)), "+h1");
    assert!(table.leaving.is_empty());
}

#[test]
fn there_is_an_end_to_how_many_are_taken() {
    let mut table = Table::default();
    for n in 0..MOST {
        table.applied(pod(&format!("p{n}"), &n.to_string(), json!({})), NODE);
    }
    assert_eq!(words(&table.applied(pod("more", "more", json!({})), NODE)), "");
    assert_eq!(table.bound.len(), MOST);
}
