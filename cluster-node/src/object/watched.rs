//! One config map or secret that pods refer to: followed while they do, and what is known of it.
//!
//! Always true:
//! - What is shown is what the API server last said; the kept copy is shown only where it has said nothing yet.
//! - Each pod is told of a change once it has seen an earlier state, and not before.
//!
//! Elsewhere: who refers to what (`reference`), list and watch (`follow`).

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Cache, ChangedPods, ObjectError,
    cache::CacheError,
    connection::{Kind, bounded, problem_of},
    follow::{Sink, Target},
};

/// How long somebody waits for the API server who has a copy to fall back on.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// And who has none.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// What can be watched by reference, and kept.
pub(super) trait Kept: Kind + kube::Resource<DynamicType = ()> {
    /// Where it is asked for.
    fn api(client: kube::Client, namespace: &str) -> Api<Self>;
    /// Never changes.
    fn is_immutable(&self) -> bool;
    /// The copy.
    fn kept(cache: &Cache, namespace: &str, name: &str) -> Option<Self>;
    /// Keeps a copy.
    fn keep(&self, cache: &Cache, namespace: &str, name: &str) -> impl Future<Output = Result<(), CacheError>> + Send;
    /// Whether it was last heard not to be there.
    fn is_lacked(cache: &Cache, namespace: &str, name: &str) -> bool;
    /// Forgets the copy.
    fn forget(cache: &Cache, namespace: &str, name: &str) -> impl Future<Output = Result<(), CacheError>> + Send;
}

impl Kept for ConfigMap {
    fn api(client: kube::Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }

    fn kept(cache: &Cache, namespace: &str, name: &str) -> Option<Self> {
        cache.config_map(namespace, name)
    }

    async fn keep(&self, cache: &Cache, namespace: &str, name: &str) -> Result<(), CacheError> {
        cache.put_config_map(namespace, name, self).await
    }

    fn is_lacked(cache: &Cache, namespace: &str, name: &str) -> bool {
        cache.lacks_config_map(namespace, name)
    }

    async fn forget(cache: &Cache, namespace: &str, name: &str) -> Result<(), CacheError> {
        cache.remove_config_map(namespace, name).await
    }
}

impl Kept for Secret {
    fn api(client: kube::Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }

    fn kept(cache: &Cache, namespace: &str, name: &str) -> Option<Self> {
        cache.secret(namespace, name)
    }

    async fn keep(&self, cache: &Cache, namespace: &str, name: &str) -> Result<(), CacheError> {
        cache.put_secret(namespace, name, self).await
    }

    fn is_lacked(cache: &Cache, namespace: &str, name: &str) -> bool {
        cache.lacks_secret(namespace, name)
    }

    async fn forget(cache: &Cache, namespace: &str, name: &str) -> Result<(), CacheError> {
        cache.remove_secret(namespace, name).await
    }
}

/// What is known of one object.
#[derive(Debug, Clone)]
pub(super) enum View<K> {
    /// Nothing was heard yet.
    Pending,
    /// It is there.
    Present(Arc<K>),
    /// It is not.
    Absent,
    /// The API server was asked in vain, and had never been heard of it before.
    Failed(ObjectError),
}

/// One object and who uses it.
pub(super) struct Cell<K> {
    pub namespace: String,
    pub name: String,
    users: Mutex<BTreeSet<String>>,
    view: watch::Sender<View<K>>,
    /// Somebody was given something else than the view of now.
    is_awaited: AtomicBool,
    pub stop: CancellationToken,
}

