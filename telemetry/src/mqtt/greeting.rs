//! CONNECT and CONNACK: what a client says of itself, and whether it is let in, in both versions of the protocol.

use std::sync::Arc;

use bytes::BytesMut;
use rumqttc::{mqttbytes::v4, v5::mqttbytes::v5};

use super::{check::Bad, packet::Version};
use crate::router::{Message, Properties};

/// A CONNECT.
#[derive(Debug, Clone)]
pub struct Connect {
    pub version: Version,
    pub client: String,
    pub clean: bool,
    pub keep_alive: u16,
    /// Seconds; only MQTT 5 says it.
    pub session_expiry: Option<u32>,
    pub receive_max: u16,
    pub max_packet: Option<u32>,
    pub will: Option<(Message, u32)>,
    pub login: Option<(String, String)>,
}

/// A CONNECT that cannot be accepted, and what to answer if that can be told.
#[derive(Debug)]
pub struct Unfit {
    pub bad: Bad,
    pub answer: Option<(Version, Refusal)>,
}

impl Unfit {
    /// For the packet at the beginning of `bytes`, whole or not.
    pub fn new(bad: Bad, bytes: &[u8]) -> Self {
        let refusal = match bad {
            Bad::Malformed(_) => Refusal::Malformed,
            Bad::Protocol(_) => Refusal::Protocol,
            Bad::TooLarge => Refusal::TooLarge,
        };
        Self { bad, answer: version(bytes).map(|version| (version, refusal)) }
    }
}

/// The version that a CONNECT asks for, if it is one of ours.
fn version(bytes: &[u8]) -> Option<Version> {
    let length = bytes.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0)? + 1;
    match bytes.get(1 + length..)? {
        [0, 4, b'M', b'Q', b'T', b'T', level, ..] if bytes[0] >> 4 == 1 => match level {
            4 => Some(Version::V4),
            5 => Some(Version::V5),
            _ => None,
        },
        _ => None,
    }
}

/// Reads a CONNECT.
pub fn connect(mut frame: BytesMut) -> Result<Connect, Unfit> {
    if frame.first().is_none_or(|byte| byte >> 4 != 1) {
        return Err(Unfit { bad: Bad::Protocol("the first packet is not CONNECT"), answer: None });
    }
    let Some(version) = version(&frame) else {
        let bad = Bad::Protocol("the protocol version is neither 3.1.1 nor 5");
        return Err(Unfit { bad, answer: Some((Version::V4, Refusal::Version)) });
    };
    let answer = |refusal| Some((version, refusal));
    let result = match version {
        Version::V4 => connect_v4(&mut frame).map_err(|bad| (bad, Refusal::Malformed)),
        Version::V5 => connect_v5(&mut frame),
    };
    result.map_err(|(bad, refusal)| Unfit { bad, answer: answer(refusal) })
}

fn connect_v4(frame: &mut BytesMut) -> Result<Connect, Bad> {
    let Ok(v4::Packet::Connect(it)) = v4::Packet::read(frame, usize::MAX) else {
        return Err(Bad::Malformed("CONNECT"));
    };
    let will = it.last_will.map(|will| {
        let message = Message { qos: will.qos as u8, retain: will.retain, ..Message::plain(will.topic, will.message) };
        (message, 0)
    });
    Ok(Connect {
        version: Version::V4,
        client: it.client_id,
        clean: it.clean_session,
        keep_alive: it.keep_alive,
        session_expiry: None,
        receive_max: u16::MAX,
        max_packet: None,
        will,
        login: it.login.map(|login| (login.username, login.password)),
    })
}

