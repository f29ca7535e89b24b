//! PUBLISH packets from a client: what is let in, and what is said about it once it is stored.

use bytes::BytesMut;

use super::{Client, End, MAX_ALIASES, MAX_PENDING};
use crate::{
    mqtt::{
        check::Bad,
        packet::{self, Publish, Version},
        storing::{Pending, store},
    },
    reading::NewReading,
    router::Message,
    topic,
};

impl Client {
    pub(super) fn publish(&mut self, mut publish: Publish, output: &mut BytesMut) -> Result<(), End> {
        self.shared.metrics.published(publish.qos);
        self.resolve_alias(&mut publish)?;
        if publish.topic.is_empty() {
            return Err(Bad::Protocol("PUBLISH with neither a topic nor an alias").into());
        }
        if topic::check_name(&publish.topic).is_err() {
            return Err(End::Reason(0x90, "topic name not valid here"));
        }
        if !self.rights.may_publish(&publish.topic) {
            self.shared.metrics.refused("topic");
            return match (self.version, publish.qos) {
                // 3.1.1 has no way to refuse a PUBLISH but to close or to swallow it (section 3.3.5).
                (_, 0) => Ok(()),
                (Version::V4, qos) => {
                    packet::ack(output, if qos == 1 { 0x40 } else { 0x50 }, publish.id);
                    Ok(())
                }
                (Version::V5, qos) => {
                    let [high, low] = publish.id.to_be_bytes();
                    output.extend_from_slice(&[if qos == 1 { 0x40 } else { 0x50 }, 3, high, low, 0x87]);
                    Ok(())
                }
            };
        }
        if publish.qos == 2 && !self.is_new(&publish, output)? {
            return Ok(());
        }
        self.pending += 1;
        self.pending_bytes += publish.payload.len() + publish.topic.len();
        let router = &self.shared.ingest.router;
        let message = (publish.retain || router.has_listeners()).then(|| Message {
            qos: publish.qos,
            retain: publish.retain,
            properties: publish.properties,
            ..Message::plain(publish.topic.clone(), publish.payload.clone())
        });
        let reading = NewReading { topic: publish.topic, payload: publish.payload };
        self.batch.push((reading, Pending { qos: publish.qos, id: publish.id, message }));
        Ok(())
    }

    /// Whether a QoS 2 message has not come before. One that is stored is acknowledged again; one on its way to the disk
    /// will be, and not a moment earlier.
    fn is_new(&mut self, publish: &Publish, output: &mut BytesMut) -> Result<bool, End> {
        if self.arriving.contains(&publish.id) {
            return Ok(false);
        }
        if self.inbound.contains(&publish.id) {
            if publish.dup {
                packet::ack(output, 0x50, publish.id);
                return Ok(false);
            }
            // The client has done with this identifier, and its release was lost with an agent that crashed.
            self.inbound.remove(&publish.id);
        }
        if self.version == Version::V5 && self.inbound.len() + self.arriving.len() >= MAX_PENDING {
            return Err(End::Reason(0x93, "more QoS 2 messages than the receive maximum"));
        }
        self.arriving.insert(publish.id);
        Ok(true)
    }

    fn resolve_alias(&mut self, publish: &mut Publish) -> Result<(), End> {
        let Some(alias) = publish.properties.as_ref().and_then(|properties| properties.topic_alias) else {
            return Ok(());
        };
        if alias == 0 || alias > MAX_ALIASES {
            return Err(End::Reason(0x94, "topic alias out of range"));
        }
        if publish.topic.is_empty() {
            let known = self.aliases.get(&alias).ok_or(End::Reason(0x82, "topic alias not known"))?;
            publish.topic.clone_from(known);
        } else {
            self.aliases.insert(alias, publish.topic.clone());
        }
        Ok(())
    }

    pub(super) fn store_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.storing.push_back(Box::pin(store(self.shared.clone(), batch)));
    }

    /// A batch is on disk: acknowledge it, and let local subscribers hear it.
    pub(super) fn stored(&mut self, done: Vec<Pending>, output: &mut BytesMut) {
        self.pending -= done.len();
        if self.pending == 0 {
            self.pending_bytes = 0;
        }
        for pending in done {
            match pending.qos {
                0 => {}
                1 => packet::ack(output, 0x40, pending.id),
                _ => {
                    self.arriving.remove(&pending.id);
                    self.inbound.insert(pending.id);
                    packet::ack(output, 0x50, pending.id);
                }
            }
            if let Some(message) = pending.message {
                self.shared.ingest.router.publish_from(&message, Some(&self.name));
            }
        }
    }
}
