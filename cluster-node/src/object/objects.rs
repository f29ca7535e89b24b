//! [`Objects`]: config maps, secrets, services and tokens of the pods on this node, kept fresh while they are used.
//!
//! Always true:
//! - An object is watched exactly while a registered pod refers to it.
//! - Everything that runs in the background is awaited by [`Objects::run`].
//!
//! Elsewhere: each kind (`watched`, `service`, `token`); copies on the disk (`cache`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use board::{clock::Clock, tasks::Context};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use kube::Api;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Cache, ChangedPods, Keep, Keyring, ObjectError, References, Token, TokenWanted,
    cache::place,
    connection::{Connection, Kind, PATIENCE, problem_of, timed_out},
    follow::follow,
    reference, service,
    token::Tokens,
    watched::{Cell, Follower, Kept},
};

/// Between two looks for tokens that are to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Looks between two rounds in which copies nobody needs any more are forgotten, and before the first: by then the pods that
/// are there have been registered.
const FORGET_EVERY: u64 = 40;

/// What pods refer to; cheap to clone.
#[derive(Clone)]
pub struct Objects(Arc<Inner>);

struct Inner {
    connection: Arc<dyn Connection>,
    cache: Cache,
    tokens: Tokens,
    changes: ChangedPods,
    table: Mutex<Table>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Who refers to what.
#[derive(Default)]
struct Table {
    pods: BTreeMap<String, Registered>,
    config_maps: BTreeMap<String, Arc<Cell<ConfigMap>>>,
    secrets: BTreeMap<String, Arc<Cell<Secret>>>,
    services: BTreeMap<service::Scope, Arc<service::Cell>>,
}

#[derive(Default, Clone, PartialEq, Eq)]
struct Registered {
    namespace: String,
    references: References,
    scopes: BTreeSet<service::Scope>,
}

impl Objects {
    /// Nothing is asked for before a pod is registered or somebody wants something.
    pub fn new(connection: Arc<dyn Connection>, cache: Cache, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            tokens: Tokens::new(connection.clone(), cache.clone(), clock),
            connection,
            cache,
            changes: ChangedPods::default(),
            table: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// The copies on disk.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// The service: looks after tokens and copies until it is told to stop, then ends all watches. An instance runs once.
    pub async fn run(&self, context: Context) -> Result<(), std::convert::Infallible> {
        if let Err(error) = self.0.cache.sweep().await {
            tracing::warn!(%error, "the cache of secrets and tokens was not looked through");
        }
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = 0u64;
        loop {
            let (pods, watched) = {
                let table = self.table();
                (table.pods.len(), table.config_maps.len() + table.secrets.len() + table.services.len())
            };
            context.healthy(format!("{watched} objects of {pods} pods are watched"));
            tokio::select! {
                () = context.stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            looks += 1;
            if !self.0.connection.is_down() {
                self.0.changes.add(self.0.tokens.due());
            }
            if looks.is_multiple_of(FORGET_EVERY) {
                self.forget_unused().await;
            }
        }
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        Ok(())
    }

    /// A pod is on this node: what it refers to is watched from now on. Once more for a pod whose specification changed.
    /// Within a tokio runtime.
    pub fn register(&self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone().filter(|_| !is_static(pod)) else { return };
        let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let next = Registered { namespace, references: reference::of(pod), scopes: service::scopes_of(pod) };
        let mut table = self.table();
        let before = table.pods.insert(uid.clone(), next.clone()).unwrap_or_default();
        if before == next {
            return;
        }
        for name in &next.references.config_maps {
            self.watch(&mut table.config_maps, &next.namespace, name).add_user(&uid);
        }
        for name in &next.references.secrets {
            self.watch(&mut table.secrets, &next.namespace, name).add_user(&uid);
        }
        for scope in &next.scopes {
            self.watch_services(&mut table.services, scope).add_user(&uid);
        }
        let dropped = Registered {
            references: References {
                config_maps: &before.references.config_maps - &next.references.config_maps,
                secrets: &before.references.secrets - &next.references.secrets,
                claims: BTreeSet::new(),
            },
            scopes: &before.scopes - &next.scopes,
            namespace: before.namespace,
        };
        table.release(&uid, &dropped);
    }

    /// A pod has gone from this node, its containers and volumes with it.
    pub fn unregister(&self, uid: &str) {
        let mut table = self.table();
        if let Some(registered) = table.pods.remove(uid) {
            table.release(uid, &registered);
        }
        drop(table);
        self.0.changes.forget(uid);
    }

    /// A config map: as the API server last said; the copy where it does not answer.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Arc<ConfigMap>, ObjectError> {
        let cell = self.table().config_maps.get(&place(namespace, name)).cloned();
        self.get(cell, namespace, name).await
    }

    /// A secret, likewise.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Secret>, ObjectError> {
        let cell = self.table().secrets.get(&place(namespace, name)).cloned();
        self.get(cell, namespace, name).await
    }

