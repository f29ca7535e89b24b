//! One pod's worker: it looks, decides, acts and tells, from the pod's admission until nothing of it is left.
//!
//! Always true:
//! - What is seen is asked of the engine at each look; what is remembered between looks can be lost without harm.
//! - A pod that ends never starts anything again; its end is told only when nothing of it can run any more.
//! - Work that takes time (images, hooks, grace periods, volumes) is done beside the looking, one piece for each container
//!   at a time; all of it ends with the worker.
//!
//! Elsewhere: what to do (`decide`), how (`runtime`), which pods have a worker (`manager`).

use std::{sync::Arc, time::Duration};

use board::clock::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Ground, decide,
    model::{Action, Desired, EndCause, Facts, Kind, Life, Memory, Observed, PodKey},
    pods::{Pods, View, with_status},
    probe::{self, PodProbes, Prober},
    runtime::Runtime,
    source::Known,
    spec,
    status_manager::StatusManager,
    work::{Done, Piece, Work},
};
use crate::{
    event::{Recorder, Type},
    object::Objects,
    volume::Volumes,
};

/// The longest time between two looks; a random part is taken off.
const RESYNC: Duration = Duration::from_secs(90);
/// Shortest time to the next look where something is due already.
const SOON: Duration = Duration::from_millis(50);
/// The reason of an image that could not be pulled.
const ERR_PULL: &str = "ErrImagePull";

/// What all workers stand on.
pub(super) struct Shared {
    pub runtime: Runtime,
    pub volumes: Volumes,
    pub objects: Objects,
    pub statuses: StatusManager,
    pub prober: Prober,
    pub recorder: Recorder,
    pub ground: Arc<dyn Fn() -> Ground + Send + Sync>,
    pub pods: Pods,
    pub clock: Clock,
    pub known: Known,
}

/// How a worker is told that it should look again.
#[derive(Default)]
pub(super) struct Wake {
    /// Something happened.
    pub look: Notify,
    /// What the pod refers to changed.
    pub refresh: std::sync::atomic::AtomicBool,
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing of the pod is left.
    Gone,
    /// The agent stops; the pod goes on.
    Stopped,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    key: PodKey,
    desired: watch::Receiver<Desired>,
    wake: Arc<Wake>,
    memory: Memory,
    probes: PodProbes,
    work: Work,
    /// Network and volumes were given back.
    released: bool,
    /// Of the pod as it was when its volumes were last made.
    generation: Option<String>,
    mirror: Option<String>,
}

