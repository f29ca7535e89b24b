//! The rules of all networks: one table `inet edge-agent`, made from the records. An engine on other data than the usual
//! has a table of its own, `inet edge-agent-INSTANCE`.
//!
//! The rules themselves depend on networks alone. What comes and goes with containers are elements of maps, so an
//! attachment changes one map in one small transaction, or nothing at all; and the whole table can be made again at
//! any time from the records, replacing what is there in one transaction that no packet sees half of.
//!
//! What is decided:
//! - out of a network: masqueraded behind the host's address; not from internal networks.
//! - into a container: what its own network's members send, what belongs to a connection, what a published port leads
//!   in. Everything else that is forwarded is dropped: other networks, and neighbours on the LAN that route to us.
//! - published ports answer on every address of the host, for others, for the host itself (127.0.0.1 too, not `::1`,
//!   which the kernel cannot translate), and for containers, the published one included.
//!
//! Never true here: that our `accept` is the last word. A chain of another table that drops, such as iptables' FORWARD
//! with Docker's or ufw's policy, still drops; `Networks` looks for one and says what to do.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    nft::{
        Base, Batch, DataType, Element, Hook, IPV4, IPV6, Set,
        expr::{Rule, if_name, octets},
    },
    types::{BoundPort, Network},
};
use crate::container::Protocol;

/// The name of an engine's table.
pub fn table(instance: &str) -> String {
    if instance.is_empty() { "edge-agent".to_owned() } else { format!("edge-agent-{instance}") }
}

const BRIDGES: Set = Set { name: "bridges", key: &[DataType::IfName], data: &[] };
const INTERNAL: Set = Set { name: "internal", key: &[DataType::IfName], data: &[] };
const WITHIN: Set = Set { name: "within", key: &[DataType::IfName, DataType::IfName], data: &[] };
const PORTS4: Set =
    Set { name: "ports4", key: &[DataType::Proto, DataType::Port], data: &[DataType::Ipv4, DataType::Port] };
const PORTS4_AT: Set = Set {
    name: "ports4_at",
    key: &[DataType::Proto, DataType::Ipv4, DataType::Port],
    data: &[DataType::Ipv4, DataType::Port],
};
const PORTS6: Set =
    Set { name: "ports6", key: &[DataType::Proto, DataType::Port], data: &[DataType::Ipv6, DataType::Port] };
const PORTS6_AT: Set = Set {
    name: "ports6_at",
    key: &[DataType::Proto, DataType::Ipv6, DataType::Port],
    data: &[DataType::Ipv6, DataType::Port],
};

/// Where a connection to the host is led.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Redirect {
    /// Protocol.
    pub protocol: Protocol,
    /// One address of the host, or all.
    pub address: Option<IpAddr>,
    /// Port there.
    pub port: u16,
    /// To which address, of the same family.
    pub to: IpAddr,
    /// To which port.
    pub to_port: u16,
}

/// Redirects of the published ports of a sandbox with these addresses.
pub fn redirects(ports: &[BoundPort], v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Vec<Redirect> {
    let mut all = Vec::new();
    for port in ports {
        let targets = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)];
        // A published address of one family leads to the sandbox's address of the same.
        let fits = |to: &IpAddr| port.host_address.is_none_or(|address| address.is_ipv4() == to.is_ipv4());
        all.extend(targets.into_iter().flatten().filter(fits).map(|to| Redirect {
            protocol: port.protocol,
            address: port.host_address.filter(|address| !address.is_unspecified()),
            port: port.host_port,
            to,
            to_port: port.container_port,
        }));
    }
    all
}

/// The elements of `redirects` by map.
fn elements(redirects: &[Redirect]) -> BTreeMap<&'static str, Vec<Element>> {
    let mut maps: BTreeMap<&'static str, Vec<Element>> = BTreeMap::new();
    for redirect in redirects {
        let proto: u8 = match redirect.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        };
        let port = |port: u16| [port.to_be_bytes(), [0, 0]].concat();
        let address = redirect.address.map(octets).unwrap_or_default();
        let key = [&[proto, 0, 0, 0], address.as_slice(), &port(redirect.port)].concat();
        let map = match (redirect.to, redirect.address) {
            (IpAddr::V4(_), None) => PORTS4,
            (IpAddr::V4(_), Some(_)) => PORTS4_AT,
            (IpAddr::V6(_), None) => PORTS6,
            (IpAddr::V6(_), Some(_)) => PORTS6_AT,
        };
        let data = [octets(redirect.to), port(redirect.to_port)].concat();
        maps.entry(map.name).or_default().push(Element { key, data });
    }
    maps
}

