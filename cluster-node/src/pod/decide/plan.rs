//! What to do next about a pod.
//!
//! Acting on a part of a plan and planning again is always right: a plan says only what does not hold yet.

use container_engine::container::Resources;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{
    backoff,
    course::{self, Course, course, may_run},
    qos, restart,
};
use crate::pod::{
    model::{Action, Desired, Facts, Instance, KillReason, Kind, Life, Memory, Observed, PodKey, Problem},
    probe::{self, View},
    spec::{hash, of_ephemeral},
};

/// What a container has at least between its signals, seconds.
const MIN_STOP_S: i64 = 2;
/// Ended instances of a container that are kept: the last, and the one that runs or ran after it.
const KEPT: usize = 2;

/// What a plan is made from.
struct Scene<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    observed: &'a Observed,
    memory: &'a Memory,
    view: &'a View,
    facts: &'a Facts,
    now: Timestamp,
}

/// What to do next.
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    memory: &Memory,
    view: &View,
    facts: &Facts,
    now: Timestamp,
) -> Vec<Action> {
    let ended = course(desired, observed, memory, now);
    let nothing = PodSpec::default();
    let spec = desired.pod.spec.as_ref().unwrap_or(&nothing);
    let scene = Scene { pod: &desired.pod, spec, observed, memory, view, facts, now };
    let mut actions = match ended {
        Course::MustEnd(ending) => scene.end(course::grace_s(&desired.pod, Some(&ending)), ending.since),
        Course::IsDone => scene.end(course::grace_s(&desired.pod, None), now),
        Course::Goes => scene.go(),
    };
    actions.extend(scene.clear());
    actions
}

