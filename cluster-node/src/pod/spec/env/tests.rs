//! Environments by table.

use serde_json::{Value, json};

use super::*;

fn pod(container: &Value) -> Pod {
    let mut container = container.clone();
    container["name"] = json!("app");
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "u-1", "labels": { "app": "shop" },
            "annotations": { "note": "n" } },
        "spec": { "nodeName": "board", "serviceAccountName": "sa", "containers": [container, { "name": "other",
            "resources": { "requests": { "cpu": "250m" } } }], "volumes": [{ "name": "cfg", "emptyDir": {} }] },
    }))
    .unwrap()
}

#[allow(clippy::unnecessary_wraps)] // As it is looked up.
fn config_map(data: &Value) -> Option<Arc<ConfigMap>> {
    Some(Arc::new(serde_json::from_value(json!({ "data": data })).unwrap()))
}

#[allow(clippy::unnecessary_wraps)] // As it is looked up.
fn secret(data: &[(&str, &[u8])]) -> Option<Arc<Secret>> {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), k8s_openapi::ByteString(value.to_vec())));
    Some(Arc::new(Secret { data: Some(data.collect()), ..Secret::default() }))
}

fn made(container: &Value, services: &[Service]) -> Result<BTreeMap<String, String>, SpecError> {
    let pod = pod(container);
    let addresses: [IpAddr; 2] = ["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    let file = VolumeFile { volume: "cfg".into(), path: "a/env".into() };
    let sources = Sources {
        config_maps: [
            ("conf".to_owned(), config_map(&json!({ "A": "conf-a", "B": "conf-b", "x.y": "dots" }))),
            ("none".to_owned(), None),
        ]
        .into(),
        secrets: [("pass".to_owned(), secret(&[("A", b"secret-a"), ("bin", b"\xff\x01")])), ("none".to_owned(), None)]
            .into(),
        files: [(file, "ONE='1'\n".to_owned())].into(),
        services,
        addresses: &addresses,
    };
    let node = Surroundings {
        host_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        allocatable: [("cpu".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("4".into()))].into(),
        ..Surroundings::default()
    };
    environment(&pod, &pod.spec.as_ref().unwrap().containers[0], &sources, &node).map(|env| env.0)
}

#[track_caller]
fn check(container: Value, want: &[(&str, &str)]) {
    let want: BTreeMap<String, String> = want.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    assert_eq!(made(&container, &[]).unwrap(), want, "{container}");
}

#[track_caller]
fn check_error(container: Value, want: &str) {
    let error = made(&container, &[]).unwrap_err();
    assert_eq!((error.reason, error.message.as_str()), ("CreateContainerConfigError", want), "{container}");
}

#[test]
fn written_values_and_expansion() {
    check(json!({}), &[]);
    check(json!({ "env": [{ "name": "A" }, { "name": "B", "value": "" }] }), &[("A", ""), ("B", "")]);
    let env = json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "$(A)-$(C)" }, { "name": "C", "value": "$$(A)" },
        { "name": "A", "value": "$(A)2" }]);
    check(json!({ "env": env }), &[("A", "12"), ("B", "1-$(C)"), ("C", "$(A)")]);
    // A value that is empty gives way to a source.
    let both = json!([{ "name": "A", "value": "", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
    check(json!({ "env": both }), &[("A", "web")]);
}

#[test]
fn fields() {
    #[track_caller]
    fn field(path: &str, want: Option<&str>) {
        let container = json!({ "env": [{ "name": "F", "valueFrom": { "fieldRef": { "fieldPath": path } } }] });
        let got = made(&container, &[]).ok().and_then(|mut vars| vars.remove("F"));
        assert_eq!(got.as_deref(), want, "{path}");
    }
    field("metadata.name", Some("web"));
    field("metadata.namespace", Some("ns"));
    field("metadata.uid", Some("u-1"));
    field("metadata.labels['app']", Some("shop"));
    field("metadata.annotations['note']", Some("n"));
    field("metadata.annotations['no']", Some(""));
    field("spec.nodeName", Some("board"));
    field("spec.serviceAccountName", Some("sa"));
    field("status.hostIP", Some("192.0.2.1"));
    field("status.hostIPs", Some("192.0.2.1,2001:db8::1"));
    field("status.podIP", Some("10.1.0.5"));
    field("status.podIPs", Some("10.1.0.5,fd00::5"));
    field("metadata.labels", None);
    field("spec.hostname", None);
}

#[test]
fn amounts() {
    #[track_caller]
    fn amount(selector: Value, want: Option<&str>) {
        let container = json!({ "resources": { "limits": { "memory": "64Mi" } },
            "env": [{ "name": "R", "valueFrom": { "resourceFieldRef": selector } }] });
        let got = made(&container, &[]).ok().and_then(|mut vars| vars.remove("R"));
        assert_eq!(got.as_deref(), want, "{selector}");
    }
    amount(json!({ "resource": "limits.memory", "divisor": "1Mi" }), Some("64"));
    amount(json!({ "resource": "limits.cpu" }), Some("4")); // The node's.
    amount(json!({ "resource": "requests.cpu" }), Some("0"));
    amount(json!({ "resource": "requests.cpu", "divisor": "1m", "containerName": "other" }), Some("250"));
    amount(json!({ "resource": "requests.cpu", "containerName": "nobody" }), None);
    amount(json!({ "resource": "limits.gpu" }), None);
}

#[test]
fn objects() {
    let from = |kind: &str, name: &str, optional: bool| json!({ kind: { "name": name, "optional": optional } });
    check(
        json!({ "envFrom": [from("configMapRef", "conf", false)] }),
        &[("A", "conf-a"), ("B", "conf-b"), ("x.y", "dots")],
    );
    let mut prefixed = from("configMapRef", "conf", false);
    prefixed["prefix"] = json!("P_");
    check(json!({ "envFrom": [prefixed] }), &[("P_A", "conf-a"), ("P_B", "conf-b"), ("P_x.y", "dots")]);
    // Later ones come over earlier ones, and what is named over both.
    let both = json!([from("configMapRef", "conf", false), from("secretRef", "pass", false)]);
    let named = json!([{ "name": "B", "value": "own-$(A)" }]);
    let want = [("A", "secret-a"), ("B", "own-secret-a"), ("bin", "\u{fffd}\u{1}"), ("x.y", "dots")];
    check(json!({ "envFrom": both, "env": named }), &want);
    for kind in ["configMapRef", "secretRef"] {
        check(json!({ "envFrom": [from(kind, "none", true)] }), &[]);
    }
    check_error(json!({ "envFrom": [from("configMapRef", "none", false)] }), "configmap \"none\" not found");
    check_error(json!({ "envFrom": [from("secretRef", "none", false)] }), "secret \"none\" not found");

    let key = |kind: &str, name: &str, key: &str, optional: bool| {
        let source = json!({ kind: { "name": name, "key": key, "optional": optional } });
        json!({ "env": [{ "name": "V", "valueFrom": source }] })
    };
    check(key("configMapKeyRef", "conf", "A", false), &[("V", "conf-a")]);
    check(key("secretKeyRef", "pass", "A", false), &[("V", "secret-a")]);
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        check(key(kind, "none", "A", true), &[]);
        check(key(kind, if kind.starts_with('c') { "conf" } else { "pass" }, "no", true), &[]);
    }
    check_error(key("configMapKeyRef", "conf", "no", false), "couldn't find key no in ConfigMap ns/conf");
    check_error(key("secretKeyRef", "pass", "no", false), "couldn't find key no in Secret ns/pass");
    check_error(key("secretKeyRef", "none", "no", false), "secret \"none\" not found");
}

#[test]
fn files_of_volumes() {
    let file = |volume: &str, path: &str, key: &str, optional: bool| {
        let source = json!({ "fileKeyRef": { "volumeName": volume, "path": path, "key": key, "optional": optional } });
        json!({ "env": [{ "name": "V", "valueFrom": source }] })
    };
    check(file("cfg", "a/env", "ONE", false), &[("V", "1")]);
    check(file("cfg", "a/env", "TWO", true), &[]);
    check(file("cfg", "none", "ONE", true), &[]);
    check_error(file("cfg", "a/env", "TWO", false), "environment variable key \"TWO\" not found in file \"a/env\"");
    check_error(
        file("cfg", "none", "ONE", false),
        "couldn't parse env file: \"none\" of volume \"cfg\" cannot be read",
    );
    check_error(file("nope", "a/env", "ONE", false), "cannot find the volume \"nope\" referenced by FileKeyRef");
}

#[test]
fn services_come_last_and_can_be_referred_to() {
    let service: Service =
        serde_json::from_value(json!({ "metadata": { "name": "kubernetes", "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 443 }] } }))
        .unwrap();
    let env = json!([{ "name": "API", "value": "https://$(KUBERNETES_SERVICE_HOST)" },
        { "name": "KUBERNETES_SERVICE_PORT", "value": "6443" }]);
    let vars = made(&json!({ "env": env }), &[service]).unwrap();
    assert_eq!(vars["API"], "https://10.96.0.1");
    assert_eq!(vars["KUBERNETES_SERVICE_PORT"], "6443");
    assert_eq!(vars["KUBERNETES_PORT_443_TCP_ADDR"], "10.96.0.1");
}

#[test]
fn what_no_process_can_have() {
    check_error(
        json!({ "env": [{ "name": "A=B", "value": "x" }] }),
        "\"A=B\" can be no name of an environment variable",
    );
    check_error(json!({ "env": [{ "name": "", "value": "x" }] }), "\"\" can be no name of an environment variable");
    check_error(
        json!({ "env": [{ "name": "A", "value": "top\u{0}secret" }] }),
        "the value of environment variable \"A\" has a zero byte: mount it as a file instead",
    );
    let mut env = vec![json!({ "name": "V", "value": "x".repeat(100_000) })];
    env.extend((0..30).map(|n| json!({ "name": format!("V{n}"), "value": "$(V)" })));
    let error = made(&json!({ "env": env }), &[]).unwrap_err();
    assert!(error.message.starts_with("the environment has more than 2097152 bytes"), "{error}");
}

#[test]
fn what_has_to_be_looked_up() {
    let container: Container = serde_json::from_value(json!({ "name": "c",
        "envFrom": [{ "configMapRef": { "name": "c1" } }, { "secretRef": { "name": "s1", "optional": true } }],
        "env": [
            { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "c1", "key": "k", "optional": true } } },
            { "name": "B", "valueFrom": { "configMapKeyRef": { "name": "c2", "key": "k", "optional": true } } },
            { "name": "C", "valueFrom": { "secretKeyRef": { "name": "s1", "key": "k" } } },
            { "name": "D", "value": "x", "valueFrom": { "secretKeyRef": { "name": "s2", "key": "k" } } },
            { "name": "E", "valueFrom": { "fileKeyRef": { "volumeName": "v", "path": "p", "key": "k" } } },
        ] }))
    .unwrap();
    let needs = needs(&container);
    assert_eq!(needs.config_maps, [("c1".to_owned(), false), ("c2".to_owned(), true)].into());
    assert_eq!(needs.secrets, [("s1".to_owned(), false)].into());
    assert_eq!(needs.files, [VolumeFile { volume: "v".into(), path: "p".into() }].into());
    let written: Vec<String> = written(&container).iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(written, ["A=", "B=", "C=", "D=x", "E="]);
}

#[test]
fn secrets_are_not_shown() {
    let env = Env([("PASSWORD".to_owned(), "hunter2".to_owned())].into());
    assert_eq!(format!("{env:?}"), "{\"PASSWORD\"}");
    assert_eq!(env.pairs(), ["PASSWORD=hunter2"]);
}
