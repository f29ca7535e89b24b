//! An image of what a container wrote: one more layer over the image it was made from, and a configuration.
//!
//! Always true: the layer and its blob are held against garbage collection from the moment they are there until the record
//! names them; of a commit that fails or is dropped nothing is left but what the next collection takes.

use tokio::{io::AsyncReadExt, runtime::Handle};

use super::{
    Image, ImageConfig, ImageError, Images, Record, RunConfig,
    flight::Pins,
    manifest::{Descriptor, History, MAX_LAYERS, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST},
};
use crate::{
    content::{CHUNK, ContentError, Digest, Ingest},
    lease,
    owner::Owner,
    reference::ImageRef,
    snapshot::{Commit, CommitOptions, SnapshotError, Snapshots},
};

/// What an image is made of.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// The snapshot; where there is none, nothing was written.
    pub snapshot: &'a str,
    /// The image that it stands on, by its id.
    pub base: Digest,
    /// Who sees that image.
    pub base_owner: &'a Owner,
    /// Who gets the name.
    pub owner: Owner,
    /// The name; none: only an id.
    pub name: Option<ImageRef>,
    /// What its containers do.
    pub config: RunConfig,
    /// How the layer came to be.
    pub step: History,
}

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The image below.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What was written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A blob.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// More layers than a kernel mounts.
    #[error("the image would have over {MAX_LAYERS} layers: make it anew from fewer steps")]
    Layers,
    /// The disk, or what images may take of it, is full.
    #[error(
        "{need} bytes are needed for the new layer and {free} are left for images: remove images, raise engine.quota or grow the disk"
    )]
    NoSpace {
        /// Bytes needed, guessed.
        need: u64,
        /// Bytes left.
        free: u64,
    },
}

impl AssembleError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::Snapshot(error) => error.code(),
            Self::Content(error) => error.code(),
            Self::Layers => "invalid",
            Self::NoSpace { .. } => "no_space",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Image(error) => error.is_transient(),
            Self::Snapshot(error) => error.is_transient(),
            Self::Content(error) => error.is_transient(),
            Self::Layers => false,
            Self::NoSpace { .. } => true,
        }
    }
}

