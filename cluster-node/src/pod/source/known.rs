//! What is known of the node's pods: those the API server has bound to it, mirrors of its static pods, the static pods
//! themselves.
//!
//! Always true:
//! - A pod is its uid: another pod of the same name is another pod, and of two the one heard of last is there.
//! - A mirror is never a pod to run; a static pod's uid is that of its manifest, its mirror's uid is the API server's.
//!
//! Elsewhere: what is done with it (`pod::source`, `pod::status_manager`).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use tokio::sync::watch;

use super::{Change, check};

/// Hash of the manifest; the same on the static pod and on its mirror.
pub const HASH: &str = "kubernetes.io/config.hash";
/// On a mirror: the hash of the static pod it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// `file` or `api`.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// When this node first saw the pod.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// Pods at the most: a node has 110. More are not taken, whoever sends them.
pub const MOST: usize = 4096;

/// Namespace and name.
pub type FullName = (String, String);

/// A cheap clone; all see the same.
#[derive(Clone)]
pub struct Known(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    version: watch::Sender<u64>,
}

impl Default for Known {
    fn default() -> Self {
        Self(Arc::new(Inner { table: Mutex::default(), version: watch::Sender::new(0) }))
    }
}

impl Known {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change leaves the table whole.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table and wakes whoever waits.
    pub(super) fn change<T>(&self, how: impl FnOnce(&mut Table) -> T) -> T {
        let outcome = how(&mut self.table());
        self.0.version.send_modify(|version| *version += 1);
        outcome
    }

    /// The pod of this uid as last heard of: the API server's, or a static pod.
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        let table = self.table();
        table.bound.get(uid).or_else(|| table.statics.get(uid)).or_else(|| table.leaving.get(uid)).cloned()
    }

    /// What the API server has of the pod of this uid: itself, or the mirror of a static pod.
    pub fn reported(&self, uid: &str) -> Option<Arc<Pod>> {
        let table = self.table();
        table.bound.get(uid).or_else(|| table.mirror_of(uid)).cloned()
    }

    /// The mirror of a static pod, where there is one of its present manifest.
    pub fn mirror_of(&self, uid: &str) -> Option<Arc<Pod>> {
        self.table().mirror_of(uid).cloned()
    }

    /// The uid that runs here for a uid of the API server: another one where that is a mirror's.
    pub fn running_uid(&self, uid: &str) -> String {
        let table = self.table();
        let mirror = table.mirrors.values().find(|pod| pod.metadata.uid.as_deref() == Some(uid));
        let hash = mirror.and_then(|pod| annotation(pod, MIRROR));
        let shown = hash.and_then(|hash| table.of_hash(hash)).and_then(|pod| pod.metadata.uid.clone());
        shown.unwrap_or_else(|| uid.to_owned())
    }

    /// Whether it is a static pod's, one that is ending included.
    pub fn is_static(&self, uid: &str) -> bool {
        let table = self.table();
        table.statics.contains_key(uid) || table.leaving.contains_key(uid)
    }

    /// Whether the API server has said, since this process started, all that it has for this node.
    pub fn is_listed(&self) -> bool {
        self.table().is_listed
    }

    /// Whether everything is known: what the table does not have is no pod of this node.
    pub fn is_complete(&self) -> bool {
        let table = self.table();
        table.is_listed && table.is_scanned
    }

    /// Moves with every change of what is known.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Nothing of a static pod that was taken away is left: now its mirror may go.
    pub fn ended(&self, uid: &str) {
        if self.table().leaving.contains_key(uid) {
            self.change(|table| table.leaving.remove(uid));
        }
    }

    /// Static pods, mirrors, and the names whose mirrors stay as they are.
    pub(super) fn for_mirrors(&self) -> Mirroring {
        let table = self.table();
        Mirroring {
            statics: table.statics.values().cloned().collect(),
            mirrors: table.mirrors.values().cloned().collect(),
            held: table.leaving.values().map(|pod| full_name(pod)).collect(),
        }
    }

    /// All pods to run.
    pub(super) fn all(&self) -> Vec<(Arc<Pod>, bool)> {
        let table = self.table();
        let statics = table.statics.values().map(|pod| (pod.clone(), true));
        statics.chain(table.bound.values().map(|pod| (pod.clone(), false))).collect()
    }
}