impl<K: Kept> Cell<K> {
    pub fn new(namespace: &str, name: &str, stop: CancellationToken) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            users: Mutex::default(),
            view: watch::Sender::new(View::Pending),
            is_awaited: AtomicBool::new(false),
            stop,
        }
    }

    pub fn target(&self) -> Target<K> {
        Target { api: K::api, namespace: self.namespace.clone(), name: Some(self.name.clone()) }
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

    /// The object: as the API server last said, else the copy.
    pub async fn get(&self, cache: &Cache, is_down: bool) -> Result<Arc<K>, ObjectError> {
        let mut view = self.view.subscribe();
        if matches!(*view.borrow_and_update(), View::Pending) {
            let kept = K::kept(cache, &self.namespace, &self.name).map(Arc::new);
            let is_known = kept.is_some() || K::is_lacked(cache, &self.namespace, &self.name);
            let patience = match (is_known, is_down) {
                (_, true) => Duration::ZERO,
                (true, false) => SHORT_WAIT,
                (false, false) => LONG_WAIT,
            };
            let heard = timeout(patience, view.wait_for(|it| !matches!(it, View::Pending))).await;
            if heard.is_err() {
                self.is_awaited.store(true, Ordering::Release);
                let unavailable = self.unavailable("the API server has not answered yet");
                return kept.ok_or_else(|| self.last_word(cache, unavailable));
            }
        }
        let now = self.view.borrow().clone();
        match now {
            View::Present(object) => Ok(object),
            View::Absent => Err(ObjectError::NotFound { kind: K::WORD, name: self.name.clone() }),
            View::Failed(error @ ObjectError::Unavailable { .. }) => {
                self.is_awaited.store(true, Ordering::Release);
                let kept = K::kept(cache, &self.namespace, &self.name).map(Arc::new);
                kept.ok_or_else(|| self.last_word(cache, error))
            }
            View::Failed(error) => {
                self.is_awaited.store(true, Ordering::Release);
                Err(error)
            }
            View::Pending => Err(self.unavailable("the API server has not answered yet")),
        }
    }

    /// Without an answer: that it is not there, where that was the last that was heard.
    fn last_word(&self, cache: &Cache, error: ObjectError) -> ObjectError {
        if K::is_lacked(cache, &self.namespace, &self.name) {
            return ObjectError::NotFound { kind: K::WORD, name: self.name.clone() };
        }
        error
    }

    fn unavailable(&self, problem: &str) -> ObjectError {
        ObjectError::Unavailable { kind: K::WORD, name: self.name.clone(), problem: problem.to_owned() }
    }

    fn version(view: &View<K>) -> Option<String> {
        match view {
            View::Present(object) => object.meta().resource_version.clone(),
            _ => None,
        }
    }
}

/// A cell with what its follower needs.
pub(super) struct Follower<K> {
    pub cell: Arc<Cell<K>>,
    pub cache: Cache,
    pub changes: ChangedPods,
}

impl<K: Kept> Follower<K> {
    /// Shows a new view, keeps it, and tells the users where they had seen another.
    async fn show(&self, next: View<K>) {
        let cell = &self.cell;
        let (namespace, name) = (&cell.namespace, &cell.name);
        let kept = match &next {
            View::Present(object) => {
                let known = K::kept(&self.cache, namespace, name);
                let version = |it: &K| it.meta().resource_version.clone();
                if known.is_some_and(|known| version(&known).is_some() && version(&known) == version(object)) {
                    Ok(())
                } else {
                    object.keep(&self.cache, namespace, name).await
                }
            }
            View::Absent => K::forget(&self.cache, namespace, name).await,
            View::Pending | View::Failed(_) => Ok(()),
        };
        if let Err(error) = kept {
            let kind = K::WORD;
            tracing::warn!(kind, namespace, name, %error, "an object was not kept for the time without the API server");
        }
        let before = cell.view.send_replace(next);
        let now = cell.view.borrow().clone();
        let differs = match (&before, &now) {
            (View::Pending | View::Failed(_), _) | (View::Absent, View::Absent) => false,
            (View::Present(_), View::Present(_)) => Cell::<K>::version(&before) != Cell::<K>::version(&now),
            _ => true,
        };
        if differs | cell.is_awaited.swap(false, Ordering::AcqRel) {
            let users = cell.users.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.changes.add(users);
        }
    }

    fn read(&self, mut object: K) -> Result<K, ObjectError> {
        // Larger than the rest of many objects, and of no use here.
        object.meta_mut().managed_fields = None;
        bounded(&self.cell.name, object)
    }
}

impl<K: Kept> Sink<K> for Follower<K> {
    async fn listed(&self, objects: Vec<K>) -> bool {
        let name = Some(&self.cell.name);
        if let Some(object) = objects.into_iter().find(|it| it.meta().name.as_ref() == name) {
            return self.set(object).await;
        }
        self.show(View::Absent).await;
        false
    }

    async fn set(&self, object: K) -> bool {
        if object.meta().name.as_ref() != Some(&self.cell.name) {
            return false;
        }
        match self.read(object) {
            Ok(object) => {
                let is_immutable = object.is_immutable();
                self.show(View::Present(Arc::new(object))).await;
                is_immutable
            }
            Err(error) => {
                self.show(View::Failed(error)).await;
                false
            }
        }
    }

    async fn gone(&self, object: K) {
        if object.meta().name.as_ref() == Some(&self.cell.name) {
            self.show(View::Absent).await;
        }
    }

    fn failed(&self, error: &kube::Error) {
        let problem = problem_of(K::WORD, &self.cell.name, error);
        self.cell.view.send_if_modified(|view| {
            let is_news = matches!(view, View::Pending | View::Failed(_));
            if is_news {
                *view = View::Failed(problem);
            }
            is_news
        });
    }
}
