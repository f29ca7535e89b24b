//! Pull: name → index → manifest → configuration → layers, some at a time → the record.
//!
//! Always true:
//! - The record is written last: a name always stands for a whole image. Blobs are durable then; unpacked layers are synced
//!   behind the pull's back (`snapshot`), and one that a power cut spoils meanwhile is unpacked again from its blob.
//! - A pull that is dropped, killed or cut leaves what it fetched; the next one asks the registry only for the rest.
//! - What is there already is not fetched: blobs by their digest, layers by their diff id.
//!
//! Elsewhere: one layer's way (`fetch`), who shares a download (`flight`), room on disk (`space`).

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Image, Images,
    fetch::{Fetcher, Wanted},
    flight::Pins,
    manifest::{
        self, Descriptor, Document, DocumentError, ImageConfig, ImageIndex, MAX_CONFIG, MAX_MANIFEST, Manifest,
    },
    record::{Record, RecordError},
    remote::Repository,
    seam::{Failure, NEEDS_BELOW, RawManifest, Remote, Unpacked},
};
use crate::{
    content::{ContentError, Digest},
    event::Action,
    lease,
    owner::Owner,
    platform::Platform,
    reference::ImageRef,
    registry::Credentials,
};

/// When the registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Always; what is here is used where the registry cannot be reached, and that is reported.
    #[default]
    Always,
    /// Only where the image is not here.
    Missing,
    /// Never.
    Never,
}

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Which image.
    pub name: ImageRef,
    /// Who gets the name.
    pub owner: Owner,
    /// For what; this machine where absent.
    pub platform: Option<Platform>,
    /// When the registry is asked.
    pub policy: PullPolicy,
    /// For the registry; never for its mirrors.
    pub credentials: Credentials,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum LayerStatus {
    /// Not yet begun.
    Waiting,
    /// On its way, and being unpacked meanwhile.
    Downloading {
        /// So far.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// Downloaded; the rest is being unpacked.
    Unpacking,
    /// The connection broke, and it will go on.
    Retrying {
        /// Why.
        problem: String,
        /// In how long.
        wait_ms: u64,
    },
    /// Unpacked.
    Done,
    /// Was here already.
    Exists,
}

/// What a pull tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum PullEvent {
    /// The registry was asked, and this is what the name means.
    Resolved {
        /// The manifest.
        digest: Digest,
        /// Compressed layers and their bytes, lowest first.
        layers: Vec<(Digest, u64)>,
    },
    /// A layer went on.
    Layer {
        /// Which, by its compressed blob.
        layer: Digest,
        /// How far.
        #[serde(flatten)]
        status: LayerStatus,
    },
    /// Something that a person should know.
    Note {
        /// In words.
        text: String,
    },
}

/// What came of a pull.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Whether anything changed.
    pub changed: bool,
    /// Why the registry could not be asked, where what was here is used instead.
    pub offline: Option<String>,
}

/// Why an image was not pulled. What was fetched is kept for the next try.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// It is not here, and the registry is not to be asked.
    #[error("{image} is not here and the pull policy is never: load it, or pull it with another policy")]
    Absent {
        /// Which.
        image: String,
    },
    /// The registry did not give the manifest.
    #[error("{image}: {source}")]
    Resolve {
        /// Which.
        image: String,
        /// Why.
        source: Failure,
    },
    /// The registry did not give a blob.
    #[error("layer {layer} of {image}: {source}")]
    Download {
        /// Which blob.
        layer: Digest,
        /// Of which image.
        image: String,
        /// Why.
        source: Failure,
    },
    /// A layer did not unpack.
    #[error("layer {layer} of {image} cannot be unpacked: {source}")]
    Unpack {
        /// Which blob.
        layer: Digest,
        /// Of which image.
        image: String,
        /// Why.
        source: Failure,
    },
    /// A blob was damaged on its way or on disk.
    #[error("layer {layer} of {image} is damaged: it was set aside; pull again")]
    Damaged {
        /// Which blob.
        layer: Digest,
        /// Of which image.
        image: String,
    },
    /// The download ended early.
    #[error("layer {layer} of {image} ended early; what came is kept: pull again")]
    Ended {
        /// Which blob.
        layer: Digest,
        /// Of which image.
        image: String,
    },
    /// A blob was not written or read.
    #[error("{digest} of {image}: {source}")]
    Content {
        /// Which blob.
        digest: Digest,
        /// Of which image.
        image: String,
        /// Why.
        source: Box<ContentError>,
    },
    /// A manifest or configuration was not understood.
    #[error("{image}: {source}")]
    Document {
        /// Which.
        image: String,
        /// Why.
        source: DocumentError,
    },
    /// For other machines.
    #[error("{image} is for {has}, and {want} is needed: take another tag, or ask for that platform with --platform")]
    Platform {
        /// Which.
        image: String,
        /// What it is for.
        has: String,
        /// What is needed.
        want: String,
    },
    /// The disk, or what images may take of it, is full.
    #[error(
        "{path} has {free} bytes left for images and {need} are needed for {}{image}: remove images, raise engine.quota or grow the disk",
        layer.map(|it| format!("layer {it} of ")).unwrap_or_default()
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes that images may still take.
        free: u64,
        /// Bytes needed.
        need: u64,
        /// For which layer; absent where the whole image is meant.
        layer: Option<Digest>,
        /// For which image.
        image: String,
    },
    /// The name was not recorded.
    #[error("{image} was fetched and could not be recorded")]
    Record {
        /// Which.
        image: String,
        /// Why.
        source: RecordError,
    },
}

