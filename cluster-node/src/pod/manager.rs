//! The manager: gives every pod that should be here a worker, and every pod that should not be an end.
//!
//! Always true:
//! - A uid whose pod has ended never runs again; one that was refused never runs at all.
//! - A static pod waits for its predecessor of the same name to be gone.
//! - What the engine has of pods that nobody knows is taken away only once every source has said what it has.
//!
//! Elsewhere: where pods come from (`source`), what a worker does (`worker`).

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use board::tasks::Context;
use container_engine::{
    engine::Engine,
    event::{self, Filter},
    owner::Owner,
};
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    decide::admission,
    model::{Desired, EndCause, Ending, PodKey},
    pods::Request,
    source::Change,
    worker::{End, Shared, Wake, Worker, rejected, timestamp},
};
use crate::event::Type;

/// Pods that are known, with what is needed to reach their workers.
struct Entry {
    key: PodKey,
    desired: watch::Sender<Desired>,
    wake: Arc<Wake>,
    phase: Phase,
    /// Its source has it no longer.
    vanished: bool,
}

impl Entry {
    fn new(key: PodKey, desired: Desired, phase: Phase) -> Self {
        Self { key, desired: watch::Sender::new(desired), wake: Arc::default(), phase, vanished: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its predecessor has not gone.
    Waiting,
    /// It has a worker.
    Working,
    /// It was not admitted.
    Refused,
    /// Nothing of it is left but its source's word.
    Ended,
}

/// The service.
pub struct Manager {
    shared: Arc<Shared>,
    engine: Engine,
    changes: mpsc::Receiver<Change>,
    requests: mpsc::Receiver<Request>,
    entries: BTreeMap<String, Entry>,
    workers: JoinSet<(String, End)>,
}

/// What happened.
enum Happened {
    Change(Option<Change>),
    Request(Option<Request>),
    Engine(Option<event::Next>),
    Objects(BTreeSet<String>),
    Ended(String, End),
    Stop,
}

impl Manager {
    pub(super) fn new(
        shared: Arc<Shared>,
        engine: Engine,
        changes: mpsc::Receiver<Change>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        Self { shared, engine, changes, requests, entries: BTreeMap::new(), workers: JoinSet::new() }
    }

    /// Until it is told to stop; pods go on.
    pub async fn run(mut self, context: Context) -> Result<(), Infallible> {
        let filter = Filter { kinds: vec![event::Kind::Container], ..Filter::default() };
        let mut events = self.engine.events().subscribe(filter, None);
        let objects = self.shared.objects.changes();
        loop {
            self.say(&context);
            let happened = tokio::select! {
                () = context.stop.cancelled() => Happened::Stop,
                change = self.changes.recv() => Happened::Change(change),
                request = self.requests.recv() => Happened::Request(request),
                next = events.next() => Happened::Engine(next),
                uids = objects.next() => Happened::Objects(uids),
                Some(ended) = self.workers.join_next() => match ended {
                    Ok((uid, end)) => Happened::Ended(uid, end),
                    Err(error) => {
                        tracing::error!(%error, "the worker of a pod ended by itself");
                        continue;
                    }
                },
            };
            match happened {
                Happened::Stop | Happened::Change(None) | Happened::Request(None) | Happened::Engine(None) => break,
                Happened::Change(Some(change)) => self.change(change, &context).await,
                Happened::Request(Some(request)) => self.request(request),
                Happened::Engine(Some(next)) => self.wake(&next),
                Happened::Objects(uids) => {
                    for entry in uids.iter().filter_map(|uid| self.entries.get(uid)) {
                        entry.wake.refresh.store(true, Ordering::Release);
                        entry.wake.look.notify_one();
                    }
                }
                Happened::Ended(uid, end) => self.ended(&uid, end, &context),
            }
        }
        context.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        Ok(())
    }

    fn say(&self, context: &Context) {
        let count = |phase| self.entries.values().filter(|entry| entry.phase == phase).count();
        context.healthy(format!("{} pods", count(Phase::Working) + count(Phase::Waiting)));
    }

    async fn change(&mut self, change: Change, context: &Context) {
        match change {
            Change::Set { pod, is_static } => self.set(pod, is_static, context),
            Change::Gone { uid } => self.gone(&uid),
            Change::Complete(_) => {
                if self.shared.known.is_complete() {
                    self.take_away_strangers(context).await;
                }
            }
        }
    }

    fn set(&mut self, pod: Arc<Pod>, is_static: bool, context: &Context) {
        let key = PodKey::of(&pod);
        let ending = self.ending_of(&pod, is_static);
        if let Some(entry) = self.entries.get(&key.uid) {
            match entry.phase {
                Phase::Waiting | Phase::Working => {
                    entry.desired.send_if_modified(|desired| {
                        let sooner = sooner(desired.ending.take(), ending);
                        let changed = *desired.pod != *pod || desired.ending != sooner;
                        *desired = Desired { pod, is_static, ending: sooner };
                        changed
                    });
                }
                // Nothing runs that would have to end first.
                Phase::Refused | Phase::Ended if ending.is_some() => self.shared.statuses.finish(&key.uid),
                Phase::Refused | Phase::Ended => {}
            }
            return;
        }
        let desired = Desired { pod: pod.clone(), is_static, ending };
        if desired.ending.is_none()
            && let Err(rejection) = self.admit(&pod)
        {
            self.refuse(key, desired, &rejection);
            return;
        }
        let phase = if is_static && self.has_predecessor(&key) { Phase::Waiting } else { Phase::Working };
        self.entries.insert(key.uid.clone(), Entry::new(key.clone(), desired, phase));
        if phase == Phase::Working {
            self.begin(&key.uid, context);
        }
    }

    /// Pods that have run here before were admitted then.
    fn admit(&self, pod: &Pod) -> Result<(), admission::Rejection> {
        let has_begun = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if has_begun {
            return Ok(());
        }
        admission::admit(pod, &self.shared.pods.active(), &(self.shared.ground)().admission)
    }

    fn refuse(&mut self, key: PodKey, desired: Desired, rejection: &admission::Rejection) {
        let now = timestamp(&self.shared.clock);
        let pod = desired.pod.clone();
        self.shared.recorder.pod(&pod, Type::Warning, &rejection.reason, rejection.message.clone(), None);
        let view = rejected(&self.shared, &pod, admission::rejected_status(&pod, rejection, now));
        self.shared.pods.put(&key.uid, view);
        self.entries.insert(key.uid.clone(), Entry::new(key, desired, Phase::Refused));
    }

    fn has_predecessor(&self, key: &PodKey) -> bool {
        let is_alive = |entry: &&Entry| matches!(entry.phase, Phase::Working | Phase::Waiting);
        let mut same = self.entries.values().filter(is_alive);
        same.any(|entry| entry.key.name == key.name && entry.key.namespace == key.namespace && entry.key.uid != key.uid)
    }

    fn begin(&mut self, uid: &str, context: &Context) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.phase = Phase::Working;
        let worker = Worker::new(self.shared.clone(), entry.desired.subscribe(), entry.wake.clone());
        let (uid, stop) = (uid.to_owned(), context.stop.clone());
        self.workers.spawn(async move {
            let end = worker.run(stop).await;
            (uid, end)
        });
    }

    fn ending_of(&self, pod: &Pod, is_static: bool) -> Option<Ending> {
        if is_static || pod.metadata.deletion_timestamp.is_none() {
            return None;
        }
        let since = timestamp(&self.shared.clock);
        Some(Ending { cause: EndCause::Deleted, since, grace_s: pod.metadata.deletion_grace_period_seconds })
    }

    /// The source has it no longer.
    fn gone(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.vanished = true;
        match entry.phase {
            Phase::Working => {
                let since = timestamp(&self.shared.clock);
                let grace_s = entry.desired.borrow().pod.metadata.deletion_grace_period_seconds;
                let ending = Ending { cause: EndCause::Deleted, since, grace_s };
                entry.desired.send_modify(|desired| desired.ending = sooner(desired.ending.take(), Some(ending)));
            }
            Phase::Waiting | Phase::Refused | Phase::Ended => {
                self.entries.remove(uid);
                self.shared.pods.remove(uid);
                self.shared.statuses.forget(uid);
            }
        }
    }

    fn ended(&mut self, uid: &str, end: End, context: &Context) {
        if end == End::Stopped {
            return;
        }
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.phase = Phase::Ended;
        let is_forgotten = entry.vanished;
        self.shared.pods.remove(uid);
        if is_forgotten {
            self.entries.remove(uid);
            self.shared.statuses.forget(uid);
        }
        let waiting: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.phase == Phase::Waiting && !self.has_predecessor(&entry.key))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in waiting {
            self.begin(&uid, context);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Evict { uid, reason, message, grace, done } => self.evict(uid, reason, message, grace, done),
            Request::EndAll { done } => self.end_all(done),
        }
    }

