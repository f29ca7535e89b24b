//! One client's session: its subscriptions, what was sent and is not acknowledged, and what waits for it.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Message,
    inbox::{Inbox, Outlet},
};
use crate::topic;

/// Messages and bytes that wait for one session.
pub(super) const MAX_QUEUED: usize = 1000;
pub(super) const MAX_QUEUED_BYTES: usize = 1 << 20;

/// One subscription.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Subscription {
    /// Checked filter.
    pub filter: String,
    /// Highest QoS wanted.
    pub qos: u8,
    /// Does not hear what its own client sends.
    pub no_local: bool,
    /// Gets the retain flag as it was published.
    pub retain_as_published: bool,
    /// MQTT 5 subscription identifier.
    pub id: Option<usize>,
}

impl Subscription {
    pub(super) fn retained(&self, message: &Arc<Message>) -> Delivery {
        let ids = self.id.into_iter().collect();
        Delivery { message: message.clone(), qos: message.qos.min(self.qos), retain: true, ids, again: false }
    }
}

/// A message for one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What.
    pub message: Arc<Message>,
    /// At which QoS.
    pub qos: u8,
    /// With which retain flag.
    pub retain: bool,
    /// Identifiers of the subscriptions that matched.
    pub ids: Vec<usize>,
    /// It was sent before and not acknowledged.
    pub again: bool,
}

/// A message of QoS 1 or 2 that was sent and is not acknowledged. Its packet identifier lives as long as the session: a
/// client tells by it what it has received already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Packet identifier.
    pub id: u16,
    /// The message; `None` once the client has received it at QoS 2 and waits for its release.
    pub delivery: Option<Delivery>,
}

/// A connection's end of its session.
pub struct Attached {
    /// Tells this connection from one that takes over.
    pub link_id: u64,
    /// What to send.
    pub inbox: Inbox,
    /// Cancelled when another connection takes the session over.
    pub taken_over: CancellationToken,
    /// Whether the session existed.
    pub present: bool,
    /// What an earlier connection left.
    pub left: Left,
}

/// What a connection leaves to the next one of its session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// In the order of sending.
    pub open: Vec<Open>,
    /// Not sent.
    pub unsent: Vec<Delivery>,
    /// QoS 2 packet ids received and not yet released.
    pub inbound: HashSet<u16>,
}

pub(super) struct Link {
    pub id: u64,
    pub outlet: Outlet,
    pub taken_over: CancellationToken,
    /// Cancelled when the connection has left the session.
    pub gone: CancellationToken,
    _gone: DropGuard,
}

impl Link {
    pub fn new(id: u64, outlet: Outlet) -> Self {
        let gone = CancellationToken::new();
        Self { id, outlet, taken_over: CancellationToken::new(), _gone: gone.clone().drop_guard(), gone }
    }
}

#[derive(Default)]
pub(super) struct Session {
    pub subscriptions: BTreeMap<String, Subscription>,
    pub link: Option<Link>,
    pub queue: VecDeque<Delivery>,
    pub queued_bytes: usize,
    pub open: Vec<Open>,
    pub inbound: HashSet<u16>,
    pub expiry: Duration,
    pub gone_since: Option<Instant>,
    pub unsaved: bool,
}

impl Session {
    pub fn is_linked(&self, id: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.id == id)
    }

    /// What this session hears of a message: once, at the highest QoS of the subscriptions that match.
    pub fn delivery(&self, message: &Arc<Message>, own: bool) -> Option<Delivery> {
        let mut found: Option<Delivery> = None;
        for subscription in self.subscriptions.values() {
            if (own && subscription.no_local) || !topic::matches(&subscription.filter, &message.topic) {
                continue;
            }
            let qos = message.qos.min(subscription.qos);
            let delivery = found.get_or_insert_with(|| Delivery {
                message: message.clone(),
                qos,
                retain: false,
                ids: Vec::new(),
                again: false,
            });
            delivery.qos = delivery.qos.max(qos);
            delivery.retain |= subscription.retain_as_published && message.retain;
            delivery.ids.extend(subscription.id);
        }
        found
    }

    pub fn deliver(&mut self, delivery: Delivery, dropped: &Counter) {
        let delivery = match &self.link {
            // Behind what is queued it has to queue, or it would overtake.
            Some(link) if self.queue.is_empty() => match link.outlet.send(delivery) {
                Ok(()) => return,
                Err(delivery) => delivery,
            },
            _ => delivery,
        };
        if delivery.qos == 0 {
            // An absent client never hears QoS 0; only a present one that is too slow misses something.
            if self.link.is_some() {
                dropped.inc();
            }
            return;
        }
        self.enqueue(delivery, dropped);
    }

    fn enqueue(&mut self, delivery: Delivery, dropped: &Counter) {
        self.queued_bytes += delivery.message.size();
        self.queue.push_back(delivery);
        self.unsaved |= self.link.is_none();
        while self.queue.len() > MAX_QUEUED || self.queued_bytes > MAX_QUEUED_BYTES {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.queued_bytes -= oldest.message.size();
            dropped.inc();
        }
    }

    pub fn take_queued(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queued_bytes -= delivery.message.size();
        self.unsaved = true;
        Some(delivery)
    }

    /// The client is gone: what it had not acknowledged comes first when it returns.
    pub fn go(&mut self, left: Left, dropped: &Counter) {
        self.link = None;
        let later = std::mem::take(&mut self.queue);
        self.queued_bytes = 0;
        for delivery in left.unsent.into_iter().chain(later).filter(|delivery| delivery.qos > 0) {
            self.enqueue(delivery, dropped);
        }
        (self.open, self.inbound) = (left.open, left.inbound);
        self.gone_since = Some(Instant::now());
        self.unsaved = true;
    }

    pub fn is_over(&self) -> bool {
        self.gone_since.is_some_and(|since| since.elapsed() >= self.expiry)
    }
}
