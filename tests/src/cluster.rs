//! A cluster: one real control plane, a registry, and boards that join it, in a network namespace of their own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use container_engine::sys::netns;

use crate::{Agent, ControlPlane, cgroup_dirs, free_port, images, registry::Registry, remove_cgroup, wait_until};

/// The address of all of it.
pub const ADDRESS: &str = "192.0.2.2";
/// The network behind it, where nobody is.
pub const GATEWAY: &str = "192.0.2.1";

/// What a test of the node has.
pub struct Cluster {
    /// Everything's files.
    pub dir: PathBuf,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The registry; `127.0.0.1` from everywhere but pods.
    pub registry: Registry,
    /// Name of an image with busybox in it.
    pub busybox: String,
}

/// Runs `test` on a cluster of its own, in a thread that lives in its network namespace.
pub fn on_a_cluster(test: impl FnOnce(&Cluster) -> Result<()> + Send) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_owned();
    let result = netns::create(None, move |_| {
        let run = || -> Result<()> {
            let cluster = Cluster::new(&path)?;
            test(&cluster).inspect_err(|_| keep(&cluster.dir))
        };
        Ok(run())
    });
    result?.1
}

/// What a failed run has left for a look.
fn keep(dir: &Path) {
    if let Some(to) = std::env::var_os("EDGE_AGENT_KEEP") {
        let _ = std::process::Command::new("cp").args(["-r", "--one-file-system"]).arg(dir).arg(to).status();
    }
}

impl Cluster {
    fn new(dir: &Path) -> Result<Self> {
        crate::lan::sh(&format!(
            "ip link set lo up && ip link add eth0 type veth peer name far && ip addr add {ADDRESS}/24 dev eth0 && \
             ip link set eth0 up && ip link set far up && ip route add default via {GATEWAY}"
        ))?;
        let registry = Registry::start(&dir.join("registry"))?;
        let busybox = registry.push(&images::busybox(&dir.join("images"))?, "busybox:1")?;
        let control_plane = ControlPlane::start(&dir.join("control-plane"), ADDRESS)?;
        Ok(Self { dir: dir.to_owned(), control_plane, registry, busybox })
    }

    /// A board that could join, under this name; not yet running. `more` goes into its `[node]`.
    pub fn board(&self, name: &str, more: &str) -> Result<Board> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(dir.join("manifests"))?;
        let (listen, healthz) = (free_port()?, free_port()?);
        let config = format!(
            "[node]\nname = \"{name}\"\naddress = \"{ADDRESS}\"\nlisten = \"0.0.0.0:{listen}\"\n\
             healthz = \"127.0.0.1:{healthz}\"\nkubelet_dir = \"{0}/kubelet\"\nlog_dir = \"{0}/log\"\n\
             manifests = \"{0}/manifests\"\n{more}",
            dir.display()
        );
        Ok(Board { name: name.to_owned(), agent: Agent::new(&dir, &config)?, dir, listen })
    }

    /// A board that runs and has joined.
    pub fn joined(&self, name: &str, more: &str) -> Result<Board> {
        let mut board = self.board(name, more)?;
        board.agent.start()?;
        board.join(&self.control_plane)?;
        self.ready(name)?;
        Ok(board)
    }

    /// Waits until a node is Ready.
    pub fn ready(&self, name: &str) -> Result<()> {
        self.control_plane.wait_for(&["node", name], Duration::from_secs(60), |node| {
            condition(node, "Ready").is_some_and(|it| it == "True")
        })?;
        Ok(())
    }
}

/// The status of a condition of a node or pod.
pub fn condition<'a>(object: &'a serde_json::Value, kind: &str) -> Option<&'a str> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|it| it["type"] == kind)?["status"].as_str()
}

/// A board of a cluster. When dropped, nothing of its pods runs on.
pub struct Board {
    /// Its node's name.
    pub name: String,
    /// The agent.
    pub agent: Agent,
    /// Its files.
    pub dir: PathBuf,
    /// Port of the kubelet's API.
    pub listen: u16,
}

impl Board {
    /// `edge-agent join`; returns when the node is Ready.
    pub fn join(&self, to: &ControlPlane) -> Result<()> {
        let arguments = to.join_arguments()?;
        let mut args = vec!["join"];
        args.extend(arguments.iter().map(String::as_str));
        let output = self.agent.command(&args)?;
        ensure!(
            output.status.success(),
            "join: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.agent.log()
        );
        Ok(())
    }

    /// Power is cut: the agent, its shims and all containers are killed at once. What is on disk stays.
    pub fn cut_power(&mut self) -> Result<()> {
        self.agent.kill()?;
        self.end_containers().context("after the agent was killed")
    }

    /// The control group of all its containers.
    fn groups(&self) -> String {
        format!("edge-{}", self.agent.instance())
    }

    fn end_containers(&self) -> Result<()> {
        let groups = self.groups();
        let left = || cgroup_dirs(&groups).iter().flat_map(|dir| processes(dir)).collect::<Vec<_>>();
        wait_until("all containers are gone", Duration::from_secs(20), || {
            let left = left();
            for pid in &left {
                if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            left.is_empty()
        })
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.end_containers();
        // What lies in the temporary folder could not be removed while something is mounted in it.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        for at in mounted.filter(|at| at.starts_with(&self.dir)).collect::<Vec<_>>().into_iter().rev() {
            let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        }
        // An agent that is asked to clear would find its pods again, and start them.
        let _ = std::fs::remove_dir_all(self.dir.join("run"));
        remove_cgroup(&self.groups());
    }
}

/// The processes of a control group and of those below it.
fn processes(dir: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}
