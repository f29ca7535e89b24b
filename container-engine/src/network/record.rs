//! What is kept about networks and sandboxes: in the state, and a copy under `RUN` for the case that the state is lost.
//!
//! Always true: an address is in a record (at least in the copy) before it is on a device, and a record is deleted after
//! the device is gone. So after a crash at any point nothing is handed out twice, and what was halfway is in a record to
//! undo. A power cut takes all sandboxes with it: their records need not be on the disk, save those of pods, which come
//! back with their addresses.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use store::state::Entity;

use super::{
    rules::{Redirect, redirects},
    types::{Attached, BoundPort, Interface, Network},
};
use crate::owner::Owner;

impl Entity for Network {
    const TREE: &'static str = "network";
    const VERSION: u16 = 1;
}

/// A sandbox's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub id: String,
    pub owner: Owner,
    /// Where its namespace is held; none where it belongs to somebody else.
    pub netns: PathBuf,
    pub hostname: String,
    /// Names it answers to on all its user networks; the first is what people call it.
    pub names: Vec<String>,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<BoundPort>,
    /// Whether all of it is there: set in memory and in the copy under `RUN`, where a reboot forgets it.
    #[serde(default)]
    pub complete: bool,
    /// What CNI plugins made of it.
    #[serde(default)]
    pub cni: Option<Attached>,
}

/// A sandbox's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// Key of the network.
    pub network: String,
    /// The host's end of the veth pair.
    pub device: String,
    pub interface: Interface,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Whether ports cannot lead here.
    #[serde(default)]
    pub internal: bool,
}

impl Entity for Sandbox {
    const TREE: &'static str = "sandbox-network";
    const VERSION: u16 = 1;
}

/// The key of a network.
pub(super) fn key(owner: &Owner, name: &str) -> String {
    format!("{owner}/{name}")
}

impl Sandbox {
    /// Whether it is a pod's, which has a life beyond that of its containers, and of the boot.
    pub fn is_pods(&self) -> bool {
        matches!(self.owner, Owner::Pod(_))
    }

    /// The name that people know it by.
    pub fn label(&self) -> &str {
        self.names.first().map_or(&self.id, |name| name)
    }

    /// The endpoint that the default route leads through.
    pub fn default_route(&self) -> Option<usize> {
        self.endpoints.iter().position(|endpoint| !endpoint.interface.gateways.is_empty())
    }

    /// Where its published ports lead.
    pub fn redirects(&self) -> Vec<Redirect> {
        let open = || self.endpoints.iter().filter(|endpoint| !endpoint.internal);
        let all = || open().flat_map(|endpoint| &endpoint.interface.addresses);
        let v4 = all().find_map(|net| match net {
            ipnet::IpNet::V4(net) => Some(net.addr()),
            ipnet::IpNet::V6(_) => None,
        });
        let v6 = all().find_map(|net| match net {
            ipnet::IpNet::V6(net) => Some(net.addr()),
            ipnet::IpNet::V4(_) => None,
        });
        redirects(&self.ports, v4, v6)
    }
}
