//! Images by name: pull, push, tag, inspect, remove, save, load, garbage collection.
//!
//! An image is a manifest, a configuration and layers. The blobs lie in `content` under their digests, the layers unpacked
//! in `snapshot` under their diff ids; a name is a record over them (`record`), of one owner. What `local` owns, everybody
//! sees. An image's id is the digest of its configuration, as Docker has it.
//!
//! Always true:
//! - A record names what was whole when it was written; what turns out damaged is set aside and fetched anew by the next pull.
//! - Nothing is removed that a record, a lease, a container or a running pull needs.

pub mod archive;
mod changes;
mod commit;
mod counts;
mod fetch;
mod flight;
mod gc;
mod local;
pub mod manifest;
mod platforms;
mod pull;
mod push;
mod record;
mod remote;
mod seam;
mod space;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use store::state::State;

pub use archive::{ArchiveError, Format, LoadEvent, LoadRequest, Loaded};
pub(crate) use changes::{apply as apply_change, set as set_variable};
pub use commit::AssembleError;
pub(crate) use commit::Wanted;
pub use gc::{GcError, GcReport, Water};
pub use local::{Change, Damage, HistoryEntry, ImageError};
pub use manifest::{Descriptor, History, ImageConfig, RunConfig};
pub use pull::{LayerStatus, PullError, PullEvent, PullPolicy, PullRequest, Pulled};
pub use push::{PushError, PushEvent, PushRequest, PushStatus};
pub use record::{Record, RecordError};
pub use seam::Failure;

use crate::{
    content::{Content, ContentError, Digest},
    event::{Action, Events, Kind},
    lease::Leases,
    owner::Owner,
    registry::Registry,
    snapshot::Snapshots,
};
use counts::Counts;
use fetch::Fetcher;
use flight::Flights;
use record::Records;
use seam::Layers;
use space::Space;

/// Layers of one pull on their way at once, unless told otherwise: Docker's number.
pub const PARALLEL_DOWNLOADS: usize = 3;

/// Who uses an image now: given by whoever keeps containers.
pub trait InUse: Send + Sync {
    /// Ids (configuration digests) of the images in use, each with the containers' names, for messages.
    fn images(&self) -> Vec<(Digest, String)>;
}

/// What the images' room is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory.
    pub data: PathBuf,
    /// Bytes that blobs and layers may take together; absent: what the disk has.
    pub quota: Option<u64>,
    /// When garbage collection begins and how far it goes.
    pub water: Water,
    /// Layers of one pull on their way at once.
    pub parallel_downloads: usize,
    /// Who hears what happens to images.
    pub events: Events,
}

impl Options {
    /// In this data directory, the rest as on a board.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let (quota, water, events) = (None, Water::default(), Events::new());
        Self { data: data.into(), quota, water, parallel_downloads: PARALLEL_DOWNLOADS, events }
    }
}

/// An image with its configuration.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its record.
    pub record: Record,
    /// Its configuration.
    pub config: Arc<ImageConfig>,
}

impl Image {
    /// The digest of its configuration.
    pub fn id(&self) -> Digest {
        self.record.config
    }

    /// Diff ids of its layers, lowest first.
    pub fn layers(&self) -> &[Digest] {
        &self.record.layers
    }
}

