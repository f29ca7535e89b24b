//! What the downward API tells in the environment: fields and resources of the pod.
//!
//! Elsewhere: the same in files (`volume`), which share what does not depend on where the pod runs.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::{SpecError, Surroundings};

/// A field as a variable's value; `addresses` are the pod's, those of the host on its network.
pub fn value(pod: &Pod, path: &str, addresses: &[IpAddr], node: &Surroundings) -> Result<String, SpecError> {
    let spec = pod.spec.as_ref();
    let text = |it: Option<&String>| Ok(it.cloned().unwrap_or_default());
    let joined = |list: &[IpAddr]| Ok(list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    match path {
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" => joined(node.host_addresses.get(..1).unwrap_or_default()),
        "status.hostIPs" => joined(&node.host_addresses),
        "status.podIP" => joined(addresses.get(..1).unwrap_or_default()),
        "status.podIPs" => joined(addresses),
        // In variables, the maps as a whole have no place.
        "metadata.labels" | "metadata.annotations" => Err(SpecError::config(format!("unsupported fieldPath: {path}"))),
        _ => crate::volume::field_of(pod, path).map_err(|problem| SpecError::config(problem.to_string())),
    }
}

/// An amount as a variable's value: of the container named, else of this one.
pub fn resource(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    node: &Surroundings,
) -> Result<String, SpecError> {
    let other = selector.container_name.as_deref().filter(|name| !name.is_empty() && *name != container.name);
    let other = match other {
        Some(name) => {
            let missing = || SpecError::config(format!("container {name} not found"));
            Some(super::find(pod, name).ok_or_else(missing)?.1)
        }
        None => None,
    };
    let container = other.as_ref().unwrap_or(container);
    let amount = crate::volume::amount_of(pod, container, selector, &node.allocatable);
    amount.map_err(|problem| SpecError::config(problem.to_string()))
}
