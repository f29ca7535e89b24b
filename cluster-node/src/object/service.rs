//! Services that pods learn of from their environment: those of their namespace, and the API server's own.
//!
//! Always true: only namespaces with a pod here that wants service links are watched; of a service no more is kept than its
//! name, type, addresses and ports.
//!
//! Elsewhere: the variables (`pod::spec`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Api;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Cache, ObjectError,
    connection::{Kind, problem_of},
    follow::{Sink, Target},
};

const SHORT_WAIT: Duration = Duration::from_secs(2);
const LONG_WAIT: Duration = Duration::from_secs(10);

/// Which services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// All of a namespace.
    Namespace(String),
    /// `default/kubernetes`.
    ApiServer,
}

impl Scope {
    /// As a key of the cache: no namespace is named so.
    pub fn key(&self) -> String {
        match self {
            Self::Namespace(name) => name.clone(),
            Self::ApiServer => "default/kubernetes".to_owned(),
        }
    }

    pub fn target(&self) -> Target<Service> {
        let (namespace, name) = match self {
            Self::Namespace(namespace) => (namespace.clone(), None),
            Self::ApiServer => ("default".to_owned(), Some("kubernetes".to_owned())),
        };
        Target { api: Api::namespaced, namespace, name }
    }
}

/// What a pod has to know.
pub(super) fn scopes_of(pod: &Pod) -> BTreeSet<Scope> {
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    match (links, namespace) {
        (false, _) => [Scope::ApiServer].into(),
        (true, "default") => [Scope::Namespace("default".to_owned())].into(),
        (true, namespace) => [Scope::ApiServer, Scope::Namespace(namespace.to_owned())].into(),
    }
}

/// Services of one scope, by name; `None`: nothing was heard yet.
type Known = Option<Arc<BTreeMap<String, Service>>>;

/// One scope and who needs it.
pub(super) struct Cell {
    pub scope: Scope,
    pub stop: CancellationToken,
    users: Mutex<BTreeSet<String>>,
    known: watch::Sender<Known>,
    problem: Mutex<Option<ObjectError>>,
}

impl Cell {
    pub fn new(scope: Scope, stop: CancellationToken) -> Self {
        let (users, known, problem) = (Mutex::default(), watch::Sender::new(None), Mutex::default());
        Self { scope, stop, users, known, problem }
    }

    pub fn add_user(&self, uid: &str) {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned());
    }

    /// Whether nobody is left.
    pub fn remove_user(&self, uid: &str) -> bool {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.remove(uid);
        users.is_empty()
    }

    /// Whether the API server has said what there is.
    pub fn is_ready(&self) -> bool {
        self.known.borrow().is_some()
    }

    /// What there is; the copy where the API server does not say.
    pub async fn get(&self, cache: &Cache, is_down: bool) -> Result<Vec<Service>, ObjectError> {
        let mut known = self.known.subscribe();
        if known.borrow_and_update().is_none() {
            let kept = cache.services(&self.scope.key());
            let has_failed = self.problem.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let patience = match &kept {
                Some(_) if is_down || has_failed => Duration::ZERO,
                Some(_) => SHORT_WAIT,
                None if is_down => Duration::ZERO,
                None => LONG_WAIT,
            };
            if timeout(patience, known.wait_for(Option::is_some)).await.is_err() {
                return kept.ok_or_else(|| self.unavailable());
            }
        }
        let now = self.known.borrow().clone();
        Ok(now.iter().flat_map(|known| known.values().cloned()).collect())
    }

    fn unavailable(&self) -> ObjectError {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        problem.unwrap_or_else(|| ObjectError::Unavailable {
            kind: Service::WORD,
            name: self.scope.key(),
            problem: "services have not yet been read at least once".to_owned(),
        })
    }
}

/// A cell with what its follower needs.
pub(super) struct Follower {
    pub cell: Arc<Cell>,
    pub cache: Cache,
}

impl Follower {
    async fn show(&self, services: BTreeMap<String, Service>) {
        let before = self.cell.known.borrow().clone();
        if before.is_some_and(|before| *before == services) {
            return;
        }
        let key = self.cell.scope.key();
        let list: Vec<Service> = services.values().cloned().collect();
        if self.cache.services(&key).as_ref() != Some(&list)
            && let Err(error) = self.cache.put_services(&key, list).await
        {
            tracing::warn!(scope = key, %error, "services were not kept for the time without the API server");
        }
        self.cell.known.send_replace(Some(Arc::new(services)));
    }

    fn now(&self) -> BTreeMap<String, Service> {
        self.cell.known.borrow().as_deref().cloned().unwrap_or_default()
    }
}

impl Sink<Service> for Follower {
    async fn listed(&self, objects: Vec<Service>) -> bool {
        self.show(objects.into_iter().filter_map(slim).collect()).await;
        false
    }

    async fn set(&self, object: Service) -> bool {
        let mut services = self.now();
        services.extend(slim(object));
        self.show(services).await;
        false
    }

    async fn gone(&self, object: Service) {
        let mut services = self.now();
        if let Some(name) = &object.metadata.name {
            services.remove(name);
        }
        self.show(services).await;
    }

    fn failed(&self, error: &kube::Error) {
        let problem = problem_of(Service::WORD, &self.cell.scope.key(), error);
        *self.cell.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }
}

/// What a pod's environment is made of.
fn slim(service: Service) -> Option<(String, Service)> {
    let name = service.metadata.name?;
    let spec = service.spec.unwrap_or_default();
    let slim = Service {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: service.metadata.namespace,
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: spec.cluster_ip,
            cluster_ips: spec.cluster_ips,
            ports: spec.ports,
            type_: spec.type_,
            ..ServiceSpec::default()
        }),
        status: None,
    };
    Some((name, slim))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_services_a_pod_has_to_know() {
        #[track_caller]
        fn check(namespace: &str, links: serde_json::Value, want: &[Scope]) {
            let pod = json!({ "metadata": { "namespace": namespace },
                "spec": { "containers": [], "enableServiceLinks": links } });
            let scopes = scopes_of(&serde_json::from_value(pod).unwrap());
            assert_eq!(scopes.into_iter().collect::<Vec<_>>(), want);
        }
        let all = |name: &str| Scope::Namespace(name.to_owned());
        check("team", json!(true), &[all("team"), Scope::ApiServer]);
        check("team", json!(null), &[all("team"), Scope::ApiServer]);
        check("team", json!(false), &[Scope::ApiServer]);
        check("default", json!(true), &[all("default")]);
        check("default", json!(false), &[Scope::ApiServer]);
    }

    #[test]
    fn no_more_is_kept_than_is_used() {
        let service: Service = serde_json::from_value(json!({
            "metadata": { "name": "s", "namespace": "ns", "resourceVersion": "7", "annotations": { "a": "b" } },
            "spec": { "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }], "selector": { "app": "x" } },
            "status": { "loadBalancer": {} },
        }))
        .unwrap();
        let (name, slim) = slim(service).unwrap();
        assert_eq!(name, "s");
        let want = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "ns" },
            "spec": { "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }] } });
        assert_eq!(serde_json::to_value(slim).unwrap(), want);
    }
}
