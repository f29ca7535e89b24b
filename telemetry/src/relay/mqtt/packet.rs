//! The few packets of MQTT 3.1.1 that a publishing client needs, straight into and out of buffers. Pure.
//!
//! Always true: no more of a packet than [`MAX_PACKET`] is ever held. A larger message from the core is passed over as it
//! comes in and reported, so that it can be acknowledged: left alone, the broker would send it again on every connection.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Largest packet taken from the broker: what the listener takes from local clients, too.
pub(super) const MAX_PACKET: usize = 256 << 10;

/// PUBREL has a reserved bit set, the other acknowledgements have not.
pub(super) const PUBACK: u8 = 0x40;
pub(super) const PUBREC: u8 = 0x50;
pub(super) const PUBREL: u8 = 0x62;
pub(super) const PUBCOMP: u8 = 0x70;
pub(super) const PINGREQ: [u8; 2] = [0xc0, 0];
pub(super) const DISCONNECT: [u8; 2] = [0xe0, 0];

/// A message from the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub topic: String,
    pub qos: u8,
    pub retain: bool,
    /// 0 at QoS 0.
    pub id: u16,
    /// `None` where it was too large to be taken.
    pub payload: Option<Bytes>,
    /// Of the packet.
    pub size: usize,
}

/// What a broker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    ConnAck(u8),
    Publish(Publish),
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    /// The code for each filter.
    SubAck(Vec<u8>),
    PingResp,
}

/// Bytes that no broker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not speak MQTT 3.1.1 ({0})")]
pub(super) struct Malformed(&'static str);

/// Takes packets off a buffer.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Bytes of a packet too large, still to come and to be passed over.
    skip: usize,
}

impl Decoder {
    /// The next packet; `None` until more has come.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
        let skipped = self.skip.min(input.len());
        input.advance(skipped);
        self.skip -= skipped;
        let Some((header, len)) = fixed_header(input)? else { return Ok(None) };
        let (first, size) = (input[0], header + len);
        check_header(first, len)?;
        if size > MAX_PACKET {
            return self.too_large(first, header, size, input);
        }
        if input.len() < size {
            return Ok(None);
        }
        let mut body = input.split_to(size).freeze();
        body.advance(header);
        decode(first, body, size).map(Some)
    }

    /// The beginning of a message that is not taken; the rest is passed over.
    fn too_large(
        &mut self,
        first: u8,
        header: usize,
        size: usize,
        input: &mut BytesMut,
    ) -> Result<Option<Packet>, Malformed> {
        if first >> 4 != 3 {
            return Err(Malformed("a huge packet that is no PUBLISH"));
        }
        let Some(topic) = input.get(header..header + 2) else { return Ok(None) };
        let head = header + 2 + usize::from(u16::from_be_bytes([topic[0], topic[1]])) + 2;
        if input.len() < head {
            return Ok(None);
        }
        let mut begin = input.split_to(head).freeze();
        begin.advance(header);
        self.skip = size - head;
        Ok(Some(Packet::Publish(Publish { payload: None, ..publish(first, begin, size)? })))
    }
}

/// Length of the fixed header and the remaining length; `None` until it is complete.
fn fixed_header(input: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut len = 0;
    for (n, byte) in input.iter().skip(1).take(4).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(Some((n + 2, len)));
        }
    }
    if input.len() >= 5 { Err(Malformed("a length of more than four bytes")) } else { Ok(None) }
}

/// What can be told from the header is told at once: a server of another kind sends no more, and would be waited for.
fn check_header(first: u8, len: usize) -> Result<(), Malformed> {
    match first {
        0x20 | PUBACK | PUBREC | PUBREL | PUBCOMP if len == 2 => Ok(()),
        0x30..=0x3f => Ok(()),
        0x90 if (3..=MAX_PACKET).contains(&len) => Ok(()),
        0xd0 if len == 0 => Ok(()),
        _ => Err(Malformed("a packet that brokers do not send")),
    }
}

fn decode(first: u8, body: Bytes, size: usize) -> Result<Packet, Malformed> {
    let id = || match body[..] {
        [high, low] if (high, low) != (0, 0) => Ok(u16::from_be_bytes([high, low])),
        _ => Err(Malformed("an acknowledgement without an identifier")),
    };
    match first {
        0x20 if body.len() == 2 => Ok(Packet::ConnAck(body[1])),
        0x30..=0x3f => publish(first, body, size).map(Packet::Publish),
        PUBACK => id().map(Packet::PubAck),
        PUBREC => id().map(Packet::PubRec),
        PUBREL => id().map(Packet::PubRel),
        PUBCOMP => id().map(Packet::PubComp),
        0x90 if body.len() > 2 => Ok(Packet::SubAck(body[2..].to_vec())),
        0xd0 if body.is_empty() => Ok(Packet::PingResp),
        _ => Err(Malformed("a packet that brokers do not send")),
    }
}

fn publish(first: u8, mut body: Bytes, size: usize) -> Result<Publish, Malformed> {
    const CUT: Malformed = Malformed("a PUBLISH that is cut off");
    let qos = first >> 1 & 3;
    let len = usize::from(body.try_get_u16().map_err(|_| CUT)?);
    if body.len() < len {
        return Err(CUT);
    }
    let topic = String::from_utf8(body.split_to(len).to_vec()).map_err(|_| Malformed("a topic that is not UTF-8"))?;
    let id = if qos == 0 { 0 } else { body.try_get_u16().map_err(|_| CUT)? };
    if qos == 3 || (qos > 0 && id == 0) || crate::topic::check_name(&topic).is_err() {
        return Err(Malformed("a PUBLISH with a wrong QoS, identifier or topic"));
    }
    Ok(Publish { topic, qos, retain: first & 1 == 1, id, payload: Some(body), size })
}

