//! The records in memory: who is on which network with which addresses and ports. Decides; touches nothing but ports,
//! which have to be bound to be known free.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    error::{AttachError, NetworkError, protocol_name},
    ipam,
    link::{self, Device},
    ports::{self, Held},
    record::{Endpoint, Sandbox, key},
    rules::Redirect,
    types::{
        AttachRequest, Attached, BoundPort, DEFAULT_NETWORK, EndpointInfo, Interface, Network, NetworkInfo, NetworkSpec,
    },
};
use crate::{
    container::{Attachment, NetworkMode, PortMapping},
    owner::Owner,
};

/// Most ports one sandbox may publish.
const MAX_PORTS: usize = 4096;
/// Most networks one sandbox may be on.
const MAX_NETWORKS: usize = 64;

#[derive(Default)]
pub(super) struct Book {
    pub networks: BTreeMap<String, Network>,
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// Bound sockets of published ports.
    pub held: HashMap<String, Vec<Held>>,
    /// Where name servers are reached, by network.
    pub resolvers: BTreeMap<String, Vec<Redirect>>,
    /// The engine's, for names of devices.
    pub instance: String,
}

impl Book {
    /// The key of the network that `owner` means by `name`.
    pub fn resolve(&self, owner: &Owner, name: &str) -> Result<String, NetworkError> {
        let local = key(&Owner::Local, DEFAULT_NETWORK);
        let key = if name == DEFAULT_NETWORK { local } else { key(owner, name) };
        if self.networks.contains_key(&key) { Ok(key) } else { Err(NetworkError::NotFound(name.to_owned())) }
    }

    pub fn info(&self, key: &str) -> Option<NetworkInfo> {
        let network = self.networks.get(key)?.clone();
        let on = self.sandboxes.values().flat_map(|sandbox| {
            let here = sandbox.endpoints.iter().filter(|endpoint| endpoint.network == key);
            here.map(|endpoint| EndpointInfo {
                sandbox: sandbox.id.clone(),
                name: sandbox.label().to_owned(),
                interface: endpoint.interface.clone(),
            })
        });
        Some(NetworkInfo { network, endpoints: on.collect() })
    }

    /// Checks and records a new network; `routes` are the host's, which it must not hide.
    pub fn add_network(
        &mut self,
        owner: &Owner,
        spec: NetworkSpec,
        routes: &[Ipv4Net],
        created_ns: i64,
    ) -> Result<Network, NetworkError> {
        check_name(&spec.name)?;
        let key = key(owner, &spec.name);
        if self.networks.contains_key(&key) || spec.name == DEFAULT_NETWORK {
            return Err(NetworkError::Exists(spec.name));
        }
        let subnet = match spec.subnet {
            Some(subnet) => self.check_subnet(subnet, routes)?,
            None => ipam::candidates(&self.instance)
                .find(|subnet| self.check_subnet(*subnet, routes).is_ok())
                .ok_or(NetworkError::NoSubnet)?,
        };
        let gateway = spec.gateway.unwrap_or_else(|| first_of(subnet));
        if !ipam::usable(subnet, Ipv4Addr::UNSPECIFIED, gateway) {
            let why = format!("gateway {gateway} is not an address of {subnet}: choose one between its ends");
            return Err(NetworkError::Invalid(why));
        }
        let ipv6 = spec.ipv6.map(|net| self.check_ipv6(net)).transpose()?;
        let device = Device::Bridge.name(&self.instance, &[&owner.to_string(), &spec.name]);
        let id = id_of(&key, created_ns);
        let network = Network {
            name: spec.name,
            owner: owner.clone(),
            id,
            device,
            subnet,
            gateway,
            gateway6: ipv6.map(|net| ipam::beside(net, Ipv4Addr::new(0, 0, 0, 1))),
            ipv6,
            internal: spec.internal,
            labels: spec.labels,
            created_ns,
        };
        self.networks.insert(key, network.clone());
        Ok(network)
    }

