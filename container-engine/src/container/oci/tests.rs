//! The configuration, for what was asked. The constants are those of Docker 26 (`oci/defaults.go`, `oci/caps`).

use super::{
    super::{MountKind, NetworkMode, Propagation, Resources, Rlimit, Security, UserNamespace},
    *,
};

struct Case {
    spec: ContainerSpec,
    image: ImageDefaults,
    user: User,
    mounts: Vec<MountPoint>,
    userns: Option<(u32, u32)>,
    mode: Mode,
}

impl Default for Case {
    fn default() -> Self {
        let image = ImageDefaults {
            entrypoint: vec!["/entry".into()],
            command: vec!["cmd".into()],
            env: vec!["FROM=image".into(), "PATH=/image/bin".into()],
            ..ImageDefaults::default()
        };
        let (spec, mounts) = (ContainerSpec::default(), Vec::new());
        Self { spec, image, user: User::root(), mounts, userns: None, mode: Mode::V2 }
    }
}

impl Case {
    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut case = Self::default();
        change(&mut case);
        case
    }

    fn try_config(&self) -> Result<Value, ConfigError> {
        let draft = Input::draft(&self.spec, &self.image, &self.user, &self.mounts);
        config(&Input {
            id: "c1",
            hostname: "box",
            rootfs: "/run/c1/rootfs".into(),
            cgroup: "edge.slice/local/c1".into(),
            netns: (self.spec.network != NetworkMode::Host).then(|| "/run/netns/c1".into()),
            userns: self.userns,
            cgroup_mode: self.mode,
            files: vec![("/run/c1/hosts".into(), "/etc/hosts")],
            ..draft
        })
    }

    #[track_caller]
    fn config(&self) -> Value {
        let config = self.try_config().unwrap();
        // What a runtime reads.
        serde_json::from_value::<oci_spec::runtime::Spec>(config.clone()).unwrap();
        config
    }
}

fn mount<'a>(config: &'a Value, target: &str) -> Option<&'a Value> {
    config["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == target)
}

fn options(config: &Value, target: &str) -> Vec<String> {
    serde_json::from_value(mount(config, target).unwrap()["options"].clone()).unwrap()
}

fn namespaces(config: &Value) -> Vec<String> {
    let list = config["linux"]["namespaces"].as_array().unwrap();
    list.iter().map(|ns| ns["type"].as_str().unwrap().to_owned()).collect()
}

fn point(target: &str, kind: MountKind, read_only: bool) -> MountPoint {
    MountPoint {
        kind,
        name: None,
        source: "/host".into(),
        target: target.into(),
        read_only,
        propagation: Propagation::default(),
        anonymous: false,
    }
}

