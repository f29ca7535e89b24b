//! The segmented append-only log.
use std::{ops::Range, path::{Path, PathBuf}, sync::Arc, time::Duration};

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of one segment file, bytes.
    pub segment_bytes: u64,
    /// How long a commit waits for company while fewer than 64 records and less than 16 KiB wait.
    pub linger: Duration,
    /// Bytes on disk above which `append` answers `Full`.
    pub max_bytes: u64,
}
impl Default for Options {
    fn default() -> Self { Self { segment_bytes: 8 << 20, linger: Duration::from_millis(20), max_bytes: 1 << 30 } }
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
pub enum OpenError { /// Reading or writing failed.
    #[error("cannot open the log in {path}")] Io { /// Which file or folder.
        path: PathBuf, /// Why.
        source: std::io::Error } }

/// Why records were not appended; nothing of them is in the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// `max_bytes` is reached.
    #[error("the log holds {held} bytes, its limit: wait for a relay to drain it, or raise outbox.max_bytes")] Full { /// Bytes on disk.
        held: u64 },
    /// The file system is full.
    #[error("no space left on the file system of {path}")] NoSpace { /// The log's folder.
        path: PathBuf },
    /// A record larger than a segment can hold.
    #[error("a record of {bytes} bytes is over the limit of {limit}")] TooLarge { /// Its size.
        bytes: usize, /// The limit.
        limit: usize },
    /// Writing failed.
    #[error("cannot write to the log in {path}: {problem}")] Io { /// The log's folder.
        path: PathBuf, /// The system's words.
        problem: String },
    /// The log was closed.
    #[error("the log is closed")] Closed,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError { /// Reading failed.
    #[error("cannot read {path}")] Io { /// Which.
        path: PathBuf, /// Why.
        source: std::io::Error } }

/// Figures for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Stats { /// Oldest sequence number still held.
    pub first: u64, /// The number that the next record will get.
    pub next: u64, /// Bytes on disk, spare segments included.
    pub disk_bytes: u64, /// Segments in use.
    pub segments: u64, /// Commits (`fdatasync` calls) since open.
    pub commits: u64, /// Bytes written since open.
    pub written_bytes: u64 }

/// A handle; cheap to clone. One committer thread stands behind all of them.
#[derive(Clone)]
pub struct Log(Arc<()>);
impl Log {
    /// Opens or creates the log in `dir`. Blocking.
    pub fn open(_dir: &Path, _options: Options) -> Result<(Self, Recovery), OpenError> { todo!() }
    /// Opens read-only a log that no process writes, or that another one is writing (for `query`): reads what is durable. Blocking.
    pub fn open_read_only(_dir: &Path) -> Result<Self, OpenError> { todo!() }
    /// Appends all or nothing; returns their sequence numbers once they are on disk. Appends are numbered in the order of the calls' first poll.
    pub async fn append(&self, _records: Vec<Record>) -> Result<Range<u64>, AppendError> { todo!() }
    /// The first number that is not durable yet; changes with every commit.
    pub fn durable(&self) -> tokio::sync::watch::Receiver<u64> { todo!() }
    /// Starts reading at `from` (or at the oldest record where that is gone). Sees durable records only.
    pub fn reader(&self, _from: u64) -> Reader { todo!() }
    /// Keeps `value` under `name` (a relay's progress); rides the next commit, so it costs no write of its own. At most 4 KiB.
    pub fn checkpoint(&self, _name: &str, _value: Vec<u8>) { todo!() }
    /// Makes all checkpoints durable, with a commit of their own if none is due.
    pub async fn sync_checkpoints(&self) -> Result<(), AppendError> { todo!() }
    /// The value last checkpointed.
    pub fn checkpointed(&self, _name: &str) -> Option<Vec<u8>> { todo!() }
    /// Lets go of all segments that hold only records below `below`: recycled as spares or deleted. Blocking, short.
    pub fn trim(&self, _below: u64) -> std::io::Result<()> { todo!() }
    /// Drops the oldest segment though it was not drained; returns the numbers dropped. `None` where only the active one is left.
    pub fn drop_oldest(&self) -> std::io::Result<Option<Range<u64>>> { todo!() }
    /// First sequence number of each segment, oldest first.
    pub fn segment_starts(&self) -> Vec<u64> { todo!() }
    /// Figures.
    pub fn stats(&self) -> Stats { todo!() }
    /// Commits what waits and ends the committer thread. Blocking.
    pub fn close(&self) { todo!() }
}

/// Reads in order of sequence numbers. Blocking: call it from `spawn_blocking`.
pub struct Reader {}
impl Reader {
    /// Only records of blocks in which some record's `mark & mask != 0`; records without the bit may come along and must be filtered by the caller.
    pub fn only(self, _mask: u8) -> Self { todo!() }
    /// The next records, at least one and then up to `max_bytes` of bodies; empty at the end of what is durable.
    pub fn next_batch(&mut self, _max_bytes: usize) -> Result<Batch, ReadError> { todo!() }
    /// The number the next batch starts from.
    pub fn position(&self) -> u64 { todo!() }
}

/// What one read gave.
#[derive(Debug, Default)]
pub struct Batch { /// Number and record, ascending.
    pub records: Vec<(u64, Record)>, /// Numbers passed over because they were dropped or damaged (never those passed over by `only`).
    pub missing: Vec<Range<u64>> }