/// Why the images' room did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The blobs.
    #[error("cannot open the blobs: {0}")]
    Content(#[from] ContentError),
    /// The names.
    #[error("cannot open the images' names: {0}")]
    Records(#[from] RecordError),
}

struct Inner {
    content: Content,
    registry: Registry,
    layers: Arc<dyn Layers>,
    records: Records,
    leases: Leases,
    flights: Flights,
    space: Arc<Space>,
    in_use: Mutex<Option<Arc<dyn InUse>>>,
    water: Water,
    parallel_downloads: usize,
    events: Events,
    counts: Arc<Counts>,
    /// The store has grown since it was last collected.
    grown: tokio::sync::Notify,
    patience: Duration,
    /// One collection at a time, and none between a name's look-up and its removal.
    change: tokio::sync::Mutex<()>,
    /// Held for writing while an unpacked layer is removed.
    removal: tokio::sync::RwLock<()>,
}

/// All images; cheap to clone.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

impl Images {
    /// Opens the images below a data directory: cleans what a crash left, and finds the names again where the database was lost.
    pub async fn open(
        options: Options,
        state: State,
        leases: Leases,
        registry: Registry,
        snapshots: Snapshots,
    ) -> Result<Self, OpenError> {
        Self::with(options, state, leases, registry, Arc::new(snapshots), Duration::from_millis(300)).await
    }

    pub(crate) async fn with(
        options: Options,
        state: State,
        leases: Leases,
        registry: Registry,
        layers: Arc<dyn Layers>,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let data = options.data.clone();
        let opened = tokio::task::spawn_blocking(move || Content::open(&data)).await;
        let content = opened.unwrap_or_else(|error| {
            Err(ContentError::Io { action: "open", path: options.data.clone(), source: io::Error::other(error) })
        })?;
        let records = Records::open(state, &options.data).await?;
        let space = Arc::new(Space::new(content.clone(), options.data.join("layers"), options.quota));
        let images = Self(Arc::new(Inner {
            content,
            registry,
            layers,
            records,
            leases,
            flights: Flights::default(),
            space,
            in_use: Mutex::default(),
            water: options.water,
            parallel_downloads: options.parallel_downloads.max(1),
            events: options.events,
            counts: Arc::default(),
            grown: tokio::sync::Notify::new(),
            patience,
            change: tokio::sync::Mutex::default(),
            removal: tokio::sync::RwLock::default(),
        }));
        images.measure().await;
        Ok(images)
    }

    /// Says who knows which images containers use.
    pub fn set_in_use(&self, in_use: Arc<dyn InUse>) {
        *self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner) = Some(in_use);
    }

    /// The blob store.
    pub fn content(&self) -> &Content {
        &self.0.content
    }

    /// Bytes on disk of all images together: blobs and layers.
    pub async fn used(&self) -> u64 {
        let space = self.0.space.clone();
        tokio::task::spawn_blocking(move || space.used()).await.unwrap_or(0)
    }

    /// All images an owner sees: its own and `local`'s; everybody's where absent. Newest name first.
    pub fn list(&self, owner: Option<&Owner>) -> Vec<Record> {
        let mut all = self.0.records.all();
        all.retain(|it| owner.is_none_or(|owner| it.owner == *owner || it.owner == Owner::Local));
        all.sort_by(|a, b| b.created_s.cmp(&a.created_s).then_with(|| a.name.cmp(&b.name)));
        all
    }

    /// An image by a name, an id, the beginning of an id, or `name@digest`; the owner's own come before `local`'s.
    pub async fn get(&self, owner: &Owner, name: &str) -> Result<Image, ImageError> {
        let record = self.find(owner, name)?;
        self.load_config(record).await
    }

    /// Notes that an image was used: it is collected last, and not at all for [`Water::min_age_s`]. Waits for a collection
    /// that runs: `NotFound` where that took the image.
    pub async fn touch(&self, image: &Image) -> Result<(), ImageError> {
        let _one = self.0.change.lock().await;
        let same: Vec<_> = self.0.records.all().into_iter().filter(|it| it.config == image.record.config).collect();
        if same.is_empty() {
            return Err(ImageError::NotFound(image.id().to_string()));
        }
        self.0.records.touch(&same).await.map_err(ImageError::from)
    }

    /// Whether all its layers lie unpacked.
    pub async fn is_whole(&self, record: &Record) -> bool {
        let (layers, diff_ids) = (self.0.layers.clone(), record.layers.clone());
        let all = move || diff_ids.iter().enumerate().all(|(n, it)| layers.get(it, &diff_ids[..n]).is_some());
        tokio::task::spawn_blocking(all).await.unwrap_or(false)
    }

    /// Pins digests against removal, not in the midst of one.
    async fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> flight::Pins {
        let _none = self.0.removal.read().await;
        self.0.flights.pin(digests)
    }

    /// The record of a full, normalised name: the owner's own, else `local`'s.
    fn named(&self, owner: &Owner, name: &str) -> Option<Record> {
        let records = &self.0.records;
        records.get(owner, name).or_else(|| records.get(&Owner::Local, name))
    }

    /// Gives a name to an image. An image that loses its only name this way stays, nameless, until it is collected.
    async fn name(&self, record: Record) -> Result<Record, RecordError> {
        let _one = self.0.change.lock().await;
        let mut put = vec![record.clone()];
        let mut gone = Vec::new();
        let all = self.0.records.all();
        if let Some(old) = self.0.records.get(&record.owner, &record.name) {
            let others = all.iter().any(|it| it.config == old.config && it.name != old.name && it.owner == old.owner);
            if old.config != record.config && !others {
                put.push(Record { name: String::new(), ..old });
            }
        }
        // An image that was nameless has a name again.
        gone.extend(
            all.into_iter().filter(|it| it.name.is_empty() && it.config == record.config && it.owner == record.owner),
        );
        if record.name.is_empty() {
            gone.clear();
        }
        self.0.records.commit(&put, &gone).await?;
        Ok(record)
    }

    async fn load_config(&self, record: Record) -> Result<Image, ImageError> {
        let (content, digest) = (self.0.content.clone(), record.config);
        let read = tokio::task::spawn_blocking(move || content.read(&digest, manifest::MAX_CONFIG)).await;
        let bytes = read.unwrap_or_else(|error| {
            let path = Path::new("images").join(digest.hex());
            Err(ContentError::Io { action: "read", path, source: io::Error::other(error) })
        })?;
        let config = Arc::new(ImageConfig::parse(digest, &bytes)?);
        Ok(Image { record, config })
    }

    fn fetcher(&self) -> Fetcher {
        let space = self.0.space.clone();
        Fetcher {
            content: self.0.content.clone(),
            layers: self.0.layers.clone(),
            room: Arc::new(move || space.left()),
            patience: self.0.patience,
            fetched: self.0.counts.fetched.clone(),
        }
    }

    /// Counts what came, and has the collector look at it.
    async fn grew(&self) {
        self.measure().await;
        self.0.grown.notify_one();
    }

    /// Counts anew what the blobs and the unpacked layers take.
    async fn measure(&self) {
        match self.0.layers.list().await {
            Ok(layers) => self.0.space.set_layers(layers.iter().map(|it| it.bytes).sum()),
            Err(error) => tracing::warn!(%error, "the unpacked layers cannot be counted"),
        }
        let space = self.0.space.clone();
        let used = tokio::task::spawn_blocking(move || space.used()).await.unwrap_or(0);
        self.0.counts.store_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
    }

    /// Tells of an image as people call it.
    fn tell(&self, owner: &Owner, id: &str, name: &str, action: Action) {
        self.0.events.tell(owner, Kind::Image, id, &local::familiar(name), action);
    }
}
