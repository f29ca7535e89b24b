//! Connections that the kernel remembers: forgotten where a published UDP port comes or goes.
//!
//! UDP has no end of a connection. A sender that never pauses (a syslog client, a sensor) would keep its entry alive, and
//! with it the way to a container that is gone, or to the host's own port although a container has it now.

use std::{collections::BTreeMap, io, net::IpAddr};

use super::{
    netlink::{ACK, Netlink, Request},
    nft::wire::{Attrs, parse},
};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const UDP: u8 = 17;

/// One entry, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The port of the host that was sent to.
    pub port: u16,
    /// Who answers.
    pub answers: IpAddr,
    family: u8,
    tuple: Vec<u8>,
}

/// Forgets all UDP entries that `which` picks.
pub fn forget_udp(socket: &mut Netlink, which: impl Fn(&Entry) -> bool) -> io::Result<()> {
    let mut found = Vec::new();
    let all = Request { kind: GET, flags: 0, body: Attrs::default().message(0) };
    socket.dump(&all, |_, body| found.extend(entry(body).filter(|entry| which(entry))))?;
    for some in found.chunks(64) {
        let delete = |entry: &Entry| Request {
            kind: DELETE,
            flags: ACK,
            body: Attrs::default().nested(ORIGINAL, &entry.tuple).message(entry.family),
        };
        let requests: Vec<_> = some.iter().map(delete).collect();
        match socket.transact(&requests).map_err(io::Error::from) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {} // Ended by itself meanwhile.
        }
    }
    Ok(())
}

fn entry(body: &[u8]) -> Option<Entry> {
    let attrs = parse(body.get(4..)?);
    let original = *attrs.get(&ORIGINAL)?;
    let (asked, answered) = (parse(original), parse(attrs.get(&REPLY)?));
    let proto = parse(asked.get(&2)?);
    if *proto.get(&1)? != [UDP] {
        return None;
    }
    let port = u16::from_be_bytes((*proto.get(&3)?).try_into().ok()?);
    let answers = source(&parse(answered.get(&1)?))?;
    Some(Entry { port, answers, family: *body.first()?, tuple: original.to_vec() })
}

fn source(addresses: &BTreeMap<u16, &[u8]>) -> Option<IpAddr> {
    if let Some(four) = addresses.get(&1) {
        return Some(<[u8; 4]>::try_from(*four).ok()?.into());
    }
    Some(<[u8; 16]>::try_from(*addresses.get(&3)?).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_nonsense_is_left_out() {
        let ip = |a: [u8; 4], b: [u8; 4]| Attrs::default().bytes(1, &a).bytes(2, &b);
        let proto = |kind: u8, from: u16, to: u16| {
            Attrs::default().bytes(1, &[kind]).bytes(2, &from.to_be_bytes()).bytes(3, &to.to_be_bytes())
        };
        let whole = |kind| {
            let asked = Attrs::default().nest(1, ip([192, 0, 2, 1], [192, 0, 2, 2])).nest(2, proto(kind, 999, 53));
            let answered = Attrs::default().nest(1, ip([10, 88, 0, 5], [192, 0, 2, 1])).nest(2, proto(kind, 53, 999));
            Attrs::default().nest(ORIGINAL, asked).nest(REPLY, answered).message(2)
        };
        let read = entry(&whole(UDP)).unwrap();
        assert_eq!((read.port, read.answers, read.family), (53, [10, 88, 0, 5].into(), 2));
        assert_eq!(entry(&whole(6)), None);
        let bytes = whole(UDP);
        for cut in 0..bytes.len() {
            let _ = entry(&bytes[..cut]);
        }
    }
}