impl PullError {
    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { source, .. } | Self::Download { source, .. } | Self::Unpack { source, .. } => {
                source.transient
            }
            Self::Content { source, .. } => source.is_transient(),
            Self::Damaged { .. } | Self::Ended { .. } | Self::NoSpace { .. } | Self::Record { .. } => true,
            Self::Absent { .. } | Self::Document { .. } | Self::Platform { .. } => false,
        }
    }

    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "not_found",
            Self::Resolve { source, .. } | Self::Download { source, .. } | Self::Unpack { source, .. } => source.code,
            Self::Damaged { .. } | Self::Ended { .. } => "unavailable",
            Self::Content { source, .. } => source.code(),
            Self::Document { .. } => "invalid",
            Self::Platform { .. } => "platform",
            Self::NoSpace { .. } => "no_space",
            Self::Record { .. } => "internal",
        }
    }

    /// Whether bytes were not what they should be, so that fetching them anew may help.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Content { source, .. } => matches!(**source, ContentError::Mismatch { .. }),
            _ => false,
        }
    }

    pub(crate) fn needs_below(&self) -> bool {
        matches!(self, Self::Unpack { source, .. } if source.code == NEEDS_BELOW)
    }
}

/// Everything a name stands for, found or fetched, before its layers.
struct Resolved {
    target: Digest,
    manifest_digest: Digest,
    manifest: Manifest,
    config_digest: Digest,
    config: ImageConfig,
}

impl Images {
    /// Pulls an image, as far as it is not here already.
    ///
    /// * `events`: what happens meanwhile; a full channel loses steps of a download, nothing else, and a closed one is no error.
    /// * Concurrent pulls of one blob share its download.
    /// * Cancelled: what was fetched is kept, and the next pull goes on there.
    pub async fn pull(&self, request: &PullRequest, events: &mpsc::Sender<PullEvent>) -> Result<Pulled, PullError> {
        let (registry, name, credentials) =
            (self.0.registry.clone(), request.name.clone(), request.credentials.clone());
        let repository = Repository { registry, name, credentials };
        self.pull_from(request, Arc::new(repository), events).await
    }

    /// One image over a given remote: what [`Images::pull`] does once it knows whom to ask.
    pub(crate) async fn pull_from(
        &self,
        request: &PullRequest,
        remote: Arc<dyn Remote>,
        events: &mpsc::Sender<PullEvent>,
    ) -> Result<Pulled, PullError> {
        let result = self.pull_uncounted(request, remote, events).await;
        self.0.counts.pulled(&result);
        // Also where it failed: what came meanwhile is on the disk.
        self.grew().await;
        result
    }

