//! Containers by table, and any pod object at all.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

struct Case {
    pod: Pod,
    kind: Kind,
    mounts: ContainerMounts,
    place: Place,
    granted: Granted,
    target: Option<&'static str>,
    env: Env,
}

impl Case {
    fn new(pod: Value, container: &Value) -> Self {
        let mut spec = pod;
        let mut container = container.clone();
        container["name"] = json!("app");
        if container.get("image").is_none() {
            container["image"] = json!("busybox:1");
        }
        spec["containers"] = json!([container]);
        let meta = json!({ "name": "web", "namespace": "ns", "uid": "u-1" });
        Self::of(serde_json::from_value(json!({ "metadata": meta, "spec": spec })).unwrap())
    }

    fn of(pod: Pod) -> Self {
        let place = Place {
            netns: Some("/run/netns/pod-u-1".into()),
            ipc: Some("/run/shared/ipc".into()),
            shm: Some("/run/shared/shm".into()),
            hosts: Some("/kubelet/etc-hosts".into()),
            ..Place::default()
        };
        let (mounts, granted, env) = Default::default();
        Self { pod, kind: Kind::Regular, mounts, place, granted, target: None, env }
    }

    fn make(&self) -> Result<ContainerSpec, SpecError> {
        let (_, wanted) = super::super::find(&self.pod, "app").unwrap_or((Kind::Regular, Container::default()));
        let node = Surroundings {
            memory: 1 << 30,
            oom_group: true,
            log_dir: "/var/log".into(),
            kubelet_dir: "/kubelet".into(),
            ..Surroundings::default()
        };
        let input = Input {
            pod: &self.pod,
            container: &wanted,
            kind: self.kind,
            attempt: 2,
            env: &self.env,
            mounts: &self.mounts,
            groups: &[9].into(),
            image: &ImageConfig::default(),
            image_name: "sha256:beef",
            place: &self.place,
            dns: &Dns { options: vec!["ndots:5".into()], ..Dns::default() },
            termination_log: Some("/kubelet/message".into()),
            seccomp: None,
            granted: &self.granted,
            target: self.target,
            node: &node,
        };
        container(&input)
    }
}

#[track_caller]
fn made(pod: Value, container: Value) -> ContainerSpec {
    Case::new(pod, &container).make().unwrap()
}

fn bind(target: &str, source: &str) -> Mount {
    Mount {
        target: target.to_owned(),
        source: MountSource::Bind { source: source.into(), create: false },
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Rprivate,
    }
}

#[test]
fn a_plain_container() {
    let spec = made(json!({ "priority": 7 }), json!({}));
    assert_eq!((spec.name.as_deref(), spec.image.as_str()), (Some("app-2"), "sha256:beef"));
    assert_eq!(spec.owner.to_string(), "pods/u-1");
    assert_eq!((spec.user.as_deref(), spec.groups.as_slice()), (Some("0"), &["9".to_owned()][..]));
    assert_eq!(spec.hostname.as_deref(), Some("web"));
    assert_eq!(spec.network, NetworkMode::Path("/run/netns/pod-u-1".into()));
    assert_eq!(spec.ipc, NamespaceMode::Path("/run/shared/ipc".into()));
    assert_eq!((spec.pid, spec.uts, spec.userns), Default::default());
    assert_eq!(spec.log.path.as_deref(), Some(Path::new("/var/log/pods/ns_web_u-1/app/2.log")));
    assert_eq!(spec.resources.oom_score_adj, Some(1000));
    assert_eq!(spec.resources.unified, [("memory.oom.group".to_owned(), "1".to_owned())].into());
    assert_eq!((spec.priority, spec.dns.options), (7, vec!["ndots:5".to_owned()]));
    assert_eq!((spec.tty, spec.stdin, spec.stdin_once, spec.init, spec.auto_remove), Default::default());
    let labels: Vec<String> = spec.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let hash = super::super::hash(&super::super::find(&Case::new(json!({}), &json!({})).pod, "app").unwrap().1);
    let want = [
        "edge-agent/attempt=2".to_owned(),
        format!("edge-agent/hash={hash}"),
        "edge-agent/kind=regular".to_owned(),
        "io.kubernetes.container.name=app".to_owned(),
        "io.kubernetes.pod.name=web".to_owned(),
        "io.kubernetes.pod.namespace=ns".to_owned(),
        "io.kubernetes.pod.uid=u-1".to_owned(),
    ];
    assert_eq!(labels, want);
    let want = [
        bind("/etc/hosts", "/kubelet/etc-hosts"),
        bind("/dev/shm", "/run/shared/shm"),
        bind("/dev/termination-log", "/kubelet/message"),
    ];
    assert_eq!(spec.mounts, want);
}

