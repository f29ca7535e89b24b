//! Images for several platforms as a whole: what of an index is here, and how the rest is fetched.
//!
//! A board unpacks one platform's layers. The others are kept compressed, and only where somebody asks for them, so that the
//! whole can be pushed to another registry.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    Image, ImageError, Images, LayerStatus, PullError, PullEvent, PullRequest, Pulled, Record,
    fetch::Wanted,
    manifest::{self, Descriptor, Document, DocumentError, ImageIndex, MAX_MANIFEST, Manifest},
    pull::Puller,
    remote::Repository,
    seam::Remote,
};
use crate::content::{Content, ContentError, Digest};

/// What of an image for several platforms is here.
#[derive(Debug, Default)]
pub(super) struct Here {
    /// The index; none where the name means a single manifest.
    pub index: Option<ImageIndex>,
    /// Manifests of the index that are here with all their blobs.
    pub whole: Vec<(Descriptor, Manifest)>,
    /// The rest, as people call it.
    pub missing: Vec<String>,
}

impl Here {
    /// Everything that belongs to the manifests that are whole.
    pub fn blobs(&self) -> Vec<Digest> {
        let of = |(entry, manifest): &(Descriptor, Manifest)| {
            [entry.digest, manifest.config.digest]
                .into_iter()
                .chain(manifest.layers.iter().map(|it| it.digest))
                .collect()
        };
        let mut all: Vec<Digest> = self.whole.iter().flat_map(|it| -> Vec<Digest> { of(it) }).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What an entry is for.
pub(super) fn platform_of(entry: &Descriptor) -> String {
    entry.platform.as_ref().map_or_else(|| entry.digest.to_string(), ToString::to_string)
}

/// Looks at the index that `target` is. Blocking.
pub(super) fn here(content: &Content, target: Digest) -> Result<Here, DocumentOrContent> {
    let Document::Index(index) = manifest::document(target, "", &content.read(&target, MAX_MANIFEST)?)? else {
        return Ok(Here::default());
    };
    let mut here = Here::default();
    for entry in &index.manifests {
        match whole(content, entry)? {
            Some(manifest) => here.whole.push((entry.clone(), manifest)),
            None => here.missing.push(platform_of(entry)),
        }
    }
    Ok(Here { index: Some(index), ..here })
}

/// An entry's manifest, where all that it names is here.
fn whole(content: &Content, entry: &Descriptor) -> Result<Option<Manifest>, DocumentOrContent> {
    let bytes = match content.read(&entry.digest, MAX_MANIFEST) {
        Err(ContentError::NotFound(_)) => return Ok(None),
        other => other?,
    };
    let Document::Image(manifest) = manifest::document(entry.digest, &entry.media_type, &bytes)? else {
        return Ok(None);
    };
    let is_here = |it: &Descriptor| content.size(&it.digest) == Some(it.size);
    Ok((is_here(&manifest.config) && manifest.layers.iter().all(is_here)).then_some(manifest))
}

/// Why an index could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentOrContent {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl From<DocumentOrContent> for ImageError {
    fn from(error: DocumentOrContent) -> Self {
        match error {
            DocumentOrContent::Document(error) => error.into(),
            DocumentOrContent::Content(error) => error.into(),
        }
    }
}

impl From<DocumentOrContent> for super::ArchiveError {
    fn from(error: DocumentOrContent) -> Self {
        match error {
            DocumentOrContent::Document(error) => error.into(),
            DocumentOrContent::Content(error) => error.into(),
        }
    }
}

impl Images {
    /// Pulls an image and then, compressed, what its index has for other platforms.
    ///
    /// * Errors, cancellation: as [`Images::pull`]; this board's image is usable from when its own part is here.
    pub async fn pull_all(&self, request: &PullRequest, events: &mpsc::Sender<PullEvent>) -> Result<Pulled, PullError> {
        let (registry, name, credentials) =
            (self.0.registry.clone(), request.name.clone(), request.credentials.clone());
        self.pull_all_from(request, Arc::new(Repository { registry, name, credentials }), events).await
    }

    pub(crate) async fn pull_all_from(
        &self,
        request: &PullRequest,
        remote: Arc<dyn Remote>,
        events: &mpsc::Sender<PullEvent>,
    ) -> Result<Pulled, PullError> {
        let pulled = self.pull_from(request, remote.clone(), events).await?;
        let image = request.name.familiar();
        let puller = Puller::new(self, &*remote, &request.name, &image, events);
        let others = puller.others(&pulled.image.record).await?;
        let record = Record { others, ..pulled.image.record };
        let named = self.name(record).await;
        let record = named.map_err(|source| PullError::Record { image, source })?;
        self.grew().await;
        Ok(Pulled { image: Image { record, config: pulled.image.config }, ..pulled })
    }

    /// What a name has of other platforms already: a further pull of the same index does not throw it away.
    pub(super) fn kept_others(&self, request: &PullRequest, target: Digest) -> Vec<Digest> {
        let before = self.0.records.get(&request.owner, &request.name.to_string());
        before.filter(|it| it.target == target).map(|it| it.others).unwrap_or_default()
    }
}

impl Puller<'_> {
    /// Fetches what an index names and is not here; all of it.
    async fn others(&self, record: &Record) -> Result<Vec<Digest>, PullError> {
        let index = self.stored(record.target, MAX_MANIFEST).await;
        let index = index.map(|bytes| manifest::document(record.target, "", &bytes)).transpose();
        let failed = |source| PullError::Document { image: self.image.to_owned(), source };
        let Some(Document::Index(index)) = index.map_err(failed)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for entry in index.manifests.iter().filter(|it| it.digest != record.manifest) {
            let raw = self.manifest_of(entry).await?;
            let Document::Image(manifest) = self.document(&raw)? else { continue };
            self.put(&raw).await?;
            self.config(&manifest.config).await?;
            self.pin(manifest.layers.iter().map(|it| it.digest)).await;
            for layer in &manifest.layers {
                self.blob(layer).await?;
            }
            all.extend([raw.digest, manifest.config.digest]);
            all.extend(manifest.layers.iter().map(|it| it.digest));
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// A layer as it is, not unpacked.
    async fn blob(&self, blob: &Descriptor) -> Result<(), PullError> {
        let wanted = Wanted {
            blob: blob.clone(),
            // It is not unpacked: nobody asks for what it unpacks to.
            diff_id: blob.digest,
            below: Vec::new(),
            with_below: false,
            image: self.image.to_owned(),
            source: format!("{} ({})", self.name.name(), self.image),
        };
        let flight = self.images.0.flights.join(blob.digest);
        self.images.fetcher().blob(self.remote, &wanted, &flight).await?;
        let status = flight.progress.borrow().clone();
        let status = if status == LayerStatus::Exists { status } else { LayerStatus::Done };
        let _ = self.events.send(PullEvent::Layer { layer: blob.digest, status }).await;
        Ok(())
    }
}
