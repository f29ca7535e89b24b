//! What belongs together: the same once more, much of one kind, and too much of one object. Pure.
//!
//! As the kubelet's: an object gets 25 events at once and one more every five minutes; from the tenth different message of
//! one reason within ten minutes on they are one event; and the same again is counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use super::record::Occurrence;

/// Events of one object at once.
const BURST: f64 = 25.0;
/// Seconds for one more.
const REFILL_S: f64 = 300.0;
/// Different messages of one reason from which on they are brought together.
const SIMILAR: usize = 10;
/// Within this time.
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// Objects, and reasons of objects, remembered.
const MAX: usize = 512;
/// In front of messages brought together.
const COMBINED: &str = "(combined from similar events): ";

/// One that is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The same for those that are one event.
    pub key: u64,
    /// What it says.
    pub message: String,
}

/// What happened lately.
#[derive(Debug, Default)]
pub struct Correlator {
    buckets: BTreeMap<u64, (f64, Duration)>,
    similar: BTreeMap<u64, (BTreeSet<u64>, Duration)>,
}

impl Correlator {
    /// `None` where it is too much. `now` is of a clock that never goes back.
    pub fn observe(&mut self, happened: &Occurrence, now: Duration) -> Option<Kept> {
        let about = &happened.about;
        let object = hash(&(&about.kind, &about.namespace, &about.name, &about.uid));
        if !self.takes(object, now) {
            return None;
        }
        let group = hash(&(object, happened.kind, &happened.reason));
        let message = hash(&happened.message);
        let own = hash(&(group, &about.field_path, message));
        if self.is_one_of_many(group, message, now) {
            return Some(Kept { key: group, message: format!("{COMBINED}{}", happened.message) });
        }
        Some(Kept { key: own, message: happened.message.clone() })
    }

    fn takes(&mut self, object: u64, now: Duration) -> bool {
        make_room(&mut self.buckets, object, |(_, last)| *last);
        let (tokens, last) = self.buckets.entry(object).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_sub(*last).as_secs_f64() / REFILL_S).min(BURST);
        *last = now;
        let takes = *tokens >= 1.0;
        if takes {
            *tokens -= 1.0;
        }
        takes
    }

    fn is_one_of_many(&mut self, group: u64, message: u64, now: Duration) -> bool {
        make_room(&mut self.similar, group, |(_, last)| *last);
        let (messages, last) = self.similar.entry(group).or_insert((BTreeSet::new(), now));
        if now.saturating_sub(*last) > SIMILAR_WITHIN {
            messages.clear();
        }
        *last = now;
        messages.insert(message);
        if messages.len() < SIMILAR {
            return false;
        }
        messages.pop_last();
        true
    }
}

/// Forgets the one that was used longest ago where another would be too many.
fn make_room<T>(map: &mut BTreeMap<u64, T>, key: u64, used: impl Fn(&T) -> Duration) {
    if map.len() >= MAX
        && !map.contains_key(&key)
        && let Some(oldest) = map.iter().min_by_key(|(_, value)| used(value)).map(|(key, _)| *key)
    {
        map.remove(&oldest);
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
