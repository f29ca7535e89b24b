//! The durable outbox: readings between their acknowledgement and their delivery.
//!
//! Always true:
//! - `put` returns after the readings are on disk; readers see nothing that is not.
//! - A reading is trimmed only when every relay has released it, or by the limits of age and size; what goes by a limit
//!   without having been delivered is counted and logged.
//! - However full it is, the progress of relays can be written, or it would never be drained: one segment is theirs.
//! - Ages are measured by a trusted clock or since boot, so a jump of the clock drops nothing.
//!
//! Elsewhere: segments and commits (`store::log`); when a relay releases (`relay`).

mod metrics;
pub mod query;
mod relays;
mod retention;

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use board::{clock::Clock, metrics::Metrics};
use store::log::{AppendError, Log, ReadError, Reader, Record};
use tokio::sync::{Notify, watch};

use crate::{
    reading::{self, NewReading, Reading},
    topic,
};
use metrics::OutboxMetrics;
use relays::Relays;
pub use relays::{RelayHandle, Waiting};

/// The log's mark of an urgent reading.
const URGENT: u8 = 1;

/// What happens to a new reading when the outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// It is not accepted: the sender has to wait.
    Refuse,
    /// The oldest segment goes.
    DropOldest,
}

/// How an outbox is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes on disk.
    pub max_bytes: u64,
    /// Older readings go; `None` keeps them until relayed.
    pub max_age: Option<Duration>,
    /// Policy.
    pub on_full: OnFull,
    /// Longest wait of a reading for company before its flush.
    pub linger: Duration,
    /// Filters of the topics kept.
    pub topics: Vec<String>,
    /// Filters of the topics that overtake the others (alarms).
    pub urgent: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_age: None,
            on_full: OnFull::Refuse,
            linger: Duration::from_millis(20),
            topics: vec!["#".into()],
            urgent: vec!["alarm/#".into(), "+/alarm/#".into()],
        }
    }
}

/// Why readings were not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// Policy `refuse` and no room: `Outbox::room` tells when to try again.
    #[error("the outbox is full: {0}")]
    Full(String),
    /// A reading that can never fit.
    #[error("{0}")]
    TooLarge(String),
    /// The disk failed.
    #[error("{0}")]
    Disk(String),
    /// Shutting down.
    #[error("the outbox is closed")]
    Closed,
}

