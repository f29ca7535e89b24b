//! What the specification demands of a packet and the codecs do not look at.
//!
//! Pure, and the first thing that hostile bytes meet: it looks at one whole frame and says what is wrong with it.
//! Sections are those of MQTT 5; 3.1.1 has the same rules where a rule applies to it.

use super::property;

/// Why a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Against the form of packets (reason 0x81).
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// Against the order of packets, or a value that is not allowed (reason 0x82).
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Over the limit of this server (reason 0x95).
    #[error("the packet is larger than the limit")]
    TooLarge,
}

/// A whole frame at the beginning of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the fixed header.
    pub header: usize,
    /// Bytes of the frame, header included.
    pub len: usize,
}

/// The frame at the beginning of `bytes`; `None` while more bytes are needed.
pub fn frame(bytes: &[u8], max: usize) -> Result<Option<Frame>, Bad> {
    let mut remaining = 0usize;
    for (n, shift) in (1..=4).zip([0, 7, 14, 21]) {
        let Some(&byte) = bytes.get(n) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            if n > 1 && byte == 0 {
                return Err(Bad::Malformed("the remaining length is longer than it needs to be"));
            }
            let len = 1 + n + remaining;
            return match () {
                () if len > max => Err(Bad::TooLarge),
                () if bytes.len() < len => Ok(None),
                () => Ok(Some(Frame { header: 1 + n, len })),
            };
        }
    }
    Err(Bad::Malformed("the remaining length has more than four bytes"))
}

/// Checks one whole frame sent by a client.
pub fn packet(frame: &[u8], header: usize, v5: bool) -> Result<(), Bad> {
    let (kind, flags) = (frame[0] >> 4, frame[0] & 0x0f);
    let body = &frame[header..];
    match kind {
        3 => return publish(flags, body, v5),
        6 | 8 | 10 if flags != 2 => return Err(Bad::Malformed("reserved flags of the fixed header are not 0010")),
        1 | 4 | 5 | 7 | 12 | 14 | 15 if flags != 0 => {
            return Err(Bad::Malformed("reserved flags of the fixed header are not 0"));
        }
        0 => return Err(Bad::Malformed("packet type 0")),
        15 if !v5 => return Err(Bad::Malformed("packet type 15")),
        15 => return Err(Bad::Protocol("AUTH without an authentication method")),
        2 | 9 | 11 | 13 => return Err(Bad::Protocol("a packet that only servers send")),
        12 if !body.is_empty() => return Err(Bad::Malformed("PINGREQ has a payload")),
        _ => {}
    }
    match kind {
        1 => connect(body),
        4..=8 | 10 => {
            let id = body.first_chunk::<2>().ok_or(Bad::Malformed("no packet identifier"))?;
            if *id == [0, 0] {
                return Err(Bad::Protocol("packet identifier 0"));
            }
            match kind {
                8 => subscribe(&body[2..], v5),
                10 => unsubscribe(&body[2..], v5),
                _ if !v5 => Ok(()),
                _ => reason(&body[2..], property::ACK),
            }
        }
        14 if v5 => reason(body, property::DISCONNECT),
        14 if !body.is_empty() => Err(Bad::Malformed("DISCONNECT has a payload")),
        _ => Ok(()),
    }
}

/// A reason code and properties, either of which may be left out (sections 3.4.2.1, 3.14.2.1).
fn reason(body: &[u8], allowed: &[u8]) -> Result<(), Bad> {
    match body {
        [] | [_] => Ok(()),
        [_, properties @ ..] if property::check(properties, allowed)?.is_empty() => Ok(()),
        _ => Err(Bad::Malformed("the packet goes on behind its end")),
    }
}

