//! Names of images: each a record over blobs, in the store, with a small file beside for the day the database is lost.
//!
//! Always true: while the database lives it decides; `DATA/images/names/HEX` is read only when it knows no image at all. A
//! file goes before its record does and comes after it, so neither order brings a removed name back.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use store::state::{Batch, Entity, State, StateError};

use crate::{content::Digest, lease, owner::Owner, platform::Platform};

/// Largest file of a name.
const MAX_FILE: u64 = 64 << 10;

/// An image under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Normalised; empty for an image that has lost its name and is kept by its id.
    pub name: String,
    /// Whose name it is.
    pub owner: Owner,
    /// What the name means in its registry: an index or a manifest.
    pub target: Digest,
    /// The manifest for `platform`.
    pub manifest: Digest,
    /// The configuration: the image's id.
    pub config: Digest,
    /// The unpacked layers, lowest first.
    pub layers: Vec<Digest>,
    /// The compressed layers.
    pub blobs: Vec<Digest>,
    /// What it runs on.
    pub platform: Platform,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// Seconds since 1970 when the name was given.
    pub created_s: u64,
    /// Seconds since 1970 when it was last used or pulled.
    pub used_s: u64,
    /// Repositories in which `target` is known to be, `host/path`: what it was pulled from or pushed to.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// Manifests, configurations and compressed layers for further platforms, where they were asked for; never unpacked.
    #[serde(default)]
    pub others: Vec<Digest>,
}

impl Entity for Record {
    const TREE: &'static str = "image";
    const VERSION: u16 = 1;
}

impl Record {
    fn key(&self) -> String {
        key(&self.owner, &self.name, &self.config)
    }
}

fn key(owner: &Owner, name: &str, config: &Digest) -> String {
    if name.is_empty() { format!("{owner} {config}") } else { format!("{owner} {name}") }
}

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("cannot write the record of image {name}")]
    State {
        /// Which.
        name: String,
        /// Why.
        source: StateError,
    },
    /// The file beside failed.
    #[error("cannot write {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// All records; cheap to clone.
#[derive(Clone)]
pub struct Records {
    state: State,
    dir: Arc<Path>,
}

impl Records {
    /// Opens; brings names back from their files where the database knows none. Blocking up to the store's commit.
    pub async fn open(state: State, data: &Path) -> Result<Self, RecordError> {
        let dir = data.join("images/names");
        board::durable::create_dir_all(&dir, 0o700).map_err(|source| RecordError::Io { path: dir.clone(), source })?;
        let records = Self { state, dir: dir.into() };
        if records.state.scan::<Record>("").next().is_none() {
            records.restore().await?;
        }
        Ok(records)
    }

    async fn restore(&self) -> Result<(), RecordError> {
        let failed = |source| RecordError::Io { path: self.dir.to_path_buf(), source };
        let mut batch = Batch::default();
        let mut count = 0;
        for entry in fs::read_dir(&self.dir).map_err(failed)?.flatten() {
            let bytes = board::durable::read(&entry.path(), MAX_FILE).unwrap_or_default();
            // A file that cannot be read is a name lost, not a start refused.
            if let Ok(record) = serde_json::from_slice::<Record>(&bytes) {
                let failed = |source| RecordError::State { name: record.name.clone(), source };
                batch.put(&record.key(), &record).map_err(failed)?;
                count += 1;
            }
        }
        if count > 0 {
            tracing::warn!(images = count, "the store knew no image; their names were read from the disk");
            let failed = |source| RecordError::State { name: "(all)".into(), source };
            self.state.commit(batch).await.map_err(failed)?;
        }
        Ok(())
    }

    /// All names; one that cannot be read is passed over.
    pub fn all(&self) -> Vec<Record> {
        self.state.scan::<Record>("").filter_map(|item| item.ok().map(|(_, record)| record)).collect()
    }

    /// One name of one owner.
    pub fn get(&self, owner: &Owner, name: &str) -> Option<Record> {
        self.state.get(&format!("{owner} {name}")).ok().flatten()
    }