struct Inner {
    log: Log,
    epoch: u64,
    clock: Clock,
    options: Options,
    /// With more segments in use than these, readings are not accepted.
    max_segments: u64,
    relays: Mutex<Relays>,
    /// Something was released, or should be looked at.
    released: Notify,
    /// Held while a segment is dropped: many senders that find the outbox full let one go, not one each.
    dropping: tokio::sync::Mutex<()>,
    /// Why the last reading was not accepted; `None` once one was.
    refusing: Mutex<Option<String>>,
    metrics: OutboxMetrics,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Outbox(Arc<Inner>);

impl Outbox {
    /// Opens the outbox whose log is in `dir`. Blocking.
    pub fn open(
        dir: &Path,
        epoch: u64,
        options: Options,
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<(Self, store::log::Recovery), store::log::OpenError> {
        let segment_bytes = store::log::Options::default().segment_bytes.min(options.max_bytes / 4).max(1);
        let log_options = store::log::Options { linger: options.linger, max_bytes: options.max_bytes, segment_bytes };
        let max_segments = (options.max_bytes / segment_bytes).saturating_sub(1).max(1);
        let (log, recovery) = Log::open(dir, log_options)?;
        let relays = Relays::load(&log);
        // Damage at the log's end cannot hide that these numbers were given out: a relay has delivered them.
        log.skip_to(relays.highest());
        let metrics = OutboxMetrics::register(metrics, &log);
        let released = Notify::new();
        let (relays, dropping, refusing) = (Mutex::new(relays), tokio::sync::Mutex::new(()), Mutex::new(None));
        let inner = Inner { log, epoch, clock, options, max_segments, relays, released, dropping, refusing, metrics };
        Ok((Self(Arc::new(inner)), recovery))
    }

    /// Whether this topic is kept: named by `outbox.topics`, and never a `$…` topic unless a filter names that.
    pub fn keeps(&self, topic: &str) -> bool {
        self.0.options.topics.iter().any(|filter| topic::matches(filter, topic))
    }

    fn is_urgent(&self, topic: &str) -> bool {
        self.0.options.urgent.iter().any(|filter| topic::matches(filter, topic))
    }

    /// Stores readings, all or none, in order; returns their numbers when they are on disk.
    pub async fn put(&self, readings: &[NewReading]) -> Result<Range<u64>, PutError> {
        let begun = Instant::now();
        let stamp = self.0.clock.stamp();
        let records: Vec<_> = readings
            .iter()
            .map(|reading| Record {
                mark: if self.is_urgent(&reading.topic) { URGENT } else { 0 },
                body: reading::encode(&stamp, &reading.topic, &reading.payload),
            })
            .collect();
        let result = match self.0.options.on_full {
            OnFull::Refuse => self.append(records).await,
            OnFull::DropOldest => self.put_dropping(records).await,
        };
        match result {
            Ok(range) => {
                self.0.metrics.accepted(readings, begun.elapsed());
                self.refusing_because(None);
                Ok(range)
            }
            Err(error) => {
                self.0.metrics.refused.inc_by(readings.len() as u64);
                let error = put_error(error);
                if let PutError::Full(why) | PutError::Disk(why) = &error {
                    self.refusing_because(Some(why.clone()));
                }
                Err(error)
            }
        }
    }

    /// Appends, while the segment that is left for the relays' progress is not in use.
    async fn append(&self, records: Vec<Record>) -> Result<Range<u64>, AppendError> {
        let stats = self.0.log.stats();
        if stats.segments > self.0.max_segments {
            return Err(AppendError::Full { held: stats.disk_bytes });
        }
        self.0.log.append(records).await
    }

    /// Remembers whether readings are accepted, for `status`.
    fn refusing_because(&self, why: Option<String>) {
        let mut refusing = self.0.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        let news = refusing.is_some() != why.is_some();
        *refusing = why;
        drop(refusing);
        if news {
            self.0.released.notify_one();
        }
    }

    fn refusing(&self) -> Option<String> {
        self.0.refusing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Appends, letting the oldest segments go until there is room.
    async fn put_dropping(&self, records: Vec<Record>) -> Result<Range<u64>, AppendError> {
        loop {
            let first = self.first();
            match self.append(records.clone()).await {
                Err(full @ (AppendError::Full { .. } | AppendError::NoSpace { .. })) => {
                    let _turn = self.0.dropping.lock().await;
                    // Where another sender has made room in the meantime, that is tried first.
                    if self.first() == first && self.drop_oldest("the outbox is full").await?.is_none() {
                        return Err(full);
                    }
                }
                other => return other,
            }
        }
    }

    /// Waits until a full outbox may have room again: something was trimmed, or a second has passed (the disk may have
    /// been freed by somebody else).
    pub async fn room(&self) {
        let mut trimmed = self.0.log.trimmed();
        let _ = tokio::time::timeout(Duration::from_secs(1), trimmed.changed()).await;
    }

    /// The store's epoch.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// The clock that stamps readings.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// First number not yet durable; changes with every commit.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.0.log.durable()
    }

    /// Oldest number still held.
    pub fn first(&self) -> u64 {
        self.0.log.stats().first
    }

    /// Reads from `from` on.
    pub fn cursor(&self, from: u64) -> Cursor {
        Cursor { reader: Some(self.0.log.reader(from)), position: from, urgent_only: false }
    }

    /// Reads urgent readings alone, from `from` on.
    pub fn urgent_cursor(&self, from: u64) -> Cursor {
        Cursor { reader: Some(self.0.log.reader(from).only(URGENT)), position: from, urgent_only: true }
    }

    /// Whether the filters name urgent topics at all.
    pub fn has_urgent(&self) -> bool {
        !self.0.options.urgent.is_empty()
    }

    /// Declares a relay: from now on nothing that it has not released is trimmed.
    pub fn relay(&self, name: &'static str) -> RelayHandle {
        self.relays().known(name, self.0.log.stats().first);
        RelayHandle::new(self.clone(), name)
    }

    /// Forgets the progress of relays that are no longer configured: they would hold readings for ever.
    pub fn forget_relays_except(&self, names: &[&str]) {
        for name in self.relays().retain(names) {
            tracing::info!(relay = name, "this relay is no longer configured; its progress is forgotten");
            self.0.log.forget_checkpoint(&relays::checkpoint_name(&name));
        }
        self.0.released.notify_one();
    }

    /// Readings that wait for each relay.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.relays().waiting(self.0.log.stats().next)
    }

