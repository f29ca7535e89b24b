//! Snapshots: prepared, mounted, found again after a crash, removed.
//!
//! `snapshots/ID/` holds `snapshot.json` (layers, options, mount point), and `upper`, `work` and `empty` of the overlay
//! or, where there is none, the copy in `root`.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{io::Errno, mount::UnmountFlags};
use serde::{Deserialize, Serialize};

use super::{
    Layer, SnapshotError, Snapshots, Usage, copy,
    layer::Record as LayerRecord,
    overlay::{self, Overlay},
    remove, usage,
};
use crate::content::Digest;

/// The record.
const FILE: &str = "snapshot.json";
/// Largest one: 128 layers take 40 KiB.
const MAX_RECORD: u64 = 1 << 20;
/// Mounts on one mount point that are taken away.
const MAX_STACKED: usize = 32;

/// Ids 0 to `size - 1` of the container are `host` and up on this machine, users and groups alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id here.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// What a root file system is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareOptions {
    /// Nothing can be written.
    pub read_only: bool,
    /// For a user namespace.
    pub idmap: Option<IdMap>,
    /// Nothing of it is synced to the disk: for work that is thrown away.
    pub volatile: bool,
    /// Bytes that may be written, which [`Snapshots::check_quota`] looks at.
    pub quota: Option<u64>,
    /// A copy, even where there is overlayfs.
    pub copy: bool,
}

/// How it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Layers under a writable folder.
    Overlay,
    /// All layers copied (by reference where the file system can).
    Copy,
}

/// A mounted root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFs {
    /// Its snapshot.
    pub id: String,
    /// Where it is mounted.
    pub path: PathBuf,
    /// How it was made.
    pub way: Way,
}

/// `snapshot.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub options: PrepareOptions,
    pub target: PathBuf,
    pub way: Way,
}

impl Record {
    /// How owners on disk differ from those in the container.
    pub(super) fn shift(&self) -> u32 {
        self.options.idmap.map_or(0, |map| map.host)
    }
}

impl Snapshots {
    /// Makes a writable (or read-only) root file system of `layers`, lowest first, and mounts it at `target`, a folder
    /// that is there. With an error nothing of it is left. Cancelled: it is made all the same; `remove` undoes it.
    pub async fn prepare(
        &self,
        id: &str,
        layers: &[Layer],
        target: &Path,
        options: PrepareOptions,
    ) -> Result<RootFs, SnapshotError> {
        let (it, layers) = (self.clone(), layers.to_vec());
        let (id, target) = (id.to_owned(), target.to_owned());
        apart(&id.clone(), move || it.prepare_now(&id, layers, &target, options)).await
    }

    /// The same without the mount, which `mount` makes later.
    pub async fn create(&self, id: &str, layers: &[Layer], options: PrepareOptions) -> Result<(), SnapshotError> {
        let (it, layers, id) = (self.clone(), layers.to_vec(), id.to_owned());
        apart(&id.clone(), move || {
            let one = it.lock();
            let record = it.create_now(&id, layers, PathBuf::new(), options)?;
            drop(one);
            it.sync(&record)
        })
        .await
    }

    /// Mounts it at `target`, a folder that is there: for the first time, or after a boot or an `unmount`. Nothing
    /// happens where it is mounted there.
    pub async fn mount(&self, id: &str, target: &Path) -> Result<RootFs, SnapshotError> {
        let (it, id, target) = (self.clone(), id.to_owned(), target.to_owned());
        apart(&id.clone(), move || {
            let _one = it.lock();
            let mut record = it.record(&id)?;
            if record.target != target {
                if !record.target.as_os_str().is_empty() {
                    Self::unmount_target(&id, &record.target)?;
                }
                record.target = target;
                Self::write(&record, &it.folder(&id)?)?;
            }
            it.mount_now(record)
        })
        .await
    }

    /// Unmounts it and keeps what was written. A busy mount goes away with its last user.
    pub async fn unmount(&self, id: &str) -> Result<(), SnapshotError> {
        let (it, id) = (self.clone(), id.to_owned());
        apart(&id.clone(), move || {
            let _one = it.lock();
            it.unmount_now(&id)
        })
        .await
    }

    /// Unmounts it and removes what was written; one that is not there is no error.
    pub async fn remove(&self, id: &str) -> Result<(), SnapshotError> {
        let (it, id) = (self.clone(), id.to_owned());
        apart(&id.clone(), move || it.remove_now(&id)).await
    }

