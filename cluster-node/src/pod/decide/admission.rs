//! Whether this node takes a pod: what the scheduler looked at may have changed since, and a pod may come without it.
//!
//! Reasons and messages are the kubelet's, which share them with the scheduler's predicates.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodStatus, Taint, Toleration},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use super::{
    qos::{self, pod_request},
    quantity::Amount,
    status::whole,
};

/// Sysctls that belong to the pod's own namespaces and harm nobody else.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What the node offers.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// What pods may take.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Sysctls besides the safe ones; `net.*` stands for all that begin so.
    pub allowed_sysctls: Vec<String>,
}

/// Why a pod is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Of the status and the event.
    pub reason: String,
    /// For people.
    pub message: String,
}

fn reject<T>(reason: &str, message: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection { reason: reason.to_owned(), message: message.into() })
}

/// Whether the node takes a pod beside the others.
pub fn admit(pod: &Pod, others: &[Arc<Pod>], node: &NodeFacts) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return reject("UnexpectedAdmissionError", "the pod has no specification") };
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return reject("PodOSNotSupported", message);
    }
    for sysctl in spec.security_context.iter().flat_map(|it| it.sysctls.iter().flatten()) {
        if !is_allowed(&sysctl.name, &node.allowed_sysctls) {
            return reject("SysctlForbidden", format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
    }
    resources(spec, others, node)?;
    if !selects(spec, node) {
        return reject(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        );
    }
    ports(spec, others)?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let is_static = crate::object::is_static(pod);
    let mut taints = node.taints.iter().filter(|taint| taint.effect == "NoExecute" && !is_static);
    if let Some(taint) = taints.find(|taint| !tolerations.iter().any(|it| tolerates(it, taint))) {
        let value = taint.value.as_deref().unwrap_or_default();
        let message = format!(
            "Predicate TaintToleration failed: node(s) had taint {{{}: {value}}}, that the pod didn't tolerate",
            taint.key
        );
        return reject("TaintToleration", message);
    }
    Ok(())
}

fn is_allowed(sysctl: &str, more: &[String]) -> bool {
    let sysctl = sysctl.replace('/', ".");
    SAFE_SYSCTLS.contains(&sysctl.as_str())
        || more.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => sysctl.starts_with(prefix),
            None => *pattern == sysctl,
        })
}

fn resources(spec: &PodSpec, others: &[Arc<Pod>], node: &NodeFacts) -> Result<(), Rejection> {
    let offered = |name: &str| node.allocatable.get(name).and_then(Amount::of);
    if let Some(most) = offered("pods")
        && Amount::units(i64::try_from(others.len()).unwrap_or(i64::MAX).saturating_add(1)) > most
    {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {}",
            others.len(),
            most.value()
        );
        return reject("OutOfpods", message);
    }
    let mut names: Vec<&str> = vec!["cpu", "memory", "ephemeral-storage"];
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for list in containers.filter_map(|it| it.resources.as_ref()).flat_map(|it| [&it.requests, &it.limits]) {
        names.extend(list.iter().flatten().map(|(name, _)| name.as_str()));
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        let wanted = pod_request(spec, name);
        // A resource that the node does not know is somebody else's to give, as a scheduler's extender.
        let is_foreign = name.contains('/') && offered(name).is_none();
        if wanted.is_zero() || is_foreign {
            continue;
        }
        let used = others
            .iter()
            .filter_map(|pod| pod.spec.as_ref())
            .fold(Amount::default(), |sum, spec| sum.plus(pod_request(spec, name)));
        let most = offered(name).unwrap_or_default();
        if used.plus(wanted) > most {
            // Thousandths where that is the unit, as the kubelet prints them.
            let told = |amount: Amount| if name == "cpu" { amount.milli() } else { amount.value() };
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                told(wanted),
                told(used),
                told(most)
            );
            return reject(&format!("OutOf{name}"), message);
        }
    }
    Ok(())
}

/// A port of the node that a pod takes: protocol, address, number.
fn host_ports(spec: &PodSpec) -> impl Iterator<Item = (String, Option<IpAddr>, i32)> + '_ {
    let host_network = spec.host_network == Some(true);
    let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    ports.filter_map(move |port| {
        let number = port.host_port.or(host_network.then_some(port.container_port)).filter(|number| *number > 0)?;
        let address =
            port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).filter(|ip| !ip.is_unspecified());
        Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), address, number))
    })
}

fn ports(spec: &PodSpec, others: &[Arc<Pod>]) -> Result<(), Rejection> {
    for (protocol, address, number) in host_ports(spec) {
        let is_taken = others.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(host_ports).any(|taken| {
            let same_address = taken.1.is_none() || address.is_none() || taken.1 == address;
            taken.0 == protocol && taken.2 == number && same_address
        });
        if is_taken {
            let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
            return reject("NodePorts", format!("{message} ({number}/{protocol})"));
        }
    }
    Ok(())
}

