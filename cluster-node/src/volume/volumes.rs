//! [`Volumes`]: the front.
//!
//! Always true: what blocks runs apart from the runtime; one pod's volumes are worked on by one call at a time.
//!
//! Elsewhere: what a volume is to be (`collect`), how it is made (`apply`), measured and taken away (`tree`, `mount`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use container_engine::{
    container::{Device, Mount, MountSource, Propagation},
    engine::Engine,
};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, Volume, VolumeDevice, VolumeMount};

use super::{
    ContainerMounts, Facts, PodMounts, Problem, Ready, Source, Usage, VolumeError, apply,
    collect::{Planner, Setup},
    expand, image, mount, nfs,
    place::PodDir,
    sub_path, tree, usage,
};
use crate::object::Objects;

/// The volumes of the pods on this node; cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    /// `KUBELET_DIR/pods`.
    pods: PathBuf,
    objects: Objects,
    /// For image volumes.
    engine: Option<Engine>,
    facts: RwLock<Facts>,
    /// What the network was asked for, by pod and volume: not again at each look at a pod.
    known: Mutex<BTreeMap<(String, String), Known>>,
}

/// A volume that is ready, and the group it asks for.
type Known = (Ready, Option<u32>);

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
        Self::with(kubelet_dir, objects, Some(engine), facts)
    }

    pub(crate) fn with(kubelet_dir: &Path, objects: Objects, engine: Option<Engine>, facts: Facts) -> Self {
        let pods = kubelet_dir.join("pods");
        Self(Arc::new(Inner { pods, objects, engine, facts: RwLock::new(facts), known: Mutex::default() }))
    }

    /// What is known of the node changed.
    pub fn set_facts(&self, facts: Facts) {
        *self.0.facts.write().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// Makes the pod's volumes ready that its containers use, and brings files of config maps, secrets, tokens and the
    /// downward API up to date; what is ready stays as it is. Image volumes are mounted by `mounts_of`, when the image has
    /// been pulled.
    ///
    /// * Errors: that of the first volume that is not ready, the others having been tried; whether to try again says
    ///   [`VolumeError::is_transient`].
    /// * Cancelled: call it again.
    pub async fn prepare(&self, pod: &Pod) -> Result<PodMounts, VolumeError> {
        let (mut ready, mut first) = (PodMounts::default(), None);
        let used = used(pod);
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if !used.contains(volume.name.as_str()) {
                continue;
            }
            match self.prepare_one(pod, volume).await {
                Ok((it, group)) => {
                    ready.groups.extend(group);
                    ready.volumes.insert(volume.name.clone(), it);
                }
                Err(problem) => {
                    let volume = volume.name.clone();
                    first.get_or_insert(VolumeError::SetUp { volume, problem });
                }
            }
        }
        let has_image = |it: &Ready| matches!(it.source, Source::Image { .. });
        if let (Some(engine), Some(uid)) = (&self.0.engine, &pod.metadata.uid)
            && ready.volumes.values().any(has_image)
        {
            image::renew(engine, uid).await;
        }
        first.map_or(Ok(ready), Err)
    }

    async fn prepare_one(&self, pod: &Pod, volume: &Volume) -> Result<Known, Problem> {
        let dir = self.dir(pod)?;
        let key = (pod.metadata.uid.clone().unwrap_or_default(), volume.name.clone());
        if let Some(known) = self.0.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let facts = self.0.facts.read().unwrap_or_else(PoisonError::into_inner).clone();
        let planned = Planner { objects: &self.0.objects, facts: &facts, pod }.plan(volume).await?;
        let address = match &planned.setup {
            Setup::Nfs(export) => Some(nfs::resolve(&export.server).await?),
            _ => None,
        };
        let is_remote = address.is_some() || volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
        let nested = nested_in(pod, &volume.name);
        let (pod, read_only, group) = (pod.clone(), planned.read_only, planned.group);
        let source = blocking(move || apply::set_up(&dir, &pod, &planned, address, &nested)).await?;
        let ready = (Ready { source, read_only }, group);
        if is_remote {
            self.0.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, ready.clone());
        }
        Ok(ready)
    }

    /// The same for a pod whose objects changed, with no need of what it mounts.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), VolumeError> {
        self.prepare(pod).await.map(drop)
    }

    /// What a container mounts; `env` is its environment, for `subPathExpr`. Sub-paths are made and held, and image volumes
    /// mounted, so it is called for each start of a container.
    pub async fn mounts_of(
        &self,
        pod: &Pod,
        ready: &PodMounts,
        wanted: Wanted<'_>,
        env: &BTreeMap<String, String>,
    ) -> Result<ContainerMounts, VolumeError> {
        let mut found = ContainerMounts::default();
        let missing = |volume: &str| VolumeError::NoSuchVolume {
            container: wanted.container.to_owned(),
            volume: volume.to_owned(),
        };
        for (index, one) in wanted.mounts.iter().enumerate() {
            let volume = ready.volumes.get(&one.name).ok_or_else(|| missing(&one.name))?;
            let source = self.source_of(pod, volume, one, wanted.container, index, env).await?;
            found.mounts.push(mount_of(one, volume, source)?);
        }
        for one in wanted.devices {
            let volume = ready.volumes.get(&one.name).ok_or_else(|| missing(&one.name))?;
            let Source::Device(source) = &volume.source else {
                let problem = Problem::Invalid("it is no block device (volumeMode: Block)".to_owned());
                return Err(VolumeError::Map { volume: one.name.clone(), problem });
            };
            let access = if volume.read_only { "r" } else { "rwm" }.to_owned();
            found.devices.push(Device { source: source.clone(), target: one.device_path.clone(), access });
        }
        Ok(found)
    }

    /// The path of the host that is mounted.
    async fn source_of(
        &self,
        pod: &Pod,
        volume: &Ready,
        one: &VolumeMount,
        container: &str,
        index: usize,
        env: &BTreeMap<String, String>,
    ) -> Result<MountSource, VolumeError> {
        let set_up = |problem| VolumeError::SetUp { volume: one.name.clone(), problem };
        let (path, create) = match &volume.source {
            Source::Path { path, create } => (path.clone(), *create),
            Source::Image { reference, path } => {
                self.mount_image(pod, &one.name, reference, path).await.map_err(set_up)?;
                (path.clone(), false)
            }
            Source::Device(_) => {
                let words = "it is a block device: it goes into volumeDevices, not volumeMounts";
                return Err(set_up(Problem::Invalid(words.to_owned())));
            }
        };
        let expression = one.sub_path_expr.as_deref().filter(|it| !it.is_empty());
        let failed =
            |problem| VolumeError::SubPath { container: container.to_owned(), volume: one.name.clone(), problem };
        let inside = match expression {
            Some(expression) => Some(expand::sub_path(expression, env).map_err(failed)?),
            None => one.sub_path.clone().filter(|it| !it.is_empty()),
        };
        let Some(inside) = inside else { return Ok(MountSource::Bind { source: path, create }) };
        let dir = self.dir(pod).map_err(failed)?;
        let target = dir.sub_path(&one.name, container, index).map_err(failed)?;
        let held = blocking(move || {
            if create && !path.exists() {
                board::durable::create_dir_all(&path, 0o755).map_err(Problem::io("make", &path))?;
            }
            sub_path::bind(&path, &inside, &target)
        });
        Ok(MountSource::Bind { source: held.await.map_err(failed)?, create: false })
    }

    async fn mount_image(&self, pod: &Pod, volume: &str, reference: &str, path: &Path) -> Result<(), Problem> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        match &self.0.engine {
            Some(engine) => image::set_up(engine, uid, volume, reference, path).await,
            None => Err(Problem::Unsupported("there is no container engine for image volumes".to_owned())),
        }
    }

    /// Takes everything of a pod's volumes away, its folder `pods/UID` included; once its containers are gone. Nothing of
    /// other volumes that were mounted there is touched. Twice is as once.
    pub async fn teardown(&self, uid: &str) -> Result<(), VolumeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |problem| VolumeError::TearDown { path, problem }
        };
        let dir = PodDir::new(&self.0.pods, uid).map_err(failed(&self.0.pods))?;
        let path = dir.path().to_owned();
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pod, _), _| pod != uid);
        if let Some(engine) = &self.0.engine {
            image::remove(engine, uid).await.map_err(failed(&path))?;
        }
        let there = path.clone();
        let removed = blocking(move || {
            if std::fs::symlink_metadata(&there).is_err() {
                return Ok(());
            }
            mount::unmount_below(&mount::real(&there))?;
            tree::remove(&there)
        });
        removed.await.map_err(failed(&path))
    }

    /// What a pod's volumes take. Those that are not ready are left out.
    pub async fn usage(&self, pod: &Pod) -> Usage {
        let mut all = BTreeMap::new();
        for (name, place) in self.places(pod) {
            let measured = blocking(move || usage::measure(&place)).await;
            all.extend(measured.ok().flatten().map(|it| (name, it)));
        }
        Usage { volumes: all }
    }

    /// Where a pod's volumes lie that take room of the node: name, path, and the claim that it comes from.
    pub fn dirs(&self, pod: &Pod) -> Vec<(String, PathBuf, Option<String>)> {
        let told = self.places(pod).into_iter().map(|(name, place)| {
            let (path, claim) = place.told();
            (name, path, claim)
        });
        told.collect()
    }

    fn places(&self, pod: &Pod) -> Vec<(String, usage::Place)> {
        let Ok(dir) = self.dir(pod) else { return Vec::new() };
        let place = |volume: &Volume| {
            let claim = crate::object::claim_of(volume, pod.metadata.name.as_deref().unwrap_or_default());
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let pv = claim.as_ref().and_then(|claim| self.0.objects.cache().claim(namespace, claim)?.spec?.volume_name);
            usage::place_of(&dir, volume, claim, pv).map(|place| (volume.name.clone(), place))
        };
        pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(place).collect()
    }

    /// Uids of pods that have a folder and are not among `keep`: to be torn down.
    pub async fn orphans(&self, keep: &BTreeSet<String>) -> Vec<String> {
        let pods = self.0.pods.clone();
        let names = blocking(move || {
            let entries = std::fs::read_dir(&pods).map_err(Problem::io("list", &pods))?;
            Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>())
        });
        names.await.unwrap_or_default().into_iter().filter(|name| !keep.contains(name)).collect()
    }

    fn dir(&self, pod: &Pod) -> Result<PodDir, Problem> {
        PodDir::new(&self.0.pods, pod.metadata.uid.as_deref().unwrap_or_default())
    }
}