#[test]
fn nothing_asked_for_is_docker() {
    let config = Case::default().config();
    let process = &config["process"];
    assert_eq!(process["args"], json!(["/entry", "cmd"]));
    assert_eq!(process["env"], json!(["PATH=/image/bin", "HOSTNAME=box", "FROM=image", "HOME=/root"]));
    assert_eq!((&process["cwd"], &process["terminal"]), (&json!("/"), &json!(false)));
    assert_eq!(process["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    assert_eq!(process["capabilities"]["effective"], process["capabilities"]["bounding"]);
    assert_eq!(process["capabilities"]["inheritable"], Value::Null);
    assert_eq!(process["noNewPrivileges"], false);
    assert_eq!(namespaces(&config), ["mount", "pid", "ipc", "uts", "network", "cgroup"]);
    assert_eq!(options(&config, "/proc"), ["nosuid", "noexec", "nodev"]);
    assert_eq!(options(&config, "/dev"), ["nosuid", "strictatime", "mode=755", "size=65536k"]);
    assert_eq!(options(&config, "/sys"), ["nosuid", "noexec", "nodev", "ro"]);
    assert!(options(&config, "/sys/fs/cgroup").contains(&"ro".to_owned()));
    assert_eq!(options(&config, "/dev/shm"), ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]);
    assert_eq!(mount(&config, "/etc/hosts").unwrap()["source"], "/run/c1/hosts");
    let linux = &config["linux"];
    assert_eq!(linux["maskedPaths"].as_array().unwrap().len(), 12);
    assert_eq!(
        linux["readonlyPaths"],
        json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"])
    );
    assert_eq!(linux["cgroupsPath"], "/edge.slice/local/c1");
    assert_eq!(linux["resources"]["devices"][0], json!({ "allow": false, "access": "rwm" }));
    assert_eq!(linux["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
    assert_eq!(config["hostname"], "box");
    // On version 1 the cgroup namespace is the host's.
    let v1 = Case::with(|case| case.mode = Mode::Hybrid).config();
    assert!(!namespaces(&v1).contains(&"cgroup".to_owned()));
}

#[test]
fn environment_and_terminal() {
    let config = Case::with(|case| {
        case.spec.tty = true;
        case.spec.env = vec!["FROM=me".into(), "HOME=/elsewhere".into(), "EMPTY=".into(), "PATH".into(), "=x".into()];
    })
    .config();
    assert_eq!(config["process"]["env"], json!(["HOSTNAME=box", "TERM=xterm", "FROM=me", "HOME=/elsewhere", "EMPTY="]));
    assert_eq!(config["process"]["terminal"], true);
}

#[test]
fn users_other_than_root_have_no_rights_but_bounds() {
    let user = User { uid: 7, gid: 8, groups: vec![8, 9], home: "/home/x".into() };
    let config = Case::with(|case| case.user = user).config();
    assert_eq!(config["process"]["user"], json!({ "uid": 7, "gid": 8, "additionalGids": [8, 9] }));
    assert_eq!(config["process"]["capabilities"]["effective"], Value::Null);
    assert_eq!(config["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
}

#[test]
fn privileges() {
    let config = Case::with(|case| case.spec.security = Security { privileged: true, ..Security::default() }).config();
    assert!(config["process"]["capabilities"]["bounding"].as_array().unwrap().len() > 14);
    assert_eq!(config["linux"]["maskedPaths"], json!([]));
    assert_eq!(config["linux"]["resources"]["devices"], json!([{ "allow": true, "access": "rwm" }]));
    assert!(options(&config, "/sys").contains(&"rw".to_owned()));
    assert!(namespaces(&config).contains(&"cgroup".to_owned()));
}

#[test]
fn mounts_are_made_from_the_root_down() {
    let config = Case::with(|case| {
        case.mounts = vec![
            point("/a/b/c", MountKind::Bind, true),
            point("/a", MountKind::Volume, false),
            point("/dev/shm", MountKind::Tmpfs, false),
            point("/etc/hosts", MountKind::Bind, false),
        ];
    })
    .config();
    let order: Vec<&str> =
        config["mounts"].as_array().unwrap().iter().filter_map(|mount| mount["destination"].as_str()).collect();
    let place = |target: &str| order.iter().position(|other| *other == target).unwrap();
    assert!(place("/a") < place("/a/b/c"), "{order:?}");
    // What is asked for stands instead of what is given.
    assert_eq!(order.iter().filter(|target| **target == "/dev/shm").count(), 1);
    assert_eq!(mount(&config, "/etc/hosts").unwrap()["source"], "/host");
    assert_eq!(options(&config, "/a/b/c"), ["rbind", "ro", "rprivate"]);
    assert!(options(&config, "/dev/shm").contains(&"mode=1777".to_owned()));
    for wrong in ["relative", "/", "/a/../b", "/a\0b", ""] {
        let case = Case::with(|case| case.mounts = vec![point(wrong, MountKind::Bind, false)]);
        assert!(case.try_config().is_err(), "{wrong:?}");
    }
    let shared = Case::with(|case| {
        case.mounts = vec![MountPoint { propagation: Propagation::Rshared, ..point("/a", MountKind::Bind, false) }];
    });
    assert_eq!(shared.config()["linux"]["rootfsPropagation"], "shared");
}

#[test]
fn namespaces_of_others_and_of_the_host() {
    let config = Case::with(|case| {
        case.spec.network = NetworkMode::Host;
        case.spec.pid = NamespaceMode::Host;
        case.spec.ipc = NamespaceMode::Host;
        case.spec.uts = NamespaceMode::Host;
    })
    .config();
    assert_eq!(namespaces(&config), ["mount", "cgroup"]);
    assert_eq!(config["hostname"], Value::Null);
    assert_eq!(mount(&config, "/dev/shm").unwrap()["type"], "bind");
    assert_eq!(config["linux"]["sysctl"], json!({}));
    let user = Case::with(|case| {
        case.userns = Some((100_000, 65_536));
        case.spec.userns = UserNamespace::Auto;
    })
    .config();
    assert!(namespaces(&user).contains(&"user".to_owned()));
    assert_eq!(user["linux"]["uidMappings"], json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]));
    assert_eq!(mount(&user, "/sys").unwrap()["type"], "bind");
    assert_eq!(mount(&user, "/dev/mqueue").unwrap()["type"], "mqueue");
    // In a pod: the IPC namespace is another's, and files keep their owners.
    let pod = |map_mounts: bool| {
        Case::with(|case| {
            case.userns = Some((100_000, 65_536));
            case.spec.userns = UserNamespace::Auto;
            case.spec.ipc = NamespaceMode::Path("/run/ipc".into());
            case.spec.map_mounts = map_mounts;
            case.mounts = ["/data", "/dev/shm"].map(|target| point(target, MountKind::Bind, false)).into();
        })
        .config()
    };
    let (plain, mapped) = (pod(false), pod(true));
    assert!(mount(&plain, "/dev/mqueue").is_none());
    let is_mapped = |config: &Value, target: &str| options(config, target).contains(&"idmap".to_owned());
    assert!(!is_mapped(&plain, "/data") && is_mapped(&mapped, "/data") && !is_mapped(&mapped, "/dev/shm"));
}

#[test]
fn limits() {
    let limits = Resources {
        memory: Some(64 << 20),
        cpu_milli: Some(1500),
        cpu_shares: Some(512),
        cpuset_cpus: Some("0-1".into()),
        pids: Some(100),
        blkio_weight: Some(300),
        hugepages: [("2MB".to_owned(), 4096)].into(),
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        blkio: vec![super::super::BlkioLimit { read_bps: Some(5), write_iops: Some(6), ..Default::default() }],
        ..Resources::default()
    };
    let value = resources(&limits, true, &[(0, 8, 16)]).unwrap();
    assert_eq!(value["memory"], json!({ "limit": 64 << 20, "swap": 128 << 20 }));
    assert_eq!(value["cpu"], json!({ "quota": 150_000, "period": 100_000, "shares": 512, "cpus": "0-1" }));
    assert_eq!(value["pids"], json!({ "limit": 100 }));
    let rate = |rate: u64| json!([{ "major": 8, "minor": 16, "rate": rate }]);
    assert_eq!(
        value["blockIO"],
        json!({ "weight": 300, "throttleReadBpsDevice": rate(5), "throttleWriteIOPSDevice": rate(6) })
    );
    assert_eq!(value["hugepageLimits"], json!([{ "pageSize": "2MB", "limit": 4096 }]));
    assert_eq!(value["unified"]["memory.high"], "1");
    assert_eq!(resources(&limits, false, &[]).unwrap()["memory"], json!({ "limit": 64 << 20 }));
    for wrong in [
        Resources { memory: Some(1024), ..Resources::default() },
        Resources { memory: Some(64 << 20), memory_swap: Some(32 << 20), ..Resources::default() },
        Resources { cpu_period_us: Some(1), ..Resources::default() },
        Resources { cpu_shares: Some(1), ..Resources::default() },
        Resources { blkio_weight: Some(5), ..Resources::default() },
        Resources { oom_score_adj: Some(1001), ..Resources::default() },
        Resources { cpuset_cpus: Some("all".into()), ..Resources::default() },
        Resources { unified: [("../x.y".to_owned(), String::new())].into(), ..Resources::default() },
    ] {
        assert!(resources(&wrong, true, &[]).is_err(), "{wrong:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Case), word: &str) {
        let error = Case::with(change).try_config().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    check(
        |case| {
            case.image = ImageDefaults::default();
        },
        "no command",
    );
    check(|case| case.spec.working_dir = Some("tmp".into()), "working_dir");
    check(|case| case.spec.hostname = Some("a b".into()), "hostname");
    check(|case| case.spec.command = Some(vec!["a\0b".into()]), "zero byte");
    check(|case| case.spec.security.cap_add = vec!["FLY".into()], "capability");
    check(|case| case.spec.rlimits = vec![Rlimit { name: "x".into(), soft: 1, hard: 1 }], "rlimits");
    check(|case| case.spec.rlimits = vec![Rlimit { name: "nofile".into(), soft: 2, hard: 1 }], "hard limit");
    check(|case| drop(case.spec.sysctls.insert("vm.swappiness".into(), "1".into())), "sysctls");
    check(
        |case| {
            case.spec.network = NetworkMode::Host;
            case.spec.sysctls.insert("net.core.somaxconn".into(), "1".into());
        },
        "sysctls",
    );
    check(
        |case| {
            case.spec.security.privileged = true;
            case.spec.userns = UserNamespace::Auto;
        },
        "user namespace",
    );
}

#[test]
fn a_further_process() {
    let container = Case::default().config();
    let exec = |change: fn(&mut ExecSpec)| {
        let mut spec = ExecSpec { command: vec!["ls".into()], ..ExecSpec::default() };
        change(&mut spec);
        exec_process(&container, &spec, None)
    };
    let plain = exec(|_| {}).unwrap();
    assert_eq!(plain["args"], json!(["ls"]));
    assert_eq!(plain["env"], container["process"]["env"]);
    assert_eq!(plain["capabilities"], container["process"]["capabilities"]);
    let all = exec(|spec| spec.privileged = true).unwrap();
    assert!(all["capabilities"]["effective"].as_array().unwrap().len() > 14);
    let tty = exec(|spec| {
        spec.tty = true;
        spec.env = vec!["FROM=exec".into()];
        spec.working_dir = Some("/tmp".into());
    })
    .unwrap();
    assert_eq!((&tty["cwd"], &tty["terminal"]), (&json!("/tmp"), &json!(true)));
    assert!(
        tty["env"].as_array().unwrap().contains(&json!("TERM=xterm"))
            && tty["env"].as_array().unwrap().contains(&json!("FROM=exec"))
    );
    assert!(exec(|spec| spec.command.clear()).is_err());
    assert!(exec(|spec| spec.working_dir = Some("x".into())).is_err());
    let user = User { uid: 5, gid: 5, groups: vec![5], home: "/five".into() };
    let spec = ExecSpec { command: vec!["ls".into()], ..ExecSpec::default() };
    let other = exec_process(&container, &spec, Some(&user)).unwrap();
    assert_eq!(other["capabilities"]["effective"], Value::Null);
    assert!(other["env"].as_array().unwrap().contains(&json!("HOME=/five")));
}

#[test]
fn init_comes_first() {
    let config = Case::with(|case| case.spec.init = true).config();
    assert_eq!(config["process"]["args"], json!([INIT, "container-init", "--", "/entry", "cmd"]));
    assert!(mount(&config, INIT).is_some());
}
