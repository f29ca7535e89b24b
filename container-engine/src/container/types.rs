//! What goes in and out of [`Containers`](super::Containers), besides the specification.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{ContainerId, ContainerSpec, ExecSpec, Propagation};
use crate::{network::Attached, owner::Owner};

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, never started.
    #[default]
    Created,
    /// Its first process runs.
    Running,
    /// It stands still.
    Paused,
    /// Its first process ended, or it could not be started.
    Exited,
    /// It is being taken apart.
    Removing,
}

impl Status {
    /// In JSON and filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
            Self::Removing => "removing",
        }
    }

    /// Whether it has processes.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// The state of a container, durable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Where it is.
    pub status: Status,
    /// Of its first process, in the host's pid namespace; only while it lives.
    pub pid: Option<u32>,
    /// As a shell tells it.
    pub exit_code: Option<i32>,
    /// The kernel killed its first process for want of memory.
    pub oom_killed: bool,
    /// Last start, wall clock, nanoseconds since 1970 UTC.
    pub started_ns: Option<i64>,
    /// Last end.
    pub finished_ns: Option<i64>,
    /// Why it could not be started, or ended without an exit code of its own.
    pub error: Option<String>,
    /// Times that it was started.
    pub starts: u32,
    /// Times that its policy has started it again since somebody did.
    pub restarts: u32,
    /// Its policy is about to start it again.
    pub restarting: bool,
    /// Somebody stopped it: its policy leaves it down.
    pub by_hand: bool,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a shell tells it: 128 + signal where a signal ended it.
    pub code: i32,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// Nanoseconds since 1970 UTC.
    pub finished_ns: i64,
    /// What is unusual about it: it could not be started, its shim is gone.
    pub error: Option<String>,
}

/// The image that a container was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOf {
    /// As asked for.
    pub name: String,
    /// Digest of its configuration.
    pub id: String,
}

/// A mount as it came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// Name of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// On the host; empty for tmpfs.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// A volume without a name of its own, which goes with its container.
    #[serde(default)]
    pub anonymous: bool,
}

/// Kind of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    Bind,
    /// A named volume.
    Volume,
    /// Memory.
    Tmpfs,
}

/// Everything about one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspect {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// The image it was made from.
    pub image: ImageOf,
    /// Nanoseconds since 1970 UTC.
    pub created_ns: i64,
    /// Its state.
    pub state: State,
    /// Program of its first process.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Mounts, volumes of the image included.
    pub mounts: Vec<MountPoint>,
    /// Its network as it came to be; only while it lives.
    pub network: Option<Attached>,
    /// First id on the host and size of its user namespace.
    pub userns: Option<(u32, u32)>,
    /// Log file.
    pub log_path: PathBuf,
    /// Its cgroup below the root of the hierarchy.
    pub cgroup: String,
    /// Further processes started in it, by id, that still run.
    pub execs: Vec<String>,
    /// What was asked for.
    pub spec: ContainerSpec,
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// The image it was made from.
    pub image: ImageOf,
    /// What it runs.
    pub command: Vec<String>,
    /// Nanoseconds since 1970 UTC.
    pub created_ns: i64,
    /// Its state.
    pub state: State,
    /// Labels, the image's included.
    pub labels: BTreeMap<String, String>,
    /// Its network; only while it lives.
    pub network: Option<Attached>,
    /// Mounts.
    pub mounts: Vec<MountPoint>,
}

/// Which containers are wanted: each field that is not empty must match; of a list one suffices, of labels all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListFilter {
    /// Whose.
    pub owner: Option<Owner>,
    /// Ids or prefixes of ids.
    pub ids: Vec<String>,
    /// Parts of names.
    pub names: Vec<String>,
    /// `KEY` or `KEY=VALUE`.
    pub labels: Vec<String>,
    /// States.
    pub statuses: Vec<Status>,
    /// Image names as asked for, or prefixes of image ids.
    pub images: Vec<String>,
    /// Networks.
    pub networks: Vec<String>,
    /// Volumes, by name or target.
    pub volumes: Vec<String>,
    /// Exit codes.
    pub exit_codes: Vec<i32>,
}