fn publish(flags: u8, body: &[u8], v5: bool) -> Result<(), Bad> {
    let qos = flags >> 1 & 3;
    if qos == 3 {
        return Err(Bad::Malformed("QoS 3"));
    }
    if qos == 0 && flags & 8 != 0 {
        return Err(Bad::Malformed("DUP with QoS 0"));
    }
    let topic = string(body).ok_or(Bad::Malformed("PUBLISH without a topic"))?;
    if !utf8_ok(topic) {
        return Err(Bad::Malformed("the topic is not UTF-8 or has a NUL"));
    }
    if topic.contains(&b'+') || topic.contains(&b'#') {
        return Err(Bad::Malformed("the topic has a wildcard"));
    }
    let mut rest = &body[2 + topic.len()..];
    if qos > 0 {
        let (id, behind) = rest.split_first_chunk::<2>().ok_or(Bad::Malformed("no packet identifier"))?;
        if *id == [0, 0] {
            return Err(Bad::Protocol("packet identifier 0"));
        }
        rest = behind;
    }
    if v5 { property::check(rest, property::PUBLISH).map(drop) } else { Ok(()) }
}

/// Section 3.1.2: protocol name, level, flags.
fn connect(body: &[u8]) -> Result<(), Bad> {
    let name = string(body).ok_or(Bad::Malformed("CONNECT without a protocol name"))?;
    let rest = &body[2 + name.len()..];
    let [level, flags, _, _, payload @ ..] = rest else { return Err(Bad::Malformed("CONNECT is cut off")) };
    if name != b"MQTT" {
        return Ok(()); // The codec refuses it with the right code.
    }
    if flags & 1 != 0 {
        return Err(Bad::Malformed("the reserved flag of CONNECT is set"));
    }
    let (will, qos, retain) = (flags & 4 != 0, flags >> 3 & 3, flags & 0x20 != 0);
    if qos == 3 || (!will && (qos != 0 || retain)) {
        return Err(Bad::Malformed("the will flags of CONNECT contradict each other"));
    }
    if *level == 4 && flags & 0xc0 == 0x40 {
        return Err(Bad::Malformed("CONNECT has a password and no user name"));
    }
    let v5 = *level == 5;
    let payload = if v5 { property::check(payload, property::CONNECT)? } else { payload };
    let behind = text(payload, "the client identifier is cut off, not UTF-8 or has a NUL")?;
    if will {
        let topic = if v5 { property::check(behind, property::WILL)? } else { behind };
        text(topic, "the topic of the will is cut off, not UTF-8 or has a NUL")?;
    }
    Ok(())
}

/// Section 3.8.3: reserved bits of the subscription options.
fn subscribe(body: &[u8], v5: bool) -> Result<(), Bad> {
    let mut rest = body;
    if v5 {
        rest = property::check(rest, property::SUBSCRIBE)?;
    }
    if rest.is_empty() {
        return Err(Bad::Protocol("SUBSCRIBE without a filter"));
    }
    let reserved = if v5 { 0xc0 } else { 0xfc };
    while !rest.is_empty() {
        let filter = string(rest).ok_or(Bad::Malformed("SUBSCRIBE is cut off"))?;
        if !utf8_ok(filter) {
            return Err(Bad::Malformed("a filter is not UTF-8 or has a NUL"));
        }
        let options = *rest.get(2 + filter.len()).ok_or(Bad::Malformed("SUBSCRIBE is cut off"))?;
        if options & reserved != 0 || options & 3 == 3 || options & 0x30 == 0x30 {
            return Err(Bad::Malformed("reserved bits of the subscription options are set"));
        }
        rest = &rest[3 + filter.len()..];
    }
    Ok(())
}

/// Section 3.10.3.
fn unsubscribe(body: &[u8], v5: bool) -> Result<(), Bad> {
    let mut rest = if v5 { property::check(body, property::UNSUBSCRIBE)? } else { body };
    if rest.is_empty() {
        return Err(Bad::Protocol("UNSUBSCRIBE without a filter"));
    }
    while !rest.is_empty() {
        rest = text(rest, "a filter is cut off, not UTF-8 or has a NUL")?;
    }
    Ok(())
}

/// What follows a string.
fn text<'a>(bytes: &'a [u8], problem: &'static str) -> Result<&'a [u8], Bad> {
    let text = string(bytes).filter(|text| utf8_ok(text)).ok_or(Bad::Malformed(problem))?;
    Ok(&bytes[2 + text.len()..])
}

pub(super) fn string(bytes: &[u8]) -> Option<&[u8]> {
    let len = u16::from_be_bytes(*bytes.first_chunk()?);
    bytes.get(2..2 + usize::from(len))
}

