//! Sessions and retained messages across restarts of the agent.
//!
//! Subscriptions are saved before they are acknowledged. Retained messages and what waits for an absent client are saved
//! every half minute and at a stop: a crash loses what came since, or delivers it twice. Readings are not concerned:
//! they are in the outbox.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use board::tasks::Context;
use store::state::{Batch, Entity, State, StateError};

use super::{Delivery, Message, Router, Session, Subscription};

const EVERY: Duration = Duration::from_secs(30);

#[derive(serde::Serialize, serde::Deserialize)]
struct SavedMessage {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
}

impl SavedMessage {
    fn new(message: &Message, qos: u8) -> Self {
        let payload = STANDARD.encode(&message.payload);
        Self { topic: message.topic.clone(), payload, qos, retain: message.retain }
    }

    fn message(self) -> Message {
        let payload = STANDARD.decode(self.payload).unwrap_or_default();
        Message { qos: self.qos, retain: self.retain, ..Message::plain(self.topic, payload.into()) }
    }
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
            queue: session.queue.iter().map(|delivery| SavedMessage::new(&delivery.message, delivery.qos)).collect(),
        }
    }

    fn session(self) -> Session {
        let delivery = |saved: SavedMessage| {
            let qos = saved.qos;
            Delivery { message: Arc::new(saved.message()), qos, retain: false, ids: Vec::new(), again: true }
        };
        let queue: VecDeque<_> = self.queue.into_iter().map(delivery).collect();
        Session {
            subscriptions: self.subscriptions.into_iter().map(|it| (it.filter.clone(), it)).collect(),
            queued_bytes: queue.iter().map(|delivery| delivery.message.payload.len()).sum(),
            queue,
            expiry: Duration::from_secs(self.expiry_s),
            gone_since: Some(Instant::now()),
            inbound: self.inbound,
            ..Session::default()
        }
    }
}

impl Router {
    /// Takes up what an earlier run saved. What cannot be read is passed over with a log line. Blocking.
    pub fn load(&self, state: &State) {
        let mut inner = self.inner();
        for item in state.scan::<SavedRetained>("") {
            match item {
                Ok((topic, saved)) => {
                    let message = saved.0.message();
                    inner.retained_bytes += topic.len() + message.payload.len();
                    inner.retained.insert(topic, Arc::new(message));
                }
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
        loop {
            let (sessions, retained) = self.held();
            context.healthy(format!("{sessions} sessions, {retained} retained messages"));
            tokio::select! {
                () = tokio::time::sleep(EVERY) => self.save(&state).await?,
                () = context.stop.cancelled() => return self.save(&state).await,
            }
        }
    }

    async fn save(&self, state: &State) -> Result<(), StateError> {
        let batch = self.changes()?;
        if let Some(batch) = batch { state.commit(batch).await } else { Ok(()) }
    }

    fn changes(&self) -> Result<Option<Batch>, StateError> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let over: Vec<_> = inner.sessions.iter().filter(|(_, it)| it.is_over()).map(|(id, _)| id.clone()).collect();
        for client in over {
            inner.sessions.remove(&client);
            inner.removed.insert(client);
        }
        let mut batch = Batch::default();
        let mut any = false;
        for client in inner.removed.drain() {
            if !inner.sessions.contains_key(&client) {
                batch.delete::<SavedSession>(&client);
                any = true;
            }
        }
        for (client, session) in &mut inner.sessions {
            if std::mem::take(&mut session.unsaved) && !session.expiry.is_zero() {
                batch.put(client, &SavedSession::new(session))?;
                any = true;
            }
        }
        for topic in inner.unsaved_topics.drain() {
            match inner.retained.get(&topic) {
                Some(message) => drop(batch.put(&topic, &SavedRetained(SavedMessage::new(message, message.qos)))?),
                None => drop(batch.delete::<SavedRetained>(&topic)),
            }
            any = true;
        }
        Ok(any.then_some(batch))
    }
}
