//! The properties of MQTT 5 packets (section 2.2.2): which may be where, how often, and how long they are.
//!
//! The codecs look at none of this: they read past the end of the properties into what follows, and take the last of
//! two that contradict each other.

use super::check::{Bad, string, utf8_ok, varint};

pub(super) const CONNECT: &[u8] = &[17, 21, 22, 23, 25, 33, 34, 38, 39];
pub(super) const WILL: &[u8] = &[1, 2, 3, 8, 9, 24, 38];
/// 11 is for servers alone; who reads the packet says so.
pub(super) const PUBLISH: &[u8] = &[1, 2, 3, 8, 9, 11, 35, 38];
pub(super) const ACK: &[u8] = &[31, 38];
pub(super) const SUBSCRIBE: &[u8] = &[11, 38];
pub(super) const UNSUBSCRIBE: &[u8] = &[38];
pub(super) const DISCONNECT: &[u8] = &[17, 31, 38];

const USER: u8 = 38;
const RESPONSE_TOPIC: u8 = 8;

/// Checks the properties at the beginning of `bytes`; returns what follows them.
pub(super) fn check<'a>(bytes: &'a [u8], allowed: &[u8]) -> Result<&'a [u8], Bad> {
    const CUT: Bad = Bad::Malformed("properties are cut off");
    let (len, header) = varint(bytes).ok_or(CUT)?;
    let (mut rest, behind) = bytes.get(header..).and_then(|rest| rest.split_at_checked(len)).ok_or(CUT)?;
    let mut seen = 0u64;
    while let [id, value @ ..] = rest {
        if !allowed.contains(id) {
            return Err(Bad::Malformed("a property that does not belong to the packet"));
        }
        let bit = 1 << id;
        if seen & bit != 0 && *id != USER {
            return Err(Bad::Protocol("a property is there twice"));
        }
        seen |= bit;
        let size = size(*id, value)?.ok_or(CUT)?;
        rest = value.get(size..).ok_or(CUT)?;
    }
    Ok(behind)
}

/// Bytes of one value; `None` where it is cut off.
fn size(id: u8, value: &[u8]) -> Result<Option<usize>, Bad> {
    Ok(match id {
        1 | 23 | 25 => match value.first() {
            Some(0 | 1) => Some(1),
            Some(_) => return Err(Bad::Protocol("a property is neither 0 nor 1")),
            None => None,
        },
        33..=35 => Some(2),
        2 | 17 | 24 | 39 => Some(4),
        11 => varint(value).map(|(_, size)| size),
        9 | 22 => string(value).map(|data| 2 + data.len()),
        USER => match text(value)? {
            Some(key) => text(value.get(key..).unwrap_or_default())?.map(|second| key + second),
            None => None,
        },
        _ => {
            let size = text(value)?;
            let wildcard = |byte: &u8| matches!(byte, b'+' | b'#');
            if id == RESPONSE_TOPIC && value.get(2..size.unwrap_or(2)).is_some_and(|it| it.iter().any(wildcard)) {
                return Err(Bad::Protocol("the response topic has a wildcard"));
            }
            size
        }
    })
}

/// Bytes of a string.
fn text(value: &[u8]) -> Result<Option<usize>, Bad> {
    match string(value) {
        Some(text) if !utf8_ok(text) => Err(Bad::Malformed("a property is not UTF-8 or has a NUL")),
        text => Ok(text.map(|text| 2 + text.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_whole_allowed_and_once() {
        #[track_caller]
        fn check(bytes: &[u8], allowed: &[u8], want: Option<&[u8]>) {
            let got = super::check(bytes, allowed);
            assert_eq!(got.ok(), want, "{bytes:02x?}: {got:?}");
        }
        check(&[0], PUBLISH, Some(&[]));
        check(&[0, 9], PUBLISH, Some(&[9]));
        check(&[2, 1, 1, 7, 7], PUBLISH, Some(&[7, 7]));
        check(&[2, 1, 2], PUBLISH, None); // Neither 0 nor 1.
        check(&[5, 2, 0, 0, 0, 1], PUBLISH, Some(&[]));
        check(&[4, 2, 0, 0, 0, 1], PUBLISH, None); // The value goes on behind the properties.
        check(&[10, 2, 0, 0, 0, 1, 2, 0, 0, 0, 1], PUBLISH, None); // Twice.
        check(&[7, 38, 0, 1, b'k', 0, 1, b'v'], ACK, Some(&[]));
        check(&[14, 38, 0, 1, b'k', 0, 1, b'v', 38, 0, 1, b'k', 0, 1, b'v'], ACK, Some(&[]));
        check(&[4, 38, 0, 1, b'k'], ACK, None);
        check(&[7, 38, 0, 1, 0, 0, 1, b'v'], ACK, None); // A NUL.
        check(&[4, 8, 0, 1, b'#'], PUBLISH, None);
        check(&[4, 8, 0, 1, b'a'], PUBLISH, Some(&[]));
        check(&[2, 11, 3], SUBSCRIBE, Some(&[]));
        check(&[2, 11, 3], UNSUBSCRIBE, None);
        check(&[3, 250, 0, 0], CONNECT, None);
        check(&[5, 0], CONNECT, None);
        check(&[], CONNECT, None);
    }
}
