//! The chain against plugins made of shell scripts, which write down what they are given.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use super::*;

struct Place {
    dir: tempfile::TempDir,
    cni: Cni,
}

impl Place {
    fn new(version: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CniOptions {
            conf_dir: dir.path().join("net.d"),
            bin_dirs: vec![dir.path().join("bin")],
            timeout: Duration::from_secs(5),
        };
        std::fs::create_dir_all(&options.conf_dir).unwrap();
        std::fs::create_dir_all(&options.bin_dirs[0]).unwrap();
        let list = json!({"cniVersion": version, "name": "net", "plugins": [
            {"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}}]});
        std::fs::write(options.conf_dir.join("10-net.conflist"), list.to_string()).unwrap();
        let cni = Cni::new(Some(options), &dir.path().join("data"));
        Self { dir, cni }
    }

    /// A plugin that writes down its call and does `then`.
    fn plugin(&self, name: &str, then: &str) {
        let (path, log) = (self.dir.path().join("bin").join(name), self.dir.path().join("log"));
        let script = format!(
            "#!/bin/sh\nread conf\necho \"{name} $CNI_COMMAND $CNI_CONTAINERID $conf\" >> {}\n{then}\n",
            log.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.dir.path().join("log"));
        text.lines().map(str::to_owned).collect()
    }

    fn wish() -> Wish {
        Wish {
            sandbox: "box".into(),
            netns: Path::new("/proc/self/ns/net").into(),
            ports: vec![BoundPort { host_address: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }],
            ..Wish::default()
        }
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

const RESULT: &str = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16"}]}'"#;

#[test]
fn a_chain_is_added_checked_and_deleted() {
    let place = Place::new("1.0.0");
    place.plugin("first", RESULT);
    place.plugin("second", RESULT);
    let attached = run(place.cni.add(&Place::wish())).unwrap();
    assert_eq!(attached.interfaces[0].addresses[0].to_string(), "10.1.0.2/16");
    let log = place.log();
    assert!(log[0].starts_with("first ADD box") && !log[0].contains("prevResult") && !log[0].contains("runtimeConfig"));
    assert!(
        log[1].starts_with("second ADD box") && log[1].contains("prevResult") && log[1].contains("\"hostPort\":8080")
    );
    run(place.cni.check("box")).unwrap();
    assert_eq!(place.log().len(), 2);
    // The configuration goes, the plugins' folders with it: what was kept is enough.
    std::fs::remove_file(place.dir.path().join("net.d/10-net.conflist")).unwrap();
    assert_eq!(place.cni.kept(), BTreeSet::from(["box".to_owned()]));
    let later = Cni::new(None, &place.dir.path().join("data"));
    run(later.delete("box")).unwrap();
    let log = place.log();
    assert!(
        log[0].starts_with("second DEL box") && log[1].starts_with("first DEL box") && log[1].contains("prevResult")
    );
    assert!(place.cni.kept().is_empty());
    run(later.delete("box")).unwrap();
    assert!(place.log().is_empty());
}

#[test]
fn a_failure_is_shown_and_undone() {
    let place = Place::new("1.0.0");
    place.plugin("first", RESULT);
    place.plugin("second", r#"[ $CNI_COMMAND = ADD ] || exit 0; echo '{"code":11,"msg":"no luck"}'; exit 1"#);
    let error = run(place.cni.add(&Place::wish())).unwrap_err();
    assert!(error.to_string().contains("\"second\"") && error.to_string().contains("no luck"), "{error}");
    assert!(error.is_transient());
    let calls: Vec<_> = place.log().iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(calls, ["first ADD", "second ADD", "second DEL", "first DEL"]);
    assert!(place.cni.kept().is_empty());
}

#[test]
fn plugins_that_hang_babble_or_are_missing() {
    #[track_caller]
    fn check(then: &str, want: &str) {
        let mut place = Place::new("1.0.0");
        place.cni.options.timeout = Duration::from_millis(300);
        place.plugin("first", &format!("[ $CNI_COMMAND = ADD ] || exit 0; {then}"));
        place.plugin("second", RESULT);
        let error = run(place.cni.add(&Place::wish())).unwrap_err().to_string();
        assert!(error.contains(want), "{then}: {error}");
    }
    check("exec sleep 60", "did not finish ADD");
    check("echo not json", "no result");
    check("echo oh dear >&2; exit 3", "oh dear");
    let place = Place::new("1.0.0");
    let error = run(place.cni.add(&Place::wish())).unwrap_err();
    assert!(error.to_string().contains("\"first\" is in none of"), "{error}");
}

#[test]
fn garbage_collection_and_status_from_1_1() {
    let place = Place::new("1.1.0");
    place.plugin("first", "");
    place.plugin("second", "");
    run(place.cni.collect(&BTreeSet::from(["alive".to_owned()]))).unwrap();
    let log = place.log();
    assert!(
        log[0].starts_with("first GC") && log[0].contains(r#""cni.dev/valid-attachments":[{"containerID":"alive""#),
        "{log:?}"
    );
    run(place.cni.status()).unwrap();
    assert!(place.log()[1].starts_with("second STATUS"));
    let old = Place::new("0.4.0");
    old.plugin("first", "exit 1");
    old.plugin("second", "exit 1");
    run(old.cni.collect(&BTreeSet::new())).unwrap();
    run(old.cni.status()).unwrap();
    assert!(old.log().is_empty());
}