/// All mounts of a pod's containers, with whose they are.
fn mounts(pod: &Pod) -> impl Iterator<Item = (&[VolumeMount], &[VolumeDevice])> {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let ephemeral = spec.into_iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let wanted = all.map(Wanted::from).chain(ephemeral.map(Wanted::from));
    wanted.map(|it| (it.mounts, it.devices))
}

/// Names of the volumes that a container mounts: others are not set up, as the kubelet does.
fn used(pod: &Pod) -> BTreeSet<&str> {
    mounts(pod)
        .flat_map(|(mounts, devices)| {
            mounts.iter().map(|it| it.name.as_str()).chain(devices.iter().map(|it| it.name.as_str()))
        })
        .collect()
}

/// Folders in a volume that other mounts of the same container go over, the outer ones first.
fn nested_in(pod: &Pod, volume: &str) -> Vec<String> {
    let mut inside = BTreeSet::new();
    for (mounts, _) in mounts(pod) {
        // With a sub-path, what is mounted is not the volume's root.
        let roots = mounts.iter().filter(|it| {
            it.name == volume
                && it.sub_path.as_ref().is_none_or(String::is_empty)
                && it.sub_path_expr.as_ref().is_none_or(String::is_empty)
        });
        for root in roots {
            let base = root.mount_path.trim_end_matches('/');
            let below = mounts.iter().filter_map(|it| it.mount_path.strip_prefix(base)?.strip_prefix('/'));
            inside.extend(below.map(|it| it.trim_matches('/')).filter(|it| !it.is_empty()).map(str::to_owned));
        }
    }
    inside.into_iter().collect()
}