/// CONNECT with a clean session: what is not acknowledged comes from the outbox, not from the broker's memory.
pub(super) fn connect(out: &mut BytesMut, client: &str, login: Option<(&str, Option<&str>)>, keep_alive_s: u16) {
    let mut flags = 0x02;
    let mut strings = vec![client];
    if let Some((user, password)) = login {
        flags |= if password.is_some() { 0xc0 } else { 0x80 };
        strings.push(user);
        strings.extend(password);
    }
    header(out, 0x10, 10 + strings.iter().map(|text| 2 + text.len()).sum::<usize>());
    out.put_slice(b"\0\x04MQTT\x04");
    out.put_u8(flags);
    out.put_u16(keep_alive_s);
    for text in strings {
        string(out, &[text]);
    }
}

/// PUBLISH, not retained; the topic in the pieces it is made of. The identifier is left out at QoS 0.
pub(super) fn publish_to(out: &mut BytesMut, qos: u8, id: u16, topic: &[&str], payload: &[u8]) {
    let topic_len: usize = topic.iter().map(|piece| piece.len()).sum();
    header(out, 0x30 | qos << 1, 2 + topic_len + if qos > 0 { 2 } else { 0 } + payload.len());
    string(out, topic);
    if qos > 0 {
        out.put_u16(id);
    }
    out.put_slice(payload);
}

/// SUBSCRIBE to all of them at QoS 1.
pub(super) fn subscribe(out: &mut BytesMut, id: u16, filters: &[String]) {
    header(out, 0x82, 2 + filters.iter().map(|filter| 3 + filter.len()).sum::<usize>());
    out.put_u16(id);
    for filter in filters {
        string(out, &[filter]);
        out.put_u8(1);
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(super) fn acknowledge(out: &mut BytesMut, first: u8, id: u16) {
    out.put_slice(&[first, 2]);
    out.put_u16(id);
}

fn header(out: &mut BytesMut, first: u8, mut len: usize) {
    out.reserve(5 + len);
    out.put_u8(first);
    loop {
        let byte = u8::try_from(len & 0x7f).unwrap_or(0); // Seven bits always fit.
        len >>= 7;
        out.put_u8(if len > 0 { byte | 0x80 } else { byte });
        if len == 0 {
            break;
        }
    }
}

/// Topics are checked to be short where they come in; a user name or password of more than 64 KiB is refused by `check`.
fn string(out: &mut BytesMut, pieces: &[&str]) {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    out.put_u16(u16::try_from(len).unwrap_or(u16::MAX));
    for piece in pieces {
        out.put_slice(piece.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8], piece: usize) -> Result<Vec<Packet>, Malformed> {
        let (mut decoder, mut input, mut packets) = (Decoder::default(), BytesMut::new(), Vec::new());
        for bytes in bytes.chunks(piece.max(1)) {
            input.extend_from_slice(bytes);
            while let Some(packet) = decoder.next(&mut input)? {
                packets.push(packet);
            }
        }
        Ok(packets)
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, piece in 1usize..20) {
            let _ = all(&bytes, piece);
        }

        #[test]
        fn a_message_reads_back_however_it_is_cut(payload: Vec<u8>, qos in 0u8..3, piece in 1usize..300) {
            let mut out = BytesMut::new();
            publish_to(&mut out, qos, 7, &["core", "/", "lab/t"], &payload);
            let size = out.len();
            out.extend_from_slice(&[PUBACK, 2, 0, 9, 0xd0, 0]);
            let id = if qos == 0 { 0 } else { 7 };
            let payload = Some(Bytes::from(payload));
            let message = Publish { topic: "core/lab/t".into(), qos, retain: false, id, payload, size };
            let want = vec![Packet::Publish(message), Packet::PubAck(9), Packet::PingResp];
            prop_assert_eq!(all(&out, piece), Ok(want));
        }
    }

    #[test]
    fn a_huge_message_is_passed_over_and_what_follows_is_read() {
        let mut out = BytesMut::new();
        publish_to(&mut out, 1, 7, &["cmd/firmware"], &vec![1; 5 << 20]);
        out.extend_from_slice(&[0xd0, 0]);
        let packets = all(&out, 10_000).unwrap();
        let [Packet::Publish(message), Packet::PingResp] = &packets[..] else { panic!("{} packets", packets.len()) };
        assert_eq!((message.id, &message.payload, message.size), (7, &None, out.len() - 2));
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in
            [&b"HTTP/1.1 400 Bad Request\r\n"[..], &[0x40, 2, 0, 0], &[0x20, 0xff, 0xff, 0xff, 0xff, 0x7f], &[0x20, 3]]
        {
            assert!(all(bytes, 100).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn connect_as_the_specification_has_it() {
        let mut out = BytesMut::new();
        connect(&mut out, "b", Some(("u", Some("p"))), 60);
        assert_eq!(&out[..], b"\x10\x13\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01b\x00\x01u\x00\x01p");
    }
}
