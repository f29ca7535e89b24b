//! The durable outbox: readings between their acknowledgement and their delivery.
use std::{ops::Range, path::Path, time::Duration};
use board::{clock::Clock, metrics::Metrics};
use crate::reading::{NewReading, Reading};

/// What happens to a new reading when the outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull { /// It is not accepted: the sender has to wait.
    Refuse, /// The oldest segment goes.
    DropOldest }

/// How an outbox is kept.
#[derive(Debug, Clone)]
pub struct Options { /// Bytes on disk.
    pub max_bytes: u64, /// Older readings go; `None` keeps them until relayed.
    pub max_age: Option<Duration>, /// Policy.
    pub on_full: OnFull, /// Longest wait of a reading for company before its flush.
    pub linger: Duration, /// Filters of the topics kept.
    pub topics: Vec<String>, /// Filters of the topics that overtake the others (alarms).
    pub urgent: Vec<String> }

/// Why readings were not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError { /// Policy `refuse` and no room: `Outbox::room` tells when to try again.
    #[error("the outbox is full: {0}")] Full(String), /// A reading that can never fit.
    #[error("{0}")] TooLarge(String), /// The disk failed.
    #[error("{0}")] Disk(String), /// Shutting down.
    #[error("the outbox is closed")] Closed }

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Outbox(std::sync::Arc<()>);
impl Outbox {
    /// Opens `dir` (its log is there). Blocking.
    pub fn open(_dir: &Path, _epoch: u64, _options: Options, _clock: Clock, _metrics: &Metrics) -> Result<(Self, store::log::Recovery), store::log::OpenError> { todo!() }
    /// Whether this topic is kept (`outbox.topics`; `$…` never unless named).
    pub fn keeps(&self, _topic: &str) -> bool { todo!() }
    /// Stores readings, all or none, in order; returns when they are on disk.
    pub async fn put(&self, _readings: Vec<NewReading>) -> Result<Range<u64>, PutError> { todo!() }
    /// Waits until a full outbox has room again (at once where it is not full).
    pub async fn room(&self) { todo!() }
    /// The store's epoch.
    pub fn epoch(&self) -> u64 { todo!() }
    /// The clock that stamps readings.
    pub fn clock(&self) -> &Clock { todo!() }
    /// First number not yet durable; changes with every commit.
    pub fn durable(&self) -> tokio::sync::watch::Receiver<u64> { todo!() }
    /// Oldest number still held.
    pub fn first(&self) -> u64 { todo!() }
    /// Reads readings from `from` on, up to `max_bytes` of payload a batch. On a blocking thread inside; `missing` are numbers dropped or damaged.
    pub async fn read(&self, _from: u64, _max_bytes: usize) -> Result<Read, store::log::ReadError> { todo!() }
    /// The same for urgent readings alone.
    pub async fn read_urgent(&self, _from: u64, _max_bytes: usize) -> Result<Read, store::log::ReadError> { todo!() }
    /// Declares a relay: from now on nothing that it has not `released` is trimmed. With no relay at all readings are kept until `max_age`/`max_bytes`
    /// (then dropping the oldest is what is meant, and is counted apart).
    pub fn relay(&self, _name: &'static str) -> RelayHandle { todo!() }
    /// A relay that was configured once and is no longer: forget its progress.
    pub fn forget_relay(&self, _name: &str) { todo!() }
    /// Figures for status.
    pub fn stats(&self) -> store::log::Stats { todo!() }
}
/// Readings read.
#[derive(Debug, Default)]
pub struct Read { /// Ascending by `seq`.
    pub readings: Vec<Reading>, /// Where the next read starts.
    pub next: u64, /// Numbers that are gone.
    pub missing: Vec<Range<u64>> }

/// One relay's progress, kept in the log's checkpoints.
pub struct RelayHandle { }
impl RelayHandle {
    /// What `save` was last given and is durable (at most 4 KiB), from an earlier run.
    pub fn saved(&self) -> Option<Vec<u8>> { todo!() }
    /// All readings below `below` are delivered: they may be trimmed; `progress` rides the next commit (lost with a crash before it: the relay then repeats).
    pub fn save(&self, _below: u64, _progress: Vec<u8>) { todo!() }
    /// `save`, and returns when it is durable (S3 cuts need it before their first PUT).
    pub async fn save_durably(&self, _below: u64, _progress: Vec<u8>) -> Result<(), PutError> { todo!() }
}
