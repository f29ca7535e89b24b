//! Push: layers, three at a time, then the configuration, then the manifest, so that the registry never names what it lacks.
//!
//! Elsewhere: how a blob gets there, by look-up, mount or upload in parts (`registry`).

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Failure, ImageError, Images, Record,
    manifest::{Descriptor, MAX_MANIFEST, OCI_MANIFEST},
};
use crate::{
    content::{ContentError, Digest},
    event::Action,
    owner::Owner,
    reference::ImageRef,
    registry::{Credentials, Pushed as BlobPushed},
};

/// Blobs on their way at once.
const PARALLEL: usize = 3;
/// Repositories that are asked to share a blob.
const MOUNTS: usize = 3;

/// What to push.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// Which image, and where to: the name says both.
    pub name: ImageRef,
    /// Whose name.
    pub owner: Owner,
    /// For the registry.
    pub credentials: Credentials,
}

/// How far a blob is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum PushStatus {
    /// Not yet begun.
    Waiting,
    /// On its way.
    Uploading {
        /// So far.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// The registry had it.
    Exists,
    /// The registry took it from another repository.
    Mounted,
    /// Sent.
    Done,
}

/// What a push tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum PushEvent {
    /// A blob went on.
    Layer {
        /// Which.
        layer: Digest,
        /// How far.
        #[serde(flatten)]
        status: PushStatus,
    },
}

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It is not here, or not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A name with a digest.
    #[error("{image} has a digest: push by a tag")]
    NoTag {
        /// Which.
        image: String,
    },
    /// A compressed layer was given up for room, and the registry does not have it.
    #[error("layer {layer} of {image} is here in its unpacked form only: pull the image again, then push")]
    Missing {
        /// Which blob.
        layer: Digest,
        /// Of which image.
        image: String,
    },
    /// A blob was damaged here.
    #[error("layer {layer} of {image} is damaged on disk and was set aside: pull the image again, then push")]
    Damaged {
        /// Which blob.
        layer: Digest,
        /// Of which image.
        image: String,
    },
    /// The registry did not take a blob.
    #[error("layer {layer} of {image}: {source}")]
    Blob {
        /// Which.
        layer: Digest,
        /// Of which image.
        image: String,
        /// Why.
        source: Failure,
    },
    /// The registry did not take the manifest.
    #[error("{image}: {source}")]
    Manifest {
        /// Which.
        image: String,
        /// Why.
        source: Failure,
    },
}

impl PushError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::NoTag { .. } => "invalid",
            Self::Missing { .. } => "not_found",
            Self::Damaged { .. } => "internal",
            Self::Blob { source, .. } | Self::Manifest { source, .. } => source.code,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Image(error) => error.is_transient(),
            Self::Blob { source, .. } | Self::Manifest { source, .. } => source.transient,
            Self::NoTag { .. } | Self::Missing { .. } | Self::Damaged { .. } => false,
        }
    }
}

