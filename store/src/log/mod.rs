//! The segmented append-only log: telemetry waiting on disk until every relay has it.
//!
//! Always true:
//! - `append` returns after `fdatasync`: a record whose number was given out survives a power cut.
//! - Numbers start at 1, grow by one, and are never given to two records that anybody was told of.
//! - A commit rewrites blocks of a file that is already full (of zeros, or of an earlier use), so it costs one write and
//!   no metadata. Nothing durable is ever rewritten.
//! - Memory is bounded at any backlog; opening looks at names, and inside the newest segment only.
//!
//! Elsewhere: what a record means and when it may go (`telemetry::outbox`); one process per log (`crate::lock`).

mod block;
mod committer;
mod end;
#[cfg(fuzzing)]
pub mod fuzzing;
mod reader;
mod recover;
mod segment;
mod shared;
#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use committer::{Committer, Request};
pub use reader::Reader;
use segment::Files;
use shared::Shared;

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of one segment file, bytes.
    pub segment_bytes: u64,
    /// How long a commit waits for company while fewer than 64 records and less than 16 KiB wait.
    pub linger: Duration,
    /// Bytes on disk, spares included, above which `append` answers `Full`.
    pub max_bytes: u64,
}
impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 4 << 20, linger: Duration::from_millis(20), max_bytes: 1 << 30 }
    }
}

/// One record as written and as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Free bits; readers can skip whole blocks in which no record has a wanted bit.
    pub mark: u8,
    /// Content.
    pub body: Vec<u8>,
}

/// What opening found and mended; every item was also logged once.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recovery {
    /// Bytes of a torn tail cut off (never acknowledged).
    pub torn_bytes: u64,
    /// Sequence numbers whose records were damaged and are gone.
    pub lost: Vec<Range<u64>>,
    /// Where damaged files were copied to.
    pub set_aside: Vec<PathBuf>,
}

/// Why a log did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Reading or writing failed.
    #[error("cannot open the log in {path}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why records were not appended; nothing of them is in the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// `max_bytes` is reached.
    #[error("the log holds {held} bytes, its limit: wait for a relay to drain it, or raise outbox.max_bytes")]
    Full {
        /// Bytes on disk.
        held: u64,
    },
    /// The file system is full.
    #[error("no space left on the file system of {path}")]
    NoSpace {
        /// The log's folder.
        path: PathBuf,
    },
    /// A record larger than a segment can hold.
    #[error("a record of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Writing failed.
    #[error("cannot write to the log in {path}: {problem}")]
    Io {
        /// The log's folder.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Figures for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Stats {
    /// Oldest sequence number still held.
    pub first: u64,
    /// The number that the next record will get.
    pub next: u64,
    /// Bytes on disk, spare segments included.
    pub disk_bytes: u64,
    /// Segments in use.
    pub segments: u64,
    /// Commits (`fdatasync` calls) since open.
    pub commits: u64,
    /// Bytes of commits and of zero-filling since open.
    pub written_bytes: u64,
    /// Time spent writing and syncing commits since open, µs.
    pub commit_us: u64,
    /// Records found damaged since open.
    pub damaged: u64,
}

