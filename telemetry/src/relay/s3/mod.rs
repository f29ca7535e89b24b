//! Readings as Parquet objects in S3, each exactly once.
//!
//! Always true: which readings an object has and how it is called (its *cut*) is durable before its first PUT and never
//! computed again. After a crash the same cut is sent again under the same name; so repeats overwrite themselves.

mod cut;

use std::time::Duration;

use board::{
    metrics::Metrics,
    tasks::{Context, backoff},
    throttle::Throttle,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::Instant;

use crate::{
    outbox::{Cursor, Outbox, PutError, RelayHandle},
    parquet,
    reading::Reading,
    s3::{self, S3Error, Target},
};
use cut::{Cut, Progress};

/// Name of the relay: its checkpoint, and in `status`.
pub const NAME: &str = "s3";
/// Read from disk at once.
const READ_BYTES: usize = 128 << 10;

/// How the relay is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where objects go.
    pub target: s3::Options,
    /// Put before every object name; may be empty.
    pub prefix: String,
    /// Longest wait of a reading for its object.
    pub flush_interval: Duration,
    /// Payload of one object.
    pub flush_bytes: usize,
    /// Caps the bytes a second.
    pub throttle: Throttle,
    /// Name of the board.
    pub board: String,
}

/// The relay.
#[derive(Clone)]
pub struct Relay {
    options: Options,
    outbox: Outbox,
    figures: Figures,
}

#[derive(Clone, Default)]
struct Figures {
    objects: Counter,
    bytes: Counter,
    readings: Counter,
    failures: Counter,
    waiting: Gauge,
}

/// Why a round ended.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    S3(#[from] S3Error),
    #[error(transparent)]
    Read(#[from] store::log::ReadError),
    #[error(transparent)]
    Save(#[from] PutError),
    #[error("cannot write Parquet: {0}")]
    Parquet(String),
}

impl Relay {
    /// Sets the relay up; from now on the outbox keeps what it has not delivered.
    pub fn new(options: Options, outbox: Outbox, metrics: &Metrics) -> Self {
        let figures = Figures::default();
        metrics.register(|registry| {
            registry.register("relay_s3_objects", "Objects stored", figures.objects.clone());
            registry.register("relay_s3_bytes", "Bytes of objects stored", figures.bytes.clone());
            registry.register("relay_s3_readings", "Readings stored", figures.readings.clone());
            registry.register("relay_s3_failures", "Objects that had to be tried again", figures.failures.clone());
            registry.register("relay_s3_gathered", "Readings gathered for the next object", figures.waiting.clone());
        });
        drop(outbox.relay(NAME));
        Self { options, outbox, figures }
    }

    /// Relays until stopped.
    pub async fn run(self, context: Context) -> Result<(), S3Error> {
        let handle = self.outbox.relay(NAME);
        let mut work = Work::new(&self, &handle);
        // Set up anew after each failure: what the configuration names, such as a CA file, may have been mended.
        let (mut target, mut tries) = (None, 0);
        while !context.stop.is_cancelled() {
            let Err(error) = self.round(&mut target, &mut work, &context).await else {
                tries = 0;
                let (stored, bucket) = (self.figures.objects.get(), &self.options.target.bucket);
                context.healthy(format!("{stored} objects stored in {bucket}"));
                continue;
            };
            self.figures.failures.inc();
            tries += 1;
            let (problem, remedy) = explain(&error);
            context.degraded(problem, remedy);
            work.reset();
            target = None;
            let wait = backoff(tries, Duration::from_millis(500), Duration::from_secs(120));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = context.stop.cancelled() => {}
            }
        }
        Ok(())
    }

    async fn round(
        &self,
        target: &mut Option<Target>,
        work: &mut Work<'_>,
        context: &Context,
    ) -> Result<(), RoundError> {
        let target = match target {
            Some(target) => target,
            None => target.insert(Target::new(&self.options.target, self.outbox.clock().clone())?),
        };
        work.round(target, context).await
    }
}

fn explain(error: &RoundError) -> (String, &'static str) {
    match error {
        RoundError::S3(error) => (board::tasks::chain(error), error.remedy()),
        RoundError::Save(error) => (error.to_string(), "free space on the board's disk"),
        other => (board::tasks::chain(other), "readings are kept; look at the disk with `edge-agent doctor`"),
    }
}

/// What is being gathered.
struct Work<'a> {
    relay: &'a Relay,
    handle: &'a RelayHandle,
    progress: Progress,
    cursor: Cursor,
    gathered: Vec<Reading>,
    bytes: usize,
    /// When the oldest gathered reading must go.
    due: Option<Instant>,
    /// Nothing is sent before then: the bandwidth cap.
    not_before: Instant,
}

impl<'a> Work<'a> {
    fn new(relay: &'a Relay, handle: &'a RelayHandle) -> Self {
        let (below, saved) = handle.saved();
        let progress = Progress::decode(below, &saved);
        let cursor = relay.outbox.cursor(progress.below);
        Self { relay, handle, progress, cursor, gathered: Vec::new(), bytes: 0, due: None, not_before: Instant::now() }
    }

