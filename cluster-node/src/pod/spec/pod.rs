//! What belongs to a pod as a whole: names, network, limits.

use std::net::IpAddr;

use container_engine::{
    container::{NetworkMode, PortMapping, Protocol, Resources},
    network::{AttachRequest, Bandwidth},
    owner::Owner,
};
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{SpecError, Surroundings, is_host_network};
use crate::pod::{
    decide::{
        qos::{self, Class},
        quantity::Amount,
    },
    model::{Kind, PodKey},
};

/// Longest host name of a pod; the kernel takes one more.
const MAX_HOSTNAME: usize = 63;
/// Longest full name that can be a host name.
const MAX_FQDN: usize = 64;
/// Least and most bits a second that a pod can be limited to.
const BANDWIDTH: (i64, i64) = (1000, 1_000_000_000_000_000);
/// Length of the accounting period, µs, and least time in it.
const QUOTA: (u64, u64) = (100_000, 1000);

/// How a pod is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Its host name, one label.
    pub short: String,
    /// The domain that its `subdomain` puts it into.
    pub domain: Option<String>,
    /// What the kernel is told.
    pub kernel: String,
}

/// Whose containers, networks and control group a pod's are.
pub fn owner(pod: &Pod) -> Result<Owner, SpecError> {
    let uid = PodKey::of(pod).uid;
    format!("pods/{uid}").parse().map_err(|error: container_engine::owner::OwnerError| sandbox(error.to_string()))
}

/// The engine's name of a pod's network.
pub fn sandbox_id(uid: &str) -> String {
    format!("pod-{uid}")
}

fn sandbox(message: String) -> SpecError {
    SpecError { reason: "ConfigPodSandboxError", message }
}

/// The names of a pod.
pub fn hostname(pod: &Pod, node: &Surroundings) -> Result<Names, SpecError> {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(wanted) = &spec.hostname_override {
        let valid = wanted.len() <= 253 && wanted.split('.').all(is_label);
        if !valid {
            return Err(sandbox(format!("pod HostnameOverride {wanted:?} is not a valid DNS subdomain")));
        }
        let short = cut(name, wanted)?;
        return Ok(Names { kernel: short.clone(), short, domain: None });
    }
    let wanted = spec.hostname.as_deref().filter(|it| !it.is_empty());
    if let Some(wrong) = wanted.filter(|it| !is_label(it)) {
        return Err(sandbox(format!("pod Hostname {wrong:?} is not a valid DNS label")));
    }
    let short = cut(name, wanted.unwrap_or(name))?;
    let subdomain = spec.subdomain.as_deref().filter(|it| !it.is_empty());
    if let Some(wrong) = subdomain.filter(|it| !is_label(it)) {
        return Err(sandbox(format!("pod Subdomain {wrong:?} is not a valid DNS label")));
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let domain = subdomain.map(|it| format!("{it}.{namespace}.svc.{}", node.cluster_domain));
    let kernel = match &domain {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{short}.{domain}"),
        _ => short.clone(),
    };
    if kernel.len() > MAX_FQDN {
        return Err(sandbox(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {kernel} is too long ({MAX_FQDN} characters \
             is the max, {} characters requested)",
            kernel.len()
        )));
    }
    Ok(Names { short, domain, kernel })
}

fn cut(pod: &str, name: &str) -> Result<String, SpecError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    let short = name.get(..name.len().min(MAX_HOSTNAME)).unwrap_or_default();
    let short = if short.len() < name.len() { short.trim_end_matches(['-', '.']) } else { short };
    if short.is_empty() || !plain {
        return Err(sandbox(format!("hostname for pod {pod:?} was invalid: {name:?}")));
    }
    Ok(short.to_owned())
}

/// RFC 1123.
fn is_label(text: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= 63 && ends(text.bytes().next()) && ends(text.bytes().last()) && text.bytes().all(inside)
}

/// What the pod's network is to be.
pub fn attach_request(pod: &Pod, node: &Surroundings) -> Result<AttachRequest, SpecError> {
    let key = PodKey::of(pod);
    let on_host = is_host_network(pod);
    let args = [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", key.namespace.clone()),
        ("K8S_POD_NAME", key.name.clone()),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox_id(&key.uid)),
        ("K8S_POD_UID", key.uid.clone()),
    ];
    // A separator in a value would make an argument of its own.
    if let Some((name, _)) = args.iter().find(|(_, value)| value.contains(['=', ';', '\0'])) {
        return Err(sandbox(format!("the pod's {name} cannot be told to network plugins: it has a ';' or '='")));
    }
    Ok(AttachRequest {
        sandbox: sandbox_id(&key.uid),
        owner: owner(pod)?,
        mode: if on_host { NetworkMode::Host } else { NetworkMode::Bridge },
        ports: if on_host { Vec::new() } else { host_ports(pod) },
        hostname: hostname(pod, node)?.short,
        names: Vec::new(),
        cni_args: args.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        bandwidth: bandwidth(pod)?,
    })
}

