//! What the cluster sent, kept for the time without it: pods, the node, services, config maps, claims and volumes as they
//! are, secrets and tokens sealed.
//!
//! Always true:
//! - A record that does not read or open is treated as absent, with a warning; `sweep` removes it.
//! - No secret and no token is on the disk unsealed.
//!
//! Elsewhere: when something is kept and dropped (`watched`, `token`, `service`; pods: `pod::source`).

use std::{collections::BTreeMap, fmt, io, path::Path, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use store::state::{Batch, Entity, State, StateError};

use super::seal::{SealError, Sealer};

/// Records with a tree of their own, which hold one of Kubernetes' objects as it is.
macro_rules! kept {
    ($($name:ident($object:ty) in $tree:literal;)*) => {$(
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(transparent)]
        struct $name($object);
        impl Entity for $name {
            const TREE: &'static str = $tree;
            const VERSION: u16 = 1;
        }
        impl From<$object> for $name {
            fn from(object: $object) -> Self {
                Self(object)
            }
        }
        impl From<$name> for $object {
            fn from(kept: $name) -> Self {
                kept.0
            }
        }
    )*};
}

kept! {
    KeptPod(Pod) in "node-pods";
    KeptNode(Node) in "node-object";
    KeptServices(Vec<Service>) in "node-services";
    KeptConfigMap(ConfigMap) in "node-config-maps";
    KeptClaim(PersistentVolumeClaim) in "node-claims";
    KeptVolume(PersistentVolume) in "node-persistent-volumes";
}

/// An object that pods refer to and that the API server does not have: what is optional is left out then, also after a
/// reboot without it.
#[derive(Serialize, Deserialize)]
struct Absent;

impl Entity for Absent {
    const TREE: &'static str = "node-absent";
    const VERSION: u16 = 1;
}

/// What is sealed, in base64.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct SealedSecret(String);

impl Entity for SealedSecret {
    const TREE: &'static str = "node-secrets";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct SealedToken(String);

impl Entity for SealedToken {
    const TREE: &'static str = "node-tokens";
    const VERSION: u16 = 1;
}

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The key.
    #[error("cannot read or make the key of the cached secrets in {path}: {source}")]
    Key {
        /// `identity/`.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cipher.
    #[error("{tree}/{key}: {problem}")]
    Seal {
        /// Tree.
        tree: &'static str,
        /// Key.
        key: String,
        /// Why.
        problem: SealError,
    },
}

/// The cache; cheap to clone. Reads are short and from memory mostly.
#[derive(Clone)]
pub struct Cache {
    state: State,
    sealer: Arc<Sealer>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

impl Cache {
    /// Opens it on the agent's state with the key in `identity/`. Blocking.
    pub fn open(state: State, identity: &Path) -> Result<Self, CacheError> {
        let key = Sealer::open(identity).map_err(|source| CacheError::Key { path: identity.to_owned(), source })?;
        Ok(Self { state, sealer: Arc::new(key) })
    }

    /// All pods that were bound to this node when last heard of, with the status last written.
    pub fn pods(&self) -> Vec<Pod> {
        self.all::<KeptPod, Pod>()
    }

    /// Keeps a pod, by its uid; durable when it returns.
    pub async fn put_pod(&self, pod: &Pod) -> Result<(), CacheError> {
        self.change_pods(std::slice::from_ref(pod), &[]).await
    }

    /// Forgets a pod.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), CacheError> {
        self.change_pods(&[], &[uid.to_owned()]).await
    }

    /// Keeps and forgets, all or nothing: what a list of the API server says.
    pub async fn change_pods(&self, put: &[Pod], remove: &[String]) -> Result<(), CacheError> {
        let mut batch = Batch::default();
        for pod in put {
            let Some(uid) = &pod.metadata.uid else { continue };
            batch.put(uid, &KeptPod(pod.clone()))?;
        }
        for uid in remove {
            batch.delete::<KeptPod>(uid);
        }
        Ok(self.state.commit(batch).await?)
    }

    /// This node's object as last heard of.
    pub fn node(&self, name: &str) -> Option<Node> {
        self.one::<KeptNode, Node>(name)
    }

    /// Keeps it.
    pub async fn put_node(&self, node: &Node) -> Result<(), CacheError> {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.put(&name, &KeptNode(node.clone())).await
    }

    /// The services of one scope, where they were ever heard of.
    pub(super) fn services(&self, scope: &str) -> Option<Vec<Service>> {
        self.one::<KeptServices, Vec<Service>>(scope)
    }

