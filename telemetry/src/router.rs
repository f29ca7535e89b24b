//! Local subscribers: who on this board hears a message, now or when it comes back.
//!
//! Always true: `publish` never waits for a slow subscriber. Each has a bounded channel; what does not fit is dropped
//! (QoS 0) or queued up to a limit (QoS 1 and 2, for sessions that can be resumed), and every drop is counted.
//!
//! Elsewhere: the packets (`mqtt`); what is kept for the core (`outbox`). Sessions and retained messages outlive the
//! agent through `persist`.

mod inbox;
mod persist;
mod retained;
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
pub use inbox::Inbox;
pub use session::{Attached, Delivery, Left, Open, Subscription};
use session::{Link, Session};

/// Properties of an MQTT 5 PUBLISH that travel with a message.
pub type Properties = rumqttc::v5::mqttbytes::v5::PublishProperties;

/// Messages waiting in a tap.
const TAP: usize = 128;
/// How long a client waits for its former connection to leave the session.
const HANDOVER: Duration = Duration::from_secs(5);
/// Sessions at the most, connected or not.
const MAX_SESSIONS: usize = 1024;
/// Subscriptions of one session.
pub const MAX_SUBSCRIPTIONS: usize = 64;

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

    /// Bytes it holds, about.
    pub fn size(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let properties = self.properties.as_ref().map_or(0, |it| {
            let user: usize = it.user_properties.iter().map(|(key, value)| key.len() + value.len() + 48).sum();
            let data = it.correlation_data.as_ref().map_or(0, Bytes::len);
            user + data + text(&it.response_topic) + text(&it.content_type)
        });
        self.topic.len() + self.payload.len() + properties
    }

    /// A copy that shares no memory with the packet it came in: a few bytes would keep a whole buffer alive for as long
    /// as they are retained or queued.
    fn compact(&self) -> Self {
        let properties = self.properties.as_ref().map(|properties| match &properties.correlation_data {
            Some(data) => {
                let correlation_data = Some(Bytes::copy_from_slice(data));
                Arc::new(Properties { correlation_data, ..(**properties).clone() })
            }
            None => properties.clone(),
        });
        Self { payload: Bytes::copy_from_slice(&self.payload), properties, ..self.clone() }
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
    retained: retained::Store,
    /// Sessions that were removed, or begun anew, since the last save.
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
        let message = Arc::new(message.compact());
        let mut inner = self.inner();
        if message.retain && !inner.retained.keep(&message) {
            self.0.dropped.inc();
            tracing::warn!(topic = message.topic, "too many retained messages; this one is not kept for later");
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
        let (tap, receiver) = mpsc::channel(TAP);
        let mut inner = self.inner();
        inner.taps.push((filter.to_owned(), tap));
        self.count(&inner);
        receiver
    }

    /// Connects a client: takes over from a former connection once that has left what it had not finished, resumes or
    /// begins the session.
    pub async fn attach(&self, client: &str, clean: bool, expiry: Duration) -> Result<Attached, SessionError> {
        let deadline = tokio::time::Instant::now() + HANDOVER;
        loop {
            let former = self.inner().oust(client);
            let Some(gone) = former else { break };
            if tokio::time::timeout_at(deadline, gone.cancelled()).await.is_err() {
                break; // It hangs: what it had not finished is lost with it.
            }
        }
        self.attach_now(client, clean, expiry)
    }

    fn attach_now(&self, client: &str, clean: bool, expiry: Duration) -> Result<Attached, SessionError> {
        let mut inner = self.inner();
        let _ = inner.oust(client);
        let present = !clean && inner.sessions.get(client).is_some_and(|session| !session.is_over());
        if !inner.sessions.contains_key(client) && inner.sessions.len() >= MAX_SESSIONS {
            inner.expire();
            if inner.sessions.len() >= MAX_SESSIONS {
                return Err(SessionError::Quota);
            }
        }
        inner.next_link += 1;
        let link_id = inner.next_link;
        if !present {
            inner.sessions.insert(client.to_owned(), Session::default());
            inner.removed.insert(client.to_owned());
        }
        let session = inner.sessions.entry(client.to_owned()).or_default();
        let (outlet, inbox) = inbox::channel();
        let link = Link::new(link_id, outlet);
        let taken_over = link.taken_over.clone();
        session.expiry = expiry;
        session.gone_since = None;
        session.unsaved = true;
        session.link = Some(link);
        // A copy: should the agent crash, the saved session still has them, and they are sent again. Identifiers of
        // what came in are not left there: one that is long released would swallow a new message.
        let open = session.open.clone();
        let left = Left { open, unsent: Vec::new(), inbound: std::mem::take(&mut session.inbound) };
        self.count(&inner);
        Ok(Attached { link_id, inbox, taken_over, present, left })
    }

    /// The oldest message that waits for a client: in its channel, then in what was queued because that was full.
    pub fn next(&self, client: &str, link_id: u64, inbox: &mut Inbox) -> Option<Delivery> {
        if let Some(delivery) = inbox.try_recv() {
            return Some(delivery);
        }
        let mut inner = self.inner();
        // Once more, now that nothing can be added: between the look above and the lock the channel may have been filled,
        // and what is queued is behind that.
        inbox
            .try_recv()
            .or_else(|| inner.sessions.get_mut(client).filter(|session| session.is_linked(link_id))?.take_queued())
    }

    /// Disconnects a client; what it leaves waits for its return, if its session lives on.
    pub fn detach(&self, client: &str, link_id: u64, expiry: Duration, left: Left) {
        let mut inner = self.inner();
        let Some(session) = inner.sessions.get_mut(client).filter(|session| session.is_linked(link_id)) else { return };
        if expiry.is_zero() {
            inner.sessions.remove(client);
            inner.removed.insert(client.to_owned());
        } else {
            session.expiry = expiry;
            session.go(left, &self.0.dropped);
        }
        self.count(&inner);
    }

    /// Subscribes; says whether the retained messages are wanted, which [`Router::retained`] gives.
    pub fn subscribe(
        &self,
        client: &str,
        subscription: Subscription,
        retained: Retained,
    ) -> Result<bool, SessionError> {
        let mut inner = self.inner();
        let Some(session) = inner.sessions.get_mut(client) else { return Ok(false) };
        let known = session.subscriptions.contains_key(&subscription.filter);
        if !known && session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(SessionError::Quota);
        }
        session.subscriptions.insert(subscription.filter.clone(), subscription);
        session.unsaved = true;
        self.count(&inner);
        Ok(match retained {
            Retained::Always => true,
            Retained::IfNew => !known,
            Retained::Never => false,
        })
    }

    /// The first retained message of a subscription on a topic behind `after`. One at a time: all that a filter matches
    /// may be thousands, and a client that does not read must not hold them in memory.
    pub fn retained(&self, subscription: &Subscription, after: Option<&str>) -> Option<Delivery> {
        let inner = self.inner();
        inner.retained.next(&subscription.filter, after).map(|message| subscription.retained(message))
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
    /// Tells the client's connection to leave; the token is cancelled when it has.
    fn oust(&mut self, client: &str) -> Option<CancellationToken> {
        let link = self.sessions.get(client)?.link.as_ref()?;
        link.taken_over.cancel();
        Some(link.gone.clone())
    }

    /// Lets sessions go whose time is over.
    fn expire(&mut self) {
        let over: Vec<_> = self.sessions.iter().filter(|(_, it)| it.is_over()).map(|(id, _)| id.clone()).collect();
        for client in over {
            self.sessions.remove(&client);
            self.removed.insert(client);
        }
    }
}

#[cfg(test)]
mod tests;
