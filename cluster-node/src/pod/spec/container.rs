//! The specification of one container, and what it says about names, namespaces, mounts and limits.
//!
//! Elsewhere: users, capabilities and filters (`security`), the environment (`env`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use container_engine::{
    container::{
        ContainerSpec, Device, Dns, LogOptions, Mount, MountSource, NamespaceMode, NetworkMode, Propagation, Resources,
        UserNamespace, is_name,
    },
    image::ImageConfig,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{Env, SpecError, Surroundings, expand, paths, security};
use crate::{
    pod::{
        decide::qos,
        model::{Kind, PodKey, label},
    },
    volume::ContainerMounts,
};

/// Where a pod's own namespaces and files are on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Its network namespace; none: the host's.
    pub netns: Option<PathBuf>,
    /// Its IPC namespace; none: each container has one of its own.
    pub ipc: Option<PathBuf>,
    /// Its `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// Its pid namespace, where its containers share one.
    pub pid: Option<PathBuf>,
    /// The user namespace of all its containers, where it has one.
    pub userns: UserNamespace,
    /// Its `/etc/hosts`; none: the engine's.
    pub hosts: Option<PathBuf>,
}

/// What device plugins and the like give to one container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Granted {
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Folders and files.
    pub mounts: Vec<Mount>,
    /// Variables, over those of the pod.
    pub env: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Everything that a container is made of.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Its pod.
    pub pod: &'a Pod,
    /// What is asked for; see [`super::find`].
    pub container: &'a Container,
    /// Kind.
    pub kind: Kind,
    /// Lives before this one.
    pub attempt: u32,
    /// Its variables.
    pub env: &'a Env,
    /// Its volumes.
    pub mounts: &'a ContainerMounts,
    /// Groups that volumes ask for.
    pub groups: &'a BTreeSet<u32>,
    /// What the image says.
    pub image: &'a ImageConfig,
    /// Name or digest under which the engine has the image.
    pub image_name: &'a str,
    /// Where the pod is.
    pub place: &'a Place,
    /// `resolv.conf`, see [`super::dns::dns`].
    pub dns: &'a Dns,
    /// The host's file that becomes the termination log.
    pub termination_log: Option<PathBuf>,
    /// The profile that [`super::seccomp_profile`] names.
    pub seccomp: Option<&'a serde_json::Value>,
    /// Devices.
    pub granted: &'a Granted,
    /// The engine's id of the container whose processes an ephemeral one is to see.
    pub target: Option<&'a str>,
    /// The node.
    pub node: &'a Surroundings,
}

/// The specification of a container.
pub fn container(input: &Input<'_>) -> Result<ContainerSpec, SpecError> {
    let Input { pod, container, node, place, .. } = input;
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let key = PodKey::of(pod);
    let who = security::who(pod, container, input.image, input.groups)?;
    let (entrypoint, command) = command(container, input.env)?;
    let on_host = spec.host_network == Some(true);
    let mut variables = input.env.clone();
    variables.0.extend(input.granted.env.clone());
    Ok(ContainerSpec {
        name: Some(format!("{}-{}", container.name, input.attempt)).filter(|name| is_name(name)),
        owner: super::pod::owner(pod)?,
        image: input.image_name.to_owned(),
        entrypoint,
        command,
        env: variables.pairs(),
        working_dir: working_dir(container)?,
        user: Some(who.user),
        groups: who.groups,
        user_lookup: who.lookup,
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin == Some(true) && container.stdin_once == Some(true),
        labels: labels(input, &key),
        annotations: input.granted.annotations.clone(),
        hostname: if on_host { None } else { Some(super::pod::hostname(pod, node)?.kernel) },
        dns: input.dns.clone(),
        mounts: mounts(input),
        devices: devices(input),
        resources: resources(input),
        security: security::security(pod, container, input.seccomp, node)?,
        network: network(place, on_host)?,
        pid: pids(input, spec),
        ipc: match (spec.host_ipc, &place.ipc) {
            (Some(true), _) => NamespaceMode::Host,
            (_, Some(path)) => NamespaceMode::Path(path.clone()),
            (_, None) => NamespaceMode::Private,
        },
        uts: if on_host { NamespaceMode::Host } else { NamespaceMode::Private },
        userns: place.userns.clone(),
        map_mounts: place.userns != UserNamespace::Host,
        sysctls: sysctls(spec),
        stop_signal: container.lifecycle.as_ref().and_then(|it| it.stop_signal.clone()),
        log: LogOptions {
            path: Some(paths::log(&node.log_dir, &key, &container.name, input.attempt)),
            ..node.log.clone()
        },
        priority: spec.priority.unwrap_or(0),
        ..ContainerSpec::default()
    })
}