/// What one look found.
struct Look {
    desired: Desired,
    observed: Arc<Observed>,
    facts: Facts,
    now: Timestamp,
    is_finished: bool,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, desired: watch::Receiver<Desired>, wake: Arc<Wake>) -> Self {
        let (key, previous) = {
            let desired = desired.borrow();
            let key = PodKey::of(&desired.pod);
            // What an agent before this one has seen counts for more than what it could tell.
            let previous = shared.statuses.last(&key.uid).or_else(|| desired.pod.status.clone());
            (key, previous)
        };
        let probes = shared.prober.pod(&key.uid);
        let memory = Memory { previous, ..Memory::default() };
        let work = Work::new(shared.clone());
        Self { shared, key, desired, wake, memory, probes, work, released: false, generation: None, mirror: None }
    }

    /// Until nothing of the pod is left, or the agent stops.
    pub async fn run(mut self, stop: CancellationToken) -> End {
        let end = loop {
            let look = self.look().await;
            if look.is_finished && self.work.is_idle() && self.finish(&look).await {
                break End::Gone;
            }
            self.act(&look);
            let pause = self.pause(&look);
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { break End::Stopped },
                () = self.wake.look.notified() => {}
                () = self.probes.changed() => {}
                done = self.work.next() => self.done(done),
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break End::Stopped,
            }
        };
        self.work.shutdown().await;
        self.probes.close().await;
        end
    }

    /// Sees what is there, and tells what it comes to.
    async fn look(&mut self) -> Look {
        let desired = self.desired.borrow_and_update().clone();
        let observed = Arc::new(self.shared.runtime.observe(&self.key).await);
        let facts = (self.shared.ground)().facts;
        let now = timestamp(&self.shared.clock);
        self.memory.stopping = self.work.stopping();
        self.back_off_pulls(&desired.pod, now);
        self.probes.sync(scene(&desired, &observed, &self.memory, &facts));
        self.memory.starting = self.work.starting();
        let view = self.probes.view();
        let status = decide::status(&desired, &observed, &self.memory, &view, &facts, now);
        let is_finished = decide::is_finished(&desired, &observed, &self.memory, now);
        if self.memory.previous.as_ref() != Some(&status) {
            let holds = self.shared.statuses.set(&desired.pod, status);
            self.memory.previous = Some(holds);
        }
        let status = self.memory.previous.clone().unwrap_or_default();
        if desired.is_static {
            let mirror = self.shared.known.mirror_of(&self.key.uid);
            self.mirror = mirror.and_then(|pod| pod.metadata.uid.clone());
        }
        let is_over = is_finished && self.released;
        let pod = with_status(&desired.pod, status);
        let seen = View { pod, observed: observed.clone(), mirror: self.mirror.clone(), is_over };
        self.shared.pods.put(&self.key.uid, seen);
        Look { desired, observed, facts, now, is_finished }
    }

    /// An image that could not be pulled, once told, waits for its next try under another reason.
    fn back_off_pulls(&mut self, pod: &Pod, now: Timestamp) {
        let status = self.memory.previous.as_ref();
        let is_told = |name: &str| {
            let lists = status
                .map(|it| [&it.init_container_statuses, &it.container_statuses, &it.ephemeral_container_statuses]);
            let all = lists.into_iter().flatten().flat_map(|list| list.iter().flatten());
            let waiting =
                all.filter(|it| it.name == name).find_map(|it| it.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
            waiting == Some(ERR_PULL)
        };
        for (container, problem) in &mut self.memory.problems {
            let waits = problem.retry.is_some_and(|retry| retry > now);
            if problem.reason == ERR_PULL && waits && is_told(container) {
                let image = spec::find(pod, container).and_then(|(_, it)| it.image).unwrap_or_default();
                let message = format!("Back-off pulling image {image:?}");
                let path = probe::field_path(pod, container);
                self.shared.recorder.pod(pod, Type::Normal, "BackOff", message.clone(), Some(path));
                "ImagePullBackOff".clone_into(&mut problem.reason);
                problem.message = format!("{message}: {ERR_PULL}: {}", problem.message);
            }
        }
    }

    /// Begins what is to be done and is not being done yet.
    fn act(&mut self, look: &Look) {
        let refresh = self.wake.refresh.swap(false, std::sync::atomic::Ordering::AcqRel);
        if look.is_finished {
            return;
        }
        let course = decide::course(&look.desired, &look.observed, &self.memory, look.now);
        if course == decide::Course::Goes {
            let generation = generation(&look.desired.pod);
            let changed = self.generation.as_deref() != Some(generation.as_str());
            if changed {
                self.shared.objects.register(&look.desired.pod);
                self.generation = Some(generation);
            }
            if refresh {
                self.work.hold_nothing();
                self.memory.problems.values_mut().for_each(|problem| problem.retry = None);
            }
            if (refresh || changed) && self.work.mounts().is_some() {
                self.work.begin(Piece::Volumes, &look.desired.pod);
            }
        } else {
            self.work.abort_starts();
        }
        let view = self.probes.view();
        for action in decide::plan(&look.desired, &look.observed, &self.memory, &view, &look.facts, look.now) {
            self.perform(action, look);
        }
    }

    fn perform(&mut self, action: Action, look: &Look) {
        let pod = &look.desired.pod;
        match action {
            Action::CreateSandbox => self.prepare(Piece::Sandbox, pod),
            Action::RemoveSandbox => self.work.begin(Piece::RemoveSandbox, pod),
            Action::Start { container, kind, attempt } => {
                let begins = self.work.can_start() && self.work.mounts().is_some();
                if begins && let Some(last) = look.observed.latest(&container) {
                    self.raise_backoff(pod, &container, &last.life, look);
                }
                self.prepare(Piece::Start { container, kind, attempt }, pod);
            }
            Action::Wait { container, problem } => {
                if self.memory.problems.get(&container) != Some(&problem) {
                    let message = format!("Back-off restarting failed container {container} in pod {}", self.key);
                    let path = probe::field_path(pod, &container);
                    self.shared.recorder.pod(pod, Type::Warning, "BackOff", message, Some(path));
                    self.memory.problems.insert(container, problem);
                }
            }
            Action::Kill { id, container, reason, message, grace_s, is_due } => {
                self.work.begin(Piece::Kill { id, container, reason, message, grace_s, is_due }, pod);
            }
            Action::Resize { id, container, resources } => {
                self.work.begin(Piece::Resize { id, container, resources }, pod);
            }
            Action::Remove { id } => self.work.begin(Piece::Remove { id }, pod),
        }
    }

    /// Volumes come before the network, and both before containers.
    fn prepare(&mut self, piece: Piece, pod: &Arc<Pod>) {
        if self.work.mounts().is_none() {
            self.work.begin(Piece::Volumes, pod);
        } else {
            self.work.begin(piece, pod);
        }
    }

    /// The next wait of a container that is started again is longer.
    fn raise_backoff(&mut self, pod: &Pod, container: &str, life: &Life, look: &Look) {
        let Life::Exited(exited) = life else { return };
        let Some((_, declared)) = spec::find(pod, container) else { return };
        let key = decide::backoff::key(&self.key, &declared);
        let before = self.memory.backoffs.get(&key);
        let next = decide::backoff::Backoff::next(before, exited.finished, look.facts.max_backoff_s, look.now);
        self.memory.backoffs.insert(key, next);
    }

    /// Takes in what a piece of work came to.
    fn done(&mut self, done: Done) {
        match done {
            Done::Started { container, outcome: Ok(()) } => {
                self.memory.problems.remove(&container);
                self.work.forget_tries(&container);
            }
            Done::Started { container, outcome: Err(problem) } => {
                let now = timestamp(&self.shared.clock);
                let problem = self.work.next_try(&container, problem, now);
                self.memory.problems.insert(container, problem);
            }
            Done::Volumes(Err(error)) => {
                tracing::warn!(pod = %self.key, %error, "a pod's volumes are not ready");
            }
            Done::Sandbox(Err(problem)) => {
                tracing::warn!(pod = %self.key, problem = problem.message, "a pod's network could not be made");
            }
            Done::Volumes(Ok(())) | Done::Sandbox(Ok(())) | Done::Other => {}
        }
    }

    /// Until when nothing happens by itself.
    fn pause(&self, look: &Look) -> Duration {
        let jitter = board::tasks::backoff(1, RESYNC, RESYNC);
        let due = decide::next_look(&look.desired, &self.memory, look.now);
        let due = due.map(|at| Duration::try_from(at.duration_since(look.now)).unwrap_or(SOON).max(SOON));
        let told = self.memory.problems.values().any(|it| it.reason == ERR_PULL).then_some(Duration::from_secs(2));
        let retry = self.work.retry().map(|at: Instant| at.saturating_duration_since(Instant::now()).max(SOON));
        [due, retry, told].into_iter().flatten().fold(jitter, Duration::min)
    }

    /// Gives back what the pod had; `true` where nothing of it is left.
    async fn finish(&mut self, look: &Look) -> bool {
        let pod = &look.desired.pod;
        if !self.released {
            self.probes.sync(scene(&look.desired, &look.observed, &self.memory, &look.facts));
            if let Err(problem) = self.release().await {
                tracing::warn!(pod = %self.key, problem, "what a pod had was not given back; tried again in 10 s");
                self.work.try_later(Duration::from_secs(10));
                return false;
            }
            self.released = true;
            self.publish_over();
        }
        let is_deleted = look.desired.ending.as_ref().is_some_and(|it| it.cause == EndCause::Deleted);
        if !is_deleted {
            return false;
        }
        if let Err(error) = self.shared.statuses.keep(&self.key.uid).await {
            tracing::warn!(pod = %self.key, %error, "the last status of a pod is not on disk");
        }
        if let Err(problem) = self.shared.runtime.remove_pod(&self.key).await {
            tracing::warn!(pod = %self.key, problem = problem.message, "a pod was not removed; tried again in 10 s");
            self.work.try_later(Duration::from_secs(10));
            return false;
        }
        self.shared.objects.unregister(&self.key.uid);
        if pod.metadata.deletion_timestamp.is_some() {
            self.shared.statuses.finish(&self.key.uid);
        }
        true
    }

    async fn release(&self) -> Result<(), String> {
        self.shared.runtime.remove_sandbox(&self.key).await.map_err(|it| it.message)?;
        self.shared.volumes.teardown(&self.key.uid).await.map_err(|it| board::tasks::chain(&it))
    }

    fn publish_over(&self) {
        if let Some(view) = self.shared.pods.get(&self.key.uid) {
            self.shared.pods.put(&self.key.uid, View { is_over: true, ..view });
        }
    }
}