/// A handle; cheap to clone. One committer thread stands behind all of them.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Opens or creates the log in `dir`. Blocking.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovery), OpenError> {
        let failed = |source| OpenError::Io { path: dir.to_owned(), source };
        let options = options.sanitised();
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut files = Files::list(dir, options.segment_bytes).map_err(failed)?;
        files.drop_odd_spares();
        let (scan, recovery) = shared::recover(dir, &mut files).map_err(failed)?;
        let active = match files.newest() {
            Some(segment) if !scan.sealed && segment.bytes >= segment::DATA_START => {
                let path = segment.path(dir);
                let file = std::fs::OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
                // What was read may still be in the page cache alone, if the process died and not the machine.
                file.sync_data().map_err(failed)?;
                Some((segment, file))
            }
            _ => None,
        };
        let at = scan.end_at;
        let shared = Arc::new(Shared::new(options, files, scan));
        shared.skip_to(end::read(dir).unwrap_or(0));
        let committer = Committer::new(shared.clone(), active, at);
        let prefill = shared.clone();
        let threads = [
            std::thread::Builder::new().name("log-commit".into()).stack_size(256 << 10).spawn(move || committer.run()),
            std::thread::Builder::new()
                .name("log-prefill".into())
                .stack_size(128 << 10)
                .spawn(move || committer::prefill(&prefill)),
        ];
        for thread in threads {
            shared.adopt(thread.map_err(failed)?);
        }
        Ok((Self { shared }, recovery))
    }

    /// Opens for reading alone, whether or not another process writes: sees what is readable now. Blocking.
    pub fn open_read_only(dir: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: dir.to_owned(), source };
        let options = Options::default().sanitised();
        let files = Files::list(dir, options.segment_bytes).map_err(failed)?;
        let scan = match files.newest() {
            Some(segment) => recover::scan(dir, segment).map_err(failed)?,
            None => recover::Scan { end_seq: 1, ..recover::Scan::default() },
        };
        let shared = Shared::new(options, files, scan);
        shared.close_queue();
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Appends all or nothing; returns their sequence numbers once they are on disk. Appends are numbered in the order
    /// in which their futures were first polled. Cancelled: the records may or may not be in the log.
    pub async fn append(&self, records: Vec<Record>) -> Result<Range<u64>, AppendError> {
        let mut bytes = 0;
        for record in &records {
            if record.body.len() > self.shared.options.max_record() {
                let limit = self.shared.options.max_record();
                return Err(AppendError::TooLarge { bytes: record.body.len(), limit });
            }
            bytes += record.body.len() + 8;
        }
        if bytes > self.shared.options.max_commit() {
            return Err(AppendError::TooLarge { bytes, limit: self.shared.options.max_commit() });
        }
        let room = self.shared.reserve(bytes, records.len()).await?;
        let (done, answer) = oneshot::channel();
        self.shared.enqueue(Request { records, bytes, since: Instant::now(), done, _room: room })?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// The first number that is not durable yet; changes with every commit.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// Changes whenever segments were let go of, so that who was told `Full` knows when to try again.
    pub fn trimmed(&self) -> watch::Receiver<u64> {
        self.shared.trimmed.subscribe()
    }

    /// Raises the number that the next record gets. For an owner who knows from elsewhere that higher numbers were
    /// already given out (the end of a damaged log cannot tell). Only before the first `append`.
    pub fn skip_to(&self, next: u64) {
        self.shared.skip_to(next);
    }

    /// Starts reading at `from` (or at the oldest record where that is gone). Sees durable records only.
    pub fn reader(&self, from: u64) -> Reader {
        Reader::new(self.shared.clone(), from)
    }

    /// Keeps `value` under `name` (a relay's progress); rides the next commit, so it costs no write of its own. Values
    /// over 4 KiB are refused with a log line: they would crowd out the readings.
    pub fn checkpoint(&self, name: &str, value: Vec<u8>) {
        self.shared.set_checkpoint(name, Some(value));
    }

    /// Forgets a checkpoint, with the next commit.
    pub fn forget_checkpoint(&self, name: &str) {
        self.shared.set_checkpoint(name, None);
    }

    /// Makes all checkpoints durable, with a commit of their own if none is due.
    pub async fn sync_checkpoints(&self) -> Result<(), AppendError> {
        let (done, answer) = oneshot::channel();
        self.shared.enqueue_sync(done)?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// The value last checkpointed.
    pub fn checkpointed(&self, name: &str) -> Option<Vec<u8>> {
        self.shared.checkpoint(name)
    }

    /// Names of all checkpoints.
    pub fn checkpoint_names(&self) -> Vec<String> {
        self.shared.checkpoint_names()
    }

    /// Lets go of all segments that hold only records below `below`: recycled as spares or deleted. Blocking, short.
    pub fn trim(&self, below: u64) -> std::io::Result<()> {
        self.shared.trim(below)
    }

    /// Drops the oldest segment though it was not drained; returns the numbers dropped. `None` where only the active
    /// one is left.
    pub fn drop_oldest(&self) -> std::io::Result<Option<Range<u64>>> {
        self.shared.drop_oldest()
    }

    /// First sequence number of each segment, oldest first.
    pub fn segment_starts(&self) -> Vec<u64> {
        self.shared.files().segments.keys().copied().collect()
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Commits what waits and ends the log's threads. Blocking. Later appends answer `Closed`.
    pub fn close(&self) {
        let was_open = !self.shared.closing.load(Ordering::Acquire);
        self.shared.close();
        if was_open {
            let dir = self.shared.files().dir().to_owned();
            if let Err(error) = end::write(&dir, self.stats().next) {
                tracing::warn!(%error, log = %dir.display(), "cannot write down where the log ends; nothing is lost by that");
            }
        }
    }
}

impl Options {
    /// At least four segments fit into `max_bytes`; a segment holds at least a few blocks.
    fn sanitised(mut self) -> Self {
        self.segment_bytes = self.segment_bytes.min(self.max_bytes / 4).clamp(64 << 10, 256 << 20);
        self.max_bytes = self.max_bytes.max(2 * self.segment_bytes);
        self
    }

    fn max_record(&self) -> usize {
        block::MAX_RECORD.min(self.max_commit())
    }

    /// A commit lies in one segment, beside its checkpoints.
    fn max_commit(&self) -> usize {
        usize::try_from(self.segment_bytes / 2).unwrap_or(usize::MAX)
    }
}

/// What one read gave.
#[derive(Debug, Default)]
pub struct Batch {
    /// Number and record, ascending.
    pub records: Vec<(u64, Record)>,
    /// Numbers passed over because they were dropped or damaged (never those passed over by `only`).
    pub missing: Vec<Range<u64>>,
}
