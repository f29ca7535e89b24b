//! Mirrors: what the API server is shown of static pods, so that `kubectl` sees them.
//!
//! Always true:
//! - A mirror is of its static pod's present manifest, or is deleted and made anew; deletions are by uid.
//! - The mirror of a pod whose manifest was taken away stays until the pod has ended.
//!
//! Elsewhere: their status (`pod::status_manager`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use board::tasks::backoff;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use tokio::time::Instant;

use super::{
    known::{FullName, HASH, Known, MIRROR, Mirroring, annotation, full_name},
    yaml,
};
use crate::api::{Failure, failure};

/// First and longest wait after a failure, and the wait for the watch to tell what was done.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
const ECHO: Duration = Duration::from_secs(5);
/// One request.
const PATIENCE: Duration = Duration::from_secs(20);
/// Without a reason, nothing is looked at more often.
const IDLE: Duration = Duration::from_secs(3600);

/// What is to be done at the API server.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Create(Arc<Pod>),
    Delete { name: FullName, uid: String },
}

impl Step {
    /// What it waits by: the next step for the same name is another.
    fn key(&self) -> (FullName, bool) {
        match self {
            Self::Create(pod) => (full_name(pod), true),
            Self::Delete { name, .. } => (name.clone(), false),
        }
    }
}

fn plan(now: &Mirroring) -> Vec<Step> {
    let statics: BTreeMap<FullName, &Arc<Pod>> = now.statics.iter().map(|pod| (full_name(pod), pod)).collect();
    let mut steps = Vec::new();
    let mut shown = BTreeSet::new();
    for mirror in &now.mirrors {
        let name = full_name(mirror);
        let is_current = statics.get(&name).is_some_and(|pod| annotation(mirror, MIRROR) == annotation(pod, HASH));
        let is_deleted = mirror.metadata.deletion_timestamp.is_some();
        let is_held = now.held.contains(&name);
        if !is_held && (!is_current || is_deleted) {
            let uid = mirror.metadata.uid.clone().unwrap_or_default();
            steps.push(Step::Delete { name: name.clone(), uid });
        }
        shown.insert(name);
    }
    let missing = statics.iter().filter(|(name, _)| !shown.contains(name) && !now.held.contains(name));
    steps.extend(missing.map(|(_, pod)| Step::Create((*pod).clone())));
    steps
}

/// The mirror of a static pod, owned by its node as the API server demands.
fn mirror(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let meta = &pod.metadata;
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    if let Some(hash) = annotations.get(HASH).cloned() {
        annotations.insert(MIRROR.to_owned(), hash);
    }
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: node_uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    Pod {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            labels: meta.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: pod.spec.clone(),
        status: None,
    }
}

/// When something is tried again.
#[derive(Debug, Clone, Copy)]
struct Wait {
    tries: u32,
    until: Instant,
}

/// Keeps mirrors right, for ever.
pub(super) struct Mirrors {
    client: kube::Client,
    node: String,
    known: Known,
    node_uid: Option<String>,
    waits: BTreeMap<(FullName, bool), Wait>,
}

impl Mirrors {
    pub(super) fn new(client: kube::Client, node: String, known: Known) -> Self {
        Self { client, node, known, node_uid: None, waits: BTreeMap::new() }
    }

