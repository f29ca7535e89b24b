//! What to send next: urgent readings, then fresh ones, then history.
//!
//! Always true: a number is taken once for each connection (as far as [`Progress`] remembers ranges), whichever stream
//! comes to it first; and at most one read of each stream is in memory.

use std::{collections::VecDeque, ops::Range};

use store::log::ReadError;

use super::progress::Progress;
use crate::{
    outbox::{Cursor, Outbox},
    reading::Reading,
};

/// When more readings wait, new ones become a stream of their own and go first.
const BACKLOG: u64 = 5_000;
/// When more readings wait, urgent ones are looked for among them; fewer are sent before that would pay.
const OVERTAKE: u64 = 200;
/// Read from disk at once.
const READ_BYTES: usize = 64 << 10;

/// One stream through the outbox.
struct Stream {
    cursor: Cursor,
    /// Where it ends; `None` goes on with what comes.
    until: Option<u64>,
    read: VecDeque<Reading>,
}

impl Stream {
    fn new(cursor: Cursor, until: Option<u64>) -> Self {
        Self { cursor, until, read: VecDeque::new() }
    }

    fn position(&self) -> u64 {
        self.read.front().map_or(self.cursor.position(), |reading| reading.seq)
    }

    fn at_end(&self, durable: u64) -> bool {
        self.read.is_empty() && self.cursor.position() >= self.until.unwrap_or(durable)
    }

    /// Reads on; what was taken before is left out.
    async fn fill(&mut self, taken: &Progress) -> Result<Vec<Range<u64>>, ReadError> {
        let end = self.until.unwrap_or(u64::MAX);
        let read = self.cursor.next(READ_BYTES).await?;
        self.read.extend(read.readings.into_iter().filter(|it| it.seq < end && !taken.has(it.seq)));
        Ok(read.missing.into_iter().map(|it| it.start..it.end.min(end)).collect())
    }
}

/// Streams, and what they have come by.
pub(super) struct Queue {
    outbox: Outbox,
    /// Acknowledged before this connection, or taken since.
    taken: Progress,
    urgent: Option<Stream>,
    fresh: Stream,
    history: Option<Stream>,
}

/// Readings to send together, and numbers that turned out to be gone.
#[derive(Default)]
pub(super) struct Taken {
    /// Ascending.
    pub readings: Vec<Reading>,
    pub missing: Vec<Range<u64>>,
}

impl Queue {
    pub fn new(outbox: &Outbox, progress: &Progress) -> Self {
        let fresh = Stream::new(outbox.cursor(progress.below()), None);
        Self { outbox: outbox.clone(), taken: progress.clone(), urgent: None, fresh, history: None }
    }

    /// Up to `most` readings of up to about `bytes`, all of one stream: the first that has any.
    pub async fn take(&mut self, most: usize, bytes: usize) -> Result<Taken, ReadError> {
        let durable = self.durable();
        self.arrange(durable);
        let mut out = Taken::default();
        let mut size = 0;
        for stream in [self.urgent.as_mut(), Some(&mut self.fresh), self.history.as_mut()].into_iter().flatten() {
            while out.readings.len() < most && size < bytes && !stream.at_end(durable) {
                let Some(reading) = stream.read.pop_front() else {
                    let missing = stream.fill(&self.taken).await?;
                    for range in &missing {
                        self.taken.add(range.clone());
                    }
                    out.missing.extend(missing);
                    continue;
                };
                // An urgent one may have been sent since it was read.
                if !self.taken.has(reading.seq) {
                    self.taken.add(reading.seq..reading.seq + 1);
                    size += reading.payload.len() + reading.topic.len() + 16;
                    out.readings.push(reading);
                }
            }
            if !out.readings.is_empty() {
                break;
            }
        }
        Ok(out)
    }

    /// Whether something is there to send now.
    pub fn has_more(&self) -> bool {
        let durable = self.durable();
        let streams = [self.urgent.as_ref(), Some(&self.fresh), self.history.as_ref()];
        streams.into_iter().flatten().any(|stream| !stream.at_end(durable))
    }