fn connect_v5(frame: &mut BytesMut) -> Result<Connect, (Bad, Refusal)> {
    let Ok(v5::Packet::Connect(it, will, login)) = v5::Packet::read(frame, None) else {
        return Err((Bad::Malformed("CONNECT"), Refusal::Malformed));
    };
    let properties = it.properties;
    let receive_max = properties.as_ref().and_then(|it| it.receive_maximum);
    let max_packet = properties.as_ref().and_then(|it| it.max_packet_size);
    if receive_max == Some(0) || max_packet == Some(0) {
        return Err((Bad::Protocol("receive maximum or maximum packet size is 0"), Refusal::Protocol));
    }
    if properties.as_ref().is_some_and(|it| it.authentication_method.is_some()) {
        return Err((Bad::Protocol("enhanced authentication is not offered"), Refusal::AuthenticationMethod));
    }
    let will = match will {
        Some(will) => Some(will_v5(will).map_err(|bad| (bad, Refusal::Malformed))?),
        None => None,
    };
    Ok(Connect {
        version: Version::V5,
        client: it.client_id,
        clean: it.clean_start,
        keep_alive: it.keep_alive,
        session_expiry: properties.and_then(|it| it.session_expiry_interval),
        receive_max: receive_max.unwrap_or(u16::MAX),
        max_packet,
        will,
        login: login.map(|login| (login.username, login.password)),
    })
}

fn will_v5(will: v5::LastWill) -> Result<(Message, u32), Bad> {
    let topic = String::from_utf8(will.topic.to_vec()).map_err(|_| Bad::Malformed("the will's topic is not UTF-8"))?;
    let delay = will.properties.as_ref().and_then(|it| it.delay_interval).unwrap_or(0);
    let properties = will.properties.map(|it| {
        Arc::new(Properties {
            payload_format_indicator: it.payload_format_indicator,
            message_expiry_interval: it.message_expiry_interval,
            content_type: it.content_type,
            response_topic: it.response_topic,
            correlation_data: it.correlation_data,
            user_properties: it.user_properties,
            ..Properties::default()
        })
    });
    let message =
        Message { qos: will.qos as u8, retain: will.retain, properties, ..Message::plain(topic, will.message) };
    Ok((message, delay))
}

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Version,
    Malformed,
    Protocol,
    TooLarge,
    AuthenticationMethod,
    ClientId,
    BadLogin,
    NotAuthorized,
    Busy,
    Quota,
    Topic,
}

/// Writes a refusing CONNACK; 3.1.1 has none for a packet that is wrong in itself.
pub fn refuse(out: &mut BytesMut, version: Version, refusal: Refusal) {
    let (old, new) = match refusal {
        Refusal::Version => (Some(1), 0x84),
        Refusal::Malformed => (None, 0x81),
        Refusal::Protocol => (None, 0x82),
        Refusal::TooLarge => (None, 0x95),
        Refusal::AuthenticationMethod => (None, 0x8c),
        Refusal::ClientId => (Some(2), 0x85),
        Refusal::Busy => (Some(3), 0x89),
        Refusal::Quota => (Some(3), 0x97),
        Refusal::BadLogin => (Some(4), 0x86),
        Refusal::NotAuthorized => (Some(5), 0x87),
        Refusal::Topic => (Some(5), 0x90),
    };
    match (version, old) {
        (Version::V5, _) => out.extend_from_slice(&[0x20, 3, 0, new, 0]),
        (Version::V4, Some(old)) => out.extend_from_slice(&[0x20, 2, 0, old]),
        (Version::V4, None) => {}
    }
}

/// What a CONNACK tells an MQTT 5 client.
pub struct Welcome {
    pub present: bool,
    pub assigned: Option<String>,
    pub session_expiry: Option<u32>,
    pub receive_max: u16,
    pub max_packet: u32,
    pub alias_max: u16,
}

/// Writes an accepting CONNACK.
pub fn accept(out: &mut BytesMut, version: Version, welcome: Welcome) {
    if version == Version::V4 {
        out.extend_from_slice(&[0x20, 2, u8::from(welcome.present), 0]);
        return;
    }
    let properties = v5::ConnAckProperties {
        session_expiry_interval: welcome.session_expiry,
        receive_max: Some(welcome.receive_max),
        max_qos: None,
        retain_available: None,
        max_packet_size: Some(welcome.max_packet),
        assigned_client_identifier: welcome.assigned,
        topic_alias_max: Some(welcome.alias_max),
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: Some(0),
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    };
    let code = v5::ConnectReturnCode::Success;
    let result = v5::ConnAck { session_present: welcome.present, code, properties: Some(properties) }.write(out);
    debug_assert!(result.is_ok(), "our own CONNACK can be written");
}
