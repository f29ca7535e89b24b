//! The status of a pod: phase, addresses, conditions; that of its containers is in `containers`.
//!
//! Always true:
//! - A phase that is final stays, and none is said to be final while anything may run.
//! - Conditions that are somebody else's stay as they are.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    containers,
    course::{Course, course, is_finished},
    qos, restart,
};
use crate::pod::{
    model::{Desired, EndCause, Facts, Kind, Memory, Observed},
    probe::View,
    spec::is_host_network,
};

/// Conditions that are this node's to say.
const OWN: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodResizePending", "PodResizeInProgress"];

/// The status of a container of any kind.
pub fn known<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flat_map(|list| list.iter().flatten()).find(|it| it.name == name)
}

/// The status of a pod as things are.
pub fn status(
    desired: &Desired,
    observed: &Observed,
    memory: &Memory,
    view: &View,
    facts: &Facts,
    now: Timestamp,
) -> PodStatus {
    let pod = &desired.pod;
    let nothing = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&nothing);
    let course = course(desired, observed, memory, now);
    let finished = is_finished(desired, observed, memory, now);
    let all = containers::statuses(pod, spec, observed, memory, view, finished);
    let cause = match &course {
        Course::MustEnd(ending) => Some(&ending.cause),
        _ => None,
    };
    let previous = memory.previous.as_ref();
    let mut phase = phase(spec, &all, observed, finished);
    if finished && !matches!(phase, "Succeeded" | "Failed") {
        phase = "Failed";
    }
    if let Some(before) = previous.and_then(|it| it.phase.as_deref()).filter(|it| matches!(*it, "Succeeded" | "Failed"))
    {
        phase = if before == "Failed" { "Failed" } else { "Succeeded" };
    } else if let (true, Some(EndCause::Node { .. })) = (finished, cause) {
        phase = "Failed";
    }
    let (mut reason, mut message) = previous.map_or((None, None), |it| (it.reason.clone(), it.message.clone()));
    if let Some(EndCause::Node { reason: why, message: words }) = cause {
        (reason, message) = (Some(why.clone()), Some(words.clone()));
    }
    let (pod_ips, host_ips) = addresses(pod, observed, previous, facts);
    let conditions = conditions(desired, spec, observed, memory, &all, phase, now);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        start_time: previous.and_then(|it| it.start_time.clone()).or_else(|| Some(Time(whole(now)))),
        pod_ip: pod_ips.first().map(|it| it.ip.clone()),
        pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
        host_ip: host_ips.first().map(|it| it.ip.clone()),
        host_ips: (!host_ips.is_empty()).then_some(host_ips),
        qos_class: Some(
            previous.and_then(|it| it.qos_class.clone()).unwrap_or_else(|| qos::class(pod).name().to_owned()),
        ),
        conditions: Some(conditions),
        observed_generation: pod.metadata.generation.or_else(|| previous.and_then(|it| it.observed_generation)),
        init_container_statuses: some(all.init),
        container_statuses: some(all.regular),
        ephemeral_container_statuses: some(all.ephemeral),
        nominated_node_name: pod.status.as_ref().and_then(|it| it.nominated_node_name.clone()),
        ..PodStatus::default()
    }
}

fn some(list: Vec<ContainerStatus>) -> Option<Vec<ContainerStatus>> {
    (!list.is_empty()).then_some(list)
}

/// Kubernetes' times have whole seconds.
pub(super) fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn addresses(pod: &Pod, observed: &Observed, previous: Option<&PodStatus>, facts: &Facts) -> (Vec<PodIP>, Vec<HostIP>) {
    let host: Vec<HostIP> = facts.host_addresses.iter().map(|ip| HostIP { ip: ip.to_string() }).collect();
    let host = if host.is_empty() { previous.and_then(|it| it.host_ips.clone()).unwrap_or_default() } else { host };
    if is_host_network(pod) {
        return (host.iter().map(|it| PodIP { ip: it.ip.clone() }).collect(), host);
    }
    let mut own: Vec<_> = observed.sandbox.iter().flat_map(|sandbox| sandbox.addresses.clone()).collect();
    let prefers_v6 = facts.host_addresses.first().is_some_and(std::net::IpAddr::is_ipv6);
    own.sort_by_key(|ip| ip.is_ipv6() != prefers_v6);
    let own: Vec<PodIP> = own.into_iter().map(|ip| PodIP { ip: ip.to_string() }).collect();
    // A pod that is over keeps the address that it had.
    let own = if own.is_empty() { previous.and_then(|it| it.pod_ips.clone()).unwrap_or_default() } else { own };
    (own, host)
}

/// Counts by which the phase is found.
#[derive(Default)]
struct Counts {
    pending_init: usize,
    failed_init: usize,
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
    unknown: usize,
}

