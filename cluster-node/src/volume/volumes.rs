//! [`Volumes`]: the front.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use container_engine::engine::Engine;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, VolumeDevice, VolumeMount};

use super::{ContainerMounts, Facts, PodMounts, Problem, Usage, VolumeError};
use crate::object::Objects;

/// The volumes of the pods on this node; cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    /// `KUBELET_DIR/pods`.
    pods: PathBuf,
    _objects: Objects,
    _engine: Engine,
    facts: RwLock<Facts>,
}

/// What a container mounts, of whichever kind it is.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name.
    pub container: &'a str,
    /// Its mounts.
    pub mounts: &'a [VolumeMount],
    /// Its block devices.
    pub devices: &'a [VolumeDevice],
}

impl<'a> From<&'a Container> for Wanted<'a> {
    fn from(it: &'a Container) -> Self {
        let (mounts, devices) = (it.volume_mounts.as_deref(), it.volume_devices.as_deref());
        Self { container: &it.name, mounts: mounts.unwrap_or_default(), devices: devices.unwrap_or_default() }
    }
}

impl<'a> From<&'a EphemeralContainer> for Wanted<'a> {
    fn from(it: &'a EphemeralContainer) -> Self {
        let (mounts, devices) = (it.volume_mounts.as_deref(), it.volume_devices.as_deref());
        Self { container: &it.name, mounts: mounts.unwrap_or_default(), devices: devices.unwrap_or_default() }
    }
}

impl Volumes {
    /// Volumes below `KUBELET_DIR/pods`.
    pub fn new(kubelet_dir: &Path, objects: Objects, engine: Engine, facts: Facts) -> Self {
        let pods = kubelet_dir.join("pods");
        Self(Arc::new(Inner { pods, _objects: objects, _engine: engine, facts: RwLock::new(facts) }))
    }

    /// What is known of the node changed.
    pub fn set_facts(&self, facts: Facts) {
        *self.0.facts.write().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// Makes the pod's volumes ready: those that are, stay as they are. Image volumes are mounted by `mounts_of`, when the
    /// image has been pulled.
    ///
    /// * Errors: the first volume that is not ready, the others having been tried; whether to try again says
    ///   [`VolumeError::is_transient`].
    /// * Cancelled: call it again.
    pub async fn prepare(&self, pod: &Pod) -> Result<PodMounts, VolumeError> {
        match pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).next() {
            None => Ok(PodMounts::default()),
            Some(volume) => Err(VolumeError::SetUp {
                volume: volume.name.clone(),
                problem: Problem::Unsupported("this build sets up no volumes yet".to_owned()),
            }),
        }
    }

    /// Brings files of config maps, secrets, tokens and the downward API up to date, for a pod whose objects changed.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), VolumeError> {
        self.prepare(pod).await.map(drop)
    }

    /// What a container mounts; `env` is its environment, for `subPathExpr`. Sub-paths are made and held, so call it for each
    /// start of a container.
    pub async fn mounts_of(
        &self,
        _pod: &Pod,
        _ready: &PodMounts,
        wanted: Wanted<'_>,
        _env: &BTreeMap<String, String>,
    ) -> Result<ContainerMounts, VolumeError> {
        match wanted.mounts.first() {
            None => Ok(ContainerMounts::default()),
            Some(mount) => {
                Err(VolumeError::NoSuchVolume { container: wanted.container.to_owned(), volume: mount.name.clone() })
            }
        }
    }

    /// Takes everything of a pod's volumes away, its folder `pods/UID` included; once its containers are gone.
    pub async fn teardown(&self, uid: &str) -> Result<(), VolumeError> {
        let path = self.0.pods.join(uid);
        match path.exists() {
            false => Ok(()),
            true => Err(VolumeError::TearDown {
                path,
                problem: Problem::Unsupported("this build takes no volumes down yet".to_owned()),
            }),
        }
    }

    /// What a pod's volumes take.
    pub async fn usage(&self, _pod: &Pod) -> Usage {
        Usage::default()
    }

    /// Uids of pods that have a folder and are not among `keep`: to be torn down.
    pub async fn orphans(&self, keep: &BTreeSet<String>) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0.pods).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !keep.contains(name)).collect()
    }
}
