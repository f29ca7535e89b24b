//! Whether a container is started again after its end.
//!
//! Its own rules by exit code come first, then its own policy, then the pod's.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, PodSpec};

use crate::pod::model::{Instance, Life};

/// What a rule makes of all containers.
pub const RESTART_ALL: &str = "RestartAllContainers";

/// The first rule that an exit code matches.
pub fn matching_rule(container: &Container, code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    })
}

/// Whether a container that ended with `code` is started again.
pub fn after_exit(container: &Container, pod: &PodSpec, code: i32) -> bool {
    if let Some(own) = container.restart_policy.as_deref() {
        if matching_rule(container, code).is_some_and(|rule| matches!(rule.action.as_str(), "Restart" | RESTART_ALL)) {
            return true;
        }
        if let Some(again) = by_policy(own, code) {
            return again;
        }
    }
    by_policy(pod.restart_policy.as_deref().unwrap_or("Always"), code).unwrap_or(true)
}

/// Whether a container whose last life ended with `code` is started again: where it was stopped for that, in any case.
pub fn again(container: &Container, pod: &PodSpec, latest: Option<&Instance>, code: i32) -> bool {
    is_followed(latest) || after_exit(container, pod, code)
}

/// Whether another life comes whatever the policy says: the last one was stopped for that, or the next is made already.
pub fn is_followed(latest: Option<&Instance>) -> bool {
    latest.is_some_and(|latest| latest.is_due || latest.life == Life::Created)
}

fn by_policy(policy: &str, code: i32) -> Option<bool> {
    match policy {
        "Always" => Some(true),
        "OnFailure" => Some(code != 0),
        "Never" => Some(false),
        _ => None,
    }
}

/// Whether a container that was stopped while it ran, such as for a failed probe, is started again: no exit code counts.
pub fn after_kill(container: &Container, pod: &PodSpec) -> bool {
    container.restart_policy.as_deref().or(pod.restart_policy.as_deref()) != Some("Never")
}