impl Images {
    /// Makes the image and gives it its name.
    pub(crate) async fn assemble(&self, snapshots: &Snapshots, wanted: Wanted<'_>) -> Result<Image, AssembleError> {
        if let Some(name) = wanted.name.as_ref().filter(|it| it.digest().is_some()) {
            return Err(ImageError::NoTag(name.familiar()).into());
        }
        let base = self.get(wanted.base_owner, &wanted.base.to_string()).await?;
        let below = &base.record;
        let mut pins = vec![self.pin(below.blobs.iter().chain(&below.layers).copied()).await];
        let mut manifest = self.manifest(below).await?;
        if manifest.layers.len() >= MAX_LAYERS {
            return Err(AssembleError::Layers);
        }
        let written = match snapshots.usage(wanted.snapshot).await {
            Ok(usage) => usage.bytes,
            Err(SnapshotError::NotFound(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        // Unpacked, and at the worst as much again compressed.
        let need = 2 * written;
        self.room_for(need).await.map_err(|free| AssembleError::NoSpace { need, free })?;
        let mut config = (*base.config).clone();
        let layer = self.layer_of(snapshots, wanted.snapshot, &mut pins).await?;
        for described in &mut manifest.layers {
            described.media_type = oci(&described.media_type).to_owned();
        }
        let mut size = below.size;
        if let Some(layer) = &layer {
            config.rootfs.diff_ids.push(layer.layer.diff_id);
            let kind = layer.media_type.to_owned();
            manifest.layers.push(Descriptor { digest: layer.digest, size: layer.size, ..Descriptor::of(&kind, b"") });
            size += layer.layer.bytes;
        }
        complete(&mut config.history, base.layers().len());
        config.created.clone_from(&wanted.step.created);
        config.author.clone_from(&wanted.step.author);
        config.config = wanted.config;
        config.history.push(History { empty_layer: layer.is_none(), ..wanted.step });
        let (config_digest, manifest_digest) = self.documents(&config, manifest.clone(), &mut pins).await?;
        let now = lease::now();
        let record = Record {
            name: wanted.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            owner: wanted.owner,
            target: manifest_digest,
            manifest: manifest_digest,
            config: config_digest,
            layers: config.rootfs.diff_ids.clone(),
            blobs: manifest.layers.iter().map(|it| it.digest).collect(),
            platform: below.platform.clone(),
            size,
            created_s: now,
            used_s: now,
            repositories: Vec::new(),
            others: Vec::new(),
        };
        let record = self.name(record).await.map_err(ImageError::from)?;
        self.grew().await;
        Ok(Image { record, config: config.into() })
    }

    /// The new layer, unpacked and as a blob; none where nothing was ever written.
    async fn layer_of(
        &self,
        snapshots: &Snapshots,
        snapshot: &str,
        pins: &mut Vec<Pins>,
    ) -> Result<Option<Commit>, AssembleError> {
        // From when it is there until it is pinned, no layer is removed.
        let _none = self.0.removal.read().await;
        let (to, mut from) = tokio::io::duplex(2 * CHUNK);
        let (content, runtime) = (self.content().clone(), Handle::current());
        let store = tokio::task::spawn_blocking(move || {
            let mut ingest = content.ingest_new()?;
            let mut buffer = vec![0; CHUNK];
            loop {
                let read = runtime.block_on(from.read(&mut buffer));
                match read.map_err(ContentError::io("read", &ingest.dir()))? {
                    0 => return Ok::<Ingest, ContentError>(ingest),
                    n => ingest.append(&buffer[..n])?,
                }
            }
        });
        let committed = snapshots.commit(snapshot, CommitOptions::default(), to).await;
        let dir = self.content().dir().to_owned();
        let failed = move |error| ContentError::io("write", &dir)(std::io::Error::other(error));
        // A disk that is full is the cause of both, and is told here.
        let ingest = store.await.map_err(&failed)??;
        let layer = match committed {
            Err(SnapshotError::NotFound(_)) => return Ok(None),
            other => other?,
        };
        pins.push(self.0.flights.pin([layer.digest, layer.layer.diff_id]));
        let digest = layer.digest;
        tokio::task::spawn_blocking(move || ingest.commit(Some(digest))).await.map_err(&failed)??;
        Ok(Some(layer))
    }

    /// Writes configuration and manifest; their digests.
    async fn documents(
        &self,
        config: &ImageConfig,
        manifest: Manifest,
        pins: &mut Vec<Pins>,
    ) -> Result<(Digest, Digest), AssembleError> {
        let json = |result: serde_json::Result<Vec<u8>>| {
            result.map_err(|error| ContentError::io("write", self.content().dir())(error.into()))
        };
        let config = json(serde_json::to_vec(config))?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: Descriptor::of(OCI_CONFIG, &config),
            // What they said was of the image below.
            annotations: std::collections::BTreeMap::new(),
            ..manifest
        };
        let manifest = json(serde_json::to_vec(&manifest))?;
        pins.push(self.0.flights.pin([Digest::of(&config), Digest::of(&manifest)]));
        let content = self.content().clone();
        let put = tokio::task::spawn_blocking(move || Ok((content.put(&config)?, content.put(&manifest)?)));
        let failed = |error| ContentError::io("write", self.content().dir())(std::io::Error::other(error));
        put.await.map_err(failed)?.map_err(AssembleError::Content)
    }
}

/// A step for each layer: readers count those that are not empty.
fn complete(history: &mut Vec<History>, layers: usize) {
    let told = history.iter().filter(|it| !it.empty_layer).count();
    history.extend((told..layers).map(|_| History::default()));
}

/// OCI's name of a kind of layer: a manifest of OCI's names no other.
fn oci(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar" => OCI_LAYER,
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => OCI_LAYER_GZIP,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_has_a_step() {
        let mut history = vec![History { empty_layer: true, ..History::default() }, History::default()];
        complete(&mut history, 3);
        assert_eq!(history.iter().filter(|it| !it.empty_layer).count(), 3);
        complete(&mut history, 3);
        assert_eq!(history.len(), 4);
    }
}
