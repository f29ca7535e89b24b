//! What to send next: urgent readings, then fresh ones, then history.

use std::{collections::VecDeque, ops::Range};

use store::log::ReadError;

use super::progress::Progress;
use crate::{
    outbox::{Cursor, Outbox},
    reading::Reading,
};

/// A backlog of more readings makes new ones a stream of their own.
const BACKLOG: u64 = 5_000;
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

    fn at_end(&self, durable: u64) -> bool {
        self.read.is_empty() && self.cursor.position() >= self.until.unwrap_or(durable)
    }
}

/// Streams in order of their right of way.
pub(super) struct Queue {
    streams: Vec<Stream>,
    outbox: Outbox,
}

/// Readings to send together, and numbers that turned out to be gone.
#[derive(Default)]
pub(super) struct Taken {
    pub readings: Vec<Reading>,
    pub missing: Vec<Range<u64>>,
    /// Numbers passed over by the stream: what of them is not in `readings` was acknowledged before.
    pub span: Option<Range<u64>>,
}

impl Queue {
    pub fn new(outbox: &Outbox, progress: &Progress) -> Self {
        let durable = *outbox.durable().borrow();
        let below = progress.below();
        let mut streams = Vec::new();
        if durable.saturating_sub(below) > BACKLOG {
            if outbox.has_urgent() {
                streams.push(Stream::new(outbox.urgent_cursor(below), Some(durable)));
            }
            streams.push(Stream::new(outbox.cursor(durable), None));
            streams.push(Stream::new(outbox.cursor(below), Some(durable)));
        } else {
            streams.push(Stream::new(outbox.cursor(below), None));
        }
        Self { streams, outbox: outbox.clone() }
    }

    /// Up to `most` readings of up to about `bytes`, of the first stream that has any; none at the end.
    pub async fn take(&mut self, most: usize, bytes: usize, progress: &Progress) -> Result<Taken, ReadError> {
        let durable = *self.outbox.durable().borrow();
        // A stream that came to its end is done with.
        self.streams.retain(|stream| stream.until.is_none() || !stream.at_end(durable));
        let mut taken = Taken::default();
        for stream in &mut self.streams {
            if stream.at_end(durable) {
                continue;
            }
            if stream.read.is_empty() {
                let from = stream.cursor.position();
                let read = stream.cursor.next(READ_BYTES).await?;
                let end = stream.until.unwrap_or(u64::MAX);
                taken.missing = read.missing.into_iter().map(|it| it.start..it.end.min(end)).collect();
                stream.read.extend(read.readings.into_iter().filter(|it| it.seq < end && !progress.has(it.seq)));
                taken.span = Some(from..stream.cursor.position().min(end));
            }
            let mut size = 0;
            while taken.readings.len() < most && size < bytes {
                let Some(reading) = stream.read.pop_front() else { break };
                size += reading.payload.len() + reading.topic.len() + 16;
                taken.readings.push(reading);
            }
            return Ok(taken);
        }
        Ok(taken)
    }

    /// Whether something is there to send now.
    pub fn has_more(&self) -> bool {
        let durable = *self.outbox.durable().borrow();
        self.streams.iter().any(|stream| !stream.at_end(durable))
    }
}
