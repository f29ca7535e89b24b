//! Looking into the outbox: for `telemetry query`, `tail` and `export`, with the agent running or not.

use board::clock::Clock;
use store::log::{Log, ReadError};

use super::read_batch;
use crate::{reading::Reading, topic};

/// Most bytes read at once.
const BATCH: usize = 64 << 10;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Topic filter; none means all.
    pub topic: Option<String>,
    /// From this time on, µs since 1970.
    pub since_us: Option<i64>,
    /// Before this time, µs since 1970.
    pub until_us: Option<i64>,
    /// From this number on.
    pub from_seq: u64,
}

impl Query {
    /// Whether a reading, at its corrected time, is asked for.
    pub fn wants(&self, reading: &Reading, time_us: i64) -> bool {
        self.topic.as_ref().is_none_or(|filter| topic::matches(filter, &reading.topic))
            && self.since_us.is_none_or(|since| time_us >= since)
            && self.until_us.is_none_or(|until| time_us < until)
    }
}

/// The readings asked for, in order of their numbers, with their corrected times in µs. Blocking; bounded memory.
pub fn run<'a>(
    log: &Log,
    clock: &'a Clock,
    query: &'a Query,
) -> impl Iterator<Item = Result<(Reading, i64), ReadError>> + 'a {
    let mut reader = log.reader(query.from_seq);
    let mut batch = Vec::new().into_iter();
    std::iter::from_fn(move || {
        loop {
            if let Some(reading) = batch.next() {
                let reading: Reading = reading;
                let time_us = clock.correct(&reading.stamp).time_us;
                if query.wants(&reading, time_us) {
                    return Some(Ok((reading, time_us)));
                }
                continue;
            }
            match read_batch(&mut reader, BATCH, false) {
                Ok(read) if read.readings.is_empty() && read.missing.is_empty() => return None,
                Ok(read) => batch = read.readings.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    })
}
