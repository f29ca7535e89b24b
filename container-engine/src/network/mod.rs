//! Networks of containers: bridges, addresses, published ports, names; or the host's CNI plugins.
//!
//! A sandbox is what has a network namespace: a container, or the pod that several share. Its namespace is held by a
//! bind mount, so it outlives every process in it, the agent included.
//!
//! Always true:
//! - Addresses, ports and names follow from the records alone (`record`); devices and rules are made from them, and
//!   can be made again at any time.
//! - A record is durable before anything of it exists on the host, and deleted after everything is gone.
//! - Nothing of the host is touched before the first container needs a network: no bridge, no rules, no forwarding.
//! - It works in the network namespace the process is in.
//!
//! Where another firewall has a say: our table accepts what containers need, but a chain of another table that drops
//! wins. With Docker's or ufw's iptables policy for FORWARD on DROP, [`Networks::problem`] names the commands that let
//! containers through; ufw's own INPUT rules also need `ufw allow in on edge0` for name resolution on user networks.
//! Firewalls that run `nft flush ruleset` remove our table: it is made again with the next attachment, or when the agent
//! starts.

mod book;
pub mod cni;
mod conntrack;
mod directory;
pub mod dns;
mod error;
pub mod files;
mod host;
mod ipam;
mod link;
mod netlink;
mod nft;
mod ports;
mod record;
mod recover;
mod rules;
mod sandbox;
mod sysctl;
mod types;

use std::{
    collections::{BTreeSet, HashMap, btree_map::Entry},
    path::Path,
    sync::{Arc, Mutex},
};

use store::state::{Batch, Entity, State};
use tokio::sync::OwnedMutexGuard;

pub use error::{AttachError, NetworkError};
pub use types::*;

use self::{
    book::Book,
    host::{Host, lock},
    link::Device,
    record::{Sandbox, key},
};
use crate::{
    event::{Action, Kind},
    owner::Owner,
};

/// Whether the kernel answers questions about nf_tables, which masquerading and published ports stand on. Blocking.
pub fn has_nf_tables() -> bool {
    netlink::Netlink::netfilter().and_then(|mut socket| nft::has_table(&mut socket, &rules::table(""))).is_ok()
}

/// All networks of this board; cheap to clone.
#[derive(Clone)]
pub struct Networks(Arc<Inner>);

struct Inner {
    options: Options,
    state: State,
    host: Arc<Host>,
    book: Mutex<Book>,
    /// One attachment or removal of a sandbox at a time.
    gates: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// One change of the set of networks at a time.
    networks: Arc<tokio::sync::Mutex<()>>,
    problem: Mutex<Option<String>>,
    dns: dns::Dns,
    cni: cni::Cni,
}

type Guard = OwnedMutexGuard<()>;

impl Networks {
    /// Reads the records. Touches nothing of the host: devices and rules are made when first needed, or by
    /// [`Networks::recover`], which must have run before the first attachment.
    pub async fn open(options: Options, state: State) -> Result<Self, NetworkError> {
        let (mtu, table) = (options.mtu, rules::table(&options.instance));
        let host = blocking(move || Host::open(mtu, table)).await?;
        let book = Book { instance: options.instance.clone(), ..Book::default() };
        let inner = Inner {
            dns: dns::Dns::new(options.resolv_conf.clone()),
            cni: cni::Cni::new(options.cni.clone(), &options.data_dir),
            options,
            state,
            host: Arc::new(host),
            book: Mutex::new(book),
            gates: Mutex::default(),
            networks: Arc::default(),
            problem: Mutex::default(),
        };
        let networks = Self(Arc::new(inner));
        let this = networks.clone();
        let changes = blocking(move || this.0.load()).await?;
        networks.0.state.commit(changes).await?;
        Ok(networks)
    }

    /// Creates a network of `owner`. Its bridge is made when something is first attached.
    pub async fn create(&self, owner: &Owner, spec: NetworkSpec) -> Result<Network, NetworkError> {
        let guard = self.0.networks.clone().lock_owned().await;
        let (this, owner) = (self.clone(), owner.clone());
        let (network, guard) = blocking(move || {
            let routes = this.0.routes()?;
            let network = lock(&this.0.book).add_network(&owner, spec, &routes, now_ns())?;
            Ok::<_, NetworkError>((network, guard))
        })
        .await?;
        let key = key(&network.owner, &network.name);
        if let Err(error) = self.0.put(&key, &network).await {
            lock(&self.0.book).networks.remove(&key);
            return Err(error);
        }
        self.0.copy(&key, &network);
        drop(guard);
        self.0.tell(&network, Action::Created);
        Ok(network)
    }

