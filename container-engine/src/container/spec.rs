//! What a container is asked to be, independent of who asks: the command line, a pod, a CI job, the Engine API.
//!
//! Absent fields mean what Docker means by them: the image's configuration first, then a safe default.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::owner::Owner;

/// A container to create.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // Docker's flags are that many.
pub struct ContainerSpec {
    /// Unique among the owner's containers; made up where absent.
    pub name: Option<String>,
    /// Who it belongs to.
    pub owner: Owner,
    /// Image name or digest, which is present locally. Pulling is the caller's step.
    pub image: String,
    /// Instead of the image's entrypoint; an empty list clears it.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's command.
    pub command: Option<Vec<String>>,
    /// `NAME=VALUE`, over the image's.
    pub env: Vec<String>,
    /// Absolute, in the container.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; names are looked up in the image.
    pub user: Option<String>,
    /// Further groups, names or numbers.
    pub groups: Vec<String>,
    /// How the two are looked up.
    pub user_lookup: UserLookup,
    /// With a terminal.
    pub tty: bool,
    /// Standard input stays open until a client closes it.
    pub stdin: bool,
    /// Standard input is closed for good when the first client that attached to it has gone.
    pub stdin_once: bool,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// Go into the OCI configuration.
    pub annotations: BTreeMap<String, String>,
    /// The container's host name; its short id where absent.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: Option<String>,
    /// `NAME:ADDRESS` lines for `/etc/hosts`; `host-gateway` is the bridge's address.
    pub extra_hosts: Vec<String>,
    /// `/etc/resolv.conf`.
    pub dns: Dns,
    /// Bind mounts, named volumes and tmpfs.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Limits.
    pub resources: Resources,
    /// What it may do.
    pub security: Security,
    /// Which network it is on.
    pub network: NetworkMode,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortMapping>,
    /// Process ids.
    pub pid: NamespaceMode,
    /// System V IPC and `/dev/shm`.
    pub ipc: NamespaceMode,
    /// Host name.
    pub uts: NamespaceMode,
    /// User and group ids.
    pub userns: UserNamespace,
    /// With a user namespace of its own, files of bind mounts belong to the same ids inside as on the host.
    pub map_mounts: bool,
    /// `net.core.somaxconn` and the like.
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of its processes.
    pub rlimits: Vec<Rlimit>,
    /// Bytes of `/dev/shm`; 64 MiB where absent.
    pub shm_size: Option<u64>,
    /// Name or number; the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL; 10 where absent.
    pub stop_timeout_s: Option<u32>,
    /// An init process that reaps orphans is PID 1.
    pub init: bool,
    /// The log.
    pub log: LogOptions,
    /// Removed by itself at its end.
    pub auto_remove: bool,
    /// Whether it is started again by itself after its end.
    pub restart: Restart,
    /// Admission and out-of-memory order: higher stays longer.
    pub priority: i32,
}

/// How users and groups are looked up in the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserLookup {
    /// Docker's way: a number is a name first, if the image has it; a user's groups count unless a group is named.
    #[default]
    Docker,
    /// Kubernetes' way: a number is an id, whatever the image says; the groups that the image puts the user into always count.
    Merge,
    /// A number is an id; of the image's groups only the user's first counts.
    Strict,
}

/// `/etc/resolv.conf`; empty lists mean the network's resolver, or the host's, and a lone dot among search domains or options
/// means none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options, such as `ndots:5`.
    pub options: Vec<String>,
}

/// One mount.
// Without `deny_unknown_fields`, which serde cannot do beside a flattened field: it would refuse the field's own parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: String,
    /// What is mounted.
    #[serde(flatten)]
    pub source: MountSource,
    /// Read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Whether sub-mounts are read-only too.
    #[serde(default)]
    pub recursive_read_only: bool,
    /// Which mounts made later are seen on the other side.
    #[serde(default)]
    pub propagation: Propagation,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum MountSource {
    /// A path of the host.
    Bind {
        /// Absolute.
        source: PathBuf,
        /// Made as an empty folder where it is missing.
        #[serde(default)]
        create: bool,
    },
    /// A named volume of the same owner, made where it is missing; a new one is filled from the image.
    Volume {
        /// Its name.
        name: String,
    },
    /// Memory.
    Tmpfs {
        /// Bytes.
        #[serde(default)]
        size: Option<u64>,
        /// Octal permissions.
        #[serde(default)]
        mode: Option<u32>,
    },
}

/// Mount propagation, in Kubernetes' and Docker's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// None.
    #[default]
    Rprivate,
    /// From the host.
    Rslave,
    /// Both ways.
    Rshared,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub target: String,
    /// Of `r`, `w`, `m`.
    pub access: String,
}

