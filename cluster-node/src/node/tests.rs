//! The object out of facts, and what of it is sent: tables.

use std::collections::BTreeSet;

use container_engine::{content::Digest, image::Record, owner::Owner, platform::Platform};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use serde_json::{Value, json};

use super::{address, build, build::Facts, cidrs, facts::Amounts, image, patch, resources::Extended};
use crate::{housekeeping::threshold::Pressure, options::Options};

fn facts() -> Facts {
    Facts {
        name: "board".into(),
        labels: [("site".to_owned(), "field".to_owned()), ("kubernetes.io/os".to_owned(), "odd".to_owned())].into(),
        taints: vec!["edge=yes:NoSchedule".parse().unwrap(), "slow:PreferNoSchedule".parse().unwrap()],
        machine: super::Machine {
            machine_id: "m".into(),
            system_uuid: "s".into(),
            boot_id: "b".into(),
            kernel: "6.1".into(),
            os_image: "Debian".into(),
            architecture: "arm64".into(),
            recursive_read_only: true,
            user_namespaces: false,
        },
        amounts: Amounts { cpus: 4, memory: 4 << 30, swap: 1 << 30, disk: 32 << 30, ..Amounts::default() },
        max_pods: 110,
        addresses: address::internal(&["10.0.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap()]),
        port: 10250,
        declared: ["B".to_owned(), "A".to_owned()].into(),
        ..Facts::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn status(facts: &Facts, before: &NodeStatus, second: i64) -> NodeStatus {
    build(facts, before.conditions.as_deref().unwrap_or_default(), at(second)).status.unwrap()
}

#[test]
fn the_object_as_a_kubelet_would_register_it() {
    let node = serde_json::to_value(build(&facts(), &[], at(0))).unwrap();
    assert_eq!(
        node["metadata"]["labels"],
        json!({
            "site": "field", "kubernetes.io/hostname": "board", "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64",
            "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "arm64",
        })
    );
    assert_eq!(node["metadata"]["annotations"], json!({ build::ATTACH_ANNOTATION: "true" }));
    assert_eq!(
        node["spec"]["taints"],
        json!([{ "key": "edge", "value": "yes", "effect": "NoSchedule" }, { "key": "slow", "effect": "PreferNoSchedule" }])
    );
    let status = &node["status"];
    assert_eq!(
        status["addresses"],
        json!([
            { "type": "InternalIP", "address": "10.0.0.5" }, { "type": "InternalIP", "address": "2001:db8::5" },
            { "type": "Hostname", "address": "board" },
        ])
    );
    assert_eq!(
        status["capacity"],
        json!({ "cpu": "4", "memory": "4194304Ki", "ephemeral-storage": "33554432Ki", "pods": "110" })
    );
    assert_eq!(status["daemonEndpoints"], json!({ "kubeletEndpoint": { "Port": 10250 } }));
    assert_eq!(status["declaredFeatures"], json!(["A", "B"]));
    assert_eq!(
        status["runtimeHandlers"],
        json!([{ "name": "", "features": { "recursiveReadOnlyMounts": true, "userNamespaces": false } }])
    );
    let info = &status["nodeInfo"];
    assert_eq!((info["bootID"].as_str(), info["swap"]["capacity"].as_i64()), (Some("b"), Some(1 << 30)));
    assert!(info["kubeletVersion"].as_str().unwrap().starts_with("v1.36."));
    let last = status["conditions"].as_array().unwrap().last().unwrap();
    assert_eq!((last["type"].as_str(), last["status"].as_str()), (Some("Ready"), Some("True")));
}

#[test]
fn conditions_and_their_words() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Facts), name: &str, want: (&str, &str, &str)) {
        let mut facts = facts();
        change(&mut facts);
        let status = status(&facts, &NodeStatus::default(), 0);
        let all = status.conditions.unwrap();
        let it = all.iter().find(|it| it.type_ == name).unwrap();
        assert_eq!((it.status.as_str(), it.reason.as_deref().unwrap(), it.message.as_deref().unwrap()), want);
        assert_eq!(build::is_ready(&all), all[3].status == "True");
    }
    check(|_| {}, "Ready", ("True", "KubeletReady", "kubelet is posting ready status"));
    check(|it| it.problems = vec!["a".into()], "Ready", ("False", "KubeletNotReady", "a"));
    check(|it| it.problems = vec!["a".into(), "b".into()], "Ready", ("False", "KubeletNotReady", "[a, b]"));
    check(
        |it| (it.amounts.cpus, it.amounts.memory) = (0, 0),
        "Ready",
        ("False", "KubeletNotReady", "missing node capacity for resources: cpu, memory"),
    );
    let short = |pressure| move |it: &mut Facts| it.pressures = BTreeSet::from([pressure]);
    let memory = "kubelet has insufficient memory available";
    check(short(Pressure::Memory), "MemoryPressure", ("True", "KubeletHasInsufficientMemory", memory));
    check(short(Pressure::Disk), "DiskPressure", ("True", "KubeletHasDiskPressure", "kubelet has disk pressure"));
    check(
        short(Pressure::Disk),
        "PIDPressure",
        ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    );
    check(
        short(Pressure::Disk),
        "MemoryPressure",
        ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    );
}

#[test]
fn a_condition_changes_when_it_changes() {
    let mut facts = facts();
    let since = |status: &NodeStatus, n: usize| {
        let it = &status.conditions.as_ref().unwrap()[n];
        (it.last_transition_time.clone().unwrap().0, it.last_heartbeat_time.clone().unwrap().0)
    };
    let first = status(&facts, &NodeStatus::default(), 0);
    let second = status(&facts, &first, 10);
    assert_eq!(since(&second, 3), (at(0), at(10)));
    facts.problems.push("x".into());
    let third = status(&facts, &second, 20);
    assert_eq!((since(&third, 3), since(&third, 0)), ((at(20), at(20)), (at(0), at(20))));
    // A clock that went back is no change.
    assert_eq!(since(&status(&facts, &third, -500), 3), (at(20), at(-500)));
    for name in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert!(build::transition(name, true) != build::transition(name, false));
    }
    assert_eq!(build::transition("Ready", true), Some("NodeReady"));
    assert_eq!(build::transition("NetworkUnavailable", true), None);
}

