//! Named volumes: folders that outlive containers, each with an owner.
//!
//! On disk: `volumes/OWNER/NAME/{data,volume.json}`; the folder is the truth, and nothing else is kept. A volume whose
//! record is unreadable is still a volume, without labels: data is never thrown away for want of a description.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    event::{Action, Events, Kind},
    owner::Owner,
    snapshot::{self, Usage},
};

/// Longest name.
const MAX_NAME: usize = 128;
/// Largest `volume.json`.
const MAX_RECORD: u64 = 256 << 10;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, unique among its owner's.
    pub name: String,
    /// Whose.
    pub owner: Owner,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// Made for one container, and goes with it.
    #[serde(default)]
    pub anonymous: bool,
    /// When it was made, seconds since 1970 by the host's clock.
    pub created_s: u64,
    /// Whether it has taken over what an image has at its place, or been used without.
    pub filled: bool,
    /// Where its files are, on the host.
    #[serde(skip)]
    pub path: PathBuf,
}

/// Why something with a volume failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not a name.
    #[error("{0:?} is no name of a volume: letters and digits, then also '.', '_' or '-', up to {MAX_NAME}")]
    Name(String),
    /// There is none.
    #[error("{owner} has no volume {name}")]
    NotFound {
        /// Whose.
        owner: Owner,
        /// Which.
        name: String,
    },
    /// A container uses it.
    #[error("volume {name} is used by {user}; remove that first")]
    InUse {
        /// Which.
        name: String,
        /// By whom.
        user: String,
    },
    /// The disk.
    #[error("cannot {step} volume {name} in {path}")]
    Io {
        /// Which.
        name: String,
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl VolumeError {
    /// Code on the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "invalid",
            Self::NotFound { .. } => "not_found",
            Self::InUse { .. } => "conflict",
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => "no_space",
            Self::Io { .. } => "internal",
        }
    }
}

/// What a new volume is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Made for one container.
    pub anonymous: bool,
}

/// The volumes of one data directory. Every call blocks.
#[derive(Debug, Clone)]
pub struct Volumes {
    root: PathBuf,
    events: Events,
}

impl Volumes {
    /// Opens `volumes/` below `data_dir`; what was left half-removed or half-made goes. `events` hears what is made and removed.
    pub fn open(data_dir: &Path, events: Events) -> io::Result<Self> {
        let root = data_dir.join("volumes");
        board::durable::create_dir_all(&root, 0o711)?;
        for item in fs::read_dir(&root)? {
            let item = item?;
            if item.file_name().as_encoded_bytes().starts_with(b".") {
                snapshot::remove_tree(&item.path())?;
            }
        }
        Ok(Self { root, events })
    }

    /// Makes a volume, or returns the one there is: as it is, whatever `new` says.
    pub fn create(&self, owner: &Owner, name: &str, new: NewVolume) -> Result<Volume, VolumeError> {
        match self.get(owner, name) {
            Err(VolumeError::NotFound { .. }) => {}
            other => return other,
        }
        let folder = self.folder(owner, name)?;
        let failed = |source| VolumeError::Io { name: name.to_owned(), step: "make", path: folder.clone(), source };
        let created_s = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let volume = Volume {
            name: name.to_owned(),
            owner: owner.clone(),
            labels: new.labels,
            anonymous: new.anonymous,
            created_s,
            filled: false,
            path: folder.join("data"),
        };
        if self.make(&volume, &folder).map_err(failed)? {
            self.events.tell(owner, Kind::Volume, name, name, Action::Created);
        }
        self.get(owner, name) // Another call may have been first.
    }

