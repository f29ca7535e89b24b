//! Hooks: when they run, in whose namespaces, and what they are told.

use std::fs;

use serde_json::{Value, json};

use crate::bundle::{Bundle, kinds};

/// A hook that notes its name, where it runs and what it was told.
fn hook(name: &str, note: &str) -> Value {
    // On the host and in the container alike: busybox by its own name, since applets have no links on the host.
    let script =
        format!("{{ echo {name} $(/bin/busybox readlink /proc/self/ns/mnt); /bin/busybox cat; echo; }} >> {note}");
    json!([{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", script], "env": ["HOOK=1"]}])
}

#[test]
fn hooks_run_when_and_where_they_should() {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap().display().to_string();
    let host = namespace(std::process::id().cast_signed());
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["sleep", "60"]).with("/annotations", json!({"a": "b"}));
        let note = bundle.folder.path().join("note").display().to_string();
        let outside = |name: &str| hook(name, &note);
        let hooks = json!({
            "prestart": outside("prestart"), "createRuntime": outside("createRuntime"),
            "createContainer": outside("createContainer"), "startContainer": hook("startContainer", "/tmp/note"),
            "poststart": outside("poststart"), "poststop": outside("poststop"),
        });
        let bundle = bundle.with("/hooks", hooks).started();
        let pid = bundle.runtime().state(&bundle.id).unwrap().pid;
        let own = namespace(pid);
        bundle.runtime().delete(&bundle.id, true).unwrap();

        let outside = fs::read_to_string(&note).unwrap();
        let inside = fs::read_to_string(bundle.root().join("tmp/note")).unwrap();
        let parsed = |text: &str| -> Vec<(String, Value)> {
            // A line of words, then the state, on one line or on several.
            let mut found: Vec<(String, String)> = Vec::new();
            for line in text.lines() {
                match found.last_mut() {
                    Some((_, told)) if line.starts_with(['{', '}', ' ', '\t']) => told.push_str(line),
                    _ if line.is_empty() => {}
                    _ => found.push((line.to_owned(), String::new())),
                }
            }
            found.into_iter().map(|(name, told)| (name, serde_json::from_str(&told).unwrap())).collect()
        };
        let (outside, inside) = (parsed(&outside), parsed(&inside));
        let names: Vec<_> = outside.iter().map(|(name, _)| name.as_str()).collect();
        // `createContainer` runs in the container's namespaces, but outside of its root.
        let want = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
            .map(|name| format!("{name} {}", if name == "createContainer" { &own } else { &host }));
        assert_eq!(names, want, "{}", kind.name);
        let names: Vec<_> = inside.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [format!("startContainer {own}")], "{}", kind.name);
        for (name, state) in outside.iter().chain(&inside) {
            assert_eq!((&state["id"], &state["annotations"]["a"]), (&json!(bundle.id), &json!("b")), "{}", kind.name);
            assert_eq!(state["bundle"], json!(bundle.folder.path()), "{name} in {}", kind.name);
            let status = match name.split(' ').next().unwrap() {
                // runc tells the state that it found.
                "poststart" if kind.name == "runc" => "created",
                "poststart" => "running",
                "poststop" => "stopped",
                "startContainer" => "created",
                _ => "creating",
            };
            assert_eq!(state["status"], status, "{name} in {}", kind.name);
            if name.starts_with("prestart") || name.starts_with("createRuntime") || name.starts_with("poststart") {
                assert_eq!(state["pid"], pid, "{name} in {}", kind.name);
            }
        }
    }
}

#[test]
fn a_hook_that_fails_ends_what_it_was_for() {
    for kind in kinds() {
        for name in ["prestart", "createRuntime", "createContainer"] {
            let fails = json!({name: [{"path": "/bin/busybox", "args": ["busybox", "false"]}]});
            let bundle = Bundle::new(&kind, &["true"]).with("/hooks", fails);
            let output = bundle.run();
            assert!(!output.status.success(), "{name} in {}", kind.name);
            assert_eq!(bundle.state(), "none", "{name} in {}", kind.name);
            assert!(bundle.cgroup().is_empty(), "{name} in {} leaves its control group", kind.name);
        }
    }
}