/// The limits of a container, also for a change while it runs.
pub fn resources_of(pod: &Pod, container: &Container, node: &Surroundings) -> Resources {
    let mut resources = qos::resources(pod, container, node.memory);
    if node.oom_group {
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    resources
}

fn resources(input: &Input<'_>) -> Resources {
    resources_of(input.pod, input.container, input.node)
}

/// Program and arguments by Kubernetes' rules: a command of its own drops the image's arguments too.
type Command = (Option<Vec<String>>, Option<Vec<String>>);

fn command(container: &Container, env: &Env) -> Result<Command, SpecError> {
    let words = |words: &Option<Vec<String>>| expand::words(words.as_deref().unwrap_or_default(), &env.0);
    let (command, args) = (words(&container.command)?, words(&container.args)?);
    let mut command = command.into_iter();
    let Some(program) = command.next() else {
        return Ok((None, Some(args).filter(|args| !args.is_empty())));
    };
    if program.is_empty() {
        return Err(SpecError::config("the first word of command is empty: it must name a program"));
    }
    // The engine takes an empty word of an entrypoint for none, as Docker does; in the arguments it stays.
    Ok((Some(vec![program]), Some(command.chain(args).collect())))
}

fn working_dir(container: &Container) -> Result<Option<String>, SpecError> {
    let dir = container.working_dir.as_ref().filter(|dir| !dir.is_empty());
    match dir {
        Some(dir) if !dir.starts_with('/') => {
            Err(SpecError::config(format!("workingDir {dir:?} must be an absolute path")))
        }
        dir => Ok(dir.cloned()),
    }
}

fn labels(input: &Input<'_>, key: &PodKey) -> BTreeMap<String, String> {
    let labels = [
        (label::POD_NAME, key.name.clone()),
        (label::POD_NAMESPACE, key.namespace.clone()),
        (label::POD_UID, key.uid.clone()),
        (label::CONTAINER_NAME, input.container.name.clone()),
        (label::ATTEMPT, input.attempt.to_string()),
        (label::KIND, input.kind.name().to_owned()),
        (label::HASH, super::hash(input.container)),
    ];
    labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Volumes first; what the kubelet adds yields to them.
fn mounts(input: &Input<'_>) -> Vec<Mount> {
    let mut mounts = input.mounts.mounts.clone();
    let add = |mounts: &mut Vec<Mount>, source: &Path, target: &str| {
        if !mounts.iter().any(|mount| is_same(&mount.target, target)) {
            mounts.push(Mount {
                target: target.to_owned(),
                source: MountSource::Bind { source: source.to_owned(), create: false },
                read_only: false,
                recursive_read_only: false,
                propagation: Propagation::Rprivate,
            });
        }
    };
    for mount in &input.granted.mounts {
        if !mounts.iter().any(|known| is_same(&known.target, &mount.target)) {
            mounts.push(mount.clone());
        }
    }
    if let Some(hosts) = &input.place.hosts {
        add(&mut mounts, hosts, "/etc/hosts");
    }
    let host_ipc = input.pod.spec.as_ref().and_then(|spec| spec.host_ipc) == Some(true);
    if let Some(shm) = input.place.shm.as_ref().filter(|_| !host_ipc) {
        add(&mut mounts, shm, "/dev/shm");
    }
    if let (Some(file), Some(target)) = (&input.termination_log, termination_path(input.container)) {
        add(&mut mounts, file, &target);
    }
    mounts
}

/// Where a container writes why it ends; `None`: nowhere.
pub fn termination_path(container: &Container) -> Option<String> {
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    (!path.is_empty()).then(|| format!("/{}", path.trim_start_matches('/')))
}

/// Whether two paths name the same place.
fn is_same(one: &str, other: &str) -> bool {
    let parts = |path: &'_ str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").map(ToOwned::to_owned).collect()
    };
    parts(one) == parts(other)
}

fn devices(input: &Input<'_>) -> Vec<Device> {
    input.mounts.devices.iter().chain(&input.granted.devices).cloned().collect()
}

fn network(place: &Place, on_host: bool) -> Result<NetworkMode, SpecError> {
    match &place.netns {
        _ if on_host => Ok(NetworkMode::Host),
        Some(path) => Ok(NetworkMode::Path(path.clone())),
        None => Err(SpecError { reason: "CreateContainerError", message: "the pod has no network yet".to_owned() }),
    }
}

fn pids(input: &Input<'_>, spec: &PodSpec) -> NamespaceMode {
    match (&input.place.pid, input.target) {
        _ if spec.host_pid == Some(true) => NamespaceMode::Host,
        (Some(path), _) => NamespaceMode::Path(path.clone()),
        (None, Some(target)) => NamespaceMode::Container(target.to_owned()),
        (None, None) => NamespaceMode::Private,
    }
}

fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    let list = spec.security_context.iter().flat_map(|it| it.sysctls.iter().flatten());
    list.map(|it| (sysctl_name(&it.name), it.value.clone())).collect()
}

/// With dots between its parts. As in `sysctl.d`: where a slash comes first, it separates, and dots stand for slashes.
pub fn sysctl_name(name: &str) -> String {
    if name.find(['.', '/']).and_then(|at| name.as_bytes().get(at)) != Some(&b'/') {
        return name.to_owned();
    }
    let swapped = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    name.chars().map(swapped).collect()
}

#[cfg(test)]
mod tests;
