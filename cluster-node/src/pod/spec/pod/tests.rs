//! Names, networks and limits of pods by table.

use serde_json::{Value, json};

use super::*;

fn pod(spec: &Value, annotations: &Value) -> Pod {
    let mut spec = spec.clone();
    if spec.get("containers").is_none() {
        spec["containers"] = json!([]);
    }
    serde_json::from_value(json!({
        "metadata": { "name": "web-0", "namespace": "ns", "uid": "u-1", "annotations": annotations }, "spec": spec,
    }))
    .unwrap()
}

fn node() -> Surroundings {
    Surroundings { cluster_domain: "cluster.local".into(), memory: 1 << 30, ..Surroundings::default() }
}

#[test]
fn names() {
    #[track_caller]
    fn check(spec: Value, want: Option<(&str, Option<&str>, &str)>) {
        let got = hostname(&pod(&spec, &json!({})), &node()).ok();
        let got = got.as_ref().map(|it| (it.short.as_str(), it.domain.as_deref(), it.kernel.as_str()));
        assert_eq!(got, want, "{spec}");
    }
    check(json!({}), Some(("web-0", None, "web-0")));
    check(json!({ "hostname": "db" }), Some(("db", None, "db")));
    let domain = Some("sub.ns.svc.cluster.local");
    check(json!({ "subdomain": "sub" }), Some(("web-0", domain, "web-0")));
    let full = json!({ "subdomain": "sub", "setHostnameAsFQDN": true });
    check(full, Some(("web-0", domain, "web-0.sub.ns.svc.cluster.local")));
    check(json!({ "setHostnameAsFQDN": true }), Some(("web-0", None, "web-0")));
    let long = json!({ "hostname": "h".repeat(63), "subdomain": "sub", "setHostnameAsFQDN": true });
    check(long, None);
    check(json!({ "hostname": "Upper" }), None);
    check(json!({ "hostname": "a.b" }), None);
    check(json!({ "subdomain": "-a" }), None);
    check(json!({ "hostnameOverride": "a.b.example" }), Some(("a.b.example", None, "a.b.example")));
    check(json!({ "hostnameOverride": "a..b" }), None);
    check(json!({ "hostnameOverride": "" }), None);
    // A pod's name may be longer than a host's.
    let mut long = pod(&json!({}), &json!({}));
    long.metadata.name = Some(format!("{}-.-{}", "a".repeat(61), "b".repeat(100)));
    assert_eq!(hostname(&long, &node()).unwrap().short, "a".repeat(61));
    for wrong in ["", "a b", "ü", "a\n"] {
        long.metadata.name = Some(wrong.to_owned());
        assert_eq!(hostname(&long, &node()).unwrap_err().reason, "ConfigPodSandboxError", "{wrong:?}");
    }
}

#[test]
fn networks() {
    let port = |host: i32, inside: i32| json!({ "hostPort": host, "containerPort": inside });
    let mut udp = port(53, 5353);
    udp["protocol"] = json!("UDP");
    udp["hostIP"] = json!("192.0.2.1");
    let spec = json!({
        "containers": [{ "name": "a", "ports": [port(8080, 80), { "containerPort": 9 }, port(70000, 1), port(-1, 1), udp] },
            { "name": "b", "ports": [port(8080, 80)] }],
        "initContainers": [{ "name": "i", "ports": [port(1, 1)] },
            { "name": "s", "restartPolicy": "Always", "ports": [port(9000, 90)] }],
    });
    let request = attach_request(&pod(&spec, &json!({})), &node()).unwrap();
    assert_eq!((request.sandbox.as_str(), &request.owner), ("pod-u-1", &Owner::Pod("u-1".into())));
    assert_eq!((request.mode, request.hostname.as_str(), request.bandwidth), (NetworkMode::Bridge, "web-0", None));
    let args: Vec<String> = request.cni_args.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let want = [
        "IgnoreUnknown=1",
        "K8S_POD_INFRA_CONTAINER_ID=pod-u-1",
        "K8S_POD_NAME=web-0",
        "K8S_POD_NAMESPACE=ns",
        "K8S_POD_UID=u-1",
    ];
    assert_eq!(args, want);
    let shown: Vec<_> = request.ports.iter().map(|it| (it.host_port, it.container_port, it.protocol)).collect();
    assert_eq!(shown, [(8080, 80, Protocol::Tcp), (53, 5353, Protocol::Udp), (9000, 90, Protocol::Tcp)]);
    assert_eq!(request.ports[1].host_address, "192.0.2.1".parse().ok());

    let mut on_host = spec;
    on_host["hostNetwork"] = json!(true);
    let request = attach_request(&pod(&on_host, &json!({})), &node()).unwrap();
    assert_eq!((request.mode, request.ports.len()), (NetworkMode::Host, 0));
    // What would be another argument, or another's folder.
    for (field, value) in [("namespace", "a;b"), ("uid", "../x"), ("uid", "a=b"), ("uid", "")] {
        let mut evil = pod(&json!({}), &json!({}));
        match field {
            "uid" => evil.metadata.uid = Some(value.to_owned()),
            _ => evil.metadata.namespace = Some(value.to_owned()),
        }
        assert!(attach_request(&evil, &node()).is_err(), "{field} {value}");
    }
}