/// What `create` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// Its id.
    pub id: ContainerId,
    /// Its name, made up where none was given.
    pub name: String,
    /// What was asked for and is not had here.
    pub warnings: Vec<String>,
}

/// What `start` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Of its first process, in the host's pid namespace.
    pub pid: u32,
    /// Nanoseconds since 1970 UTC.
    pub at_ns: i64,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitFor {
    /// That it has no processes: at once for one that has ended or was never started.
    #[default]
    NotRunning,
    /// The end of its present or next life.
    NextExit,
    /// That it is removed.
    Removed,
}

/// How to remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoveOptions {
    /// Killed first where it runs.
    pub force: bool,
    /// Its anonymous volumes too.
    pub volumes: bool,
}

/// What `prune` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Containers.
    pub removed: Vec<ContainerId>,
    /// Bytes of disk that they held.
    pub freed_bytes: u64,
}

/// A process of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id, in the host's pid namespace.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// User id, in the host's user namespace.
    pub uid: u32,
    /// Processor time it has had.
    pub cpu_time: Duration,
    /// Resident memory, bytes.
    pub rss: u64,
    /// When it was started, nanoseconds since 1970 UTC.
    pub started_ns: i64,
    /// State letter: R, S, D, Z, T.
    pub state: char,
    /// Number of its controlling terminal; 0: none.
    pub tty: u32,
    /// Its command line; its name in brackets where it has none.
    pub command: Vec<String>,
}

/// A further process in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// The container.
    pub container: ContainerId,
    /// What was asked for.
    pub spec: ExecSpec,
    /// Whether it runs.
    pub running: bool,
    /// Of it, in the host's pid namespace.
    pub pid: Option<u32>,
    /// As a shell tells it.
    pub exit_code: Option<i32>,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// What a path in a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// Last part of the path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `st_mode`.
    pub mode: u32,
    /// Last change, nanoseconds since 1970 UTC.
    pub mtime_ns: i64,
    /// Where a symbolic link leads, in the container.
    pub link_target: Option<String>,
}

/// Everything counted about one container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When it was read, nanoseconds since 1970 UTC.
    pub time_ns: i64,
    /// Of its cgroup.
    #[serde(flatten)]
    pub cgroup: crate::cgroup::Usage,
    /// Received and sent, by interface.
    pub network: BTreeMap<String, NetworkUsage>,
    /// Bytes of its writable part; only where asked for.
    #[serde(default)]
    pub disk: Option<u64>,
}

/// Received and sent on one interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsage {
    /// Received.
    pub rx_bytes: u64,
    /// Packets.
    pub rx_packets: u64,
    /// Errors.
    pub rx_errors: u64,
    /// Dropped.
    pub rx_dropped: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Packets.
    pub tx_packets: u64,
    /// Errors.
    pub tx_errors: u64,
    /// Dropped.
    pub tx_dropped: u64,
}

/// Addresses of a container, for those who need no more.
pub fn addresses(network: Option<&Attached>) -> Vec<IpAddr> {
    let interfaces = network.iter().flat_map(|network| &network.interfaces);
    interfaces.flat_map(|interface| interface.addresses.iter().map(ipnet::IpNet::addr)).collect()
}

/// Where the files of one container are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// `DATA/containers/ID`.
    pub data: PathBuf,
    /// `RUN/containers/ID`: the bundle.
    pub run: PathBuf,
}

impl Places {
    pub fn new(data_dir: &Path, run_dir: &Path, id: &ContainerId) -> Self {
        Self { data: data_dir.join("containers").join(id.as_str()), run: run_dir.join("containers").join(id.as_str()) }
    }

    /// Written by the shim at the end.
    pub fn exit(&self) -> PathBuf {
        self.data.join("exit.json")
    }

    /// Where the root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// The log, unless the specification names another.
    pub fn log(&self) -> PathBuf {
        self.data.join("container.log")
    }
}
