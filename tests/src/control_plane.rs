//! A real Kubernetes control plane: etcd, API server, controller manager and scheduler, made by `tests/control-plane`.
//!
//! It lives in the network namespace of the thread that starts it, and ends with it or with the process.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{free_port, wait_until};

/// The folder of the binaries: `KUBEBUILDER_ASSETS`, or what `cargo xtask test` has built.
pub fn binaries() -> Result<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").or_else(|| std::env::var_os("EDGE_AGENT_CONTROL_PLANE"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let built = || cache.unwrap_or_else(|| home.join(".cache")).join("edge-agent/control-plane");
    let dir = assets.map_or_else(built, PathBuf::from);
    ensure!(
        dir.join("kube-apiserver").exists(),
        "no kube-apiserver in {}: `cargo xtask test` builds it, or run tests/control-plane/build.sh {0}",
        dir.display()
    );
    Ok(dir)
}

/// A running control plane.
pub struct ControlPlane {
    dir: PathBuf,
    bin: PathBuf,
    /// The API server's port, on every address of the namespace.
    pub port: u16,
    child: Child,
}

impl ControlPlane {
    /// Starts one whose files are in `dir`; `advertise` is the address for pods.
    pub fn start(dir: &Path, advertise: &str) -> Result<Self> {
        Self::start_with(dir, advertise, &[])
    }

    /// The same with variables for `start.sh`.
    pub fn start_with(dir: &Path, advertise: &str, env: &[(&str, &str)]) -> Result<Self> {
        let bin = binaries()?;
        let port = free_range(5)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("control-plane/start.sh");
        std::fs::create_dir_all(dir)?;
        let mut child = Command::new("bash")
            .arg(&script)
            .arg(dir)
            .arg(port.to_string())
            .env("BIN", &bin)
            .env("ADVERTISE", advertise)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.join("start.log"))?)
            .spawn()
            .context("bash is missing")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let ready = lines.next();
        let this = Self { dir: dir.to_owned(), bin, port, child };
        match ready {
            Some(Ok(line)) if line.contains("ready") => Ok(this),
            _ => bail!(
                "the control plane did not start: {}\n{}",
                std::fs::read_to_string(dir.join("start.log")).unwrap_or_default(),
                tail(&dir.join("log/kube-apiserver"))
            ),
        }
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.conf")
    }

    /// `edge-agent join`'s arguments for this cluster.
    pub fn join_arguments(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.dir.join("join"))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// The file of a certificate or key of the cluster, such as `ca.crt`.
    pub fn pki(&self, name: &str) -> PathBuf {
        self.dir.join("pki").join(name)
    }

    /// One of the binaries, as the administrator where it is `kubectl`.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.dir);
        command
    }

    /// Runs kubectl; its output whatever it was.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        Ok(self.program("kubectl").args(args).stdin(Stdio::null()).output()?)
    }

    /// Runs kubectl, which must succeed; what it printed.
    pub fn k(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl(args)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "kubectl {}: {}\n{said}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let mut child = self
            .program("kubectl")
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no input")?.write_all(manifest.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl apply: {}\n{manifest}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// An object, `kubectl get KIND NAME -o json`.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let args = [&["get", "-o", "json"][..], what].concat();
        Ok(serde_json::from_str(&self.k(&args)?)?)
    }

    /// Waits until an object is as wanted; the error has the object as it was last.
    pub fn wait_for(&self, what: &[&str], patience: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait_until(&what.join(" "), patience, || {
            let got = self.get(what).unwrap_or_default();
            let fits = wanted(&got);
            last = got;
            fits
        });
        waited.with_context(|| format!("{} is {last:#}", what.join(" ")))?;
        Ok(last)
    }

    /// Takes the API server away; it comes back with [`ControlPlane::api_up`].
    pub fn api_down(&self) -> Result<()> {
        std::fs::write(self.dir.join("api-down"), "")?;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::USR1)?;
        let file = self.dir.join("kube-apiserver.pid");
        wait_until("the API server is gone", Duration::from_secs(90), || {
            std::fs::read_to_string(&file).is_ok_and(|text| text.trim().is_empty())
        })
    }

    /// Brings the API server back, and waits until it answers.
    pub fn api_up(&self) -> Result<()> {
        std::fs::remove_file(self.dir.join("api-down"))?;
        wait_until("the API server is back", Duration::from_secs(90), || {
            self.kubectl(&["get", "--raw", "/readyz"]).is_ok_and(|output| output.status.success())
        })
    }

    /// The end of a component's log.
    pub fn log(&self, component: &str) -> String {
        tail(&self.dir.join("log").join(component))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.dir.join("api-down"));
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The first of `count` ports in a row that nobody listens on.
fn free_range(count: u16) -> Result<u16> {
    for _ in 0..50 {
        let first = free_port()?;
        let all =
            (first..first.saturating_add(count)).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
        if all && first < u16::MAX - count {
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row")
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let from = text.len().saturating_sub(4096);
    text.get(from..).map_or_else(String::new, str::to_owned)
}
