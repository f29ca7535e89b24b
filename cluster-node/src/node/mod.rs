//! The Node object: what the board is and how it is, told to the API server; and the lease that says it lives.
//!
//! [`NodeObject`] knows everything that goes into it and tells others what they need; `report` keeps the API server's copy
//! true, `lease` says that the node lives. What to say is decided in `build`, `patch`, `resources` and `address`, which are
//! pure.
//!
//! Always true:
//! - Nothing is watched: the answer to each report says what others changed, and who must know it at once asks
//!   ([`NodeObject::refresh`]).
//! - The node is ready, for the others here, once the API server has acknowledged it.
//! - Without the API server the node is what it was when last heard of.

mod address;
mod build;
mod config;
pub(crate) mod facts;
mod image;
mod lease;
mod netlink;
mod patch;
mod report;
pub(crate) mod request;
mod resources;
mod step;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use board::clock::Clock;
use container_engine::engine::Engine;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeAddress, NodeStatus, Taint};
use serde_json::Value;
use tokio::sync::{Notify, watch};

pub use build::{Facts, build};
pub use config::{Configuration, duration};
pub use facts::{Amounts, KUBELET_VERSION, Machine};
pub use lease::renew_time;
pub use resources::{Extended, Reserved, Resources};

use self::request::Body;
use crate::{
    api::Api,
    event::{Recorder, Type},
    housekeeping::{eviction::Conditions, threshold::Pressure},
    object::Cache,
    options::Options,
};

/// What others must know of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Labels as the API server has them; those that the node registers with while that is not known.
    pub labels: BTreeMap<String, String>,
    /// Taints, likewise.
    pub taints: Vec<Taint>,
    /// Whether new pods are kept away.
    pub unschedulable: bool,
    /// All there is.
    pub capacity: Resources,
    /// What pods get of it.
    pub allocatable: Resources,
    /// Bytes of memory of the board.
    pub memory: u64,
    /// Addresses, IPv4 first.
    pub host_ips: Vec<IpAddr>,
    /// What is short.
    pub pressures: BTreeSet<Pressure>,
}

/// What is told by others on the board.
#[derive(Debug, Default)]
struct Told {
    problems: BTreeMap<&'static str, String>,
    pressures: BTreeSet<Pressure>,
    extended: BTreeMap<String, Extended>,
    declared: BTreeSet<String>,
    volumes_in_use: Vec<String>,
}

/// What was seen of the board.
#[derive(Debug, Default)]
struct Seen {
    amounts: Amounts,
    images: Vec<ContainerImage>,
}

/// What the API server has.
#[derive(Debug, Default)]
struct Known {
    /// Metadata and spec, as last heard of, perhaps by an earlier process.
    node: Option<Node>,
    /// The status that it has of us.
    status: Option<NodeStatus>,
}

struct Inner {
    options: Options,
    api: Api,
    cache: Cache,
    engine: Engine,
    clock: Clock,
    recorder: Recorder,
    configuration: Configuration,
    machine: Machine,
    told: Mutex<Told>,
    seen: Mutex<Seen>,
    known: Mutex<Known>,
    addresses: watch::Sender<Vec<NodeAddress>>,
    pod_cidrs: watch::Sender<Vec<IpNet>>,
    uid: watch::Sender<Option<String>>,
    ready: watch::Sender<bool>,
    /// Something changed that the API server should know.
    news: Notify,
    /// The node may be gone.
    doubt: Notify,
}

/// The node; cheap to clone.
#[derive(Clone)]
pub struct NodeObject(Arc<Inner>);

impl fmt::Debug for NodeObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeObject({})", self.0.options.name)
    }
}

impl NodeObject {
    /// As this board is, and as the cluster last had it. `cluster` is its `KubeletConfiguration`. Reads the kernel's files and
    /// the cache, which blocks for a moment.
    pub fn new(
        options: &Options,
        api: Api,
        cache: Cache,
        engine: Engine,
        clock: Clock,
        recorder: Recorder,
        cluster: &Value,
    ) -> Self {
        let node = cache.node(&options.name);
        let seen = Seen { amounts: Amounts::read(&options.kubelet_dir), images: Vec::new() };
        let before = node.as_ref().and_then(|it| it.status.as_ref()).and_then(|it| it.addresses.clone());
        let inner = Inner {
            configuration: Configuration::of(cluster, options),
            options: options.clone(),
            api,
            cache,
            engine,
            clock,
            recorder,
            machine: Machine::read(),
            told: Mutex::default(),
            seen: Mutex::new(seen),
            addresses: watch::Sender::new(before.unwrap_or_default()),
            pod_cidrs: watch::Sender::new(cidrs(options, node.as_ref())),
            uid: watch::Sender::new(node.as_ref().and_then(|it| it.metadata.uid.clone())),
            ready: watch::Sender::new(false),
            known: Mutex::new(Known { node, status: None }),
            news: Notify::new(),
            doubt: Notify::new(),
        };
        let object = Self(Arc::new(inner));
        object.find_addresses();
        object
    }

