//! [`Prober`] and [`PodProbes`]: the tasks that look, run and publish.
//!
//! A task for each probe of each container; between runs it is a timer and two wake-ups. Results are a `watch`: however
//! many there are, whoever waits sees the newest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{Container, Pod};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    Kind, Life, Scene, Verdict, View, Witness,
    exec::Exec,
    field_path, probed,
    run::{self, Outcome},
    worker::{Next, Sight, Spec, Worker},
};

/// Probes of one kind and result of a container, for `/metrics/probes`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// Container.
    pub container: String,
    /// What for.
    pub kind: Kind,
    /// Runs that succeeded.
    pub successful: u64,
    /// Runs that failed.
    pub failed: u64,
}

struct Inner {
    exec: Arc<dyn Exec>,
    witness: Arc<dyn Witness>,
    began: Instant,
    counts: Mutex<BTreeMap<(String, String, Kind), Count>>,
}

/// What the probes of all pods share; cheap to clone.
#[derive(Clone)]
pub struct Prober(Arc<Inner>);

impl Prober {
    /// One that runs commands by `exec` and tells `witness` of failures.
    pub fn new(exec: Arc<dyn Exec>, witness: Arc<dyn Witness>) -> Self {
        Self(Arc::new(Inner { exec, witness, began: Instant::now(), counts: Mutex::default() }))
    }

    /// The probes of one pod, none of which runs before the first [`PodProbes::sync`].
    pub fn pod(&self, uid: impl Into<String>) -> PodProbes {
        let view = watch::Sender::new(View::default());
        let seen = view.subscribe();
        let shared = Shared { prober: self.clone(), uid: uid.into(), view };
        PodProbes {
            shared: Arc::new(shared),
            seen,
            scene: watch::Sender::new(None),
            tasks: JoinSet::new(),
            known: BTreeSet::new(),
        }
    }

    /// Runs so far, of pods that are there.
    pub fn counts(&self) -> Vec<Count> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn count(&self, pod: &Pod, uid: &str, container: &str, kind: Kind, success: bool) {
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((uid.to_owned(), container.to_owned(), kind)).or_insert_with(|| Count {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.to_owned(),
            container: container.to_owned(),
            kind,
            successful: 0,
            failed: 0,
        });
        *(if success { &mut count.successful } else { &mut count.failed }) += 1;
    }
}

struct Shared {
    prober: Prober,
    uid: String,
    view: watch::Sender<View>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut counts = self.prober.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|(uid, _, _), _| *uid != self.uid);
    }
}

/// The probes of one pod. Dropping it ends them.
pub struct PodProbes {
    shared: Arc<Shared>,
    seen: watch::Receiver<View>,
    scene: watch::Sender<Option<Arc<Scene>>>,
    tasks: JoinSet<()>,
    known: BTreeSet<(String, Kind)>,
}

impl PodProbes {
    /// Tells the probes what is there now, and begins those that are new. Never waits; the same scene again does nothing.
    pub fn sync(&mut self, scene: Scene) {
        while self.tasks.try_join_next().is_some() {}
        let mut new = Vec::new();
        for container in probed(&scene.pod) {
            for kind in Kind::ALL.into_iter().filter(|kind| kind.of(container).is_some()) {
                if self.known.insert((container.name.clone(), kind)) {
                    new.push((container.clone(), kind));
                }
            }
        }
        self.shared.view.send_if_modified(|view| {
            for (container, kind) in &new {
                view.expect(&container.name, *kind);
            }
            let begun = scene.containers.iter().map(|(name, seen)| view.begin(name, &seen.id, seen.before));
            begun.fold(!new.is_empty(), |news, begun| news | begun)
        });
        self.scene.send_replace(Some(Arc::new(scene)));
        for (container, kind) in new {
            let task = Task { shared: self.shared.clone(), scene: self.scene.subscribe(), container, kind };
            self.tasks.spawn(task.run());
        }
    }

