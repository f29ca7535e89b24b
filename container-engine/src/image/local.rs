//! Images that are here: found, tagged, inspected, verified, mended, removed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Image, Images, PullError, Record, RecordError,
    fetch::Wanted,
    gc::GcError,
    manifest::{self, Descriptor, Document, DocumentError, MAX_MANIFEST, Manifest},
    seam::{Body, Failure, RawManifest, Remote},
};
use crate::{
    content::{ContentError, Digest},
    event::Action,
    lease,
    owner::Owner,
    reference::{ImageRef, ReferenceError},
};

/// Shortest beginning of an id that is looked for.
const SHORTEST_ID: usize = 4;

/// Why something was not done with an image that is here.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// None of that name.
    #[error("there is no image {0}: pull or load it first")]
    NotFound(String),
    /// The beginning of several ids.
    #[error("{0} is the beginning of several images' ids: write more of it")]
    Ambiguous(String),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A name that cannot be given.
    #[error("{0} is no tag: a name is given with a tag, not with a digest")]
    NoTag(String),
    /// Containers use it.
    #[error("image {image} is used by {by}: remove what uses it first, or force it")]
    InUse {
        /// Which.
        image: String,
        /// By which containers.
        by: String,
    },
    /// It has several names.
    #[error("image {image} has several names ({names}): remove them one by one, or force it")]
    Names {
        /// Its id.
        image: String,
        /// Its names.
        names: String,
    },
    /// A blob cannot be used.
    #[error("image is damaged: {0}")]
    Content(#[from] ContentError),
    /// A document is not understood.
    #[error("image is damaged: {0}")]
    Document(#[from] DocumentError),
    /// The store failed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What nothing names any more could not be removed.
    #[error(transparent)]
    Collect(#[from] GcError),
}

impl ImageError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Ambiguous(_) | Self::Name(_) | Self::NoTag(_) => "invalid",
            Self::InUse { .. } | Self::Names { .. } => "conflict",
            Self::Content(error) => error.code(),
            Self::Document(_) | Self::Record(_) | Self::Collect(_) => "internal",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Record(_) | Self::Collect(_))
    }
}

/// What a removal did, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A name went.
    Untagged(String),
    /// An image went.
    Deleted(Digest),
}

/// One step of an image's history, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryEntry {
    /// The image's id at its newest step, else nothing.
    pub id: Option<Digest>,
    /// When, RFC 3339.
    pub created: Option<String>,
    /// By which command.
    pub created_by: String,
    /// Bytes of its layer.
    pub size: u64,
    /// Anything.
    pub comment: String,
    /// Names of the image, at its newest step.
    pub tags: Vec<String>,
}

/// What is wrong with an image on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The blob or layer.
    pub digest: Digest,
    /// What is wrong.
    pub problem: String,
}

