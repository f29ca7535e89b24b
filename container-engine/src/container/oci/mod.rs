//! The OCI configuration of a container. Pure: everything that has to be looked up comes in as [`Input`].
//!
//! What is not asked for is as Docker has it: capabilities, masked and read-only paths, mounts, devices, environment.

mod capabilities;
mod linux;
mod mounts;
mod resources;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{ContainerSpec, ExecSpec, ImageDefaults, MountPoint, NamespaceMode, user::User};
use crate::cgroup::Mode;

pub use capabilities::{DEFAULT as DEFAULT_CAPABILITIES, effective as capabilities_of};
pub(super) use mounts::same as same_path;
pub use resources::resources;

/// `PATH` where the image has none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the init process is mounted.
const INIT: &str = "/sbin/docker-init";

/// A specification that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to run.
    #[error("no command: the image has neither entrypoint nor command, so name one")]
    NoCommand,
    /// A value of the specification.
    #[error("{field}: {value:?} {problem}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong, and what would be right.
        problem: &'static str,
    },
}

impl ConfigError {
    pub(super) fn invalid(field: &'static str, value: impl Into<String>, problem: &'static str) -> Self {
        Self::Invalid { field, value: value.into(), problem }
    }
}

/// A limit of a device that is none.
pub(super) fn no_block_device(path: &Path) -> ConfigError {
    ConfigError::invalid("resources.blkio", path.display().to_string(), "is no block device of this board")
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// In the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of `rwm`.
    pub access: String,
}

/// Where the namespaces of others are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// Process ids.
    pub pid: Option<PathBuf>,
    /// System V IPC.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// `/dev/shm` of the container whose IPC namespace is joined.
    pub shm: Option<PathBuf>,
}

/// Everything that the configuration is made of.
#[derive(Debug)]
pub struct Input<'a> {
    /// The container's id.
    pub id: &'a str,
    /// What was asked for.
    pub spec: &'a ContainerSpec,
    /// What the image says.
    pub image: &'a ImageDefaults,
    /// Looked up in its root file system.
    pub user: &'a User,
    /// Where the root file system is mounted.
    pub rootfs: PathBuf,
    /// Host name.
    pub hostname: &'a str,
    /// Files of the engine's to mount: (source, target).
    pub files: Vec<(PathBuf, &'static str)>,
    /// Binds, volumes and tmpfs, with their sources found.
    pub mounts: &'a [MountPoint],
    /// Devices, looked up; with privileges all of the host.
    pub devices: Vec<Node>,
    /// The network namespace to join; none: the host's.
    pub netns: Option<PathBuf>,
    /// Other namespaces to join.
    pub joined: Joined,
    /// First id on the host, and how many, of its user namespace.
    pub userns: Option<(u32, u32)>,
    /// Its cgroup below the root of the hierarchy.
    pub cgroup: String,
    /// Which version the board has.
    pub cgroup_mode: Mode,
    /// Whether swap can be limited.
    pub limits_swap: bool,
    /// The program that `init` starts: this same file.
    pub init: Option<PathBuf>,
    /// OCI's `seccomp`; none: no filter.
    pub seccomp: Option<Value>,
    /// Name of the AppArmor profile.
    pub apparmor: Option<String>,
    /// Block devices of I/O limits, looked up: (place in `resources.blkio`, major, minor).
    pub blkio: Vec<(usize, u32, u32)>,
}

impl<'a> Input<'a> {
    /// With what is only known at the start left out: enough to find what is wrong with a specification.
    pub(super) fn draft(
        spec: &'a ContainerSpec,
        image: &'a ImageDefaults,
        user: &'a User,
        mounts: &'a [MountPoint],
    ) -> Self {
        let own_net = !matches!(spec.network, super::NetworkMode::Host);
        Self {
            id: "",
            spec,
            image,
            user,
            rootfs: PathBuf::new(),
            hostname: "",
            files: Vec::new(),
            mounts,
            devices: Vec::new(),
            netns: own_net.then(PathBuf::new),
            joined: Joined::default(),
            userns: (spec.userns != super::UserNamespace::Host).then_some((0, 1)),
            cgroup: String::new(),
            cgroup_mode: Mode::V2,
            limits_swap: true,
            init: spec.init.then(PathBuf::new),
            seccomp: None,
            apparmor: None,
            blkio: Vec::new(),
        }
    }
}

/// The configuration.
pub fn config(input: &Input<'_>) -> Result<Value, ConfigError> {
    let spec = input.spec;
    let mut args = input.image.args(spec.entrypoint.as_deref(), spec.command.as_deref());
    if args.is_empty() {
        return Err(ConfigError::NoCommand);
    }
    if input.init.is_some() {
        args.splice(0..0, [INIT.to_owned(), "container-init".to_owned(), "--".to_owned()]);
    }
    check(spec, &args)?;
    let capabilities = capabilities::effective(&spec.security)?;
    let mut process = json!({
        "terminal": spec.tty,
        "user": user_value(input.user),
        "args": args,
        "env": environment(input),
        "cwd": working_dir(spec, input.image)?,
        "capabilities": capabilities::value(&capabilities, input.user.uid == 0),
        "noNewPrivileges": spec.security.no_new_privileges,
        "rlimits": rlimits(spec)?,
    });
    if let Some(score) = spec.resources.oom_score_adj {
        process["oomScoreAdj"] = score.into();
    }
    if let Some(profile) = &input.apparmor {
        process["apparmorProfile"] = profile.as_str().into();
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": input.rootfs, "readonly": spec.security.read_only_rootfs },
        "mounts": mounts::mounts(input)?,
        "linux": linux::linux(input)?,
        "annotations": spec.annotations,
    });
    if spec.uts == NamespaceMode::Private {
        config["hostname"] = input.hostname.into();
        if let Some(domain) = &spec.domainname {
            // Newer than OCI 1.0; older runtimes need the sysctl.
            config["linux"]["sysctl"]["kernel.domainname"] = domain.as_str().into();
        }
    }
    Ok(config)
}

