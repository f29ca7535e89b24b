//! The pods of this node as others see them: the kubelet's API, eviction, the node's status, commands on the board.
//!
//! Always true: a view is replaced whole by the worker it is of, so that a reader never waits and never sees half of it.
//!
//! Elsewhere: who changes pods (`worker`, `manager`).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use container_engine::{
    container::{ContainerId, RemoveOptions},
    engine::Engine,
};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    model::{Instance, Life, Observed},
    spec::sandbox_id,
};
use crate::{
    housekeeping::{
        eviction::{self, Done},
        rank::{Candidate, ContainerUse, VolumeUse},
    },
    object::is_static,
    server::{self, Instances, NoNetwork, VolumeDir},
    volume::Volumes,
};

/// One pod as it is now.
#[derive(Debug, Clone)]
pub struct View {
    /// As the API has it, with the status as it is known here.
    pub pod: Arc<Pod>,
    /// What the engine has of it.
    pub observed: Arc<Observed>,
    /// The uid of its mirror in the API, for a static pod.
    pub mirror: Option<String>,
    /// Nothing of it will run any more.
    pub is_over: bool,
}

/// What can be asked of the pods' manager.
pub(super) enum Request {
    /// End a pod for good; answered when it has ended.
    Evict { uid: String, reason: String, message: String, grace: Duration, done: oneshot::Sender<bool> },
    /// End all pods of the cluster and forget them; answered when they have ended.
    EndAll { done: oneshot::Sender<()> },
}

/// All pods; cheap to clone.
#[derive(Clone)]
pub struct Pods(Arc<Inner>);

struct Inner {
    views: RwLock<BTreeMap<String, View>>,
    /// Counts changes of the set.
    changes: watch::Sender<u64>,
    requests: mpsc::Sender<Request>,
    engine: Engine,
    volumes: Volumes,
}

/// Requests that may wait.
const REQUESTS: usize = 16;

impl Pods {
    /// None yet; the other end is the manager's.
    pub(super) fn new(engine: Engine, volumes: Volumes) -> (Self, mpsc::Receiver<Request>) {
        let (requests, taken) = mpsc::channel(REQUESTS);
        let changes = watch::Sender::new(0);
        (Self(Arc::new(Inner { views: RwLock::default(), changes, requests, engine, volumes })), taken)
    }

    /// Every pod, by uid.
    pub fn all(&self) -> Vec<View> {
        self.read().values().cloned().collect()
    }

    /// The pod of that uid.
    pub fn get(&self, uid: &str) -> Option<View> {
        self.read().get(uid).cloned()
    }

    /// The pod of that name; the one that still runs where a predecessor has not gone yet.
    pub fn named(&self, namespace: &str, name: &str) -> Option<View> {
        let views = self.read();
        let is_it = |view: &&View| {
            let meta = &view.pod.metadata;
            meta.namespace.as_deref().unwrap_or_default() == namespace && meta.name.as_deref() == Some(name)
        };
        views.values().filter(is_it).min_by_key(|view| view.is_over).cloned()
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Pods that are not over.
    pub(super) fn active(&self) -> Vec<Arc<Pod>> {
        self.read().values().filter(|view| !view.is_over).map(|view| view.pod.clone()).collect()
    }

    pub(super) fn put(&self, uid: &str, view: View) {
        self.0.views.write().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), view);
        self.0.changes.send_modify(|count| *count += 1);
    }

    pub(super) fn remove(&self, uid: &str) {
        self.0.views.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.0.changes.send_modify(|count| *count += 1);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, View>> {
        self.0.views.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a pod for good; whether it has ended.
    pub async fn evict(&self, uid: &str, reason: &str, message: String, grace: Duration) -> bool {
        let (done, ended) = oneshot::channel();
        let request = Request::Evict { uid: uid.to_owned(), reason: reason.to_owned(), message, grace, done };
        self.0.requests.send(request).await.is_ok() && ended.await.unwrap_or(false)
    }

    /// Ends all pods but those of manifests, and forgets them: the board leaves its cluster.
    pub async fn end_all(&self) {
        let (done, ended) = oneshot::channel();
        if self.0.requests.send(Request::EndAll { done }).await.is_ok() {
            // Where the manager ends, so do they.
            let _ = ended.await;
        }
    }

    async fn candidate(&self, view: View) -> Candidate {
        let pod = &view.pod;
        let spec = pod.spec.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut containers = Vec::new();
        let mut pids = 0;
        for instance in view.observed.instances.iter().filter(|it| it.is_running()) {
            let Ok(id) = instance.id.parse::<ContainerId>() else { continue };
            let stats = self.0.engine.containers().stats(&id, true).await.ok();
            pids += stats.as_ref().map_or(0, |stats| stats.cgroup.pids.current);
            let declared = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let declared = declared.into_iter().find(|it| it.name == instance.name);
            let amount = |asked: &dyn Fn(&k8s_openapi::api::core::v1::Container) -> i64| {
                declared.map_or(0, |it| u64::try_from(asked(it)).unwrap_or(0))
            };
            let limit = amount(&|it| super::decide::qos::limit(it, "ephemeral-storage").value());
            containers.push(ContainerUse {
                name: instance.name.clone(),
                memory: stats.as_ref().map(|stats| stats.cgroup.memory.working_set),
                memory_request: amount(&|it| super::decide::qos::request(it, "memory").value()),
                disk: stats.as_ref().and_then(|stats| stats.disk),
                disk_request: amount(&|it| super::decide::qos::request(it, "ephemeral-storage").value()),
                disk_limit: (limit > 0).then_some(limit),
            });
        }
        let usage = self.0.volumes.usage(pod).await;
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
            let empty = volume.empty_dir.as_ref()?;
            let limit = empty.size_limit.as_ref().and_then(super::decide::quantity::Amount::of);
            Some(VolumeUse {
                name: volume.name.clone(),
                used: usage.volumes.get(&volume.name).map_or(0, |it| it.bytes),
                limit: limit.and_then(|it| u64::try_from(it.value()).ok()).filter(|limit| *limit > 0),
            })
        });
        let priority = spec.priority.unwrap_or(0);
        Candidate {
            uid,
            priority,
            critical: is_static(pod) || priority >= super::decide::qos::CRITICAL,
            containers,
            volumes: volumes.collect(),
            inodes: Some(usage.volumes.values().map(|it| it.inodes).sum()),
            pids,
        }
    }
}

