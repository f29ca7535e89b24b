#![no_main]
//! What a client of the MQTT listener sends. The first byte says whether it begins with CONNECT (0, 1) or after one in
//! 3.1.1 (2) or 5 (3), and into how small pieces the network cuts the rest.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use telemetry::{
    mqtt::fuzzing::{self as packet, Connect, Granted, Incoming, Publish, Version},
    router::{Delivery, Message},
};

const MAX_PACKET: usize = 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, stream)) = data.split_first() else { return };
    let version = [None, None, Some(Version::V4), Some(Version::V5)][usize::from(mode & 3)];
    let at_once = talk(version, stream, stream.len().max(1));
    let in_pieces = talk(version, stream, usize::from(mode >> 2) + 1);
    assert_eq!(at_once, in_pieces, "how the network cuts a stream changes what it says");
});

/// Reads as a connection does; what it understood.
fn talk(mut version: Option<Version>, stream: &[u8], piece: usize) -> Vec<String> {
    let mut input = BytesMut::new();
    let mut heard = Vec::new();
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        loop {
            let before = input.len();
            let frame = match packet::take_frame(&mut input, MAX_PACKET, version == Some(Version::V5)) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    assert_eq!(input.len(), before, "nothing is taken before the packet is whole");
                    assert!(before <= MAX_PACKET, "{before} bytes wait");
                    break;
                }
                Err(bad) => {
                    heard.push(bad.to_string());
                    return heard;
                }
            };
            assert!(frame.len() <= MAX_PACKET && frame.len() + input.len() == before);
            match hear(&mut version, frame) {
                Ok(words) => heard.push(words),
                Err(words) => {
                    heard.push(words);
                    return heard;
                }
            }
        }
    }
    heard
}

fn hear(version: &mut Option<Version>, frame: BytesMut) -> Result<String, String> {
    let len = frame.len();
    let Some(known) = *version else {
        return match packet::connect(frame) {
            Ok(connect) => {
                check_connect(&connect);
                *version = Some(connect.version);
                Ok(format!("{:?} {:?} {:?}", connect.version, connect.client, connect.login))
            }
            Err(unfit) => {
                let mut out = BytesMut::new();
                if let Some((version, refusal)) = unfit.answer {
                    packet::refuse(&mut out, version, refusal);
                }
                Err(unfit.bad.to_string())
            }
        };
    };
    let incoming = packet::incoming(frame, known).map_err(|bad| bad.to_string())?;
    let words = format!("{incoming:?}");
    answer(incoming, known, len);
    Ok(words)
}

fn check_connect(connect: &Connect) {
    assert!(!connect.client.contains('\0'));
    assert!(connect.receive_max > 0 && connect.max_packet != Some(0));
    if let Some((will, _)) = &connect.will {
        assert!(will.qos <= 2 && will.payload.len() <= MAX_PACKET);
    }
}

fn answer(incoming: Incoming, version: Version, len: usize) {
    let mut out = BytesMut::new();
    match incoming {
        Incoming::Publish(publish) => echo(publish, version, len),
        Incoming::Subscribe(id, filters) => {
            assert!(id > 0 && !filters.is_empty());
            assert!(filters.iter().all(|(it, _)| it.qos <= 2 && it.id != Some(0) && !it.filter.contains('\0')));
            let granted: Vec<_> = filters.iter().map(|(it, _)| Granted::Qos(it.qos)).collect();
            packet::suback(&mut out, version, id, &granted);
            assert!(out.len() >= 4 + granted.len());
        }
        Incoming::Unsubscribe(id, filters) => {
            assert!(id > 0 && !filters.is_empty());
            packet::unsuback(&mut out, version, id, &vec![true; filters.len()]);
            assert!(out.len() >= 4);
        }
        Incoming::Done(id) | Incoming::Received(id, _) | Incoming::Release(id) | Incoming::Complete(id) => {
            assert!(id > 0);
        }
        Incoming::Ping | Incoming::Disconnect { .. } => {}
    }
}

/// A PUBLISH as a subscriber would get it says the same.
fn echo(publish: Publish, version: Version, len: usize) {
    assert!(publish.qos <= 2 && (publish.qos == 0 || publish.id > 0));
    assert!(!publish.topic.contains(['+', '#', '\0']) && publish.topic.len() + publish.payload.len() < len);
    let (topic, payload) = (publish.topic.clone(), publish.payload.clone());
    let message = Message {
        qos: publish.qos,
        retain: publish.retain,
        properties: publish.properties.clone(),
        // A message of the future does not expire while this runs.
        since: Instant::now() + Duration::from_secs(60),
        ..Message::plain(topic, payload)
    };
    let delivery = Delivery {
        message: Arc::new(message),
        qos: publish.qos,
        retain: publish.retain,
        ids: Vec::new(),
        again: false,
    };
    let write = |max| {
        let mut out = BytesMut::new();
        packet::publish(&mut out, version, &delivery, publish.id, max).then_some(out)
    };
    let mut out = write(None).expect("what was read can be written");
    if version == Version::V5 {
        let size = u32::try_from(out.len()).expect("small");
        assert_eq!((write(Some(size)).as_ref(), write(Some(size - 1))), (Some(&out), None), "its size is known");
    }
    let frame = packet::take_frame(&mut out, usize::MAX, version == Version::V5).expect("valid").expect("whole");
    let Ok(Incoming::Publish(again)) = packet::incoming(frame, version) else { panic!("not a PUBLISH any more") };
    assert_eq!((&again.topic, &again.payload), (&publish.topic, &publish.payload));
    assert_eq!((again.qos, again.retain, again.id), (publish.qos, publish.retain, publish.id));
    let mut properties = publish.properties.as_deref().cloned().unwrap_or_default();
    properties.topic_alias = None; // A matter between the sender and us.
    assert_eq!(again.properties.as_deref().cloned().unwrap_or_default(), properties);
}
