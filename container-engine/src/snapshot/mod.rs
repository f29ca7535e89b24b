//! Root file systems: layers unpacked from images, and the writable snapshots above them.
//!
//! The way of a layer: [`Snapshots::begin`] starts a confined child of this same program (`child`), which is fed the
//! compressed archive as it arrives, reads it (`stream`, `archive`), and writes the tree in overlayfs form (`tree`).
//! A whole layer is renamed to its key (`layer`). [`Snapshots::prepare`] mounts layers and a writable folder at a
//! mount point (`overlay`, `idmap`), or copies them where there is no overlay (`copy`). `diff` turns what was written
//! back into an archive.
//!
//! Always true:
//! - Bytes of an archive are read by the child alone; this process reads one line of JSON from it.
//! - What is in `layers/KEY` is whole and is never written again.
//! - Every snapshot has its record on disk before anything is mounted, so whatever a crash leaves is found again.

mod archive;
mod child;
mod commit;
mod copy;
mod diff;
mod error;
mod feed;
mod idmap;
mod layer;
mod overlay;
mod remove;
mod root;
mod stream;
mod tree;
mod usage;

#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use commit::{Commit, CommitOptions, DiffStream};
pub use error::{Fault, FaultKind, SnapshotError, UnpackError};
pub use feed::Unpacking;
pub use layer::{Layer, Marks};
pub use root::{IdMap, PrepareOptions, RootFs, Way};
pub use stream::Compression;
pub use usage::Usage;

pub(crate) use child::run as unpack_verb;
pub(crate) use {copy::below as copy_below, remove::tree as remove_tree, usage::of as usage_of};

use crate::content::Digest;
use layer::Record;

/// What a layer may cost. Each limit stops the child at once, with an error that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on disk.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000 }
    }
}

/// A layer to unpack.
#[derive(Debug, Clone, Default)]
pub struct Unpack {
    /// The diff id that the image's configuration names; unchecked where absent.
    pub diff_id: Option<Digest>,
    /// What the media type says of its compression. The bytes decide; a difference is logged.
    pub declared: Option<Compression>,
    /// Limits.
    pub limits: Limits,
    /// The layers below, lowest first: only where a first attempt ended with [`UnpackError::needs_parents`].
    pub parents: Vec<Layer>,
}

/// Layers and snapshots of one data directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Snapshots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layers: PathBuf,
    snapshots: PathBuf,
    /// What is executed as `unpack`.
    program: PathBuf,
    marks: Marks,
    boot: String,
    /// One at a time: records and mounts of snapshots.
    changes: Mutex<()>,
    /// Syncs on their way, so that dropping the last handle does not lose track of them.
    syncs: Mutex<tokio::task::JoinSet<()>>,
}

impl Snapshots {
    /// Opens `layers/` and `snapshots/` below `data_dir` and removes what was left unfinished. `program` is executed as
    /// `unpack …` for each layer: this program's own (sealed) file. Blocking.
    pub fn open(data_dir: &Path, program: &Path) -> io::Result<Self> {
        let (layers, snapshots) = (data_dir.join("layers"), data_dir.join("snapshots"));
        board::durable::create_dir_all(&layers, 0o700)?;
        board::durable::create_dir_all(&snapshots, 0o700)?;
        let boot = layer::boot_id();
        for item in std::fs::read_dir(&layers)? {
            let path = item?.path();
            let whole = Record::read(&path).is_ok_and(|record| record.is_whole(&boot));
            let unfinished = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if unfinished || !whole {
                tracing::info!(path = %path.display(), "a layer that was not finished is removed");
                remove::tree(&path)?;
            }
        }
        let marks = overlay::marks_of(&layers);
        let inner = Inner {
            layers,
            snapshots,
            program: program.to_owned(),
            marks,
            boot,
            changes: Mutex::new(()),
            syncs: Mutex::new(tokio::task::JoinSet::new()),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The layer of this diff id, if it is unpacked: above the layers `below` (lowest first) where it depends on them.
    /// Blocking, briefly.
    pub fn layer(&self, diff_id: &Digest, below: &[Digest]) -> Option<Layer> {
        let keys = [layer::key(diff_id, None), layer::key(diff_id, Some(below))];
        keys.iter().find_map(|key| Record::read(&self.0.layers.join(key)).ok()).map(|record| record.layer)
    }

    /// All layers. Blocking.
    pub fn layers(&self) -> io::Result<Vec<Layer>> {
        let mut layers = Vec::new();
        for item in std::fs::read_dir(&self.0.layers)? {
            // One that goes away meanwhile is none.
            layers.extend(Record::read(&item?.path()).map(|record| record.layer));
        }
        layers.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(layers)
    }

    /// Where the files of a layer are: in overlayfs form, to be read only.
    pub fn layer_path(&self, layer: &Layer) -> PathBuf {
        self.0.layers.join(&layer.key).join("fs")
    }

    /// Removes a layer that no snapshot stands on; one that is gone is no error. Blocking.
    pub fn remove_layer(&self, key: &str) -> Result<(), SnapshotError> {
        let _one = self.lock();
        if let Some(user) = self.records()?.into_iter().find(|record| record.layers.iter().any(|it| it.key == key)) {
            return Err(SnapshotError::LayerInUse { layer: key.to_owned(), id: user.id });
        }
        let path = self.0.layers.join(key);
        let failed =
            |source| SnapshotError::Io { id: key.to_owned(), step: "remove layer", path: path.clone(), source };
        if key.is_empty() || key.contains('/') || key.starts_with('.') {
            return Err(SnapshotError::Id(key.to_owned()));
        }
        let aside = self.0.layers.join(format!("{}gone-{key}", layer::UNFINISHED));
        match std::fs::rename(&path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
            Ok(()) => remove::tree(&aside).map_err(failed),
        }
    }

    /// Keys of the layers that snapshots stand on. Blocking.
    pub fn layers_in_use(&self) -> Result<BTreeSet<String>, SnapshotError> {
        Ok(self.records()?.into_iter().flat_map(|record| record.layers).map(|layer| layer.key).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.0.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
