//! nf_tables over netlink: tables, chains, rules, maps and their elements as messages; no `nft` program needed.
//!
//! Own code because the crates for it stop short: one has no NAT, `fib` and `ct` expressions, the others call
//! `libnftnl` or the `nft` program. Numbers are those of `linux/netfilter/nf_tables.h`.
//!
//! Always true: what [`Batch::commit`] sends is one transaction of the kernel, all of it or nothing.

pub mod expr;
pub mod wire;

use std::io;

use self::wire::Attrs;
use super::netlink::{ACK, APPEND, CREATE, Netlink, Refused, Request};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;
/// `NFPROTO_IPV4`.
pub const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub const IPV6: u8 = 10;

/// Where a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// Forwarded.
    Forward = 2,
    /// From the host itself.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// What a base chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// Where it hangs.
    pub hook: Hook,
    /// Its place among others there.
    pub priority: i32,
}

/// Types of keys and values, as `nft` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// `ipv4_addr`.
    Ipv4 = 7,
    /// `ipv6_addr`.
    Ipv6 = 8,
    /// `inet_proto`.
    Proto = 12,
    /// `inet_service`.
    Port = 13,
    /// `ifname`.
    IfName = 41,
}

impl DataType {
    const fn len(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Proto | Self::Port => 4, // Each part of a key fills whole registers.
            Self::Ipv6 | Self::IfName => 16,
        }
    }
}

/// A named set, or a map where `data` is not empty.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// Parts of the key.
    pub key: &'static [DataType],
    /// Parts of the value.
    pub data: &'static [DataType],
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The key, each part filled up to four bytes.
    pub key: Vec<u8>,
    /// The value; empty in a set.
    pub data: Vec<u8>,
}

/// A transaction being put together.
pub struct Batch {
    requests: Vec<Request>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { requests: vec![Self::border(BATCH_BEGIN)] }
    }
}

impl Batch {
    fn border(kind: u16) -> Request {
        let mut body = vec![0, 0];
        body.extend_from_slice(&(SUBSYSTEM >> 8).to_be_bytes());
        Request { kind, flags: 0, body }
    }

    fn push(&mut self, kind: u16, flags: u16, attrs: Attrs) {
        self.requests.push(Request { kind: SUBSYSTEM | kind, flags, body: attrs.message(INET) });
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.requests.len() == 1
    }

    /// Makes the table; one that is there stays.
    pub fn table(&mut self, table: &str) {
        self.push(NEWTABLE, CREATE, Attrs::default().text(1, table));
    }

    /// Removes the table with all that is in it.
    pub fn delete_table(&mut self, table: &str) {
        self.push(DELTABLE, 0, Attrs::default().text(1, table));
    }

    /// Makes a chain; without `base` one that others jump to.
    pub fn chain(&mut self, table: &str, chain: &str, base: Option<Base>) {
        let mut attrs = Attrs::default().text(1, table).text(3, chain);
        if let Some(base) = base {
            let hook = Attrs::default().number(1, base.hook as u32).bytes(2, &base.priority.to_be_bytes());
            attrs = attrs.nest(4, hook).number(5, 1).text(7, base.kind); // Policy: accept.
        }
        self.push(NEWCHAIN, CREATE, attrs);
    }

    /// Adds a rule at the end of a chain.
    pub fn rule(&mut self, table: &str, chain: &str, rule: &expr::Rule) {
        let attrs = Attrs::default().text(1, table).text(2, chain).nest(4, rule.attrs());
        self.push(NEWRULE, CREATE | APPEND, attrs);
    }

    /// Makes a set or map.
    pub fn set(&mut self, table: &str, set: &Set) {
        let kind = |parts: &[DataType]| parts.iter().fold(0, |kind, part| kind << 6 | *part as u32);
        let len = |parts: &[DataType]| parts.iter().map(|part| part.len()).sum();
        let is_map = !set.data.is_empty();
        // The id ties the set to rules of the same batch; lookups here go by name, so any number but zero serves.
        let mut attrs = Attrs::default().text(1, table).text(2, set.name).number(3, u32::from(is_map) << 3);
        attrs = attrs.number(4, kind(set.key)).number(5, len(set.key));
        if is_map {
            attrs = attrs.number(6, kind(set.data)).number(7, len(set.data));
        }
        let id = u32::try_from(self.requests.len()).unwrap_or(1);
        attrs = attrs.number(10, id);
        if set.key == [DataType::IfName] {
            // Tells `nft list` that the key is in the order of the host; without, it shows names as empty.
            attrs = attrs.bytes(13, &[&[0, 4], 1u32.to_ne_bytes().as_slice()].concat());
        }
        self.push(NEWSET, CREATE, attrs);
    }

    /// Adds elements; one that is there with the same value stays.
    pub fn add(&mut self, table: &str, set: &str, elements: &[Element]) {
        self.elements(NEWSETELEM, CREATE, table, set, elements);
    }

    /// Removes elements, each of which must be there.
    pub fn delete(&mut self, table: &str, set: &str, elements: &[Element]) {
        self.elements(DELSETELEM, 0, table, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, table: &str, set: &str, elements: &[Element]) {
        // An attribute holds at most 64 KiB.
        for some in elements.chunks(256) {
            let mut list = Attrs::default();
            for element in some {
                let mut attrs = Attrs::default().nest(1, Attrs::default().bytes(1, &element.key));
                if !element.data.is_empty() {
                    attrs = attrs.nest(2, Attrs::default().bytes(1, &element.data));
                }
                list = list.nest(1, attrs);
            }
            self.push(kind, flags, Attrs::default().text(1, table).text(2, set).nest(3, list));
        }
    }

    /// Has the kernel do all of it or nothing.
    pub fn commit(mut self, socket: &mut Netlink) -> Result<(), Refused> {
        if self.is_empty() {
            return Ok(());
        }
        // Refusals are always told; of success one answer is enough, that of the last request.
        if let Some(last) = self.requests.last_mut() {
            last.flags |= ACK;
        }
        self.requests.push(Self::border(BATCH_END));
        socket.transact(&self.requests)
    }
}

/// Whether a table of ours is there.
pub fn has_table(socket: &mut Netlink, table: &str) -> io::Result<bool> {
    let mut found = false;
    let request = Request { kind: SUBSYSTEM | GETTABLE, flags: 0, body: Attrs::default().message(INET) };
    socket.dump(&request, |_, body| {
        let attrs = wire::parse(body.get(4..).unwrap_or_default());
        found |= attrs.get(&1).is_some_and(|name| name.strip_suffix(&[0]) == Some(table.as_bytes()));
    })?;
    Ok(found)
}

/// The policy of a base chain of `ip filter` that is called `name`: true where it drops. This is where iptables keeps
/// the rules of Docker and ufw.
pub fn iptables_drops(socket: &mut Netlink, name: &str) -> io::Result<bool> {
    let mut drops = false;
    let request = Request { kind: SUBSYSTEM | GETCHAIN, flags: 0, body: Attrs::default().message(IPV4) };
    socket.dump(&request, |_, body| {
        let attrs = wire::parse(body.get(4..).unwrap_or_default());
        let is = |kind: u16, text: &str| {
            attrs.get(&kind).is_some_and(|value| value.strip_suffix(&[0]) == Some(text.as_bytes()))
        };
        drops |= is(1, "filter") && is(3, name) && attrs.get(&5).is_some_and(|policy| *policy == [0, 0, 0, 0]);
    })?;
    Ok(drops)
}
