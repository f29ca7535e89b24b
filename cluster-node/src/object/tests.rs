//! Objects as pods see them, with and without an API server.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Pod, Secret},
};
use serde_json::{Value, json};
use store::state::{Batch, Entity};
use tokio::time::timeout;

use super::{
    Keep, ObjectError, TokenWanted,
    testing::{Bench, NOW_US, refusal},
};

const MAPS: &str = "/api/v1/namespaces/ns/configmaps";

fn pod(uid: &str, volumes: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p", "namespace": "ns", "uid": uid },
        "spec": { "containers": [], "volumes": volumes, "enableServiceLinks": false } }))
    .unwrap()
}

fn with_map(uid: &str) -> Pod {
    pod(uid, json!([{ "name": "v", "configMap": { "name": "c" } }]))
}

fn map(version: &str, value: &str, more: Value) -> Value {
    let mut map = json!({ "kind": "ConfigMap", "apiVersion": "v1", "data": { "k": value },
        "metadata": { "name": "c", "namespace": "ns", "resourceVersion": version } });
    for (key, value) in more.as_object().unwrap() {
        map[key] = value.clone();
    }
    map
}

fn value(map: &ConfigMap) -> &str {
    &map.data.as_ref().unwrap()["k"]
}

/// Waits until the condition holds.
async fn until(what: impl Fn() -> bool) {
    let waited = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), waited).await.expect("it did not come true within 10 s");
}

#[tokio::test]
async fn a_reference_is_watched_while_pods_use_it_and_they_hear_of_changes() {
    let bench = Bench::new();
    bench.server.has(MAPS, "5", &[map("5", "one", json!({}))]);
    let objects = bench.objects();
    objects.register(&with_map("u1"));
    objects.register(&with_map("u2"));
    assert_eq!(value(&objects.config_map("ns", "c").await.unwrap()), "one");
    assert_eq!(
        bench.server.asked(&format!("GET {MAPS}?&fieldSelector=metadata.name%3Dc&limit")),
        1,
        "one list for two pods"
    );
    let changes = objects.changes();
    assert!(timeout(Duration::from_millis(50), changes.next()).await.is_err(), "what is first seen is no change");
    until(|| bench.server.send("configmaps", "MODIFIED", &map("6", "two", json!({}))) == 1).await;
    let told = timeout(Duration::from_secs(5), changes.next()).await.unwrap();
    assert_eq!(told, BTreeSet::from(["u1".to_owned(), "u2".to_owned()]));
    assert_eq!(value(&objects.config_map("ns", "c").await.unwrap()), "two");
    assert_eq!(value(&bench.cache().config_map("ns", "c").unwrap()), "two");
    objects.unregister("u1");
    assert_eq!(bench.server.send("configmaps", "DELETED", &map("7", "two", json!({}))), 1);
    let told = timeout(Duration::from_secs(5), changes.next()).await.unwrap();
    assert_eq!(told, BTreeSet::from(["u2".to_owned()]));
    assert!(objects.config_map("ns", "c").await.unwrap_err().is_not_found());
    assert!(bench.cache().config_map("ns", "c").is_none());
    objects.unregister("u2");
    until(|| bench.server.send("configmaps", "ADDED", &map("8", "x", json!({}))) == 0).await;
}

#[tokio::test]
async fn the_copy_serves_without_the_api_server_and_after_a_start() {
    let bench = Bench::new();
    bench.server.has(MAPS, "5", &[map("5", "kept", json!({}))]);
    let secret = json!({ "kind": "Secret", "metadata": { "name": "s", "namespace": "ns", "resourceVersion": "5" },
        "data": { "k": "aHVzaC1odXNo" } });
    bench.server.has("/api/v1/namespaces/ns/secrets", "5", &[secret]);
    let both = json!([{ "name": "v", "configMap": { "name": "c" } }, { "name": "w", "secret": { "secretName": "s" } }]);
    let objects = bench.objects();
    objects.register(&pod("u", both.clone()));
    objects.config_map("ns", "c").await.unwrap();
    objects.secret("ns", "s").await.unwrap();
    drop(objects);
    bench.server.is_down.store(true, std::sync::atomic::Ordering::SeqCst);
    let objects = bench.objects();
    objects.register(&pod("u", both));
    let begun = std::time::Instant::now();
    assert_eq!(value(&objects.config_map("ns", "c").await.unwrap()), "kept");
    let secret = objects.secret("ns", "s").await.unwrap();
    assert_eq!(secret.data.as_ref().unwrap()["k"], ByteString(b"hush-hush".to_vec()));
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody waits for a link that is down");
    let error = objects.config_map("ns", "other").await.unwrap_err();
    assert!(error.is_transient() && !error.is_not_found(), "{error}");
    // It comes back with another version: the pod that was served the copy hears of it.
    bench.server.has(MAPS, "9", &[map("9", "new", json!({}))]);
    bench.server.is_down.store(false, std::sync::atomic::Ordering::SeqCst);
    timeout(Duration::from_secs(20), objects.changes().next()).await.unwrap();
    until(|| bench.cache().config_map("ns", "c").is_some_and(|it| value(&it) == "new")).await;
    assert_eq!(value(&objects.config_map("ns", "c").await.unwrap()), "new");
}

