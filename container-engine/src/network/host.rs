//! The host's side of networks: bridges, veth pairs, namespaces and the table, through one socket each. Blocking.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::{IpNet, Ipv4Net};
use tokio::task::JoinSet;

use super::{
    book::Book,
    conntrack,
    error::NetworkError,
    link::{self, Link},
    netlink::Netlink,
    nft::{self, Batch},
    record::{Endpoint, Sandbox},
    rules::{self, Redirect},
    sysctl,
    types::Network,
};
use crate::{container::Protocol, sys::netns};

pub(super) struct Host {
    route: Mutex<Netlink>,
    /// Opened when it is first needed: without nf_tables in the kernel there are still images, and containers that need no
    /// rules.
    table: Mutex<Option<Netlink>>,
    /// The table's name.
    table_name: String,
    /// Bridges that were made or found, and what they are.
    ready: Mutex<BTreeMap<String, Link>>,
    mtu: Option<u32>,
    /// Devices that carry nothing any more and are to be removed.
    doomed: Mutex<Vec<String>>,
    /// Who removes them.
    janitor: Mutex<JoinSet<()>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// `table_name`: the table of rules, which is this engine's alone.
    pub fn open(mtu: Option<u32>, table_name: String) -> Result<Self, NetworkError> {
        let route = Netlink::route().map_err(NetworkError::kernel("open a netlink socket for routes"))?;
        Ok(Self {
            route: Mutex::new(route),
            table: Mutex::default(),
            table_name,
            ready: Mutex::default(),
            mtu,
            doomed: Mutex::default(),
            janitor: Mutex::default(),
        })
    }

    /// Subnets that the host has routes for, but for those of the bridges given.
    pub fn foreign_routes(&self, bridges: &BTreeSet<String>) -> Result<Vec<Ipv4Net>, NetworkError> {
        let mut socket = lock(&self.route);
        let read = |error| NetworkError::Kernel { step: "read the host's routes".into(), source: error };
        let ours: BTreeSet<u32> = link::links(&mut socket)
            .map_err(read)?
            .into_iter()
            .filter(|(name, _)| bridges.contains(name))
            .map(|(_, link)| link.index)
            .collect();
        let routes = link::routes(&mut socket).map_err(read)?.into_iter();
        Ok(routes
            .filter(|route| route.device.is_none_or(|device| !ours.contains(&device)))
            .filter_map(|route| match route.to {
                IpNet::V4(net) if net.prefix_len() > 0 => Some(net),
                _ => None,
            })
            .collect())
    }

    pub fn links(&self) -> io::Result<BTreeMap<String, Link>> {
        link::links(&mut lock(&self.route))
    }

    /// MTU of the device of the default route.
    fn uplink_mtu(&self, socket: &mut Netlink) -> u32 {
        let mut find = || -> io::Result<Option<u32>> {
            let uplink = link::routes(socket)?.into_iter().find(|route| route.to.prefix_len() == 0);
            let Some(index) = uplink.and_then(|route| route.device) else { return Ok(None) };
            Ok(link::links(socket)?.into_values().find(|link| link.index == index).map(|link| link.mtu))
        };
        // Loopback as uplink would give 65536, which no bridge takes.
        self.mtu.or(find().ok().flatten()).unwrap_or(1500).clamp(1280, 65535)
    }