#[test]
#[allow(clippy::option_option)] // Refused, none, or some.
fn bandwidths() {
    #[track_caller]
    fn check(ingress: Option<&str>, egress: Option<&str>, want: Option<Option<Bandwidth>>) {
        let mut annotations = json!({});
        for (name, value) in [("ingress", ingress), ("egress", egress)] {
            if let Some(value) = value {
                annotations[format!("kubernetes.io/{name}-bandwidth")] = json!(value);
            }
        }
        assert_eq!(bandwidth(&pod(&json!({}), &annotations)).ok(), want, "{annotations}");
    }
    check(None, None, Some(None));
    check(Some("10M"), None, Some(Some(Bandwidth { ingress: Some(10_000_000), egress: None })));
    check(Some("1k"), Some("1P"), Some(Some(Bandwidth { ingress: Some(1000), egress: Some(1_000_000_000_000_000) })));
    check(None, Some("999"), None);
    check(None, Some("2P"), None);
    check(Some("fast"), None, None);
}

#[test]
fn limits_of_the_whole() {
    #[track_caller]
    fn check(spec: Value, memory: Option<u64>, milli: Option<u64>, shares: u64) {
        let got = pod_resources(&pod(&spec, &json!({})), &node());
        assert_eq!((got.memory, got.cpu_milli, got.cpu_shares), (memory, milli, Some(shares)), "{spec}");
    }
    let one = |limits: Value, requests: Value| json!({ "name": "c", "resources": { "limits": limits, "requests": requests } });
    let mib = 1 << 20;
    check(json!({ "containers": [{ "name": "c" }] }), None, None, 2);
    let small = one(json!({ "cpu": "500m", "memory": "64Mi" }), json!({ "cpu": "250m" }));
    check(json!({ "containers": [small] }), Some(64 * mib), Some(500), 256);
    check(json!({ "containers": [small, small] }), Some(128 * mib), Some(1000), 512);
    // One without limit takes what it likes.
    check(json!({ "containers": [small, { "name": "d" }] }), None, None, 256);
    let memory = one(json!({ "memory": "64Mi" }), json!({}));
    check(json!({ "containers": [memory] }), Some(64 * mib), None, 2);
    // Init containers before, sidecars beside.
    let big = one(json!({ "cpu": "2", "memory": "1Gi" }), json!({ "cpu": "1" }));
    check(json!({ "containers": [small], "initContainers": [big] }), Some(1024 * mib), Some(2000), 1024);
    let mut side = small.clone();
    side["restartPolicy"] = json!("Always");
    check(json!({ "containers": [small], "initContainers": [side] }), Some(128 * mib), Some(1000), 512);
    check(json!({ "containers": [small], "initContainers": [side, big] }), Some(1088 * mib), Some(2500), 1280);
    let overhead = json!({ "containers": [small], "overhead": { "cpu": "250m", "memory": "36Mi" } });
    check(overhead, Some(100 * mib), Some(750), 512);
    // Of the pod as such.
    let whole = json!({ "containers": [{ "name": "c" }], "resources": { "limits": { "cpu": "1", "memory": "32Mi" },
        "requests": { "cpu": "500m" } } });
    check(whole, Some(32 * mib), Some(1000), 512);
    check(
        json!({ "containers": [one(json!({ "cpu": "1m", "memory": "64Mi" }), json!({}))] }),
        Some(64 * mib),
        Some(10),
        2,
    );
    check(json!({ "containers": [one(json!({ "cpu": "many", "memory": "-5" }), json!({}))] }), None, None, 2);

    let pages = one(json!({ "hugepages-2Mi": "4Mi" }), json!({ "hugepages-2Mi": "4Mi" }));
    let spec = json!({ "containers": [pages, pages], "initContainers": [pages] });
    let node = Surroundings { pids: Some(100), ..node() };
    let got = pod_resources(&pod(&spec, &json!({})), &node);
    assert_eq!((got.hugepages, got.pids), ([("2MB".to_owned(), 8 * mib)].into(), Some(100)));
}