impl Images {
    /// The record that a name, an id or the beginning of one means.
    pub(super) fn find(&self, owner: &Owner, text: &str) -> Result<Record, ImageError> {
        let visible = self.list(Some(owner));
        let own_first = |found: Vec<Record>| {
            let own = found.iter().position(|it| it.owner == *owner && !it.name.is_empty());
            let named = found.iter().position(|it| !it.name.is_empty());
            found.into_iter().nth(own.or(named).unwrap_or(0))
        };
        let with_id = |id: Digest| {
            let of = |it: &&Record| it.config == id || it.manifest == id || it.target == id;
            own_first(visible.iter().filter(of).cloned().collect())
        };
        let absent = || ImageError::NotFound(text.to_owned());
        if let Ok(id) = text.parse::<Digest>() {
            return with_id(id).ok_or_else(absent);
        }
        let name = text.parse::<ImageRef>();
        if let Ok(name) = &name {
            if let Some(record) = self.named(owner, &name.to_string()) {
                return Ok(record);
            }
            if let Some(digest) = name.digest() {
                let of = |it: &&Record| {
                    [it.config, it.manifest, it.target].contains(&digest) && it.repositories.contains(&name.name())
                };
                return own_first(visible.iter().filter(of).cloned().collect()).ok_or_else(absent);
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() >= SHORTEST_ID && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let mut found: Vec<_> = visible.iter().map(|it| it.config).filter(|it| it.hex().starts_with(hex)).collect();
            found.sort_unstable();
            found.dedup();
            match found.as_slice() {
                [] => {}
                [one] => return with_id(*one).ok_or_else(absent),
                _ => return Err(ImageError::Ambiguous(text.to_owned())),
            }
        }
        name.map_err(ImageError::from).and(Err(absent()))
    }

    /// Gives a further name to an image.
    pub async fn tag(&self, owner: &Owner, source: &str, target: &str) -> Result<Record, ImageError> {
        let record = self.find(owner, source)?;
        let target: ImageRef = target.parse()?;
        if target.digest().is_some() {
            return Err(ImageError::NoTag(target.familiar()));
        }
        let now = lease::now();
        let record = Record { name: target.to_string(), owner: owner.clone(), created_s: now, used_s: now, ..record };
        let record = self.name(record).await?;
        self.tell(owner, &record.config.to_string(), &record.name, Action::Tagged);
        Ok(record)
    }

    /// Takes a name away; with the last one the image goes. By id: the image with all its names (several only with `force`).
    /// Containers' images stay, unless forced: then the name goes and the bytes stay until the containers went.
    pub async fn remove(&self, owner: &Owner, text: &str, force: bool) -> Result<Vec<Change>, ImageError> {
        let found = self.find(owner, text)?;
        let same: Vec<_> = self.list(None).into_iter().filter(|it| it.config == found.config).collect();
        let by_name = text.parse::<ImageRef>().is_ok_and(|name| name.to_string() == found.name);
        let mine: Vec<_> = same.iter().filter(|it| it.owner == found.owner).cloned().collect();
        let going = if by_name { vec![found.clone()] } else { mine };
        let last = same.len() == going.len();
        if last && !force {
            self.check_free(&found)?;
        }
        if !by_name && going.len() > 1 && !force {
            let names = going.iter().map(|it| familiar(&it.name)).collect::<Vec<_>>().join(", ");
            return Err(ImageError::Names { image: found.config.to_string(), names });
        }
        {
            let _one = self.0.change.lock().await;
            let used = last && self.check_free(&found).is_err();
            // What a container stands on stays, nameless.
            let keep = used.then(|| Record { name: String::new(), ..found.clone() });
            self.0.records.commit(keep.as_slice(), &going).await?;
        }
        let mut changes = Vec::new();
        for named in going.iter().filter(|it| !it.name.is_empty()) {
            self.tell(&named.owner, &named.config.to_string(), &named.name, Action::Untagged);
            changes.push(Change::Untagged(familiar(&named.name)));
        }
        if last && self.check_free(&found).is_ok() {
            self.sweep().await?;
            let id = found.config.to_string();
            self.tell(&found.owner, &id, &id, Action::Removed);
            changes.push(Change::Deleted(found.config));
        }
        Ok(changes)
    }

    fn check_free(&self, record: &Record) -> Result<(), ImageError> {
        let by: Vec<_> = self.in_use().into_iter().filter(|(id, _)| *id == record.config).map(|(_, by)| by).collect();
        if by.is_empty() {
            return Ok(());
        }
        let image = if record.name.is_empty() { record.config.to_string() } else { familiar(&record.name) };
        Err(ImageError::InUse { image, by: by.join(", ") })
    }

    /// What Docker's `inspect` says of an image.
    pub async fn inspect(&self, owner: &Owner, text: &str) -> Result<Value, ImageError> {
        let image = self.get(owner, text).await?;
        let (tags, digests) = self.names_of(owner, &image);
        let config = &image.config;
        let run = serde_json::to_value(&config.config).unwrap_or_default();
        let used = image.record.used_s;
        Ok(json!({
            "Id": image.id(),
            "RepoTags": tags,
            "RepoDigests": digests,
            "Parent": "",
            "Comment": config.history.last().map(|it| it.comment.clone()).unwrap_or_default(),
            "Created": config.created.clone().unwrap_or_default(),
            "Author": config.author,
            "Architecture": config.architecture,
            "Variant": config.variant.clone().unwrap_or_default(),
            "Os": config.os,
            "Size": image.record.size,
            "Config": run,
            "RootFS": {"Type": "layers", "Layers": image.record.layers},
            "Metadata": {"LastTagTime": rfc3339(image.record.created_s), "LastUsed": rfc3339(used)},
            "Descriptor": {"digest": image.record.target, "manifest": image.record.manifest},
            "Owner": image.record.owner,
        }))
    }

    /// `RepoTags` and `RepoDigests` of an image, as an owner sees it.
    pub fn names_of(&self, owner: &Owner, image: &Image) -> (Vec<String>, Vec<String>) {
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        for record in self.list(Some(owner)).into_iter().filter(|it| it.config == image.record.config) {
            if !record.name.is_empty() && !record.name.contains('@') {
                tags.push(familiar(&record.name));
            }
            digests.extend(record.repositories.iter().map(|it| format!("{}@{}", short(it), record.target)));
        }
        for list in [&mut tags, &mut digests] {
            list.sort_unstable();
            list.dedup();
        }
        (tags, digests)
    }

    /// How an image came to be, newest step first.
    pub async fn history(&self, owner: &Owner, text: &str) -> Result<Vec<HistoryEntry>, ImageError> {
        let image = self.get(owner, text).await?;
        let sizes = self.layer_sizes(&image.record).await;
        let mut sizes = sizes.into_iter();
        let steps = image.config.history.iter().map(|step| HistoryEntry {
            id: None,
            created: step.created.clone(),
            created_by: step.created_by.clone(),
            size: if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) },
            comment: step.comment.clone(),
            tags: Vec::new(),
        });
        let mut steps: Vec<_> = steps.collect();
        steps.reverse();
        if let Some(newest) = steps.first_mut() {
            newest.id = Some(image.id());
            newest.tags = self.names_of(owner, &image).0;
        }
        Ok(steps)
    }

    async fn layer_sizes(&self, record: &Record) -> Vec<u64> {
        let (layers, diff_ids) = (self.0.layers.clone(), record.layers.clone());
        let sizes = move || {
            let size = |(n, it)| layers.get(it, &diff_ids[..n]).map_or(0, |layer| layer.bytes);
            diff_ids.iter().enumerate().map(size).collect()
        };
        tokio::task::spawn_blocking(sizes).await.unwrap_or_default()
    }

    /// Hashes every blob of an image anew and looks for its layers. What is damaged is set aside, so that the next pull
    /// fetches it; the list says what that was.
    pub async fn verify(&self, owner: &Owner, text: &str) -> Result<Vec<Damage>, ImageError> {
        let record = self.find(owner, text)?;
        let mut damage = Vec::new();
        let documents = [record.target, record.manifest, record.config];
        for (n, digest) in documents.into_iter().chain(record.blobs.iter().copied()).enumerate() {
            let content = self.0.content.clone();
            let check = tokio::task::spawn_blocking(move || {
                let result = content.verify(&digest);
                if matches!(result, Err(ContentError::Damaged { .. })) {
                    content.set_aside(&digest)?;
                }
                result
            });
            match check.await.unwrap_or(Ok(0)) {
                Ok(_) => {}
                // A compressed layer may have been given up for room.
                Err(ContentError::NotFound(_)) if n >= documents.len() => {}
                Err(error) => damage.push(Damage { digest, problem: error.to_string() }),
            }
        }
        let (layers, diff_ids) = (self.0.layers.clone(), record.layers.clone());
        let missing = move || {
            let absent = |(n, it): &(usize, &Digest)| layers.get(it, &diff_ids[..*n]).is_none();
            diff_ids.iter().enumerate().filter(absent).map(|(_, it)| *it).collect::<Vec<_>>()
        };
        let missing = tokio::task::spawn_blocking(missing).await.unwrap_or_default();
        damage.extend(missing.into_iter().map(|digest| Damage { digest, problem: "the layer is not unpacked".into() }));
        Ok(damage)
    }

    /// Removes a layer whose tree turned out damaged; the next pull, or `mend`, unpacks it anew. `conflict` while containers
    /// stand on it.
    pub async fn remove_layer(&self, diff_id: Digest) -> Result<(), Failure> {
        let _none = self.0.removal.write().await;
        self.0.layers.remove(diff_id).await
    }

    /// Unpacks the missing layers of an image from the blobs that are here; whether it is whole then.
    pub async fn mend(&self, record: &Record) -> bool {
        let Ok(manifest) = self.manifest(record).await else { return false };
        let label = if record.name.is_empty() { record.config.to_string() } else { familiar(&record.name) };
        let _pins = self.pin(record.blobs.iter().chain(&record.layers).copied()).await;
        match self.unpack_present(&manifest, &record.layers, &label).await {
            Ok(_) => true,
            Err(error) => {
                tracing::info!(%error, "an image that is not whole cannot be mended from what is on disk");
                false
            }
        }
    }

    /// Unpacks the layers of a manifest, lowest first, from the blobs that are here; their bytes together.
    pub(super) async fn unpack_present(
        &self,
        manifest: &Manifest,
        diff_ids: &[Digest],
        image: &str,
    ) -> Result<u64, PullError> {
        let fetcher = self.fetcher();
        let mut bytes = 0;
        for (n, (blob, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
            let wanted = Wanted {
                blob: blob.clone(),
                diff_id: *diff_id,
                below: diff_ids[..n].to_vec(),
                with_below: false,
                image: image.to_owned(),
                source: String::new(),
            };
            let flight = self.0.flights.join(blob.digest);
            let unpacked = match fetcher.layer(&Nowhere, &wanted, &flight).await {
                Err(error) if error.needs_below() => {
                    fetcher.layer(&Nowhere, &Wanted { with_below: true, ..wanted }, &flight).await?
                }
                result => result?,
            };
            bytes += unpacked.bytes;
        }
        Ok(bytes)
    }

    /// The manifest of an image that is here.
    pub(super) async fn manifest(&self, record: &Record) -> Result<Manifest, ImageError> {
        let (content, digest) = (self.0.content.clone(), record.manifest);
        let read = tokio::task::spawn_blocking(move || content.read(&digest, MAX_MANIFEST)).await;
        let bytes = read.unwrap_or_else(|error| {
            let (path, source) = (PathBuf::from(digest.hex()), std::io::Error::other(error));
            Err(ContentError::Io { action: "read", path, source })
        })?;
        match manifest::document(digest, "", &bytes)? {
            Document::Image(manifest) => Ok(manifest),
            Document::Index(_) => {
                let problem = "it is an index".to_owned();
                Err(DocumentError::Invalid { what: "manifest", digest, problem }.into())
            }
        }
    }
}