pub(super) fn utf8_ok(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'))
}

/// A variable byte integer and how many bytes it took.
pub(super) fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (n, shift) in (0..4).zip([0, 7, 14, 21]) {
        let byte = *bytes.get(n)?;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, n + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_specification_forbids_is_refused() {
        #[track_caller]
        fn check(bytes: &[u8], v5: bool, ok: bool) {
            let got = frame(bytes, 1000).and_then(|frame| packet(bytes, frame.expect("whole").header, v5));
            assert_eq!(got.is_ok(), ok, "{bytes:02x?}: {got:?}");
        }
        check(&[0xc0, 0], false, true); // PINGREQ
        check(&[0xc1, 0], false, false);
        check(&[0xc0, 1, 0], false, false);
        check(&[0xd0, 0], false, false); // PINGRESP comes from servers.
        check(&[0x32, 5, 0, 1, b'a', 0, 1], false, true); // PUBLISH QoS 1
        check(&[0x36, 5, 0, 1, b'a', 0, 1], false, false); // QoS 3
        check(&[0x38, 3, 0, 1, b'a'], false, false); // DUP, QoS 0
        check(&[0x30, 3, 0, 1, b'#'], false, false);
        check(&[0x32, 5, 0, 1, b'a', 0, 0], false, false); // packet identifier 0
        check(&[0x30, 4, 0, 1, b'a', 0], true, true);
        check(&[0x30, 3, 0, 1, b'a'], true, false); // no properties
        check(&[0x30, 3, 0, 1, 0], false, false);
        check(&[0x30, 3, 0, 9, b'a'], false, false);
        check(&[0x40, 2, 0, 1], false, true); // PUBACK
        check(&[0x40, 2, 0, 0], false, false);
        check(&[0x62, 2, 0, 1], false, true); // PUBREL
        check(&[0x60, 2, 0, 1], false, false);
        check(&[0x82, 6, 0, 1, 0, 1, b'a', 1], false, true); // SUBSCRIBE
        check(&[0x82, 2, 0, 1], false, false);
        check(&[0x82, 6, 0, 1, 0, 1, b'a', 4], false, false);
        check(&[0x82, 7, 0, 1, 0, 0, 1, b'a', 4], true, true); // no local
        check(&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x30], true, false);
        check(&[0xa2, 5, 0, 1, 0, 1, b'a'], false, true); // UNSUBSCRIBE
        check(&[0xa2, 6, 0, 1, 0, 0, 1, b'a'], true, true);
        check(&[0xa2, 2, 0, 1], false, false);
        check(&[0xa2, 3, 0, 1, 0], true, false);
        check(&[0xa2, 5, 0, 1, 0, 1, 0], false, false); // NUL
        check(&[0xe0, 0], true, true); // DISCONNECT
        check(&[0xe0, 1, 4], true, true);
        check(&[0xe0, 2, 0, 0], true, true);
        check(&[0xe0, 3, 0, 0, 9], true, false);
        check(&[0xe0, 1, 4], false, false);
        check(&[0xf0, 0], false, false); // AUTH
        check(&[0xf0, 0], true, false);
        let connect = |flags: u8| [&[0x10, 13, 0, 4], &b"MQTT"[..], &[4, flags, 0, 9, 0, 1, b'c']].concat();
        check(&connect(2), false, true);
        check(&connect(3), false, false);
        check(&connect(0x42), false, false); // password, no user
        check(&connect(0x0a), false, false); // will QoS, no will
    }

    #[test]
    fn frames_are_bounded_and_minimal() {
        assert_eq!(frame(&[0x30], 100), Ok(None));
        assert_eq!(
            frame(&[0x30, 0xff, 0xff, 0xff, 0xff, 1], 100),
            Err(Bad::Malformed("the remaining length has more than four bytes"))
        );
        assert_eq!(frame(&[0x30, 0xff, 0x7f], 100), Err(Bad::TooLarge));
        assert!(frame(&[0x30, 0x80, 0x00], 100).is_err());
        assert_eq!(frame(&[0xc0, 0], 100), Ok(Some(Frame { header: 2, len: 2 })));
    }
}
