//! Push: layers, three at a time, then the configuration, then the manifest, so that the registry never names what it lacks.
//!
//! Elsewhere: how a blob gets there, by look-up, mount or upload in parts (`registry`).

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Failure, ImageError, Images, Record,
    manifest::{Descriptor, ImageIndex, MAX_MANIFEST, Manifest, OCI_INDEX, OCI_MANIFEST},
    platforms::{self, Here},
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
    /// All that the image's index names, and the index; only what is for this board where it is not set.
    pub all_platforms: bool,
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
    /// Something that a person should know.
    Note {
        /// In words.
        text: String,
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
    /// Not everything that the index names is here.
    #[error(
        "of {image} there is nothing here for {}: get it with `image pull --all-platforms` or `image load --all-platforms`, \
         or push what is for this board alone",
        missing.join(", ")
    )]
    Incomplete {
        /// Which.
        image: String,
        /// Platforms that are missing.
        missing: Vec<String>,
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
            Self::Missing { .. } | Self::Incomplete { .. } => "not_found",
            Self::Damaged { .. } => "internal",
            Self::Blob { source, .. } | Self::Manifest { source, .. } => source.code,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Image(error) => error.is_transient(),
            Self::Blob { source, .. } | Self::Manifest { source, .. } => source.transient,
            Self::NoTag { .. } | Self::Missing { .. } | Self::Incomplete { .. } | Self::Damaged { .. } => false,
        }
    }
}

impl Images {
    /// Pushes an image under its name; the digest that the registry knows it by.
    ///
    /// * Of an image for several platforms the one for this board is pushed, and a note says so; with `all_platforms` the
    ///   whole, which has to be here.
    /// * Cancelled: the registry keeps the blobs that arrived, and the next push finds them there.
    pub async fn push(&self, request: &PushRequest, events: &mpsc::Sender<PushEvent>) -> Result<Digest, PushError> {
        let image = request.name.familiar();
        if request.name.digest().is_some() {
            return Err(PushError::NoTag { image });
        }
        let record = self.find(&request.owner, &request.name.to_string())?;
        let documents = [record.target, record.manifest, record.config];
        let _pins = self.pin(documents.into_iter().chain(record.blobs.iter().chain(&record.others).copied())).await;
        let mount_from = self.mounts(&record, &request.name);
        let pusher = Pusher { images: self, request, image: &image, mount_from: &mount_from, events };
        let digest = match self.parts(&record, &image, request.all_platforms).await? {
            Parts::One { of: platforms } => {
                if platforms > 1 {
                    let text = format!(
                        "{image} is for {platforms} platforms: only what is for {} is pushed; --all-platforms pushes the whole",
                        record.platform
                    );
                    let _ = events.send(PushEvent::Note { text }).await;
                }
                let manifest = self.manifest(&record).await?;
                pusher.blobs(std::slice::from_ref(&manifest)).await?;
                let media_type = manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST);
                let digest = pusher.document(&request.name, record.manifest, media_type).await?;
                self.pushed(&record, &request.name, record.manifest).await?;
                digest
            }
            Parts::All { index, manifests } => {
                let (entries, manifests): (Vec<_>, Vec<_>) = manifests.into_iter().unzip();
                pusher.blobs(&manifests).await?;
                for entry in &entries {
                    pusher.document(&request.name.with_digest(entry.digest), entry.digest, &entry.media_type).await?;
                }
                let media_type = index.media_type.as_deref().unwrap_or(OCI_INDEX);
                let digest = pusher.document(&request.name, record.target, media_type).await?;
                self.pushed(&record, &request.name, record.target).await?;
                digest
            }
        };
        self.tell(&request.owner, &image, &image, Action::Pushed);
        Ok(digest)
    }

    /// What of an image is to be pushed.
    async fn parts(&self, record: &Record, image: &str, all: bool) -> Result<Parts, PushError> {
        if record.target == record.manifest {
            return Ok(Parts::One { of: 1 });
        }
        let (content, target) = (self.content().clone(), record.target);
        let looked = tokio::task::spawn_blocking(move || platforms::here(&content, target)).await;
        let here = match looked.unwrap_or_else(|_| Ok(Here::default())) {
            // An index that went away is missed only where it is to be pushed.
            Err(_) if !all => Here::default(),
            other => other.map_err(ImageError::from)?,
        };
        let Some(index) = here.index else { return Ok(Parts::One { of: 1 }) };
        if !all {
            let known = |it: &&Descriptor| it.platform.as_ref().is_some_and(|it| it.os != "unknown");
            return Ok(Parts::One { of: index.manifests.iter().filter(known).count() });
        }
        if here.missing.is_empty() {
            return Ok(Parts::All { index, manifests: here.whole });
        }
        Err(PushError::Incomplete { image: image.to_owned(), missing: here.missing })
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
    async fn pushed(&self, record: &Record, name: &ImageRef, target: Digest) -> Result<(), ImageError> {
        // Where an index that it was pulled by is not what was pushed, other repositories have something else.
        let same = record.target == target;
        let mut repositories = if same { record.repositories.clone() } else { Vec::new() };
        if !repositories.contains(&name.name()) {
            repositories.push(name.name());
        }
        let record = Record { target, repositories, ..record.clone() };
        self.0.records.put(std::slice::from_ref(&record)).await?;
        Ok(())
    }
}

/// What of an image is pushed.
enum Parts {
    /// This board's manifest, of so many.
    One { of: usize },
    /// Everything.
    All { index: ImageIndex, manifests: Vec<(Descriptor, Manifest)> },
}

struct Pusher<'a> {
    images: &'a Images,
    request: &'a PushRequest,
    image: &'a str,
    mount_from: &'a [String],
    events: &'a mpsc::Sender<PushEvent>,
}

impl Pusher<'_> {
    /// The layers of all manifests, then their configurations; each once.
    async fn blobs(&self, manifests: &[Manifest]) -> Result<(), PushError> {
        let unique = |mut blobs: Vec<Descriptor>| {
            blobs.sort_by_key(|it| it.digest);
            blobs.dedup_by_key(|it| it.digest);
            blobs
        };
        let layers = unique(manifests.iter().flat_map(|it| it.layers.iter().cloned()).collect());
        // By number: a closure over references would make the whole push a future that cannot be spawned (rust#102211).
        let mut all = stream::iter(0..layers.len()).map(|n| self.blob(&layers[n])).buffer_unordered(PARALLEL);
        while let Some(result) = all.next().await {
            result?;
        }
        drop(all);
        for config in unique(manifests.iter().map(|it| it.config.clone()).collect()) {
            self.blob(&config).await?;
        }
        Ok(())
    }

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

    /// A manifest or index, under a tag or its digest.
    async fn document(&self, name: &ImageRef, digest: Digest, media_type: &str) -> Result<Digest, PushError> {
        let content = self.images.content().clone();
        let read = tokio::task::spawn_blocking(move || content.read(&digest, MAX_MANIFEST)).await;
        let bytes = read.unwrap_or(Err(ContentError::NotFound(digest))).map_err(ImageError::from)?;
        let put = self.images.0.registry.push_manifest(name, bytes.into(), media_type, &self.request.credentials).await;
        put.map_err(|error| PushError::Manifest { image: self.image.to_owned(), source: error.into() })
    }
}