    /// Addresses, as the status has them without the name; those of an earlier time while there are none.
    pub fn addresses(&self) -> watch::Receiver<Vec<NodeAddress>> {
        self.0.addresses.subscribe()
    }

    /// The same, for pods: IPv4 first.
    pub fn host_ips(&self) -> Vec<IpAddr> {
        address::of_status(&self.0.addresses.borrow())
    }

    /// Subnets of pods: configured, or given by the cluster; empty while it has given none.
    pub fn pod_cidrs(&self) -> watch::Receiver<Vec<IpNet>> {
        self.0.pod_cidrs.subscribe()
    }

    /// Uid of the object, where it was ever heard of.
    pub fn uid(&self) -> Option<String> {
        self.0.uid.borrow().clone()
    }

    /// Changes when the node is registered, or registered anew.
    pub fn uid_changes(&self) -> watch::Receiver<Option<String>> {
        self.0.uid.subscribe()
    }

    /// Whether the node is ready, as acknowledged by the API server.
    pub fn is_ready(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }

    /// For admission, the downward API and whoever asks what the node is.
    pub fn facts(&self) -> NodeFacts {
        let facts = self.gather();
        let known = self.known();
        let node = known.node.as_ref();
        let labels = node.and_then(|it| it.metadata.labels.clone()).unwrap_or_else(|| build::labels(&facts));
        let taints = node.map(|it| it.spec.as_ref().and_then(|it| it.taints.clone()).unwrap_or_default());
        NodeFacts {
            labels,
            taints: taints.unwrap_or_else(|| build::taints(&facts)),
            unschedulable: node.and_then(|it| it.spec.as_ref()?.unschedulable).unwrap_or(false),
            capacity: resources::capacity(&facts.amounts, facts.max_pods, &facts.extended),
            allocatable: resources::allocatable(&facts.amounts, facts.max_pods, &facts.extended, &facts.reserved),
            memory: facts.amounts.memory,
            host_ips: self.host_ips(),
            pressures: facts.pressures,
            name: facts.name,
        }
    }

    /// Bytes of memory that all pods together may use: the limit of their control group.
    pub fn allocatable_memory(&self) -> u64 {
        let facts = self.gather();
        resources::memory(&facts.amounts, &facts.reserved)
    }

    /// What is wrong with a part of the node, if anything is: the node is not ready then. `source` names the part.
    pub fn set_problem(&self, source: &'static str, problem: Option<String>) {
        let mut told = self.told();
        let before = match &problem {
            Some(text) => told.problems.insert(source, text.clone()),
            None => told.problems.remove(source),
        };
        drop(told);
        if before != problem {
            if let Some(problem) = &problem {
                tracing::warn!(source, problem, "the node is not ready");
            }
            self.0.news.notify_one();
        }
    }

    /// Devices and the like, by resource. One that has vanished stays with nothing.
    pub fn set_extended(&self, mut extended: BTreeMap<String, Extended>) {
        let mut told = self.told();
        for name in told.extended.keys() {
            extended.entry(name.clone()).or_default();
        }
        if told.extended != extended {
            told.extended = extended;
            drop(told);
            self.0.news.notify_one();
        }
    }

    /// Features that the scheduler may count on, by their names in Kubernetes; only such as are true.
    pub fn declare(&self, features: impl IntoIterator<Item = String>) {
        let features = features.into_iter().collect();
        let mut told = self.told();
        if told.declared != features {
            told.declared = features;
            drop(told);
            self.0.news.notify_one();
        }
    }

    /// Attachable volumes that pods use.
    pub fn set_volumes_in_use(&self, mut volumes: Vec<String>) {
        volumes.sort_unstable();
        let mut told = self.told();
        if told.volumes_in_use != volumes {
            told.volumes_in_use = volumes;
            drop(told);
            self.0.news.notify_one();
        }
    }

