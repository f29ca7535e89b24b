//! The same containers through the embedded runtime, runc and crun. The judge is what happens inside them.
//!
//! What differs from runc, and why:
//! * a command that cannot be executed only at `start` (its interpreter is missing, its format unknown) ends with 127 or
//!   126 instead of 1, so that the engine can tell; a program for another CPU is refused at `create` already;
//! * `name=systemd` of version 1 is not entered (nothing on a board reads it);
//! * masked folders are tmpfs of one block, runc's of the default size.
//!
//! Needs root, control groups, and Debian's busybox-static and runc; crun is passed over where it does not run.

// Setting up a bundle is part of each test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use container_engine::runtime::{Launch, Runtime, RuntimeError, Status, seccomp};
use serde_json::{Value, json};

#[derive(Debug, Clone)]
struct Kind {
    name: &'static str,
    command: Vec<PathBuf>,
}

fn kinds() -> Vec<Kind> {
    let agent = tests::agent_binary().unwrap();
    let mut kinds = vec![
        Kind { name: "embedded", command: vec![agent, "oci-runtime".into()] },
        Kind { name: "runc", command: vec!["runc".into()] },
    ];
    let crun = Kind { name: "crun", command: vec!["crun".into()] };
    // crun 1.8 refuses hosts with both versions of control groups.
    let probe = Bundle::new(&crun, &["true"]);
    if probe.run().status.success() {
        kinds.push(crun);
    } else {
        println!("crun does not run containers here; passed over");
    }
    kinds
}

/// A bundle with busybox, deleted with its container when dropped.
struct Bundle {
    kind: Kind,
    id: String,
    folder: tempfile::TempDir,
    config: Value,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Bundle {
    fn new(kind: &Kind, args: &[&str]) -> Self {
        let id = format!("rt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        // Users of user namespaces have to get through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = folder.path().join("rootfs");
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "true", "sleep", "id", "grep", "echo", "touch", "mkdir", "stat", "head", "unshare", "ls",
            "env", "pwd", "chroot", "mount", "tty", "stty", "hostname",
        ] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
            .unwrap();
        let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("/edge-runtime-tests/{id}"),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            },
        });
        Self { kind: kind.clone(), id, folder, config }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    fn mount(mut self, mount: Value) -> Self {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    fn write(&self) {
        fs::write(self.folder.path().join("config.json"), self.config.to_string()).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kind.command[0]);
        command.args(&self.kind.command[1..]).arg("--root").arg(self.folder.path().join("state")).args(args);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self) -> Output {
        self.write();
        self.command(&["run", &self.id]).output().unwrap()
    }

    /// Created and started, with its output nowhere.
    fn started(self) -> Self {
        self.write();
        let errors = fs::File::create(self.folder.path().join("errors")).unwrap();
        let created = self.command(&["create", &self.id]).stdout(Stdio::null()).stderr(errors).status().unwrap();
        let told = fs::read_to_string(self.folder.path().join("errors")).unwrap();
        assert!(created.success(), "{}: {told}", self.kind.name);
        assert!(self.command(&["start", &self.id]).status().unwrap().success());
        self
    }

    fn exec(&self, args: &[&str]) -> Output {
        self.command(&[&["exec"], args].concat()).output().unwrap()
    }

    fn state(&self) -> String {
        let output = self.command(&["state", &self.id]).output().unwrap();
        let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        state["status"].as_str().unwrap_or("none").to_owned()
    }

    fn runtime(&self) -> Runtime {
        let root = self.folder.path().join("state");
        if self.kind.name != "embedded" {
            return Runtime::file(&self.kind.command[0], root);
        }
        let script = self.folder.path().join("embedded");
        fs::write(&script, format!("#!/bin/sh\nexec {} oci-runtime \"$@\"\n", self.kind.command[0].display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        Runtime::file(script, root)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).output();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs `script` in a container as changed by `change`, in every runtime, and wants one answer.
#[track_caller]
fn check(what: &str, script: &str, change: impl Fn(Bundle) -> Bundle, want: &str) {
    for kind in kinds() {
        let bundle = change(Bundle::new(&kind, &["sh", "-c", script]));
        let output = bundle.run();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), want, "{what} in {}: {told}", kind.name);
    }
}

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

