//! What a container of a pod is for the engine: environment, security, limits, mounts, names.
//!
//! Always true: everything here is pure; the same pod on the same node gives the same specification, and no pod object makes
//! it panic. What has to be looked up (objects, the image, volumes, addresses) comes in.
//!
//! Elsewhere: who looks it up and acts (`pod::runtime`), volumes (`volume`), classes and limits (`pod::decide::qos`).

pub mod container;
pub mod dns;
pub mod env;
mod env_file;
pub mod expand;
pub mod field;
pub mod hosts;
pub mod paths;
pub mod pod;
mod security;
mod service;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use container_engine::{container::LogOptions, network::dns::HostConf};
use k8s_openapi::{
    api::core::v1::{Container, EphemeralContainer, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

pub use container::{Granted, Input, Place, container, termination_path};
pub use env::{Env, Needs, Sources, VolumeFile, environment, needs};
pub use hosts::hosts_file;
pub use pod::{attach_request, hostname, owner, pod_resources, sandbox_id};
pub use security::{is_privileged, seccomp_profile};

use super::model::Kind;

/// What pods see of the node they are on.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The node's name.
    pub node: String,
    /// Its addresses, the preferred family first.
    pub host_addresses: Vec<IpAddr>,
    /// What pods may take: the limit of a container that has none.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Memory of the node, bytes.
    pub memory: u64,
    /// `clusterDNS`.
    pub cluster_dns: Vec<IpAddr>,
    /// `clusterDomain`.
    pub cluster_domain: String,
    /// The host's `resolv.conf`.
    pub resolv_conf: HostConf,
    /// The host's `/etc/hosts`.
    pub hosts: String,
    /// Out of memory, all processes of a container end together: `singleProcessOOMKill` is off, on version 2 of control groups.
    pub oom_group: bool,
    /// `seccompDefault`: what says nothing gets the runtime's filter.
    pub seccomp_default: bool,
    /// `podPidsLimit`; none where not above zero.
    pub pids: Option<i64>,
    /// Rotation of logs; the path is set for each container.
    pub log: LogOptions,
    /// The kubelet's folder.
    pub kubelet_dir: PathBuf,
    /// The folder of logs.
    pub log_dir: PathBuf,
}

/// Why a container cannot be made as its pod says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    /// Reason of its waiting state.
    pub reason: &'static str,
    /// For people, as the kubelet words it.
    pub message: String,
}

impl SpecError {
    /// `CreateContainerConfigError`.
    pub fn config(message: impl Into<String>) -> Self {
        Self { reason: "CreateContainerConfigError", message: message.into() }
    }
}

/// A container of a pod by its name, an ephemeral one in the words of the others.
pub fn find(pod: &Pod, name: &str) -> Option<(Kind, Container)> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten().map(|it| (Kind::of_init(it), it));
    let regular = spec.containers.iter().map(|it| (Kind::Regular, it));
    if let Some((kind, found)) = init.chain(regular).find(|(_, it)| it.name == name) {
        return Some((kind, found.clone()));
    }
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|it| it.name == name)?;
    Some((Kind::Ephemeral, of_ephemeral(ephemeral)))
}

/// An ephemeral container in the words of the others.
pub fn of_ephemeral(from: &EphemeralContainer) -> Container {
    let it = from.clone();
    Container {
        args: it.args,
        command: it.command,
        env: it.env,
        env_from: it.env_from,
        image: it.image,
        image_pull_policy: it.image_pull_policy,
        lifecycle: it.lifecycle,
        liveness_probe: it.liveness_probe,
        name: it.name,
        ports: it.ports,
        readiness_probe: it.readiness_probe,
        resize_policy: it.resize_policy,
        resources: it.resources,
        restart_policy: it.restart_policy,
        restart_policy_rules: it.restart_policy_rules,
        security_context: it.security_context,
        startup_probe: it.startup_probe,
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        termination_message_path: it.termination_message_path,
        termination_message_policy: it.termination_message_policy,
        tty: it.tty,
        volume_devices: it.volume_devices,
        volume_mounts: it.volume_mounts,
        working_dir: it.working_dir,
    }
}

/// Of the definition that a container was made from: with another one it is made anew. As the kubelet's, it covers what can
/// change while the pod lives and is not applied in place.
pub fn hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    // FNV-1a.
    let bytes = container.name.bytes().chain([0]).chain(image.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Whether it is on the host's network.
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}