    /// Asks the API server what the node is now: before a pod is turned away for a label, say.
    pub async fn refresh(&self) -> Result<(), kube::Error> {
        let node = request::whole::<Node>(&self.0.api, "GET", &self.path(), Body::None).await?;
        self.take(node).await;
        Ok(())
    }

    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.0.options.name)
    }

    /// Takes over what others say of the node. Written down where it has changed, which is seldom.
    async fn take(&self, mut node: Node) {
        node.metadata.managed_fields = None;
        node.metadata.resource_version = None;
        let uid = node.metadata.uid.clone();
        let unschedulable = |node: &Node| node.spec.as_ref().and_then(|it| it.unschedulable).unwrap_or(false);
        let addresses = self.0.addresses.borrow().clone();
        node.status = Some(NodeStatus { addresses: Some(addresses), ..NodeStatus::default() });
        let before = self.known().node.replace(node.clone());
        if before.as_ref() == Some(&node) {
            return;
        }
        if before.as_ref().is_some_and(|before| unschedulable(before) != unschedulable(&node)) {
            let reason = if unschedulable(&node) { "NodeNotSchedulable" } else { "NodeSchedulable" };
            self.says(reason);
        }
        self.0.uid.send_if_modified(|it| std::mem::replace(it, uid.clone()) != uid);
        let cidrs = cidrs(&self.0.options, Some(&node));
        if !cidrs.is_empty() {
            self.0.pod_cidrs.send_if_modified(|it| std::mem::replace(it, cidrs.clone()) != cidrs);
        }
        if let Err(error) = self.0.cache.put_node(&node).await {
            tracing::warn!(%error, "the node object cannot be kept for the time without the cluster");
        }
    }

    fn says(&self, reason: &str) {
        let name = &self.0.options.name;
        self.0.recorder.node(Type::Normal, reason, format!("Node {name} status is now: {reason}"));
    }

    /// All that is known now.
    fn gather(&self) -> Facts {
        let inner = &self.0;
        let configuration = &inner.configuration;
        let (amounts, images) = {
            let seen = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
            (seen.amounts.clone(), seen.images.clone())
        };
        let told = self.told();
        let mut problems: Vec<String> = told.problems.values().cloned().collect();
        let addresses = inner.addresses.borrow().clone();
        if addresses.is_empty() {
            problems.push("the board has no address: connect it to a network, or set node.address".to_owned());
        }
        let own = inner.options.taints.iter();
        let others = configuration.taints.iter();
        let others = others.filter(|it| !own.clone().any(|own| (&own.key, &own.effect) == (&it.key, &it.effect)));
        Facts {
            name: inner.options.name.clone(),
            labels: inner.options.labels.clone(),
            taints: own.clone().chain(others).cloned().collect(),
            machine: inner.machine.clone(),
            reserved: Reserved::of(&inner.options.reserved, &configuration.reserved)
                .with(&configuration.hard, &amounts),
            max_pods: configuration.pods(amounts.cpus),
            amounts,
            extended: told.extended.clone(),
            addresses,
            port: inner.options.listen.port(),
            images,
            declared: told.declared.clone(),
            volumes_in_use: told.volumes_in_use.clone(),
            pressures: told.pressures.clone(),
            problems,
        }
    }

    /// Looks which addresses the node has; whether they, or the way out, have changed. Blocking, and quick.
    fn find_addresses(&self) -> bool {
        let towards = self.own_address_towards_server();
        let network = netlink::look().unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel does not tell the addresses of this board");
            address::Network::default()
        });
        let found = address::internal(&network.choose(self.0.options.address, towards));
        // Without any, the cable is out, and the board keeps its name in the cluster.
        !found.is_empty() && self.0.addresses.send_if_modified(|it| std::mem::replace(it, found.clone()) != found)
    }

    /// The address that packets to the API server would come from. Nothing is sent.
    fn own_address_towards_server(&self) -> Option<IpAddr> {
        let server = self.0.api.server();
        let to: IpAddr = server.host.parse().ok()?;
        let any: IpAddr =
            if to.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
        socket.connect((to, server.port)).ok()?;
        socket.local_addr().ok().map(|it| it.ip())
    }

    fn api(&self) -> &Api {
        &self.0.api
    }

    fn options(&self) -> &Options {
        &self.0.options
    }

    fn configuration(&self) -> &Configuration {
        &self.0.configuration
    }

    fn now_us(&self) -> i64 {
        self.0.clock.stamp().wall_us
    }

    fn uptime_us(&self) -> u64 {
        self.0.clock.stamp().uptime_us
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.now_us()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn look_again(&self) {
        self.0.doubt.notify_one();
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conditions for NodeObject {
    fn set_pressure(&self, pressure: Pressure, holds: bool) {
        let mut told = self.told();
        let changed = if holds { told.pressures.insert(pressure) } else { told.pressures.remove(&pressure) };
        drop(told);
        if changed {
            self.0.news.notify_one();
        }
    }
}

/// What is configured; else what the cluster has given.
fn cidrs(options: &Options, node: Option<&Node>) -> Vec<IpNet> {
    if let Some(own) = options.pod_cidr {
        return vec![own];
    }
    let Some(spec) = node.and_then(|it| it.spec.as_ref()) else { return Vec::new() };
    let one = spec.pod_cidr.iter();
    let all: Vec<&String> = spec.pod_cidrs.iter().flatten().collect();
    let texts = if all.is_empty() { one.collect() } else { all };
    texts.into_iter().take(2).filter_map(|text| text.parse().ok()).collect()
}
