//! Which readings go next: urgent ones first, then fresh ones, then history.
//!
//! A lane is a place in the outbox. The history lane passes everything once; while it is far behind, two more lanes run
//! ahead of it: one that hops over all blocks without an urgent reading, and one that begins at the newest reading.
//! What a lane meets that another has sent, it passes over.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use store::log::ReadError;
use tokio::time::Instant;

use super::flight::Flight;
use crate::{
    outbox::{Cursor, Outbox},
    reading::Reading,
};

/// Bytes read at once for a lane.
const READ_BYTES: usize = 32 << 10;
/// Behind by more readings than this, urgent ones are looked for.
const LOOK_FOR_URGENT: u64 = 500;
/// Behind by more readings than this, fresh ones get a lane.
const FRESH_LANE: u64 = 5_000;
/// The fresh lane moves to the newest reading at most this often: each move leaves a gap to remember.
const FRESH_MOVES: Duration = Duration::from_secs(10);

pub(super) fn lock(flight: &Mutex<Flight>) -> MutexGuard<'_, Flight> {
    // Every critical section leaves the flight whole.
    flight.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lane {
    cursor: Cursor,
    ready: VecDeque<Reading>,
}

impl Lane {
    fn new(cursor: Cursor) -> Self {
        Self { cursor, ready: VecDeque::new() }
    }

    /// The next number that this lane will meet.
    fn position(&self) -> u64 {
        self.ready.front().map_or(self.cursor.position(), |reading| reading.seq)
    }

    /// Makes the next unsent reading the first one ready; `false` where there is none before `durable`.
    async fn fill(&mut self, durable: u64, flight: &Mutex<Flight>) -> Result<bool, ReadError> {
        loop {
            {
                let flight = lock(flight);
                while self.ready.front().is_some_and(|reading| flight.has(reading.seq)) {
                    self.ready.pop_front();
                }
            }
            if !self.ready.is_empty() {
                return Ok(true);
            }
            if self.cursor.position() >= durable {
                return Ok(false);
            }
            let before = self.cursor.position();
            let read = self.cursor.next(READ_BYTES).await?;
            let mut flight = lock(flight);
            for gone in read.missing {
                flight.pass_over(gone);
            }
            if self.cursor.position() == before && read.readings.is_empty() {
                return Ok(false);
            }
            self.ready = read.readings.into();
        }
    }

    /// Up to `bytes` of the unsent readings that are ready, at least one.
    fn take(&mut self, bytes: usize, flight: &Mutex<Flight>) -> Vec<Reading> {
        let flight = lock(flight);
        let (mut taken, mut size) = (Vec::new(), 0);
        while let Some(reading) = self.ready.front() {
            size += reading.topic.len() + reading.payload.len() + 16;
            if !taken.is_empty() && size > bytes {
                break;
            }
            let Some(reading) = self.ready.pop_front() else { break };
            if !flight.has(reading.seq) {
                taken.push(reading);
            }
        }
        taken
    }
}

/// All lanes of one connection.
pub(super) struct Lanes {
    outbox: Outbox,
    urgent: Option<Lane>,
    fresh: Option<Lane>,
    fresh_moved: Instant,
    history: Lane,
}

impl Lanes {
    /// Begins at the oldest undelivered reading.
    pub(super) fn new(outbox: Outbox, below: u64) -> Self {
        let history = Lane::new(outbox.cursor(below));
        Self { outbox, urgent: None, fresh: None, fresh_moved: Instant::now(), history }
    }

    /// Where history goes on: what lies before will not be read again on this connection.
    pub(super) fn position(&self) -> u64 {
        self.history.position()
    }