#[tokio::test]
async fn what_was_not_there_is_known_not_to_be_after_a_reboot_without_the_api_server() {
    let bench = Bench::new();
    bench.server.has(MAPS, "5", &[]);
    let objects = bench.objects();
    objects.register(&with_map("u"));
    assert!(objects.config_map("ns", "c").await.unwrap_err().is_not_found());
    drop(objects);
    bench.server.is_down.store(true, std::sync::atomic::Ordering::SeqCst);
    let objects = bench.objects();
    objects.register(&with_map("u"));
    assert!(objects.config_map("ns", "c").await.unwrap_err().is_not_found());
    bench.cache().put_config_map("ns", "c", &ConfigMap::default()).await.unwrap();
    assert!(!bench.cache().lacks_config_map("ns", "c"));
    bench.cache().remove_config_map("ns", "c").await.unwrap();
    assert!(bench.cache().lacks_config_map("ns", "c") && bench.cache().config_map("ns", "c").is_none());
    bench.cache().retain(&Keep::default()).await.unwrap();
    assert!(!bench.cache().lacks_config_map("ns", "c"));
}

#[tokio::test]
async fn a_refusal_right_after_the_binding_passes() {
    let bench = Bench::new();
    bench.server.answer(&format!("GET {MAPS}"), 403, refusal(403));
    let objects = bench.objects();
    objects.register(&with_map("u"));
    let (server, wait) = (bench.server.clone(), objects.clone());
    let asked = async move { wait.config_map("ns", "c").await };
    let heard = async move {
        until(|| server.asked("configmaps") >= 2).await;
        server.has(MAPS, "5", &[map("5", "one", json!({}))]);
    };
    let (got, ()) = tokio::join!(asked, heard);
    assert_eq!(value(&got.unwrap()), "one");
}

