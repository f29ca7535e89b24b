//! How far each relay has come: kept in the log's checkpoints, and what trimming waits for.

use std::collections::BTreeMap;

use store::log::Log;

use super::{Outbox, PutError, put_error};
use crate::reading::{push_varint, take_varint};

const PREFIX: &str = "relay/";

/// The checkpoint that holds a relay's progress: `below varint, progress bytes`.
pub(super) fn checkpoint_name(relay: &str) -> String {
    format!("{PREFIX}{relay}")
}

/// All relays and the number below which each has released everything.
pub(super) struct Relays(BTreeMap<String, u64>);

/// What waits for one relay.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Waiting {
    /// The relay.
    pub relay: String,
    /// The oldest number it has not released.
    pub below: u64,
    /// Readings from there on, those not delivered out of order included.
    pub readings: u64,
}

impl Relays {
    /// Relays that had made progress before, whether or not they are configured now.
    pub fn load(log: &Log) -> Self {
        let names = log.checkpoint_names();
        let relay = |name: &String| {
            let value = log.checkpointed(name)?;
            Some((name.strip_prefix(PREFIX)?.to_owned(), take_varint(&mut &value[..])?))
        };
        Self(names.iter().filter_map(relay).collect())
    }

    pub fn highest(&self) -> u64 {
        self.0.values().copied().max().unwrap_or(1)
    }

    /// The number below which every relay has everything; `None` without relays.
    pub fn lowest(&self) -> Option<u64> {
        self.0.values().copied().min()
    }

    pub fn known(&mut self, name: &str, first: u64) {
        self.0.entry(name.to_owned()).or_insert(first);
    }

    pub fn released(&mut self, name: &str, below: u64) {
        let known = self.0.entry(name.to_owned()).or_insert(below);
        *known = below.max(*known);
    }

    /// Drops all but `names`; returns the dropped.
    pub fn retain(&mut self, names: &[&str]) -> Vec<String> {
        let gone: Vec<_> = self.0.keys().filter(|name| !names.contains(&name.as_str())).cloned().collect();
        self.0.retain(|name, _| names.contains(&name.as_str()));
        gone
    }

    pub fn waiting(&self, next: u64) -> Vec<Waiting> {
        let waiting = |(relay, below): (&String, &u64)| Waiting {
            relay: relay.clone(),
            below: *below,
            readings: next.saturating_sub(*below),
        };
        self.0.iter().map(waiting).collect()
    }
}

/// One relay's progress.
pub struct RelayHandle {
    outbox: Outbox,
    name: &'static str,
}

impl RelayHandle {
    pub(super) fn new(outbox: Outbox, name: &'static str) -> Self {
        Self { outbox, name }
    }

    /// The number below which everything was released, and what `save` was last given and is durable.
    pub fn saved(&self) -> (u64, Vec<u8>) {
        let value = self.outbox.0.log.checkpointed(&checkpoint_name(self.name)).unwrap_or_default();
        let mut rest = &value[..];
        match take_varint(&mut rest) {
            Some(below) => (below, rest.to_vec()),
            None => (self.outbox.first(), Vec::new()),
        }
    }

    /// All readings below `below` are delivered and may be trimmed. `progress` (under 4 KiB) rides the next commit: a
    /// crash before it makes the relay repeat.
    pub fn save(&self, below: u64, progress: &[u8]) {
        let mut value = Vec::with_capacity(10 + progress.len());
        push_varint(&mut value, below);
        value.extend_from_slice(progress);
        self.outbox.0.log.checkpoint(&checkpoint_name(self.name), value);
        self.outbox.relays().released(self.name, below);
        self.outbox.0.released.notify_one();
    }

    /// `save`, and returns when it is durable.
    pub async fn save_durably(&self, below: u64, progress: &[u8]) -> Result<(), PutError> {
        self.save(below, progress);
        self.outbox.0.log.sync_checkpoints().await.map_err(put_error)
    }
}
