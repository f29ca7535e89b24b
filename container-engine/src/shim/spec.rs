//! What a shim is told when it is started, and what its clients ask for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::LogOptions;

/// Largest specification, bytes.
pub(super) const MAX_SPEC: u64 = 1 << 20;

/// Which OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeSpec {
    /// A program with runc's command line, by path or name; absent for this same file's own.
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// The runtime's state (`--root`).
    pub root: PathBuf,
    /// The root is an initramfs, which `pivot_root` cannot leave.
    #[serde(default)]
    pub no_pivot: bool,
}

/// One container, for its shim. Everything here is decided by the engine; the shim only carries it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShimSpec {
    /// The container's id, as the runtime knows it.
    pub id: String,
    /// The runtime.
    pub runtime: RuntimeSpec,
    /// Folder of `config.json`.
    pub bundle: PathBuf,
    /// `RUN/containers/ID`: the socket, `shim.json`, and what lives no longer than the container. Mode 0700.
    pub run_dir: PathBuf,
    /// Where the exit record goes; its folder exists.
    pub exit_file: PathBuf,
    /// The log: its path must be set for there to be one.
    #[serde(default)]
    pub log: LogOptions,
    /// With a terminal (`process.terminal` in `config.json` says the same).
    #[serde(default)]
    pub tty: bool,
    /// Standard input is open until a client closes it; else it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Standard input closes when the first client that attached to it has gone.
    #[serde(default)]
    pub stdin_once: bool,
    /// Rows and columns of the terminal.
    #[serde(default)]
    pub terminal_size: Option<(u16, u16)>,
    /// Cgroup folders (one of each hierarchy that matters) that the shim puts itself into; made where missing. They must
    /// not be the container's own, or its limits would hold for the shim.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// A container that is not started within this many seconds, with nobody following its events, is removed.
    #[serde(default = "start_within")]
    pub start_within_s: u32,
}

fn start_within() -> u32 {
    120
}

/// Which streams a client wants, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag of the command line.
pub struct Attach {
    /// To write to standard input.
    pub stdin: bool,
    /// To be sent standard output.
    pub stdout: bool,
    /// To be sent standard error.
    pub stderr: bool,
    /// The container waits when this client reads more slowly than the container writes, as `docker run` in the
    /// foreground does. Else the client has a second to catch up and is then cut.
    #[serde(default)]
    pub wait: bool,
}

/// A further process in a running container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Unique among the container's executions: up to 64 letters, digits, `.`, `_` and `-`.
    pub id: String,
    /// OCI's `process` object: `args`, `cwd`, `env`, `user`, `capabilities` and so on.
    pub process: serde_json::Value,
    /// With a terminal (`process.terminal` says the same).
    #[serde(default)]
    pub tty: bool,
    /// Standard input stays open until the client closes it; else it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Rows and columns of the terminal.
    #[serde(default)]
    pub terminal_size: Option<(u16, u16)>,
}
