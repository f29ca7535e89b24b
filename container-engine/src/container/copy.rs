//! `docker cp`: a container's files as a stream of tar, whether it runs or not.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::{
    ContainerError, ContainerId, Containers, MountKind, PathStat,
    archive::{ArchiveError, PutOptions, Tree},
    record::Entry,
};
use crate::event::Action;

/// Held between the side that packs and the side that sends.
const PIPE: usize = 64 << 10;

impl Containers {
    /// What a path in the container is; a link itself is looked at.
    pub async fn stat_path(&self, id: &ContainerId, path: &str) -> Result<PathStat, ContainerError> {
        let path = PathBuf::from(path);
        self.with_tree(id, path, |tree, path| tree.stat(&path)).await
    }

    /// A path and all below it as tar, with what it is. Where packing fails half-way, the stream ends early and is no
    /// whole archive.
    pub async fn archive_get(
        &self,
        id: &ContainerId,
        path: &str,
    ) -> Result<(PathStat, impl AsyncRead + Send + Unpin + use<>), ContainerError> {
        let stat = self.stat_path(id, path).await?;
        let (read, write) = tokio::io::duplex(PIPE);
        let (this, id, path) = (self.clone(), id.clone(), PathBuf::from(path));
        self.task(async move {
            let bridge = SyncIoBridge::new(write);
            let packed = this.with_tree(&id, path.clone(), move |tree, path| tree.get(&path, bridge)).await;
            match packed {
                Ok(()) => {
                    if let Ok(entry) = this.entry(&id) {
                        this.tell(&entry, Action::Copied { path: path.display().to_string(), inward: false });
                    }
                }
                Err(ContainerError::Archive(ArchiveError::BrokenOff)) => {}
                Err(error) => tracing::warn!(%error, container = %id, "files could not be copied out of a container"),
            }
        });
        Ok((stat, read))
    }

    /// Unpacks a tar archive into a folder of the container.
    ///
    /// * Cancelled: what was unpacked stays.
    pub async fn archive_put(
        &self,
        id: &ContainerId,
        path: &str,
        from: impl AsyncRead + Send + Unpin + 'static,
        options: PutOptions,
    ) -> Result<(), ContainerError> {
        let shown = path.to_owned();
        let bridge = SyncIoBridge::new(from);
        self.with_tree(id, PathBuf::from(path), move |tree, path| tree.put(&path, bridge, options)).await?;
        let entry = self.entry(id)?;
        self.tell(&entry, Action::Copied { path: shown, inward: true });
        Ok(())
    }

    /// Does blocking work on the container's files. One that does not run has them mounted meanwhile.
    async fn with_tree<T: Send + 'static>(
        &self,
        id: &ContainerId,
        path: PathBuf,
        work: impl FnOnce(&Tree, PathBuf) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, ContainerError> {
        let entry = self.entry(id)?;
        let ids = entry.with(|record| record.ids);
        let run = move |root: PathBuf, path: PathBuf| {
            let work = move || Tree::open(&root, ids).and_then(|tree| work(&tree, path));
            tokio::task::spawn_blocking(work)
        };
        if entry.status().is_alive() {
            let done = run(self.root_of(&entry), path).await;
            return Ok(done.unwrap_or(Err(ArchiveError::BrokenOff))?);
        }
        // Held so that nobody starts it while its files are mounted elsewhere.
        let _gate = entry.gate.lock().await;
        if entry.status().is_alive() {
            let done = run(self.root_of(&entry), path).await;
            return Ok(done.unwrap_or(Err(ArchiveError::BrokenOff))?);
        }
        let (root, path, mounted) = self.resting_root(&entry, path).await?;
        let done = run(root.clone(), path).await;
        if mounted {
            self.put_away(&entry, &root).await;
        }
        Ok(done.unwrap_or(Err(ArchiveError::BrokenOff))?)
    }

    /// Where the files of a container that rests are: a volume of its own, or its root file system, which is mounted.
    async fn resting_root(
        &self,
        entry: &Arc<Entry>,
        path: PathBuf,
    ) -> Result<(PathBuf, PathBuf, bool), ContainerError> {
        let mounts = entry.with(|record| record.mounts.clone());
        let text = path.to_string_lossy().into_owned();
        let inside = mounts.iter().filter(|mount| mount.kind != MountKind::Tmpfs && mount.source.is_absolute());
        let deepest = inside.filter_map(|mount| Some((mount, beneath(&mount.target, &text)?)));
        if let Some((mount, rest)) = deepest.max_by_key(|(mount, _)| mount.target.len()) {
            return Ok((mount.source.clone(), PathBuf::from(rest), false));
        }
        let places = self.places(&entry.id);
        let rootfs = places.rootfs();
        let made = std::fs::create_dir_all(&rootfs);
        made.map_err(|source| ContainerError::Io { what: "make", path: rootfs.clone(), source })?;
        let record = entry.record();
        let roots = &self.0.parts.roots;
        let mounted =
            roots.mount(record.id.as_str(), &record.facts, record.ids, &rootfs, record.spec.auto_remove).await;
        mounted.map_err(ContainerError::Root)?;
        Ok((rootfs, path, true))
    }

    async fn put_away(&self, entry: &Arc<Entry>, rootfs: &Path) {
        if let Err(error) = self.0.parts.roots.unmount(entry.id.as_str(), rootfs).await {
            tracing::warn!(%error, container = %entry.id, "the root file system of a resting container stays mounted");
        }
        let run = self.places(&entry.id).run;
        // Nothing else is in it while the container rests.
        let _ = std::fs::remove_dir(run.join("rootfs"));
        let _ = std::fs::remove_dir(run);
    }
}

/// What follows `target` in `path`, where `path` lies at or below it; a plain comparison of their parts.
fn beneath(target: &str, path: &str) -> Option<String> {
    let parts = |text: &str| -> Vec<String> {
        text.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
    };
    let (target, all) = (parts(target), parts(path));
    if all.contains(&"..".to_owned()) || all.len() < target.len() || all[..target.len()] != target[..] {
        return None;
    }
    // The mount itself is what its folder holds.
    let rest = all[target.len()..].join("/");
    Some(if rest.is_empty() { "/.".to_owned() } else { format!("/{rest}") })
}

#[cfg(test)]
mod tests {
    use super::{super::oci, *};

    #[test]
    fn paths_in_mounts() {
        #[track_caller]
        fn check(target: &str, path: &str, want: Option<&str>) {
            assert_eq!(beneath(target, path).as_deref(), want, "{path} in {target}");
        }
        check("/data", "/data/a/b", Some("/a/b"));
        check("/data/", "/data", Some("/."));
        check("/data", "/database", None);
        check("/data", "/data/../etc", None);
        check("/data", "/", None);
        assert!(oci::same_path("/a//b/", "/a/./b"));
    }
}