#[test]
fn only_what_changed_is_sent() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Facts), fields: &[&str]) -> Value {
        let before = status(&facts(), &NodeStatus::default(), 0);
        let mut facts = facts();
        change(&mut facts);
        let patch = patch::status(&before, &status(&facts, &before, 10), false);
        let names: Vec<_> = patch.iter().flat_map(|it| it["status"].as_object().unwrap().keys()).collect();
        assert_eq!(names, fields);
        patch.unwrap_or_default()["status"].clone()
    }
    check(|_| {}, &[]);
    let it = check(|it| it.problems.push("x".into()), &["conditions"]);
    assert_eq!(it["conditions"][0].as_object().unwrap().len(), 2, "a beat is a type and a time");
    assert_eq!((it["conditions"].as_array().unwrap().len(), &it["conditions"][3]["status"]), (4, &json!("False")));
    let it = check(|it| it.addresses.truncate(1), &["addresses", "conditions"]);
    assert_eq!(
        it["addresses"],
        json!([{ "$patch": "replace" }, { "type": "InternalIP", "address": "10.0.0.5" },
            { "type": "Hostname", "address": "board" }])
    );
    let extended = [("x.org/cam".to_owned(), Extended { capacity: 2, allocatable: 1 })];
    let it = check(|it| it.extended = extended.into(), &["allocatable", "capacity", "conditions"]);
    assert_eq!((&it["capacity"], &it["allocatable"]), (&json!({ "x.org/cam": "2" }), &json!({ "x.org/cam": "1" })));
    let it = check(|it| it.declared.clear(), &["conditions", "declaredFeatures"]);
    assert_eq!(it["declaredFeatures"], json!([]));
    check(|it| it.machine.kernel = "6.2".into(), &["conditions", "nodeInfo"]);
}

#[test]
fn a_beat_is_small_and_resources_of_others_stay() {
    let facts = facts();
    let mut before = status(&facts, &NodeStatus::default(), 0);
    let beat = patch::status(&before, &status(&facts, &before, 300), true).unwrap();
    assert!(beat.to_string().len() < 350, "{beat}");
    let amounts = before.capacity.as_mut().unwrap();
    amounts.insert("dongle.org/x".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("3".into()));
    amounts.insert("hugepages-2Mi".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("2Mi".into()));
    let patch = patch::status(&before, &status(&facts, &before, 10), false).unwrap();
    assert_eq!(patch["status"]["capacity"], json!({ "hugepages-2Mi": null }));
}