    /// Figures of the log.
    pub fn stats(&self) -> store::log::Stats {
        self.0.log.stats()
    }

    /// The log itself, for `query`.
    pub fn log(&self) -> &Log {
        &self.0.log
    }

    /// Commits what waits and closes the log. Blocking.
    pub fn close(&self) {
        self.0.log.close();
    }

    fn relays(&self) -> std::sync::MutexGuard<'_, Relays> {
        // Every critical section leaves the map whole.
        self.0.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put_error(error: AppendError) -> PutError {
    let text = error.to_string();
    match error {
        AppendError::Full { .. } | AppendError::NoSpace { .. } => PutError::Full(text),
        AppendError::TooLarge { .. } => PutError::TooLarge(text),
        AppendError::Io { .. } => PutError::Disk(text),
        AppendError::Closed => PutError::Closed,
    }
}

/// A place in the outbox, moving forward. Holds one open file.
pub struct Cursor {
    /// `None` only while a read is under way, or after one was cancelled.
    reader: Option<Reader>,
    position: u64,
    urgent_only: bool,
}

/// Readings read.
#[derive(Debug, Default)]
pub struct Read {
    /// Ascending by `seq`.
    pub readings: Vec<Reading>,
    /// Numbers that are gone: dropped, damaged, or not readings of this program.
    pub missing: Vec<Range<u64>>,
}

impl Cursor {
    /// The number the next read starts from.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next readings, up to about `max_bytes`; none at the end of what is durable (for an urgent cursor also when
    /// all that was read was not urgent: look at `position`). Reads on a blocking thread. Not cancel-safe: a cancelled
    /// cursor gives an error from then on.
    pub async fn next(&mut self, max_bytes: usize) -> Result<Read, ReadError> {
        let cancelled =
            || ReadError::Io { path: "log".into(), source: std::io::Error::other("the read was cancelled") };
        let mut reader = self.reader.take().ok_or_else(cancelled)?;
        let urgent_only = self.urgent_only;
        let (reader, read) = tokio::task::spawn_blocking(move || {
            let read = read_batch(&mut reader, max_bytes, urgent_only);
            (reader, read)
        })
        .await
        .map_err(|error| ReadError::Io { path: "log".into(), source: std::io::Error::other(error) })?;
        self.position = reader.position();
        self.reader = Some(reader);
        read
    }
}

fn read_batch(reader: &mut Reader, max_bytes: usize, urgent_only: bool) -> Result<Read, ReadError> {
    let batch = reader.next_batch(max_bytes)?;
    let mut read = Read { readings: Vec::with_capacity(batch.records.len()), missing: batch.missing };
    for (seq, record) in batch.records {
        if urgent_only && record.mark & URGENT == 0 {
            continue;
        }
        match reading::decode(seq, record.body) {
            Some(reading) => read.readings.push(reading),
            None => read.missing.push(seq..seq + 1),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
