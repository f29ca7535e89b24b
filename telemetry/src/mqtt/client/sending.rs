//! Messages to a client: subscriptions, and in which order what waits for it is sent.
//!
//! First what an earlier connection left open, then retained messages of new subscriptions, then the channel, then what
//! the session queued because the channel was full.

use bytes::BytesMut;

use super::{Client, MAX_OUTPUT};
use crate::{
    mqtt::packet::{self, Granted},
    router::{Delivery, Retained, SessionError, Subscription},
    topic,
};

/// Retained messages that a new subscription is still to be sent: those on topics behind `after`.
pub(super) struct Kept {
    pub subscription: Subscription,
    after: Option<String>,
}

impl Client {
    /// Sends what waits, as far as the window and the output have room; `false` where the output was full.
    pub(super) fn fill(&mut self, output: &mut BytesMut) -> bool {
        while self.window.has_room() {
            if output.len() >= MAX_OUTPUT {
                return false;
            }
            if let Some((id, delivery)) = self.window.send_again() {
                match delivery {
                    Some(delivery) => self.write_publish(&delivery, id, output),
                    None => packet::ack(output, 0x62, id),
                }
                continue;
            }
            let delivery = self.next_kept();
            let next = || self.shared.ingest.router.next(&self.name, self.link_id, &mut self.inbox);
            let delivery = delivery.or_else(next);
            let Some(delivery) = delivery else { return true };
            self.send(delivery, output);
        }
        true
    }

    fn next_kept(&mut self) -> Option<Delivery> {
        while let Some(kept) = self.kept.front_mut() {
            if let Some(delivery) = self.shared.ingest.router.retained(&kept.subscription, kept.after.as_deref()) {
                kept.after = Some(delivery.message.topic.clone());
                return Some(delivery);
            }
            self.kept.pop_front();
        }
        None
    }

    pub(super) fn send(&mut self, delivery: Delivery, output: &mut BytesMut) {
        if delivery.message.expires_in() == Some(0) {
            return;
        }
        let id = if delivery.qos == 0 { 0 } else { self.window.send(&delivery) };
        self.write_publish(&delivery, id, output);
    }

    fn write_publish(&mut self, delivery: &Delivery, id: u16, output: &mut BytesMut) {
        if !packet::publish(output, self.version, delivery, id, self.max_packet) {
            // Larger than the client takes: it is as if it had been delivered (section 3.1.2.11.4).
            self.window.done(id);
        }
    }

    pub(super) async fn subscribe(&mut self, id: u16, filters: Vec<(Subscription, Retained)>, output: &mut BytesMut) {
        let mut granted = Vec::with_capacity(filters.len());
        for (subscription, handling) in filters {
            let qos = subscription.qos;
            granted.push(if topic::check_filter(&subscription.filter).is_err() {
                Granted::Invalid
            } else if subscription.filter.starts_with("$share/") {
                Granted::SharedUnsupported
            } else if !self.rights.may_subscribe(&subscription.filter) {
                Granted::NotAuthorized
            } else {
                match self.shared.ingest.router.subscribe(&self.name, subscription.clone(), handling) {
                    Ok(wants_retained) => {
                        if wants_retained {
                            self.kept.retain(|kept| kept.subscription.filter != subscription.filter);
                            self.kept.push_back(Kept { subscription, after: None });
                        }
                        Granted::Qos(qos)
                    }
                    Err(SessionError::Quota) => Granted::Quota,
                }
            });
        }
        self.save().await;
        packet::suback(output, self.version, id, &granted);
    }
}