#[test]
fn labels_that_are_missing_are_set_and_others_stay() {
    let ours = build(&facts(), &[], at(0));
    assert_eq!(patch::metadata(&ours, &ours), None);
    let mut theirs = ours.clone();
    let labels = theirs.metadata.labels.as_mut().unwrap();
    labels.insert("site".into(), "elsewhere".into());
    labels.insert("node-role.kubernetes.io/edge".into(), String::new());
    theirs.metadata.annotations = None;
    let want = json!({ "metadata": {
        "labels": { "site": "field" }, "annotations": { build::ATTACH_ANNOTATION: "true" },
    } });
    assert_eq!(patch::metadata(&theirs, &ours), Some(want));
}

#[test]
fn subnets_are_configured_or_given() {
    let options = Options::default();
    let given = |cidr: Option<&str>, cidrs: &[&str]| {
        let cidrs: Vec<String> = cidrs.iter().map(|it| (*it).to_owned()).collect();
        let spec = NodeSpec { pod_cidr: cidr.map(str::to_owned), pod_cidrs: Some(cidrs), ..NodeSpec::default() };
        Node { spec: Some(spec), ..Node::default() }
    };
    let texts = |options: &Options, node: Option<&Node>| -> Vec<String> {
        cidrs(options, node).iter().map(ToString::to_string).collect()
    };
    assert!(texts(&options, None).is_empty());
    assert_eq!(texts(&options, Some(&given(Some("10.1.0.0/24"), &[]))), ["10.1.0.0/24"]);
    let both = given(Some("10.1.0.0/24"), &["10.1.0.0/24", "fd00::/64", "10.9.0.0/24"]);
    assert_eq!(texts(&options, Some(&both)), ["10.1.0.0/24", "fd00::/64"]);
    assert!(texts(&options, Some(&given(Some("odd"), &[]))).is_empty());
    let own = Options { pod_cidr: Some("10.7.0.0/24".parse().unwrap()), ..options };
    assert_eq!(texts(&own, Some(&both)), ["10.7.0.0/24"]);
}

fn record(name: &str, config: &[u8], size: u64, repositories: &[&str]) -> Record {
    Record {
        name: name.into(),
        owner: Owner::Local,
        target: Digest::of(b"target"),
        manifest: Digest::of(b"manifest"),
        config: Digest::of(config),
        layers: Vec::new(),
        blobs: Vec::new(),
        platform: Platform::host(),
        size,
        created_s: 0,
        used_s: 0,
        repositories: repositories.iter().map(|it| (*it).to_owned()).collect(),
        others: Vec::new(),
    }
}

#[test]
fn the_largest_images_with_digests_first() {
    let records = [
        record("docker.io/library/small:1", b"small", 10, &["docker.io/library/small"]),
        record("docker.io/library/big:1", b"big", 99, &[]),
        record("docker.io/library/big:latest", b"big", 99, &["docker.io/library/big"]),
        record("", b"nameless", 1000, &[]),
        Record { owner: Owner::Job("7".into()), ..record("r.org/job:1", b"job", 500, &["r.org/job"]) },
    ];
    let target = Digest::of(b"target");
    let got = image::images(&records, 50);
    let names: Vec<_> = got.iter().map(|it| (it.size_bytes.unwrap(), it.names.clone().unwrap())).collect();
    let big = vec![
        format!("docker.io/library/big@{target}"),
        "docker.io/library/big:1".into(),
        "docker.io/library/big:latest".into(),
    ];
    let small = vec![format!("docker.io/library/small@{target}"), "docker.io/library/small:1".into()];
    assert_eq!(names, [(99, big), (10, small)]);
    assert_eq!(image::images(&records, 1).len(), 1);
    let many: Vec<_> = (0..9).map(|n| record(&format!("r.org/x:{n}"), b"x", 1, &[])).collect();
    assert_eq!(image::images(&many, 50)[0].names.as_ref().unwrap().len(), 5);
}