/// Entrypoint and command.
type Words<'a> = (Option<&'a [&'a str]>, Option<&'a [&'a str]>);

#[test]
fn commands() {
    #[track_caller]
    fn check(command: Value, args: Value, want: Option<Words<'_>>) {
        let mut case = Case::new(json!({}), &json!({ "command": command, "args": args }));
        case.env = Env([("NAME".to_owned(), "val".to_owned())].into());
        let got = case.make().ok().map(|spec| (spec.entrypoint, spec.command));
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(got, want.map(|(one, other)| (one.map(owned), other.map(owned))), "{command} {args}");
    }
    check(json!(null), json!(null), Some((None, None)));
    check(json!([]), json!([]), Some((None, None)));
    check(json!(null), json!(["a", ""]), Some((None, Some(&["a", ""]))));
    check(json!(["/p"]), json!(null), Some((Some(&["/p"]), Some(&[]))));
    check(json!(["/p", "", "x"]), json!(["y"]), Some((Some(&["/p"]), Some(&["", "x", "y"]))));
    check(json!(["$(NAME)", "$(NO)"]), json!(["$$(NAME)"]), Some((Some(&["val"]), Some(&["$(NO)", "$(NAME)"]))));
    check(json!([""]), json!(["x"]), None);
}

#[test]
fn namespaces() {
    let host = made(json!({ "hostNetwork": true, "hostPID": true, "hostIPC": true }), json!({}));
    assert_eq!((host.network, host.hostname), (NetworkMode::Host, None));
    assert_eq!((host.pid, host.ipc, host.uts), (NamespaceMode::Host, NamespaceMode::Host, NamespaceMode::Host));
    assert!(!host.mounts.iter().any(|mount| mount.target == "/dev/shm"));

    let mut case = Case::new(json!({ "shareProcessNamespace": true }), &json!({}));
    case.place.pid = Some("/run/shared/pids".into());
    case.target = Some("beef");
    assert_eq!(case.make().unwrap().pid, NamespaceMode::Path("/run/shared/pids".into()));
    case.place.pid = None;
    assert_eq!(case.make().unwrap().pid, NamespaceMode::Container("beef".into()));
    case.place.userns = UserNamespace::Mapped { host: 100_000, size: 65_536 };
    case.place.ipc = None;
    let spec = case.make().unwrap();
    assert_eq!(
        (spec.userns, spec.ipc),
        (UserNamespace::Mapped { host: 100_000, size: 65_536 }, NamespaceMode::Private)
    );
    assert!(spec.map_mounts && !made(json!({}), json!({})).map_mounts);
    case.place.netns = None;
    assert_eq!(case.make().unwrap_err().reason, "CreateContainerError");
}

#[test]
fn mounts_of_the_pod_come_first() {
    let mut case = Case::new(json!({}), &json!({ "terminationMessagePath": "/tmp/end" }));
    case.mounts.mounts = vec![bind("/etc/hosts/", "/v/hosts"), bind("//dev/./shm", "/v/shm"), bind("/data", "/v/data")];
    case.granted.mounts = vec![bind("/data", "/plugin"), bind("/usr/lib/gpu", "/plugin")];
    let shown: Vec<String> = case.make().unwrap().mounts.iter().map(|mount| mount.target.clone()).collect();
    assert_eq!(shown, ["/etc/hosts/", "//dev/./shm", "/data", "/usr/lib/gpu", "/tmp/end"]);
    // As written by hand in a manifest.
    for (path, want) in [("end", "/end"), ("/end", "/end"), ("//end", "/end")] {
        let container = Container { termination_message_path: Some(path.into()), ..Container::default() };
        assert_eq!(termination_path(&container).as_deref(), Some(want));
    }
    let none = Container { termination_message_path: Some(String::new()), ..Container::default() };
    assert_eq!(termination_path(&none), None);
}

#[test]
fn what_plugins_grant() {
    let mut case = Case::new(json!({}), &json!({}));
    case.env = Env([("A".to_owned(), "pod".to_owned()), ("B".to_owned(), "pod".to_owned())].into());
    case.granted.env = [("B".to_owned(), "plugin".to_owned())].into();
    case.granted.annotations = [("plugin".to_owned(), "x".to_owned())].into();
    let device = |path: &str| Device { source: path.into(), target: path.into(), access: "rw".into() };
    case.mounts.devices = vec![device("/dev/sda")];
    case.granted.devices = vec![device("/dev/ttyUSB0")];
    let spec = case.make().unwrap();
    assert_eq!(spec.env, ["A=pod", "B=plugin"]);
    assert_eq!(spec.devices, [device("/dev/sda"), device("/dev/ttyUSB0")]);
    assert_eq!(spec.annotations, case.granted.annotations);
}

#[test]
fn further_fields() {
    let container = json!({ "tty": true, "stdin": true, "stdinOnce": true, "workingDir": "/srv",
        "lifecycle": { "stopSignal": "SIGUSR1" },
        "resources": { "limits": { "cpu": "250m", "memory": "32Mi" } } });
    let spec = made(json!({}), container);
    assert_eq!((spec.tty, spec.stdin, spec.stdin_once), (true, true, true));
    assert_eq!((spec.working_dir.as_deref(), spec.stop_signal.as_deref()), (Some("/srv"), Some("SIGUSR1")));
    assert_eq!((spec.resources.memory, spec.resources.cpu_milli), (Some(32 << 20), Some(250)));
    assert!(!made(json!({}), json!({ "stdinOnce": true })).stdin_once);
    assert!(Case::new(json!({}), &json!({ "workingDir": "srv" })).make().is_err());

    let sysctls = json!([{ "name": "net.ipv4.tcp_syncookies", "value": "0" }, { "name": "kernel/shm_rmid_forced", "value": "1" }]);
    let spec = made(json!({ "securityContext": { "sysctls": sysctls } }), json!({}));
    let shown: Vec<String> = spec.sysctls.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(shown, ["kernel.shm_rmid_forced=1", "net.ipv4.tcp_syncookies=0"]);
    for (name, want) in [("a.b/c", "a.b/c"), ("net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x"), ("", "")] {
        assert_eq!(sysctl_name(name), want);
    }
}

#[test]
fn ephemeral_containers() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "u-1" },
        "spec": { "containers": [{ "name": "main" }],
            "ephemeralContainers": [{ "name": "app", "image": "debug", "tty": true, "targetContainerName": "main" }] },
    }))
    .unwrap();
    assert_eq!(super::super::find(&pod, "app").map(|(kind, _)| kind), Some(Kind::Ephemeral));
    let mut case = Case::of(pod);
    (case.kind, case.target) = (Kind::Ephemeral, Some("beef"));
    let spec = case.make().unwrap();
    assert_eq!((spec.tty, spec.pid), (true, NamespaceMode::Container("beef".into())));
    assert_eq!(spec.labels[label::KIND], "ephemeral");
}

