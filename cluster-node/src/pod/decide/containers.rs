//! The status of each container of a pod: its state, the one before, and how often it was started.
//!
//! Always true: a container that has ended for good is never said to be anything else again, also when the engine has
//! forgotten it.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, Pod, PodSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    course::has_begun,
    restart,
    status::{known, whole},
};
use crate::pod::{
    model::{Exited, Instance, Kind, Life, Memory, Observed},
    probe::View,
    spec::of_ephemeral,
};

/// All messages of a pod's containers together, bytes.
const MESSAGES: usize = 12 << 10;
/// In front of the engine's ids.
pub const ID_PREFIX: &str = "edge-agent://";
/// Of a container that nobody saw end.
const LOST: (&str, &str, i32) = (
    "ContainerStatusUnknown",
    "The container could not be located when the pod was deleted.  The container used to be Running",
    137,
);

/// By kind, in the order of the pod's own lists.
pub(super) struct Statuses {
    pub init: Vec<ContainerStatus>,
    pub regular: Vec<ContainerStatus>,
    pub ephemeral: Vec<ContainerStatus>,
}

struct Scene<'a> {
    spec: &'a PodSpec,
    observed: &'a Observed,
    memory: &'a Memory,
    view: &'a View,
    finished: bool,
    most: usize,
}

pub(super) fn statuses(
    pod: &Pod,
    spec: &PodSpec,
    observed: &Observed,
    memory: &Memory,
    view: &View,
    finished: bool,
) -> Statuses {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let ephemeral: Vec<Container> = spec.ephemeral_containers.iter().flatten().map(of_ephemeral).collect();
    let count = init.len() + spec.containers.len() + ephemeral.len();
    let finished = finished || pod.metadata.deletion_timestamp.is_some();
    let scene = Scene { spec, observed, memory, view, finished, most: MESSAGES / count.max(1) };
    Statuses {
        init: init.iter().map(|it| scene.status(it, Kind::of_init(it))).collect(),
        regular: spec.containers.iter().map(|it| scene.status(it, Kind::Regular)).collect(),
        ephemeral: ephemeral.iter().map(|it| scene.status(it, Kind::Ephemeral)).collect(),
    }
}