    pub(super) async fn keep(mut self) {
        let mut changes = self.known.changes();
        loop {
            changes.mark_unchanged();
            let wait = self.look().await;
            tokio::select! {
                outcome = changes.changed() => if outcome.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does what is to be done now; how long nothing else is.
    async fn look(&mut self) -> Duration {
        if !self.known.is_complete() {
            return IDLE;
        }
        let steps = plan(&self.known.for_mirrors());
        let wanted: BTreeSet<_> = steps.iter().map(Step::key).collect();
        self.waits.retain(|key, _| wanted.contains(key));
        for step in steps {
            let key = step.key();
            let wait = self.waits.get(&key).copied();
            if wait.is_some_and(|wait| wait.until > Instant::now()) {
                continue;
            }
            let wait = match self.take(&step).await {
                Ok(()) => Wait { tries: 0, until: Instant::now() + ECHO },
                Err(problem) => {
                    let tries = wait.map_or(0, |wait| wait.tries) + 1;
                    if tries == 1 {
                        tracing::warn!(pod = ?key.0, problem, "the mirror of a static pod cannot be brought up to date");
                    }
                    Wait { tries, until: Instant::now() + backoff(tries, FIRST, LONGEST) }
                }
            };
            self.waits.insert(key, wait);
        }
        let now = Instant::now();
        self.waits.values().map(|wait| wait.until.saturating_duration_since(now)).min().unwrap_or(IDLE)
    }

    async fn take(&mut self, step: &Step) -> Result<(), String> {
        let done = async {
            match step {
                Step::Create(pod) => self.create(pod).await,
                Step::Delete { name, uid } => self.delete(name, uid).await,
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, done).await;
        let outcome = outcome.map_err(|_| "the API server does not answer".to_owned())?;
        outcome.map_err(|error| yaml::cut(&board::tasks::chain(&error)))
    }

    async fn create(&mut self, pod: &Pod) -> Result<(), kube::Error> {
        let node_uid = if let Some(uid) = self.node_uid.clone() {
            uid
        } else {
            let node = Api::<Node>::all(self.client.clone()).get(&self.node).await?;
            self.node_uid.insert(node.metadata.uid.unwrap_or_default()).clone()
        };
        let mirror = mirror(pod, &self.node, &node_uid);
        let pods = self.pods(pod.metadata.namespace.as_deref().unwrap_or_default());
        match pods.create(&PostParams::default(), &mirror).await {
            Ok(_) => Ok(()),
            // The watch will tell, or whoever has the name goes.
            Err(error) if failure(&error) == Failure::Conflict => Ok(()),
            Err(error) => {
                // Perhaps the node was deleted, and registered as another.
                self.node_uid = None;
                Err(error)
            }
        }
    }

    async fn delete(&self, (namespace, name): &FullName, uid: &str) -> Result<(), kube::Error> {
        let params = at_once(uid);
        match self.pods(namespace).delete(name, &params).await {
            Ok(_) => Ok(()),
            // It is gone, or another has its name.
            Err(error) if matches!(failure(&error), Failure::NotFound | Failure::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// A deletion that happens now, and only to this one.
pub(crate) fn at_once(uid: &str) -> DeleteParams {
    let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    DeleteParams { grace_period_seconds: Some(0), preconditions: Some(only), ..DeleteParams::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, hash: &str, is_mirror: bool) -> Arc<Pod> {
        let mut annotations = json!({HASH: hash});
        if is_mirror {
            annotations[MIRROR] = json!(hash);
        }
        let uid = if is_mirror { format!("mirror-{hash}") } else { hash.to_owned() };
        let pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": uid, "annotations": annotations,
            "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn mirrors_follow_their_static_pods() {
        let name = |name: &str| ("ns".to_owned(), name.to_owned());
        let delete = |it: &str, hash: &str| Step::Delete { name: name(it), uid: format!("mirror-{hash}") };
        let mut now = Mirroring::default();
        assert_eq!(plan(&now), []);

        now.statics = vec![pod("a", "1", false), pod("b", "2", false), pod("c", "3", false)];
        now.mirrors = vec![pod("a", "1", true), pod("b", "1", true), pod("x", "4", true)];
        let want = [delete("b", "1"), delete("x", "4"), Step::Create(pod("c", "3", false))];
        assert_eq!(plan(&now), want);

        now.held = [name("b"), name("x"), name("c")].into();
        assert_eq!(plan(&now), []);

        now.held.clear();
        now.statics = vec![pod("a", "1", false)];
        let mut deleted = (*pod("a", "1", true)).clone();
        deleted.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH.into());
        now.mirrors = vec![Arc::new(deleted)];
        assert_eq!(plan(&now), [delete("a", "1")]);
    }

    #[test]
    fn a_mirror_is_what_the_api_server_demands() {
        let mirror = serde_json::to_value(mirror(&pod("a", "h", false), "board", "node-uid")).unwrap();
        let want = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns",
            "labels": {"a": "b"}, "annotations": {HASH: "h", MIRROR: "h"}, "ownerReferences":
                [{"apiVersion": "v1", "kind": "Node", "name": "board", "uid": "node-uid", "controller": true}]},
            "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(mirror, want);
    }
}
