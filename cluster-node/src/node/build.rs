//! The Node object out of facts. Pure.
//!
//! Elsewhere: where the facts come from (`facts`, `address`, the engine), what of it is sent (`patch`).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
        NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus, NodeSystemInfo, Taint,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    facts::{Amounts, KUBELET_VERSION, Machine},
    resources::{self, Extended, Reserved, Resources},
};
use crate::{housekeeping::threshold::Pressure, options};

/// The volumes of this node are attached by the cluster's controller.
pub const ATTACH_ANNOTATION: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Longest message of a condition, bytes.
const MAX_MESSAGE: usize = 4096;

/// Everything that the object is made of.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Configured labels.
    pub labels: BTreeMap<String, String>,
    /// Taints to register with.
    pub taints: Vec<options::Taint>,
    /// The machine.
    pub machine: Machine,
    /// What it has.
    pub amounts: Amounts,
    /// What is kept from pods, the share of eviction included.
    pub reserved: Reserved,
    /// Pods at the most.
    pub max_pods: u32,
    /// Devices and the like.
    pub extended: BTreeMap<String, Extended>,
    /// Addresses, without the name.
    pub addresses: Vec<NodeAddress>,
    /// Port of the kubelet's API.
    pub port: u16,
    /// Images, largest first.
    pub images: Vec<ContainerImage>,
    /// Features that the scheduler may count on.
    pub declared: BTreeSet<String>,
    /// Attachable volumes that pods use.
    pub volumes_in_use: Vec<String>,
    /// What is short.
    pub pressures: BTreeSet<Pressure>,
    /// Why the node is not ready.
    pub problems: Vec<String>,
}

/// The object, with conditions as they go on from `before`.
pub fn build(facts: &Facts, before: &[NodeCondition], now: Timestamp) -> Node {
    let taints = taints(facts);
    Node {
        metadata: ObjectMeta {
            name: Some(facts.name.clone()),
            labels: Some(labels(facts)),
            annotations: Some([(ATTACH_ANNOTATION.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: Some(taints).filter(|it| !it.is_empty()), ..NodeSpec::default() }),
        status: Some(status(facts, before, now)),
    }
}

/// Those to register with.
pub fn taints(facts: &Facts) -> Vec<Taint> {
    let one = |taint: &options::Taint| Taint {
        key: taint.key.clone(),
        value: Some(taint.value.clone()).filter(|it| !it.is_empty()),
        effect: taint.effect.clone(),
        time_added: None,
    };
    facts.taints.iter().map(one).collect()
}

/// The standard ones come last: they are not for anybody to set.
pub fn labels(facts: &Facts) -> BTreeMap<String, String> {
    let mut labels = facts.labels.clone();
    let arch = facts.machine.architecture.as_str();
    for (key, value) in [
        ("kubernetes.io/hostname", facts.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

fn status(facts: &Facts, before: &[NodeCondition], now: Timestamp) -> NodeStatus {
    let capacity = resources::capacity(&facts.amounts, facts.max_pods, &facts.extended);
    let allocatable = resources::allocatable(&facts.amounts, facts.max_pods, &facts.extended, &facts.reserved);
    let mut addresses = facts.addresses.clone();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: facts.name.clone() });
    let endpoint = DaemonEndpoint { port: i32::from(facts.port) };
    let some = |list: &[String]| Some(list.to_vec()).filter(|it| !it.is_empty());
    let declared: Vec<String> = facts.declared.iter().cloned().collect();
    NodeStatus {
        addresses: Some(addresses),
        conditions: Some(conditions(facts, &capacity, before, now)),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(endpoint) }),
        images: Some(facts.images.clone()).filter(|it| !it.is_empty()),
        node_info: Some(info(&facts.machine, &facts.amounts)),
        runtime_handlers: Some(vec![NodeRuntimeHandler {
            // The handler of pods that name none.
            name: Some(String::new()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(facts.machine.recursive_read_only),
                user_namespaces: Some(facts.machine.user_namespaces),
            }),
        }]),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        declared_features: some(&declared),
        volumes_in_use: some(&facts.volumes_in_use),
        ..NodeStatus::default()
    }
}

fn info(machine: &Machine, amounts: &Amounts) -> NodeSystemInfo {
    let swap = i64::try_from(amounts.swap).ok().filter(|bytes| *bytes > 0);
    NodeSystemInfo {
        architecture: machine.architecture.clone(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: concat!("edge-agent://", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel_version: machine.kernel.clone(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        kube_proxy_version: String::new(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        swap: swap.map(|bytes| NodeSwapStatus { capacity: Some(bytes) }),
    }
}

/// One of ours: what it is called, and its words for yes and no.
struct Kind {
    name: &'static str,
    yes: (&'static str, &'static str),
    no: (&'static str, &'static str),
}

const MEMORY: Kind = Kind {
    name: "MemoryPressure",
    yes: ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    no: ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
};
const DISK: Kind = Kind {
    name: "DiskPressure",
    yes: ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    no: ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
};
const PID: Kind = Kind {
    name: "PIDPressure",
    yes: ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    no: ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
};

/// Ready comes last: who sees it sees the others, too.
fn conditions(facts: &Facts, capacity: &Resources, before: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let pressure = |pressure: Pressure, kind: &Kind| {
        let holds = facts.pressures.contains(&pressure);
        let (reason, message) = if holds { kind.yes } else { kind.no };
        condition(kind.name, holds, reason, message, before, now)
    };
    let mut problems = facts.problems.clone();
    let needed = ["cpu", "memory", "pods", "ephemeral-storage"];
    let missing: Vec<_> = needed.into_iter().filter(|name| !capacity.contains_key(*name)).collect();
    if !missing.is_empty() {
        problems.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    let ready = match problems.as_slice() {
        [] => condition("Ready", true, "KubeletReady", "kubelet is posting ready status", before, now),
        [one] => condition("Ready", false, "KubeletNotReady", one, before, now),
        some => condition("Ready", false, "KubeletNotReady", &format!("[{}]", some.join(", ")), before, now),
    };
    vec![pressure(Pressure::Memory, &MEMORY), pressure(Pressure::Disk, &DISK), pressure(Pressure::Pid, &PID), ready]
}

fn condition(
    name: &str,
    holds: bool,
    reason: &str,
    message: &str,
    before: &[NodeCondition],
    now: Timestamp,
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let same = before.iter().find(|it| it.type_ == name && it.status == status);
    let since = same.and_then(|it| it.last_transition_time.clone()).unwrap_or(Time(now));
    let end = (0..=message.len().min(MAX_MESSAGE)).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    NodeCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message[..end].to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(since),
    }
}

/// Whether the node is ready by these.
pub fn is_ready(conditions: &[NodeCondition]) -> bool {
    conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// The event for a condition that changed, as the kubelet has it; of conditions of others none.
pub fn transition(name: &str, holds: bool) -> Option<&'static str> {
    Some(match (name, holds) {
        ("Ready", true) => "NodeReady",
        ("Ready", false) => "NodeNotReady",
        ("MemoryPressure", true) => "NodeHasInsufficientMemory",
        ("MemoryPressure", false) => "NodeHasSufficientMemory",
        ("DiskPressure", true) => "NodeHasDiskPressure",
        ("DiskPressure", false) => "NodeHasNoDiskPressure",
        ("PIDPressure", true) => "NodeHasInsufficientPID",
        ("PIDPressure", false) => "NodeHasSufficientPID",
        _ => return None,
    })
}
