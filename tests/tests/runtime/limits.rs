//! Limits, devices, and what else a configuration says of a process.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::bundle::{Bundle, check, is_unified, kinds, text};

/// The number of a whole disk.
fn disk() -> (u64, u64) {
    let disks = fs::read_dir("/sys/block").unwrap().flatten().filter(|disk| disk.path().join("device").exists());
    let number = disks.map(|disk| fs::read_to_string(disk.path().join("dev")).unwrap()).next().unwrap();
    let (major, minor) = number.trim().split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

fn huge_pages() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    controllers.contains("hugetlb") || Path::new("/sys/fs/cgroup/hugetlb").exists()
}

/// Limits, and what the kernel's files are to say: `(version 1, version 2, value on 1, value on 2)`.
type Want = (&'static str, &'static str, String, String);

fn first_limits() -> (Value, Vec<Want>) {
    let (major, minor) = disk();
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let mut limits = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
        "blockIO": {"throttleReadBpsDevice": rate(1 << 20), "throttleWriteIOPSDevice": rate(500)},
    });
    let mut want = vec![
        want("memory.limit_in_bytes", "memory.max", "67108864"),
        want("memory.soft_limit_in_bytes", "memory.low", "33554432"),
        differs("cpu.shares", "cpu.weight", "512", "20"),
        differs("cpu.cfs_quota_us", "cpu.max", "50000", "50000 200000"),
        want("cpuset.cpus", "cpuset.cpus", "0"),
        want("pids.max", "pids.max", "50"),
        (
            "blkio.throttle.read_bps_device",
            "io.max",
            format!("{major}:{minor} 1048576"),
            format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=500"),
        ),
    ];
    if huge_pages() {
        limits["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
        want.push(differs("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "4194304", "4194304"));
    }
    (limits, want)
}

fn second_limits() -> (Value, Vec<Want>) {
    let limits = json!({
        "memory": {"limit": 96 << 20, "reservation": 16 << 20}, "pids": {"limit": -1},
        "cpu": {"shares": 2048, "quota": 150_000, "period": 100_000},
    });
    let want = vec![
        want("memory.limit_in_bytes", "memory.max", "100663296"),
        want("memory.soft_limit_in_bytes", "memory.low", "16777216"),
        differs("cpu.shares", "cpu.weight", "2048", "79"),
        differs("cpu.cfs_quota_us", "cpu.max", "150000", "150000 100000"),
        want("pids.max", "pids.max", "max"),
        // Not named, so left as it was.
        want("cpuset.cpus", "cpuset.cpus", "0"),
    ];
    (limits, want)
}

fn want(v1: &'static str, v2: &'static str, value: &str) -> Want {
    differs(v1, v2, value, value)
}

fn differs(v1: &'static str, v2: &'static str, on_1: &str, on_2: &str) -> Want {
    (v1, v2, on_1.to_owned(), on_2.to_owned())
}

#[track_caller]
fn holds(bundle: &Bundle, want: &[Want]) {
    for (v1, v2, on_1, on_2) in want {
        let (file, value) = if is_unified() { (v2, on_2) } else { (v1, on_1) };
        assert_eq!(bundle.kernel(file).as_ref(), Some(value), "{file} in {}", bundle.kind.name);
    }
}

#[test]
fn limits_reach_the_kernel_and_change() {
    for kind in kinds() {
        let (limits, want) = first_limits();
        let bundle = Bundle::new(&kind, &["sleep", "60"]).with("/linux/resources", limits).started();
        holds(&bundle, &want);
        let (limits, want) = second_limits();
        bundle.runtime().update(&bundle.id, &serde_json::from_value(limits).unwrap()).unwrap();
        holds(&bundle, &want);
    }
}

#[test]
fn limits_hold() {
    let fork = "for n in 1 2 3 4 5 6 7 8; do sleep 30 >/dev/null & done 2>/dev/null; echo all";
    let pids = |bundle: Bundle| bundle.with("/linux/resources", json!({"pids": {"limit": 5}}));
    check("pids", &format!("sh -c '{fork}' 2>&1 | grep -c all"), pids, "0");
    let cpus = |bundle: Bundle| bundle.with("/linux/resources", json!({"cpu": {"cpus": "0"}}));
    check("cpuset", "grep Cpus_allowed_list /proc/self/status | cut -f2", cpus, "0");
}

/// What may be done with a node of one's own making. Making it is allowed to every container.
fn opened(allowed: Value) -> impl Fn(Bundle) -> Bundle {
    move |bundle: Bundle| {
        let caps = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"]);
        let mut rules = json!([{"allow": false, "access": "rwm"}]);
        rules.as_array_mut().unwrap().extend(allowed.as_array().unwrap().iter().cloned());
        let bundle = bundle.with("/linux/resources", json!({"devices": rules}));
        let caps = json!({"bounding": caps, "effective": caps, "permitted": caps});
        bundle.with("/process/capabilities", caps)
    }
}

#[test]
fn a_device_that_is_denied_is_denied_through_any_node() {
    let (major, minor) = disk();
    let script = format!(
        "cd /tmp; mknod kmsg c 1 11 && mknod zero c 1 5 && mknod disk b {major} {minor} && echo made; \
         for node in kmsg zero disk; do (: < $node) 2>/dev/null && echo read $node; (: >> $node) 2>/dev/null && echo write $node; done"
    );
    check("nothing", &script, opened(json!([])), "made\nread zero\nwrite zero");
    let read = json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    check("reading alone", &script, opened(read), "made\nread kmsg\nread zero\nwrite zero");
    let both = json!([{"allow": true, "type": "c", "major": 1, "access": "rw"}]);
    check("a whole major number", &script, opened(both), "made\nread kmsg\nwrite kmsg\nread zero\nwrite zero");
    // Others that enter, and a change of limits, leave the filter where it is.
    for kind in kinds() {
        let bundle = opened(json!([]))(Bundle::new(&kind, &["sleep", "60"])).started();
        bundle.runtime().update(&bundle.id, &serde_json::from_value(json!({"pids": {"limit": 40}})).unwrap()).unwrap();
        let output = bundle.exec(&[&bundle.id, "sh", "-c", &script]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), "made\nread zero\nwrite zero", "exec in {}: {told}", kind.name);
    }
}

#[test]
fn limits_devices_and_the_rest_of_the_process() {
    check(
        "rlimits",
        "ulimit -n; ulimit -Hn",
        |bundle| bundle.with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}])),
        "123\n456",
    );
    check(
        "sysctl",
        "cat /proc/sys/net/ipv4/ip_forward",
        |bundle| bundle.with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
        "1",
    );
    check("oom", "cat /proc/self/oom_score_adj", |bundle| bundle.with("/process/oomScoreAdj", json!(321)), "321");
    check(
        "groups",
        "id -G",
        |bundle| bundle.with("/process/user", json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 6]})),
        "1000 5 6",
    );
    check("umask", "umask", |bundle| bundle.with("/process/user/umask", json!(0o027)), "0027");
    check("cwd", "pwd", |bundle| bundle.with("/process/cwd", json!("/made/here")), "/made/here");
    check(
        "environment",
        "echo $A-$B",
        |bundle| bundle.with("/process/env", json!(["PATH=/bin", "A=1", "B=x y=z"])),
        "1-x y=z",
    );
    check(
        "memory",
        "busybox awk 'BEGIN{x=\"a\"; while (1) x = x x}' >/dev/null 2>&1; echo $?",
        |bundle| bundle.with("/linux/resources", json!({"memory": {"limit": 20_000_000}})),
        "137",
    );
    let devices = json!({"devices": [{"allow": false, "access": "rwm"}]});
    check(
        "devices",
        "head -c1 /dev/kmsg 2>&1; head -c1 /dev/zero | busybox wc -c",
        |bundle| {
            bundle.with("/linux/resources", devices.clone()).with(
                "/linux/devices",
                json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]),
            )
        },
        "head: /dev/kmsg: Operation not permitted\n1",
    );
}