/// No registry: only what is on disk counts.
struct Nowhere;

impl Nowhere {
    fn failure() -> Failure {
        let error = "it is not on disk, and no registry was asked".into();
        Failure { code: "not_found", transient: false, retry_after: None, error }
    }
}

impl Remote for Nowhere {
    fn manifest<'a>(&'a self, _: &'a ImageRef) -> futures_util::future::BoxFuture<'a, Result<RawManifest, Failure>> {
        Box::pin(async { Err(Self::failure()) })
    }

    fn small<'a>(&'a self, _: &'a Descriptor) -> futures_util::future::BoxFuture<'a, Result<bytes::Bytes, Failure>> {
        Box::pin(async { Err(Self::failure()) })
    }

    fn blob<'a>(&'a self, _: &'a Descriptor, _: u64) -> futures_util::future::BoxFuture<'a, Result<Body, Failure>> {
        Box::pin(async { Err(Self::failure()) })
    }
}

/// A normalised name as people write it.
pub(super) fn familiar(name: &str) -> String {
    name.parse::<ImageRef>().map_or_else(|_| name.to_owned(), |name| name.familiar())
}

fn short(repository: &str) -> &str {
    let short = repository.strip_prefix("docker.io/").unwrap_or(repository);
    short.strip_prefix("library/").unwrap_or(short)
}

/// Seconds since 1970 as RFC 3339.
pub(super) fn rfc3339(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(0);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |it| it.to_string())
}
