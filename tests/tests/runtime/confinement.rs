//! Capabilities and system call filters.

use container_engine::runtime::seccomp;
use serde_json::{Value, json};

use crate::bundle::{Bundle, check, kinds, text};

#[test]
fn capabilities_of_root_and_users() {
    let script = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status | while read a b; do echo -n $b,; done";
    let caps = |names: &[&str]| json!(names);
    let set =
        |bundle: Bundle, part: &str, names: &[&str]| bundle.with(&format!("/process/capabilities/{part}"), caps(names));
    let mut wants = Vec::new();
    for kind in kinds() {
        let mut answers = Vec::new();
        for uid in [0, 1000] {
            for ambient in [false, true] {
                for nnp in [false, true] {
                    let mut bundle = Bundle::new(&kind, &["sh", "-c", script]).with("/process/user/uid", json!(uid));
                    bundle = bundle.with("/process/noNewPrivileges", json!(nnp));
                    if ambient {
                        bundle = set(bundle, "inheritable", &["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
                        bundle = set(bundle, "ambient", &["CAP_NET_BIND_SERVICE"]);
                    }
                    for filter in [false, true] {
                        let mut bundle = bundle.again();
                        if filter {
                            bundle = bundle.with("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}));
                        }
                        answers.push(text(&bundle.run()));
                    }
                }
            }
        }
        assert!(answers.iter().all(|answer| answer.contains(',')), "{}: {answers:?}", kind.name);
        wants.push((kind.name, answers));
    }
    let runc = wants.iter().find(|(name, _)| *name == "runc").unwrap().1.clone();
    assert_eq!(wants[0].1, runc, "embedded and runc differ");
}

#[test]
fn seccomp_really_refuses() {
    let profile = |rules: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules});
    let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]);
    for nnp in [false, true] {
        let change = |bundle: Bundle| {
            bundle.with("/linux/seccomp", profile(rules.clone())).with("/process/noNewPrivileges", json!(nnp))
        };
        check(
            "mkdir",
            "mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status",
            change,
            "mkdir: can't create directory '/tmp/x': No space left on device\nSeccomp:\t2",
        );
    }
    let docker = seccomp::docker_default().resolve(&[], &seccomp::Host::this()).unwrap();
    let docker = serde_json::to_value(docker).unwrap();
    let change = |bundle: Bundle| bundle.with("/linux/seccomp", docker.clone());
    check("unshare", "unshare -m true 2>&1; echo $?", change, "unshare: unshare(0x20000): Operation not permitted\n1");
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["sleep", "60"]).with("/linux/seccomp", docker.clone()).started();
        let output =
            bundle.exec(&[&bundle.id, "sh", "-c", "grep Seccomp: /proc/self/status; unshare -m true || echo no"]);
        assert_eq!(text(&output), "Seccomp:\t2\nno", "{}", kind.name);
    }
}

/// On a kernel without AppArmor, and on one that has it and no such profile.
#[test]
fn a_profile_that_is_not_there_is_no_reason_to_run_without() {
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["echo", "ran"]).with("/process/apparmorProfile", json!("edge-absent"));
        let output = bundle.run();
        let told = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(!output.status.success() && text(&output).is_empty(), "{} ran it", kind.name);
        assert!(told.contains("apparmor"), "{}: {told}", kind.name);
    }
}
