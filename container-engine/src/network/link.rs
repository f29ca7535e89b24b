//! Devices, addresses and routes, as requests to the kernel.
//!
//! Names: bridges of user networks are `eb-` and 12 hexadecimal digits, the host's ends of veth pairs `ev` and 12, so
//! that leftovers are known by name. Those of an engine on other data than the usual are `eb` or `ev`, five digits that
//! tell the engine, `-`, and seven characters: no engine takes another's for its own. What a container sees is `eth0`,
//! `eth1`, …

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, LinkMessageBuffer,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMessageBuffer, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::netlink::{ACK, CREATE, EXCL, Netlink, REPLACE, Request};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;

/// Device group of those to be removed; a number nobody else will have chosen.
const DOOMED: u32 = 0x6564_6765;

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// MTU.
    pub mtu: u32,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
}

/// A route of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to; a prefix length of 0 is the default route.
    pub to: IpNet,
    /// Index of the device.
    pub device: Option<u32>,
}

fn request(kind: u16, flags: u16, message: &impl Emitable) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    Request { kind, flags: flags | ACK, body }
}

/// All devices by name.
pub fn links(socket: &mut Netlink) -> io::Result<BTreeMap<String, Link>> {
    let mut links = BTreeMap::new();
    let all = Request { flags: 0, ..request(GETLINK, 0, &LinkMessage::default()) };
    socket.dump(&all, |_, body| {
        let Ok(message) = LinkMessageBuffer::new_checked(&body).and_then(|buffer| LinkMessage::parse(&buffer)) else {
            return; // A device with attributes unknown to this version is none of ours.
        };
        let mut link = Link { index: message.header.index, mtu: 1500, kind: String::new(), master: None };
        let mut name = None;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        links.extend(name.map(|name| (name, link)));
    })?;
    Ok(links)
}

/// All unicast routes of the main table.
pub fn routes(socket: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    let all = Request { flags: 0, ..request(GETROUTE, 0, &RouteMessage::default()) };
    socket.dump(&all, |_, body| {
        let parsed = RouteMessageBuffer::new_checked(&body).and_then(|buffer| RouteMessage::parse(&buffer));
        let Ok(message) = parsed else { return };
        let header = &message.header;
        if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
            return;
        }
        let mut to = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            _ => return,
        };
        let mut device = None;
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => to = address.into(),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = address.into(),
                RouteAttribute::Oif(index) => device = Some(index),
                _ => {}
            }
        }
        routes.extend(IpNet::new(to, header.destination_prefix_length).map(|to| Route { to, device }));
    })?;
    Ok(routes)
}

/// Makes a bridge that is up, with this hardware address so that it does not change with its ports.
pub fn bridge(name: &str, mac: [u8; 6], mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    request(NEWLINK, CREATE | EXCL, &message)
}

/// A veth pair: `host` is a port of the bridge, `inside` lies in `namespace` and comes up with its addresses.
pub fn veth(host: &str, bridge: &Link, inside: &str, mac: [u8; 6], namespace: BorrowedFd<'_>) -> Request {
    let mtu = bridge.mtu;
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(inside.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(bridge.index),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    request(NEWLINK, CREATE | EXCL, &message)
}

/// Lets a port send back what it sent: a container reaches itself through its published port.
pub fn hairpin(host: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ];
    request(NEWLINK, 0, &message)
}

/// Makes a device a port of a bridge.
pub fn enslave(name: &str, bridge: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Controller(bridge)];
    request(NEWLINK, 0, &message)
}

/// Brings a device up.
pub fn up(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    request(NEWLINK, 0, &message)
}

/// Has a bridge's port carry nothing, at once.
pub fn cut_off(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::State(BridgePortState::Disabled)])),
        ]),
    ];
    request(NEWLINK, 0, &message)
}

/// Puts a device among those that [`delete_doomed`] removes.
pub fn doom(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Group(DOOMED)];
    request(NEWLINK, 0, &message)
}

/// Removes all devices that were put there by [`doom`].
pub fn delete_doomed() -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(DOOMED)];
    request(DELLINK, 0, &message)
}

/// Removes a device; of a veth pair the other end goes too.
pub fn delete(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    request(DELLINK, 0, &message)
}

/// Gives a device an address.
pub fn address(index: u32, address: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = address.addr().into();
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Address(address.addr()), AddressAttribute::Local(address.addr())];
    match address {
        IpNet::V4(net) => message.attributes.push(AddressAttribute::Broadcast(net.broadcast())),
        IpNet::V6(_) => {
            // Handed out by us alone: nobody else has it, and it is wanted at once.
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    request(NEWADDR, CREATE | REPLACE, &message)
}

/// The default route.
pub fn default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = gateway.into();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    request(NEWROUTE, CREATE | REPLACE, &message)
}

/// The hardware address that goes with an address: the same address is always found at the same place, so no
/// neighbour's table is ever stale.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// `02:42:0a:58:00:02`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Digits of the engine in a device's name.
const ENGINE_DIGITS: usize = 5;

/// What a device is for, which its name begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's end of a veth pair.
    Veth,
    /// The bridge of a user network.
    Bridge,
}

impl Device {
    /// What is before the part that tells one from another; `instance` is the engine's, see `Options`.
    fn prefix(self, instance: &str) -> String {
        let engine = instance.get(..ENGINE_DIGITS);
        match (self, engine) {
            (Self::Veth, None) => "ev".to_owned(),
            (Self::Bridge, None) => "eb-".to_owned(),
            (Self::Veth, Some(engine)) => format!("ev{engine}-"),
            (Self::Bridge, Some(engine)) => format!("eb{engine}-"),
        }
    }

    /// Its name from what it belongs to; at most 15 bytes, as the kernel has it.
    pub fn name(self, instance: &str, parts: &[&str]) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, parts.join("\0").as_bytes());
        let digest = digest.as_ref().iter();
        let tail: String = if instance.is_empty() {
            digest.take(6).map(|byte| format!("{byte:02x}")).collect()
        } else {
            // Five bits each, as there is less room.
            digest.take(7).map(|byte| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(byte & 31)])).collect()
        };
        format!("{}{tail}", self.prefix(instance))
    }

    /// Whether it is the name of such a device of this engine.
    pub fn is_named(self, instance: &str, name: &str) -> bool {
        name.strip_prefix(&self.prefix(instance)).is_some_and(|tail| {
            if instance.is_empty() {
                tail.len() == 12 && tail.bytes().all(|b| b.is_ascii_hexdigit())
            } else {
                tail.len() == 7 && tail.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
            }
        })
    }
}

/// The name of a file from what it is about, which may hold any character.
pub fn file_name(about: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, about.as_bytes());
    digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_engines_apart() {
        let instances = ["", "0123456789ab", "123456789abc"];
        for instance in instances {
            for device in [Device::Veth, Device::Bridge] {
                let name = device.name(instance, &["a", "b"]);
                assert!(name.len() <= 15 && name != device.name(instance, &["ab"]), "{name}");
                for other in instances {
                    assert_eq!(device.is_named(other, &name), other == instance, "{name} of {other:?}");
                }
                let another = if device == Device::Veth { Device::Bridge } else { Device::Veth };
                assert!(!another.is_named(instance, &name), "{name}");
            }
        }
        assert_eq!(Device::Veth.name("", &["a"]), "evca978112ca1b");
        for foreign in ["eth0", "ev", "ev0123", "ev0123456789abc", "eb-xyz", "ev01234-ABCDEFG"] {
            assert!(instances.iter().all(|it| !Device::Veth.is_named(it, foreign)), "{foreign}");
        }
    }
}