    /// As if they were no longer wanted by anybody.
    fn end_all(&mut self, done: oneshot::Sender<()>) {
        let is_static = |entry: &Entry| entry.desired.borrow().is_static;
        let all: Vec<String> =
            self.entries.iter().filter(|(_, entry)| !is_static(entry)).map(|(uid, _)| uid.clone()).collect();
        for uid in &all {
            self.gone(uid);
        }
        let shared = self.shared.clone();
        self.workers.spawn(async move {
            let mut changes = shared.pods.changes();
            let wait = async {
                while all.iter().any(|uid| shared.pods.get(uid).is_some()) {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            };
            if tokio::time::timeout(EVICTED_WITHIN, wait).await.is_err() {
                tracing::warn!("pods did not end in time");
            }
            if let Err(error) = shared.objects.cache().change_pods(&[], &all).await {
                tracing::warn!(%error, "pods were not forgotten");
            }
            // Who asked may have gone.
            let _ = done.send(());
            (String::new(), End::Stopped)
        });
    }

    fn evict(&mut self, uid: String, reason: String, message: String, grace: Duration, done: oneshot::Sender<bool>) {
        let Some(entry) = self.entries.get_mut(&uid).filter(|entry| entry.phase == Phase::Working) else {
            // Who asked may have gone.
            let _ = done.send(false);
            return;
        };
        let (pod, is_static) = {
            let desired = entry.desired.borrow();
            (desired.pod.clone(), desired.is_static)
        };
        if is_static {
            let _ = done.send(false);
            return;
        }
        self.shared.recorder.pod(&pod, Type::Warning, &reason, message.clone(), None);
        let ending = Ending {
            cause: EndCause::Node { reason, message },
            since: timestamp(&self.shared.clock),
            grace_s: i64::try_from(grace.as_secs()).ok(),
        };
        entry.desired.send_modify(|desired| desired.ending = sooner(desired.ending.take(), Some(ending)));
        self.workers.spawn(wait_for_end(self.shared.clone(), uid, done));
    }

    fn wake(&self, next: &event::Next) {
        match next {
            event::Next::Event(event) => {
                let Owner::Pod(uid) = &event.owner else { return };
                if let Some(entry) = self.entries.get(uid) {
                    entry.wake.look.notify_one();
                }
            }
            event::Next::Missed(_) => self.entries.values().for_each(|entry| entry.wake.look.notify_one()),
        }
    }

    /// Pods of the engine and folders of volumes that no source knows: they went while nobody looked.
    async fn take_away_strangers(&mut self, context: &Context) {
        let known: BTreeSet<String> = self.entries.keys().cloned().collect();
        for key in self.shared.runtime.observed_pods() {
            if known.contains(&key.uid) {
                continue;
            }
            tracing::info!(pod = %key, "a pod that is no longer wanted is taken away");
            let mut pod = Pod::default();
            pod.metadata.name = Some(key.name.clone());
            pod.metadata.namespace = Some(key.namespace.clone());
            pod.metadata.uid = Some(key.uid.clone());
            let ending = Ending { cause: EndCause::Deleted, since: timestamp(&self.shared.clock), grace_s: None };
            let desired = Desired { pod: Arc::new(pod), is_static: false, ending: Some(ending) };
            let entry = Entry::new(key.clone(), desired, Phase::Working);
            self.entries.insert(key.uid.clone(), Entry { vanished: true, ..entry });
            self.begin(&key.uid, context);
        }
        let known: BTreeSet<String> = self.entries.keys().cloned().collect();
        for uid in self.shared.volumes.orphans(&known).await {
            if let Err(error) = self.shared.volumes.teardown(&uid).await {
                tracing::warn!(uid, error = %board::tasks::chain(&error), "volumes of a pod that is gone were not taken away");
            }
        }
    }
}

/// Longest wait for an evicted pod.
const EVICTED_WITHIN: Duration = Duration::from_secs(600);

async fn wait_for_end(shared: Arc<Shared>, uid: String, done: oneshot::Sender<bool>) -> (String, End) {
    let mut changes = shared.pods.changes();
    let wait = async {
        while shared.pods.get(&uid).is_some_and(|view| !view.is_over) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    let ended = tokio::time::timeout(EVICTED_WITHIN, wait).await.is_ok();
    // Who asked may have gone.
    let _ = done.send(ended);
    (uid, End::Stopped)
}

/// A pod may only end sooner than was said before, and what ended it first stays the cause, but that a deletion follows.
fn sooner(before: Option<Ending>, new: Option<Ending>) -> Option<Ending> {
    let (Some(before), Some(new)) = (before.clone(), new.clone()) else { return new.or(before) };
    let cause = if new.cause == EndCause::Deleted { new.cause } else { before.cause };
    let grace_s = match (before.grace_s, new.grace_s) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Some(Ending { cause, since: before.since, grace_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_comes_only_sooner() {
        let at = |s| jiff::Timestamp::from_second(s).unwrap();
        let deleted = |s, grace_s| Ending { cause: EndCause::Deleted, since: at(s), grace_s };
        let evicted = Ending {
            cause: EndCause::Node { reason: "Evicted".into(), message: "m".into() },
            since: at(5),
            grace_s: Some(1),
        };
        assert_eq!(sooner(None, Some(deleted(1, None))), Some(deleted(1, None)));
        assert_eq!(sooner(Some(deleted(1, Some(30))), Some(deleted(9, Some(5)))), Some(deleted(1, Some(5))));
        assert_eq!(sooner(Some(deleted(1, Some(5))), Some(deleted(9, Some(30)))), Some(deleted(1, Some(5))));
        assert_eq!(sooner(Some(deleted(1, Some(5))), None), Some(deleted(1, Some(5))));
        assert_eq!(sooner(Some(evicted.clone()), None), Some(evicted.clone()));
        assert_eq!(sooner(Some(evicted), Some(deleted(9, Some(30)))).unwrap(), deleted(5, Some(1)));
    }
}
