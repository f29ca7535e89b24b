//! Which addresses the node is reached by. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::NodeAddress;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Assigned {
    /// Number of the interface.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// Valid everywhere, for good, and not on its way out.
    pub is_lasting: bool,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// Of IPv6.
    pub is_v6: bool,
    /// The smaller the better.
    pub metric: u32,
    /// Number of the interface.
    pub device: u32,
    /// Address that packets on it come from, where it says.
    pub source: Option<IpAddr>,
}

/// The network as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Addresses, in the kernel's order.
    pub addresses: Vec<Assigned>,
    /// Default routes.
    pub routes: Vec<DefaultRoute>,
}

impl Network {
    /// Addresses that the cluster reaches the node by, IPv4 before IPv6. `configured` comes before all; `towards` is the
    /// address by which the API server was reached, for boards without a default route.
    pub fn choose(&self, configured: Option<IpAddr>, towards: Option<IpAddr>) -> Vec<IpAddr> {
        if let Some(address) = configured {
            return vec![address];
        }
        let mut chosen: Vec<IpAddr> = [false, true].into_iter().filter_map(|is_v6| self.by_route(is_v6)).collect();
        if chosen.is_empty() {
            let own = towards.filter(|it| self.addresses.iter().any(|assigned| assigned.address == *it));
            chosen.extend(own.filter(is_usable));
        }
        chosen
    }

    fn by_route(&self, is_v6: bool) -> Option<IpAddr> {
        let route = self.routes.iter().filter(|it| it.is_v6 == is_v6).min_by_key(|it| (it.metric, it.device))?;
        let fits = |address: &IpAddr| address.is_ipv6() == is_v6 && is_usable(address);
        if let Some(source) = route.source.filter(fits) {
            return Some(source);
        }
        let lasting = self.addresses.iter().filter(|it| it.is_lasting && fits(&it.address));
        // An uplink without an address of its own borrows one.
        lasting.clone().find(|it| it.device == route.device).or_else(|| lasting.clone().next()).map(|it| it.address)
    }
}

fn is_usable(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// As the node's status has them.
pub fn internal(addresses: &[IpAddr]) -> Vec<NodeAddress> {
    let one = |address: &IpAddr| NodeAddress { type_: "InternalIP".to_owned(), address: address.to_string() };
    addresses.iter().map(one).collect()
}

/// Out of a node's status.
pub fn of_status(addresses: &[NodeAddress]) -> Vec<IpAddr> {
    let internal = addresses.iter().filter(|it| it.type_ == "InternalIP");
    internal.filter_map(|it| it.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(addresses: &[(u32, &str, bool)], routes: &[(u32, u32, bool, &str)]) -> Network {
        let assigned = |(device, address, is_lasting): &(u32, &str, bool)| Assigned {
            device: *device,
            address: address.parse().unwrap(),
            is_lasting: *is_lasting,
        };
        let route = |(metric, device, is_v6, source): &(u32, u32, bool, &str)| DefaultRoute {
            is_v6: *is_v6,
            metric: *metric,
            device: *device,
            source: source.parse().ok(),
        };
        Network { addresses: addresses.iter().map(assigned).collect(), routes: routes.iter().map(route).collect() }
    }

    #[test]
    fn addresses_by_the_default_route() {
        #[track_caller]
        fn check(network: &Network, want: &[&str]) {
            let got: Vec<_> =
                network.choose(None, Some("10.9.9.9".parse().unwrap())).iter().map(IpAddr::to_string).collect();
            assert_eq!(got, want);
        }
        let lan = (2, "192.168.1.5", true);
        let wifi = (3, "10.0.0.7", true);
        check(&network(&[wifi, lan], &[(100, 2, false, ""), (600, 3, false, "")]), &["192.168.1.5"]);
        check(&network(&[wifi, lan], &[(700, 2, false, ""), (600, 3, false, "")]), &["10.0.0.7"]);
        check(&network(&[wifi, lan], &[(100, 2, false, "10.0.0.7")]), &["10.0.0.7"]);
        // The uplink has no address of its own, or only one that is going.
        check(&network(&[wifi, (2, "192.168.1.5", false)], &[(1, 2, false, "")]), &["10.0.0.7"]);
        check(&network(&[wifi, lan], &[(1, 9, false, "")]), &["10.0.0.7"]);
        // Both families.
        let six = (2, "2001:db8::5", true);
        check(&network(&[lan, six], &[(1, 2, false, ""), (1, 2, true, "")]), &["192.168.1.5", "2001:db8::5"]);
        check(&network(&[six], &[(1, 2, true, "")]), &["2001:db8::5"]);
        // No default route: that towards the API server, if it is ours.
        check(&network(&[lan], &[]), &[]);
        check(&network(&[(4, "10.9.9.9", true)], &[]), &["10.9.9.9"]);
        check(&network(&[(1, "127.0.0.1", true)], &[(1, 1, false, "")]), &[]);
    }

    #[test]
    fn what_is_configured_comes_first() {
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let network = network(&[(2, "192.168.1.5", true)], &[(1, 2, false, "")]);
        assert_eq!(network.choose(Some(address), None), [address]);
        assert_eq!(of_status(&internal(&[address])), [address]);
    }
}
