//! What a worker has begun: one piece for each slot (volumes, network, the container that is being started, each container
//! that is being stopped), and when what failed is tried again.
//!
//! Always true: containers of a pod are started one after the other, so that a `postStart` hook is waited for.
//!
//! Elsewhere: what is begun (`worker`), how it is done (`runtime`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use container_engine::container::Resources;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    model::{KillReason, Kind, PodKey, Problem},
    runtime::Why,
    worker::Shared,
};
use crate::{
    event::Type,
    volume::{PodMounts, VolumeError},
};

/// First and longest wait for images and what else keeps a container from being made.
const TRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// First and longest wait for volumes and networks.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Wait after a stop or a removal that failed.
const FAILED: Duration = Duration::from_secs(5);

/// Work that takes time.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Volumes,
    Sandbox,
    RemoveSandbox,
    Start { container: String, kind: Kind, attempt: u32 },
    Kill { id: String, container: String, reason: KillReason, message: String, grace_s: i64, is_due: bool },
    Resize { id: String, container: String, resources: Box<Resources> },
    Remove { id: String },
}

/// What runs beside what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Volumes,
    Network,
    Start,
    Instance(String),
}

impl Piece {
    fn slot(&self) -> Slot {
        match self {
            Self::Volumes => Slot::Volumes,
            Self::Sandbox | Self::RemoveSandbox => Slot::Network,
            Self::Start { .. } => Slot::Start,
            Self::Kill { id, .. } | Self::Resize { id, .. } | Self::Remove { id } => Slot::Instance(id.clone()),
        }
    }
}

/// What a piece came to, as far as the worker cares.
pub(super) enum Done {
    Volumes(Result<(), VolumeError>),
    Sandbox(Result<(), Problem>),
    Started { container: String, outcome: Result<(), Problem> },
    Other,
}

enum Outcome {
    Volumes(Result<PodMounts, VolumeError>),
    Sandbox(Result<(), Problem>),
    Started { container: String, outcome: Result<(), Problem> },
    Other,
}

struct Running {
    task: tokio::task::Id,
    abort: AbortHandle,
    /// Of a container that is being stopped, seconds.
    grace_s: Option<i64>,
    /// That is being started.
    container: Option<String>,
}

pub(super) struct Work {
    shared: Arc<Shared>,
    tasks: JoinSet<(Slot, Outcome)>,
    running: BTreeMap<Slot, Running>,
    mounts: Option<Arc<PodMounts>>,
    /// Failed tries so far, by container.
    tries: BTreeMap<String, u32>,
    /// Failed tries so far, and when the next may be.
    held: BTreeMap<Slot, (u32, Instant)>,
    later: Option<Instant>,
}

