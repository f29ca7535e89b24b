//! Creating: a durable record, a writable part, volumes. No process and no network yet.

use std::{path::PathBuf, sync::Arc};

use super::{
    ContainerId, ContainerSpec, Containers, CreateError, Created, ImageOf, MountKind, MountPoint, MountSource,
    NamespaceMode, NetworkMode, Propagation, Restart, State,
    front::{clear_run_dir, remove_dir},
    id, oci,
    record::{Entry, Record, has_mount, lock},
    roots::{ImageFacts, VolumeWanted},
    signal,
};
use crate::{
    event::{Action, now_ns},
    platform::Platform,
};

/// Times that a made-up name is tried: there are millions.
const NAME_TRIES: u32 = 16;

impl Containers {
    /// Creates a container from an image that is present. Afterwards its record is durable and `start` needs nothing
    /// from outside the board.
    ///
    /// * Errors: nothing of the attempt remains.
    /// * Cancelled: carried to its end all the same.
    pub async fn create(&self, spec: ContainerSpec) -> Result<Created, CreateError> {
        let this = self.clone();
        let closed = || CreateError::State(store::state::StateError::Closed);
        self.whole(async move { this.create_whole(spec).await }).await.ok_or_else(closed)?
    }

    async fn create_whole(&self, mut spec: ContainerSpec) -> Result<Created, CreateError> {
        if let Some(name) = spec.name.as_deref().filter(|name| !id::is_name(name)) {
            return Err(CreateError::Name(name.to_owned()));
        }
        let facts = self.0.parts.roots.image(&spec.owner, &spec.image).await.map_err(CreateError::Root)?;
        runs_here(&spec.image, &facts.platform)?;
        self.check(&mut spec, &facts)?;
        let entry = self.take_in(spec, facts)?;
        match self.furnish(&entry).await {
            Ok(()) => {
                self.tell(&entry, Action::Created);
                let warnings = self.warnings(&entry);
                Ok(Created { id: entry.id.clone(), name: entry.with(|record| record.name.clone()), warnings })
            }
            Err(error) => {
                self.forget(&entry).await;
                Err(error)
            }
        }
    }

    /// What can be known to be wrong before anything is made. References to other containers become ids.
    fn check(&self, spec: &mut ContainerSpec, facts: &ImageFacts) -> Result<(), CreateError> {
        if let Some(text) = spec.stop_signal.as_ref().or(facts.defaults.stop_signal.as_ref()) {
            signal::parse(text)?;
        }
        if spec.auto_remove && spec.restart != Restart::No {
            let problem = "is wanted of a container that is removed at its end: leave one of the two out";
            return Err(oci::ConfigError::invalid("restart", format!("{:?}", spec.restart), problem).into());
        }
        let book = lock(&self.0.book);
        let owner = spec.owner.clone();
        let find = |text: &mut String| {
            let found = book.resolve(Some(&owner), text)?;
            found.id.as_str().clone_into(text);
            Ok::<_, CreateError>(())
        };
        if let NetworkMode::Container(other) = &mut spec.network {
            find(other)?;
        }
        for mode in [&mut spec.pid, &mut spec.ipc, &mut spec.uts] {
            if let NamespaceMode::Container(other) = mode {
                find(other)?;
            }
        }
        drop(book);
        let (user, mounts) = (super::user::User::root(), mount_points(spec, facts));
        oci::config(&oci::Input::draft(spec, &facts.defaults, &user, &mounts))?;
        Ok(())
    }