    /// Removes a network that nothing is on, with its bridge. What is just leaving it is waited for.
    pub async fn remove(&self, owner: &Owner, name: &str) -> Result<(), NetworkError> {
        self.settle(owner, name).await;
        let guard = self.0.networks.clone().lock_owned().await;
        if name == DEFAULT_NETWORK {
            return Err(NetworkError::Invalid("the network \"bridge\" is always there and cannot be removed".into()));
        }
        let (key, network) = {
            let mut book = lock(&self.0.book);
            let key = book.resolve(owner, name)?;
            let holders: BTreeSet<String> =
                book.info(&key).map(|info| info.endpoints.into_iter().map(|e| e.name).collect()).unwrap_or_default();
            if !holders.is_empty() {
                return Err(NetworkError::InUse { name: name.into(), holders: holders.into_iter().collect() });
            }
            book.resolvers.remove(&key);
            self.0.dns.stop(&key);
            let Some(network) = book.networks.remove(&key) else { return Err(NetworkError::NotFound(name.into())) };
            (key, network)
        };
        let this = self.clone();
        let device = network.device.clone();
        let (done, guard) = blocking(move || {
            let step = format!("remove bridge {device:?}");
            let done = this.0.host.delete_link(&device).map_err(NetworkError::kernel(step));
            Ok::<_, NetworkError>((done.and_then(|()| this.0.host.rebuild(&this.0.book)), guard))
        })
        .await?;
        if let Err(error) = done {
            lock(&self.0.book).networks.insert(key, network);
            return Err(error);
        }
        self.0.forget::<Network>(&key).await?;
        drop(guard);
        self.0.tell(&network, Action::Removed);
        Ok(())
    }

    /// One network: of `owner`, or the default one.
    pub fn inspect(&self, owner: &Owner, name: &str) -> Result<NetworkInfo, NetworkError> {
        let book = lock(&self.0.book);
        let key = book.resolve(owner, name)?;
        book.info(&key).ok_or_else(|| NetworkError::NotFound(name.to_owned()))
    }

    /// All networks of `owner` and the default one; everybody's where absent.
    pub fn list(&self, owner: Option<&Owner>) -> Vec<NetworkInfo> {
        let book = lock(&self.0.book);
        let seen =
            |network: &Network| network.name == DEFAULT_NETWORK || owner.is_none_or(|owner| *owner == network.owner);
        let keys = book.networks.iter().filter(|(_, network)| seen(network)).map(|(key, _)| key);
        keys.filter_map(|key| book.info(key)).collect()
    }

    /// What keeps containers from the network, and what to do, where something does.
    pub fn problem(&self) -> Option<String> {
        lock(&self.0.problem).clone()
    }

    /// Whether containers can be given a network: with CNI, whether there is a configuration and its plugins are ready.
    pub async fn ready(&self) -> Result<(), AttachError> {
        if self.0.options.cni.is_some() { Ok(self.0.cni.status().await?) } else { Ok(()) }
    }

    /// `/etc/resolv.conf` of a container on this network; see [`files::resolv_conf`].
    pub fn resolv_conf(&self, attached: &Attached, wanted: &crate::container::Dns) -> String {
        files::resolv_conf(&self.0.dns.host_conf(), attached, wanted)
    }

    /// At the agent's end: stops the name servers; containers keep their networks.
    pub fn close(&self) {
        self.0.dns.stop_all();
    }

    /// Takes the table and the bridges away where nothing is on them: an engine that is only visiting, on other data than
    /// the usual, leaves nothing on the host. They are made again when they are needed. A bridge that somebody named may
    /// be somebody's, and stays.
    pub async fn leave(&self) -> Result<(), NetworkError> {
        let guard = self.0.networks.clone().lock_owned().await;
        let this = self.clone();
        blocking(move || {
            let devices: Vec<String> = {
                let book = lock(&this.0.book);
                if !book.sandboxes.is_empty() {
                    return Ok(());
                }
                book.networks.values().map(|network| network.device.clone()).collect()
            };
            this.0.host.remove_doomed();
            let instance = &this.0.options.instance;
            let usual = Options::of(instance.clone()).device;
            let ours = |device: &&String| **device == usual || Device::Bridge.is_named(instance, device);
            for device in devices.iter().filter(ours) {
                let step = format!("remove bridge {device:?}");
                this.0.host.delete_link(device).map_err(NetworkError::kernel(step))?;
            }
            this.0.host.clear().map_err(NetworkError::kernel("remove the rules for networks (nf_tables)"))?;
            drop(guard);
            Ok(())
        })
        .await
    }

    async fn gate(&self, sandbox: &str) -> Guard {
        let gate = {
            let mut gates = lock(&self.0.gates);
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(sandbox.to_owned()).or_default().clone()
        };
        gate.lock_owned().await
    }
}

