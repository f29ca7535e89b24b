//! Retained messages: the last one of each topic that was published with the flag.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use super::Message;
use crate::topic;

/// Messages and their bytes.
const MAX_RETAINED: usize = 10_000;
const MAX_RETAINED_BYTES: usize = 2 << 20;

#[derive(Default)]
pub(super) struct Store {
    messages: BTreeMap<String, Arc<Message>>,
    bytes: usize,
    /// Topics changed since they were last saved.
    pub unsaved: HashSet<String>,
}

impl Store {
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        self.messages.get(topic)
    }

    /// Keeps a message instead of the topic's former one; an empty one clears. `false` where there is no room.
    pub fn keep(&mut self, message: &Arc<Message>) -> bool {
        self.remove(&message.topic);
        if message.payload.is_empty() {
            return true;
        }
        let full = self.messages.len() >= MAX_RETAINED || self.bytes + message.size() > MAX_RETAINED_BYTES;
        if !full {
            self.load(message.clone());
        }
        !full
    }

    /// Takes up a message that is saved already.
    pub fn load(&mut self, message: Arc<Message>) {
        self.bytes += message.size();
        self.messages.insert(message.topic.clone(), message);
    }

    fn remove(&mut self, topic: &str) {
        self.unsaved.insert(topic.to_owned());
        self.bytes -= self.messages.remove(topic).map_or(0, |old| old.size());
    }

    /// Lets go what has expired: nobody would be sent it.
    pub fn expire(&mut self) {
        let over = |message: &&Arc<Message>| message.expires_in() == Some(0);
        let topics: Vec<_> = self.messages.values().filter(over).map(|message| message.topic.clone()).collect();
        for topic in topics {
            self.remove(&topic);
        }
    }

    /// Everything is to be saved again: the last try failed.
    pub fn mark_all(&mut self) {
        self.unsaved.extend(self.messages.keys().cloned());
    }

    /// The first message that `filter` matches on a topic behind `after`.
    pub fn next(&self, filter: &str, after: Option<&str>) -> Option<&Arc<Message>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.messages.range::<str, _>((from, Bound::Unbounded));
        rest.find(|(topic, _)| topic::matches(filter, topic)).map(|(_, message)| message)
    }
}