impl eviction::Pods for Pods {
    fn candidates(&self) -> Done<'_, Vec<Candidate>> {
        Box::pin(async {
            let mut found = Vec::new();
            for view in self.all().into_iter().filter(|view| !view.is_over) {
                found.push(self.candidate(view).await);
            }
            found
        })
    }

    fn clear_ended(&self) -> Done<'_, ()> {
        Box::pin(async {
            for view in self.all() {
                for instance in superseded(&view.observed) {
                    let Ok(id) = instance.id.parse::<ContainerId>() else { continue };
                    if let Err(error) = self.0.engine.containers().remove(&id, RemoveOptions::default()).await {
                        tracing::debug!(%error, id = instance.id, "an ended container was not cleared away");
                    }
                }
            }
        })
    }

    fn evict<'a>(&'a self, uid: &'a str, message: String, grace: Duration) -> Done<'a, bool> {
        Box::pin(Pods::evict(self, uid, crate::housekeeping::rank::REASON, message, grace))
    }
}

/// Ended instances that a newer one has taken the place of.
fn superseded(observed: &Observed) -> impl Iterator<Item = &Instance> {
    observed.instances.iter().filter(|instance| {
        let is_over = matches!(instance.life, Life::Exited(_));
        is_over && observed.latest(&instance.name).is_some_and(|latest| latest.id != instance.id)
    })
}

impl server::Directory for Pods {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().values().map(|view| view.pod.clone()).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.named(namespace, name).map(|view| view.pod)
    }

    fn is_uid_of(&self, pod: &Pod, uid: &str) -> bool {
        let own = pod.metadata.uid.as_deref();
        own == Some(uid) || own.and_then(|own| self.get(own)?.mirror).as_deref() == Some(uid)
    }

    fn instances(&self, uid: &str, container: &str) -> Instances {
        let Some(view) = self.get(uid) else { return Instances::default() };
        let mut all: Vec<&Instance> = view.observed.of(container).filter(|it| is_started(&it.life)).collect();
        all.sort_by_key(|instance| std::cmp::Reverse((instance.attempt, instance.created)));
        let told = |instance: &&Instance| {
            let id = instance.id.parse().ok()?;
            Some(server::Instance { id, attempt: instance.attempt, running: instance.is_running() })
        };
        Instances { last: all.first().and_then(told), previous: all.get(1).and_then(told) }
    }

    fn network(&self, uid: &str) -> Result<Option<PathBuf>, NoNetwork> {
        let view = self.get(uid).ok_or(NoNetwork)?;
        let sandbox = view.observed.sandbox.as_ref().filter(|sandbox| sandbox.ready).ok_or(NoNetwork)?;
        if sandbox.host_network {
            return Ok(None);
        }
        let attached = self.0.engine.networks().attached(&sandbox_id(uid)).ok_or(NoNetwork)?;
        attached.netns.map(Some).ok_or(NoNetwork)
    }

    fn volumes(&self, uid: &str) -> Vec<VolumeDir> {
        let Some(view) = self.get(uid) else { return Vec::new() };
        let namespace = view.pod.metadata.namespace.clone().unwrap_or_default();
        let dirs = self.0.volumes.dirs(&view.pod).into_iter();
        let told =
            dirs.map(|(name, path, claim)| VolumeDir { name, path, claim: claim.map(|it| (namespace.clone(), it)) });
        told.collect()
    }

    fn problem(&self) -> Option<String> {
        self.0.requests.is_closed().then(|| "the pods' manager has ended".to_owned())
    }
}

fn is_started(life: &Life) -> bool {
    match life {
        Life::Running { .. } => true,
        Life::Exited(exited) => exited.started.is_some(),
        Life::Created | Life::Unknown => false,
    }
}

/// A pod with another status.
pub(super) fn with_status(pod: &Pod, status: PodStatus) -> Arc<Pod> {
    Arc::new(Pod { status: Some(status), ..pod.clone() })
}