impl Inner {
    /// Reads the records, and their copies under `RUN` where the state lost them; the result is what to commit.
    fn load(&self) -> Result<Batch, NetworkError> {
        let mut batch = Batch::default();
        let mut book = lock(&self.book);
        for item in self.state.scan::<Network>("") {
            match item {
                Ok((key, network)) => drop(book.networks.insert(key, network)),
                Err(error) => tracing::error!(%error, "a network's record cannot be read; the network is left out"),
            }
        }
        for item in self.state.scan::<Sandbox>("") {
            match item {
                Ok((key, sandbox)) => drop(book.sandboxes.insert(key, sandbox)),
                Err(error) => tracing::error!(%error, "a sandbox's record cannot be read; its copy is looked for"),
            }
        }
        for (key, network) in copies::<Network>(&self.options.run_dir) {
            if let Entry::Vacant(place) = book.networks.entry(key) {
                batch.put(place.key(), &network)?;
                place.insert(network);
            }
        }
        for (key, sandbox) in copies::<Sandbox>(&self.options.run_dir) {
            if let Some(record) = book.sandboxes.get_mut(&key) {
                record.complete = sandbox.complete;
            } else {
                batch.put(&key, &sandbox)?;
                book.sandboxes.insert(key, sandbox);
            }
        }
        drop(book);
        let routes = self.routes()?;
        let changed = lock(&self.book).default_network(&self.options, &routes, now_ns());
        if let Some(network) = changed {
            let key = key(&network.owner, &network.name);
            batch.put(&key, &network)?;
            self.copy(&key, &network);
        }
        Ok(batch)
    }

    fn tell(&self, network: &Network, action: Action) {
        self.options.events.tell(&network.owner, Kind::Network, &network.name, &network.name, action);
    }

    /// Subnets of the host that networks must not hide.
    fn routes(&self) -> Result<Vec<ipnet::Ipv4Net>, NetworkError> {
        let mut bridges: BTreeSet<String> =
            lock(&self.book).networks.values().map(|network| network.device.clone()).collect();
        bridges.insert(self.options.device.clone());
        self.host.foreign_routes(&bridges)
    }

    async fn put<E: Entity>(&self, key: &str, value: &E) -> Result<(), NetworkError> {
        let mut batch = Batch::default();
        batch.put(key, value)?;
        Ok(self.state.commit(batch).await?)
    }

    /// A sandbox's record. The copy under `RUN` outlives the agent, and no sandbox but a pod's outlives the boot: nobody
    /// waits for the disk.
    async fn note(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        self.copy(&sandbox.id, sandbox);
        let mut batch = Batch::default();
        batch.put(&sandbox.id, sandbox)?;
        let state = &self.state;
        Ok(if sandbox.is_pods() { state.commit(batch).await } else { state.commit_relaxed(batch).await }?)
    }

    /// Deletes the record of a sandbox that is gone. Should it come back, `recover` finds nothing of it and deletes it again.
    async fn unnote(&self, id: &str) -> Result<(), NetworkError> {
        let _ = std::fs::remove_file(copy_path::<Sandbox>(&self.options.run_dir, id));
        let mut batch = Batch::default();
        batch.delete::<Sandbox>(id);
        Ok(self.state.commit_relaxed(batch).await?)
    }

    async fn forget<E: Entity>(&self, key: &str) -> Result<(), NetworkError> {
        // The copy first: a copy without a record would come back as one.
        let _ = std::fs::remove_file(copy_path::<E>(&self.options.run_dir, key));
        let mut batch = Batch::default();
        batch.delete::<E>(key);
        Ok(self.state.commit(batch).await?)
    }

    /// Keeps a copy under `RUN`. One that cannot be written is missed only when the state is lost as well.
    fn copy<E: Entity>(&self, key: &str, value: &E) {
        let path = copy_path::<E>(&self.options.run_dir, key);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            let beside = path.with_extension("new");
            std::fs::write(&beside, serde_json::to_vec(&(key, value))?)?;
            std::fs::rename(&beside, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, path = %path.display(), "a copy of a network record cannot be written");
        }
    }
}

fn copy_path<E: Entity>(run: &Path, key: &str) -> std::path::PathBuf {
    run.join("network").join(E::TREE).join(link::file_name(key)).with_extension("json")
}

fn copies<E: Entity>(run: &Path) -> Vec<(String, E)> {
    let Ok(entries) = std::fs::read_dir(run.join("network").join(E::TREE)) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let json = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    json.filter_map(|path| serde_json::from_slice(&board::durable::read(&path, 1 << 20).ok()?).ok()).collect()
}

/// Runs what blocks on a thread for such things; a panic there is an error here.
async fn blocking<T: Send + 'static, E: From<NetworkError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(NetworkError::Kernel { step: "finish a change of the network".into(), source: error.into() }.into())
    })
}

fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