    fn check_subnet(&self, subnet: Ipv4Net, routes: &[Ipv4Net]) -> Result<Ipv4Net, NetworkError> {
        let subnet = subnet.trunc();
        if !(8..=30).contains(&subnet.prefix_len()) {
            return Err(NetworkError::Invalid(format!("subnet {subnet} is no use: its length must be 8 to 30")));
        }
        let inner = self.networks.values().find(|network| ipam::overlap(network.subnet, subnet));
        let with = inner.map(|network| format!("network {:?} ({})", network.name, network.subnet)).or_else(|| {
            let route = routes.iter().find(|route| ipam::overlap(**route, subnet));
            route.map(|route| format!("a route of this host ({route})"))
        });
        with.map_or(Ok(subnet), |with| Err(NetworkError::Overlap { subnet: subnet.to_string(), with }))
    }

    fn check_ipv6(&self, net: Ipv6Net) -> Result<Ipv6Net, NetworkError> {
        let net = net.trunc();
        if !(16..=96).contains(&net.prefix_len()) {
            return Err(NetworkError::Invalid(format!("IPv6 subnet {net} is no use: its length must be 16 to 96")));
        }
        let hides = |other: Ipv6Net| other.contains(&net.network()) || net.contains(&other.network());
        let other = self.networks.values().find(|network| network.ipv6.is_some_and(hides));
        other.map_or(Ok(net), |other| {
            let with = format!("network {:?}", other.name);
            Err(NetworkError::Overlap { subnet: net.to_string(), with })
        })
    }

    /// The default network: as recorded, or anew where nothing uses it and the wish or the host's routes changed.
    pub fn default_network(&mut self, wanted: &super::Options, routes: &[Ipv4Net], now_ns: i64) -> Option<Network> {
        let key = key(&Owner::Local, DEFAULT_NETWORK);
        let in_use = self.info(&key).is_some_and(|info| !info.endpoints.is_empty());
        let collides = |subnet: Ipv4Net| routes.iter().any(|route| ipam::overlap(*route, subnet));
        let ipv6 = wanted.ipv6.filter(|net| net.prefix_len() <= 96);
        if let Some(old) = self.networks.get(&key) {
            let moved = old.subnet != wanted.subnet && !collides(wanted.subnet);
            if in_use || !(moved || collides(old.subnet) || old.device != wanted.device || old.ipv6 != ipv6) {
                return None;
            }
        }
        let others: Vec<_> = self.networks.iter().filter(|(other, _)| **other != key).map(|(_, n)| n.subnet).collect();
        let free = |subnet: &Ipv4Net| !collides(*subnet) && !others.iter().any(|other| ipam::overlap(*other, *subnet));
        let usable = |subnet: &Ipv4Net| (8..=30).contains(&subnet.prefix_len());
        let subnet = ipam::default_candidates(wanted.subnet.trunc()).filter(usable).find(free)?;
        let network = Network {
            name: DEFAULT_NETWORK.into(),
            owner: Owner::Local,
            id: id_of(&key, now_ns),
            device: wanted.device.clone(),
            subnet,
            gateway: first_of(subnet),
            gateway6: ipv6.map(|net| ipam::beside(net.trunc(), Ipv4Addr::new(0, 0, 0, 1))),
            ipv6: ipv6.map(|net| net.trunc()),
            internal: false,
            labels: BTreeMap::new(),
            created_ns: now_ns,
        };
        self.networks.insert(key, network.clone());
        Some(network)
    }

    /// Everything that the table has to lead on.
    pub fn redirects(&self) -> Vec<Redirect> {
        let ports = self.sandboxes.values().flat_map(Sandbox::redirects);
        self.resolvers.values().flatten().cloned().chain(ports).collect()
    }