/// Adds redirects to the table.
pub fn add(batch: &mut Batch, table: &str, redirects: &[Redirect]) {
    for (map, elements) in elements(redirects) {
        batch.add(table, map, &elements);
    }
}

/// Takes redirects out of the table.
pub fn delete(batch: &mut Batch, table: &str, redirects: &[Redirect]) {
    for (map, elements) in elements(redirects) {
        batch.delete(table, map, &elements);
    }
}

/// The whole table anew, in place of the one that may be there.
pub fn rebuild<'a>(table: &str, networks: impl Iterator<Item = &'a Network> + Clone, redirects: &[Redirect]) -> Batch {
    let mut batch = Batch::default();
    batch.table(table); // So that there is one to delete.
    batch.delete_table(table);
    batch.table(table);
    for set in [&BRIDGES, &INTERNAL, &WITHIN, &PORTS4, &PORTS4_AT, &PORTS6, &PORTS6_AT] {
        batch.set(table, set);
    }
    let filter = |hook, priority| Some(Base { kind: "filter", hook, priority });
    let nat = |hook, priority| Some(Base { kind: "nat", hook, priority });
    batch.chain(table, "guard", filter(Hook::Prerouting, -300));
    batch.chain(table, "published", None);
    batch.chain(table, "prerouting", nat(Hook::Prerouting, -100));
    batch.chain(table, "output", nat(Hook::Output, -100));
    batch.chain(table, "postrouting", nat(Hook::Postrouting, 100));
    batch.chain(table, "forward", filter(Hook::Forward, 0));

    let loopback = IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
    let loopback6 = IpNet::from(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));
    // `route_localnet`, which published ports on 127.0.0.1 need, must not open the host's loopback to containers.
    batch.rule(table, "guard", &Rule::new().iifname_in(BRIDGES.name).daddr(loopback).drop());

    let published = [
        Rule::new().daddr(loopback6).back(),
        Rule::new().dnat(IPV4, PORTS4_AT.name, true),
        Rule::new().dnat(IPV6, PORTS6_AT.name, true),
        Rule::new().daddr_is_local().dnat(IPV4, PORTS4.name, false),
        Rule::new().daddr_is_local().dnat(IPV6, PORTS6.name, false),
    ];
    for rule in &published {
        batch.rule(table, "published", rule);
    }
    batch.rule(table, "prerouting", &Rule::new().jump("published"));
    batch.rule(table, "output", &Rule::new().jump("published"));

    let forward = [
        Rule::new().known_connection().accept(),
        Rule::new().between_devices(WITHIN.name).accept(),
        Rule::new().iifname_in(INTERNAL.name).drop(),
        Rule::new().oifname_in(INTERNAL.name).drop(),
        Rule::new().oifname_in(BRIDGES.name).through_port().accept(),
        Rule::new().oifname_in(BRIDGES.name).drop(),
        Rule::new().iifname_in(BRIDGES.name).accept(),
    ];
    for rule in &forward {
        batch.rule(table, "forward", rule);
    }

    // A connection of the host from 127.0.0.1 would be answered to the container's own loopback.
    let from_loopback = Rule::new().saddr(loopback).oifname_in(BRIDGES.name).masquerade();
    batch.rule(table, "postrouting", &from_loopback);
    for network in networks.clone() {
        for rule in outwards(network) {
            batch.rule(table, "postrouting", &rule);
        }
    }
    let set = |key: Vec<u8>| Element { key, data: Vec::new() };
    let name = |network: &Network| if_name(&network.device).to_vec();
    let all: Vec<_> = networks.clone().map(|network| set(name(network))).collect();
    batch.add(table, BRIDGES.name, &all);
    let internal: Vec<_> = networks.clone().filter(|one| one.internal).map(|network| set(name(network))).collect();
    batch.add(table, INTERNAL.name, &internal);
    let within: Vec<_> = networks.map(|network| set(name(network).repeat(2))).collect();
    batch.add(table, WITHIN.name, &within);
    add(&mut batch, table, redirects);
    batch
}

/// Masquerading of one network.
fn outwards(network: &Network) -> Vec<Rule> {
    let nets = [Some(IpNet::V4(network.subnet)), network.ipv6.map(IpNet::V6)];
    let mut rules = Vec::new();
    for net in nets.into_iter().flatten() {
        // Through a published port back into the same network: the answer has to come back this way too.
        rules.push(Rule::new().saddr(net).oifname(true, &network.device).through_port().masquerade());
        if !network.internal {
            rules.push(Rule::new().saddr(net).oifname(false, &network.device).masquerade());
        }
    }
    rules
}

#[cfg(test)]
mod tests;
