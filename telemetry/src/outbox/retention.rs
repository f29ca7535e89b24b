//! What goes: drained segments at once, others by age or, when told so, by size.

use std::{ops::Range, time::Duration};

use board::{clock::Clock, tasks::Context};
use store::log::AppendError;

use super::{Outbox, read_batch};

/// How often ages are looked at, at least.
const EVERY: Duration = Duration::from_secs(30);

impl Outbox {
    /// Trims what relays have released and drops what is over age, until stopped.
    pub async fn run(self, context: Context) -> Result<(), AppendError> {
        // A limit of minutes is looked at more often; several times a second would be for nothing.
        let every = self.0.options.max_age.map_or(EVERY, |age| EVERY.min(age / 4).max(Duration::from_secs(1)));
        let mut ages = tokio::time::interval(every);
        ages.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.0.released.notified() => self.trim().await,
                _ = ages.tick() => self.drop_aged().await?,
                () = context.stop.cancelled() => return Ok(()),
            }
            self.report(&context);
        }
    }

    fn report(&self, context: &Context) {
        if let Some(problem) = self.refusing() {
            let remedy = "readings are not accepted until a relay has drained some, or there is space on the disk; see \
                          outbox.max_bytes and outbox.on_full";
            return context.degraded(problem, remedy);
        }
        let stats = self.stats();
        let megabytes = stats.disk_bytes / 1_000_000;
        context.healthy(format!("{} readings held in {megabytes} MB", stats.next - stats.first));
    }

    pub(super) async fn trim(&self) {
        let Some(below) = self.relays().lowest() else { return };
        let (log, first) = (self.0.log.clone(), self.first());
        let trimmed = tokio::task::spawn_blocking(move || log.trim(below)).await;
        match trimmed {
            // Nobody may be sending any more who would find the room.
            Ok(Ok(())) if self.first() > first => self.refusing_because(None),
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot give drained segments back; trying again"),
            Err(error) => tracing::error!(%error, "trimming the log panicked"),
        }
    }

    pub(super) async fn drop_aged(&self) -> Result<(), AppendError> {
        let Some(max_age) = self.0.options.max_age else { return Ok(()) };
        loop {
            let starts = self.0.log.segment_starts();
            let Some(&second) = starts.get(1) else { return Ok(()) };
            // When the second segment began, the first was complete: if that is too old, so is all of the first.
            let mut reader = self.0.log.reader(second);
            let read = tokio::task::spawn_blocking(move || read_batch(&mut reader, 1, false)).await;
            let Ok(Ok(read)) = read else { return Ok(()) };
            let old = read.readings.first().is_some_and(|reading| age(&self.0.clock, &reading.stamp) > Some(max_age));
            let _turn = self.0.dropping.lock().await;
            // A full outbox may have let it go in the meantime.
            let still_there = self.0.log.segment_starts().get(1) == Some(&second);
            if !old || still_there && self.drop_oldest("older than outbox.max_age").await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Lets the oldest segment go; counts and logs what had not been delivered.
    pub(super) async fn drop_oldest(&self, why: &'static str) -> Result<Option<Range<u64>>, AppendError> {
        let log = self.0.log.clone();
        let failed = |problem: String| AppendError::Io { path: "log".into(), problem };
        let dropped = tokio::task::spawn_blocking(move || log.drop_oldest())
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        if let Some(range) = &dropped {
            let delivered = self.relays().lowest().unwrap_or(range.start);
            let undelivered = range.end.saturating_sub(range.start.max(delivered));
            if undelivered > 0 {
                self.0.metrics.dropped.inc_by(undelivered);
                tracing::warn!(readings = undelivered, first = range.start, why, "dropped the oldest readings");
            }
        }
        Ok(dropped)
    }
}

/// How old a reading is, as far as that can be known: by trusted clocks, else by the time since this boot; `None` where
/// neither is known.
fn age(clock: &Clock, stamp: &board::clock::Stamp) -> Option<Duration> {
    let now = clock.stamp();
    if now.boot == stamp.boot {
        return Some(Duration::from_micros(now.uptime_us.saturating_sub(stamp.uptime_us)));
    }
    let then = clock.correct(stamp);
    let known = now.trusted && then.trusted;
    known.then(|| Duration::from_micros(u64::try_from(now.wall_us - then.time_us).unwrap_or(0)))
}
