//! What containers need of images, snapshots and volumes, and no more. The engine gives them this view of those rooms;
//! tests give them a folder.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::ImageDefaults;
use crate::owner::Owner;

/// An image that is present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Digest of its configuration.
    pub id: String,
    /// Its platform, as in `linux/arm64/v8`.
    pub platform: String,
    /// Its layers, the lowest first, as the snapshots know them.
    pub layers: Vec<String>,
    /// What it says of containers.
    pub defaults: ImageDefaults,
}

/// A user namespace's range: ids from 0 on are ids from `host` on, outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdRange {
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// Which volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeWanted<'a> {
    /// Whose.
    pub owner: &'a Owner,
    /// Its name.
    pub name: &'a str,
    /// Made for one container.
    pub anonymous: bool,
    /// A new one takes over what the root file system has there.
    pub fill_from: Option<(&'a Path, &'a str)>,
    /// Shown to a container in this user namespace.
    pub ids: Option<IdRange>,
}

/// Why images, snapshots or volumes would not.
#[derive(Debug)]
pub struct RootError {
    /// The code told over the control socket.
    pub code: &'static str,
    /// Whether the same call, unchanged, may succeed later.
    pub transient: bool,
    /// What happened.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl RootError {
    /// Of another error.
    pub fn new(code: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { code, transient: false, source: source.into() }
    }
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl std::error::Error for RootError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

/// An answer that takes a while.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RootError>>;

/// Images, snapshots and volumes as containers see them. Every call may be repeated; what is undone already is no error.
pub trait Roots: Send + Sync + 'static {
    /// The image, which has to be present.
    fn image<'a>(&'a self, owner: &'a Owner, name: &'a str) -> Answer<'a, ImageFacts>;
    /// Mounts a container's root file system at `target`, which exists; its writable part is made at the first time,
    /// `volatile` where nothing of it has to outlive a power cut.
    fn mount<'a>(
        &'a self,
        id: &'a str,
        image: &'a ImageFacts,
        ids: Option<IdRange>,
        target: &'a Path,
        volatile: bool,
    ) -> Answer<'a, ()>;
    /// Takes the mount away.
    fn unmount<'a>(&'a self, id: &'a str, target: &'a Path) -> Answer<'a, ()>;
    /// Removes the writable part.
    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Bytes of the writable part.
    fn usage<'a>(&'a self, id: &'a str) -> Answer<'a, u64>;
    /// The volume's folder on the host, made where it is missing.
    fn volume<'a>(&'a self, wanted: VolumeWanted<'a>) -> Answer<'a, PathBuf>;
    /// Removes a volume that no container uses.
    fn remove_volume<'a>(&'a self, owner: &'a Owner, name: &'a str) -> Answer<'a, ()>;
    /// At the start: removes writable parts and mounts of containers that are none of `existing`.
    fn recover<'a>(&'a self, existing: &'a [String]) -> Answer<'a, ()>;
}