    /// Services that a registered pod learns of: those of its namespace where it wants service links, and always
    /// `default/kubernetes`. For a static pod: what happens to be known.
    pub async fn services(&self, pod: &Pod) -> Result<Vec<Service>, ObjectError> {
        let mut found = Vec::new();
        let must = !is_static(pod);
        for scope in service::scopes_of(pod) {
            let cell = self.table().services.get(&scope).cloned();
            let services = match cell {
                Some(cell) => cell.get(&self.0.cache, self.0.connection.is_down() || !must).await,
                None => self.0.cache.services(&scope.key()).ok_or_else(|| ObjectError::Unavailable {
                    kind: Service::WORD,
                    name: scope.key(),
                    problem: "the pod is not registered".to_owned(),
                }),
            };
            match services {
                Ok(services) => found.extend(services),
                Err(error) if must => return Err(error),
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Whether [`Objects::services`] would answer at once with what the API server said.
    pub fn services_ready(&self, pod: &Pod) -> bool {
        let table = self.table();
        service::scopes_of(pod).iter().all(|scope| table.services.get(scope).is_some_and(|cell| cell.is_ready()))
    }

    /// A token of a service account.
    pub async fn token(&self, wanted: &TokenWanted) -> Result<Token, ObjectError> {
        self.0.tokens.get(wanted).await
    }

    /// Whether the cluster does not answer now.
    pub fn is_offline(&self) -> bool {
        self.0.connection.is_down()
    }

    /// Who a pod is at registries. Secrets that are missing are left out, as the kubelet does.
    pub async fn keyring(&self, pod: &Pod) -> Keyring {
        let mut ring = Keyring::default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            let name = &reference.name;
            match self.secret(namespace, name).await {
                Ok(secret) if ring.add(&secret) => {}
                Ok(_) => tracing::warn!(namespace, name, "a pull secret holds no registry logins and is left out"),
                Err(error) => tracing::warn!(namespace, name, %error, "a pull secret is not to be had and is left out"),
            }
        }
        ring
    }

    /// A claim, asked for now; the copy where the API server does not answer.
    pub async fn claim(&self, namespace: &str, name: &str) -> Result<PersistentVolumeClaim, ObjectError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.0.connection.client(), namespace);
        let kept = || self.0.cache.claim(namespace, name);
        let (claim, is_fresh) = self.fetch(&api, name, kept).await?;
        if is_fresh && kept().as_ref() != Some(&claim) {
            warn_unkept(self.0.cache.put_claim(namespace, name, &claim).await);
        }
        Ok(claim)
    }

    /// A persistent volume, likewise.
    pub async fn volume(&self, name: &str) -> Result<PersistentVolume, ObjectError> {
        let api: Api<PersistentVolume> = Api::all(self.0.connection.client());
        let kept = || self.0.cache.volume(name);
        let (volume, is_fresh) = self.fetch(&api, name, kept).await?;
        if is_fresh && kept().as_ref() != Some(&volume) {
            warn_unkept(self.0.cache.put_volume(name, &volume).await);
        }
        Ok(volume)
    }

    /// Pods whose objects changed or whose tokens are to be renewed: their volumes are to be refreshed.
    pub fn changes(&self) -> ChangedPods {
        self.0.changes.clone()
    }

