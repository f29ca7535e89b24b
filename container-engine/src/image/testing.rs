//! A registry and an unpacker in memory, with the faults that tests need.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use store::state::State;
use tokio::sync::mpsc;

use super::{
    Images, Options, PullEvent, PullPolicy, PullRequest, Water,
    manifest::{self, Descriptor},
    seam::{Body, Failure, Layer, Layers, NEEDS_BELOW, Pieces, RawManifest, Remote, Unpacked},
};
use crate::{
    content::Digest,
    lease::Leases,
    owner::Owner,
    platform::Platform,
    reference::ImageRef,
    registry::{Credentials, Registry},
};

pub(crate) fn failure(code: &'static str, transient: bool) -> Failure {
    Failure { code, transient, retry_after: None, error: format!("made up: {code}").into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the registry does wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Each attempt at a blob ends after so many bytes.
    pub cut_after: Option<usize>,
    /// So many attempts in all get nothing at all.
    pub refuse: u32,
    /// Nothing answers.
    pub down: bool,
    /// The next answers have a wrong byte, so many times.
    pub corrupt: u32,
    /// Between two pieces.
    pub pause: Duration,
    /// Blobs begin only when so many are asked for at once.
    pub together: Option<Arc<tokio::sync::Barrier>>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeRegistry {
    pub names: Mutex<BTreeMap<String, (Bytes, String)>>,
    pub blobs: Mutex<BTreeMap<Digest, Bytes>>,
    pub faults: Mutex<Faults>,
    /// Bytes of blobs sent, by blob.
    pub sent: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs being sent, and the most there ever were.
    pub busy: Arc<Mutex<(usize, usize)>>,
}

/// A blob being sent.
struct Busy(Arc<Mutex<(usize, usize)>>);

impl Busy {
    fn new(busy: &Arc<Mutex<(usize, usize)>>) -> Self {
        let mut counts = lock(busy);
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
        drop(counts);
        Self(busy.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.0).0 -= 1;
    }
}

impl FakeRegistry {
    pub fn sent_of(&self, digest: &Digest) -> usize {
        lock(&self.sent).get(digest).copied().unwrap_or(0)
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub fn blob_put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        lock(&self.blobs).insert(digest, Bytes::copy_from_slice(bytes));
        digest
    }

    /// Puts an image of plain layers under a name; the digest of its manifest.
    pub fn image(&self, name: &ImageRef, platform: &str, layers: &[Bytes]) -> Digest {
        let platform: Platform = platform.parse().unwrap();
        let diff_ids: Vec<_> = layers.iter().map(|it| self.blob_put(it)).collect();
        let config = serde_json::json!({
            "architecture": platform.architecture, "os": platform.os, "variant": platform.variant,
            "config": {"Cmd": ["true"], "Env": ["A=b"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": layers.iter().map(|_| serde_json::json!({"created_by": "made up"})).collect::<Vec<_>>(),
        });
        let config = config.to_string().into_bytes();
        self.blob_put(&config);
        let layers: Vec<_> = layers.iter().map(|it| Descriptor::of(manifest::OCI_LAYER, it)).collect();
        self.manifest_put(name, &Descriptor::of(manifest::OCI_CONFIG, &config), &layers)
    }

    pub fn manifest_put(&self, name: &ImageRef, config: &Descriptor, layers: &[Descriptor]) -> Digest {
        let json = serde_json::json!({"schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST, "config": config, "layers": layers});
        self.document(name, json, manifest::OCI_MANIFEST)
    }

    pub fn index(&self, name: &ImageRef, entries: &[(&str, Digest)]) -> Digest {
        let entries: Vec<_> = entries
            .iter()
            .map(|(platform, digest)| {
                let size = lock(&self.names)[&name.with_digest(*digest).to_string()].0.len();
                let platform: Platform = platform.parse().unwrap();
                serde_json::json!({"mediaType": manifest::OCI_MANIFEST, "digest": digest, "size": size, "platform": platform})
            })
            .collect();
        let json = serde_json::json!({"schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": entries});
        self.document(name, json, manifest::OCI_INDEX)
    }

    fn document(&self, name: &ImageRef, json: serde_json::Value, kind: &str) -> Digest {
        let bytes = Bytes::from(json.to_string());
        let digest = Digest::of(&bytes);
        let mut names = lock(&self.names);
        for name in [name.to_string(), name.with_digest(digest).to_string()] {
            names.insert(name, (bytes.clone(), kind.to_owned()));
        }
        digest
    }

    fn begin(&self) -> Result<(), Failure> {
        let mut faults = self.faults();
        if faults.down {
            return Err(failure("unavailable", true));
        }
        if faults.refuse > 0 {
            faults.refuse -= 1;
            return Err(failure("unavailable", true));
        }
        Ok(())
    }
}

/// A registry shared by clients.
pub(crate) struct Client(pub Arc<FakeRegistry>);

impl Remote for Client {
    fn manifest<'a>(&'a self, name: &'a ImageRef) -> BoxFuture<'a, Result<RawManifest, Failure>> {
        Box::pin(async move {
            self.0.begin()?;
            let found = lock(&self.0.names).get(&name.to_string()).cloned();
            let (bytes, media_type) = found.ok_or_else(|| failure("not_found", false))?;
            Ok(RawManifest { digest: Digest::of(&bytes), bytes, media_type })
        })
    }

    fn small<'a>(&'a self, blob: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Failure>> {
        Box::pin(async move {
            self.0.begin()?;
            lock(&self.0.blobs).get(&blob.digest).cloned().ok_or_else(|| failure("not_found", false))
        })
    }

    fn blob<'a>(&'a self, blob: &'a Descriptor, from: u64) -> BoxFuture<'a, Result<Body, Failure>> {
        Box::pin(async move {
            self.0.begin()?;
            let busy = Busy::new(&self.0.busy);
            let together = self.0.faults().together.clone();
            if let Some(together) = together {
                together.wait().await;
            }
            let whole = lock(&self.0.blobs).get(&blob.digest).cloned().ok_or_else(|| failure("not_found", false))?;
            let mut rest = whole.slice(usize::try_from(from).unwrap()..);
            let (cut, pause, corrupt) = {
                let mut faults = self.0.faults();
                let corrupt = faults.corrupt > 0;
                faults.corrupt = faults.corrupt.saturating_sub(1);
                (faults.cut_after, faults.pause, corrupt)
            };
            let broken = cut.is_some_and(|cut| cut < rest.len());
            if let Some(cut) = cut {
                rest.truncate(cut);
            }
            if corrupt {
                let mut wrong = rest.to_vec();
                wrong[0] ^= 1;
                rest = wrong.into();
            }
            let mut pieces: Vec<Result<Bytes, Failure>> =
                rest.chunks(1000).map(|it| Ok(Bytes::copy_from_slice(it))).collect();
            if broken {
                pieces.push(Err(failure("unavailable", true)));
            }
            let (registry, digest) = (self.0.clone(), blob.digest);
            let body = stream::iter(pieces).then(move |piece| {
                let _ = &busy; // Until the whole body was taken, or given up.
                let registry = registry.clone();
                async move {
                    tokio::time::sleep(pause).await;
                    if let Ok(piece) = &piece {
                        *lock(&registry.sent).entry(digest).or_default() += piece.len();
                    }
                    piece
                }
            });
            Ok(body.boxed())
        })
    }
}

/// Layers in memory: a plain layer "unpacks" to its own bytes.
#[derive(Debug, Default)]
pub(crate) struct FakeLayers {
    pub here: Mutex<BTreeMap<Digest, u64>>,
    /// Layers that need those below.
    pub linked: Mutex<BTreeSet<Digest>>,
    /// Unpacks begun.
    pub begun: Mutex<u32>,
}

impl FakeLayers {
    pub fn lose(&self, diff_id: &Digest) {
        lock(&self.here).remove(diff_id);
    }

    pub fn has(&self, diff_id: &Digest) -> bool {
        lock(&self.here).contains_key(diff_id)
    }
}

impl Layers for FakeLayers {
    fn get(&self, diff_id: &Digest, _: &[Digest]) -> Option<Unpacked> {
        lock(&self.here).get(diff_id).map(|bytes| Unpacked { diff_id: *diff_id, bytes: *bytes })
    }

    fn unpack(&self, layer: Layer, mut pieces: Pieces) -> BoxFuture<'_, Result<Unpacked, Failure>> {
        Box::pin(async move {
            *lock(&self.begun) += 1;
            if lock(&self.linked).contains(&layer.diff_id) && layer.below.is_none() {
                return Err(failure(NEEDS_BELOW, false));
            }
            let mut all = Vec::new();
            while let Some(piece) = pieces.recv().await {
                all.extend_from_slice(&piece.map_err(|_| failure("invalid", true))?);
            }
            if all.len() as u64 > layer.most {
                return Err(failure("no_space", true));
            }
            let found = Digest::of(&all);
            if found != layer.diff_id {
                return Err(failure("invalid", false));
            }
            lock(&self.here).insert(found, all.len() as u64);
            Ok(Unpacked { diff_id: found, bytes: all.len() as u64 })
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Unpacked>, Failure>> {
        let all =
            lock(&self.here).iter().map(|(diff_id, bytes)| Unpacked { diff_id: *diff_id, bytes: *bytes }).collect();
        Box::pin(async { Ok(all) })
    }

    fn remove(&self, diff_id: Digest) -> BoxFuture<'_, Result<(), Failure>> {
        self.lose(&diff_id);
        Box::pin(async { Ok(()) })
    }
}

/// A board: its images over a registry.
pub(crate) struct Board {
    pub dir: tempfile::TempDir,
    pub state: State,
    pub registry: Arc<FakeRegistry>,
    pub layers: Arc<FakeLayers>,
    pub images: Images,
}

impl Board {
    pub async fn new() -> Self {
        Self::with_quota(None).await
    }

    pub async fn with_quota(quota: Option<u64>) -> Self {
        Self::with(|options| options.quota = quota).await
    }

    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap().0;
        let (registry, layers) = (Arc::<FakeRegistry>::default(), Arc::<FakeLayers>::default());
        let images = open(&dir, &state, &layers, change).await;
        Self { dir, state, registry, layers, images }
    }

    /// The agent again.
    pub async fn restart(&mut self) {
        self.images = open(&self.dir, &self.state, &self.layers, |_| {}).await;
    }

    pub async fn pull(&self, request: &PullRequest) -> (Result<super::Pulled, super::PullError>, Vec<PullEvent>) {
        let (events, mut told) = mpsc::channel(1000);
        let result = self.images.pull_from(request, Arc::new(Client(self.registry.clone())), &events).await;
        drop(events);
        let mut all = Vec::new();
        while let Some(event) = told.recv().await {
            all.push(event);
        }
        (result, all)
    }
}

async fn open(
    dir: &tempfile::TempDir,
    state: &State,
    layers: &Arc<FakeLayers>,
    change: impl FnOnce(&mut Options),
) -> Images {
    let mut options = Options { water: Water { min_age_s: 0, ..Water::default() }, ..Options::new(dir.path()) };
    change(&mut options);
    let registry = Registry::new(crate::registry::Options::default()).unwrap();
    let leases = Leases::new(state.clone());
    Images::with(options, state.clone(), leases, registry, layers.clone(), Duration::from_millis(1)).await.unwrap()
}

pub(crate) fn request(name: &str) -> PullRequest {
    PullRequest {
        name: name.parse().unwrap(),
        owner: Owner::Local,
        platform: None,
        policy: PullPolicy::Always,
        credentials: Credentials::Anonymous,
    }
}

/// Bytes that differ from layer to layer.
pub(crate) fn bytes(seed: u8, size: usize) -> Bytes {
    (0..size).map(|n| u8::try_from(n % 251).unwrap() ^ seed).collect::<Vec<_>>().into()
}