    async fn pull_uncounted(
        &self,
        request: &PullRequest,
        remote: Arc<dyn Remote>,
        events: &mpsc::Sender<PullEvent>,
    ) -> Result<Pulled, PullError> {
        let image = request.name.familiar();
        let want = request.platform.clone().unwrap_or_else(Platform::host);
        let local = self.local(request, &want).await;
        let here = |image: Image, offline| Pulled { image, changed: false, offline };
        match (request.policy, local.clone()) {
            (PullPolicy::Never | PullPolicy::Missing, Some(local)) => return Ok(here(local, None)),
            (PullPolicy::Never, None) => return Err(PullError::Absent { image }),
            _ => {}
        }
        let puller = Puller::new(self, &*remote, &request.name, &image, events);
        let first = match puller.ask(&request.name).await {
            Ok(first) => first,
            Err(PullError::Resolve { source, .. }) if source.transient && local.is_some() => {
                let Some(local) = local else { return Err(PullError::Absent { image }) };
                let text = format!("{image}: the registry cannot be asked ({source}); the image that is here is used");
                let _ = events.send(PullEvent::Note { text: text.clone() }).await;
                return Ok(here(local, Some(text)));
            }
            Err(error) => return Err(error),
        };
        let resolved = puller.resolve(first, &want).await?;
        let before = local.filter(|it| it.record.config == resolved.config_digest);
        let record = puller.fetch(&resolved, request).await?;
        let changed = before.is_none_or(|it| it.record.target != record.target);
        let config = Arc::new(resolved.config);
        self.tell(&request.owner, &image, &image, Action::Pulled);
        Ok(Pulled { image: Image { record, config }, changed, offline: None })
    }

    /// The image that is here, whole, under the name.
    async fn local(&self, request: &PullRequest, want: &Platform) -> Option<Image> {
        let record = self.named(&request.owner, &request.name.to_string())?;
        if want.fit(&record.platform).is_none() || !(self.is_whole(&record).await || self.mend(&record).await) {
            return None;
        }
        let image = self.load_config(record).await.ok()?;
        // An image that is asked for is in use.
        let _ = self.0.records.touch(std::slice::from_ref(&image.record)).await;
        Some(image)
    }
}

pub(super) struct Puller<'a> {
    pub images: &'a Images,
    pub remote: &'a dyn Remote,
    pub name: &'a ImageRef,
    pub image: &'a str,
    pub events: &'a mpsc::Sender<PullEvent>,
    /// What this pull has looked for, against its removal meanwhile.
    pins: std::sync::Mutex<Vec<Pins>>,
}

impl<'a> Puller<'a> {
    pub fn new(
        images: &'a Images,
        remote: &'a dyn Remote,
        name: &'a ImageRef,
        image: &'a str,
        events: &'a mpsc::Sender<PullEvent>,
    ) -> Self {
        Self { images, remote, name, image, events, pins: std::sync::Mutex::default() }
    }

    pub async fn pin(&self, digests: impl IntoIterator<Item = Digest>) {
        let pins = self.images.pin(digests).await;
        self.pins.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(pins);
    }

    async fn ask(&self, name: &ImageRef) -> Result<RawManifest, PullError> {
        self.remote.manifest(name).await.map_err(|source| PullError::Resolve { image: self.image.to_owned(), source })
    }

