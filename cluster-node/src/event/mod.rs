//! Events with the kubelet's reasons: aggregated, bounded, kept while the link is down.
//!
//! What happens is told to a [`Recorder`] from anywhere. It is brought together with what happened before ([`correlate`])
//! and put into the [`outbox`]; one task sends what is there.
//!
//! Always true:
//! - Recording never waits for anything but a short lock, and never fails; what is too much is counted and dropped.
//! - What the API server has not taken is in the store soon after a failure, and is sent when it answers again, also by a
//!   later process; with the time at which it happened, as far as the clock is known by then.
//! - An event is sent under one name, so that a repetition after a lost answer makes no second one.

pub(crate) mod correlate;
mod outbox;
mod record;
mod send;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use board::{
    clock::Clock,
    tasks::{Context, chain},
};
use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use serde::{Deserialize, Serialize};
use store::state::State;
use tokio::{sync::Notify, time::Instant};

use self::{correlate::Correlator, outbox::Outbox, record::Occurrence};
use crate::{api::Api, pod::probe::Witness};

/// Longest message, bytes; the API server takes no longer one.
const MAX_MESSAGE: usize = 1024;
/// Longest reason, bytes.
const MAX_REASON: usize = 128;

/// How grave it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Type {
    /// All is well.
    Normal,
    /// Somebody may want to look.
    Warning,
}

impl Type {
    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct Inner {
    api: Api,
    state: State,
    node: String,
    clock: Clock,
    desk: Mutex<Desk>,
    /// Something new is in the outbox.
    news: Notify,
}

/// Everything that is remembered.
struct Desk {
    began: Instant,
    correlator: Correlator,
    outbox: Outbox,
}

/// Who is told of what happens; cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// With what an earlier process could not send.
    pub fn new(api: Api, state: State, node: &str, clock: Clock) -> Self {
        let outbox = Outbox::open(&state);
        let desk = Desk { began: Instant::now(), correlator: Correlator::default(), outbox };
        let inner = Inner { api, state, node: node.to_owned(), clock, desk: Mutex::new(desk), news: Notify::new() };
        Self(Arc::new(inner))
    }

    /// Something happened to a pod, or to the container that `field_path` names (`spec.containers{name}`).
    pub fn pod(&self, pod: &Pod, kind: Type, reason: &str, message: String, field_path: Option<String>) {
        let meta = &pod.metadata;
        self.record(Occurrence {
            about: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path,
            },
            kind,
            reason: reason.to_owned(),
            message,
            at: self.0.clock.stamp(),
        });
    }

    /// Something happened to the node.
    pub fn node(&self, kind: Type, reason: &str, message: String) {
        let name = Some(self.0.node.clone());
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: name.clone(),
            // Not the uid of the object: `kubectl describe node` looks for events by the name in its place.
            uid: name,
            ..ObjectReference::default()
        };
        let at = self.0.clock.stamp();
        self.record(Occurrence { about, kind, reason: reason.to_owned(), message, at });
    }

    /// What was recorded about the object with this uid and is still remembered, oldest first: for `describe` on the board.
    pub fn about(&self, uid: &str) -> Vec<Event> {
        let records = self.desk().outbox.about(uid);
        records.iter().map(|record| record.event(&self.0.node, &self.0.clock)).collect()
    }

    /// Events that were dropped for want of room, since the start.
    pub fn dropped(&self) -> u64 {
        self.desk().outbox.dropped()
    }

    fn record(&self, mut happened: Occurrence) {
        cut(&mut happened.message, MAX_MESSAGE);
        cut(&mut happened.reason, MAX_REASON);
        tracing::debug!(object = ?happened.about.name, reason = happened.reason, message = happened.message, "event");
        let mut desk = self.desk();
        let now = desk.began.elapsed();
        let Some(kept) = desk.correlator.observe(&happened, now) else { return };
        desk.outbox.add(kept.key, kept.message, happened);
        drop(desk);
        self.0.news.notify_one();
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Every critical section leaves it whole.
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends until it is told to stop; keeps what is left then.
    pub async fn run(self, context: Context) -> Result<(), Infallible> {
        let stop = context.stop.clone();
        if self.0.api.is_somewhere() {
            tokio::select! {
                () = self.send_all(&context) => {}
                () = stop.cancelled() => {}
            }
        } else {
            context.healthy("this board has joined no cluster: events stay on it");
            stop.cancelled().await;
        }
        self.keep().await;
        Ok(())
    }

    /// Writes down what the API server does not have yet.
    async fn keep(&self) {
        let unkept = self.desk().outbox.unkept();
        if unkept.is_empty() {
            return;
        }
        match outbox::keep(&self.0.state, &unkept).await {
            Ok(()) => self.desk().outbox.are_kept(&unkept),
            Err(error) => tracing::warn!(error = %chain(&error), "events that wait for the API server cannot be kept"),
        }
    }
}

impl Witness for Recorder {
    fn warning(&self, pod: &Pod, field_path: &str, reason: &'static str, message: String) {
        self.pod(pod, Type::Warning, reason, message, Some(field_path.to_owned()));
    }
}

/// At most so many bytes, whole characters.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
}