    /// Whether it was this call that made it.
    fn make(&self, volume: &Volume, folder: &Path) -> io::Result<bool> {
        let parent = folder.parent().ok_or(io::ErrorKind::InvalidInput)?;
        board::durable::create_dir_all(parent, 0o711)?;
        let new = self.aside("new", &volume.name);
        snapshot::remove_tree(&new)?;
        fs::create_dir(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o711))?;
        fs::create_dir(new.join("data"))?;
        fs::set_permissions(new.join("data"), fs::Permissions::from_mode(0o755))?;
        write(volume, &new)?;
        match fs::rename(&new, folder) {
            Err(error) if folder.join("data").is_dir() => {
                tracing::debug!(%error, "a volume was made twice at once");
                snapshot::remove_tree(&new).map(|()| false)
            }
            other => other.and_then(|()| board::durable::sync_dir(parent)).map(|()| true),
        }
    }

    /// One volume.
    pub fn get(&self, owner: &Owner, name: &str) -> Result<Volume, VolumeError> {
        let folder = self.folder(owner, name)?;
        if !folder.join("data").is_dir() {
            return Err(VolumeError::NotFound { owner: owner.clone(), name: name.to_owned() });
        }
        Ok(read(&folder, owner, name))
    }

    /// All volumes, or those of one owner, by owner and name.
    pub fn list(&self, owner: Option<&Owner>) -> Result<Vec<Volume>, VolumeError> {
        let failed = |source| VolumeError::Io { name: "…".into(), step: "list", path: self.root.clone(), source };
        let owners = match owner {
            Some(owner) => vec![owner.clone()],
            None => self.owners().map_err(failed)?,
        };
        let mut all = Vec::new();
        for owner in owners {
            for name in names(&self.root.join(owner.to_string())).map_err(failed)? {
                all.extend(self.get(&owner, &name)); // One that goes away meanwhile is none.
            }
        }
        all.sort_by(|one, other| (&one.owner, &one.name).cmp(&(&other.owner, &other.name)));
        Ok(all)
    }

    fn owners(&self) -> io::Result<Vec<Owner>> {
        let mut owners = vec![Owner::Local];
        for kind in ["pods", "jobs"] {
            let ids = names(&self.root.join(kind))?;
            owners.extend(ids.iter().filter_map(|id| format!("{kind}/{id}").parse().ok()));
        }
        Ok(owners)
    }

    /// Removes a volume that `user` names no user of.
    pub fn remove(
        &self,
        owner: &Owner,
        name: &str,
        user: impl FnOnce(&Volume) -> Option<String>,
    ) -> Result<(), VolumeError> {
        let volume = self.get(owner, name)?;
        if let Some(user) = user(&volume) {
            return Err(VolumeError::InUse { name: name.to_owned(), user });
        }
        let folder = self.folder(owner, name)?;
        let failed = |source| VolumeError::Io { name: name.to_owned(), step: "remove", path: folder.clone(), source };
        // Gone by one rename; what a crash leaves, the next start removes.
        let aside = self.aside("gone", name);
        fs::rename(&folder, &aside).map_err(failed)?;
        self.events.tell(owner, Kind::Volume, name, name, Action::Removed);
        snapshot::remove_tree(&aside).map_err(failed)?;
        if let Some(parent) = folder.parent() {
            let _ = fs::remove_dir(parent); // Of an owner without volumes; otherwise it is not empty.
        }
        Ok(())
    }

    /// On first use, takes over what the root file system `root` (mounted) has at `at`: files with owners, modes, times
    /// and links. Its owner and mode become the folder's own. Where nothing is there, `owner_id` becomes its owner. A
    /// volume that has something in it, or was used before, stays as it is.
    pub fn fill(&self, volume: &Volume, root: &Path, at: &str, owner_id: u32) -> Result<(), VolumeError> {
        let folder = self.folder(&volume.owner, &volume.name)?;
        let failed =
            |source| VolumeError::Io { name: volume.name.clone(), step: "fill", path: volume.path.clone(), source };
        let mut now = self.get(&volume.owner, &volume.name)?;
        if now.filled {
            return Ok(());
        }
        let empty = fs::read_dir(&now.path).map_err(failed)?.next().is_none();
        if empty && !snapshot::copy_below(root, at, &now.path).map_err(failed)? {
            std::os::unix::fs::chown(&now.path, Some(owner_id), Some(owner_id)).map_err(failed)?;
        }
        now.filled = true;
        write(&now, &folder).map_err(failed)
    }

    /// What it takes on disk.
    pub fn usage(&self, volume: &Volume) -> Result<Usage, VolumeError> {
        snapshot::usage_of(&volume.path).map_err(|source| VolumeError::Io {
            name: volume.name.clone(),
            step: "measure",
            path: volume.path.clone(),
            source,
        })
    }

    fn folder(&self, owner: &Owner, name: &str) -> Result<PathBuf, VolumeError> {
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if letters && first && name.len() <= MAX_NAME {
            Ok(self.root.join(owner.to_string()).join(name))
        } else {
            Err(VolumeError::Name(name.chars().take(2 * MAX_NAME).collect()))
        }
    }

    fn aside(&self, what: &str, name: &str) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.root.join(format!(".{what}-{}-{number}-{name}", std::process::id()))
    }
}

/// Names in a folder; none where it is missing.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(items) => {
            items.filter_map(|item| item.map(|item| item.file_name().into_string().ok()).transpose()).collect()
        }
    }
}

fn write(volume: &Volume, folder: &Path) -> io::Result<()> {
    board::durable::write(&folder.join("volume.json"), &serde_json::to_vec(volume)?, 0o600)
}