impl Bundle {
    /// The same configuration for another container.
    fn again(&self) -> Self {
        let mut fresh = Bundle::new(&self.kind, &[]);
        let path = fresh.config["linux"]["cgroupsPath"].clone();
        fresh.config = self.config.clone();
        fresh.config["linux"]["cgroupsPath"] = path;
        fresh
    }
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

#[test]
fn what_cannot_be_executed() {
    for kind in kinds() {
        for (args, want) in [(["nope"], 127), (["/nope"], 127), (["/etc"], 126), (["/etc/passwd"], 126)] {
            let bundle = Bundle::new(&kind, &args);
            bundle.write();
            let pid = bundle.folder.path().join("pid");
            let error = bundle.runtime().create(&bundle.id, bundle.folder.path(), Launch::new(&pid)).unwrap_err();
            assert_eq!(error.exit_code(), want, "{} {args:?}: {error}", kind.name);
            assert!(!Path::new("/sys/fs/cgroup/memory/edge-runtime-tests").join(&bundle.id).exists(), "{}", kind.name);
            let running = Bundle::new(&kind, &["sleep", "60"]).started();
            let process = running.folder.path().join("process.json");
            let mut value = running.config["process"].clone();
            value["args"] = json!(args);
            fs::write(&process, value.to_string()).unwrap();
            let error = running.runtime().exec(&running.id, &process, Launch::new(&pid)).unwrap_err();
            assert_eq!(error.exit_code(), want, "exec {} {args:?}: {error}", kind.name);
        }
    }
    // An ELF file for another CPU: ours says so before the start.
    let kind = &kinds()[0];
    let bundle = Bundle::new(kind, &["/bin/foreign"]);
    let mut program = fs::read("/bin/busybox").unwrap();
    program[18] = 0xf7;
    fs::write(bundle.root().join("bin/foreign"), program).unwrap();
    fs::set_permissions(bundle.root().join("bin/foreign"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.write();
    let pid = bundle.folder.path().join("pid");
    let error = bundle.runtime().create(&bundle.id, bundle.folder.path(), Launch::new(&pid)).unwrap_err();
    assert!(matches!(error, RuntimeError::WrongArchitecture { .. }), "{error}");
}

#[test]
fn the_whole_life_of_a_container() {
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["sleep", "60"]);
        bundle.write();
        let (runtime, id, pid) = (bundle.runtime(), &bundle.id, bundle.folder.path().join("pid"));
        assert!(matches!(runtime.state(id), Err(RuntimeError::NoSuchContainer { .. })), "{}", kind.name);
        let created = runtime.create(id, bundle.folder.path(), Launch::new(&pid)).unwrap();
        assert!(
            matches!(runtime.create(id, bundle.folder.path(), Launch::new(&pid)), Err(RuntimeError::Exists { .. })),
            "{}",
            kind.name
        );
        let state = runtime.state(id).unwrap();
        assert_eq!((state.status, state.pid), (Status::Created, created));
        runtime.start(id).unwrap();
        assert!(matches!(runtime.start(id), Err(RuntimeError::WrongState { .. })), "{}", kind.name);
        runtime.pause(id).unwrap();
        assert_eq!(runtime.state(id).unwrap().status, Status::Paused);
        runtime.resume(id).unwrap();
        assert_eq!(runtime.state(id).unwrap().status, Status::Running);
        let resources =
            serde_json::from_value(json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 17}})).unwrap();
        runtime.update(id, &resources).unwrap();
        let limit = fs::read_to_string(format!("/sys/fs/cgroup/pids/edge-runtime-tests/{id}/pids.max"));
        assert_eq!(
            limit
                .or_else(|_| fs::read_to_string(format!("/sys/fs/cgroup/edge-runtime-tests/{id}/pids.max")))
                .unwrap()
                .trim(),
            "17"
        );
        assert!(runtime.delete(id, false).is_err(), "{}", kind.name);
        runtime.kill(id, 9, true).unwrap();
        tests::wait_until("the container ends", std::time::Duration::from_secs(10), || {
            runtime.state(id).is_ok_and(|state| state.status == Status::Stopped)
        })
        .unwrap();
        assert!(runtime.kill(id, 15, false).is_err(), "{}", kind.name);
        runtime.delete(id, false).unwrap();
        runtime.delete(id, true).unwrap();
        assert!(!Path::new("/sys/fs/cgroup/pids/edge-runtime-tests").join(id).exists(), "{}", kind.name);
    }
}

#[test]
fn exec_in_all_its_forms() {
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["sleep", "60"]).started();
        let id = &bundle.id;
        assert_eq!(bundle.state(), "running");
        let output = bundle.exec(&[
            "--user",
            "1000:1000",
            "--cwd",
            "/tmp",
            "--env",
            "A=b",
            "--additional-gids",
            "7",
            id,
            "sh",
            "-c",
            "id -u; id -G; pwd; echo $A $HOME; hostname",
        ]);
        assert_eq!(text(&output), "1000\n1000 7\n/tmp\nb /home/user\nbox", "{}", kind.name);
        assert_eq!(bundle.exec(&[id, "sh", "-c", "exit 7"]).status.code(), Some(7), "{}", kind.name);
        assert_eq!(bundle.exec(&[id, "sh", "-c", "kill -9 $$"]).status.code(), Some(137), "{}", kind.name);
        let caps = bundle.exec(&["--cap", "CAP_SYS_ADMIN", id, "sh", "-c", "grep CapEff /proc/self/status"]);
        assert!(text(&caps).ends_with("200421"), "{}: {}", kind.name, text(&caps));
    }
}