/// The board's time.
pub(crate) fn timestamp(clock: &Clock) -> Timestamp {
    Timestamp::from_microsecond(clock.stamp().wall_us).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Changes with whatever of a pod its volumes and references depend on.
fn generation(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let containers = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref()).map_or(0, Vec::len);
    format!("{:?} {containers} {:?} {:?}", meta.generation, meta.labels, meta.annotations)
}

/// What probes need to know.
fn scene(desired: &Desired, observed: &Observed, memory: &Memory, facts: &Facts) -> probe::Scene {
    let names: std::collections::BTreeSet<&str> = observed.instances.iter().map(|it| it.name.as_str()).collect();
    let containers = names.into_iter().filter_map(|name| {
        let latest = observed.latest(name)?;
        let life = match &latest.life {
            Life::Running { started } => {
                probe::Life::Running { started_ns: i64::try_from(started.as_nanosecond()).unwrap_or_default() }
            }
            Life::Exited(_) => probe::Life::Ended,
            Life::Created | Life::Unknown => probe::Life::Waiting,
        };
        let before = before(memory, latest.kind, name, &latest.id);
        Some((name.to_owned(), probe::Seen { id: latest.id.clone(), life, before }))
    });
    let sandbox = observed.sandbox.as_ref();
    let ip = match sandbox {
        Some(sandbox) if sandbox.host_network => facts.host_addresses.first().copied(),
        Some(sandbox) => sandbox.addresses.first().copied(),
        None => None,
    };
    probe::Scene { pod: desired.pod.clone(), ip, deleting: desired.ending.is_some(), containers: containers.collect() }
}

/// What the last status said of this very container.
fn before(memory: &Memory, kind: Kind, name: &str, id: &str) -> Option<probe::Before> {
    let status = memory.previous.as_ref()?;
    let list = if matches!(kind, Kind::Init | Kind::Sidecar) {
        &status.init_container_statuses
    } else {
        &status.container_statuses
    };
    let known = list.iter().flatten().find(|it| it.name == name)?;
    let is_same = known.container_id.as_deref().is_some_and(|known| known.ends_with(id));
    is_same.then(|| probe::Before { started: known.started.unwrap_or(false), ready: known.ready })
}

/// That a pod was not admitted is told like any other status.
pub(super) fn rejected(shared: &Shared, pod: &Pod, status: k8s_openapi::api::core::v1::PodStatus) -> View {
    shared.statuses.set(pod, status.clone());
    View { pod: with_status(pod, status), observed: Arc::default(), mirror: None, is_over: true }
}
