//! A bundle around busybox that lives as long as the value, and the runtimes that run it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use container_engine::runtime::{Runtime, SealedExe};
use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub struct Kind {
    pub name: &'static str,
    pub command: Vec<PathBuf>,
}

pub fn kinds() -> Vec<Kind> {
    static KINDS: OnceLock<Vec<Kind>> = OnceLock::new();
    let found = || {
        let agent = tests::agent_binary().unwrap();
        let mut kinds = vec![
            Kind { name: "embedded", command: vec![agent, "oci-runtime".into()] },
            Kind { name: "runc", command: vec!["runc".into()] },
        ];
        let crun = Kind { name: "crun", command: vec!["crun".into()] };
        let is_there = Command::new("crun").arg("--version").output().is_ok();
        // crun 1.8 refuses hosts with both versions of control groups.
        if is_there && Bundle::new(&crun, &["true"]).run().status.success() {
            kinds.push(crun);
        } else {
            println!("crun does not run containers here; passed over");
        }
        kinds
    };
    KINDS.get_or_init(found).clone()
}

/// A bundle with busybox, deleted with its container when dropped.
pub struct Bundle {
    pub kind: Kind,
    pub id: String,
    pub folder: tempfile::TempDir,
    pub config: Value,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Bundle {
    pub fn new(kind: &Kind, args: &[&str]) -> Self {
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
            "env", "pwd", "chroot", "mount", "tty", "stty", "hostname", "mknod", "kill",
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
                "cgroupsPath": format!("/edge-{id}/box"),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            },
        });
        Self { kind: kind.clone(), id, folder, config }
    }

    /// The same configuration for another container.
    pub fn again(&self) -> Self {
        let mut fresh = Bundle::new(&self.kind, &[]);
        let path = fresh.config["linux"]["cgroupsPath"].clone();
        fresh.config = self.config.clone();
        fresh.config["linux"]["cgroupsPath"] = path;
        fresh
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    pub fn mount(mut self, mount: Value) -> Self {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    pub fn write(&self) {
        fs::write(self.folder.path().join("config.json"), self.config.to_string()).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kind.command[0]);
        command.args(&self.kind.command[1..]).arg("--root").arg(self.folder.path().join("state")).args(args);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self) -> Output {
        self.write();
        self.command(&["run", &self.id]).output().unwrap()
    }

    /// Created and started, with its output nowhere.
    pub fn started(self) -> Self {
        self.write();
        let errors = fs::File::create(self.folder.path().join("errors")).unwrap();
        let created = self.command(&["create", &self.id]).stdout(Stdio::null()).stderr(errors).status().unwrap();
        let told = fs::read_to_string(self.folder.path().join("errors")).unwrap();
        assert!(created.success(), "{}: {told}", self.kind.name);
        assert!(self.command(&["start", &self.id]).status().unwrap().success());
        self
    }

    pub fn exec(&self, args: &[&str]) -> Output {
        self.command(&[&["exec"], args].concat()).output().unwrap()
    }

    pub fn state(&self) -> String {
        let output = self.command(&["state", &self.id]).output().unwrap();
        let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        state["status"].as_str().unwrap_or("none").to_owned()
    }

    /// Folders of its control group.
    pub fn cgroup(&self) -> Vec<PathBuf> {
        tests::cgroup_dirs(&format!("edge-{}/box", self.id))
    }

    /// What the kernel says in a file of its control group.
    pub fn kernel(&self, file: &str) -> Option<String> {
        let found = self.cgroup().into_iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
        found.map(|text| text.trim().to_owned())
    }

    pub fn runtime(&self) -> Runtime {
        let root = self.folder.path().join("state");
        match self.kind.name {
            "embedded" => Runtime::embedded(SealedExe::of(&self.kind.command[0]).unwrap(), root),
            _ => Runtime::file(&self.kind.command[0], root),
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).output();
        tests::remove_cgroup(&format!("edge-{}", self.id));
    }
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether this machine has version 2 of control groups alone. The guest of `cargo xtask guest` must.
pub fn is_unified() -> bool {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert!(unified || std::env::var_os("EDGE_AGENT_GUEST").is_none(), "the guest has no control groups v2");
    unified
}

/// Runs `script` in a container as changed by `change`, in every runtime, and wants one answer.
#[track_caller]
pub fn check(what: &str, script: &str, change: impl Fn(Bundle) -> Bundle, want: &str) {
    for kind in kinds() {
        let bundle = change(Bundle::new(&kind, &["sh", "-c", script]));
        let output = bundle.run();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), want, "{what} in {}: {told}", kind.name);
    }
}
