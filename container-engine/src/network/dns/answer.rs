//! What is answered to a question: pure, and fed with whatever arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, OPT, PTR, RData},
};

/// Seconds an answer may be kept: a container that comes back may have another address.
const TTL: u32 = 5;
/// What fits where nothing is said, RFC 1035.
const PLAIN_UDP: usize = 512;
/// Most addresses in one answer.
const MAX_ANSWERS: usize = 128;

/// The names that one asker may know.
pub trait Names {
    /// Addresses of a name in lower case without the last dot; none where nobody has it.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;
    /// The name of an address: outer none where the address is of no network of ours, inner where nobody has it.
    fn name(&self, address: IpAddr) -> Option<Option<String>>;
    /// Whether other names may be asked of the host's resolvers.
    fn may_ask_outside(&self) -> bool;
}

/// What to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Send this.
    Send(Vec<u8>),
    /// Ask the host's resolvers the same.
    Forward,
    /// Nothing.
    Ignore,
}

/// Decides what to do with `packet`. Over UDP an answer that is too long is cut, for the asker to come again over TCP.
pub fn answer(packet: &[u8], names: &dyn Names, tcp: bool) -> Reply {
    let Ok(query) = Packet::parse(packet) else {
        return failure(packet, 1); // Format error.
    };
    if query.has_flags(PacketFlag::RESPONSE) {
        return Reply::Ignore;
    }
    if query.opcode() != OPCODE::StandardQuery {
        return failure(packet, 4); // Not implemented.
    }
    let [question] = query.questions.as_slice() else { return failure(packet, 1) };
    if question.qclass != QCLASS::CLASS(CLASS::IN) {
        return if names.may_ask_outside() { Reply::Forward } else { failure(packet, 5) };
    }
    let name = question.qname.to_string().to_ascii_lowercase();
    let found = if question.qtype == QTYPE::TYPE(TYPE::PTR) {
        match pointer(&name).and_then(|address| names.name(address)) {
            Some(Some(name)) => Name::new(&name).map(|name| Some(vec![RData::PTR(PTR(name.into_owned()))])),
            None if names.may_ask_outside() => return Reply::Forward,
            Some(None) | None => Ok(None),
        }
    } else {
        match names.addresses(&name) {
            Some(addresses) => Ok(Some(records(addresses, question.qtype, query.id()))),
            None if names.may_ask_outside() => return Reply::Forward,
            None => Ok(None),
        }
    };
    let Ok(found) = found else { return failure(packet, 2) };
    write(&query, question, found, tcp).map_or_else(|| failure(packet, 2), Reply::Send)
}

fn records(mut addresses: Vec<IpAddr>, kind: QTYPE, id: u16) -> Vec<RData<'static>> {
    // Several containers under one alias take turns.
    if !addresses.is_empty() {
        let turn = usize::from(id) % addresses.len();
        addresses.rotate_left(turn);
    }
    let any = kind == QTYPE::ANY;
    let record = |address: IpAddr| match address {
        IpAddr::V4(four) if any || kind == QTYPE::TYPE(TYPE::A) => Some(RData::A(A::from(four))),
        IpAddr::V6(six) if any || kind == QTYPE::TYPE(TYPE::AAAA) => Some(RData::AAAA(AAAA::from(six))),
        _ => None,
    };
    addresses.into_iter().filter_map(record).take(MAX_ANSWERS).collect()
}

/// Nothing found at all is a name that does not exist; an empty list one that has no such record.
fn write(query: &Packet, question: &Question, found: Option<Vec<RData<'static>>>, tcp: bool) -> Option<Vec<u8>> {
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.questions.push(question.clone());
    let mut most = if tcp { usize::from(u16::MAX) } else { PLAIN_UDP };
    if let Some(opt) = query.opt() {
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: 1232, version: 0 });
        most = most.max(usize::from(opt.udp_packet_size).min(1232));
    }
    match found {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(found) => {
            let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
            reply.answers = found.into_iter().map(record).collect();
        }
    }
    let bytes = reply.build_bytes_vec_compressed().ok()?;
    if bytes.len() <= most {
        return Some(bytes);
    }
    reply.answers.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.build_bytes_vec_compressed().ok()
}

/// An answer of a header alone, made without understanding the rest: RFC 1035 section 4.1.1.
pub(super) fn failure(packet: &[u8], code: u8) -> Reply {
    match packet.get(..12) {
        // An answer to an answer would go on for ever.
        Some(header) if header[2] & 0x80 == 0 => {
            let flags = [header[2] & 0x79 | 0x80, 0x80 | code & 0x0f];
            Reply::Send([&header[..2], &flags, &[0; 8]].concat())
        }
        _ => Reply::Ignore,
    }
}