fn count(spec: &PodSpec, all: &containers::Statuses, observed: &Observed) -> Counts {
    let mut counts = Counts::default();
    for container in spec.init_containers.iter().flatten() {
        let status = all.init.iter().find(|it| it.name == container.name);
        let state = status.and_then(|it| it.state.as_ref());
        if Kind::of_init(container) == Kind::Sidecar {
            match state {
                Some(state) if state.running.is_some() => {
                    counts.running += 1;
                    counts.pending_init += usize::from(status.and_then(|it| it.started) != Some(true));
                }
                Some(state) if state.terminated.is_some() => {}
                _ => counts.pending_init += 1,
            }
            continue;
        }
        let ended = state.and_then(|state| state.terminated.as_ref());
        let ended_before = status.and_then(|it| it.last_state.as_ref()).and_then(|it| it.terminated.as_ref());
        let waits = state.is_some_and(|state| state.waiting.is_some());
        match ended.or(ended_before.filter(|_| waits)) {
            Some(ended) if ended.exit_code == 0 && !restart::is_followed(observed.latest(&container.name)) => {}
            Some(ended) if restart::again(container, spec, observed.latest(&container.name), ended.exit_code) => {
                counts.pending_init += 1;
            }
            Some(_) => counts.failed_init += 1,
            None => counts.pending_init += 1,
        }
    }
    for container in &spec.containers {
        let status = all.regular.iter().find(|it| it.name == container.name);
        let state = status.and_then(|it| it.state.as_ref());
        let last = status.and_then(|it| it.last_state.as_ref()).and_then(|it| it.terminated.as_ref());
        match state {
            Some(state) if state.running.is_some() => counts.running += 1,
            Some(state) if state.terminated.is_some() => {
                counts.stopped += 1;
                counts.succeeded += usize::from(state.terminated.as_ref().is_some_and(|it| it.exit_code == 0));
            }
            Some(state) if state.waiting.is_some() => {
                if last.is_some() {
                    counts.stopped += 1;
                } else {
                    counts.waiting += 1;
                }
            }
            _ => counts.unknown += 1,
        }
    }
    counts
}