/// Limits; absent means none. Changed while running by `update`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; `-1` without limit.
    pub memory_swap: Option<i64>,
    /// Bytes the kernel tries to leave it.
    pub memory_reservation: Option<u64>,
    /// Thousandths of a core it may use.
    pub cpu_milli: Option<u64>,
    /// Length of the accounting period, µs; 100 000 where absent.
    pub cpu_period_us: Option<u64>,
    /// Share under contention, 2 to 262144; 1024 is one share.
    pub cpu_shares: Option<u64>,
    /// `0-1,3`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<i64>,
    /// Weight of block I/O, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Limits of single block devices.
    pub blkio: Vec<BlkioLimit>,
    /// Page size such as `2MB`, and bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// `-1000` to `1000`.
    pub oom_score_adj: Option<i32>,
    /// Further files of cgroup v2, as in OCI's `unified`.
    pub unified: BTreeMap<String, String>,
}

/// Limits of one block device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlkioLimit {
    /// Device node.
    pub device: PathBuf,
    /// Bytes a second read.
    pub read_bps: Option<u64>,
    /// Bytes a second written.
    pub write_bps: Option<u64>,
    /// Operations a second read.
    pub read_iops: Option<u64>,
    /// Operations a second written.
    pub write_iops: Option<u64>,
}

/// What a container may do. The default is Docker's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Everything: all capabilities and devices, nothing masked, no filter.
    pub privileged: bool,
    /// Beyond the default set; `ALL` or names with or without `CAP_`.
    pub cap_add: Vec<String>,
    /// Taken from the default set.
    pub cap_drop: Vec<String>,
    /// No way to more rights through setuid files.
    pub no_new_privileges: bool,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// Profile name, where the kernel has AppArmor.
    pub apparmor: Option<String>,
    /// The root file system is read-only.
    pub read_only_rootfs: bool,
    /// Instead of the default masked paths.
    pub masked_paths: Option<Vec<String>>,
    /// Instead of the default read-only paths.
    pub readonly_paths: Option<Vec<String>>,
}

/// The system call filter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// Docker's.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile in Docker's JSON format.
    Custom(serde_json::Value),
}

/// The network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The default bridge.
    #[default]
    Bridge,
    /// The host's.
    Host,
    /// Loopback alone.
    None,
    /// That of another container, by id or name.
    Container(String),
    /// A network namespace that somebody else holds, such as a pod's.
    Path(PathBuf),
    /// Named networks of the same owner.
    Networks(Vec<Attachment>),
}

/// A place on a named network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// Further names it answers to there.
    pub aliases: Vec<String>,
    /// A certain address.
    pub address: Option<IpAddr>,
}

/// A port of the host that leads to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Address of the host; all where absent.
    #[serde(default)]
    pub host_address: Option<IpAddr>,
    /// Port of the host; 0 takes a free one.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Protocol of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// Its own.
    #[default]
    Private,
    /// The host's.
    Host,
    /// That of another container, by id or name.
    Container(String),
    /// One that somebody else holds.
    Path(PathBuf),
}

/// User namespace of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespace {
    /// The host's.
    #[default]
    Host,
    /// One of its own, with a range of 65536 ids that no other container has; those of one pod have one range together.
    Auto,
    /// One of its own, ids 0 to `size - 1` mapped to `host` and up.
    Mapped {
        /// First id on the host.
        host: u32,
        /// How many.
        size: u32,
    },
}

/// A resource limit of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// In force.
    pub soft: u64,
    /// Up to which it may be raised.
    pub hard: u64,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogOptions {
    /// File in CRI format; one of the engine's own where absent.
    pub path: Option<PathBuf>,
    /// Bytes after which it is rotated.
    pub max_bytes: u64,
    /// Files kept, the current one included; rotated ones are compressed.
    pub max_files: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { path: None, max_bytes: 10 << 20, max_files: 5 }
    }
}

/// Whether a container is started again by itself after its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It stays down.
    #[default]
    No,
    /// Where its exit code is not 0.
    OnFailure {
        /// At most so many times; 0: without end.
        max: u32,
    },
    /// Always; also with the agent, if somebody had stopped it.
    Always,
    /// Always, unless somebody stopped it.
    UnlessStopped,
}

/// A further process in a running container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Over the container's.
    pub env: Vec<String>,
    /// The container's where absent.
    pub working_dir: Option<String>,
    /// The container's where absent.
    pub user: Option<String>,
    /// With a terminal.
    pub tty: bool,
    /// Standard input stays open until a client closes it.
    pub stdin: bool,
    /// All capabilities.
    pub privileged: bool,
}
