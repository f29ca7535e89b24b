//! Local subscribers: who on this board hears a message, now or when it comes back.
//!
//! Always true: `publish` never waits for a slow subscriber. Each has a bounded channel; what does not fit is dropped
//! (QoS 0) or queued up to a limit (QoS 1 and 2, for sessions that can be resumed), and every drop is counted.
//!
//! Elsewhere: the packets (`mqtt`); what is kept for the core (`outbox`). Sessions and retained messages outlive the
//! agent through `persist`.

mod persist;
mod session;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::topic;
pub use session::{Attached, Delivery, Subscription};
use session::{Link, Session};

/// Properties of an MQTT 5 PUBLISH that travel with a message.
pub type Properties = rumqttc::v5::mqttbytes::v5::PublishProperties;

/// Messages waiting in a subscriber's channel.
const CHANNEL: usize = 128;
/// Sessions at the most, connected or not.
const MAX_SESSIONS: usize = 1024;
/// Subscriptions of one session.
pub const MAX_SUBSCRIPTIONS: usize = 64;
/// Retained messages and their bytes.
const MAX_RETAINED: usize = 10_000;
const MAX_RETAINED_BYTES: usize = 2 << 20;

/// A message to local subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic name.
    pub topic: String,
    /// Content.
    pub payload: Bytes,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Kept for later subscribers; an empty payload clears.
    pub retain: bool,
    /// What an MQTT 5 sender said about it.
    pub properties: Option<Arc<Properties>>,
    /// When it came, for its expiry.
    pub since: Instant,
}

impl Message {
    /// A message at QoS 1, not retained.
    pub fn plain(topic: String, payload: Bytes) -> Self {
        Self { topic, payload, qos: 1, retain: false, properties: None, since: Instant::now() }
    }

    /// Seconds left until it expires; `None` where it has no expiry, `Some(0)` where it is over.
    pub fn expires_in(&self) -> Option<u32> {
        let secs = self.properties.as_ref()?.message_expiry_interval?;
        Some(secs.saturating_sub(u32::try_from(self.since.elapsed().as_secs()).unwrap_or(u32::MAX)))
    }
}

/// Why a session was not attached or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A limit on sessions or subscriptions.
    #[error("the limit on sessions or subscriptions is reached")]
    Quota,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<String, Session>,
    retained: BTreeMap<String, Arc<Message>>,
    retained_bytes: usize,
    /// Retained topics changed since they were last saved.
    unsaved_topics: HashSet<String>,
    /// Sessions that were removed since the last save.
    removed: HashSet<String>,
    taps: Vec<(String, mpsc::Sender<Arc<Message>>)>,
    next_link: u64,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Subscriptions and taps: with none, and nothing to retain, a message has nowhere to go.
    listeners: AtomicUsize,
    dropped: Counter,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Shared>);