    /// Gives it an id and a name.
    fn take_in(&self, spec: ContainerSpec, facts: ImageFacts) -> Result<Arc<Entry>, CreateError> {
        let random = |_| CreateError::Io {
            what: "read",
            path: "/dev/urandom".into(),
            source: std::io::Error::other("the kernel has no random bytes"),
        };
        let given = spec.name.is_some();
        let mut tries = 0;
        loop {
            tries += 1;
            let id = ContainerId::random().map_err(random)?;
            let seed = [0, 1, 2, 3]
                .map(|n| id.as_str().as_bytes()[40 + 2 * n].wrapping_mul(31) ^ id.as_str().as_bytes()[41 + 2 * n]);
            let name = spec.name.clone().unwrap_or_else(|| id::made_up(seed));
            let hostname = match (&spec.hostname, &spec.network) {
                (Some(hostname), _) => hostname.clone(),
                (None, NetworkMode::Host) => host_name(),
                (None, _) => id.short().to_owned(),
            };
            let record = Record {
                name,
                hostname,
                owner: spec.owner.clone(),
                image: ImageOf { name: spec.image.clone(), id: facts.id.clone() },
                mounts: mount_points(&spec, &facts),
                facts: facts.clone(),
                created_ns: now_ns(),
                ids: None,
                state: State::default(),
                spec: spec.clone(),
                id,
            };
            match lock(&self.0.book).insert(record) {
                Err(CreateError::NameTaken { .. }) if !given && tries < NAME_TRIES => {}
                other => return other,
            }
        }
    }

    /// The record, and the folder of its files. The writable part is made when it is first needed.
    async fn furnish(&self, entry: &Arc<Entry>) -> Result<(), CreateError> {
        let data = self.places(&entry.id).data;
        // Not synced: a folder that a power cut takes is made again at the start.
        std::fs::create_dir_all(&data).map_err(|source| CreateError::Io {
            what: "make",
            path: data.clone(),
            source,
        })?;
        self.keep_copy(entry, &data);
        Ok(self.write(entry).await?)
    }

    /// Takes back a container that was not to be, or is no longer.
    pub(super) async fn forget(&self, entry: &Arc<Entry>) {
        let _turn = entry.writing.lock().await;
        entry.seen.send_modify(|seen| seen.going = true);
        let mut batch = store::state::Batch::default();
        batch.delete::<Record>(entry.id.as_str());
        // Should the record of one that removes itself come back, the next start of the agent removes it again.
        let relaxed = entry.with(|record| record.spec.auto_remove);
        let state = &self.0.parts.state;
        let delete = async { if relaxed { state.commit_relaxed(batch).await } else { state.commit(batch).await } };
        let (deleted, removed) = tokio::join!(delete, self.0.parts.roots.remove(entry.id.as_str()));
        if let Err(error) = deleted {
            tracing::warn!(%error, container = %entry.id, "the record of a removed container stays; it is removed at the next start");
        }
        if let Err(error) = removed {
            tracing::warn!(%error, container = %entry.id, "the files of a removed container stay; they are removed at the next start");
        }
        let places = self.places(&entry.id);
        let gone = tokio::task::spawn_blocking(move || clear_run_dir(&places.run).and(remove_dir(&places.data))).await;
        if let Ok(Err(error)) = gone {
            tracing::warn!(%error, container = %entry.id, "folders of a removed container stay; they are removed at the next start");
        }
        lock(&self.0.book).remove(&entry.id);
        entry.seen.send_modify(|seen| seen.removed = true);
    }

    /// What was asked for and is not had on this board.
    fn warnings(&self, entry: &Entry) -> Vec<String> {
        let cgroups = &self.0.parts.cgroups;
        let limits = entry.with(|record| record.spec.resources.clone());
        let mut warnings = Vec::new();
        if limits.memory_swap.is_some() && !cgroups.limits_swap() {
            warnings.push("this kernel cannot limit swap: memory alone is limited".to_owned());
        }
        if entry.with(|record| record.spec.network == NetworkMode::Host && !record.spec.ports.is_empty()) {
            warnings.push("published ports mean nothing on the host's network".to_owned());
        }
        warnings
    }