#[test]
fn a_definition_has_a_hash() {
    let of = |name: &str, image: &str| {
        super::super::hash(&Container { name: name.into(), image: Some(image.into()), ..Container::default() })
    };
    assert_eq!(of("a", "b"), of("a", "b"));
    assert_ne!(of("a", "b"), of("a", "c"));
    assert_ne!(of("ab", "c"), of("a", "bc"));
    let resized: Container = serde_json::from_value(json!({ "name": "a", "image": "b",
        "resources": { "limits": { "cpu": "1" } } }))
    .unwrap();
    assert_eq!(super::super::hash(&resized), of("a", "b"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the fields of a pod hold, there is a specification or an error, and what it names stays where it belongs.
    #[test]
    fn no_pod_makes_it_panic(text in "\\PC{0,40}|[./a\0=;$()\\[\\]' -]{0,20}", number in any::<i64>(), flag in any::<bool>()) {
        let small = i32::try_from(number).unwrap_or(i32::MAX);
        let container = json!({ "name": text, "image": text, "command": [text], "args": [text, ""], "workingDir": format!("/{text}"),
            "terminationMessagePath": text, "env": [{ "name": text, "value": text },
                { "name": "F", "valueFrom": { "fieldRef": { "fieldPath": text } } },
                { "name": "R", "valueFrom": { "resourceFieldRef": { "resource": format!("limits.{text}"), "divisor": text } } },
                { "name": "K", "valueFrom": { "fileKeyRef": { "volumeName": text, "path": text, "key": text } } }],
            "resources": { "limits": { "memory": number.to_string(), "cpu": text, "hugepages-2Mi": text } },
            "ports": [{ "hostPort": small, "containerPort": small, "hostIP": text }],
            "securityContext": { "runAsUser": if flag { 5 } else { number }, "privileged": flag,
                "seccompProfile": { "type": if flag { "Unconfined" } else { text.as_str() } } } });
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": text, "namespace": text, "uid": if flag { "u-1" } else { text.as_str() },
                "annotations": { "kubernetes.io/ingress-bandwidth": text } },
            "spec": { "containers": [container], "initContainers": [container], "hostname": text, "subdomain": text,
                "dnsPolicy": text, "dnsConfig": { "nameservers": [text], "searches": [text], "options": [{ "name": text }] },
                "hostAliases": [{ "ip": text, "hostnames": [text] }], "hostNetwork": flag, "priority": small,
                "securityContext": { "fsGroup": if flag { 5 } else { number }, "sysctls": [{ "name": text, "value": text }] },
                "overhead": { "cpu": text } },
        })).unwrap();
        let node = Surroundings { log_dir: "/var/log".into(), ..Surroundings::default() };
        let wanted = &pod.spec.as_ref().unwrap().containers[0];
        let _ = super::super::environment(&pod, wanted, &super::super::Sources::default(), &node);
        let _ = super::super::pod::attach_request(&pod, &node);
        let _ = super::super::pod::pod_resources(&pod, &node);
        let (dns, _) = super::super::dns::dns(&pod, &node, &[]);
        for word in dns.search.iter().chain(&dns.options) {
            prop_assert!(!word.contains(char::is_whitespace));
        }
        if let Ok(names) = super::super::pod::hostname(&pod, &node) {
            prop_assert!(!names.kernel.is_empty() && names.kernel.len() <= 64);
            let hosts = super::super::hosts::hosts_file(&pod, &names, &["10.0.0.1".parse().unwrap()], &node).unwrap();
            prop_assert!(hosts.lines().count() <= 12);
        }
        let mut case = Case::of(pod);
        case.kind = Kind::Init;
        if let Ok(spec) = case.make() {
            let log = spec.log.path.unwrap();
            prop_assert!(log.starts_with("/var/log/pods") && !log.components().any(|it| it == std::path::Component::ParentDir));
        }
    }
}