    /// What was written above the layers (with a copy: everything).
    pub async fn usage(&self, id: &str) -> Result<Usage, SnapshotError> {
        let (it, id) = (self.clone(), id.to_owned());
        apart(&id.clone(), move || {
            let record = it.record(&id)?;
            let folder = it.written(&record);
            usage::of(&folder).map_err(io_error(&id, "read", &folder))
        })
        .await
    }

    /// An error if more was written than the snapshot's quota allows.
    pub async fn check_quota(&self, id: &str) -> Result<Usage, SnapshotError> {
        let (it, name) = (self.clone(), id.to_owned());
        let quota = apart(id, move || Ok(it.record(&name)?.options.quota)).await?;
        let usage = self.usage(id).await?;
        match quota {
            Some(quota) if usage.bytes > quota => {
                Err(SnapshotError::OverQuota { id: id.to_owned(), used: usage.bytes, quota })
            }
            _ => Ok(usage),
        }
    }

    /// The snapshots there are. Blocking.
    pub fn list(&self) -> Result<Vec<String>, SnapshotError> {
        Ok(self.records()?.into_iter().map(|record| record.id).collect())
    }

    /// Removes every snapshot that `keep` does not name, and mounts of this data directory that belong to none: at
    /// start, when the containers that survived are known. Returns what was removed; what could not be is logged.
    pub async fn retain(&self, keep: BTreeSet<String>) -> Result<Vec<String>, SnapshotError> {
        let it = self.clone();
        apart("", move || it.retain_now(&keep)).await
    }

    fn prepare_now(
        &self,
        id: &str,
        layers: Vec<Layer>,
        target: &Path,
        options: PrepareOptions,
    ) -> Result<RootFs, SnapshotError> {
        let one = self.lock();
        let record = self.create_now(id, layers, target.to_owned(), options)?;
        let made = self.mount_now(record.clone());
        drop(one);
        // Many at once wait for the disk together.
        let made = made.and_then(|root| self.sync(&record).map(|()| root));
        if made.is_err() {
            self.undo(id, target);
        }
        made
    }

    /// Afterwards the record is on disk.
    fn sync(&self, record: &Record) -> Result<(), SnapshotError> {
        if record.options.volatile {
            return Ok(());
        }
        let folder = self.folder(&record.id)?;
        let synced = fs::File::open(folder.join(FILE)).and_then(|file| file.sync_all());
        let synced = synced.and_then(|()| board::durable::sync_dir(&folder));
        synced.map_err(io_error(&record.id, "describe", &folder))
    }

