//! Name servers of networks: one for each, on its gateway address, for the names of containers on user networks; the
//! rest is asked of the host's resolvers.
//!
//! Each server listens on a port of its own, and the rules lead port 53 of the gateway there: so it is never in the way
//! of a name server of the host that has port 53 on all addresses, nor of a container that publishes it.
//!
//! Always true:
//! - Only members are answered: a query whose source is no address of the network gets nothing.
//! - Whoever is on internal networks alone gets names of containers and nothing else; no question of theirs leaves.
//! - At most [`MAX_BUSY`] questions of a network are being asked elsewhere; beyond that they are told to come back.
//! - Nothing that arrives can do more than be ignored: packets are parsed by `answer`, which is fuzzed.

mod answer;
mod forward;
mod resolvers;
mod server;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

pub use answer::{Names, Reply, answer};
pub use resolvers::{HostConf, parse as parse_resolv_conf};

use self::{resolvers::Resolvers, server::Server};
use super::{host::lock, rules::Redirect};
use crate::container::Protocol;

/// Most questions of one network asked elsewhere at once, and most connections.
pub(super) const MAX_BUSY: usize = 128;

/// Who may be asked about the members of networks.
pub trait Directory: Send + Sync + 'static {
    /// What `source` may know, asking the server of `network`; none where it is no member.
    fn names_for(&self, network: &str, source: IpAddr) -> Option<Box<dyn Names>>;
}

/// All name servers of this board.
pub(super) struct Dns {
    resolvers: Arc<Resolvers>,
    servers: Mutex<BTreeMap<String, Server>>,
}

impl Dns {
    pub fn new(resolv_conf: std::path::PathBuf) -> Self {
        Self { resolvers: Arc::new(Resolvers::new(resolv_conf)), servers: Mutex::default() }
    }

    /// The host's configuration as it is now.
    pub fn host_conf(&self) -> HostConf {
        self.resolvers.now()
    }

    /// Starts the server of a network on its gateway addresses; what leads there is returned. In a runtime.
    pub fn start(&self, network: &str, gateways: &[IpAddr], names: Arc<dyn Directory>) -> io::Result<Vec<Redirect>> {
        let mut redirects = Vec::new();
        let mut server = Server::default();
        for gateway in gateways {
            let port = server.listen(*gateway, network, &names, &self.resolvers)?;
            redirects.extend([Protocol::Udp, Protocol::Tcp].map(|protocol| Redirect {
                protocol,
                address: Some(*gateway),
                port: 53,
                to: *gateway,
                to_port: port,
            }));
        }
        lock(&self.servers).insert(network.to_owned(), server);
        Ok(redirects)
    }

    /// Stops the server of a network.
    pub fn stop(&self, network: &str) {
        drop(lock(&self.servers).remove(network));
    }

    /// Stops all.
    pub fn stop_all(&self) {
        lock(&self.servers).clear();
    }
}

/// A server's address as the resolvers' file writes it.
fn server_address(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 53)
}