impl Scene<'_> {
    fn status(&self, container: &Container, kind: Kind) -> ContainerStatus {
        let mut instances: Vec<&Instance> = self.observed.of(&container.name).collect();
        instances.sort_by_key(|instance| std::cmp::Reverse((instance.attempt, instance.created)));
        // One that was made and never started tells nothing yet.
        let latest = instances.iter().find(|instance| instance.life != Life::Created).copied();
        let Some(latest) = latest else { return self.unseen(container, kind, instances.first().copied()) };
        let before = instances.iter().filter(|it| it.id != latest.id).find_map(|it| match &it.life {
            Life::Exited(exited) => Some(self.terminated(it, exited)),
            _ => None,
        });
        let before = before.or_else(|| self.known_before(container, latest));
        let (state, last) = match &latest.life {
            Life::Running { started } => (running(*started), before),
            Life::Exited(exited) => {
                let ended = self.terminated(latest, exited);
                match self.waiting_again(container, kind, exited) {
                    Some(waiting) => (waiting, Some(ended)),
                    None => (ContainerState { terminated: Some(ended), ..ContainerState::default() }, before),
                }
            }
            Life::Created | Life::Unknown => (self.waiting(container), before),
        };
        let is_running = latest.is_running();
        let started = is_running
            && self.view.is_started(&container.name, &latest.id)
            && self.memory.starting.as_deref() != Some(container.name.as_str());
        let ready = match (kind, &latest.life) {
            (Kind::Init, Life::Exited(exited)) => exited.code == 0,
            (Kind::Init | Kind::Ephemeral, _) => false,
            _ => started && self.view.is_ready(&container.name, &latest.id),
        };
        let known_count = self.known(&container.name).map_or(0, |it| it.restart_count);
        ContainerStatus {
            name: container.name.clone(),
            image: latest.image.clone(),
            image_id: latest.image_id.clone(),
            container_id: Some(format!("{ID_PREFIX}{}", latest.id)),
            state: Some(state),
            last_state: Some(ContainerState { terminated: last, ..ContainerState::default() }),
            restart_count: i32::try_from(latest.attempt).unwrap_or(i32::MAX).max(known_count),
            ready,
            started: Some(started),
            resources: container.resources.clone().filter(|_| kind != Kind::Ephemeral),
            allocated_resources: container.resources.as_ref().and_then(|it| it.requests.clone()),
            ..ContainerStatus::default()
        }
    }

    fn known(&self, name: &str) -> Option<&ContainerStatus> {
        known(self.memory.previous.as_ref()?, name)
    }

    /// How the life before this one ended, where the engine has forgotten it.
    fn known_before(&self, container: &Container, latest: &Instance) -> Option<ContainerStateTerminated> {
        let known = self.known(&container.name)?;
        let last = known.last_state.as_ref().and_then(|it| it.terminated.clone());
        let is_same = known.container_id.as_deref().is_some_and(|id| id.ends_with(&latest.id));
        let state = known.state.as_ref().filter(|_| !is_same);
        match state {
            Some(state) if state.terminated.is_some() => state.terminated.clone(),
            Some(state) if state.running.is_some() => Some(lost(known)),
            _ => last,
        }
    }

    /// A container that the engine has no started instance of.
    fn unseen(&self, container: &Container, kind: Kind, made: Option<&Instance>) -> ContainerStatus {
        let mut status = ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: Some(self.waiting(container)),
            last_state: Some(ContainerState::default()),
            started: Some(false),
            ..ContainerStatus::default()
        };
        let Some(known) = self.known(&container.name).filter(|it| it.container_id.is_some()) else { return status };
        status.restart_count = known.restart_count;
        let state = known.state.clone().unwrap_or_default();
        let ended = match (&state.terminated, &state.running) {
            (Some(ended), _) => Some(ended.clone()),
            (None, Some(_)) => Some(lost(known)),
            (None, None) => known.last_state.as_ref().and_then(|it| it.terminated.clone()),
        };
        let Some(ended) = ended else { return status };
        let is_over_init = kind == Kind::Init && (ended.exit_code == 0 || has_begun(self.observed, self.spec));
        let stays = kind == Kind::Ephemeral
            || self.finished
            || is_over_init
            || !restart::after_exit(container, self.spec, ended.exit_code);
        if stays && made.is_none() && state.waiting.is_none() {
            let ready = kind == Kind::Init && ended.exit_code == 0;
            let state = Some(ContainerState { terminated: Some(ended), ..ContainerState::default() });
            return ContainerStatus { state, ready, started: Some(false), ..known.clone() };
        }
        status.last_state = Some(ContainerState { terminated: Some(ended), ..ContainerState::default() });
        status.container_id.clone_from(&known.container_id);
        status.image_id.clone_from(&known.image_id);
        status
    }

    fn waiting(&self, container: &Container) -> ContainerState {
        let has_init = self.spec.init_containers.as_ref().is_some_and(|it| !it.is_empty());
        let (reason, message) = match self.memory.problems.get(&container.name) {
            Some(problem) => (problem.reason.clone(), Some(problem.message.clone())),
            None if has_init && !has_begun(self.observed, self.spec) => ("PodInitializing".to_owned(), None),
            None => ("ContainerCreating".to_owned(), None),
        };
        let message = message.filter(|it| !it.is_empty()).map(|it| cut(&it, self.most));
        let waiting = ContainerStateWaiting { reason: Some(reason), message };
        ContainerState { waiting: Some(waiting), ..ContainerState::default() }
    }

    /// One that ended and is to be started again, but not yet: for a reason, or though its policy alone would leave it
    /// ended. The API server takes no such end back (`ValidateContainerStateTransition`), so it must never hear of it.
    fn waiting_again(&self, container: &Container, kind: Kind, exited: &Exited) -> Option<ContainerState> {
        let latest = self.observed.latest(&container.name);
        let by_policy = kind == Kind::Sidecar || restart::after_exit(container, self.spec, exited.code);
        let again = by_policy || restart::is_followed(latest);
        let is_told = !by_policy || self.memory.problems.contains_key(&container.name);
        (again && is_told && !self.finished && kind != Kind::Ephemeral).then(|| self.waiting(container))
    }

    fn terminated(&self, instance: &Instance, exited: &Exited) -> ContainerStateTerminated {
        let message = (!exited.message.is_empty()).then(|| cut(&exited.message, self.most));
        ContainerStateTerminated {
            exit_code: exited.code,
            reason: Some(exited.reason.clone()),
            message,
            started_at: exited.started.map(|at| Time(whole(at))),
            finished_at: Some(Time(whole(exited.finished))),
            container_id: Some(format!("{ID_PREFIX}{}", instance.id)),
            signal: None,
        }
    }
}

fn running(started: jiff::Timestamp) -> ContainerState {
    let running = ContainerStateRunning { started_at: Some(Time(whole(started))) };
    ContainerState { running: Some(running), ..ContainerState::default() }
}

fn lost(known: &ContainerStatus) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: LOST.2,
        reason: Some(LOST.0.to_owned()),
        message: Some(LOST.1.to_owned()),
        container_id: known.container_id.clone(),
        ..ContainerStateTerminated::default()
    }
}

/// At most so many bytes, at a character's border.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}