/// One mount as the engine is told of it.
fn mount_of(one: &VolumeMount, volume: &Ready, source: MountSource) -> Result<Mount, VolumeError> {
    let invalid = |words: String| VolumeError::SetUp { volume: one.name.clone(), problem: Problem::Invalid(words) };
    let propagation = match one.mount_propagation.as_deref().unwrap_or("None") {
        "None" => Propagation::Rprivate,
        "HostToContainer" => Propagation::Rslave,
        "Bidirectional" => Propagation::Rshared,
        other => {
            return Err(invalid(format!("mountPropagation {other:?} is none of None, HostToContainer, Bidirectional")));
        }
    };
    let read_only = volume.read_only || one.read_only == Some(true);
    let recursive = one.recursive_read_only.as_deref().unwrap_or("Disabled");
    let recursive_read_only = match recursive {
        "Disabled" => false,
        "Enabled" | "IfPossible" if !read_only || propagation != Propagation::Rprivate => {
            return Err(invalid("recursiveReadOnly needs readOnly: true and no mountPropagation".to_owned()));
        }
        "Enabled" | "IfPossible" => true,
        other => return Err(invalid(format!("recursiveReadOnly {other:?} is none of Disabled, IfPossible, Enabled"))),
    };
    // A relative path is taken from the root, as the kubelet takes it.
    let target = if one.mount_path.starts_with('/') { one.mount_path.clone() } else { format!("/{}", one.mount_path) };
    Ok(Mount { target, source, read_only, recursive_read_only, propagation })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    let ended = |error: tokio::task::JoinError| Problem::io("work on", "volumes")(std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}

#[cfg(test)]
mod tests;
