//! An OCI bundle around a static busybox: for tests of what is below images and snapshots.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A bundle's folder, and the cgroup it names.
pub struct Bundle {
    /// The folder of `config.json` and `rootfs`.
    pub path: PathBuf,
    /// `linux.cgroupsPath`.
    pub cgroup: String,
}

impl Bundle {
    /// Makes one below `dir` that runs `args`; `change` has the last word on its configuration.
    pub fn new(dir: &Path, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let rootfs = dir.join("rootfs");
        for folder in ["bin", "proc", "dev", "sys", "tmp", "etc", "root"] {
            fs::create_dir_all(rootfs.join(folder))?;
        }
        let busybox = rootfs.join("bin/busybox");
        if !busybox.exists() {
            fs::copy("/bin/busybox", &busybox).context("busybox-static is not installed")?;
            for applet in
                ["sh", "cat", "echo", "sleep", "true", "seq", "kill", "stty", "head", "wc", "dd", "yes", "ps", "tail"]
            {
                std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet))?;
            }
        }
        // Two levels, so that limits have to be handed down; the upper one is whose it is alone.
        let cgroup = format!("/edge-test-{}-{}/box", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let caps = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_DAC_OVERRIDE"];
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                "env": ["PATH=/bin", "TERM=xterm"], "noNewPrivileges": true,
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "root": {"path": "rootfs"},
            "hostname": "test",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            },
        });
        change(&mut config);
        fs::write(dir.join("config.json"), serde_json::to_vec(&config)?)?;
        Ok(Self { path: dir.to_owned(), cgroup })
    }

    /// An OCI `process` for an execution in it.
    pub fn process(args: &[&str], tty: bool) -> Value {
        json!({"terminal": tty, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"]})
    }
}
