//! A status as it may be told: in the API's order and sizes, and never back from an end; pure.

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodSpec, PodStatus};

/// All termination messages of a pod together, bytes.
const MESSAGES: usize = 12 << 10;

/// Brings a status into shape. `before` is what was told last.
pub(super) fn normal(pod: &Pod, before: Option<&PodStatus>, mut status: PodStatus) -> PodStatus {
    let spec = pod.spec.as_ref();
    let order = |names: Vec<&str>, statuses: &mut Option<Vec<ContainerStatus>>| {
        let place = |it: &ContainerStatus| names.iter().position(|name| *name == it.name).unwrap_or(usize::MAX);
        if let Some(statuses) = statuses {
            statuses.sort_by_key(place);
        }
    };
    let init = spec.iter().flat_map(|it| it.init_containers.iter().flatten()).map(|it| it.name.as_str()).collect();
    order(init, &mut status.init_container_statuses);
    for list in [&mut status.container_statuses, &mut status.ephemeral_container_statuses].into_iter().flatten() {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    cut_messages(&mut status);
    let generation = status.observed_generation.or(pod.metadata.generation);
    status.observed_generation = generation.max(before.and_then(|it| it.observed_generation));
    if let Some(before) = before {
        stay_ended(spec, before, &mut status);
        status.start_time = before.start_time.clone().or(status.start_time);
    }
    status
}

fn cut_messages(status: &mut PodStatus) {
    let lists =
        [&mut status.init_container_statuses, &mut status.container_statuses, &mut status.ephemeral_container_statuses];
    let mut all: Vec<&mut ContainerStatus> = lists.into_iter().flat_map(|it| it.iter_mut().flatten()).collect();
    let most = MESSAGES / all.len().max(1);
    for state in all.iter_mut().flat_map(|it| [&mut it.state, &mut it.last_state]) {
        let message = state.as_mut().and_then(|it| it.terminated.as_mut()).and_then(|it| it.message.as_mut());
        let Some(message) = message.filter(|it| it.len() > most) else { continue };
        let end = (0..=most).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
    }
}

/// What has ended for good stays so, whoever says otherwise.
fn stay_ended(spec: Option<&PodSpec>, before: &PodStatus, status: &mut PodStatus) {
    if is_terminal(before) && status.phase != before.phase {
        status.phase.clone_from(&before.phase);
        status.reason.clone_from(&before.reason);
        status.message.clone_from(&before.message);
    }
    let Some(spec) = spec else { return };
    let pairs = [
        (spec.init_containers.as_deref(), &before.init_container_statuses, &mut status.init_container_statuses),
        (Some(spec.containers.as_slice()), &before.container_statuses, &mut status.container_statuses),
    ];
    for (containers, before, now) in pairs {
        for now in now.iter_mut().flatten() {
            let container = containers.into_iter().flatten().find(|it| it.name == now.name);
            let before = before.iter().flatten().find(|it| it.name == now.name);
            let (Some(container), Some(before)) = (container, before) else { continue };
            if is_over(spec, container, before) && exit_code(now.state.as_ref()).is_none() {
                *now = before.clone();
            }
        }
    }
}

/// Whether the phase is one that never changes.
pub(super) fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Whether a container has ended and may never run again, in the API server's eyes.
fn is_over(spec: &PodSpec, container: &Container, status: &ContainerStatus) -> bool {
    let Some(code) = exit_code(status.state.as_ref()) else { return false };
    // A policy or rules of its own: only its worker can say.
    if container.restart_policy.is_some() || container.restart_policy_rules.iter().flatten().next().is_some() {
        return false;
    }
    match spec.restart_policy.as_deref() {
        Some("Never") => true,
        Some("OnFailure") => code == 0,
        _ => false,
    }
}

fn exit_code(state: Option<&ContainerState>) -> Option<i32> {
    Some(state?.terminated.as_ref()?.exit_code)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": {"restartPolicy": policy,
            "initContainers": [{"name": "z"}, {"name": "a"}], "containers": [{"name": "c"}, {"name": "b"}]}}))
        .unwrap()
    }

    fn container(name: &str, state: Value) -> Value {
        json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state})
    }

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn statuses_are_in_the_apis_order() {
        let running = || json!({"running": {}});
        let given = status(json!({"initContainerStatuses": [container("a", running()), container("z", running())],
            "containerStatuses": [container("c", running()), container("b", running())]}));
        let got = normal(&pod("Always"), None, given);
        let names = |it: Option<Vec<ContainerStatus>>| it.unwrap().into_iter().map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names(got.init_container_statuses), ["z", "a"]);
        assert_eq!(names(got.container_statuses), ["b", "c"]);
        assert_eq!(got.observed_generation, Some(3));
        let before = status(json!({"observedGeneration": 7, "startTime": "2025-01-01T00:00:00Z"}));
        let got = normal(&pod("Always"), Some(&before), status(json!({"startTime": "2025-02-02T00:00:00Z"})));
        assert_eq!((got.observed_generation, got.start_time), (Some(7), before.start_time));
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let ended = |n: usize| json!({"terminated": {"exitCode": 1, "message": "ü".repeat(n)}});
        let given = status(json!({"containerStatuses": [container("b", ended(10_000)), container("c", ended(10))]}));
        let got = normal(&pod("Always"), None, given).container_statuses.unwrap();
        let length = |it: &ContainerStatus| {
            it.state.as_ref().unwrap().terminated.as_ref().unwrap().message.as_ref().unwrap().len()
        };
        assert_eq!((length(&got[0]), length(&got[1])), (6144, 20));
    }

    #[test]
    fn an_end_is_an_end() {
        #[track_caller]
        fn check(policy: &str, before: Value, now: Value, want_ended: bool) {
            let before = status(json!({"phase": "Running", "containerStatuses": [container("c", before)]}));
            let now = status(json!({"phase": "Running", "containerStatuses": [container("c", now)]}));
            let got = normal(&pod(policy), Some(&before), now).container_statuses.unwrap();
            assert_eq!(exit_code(got[0].state.as_ref()).is_some(), want_ended, "{policy}");
        }
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        let running = || json!({"running": {}});
        check("Never", ended(1), running(), true);
        check("Never", running(), running(), false);
        check("OnFailure", ended(0), running(), true);
        check("OnFailure", ended(1), running(), false);
        check("Always", ended(0), running(), false);
        let before = status(json!({"phase": "Failed", "reason": "Evicted"}));
        let got = normal(&pod("Always"), Some(&before), status(json!({"phase": "Running"})));
        assert_eq!((got.phase.as_deref(), got.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    }
}