/// What mirrors are decided on.
#[derive(Debug, Default, Clone)]
pub(super) struct Mirroring {
    pub statics: Vec<Arc<Pod>>,
    pub mirrors: Vec<Arc<Pod>>,
    pub held: BTreeSet<FullName>,
}

/// What something new means: to be kept, forgotten and told.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub put: Vec<Pod>,
    pub remove: Vec<String>,
    pub tell: Vec<Change>,
}

impl Delta {
    fn set(&mut self, pod: &Arc<Pod>, is_static: bool) {
        self.tell.push(Change::Set { pod: pod.clone(), is_static });
    }

    fn gone(&mut self, uid: &str) {
        self.tell.push(Change::Gone { uid: uid.to_owned() });
    }
}

/// The table itself: plain data, changed by one writer.
#[derive(Debug, Default)]
pub(super) struct Table {
    bound: BTreeMap<String, Arc<Pod>>,
    mirrors: BTreeMap<FullName, Arc<Pod>>,
    statics: BTreeMap<String, Arc<Pod>>,
    /// Static pods that were taken away and have not ended.
    leaving: BTreeMap<String, Arc<Pod>>,
    is_listed: bool,
    is_scanned: bool,
}

impl Table {
    fn of_hash(&self, hash: &str) -> Option<&Arc<Pod>> {
        self.statics.values().chain(self.leaving.values()).find(|pod| annotation(pod, HASH) == Some(hash))
    }

    fn mirror_of(&self, uid: &str) -> Option<&Arc<Pod>> {
        let pod = self.statics.get(uid).or_else(|| self.leaving.get(uid))?;
        self.mirrors.get(&full_name(pod)).filter(|mirror| annotation(mirror, MIRROR) == annotation(pod, HASH))
    }