    async fn get<K: Kept>(
        &self,
        cell: Option<Arc<Cell<K>>>,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<K>, ObjectError> {
        if let Some(cell) = cell {
            return cell.get(&self.0.cache, self.0.connection.is_down()).await;
        }
        let kept = || K::kept(&self.0.cache, namespace, name);
        let api = K::api(self.0.connection.client(), namespace);
        let (object, _) = self.fetch(&api, name, kept).await?;
        super::connection::bounded(name, object).map(Arc::new)
    }

    /// Once, for what is not watched. The copy where there is no answer.
    async fn fetch<K: Kind>(
        &self,
        api: &Api<K>,
        name: &str,
        kept: impl Fn() -> Option<K>,
    ) -> Result<(K, bool), ObjectError> {
        if self.0.connection.is_down()
            && let Some(kept) = kept()
        {
            return Ok((kept, false));
        }
        let answer = timeout(PATIENCE, api.get(name)).await.map_err(|_| timed_out(K::WORD, name));
        match answer.and_then(|answer| answer.map_err(|error| problem_of(K::WORD, name, &error))) {
            Ok(object) => Ok((object, true)),
            Err(error @ ObjectError::Unavailable { .. }) => kept().map(|kept| (kept, false)).ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn watch<K: Kept>(&self, cells: &mut BTreeMap<String, Arc<Cell<K>>>, namespace: &str, name: &str) -> Arc<Cell<K>> {
        let cell = cells.entry(place(namespace, name)).or_insert_with(|| {
            let cell = Arc::new(Cell::new(namespace, name, self.0.stop.child_token()));
            let follower =
                Follower { cell: cell.clone(), cache: self.0.cache.clone(), changes: self.0.changes.clone() };
            let connection = self.0.connection.clone();
            self.0.tasks.spawn(async move {
                let (target, stop) = (follower.cell.target(), follower.cell.stop.clone());
                follow(&*connection, &target, &follower, &stop).await;
            });
            cell
        });
        cell.clone()
    }

    fn watch_services(
        &self,
        cells: &mut BTreeMap<service::Scope, Arc<service::Cell>>,
        scope: &service::Scope,
    ) -> Arc<service::Cell> {
        let cell = cells.entry(scope.clone()).or_insert_with(|| {
            let cell = Arc::new(service::Cell::new(scope.clone(), self.0.stop.child_token()));
            let follower = service::Follower { cell: cell.clone(), cache: self.0.cache.clone() };
            let connection = self.0.connection.clone();
            self.0.tasks.spawn(async move {
                let (target, stop) = (follower.cell.scope.target(), follower.cell.stop.clone());
                follow(&*connection, &target, &follower, &stop).await;
            });
            cell
        });
        cell.clone()
    }

    /// Copies and tokens that no registered pod refers to any more go.
    async fn forget_unused(&self) {
        let (keep, uids) = {
            let table = self.table();
            let mut keep = Keep::default();
            for pod in table.pods.values() {
                let at = |names: &BTreeSet<String>| -> Vec<String> {
                    names.iter().map(|name| place(&pod.namespace, name)).collect()
                };
                keep.config_maps.extend(at(&pod.references.config_maps));
                keep.secrets.extend(at(&pod.references.secrets));
                keep.claims.extend(at(&pod.references.claims));
            }
            (keep, table.pods.keys().cloned().collect::<BTreeSet<_>>())
        };
        let mut keep = keep;
        for claim in &keep.claims {
            let kept = claim.split_once('/').and_then(|(namespace, name)| self.0.cache.claim(namespace, name));
            keep.volumes.extend(kept.and_then(|claim| claim.spec?.volume_name));
        }
        if let Err(error) = self.0.cache.retain(&keep).await {
            tracing::warn!(%error, "copies of objects that nobody needs any more stay");
        }
        self.0.tokens.retain(|uid| uids.contains(uid)).await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every critical section leaves the table whole.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn release(&mut self, uid: &str, registered: &Registered) {
        for name in &registered.references.config_maps {
            drop_user(&mut self.config_maps, &place(&registered.namespace, name), |cell| {
                cell.remove_user(uid).then(|| cell.stop.cancel()).is_some()
            });
        }
        for name in &registered.references.secrets {
            drop_user(&mut self.secrets, &place(&registered.namespace, name), |cell| {
                cell.remove_user(uid).then(|| cell.stop.cancel()).is_some()
            });
        }
        for scope in &registered.scopes {
            drop_user(&mut self.services, scope, |cell| cell.remove_user(uid).then(|| cell.stop.cancel()).is_some());
        }
    }
}

/// Takes the cell away where `is_last` says so.
fn drop_user<N: Ord, C>(cells: &mut BTreeMap<N, Arc<C>>, name: &N, is_last: impl Fn(&C) -> bool) {
    if cells.get(name).is_some_and(|cell| is_last(cell)) {
        cells.remove(name);
    }
}

/// Whether a pod comes from a manifest: such pods refer to nothing in the cluster.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|all| all.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source != "api")
}

fn warn_unkept(kept: Result<(), super::CacheError>) {
    if let Err(error) = kept {
        tracing::warn!(%error, "an object was not kept for the time without the API server");
    }
}
