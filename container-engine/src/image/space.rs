//! Room for images: what they take, what they may take, and whether an image fits before it is fetched.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Images, fetch::RESERVE, manifest::Manifest, pull::PullError};
use crate::content::{Content, Digest};

/// Bytes that a compressed layer is guessed to make on disk beside itself; whole images are about 3.
const GROWTH: u64 = 2;

/// What images take and may take.
#[derive(Debug)]
pub(crate) struct Space {
    content: Content,
    layers_dir: PathBuf,
    quota: Option<u64>,
    layers: AtomicU64,
}

impl Space {
    pub fn new(content: Content, layers_dir: PathBuf, quota: Option<u64>) -> Self {
        Self { content, layers_dir, quota, layers: AtomicU64::new(0) }
    }

    /// Says what the unpacked layers take.
    pub fn set_layers(&self, bytes: u64) {
        self.layers.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of all blobs, parts of blobs and layers. Blocking.
    pub fn used(&self) -> u64 {
        let blobs: u64 = self.content.list().into_iter().flatten().map(|it| it.size).sum();
        let parts: u64 = self.content.partials().into_iter().flatten().map(|it| it.on_disk).sum();
        blobs + parts + self.layers.load(Ordering::Relaxed)
    }

    /// Bytes that images may take in all: the quota, or what they take and what is free.
    pub fn capacity(&self) -> u64 {
        self.quota.unwrap_or(u64::MAX).min(self.used().saturating_add(self.free()))
    }

    /// Bytes that images may still take; the smaller of disk and quota. Blocking.
    pub fn left(&self) -> u64 {
        let quota = self.quota.map_or(u64::MAX, |quota| quota.saturating_sub(self.used()));
        self.free().min(quota)
    }

    fn free(&self) -> u64 {
        let free = |dir| board::sys::disk(dir).map_or(u64::MAX, |disk| disk.free);
        // The layers' folder may not be there yet; it is then on the same file system.
        let layers = if self.layers_dir.exists() { free(&self.layers_dir) } else { u64::MAX };
        free(self.content.dir()).min(layers).saturating_sub(RESERVE)
    }

    fn dir(&self) -> PathBuf {
        self.content.dir().to_owned()
    }
}

impl Images {
    /// Sees before a pull whether its layers will fit, and collects garbage where they would not.
    pub(super) async fn make_room(
        &self,
        manifest: &Manifest,
        diff_ids: &[Digest],
        image: &str,
    ) -> Result<(), PullError> {
        let need = self.need(manifest, diff_ids).await;
        let no_space =
            |free| PullError::NoSpace { path: self.0.space.dir(), free, need, layer: None, image: image.to_owned() };
        self.room_for(need).await.map_err(no_space)
    }

    /// Sees whether so many bytes will fit, and collects garbage where they would not; what is left where they still do not.
    pub(super) async fn room_for(&self, need: u64) -> Result<(), u64> {
        if need == 0 || self.left().await >= need {
            return Ok(());
        }
        if let Err(error) = self.collect(need).await {
            tracing::warn!(%error, need, "garbage collection to make room failed");
        }
        let free = self.left().await;
        if free >= need { Ok(()) } else { Err(free) }
    }

    /// Bytes that the missing parts of an image will take, guessed where they are not known.
    async fn need(&self, manifest: &Manifest, diff_ids: &[Digest]) -> u64 {
        let (content, layers) = (self.0.content.clone(), self.0.layers.clone());
        let (blobs, diff_ids) = (manifest.layers.clone(), diff_ids.to_vec());
        let count = move || {
            let parts = content.partials().unwrap_or_default();
            let missing = |(n, blob): (usize, &super::Descriptor)| {
                if layers.get(&diff_ids[n], &diff_ids[..n]).is_some() {
                    return 0;
                }
                let here = parts.iter().find(|it| it.digest == blob.digest).map(|it| it.on_disk);
                let here = content.size(&blob.digest).or(here).unwrap_or(0);
                // A layer that grows by less than guessed is the rule for small ones: they are not guessed at.
                let growth = if blob.size < (1 << 20) { 0 } else { blob.size * GROWTH };
                blob.size.saturating_sub(here) + growth
            };
            blobs.iter().enumerate().map(missing).sum()
        };
        tokio::task::spawn_blocking(count).await.unwrap_or(0)
    }

    async fn left(&self) -> u64 {
        let space = self.0.space.clone();
        tokio::task::spawn_blocking(move || space.left()).await.unwrap_or(0)
    }
}
