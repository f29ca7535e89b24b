//! Sessions and retained messages across restarts of the agent.
//!
//! Subscriptions are saved before they are acknowledged. Retained messages and what waits for an absent client are saved
//! within a second, but not twice in half a minute, for flash wears; and at a stop. A crash loses what came since, or
//! delivers it twice. Readings are not concerned: they are in the outbox.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use board::tasks::Context;
use store::state::{Batch, Entity, State, StateError};

use super::{Delivery, Inner, Message, Open, Properties, Router, Session, Subscription};

/// Between two writes.
const EVERY: Duration = Duration::from_secs(30);
/// How long a change waits when nothing was written of late.
const SOON: Duration = Duration::from_secs(1);
/// Longest key of the state.
const MAX_KEY: usize = 512;

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedMessage {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    properties: Option<SavedProperties>,
    /// Subscription identifiers; only of a message on its way to a client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ids: Vec<usize>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedProperties {
    payload_format: Option<u8>,
    /// Seconds left when it was saved: how long the agent was off is not known for certain, so that time does not count.
    expires_in: Option<u32>,
    content_type: Option<String>,
    response_topic: Option<String>,
    correlation_data: Option<String>,
    user: Vec<(String, String)>,
}

impl SavedProperties {
    fn new(message: &Message) -> Option<Self> {
        let it = message.properties.as_deref()?;
        Some(Self {
            payload_format: it.payload_format_indicator,
            expires_in: message.expires_in(),
            content_type: it.content_type.clone(),
            response_topic: it.response_topic.clone(),
            correlation_data: it.correlation_data.as_ref().map(|data| STANDARD.encode(data)),
            user: it.user_properties.clone(),
        })
    }

    fn properties(self) -> Properties {
        Properties {
            payload_format_indicator: self.payload_format,
            message_expiry_interval: self.expires_in,
            content_type: self.content_type,
            response_topic: self.response_topic,
            correlation_data: self.correlation_data.and_then(|text| STANDARD.decode(text).ok()).map(Into::into),
            user_properties: self.user,
            ..Properties::default()
        }
    }
}

impl SavedMessage {
    fn retained(message: &Message) -> Self {
        Self {
            topic: message.topic.clone(),
            payload: STANDARD.encode(&message.payload),
            qos: message.qos,
            retain: message.retain,
            properties: SavedProperties::new(message),
            ids: Vec::new(),
        }
    }

    fn delivery(delivery: &Delivery) -> Self {
        let (qos, retain, ids) = (delivery.qos, delivery.retain, delivery.ids.clone());
        Self { qos, retain, ids, ..Self::retained(&delivery.message) }
    }

    fn message(self) -> Message {
        let payload = STANDARD.decode(self.payload).unwrap_or_default();
        let properties = self.properties.map(|it| Arc::new(it.properties()));
        Message { qos: self.qos, retain: self.retain, properties, ..Message::plain(self.topic, payload.into()) }
    }