    /// [`Book::reserve`] for one that may have been there before (`former`, of which nothing is left on the host): with the addresses it had,
    /// where its networks still have them. On errors a pod's record stays, so that nobody else gets its addresses.
    pub fn reserve_again(
        &mut self,
        request: &AttachRequest,
        former: Option<Sandbox>,
        run: &Path,
        cni: bool,
    ) -> Result<Sandbox, AttachError> {
        let Some(former) = former else { return self.reserve(request, run, cni) };
        self.sandboxes.remove(&former.id);
        self.held.remove(&former.id);
        let reserved = self.reserve_at(request, &former.endpoints, run, cni);
        if reserved.is_err() && former.is_pods() {
            self.sandboxes.insert(former.id.clone(), Sandbox { complete: false, ..former });
        }
        reserved
    }

    /// Takes addresses and ports for a sandbox; all or nothing.
    ///
    /// With `cni` the default network is that of the plugins, which choose addresses themselves.
    pub fn reserve(&mut self, request: &AttachRequest, run: &Path, cni: bool) -> Result<Sandbox, AttachError> {
        self.reserve_at(request, &[], run, cni)
    }

    fn reserve_at(
        &mut self,
        request: &AttachRequest,
        former: &[Endpoint],
        run: &Path,
        cni: bool,
    ) -> Result<Sandbox, AttachError> {
        check_id(&request.sandbox)?;
        let wanted = match &request.mode {
            NetworkMode::Bridge if cni => Vec::new(),
            NetworkMode::Bridge => vec![Attachment { network: DEFAULT_NETWORK.into(), ..Attachment::default() }],
            NetworkMode::Networks(list) => list.clone(),
            _ => Vec::new(),
        };
        if wanted.len() > MAX_NETWORKS || request.ports.len() > MAX_PORTS {
            let why = format!("{} networks or {} ports are too many", wanted.len(), request.ports.len());
            return Err(NetworkError::Invalid(why).into());
        }
        let mut sandbox = Sandbox {
            id: request.sandbox.clone(),
            owner: request.owner.clone(),
            netns: run.join("netns").join(&request.sandbox),
            hostname: request.hostname.clone(),
            names: request.names.clone(),
            endpoints: Vec::new(),
            ports: Vec::new(),
            complete: false,
            cni: None,
        };
        for attachment in &wanted {
            let before = self.had_before(&sandbox.owner, attachment, former);
            let endpoint = self.endpoint(&sandbox, before.as_ref().unwrap_or(attachment))?;
            sandbox.endpoints.push(endpoint);
        }
        let open = sandbox.endpoints.iter().any(|endpoint| !endpoint.internal);
        let ipv6 = sandbox.endpoints.iter().any(|e| e.interface.addresses.iter().any(|net| net.addr().is_ipv6()));
        if !open && !request.ports.is_empty() && !wanted.is_empty() {
            let why = "ports cannot be published from internal networks: add a network that is not internal";
            return Err(NetworkError::Invalid(why.into()).into());
        }
        let mut held = Vec::new();
        for port in &request.ports {
            let (bound, hold) = self.bind(&sandbox, port, ipv6)?;
            sandbox.ports.push(bound);
            held.push(hold);
        }
        self.held.insert(sandbox.id.clone(), held);
        self.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        Ok(sandbox)
    }

