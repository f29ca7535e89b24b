//! Images, snapshots and volumes as containers see them: the engine's own answer to `container::Roots`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use futures_util::FutureExt;

use crate::{
    container::{Answer, Containers, IdRange, ImageDefaults, ImageFacts, ListFilter, RootError, Roots, VolumeWanted},
    content::Digest,
    image::{Image, ImageError, Images, InUse},
    owner::Owner,
    snapshot::{IdMap, Layer, PrepareOptions, SnapshotError, Snapshots},
    volume::{NewVolume, VolumeError, Volumes},
};

/// How exactly it is noted when an image was last used, seconds. Less than [`crate::image::Water::min_age_s`]: between this
/// and its record a new container does not hold its image yet, and what was used just now is not collected.
const NOTED_S: u64 = 60;

/// The three rooms together.
pub(crate) struct EngineRoots {
    pub images: Images,
    pub snapshots: Snapshots,
    pub volumes: Volumes,
}

fn image_error(error: ImageError) -> RootError {
    RootError { code: error.code(), transient: error.is_transient(), source: error.into() }
}

fn snapshot_error(error: SnapshotError) -> RootError {
    RootError { code: error.code(), transient: error.is_transient(), source: error.into() }
}

fn volume_error(error: VolumeError) -> RootError {
    RootError::new(error.code(), error)
}

/// What an image says of containers.
fn facts(image: &Image) -> ImageFacts {
    let config = &image.config.config;
    ImageFacts {
        id: image.id().to_string(),
        platform: image.record.platform.to_string(),
        layers: image.layers().iter().map(ToString::to_string).collect(),
        defaults: ImageDefaults {
            entrypoint: config.entrypoint.clone(),
            command: config.cmd.clone(),
            env: config.env.clone(),
            working_dir: config.working_dir.clone(),
            user: config.user.clone(),
            volumes: config.volumes.keys().cloned().collect(),
            stop_signal: Some(config.stop_signal.clone()).filter(|it| !it.is_empty()),
            labels: config.labels.clone(),
            exposed_ports: config.exposed_ports.keys().cloned().collect(),
        },
    }
}

impl EngineRoots {
    /// The unpacked layers, lowest first.
    fn layers(&self, image: &ImageFacts) -> Result<Vec<Layer>, RootError> {
        let missing = |layer: &str| {
            let words = format!("layer {layer} of image {} is not unpacked: pull the image again", image.id);
            RootError::new("not_found", words)
        };
        let ids: Vec<Digest> =
            image.layers.iter().map(|text| text.parse().map_err(|_| missing(text))).collect::<Result<_, _>>()?;
        let find =
            |(n, id): (usize, &Digest)| self.snapshots.layer(id, &ids[..n]).ok_or_else(|| missing(&id.to_string()));
        ids.iter().enumerate().map(find).collect()
    }

    async fn make_volume(&self, wanted: VolumeWanted<'_>) -> Result<PathBuf, RootError> {
        let (volumes, owner, name) = (self.volumes.clone(), wanted.owner.clone(), wanted.name.to_owned());
        let anonymous = wanted.anonymous;
        let fill = wanted.fill_from.map(|(root, at)| (root.to_owned(), at.to_owned()));
        let first = wanted.ids.map_or(0, |ids| ids.host);
        blocking(move || {
            let volume = volumes.create(&owner, &name, NewVolume { anonymous, ..NewVolume::default() })?;
            if let Some((root, at)) = fill {
                volumes.fill(&volume, &root, &at, first)?;
            }
            Ok(volume.path)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, RootError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RootError::new("internal", error))?.map_err(volume_error)
}

impl Roots for EngineRoots {
    fn image<'a>(&'a self, owner: &'a Owner, name: &'a str) -> Answer<'a, ImageFacts> {
        async move {
            let image = self.images.get(owner, name).await.map_err(image_error)?;
            // Not for every container of a crowd: each note costs a write to the disk.
            if crate::lease::now().saturating_sub(image.record.used_s) > NOTED_S {
                self.images.touch(&image).await.map_err(image_error)?;
            }
            Ok(facts(&image))
        }
        .boxed()
    }

    fn mount<'a>(
        &'a self,
        id: &'a str,
        image: &'a ImageFacts,
        ids: Option<IdRange>,
        target: &'a Path,
        volatile: bool,
    ) -> Answer<'a, ()> {
        async move {
            match self.snapshots.mount(id, target).await {
                Err(SnapshotError::NotFound(_)) => {}
                other => return other.map(drop).map_err(snapshot_error),
            }
            let layers = self.layers(image)?;
            let idmap = ids.map(|ids| IdMap { host: ids.host, size: ids.size });
            let options = PrepareOptions { idmap, volatile, ..PrepareOptions::default() };
            self.snapshots.prepare(id, &layers, target, options).await.map(drop).map_err(snapshot_error)
        }
        .boxed()
    }

    fn unmount<'a>(&'a self, id: &'a str, _target: &'a Path) -> Answer<'a, ()> {
        async move {
            match self.snapshots.unmount(id).await {
                Err(SnapshotError::NotFound(_)) => Ok(()),
                other => other.map_err(snapshot_error),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        async move { self.snapshots.remove(id).await.map_err(snapshot_error) }.boxed()
    }

    fn usage<'a>(&'a self, id: &'a str) -> Answer<'a, u64> {
        async move { self.snapshots.usage(id).await.map(|it| it.bytes).map_err(snapshot_error) }.boxed()
    }

    fn volume<'a>(&'a self, wanted: VolumeWanted<'a>) -> Answer<'a, PathBuf> {
        self.make_volume(wanted).boxed()
    }

    fn remove_volume<'a>(&'a self, owner: &'a Owner, name: &'a str) -> Answer<'a, ()> {
        async move {
            let (volumes, owner, name) = (self.volumes.clone(), owner.clone(), name.to_owned());
            // Whether a container uses it, the caller knows.
            blocking(move || match volumes.remove(&owner, &name, |_| None) {
                Err(VolumeError::NotFound { .. }) => Ok(()),
                other => other,
            })
            .await
        }
        .boxed()
    }

    fn recover<'a>(&'a self, existing: &'a [String]) -> Answer<'a, ()> {
        async move {
            let keep: BTreeSet<String> = existing.iter().cloned().collect();
            self.snapshots.retain(keep).await.map(drop).map_err(snapshot_error)
        }
        .boxed()
    }
}

/// Containers, as users of images.
pub(crate) struct ContainersUse(pub Containers);

impl InUse for ContainersUse {
    fn images(&self) -> Vec<(Digest, String)> {
        let all = self.0.list(&ListFilter::default()).into_iter();
        all.filter_map(|it| Some((it.image.id.parse().ok()?, it.name))).collect()
    }
}
