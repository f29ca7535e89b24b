//! What pods, containers and the board use: for `kubectl top`, the summary, and Prometheus.
//!
//! Looked at when somebody asks, never before, and at most once a second. Numbers are the kernel's; a rate is from two
//! looks, which are a quarter of a second apart where nobody has asked lately.
//!
//! Always true: what runs has used some processor time and some memory. A zero would make the metrics server drop the
//! whole pod.

mod disk;
mod model;
mod node;
mod pages;
mod rate;
mod summary;
mod text;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use container_engine::{
    cgroup::Usage,
    container::{Inspect, NetworkUsage, Stats},
};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

pub use self::pages::sli_metrics;
use self::{disk::Disks, node::Board, rate::Rates};
use super::{directory::Directory, pods::container_names, runtime::Runtime};

/// How long a look stands.
const FRESH: Duration = Duration::from_secs(1);
/// Between two looks, where there was none before.
const APART: Duration = Duration::from_millis(250);
/// Containers looked at at once.
const AT_ONCE: usize = 8;

/// Where things are and who counts.
pub struct Places {
    /// The node's name.
    pub node: String,
    /// On the file system of the node: logs, volumes.
    pub node_dir: PathBuf,
    /// On the file system of images and containers.
    pub image_dir: PathBuf,
    /// `pods/NS_NAME_UID/CONTAINER/` below it.
    pub log_dir: PathBuf,
    /// The agent's own metrics.
    pub metrics: board::metrics::Metrics,
    /// Those of probes, as text.
    pub probes: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A container that runs.
#[derive(Debug, Clone)]
pub(super) struct SeenContainer {
    pub name: String,
    pub inspect: Inspect,
    pub stats: Stats,
    pub rate: Option<u64>,
}

/// A pod with containers that run.
#[derive(Debug, Clone)]
pub(super) struct SeenPod {
    pub pod: Arc<Pod>,
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub containers: Vec<SeenContainer>,
    /// Of all of it.
    pub usage: Usage,
    pub rate: Option<u64>,
    pub network: BTreeMap<String, NetworkUsage>,
}

/// One look.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub time_ns: i64,
    pub board: Board,
    pub rate: Option<u64>,
    /// The agent itself.
    pub own: Usage,
    pub own_rate: Option<u64>,
    pub pods: Vec<SeenPod>,
}

/// Looks.
pub struct Observer {
    directory: Arc<dyn Directory>,
    runtime: Arc<dyn Runtime>,
    places: Places,
    rates: Mutex<Rates>,
    last: tokio::sync::Mutex<Option<(Instant, Arc<Look>)>>,
    disks: Disks,
    roots: Mutex<BTreeMap<String, (Instant, u64)>>,
}

impl Observer {
    /// Of those pods and containers.
    pub fn new(directory: Arc<dyn Directory>, runtime: Arc<dyn Runtime>, places: Places) -> Self {
        Self {
            directory,
            runtime,
            places,
            rates: Mutex::default(),
            last: tokio::sync::Mutex::default(),
            disks: Disks::default(),
            roots: Mutex::default(),
        }
    }

    /// How it is, a second ago at most.
    pub(super) async fn look(&self) -> Arc<Look> {
        let mut last = self.last.lock().await;
        if let Some((at, look)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return look.clone();
        }
        let mut look = self.look_once().await;
        let is_first = look.rate.is_none() || look.pods.iter().any(|pod| pod.rate.is_none());
        if is_first || look.pods.iter().flat_map(|pod| &pod.containers).any(|it| it.rate.is_none()) {
            tokio::time::sleep(APART).await;
            look = self.look_once().await;
        }
        let look = Arc::new(look);
        *last = Some((Instant::now(), look.clone()));
        look
    }

    async fn look_once(&self) -> Look {
        let pods: Vec<_> = self.directory.pods().into_iter().map(|pod| self.pod(pod)).collect();
        let pods: Vec<SeenPod> =
            futures_util::stream::iter(pods).buffered(AT_ONCE).filter_map(std::future::ready).collect().await;
        let read = tokio::task::spawn_blocking(|| (node::board(), node::own()));
        let (board, own) = read.await.unwrap_or_default();
        let time_ns = now_ns();
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.forget(time_ns);
        let rate = rates.look("", time_ns, board.usage.cpu.usage_us);
        let own_rate = rates.look("own", time_ns, own.cpu.usage_us);
        Look { time_ns, board, rate, own, own_rate, pods }
    }

    async fn pod(&self, pod: Arc<Pod>) -> Option<SeenPod> {
        let uid = pod.metadata.uid.clone()?;
        let mut containers = Vec::new();
        for name in container_names(&pod) {
            let Some(last) = self.directory.instances(&uid, &name).last.filter(|last| last.running) else { continue };
            let Some(inspect) = self.runtime.inspect(&last.id) else { continue };
            let Ok(stats) = self.runtime.usage(last.id.clone(), false).await else { continue };
            // It has ended since: what a group that is gone used is not known any more.
            if stats.cgroup == Usage::default() {
                continue;
            }
            let rate = self.rate(last.id.as_str(), stats.time_ns, stats.cgroup.cpu.usage_us);
            containers.push(SeenContainer { name, inspect, stats, rate });
        }
        if containers.is_empty() {
            return None;
        }
        let own = self.runtime.pod_usage(uid.clone()).await;
        let usage = own.filter(|usage| usage.cpu.usage_us > 0).unwrap_or_else(|| sum(&containers));
        let rate = self.rate(&uid, now_ns(), usage.cpu.usage_us);
        let network = containers.iter().map(|it| &it.stats.network).find(|it| !it.is_empty()).cloned();
        Some(SeenPod {
            name: pod.metadata.name.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            network: network.unwrap_or_default(),
            pod,
            uid,
            containers,
            usage,
            rate,
        })
    }

    fn rate(&self, what: &str, time_ns: i64, usage_us: u64) -> Option<u64> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).look(what, time_ns, usage_us)
    }

    /// Bytes of a container's writable part, a minute ago at most.
    async fn root_bytes(&self, container: &SeenContainer) -> Option<u64> {
        let id = container.inspect.id.as_str();
        let known = self.roots.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        if let Some((at, bytes)) = known
            && at.elapsed() < Duration::from_secs(60)
        {
            return Some(bytes);
        }
        let bytes = self.runtime.usage(container.inspect.id.clone(), true).await.ok()?.disk?;
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        roots.retain(|_, (at, _)| at.elapsed() < Duration::from_secs(600));
        roots.insert(id.to_owned(), (Instant::now(), bytes));
        Some(bytes)
    }
}

/// Of containers whose pod has no group of its own.
fn sum(containers: &[SeenContainer]) -> Usage {
    let mut all = Usage::default();
    for usage in containers.iter().map(|it| &it.stats.cgroup) {
        all.cpu.usage_us += usage.cpu.usage_us;
        all.cpu.user_us += usage.cpu.user_us;
        all.cpu.system_us += usage.cpu.system_us;
        let (to, from) = (&mut all.memory, &usage.memory);
        to.usage += from.usage;
        to.working_set += from.working_set;
        to.anon += from.anon;
        to.file += from.file;
        to.swap += from.swap;
        to.page_faults += from.page_faults;
        to.major_page_faults += from.major_page_faults;
        all.pids.current += usage.pids.current;
    }
    all
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
