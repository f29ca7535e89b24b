//! Which address comes next. Pure: what is in use is given.
//!
//! The search begins at a place made from the sandbox's id and goes round. So a container that comes back finds its
//! former address free more often than not, and one just given back is rarely another's at once.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

/// Whether `address` is one that a container on `subnet` may have.
pub fn usable(subnet: Ipv4Net, gateway: Ipv4Addr, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != gateway && address != subnet.network() && address != subnet.broadcast()
}

/// A free address of `subnet`; none where all are used.
pub fn choose(subnet: Ipv4Net, gateway: Ipv4Addr, used: &HashSet<IpAddr>, seed: &str) -> Option<Ipv4Addr> {
    let first = u32::from(subnet.network()).checked_add(1)?;
    let count = u32::from(subnet.broadcast()).checked_sub(first)?;
    let start = place(seed).checked_rem(count)?;
    let all = (start..count).chain(0..start).map(|offset| Ipv4Addr::from(first + offset));
    all.into_iter().find(|address| *address != gateway && !used.contains(&IpAddr::V4(*address)))
}

/// The IPv6 address that goes with an IPv4 address: the host part is the IPv4 address, which no one else has.
pub fn beside(subnet: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | u128::from(u32::from(address)))
}

/// A free IPv6 address: that beside the IPv4 address, or where another asked for just that one, a following one.
pub fn choose6(subnet: Ipv6Net, gateway: Ipv6Addr, beside_of: Ipv4Addr, used: &HashSet<IpAddr>) -> Option<Ipv6Addr> {
    let first = u128::from(beside(subnet, beside_of));
    let after = u128::from(subnet.network()) + (1 << 32);
    let mut all = std::iter::once(first).chain(after..after + 65536).map(Ipv6Addr::from);
    all.find(|address| subnet.contains(address) && *address != gateway && !used.contains(&IpAddr::V6(*address)))
}

fn place(seed: &str) -> u32 {
    let digest = ring::digest::digest(&ring::digest::SHA256, seed.as_bytes());
    digest.as_ref().iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Subnets for networks that name none: /24 of 10.89.0.0 to 10.127.255.0, then /24 of 172.19.0.0 to 172.31.255.0. An
/// engine with an instance of its own begins elsewhere among them: what another has chosen, and not yet made, no route
/// tells.
pub fn candidates(instance: &str) -> impl Iterator<Item = Ipv4Net> {
    const COUNT: usize = (128 - 89 + 32 - 19) * 256;
    let tens = || (89..128u8).flat_map(|b| (0..=255u8).map(move |c| Ipv4Addr::new(10, b, c, 0)));
    let others = || (19..32u8).flat_map(|b| (0..=255u8).map(move |c| Ipv4Addr::new(172, b, c, 0)));
    let all = move || tens().chain(others()).map(|address| Ipv4Net::new_assert(address, 24));
    let start = if instance.is_empty() { 0 } else { place(instance) as usize % COUNT };
    all().skip(start).chain(all().take(start))
}

/// The subnet that the default network of an engine with an instance of its own is to have.
pub fn default_of(instance: &str) -> Ipv4Net {
    let [.., last] = place(instance).to_be_bytes();
    Ipv4Net::new_assert(Ipv4Addr::new(10, 128 | last, 0, 0), 16)
}

/// Subnets for the default network: the wanted one, then others of the same size or /16.
pub fn default_candidates(wanted: Ipv4Net) -> impl Iterator<Item = Ipv4Net> {
    let tens = (128..=255u8).map(|b| Ipv4Net::new_assert(Ipv4Addr::new(10, b, 0, 0), 16));
    let others = (16..19u8).map(|b| Ipv4Net::new_assert(Ipv4Addr::new(172, b, 0, 0), 16));
    let last = (96..=240u8).step_by(16).map(|c| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, c, 0), 20));
    std::iter::once(wanted).chain(tens).chain(others).chain(last)
}

/// Whether two subnets share an address.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_given_out_whole_and_no_further() {
        #[track_caller]
        fn check(subnet: &str, gateway: [u8; 4], want: usize) {
            let mut used = HashSet::new();
            let subnet = net(subnet);
            while let Some(address) = choose(subnet, gateway.into(), &used, &format!("box{}", used.len() % 7)) {
                assert!(usable(subnet, gateway.into(), address), "{address}");
                assert!(used.insert(address.into()), "{address} twice");
            }
            assert_eq!(used.len(), want);
        }
        check("10.0.0.0/24", [10, 0, 0, 1], 253);
        check("10.0.0.0/30", [10, 0, 0, 1], 1);
        check("10.0.0.0/29", [10, 0, 0, 6], 5);
        check("10.0.0.0/31", [10, 0, 0, 1], 0);
        check("10.0.0.0/32", [10, 0, 0, 0], 0);
        check("255.255.255.252/30", [255, 255, 255, 253], 1);
    }

    #[test]
    fn the_same_sandbox_gets_the_same_address_where_it_is_free() {
        let (subnet, gateway) = (net("10.88.0.0/16"), Ipv4Addr::new(10, 88, 0, 1));
        let first = choose(subnet, gateway, &HashSet::new(), "a").unwrap();
        assert_eq!(choose(subnet, gateway, &HashSet::new(), "a"), Some(first));
        assert_ne!(choose(subnet, gateway, &HashSet::from([first.into()]), "a"), Some(first));
    }

    #[test]
    fn ipv6_goes_beside_ipv4() {
        let subnet: Ipv6Net = "fd00:1::/64".parse().unwrap();
        let gateway: Ipv6Addr = "fd00:1::1".parse().unwrap();
        let four = Ipv4Addr::new(10, 88, 0, 5);
        let six = choose6(subnet, gateway, four, &HashSet::new()).unwrap();
        assert_eq!(six, "fd00:1::a58:5".parse::<Ipv6Addr>().unwrap());
        let other = choose6(subnet, gateway, four, &HashSet::from([six.into()])).unwrap();
        assert!(other != six && subnet.contains(&other));
    }

    proptest! {
        #[test]
        fn never_twice_and_always_given_back(steps in prop::collection::vec((0u8..30, any::<bool>()), 0..200)) {
            let (subnet, gateway) = (net("10.9.9.0/28"), Ipv4Addr::new(10, 9, 9, 1));
            let mut held: std::collections::BTreeMap<u8, Ipv4Addr> = std::collections::BTreeMap::new();
            for (who, take) in steps {
                if !take {
                    held.remove(&who);
                } else if !held.contains_key(&who) {
                    let used: HashSet<IpAddr> = held.values().map(|address| IpAddr::V4(*address)).collect();
                    let Some(address) = choose(subnet, gateway, &used, &who.to_string()) else {
                        prop_assert_eq!(held.len(), 13);
                        continue;
                    };
                    prop_assert!(usable(subnet, gateway, address) && !used.contains(&address.into()));
                    held.insert(who, address);
                }
            }
        }
    }
}
