//! Rules as chains of expressions; the methods read like `nft`'s own language.

use std::net::IpAddr;

use super::{IPV4, IPV6, wire::Attrs};

/// Registers of four bytes, from `NFT_REG32_00` on.
const FIRST: u32 = 8;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT`.
const STATUS_DNAT: u32 = 1 << 5;
/// Established and related.
const STATE_KNOWN: u32 = 0b110;
const ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

/// One rule being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule(Attrs);

/// A device's name as it is compared: 16 bytes.
pub fn if_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}

impl Rule {
    /// An empty rule, for every packet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn attrs(&self) -> Attrs {
        self.0.clone()
    }

    fn expr(self, name: &str, data: Attrs) -> Self {
        Self(self.0.nest(1, Attrs::default().text(1, name).nest(2, data)))
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expr("meta", Attrs::default().number(1, register).number(2, key))
    }

    fn payload(self, base: u32, offset: u32, len: u32, register: u32) -> Self {
        self.expr("payload", Attrs::default().number(1, register).number(2, base).number(3, offset).number(4, len))
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        let data = Attrs::default().bytes(1, value);
        self.expr("cmp", Attrs::default().number(1, FIRST).number(2, u32::from(!equal)).nest(3, data))
    }

    fn mask(self, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).unwrap_or(4);
        let attrs = Attrs::default().number(1, FIRST).number(2, FIRST).number(3, len);
        let zero = vec![0; mask.len()];
        self.expr("bitwise", attrs.nest(4, Attrs::default().bytes(1, mask)).nest(5, Attrs::default().bytes(1, &zero)))
    }

    fn lookup(self, set: &str, into: Option<u32>) -> Self {
        let mut attrs = Attrs::default().text(1, set).number(2, FIRST);
        if let Some(register) = into {
            attrs = attrs.number(3, register);
        }
        self.expr("lookup", attrs)
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let mut verdict = Attrs::default().bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict = verdict.text(2, chain);
        }
        self.expr("immediate", Attrs::default().number(1, 0).nest(2, Attrs::default().nest(2, verdict)))
    }

    /// `meta nfproto`.
    #[must_use]
    pub fn family(self, family: u8) -> Self {
        self.meta(META_NFPROTO, FIRST).compare(true, &[family])
    }

    /// `oifname NAME`, or `oifname != NAME`.
    #[must_use]
    pub fn oifname(self, equal: bool, name: &str) -> Self {
        self.meta(META_OIFNAME, FIRST).compare(equal, &if_name(name))
    }

    /// `iifname @SET`.
    #[must_use]
    pub fn iifname_in(self, set: &str) -> Self {
        self.meta(META_IIFNAME, FIRST).lookup(set, None)
    }

    /// `oifname @SET`.
    #[must_use]
    pub fn oifname_in(self, set: &str) -> Self {
        self.meta(META_OIFNAME, FIRST).lookup(set, None)
    }

    /// `iifname . oifname @SET`.
    #[must_use]
    pub fn between_devices(self, set: &str) -> Self {
        self.meta(META_IIFNAME, FIRST).meta(META_OIFNAME, FIRST + 4).lookup(set, None)
    }

    /// `ip saddr NET` or `ip6 saddr NET`, family included.
    #[must_use]
    pub fn saddr(self, net: ipnet::IpNet) -> Self {
        self.net(net, true)
    }

    /// `ip daddr NET` or `ip6 daddr NET`, family included.
    #[must_use]
    pub fn daddr(self, net: ipnet::IpNet) -> Self {
        self.net(net, false)
    }

    fn net(self, net: ipnet::IpNet, source: bool) -> Self {
        let (family, offset, len) = match (net, source) {
            (ipnet::IpNet::V4(_), true) => (IPV4, 12, 4),
            (ipnet::IpNet::V4(_), false) => (IPV4, 16, 4),
            (ipnet::IpNet::V6(_), true) => (IPV6, 8, 16),
            (ipnet::IpNet::V6(_), false) => (IPV6, 24, 16),
        };
        let rule = self.family(family).payload(NETWORK_HEADER, offset, len, FIRST);
        let rule = if net.prefix_len() == net.max_prefix_len() { rule } else { rule.mask(&octets(net.netmask())) };
        rule.compare(true, &octets(net.network()))
    }

    /// `fib daddr type local`: an address of the host.
    #[must_use]
    pub fn daddr_is_local(self) -> Self {
        let attrs = Attrs::default().number(1, FIRST).number(2, ADDRTYPE).number(3, FIB_DADDR);
        self.expr("fib", attrs).compare(true, &LOCAL.to_ne_bytes())
    }

    /// `ct state established,related`.
    #[must_use]
    pub fn known_connection(self) -> Self {
        self.connection(CT_STATE, STATE_KNOWN)
    }

    /// `ct status dnat`: came through a published port.
    #[must_use]
    pub fn through_port(self) -> Self {
        self.connection(CT_STATUS, STATUS_DNAT)
    }

    fn connection(self, key: u32, bits: u32) -> Self {
        let rule = self.expr("ct", Attrs::default().number(1, FIRST).number(2, key));
        rule.mask(&bits.to_ne_bytes()).compare(false, &[0; 4])
    }

    /// `dnat to meta l4proto . [daddr .] th dport map @MAP`, whose values are address and port.
    #[must_use]
    pub fn dnat(self, family: u8, map: &str, with_address: bool) -> Self {
        let (offset, len, words) = if family == IPV4 { (16, 4, 1) } else { (24, 16, 4) };
        let mut rule = self.family(family).meta(META_L4PROTO, FIRST);
        let mut next = FIRST + 1;
        if with_address {
            rule = rule.payload(NETWORK_HEADER, offset, len, next);
            next += words;
        }
        // The kernel clears the rest of the register, so the key is filled up with zeros.
        rule = rule.payload(TRANSPORT_HEADER, 2, 2, next).lookup(map, Some(FIRST));
        let (address, port) = (FIRST, FIRST + words);
        let attrs = Attrs::default().number(1, 1).number(2, u32::from(family));
        rule.expr("nat", attrs.number(3, address).number(4, address).number(5, port).number(6, port))
    }

    /// `masquerade`.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.expr("masq", Attrs::default())
    }

    /// `accept`.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(1, None)
    }

    /// `drop`.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(0, None)
    }

    /// `return`.
    #[must_use]
    pub fn back(self) -> Self {
        self.verdict(-5, None)
    }

    /// `jump CHAIN`.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(-3, Some(chain))
    }
}

/// An address as it is in a packet.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