impl Scene<'_> {
    /// Everything stops: regular and init containers at once, then sidecars, the last begun first.
    fn end(&self, total_s: i64, since: Timestamp) -> Vec<Action> {
        let alive = || self.observed.instances.iter().filter(|instance| may_run(instance));
        let first: Vec<&Instance> = alive().filter(|instance| instance.kind != Kind::Sidecar).collect();
        if !first.is_empty() {
            return first.into_iter().filter_map(|instance| self.end_one(instance, total_s)).collect();
        }
        let elapsed = self.now.duration_since(since).as_secs().max(0);
        let left_s = (total_s - elapsed).max(MIN_STOP_S);
        let order = |name: &str| self.spec.init_containers.iter().flatten().position(|it| it.name == name);
        let last = alive().max_by_key(|instance| order(&instance.name));
        // What is left shrinks by itself; only a shorter grace is a reason to stop it anew.
        last.filter(|it| self.memory.stopping.get(&it.id).is_none_or(|before| *before > total_s.max(MIN_STOP_S)))
            .and_then(|instance| self.end_one(instance, left_s))
            .into_iter()
            .collect()
    }

    fn end_one(&self, instance: &Instance, grace_s: i64) -> Option<Action> {
        let grace_s = grace_s.max(MIN_STOP_S);
        let stops_already = self.memory.stopping.get(&instance.id).is_some_and(|before| *before <= grace_s);
        (!stops_already).then(|| Action::Kill {
            id: instance.id.clone(),
            container: instance.name.clone(),
            reason: KillReason::PodEnds,
            message: format!("Stopping container {}", instance.name),
            grace_s,
            is_due: false,
        })
    }

    fn go(&self) -> Vec<Action> {
        let ready = self.observed.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready);
        if !ready {
            let mut actions: Vec<Action> = self
                .observed
                .instances
                .iter()
                .filter(|it| may_run(it))
                .filter_map(|it| {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.stop(it, KillReason::Sandbox, message, self.outlives_kill(&it.name))
                })
                .collect();
            if actions.is_empty() && !self.observed.instances.iter().any(may_run) {
                actions.push(Action::CreateSandbox);
            }
            return actions;
        }
        let mut actions = Vec::new();
        for container in self.spec.ephemeral_containers.iter().flatten() {
            if self.observed.latest(&container.name).is_none() {
                self.begin(&of_ephemeral(container), Kind::Ephemeral, &mut actions);
            }
        }
        if self.init(&mut actions) {
            for container in &self.spec.containers {
                self.keep(container, Kind::Regular, &mut actions);
            }
        }
        actions
    }

    /// Brings init containers forward; whether regular ones may run.
    fn init(&self, actions: &mut Vec<Action>) -> bool {
        let is_over = course::has_begun(self.observed, self.spec);
        for container in self.spec.init_containers.iter().flatten() {
            let latest = self.observed.latest(&container.name);
            if Kind::of_init(container) == Kind::Sidecar {
                self.keep(container, Kind::Sidecar, actions);
                let is_started = latest.is_some_and(|latest| {
                    latest.is_running()
                        && self.view.is_started(&container.name, &latest.id)
                        && self.memory.starting.as_deref() != Some(container.name.as_str())
                });
                if !is_started && !is_over {
                    return false;
                }
                continue;
            }
            if is_over {
                continue;
            }
            match latest.map(|latest| (&latest.life, latest.before_sandbox)) {
                Some((Life::Exited(exited), false)) if exited.code == 0 => {}
                // In a network that is gone, what it did has to be done again.
                Some((Life::Exited(exited), before)) => {
                    let again = before || restart::again(container, self.spec, latest, exited.code);
                    if again {
                        self.begin(container, Kind::Init, actions);
                    }
                    return false;
                }
                Some((Life::Running { .. } | Life::Unknown, _)) => {
                    self.check(container, Kind::Init, latest, actions);
                    return false;
                }
                None => {
                    self.begin(container, Kind::Init, actions);
                    return false;
                }
                // It is cleared away first.
                Some((Life::Created, _)) => return false,
            }
        }
        true
    }

    /// Keeps a container running, or starts it again, as its policy says.
    fn keep(&self, container: &Container, kind: Kind, actions: &mut Vec<Action>) {
        let latest = self.observed.latest(&container.name);
        match latest.map(|latest| &latest.life) {
            Some(Life::Running { .. } | Life::Unknown) => self.check(container, kind, latest, actions),
            Some(Life::Exited(exited)) => {
                let again = kind == Kind::Sidecar || restart::again(container, self.spec, latest, exited.code);
                if again {
                    self.begin(container, kind, actions);
                }
            }
            None => self.begin(container, kind, actions),
            // It is cleared away first.
            Some(Life::Created) => {}
        }
    }

    /// What is to be done about a container that runs.
    fn check(&self, container: &Container, kind: Kind, latest: Option<&Instance>, actions: &mut Vec<Action>) {
        let Some(latest) = latest else { return };
        let name = &container.name;
        if self.memory.starting.as_deref() == Some(name.as_str()) {
            return;
        }
        if matches!(latest.life, Life::Unknown) {
            actions.extend(self.stop(
                latest,
                KillReason::Changed,
                &format!("Container {name} is in unknown state, try killing it before restart"),
                self.outlives_kill(name),
            ));
            return;
        }
        // An init container that runs to its end is left to do so.
        if kind != Kind::Init && !latest.hash.is_empty() && latest.hash != hash(container) {
            let message = format!("Container {name} definition changed, will be restarted");
            actions.extend(self.stop(latest, KillReason::Changed, &message, true));
            return;
        }
        if let Some(kind) = self.view.failed(name, &latest.id) {
            let restarts = restart::after_kill(container, self.spec);
            let reason = if kind == probe::Kind::Startup { KillReason::Startup } else { KillReason::Liveness };
            let own = probe::grace_period_s(container, kind);
            let grace_s = own.unwrap_or_else(|| course::grace_s(self.pod, None)).max(MIN_STOP_S);
            if !self.memory.stopping.contains_key(&latest.id) {
                actions.push(Action::Kill {
                    id: latest.id.clone(),
                    container: name.clone(),
                    reason,
                    message: probe::kill_message(name, kind, restarts),
                    grace_s,
                    is_due: restarts,
                });
            }
            return;
        }
        let wanted = qos::resources(self.pod, container, self.facts.memory);
        if is_resized(&latest.resources, &wanted) {
            if needs_restart(container, &latest.resources, &wanted) {
                let message = format!("Container {name} resize requires restart");
                actions.extend(self.stop(latest, KillReason::Changed, &message, true));
            } else {
                let resources = Box::new(wanted);
                actions.push(Action::Resize { id: latest.id.clone(), container: name.clone(), resources });
            }
        }
    }

    fn stop(&self, instance: &Instance, reason: KillReason, message: &str, is_due: bool) -> Option<Action> {
        (!self.memory.stopping.contains_key(&instance.id)).then(|| Action::Kill {
            id: instance.id.clone(),
            container: instance.name.clone(),
            reason,
            message: message.to_owned(),
            grace_s: course::grace_s(self.pod, None).max(MIN_STOP_S),
            is_due,
        })
    }

    /// Whether a container that is stopped while its pod goes on is started again.
    fn outlives_kill(&self, name: &str) -> bool {
        let all = self.spec.init_containers.iter().flatten().chain(&self.spec.containers);
        all.into_iter().find(|it| it.name == name).is_some_and(|it| restart::after_kill(it, self.spec))
    }

    /// Starts a container, unless it has to wait.
    fn begin(&self, container: &Container, kind: Kind, actions: &mut Vec<Action>) {
        let name = container.name.clone();
        if self.memory.starting.as_deref() == Some(name.as_str()) {
            return;
        }
        let latest = self.observed.latest(&name);
        if let Some(instance) = latest
            && let Life::Exited(exited) = &instance.life
            && let Some(known) = self.memory.backoffs.get(&backoff::key(&PodKey::of(self.pod), container))
            && let Some(until) = known.until(exited.finished, self.facts.max_backoff_s, self.now)
        {
            actions.push(Action::Wait { container: name, problem: self.crash(container, known.wait_s, until) });
            return;
        }
        if self.memory.problems.get(&name).and_then(|it| it.retry).is_some_and(|retry| retry > self.now) {
            return;
        }
        actions.push(Action::Start { container: name.clone(), kind, attempt: self.attempt(&name, latest) });
    }

    fn crash(&self, container: &Container, wait_s: u32, until: Timestamp) -> Problem {
        let message = format!(
            "back-off {} restarting failed container={} pod={}",
            backoff::go_duration(wait_s),
            container.name,
            PodKey::of(self.pod)
        );
        Problem { reason: "CrashLoopBackOff".to_owned(), message, retry: Some(until) }
    }

    /// The number of the next life; it goes on where the engine has forgotten the last one.
    fn attempt(&self, name: &str, latest: Option<&Instance>) -> u32 {
        if let Some(instance) = latest {
            return instance.attempt.saturating_add(1);
        }
        let status = self.memory.previous.as_ref();
        let known = status.and_then(|status| super::status::known(status, name));
        let lost = known.filter(|known| known.container_id.as_ref().is_some_and(|id| !id.is_empty()));
        lost.map_or(0, |known| u32::try_from(known.restart_count).unwrap_or(0).saturating_add(1))
    }

    /// What nobody needs any more: instances that newer ones have taken the place of, and such as were never started.
    fn clear(&self) -> Vec<Action> {
        let mut names: Vec<&str> = self.observed.instances.iter().map(|it| it.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut actions = Vec::new();
        for name in names.into_iter().filter(|name| self.memory.starting.as_deref() != Some(name)) {
            let mut all: Vec<&Instance> = self.observed.of(name).collect();
            all.sort_by_key(|instance| std::cmp::Reverse((instance.attempt, instance.created)));
            let over = all.iter().filter(|it| it.life == Life::Created);
            let old = all.iter().filter(|it| it.life != Life::Created).skip(KEPT).filter(|it| !may_run(it));
            actions.extend(over.chain(old).map(|it| Action::Remove { id: it.id.clone() }));
        }
        actions
    }
}