    /// Keeps them.
    pub(super) async fn put_services(&self, scope: &str, services: Vec<Service>) -> Result<(), CacheError> {
        self.put(scope, &KeptServices(services)).await
    }

    /// A config map.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        self.one::<KeptConfigMap, ConfigMap>(&place(namespace, name))
    }

    /// Keeps it.
    pub async fn put_config_map(&self, namespace: &str, name: &str, object: &ConfigMap) -> Result<(), CacheError> {
        self.put_known(&place(namespace, name), &KeptConfigMap(object.clone())).await
    }

    /// Forgets it: the API server has it no more.
    pub async fn remove_config_map(&self, namespace: &str, name: &str) -> Result<(), CacheError> {
        self.put_absent::<KeptConfigMap>(&place(namespace, name)).await
    }

    /// Whether the API server was last heard not to have it.
    pub fn lacks_config_map(&self, namespace: &str, name: &str) -> bool {
        self.read::<Absent>(&absent::<KeptConfigMap>(&place(namespace, name))).is_some()
    }

    /// A secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        let key = place(namespace, name);
        let SealedSecret(sealed) = self.read::<SealedSecret>(&key)?;
        self.opened(SealedSecret::TREE, &key, &sealed)
    }

    /// Keeps it, sealed.
    pub async fn put_secret(&self, namespace: &str, name: &str, object: &Secret) -> Result<(), CacheError> {
        let key = place(namespace, name);
        let sealed = self.sealed(SealedSecret::TREE, &key, object)?;
        self.put_known(&key, &SealedSecret(sealed)).await
    }

    /// Forgets it: the API server has it no more.
    pub async fn remove_secret(&self, namespace: &str, name: &str) -> Result<(), CacheError> {
        self.put_absent::<SealedSecret>(&place(namespace, name)).await
    }

    /// Whether the API server was last heard not to have it.
    pub fn lacks_secret(&self, namespace: &str, name: &str) -> bool {
        self.read::<Absent>(&absent::<SealedSecret>(&place(namespace, name))).is_some()
    }

    /// A claim.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        self.one::<KeptClaim, PersistentVolumeClaim>(&place(namespace, name))
    }

    /// Keeps it.
    pub async fn put_claim(
        &self,
        namespace: &str,
        name: &str,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), CacheError> {
        self.put(&place(namespace, name), &KeptClaim(claim.clone())).await
    }

    /// A persistent volume.
    pub fn volume(&self, name: &str) -> Option<PersistentVolume> {
        self.one::<KeptVolume, PersistentVolume>(name)
    }

    /// Keeps it.
    pub async fn put_volume(&self, name: &str, volume: &PersistentVolume) -> Result<(), CacheError> {
        self.put(name, &KeptVolume(volume.clone())).await
    }

    /// Forgets what no pod on the node refers to any more, each kind by the places still wanted.
    pub async fn retain(&self, keep: &Keep) -> Result<(), CacheError> {
        let mut batch = Batch::default();
        self.drop_others::<KeptConfigMap>(&mut batch, &keep.config_maps);
        self.drop_others::<SealedSecret>(&mut batch, &keep.secrets);
        self.drop_others::<KeptClaim>(&mut batch, &keep.claims);
        self.drop_others::<KeptVolume>(&mut batch, &keep.volumes);
        let maps = keep.config_maps.iter().map(|key| absent::<KeptConfigMap>(key));
        let marks = maps.chain(keep.secrets.iter().map(|key| absent::<SealedSecret>(key))).collect();
        self.drop_others::<Absent>(&mut batch, &marks);
        Ok(self.state.commit_relaxed(batch).await?)
    }

    fn drop_others<E: Entity>(&self, batch: &mut Batch, keep: &std::collections::BTreeSet<String>) {
        for (key, _) in self.state.scan::<E>("").flatten() {
            if !keep.contains(&key) {
                batch.delete::<E>(&key);
            }
        }
    }

    /// All tokens, by their keys.
    pub(super) fn tokens<T: DeserializeOwned>(&self) -> BTreeMap<String, T> {
        let records = self.state.scan::<SealedToken>("").filter_map(readable);
        let open = |(key, SealedToken(sealed)): (String, SealedToken)| {
            let token = self.opened(SealedToken::TREE, &key, &sealed)?;
            Some((key, token))
        };
        records.filter_map(open).collect()
    }

    /// Keeps a token, sealed.
    pub(super) async fn put_token<T: Serialize>(&self, key: &str, token: &T) -> Result<(), CacheError> {
        let sealed = self.sealed(SealedToken::TREE, key, token)?;
        self.put(key, &SealedToken(sealed)).await
    }

    /// Forgets tokens.
    pub(super) async fn remove_tokens(&self, keys: &[String]) -> Result<(), CacheError> {
        let mut batch = Batch::default();
        for key in keys {
            batch.delete::<SealedToken>(key);
        }
        Ok(self.state.commit_relaxed(batch).await?)
    }

    /// Removes sealed records that do not open: once, at the start.
    pub async fn sweep(&self) -> Result<usize, CacheError> {
        let mut batch = Batch::default();
        let mut dropped = 0;
        for (key, SealedSecret(sealed)) in self.state.scan::<SealedSecret>("").filter_map(readable) {
            if self.sealer.unseal(SealedSecret::TREE, &key, &sealed).is_err() {
                batch.delete::<SealedSecret>(&key);
                dropped += 1;
            }
        }
        for (key, SealedToken(sealed)) in self.state.scan::<SealedToken>("").filter_map(readable) {
            if self.sealer.unseal(SealedToken::TREE, &key, &sealed).is_err() {
                batch.delete::<SealedToken>(&key);
                dropped += 1;
            }
        }
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "cached secrets or tokens did not open and were dropped; they come again from the API server"
            );
        }
        self.state.commit(batch).await?;
        Ok(dropped)
    }

    async fn put<E: Entity>(&self, key: &str, value: &E) -> Result<(), CacheError> {
        let mut batch = Batch::default();
        batch.put(key, value)?;
        Ok(self.state.commit(batch).await?)
    }

    async fn put_known<E: Entity>(&self, key: &str, value: &E) -> Result<(), CacheError> {
        let mut batch = Batch::default();
        batch.put(key, value)?;
        batch.delete::<Absent>(&absent::<E>(key));
        Ok(self.state.commit(batch).await?)
    }

    async fn put_absent<E: Entity>(&self, key: &str) -> Result<(), CacheError> {
        let mark = absent::<E>(key);
        if self.read::<Absent>(&mark).is_some() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.delete::<E>(key);
        batch.put(&mark, &Absent)?;
        Ok(self.state.commit_relaxed(batch).await?)
    }

    fn read<E: Entity>(&self, key: &str) -> Option<E> {
        self.state.get::<E>(key).unwrap_or_else(|error| {
            tracing::warn!(tree = E::TREE, %error, "a cached object does not read and is ignored");
            None
        })
    }

    fn one<E: Entity, K: From<E>>(&self, key: &str) -> Option<K> {
        self.read::<E>(key).map(K::from)
    }

    fn all<E: Entity, K: From<E>>(&self) -> Vec<K> {
        self.state.scan::<E>("").filter_map(readable).map(|(_, kept)| K::from(kept)).collect()
    }

    fn sealed<T: Serialize>(&self, tree: &'static str, key: &str, value: &T) -> Result<String, CacheError> {
        let failed = |problem| CacheError::Seal { tree, key: key.to_owned(), problem };
        let plain = serde_json::to_vec(value).map_err(|_| failed(SealError::Seal))?;
        self.sealer.seal(tree, key, &plain).map_err(failed)
    }

    fn opened<T: DeserializeOwned>(&self, tree: &'static str, key: &str, sealed: &str) -> Option<T> {
        let plain = self.sealer.unseal(tree, key, sealed);
        // What serde says of the content could quote it.
        let value = plain.and_then(|plain| serde_json::from_slice(&plain).map_err(|_| SealError::Open));
        value.map_err(|error| tracing::warn!(tree, key, %error, "a sealed record is ignored")).ok()
    }
}

/// Places that are still wanted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Keep {
    /// `NAMESPACE/NAME`.
    pub config_maps: std::collections::BTreeSet<String>,
    /// `NAMESPACE/NAME`.
    pub secrets: std::collections::BTreeSet<String>,
    /// `NAMESPACE/NAME`.
    pub claims: std::collections::BTreeSet<String>,
    /// Names.
    pub volumes: std::collections::BTreeSet<String>,
}

/// `NAMESPACE/NAME`: neither has a slash in it.
pub(super) fn place(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Key of the mark that an object of this tree is not there.
fn absent<E: Entity>(key: &str) -> String {
    format!("{}/{key}", E::TREE)
}

fn readable<E: Entity>(record: Result<(String, E), StateError>) -> Option<(String, E)> {
    record.map_err(|error| tracing::warn!(tree = E::TREE, %error, "a cached object does not read and is ignored")).ok()
}