    /// Makes the bridge of a network with its address, if it is not there; true where it was made or found just now, so
    /// that the rules must be made again.
    pub fn ensure_bridge(&self, network: &Network) -> Result<bool, NetworkError> {
        if lock(&self.ready).contains_key(&network.device) {
            return Ok(false);
        }
        let device = &network.device;
        let mut socket = lock(&self.route);
        let failed = |what: &str| NetworkError::kernel(format!("{what} bridge {device:?}"));
        let mtu = self.uplink_mtu(&mut socket);
        let made = socket.transact(&[link::bridge(device, link::mac_of(network.gateway), mtu)]);
        match made.map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("make"))?,
        }
        let found = link::links(&mut socket).map_err(failed("find"))?.remove(device);
        let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).map_err(failed("find"))?;
        if found.kind != "bridge" {
            let why = format!("device {device:?} of this host is no bridge: name another with engine.bridge");
            return Err(NetworkError::Invalid(why));
        }
        sysctl::prepare_bridge(device, network.ipv6.is_some()).map_err(failed("set up"))?;
        let mut requests = vec![link::up(device)];
        requests.push(link::address(found.index, with_len(network.gateway.into(), network.subnet.prefix_len())));
        if let Some((net, gateway)) = network.ipv6.zip(network.gateway6) {
            requests.push(link::address(found.index, with_len(gateway.into(), net.prefix_len())));
        }
        socket.transact(&requests).map_err(io::Error::from).map_err(failed("set the address of"))?;
        if !network.internal {
            sysctl::forward_ipv4().map_err(NetworkError::kernel("make the host forward IPv4"))?;
            if network.ipv6.is_some() {
                sysctl::forward_ipv6().map_err(NetworkError::kernel("make the host forward IPv6"))?;
            }
        }
        drop(socket);
        lock(&self.ready).insert(device.clone(), found);
        Ok(true)
    }

    /// Whether a bridge was made or found by this process.
    pub fn is_ready(&self, device: &str) -> bool {
        lock(&self.ready).contains_key(device)
    }

    /// Has a bridge looked at again when it is next needed.
    pub fn forget_bridge(&self, device: &str) {
        lock(&self.ready).remove(device);
    }

    /// Makes a device a port of a bridge that sends back what it gets.
    pub fn enslave(&self, device: &str, bridge: u32) -> io::Result<()> {
        Ok(lock(&self.route).transact(&[link::enslave(device, bridge), link::hairpin(device)])?)
    }

    /// Removes a device; one that is not there is no error.
    pub fn delete_link(&self, device: &str) -> io::Result<()> {
        lock(&self.ready).remove(device);
        match lock(&self.route).transact(&[link::delete(device)]).map_err(io::Error::from) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Makes a namespace with loopback up, held at `path`. Returns it and a socket inside.
    pub fn make_namespace(path: &Path, ipv6: bool) -> Result<(File, Netlink), NetworkError> {
        let folder = path.parent().unwrap_or(path);
        let step = || format!("make the network namespace {}", path.display());
        board::durable::create_dir_all(folder, 0o755).map_err(NetworkError::kernel(step()))?;
        let made = netns::create(Some(path), |_| {
            sysctl::prepare_namespace()?;
            sysctl::ipv6_for_new_devices(ipv6)?;
            let mut socket = Netlink::route()?;
            socket.transact(&[link::up("lo")])?;
            Ok(socket)
        });
        made.map_err(NetworkError::kernel(step()))
    }

    /// Opens a held namespace and a socket inside; new devices there get IPv6 where told.
    pub fn open_namespace(path: &Path, ipv6: Option<bool>) -> Result<(File, Netlink), NetworkError> {
        let open = || {
            let namespace = File::open(path)?;
            let socket = netns::within(namespace.as_fd(), || {
                ipv6.map_or(Ok(()), sysctl::ipv6_for_new_devices)?;
                Netlink::route()
            })?;
            Ok((namespace, socket))
        };
        open().map_err(NetworkError::kernel(format!("enter the network namespace {}", path.display())))
    }

    /// Connects a namespace to the bridge of `network`. The default route leads there where `default`.
    pub fn plug(
        &self,
        namespace: BorrowedFd<'_>,
        inside: &mut Netlink,
        endpoint: &Endpoint,
        network: &Network,
        default: bool,
    ) -> Result<(), NetworkError> {
        let name = &endpoint.interface.name;
        let step = || format!("connect {name} to network {:?}", network.name);
        let bridge = lock(&self.ready).get(&network.device).cloned();
        let bridge = bridge.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let bridge = bridge.map_err(NetworkError::kernel(step()))?;
        let four = endpoint.interface.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let mac = link::mac_of(four.unwrap_or(Ipv4Addr::UNSPECIFIED));
        {
            let mut socket = lock(&self.route);
            let pair = link::veth(&endpoint.device, &bridge, name, mac, namespace);
            socket
                .transact(&[pair, link::hairpin(&endpoint.device)])
                .map_err(io::Error::from)
                .map_err(NetworkError::kernel(step()))?;
        }
        let mut run = || -> io::Result<()> {
            let found = link::links(inside)?.remove(name).ok_or(io::ErrorKind::NotFound)?;
            let mut requests: Vec<_> =
                endpoint.interface.addresses.iter().map(|net| link::address(found.index, *net)).collect();
            requests.push(link::up(name));
            if default {
                requests.extend(endpoint.interface.gateways.iter().map(|to| link::default_route(found.index, *to)));
            }
            Ok(inside.transact(&requests)?)
        };
        run().map_err(NetworkError::kernel(step()))
    }

    /// Sets the default route of a namespace.
    pub fn route_through(inside: &mut Netlink, endpoint: &Endpoint) -> io::Result<()> {
        let found = link::links(inside)?.remove(&endpoint.interface.name).ok_or(io::ErrorKind::NotFound)?;
        let gateways = endpoint.interface.gateways.iter();
        let requests: Vec<_> = gateways.map(|to| link::default_route(found.index, *to)).collect();
        Ok(inside.transact(&requests)?)
    }

    /// Takes the devices of a sandbox off the network, lets go of its namespace, and has the devices removed soon after:
    /// the kernel takes tens of milliseconds for it, and nobody needs to wait. In a thread of the runtime.
    pub fn unplug(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), NetworkError> {
        for endpoint in &sandbox.endpoints {
            match lock(&self.route).transact(&[link::cut_off(&endpoint.device)]).map_err(io::Error::from) {
                // Its bridge is gone or down, or it is itself: it carries nothing.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENETDOWN | libc::EOPNOTSUPP)) => {}
                other => {
                    let step = format!("take device {:?} of {} off its network", endpoint.device, sandbox.label());
                    other.map_err(NetworkError::kernel(step))?;
                }
            }
            lock(&self.doomed).push(endpoint.device.clone());
        }
        let step = format!("release the network namespace {}", sandbox.netns.display());
        netns::release(&sandbox.netns).map_err(NetworkError::kernel(step))?;
        let host = self.clone();
        let mut janitor = lock(&self.janitor);
        while janitor.try_join_next().is_some() {}
        janitor.spawn_blocking(move || host.remove_doomed());
        Ok(())
    }

    /// Removes what waits to be removed, all in one go: the kernel's waiting is then done once.
    pub fn remove_doomed(&self) {
        let devices = std::mem::take(&mut *lock(&self.doomed));
        if devices.is_empty() {
            return;
        }
        let mut requests: Vec<_> = devices.iter().map(|device| link::doom(device)).collect();
        requests.push(link::delete_doomed());
        // A socket of its own: others need not wait for this one. What is gone already is no error.
        let done = Netlink::route().and_then(|mut socket| socket.transact(&requests).map_err(io::Error::from));
        if let Err(error) = done
            && error.raw_os_error() != Some(libc::ENODEV)
        {
            tracing::warn!(%error, ?devices, "devices of removed containers are left; `recover` removes them");
        }
    }

    /// Makes the table again where somebody removed it: `nft flush ruleset` is the first line of many a firewall.
    pub fn ensure_table(&self, book: &Mutex<Book>) -> Result<(), NetworkError> {
        let there = self.table(|socket| nft::has_table(socket, &self.table_name));
        if there.map_err(NetworkError::kernel("look at the rules for networks (nf_tables)"))? {
            return Ok(());
        }
        tracing::warn!("somebody removed the rules of containers' networks; they are made again");
        self.rebuild(book)
    }

    /// Adds what leads to a sandbox.
    pub fn publish(&self, redirects: &[Redirect]) -> Result<(), NetworkError> {
        let mut batch = Batch::default();
        rules::add(&mut batch, &self.table_name, redirects);
        let done = self.table(|socket| {
            batch.commit(socket)?;
            // Who sent to the port before would otherwise go on sending to the host.
            forget(socket, redirects, |redirect, entry| redirect.port == entry.port && redirect.to != entry.answers);
            Ok(())
        });
        done.map_err(NetworkError::kernel("publish ports (nf_tables)"))
    }

    /// Takes out what leads to a sandbox; where the table has changed under us it is made again.
    pub fn unpublish(&self, redirects: &[Redirect], book: &Mutex<Book>) -> Result<(), NetworkError> {
        let mut batch = Batch::default();
        rules::delete(&mut batch, &self.table_name, redirects);
        let done = self.table(|socket| {
            let done = batch.commit(socket);
            forget(socket, redirects, |redirect, entry| redirect.to == entry.answers);
            Ok(done?)
        });
        match done {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.rebuild(book),
            other => other.map_err(NetworkError::kernel("take back published ports (nf_tables)")),
        }
    }

    /// Makes the whole table again from the records.
    pub fn rebuild(&self, book: &Mutex<Book>) -> Result<(), NetworkError> {
        // The socket is taken first: whoever changes an element after this finds the table as the records have it.
        let done = self.table(|socket| {
            let batch = {
                let book = lock(book);
                rules::rebuild(&self.table_name, book.networks.values(), &book.redirects())
            };
            Ok(batch.commit(socket)?)
        });
        done.map_err(NetworkError::kernel(
            "make the rules for networks (nf_tables in the kernel: CONFIG_NF_TABLES_INET, \
            CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_INET, CONFIG_NFT_CT)",
        ))
    }

    /// Removes the table. A kernel that has no tables has not this one either.
    pub fn clear(&self) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.table(&self.table_name);
        batch.delete_table(&self.table_name);
        match self.table(|socket| Ok(batch.commit(socket)?)) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(()),
            other => other,
        }
    }

    /// Works with the kernel's tables, one at a time.
    fn table<T>(&self, work: impl FnOnce(&mut Netlink) -> io::Result<T>) -> io::Result<T> {
        let mut socket = lock(&self.table);
        match &mut *socket {
            Some(socket) => work(socket),
            none => work(none.insert(Netlink::netfilter()?)),
        }
    }

    /// Whether iptables' FORWARD chain drops what no rule of its own accepts.
    pub fn forward_drops(&self) -> bool {
        self.table(|socket| nft::iptables_drops(socket, "FORWARD")).unwrap_or(false)
    }
}

/// Has the kernel forget UDP connections that `which` ties to one of the redirects. Without connection tracking over
/// netlink (`CONFIG_NF_CT_NETLINK`) they end by themselves, half a minute after the sender falls silent.
fn forget(socket: &mut Netlink, redirects: &[Redirect], which: impl Fn(&Redirect, &conntrack::Entry) -> bool) {
    let udp = || redirects.iter().filter(|redirect| redirect.protocol == Protocol::Udp);
    if udp().next().is_none() {
        return;
    }
    if let Err(error) = conntrack::forget_udp(socket, |entry| udp().any(|redirect| which(redirect, entry))) {
        tracing::debug!(%error, "connections of published UDP ports cannot be forgotten");
    }
}

fn with_len(address: IpAddr, len: u8) -> IpNet {
    // The length is that of a subnet of the same family.
    IpNet::new(address, len).unwrap_or_else(|_| address.into())
}