#[tokio::test]
async fn a_refusal_that_stays_is_told() {
    let bench = Bench::new();
    bench.server.answer(&format!("GET {MAPS}"), 403, refusal(403));
    let error = bench.objects().config_map("ns", "c").await.unwrap_err();
    assert!(matches!(error, ObjectError::Forbidden { .. }), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn immutable_ones_are_not_watched_and_large_ones_are_refused() {
    let bench = Bench::new();
    bench.server.has(MAPS, "5", &[map("5", "one", json!({ "immutable": true }))]);
    let objects = bench.objects();
    objects.register(&with_map("u"));
    objects.config_map("ns", "c").await.unwrap();
    until(|| bench.server.send("configmaps", "MODIFIED", &map("6", "two", json!({}))) == 0).await;
    assert_eq!(value(&objects.config_map("ns", "c").await.unwrap()), "one");
    let bench = Bench::new();
    bench.server.has(MAPS, "5", &[map("5", &"x".repeat(super::MAX_OBJECT), json!({}))]);
    let objects = bench.objects();
    objects.register(&with_map("u"));
    let error = objects.config_map("ns", "c").await.unwrap_err();
    assert!(matches!(error, ObjectError::TooLarge { .. }), "{error}");
}

fn wanted() -> TokenWanted {
    TokenWanted {
        namespace: "ns".into(),
        service_account: "sa".into(),
        audiences: vec![],
        expiration_s: 3600,
        pod: "p".into(),
        uid: "u".into(),
    }
}

fn answer(token: &str, now_us: i64) -> Value {
    let end = jiff::Timestamp::from_second(now_us / 1_000_000 + 3600).unwrap().to_string();
    json!({ "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "spec": { "audiences": [], "expirationSeconds": 3600 }, "status": { "token": token, "expirationTimestamp": end } })
}

#[tokio::test]
async fn tokens_are_renewed_in_time_and_outlive_a_link() {
    const ASK: &str = "POST /api/v1/namespaces/ns/serviceaccounts/sa/token";
    let bench = Bench::new();
    let revealed = |token: super::Token| token.token.reveal().to_owned();
    bench.server.answer(ASK, 201, answer("first", NOW_US));
    let objects = bench.objects();
    assert_eq!(revealed(objects.token(&wanted()).await.unwrap()), "first");
    bench.server.answer(ASK, 201, answer("second", NOW_US));
    assert_eq!(revealed(objects.token(&wanted()).await.unwrap()), "first");
    assert_eq!(bench.server.asked(ASK), 1);
    // It survives a start of the agent, sealed.
    let objects = bench.objects();
    assert_eq!(revealed(objects.token(&wanted()).await.unwrap()), "first");
    bench.clock.1.advance(Duration::from_secs(2881));
    bench.server.answer(ASK, 500, refusal(500));
    assert_eq!(revealed(objects.token(&wanted()).await.unwrap()), "first", "it stands, so it is served");
    bench.server.answer(ASK, 201, answer("second", NOW_US + 2_881_000_000));
    assert_eq!(revealed(objects.token(&wanted()).await.unwrap()), "second");
    bench.clock.1.advance(Duration::from_secs(10_000));
    bench.server.answer(ASK, 403, refusal(403));
    let error = objects.token(&wanted()).await.unwrap_err();
    assert!(matches!(error, ObjectError::Forbidden { .. }), "{error}: expired, and the server says no");
    bench.server.is_down.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(revealed(objects.token(&wanted()).await.unwrap()), "second", "nobody can check it either");
    let other = TokenWanted { uid: "other".into(), ..wanted() };
    objects.token(&other).await.unwrap_err();
}

#[tokio::test]
async fn tokens_that_are_none_are_refused() {
    const ASK: &str = "POST /api/v1/namespaces/ns/serviceaccounts/sa/token";
    let bench = Bench::new();
    for bad in ["", "two\nlines", "spa ce", &"x".repeat(70_000)] {
        bench.server.answer(ASK, 201, answer(bad, NOW_US));
        let error = bench.objects().token(&wanted()).await.unwrap_err();
        assert!(matches!(error, ObjectError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn services_come_by_namespace_and_last() {
    let bench = Bench::new();
    let service = |name: &str, namespace: &str| {
        json!({ "kind": "Service", "metadata":
        { "name": name, "namespace": namespace, "resourceVersion": "1" }, "spec": { "clusterIP": "10.0.0.1" } })
    };
    bench.server.has("/api/v1/namespaces/ns/services", "5", &[service("a", "ns"), service("b", "ns")]);
    bench.server.has("/api/v1/namespaces/default/services", "5", &[service("kubernetes", "default")]);
    let mut pod = with_map("u");
    pod.spec.as_mut().unwrap().enable_service_links = Some(true);
    let names = |all: Vec<k8s_openapi::api::core::v1::Service>| -> Vec<String> {
        all.into_iter().map(|it| it.metadata.name.unwrap()).collect()
    };
    let objects = bench.objects();
    objects.register(&pod);
    let mut all = names(objects.services(&pod).await.unwrap());
    all.sort();
    assert_eq!(all, ["a", "b", "kubernetes"]);
    assert!(objects.services_ready(&pod));
    until(|| bench.server.send("namespaces/ns/services", "DELETED", &service("a", "ns")) == 1).await;
    until(|| bench.cache().services("ns").is_some_and(|it| it.len() == 1)).await;
    bench.server.is_down.store(true, std::sync::atomic::Ordering::SeqCst);
    let objects = bench.objects();
    objects.register(&pod);
    assert!(!objects.services_ready(&pod));
    let mut all = names(objects.services(&pod).await.unwrap());
    all.sort();
    assert_eq!(all, ["b", "kubernetes"]);
    let mut stranger = pod;
    stranger.metadata.namespace = Some("elsewhere".into());
    // What nobody watches and no copy has is not taken for nothing.
    assert!(objects.services(&stranger).await.is_err());
}

/// A record as it lies in the store.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
struct Raw(Value);

impl Entity for Raw {
    const TREE: &'static str = "node-secrets";
    const VERSION: u16 = 1;
}

#[tokio::test]
async fn swapped_and_damaged_secrets_are_dropped() {
    let bench = Bench::new();
    let cache = bench.cache();
    let secret = |text: &str| Secret {
        data: Some([("k".to_owned(), ByteString(text.as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    for name in ["low", "high", "cut"] {
        cache.put_secret("ns", name, &secret(&format!("of {name}"))).await.unwrap();
    }
    let raw = |name: &str| bench.state.get::<Raw>(&format!("ns/{name}")).unwrap().unwrap();
    assert!(!raw("high").0.to_string().contains("of high"));
    let (low, high, cut) = (raw("low"), raw("high"), raw("cut"));
    let half = cut.0.as_str().unwrap()[..20].to_owned();
    let mut batch = Batch::default();
    batch.put("ns/low", &high).unwrap();
    batch.put("ns/high", &low).unwrap();
    batch.put("ns/cut", &Raw(json!(half))).unwrap();
    batch.put("ns/strange", &Raw(json!({ "not": "a string" }))).unwrap();
    bench.state.commit(batch).await.unwrap();
    cache.put_secret("ns", "good", &secret("good")).await.unwrap();
    for name in ["low", "high", "cut", "strange", "none"] {
        assert_eq!(cache.secret("ns", name), None, "{name}");
    }
    assert_eq!(cache.sweep().await.unwrap(), 3);
    assert_eq!(cache.sweep().await.unwrap(), 0);
    assert!(cache.secret("ns", "good").is_some());
    // With another key nothing opens, and nothing fails.
    std::fs::remove_file(bench.dir.path().join("identity/cache.key")).unwrap();
    assert_eq!(bench.cache().secret("ns", "good"), None);
}

#[tokio::test]
async fn what_nobody_refers_to_is_forgotten() {
    let bench = Bench::new();
    let cache = bench.cache();
    for name in ["kept", "gone"] {
        cache.put_config_map("ns", name, &ConfigMap::default()).await.unwrap();
        cache.put_secret("ns", name, &Secret::default()).await.unwrap();
    }
    let names = BTreeSet::from(["ns/kept".to_owned()]);
    let keep = Keep { config_maps: names.clone(), secrets: names, ..Keep::default() };
    cache.retain(&keep).await.unwrap();
    assert!(cache.config_map("ns", "kept").is_some() && cache.secret("ns", "kept").is_some());
    assert!(cache.config_map("ns", "gone").is_none() && cache.secret("ns", "gone").is_none());
}

#[tokio::test]
async fn pods_are_kept_with_their_status() {
    let bench = Bench::new();
    let cache = bench.cache();
    cache.change_pods(&[with_map("u1"), with_map("u2")], &[]).await.unwrap();
    cache.change_pods(&[with_map("u3")], &["u1".to_owned()]).await.unwrap();
    let uids = cache.pods().into_iter().map(|it| it.metadata.uid.unwrap()).collect::<Vec<_>>();
    assert_eq!(uids, ["u2", "u3"]);
}

#[tokio::test]
async fn pull_secrets_that_are_missing_are_left_out() {
    let bench = Bench::new();
    let content = json!({ "auths": { "reg.io": { "username": "u", "password": "p" } } }).to_string();
    let secret = Secret {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some("pull".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        type_: Some("kubernetes.io/dockerconfigjson".into()),
        data: Some([(".dockerconfigjson".to_owned(), ByteString(content.into_bytes()))].into()),
        ..Secret::default()
    };
    bench.server.answer("GET /api/v1/namespaces/ns/secrets/pull", 200, serde_json::to_value(secret).unwrap());
    let mut pod = with_map("u");
    let names = ["none", "pull"].map(|name| k8s_openapi::api::core::v1::LocalObjectReference { name: name.into() });
    pod.spec.as_mut().unwrap().image_pull_secrets = Some(names.to_vec());
    let ring = bench.objects().keyring(&pod).await;
    assert_eq!(ring.credentials("reg.io/a").len(), 1);
}

#[tokio::test]
async fn the_service_ends_its_watches() {
    let bench = Bench::new();
    bench.server.has(MAPS, "5", &[map("5", "one", json!({}))]);
    let objects = bench.objects();
    let context = board::tasks::Context::detached();
    let stop = context.stop.clone();
    objects.register(&with_map("u"));
    objects.config_map("ns", "c").await.unwrap();
    let run = objects.run(context);
    stop.cancel();
    timeout(Duration::from_secs(5), run).await.unwrap().unwrap();
    until(|| bench.server.send("configmaps", "ADDED", &map("8", "x", json!({}))) == 0).await;
}
