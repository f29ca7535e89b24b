//! Both versions of the protocol behind one set of words, on `rumqttc`'s codecs.
//!
//! Elsewhere: CONNECT and its answer (`greeting`).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rumqttc::{mqttbytes::v4, v5::mqttbytes as m5, v5::mqttbytes::v5};

use super::check::{self, Bad};
use crate::router::{Delivery, Properties, Retained, Subscription};

/// Which version a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1.
    V4,
    /// 5.
    V5,
}

/// A PUBLISH from a client.
#[derive(Debug, Clone)]
pub struct Publish {
    pub topic: String,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
    /// Sent before, says the client.
    pub dup: bool,
    pub id: u16,
    pub properties: Option<Arc<Properties>>,
}

/// What a client says after CONNECT.
#[derive(Debug)]
pub enum Incoming {
    Publish(Publish),
    /// QoS 1 is done, or (`false`) QoS 2 was refused.
    Done(u16),
    Received(u16, bool),
    Release(u16),
    Complete(u16),
    Subscribe(u16, Vec<(Subscription, Retained)>),
    Unsubscribe(u16, Vec<String>),
    Ping,
    Disconnect {
        with_will: bool,
        session_expiry: Option<u32>,
    },
}

/// How an answer to a filter sounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    Qos(u8),
    Invalid,
    NotAuthorized,
    Quota,
    SharedUnsupported,
}

/// Takes the next whole packet off `buffer`, checked and raw.
pub fn take_frame(buffer: &mut BytesMut, max: usize, v5: bool) -> Result<Option<BytesMut>, Bad> {
    let Some(frame) = check::frame(buffer, max)? else { return Ok(None) };
    check::packet(&buffer[..frame.len], frame.header, v5)?;
    Ok(Some(buffer.split_to(frame.len)))
}

/// Reads a packet after CONNECT.
pub fn incoming(frame: BytesMut, version: Version) -> Result<Incoming, Bad> {
    if frame[0] >> 4 == 1 {
        return Err(Bad::Protocol("a second CONNECT"));
    }
    match version {
        Version::V4 => incoming_v4(frame),
        Version::V5 => incoming_v5(frame),
    }
}

fn incoming_v4(mut frame: BytesMut) -> Result<Incoming, Bad> {
    use v4::Packet as P;
    let packet = P::read(&mut frame, usize::MAX).map_err(|_| Bad::Malformed("the packet does not parse"))?;
    Ok(match packet {
        P::Publish(it) => Incoming::Publish(Publish {
            topic: it.topic,
            payload: it.payload,
            qos: it.qos as u8,
            retain: it.retain,
            dup: it.dup,
            id: it.pkid,
            properties: None,
        }),
        P::PubAck(it) => Incoming::Done(it.pkid),
        P::PubRec(it) => Incoming::Received(it.pkid, true),
        P::PubRel(it) => Incoming::Release(it.pkid),
        P::PubComp(it) => Incoming::Complete(it.pkid),
        P::Subscribe(it) => {
            let filters = it.filters.into_iter().map(|filter| {
                let (filter, qos) = (filter.path, filter.qos as u8);
                let subscription = Subscription { filter, qos, no_local: false, retain_as_published: false, id: None };
                (subscription, Retained::Always)
            });
            Incoming::Subscribe(it.pkid, filters.collect())
        }
        P::Unsubscribe(it) => Incoming::Unsubscribe(it.pkid, it.topics),
        P::PingReq => Incoming::Ping,
        P::Disconnect => Incoming::Disconnect { with_will: false, session_expiry: None },
        _ => return Err(Bad::Protocol("a packet that clients do not send")),
    })
}