#[test]
fn mounts_of_all_kinds() {
    let masked = |bundle: Bundle| {
        bundle
            .with("/linux/maskedPaths", json!(["/proc/kcore", "/proc/irq", "/none"]))
            .with("/linux/readonlyPaths", json!(["/proc/sys"]))
    };
    check(
        "masked",
        "ls /proc/irq; head -c1 /proc/kcore; echo 1 2>/dev/null >/proc/sys/kernel/hostname || echo ro",
        masked,
        "ro",
    );
    check(
        "root",
        "touch /x 2>&1; touch /tmp/y && echo rw",
        |bundle| {
            bundle
                .with("/root/readonly", json!(true))
                .mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}))
        },
        "touch: /x: Read-only file system\nrw",
    );
    check(
        "bind",
        "touch /data/x 2>&1; ls -d /data/.",
        |bundle| bundle.mount(json!({"destination": "/data", "source": "/tmp", "options": ["rbind", "ro"]})),
        "touch: /data/x: Read-only file system\n/data/.",
    );
    let copy = |bundle: Bundle| {
        fs::write(bundle.root().join("data/old"), "kept").unwrap();
        bundle.mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}))
    };
    for kind in kinds().into_iter().filter(|kind| kind.name != "crun") {
        let bundle = copy(Bundle::new(&kind, &["sh", "-c", "cat /data/old; echo new >/data/new"]));
        assert_eq!(text(&bundle.run()), "kept", "{}", kind.name);
        assert!(!bundle.root().join("data/new").exists());
    }
    check(
        "shared",
        "grep -q ' /data .* shared:' /proc/self/mountinfo && echo shared",
        |bundle| {
            bundle
                .mount(json!({"destination": "/data", "source": "/tmp", "options": ["rbind", "rshared"]}))
                .with("/linux/rootfsPropagation", json!("shared"))
        },
        "shared",
    );
}

#[test]
fn id_mapped_mounts_and_user_namespaces() {
    let kind = &kinds()[0];
    let source = tempfile::tempdir().unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(source.path().join("file"), "x").unwrap();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 200_000, "size": 1000}]);
    let mapped = |bundle: Bundle| {
        bundle.mount(json!({"destination": "/data", "source": source.path(), "options": ["rbind"], "uidMappings": map, "gidMappings": map}))
            .mount(json!({"destination": "/data/below", "type": "tmpfs", "source": "tmpfs"}))
    };
    fs::create_dir(source.path().join("below")).unwrap();
    let bundle =
        mapped(Bundle::new(kind, &["sh", "-c", "stat -c %u /data/file; grep -c ' /data/below ' /proc/self/mountinfo"]));
    assert_eq!(text(&bundle.run()), "100000\n1");
    // In a user namespace of the same mapping, the owner is root again, and what is made belongs to root outside.
    let inside = mapped(Bundle::new(
        kind,
        &["sh", "-c", "stat -c %u /data/file; touch /data/new; cat /proc/self/uid_map | head -n1; id -u"],
    ))
    .with("/linux/uidMappings", map.clone())
    .with("/linux/gidMappings", map.clone());
    let mut inside = inside;
    inside.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let output = inside.run();
    let lines: Vec<String> =
        text(&output).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["0", "0 100000 1000", "0"], "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::metadata(source.path().join("new")).unwrap().uid(), 0);
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

/// Takes the terminal that a runtime sends to the socket, and prints what comes out of it.
const CONSOLE: &str = r#"
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
listener.settimeout(20)
print("listening", flush=True)
peer, _ = listener.accept()
_, fds, _, _ = socket.recv_fds(peer, 4096, 1)
text = b""
try:
    while True:
        part = os.read(fds[0], 4096)
        if not part: break
        text += part
except OSError:
    pass
sys.stdout.write(text.decode().replace("\r", ""))
"#;

#[test]
fn terminals() {
    for kind in kinds() {
        let script = "stty size; stat -c %u $(tty); test -t 0 && test -t 1 && test -t 2 && echo tty; id -u";
        let bundle = Bundle::new(&kind, &["sh", "-c", script])
            .with("/process/terminal", json!(true))
            .with("/process/consoleSize", json!({"height": 33, "width": 77}))
            .with("/process/user/uid", json!(1000));
        bundle.write();
        let socket = bundle.folder.path().join("console");
        let mut console =
            Command::new("python3").args(["-c", CONSOLE]).arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
        tests::wait_until("the console listens", std::time::Duration::from_secs(10), || socket.exists()).unwrap();
        let pid = bundle.folder.path().join("pid");
        let launch = Launch { console_socket: Some(&socket), ..Launch::new(&pid) };
        bundle.runtime().create(&bundle.id, bundle.folder.path(), launch).unwrap();
        bundle.runtime().start(&bundle.id).unwrap();
        let mut output = String::new();
        std::io::Read::read_to_string(&mut console.stdout.take().unwrap(), &mut output).unwrap();
        console.wait().unwrap();
        assert_eq!(output, "listening\n33 77\n1000\ntty\n1000\n", "{}", kind.name);
    }
}