    fn durable(&self) -> u64 {
        *self.outbox.durable().borrow()
    }

    /// Makes streams, and lets them go, as the backlog grows and shrinks: at the beginning, and when the link is slower
    /// than the readings come.
    fn arrange(&mut self, durable: u64) {
        if self.history.as_ref().is_some_and(|history| history.at_end(durable)) {
            self.history = None;
        }
        if durable.saturating_sub(self.fresh.position()) > BACKLOG {
            let fresh = Stream::new(self.outbox.cursor(durable), None);
            let former = std::mem::replace(&mut self.fresh, fresh);
            // Where there is a history it comes by all that the former stream has left, later.
            let history = self.history.get_or_insert(former);
            history.until = Some(durable);
        }
        let from = self.history.as_ref().map_or(self.fresh.position(), Stream::position);
        let waits = self.history.is_some() || durable.saturating_sub(from) > OVERTAKE;
        if !waits {
            self.urgent = None;
        } else if self.urgent.is_none() && self.outbox.has_urgent() {
            self.urgent = Some(Stream::new(self.outbox.urgent_cursor(from), None));
        }
        self.pass_over_taken();
    }

    /// History need not read through a long way that fresh readings have come already.
    fn pass_over_taken(&mut self) {
        let Some(history) = self.history.as_mut().filter(|it| it.read.is_empty()) else { return };
        let at = history.cursor.position();
        let next = self.taken.next_missing(at).min(history.until.unwrap_or(u64::MAX));
        if next > at + OVERTAKE {
            history.cursor = self.outbox.cursor(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use board::{clock::Clock, metrics::Metrics};

    use super::*;
    use crate::{outbox::Options, reading::NewReading};

    fn open(dir: &std::path::Path) -> Outbox {
        let options = Options { linger: Duration::ZERO, ..Options::default() };
        let (clock, _) = Clock::manual(1_800_000_000_000_000, true);
        Outbox::open(&dir.join("log"), 7, options, clock, &Metrics::new()).unwrap().0
    }

    /// Every hundredth is an alarm.
    async fn put(outbox: &Outbox, count: u64) {
        let topic = |n: u64| if n.is_multiple_of(100) { "alarm/a" } else { "lab/t" };
        let readings: Vec<_> = (0..count).map(|n| NewReading { topic: topic(n).into(), payload: "1".into() }).collect();
        outbox.put(&readings).await.unwrap();
    }

    async fn take(queue: &mut Queue, most: usize) -> Vec<Reading> {
        queue.take(most, usize::MAX).await.unwrap().readings
    }

    #[tokio::test]
    async fn each_is_taken_once_alarms_first_then_fresh_ones_then_history() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        put(&outbox, 8000).await;
        let mut queue = Queue::new(&outbox, &Progress::new(1));
        let mut all = take(&mut queue, 80).await;
        assert!(all.iter().all(|it| it.topic == "alarm/a") && all.len() == 80);
        all.extend(take(&mut queue, 1000).await);
        assert_eq!(all[80].seq, 2, "history, where nothing is fresh");
        put(&outbox, 300).await;
        let alarms = take(&mut queue, 1000).await;
        assert_eq!(alarms.iter().map(|it| it.seq).collect::<Vec<_>>(), [8001, 8101, 8201]);
        let fresh = take(&mut queue, 1000).await;
        assert!(fresh[0].seq == 8002 && fresh.len() == 297);
        all.extend(alarms.into_iter().chain(fresh));
        // The link is slower than that: what was fresh becomes history.
        put(&outbox, 6000).await;
        while queue.has_more() {
            all.extend(take(&mut queue, 1000).await);
        }
        let mut numbers: Vec<_> = all.iter().map(|it| it.seq).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=14_300).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn few_readings_go_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        put(&outbox, 150).await;
        let mut queue = Queue::new(&outbox, &Progress::new(1));
        let numbers: Vec<_> = take(&mut queue, 1000).await.iter().map(|it| it.seq).collect();
        assert_eq!(numbers, (1..=150).collect::<Vec<_>>());
    }
}
