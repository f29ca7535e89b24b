//! Room that folders take: measured off the runtime, remembered for a minute.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a measurement stands.
const FRESH: Duration = Duration::from_secs(60);
/// Most files that are looked at in one folder; beyond that the number is a lower bound.
const MAX_FILES: u64 = 500_000;
/// Most folders in one another.
const MAX_DEPTH: usize = 128;
/// Measurements remembered.
const REMEMBERED: usize = 4096;

/// What a folder takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of blocks.
    pub bytes: u64,
    /// Files, folders and all else.
    pub inodes: u64,
}

/// Measurements.
#[derive(Default)]
pub struct Disks(Mutex<HashMap<PathBuf, (Instant, Taken)>>);

impl Disks {
    /// What the folder takes; nothing where it is not there.
    pub async fn of(&self, path: &Path) -> Taken {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
        if let Some((at, taken)) = known
            && at.elapsed() < FRESH
        {
            return taken;
        }
        let place = path.to_owned();
        let taken = tokio::task::spawn_blocking(move || measure(&place)).await.unwrap_or_default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if all.len() < REMEMBERED {
            all.insert(path.to_owned(), (Instant::now(), taken));
        }
        taken
    }
}

/// Without following links or leaving the file system. Files that are there twice count twice.
fn measure(path: &Path) -> Taken {
    let mut taken = Taken::default();
    let Ok(root) = std::fs::symlink_metadata(path) else { return taken };
    let device = root.dev();
    let mut folders = vec![(path.to_owned(), 0_usize)];
    let mut add = |meta: &std::fs::Metadata| {
        taken.bytes = taken.bytes.saturating_add(meta.blocks().saturating_mul(512));
        taken.inodes += 1;
        taken.inodes < MAX_FILES
    };
    add(&root);
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device {
                continue;
            }
            if !add(&meta) {
                return taken;
            }
            if meta.is_dir() && depth < MAX_DEPTH {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn folders_are_measured() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::fs::write(dir.path().join("in/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let disks = Disks::default();
        let taken = disks.of(dir.path()).await;
        assert_eq!(taken.inodes, 4);
        assert!((100_000..400_000).contains(&taken.bytes), "{taken:?}");
        std::fs::remove_file(dir.path().join("in/file")).unwrap();
        assert_eq!(disks.of(dir.path()).await, taken, "within the minute");
        assert_eq!(disks.of(&dir.path().join("none")).await, Taken::default());
    }
}