    fn create_now(
        &self,
        id: &str,
        layers: Vec<Layer>,
        target: PathBuf,
        options: PrepareOptions,
    ) -> Result<Record, SnapshotError> {
        let folder = self.folder(id)?;
        for layer in &layers {
            if LayerRecord::read(&self.0.layers.join(&layer.key)).is_err() {
                return Err(SnapshotError::MissingLayer { id: id.to_owned(), layer: layer.diff_id.to_string() });
            }
        }
        match DirBuilder::new().mode(0o711).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(SnapshotError::Exists(id.to_owned()));
            }
            other => other.map_err(io_error(id, "make", &folder))?,
        }
        let copied = options.copy;
        let mut record = Record { id: id.to_owned(), layers, options, target, way: Way::Overlay };
        let made = self.fill(&record, &folder).and_then(|()| if copied { self.copy(&mut record) } else { Ok(()) });
        if let Err(error) = made {
            self.undo(id, Path::new(""));
            return Err(error);
        }
        Ok(record)
    }

    /// Takes back what an attempt has left.
    fn undo(&self, id: &str, target: &Path) {
        if !target.as_os_str().is_empty()
            && let Err(error) = Self::unmount_target(id, target)
        {
            tracing::warn!(%error, "a snapshot that failed is still mounted");
        }
        let Ok(folder) = self.folder(id) else { return };
        if let Err(error) = remove::tree(&folder) {
            tracing::warn!(%error, path = %folder.display(), "a snapshot that failed is left; the next start removes it");
        }
    }

    fn fill(&self, record: &Record, folder: &Path) -> Result<(), SnapshotError> {
        let failed = || io_error(&record.id, "make", folder);
        for name in ["upper", "work", "empty"] {
            let mode = if name == "work" { 0o700 } else { 0o755 };
            let path = folder.join(name);
            DirBuilder::new().mode(mode).create(&path).map_err(failed())?;
            // Whatever the umask is.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed())?;
        }
        self.dress_root(record, &folder.join("upper")).map_err(failed())?;
        Self::write(record, folder)
    }

    /// From here on it is a copy of its layers.
    fn copy(&self, record: &mut Record) -> Result<(), SnapshotError> {
        let folder = self.folder(&record.id)?;
        let layers: Vec<_> = record.layers.iter().map(|layer| (self.layer_path(layer), layer.marks)).collect();
        copy::layers(&layers, &folder, record.options.idmap).map_err(io_error(
            &record.id,
            "copy the layers of",
            &folder,
        ))?;
        record.way = Way::Copy;
        Self::write(record, &folder)
    }

    /// The root's own owner, mode and time are those of the uppermost layer.
    fn dress_root(&self, record: &Record, upper: &Path) -> io::Result<()> {
        let below = match record.layers.last() {
            Some(layer) => fs::metadata(self.layer_path(layer))?,
            None => fs::metadata(upper)?,
        };
        let shift = |id: u32| id.checked_add(record.shift());
        std::os::unix::fs::chown(upper, shift(below.uid()), shift(below.gid()))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(below.mode() & 0o7777))?;
        fs::File::open(upper)?.set_modified(below.modified()?)
    }

    /// Replaces the record, whole or not at all; [`Self::sync`] follows.
    fn write(record: &Record, folder: &Path) -> Result<(), SnapshotError> {
        let (path, beside) = (folder.join(FILE), folder.join("snapshot.json.new"));
        let bytes =
            serde_json::to_vec(record).map_err(|error| io_error(&record.id, "describe", &path)(error.into()))?;
        let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &path));
        written.map_err(io_error(&record.id, "describe", &path))
    }

    fn mount_now(&self, mut record: Record) -> Result<RootFs, SnapshotError> {
        if record.way == Way::Overlay {
            match self.mount_as(&record) {
                Err(SnapshotError::Io { source, .. }) if no_overlay(&source) && self.is_untouched(&record) => {
                    tracing::info!(id = %record.id, error = %source, "no overlay mount here; the layers are copied");
                    self.copy(&mut record)?;
                }
                other => return other,
            }
        }
        self.mount_as(&record)
    }

    /// Whether nothing was written to it yet.
    fn is_untouched(&self, record: &Record) -> bool {
        fs::read_dir(self.written(record)).is_ok_and(|mut items| items.next().is_none())
    }

    fn mount_as(&self, record: &Record) -> Result<RootFs, SnapshotError> {
        let root = RootFs { id: record.id.clone(), path: record.target.clone(), way: record.way };
        let (source, target) = (self.source(&record.id), &record.target);
        let failed = || io_error(&record.id, "mount", target);
        let mounted = overlay::mounted().map_err(failed())?;
        let there = mounted.iter().rev().find(|mount| mount.target == *target);
        if there.is_some_and(|mount| mount.source == source || record.way == Way::Copy) {
            return Ok(root);
        }
        let folder = self.folder(&record.id)?;
        match record.way {
            Way::Overlay => {
                self.overlay(record, source, folder).mount(target, record.options.idmap).map_err(failed())?;
            }
            Way::Copy => {
                rustix::mount::mount_bind(folder.join("root"), target).map_err(|error| failed()(error.into()))?;
                if record.options.read_only {
                    let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
                    rustix::mount::mount_remount(target, flags, c"").map_err(|error| failed()(error.into()))?;
                }
            }
        }
        Ok(root)
    }

    fn overlay(&self, record: &Record, source: String, folder: PathBuf) -> Overlay {
        if record.options.volatile {
            // The kernel's mark of a volatile overlay that was not unmounted; its content is thrown away anyhow.
            let _ = fs::remove_dir_all(folder.join("work/work/incompat"));
        }
        Overlay {
            source,
            layers: self.0.layers.clone(),
            lower: record.layers.iter().rev().map(|layer| format!("{}/fs", layer.key)).collect(),
            folder,
            read_only: record.options.read_only,
            volatile: record.options.volatile,
            marks: self.0.marks,
        }
    }

    fn unmount_now(&self, id: &str) -> Result<(), SnapshotError> {
        let target = self.record(id)?.target;
        if target.as_os_str().is_empty() { Ok(()) } else { Self::unmount_target(id, &target) }
    }

    fn unmount_target(id: &str, target: &Path) -> Result<(), SnapshotError> {
        for _ in 0..MAX_STACKED {
            match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()), // Not, or not any more, a mount point.
                Err(Errno::BUSY) => match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(io_error(id, "unmount", target)(error.into())),
                },
                Err(error) => return Err(io_error(id, "unmount", target)(error.into())),
            }
        }
        Ok(())
    }

    fn remove_now(&self, id: &str) -> Result<(), SnapshotError> {
        let folder = self.folder(id)?;
        let aside = {
            let _one = self.lock();
            let source = self.source(id);
            let mut targets: BTreeSet<PathBuf> = self.record(id).ok().map(|it| it.target).into_iter().collect();
            targets.remove(Path::new("")); // Never mounted.
            let mounted = overlay::mounted().map_err(io_error(id, "find mounts of", &folder))?;
            targets.extend(mounted.into_iter().filter(|mount| mount.source == source).map(|mount| mount.target));
            for target in &targets {
                Self::unmount_target(id, target)?;
            }
            // Gone by one rename: an agent that is killed now finds a leftover, never half a snapshot.
            let aside = self.0.snapshots.join(format!(".gone-{id}"));
            match fs::rename(&folder, &aside) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {
                    remove::tree(&folder).map_err(io_error(id, "remove", &folder))?;
                }
                other => other.map_err(io_error(id, "remove", &folder))?,
            }
            aside
        };
        remove::tree(&aside).map_err(io_error(id, "remove", &aside))
    }

    fn retain_now(&self, keep: &BTreeSet<String>) -> Result<Vec<String>, SnapshotError> {
        let failed = |error| io_error("", "list", &self.0.snapshots)(error);
        let mut gone = Vec::new();
        let mut found = BTreeSet::new();
        for item in fs::read_dir(&self.0.snapshots).map_err(failed)? {
            let name = item.map_err(failed)?.file_name();
            match name.to_str() {
                Some(name) if !name.starts_with('.') => found.insert(name.to_owned()),
                _ => {
                    let path = self.0.snapshots.join(&name);
                    if let Err(error) = remove::tree(&path) {
                        tracing::warn!(%error, path = %path.display(), "a removed snapshot is still on disk");
                    }
                    continue;
                }
            };
        }
        let ours = self.source("");
        let mounted = overlay::mounted().map_err(failed)?;
        found.extend(mounted.into_iter().filter_map(|mount| mount.source.strip_prefix(&ours).map(str::to_owned)));
        for id in found.difference(keep) {
            match self.remove_now(id) {
                Ok(()) => gone.push(id.clone()),
                Err(error) => tracing::warn!(%error, id, "a snapshot of no container could not be removed"),
            }
        }
        Ok(gone)
    }

    /// Where what the container writes ends up.
    pub(super) fn written(&self, record: &Record) -> PathBuf {
        self.0.snapshots.join(&record.id).join(if record.way == Way::Copy { "root" } else { "upper" })
    }

    pub(super) fn record(&self, id: &str) -> Result<Record, SnapshotError> {
        let path = self.folder(id)?.join(FILE);
        let bytes = board::durable::read(&path, MAX_RECORD).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SnapshotError::NotFound(id.to_owned()),
            _ => io_error(id, "read the record of", &path)(error),
        })?;
        serde_json::from_slice(&bytes).map_err(|error| io_error(id, "read the record of", &path)(error.into()))
    }

    pub(super) fn records(&self) -> Result<Vec<Record>, SnapshotError> {
        let failed = io_error("", "list", &self.0.snapshots);
        let items: io::Result<Vec<_>> = fs::read_dir(&self.0.snapshots).and_then(Iterator::collect);
        let mut names: Vec<_> =
            items.map_err(failed)?.into_iter().filter_map(|item| item.file_name().into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        // One without a readable record is a leftover, which `retain` removes.
        Ok(names.iter().filter_map(|name| self.record(name).ok()).collect())
    }

    pub(super) fn folder(&self, id: &str) -> Result<PathBuf, SnapshotError> {
        let letters = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if letters && !id.is_empty() && id.len() <= 128 && !id.starts_with('.') {
            Ok(self.0.snapshots.join(id))
        } else {
            Err(SnapshotError::Id(id.chars().take(200).collect()))
        }
    }

    /// The source that its mount shows.
    fn source(&self, id: &str) -> String {
        let data = Digest::of(self.0.snapshots.as_os_str().as_encoded_bytes()).hex();
        format!("edge-agent:{}:{id}", &data[..8])
    }
}

/// Whether overlay mounts are not to be had here, rather than this one having failed.
fn no_overlay(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::ENODEV | libc::EINVAL | libc::EPERM | libc::ENOSYS | libc::EOPNOTSUPP | libc::EOVERFLOW))
}

pub(super) fn io_error<'a>(
    id: &'a str,
    step: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> SnapshotError + use<'a> {
    move |source| SnapshotError::Io { id: id.to_owned(), step, path: path.to_owned(), source }
}

/// On a thread that may block.
pub(super) async fn apart<T: Send + 'static>(
    id: &str,
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io_error(id, "work on", Path::new(""))(io::Error::other(error))),
    }
}
