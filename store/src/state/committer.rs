//! The one thread that writes the state: batches that wait share one flush.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::{broadcast, mpsc, oneshot};

use super::{StateError, db_error, value, watch::Keys};

/// One batch on its way.
pub(super) struct Job {
    pub writes: Vec<(Vec<u8>, Option<value::Encoded>)>,
    /// Answered once it is applied; the flush may come later.
    pub relaxed: bool,
    pub done: oneshot::Sender<Result<(), StateError>>,
}

pub(super) struct Committer {
    db: sled::Db,
    /// Our own descriptor of sled's file: the one that is truly synced.
    file: File,
    blobs: PathBuf,
    changes: broadcast::Sender<Arc<Keys>>,
}

impl Committer {
    pub fn new(db: sled::Db, file: File, blobs: PathBuf, changes: broadcast::Sender<Arc<Keys>>) -> Self {
        Self { db, file, blobs, changes }
    }

    pub fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while let Ok(job) = queue.try_recv() {
                group.push(job);
            }
            self.commit(group);
        }
        // What nobody has waited for yet; sled would do it too, and tell nobody if it failed.
        if let Err(error) = self.db.flush().map_err(db_error).and_then(|_| self.sync()) {
            tracing::error!(%error, "the last changes of the state may not be on disk");
        }
    }

    fn sync(&self) -> Result<(), StateError> {
        self.file.sync_data().map_err(|error| StateError::Db(error.to_string()))
    }

    fn commit(&self, group: Vec<Job>) {
        let mut applied = Vec::with_capacity(group.len());
        let mut keys = Keys::new();
        for job in group {
            match self.apply(job.writes, &mut keys) {
                Ok(()) if job.relaxed => drop(job.done.send(Ok(()))),
                Ok(()) => applied.push(job.done),
                Err(error) => drop(job.done.send(Err(error))),
            }
        }
        // Where nobody waits for the disk, sled flushes twice a second by itself.
        let result =
            if applied.is_empty() { Ok(()) } else { self.db.flush().map_err(db_error).and_then(|_| self.sync()) };
        if count(&self.blobs) > 0 {
            tracing::error!(blobs = %self.blobs.display(), "the state database holds unsynced blobs; please report this");
        }
        for done in applied {
            // A caller that went away does not mind.
            let _ = done.send(result.clone());
        }
        if result.is_ok() && !keys.is_empty() {
            // Nobody may be watching.
            let _ = self.changes.send(Arc::new(keys));
        }
    }

    fn apply(&self, writes: Vec<(Vec<u8>, Option<value::Encoded>)>, keys: &mut Keys) -> Result<(), StateError> {
        let mut batch = sled::Batch::default();
        for (key, encoded) in writes {
            let old = self.db.get(&key).map_err(db_error)?.map_or(0, |head| value::part_count(&head));
            let parts = encoded.as_ref().map_or(0, |encoded| u32::try_from(encoded.parts.len()).unwrap_or(u32::MAX));
            for n in parts..old {
                batch.remove(value::part_key(&key, n));
            }
            keys.push((key.clone(), encoded.is_some()));
            match encoded {
                Some(encoded) => {
                    for (n, part) in (0u32..).zip(encoded.parts) {
                        batch.insert(value::part_key(&key, n), part);
                    }
                    batch.insert(key, encoded.head);
                }
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(db_error)
    }
}

/// Files in `blobs/`.
pub(super) fn count(blobs: &Path) -> usize {
    std::fs::read_dir(blobs).map_or(0, Iterator::count)
}