    /// What they have come to.
    pub fn view(&self) -> View {
        self.seen.borrow().clone()
    }

    /// Waits until the view is another than when this was last asked. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            // The sender lives as long as `self`.
            std::future::pending::<()>().await;
        }
    }

    /// Ends them and waits for that.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

struct Task {
    shared: Arc<Shared>,
    scene: watch::Receiver<Option<Arc<Scene>>>,
    container: Container,
    kind: Kind,
}

impl Task {
    async fn run(mut self) {
        let Some(probe) = self.kind.of(&self.container).cloned() else { return };
        let mut worker = Worker::new(Spec::of(self.kind, &probe));
        let mut view = self.shared.view.subscribe();
        let name = self.container.name.clone();
        loop {
            let scene = self.scene.borrow_and_update().clone();
            let seen = scene.as_ref().and_then(|scene| scene.containers.get(&name));
            let sight = Sight {
                id: seen.map_or("", |seen| seen.id.as_str()),
                life: seen.map_or(Life::Waiting, |seen| seen.life),
                before: seen.and_then(|seen| seen.before),
                deleting: scene.as_ref().is_some_and(|scene| scene.deleting),
                started: seen.is_some_and(|seen| view.borrow_and_update().is_started(&name, &seen.id)),
                age: seen.map_or(Duration::ZERO, |seen| age(seen.life)),
            };
            let began = self.shared.prober.0.began;
            let step = worker.step(&sight, began.elapsed(), random());
            if let Some(verdict) = step.verdict {
                self.publish(sight.id, verdict);
            }
            match step.next {
                Next::End => return,
                Next::Run => {
                    let Some(scene) = &scene else { continue };
                    let ip = scene.ip.map(|ip| ip.to_string());
                    let exec = self.shared.prober.0.exec.as_ref();
                    let limit = worker.spec().timeout;
                    let ran = run::run(exec, &probe, &self.container, sight.id, ip.as_deref(), limit).await;
                    if let Some(verdict) = worker.outcome(self.tell(&scene.pod, ran)) {
                        self.publish(sight.id, verdict);
                    }
                }
                Next::At(moment) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(began + moment) => {}
                        changed = self.scene.changed() => if changed.is_err() { return },
                        _ = view.changed() => {}
                    }
                }
                Next::Idle => {
                    tokio::select! {
                        changed = self.scene.changed() => if changed.is_err() { return },
                        _ = view.changed() => {}
                    }
                }
            }
        }
    }

    fn publish(&self, id: &str, verdict: Verdict) {
        self.shared.view.send_if_modified(|view| view.set(&self.container.name, id, self.kind, verdict));
    }

    /// Tells the witness and counts; what the worker is to make of it.
    fn tell(&self, pod: &Pod, ran: Outcome) -> Option<bool> {
        let (kind, name, prober) = (self.kind, &self.container.name, &self.shared.prober);
        let warn = |reason, message| prober.0.witness.warning(pod, &field_path(pod, name), reason, message);
        let success = match ran {
            Outcome::Success => true,
            Outcome::Warning(output) => {
                warn("ProbeWarning", format!("{kind} probe warning: {output}"));
                true
            }
            Outcome::Failure(output) => {
                warn("Unhealthy", format!("{kind} probe failed: {output}"));
                false
            }
            Outcome::Error(problem) => {
                warn("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {problem}"));
                return None;
            }
        };
        prober.count(pod, &self.shared.uid, name, kind, success);
        Some(success)
    }
}

/// How long it has run by the wall clock; a clock that was set back makes it nothing.
fn age(life: Life) -> Duration {
    let Life::Running { started_ns } = life else { return Duration::ZERO };
    let started = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(started_ns).unwrap_or(0));
    SystemTime::now().duration_since(started).unwrap_or_default()
}

/// In 0..1; without random bytes probes are not spread, nothing else.
fn random() -> f64 {
    let mut bytes = [0; 4];
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