/// Ports of the host that lead to the pod.
pub fn host_ports(pod: &Pod) -> Vec<PortMapping> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|it| Kind::of_init(it) == Kind::Sidecar);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    let mut found: Vec<PortMapping> = Vec::new();
    for port in ports {
        let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
        let (Some(host), Some(inside)) = (port.host_port.and_then(number), number(port.container_port)) else {
            continue;
        };
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let host_address = port.host_ip.as_deref().and_then(|it| it.parse::<IpAddr>().ok());
        let mapping = PortMapping { host_address, host_port: host, container_port: inside, protocol };
        if !found.contains(&mapping) {
            found.push(mapping);
        }
    }
    found
}

fn bandwidth(pod: &Pod) -> Result<Option<Bandwidth>, SpecError> {
    let limit = |name: &str| {
        let Some(text) = pod.metadata.annotations.as_ref().and_then(|it| it.get(name)) else { return Ok(None) };
        let amount = Amount::parse(text).map(Amount::value).filter(|it| (BANDWIDTH.0..=BANDWIDTH.1).contains(it));
        let bits = amount.and_then(|it| u64::try_from(it).ok());
        let wrong =
            || sandbox(format!("annotation {name} is {text:?}: write a quantity from 1k to 1P, in bits a second"));
        bits.map(Some).ok_or_else(wrong)
    };
    let (ingress, egress) = (limit("kubernetes.io/ingress-bandwidth")?, limit("kubernetes.io/egress-bandwidth")?);
    Ok((ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress }))
}

/// Limits of all of the pod's containers together, for [`Engine::limit_owner`](container_engine::engine::Engine::limit_owner):
/// where one container may take as much as it likes, so may the pod.
pub fn pod_resources(pod: &Pod, node: &Surroundings) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let class = qos::class(pod);
    let milli = qos::pod_request(spec, "cpu").milli();
    let shares = if class == Class::BestEffort { 0 } else { milli };
    let (cpu, memory) = (pod_limit(spec, "cpu"), pod_limit(spec, "memory"));
    let bytes = |amount: Amount| u64::try_from(amount.value()).ok().filter(|it| *it > 0);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let limits = all.flat_map(|it| it.resources.iter().flat_map(|it| it.limits.iter().flatten()));
    let pages = limits.map(|(name, _)| name).filter(|name| name.starts_with("hugepages-"));
    // Of huge pages, what is asked for and what is allowed are the same.
    let pages = pages.map(|name| (name.clone(), Quantity(qos::pod_request(spec, name).value().to_string())));
    let pages = ResourceRequirements { limits: Some(pages.collect()), ..ResourceRequirements::default() };
    let pages = Container { resources: Some(pages), ..Container::default() };
    let hugepages = qos::resources(pod, &pages, node.memory).hugepages;
    Resources {
        memory: memory.and_then(bytes),
        cpu_milli: cpu.and_then(|it| u64::try_from(it.milli()).ok()).filter(|it| *it > 0).map(at_least),
        cpu_shares: Some(qos::shares(shares)),
        pids: node.pids.filter(|it| *it > 0),
        hugepages,
        ..Resources::default()
    }
}

/// The kernel's least quota.
fn at_least(milli: u64) -> u64 {
    milli.max(QUOTA.1 * 1000 / QUOTA.0)
}

/// What the pod may have in whole; `None`: some container is without limit.
fn pod_limit(spec: &PodSpec, name: &str) -> Option<Amount> {
    let overhead = spec.overhead.as_ref().and_then(|it| it.get(name)).and_then(Amount::of).unwrap_or_default();
    let whole = spec.resources.clone().map(|it| Container { resources: Some(it), ..Container::default() });
    if let Some(whole) = whole.map(|it| qos::limit(&it, name)).filter(|it| !it.is_zero()) {
        return Some(whole.plus(overhead));
    }
    let of = |container: &Container| Some(qos::limit(container, name)).filter(|it| !it.is_zero());
    let (mut beside, mut peak) = (Amount::default(), Amount::default());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container)?;
        if Kind::of_init(container) == Kind::Sidecar {
            beside = beside.plus(own);
            peak = peak.max(beside);
        } else {
            peak = peak.max(beside.plus(own));
        }
    }
    let regular = spec.containers.iter().try_fold(beside, |sum, it| Some(sum.plus(of(it)?)))?;
    Some(peak.max(regular).plus(overhead))
}

#[cfg(test)]
mod tests;
