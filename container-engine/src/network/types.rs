//! What goes in and out of [`Networks`](super::Networks): options, networks, attachments.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    container::{NetworkMode, PortMapping, Protocol},
    event::Events,
    owner::Owner,
};

/// Name of the default network.
pub const DEFAULT_NETWORK: &str = "bridge";

/// How networks are made on this board.
#[derive(Debug, Clone)]
pub struct Options {
    /// `RUN`: namespaces are held in `netns/`, copies of the records lie in `network/`.
    pub run_dir: PathBuf,
    /// `DATA`: cached CNI results lie in `cni/`; they outlive a reboot as DEL needs them.
    pub data_dir: PathBuf,
    /// Tells what this engine makes on the host from what others make, see [`crate::engine::instance`]; empty: the usual.
    pub instance: String,
    /// Device of the default network.
    pub device: String,
    /// Subnet of the default network; another is taken where it collides with a route of the host.
    pub subnet: Ipv4Net,
    /// IPv6 subnet of the default network, such as a /64 of a ULA; none: IPv4 alone.
    pub ipv6: Option<Ipv6Net>,
    /// MTU of all devices; that of the device of the default route where absent.
    pub mtu: Option<u32>,
    /// The host's resolvers.
    pub resolv_conf: PathBuf,
    /// Host plugins instead of the default network.
    pub cni: Option<CniOptions>,
    /// Who hears what is made and removed.
    pub events: Events,
}

impl Options {
    /// For an engine that has [`crate::engine::instance`] in what it makes on the host; empty: the usual one.
    pub fn of(instance: String) -> Self {
        if instance.is_empty() {
            return Self::default();
        }
        // A name of a device has at most 15 bytes.
        let device = format!("edge-{}", instance.get(..8).unwrap_or(&instance));
        Self { subnet: super::ipam::default_of(&instance), device, instance, ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run_dir: "/run/edge-agent".into(),
            data_dir: "/var/lib/edge-agent".into(),
            instance: String::new(),
            device: "edge0".into(),
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 16),
            ipv6: None,
            mtu: None,
            resolv_conf: "/etc/resolv.conf".into(),
            cni: None,
            events: Events::new(),
        }
    }
}

/// Where the host's CNI plugins and their configuration are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniOptions {
    /// Configuration files; the first by name that is valid counts.
    pub conf_dir: PathBuf,
    /// Folders of plugin programs, searched in order.
    pub bin_dirs: Vec<PathBuf>,
    /// Longest a plugin may take.
    pub timeout: Duration,
}

impl Default for CniOptions {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout: Duration::from_secs(60),
        }
    }
}

/// A network to create.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// Unique among the owner's networks.
    pub name: String,
    /// A free one where absent.
    pub subnet: Option<Ipv4Net>,
    /// First address of the subnet where absent.
    pub gateway: Option<Ipv4Addr>,
    /// None: IPv4 alone.
    pub ipv6: Option<Ipv6Net>,
    /// No way out of it, nor into it from outside.
    pub internal: bool,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
}

/// A network as it is recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Unique among the owner's networks.
    pub name: String,
    /// Who it belongs to; the default network is `local`'s and open to all.
    pub owner: Owner,
    /// 64 hexadecimal digits, made from owner, name and time of creation.
    pub id: String,
    /// Its bridge on the host.
    pub device: String,
    /// Where addresses come from.
    pub subnet: Ipv4Net,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// Where IPv6 addresses come from.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// The host's IPv6 address in it: the first.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// No way out of it, nor into it from outside.
    #[serde(default)]
    pub internal: bool,
    /// For people and selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// UTC, nanoseconds since 1970.
    pub created_ns: i64,
}

/// A network and what is on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkInfo {
    /// The record.
    #[serde(flatten)]
    pub network: Network,
    /// What is on it.
    pub endpoints: Vec<EndpointInfo>,
}

/// One place on a network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EndpointInfo {
    /// The sandbox.
    pub sandbox: String,
    /// The container's name.
    pub name: String,
    /// Its interface there.
    pub interface: Interface,
}

/// What is to be attached. A sandbox is what has a network namespace: a container, or the pod that several share.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachRequest {
    /// Id of the sandbox: 1 to 128 letters, digits, `.`, `_` or `-`.
    pub sandbox: String,
    /// Whose networks are meant.
    pub owner: Owner,
    /// Where to.
    pub mode: NetworkMode,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Host name; answered for on user networks.
    pub hostname: String,
    /// The container's name and other names it answers to on all its user networks.
    pub names: Vec<String>,
    /// For CNI plugins: `K8S_POD_NAME` and the like.
    pub cni_args: BTreeMap<String, String>,
    /// For CNI plugins: ingress and egress limits.
    pub bandwidth: Option<Bandwidth>,
}

/// Limits for the `bandwidth` CNI plugin, bits per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Into the sandbox.
    pub ingress: Option<u64>,
    /// Out of it.
    pub egress: Option<u64>,
}

/// A network interface of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name there: `eth0`, `eth1`, …
    pub name: String,
    /// The network's name.
    pub network: String,
    /// `02:42:…`
    pub mac: String,
    /// Addresses with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
    /// Where the default route leads, IPv4 then IPv6; empty on internal networks.
    pub gateways: Vec<IpAddr>,
}

/// A published port as it was bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundPort {
    /// Address of the host; all where absent.
    pub host_address: Option<IpAddr>,
    /// Port of the host; never 0.
    pub host_port: u16,
    /// Port in the sandbox.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// The network of a sandbox as it came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The namespace to join; none: the host's.
    pub netns: Option<PathBuf>,
    /// Its interfaces besides loopback.
    pub interfaces: Vec<Interface>,
    /// Name servers for `resolv.conf`; empty: take the host's.
    pub dns: Vec<IpAddr>,
    /// Search domains that a CNI plugin gave.
    pub dns_search: Vec<String>,
    /// Published ports.
    pub ports: Vec<BoundPort>,
    /// What `host-gateway` means here.
    pub host_gateway: Option<IpAddr>,
}

/// What recovery found and mended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RecoveryReport {
    /// Sandboxes that still run and whose network is as it was.
    pub kept: Vec<String>,
    /// Sandboxes that exist no longer: their addresses, devices and rules were taken back.
    pub released: Vec<String>,
    /// Sandboxes that should exist and whose namespace is gone (the board restarted); attach them again.
    pub lost: Vec<String>,
    /// Devices and namespaces that no record knew.
    pub removed: Vec<String>,
    /// What could not be mended, in words.
    pub problems: Vec<String>,
}
