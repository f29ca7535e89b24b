//! Whether a pod goes on or ends, and how long its end may take.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::restart;
use crate::pod::model::{Desired, EndCause, Ending, Instance, Kind, Life, Memory, Observed};

/// What the kubelet gives where a pod does not say, seconds.
const GRACE_S: i64 = 30;
/// What a pod that ends has at least, seconds.
const MIN_GRACE_S: i64 = 1;

/// Whether a pod goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// Containers are started and kept.
    Goes,
    /// It must end: it was told to, or its time is over.
    MustEnd(Ending),
    /// Its work is done, or can never be: what still runs beside it ends.
    IsDone,
}

/// Where a pod stands.
pub fn course(desired: &Desired, observed: &Observed, memory: &Memory, now: Timestamp) -> Course {
    if let Some(ending) = &desired.ending {
        return Course::MustEnd(ending.clone());
    }
    let Some(spec) = &desired.pod.spec else { return Course::IsDone };
    if is_terminal(memory) {
        return Course::IsDone;
    }
    if deadline(&desired.pod, memory).is_some_and(|at| at <= now) {
        let cause = EndCause::Node {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
        };
        return Course::MustEnd(Ending { cause, since: now, grace_s: None });
    }
    let init_failed = spec.init_containers.iter().flatten().any(|container| {
        Kind::of_init(container) == Kind::Init
            && !has_begun(observed, spec)
            && observed.latest(&container.name).is_some_and(|latest| is_failed_init(container, spec, latest))
    });
    if init_failed || is_through(spec, observed) { Course::IsDone } else { Course::Goes }
}

/// When `activeDeadlineSeconds` are over.
pub fn deadline(pod: &Pod, memory: &Memory) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds.filter(|seconds| *seconds >= 0)?;
    let started = memory.previous.as_ref()?.start_time.as_ref()?.0;
    started.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// The last status said that it is over; that never changes.
fn is_terminal(memory: &Memory) -> bool {
    let phase = memory.previous.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// An init container that ended badly and is not tried again.
pub fn is_failed_init(container: &k8s_openapi::api::core::v1::Container, spec: &PodSpec, latest: &Instance) -> bool {
    let Life::Exited(exited) = &latest.life else { return false };
    exited.code != 0 && !restart::again(container, spec, Some(latest), exited.code)
}

/// A regular container has been made in the present network of the pod: init containers are over.
pub fn has_begun(observed: &Observed, spec: &PodSpec) -> bool {
    spec.containers.iter().any(|container| observed.of(&container.name).any(|it| !it.before_sandbox))
}

/// All regular containers have ended, and none is started again.
fn is_through(spec: &PodSpec, observed: &Observed) -> bool {
    !spec.containers.is_empty()
        && spec.containers.iter().all(|container| {
            let latest = observed.latest(&container.name);
            match latest.map(|it| &it.life) {
                Some(Life::Exited(exited)) => !restart::again(container, spec, latest, exited.code),
                _ => false,
            }
        })
}

/// Nothing of a pod that ends runs any more, and nothing of it is being started.
pub fn is_finished(desired: &Desired, observed: &Observed, memory: &Memory, now: Timestamp) -> bool {
    course(desired, observed, memory, now) != Course::Goes
        && memory.starting.is_none()
        && !observed.instances.iter().any(may_run)
}

/// It has processes, or nobody can say.
pub fn may_run(instance: &Instance) -> bool {
    matches!(instance.life, Life::Running { .. } | Life::Unknown)
}

/// What a pod has from the start of its end, seconds.
pub fn grace_s(pod: &Pod, ending: Option<&Ending>) -> i64 {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(GRACE_S);
    ending.and_then(|ending| ending.grace_s).unwrap_or(own).max(MIN_GRACE_S)
}
