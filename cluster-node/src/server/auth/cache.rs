//! Verdicts that are remembered: bounded, the oldest forgotten first.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// Verdicts by question.
pub struct Cache<K, V> {
    entries: HashMap<K, (V, Instant, Duration)>,
    most: usize,
}

/// How good a remembered verdict is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembered<V> {
    /// Its time is not over.
    Fresh(V),
    /// It is: good only where nobody can be asked.
    Stale(V),
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    pub fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), most }
    }

    pub fn get(&self, key: &K, now: Instant) -> Option<Remembered<V>> {
        let (value, at, life) = self.entries.get(key)?;
        let value = value.clone();
        Some(if now.saturating_duration_since(*at) < *life {
            Remembered::Fresh(value)
        } else {
            Remembered::Stale(value)
        })
    }

    pub fn put(&mut self, key: K, value: V, life: Duration, now: Instant) {
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, (_, at, _))| *at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (value, now, life));
    }
}