fn selects(spec: &PodSpec, node: &NodeFacts) -> bool {
    let selector = spec.node_selector.iter().flatten();
    if !selector.into_iter().all(|(key, value)| node.labels.get(key) == Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|it| it.node_affinity.as_ref())
        .and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

fn matches(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let is_empty = labels.unwrap_or_default().is_empty() && fields.unwrap_or_default().is_empty();
    let by_label = |it: &NodeSelectorRequirement| holds(it, node.labels.get(&it.key).map(String::as_str));
    let by_field = |it: &NodeSelectorRequirement| it.key == "metadata.name" && holds(it, Some(&node.name));
    !is_empty && labels.unwrap_or_default().iter().all(by_label) && fields.unwrap_or_default().iter().all(by_field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|it| it == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || Some((number(value)?, number(values.first().map(String::as_str))?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(have, than)| have > than),
        "Lt" => compared().is_some_and(|(have, than)| have < than),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let same_value = toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || same_value)
}

/// The status of a pod that is not taken.
pub fn rejected_status(pod: &Pod, rejection: &Rejection, now: Timestamp) -> PodStatus {
    let before = pod.status.clone().unwrap_or_default();
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(rejection.reason.clone()),
        message: Some(format!("Pod was rejected: {}", rejection.message)),
        start_time: before.start_time.clone().or_else(|| Some(Time(whole(now)))),
        qos_class: Some(qos::class(pod).name().to_owned()),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let whole = serde_json::json!({ "metadata": { "name": "p", "namespace": "n", "uid": "u" }, "spec": spec });
        serde_json::from_value(whole).unwrap()
    }

    fn node() -> NodeFacts {
        let quantity = |text: &str| Quantity(text.to_owned());
        NodeFacts {
            name: "board".into(),
            labels: BTreeMap::from([("disk".into(), "ssd".into()), ("rack".into(), "7".into())]),
            taints: vec![Taint { key: "t".into(), effect: "NoExecute".into(), ..Taint::default() }],
            allocatable: BTreeMap::from([
                ("cpu".into(), quantity("2")),
                ("memory".into(), quantity("1Gi")),
                ("pods".into(), quantity("3")),
            ]),
            allowed_sysctls: vec!["net.core.*".into()],
        }
    }

    #[test]
    fn pods_that_the_node_cannot_run_are_refused_with_the_kubelets_reasons() {
        #[track_caller]
        fn check(mut spec: serde_json::Value, others: &[serde_json::Value], want: Option<&str>) {
            let tolerations = serde_json::json!([{ "key": "t", "operator": "Exists" }]);
            spec.as_object_mut().unwrap().entry("tolerations").or_insert(tolerations);
            spec.as_object_mut().unwrap().entry("containers").or_insert(serde_json::json!([{ "name": "c" }]));
            let others: Vec<Arc<Pod>> = others.iter().map(|it| Arc::new(pod(it.clone()))).collect();
            let reason = admit(&pod(spec.clone()), &others, &node()).err().map(|it| it.reason);
            assert_eq!(reason.as_deref(), want, "{spec}");
        }
        let asks = |cpu: &str| serde_json::json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] });
        let port = |number: u16, ip: &str| serde_json::json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 1, "hostPort": number, "hostIP": ip }] }] });
        let affine = |operator: &str, values: &[&str]| {
            serde_json::json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "rack", "operator": operator, "values": values }] }] } } } })
        };
        check(serde_json::json!({}), &[], None);
        check(serde_json::json!({ "os": { "name": "windows" } }), &[], Some("PodOSNotSupported"));
        check(asks("1500m"), &[asks("500m")], None);
        check(asks("1500m"), &[asks("501m")], Some("OutOfcpu"));
        let foreign =
            serde_json::json!({ "requests": { "vendor.example/x": "1" }, "limits": { "vendor.example/x": "1" } });
        check(serde_json::json!({ "containers": [{ "name": "c", "resources": foreign }] }), &[], None);
        check(asks("1n"), &[asks("1"), asks("1n"), asks("1n")], Some("OutOfpods"));
        check(serde_json::json!({ "nodeSelector": { "disk": "hdd" } }), &[], Some("NodeAffinity"));
        check(serde_json::json!({ "nodeSelector": { "disk": "ssd" } }), &[], None);
        check(affine("Gt", &["6"]), &[], None);
        check(affine("Lt", &["7"]), &[], Some("NodeAffinity"));
        check(affine("NotIn", &["7"]), &[], Some("NodeAffinity"));
        check(port(80, ""), &[port(80, "127.0.0.1")], Some("NodePorts"));
        check(port(80, "127.0.0.2"), &[port(80, "127.0.0.1")], None);
        check(port(80, ""), &[port(81, "")], None);
        check(serde_json::json!({ "tolerations": [] }), &[], Some("TaintToleration"));
        let sysctl =
            |name: &str| serde_json::json!({ "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } });
        check(sysctl("kernel.msgmax"), &[], Some("SysctlForbidden"));
        check(sysctl("net.core.somaxconn"), &[], None);
        check(sysctl("net.ipv4.tcp_syncookies"), &[], None);
    }
}
