//! What the node is to run: pods of the API server, static pods of its manifests, and what the cache has of the former when
//! there is no API server.
//!
//! Always true:
//! - A pod is in the cache before it is told, and out of it before its end is told.
//! - Static pods and the cache are told first, so that a board without a network runs what it ran.
//! - Only the API server's own list makes a cached pod disappear; what it deleted is told by uid.
//!
//! Elsewhere: who runs them (`pod::manager`), how their status goes back (`pod::status_manager`).

mod check;
mod defaults;
mod folder;
mod known;
mod manifest;
mod mirror;
#[cfg(test)]
mod tests;
mod yaml;

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use board::{clock::Clock, tasks::Context};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Mutex, mpsc, watch};

use self::{
    folder::{Folder, Scan},
    known::Delta,
    mirror::Mirrors,
};
use crate::{
    api::{
        Api, Failure, failure,
        watch::{Event, Selection, reflect},
    },
    object::Cache,
    options::Options,
};

pub use check::Invalid;
pub use known::{FullName, HASH, Known, MIRROR, MOST, SEEN, SOURCE};
pub use manifest::{ManifestError, parse as parse_manifest};
pub(super) use mirror::at_once;

/// Changes on their way to the manager, and events on their way from the API server.
const QUEUE: usize = 64;

/// Where a pod comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// Files on this node.
    Manifests,
    /// What the API server had said before.
    Cache,
    /// The API server.
    Api,
}

/// A YAML or JSON document of somebody else's.
pub(crate) fn yaml(text: &str) -> Result<serde_json::Value, manifest::ManifestError> {
    yaml::read(text.as_bytes())
}

/// What is wanted has changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// This pod is wanted, as it is here.
    Set {
        /// The pod.
        pod: Arc<Pod>,
        /// From a manifest.
        is_static: bool,
    },
    /// The pod of this uid is wanted no more; there is nobody left to report to.
    Gone {
        /// Which.
        uid: String,
    },
    /// All of one origin has been told; may come again. Before that of the API server nobody knows that a container is an
    /// orphan: the cache may have been lost.
    Complete(Origin),
}

/// Nobody listens.
struct Deaf;

/// Cheap to clone.
#[derive(Clone)]
pub struct Source(Arc<Inner>);

struct Inner {
    api: Api,
    cache: Cache,
    clock: Clock,
    node: String,
    manifests: PathBuf,
    known: Known,
    desk: watch::Sender<Option<mpsc::Sender<Change>>>,
    outbox: Mutex<Outbox>,
}

/// What was not told yet: it outlives a run of the service, so that no end is forgotten.
#[derive(Default)]
struct Outbox {
    changes: VecDeque<Change>,
    complete: BTreeSet<Origin>,
}

impl Inner {
    /// Now, in an annotation.
    fn seen(&self) -> String {
        let us = self.clock.stamp().wall_us;
        jiff::Timestamp::from_microsecond(us).unwrap_or_default().to_string()
    }
}

/// A static pod with the time at which it was first seen.
fn seen_at(known: &Known, mut pod: Arc<Pod>, now: &str) -> Arc<Pod> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let before = known.get(&uid).and_then(|pod| known::annotation(&pod, SEEN).map(str::to_owned));
    let annotations = Arc::make_mut(&mut pod).metadata.annotations.get_or_insert_default();
    annotations.insert(SEEN.to_owned(), before.unwrap_or_else(|| now.to_owned()));
    pod
}

impl Source {
    /// Nothing happens before [`run`](Self::run).
    pub fn new(api: Api, cache: Cache, options: &Options, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            api,
            cache,
            clock,
            node: options.name.clone(),
            manifests: options.manifests.clone(),
            known: Known::default(),
            desk: watch::Sender::new(None),
            outbox: Mutex::default(),
        }))
    }

    /// What is wanted from now on, beginning with all there is. A later call takes over from the earlier.
    pub fn desired(&self) -> mpsc::Receiver<Change> {
        let (to, from) = mpsc::channel(QUEUE);
        self.0.desk.send_replace(Some(to));
        from
    }

    /// What is known of the node's pods.
    pub fn known(&self) -> Known {
        self.0.known.clone()
    }
}