    /// The folders of its volumes, made and filled where they are missing. `rootfs` is mounted.
    pub(super) async fn volumes(
        &self,
        record: &Record,
        rootfs: &std::path::Path,
    ) -> Result<Vec<MountPoint>, super::RootError> {
        let mut mounts = record.mounts.clone();
        for mount in &mut mounts {
            if let (MountKind::Volume, Some(name)) = (mount.kind, mount.name.clone()) {
                let fill_from = Some((rootfs, mount.target.as_str()));
                let (owner, anonymous, ids) = (&record.owner, mount.anonymous, record.ids);
                let wanted = VolumeWanted { owner, name: &name, anonymous, fill_from, ids };
                mount.source = self.0.parts.roots.volume(wanted).await?;
            }
        }
        Ok(mounts)
    }
}

/// The mounts asked for, and the volumes of the image where nothing else is mounted.
fn mount_points(spec: &ContainerSpec, facts: &ImageFacts) -> Vec<MountPoint> {
    let asked = spec.mounts.iter().map(|mount| {
        let (kind, name, source) = match &mount.source {
            MountSource::Bind { source, .. } => (MountKind::Bind, None, source.clone()),
            MountSource::Volume { name } if name.is_empty() => (MountKind::Volume, random_name(), PathBuf::new()),
            MountSource::Volume { name } => (MountKind::Volume, Some(name.clone()), PathBuf::new()),
            MountSource::Tmpfs { .. } => (MountKind::Tmpfs, None, PathBuf::new()),
        };
        let anonymous = matches!(&mount.source, MountSource::Volume { name } if name.is_empty());
        MountPoint {
            kind,
            name,
            source,
            target: mount.target.clone(),
            read_only: mount.read_only,
            propagation: mount.propagation,
            anonymous,
        }
    });
    let mut mounts: Vec<MountPoint> = asked.collect();
    for target in &facts.defaults.volumes {
        // The root itself can be no volume, whatever an image says.
        let sane = target.starts_with('/') && !oci::same_path(target, "/") && !target.contains("..");
        if sane && !has_mount(&mounts, target) {
            mounts.push(MountPoint {
                kind: MountKind::Volume,
                name: random_name(),
                source: PathBuf::new(),
                target: target.clone(),
                read_only: false,
                propagation: Propagation::default(),
                anonymous: true,
            });
        }
    }
    mounts
}

fn random_name() -> Option<String> {
    ContainerId::random().ok().map(|id| id.to_string())
}

/// The host's own name.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Refuses an image of another kind of processor.
fn runs_here(image: &str, platform: &str) -> Result<(), CreateError> {
    let host = Platform::host();
    let fits = |image: Platform| host.fit(&image).is_some();
    if platform.is_empty() || platform.parse().is_ok_and(fits) {
        return Ok(());
    }
    Err(CreateError::Platform { image: image.to_owned(), platform: platform.to_owned(), host: host.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_for_others_are_refused_naming_both() {
        let host = if cfg!(target_arch = "x86_64") { "linux/amd64" } else { "linux/arm64/v8" };
        runs_here("x", host).unwrap();
        for wrong in ["linux/riscv64", "linux/s390x", "windows/amd64"] {
            let error = runs_here("img:1", wrong).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("img:1") && text.contains(wrong) && text.contains("linux/a"), "{text}");
            assert_eq!(error.code(), "platform");
        }
    }

    #[test]
    fn volumes_of_the_image_yield_to_mounts() {
        let facts = ImageFacts {
            defaults: super::super::ImageDefaults {
                volumes: vec!["/data".into(), "/logs".into(), "/".into(), "relative".into(), "/a/../b".into()],
                ..Default::default()
            },
            ..ImageFacts::default()
        };
        let mount = super::super::Mount {
            target: "/data/".into(),
            source: MountSource::Tmpfs { size: None, mode: None },
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::default(),
        };
        let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::default() };
        let points = mount_points(&spec, &facts);
        let shown: Vec<_> = points.iter().map(|point| (point.target.as_str(), point.kind, point.anonymous)).collect();
        assert_eq!(shown, [("/data/", MountKind::Tmpfs, false), ("/logs", MountKind::Volume, true)]);
    }
}