fn phase(spec: &PodSpec, all: &containers::Statuses, observed: &Observed, finished: bool) -> &'static str {
    let counts = count(spec, all, observed);
    let has_begun = all.regular.iter().any(|it| it.container_id.is_some());
    if counts.failed_init > 0 && !has_begun {
        return "Failed";
    }
    if counts.pending_init > 0 && !has_begun {
        return "Pending";
    }
    if counts.waiting > 0 {
        return "Pending";
    }
    if counts.running > 0 && counts.unknown == 0 {
        return "Running";
    }
    if counts.stopped > 0 && counts.unknown == 0 {
        let is_due = |container: &k8s_openapi::api::core::v1::Container| {
            let status = all.regular.iter().find(|it| it.name == container.name);
            let state = status.and_then(|it| it.state.as_ref());
            match state.and_then(|state| state.terminated.as_ref()) {
                Some(ended) => restart::again(container, spec, observed.latest(&container.name), ended.exit_code),
                None => true,
            }
        };
        if !finished && spec.containers.iter().any(is_due) {
            return "Running";
        }
        return if counts.succeeded == counts.stopped { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

/// A condition before its times are known.
struct Said {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    desired: &Desired,
    spec: &PodSpec,
    observed: &Observed,
    memory: &Memory,
    all: &containers::Statuses,
    phase: &str,
    now: Timestamp,
) -> Vec<PodCondition> {
    let previous = memory.previous.as_ref().and_then(|it| it.conditions.as_ref());
    let others = desired.pod.status.as_ref().and_then(|it| it.conditions.as_ref());
    let sandbox = observed.sandbox.as_ref().is_some_and(|it| it.ready) && !matches!(phase, "Succeeded" | "Failed");
    let mut said = vec![
        Said { kind: "PodReadyToStartContainers", holds: sandbox, reason: None, message: None },
        initialized(spec, all, phase),
    ];
    let ready = containers_ready(spec, all, phase);
    said.push(with_gates(spec, others.map_or(&[], Vec::as_slice), &ready));
    said.push(ready);
    let generation = desired.pod.metadata.generation;
    let mut conditions: Vec<PodCondition> =
        said.into_iter().map(|it| timed(it, previous.map_or(&[], Vec::as_slice), generation, now)).collect();
    for other in others.into_iter().flatten().filter(|it| !OWN.contains(&it.type_.as_str())) {
        conditions.push(other.clone());
    }
    if !conditions.iter().any(|it| it.type_ == "PodScheduled") {
        let scheduled = Said { kind: "PodScheduled", holds: true, reason: None, message: None };
        conditions.push(timed(scheduled, previous.map_or(&[], Vec::as_slice), generation, now));
    }
    disruption(desired, previous.map_or(&[], Vec::as_slice), &mut conditions, now);
    conditions
}

/// A pod that this node evicts says so, for its controller.
fn disruption(desired: &Desired, previous: &[PodCondition], conditions: &mut Vec<PodCondition>, now: Timestamp) {
    const KIND: &str = "DisruptionTarget";
    let evicted = desired.ending.as_ref().and_then(|ending| match &ending.cause {
        EndCause::Node { reason, message } if reason != "DeadlineExceeded" => Some(message.clone()),
        _ => None,
    });
    let known = previous.iter().find(|it| it.type_ == KIND);
    let said = match (evicted, known) {
        (Some(message), _) => {
            let said = Said { kind: KIND, holds: true, reason: Some("TerminationByKubelet"), message: Some(message) };
            timed(said, previous, desired.pod.metadata.generation, now)
        }
        (None, Some(known)) => known.clone(),
        (None, None) => return,
    };
    conditions.retain(|it| it.type_ != KIND);
    conditions.push(said);
}

fn timed(said: Said, previous: &[PodCondition], generation: Option<i64>, now: Timestamp) -> PodCondition {
    let status = if said.holds { "True" } else { "False" };
    let before = previous.iter().find(|it| it.type_ == said.kind && it.status == status);
    PodCondition {
        type_: said.kind.to_owned(),
        status: status.to_owned(),
        reason: said.reason.map(str::to_owned),
        message: said.message,
        last_transition_time: before.and_then(|it| it.last_transition_time.clone()).or_else(|| Some(Time(whole(now)))),
        last_probe_time: None,
        observed_generation: generation,
    }
}

fn initialized(spec: &PodSpec, all: &containers::Statuses, phase: &str) -> Said {
    const KIND: &str = "Initialized";
    if phase == "Succeeded" {
        return Said { kind: KIND, holds: true, reason: Some("PodCompleted"), message: None };
    }
    // Once a regular container has run, they are over.
    let is_over = all.regular.iter().any(|it| it.container_id.is_some());
    let is_open = |container: &k8s_openapi::api::core::v1::Container| {
        let status = all.init.iter().find(|it| it.name == container.name);
        match Kind::of_init(container) {
            Kind::Sidecar => status.and_then(|it| it.started) != Some(true),
            _ => !status.is_some_and(|it| it.ready),
        }
    };
    let open: Vec<&str> = if is_over {
        Vec::new()
    } else {
        spec.init_containers.iter().flatten().filter(|it| is_open(it)).map(|it| it.name.as_str()).collect()
    };
    if open.is_empty() {
        return Said { kind: KIND, holds: true, reason: None, message: None };
    }
    let message = format!("containers with incomplete status: [{}]", open.join(" "));
    Said { kind: KIND, holds: false, reason: Some("ContainersNotInitialized"), message: Some(message) }
}

fn containers_ready(spec: &PodSpec, all: &containers::Statuses, phase: &str) -> Said {
    const KIND: &str = "ContainersReady";
    match phase {
        "Succeeded" => return Said { kind: KIND, holds: false, reason: Some("PodCompleted"), message: None },
        "Failed" => return Said { kind: KIND, holds: false, reason: Some("PodFailed"), message: None },
        _ => {}
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|it| Kind::of_init(it) == Kind::Sidecar);
    let is_unready = |name: &str| {
        let status = all.init.iter().chain(&all.regular).find(|it| it.name == name);
        !status.is_some_and(|it| it.ready)
    };
    let unready: Vec<&str> =
        sidecars.chain(&spec.containers).map(|it| it.name.as_str()).filter(|name| is_unready(name)).collect();
    if unready.is_empty() {
        return Said { kind: KIND, holds: true, reason: None, message: None };
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Said { kind: KIND, holds: false, reason: Some("ContainersNotReady"), message: Some(message) }
}

/// Ready is that of the containers, and what others have made it depend on.
fn with_gates(spec: &PodSpec, others: &[PodCondition], ready: &Said) -> Said {
    const KIND: &str = "Ready";
    if !ready.holds {
        return Said { kind: KIND, holds: false, reason: ready.reason, message: ready.message.clone() };
    }
    let gates = spec.readiness_gates.iter().flatten().map(|gate| gate.condition_type.as_str());
    let missing: Vec<String> = gates
        .filter_map(|gate| match others.iter().find(|it| it.type_ == gate) {
            None => Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")),
            Some(it) if it.status != "True" => {
                Some(format!("the status of pod readiness gate \"{gate}\" is not \"True\", but {}", it.status))
            }
            Some(_) => None,
        })
        .collect();
    if missing.is_empty() {
        return Said { kind: KIND, holds: true, reason: None, message: None };
    }
    Said { kind: KIND, holds: false, reason: Some("ReadinessGatesNotReady"), message: Some(missing.join(", ")) }
}