impl Images {
    /// Pushes an image under its name; the digest that the registry knows it by.
    ///
    /// * Of an image for several platforms, what is here is pushed: the one for this board.
    /// * Cancelled: the registry keeps the blobs that arrived, and the next push finds them there.
    pub async fn push(&self, request: &PushRequest, events: &mpsc::Sender<PushEvent>) -> Result<Digest, PushError> {
        let image = request.name.familiar();
        if request.name.digest().is_some() {
            return Err(PushError::NoTag { image });
        }
        let record = self.find(&request.owner, &request.name.to_string())?;
        let documents = [record.target, record.manifest, record.config];
        let _pins = self.pin(documents.into_iter().chain(record.blobs.iter().copied())).await;
        let manifest = self.manifest(&record).await?;
        let mount_from = self.mounts(&record, &request.name);
        let pusher = Pusher { images: self, request, image: &image, mount_from: &mount_from, events };
        // A blob that is in an image twice is sent once.
        let mut blobs = manifest.layers.clone();
        blobs.sort_by_key(|it| it.digest);
        blobs.dedup_by_key(|it| it.digest);
        let mut all = stream::iter(0..blobs.len()).map(|n| pusher.blob(&blobs[n])).buffer_unordered(PARALLEL);
        while let Some(result) = all.next().await {
            result?;
        }
        drop(all);
        pusher.blob(&manifest.config).await?;
        let digest = pusher.manifest(&record, manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST)).await?;
        self.pushed(&record, &request.name).await?;
        self.tell(&request.owner, &image, &image, Action::Pushed);
        Ok(digest)
    }

    /// Repositories of the same registry that have blobs of this image.
    fn mounts(&self, record: &Record, name: &ImageRef) -> Vec<String> {
        let blobs: std::collections::BTreeSet<_> = record.blobs.iter().collect();
        let all = self.list(None);
        let sharing = all.iter().filter(|it| it.blobs.iter().any(|blob| blobs.contains(blob)));
        let prefix = format!("{}/", name.registry());
        let mut found: Vec<_> = sharing
            .flat_map(|it| &it.repositories)
            .filter_map(|it| it.strip_prefix(&prefix))
            .filter(|it| *it != name.repository())
            .map(str::to_owned)
            .collect();
        found.sort_unstable();
        found.dedup();
        found.truncate(MOUNTS);
        found
    }

    /// Notes that the registry has it.
    async fn pushed(&self, record: &Record, name: &ImageRef) -> Result<(), ImageError> {
        // An index that it was pulled by is not what was pushed.
        let same = record.target == record.manifest;
        let mut repositories = if same { record.repositories.clone() } else { Vec::new() };
        if !repositories.contains(&name.name()) {
            repositories.push(name.name());
        }
        let record = Record { target: record.manifest, repositories, ..record.clone() };
        self.0.records.put(std::slice::from_ref(&record)).await?;
        Ok(())
    }
}

struct Pusher<'a> {
    images: &'a Images,
    request: &'a PushRequest,
    image: &'a str,
    mount_from: &'a [String],
    events: &'a mpsc::Sender<PushEvent>,
}

impl Pusher<'_> {
    async fn blob(&self, blob: &Descriptor) -> Result<(), PushError> {
        let (layer, image, total) = (blob.digest, self.image.to_owned(), blob.size);
        let content = self.images.content();
        let _ = self.events.try_send(PushEvent::Layer { layer, status: PushStatus::Waiting });
        let events = self.events.clone();
        let progress = Arc::new(move |bytes| {
            // One that does not fit is followed by a newer one.
            let _ = events.try_send(PushEvent::Layer { layer, status: PushStatus::Uploading { bytes, total } });
        });
        let path = content.path(&layer);
        let (name, credentials) = (&self.request.name, &self.request.credentials);
        let pushed = self.images.0.registry.push_blob(name, blob, &path, self.mount_from, credentials, progress).await;
        let status = match pushed {
            Ok(BlobPushed::Existed) => PushStatus::Exists,
            Ok(BlobPushed::Mounted) => PushStatus::Mounted,
            Ok(BlobPushed::Uploaded) => PushStatus::Done,
            Err(_) if content.size(&layer).is_none() => return Err(PushError::Missing { layer, image }),
            Err(error) => {
                let source = Failure::from(error);
                if !source.transient && self.is_damaged(layer).await {
                    return Err(PushError::Damaged { layer, image });
                }
                return Err(PushError::Blob { layer, image, source });
            }
        };
        let _ = self.events.send(PushEvent::Layer { layer, status }).await;
        Ok(())
    }

    /// A registry that refuses a blob may be right: its bytes are looked at, and set aside where they have changed.
    async fn is_damaged(&self, digest: Digest) -> bool {
        let content = self.images.content().clone();
        let check = move || {
            let damaged = matches!(content.verify(&digest), Err(ContentError::Damaged { .. }));
            damaged && content.set_aside(&digest).is_ok()
        };
        tokio::task::spawn_blocking(check).await.unwrap_or(false)
    }

    async fn manifest(&self, record: &Record, media_type: &str) -> Result<Digest, PushError> {
        let (content, digest) = (self.images.content().clone(), record.manifest);
        let read = tokio::task::spawn_blocking(move || content.read(&digest, MAX_MANIFEST)).await;
        let bytes = read.unwrap_or(Err(ContentError::NotFound(digest))).map_err(ImageError::from)?;
        let (name, credentials) = (&self.request.name, &self.request.credentials);
        let put = self.images.0.registry.push_manifest(name, bytes.into(), media_type, credentials).await;
        put.map_err(|error| PushError::Manifest { image: self.image.to_owned(), source: error.into() })
    }
}
