//! The book of statuses: what is to be told of which pod, what was taken, what is on the disk; pure but for the store's
//! batches.
//!
//! Always true:
//! - Of one pod at most one request is on its way.
//! - What the API server made of a status that it took is not argued with; what somebody else made of it is.
//!
//! Elsewhere: who sends (`send`), who writes (`status_manager`).

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use board::tasks::backoff;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::state::{Batch, Entity, StateError};
use tokio::time::Instant;

use super::{normal::normal, patch::patch, send::Answer};
use crate::pod::{
    model::PodKey,
    source::{Known, MOST},
};

/// First and longest wait after no answer, and after a refusal.
const LATER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const REFUSED: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Between two times that the same status is sent: somebody else may want something else.
const AGAIN: Duration = Duration::from_secs(10);

/// On the disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    namespace: String,
    name: String,
    is_static: bool,
    status: PodStatus,
}

impl Entity for Kept {
    const TREE: &'static str = "node-pod-status";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Entry {
    kept: Kept,
    /// Grows with each status; 0 before the first.
    version: u64,
    stored: u64,
    /// The version that the API server has.
    told: u64,
    /// What it made of that.
    echo: Option<Echo>,
    is_on_its_way: bool,
    is_finished: bool,
    is_refused: bool,
    tries: u32,
    until: Option<Instant>,
}

#[derive(Debug)]
struct Echo {
    resource_version: Option<u64>,
    status: PodStatus,
}

/// A batch, and the versions of the pods in it.
pub(super) type Unsaved = (Batch, Vec<(String, u64)>);

/// A request.
#[derive(Debug)]
pub(super) struct Work {
    /// Of the pod here.
    uid: String,
    /// Of the pod there.
    pub target: PodKey,
    pub task: Task,
    version: u64,
}

#[derive(Debug, PartialEq)]
pub(super) enum Task {
    Patch(Value),
    Delete,
}

/// All pods with a status.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: BTreeMap<String, Entry>,
    /// Records to be removed from the disk.
    dropped: Vec<String>,
}

impl Book {
    /// From the disk.
    pub(super) fn of(kept: BTreeMap<String, Kept>) -> Self {
        let entry = |kept| Entry { kept, version: 1, stored: 1, ..Entry::default() };
        let entries = kept.into_iter().map(|(uid, kept)| (uid, entry(kept))).collect();
        Self { entries, dropped: Vec::new() }
    }

    /// What holds from now on, and whether it is new.
    pub(super) fn set(&mut self, pod: &Pod, is_static: bool, status: PodStatus) -> (PodStatus, bool) {
        let key = PodKey::of(pod);
        let is_full = self.entries.len() >= 2 * MOST;
        let entry = self.entries.get_mut(&key.uid);
        let before = entry.as_ref().filter(|it| it.version > 0).map(|it| &it.kept.status);
        let status = normal(pod, before, status);
        if before == Some(&status) {
            return (status, false);
        }
        let kept = Kept { namespace: key.namespace, name: key.name, is_static, status: status.clone() };
        match entry {
            Some(entry) => {
                entry.kept = kept;
                entry.version += 1;
                (entry.tries, entry.until, entry.is_refused) = (0, None, false);
            }
            // More than any node has: the source takes no more pods either.
            None if is_full => return (status, false),
            None => _ = self.entries.insert(key.uid, Entry { kept, version: 1, ..Entry::default() }),
        }
        (status, true)
    }

    pub(super) fn status(&self, uid: &str) -> Option<PodStatus> {
        self.entries.get(uid).filter(|it| it.version > 0).map(|it| it.kept.status.clone())
    }

    pub(super) fn kept(&self, uid: &str) -> Option<(Kept, u64)> {
        self.entries.get(uid).filter(|it| it.stored < it.version).map(|it| (it.kept.clone(), it.version))
    }

