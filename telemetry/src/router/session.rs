//! One client's session: its subscriptions, and what waits for it.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Message;
use crate::topic;

/// Messages and payload bytes that wait for one session.
const MAX_QUEUED: usize = 1000;
const MAX_QUEUED_BYTES: usize = 1 << 20;

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

/// A connection's end of its session.
pub struct Attached {
    /// Tells this connection from one that takes over.
    pub link_id: u64,
    /// What to send.
    pub receiver: mpsc::Receiver<Delivery>,
    /// Cancelled when another connection takes the session over.
    pub taken_over: CancellationToken,
    /// Whether the session existed.
    pub present: bool,
    /// QoS 2 packet ids received and not yet released.
    pub inbound: HashSet<u16>,
}

pub(super) struct Link {
    pub id: u64,
    pub sender: mpsc::Sender<Delivery>,
    pub taken_over: CancellationToken,
}

#[derive(Default)]
pub(super) struct Session {
    pub subscriptions: BTreeMap<String, Subscription>,
    pub link: Option<Link>,
    pub queue: VecDeque<Delivery>,
    pub queued_bytes: usize,
    pub expiry: Duration,
    pub gone_since: Option<Instant>,
    pub inbound: HashSet<u16>,
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
            Some(link) if self.queue.is_empty() => match link.sender.try_send(delivery) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(delivery) | mpsc::error::TrySendError::Closed(delivery)) => {
                    delivery
                }
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

    pub fn enqueue(&mut self, delivery: Delivery, dropped: &Counter) {
        self.queued_bytes += delivery.message.payload.len();
        self.queue.push_back(delivery);
        self.unsaved |= self.link.is_none();
        while self.queue.len() > MAX_QUEUED || self.queued_bytes > MAX_QUEUED_BYTES {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.queued_bytes -= oldest.message.payload.len();
            dropped.inc();
        }
    }

    pub fn take_queued(&mut self, most: usize) -> Vec<Delivery> {
        let most = most.min(self.queue.len());
        let taken: Vec<_> = self.queue.drain(..most).collect();
        self.queued_bytes -= taken.iter().map(|delivery| delivery.message.payload.len()).sum::<usize>();
        self.unsaved |= !taken.is_empty();
        taken
    }

    /// The client is gone: what it had not acknowledged comes first when it returns.
    pub fn go(&mut self, unacked: Vec<Delivery>, inbound: HashSet<u16>, dropped: &Counter) {
        let later = std::mem::take(&mut self.queue);
        self.queued_bytes = 0;
        if let Some(mut link) = self.link.take() {
            // The receiver is gone or about to go; what is still in the channel is in `unacked`.
            link.sender = mpsc::channel(1).0;
        }
        for delivery in unacked.into_iter().chain(later).filter(|delivery| delivery.qos > 0) {
            self.enqueue(delivery, dropped);
        }
        self.inbound = inbound;
        self.gone_since = Some(Instant::now());
        self.unsaved = true;
    }

    pub fn is_over(&self) -> bool {
        self.gone_since.is_some_and(|since| since.elapsed() >= self.expiry)
    }
}
