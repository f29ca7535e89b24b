//! A reading: what was said on which topic, when. Its form on disk is here and nowhere else.
//!
//! On disk: `version u8 (1), trusted u8, boot varint, uptime_us varint, wall_us zigzag varint, topic length varint, topic,
//! payload`. The log around it has length and checksum.

use board::clock::Stamp;
use bytes::Bytes;

const VERSION: u8 = 1;

/// A reading on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReading {
    /// A valid MQTT topic name (no wildcards), checked by `topic::check_name`.
    pub topic: String,
    /// Anything.
    pub payload: Bytes,
}

/// A reading in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its number in this store.
    pub seq: u64,
    /// When the board received it, as the clock then said. `Clock::correct` brings it to the best knowledge.
    pub stamp: Stamp,
    /// Topic name.
    pub topic: String,
    /// As sent.
    pub payload: Bytes,
}

/// The form on disk.
pub fn encode(stamp: &Stamp, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + topic.len() + payload.len());
    out.extend_from_slice(&[VERSION, u8::from(stamp.trusted)]);
    push_varint(&mut out, u64::from(stamp.boot));
    push_varint(&mut out, stamp.uptime_us);
    // Zigzag: small numbers of either sign stay short. The cast keeps all bits.
    #[allow(clippy::cast_sign_loss)]
    push_varint(&mut out, ((stamp.wall_us << 1) ^ (stamp.wall_us >> 63)) as u64);
    push_varint(&mut out, topic.len() as u64);
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(payload);
    out
}

/// Reads the form on disk; `None` for bytes that no version of this program wrote.
pub fn decode(seq: u64, body: Vec<u8>) -> Option<Reading> {
    let body = Bytes::from(body);
    let mut rest = &body[..];
    let (&[version, trusted], tail) = rest.split_first_chunk()?;
    rest = tail;
    if version != VERSION || trusted > 1 {
        return None;
    }
    let boot = u32::try_from(take_varint(&mut rest)?).ok()?;
    let uptime_us = take_varint(&mut rest)?;
    let zigzag = take_varint(&mut rest)?;
    // The inverse of the casts in `encode`.
    #[allow(clippy::cast_possible_wrap)]
    let wall_us = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    let topic_len = usize::try_from(take_varint(&mut rest)?).ok()?;
    let topic = std::str::from_utf8(rest.get(..topic_len)?).ok()?.to_owned();
    let payload = body.slice_ref(&rest[topic_len..]);
    Some(Reading { seq, stamp: Stamp { wall_us, boot, uptime_us, trusted: trusted == 1 }, topic, payload })
}

/// LEB128.
pub(crate) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// LEB128; `None` where it is cut off, over 64 bits, or longer than it needs to be: a number has one form.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return (bits << shift >> shift == bits && (byte > 0 || shift == 0)).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_has_one_form() {
        #[track_caller]
        fn check(mut bytes: &[u8], want: Option<u64>) {
            assert_eq!(take_varint(&mut bytes), want);
        }
        check(&[0], Some(0));
        check(&[0x80, 1], Some(128));
        check(&[0x80, 0], None);
        check(&[0x80], None);
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(u64::MAX));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3], None);
    }

    proptest! {
        #[test]
        fn reads_back(wall_us: i64, boot: u32, uptime_us: u64, trusted: bool, topic in "[a-zä/]{0,20}", payload: Vec<u8>) {
            let stamp = Stamp { wall_us, boot, uptime_us, trusted };
            let want = Reading { seq: 9, stamp, topic: topic.clone(), payload: payload.clone().into() };
            prop_assert_eq!(decode(9, encode(&stamp, &topic, &payload)), Some(want));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(1, bytes);
        }
    }
}