impl Router {
    /// A router with no subscribers.
    pub fn new(metrics: &board::metrics::Metrics) -> Self {
        let dropped = Counter::default();
        metrics.register(|registry| {
            let help = "Messages to local subscribers dropped because they were too slow or away too long";
            registry.register("router_dropped", help, dropped.clone());
        });
        Self(Arc::new(Shared { inner: Mutex::default(), listeners: AtomicUsize::new(0), dropped }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No critical section can leave the maps torn.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody listens at all.
    pub fn has_listeners(&self) -> bool {
        self.0.listeners.load(Ordering::Relaxed) > 0
    }

    /// Delivers to every matching subscription of this board, and keeps a retained message.
    pub fn publish(&self, message: &Message) {
        self.publish_from(message, None);
    }

    /// `publish`, for a message that client `from` sent: its no-local subscriptions do not hear it.
    pub fn publish_from(&self, message: &Message, from: Option<&str>) {
        if !message.retain && !self.has_listeners() {
            return;
        }
        let message = Arc::new(message.clone());
        let mut inner = self.inner();
        if message.retain {
            inner.retain(&message, &self.0.dropped);
        }
        inner.taps.retain(|(filter, tap)| {
            if topic::matches(filter, &message.topic) {
                // A full tap misses messages; a closed one goes.
                return !matches!(tap.try_send(message.clone()), Err(mpsc::error::TrySendError::Closed(_)));
            }
            !tap.is_closed()
        });
        for (client, session) in &mut inner.sessions {
            let own = from == Some(client.as_str());
            if let Some(delivery) = session.delivery(&message, own) {
                session.deliver(delivery, &self.0.dropped);
            }
        }
        self.count(&inner);
    }

    fn count(&self, inner: &Inner) {
        let subscriptions: usize = inner.sessions.values().map(|session| session.subscriptions.len()).sum();
        self.0.listeners.store(subscriptions + inner.taps.len(), Ordering::Relaxed);
    }

    /// Hears what matches `filter` from inside this process; misses what does not fit its channel.
    pub fn tap(&self, filter: &str) -> mpsc::Receiver<Arc<Message>> {
        let (tap, receiver) = mpsc::channel(CHANNEL);
        let mut inner = self.inner();
        inner.taps.push((filter.to_owned(), tap));
        self.count(&inner);
        receiver
    }

    /// Connects a client: takes over a former connection, resumes or begins its session.
    pub fn attach(&self, client: &str, clean: bool, expiry: Duration) -> Result<Attached, SessionError> {
        let mut inner = self.inner();
        if clean && inner.sessions.get(client).is_some_and(|session| session.link.is_none()) {
            inner.sessions.remove(client);
            inner.removed.insert(client.to_owned());
        }
        if !inner.sessions.contains_key(client) && inner.sessions.len() >= MAX_SESSIONS {
            return Err(SessionError::Quota);
        }
        inner.next_link += 1;
        let link_id = inner.next_link;
        let present = inner.sessions.contains_key(client) && !clean;
        let session = inner.sessions.entry(client.to_owned()).or_default();
        if let Some(former) = session.link.take() {
            former.taken_over.cancel();
        }
        if clean {
            *session = Session::default();
        }
        let (sender, receiver) = mpsc::channel(CHANNEL);
        let taken_over = CancellationToken::new();
        session.expiry = expiry;
        session.gone_since = None;
        session.unsaved = true;
        session.link = Some(Link { id: link_id, sender, taken_over: taken_over.clone() });
        let inbound = session.inbound.clone();
        self.count(&inner);
        Ok(Attached { link_id, receiver, taken_over, present, inbound })
    }

    /// What waits for a client beyond its channel.
    pub fn take_queued(&self, client: &str, link_id: u64, most: usize) -> Vec<Delivery> {
        let mut inner = self.inner();
        let session = inner.sessions.get_mut(client).filter(|session| session.is_linked(link_id));
        session.map(|session| session.take_queued(most)).unwrap_or_default()
    }

    /// Puts a message back behind what waits for a client: its window is full.
    pub fn requeue(&self, client: &str, link_id: u64, delivery: Delivery) {
        let mut inner = self.inner();
        if let Some(session) = inner.sessions.get_mut(client).filter(|session| session.is_linked(link_id)) {
            session.enqueue(delivery, &self.0.dropped);
        }
    }

    /// Disconnects a client: what it had not acknowledged goes back to the front of its queue, if its session lives on.
    pub fn detach(
        &self,
        client: &str,
        link_id: u64,
        expiry: Option<Duration>,
        unacked: Vec<Delivery>,
        inbound: HashSet<u16>,
    ) {
        let mut inner = self.inner();
        let Some(session) = inner.sessions.get_mut(client).filter(|session| session.is_linked(link_id)) else { return };
        let expiry = expiry.unwrap_or(session.expiry);
        if expiry.is_zero() {
            inner.sessions.remove(client);
            inner.removed.insert(client.to_owned());
        } else {
            session.expiry = expiry;
            session.go(unacked, inbound, &self.0.dropped);
        }
        self.count(&inner);
    }

    /// Subscribes; returns the retained messages to deliver at once, in the order of the subscriptions.
    pub fn subscribe(
        &self,
        client: &str,
        subscription: Subscription,
        retained: Retained,
    ) -> Result<Vec<Delivery>, SessionError> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let Some(session) = inner.sessions.get_mut(client) else { return Ok(Vec::new()) };
        let filter = subscription.filter.clone();
        let known = session.subscriptions.contains_key(&filter);
        if !known && session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(SessionError::Quota);
        }
        let wanted = match retained {
            Retained::Always => true,
            Retained::IfNew => !known,
            Retained::Never => false,
        };
        let messages = inner.retained.values().filter(|message| wanted && topic::matches(&filter, &message.topic));
        let deliveries = messages.map(|message| subscription.retained(message)).collect();
        session.subscriptions.insert(filter, subscription);
        session.unsaved = true;
        self.count(inner);
        Ok(deliveries)
    }

    /// Unsubscribes; `false` where there was no such subscription.
    pub fn unsubscribe(&self, client: &str, filter: &str) -> bool {
        let mut inner = self.inner();
        let Some(session) = inner.sessions.get_mut(client) else { return false };
        session.unsaved = true;
        let was = session.subscriptions.remove(filter).is_some();
        self.count(&inner);
        was
    }

    /// Sessions and retained messages held.
    pub fn held(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.sessions.len(), inner.retained.len())
    }
}

/// When a subscription wants the retained messages (MQTT 5 section 3.8.3.1, Retain Handling).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    /// Now.
    Always,
    /// Only if it did not exist before.
    IfNew,
    /// Not.
    Never,
}

impl Inner {
    fn retain(&mut self, message: &Arc<Message>, dropped: &Counter) {
        let size = |message: &Message| message.topic.len() + message.payload.len();
        let old = self.retained.remove(&message.topic);
        self.retained_bytes -= old.map_or(0, |old| size(&old));
        self.unsaved_topics.insert(message.topic.clone());
        if message.payload.is_empty() {
            return;
        }
        let full = self.retained.len() >= MAX_RETAINED || self.retained_bytes + size(message) > MAX_RETAINED_BYTES;
        if full {
            dropped.inc();
            tracing::warn!(topic = message.topic, "too many retained messages; this one is not kept for later");
            return;
        }
        self.retained_bytes += size(message);
        self.retained.insert(message.topic.clone(), message.clone());
    }
}

#[cfg(test)]
mod tests;