    /// The next readings to send, ascending, up to about `bytes`; none when all before `durable` are sent. Not
    /// cancel-safe: after a cancelled call the lanes are used up.
    pub(super) async fn next(
        &mut self,
        bytes: usize,
        durable: u64,
        flight: &Mutex<Flight>,
    ) -> Result<Vec<Reading>, ReadError> {
        self.arrange(durable);
        for lane in [&mut self.urgent, &mut self.fresh].into_iter().flatten().chain([&mut self.history]) {
            let mut taken = Vec::new();
            let mut room = bytes;
            // A batch may be larger than what is read at once.
            while room > 0 && lane.fill(durable, flight).await? {
                let more = lane.take(room, flight);
                let size: usize = more.iter().map(|reading| reading.topic.len() + reading.payload.len() + 16).sum();
                taken.extend(more);
                room = room.saturating_sub(size);
                if !lane.ready.is_empty() {
                    break;
                }
            }
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
        Ok(Vec::new())
    }

    /// Opens, moves and closes the lanes ahead of history.
    fn arrange(&mut self, durable: u64) {
        let at = self.history.position();
        let behind = durable.saturating_sub(at);
        if behind <= LOOK_FOR_URGENT {
            self.urgent = None;
        } else if self.urgent.is_none() && self.outbox.has_urgent() {
            self.urgent = Some(Lane::new(self.outbox.urgent_cursor(at)));
        }
        match &self.fresh {
            Some(fresh) if at >= fresh.position() => self.fresh = None,
            Some(fresh)
                if durable.saturating_sub(fresh.position()) > FRESH_LANE
                    && self.fresh_moved.elapsed() >= FRESH_MOVES =>
            {
                self.open_fresh(durable);
            }
            None if behind > FRESH_LANE => self.open_fresh(durable),
            _ => {}
        }
    }

    fn open_fresh(&mut self, durable: u64) {
        self.fresh = Some(Lane::new(self.outbox.cursor(durable)));
        self.fresh_moved = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use board::{clock::Clock, metrics::Metrics};

    use super::{
        super::{flight::Packet, progress::Progress},
        *,
    };
    use crate::{outbox, reading::NewReading};

    fn readings(topic: &str, count: usize) -> Vec<NewReading> {
        (0..count).map(|n| NewReading { topic: topic.into(), payload: format!("{n}").into() }).collect()
    }

    fn open(dir: &std::path::Path) -> Outbox {
        let options = outbox::Options { linger: Duration::ZERO, ..outbox::Options::default() };
        let (clock, _) = Clock::manual(1_800_000_000_000_000, true);
        Outbox::open(dir, 7, options, clock, &Metrics::new()).unwrap().0
    }

    async fn send(lanes: &mut Lanes, outbox: &Outbox, flight: &Mutex<Flight>, bytes: usize) -> Vec<u64> {
        let durable = *outbox.durable().borrow();
        let taken = lanes.next(bytes, durable, flight).await.unwrap();
        let seqs: Vec<_> = taken.iter().map(|reading| reading.seq).collect();
        lock(flight).hand_over(Packet::of(seqs.clone()));
        seqs
    }

    #[tokio::test]
    async fn urgent_overtakes_fresh_and_fresh_overtakes_history() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        outbox.put(&readings("lab/t", 3000)).await.unwrap();
        outbox.put(&readings("alarm/fire", 1)).await.unwrap();
        outbox.put(&readings("lab/t", 4000)).await.unwrap();
        let flight = Mutex::new(Flight::new(Progress::new(1)));
        let mut lanes = Lanes::new(outbox.clone(), 1);
        assert_eq!(send(&mut lanes, &outbox, &flight, 1).await, [3001], "the alarm");
        assert_eq!(send(&mut lanes, &outbox, &flight, 1).await, [1], "history, as nothing is fresh");
        outbox.put(&readings("lab/t", 1)).await.unwrap();
        assert_eq!(send(&mut lanes, &outbox, &flight, 1).await, [7002], "the fresh one");
        assert_eq!(send(&mut lanes, &outbox, &flight, 1).await, [2]);
    }

    #[tokio::test]
    async fn every_reading_is_sent_once() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        for _ in 0..4 {
            outbox.put(&readings("lab/t", 3000)).await.unwrap();
            outbox.put(&readings("a/alarm/b", 2)).await.unwrap();
        }
        let mut already = Progress::new(5);
        already.insert(100..200);
        let flight = Mutex::new(Flight::new(already));
        let mut lanes = Lanes::new(outbox.clone(), 5);
        let mut sent = Vec::new();
        loop {
            let more = send(&mut lanes, &outbox, &flight, 2000).await;
            if more.is_empty() {
                break;
            }
            sent.extend(more);
            if sent.len() % 7 == 0 {
                outbox.put(&readings("lab/t", 1)).await.unwrap();
            }
        }
        sent.sort_unstable();
        let durable = *outbox.durable().borrow();
        let want: Vec<_> = (5..100).chain(200..durable).collect();
        assert_eq!(sent, want);
    }
}