    /// After a failure: read again from what is saved. A cut, once made, stays.
    fn reset(&mut self) {
        self.cursor = self.relay.outbox.cursor(self.progress.below);
        self.gathered.clear();
        (self.bytes, self.due) = (0, None);
    }

    /// Finishes a cut that an earlier run or try left, or gathers for the next one and sends it when it is due.
    async fn round(&mut self, target: &Target, context: &Context) -> Result<(), RoundError> {
        tokio::select! {
            () = tokio::time::sleep_until(self.not_before) => {}
            () = context.stop.cancelled() => return Ok(()),
        }
        if let Some(cut) = self.progress.cut.clone() {
            return self.send(cut, target).await;
        }
        if !self.gather(context).await? || self.gathered.is_empty() {
            return Ok(());
        }
        let clock = self.relay.outbox.clock();
        if !clock.is_trusted() {
            // An object's name has a date, and stays: better the right one.
            target.ask_the_time().await?;
        }
        let times: Vec<_> = self.gathered.iter().map(|it| (it.seq, clock.correct(&it.stamp).time_us)).collect();
        let options = &self.relay.options;
        let cut = Cut::of(&times, &options.prefix, &options.board, self.relay.outbox.epoch());
        let Some(cut) = cut else { return Ok(()) };
        self.progress.cut = Some(cut.clone());
        self.handle.save_durably(self.progress.below, &self.progress.encode()).await?;
        self.send(cut, target).await
    }

    /// Reads until there is enough for an object, or the oldest reading has waited long enough; `true` when it is time.
    async fn gather(&mut self, context: &Context) -> Result<bool, RoundError> {
        let mut durable = self.relay.outbox.durable();
        while self.bytes < self.relay.options.flush_bytes {
            durable.mark_unchanged();
            let read = self.cursor.next(READ_BYTES).await?;
            if !read.readings.is_empty() {
                self.due.get_or_insert(Instant::now() + self.relay.options.flush_interval);
                self.bytes += read.readings.iter().map(|it| it.payload.len() + it.topic.len() + 48).sum::<usize>();
                self.gathered.extend(read.readings);
                self.relay.figures.waiting.set(i64::try_from(self.gathered.len()).unwrap_or(i64::MAX));
                continue;
            }
            if !read.missing.is_empty() {
                continue;
            }
            let due = self.due;
            tokio::select! {
                changed = durable.changed() => if changed.is_err() { return Ok(false) },
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => return Ok(true),
                () = context.stop.cancelled() => return Ok(false),
            }
            // Readings come one by one: wait for company rather than wake for each.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = context.stop.cancelled() => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Makes the cut's object, of exactly its readings, and stores it.
    async fn send(&mut self, cut: Cut, target: &Target) -> Result<(), RoundError> {
        let readings = self.readings_of(&cut).await?;
        let count = readings.len() as u64;
        if count > 0 {
            let (epoch, clock) = (self.relay.outbox.epoch(), self.relay.outbox.clock().clone());
            let object = tokio::task::spawn_blocking(move || {
                let rows = readings.iter().flat_map(|it| parquet::rows(epoch, it, clock.correct(&it.stamp).time_us));
                parquet::encode(rows.collect())
            })
            .await
            .map_err(|error| RoundError::Parquet(error.to_string()))?
            .map_err(|error| RoundError::Parquet(error.to_string()))?;
            let bytes = object.len();
            target.put(&cut.name, object.into()).await?;
            self.relay.figures.objects.inc();
            self.relay.figures.bytes.inc_by(bytes as u64);
            self.not_before = Instant::now() + self.relay.options.throttle.sent(bytes);
        }
        self.relay.figures.readings.inc_by(count);
        self.progress.below = cut.last + 1;
        self.progress.cut = None;
        self.handle.save(self.progress.below, &self.progress.encode());
        // What was gathered beyond the cut is the beginning of the next.
        self.gathered.retain(|reading| reading.seq > cut.last);
        self.bytes = self.gathered.iter().map(|it| it.payload.len() + it.topic.len() + 48).sum();
        self.due = (!self.gathered.is_empty()).then(|| Instant::now() + self.relay.options.flush_interval);
        Ok(())
    }

    /// The readings of a cut: gathered already, or read again after a restart.
    async fn readings_of(&mut self, cut: &Cut) -> Result<Vec<Reading>, RoundError> {
        if self.gathered.first().is_some_and(|first| first.seq == cut.first) {
            return Ok(self.gathered.iter().take_while(|it| it.seq <= cut.last).cloned().collect());
        }
        let mut cursor = self.relay.outbox.cursor(cut.first);
        let mut readings = Vec::new();
        while cursor.position() <= cut.last {
            let read = cursor.next(READ_BYTES).await?;
            if read.readings.is_empty() && read.missing.is_empty() {
                break;
            }
            readings.extend(read.readings.into_iter().filter(|it| it.seq <= cut.last));
        }
        self.cursor = self.relay.outbox.cursor(cut.last + 1);
        self.gathered.clear();
        Ok(readings)
    }
}