fn read(folder: &Path, owner: &Owner, name: &str) -> Volume {
    let path = folder.join("data");
    let record = board::durable::read(&folder.join("volume.json"), MAX_RECORD)
        .and_then(|bytes| serde_json::from_slice::<Volume>(&bytes).map_err(io::Error::from));
    match record {
        Ok(volume) => Volume { path, owner: owner.clone(), name: name.to_owned(), ..volume },
        Err(error) => {
            tracing::warn!(%error, path = %folder.display(), "the record of a volume is damaged; its labels are lost");
            let created_s = fs::metadata(&path).map_or(0, |data| u64::try_from(data.ctime()).unwrap_or(0));
            Volume {
                name: name.to_owned(),
                owner: owner.clone(),
                labels: BTreeMap::new(),
                anonymous: false,
                created_s,
                filled: true,
                path,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Volumes) {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path(), Events::new()).unwrap();
        (dir, volumes)
    }

    #[test]
    fn a_volume_is_made_found_and_removed() {
        let (dir, volumes) = open();
        let pod: Owner = "pods/1".parse().unwrap();
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let made = volumes.create(&pod, "db", NewVolume { labels: labels.clone(), anonymous: false }).unwrap();
        assert_eq!((made.labels.clone(), made.path.is_dir()), (labels, true));
        fs::write(made.path.join("file"), "1234").unwrap();
        volumes.create(&Owner::Local, "db", NewVolume::default()).unwrap();

        let volumes = Volumes::open(dir.path(), Events::new()).unwrap();
        assert_eq!(volumes.create(&pod, "db", NewVolume::default()).unwrap(), made);
        assert_eq!(volumes.list(None).unwrap().len(), 2);
        assert_eq!(volumes.list(Some(&pod)).unwrap(), std::slice::from_ref(&made));
        assert_eq!(volumes.usage(&made).unwrap().inodes, 1);

        let used = volumes.remove(&pod, "db", |_| Some("container 1".into())).unwrap_err();
        assert_eq!(used.code(), "conflict");
        volumes.remove(&pod, "db", |_| None).unwrap();
        assert_eq!(volumes.get(&pod, "db").unwrap_err().code(), "not_found");
        assert!(!dir.path().join("volumes/pods/1").exists());
    }

    #[test]
    fn names_stay_in_the_folder() {
        let (_dir, volumes) = open();
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "-x", &"x".repeat(129), "ä"] {
            assert_eq!(
                volumes.create(&Owner::Local, name, NewVolume::default()).unwrap_err().code(),
                "invalid",
                "{name}"
            );
        }
    }

    #[test]
    fn a_damaged_record_keeps_the_data_and_leftovers_go() {
        let (dir, volumes) = open();
        let made = volumes.create(&Owner::Local, "v", NewVolume::default()).unwrap();
        fs::write(made.path.join("file"), "x").unwrap();
        fs::write(dir.path().join("volumes/local/v/volume.json"), "{").unwrap();
        fs::create_dir_all(dir.path().join("volumes/.gone-1-1-w/data")).unwrap();
        let volumes = Volumes::open(dir.path(), Events::new()).unwrap();
        let found = volumes.get(&Owner::Local, "v").unwrap();
        assert!(found.path.join("file").exists() && found.filled);
        assert!(!dir.path().join("volumes/.gone-1-1-w").exists());
    }

    #[test]
    fn the_first_use_takes_over_the_image_and_later_ones_do_not() {
        let (dir, volumes) = open();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("var/lib/db/sub")).unwrap();
        fs::write(root.join("var/lib/db/sub/file"), "content").unwrap();
        std::os::unix::fs::chown(root.join("var/lib/db/sub/file"), Some(70), Some(71)).unwrap();
        fs::set_permissions(root.join("var/lib/db"), fs::Permissions::from_mode(0o2750)).unwrap();
        std::os::unix::fs::symlink("/var/lib/db", root.join("data")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();

        let volume = volumes.create(&Owner::Local, "v", NewVolume::default()).unwrap();
        volumes.fill(&volume, &root, "/data", 0).unwrap();
        let file = fs::metadata(volume.path.join("sub/file")).unwrap();
        assert_eq!((file.uid(), file.gid()), (70, 71));
        assert_eq!(fs::metadata(&volume.path).unwrap().mode() & 0o7777, 0o2750);
        fs::remove_file(volume.path.join("sub/file")).unwrap();
        volumes.fill(&volume, &root, "/data", 0).unwrap();
        assert!(!volume.path.join("sub/file").exists());

        // A link out of the root is a link within it, to nothing.
        let empty = volumes.create(&Owner::Local, "e", NewVolume::default()).unwrap();
        volumes.fill(&empty, &root, "/out", 1234).unwrap();
        assert_eq!(fs::read_dir(&empty.path).unwrap().count(), 0);
        assert_eq!(fs::metadata(&empty.path).unwrap().uid(), 1234);
    }
}