    /// The cache, at the start.
    pub(super) fn cached(&mut self, pods: Vec<Pod>, node: &str) -> Delta {
        let mut delta = Delta::default();
        for pod in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match check::received(pod, node) {
                Ok(pod) => self.take(pod, &mut delta),
                Err(problem) => {
                    tracing::warn!(uid, %problem, "a cached pod is dropped");
                    delta.remove.push(uid);
                }
            }
        }
        delta.put.clear();
        delta
    }

    /// All that the API server has.
    pub(super) fn listed(&mut self, pods: Vec<Pod>, node: &str) -> Delta {
        let mut delta = Delta::default();
        let pods: Vec<Pod> = pods.into_iter().filter_map(|pod| trusted(pod, node)).collect();
        let there: BTreeSet<&String> = pods.iter().filter_map(|pod| pod.metadata.uid.as_ref()).collect();
        let lost: Vec<String> = self.bound.keys().filter(|uid| !there.contains(uid)).cloned().collect();
        self.mirrors.retain(|_, pod| pod.metadata.uid.as_ref().is_some_and(|uid| there.contains(uid)));
        for uid in lost {
            self.drop_bound(&uid, &mut delta);
        }
        for pod in pods {
            self.take(pod, &mut delta);
        }
        self.is_listed = true;
        delta
    }

    /// One that is new or changed.
    pub(super) fn applied(&mut self, pod: Pod, node: &str) -> Delta {
        let mut delta = Delta::default();
        if let Some(pod) = trusted(pod, node) {
            self.take(pod, &mut delta);
        }
        delta
    }

    /// One that is gone.
    pub(super) fn deleted(&mut self, pod: &Pod) -> Delta {
        let mut delta = Delta::default();
        let Some(uid) = &pod.metadata.uid else { return delta };
        self.mirrors.retain(|_, mirror| mirror.metadata.uid.as_ref() != Some(uid));
        self.drop_bound(uid, &mut delta);
        delta
    }

    /// All static pods.
    pub(super) fn scanned(&mut self, pods: &[Arc<Pod>]) -> Delta {
        let mut delta = Delta::default();
        let there: BTreeMap<&str, &Arc<Pod>> =
            pods.iter().filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod))).collect();
        let lost: Vec<String> = self.statics.keys().filter(|uid| !there.contains_key(uid.as_str())).cloned().collect();
        for uid in lost {
            if let Some(pod) = self.statics.remove(&uid) {
                delta.gone(&uid);
                self.leaving.insert(uid, pod);
            }
        }
        for (uid, pod) in there {
            self.leaving.remove(uid);
            if self.statics.get(uid).is_some_and(|old| old.spec == pod.spec && is_same_meta(old, pod)) {
                continue;
            }
            self.statics.insert(uid.to_owned(), pod.clone());
            delta.set(pod, true);
        }
        self.is_scanned = true;
        delta
    }

    fn take(&mut self, pod: Pod, delta: &mut Delta) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let name = full_name(&pod);
        let pod = Arc::new(pod);
        if annotation(&pod, MIRROR).is_some() {
            if self.mirrors.len() < MOST || self.mirrors.contains_key(&name) {
                self.mirrors.insert(name, pod);
            }
            return;
        }
        let namesake = self.bound.iter().find(|(other, pod)| **other != uid && full_name(pod) == name);
        if let Some(old) = namesake.map(|(uid, _)| uid.clone()) {
            // Its deletion was missed.
            self.drop_bound(&old, delta);
        }
        let old = self.bound.get(&uid);
        if old.is_none() && self.bound.len() >= MOST {
            tracing::warn!(pod = ?name, "there are {MOST} pods on this node already: it is not taken");
            return;
        }
        let (is_news, is_kept) = old.map_or((true, true), |old| (is_news(old, &pod), is_to_keep(old, &pod)));
        if is_kept {
            delta.put.push((*pod).clone());
        }
        if is_news {
            delta.set(&pod, false);
        }
        self.bound.insert(uid, pod);
    }

    fn drop_bound(&mut self, uid: &str, delta: &mut Delta) {
        if self.bound.remove(uid).is_some() {
            delta.remove.push(uid.to_owned());
            delta.gone(uid);
        }
    }
}

/// What the API server sends is not believed blindly: names become paths here.
fn trusted(pod: Pod, node: &str) -> Option<Pod> {
    let name = full_name(&pod);
    let checked = check::received(pod, node);
    checked.map_err(|problem| tracing::warn!(pod = ?name, %problem, "a pod of the API server is not taken")).ok()
}

/// Whether the pod's worker has to hear of it: the node's own status coming back is no news.
fn is_news(old: &Pod, new: &Pod) -> bool {
    is_to_keep(old, new) || (phase(old) != phase(new) && is_terminal(phase(new)))
}

/// Whether the cache must have it: as before, but the disk is spared what the status manager keeps.
fn is_to_keep(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec || !is_same_meta(old, new) || others_conditions(old) != others_conditions(new)
}

fn is_same_meta(old: &Pod, new: &Pod) -> bool {
    let (old, new) = (&old.metadata, &new.metadata);
    old.labels == new.labels
        && old.annotations == new.annotations
        && old.generation == new.generation
        && old.deletion_timestamp == new.deletion_timestamp
        && old.deletion_grace_period_seconds == new.deletion_grace_period_seconds
        && old.finalizers == new.finalizers
        && old.owner_references == new.owner_references
}

fn others_conditions(pod: &Pod) -> Vec<&PodCondition> {
    let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.filter(|it| !crate::pod::status_manager::is_own(&it.type_)).collect()
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn is_terminal(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// An annotation of a pod.
pub(super) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Namespace and name of a pod.
pub(super) fn full_name(pod: &Pod) -> FullName {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

#[cfg(test)]
impl Known {
    /// As after a list of the API server.
    pub(in crate::pod) fn test_bound(&self, pods: Vec<Pod>, node: &str) {
        self.change(|table| table.listed(pods, node));
    }
}