fn incoming_v5(mut frame: BytesMut) -> Result<Incoming, Bad> {
    use v5::Packet as P;
    // The codec wants a reason code and properties where the specification lets them be left out (section 3.14.2.1).
    match frame[..] {
        [0xe0, 0] => return Ok(Incoming::Disconnect { with_will: false, session_expiry: None }),
        [0xe0, 1, reason] => return Ok(Incoming::Disconnect { with_will: reason != 0, session_expiry: None }),
        _ => {}
    }
    let packet = P::read(&mut frame, None).map_err(|_| Bad::Malformed("the packet does not parse"))?;
    Ok(match packet {
        P::Publish(it) => Incoming::Publish(publish_v5(it)?),
        P::PubAck(it) => Incoming::Done(it.pkid),
        P::PubRec(it) => Incoming::Received(
            it.pkid,
            matches!(it.reason, v5::PubRecReason::Success | v5::PubRecReason::NoMatchingSubscribers),
        ),
        P::PubRel(it) => Incoming::Release(it.pkid),
        P::PubComp(it) => Incoming::Complete(it.pkid),
        P::Subscribe(it) => {
            let id = it.properties.and_then(|properties| properties.id);
            if id == Some(0) {
                return Err(Bad::Protocol("subscription identifier 0"));
            }
            Incoming::Subscribe(it.pkid, it.filters.into_iter().map(|filter| subscription_v5(filter, id)).collect())
        }
        P::Unsubscribe(it) => Incoming::Unsubscribe(it.pkid, it.filters),
        P::PingReq(_) => Incoming::Ping,
        P::Disconnect(it) => Incoming::Disconnect {
            // Any other reason leaves the will in force (section 3.1.2.5).
            with_will: it.reason_code != v5::DisconnectReasonCode::NormalDisconnection,
            session_expiry: it.properties.and_then(|properties| properties.session_expiry_interval),
        },
        _ => return Err(Bad::Protocol("a packet that clients do not send")),
    })
}

fn publish_v5(it: v5::Publish) -> Result<Publish, Bad> {
    let topic = String::from_utf8(it.topic.to_vec()).map_err(|_| Bad::Malformed("the topic is not UTF-8"))?;
    if it.properties.as_ref().is_some_and(|properties| !properties.subscription_identifiers.is_empty()) {
        return Err(Bad::Protocol("a client's PUBLISH with a subscription identifier"));
    }
    let (qos, retain, dup, id) = (it.qos as u8, it.retain, it.dup, it.pkid);
    Ok(Publish { topic, payload: it.payload, qos, retain, dup, id, properties: it.properties.map(Arc::new) })
}

fn subscription_v5(filter: v5::Filter, id: Option<usize>) -> (Subscription, Retained) {
    let retained = match filter.retain_forward_rule {
        v5::RetainForwardRule::OnEverySubscribe => Retained::Always,
        v5::RetainForwardRule::OnNewSubscribe => Retained::IfNew,
        v5::RetainForwardRule::Never => Retained::Never,
    };
    let (no_local, retain_as_published) = (filter.nolocal, filter.preserve_retain);
    (Subscription { filter: filter.path, qos: filter.qos as u8, no_local, retain_as_published, id }, retained)
}

fn qos4(qos: u8) -> rumqttc::mqttbytes::QoS {
    match qos {
        0 => rumqttc::mqttbytes::QoS::AtMostOnce,
        1 => rumqttc::mqttbytes::QoS::AtLeastOnce,
        _ => rumqttc::mqttbytes::QoS::ExactlyOnce,
    }
}

fn qos5(qos: u8) -> m5::QoS {
    match qos {
        0 => m5::QoS::AtMostOnce,
        1 => m5::QoS::AtLeastOnce,
        _ => m5::QoS::ExactlyOnce,
    }
}

/// Writes PUBACK (0x40), PUBREC (0x50), PUBREL (0x62) or PUBCOMP (0x70) with success: the same four bytes in both versions.
pub fn ack(out: &mut BytesMut, first: u8, id: u16) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}

/// Writes PINGRESP.
pub fn pong(out: &mut BytesMut) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Writes a PUBLISH; `false` where it is larger than the client takes.
pub fn publish(out: &mut BytesMut, version: Version, delivery: &Delivery, id: u16, max: Option<u32>) -> bool {
    let message = &delivery.message;
    match version {
        Version::V4 => {
            let mut packet =
                v4::Publish::from_bytes(message.topic.clone(), qos4(delivery.qos), message.payload.clone());
            (packet.pkid, packet.dup, packet.retain) = (id, delivery.again && delivery.qos > 0, delivery.retain);
            packet.write(out).is_ok()
        }
        Version::V5 => {
            let mut properties = message.properties.as_deref().cloned().unwrap_or_default();
            properties.topic_alias = None;
            properties.message_expiry_interval = message.expires_in();
            properties.subscription_identifiers.clone_from(&delivery.ids);
            let packet = v5::Publish {
                dup: delivery.again && delivery.qos > 0,
                qos: qos5(delivery.qos),
                retain: delivery.retain,
                topic: Bytes::copy_from_slice(message.topic.as_bytes()),
                pkid: id,
                payload: message.payload.clone(),
                properties: Some(properties),
            };
            max.is_none_or(|max| packet.size() <= max as usize) && packet.write(out).is_ok()
        }
    }
}