    /// The wish for the address that it had on this network, where it has no other wish and the address can still be had.
    fn had_before(&self, owner: &Owner, wanted: &Attachment, former: &[Endpoint]) -> Option<Attachment> {
        let key = self.resolve(owner, &wanted.network).ok().filter(|_| wanted.address.is_none())?;
        let before = former.iter().find(|endpoint| endpoint.network == key)?;
        let address = before.interface.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4)?;
        self.check_address(&key, self.networks.get(&key)?, address).ok()?;
        Some(Attachment { address: Some(address), ..wanted.clone() })
    }

    /// Chooses addresses on one network for a sandbox that is not on it.
    pub fn endpoint(&self, sandbox: &Sandbox, wanted: &Attachment) -> Result<Endpoint, AttachError> {
        let key = self.resolve(&sandbox.owner, &wanted.network)?;
        let network = &self.networks[&key];
        if sandbox.endpoints.iter().any(|endpoint| endpoint.network == key) {
            let (sandbox, network) = (sandbox.label().to_owned(), network.name.clone());
            return Err(AttachError::AlreadyThere { sandbox, network });
        }
        let used: HashSet<IpAddr> = self.addresses(&key).map(|(address, _)| address).collect();
        let exhausted = || AttachError::Exhausted { network: network.name.clone(), subnet: network.subnet.to_string() };
        if let Some(address) = wanted.address {
            self.check_address(&key, network, address)?;
        }
        let four = match wanted.address {
            Some(IpAddr::V4(address)) => address,
            _ => ipam::choose(network.subnet, network.gateway, &used, &sandbox.id).ok_or_else(exhausted)?,
        };
        let six = match (network.ipv6.zip(network.gateway6), wanted.address) {
            (Some(_), Some(IpAddr::V6(address))) => Some(address),
            (Some((net, gateway)), _) => Some(ipam::choose6(net, gateway, four, &used).ok_or_else(exhausted)?),
            (None, _) => None,
        };
        let mut addresses = vec![with_len(four.into(), network.subnet.prefix_len())];
        addresses.extend(six.zip(network.ipv6).map(|(address, net)| with_len(address.into(), net.prefix_len())));
        let mut gateways: Vec<IpAddr> = vec![network.gateway.into()];
        gateways.extend(network.gateway6.map(IpAddr::V6));
        if network.internal {
            gateways.clear();
        }
        let number =
            (0..=MAX_NETWORKS).find(|n| sandbox.endpoints.iter().all(|e| e.interface.name != format!("eth{n}")));
        let name = format!("eth{}", number.unwrap_or(0));
        Ok(Endpoint {
            // Another each time: the former device of a container that comes back may be on its way out.
            device: Device::Veth.name(&self.instance, &[&sandbox.id, &name, &super::now_ns().to_string()]),
            interface: Interface {
                name,
                network: network.name.clone(),
                mac: link::mac_text(link::mac_of(four)),
                addresses,
                gateways,
            },
            aliases: wanted.aliases.clone(),
            internal: network.internal,
            network: key,
        })
    }

    fn addresses(&self, key: &str) -> impl Iterator<Item = (IpAddr, &Sandbox)> {
        self.sandboxes.values().flat_map(move |sandbox| {
            let here = sandbox.endpoints.iter().filter(move |endpoint| endpoint.network == key);
            here.flat_map(|endpoint| &endpoint.interface.addresses).map(move |net| (net.addr(), sandbox))
        })
    }

    fn check_address(&self, key: &str, network: &Network, address: IpAddr) -> Result<(), AttachError> {
        let (fits, subnet) = match address {
            IpAddr::V4(four) => (ipam::usable(network.subnet, network.gateway, four), network.subnet.to_string()),
            IpAddr::V6(six) => {
                let inside = network.ipv6.is_some_and(|net| net.contains(&six) && six != net.network());
                let subnet = network.ipv6.map_or("IPv4 alone".to_owned(), |net| net.to_string());
                (inside && network.gateway6 != Some(six), subnet)
            }
        };
        let name = || network.name.clone();
        if !fits {
            return Err(AttachError::AddressOutside { address, network: name(), subnet });
        }
        match self.addresses(key).find(|(used, _)| *used == address) {
            Some((_, by)) => Err(AttachError::AddressTaken { address, network: name(), holder: by.label().to_owned() }),
            None => Ok(()),
        }
    }

    fn bind(&self, sandbox: &Sandbox, wanted: &PortMapping, v6: bool) -> Result<(BoundPort, Held), AttachError> {
        let address = wanted.host_address;
        let protocol = protocol_name(wanted.protocol);
        let shown = address.map_or("all addresses".to_owned(), |address| address.to_string());
        if wanted.container_port == 0 {
            return Err(NetworkError::Invalid("port 0 of a container cannot be published".into()).into());
        }
        if let Some(address) = address.filter(|address| address.is_ipv6() && !v6 && !sandbox.endpoints.is_empty()) {
            let why = format!("{address} cannot be published: no network of the container has IPv6");
            return Err(NetworkError::Invalid(why).into());
        }
        let clash = |port: &BoundPort| {
            let any = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
            port.protocol == wanted.protocol
                && port.host_port == wanted.host_port
                && (any(port.host_address) || any(address) || port.host_address == address)
        };
        let holder =
            std::iter::once(sandbox).chain(self.sandboxes.values()).find(|other| other.ports.iter().any(clash));
        let taken = |holder: String| AttachError::PortTaken {
            port: wanted.host_port,
            protocol,
            address: shown.clone(),
            holder,
        };
        if let Some(holder) = holder.filter(|_| wanted.host_port != 0) {
            return Err(taken(format!("container {:?}", holder.label())));
        }
        match ports::hold(wanted.protocol, address, wanted.host_port, v6) {
            Ok((host_port, held)) => Ok((
                BoundPort {
                    host_address: address,
                    host_port,
                    container_port: wanted.container_port,
                    protocol: wanted.protocol,
                },
                held,
            )),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = ports::holder(wanted.protocol, wanted.host_port);
                Err(taken(holder.unwrap_or_else(|| "another program of this host".into())))
            }
            Err(source) => Err(AttachError::PortRefused { port: wanted.host_port, protocol, address: shown, source }),
        }
    }

    /// A sandbox's network as it is told.
    pub fn attached(&self, sandbox: &Sandbox) -> Attached {
        if let Some(cni) = &sandbox.cni {
            return cni.clone();
        }
        let mut attached = Attached { netns: Some(sandbox.netns.clone()), ..Attached::default() };
        attached.ports.clone_from(&sandbox.ports);
        attached.interfaces = sandbox.endpoints.iter().map(|endpoint| endpoint.interface.clone()).collect();
        let networks = || sandbox.endpoints.iter().filter_map(|endpoint| self.networks.get(&endpoint.network));
        attached.host_gateway = networks().next().map(|network| network.gateway.into());
        // One server is enough, and the right one: it answers for all networks of whoever asks.
        let named = networks().find(|network| network.name != DEFAULT_NETWORK);
        attached.dns = named.map(|network| network.gateway.into()).into_iter().collect();
        attached
    }
}

fn with_len(address: IpAddr, len: u8) -> IpNet {
    // The length is that of a subnet of the same family.
    IpNet::new(address, len).unwrap_or_else(|_| address.into())
}

fn first_of(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

fn id_of(key: &str, created_ns: i64) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{key}\0{created_ns}").as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_name(name: &str) -> Result<(), NetworkError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(plain);
    if good && name.len() <= 128 && !matches!(name, "host" | "none" | "default" | "container") {
        return Ok(());
    }
    let name: String = name.chars().take(130).collect();
    let why = format!(
        "{name:?} cannot be the name of a network: up to 128 letters, digits, '_', '.' or '-', a letter or \
        digit first, and none of host, none, default, container"
    );
    Err(NetworkError::Invalid(why))
}

pub(super) fn check_id(id: &str) -> Result<(), NetworkError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if (1..=128).contains(&id.len()) && id.bytes().all(plain) && !id.starts_with('.') {
        return Ok(());
    }
    let id: String = id.chars().take(130).collect();
    Err(NetworkError::Invalid(format!("{id:?} cannot be a sandbox: up to 128 letters, digits, '_', '.' or '-'")))
}

#[cfg(test)]
mod tests;
