//! Typed records on sled: what the cluster, the disk or the log could give back.
//!
//! Always true:
//! - `commit` returns after sled's `flush` and an `fdatasync` of its file on our own descriptor; sled's flush alone is
//!   not durable (sled issue 1452).
//! - Several writes, across types, are one atomic batch: all types live in one tree of the database.
//! - A database that does not open, or panics while opening (sled issue 1387), is set aside and a new one begun.
//! - `blobs/`, which sled never syncs, stays empty: values are split before a leaf can grow so large. It is watched.

mod committer;
#[cfg(fuzzing)]
pub mod fuzzing;
mod value;
mod watch;

use std::{
    fs::File,
    io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use watch::{Change, Watch};

use committer::{Committer, Job};

/// Fixed at creation: sled rewrites its `conf` with the present value.
const SEGMENT_BYTES: usize = 1 << 20;
/// sled's cache does not bound its memory, but a small one keeps it small here.
const CACHE_BYTES: u64 = 1 << 20;
/// Times that a locked database is tried again, 50 ms apart.
const LOCK_TRIES: u32 = 100;
/// Damaged databases kept for a look.
const MAX_SET_ASIDE: usize = 3;

/// A type that can be stored. JSON inside, with the version in front.
pub trait Entity: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name of its tree; never changed once shipped.
    const TREE: &'static str;
    /// Grows with every change of shape that old JSON does not fit.
    const VERSION: u16;
    /// Reads a value written by an older `version`; the message says why it cannot.
    fn migrate(version: u16, _old: serde_json::Value) -> Result<Self, String> {
        Err(format!("there is no way from version {version} to {}", Self::VERSION))
    }
}

/// What opening found and mended.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recovery {
    /// Where a database that would not open was moved to.
    pub set_aside: Option<PathBuf>,
    /// Why it would not open.
    pub problem: Option<String>,
}

/// Why the state did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Reading or writing failed.
    #[error("cannot open the state in {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// sled or the disk failed.
    #[error("the state database failed: {0}")]
    Db(String),
    /// A value that cannot be written or read.
    #[error("{tree}/{key}: {problem}")]
    Value {
        /// Tree.
        tree: &'static str,
        /// Key.
        key: String,
        /// Why.
        problem: String,
    },
    /// The state was closed.
    #[error("the state database is closed")]
    Closed,
}

struct Inner {
    db: sled::Db,
    dir: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    changes: broadcast::Sender<Arc<watch::Keys>>,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct State(Arc<Inner>);

/// Writes that become durable together.
#[derive(Default)]
pub struct Batch {
    writes: Vec<(Vec<u8>, Option<value::Encoded>)>,
}

impl Batch {
    /// Sets.
    pub fn put<E: Entity>(&mut self, key: &str, value: &E) -> Result<&mut Self, StateError> {
        self.writes.push((value::key_of(E::TREE, key)?, Some(value::encode(key, value)?)));
        Ok(self)
    }

    /// Removes.
    pub fn delete<E: Entity>(&mut self, key: &str) -> &mut Self {
        // A key that could not be written is not there.
        if let Ok(key) = value::key_of(E::TREE, key) {
            self.writes.push((key, None));
        }
        self
    }
}

impl State {
    /// Opens or creates the state in `dir`. Blocking.
    pub fn open(dir: &Path) -> Result<(Self, Recovery), OpenError> {
        let failed = |source| OpenError::Io { path: dir.to_owned(), source };
        board::durable::create_dir_all(dir, 0o700).map_err(failed)?;
        let mut recovery = Recovery::default();
        let db = match try_open(dir) {
            Ok(db) => db,
            Err(problem) => {
                let aside = set_aside(dir).map_err(failed)?;
                tracing::error!(problem, set_aside = %aside.display(),
                    "the state database is damaged; it was set aside and a new one begun");
                recovery = Recovery { set_aside: Some(aside), problem: Some(problem) };
                board::durable::create_dir_all(dir, 0o700).map_err(failed)?;
                try_open(dir).map_err(|problem| failed(io::Error::other(problem)))?
            }
        };
        sync_new(dir).map_err(failed)?;
        let file = File::open(dir.join("db")).map_err(failed)?;
        let changes = broadcast::Sender::new(256);
        let (jobs, queue) = mpsc::channel(64);
        let committer = Committer::new(db.clone(), file, dir.join("blobs"), changes.clone());
        let thread = std::thread::Builder::new()
            .name("state-commit".into())
            .stack_size(512 << 10)
            .spawn(move || committer.run(queue))
            .map_err(failed)?;
        let (jobs, thread) = (Mutex::new(Some(jobs)), Mutex::new(Some(thread)));
        Ok((Self(Arc::new(Inner { db, dir: dir.to_owned(), jobs, thread, changes })), recovery))
    }

