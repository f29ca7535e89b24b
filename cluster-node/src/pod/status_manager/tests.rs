//! Against an API server that answers as it is told; the real one is in the project's `tests/`.

use serde_json::{Value, json};

use super::*;
use crate::object::{
    Connection,
    testing::{Bench, refusal},
};

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1",
        "deletionTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"nodeName": "board", "containers": [{"name": "c"}]}, "status": status}))
    .unwrap()
}

fn phase(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
}

fn manager(bench: &Bench, known: &Known, link: &watch::Sender<Link>) -> StatusManager {
    StatusManager::with(bench.server.client(), link.subscribe(), bench.state.clone(), known.clone())
}

fn down() -> Link {
    Link::Down { since: std::time::Instant::now(), problem: "for the test".to_owned() }
}

async fn until(what: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_status_outlives_the_agent_and_the_link() {
    let bench = Bench::new();
    let known = Known::default();
    let link = watch::Sender::new(down());
    let before = manager(&bench, &known, &link);
    before.set(&pod(json!({})), phase("Failed"));
    before.keep("u").await.unwrap();
    drop(before);

    let manager = manager(&bench, &known, &link);
    assert_eq!(manager.last("u").unwrap().phase.as_deref(), Some("Failed"));
    let path = "/api/v1/namespaces/ns/pods/p";
    bench.server.answer(
        &format!("PATCH {path}/status"),
        200,
        serde_json::to_value(pod(json!({"phase": "Failed"}))).unwrap(),
    );
    bench.server.answer(&format!("DELETE {path}"), 200, serde_json::to_value(pod(json!({}))).unwrap());
    let context = Context::detached();
    let stop = context.stop.clone();
    let test = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.server.asked(path), 0);
        // The link alone is not enough: what the server has must be known.
        link.send_replace(Link::Up);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.server.asked(path), 0);
        known.test_bound(vec![pod(json!({"phase": "Running"}))], "board");
        until(|| bench.server.asked("PATCH") == 1).await;
        let mut settled = manager.settled();
        settled.wait_for(|it| *it).await.unwrap();
        assert_eq!(bench.server.asked("DELETE"), 0);
        manager.finish("u");
        until(|| bench.server.asked("DELETE") == 1 && manager.last("u").is_none()).await;
        settled.wait_for(|it| *it).await.unwrap();
        assert_eq!(bench.server.asked("PATCH"), 1);
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(manager.clone().run(context), test);
    outcome.unwrap();
    assert_eq!(bench.state.scan::<Kept>("").count(), 0);
}

#[tokio::test]
async fn a_pod_of_the_same_name_is_not_touched() {
    let bench = Bench::new();
    let known = Known::default();
    known.test_bound(vec![pod(json!({"phase": "Running"}))], "board");
    let link = watch::Sender::new(Link::Up);
    let manager = manager(&bench, &known, &link);
    let path = "/api/v1/namespaces/ns/pods/p";
    // What the API server says of another uid, and the pod that it has.
    bench.server.answer(&format!("PATCH {path}/status"), 422, refusal(422));
    let mut other = pod(json!({}));
    other.metadata.uid = Some("another".to_owned());
    bench.server.answer(&format!("GET {path}"), 200, serde_json::to_value(other).unwrap());
    manager.set(&pod(json!({})), phase("Failed"));
    let context = Context::detached();
    let stop = context.stop.clone();
    let test = async {
        until(|| manager.last("u").is_none()).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(manager.clone().run(context), test);
    outcome.unwrap();
    assert_eq!((bench.server.asked("PATCH"), bench.server.asked("GET")), (1, 1));
}