impl Source {
    /// Follows all origins until it is told to stop.
    pub async fn run(self, context: Context) -> Result<(), SourceError> {
        let stop = context.stop.clone();
        tokio::select! {
            outcome = self.work(&context) => outcome,
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn work(&self, context: &Context) -> Result<(), SourceError> {
        let inner = &self.0;
        let (events_to, events) = mpsc::channel(QUEUE);
        let (scans_to, scans) = mpsc::channel(1);
        let folder = Folder::new(inner.manifests.clone(), inner.node.clone()).follow(scans_to);
        let mirrors = Mirrors::new(inner.api.client(), inner.node.clone(), inner.known.clone()).keep();
        let mut collector = Collector { source: self, context, manifests: Vec::new(), cache: None };
        tokio::select! {
            () = self.watch(events_to, context) => {}
            () = folder => {}
            () = mirrors => {}
            outcome = collector.collect(events, scans) => outcome?,
        }
        Ok(())
    }

    /// What the API server has of this node's pods, without end.
    async fn watch(&self, to: mpsc::Sender<Event<Pod>>, context: &Context) {
        if !self.0.api.is_somewhere() {
            // The board is in no cluster: static pods are all there is.
            return std::future::pending().await;
        }
        let pods = kube::Api::<Pod>::all(self.0.api.client());
        let selection = Selection::fields(format!("spec.nodeName={}", self.0.node));
        let mut last = None;
        let says = |error: &kube::Error| {
            let kind = failure(error);
            // The link's state is shown elsewhere, and a watch that is too old is nothing to speak of.
            let is_news = last.replace(kind) != Some(kind) && !matches!(kind, Failure::Unreachable | Failure::Gone);
            if is_news {
                let problem = yaml::cut(&board::tasks::chain(error));
                tracing::warn!(problem, "the API server does not tell this node's pods; asked again");
            }
        };
        reflect(pods, selection, to, context.stop.clone(), says).await;
    }
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A part of it ended by itself.
    #[error("the {0} of the node's pods ended by itself")]
    Ended(&'static str),
}

/// Brings together what the origins say.
struct Collector<'a> {
    source: &'a Source,
    context: &'a Context,
    /// What is wrong with manifests.
    manifests: Vec<String>,
    /// What is wrong with the cache.
    cache: Option<String>,
}

impl Collector<'_> {
    async fn collect(
        &mut self,
        mut events: mpsc::Receiver<Event<Pod>>,
        mut scans: mpsc::Receiver<Scan>,
    ) -> Result<(), SourceError> {
        let mut desk = self.source.0.desk.subscribe();
        let scan = scans.recv().await.ok_or(SourceError::Ended("scan of manifests"))?;
        self.scanned(scan).await;
        self.cached().await;
        loop {
            self.deliver(&mut desk).await;
            self.report();
            tokio::select! {
                biased;
                // Somebody else listens: all is told again.
                _ = desk.changed() => self.again().await,
                event = events.recv() => self.event(event.ok_or(SourceError::Ended("watch"))?).await,
                scan = scans.recv() => self.scanned(scan.ok_or(SourceError::Ended("scan of manifests"))?).await,
            }
        }
    }

    fn node(&self) -> &str {
        &self.source.0.node
    }

    async fn scanned(&mut self, scan: Scan) {
        self.manifests = scan.problems;
        let seen = self.source.0.seen();
        let pods: Vec<_> = scan.pods.into_iter().map(|pod| seen_at(&self.source.0.known, pod, &seen)).collect();
        let delta = self.source.0.known.change(|table| table.scanned(&pods));
        self.tell(delta, Some(Origin::Manifests)).await;
    }

    /// At the first start only: what the API server has said since is newer.
    async fn cached(&mut self) {
        if self.source.0.outbox.lock().await.complete.contains(&Origin::Cache) {
            return;
        }
        let cache = self.source.0.cache.clone();
        let pods = tokio::task::spawn_blocking(move || cache.pods()).await.unwrap_or_default();
        let node = self.node().to_owned();
        let delta = self.source.0.known.change(|table| table.cached(pods, &node));
        self.keep(&delta).await;
        self.tell(delta, Some(Origin::Cache)).await;
    }

    async fn event(&mut self, event: Event<Pod>) {
        let node = self.node().to_owned();
        let known = &self.source.0.known;
        let (delta, complete) = match event {
            Event::Listed(pods) => (known.change(|table| table.listed(pods, &node)), Some(Origin::Api)),
            Event::Applied(pod) => (known.change(|table| table.applied(pod, &node)), None),
            Event::Deleted(pod) => (known.change(|table| table.deleted(&pod)), None),
        };
        self.keep(&delta).await;
        self.tell(delta, complete).await;
    }

    /// A disk that fails must not keep pods from running: it is said, and the change is told all the same.
    async fn keep(&mut self, delta: &Delta) {
        if delta.put.is_empty() && delta.remove.is_empty() {
            return;
        }
        let outcome = self.source.0.cache.change_pods(&delta.put, &delta.remove).await;
        self.cache = outcome.err().map(|error| error.to_string());
    }

    async fn tell(&self, delta: Delta, complete: Option<Origin>) {
        let mut outbox = self.source.0.outbox.lock().await;
        outbox.changes.extend(delta.tell);
        if let Some(origin) = complete {
            outbox.changes.push_back(Change::Complete(origin));
            outbox.complete.insert(origin);
        }
    }

    async fn again(&self) {
        let mut outbox = self.source.0.outbox.lock().await;
        outbox.changes.clear();
        let all = self.source.0.known.all().into_iter().map(|(pod, is_static)| Change::Set { pod, is_static });
        outbox.changes.extend(all);
        let complete = outbox.complete.clone();
        outbox.changes.extend(complete.into_iter().map(Change::Complete));
    }

    /// Until everything is told, or told to somebody else from the beginning.
    async fn deliver(&self, desk: &mut watch::Receiver<Option<mpsc::Sender<Change>>>) {
        let inner = &self.source.0;
        while !inner.outbox.lock().await.changes.is_empty() {
            let to = desk.borrow_and_update().clone();
            let permit = async {
                match &to {
                    Some(to) => to.reserve().await.map_err(|_| Deaf),
                    None => Err(Deaf),
                }
            };
            let outcome = tokio::select! {
                biased;
                _ = desk.changed() => None,
                outcome = permit => Some(outcome),
            };
            match outcome {
                Some(Ok(permit)) => {
                    if let Some(change) = inner.outbox.lock().await.changes.pop_front() {
                        permit.send(change);
                    }
                    continue;
                }
                Some(Err(Deaf)) => _ = desk.changed().await,
                None => {}
            }
            self.again().await;
        }
    }

    fn report(&self) {
        if let Some(problem) = &self.cache {
            self.context.degraded(
                format!("pods cannot be kept for the time without the cluster: {problem}"),
                "free or replace the disk",
            );
        } else if let Some(problem) = self.manifests.first() {
            let folder = self.source.0.manifests.display();
            self.context.degraded(problem.clone(), format!("correct the file in {folder}, or remove it"));
        } else {
            self.context.healthy(format!("{} pods", self.source.0.known.all().len()));
        }
    }
}