/// The address in `4.3.2.1.in-addr.arpa` and the like.
fn pointer(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<u8> = rest.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [d, c, b, a] = parts.try_into().ok()?;
        return Some(Ipv4Addr::new(a, b, c, d).into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let digits: Vec<&str> = rest.split('.').collect();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return None;
    }
    let hex: String = digits.into_iter().rev().collect();
    Some(Ipv6Addr::from(u128::from_str_radix(&hex, 16).ok()?).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Town(bool);

    impl Names for Town {
        fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
            match name {
                "web" => Some(vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]),
                "four" => Some(vec!["10.0.0.3".parse().unwrap()]),
                "many" => Some((0..100).map(|n| Ipv4Addr::new(10, 0, 1, n).into()).collect()),
                _ => None,
            }
        }
        fn name(&self, address: IpAddr) -> Option<Option<String>> {
            match address.to_string().as_str() {
                "10.0.0.2" | "fd00::2" => Some(Some("web".into())),
                "10.0.0.9" => Some(None),
                _ => None,
            }
        }
        fn may_ask_outside(&self) -> bool {
            self.0
        }
    }

    fn query(name: &str, kind: TYPE, edns: bool) -> Vec<u8> {
        let mut packet = Packet::new_query(0);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        if edns {
            *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: 1232, version: 0 });
        }
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn questions_and_answers() {
        #[track_caller]
        fn check(name: &str, kind: TYPE, outside: bool, want: Option<(RCODE, &str)>) {
            let reply = answer(&query(name, kind, true), &Town(outside), false);
            let Some((code, text)) = want else { return assert_eq!(reply, Reply::Forward, "{name}") };
            let Reply::Send(bytes) = reply else { panic!("{name}: {reply:?}") };
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(packet.rcode(), code, "{name}");
            assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
            let shown = packet.answers.iter().map(|record| match &record.rdata {
                RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
                RData::PTR(name) => name.0.to_string(),
                other => format!("{other:?}"),
            });
            assert_eq!(shown.collect::<Vec<_>>().join(" "), text, "{name}");
        }
        check("web", TYPE::A, true, Some((RCODE::NoError, "10.0.0.2")));
        check("WEB", TYPE::AAAA, true, Some((RCODE::NoError, "fd00::2")));
        check("four", TYPE::AAAA, true, Some((RCODE::NoError, "")));
        check("web", TYPE::MX, true, Some((RCODE::NoError, "")));
        check("elsewhere.example", TYPE::A, true, None);
        check("elsewhere.example", TYPE::A, false, Some((RCODE::NameError, "")));
        check("2.0.0.10.in-addr.arpa", TYPE::PTR, true, Some((RCODE::NoError, "web")));
        check("9.0.0.10.in-addr.arpa", TYPE::PTR, true, Some((RCODE::NameError, "")));
        check("9.9.9.9.in-addr.arpa", TYPE::PTR, true, None);
        check("300.0.0.10.in-addr.arpa", TYPE::PTR, true, None);
        let six = format!("2.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        check(&six, TYPE::PTR, true, Some((RCODE::NoError, "web")));
    }

    #[test]
    fn a_long_answer_is_cut_over_udp_alone() {
        let (plain, long) = (query("many", TYPE::A, false), answer(&query("many", TYPE::A, false), &Town(true), true));
        let Reply::Send(short) = answer(&plain, &Town(true), false) else { panic!() };
        assert!(short.len() <= 512 && Packet::parse(&short).unwrap().has_flags(PacketFlag::TRUNCATION));
        let Reply::Send(long) = long else { panic!() };
        assert_eq!(Packet::parse(&long).unwrap().answers.len(), 100);
    }

    #[test]
    fn answers_are_never_answered() {
        let mut packet = query("web", TYPE::A, false);
        packet[2] |= 0x80;
        assert_eq!(answer(&packet, &Town(true), false), Reply::Ignore);
        packet.truncate(13);
        assert_eq!(answer(&packet, &Town(true), false), Reply::Ignore);
        assert_eq!(answer(&[], &Town(true), false), Reply::Ignore);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp in any::<bool>()) {
            answer(&bytes, &Town(true), tcp);
        }

        #[test]
        fn nearly_right_packets_neither(at in 0usize..64, to in any::<u8>(), cut in 0usize..64) {
            let mut packet = query("web", TYPE::A, true);
            let len = packet.len();
            packet[at % len] = to;
            packet.truncate(len - cut % len);
            answer(&packet, &Town(false), false);
        }
    }
}