/// The `process` of a further process: that of the container, with what the execution says over it.
pub fn exec_process(container: &Value, exec: &ExecSpec, user: Option<&User>) -> Result<Value, ConfigError> {
    if exec.command.is_empty() || exec.command[0].is_empty() {
        return Err(ConfigError::NoCommand);
    }
    for word in exec.command.iter().chain(&exec.env) {
        no_zero("command or env", word)?;
    }
    let mut process = container["process"].clone();
    process["args"] = json!(exec.command);
    process["terminal"] = exec.tty.into();
    if let Some(dir) = exec.working_dir.as_deref().filter(|dir| !dir.is_empty()) {
        if !dir.starts_with('/') {
            return Err(ConfigError::invalid("working_dir", dir, "must be an absolute path"));
        }
        process["cwd"] = dir.into();
    }
    let mut env: Vec<String> = serde_json::from_value(process["env"].take()).unwrap_or_default();
    if exec.tty {
        set_default(&mut env, "TERM=xterm");
    }
    if let Some(user) = user {
        process["user"] = user_value(user);
        set(&mut env, &format!("HOME={}", user.home));
    }
    for pair in &exec.env {
        set(&mut env, pair);
    }
    process["env"] = json!(env);
    let uid = process["user"]["uid"].as_u64().unwrap_or(0);
    let names = if exec.privileged {
        capabilities::all()
    } else {
        serde_json::from_value(process["capabilities"]["bounding"].take()).unwrap_or_default()
    };
    process["capabilities"] = capabilities::value(&names, uid == 0 || exec.privileged);
    Ok(process)
}

fn user_value(user: &User) -> Value {
    json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups })
}

fn working_dir(spec: &ContainerSpec, image: &ImageDefaults) -> Result<String, ConfigError> {
    let asked = spec.working_dir.as_deref().filter(|dir| !dir.is_empty());
    match asked {
        Some(dir) if dir.starts_with('/') => Ok(dir.to_owned()),
        Some(dir) => Err(ConfigError::invalid("working_dir", dir, "must be an absolute path")),
        // An image's relative path counts from the root.
        None => Ok(format!("/{}", image.working_dir.trim_start_matches('/'))),
    }
}

/// Docker's order: PATH, HOSTNAME, TERM, then the image's, then those asked for; HOME where nobody names it.
fn environment(input: &Input<'_>) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", input.hostname)];
    if input.spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    for pair in input.image.env.iter().chain(&input.spec.env) {
        set(&mut env, pair);
    }
    set_default(&mut env, &format!("HOME={}", input.user.home));
    env
}

/// Sets `NAME=VALUE`; a bare `NAME` removes it.
fn set(env: &mut Vec<String>, pair: &str) {
    let (name, value) = pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value)));
    if name.is_empty() || pair.contains('\0') {
        return;
    }
    let place = env.iter().position(|known| known.split('=').next() == Some(name));
    match (place, value) {
        (Some(place), Some(_)) => pair.clone_into(&mut env[place]),
        (Some(place), None) => drop(env.remove(place)),
        (None, Some(_)) => env.push(pair.to_owned()),
        (None, None) => {}
    }
}

fn set_default(env: &mut Vec<String>, pair: &str) {
    let name = pair.split('=').next();
    if !env.iter().any(|known| known.split('=').next() == name) {
        env.push(pair.to_owned());
    }
}

fn rlimits(spec: &ContainerSpec) -> Result<Vec<Value>, ConfigError> {
    const KNOWN: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let one = |limit: &super::Rlimit| {
        let lower = limit.name.to_ascii_lowercase();
        let name = lower.strip_prefix("rlimit_").unwrap_or(&lower);
        if !KNOWN.contains(&name) {
            return Err(ConfigError::invalid("rlimits", &limit.name, "is no resource limit: nofile, nproc, core, …"));
        }
        if limit.soft > limit.hard {
            return Err(ConfigError::invalid("rlimits", &limit.name, "has a soft limit above its hard limit"));
        }
        Ok(json!({ "type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": limit.soft, "hard": limit.hard }))
    };
    spec.rlimits.iter().map(one).collect()
}

/// What no runtime could use.
fn check(spec: &ContainerSpec, args: &[String]) -> Result<(), ConfigError> {
    for word in args {
        no_zero("command", word)?;
    }
    if let Some(hostname) = &spec.hostname {
        let plain = hostname.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if !plain || hostname.is_empty() || hostname.len() > 64 {
            return Err(ConfigError::invalid("hostname", hostname, "must be 1 to 64 letters, digits, '-' or '.'"));
        }
    }
    if spec.security.privileged && !matches!(spec.userns, super::UserNamespace::Host) {
        return Err(ConfigError::invalid(
            "security.privileged",
            "true",
            "does not go with a user namespace of its own",
        ));
    }
    let pid_host = spec.pid != NamespaceMode::Private;
    if spec.init && pid_host {
        return Err(ConfigError::invalid("init", "true", "needs a pid namespace of its own"));
    }
    Ok(())
}

fn no_zero(field: &'static str, word: &str) -> Result<(), ConfigError> {
    if word.contains('\0') { Err(ConfigError::invalid(field, word, "has a zero byte")) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