/// Writes a SUBACK.
pub fn suback(out: &mut BytesMut, version: Version, id: u16, granted: &[Granted]) {
    let result = match version {
        Version::V4 => {
            let code = |granted: &Granted| match granted {
                Granted::Qos(qos) => v4::SubscribeReasonCode::Success(qos4(*qos)),
                _ => v4::SubscribeReasonCode::Failure,
            };
            v4::SubAck::new(id, granted.iter().map(code).collect()).write(out).map_err(drop)
        }
        Version::V5 => {
            let code = |granted: &Granted| match granted {
                Granted::Qos(qos) => v5::SubscribeReasonCode::Success(qos5(*qos)),
                Granted::Invalid => v5::SubscribeReasonCode::TopicFilterInvalid,
                Granted::NotAuthorized => v5::SubscribeReasonCode::NotAuthorized,
                Granted::Quota => v5::SubscribeReasonCode::QuotaExceeded,
                Granted::SharedUnsupported => v5::SubscribeReasonCode::SharedSubscriptionsNotSupported,
            };
            let return_codes = granted.iter().map(code).collect();
            v5::SubAck { pkid: id, return_codes, properties: None }.write(out).map_err(drop)
        }
    };
    debug_assert!(result.is_ok(), "an answer to a packet that was read can be written");
}

/// Writes an UNSUBACK; `found` says of each filter whether it was subscribed to.
pub fn unsuback(out: &mut BytesMut, version: Version, id: u16, found: &[bool]) {
    match version {
        Version::V4 => ack(out, 0xb0, id),
        Version::V5 => {
            let reason = |found: &bool| {
                if *found { v5::UnsubAckReason::Success } else { v5::UnsubAckReason::NoSubscriptionExisted }
            };
            let reasons = found.iter().map(reason).collect();
            let result = v5::UnsubAck { pkid: id, reasons, properties: None }.write(out);
            debug_assert!(result.is_ok(), "an answer to a packet that was read can be written");
        }
    }
}

/// Writes an MQTT 5 DISCONNECT with a reason; 3.1.1 has none from the server.
pub fn disconnect(out: &mut BytesMut, version: Version, reason: u8) {
    if version == Version::V5 {
        out.extend_from_slice(&[0xe0, 2, reason, 0]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::greeting;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_panic(kind in 0u8..=255, body in prop::collection::vec(any::<u8>(), 0..60), v5: bool) {
            let len = u8::try_from(body.len()).unwrap();
            let mut buffer = BytesMut::from(&[&[kind, len], &body[..]].concat()[..]);
            if let Ok(Some(frame)) = take_frame(&mut buffer, 1000, v5) {
                let _ = greeting::connect(frame.clone());
                let _ = incoming(frame, if v5 { Version::V5 } else { Version::V4 });
            }
        }

        #[test]
        fn damaged_connects_do_not_panic(at in 0usize..60, byte: u8, cut in 0usize..60) {
            let mut connect_packet = BytesMut::new();
            let login = v5::Login::new("user", "password");
            let will = v5::LastWill::new("t", "m", m5::QoS::AtLeastOnce, true, None);
            let packet = v5::Connect { keep_alive: 9, client_id: "c".into(), clean_start: true, properties: None };
            packet.write(&Some(will), &Some(login), &mut connect_packet).unwrap();
            let (at, cut) = (at % connect_packet.len(), cut % connect_packet.len());
            connect_packet[at] = byte;
            connect_packet.truncate(connect_packet.len() - cut / 8);
            if let Ok(Some(frame)) = take_frame(&mut connect_packet, 1000, true) {
                let _ = greeting::connect(frame);
            }
        }
    }
}
