//! What is to be sent, in order, and what was sent lately; bounded.

use std::collections::{BTreeMap, BTreeSet};

use store::state::{Batch, State, StateError};

use super::{
    Type,
    record::{Occurrence, Record},
};

/// Events that wait for the API server at the most.
pub const MAX_WAITING: usize = 500;
/// Events remembered after they were sent, so that the same again is counted.
pub const MAX_SENT: usize = 300;

/// One that waits.
#[derive(Debug, Clone)]
struct Waiting {
    key: u64,
    record: Record,
    /// Whether it is in the store as it is here.
    kept: bool,
}

/// Its order is that of the numbers.
#[derive(Debug, Default)]
pub struct Outbox {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    sent: BTreeMap<u64, (u64, Record)>,
    /// Keys of both, to their numbers.
    places: BTreeMap<u64, u64>,
    /// Names of records in the store.
    stored: BTreeSet<String>,
    /// Those of them that are not wanted there any more.
    stale: BTreeSet<String>,
    dropped: u64,
}

impl Outbox {
    /// With what is in the store.
    pub fn open(state: &State) -> Self {
        let mut records: Vec<Record> = Vec::new();
        let mut outbox = Self::default();
        for item in state.scan::<Record>("") {
            match item {
                Ok((key, record)) if key == record.name => records.push(record),
                Ok((key, _)) => _ = outbox.stale.insert(key),
                Err(error) => tracing::warn!(%error, "a kept event does not read and is ignored"),
            }
        }
        records.sort_by_key(|record| (record.first.boot, record.first.uptime_us));
        for record in records {
            outbox.next += 1;
            outbox.stored.insert(record.name.clone());
            // No key of now is zero but by a chance of 1 in 2^64; what was kept is not counted on.
            outbox.waiting.insert(outbox.next, Waiting { key: 0, record, kept: true });
        }
        outbox
    }

    /// One more, or the same again.
    pub fn add(&mut self, key: u64, message: String, happened: Occurrence) {
        let at = happened.at;
        if let Some(place) = self.places.get(&key).copied() {
            if let Some(waiting) = self.waiting.get_mut(&place) {
                waiting.record.again(message, at);
                waiting.kept = false;
                return;
            }
            if let Some((_, mut record)) = self.sent.remove(&place) {
                record.again(message, at);
                self.wait(key, record);
                return;
            }
        }
        self.wait(key, Record::new(message, happened));
    }

    fn wait(&mut self, key: u64, record: Record) {
        if self.waiting.len() >= MAX_WAITING {
            self.drop_one();
        }
        self.next += 1;
        self.places.insert(key, self.next);
        self.waiting.insert(self.next, Waiting { key, record, kept: false });
    }

    /// The oldest that is no warning, else the oldest.
    fn drop_one(&mut self) {
        let normal = self.waiting.iter().find(|(_, it)| it.record.kind == Type::Normal).map(|(number, _)| *number);
        let Some(number) = normal.or_else(|| self.waiting.keys().next().copied()) else { return };
        self.remove(number);
        self.dropped += 1;
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        if self.places.get(&waiting.key) == Some(&number) {
            self.places.remove(&waiting.key);
        }
        if self.stored.remove(&waiting.record.name) {
            self.stale.insert(waiting.record.name.clone());
        }
        Some(waiting)
    }

    /// The one to send next, with its number.
    pub fn first(&self) -> Option<(u64, Record)> {
        self.waiting.first_key_value().map(|(number, waiting)| (*number, waiting.record.clone()))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The API server has it as it was given out. Where it happened again meanwhile, it goes on waiting.
    pub fn is_sent(&mut self, number: u64, as_given: &Record) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        if waiting.record.count != as_given.count {
            waiting.record.known = true;
            waiting.kept = false;
            return;
        }
        let Some(mut waiting) = self.remove(number) else { return };
        waiting.record.known = true;
        if self.sent.len() >= MAX_SENT
            && let Some((number, (key, _))) = self.sent.pop_first()
            && self.places.get(&key) == Some(&number)
        {
            self.places.remove(&key);
        }
        if waiting.key != 0 {
            self.places.insert(waiting.key, number);
        }
        self.sent.insert(number, (waiting.key, waiting.record));
    }

    /// It is there already: only its count is told.
    pub fn is_known(&mut self, number: u64) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.record.known = true;
            waiting.kept = false;
        }
    }

    /// The API server has it no more.
    pub fn is_gone(&mut self, number: u64) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        if self.stored.remove(&waiting.record.name) {
            self.stale.insert(waiting.record.name.clone());
        }
        waiting.record.renew();
        waiting.kept = false;
    }

    /// The API server does not want it.
    pub fn is_refused(&mut self, number: u64) {
        self.remove(number);
    }

    /// What was recorded about an object.
    pub fn about(&self, uid: &str) -> Vec<Record> {
        let all = self.sent.iter().map(|(number, (_, record))| (number, record));
        let mut all: Vec<_> = all.chain(self.waiting.iter().map(|(number, it)| (number, &it.record))).collect();
        all.retain(|(_, record)| record.about.uid.as_deref() == Some(uid));
        all.sort_by_key(|(number, _)| **number);
        all.into_iter().map(|(_, record)| record.clone()).collect()
    }

    /// Events that had to be dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What the store does not have as it is, and what it should not have any more.
    pub fn unkept(&self) -> Unkept {
        let put = self.waiting.iter().filter(|(_, it)| !it.kept);
        Unkept { put: put.map(|(number, it)| (*number, it.record.clone())).collect(), remove: self.stale.clone() }
    }

    /// Names of those that are in the store without need.
    pub fn stale(&self) -> Unkept {
        Unkept { put: Vec::new(), remove: self.stale.clone() }
    }

    /// The store has them now.
    pub fn are_kept(&mut self, unkept: &Unkept) {
        for (number, record) in &unkept.put {
            match self.waiting.get_mut(number).filter(|it| it.record.name == record.name) {
                Some(waiting) => {
                    waiting.kept = waiting.record == *record;
                    self.stored.insert(record.name.clone());
                }
                // It was sent while it was written.
                None => _ = self.stale.insert(record.name.clone()),
            }
        }
        for name in &unkept.remove {
            self.stale.remove(name);
        }
    }
}

/// What the store is to be told.
#[derive(Debug, Clone, Default)]
pub struct Unkept {
    put: Vec<(u64, Record)>,
    remove: BTreeSet<String>,
}

impl Unkept {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

/// Writes it down. Durable within a second: what is lost in a power cut before is one event.
pub async fn keep(state: &State, unkept: &Unkept) -> Result<(), StateError> {
    let mut batch = Batch::default();
    for name in &unkept.remove {
        batch.delete::<Record>(name);
    }
    for (_, record) in &unkept.put {
        batch.put(&record.name, record)?;
    }
    state.commit_relaxed(batch).await
}