/// Whether limits that change in place are other ones.
fn is_resized(has: &Resources, wanted: &Resources) -> bool {
    has.memory != wanted.memory || has.cpu_milli != wanted.cpu_milli || has.cpu_shares != wanted.cpu_shares
}

/// Whether the container asks to be started again for this change.
fn needs_restart(container: &Container, has: &Resources, wanted: &Resources) -> bool {
    let changed = |resource: &str| match resource {
        "memory" => has.memory != wanted.memory,
        "cpu" => has.cpu_milli != wanted.cpu_milli || has.cpu_shares != wanted.cpu_shares,
        _ => false,
    };
    let mut policies = container.resize_policy.iter().flatten();
    policies.any(|policy| policy.restart_policy == "RestartContainer" && changed(&policy.resource_name))
}

/// When something is due by itself: a back-off ends, a deadline is reached.
pub fn next_look(desired: &Desired, memory: &Memory, now: Timestamp) -> Option<Timestamp> {
    let retries = memory.problems.values().filter_map(|problem| problem.retry);
    let deadline = course::deadline(&desired.pod, memory).filter(|_| desired.ending.is_none());
    let due = retries.chain(deadline).filter(|at| *at > now).min();
    // A clock that was set forward must not make it wait for ever.
    due.map(|at| at.min(now.checked_add(SignedDuration::from_hours(1)).unwrap_or(at)))
}