    /// Reads one value.
    pub fn get<E: Entity>(&self, key: &str) -> Result<Option<E>, StateError> {
        let raw_key = value::key_of(E::TREE, key)?;
        let Some(head) = self.0.db.get(&raw_key).map_err(db_error)? else { return Ok(None) };
        self.read(key, &raw_key, &head).map(Some)
    }

    fn read<E: Entity>(&self, key: &str, raw_key: &[u8], head: &[u8]) -> Result<E, StateError> {
        value::decode(key, head, |n| {
            let part = self.0.db.get(value::part_key(raw_key, n)).map_err(db_error)?;
            Ok(part.map(|part| part.to_vec()))
        })
    }

    /// All values whose key starts with `prefix`, in key order; a value that cannot be read is an `Err` item and the
    /// rest still comes.
    pub fn scan<E: Entity>(&self, prefix: &str) -> impl Iterator<Item = Result<(String, E), StateError>> + use<E> {
        let state = self.clone();
        let tree_len = E::TREE.len() + 1;
        let start = value::key_of(E::TREE, prefix).unwrap_or_else(|_| vec![0xff; 8]);
        self.0.db.scan_prefix(start).filter_map(move |item| {
            let (raw_key, head) = match item {
                Ok((key, _)) if value::is_part(&key) => return None,
                Ok(item) => item,
                Err(error) => return Some(Err(db_error(error))),
            };
            let key = String::from_utf8_lossy(raw_key.get(tree_len..)?).into_owned();
            Some(state.read(&key, &raw_key, &head).map(|value| (key, value)))
        })
    }

    /// Applies the batch, all or nothing; returns when durable. Cancelled: it may or may not be applied.
    pub async fn commit(&self, batch: Batch) -> Result<(), StateError> {
        self.send(batch, false).await
    }

    /// The same without waiting for the disk: every later read sees it, the next `commit` makes it durable too, and
    /// without one it is durable within about a second, or when the state is closed. A process that is killed before
    /// then has lost it: for what can be found again, or undone twice.
    pub async fn commit_relaxed(&self, batch: Batch) -> Result<(), StateError> {
        self.send(batch, true).await
    }

    async fn send(&self, batch: Batch, relaxed: bool) -> Result<(), StateError> {
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, answer) = oneshot::channel();
        let job = Job { writes: batch.writes, relaxed, done };
        jobs.ok_or(StateError::Closed)?.send(job).await.map_err(|_| StateError::Closed)?;
        answer.await.unwrap_or(Err(StateError::Closed))
    }

    /// Changes of one tree under `prefix`, from now on. Bounded: a slow watcher gets `Lagged` and scans again.
    pub fn watch<E: Entity>(&self, prefix: &str) -> Watch<E> {
        Watch::new(self.clone(), self.0.changes.subscribe(), prefix)
    }

    /// Bytes on disk.
    pub fn size_on_disk(&self) -> u64 {
        self.0.db.size_on_disk().unwrap_or(0)
    }

    /// Files in `blobs/`: more than none means that values are at risk in a power cut.
    pub fn blobs(&self) -> usize {
        committer::count(&self.0.dir.join("blobs"))
    }

    /// Commits what waits and ends the committer thread. Blocking.
    pub fn close(&self) {
        drop(self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the state's committer panicked; what it had acknowledged is on disk");
        }
    }
}

fn db_error(error: sled::Error) -> StateError {
    StateError::Db(error.to_string())
}

/// Opens; waits where the file is still locked, which is no damage: a former handle's threads may be about to end.
fn try_open(dir: &Path) -> Result<sled::Db, String> {
    for _ in 0..LOCK_TRIES {
        match open_once(dir) {
            Err(problem) if problem.contains("could not acquire lock") => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
    open_once(dir)
}

fn open_once(dir: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::default()
        .path(dir)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(500));
    match std::panic::catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            Err(words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned())
        }
    }
}

/// A new database is synced as a whole before its first use; for an old one this costs a moment.
fn sync_new(dir: &Path) -> io::Result<()> {
    for name in ["conf", "db"] {
        File::open(dir.join(name))?.sync_all()?;
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            board::durable::sync_dir(&path)?;
        }
    }
    board::durable::sync_dir(dir)?;
    dir.parent().map_or(Ok(()), board::durable::sync_dir)
}

/// Moves a damaged database to `set-aside/state-N` beside it, dropping the oldest copy beyond three.
fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.parent().unwrap_or(dir).join("set-aside");
    board::durable::create_dir_all(&aside, 0o700)?;
    let mut numbers: Vec<u32> = std::fs::read_dir(&aside)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("state-")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let next = numbers.last().map_or(1, |last| last + 1);
    if numbers.len() >= MAX_SET_ASIDE {
        std::fs::remove_dir_all(aside.join(format!("state-{}", numbers[0])))?;
    }
    let to = aside.join(format!("state-{next}"));
    std::fs::rename(dir, &to)?;
    board::durable::sync_dir(&aside)?;
    Ok(to)
}

#[cfg(test)]
mod tests;
