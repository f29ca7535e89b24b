//! One event: as it happens, as it is remembered, as the API has it.

use board::clock::{Clock, Stamp};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::state::Entity;

use super::Type;

/// Longest part of an object's name in that of an event, bytes: names have 253.
const MAX_NAME: usize = 230;

/// Something happened.
#[derive(Debug, Clone)]
pub struct Occurrence {
    /// To what.
    pub about: ObjectReference,
    /// How grave.
    pub kind: Type,
    /// What, in a word.
    pub reason: String,
    /// What, in a sentence.
    pub message: String,
    /// When.
    pub at: Stamp,
}

/// It happened so many times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Of the event's object.
    pub name: String,
    /// To what.
    pub about: ObjectReference,
    /// How grave.
    pub kind: Type,
    /// What, in a word.
    pub reason: String,
    /// What, in a sentence.
    pub message: String,
    /// How often.
    pub count: i32,
    /// First.
    pub first: Stamp,
    /// Last.
    pub last: Stamp,
    /// Whether the API server has it, with an earlier count.
    pub known: bool,
}

impl Entity for Record {
    const TREE: &'static str = "node-events";
    const VERSION: u16 = 1;
}

impl Record {
    /// The first time.
    pub fn new(message: String, happened: Occurrence) -> Self {
        Self {
            name: fresh_name(happened.about.name.as_deref().unwrap_or("unknown")),
            about: happened.about,
            kind: happened.kind,
            reason: happened.reason,
            message,
            count: 1,
            first: happened.at,
            last: happened.at,
            known: false,
        }
    }

    /// Once more.
    pub fn again(&mut self, message: String, at: Stamp) {
        self.count = self.count.saturating_add(1);
        self.message = message;
        self.last = at;
    }

    /// The API server has it no more: it is sent as a new one.
    pub fn renew(&mut self) {
        self.name = fresh_name(self.about.name.as_deref().unwrap_or("unknown"));
        self.known = false;
    }

    /// Where it lies. Of an object without a namespace, in the default one.
    pub fn namespace(&self) -> &str {
        self.about.namespace.as_deref().filter(|it| !it.is_empty()).unwrap_or("default")
    }

    /// As the API has it.
    pub fn event(&self, node: &str, clock: &Clock) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: self.about.clone(),
            type_: Some(self.kind.name().to_owned()),
            reason: Some(self.reason.clone()),
            message: Some(self.message.clone()),
            count: Some(self.count),
            first_timestamp: Some(Time(time(clock, &self.first))),
            last_timestamp: Some(Time(time(clock, &self.last))),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(node.to_owned()),
            ..Event::default()
        }
    }

    /// What changes of one that is known.
    pub fn patch(&self, clock: &Clock) -> Value {
        json!({ "count": self.count, "lastTimestamp": Time(time(clock, &self.last)), "message": self.message })
    }
}

/// By the best knowledge of now.
fn time(clock: &Clock, stamp: &Stamp) -> Timestamp {
    Timestamp::from_microsecond(clock.correct(stamp).time_us).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Not of the time, as the kubelet's: a board's clock may have been there before.
fn fresh_name(object: &str) -> String {
    let mut random = [0; 8];
    // Without randomness the name may meet another, whose count is then told instead.
    let _ = SystemRandom::new().fill(&mut random);
    let end = (0..=object.len().min(MAX_NAME)).rev().find(|at| object.is_char_boundary(*at)).unwrap_or(0);
    // A name must not have a dot after a dash or a dot.
    format!("{}.{:016x}", object[..end].trim_end_matches(['.', '-']), u64::from_be_bytes(random))
}