    pub(super) fn stored(&mut self, uid: &str, version: u64) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.stored = entry.stored.max(version);
        }
    }

    /// Nothing of it is left on this node. `pod` is what is known of it, where no status was ever set.
    pub(super) fn finish(&mut self, uid: &str, pod: Option<&Pod>) {
        if let Some(entry) = self.entries.get_mut(uid) {
            (entry.is_finished, entry.until) = (true, None);
        } else if let Some(pod) = pod {
            let key = PodKey::of(pod);
            let kept = Kept { namespace: key.namespace, name: key.name, ..Kept::default() };
            self.entries.insert(uid.to_owned(), Entry { kept, is_finished: true, ..Entry::default() });
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        if self.entries.remove(uid).is_some_and(|it| it.version > 0) {
            self.dropped.push(uid.to_owned());
        }
    }

    /// Forgets pods that are no more.
    pub(super) fn sweep(&mut self, known: &Known) {
        let lost: Vec<String> = self.entries.keys().filter(|uid| known.get(uid).is_none()).cloned().collect();
        for uid in &lost {
            self.forget(uid);
        }
    }

    /// What is not on the disk, and the versions that will be.
    pub(super) fn unsaved(&mut self) -> Result<Option<Unsaved>, StateError> {
        let mut batch = Batch::default();
        let mut versions = Vec::new();
        for uid in &self.dropped {
            batch.delete::<Kept>(uid);
        }
        for (uid, entry) in self.entries.iter().filter(|(_, it)| it.stored < it.version) {
            batch.put(uid, &entry.kept)?;
            versions.push((uid.clone(), entry.version));
        }
        let is_something = !self.dropped.is_empty() || !versions.is_empty();
        self.dropped.clear();
        Ok(is_something.then_some((batch, versions)))
    }

    pub(super) fn nothing_on_its_way(&mut self) {
        self.entries.values_mut().for_each(|it| it.is_on_its_way = false);
    }

    /// The next request, if there is one now.
    pub(super) fn next(&mut self, known: &Known, now: Instant) -> Option<Work> {
        let mut over = Vec::new();
        let mut found = None;
        for (uid, entry) in &mut self.entries {
            if entry.is_on_its_way || entry.until.is_some_and(|until| until > now) {
                continue;
            }
            if entry.kept.is_static && entry.is_finished {
                over.push(uid.clone());
                continue;
            }
            // A static pod whose mirror is not there yet, or a pod that the API server has no more.
            let Some(pod) = known.reported(uid) else { continue };
            if let Some(task) = entry.task(&pod) {
                entry.is_on_its_way = true;
                found = Some(Work { uid: uid.clone(), target: PodKey::of(&pod), task, version: entry.version });
                break;
            }
        }
        for uid in &over {
            self.forget(uid);
        }
        found
    }

    /// Takes note of an answer; a refusal that is new is given back.
    pub(super) fn answered(&mut self, work: &Work, answer: Answer, now: Instant) -> Option<String> {
        let entry = self.entries.get_mut(&work.uid)?;
        entry.is_on_its_way = false;
        let wait = |entry: &mut Entry, (first, longest): (Duration, Duration)| {
            entry.tries += 1;
            // A newer status does not wait for an older one's troubles.
            if entry.version == work.version {
                entry.until = Some(now + backoff(entry.tries, first, longest));
            }
        };
        match answer {
            Answer::Taken(pod) => {
                (entry.tries, entry.is_refused) = (0, false);
                if entry.told == work.version {
                    entry.until = Some(now + AGAIN);
                }
                entry.told = work.version;
                let resource_version = number(&pod);
                entry.echo = Some(Echo { resource_version, status: pod.status.unwrap_or_default() });
                None
            }
            // Another mirror will come.
            Answer::Gone if entry.kept.is_static => {
                wait(entry, LATER);
                None
            }
            Answer::Gone => {
                self.forget(&work.uid);
                None
            }
            Answer::Later(_) => {
                wait(entry, LATER);
                None
            }
            Answer::Refused(problem) => {
                wait(entry, REFUSED);
                (!std::mem::replace(&mut entry.is_refused, true)).then_some(problem)
            }
        }
    }

    /// Until a request is due that waits for its time.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let waits = self.entries.values().filter(|it| !it.is_on_its_way).filter_map(|it| it.until);
        waits.filter(|until| *until > now).map(|until| until - now).min()
    }

    /// Pods with something to tell, and all.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let waiting = self.entries.values().filter(|it| it.told < it.version || it.is_finished || it.is_on_its_way);
        (waiting.count(), self.entries.len())
    }
}

impl Entry {
    /// What is to be asked of the API server, which has the pod as it is here.
    fn task(&mut self, pod: &Pod) -> Option<Task> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.version > 0
            && let Some(patch) = self.patch(pod, uid)
        {
            return Some(Task::Patch(patch));
        }
        self.told = self.version;
        let is_deleted = pod.metadata.deletion_timestamp.is_some();
        (self.is_finished && is_deleted && !self.kept.is_static).then_some(Task::Delete)
    }

    fn patch(&self, pod: &Pod, uid: &str) -> Option<Value> {
        let nothing = PodStatus::default();
        let heard = pod.status.as_ref().unwrap_or(&nothing);
        let is_newer = |echo: &&Echo| echo.resource_version >= number(pod);
        let base = self.echo.as_ref().filter(is_newer).map_or(heard, |echo| &echo.status);
        let patch = patch(uid, base, &self.kept.status)?;
        let is_the_servers = self.told == self.version && self.echo.as_ref().is_some_and(|it| it.status == *base);
        (!is_the_servers).then_some(patch)
    }
}

fn number(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_ref()?.parse().ok()
}