    async fn resolve(&self, first: RawManifest, want: &Platform) -> Result<Resolved, PullError> {
        let target = first.digest;
        let manifest_digest;
        let parsed = self.document(&first)?;
        self.put(&first).await?;
        let manifest = match parsed {
            Document::Image(manifest) => {
                manifest_digest = target;
                manifest
            }
            Document::Index(index) => {
                let entry = self.choose(&index, want)?;
                let raw = self.manifest_of(entry).await?;
                manifest_digest = raw.digest;
                match self.document(&raw)? {
                    Document::Image(manifest) => {
                        self.put(&raw).await?;
                        manifest
                    }
                    Document::Index(_) => return Err(self.invalid(raw.digest, "an index inside an index")),
                }
            }
        };
        let config_digest = manifest.config.digest;
        let bytes = self.config(&manifest.config).await?;
        let config = ImageConfig::parse(config_digest, &bytes)
            .map_err(|source| PullError::Document { image: self.image.to_owned(), source })?;
        let has = config.platform();
        if want.fit(&has).is_none() {
            return Err(PullError::Platform {
                image: self.image.to_owned(),
                has: has.to_string(),
                want: want.to_string(),
            });
        }
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let (ids, layers) = (config.rootfs.diff_ids.len(), manifest.layers.len());
            let problem = format!("it has {layers} layers and its configuration names {ids}");
            return Err(self.invalid(manifest_digest, &problem));
        }
        Ok(Resolved { target, manifest_digest, manifest, config_digest, config })
    }

    fn choose<'i>(&self, index: &'i ImageIndex, want: &Platform) -> Result<&'i Descriptor, PullError> {
        let entries: Vec<_> = index.manifests.iter().filter(|it| it.platform.is_some()).collect();
        let chosen = want.choose(entries.iter().filter_map(|it| it.platform.as_ref()));
        // One entry that says nothing of its platform is judged by its configuration.
        let only = index.manifests.first().filter(|it| index.manifests.len() == 1 && it.platform.is_none());
        chosen.map(|n| entries[n]).or(only).ok_or_else(|| {
            let mut has: Vec<_> =
                entries.iter().filter_map(|it| it.platform.as_ref().map(ToString::to_string)).collect();
            has.retain(|it| it != "unknown/unknown");
            has.dedup();
            let has = if has.is_empty() { "no platform at all".to_owned() } else { has.join(", ") };
            PullError::Platform { image: self.image.to_owned(), has, want: want.to_string() }
        })
    }

    /// The manifest of an index's entry, from the disk where it is there.
    pub async fn manifest_of(&self, entry: &Descriptor) -> Result<RawManifest, PullError> {
        let digest = entry.digest;
        if let Some(bytes) = self.stored(digest, MAX_MANIFEST).await {
            return Ok(RawManifest { bytes, media_type: entry.media_type.clone(), digest });
        }
        let raw = self.ask(&self.name.with_digest(digest)).await?;
        let got = Digest::of(&raw.bytes);
        if got != digest {
            return Err(self.content(digest)(ContentError::Mismatch { want: digest, got }));
        }
        Ok(RawManifest { digest, ..raw })
    }

    pub async fn config(&self, config: &Descriptor) -> Result<Bytes, PullError> {
        if let Some(bytes) = self.stored(config.digest, MAX_CONFIG).await {
            return Ok(bytes);
        }
        let bytes = self.remote.small(config).await.map_err(|source| {
            let (layer, image) = (config.digest, self.image.to_owned());
            PullError::Download { layer, image, source }
        })?;
        let got = Digest::of(&bytes);
        if got != config.digest {
            return Err(self.content(config.digest)(ContentError::Mismatch { want: config.digest, got }));
        }
        let (content, kept) = (self.images.0.content.clone(), bytes.clone());
        self.blocking(config.digest, move || content.put(&kept)).await?;
        Ok(bytes)
    }

    /// A small blob that is here and sound; a damaged one is set aside.
    pub async fn stored(&self, digest: Digest, max: u64) -> Option<Bytes> {
        self.pin([digest]).await;
        let content = self.images.0.content.clone();
        let read = tokio::task::spawn_blocking(move || match content.read(&digest, max) {
            Ok(bytes) => Some(bytes.into()),
            Err(ContentError::NotFound(_)) => None,
            Err(error) => {
                tracing::warn!(%error, "a blob cannot be used and is fetched anew");
                let _ = content.set_aside(&digest);
                None
            }
        });
        read.await.ok().flatten()
    }

    pub async fn put(&self, raw: &RawManifest) -> Result<(), PullError> {
        let got = Digest::of(&raw.bytes);
        if got != raw.digest {
            return Err(self.content(raw.digest)(ContentError::Mismatch { want: raw.digest, got }));
        }
        self.pin([got]).await;
        let (content, bytes) = (self.images.0.content.clone(), raw.bytes.clone());
        self.blocking(raw.digest, move || content.put(&bytes)).await.map(|_| ())
    }

    /// The layers, then the record.
    async fn fetch(&self, resolved: &Resolved, request: &PullRequest) -> Result<Record, PullError> {
        let (manifest, diff_ids) = (&resolved.manifest, &resolved.config.rootfs.diff_ids);
        self.pin(manifest.layers.iter().map(|it| it.digest).chain(diff_ids.iter().copied())).await;
        let layers = manifest.layers.iter().map(|it| (it.digest, it.size)).collect();
        let _ = self.events.send(PullEvent::Resolved { digest: resolved.manifest_digest, layers }).await;
        self.images.make_room(manifest, diff_ids, self.image).await?;
        let unpacked = self.layers(manifest, diff_ids).await?;
        let record = Record {
            name: request.name.to_string(),
            owner: request.owner.clone(),
            target: resolved.target,
            manifest: resolved.manifest_digest,
            config: resolved.config_digest,
            layers: diff_ids.clone(),
            blobs: manifest.layers.iter().map(|it| it.digest).collect(),
            platform: resolved.config.platform(),
            size: unpacked.iter().map(|it| it.bytes).sum(),
            created_s: lease::now(),
            used_s: lease::now(),
            repositories: vec![request.name.name()],
            others: self.images.kept_others(request, resolved.target),
        };
        let named = self.images.name(record).await;
        named.map_err(|source| PullError::Record { image: self.image.to_owned(), source })
    }

    async fn layers(&self, manifest: &Manifest, diff_ids: &[Digest]) -> Result<Vec<Unpacked>, PullError> {
        let fetcher = self.images.fetcher();
        let source = format!("{} ({})", self.name.name(), self.image);
        let wanted: Vec<_> = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .enumerate()
            .map(|(n, (blob, diff_id))| Wanted {
                blob: blob.clone(),
                diff_id: *diff_id,
                below: diff_ids[..n].to_vec(),
                with_below: false,
                image: self.image.to_owned(),
                source: source.clone(),
            })
            .collect();
        let mut done = vec![None; wanted.len()];
        let mut later = Vec::new();
        // By number: a closure over references would make the whole pull a future that cannot be spawned (rust#102211).
        let mut all = stream::iter(0..wanted.len())
            .map(|n| {
                let (fetcher, wanted) = (&fetcher, &wanted[n]);
                async move { (n, self.layer(fetcher, wanted).await) }
            })
            .buffer_unordered(self.images.0.parallel_downloads);
        while let Some((n, result)) = all.next().await {
            match result {
                Ok(layer) => done[n] = Some(layer),
                Err(error) if error.needs_below() => later.push(n),
                Err(error) => return Err(error),
            }
        }
        drop(all);
        // Layers with hard links into lower ones: from the bottom up, from what is on disk by now.
        later.sort_unstable();
        let mut wanted = wanted;
        for n in later {
            wanted[n].with_below = true;
            done[n] = Some(self.layer(&fetcher, &wanted[n]).await?);
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// One layer, with its progress told.
    async fn layer(&self, fetcher: &Fetcher, wanted: &Wanted) -> Result<Unpacked, PullError> {
        let layer = wanted.blob.digest;
        let flight = self.images.0.flights.join(layer);
        let mut progress = flight.progress.subscribe();
        let mut work = std::pin::pin!(fetcher.layer(self.remote, wanted, &flight));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut work => break result,
                Ok(()) = progress.changed() => {
                    let status = progress.borrow_and_update().clone();
                    // One that does not fit is followed by a newer one.
                    let _ = self.events.try_send(PullEvent::Layer { layer, status });
                }
            }
        };
        if result.is_ok() {
            let exists = *flight.progress.borrow() == LayerStatus::Exists;
            let status = if exists { LayerStatus::Exists } else { LayerStatus::Done };
            let _ = self.events.send(PullEvent::Layer { layer, status }).await;
        }
        result
    }

    pub fn document(&self, raw: &RawManifest) -> Result<Document, PullError> {
        manifest::document(raw.digest, &raw.media_type, &raw.bytes)
            .map_err(|source| PullError::Document { image: self.image.to_owned(), source })
    }

    fn invalid(&self, digest: Digest, problem: &str) -> PullError {
        let source = DocumentError::Invalid { what: "manifest", digest, problem: problem.to_owned() };
        PullError::Document { image: self.image.to_owned(), source }
    }

    fn content(&self, digest: Digest) -> impl FnOnce(ContentError) -> PullError {
        let image = self.image.to_owned();
        move |source| match source {
            ContentError::NoSpace { path, free } => PullError::NoSpace { path, free, need: 0, layer: None, image },
            source => PullError::Content { digest, image, source: Box::new(source) },
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        digest: Digest,
        work: impl FnOnce() -> Result<T, ContentError> + Send + 'static,
    ) -> Result<T, PullError> {
        let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(ContentError::Io { action: "write", path: PathBuf::from(digest.hex()), source })
        });
        result.map_err(self.content(digest))
    }
}