    /// Sets names; returns when durable.
    pub async fn put(&self, records: &[Record]) -> Result<(), RecordError> {
        self.commit(records, &[]).await
    }

    /// Removes names.
    pub async fn remove(&self, records: &[Record]) -> Result<(), RecordError> {
        self.commit(&[], records).await
    }

    /// Removes and sets names at once.
    pub async fn commit(&self, put: &[Record], remove: &[Record]) -> Result<(), RecordError> {
        let Some(first) = put.iter().chain(remove).next() else { return Ok(()) };
        let failed = |source| RecordError::State { name: first.name.clone(), source };
        let mut batch = Batch::default();
        for record in remove {
            batch.delete::<Record>(&record.key());
        }
        for record in put {
            batch.put(&record.key(), record).map_err(failed)?;
        }
        let gone: Vec<_> = remove.iter().map(|record| self.file(record)).collect();
        let new: Vec<_> =
            put.iter().map(|record| (self.file(record), serde_json::to_vec(record).unwrap_or_default())).collect();
        blocking(move || gone.iter().try_for_each(|path| unlink(path))).await?;
        self.state.commit(batch).await.map_err(failed)?;
        blocking(move || {
            new.into_iter().try_for_each(|(path, json)| {
                board::durable::write(&path, &json, 0o600).map_err(|source| RecordError::Io { path, source })
            })
        })
        .await
    }

    /// Notes that images were used now. Lost by a power cut it costs nothing but an order of removal, so the file stays as it is.
    pub async fn touch(&self, records: &[Record]) -> Result<(), RecordError> {
        let mut batch = Batch::default();
        let now = lease::now();
        for record in records.iter().filter(|record| record.used_s != now) {
            let failed = |source| RecordError::State { name: record.name.clone(), source };
            batch.put(&record.key(), &Record { used_s: now, ..record.clone() }).map_err(failed)?;
        }
        self.state.commit(batch).await.map_err(|source| RecordError::State { name: "(used)".into(), source })
    }

    fn file(&self, record: &Record) -> PathBuf {
        self.dir.join(Digest::of(record.key().as_bytes()).hex())
    }
}

fn unlink(path: &Path) -> Result<(), RecordError> {
    let failed = |source| RecordError::Io { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(()) => board::durable::sync_dir(path.parent().unwrap_or(path)).map_err(failed),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
) -> Result<T, RecordError> {
    let failed = |source| RecordError::Io { path: PathBuf::from("images/names"), source };
    tokio::task::spawn_blocking(work).await.map_err(|error| failed(io::Error::other(error)))?
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record with made-up blobs.
    pub(crate) fn record(name: &str, n: u8) -> Record {
        Record {
            name: name.to_owned(),
            owner: Owner::Local,
            target: Digest::of(&[n, 0]),
            manifest: Digest::of(&[n, 1]),
            config: Digest::of(&[n, 2]),
            layers: vec![Digest::of(&[n, 3])],
            blobs: vec![Digest::of(&[n, 4])],
            platform: Platform::host(),
            size: 10,
            created_s: 1,
            used_s: u64::from(n),
            repositories: Vec::new(),
            others: Vec::new(),
        }
    }

    #[tokio::test]
    async fn names_outlive_the_database_and_removed_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = |n: u32| State::open(&dir.path().join(format!("state{n}"))).unwrap().0;
        let records = Records::open(open(0), dir.path()).await.unwrap();
        let (a, b, nameless) = (record("a", 1), record("b", 2), record("", 3));
        records.put(&[a.clone(), b.clone(), nameless.clone()]).await.unwrap();
        records.remove(std::slice::from_ref(&b)).await.unwrap();
        fs::write(dir.path().join("images/names/garbage"), b"{").unwrap();
        records.touch(std::slice::from_ref(&a)).await.unwrap();
        assert!(records.get(&Owner::Local, "a").unwrap().used_s > 1);
        let lost = Records::open(open(1), dir.path()).await.unwrap();
        let mut names: Vec<_> = lost.all();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(names, [nameless, a]);
    }
}