    fn into_delivery(mut self, again: bool) -> Delivery {
        let (qos, retain, ids) = (self.qos, self.retain, std::mem::take(&mut self.ids));
        Delivery { message: Arc::new(self.message()), qos, retain, ids, again }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedOpen {
    id: u16,
    message: Option<SavedMessage>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedRetained(SavedMessage);

impl Entity for SavedRetained {
    const TREE: &'static str = "mqtt-retained";
    const VERSION: u16 = 1;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedSession {
    subscriptions: Vec<Subscription>,
    expiry_s: u64,
    inbound: HashSet<u16>,
    queue: Vec<SavedMessage>,
    #[serde(default)]
    open: Vec<SavedOpen>,
}

impl Entity for SavedSession {
    const TREE: &'static str = "mqtt-session";
    const VERSION: u16 = 1;
}

impl SavedSession {
    fn new(session: &Session) -> Self {
        Self {
            subscriptions: session.subscriptions.values().cloned().collect(),
            expiry_s: session.expiry.as_secs(),
            inbound: session.inbound.clone(),
            queue: session.queue.iter().map(SavedMessage::delivery).collect(),
            open: session.open.iter().map(SavedOpen::new).collect(),
        }
    }

    fn session(self) -> Session {
        let queue: VecDeque<_> = self.queue.into_iter().map(|saved| saved.into_delivery(false)).collect();
        Session {
            subscriptions: self.subscriptions.into_iter().map(|it| (it.filter.clone(), it)).collect(),
            queued_bytes: queue.iter().map(|delivery| delivery.message.size()).sum(),
            queue,
            open: self.open.into_iter().map(SavedOpen::open).collect(),
            expiry: Duration::from_secs(self.expiry_s),
            gone_since: Some(Instant::now()),
            inbound: self.inbound,
            ..Session::default()
        }
    }
}

impl SavedOpen {
    fn new(open: &Open) -> Self {
        Self { id: open.id, message: open.delivery.as_ref().map(SavedMessage::delivery) }
    }

    fn open(self) -> Open {
        Open { id: self.id, delivery: self.message.map(|saved| saved.into_delivery(true)) }
    }
}

/// The key of a retained message. The state takes keys of 512 bytes and topics have up to 1024: a longer one goes by its
/// digest, behind a `#`, which no topic has.
fn key_of(topic: &str) -> Cow<'_, str> {
    if topic.len() <= MAX_KEY {
        return topic.into();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, topic.as_bytes());
    format!("#{}", STANDARD.encode(digest)).into()
}

impl Router {
    /// Takes up what an earlier run saved. What cannot be read is passed over with a log line. Blocking.
    pub fn load(&self, state: &State) {
        let mut inner = self.inner();
        for item in state.scan::<SavedRetained>("") {
            match item {
                Ok((_, saved)) => inner.retained.load(Arc::new(saved.0.message())),
                Err(error) => tracing::warn!(%error, "a retained message could not be read"),
            }
        }
        for item in state.scan::<SavedSession>("") {
            match item {
                Ok((client, saved)) => drop(inner.sessions.insert(client, saved.session())),
                Err(error) => tracing::warn!(%error, "an MQTT session could not be read"),
            }
        }
        self.count(&inner);
    }

    /// Saves one client's session, now: before its subscriptions are acknowledged.
    pub async fn save_session(&self, state: &State, client: &str) -> Result<(), StateError> {
        let mut batch = Batch::default();
        {
            let mut inner = self.inner();
            let Some(session) = inner.sessions.get_mut(client).filter(|session| !session.expiry.is_zero()) else {
                return Ok(());
            };
            session.unsaved = false;
            batch.put(client, &SavedSession::new(session))?;
        }
        state.commit(batch).await
    }

    /// Lets expired sessions go and saves what changed, until stopped.
    pub async fn run(self, state: State, context: Context) -> Result<(), StateError> {
        let mut rest = SOON;
        loop {
            let (sessions, retained) = self.held();
            context.healthy(format!("{sessions} sessions, {retained} retained messages"));
            tokio::select! {
                () = tokio::time::sleep(rest) => rest = if self.save(&state).await? { EVERY } else { SOON },
                () = context.stop.cancelled() => return self.save(&state).await.map(drop),
            }
        }
    }

    /// Whether there was anything to save.
    async fn save(&self, state: &State) -> Result<bool, StateError> {
        let Some(batch) = self.changes() else { return Ok(false) };
        state.commit(batch).await.inspect_err(|_| self.inner().mark_all())?;
        Ok(true)
    }

    fn changes(&self) -> Option<Batch> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        inner.expire();
        inner.retained.expire();
        let mut changes = Changes::default();
        for client in inner.removed.drain() {
            if inner.sessions.get(&client).is_none_or(|session| session.expiry.is_zero()) {
                changes.batch.delete::<SavedSession>(&client);
                changes.any = true;
            }
        }
        for (client, session) in &mut inner.sessions {
            if std::mem::take(&mut session.unsaved) && !session.expiry.is_zero() {
                changes.put(client, &SavedSession::new(session));
            }
        }
        for topic in std::mem::take(&mut inner.retained.unsaved) {
            let key = key_of(&topic);
            match inner.retained.get(&topic) {
                Some(message) => changes.put(&key, &SavedRetained(SavedMessage::retained(message))),
                None => drop(changes.batch.delete::<SavedRetained>(&key)),
            }
            changes.any = true;
        }
        changes.any.then_some(changes.batch)
    }
}

#[derive(Default)]
struct Changes {
    batch: Batch,
    any: bool,
}

impl Changes {
    /// One value that cannot be saved must not keep the others from it.
    fn put<E: Entity>(&mut self, key: &str, value: &E) {
        match self.batch.put(key, value) {
            Ok(_) => self.any = true,
            Err(error) => tracing::warn!(%error, "not saved; it is lost if the agent stops"),
        }
    }
}

impl Inner {
    /// Nothing of what was to be saved is.
    fn mark_all(&mut self) {
        self.retained.mark_all();
        for session in self.sessions.values_mut() {
            session.unsaved = true;
        }
    }
}