impl Work {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            mounts: None,
            tries: BTreeMap::new(),
            held: BTreeMap::new(),
            later: None,
        }
    }

    /// The pod's volumes, once they are ready.
    pub fn mounts(&self) -> Option<&Arc<PodMounts>> {
        self.mounts.as_ref()
    }

    /// Nothing is being done.
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// No container is being started.
    pub fn can_start(&self) -> bool {
        !self.running.contains_key(&Slot::Start)
    }

    /// The container that is being started.
    pub fn starting(&self) -> Option<String> {
        self.running.get(&Slot::Start).and_then(|running| running.container.clone())
    }

    /// Containers that are being stopped, and the grace they were given.
    pub fn stopping(&self) -> BTreeMap<String, i64> {
        let stopping = self.running.iter().filter_map(|(slot, running)| match (slot, running.grace_s) {
            (Slot::Instance(id), Some(grace)) => Some((id.clone(), grace)),
            _ => None,
        });
        stopping.collect()
    }

    /// Begins a piece, unless its slot is taken or waits for another try. A stop with less grace takes the place of one
    /// with more.
    pub fn begin(&mut self, piece: Piece, pod: &Arc<Pod>) {
        let slot = piece.slot();
        let grace_s = if let Piece::Kill { grace_s, .. } = &piece { Some(*grace_s) } else { None };
        if let Some(running) = self.running.get(&slot) {
            let is_shorter = matches!((grace_s, running.grace_s), (Some(new), Some(old)) if new < old);
            if !is_shorter {
                return;
            }
            running.abort.abort();
        }
        if self.held.get(&slot).is_some_and(|(_, until)| *until > Instant::now()) {
            return;
        }
        let (shared, pod, of) = (self.shared.clone(), pod.clone(), slot.clone());
        let mounts = self.mounts.clone().unwrap_or_default();
        let container = if let Piece::Start { container, .. } = &piece { Some(container.clone()) } else { None };
        let abort = self.tasks.spawn(async move { (of, Box::pin(run(&shared, &pod, &mounts, piece)).await) });
        self.running.insert(slot, Running { task: abort.id(), abort, grace_s, container });
    }

    /// No container of the pod is to be started any more. What is begun counts as begun until it has ended.
    pub fn abort_starts(&mut self) {
        for slot in [Slot::Start, Slot::Volumes] {
            if let Some(running) = self.running.get(&slot) {
                running.abort.abort();
            }
        }
    }

    /// What refers to changed objects is tried again at once.
    pub fn hold_nothing(&mut self) {
        self.held.clear();
        self.tries.clear();
    }

    /// The next piece that is done; for ever, where there is none.
    pub async fn next(&mut self) -> Done {
        let (task, outcome) = match self.tasks.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((task, (_, outcome)))) => (task, outcome),
            Some(Err(error)) => {
                if error.is_panic() {
                    tracing::error!(%error, "work on a pod panicked");
                }
                (error.id(), Outcome::Other)
            }
        };
        let slot = self.running.iter().find(|(_, running)| running.task == task).map(|(slot, _)| slot.clone());
        if let Some(slot) = &slot {
            self.running.remove(slot);
        }
        self.take_in(slot, outcome)
    }

    fn take_in(&mut self, slot: Option<Slot>, outcome: Outcome) -> Done {
        let failed = matches!(&outcome, Outcome::Volumes(Err(_)) | Outcome::Sandbox(Err(_)));
        if let Some(slot) = slot {
            if failed {
                let tries = self.held.get(&slot).map_or(0, |(tries, _)| *tries) + 1;
                self.held.insert(slot, (tries, Instant::now() + board::tasks::backoff(tries, RETRY.0, RETRY.1)));
            } else {
                self.held.remove(&slot);
            }
        }
        match outcome {
            Outcome::Volumes(Ok(mounts)) => {
                self.mounts = Some(Arc::new(mounts));
                Done::Volumes(Ok(()))
            }
            Outcome::Volumes(Err(error)) => Done::Volumes(Err(error)),
            Outcome::Sandbox(outcome) => Done::Sandbox(outcome),
            Outcome::Started { container, outcome } => Done::Started { container, outcome },
            Outcome::Other => Done::Other,
        }
    }

    /// A container could not be started: when it is tried again.
    pub fn next_try(&mut self, container: &str, problem: Problem, now: Timestamp) -> Problem {
        let tries = self.tries.entry(container.to_owned()).or_default();
        *tries = tries.saturating_add(1);
        let wait = TRY.0.saturating_mul(1 << (*tries - 1).min(5)).min(TRY.1);
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO);
        let retry = problem.retry.or_else(|| now.checked_add(wait).ok());
        Problem { retry, ..problem }
    }

    /// It was started.
    pub fn forget_tries(&mut self, container: &str) {
        self.tries.remove(container);
    }

    /// The pod is looked at again then.
    pub fn try_later(&mut self, after: Duration) {
        self.later = Some(Instant::now() + after);
    }

    /// When something that failed may be tried again.
    pub fn retry(&self) -> Option<Instant> {
        let now = Instant::now();
        self.held.values().map(|(_, until)| *until).chain(self.later).filter(|at| *at > now).min()
    }

    /// Ends everything, and waits for that.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn run(shared: &Shared, pod: &Arc<Pod>, mounts: &PodMounts, piece: Piece) -> Outcome {
    let runtime = &shared.runtime;
    match piece {
        Piece::Volumes => {
            let prepared = shared.volumes.prepare(pod).await;
            if let Err(error) = &prepared {
                shared.recorder.pod(pod, Type::Warning, error.reason(), error.to_string(), None);
            }
            Outcome::Volumes(prepared)
        }
        Piece::Sandbox => Outcome::Sandbox(runtime.create_sandbox(pod).await),
        Piece::RemoveSandbox => {
            later_if(runtime.remove_sandbox(&PodKey::of(pod)).await, pod, "its network was not taken away").await
        }
        Piece::Start { container, kind, attempt } => {
            let outcome = Box::pin(runtime.start(pod, mounts, &container, kind, attempt)).await;
            Outcome::Started { container, outcome: outcome.map(drop) }
        }
        Piece::Kill { id, container, reason, message, grace_s, is_due } => {
            let why = Why { reason, message: &message, is_due };
            let killed = runtime.kill(pod, &id, &container, why, grace_s).await;
            later_if(killed, pod, "a container was not stopped").await
        }
        Piece::Resize { id, container, resources } => {
            let resized = runtime.resize(pod, &id, &container, *resources).await;
            later_if(resized, pod, "the limits of a container were not changed").await
        }
        Piece::Remove { id } => later_if(runtime.remove(&id).await, pod, "an ended container was not removed").await,
    }
}

/// What failed is not tried again at once.
async fn later_if(outcome: Result<(), Problem>, pod: &Pod, what: &str) -> Outcome {
    if let Err(problem) = outcome {
        tracing::warn!(pod = %PodKey::of(pod), problem = problem.message, "{what}");
        tokio::time::sleep(FAILED).await;
    }
    Outcome::Other
}
